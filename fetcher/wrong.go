package fetcher

import "time"

// wrongs are the chunks of a layer that arrived and were not what its table
// says. They are asked for again after pauses that grow to maxWrongPause: each
// attempt costs link, and whoever alters bytes on the way seldom does so only
// once. Guarded by Fetcher.mu.
type wrongs struct {
	chunks map[uint32]*backoff
}

const (
	// wrongPauses is how many times Options.MaxPause, 30 s if not set, the
	// longest pause is: an hour.
	wrongPauses = 120
	// maxWrongs is how often a chunk may arrive wrong before whoever can do
	// without is told.
	maxWrongs = 5
	// maxWrongChunks bounds what is remembered of a layer. Of a source that
	// sends nothing but rubbish, the source's own pause is what counts.
	maxWrongChunks = 4096
)

func (w *wrongs) arrived(c uint32, now time.Time, pause time.Duration) {
	b := w.chunks[c]
	if b == nil {
		if len(w.chunks) >= maxWrongChunks {
			return
		}
		if w.chunks == nil {
			w.chunks = map[uint32]*backoff{}
		}
		b = &backoff{max: wrongPauses * pause}
		w.chunks[c] = b
	}
	b.failed(now, 0)
}

// right forgets that a chunk was wrong.
func (w *wrongs) right(c uint32) { delete(w.chunks, c) }

// until returns when a chunk may be asked for again.
func (w *wrongs) until(c uint32) time.Time {
	if b := w.chunks[c]; b != nil {
		return b.until
	}
	return time.Time{}
}

// hopeless tells whether a chunk was wrong so often that waiting for it is in
// vain.
func (w *wrongs) hopeless(c uint32) bool {
	b := w.chunks[c]
	return b != nil && b.failures >= maxWrongs
}
