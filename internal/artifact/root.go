package artifact

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"sort"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/airstream-io/airstream/internal/chunk"
	"github.com/airstream-io/airstream/internal/toc"
)

// Root is the beginning of a TOC blob: all of the image's metadata, and the
// chunks of its hot set. It is immutable and safe for concurrent use.
type Root struct {
	columns  [numColumns][]byte
	profiles []toc.Entry // without times, sizes and links
	times    []time.Time
	layers   []layer
	pages    []page
	ids      []chunk.ID // known ones
	cold     uint32
	size     int64 // of the root, bytes
	hot      *Hot
}

type page struct {
	offset int64 // bytes into the TOC blob
	size   int
	sum    [sha256.Size]byte
}

// layer is what the root knows of a layer before anybody asks for its tree.
type layer struct {
	entries, chunkSize, chunks uint32
	known, cold                uint32            // how many chunks
	knownBefore, coldBefore    uint32            // in layers below
	timesBefore                uint32            // first used there
	shares                     [numShares][]byte // of the columns
	runs                       []run             // of known chunks, sorted
}

// run is known chunks that follow each other.
type run struct {
	first, end uint32 // numbers in the layer
	before     uint32 // how many known ones the layer has below first
}

// ParseRoot reads a root, which the caller has compared with the SHA-256 that the
// manifest names. What it holds is distrusted all the same. Errors are ErrInvalid.
func ParseRoot(raw []byte) (*Root, error) {
	r, err := parseRoot(raw)
	if err != nil {
		return nil, fmt.Errorf("artifact: parse root: %w", err)
	}
	return r, nil
}

func parseRoot(raw []byte) (*Root, error) {
	if len(raw) < columnsAt || len(raw) > MaxRoot || string(raw[:8]) != magic {
		return nil, invalid("no header of this version in %d bytes", len(raw))
	}
	layers, pages, known, cold, frame := le.Uint32(raw[8:]), le.Uint32(raw[12:]), le.Uint32(raw[16:]), le.Uint32(raw[20:]), le.Uint32(raw[24:])
	if layers > maxLayers || known > maxChunks || cold > maxChunks || pages != (cold+PageChunks-1)/PageChunks || frame > maxFrame {
		return nil, invalid("%d layers, %d pages, %d known and %d cold chunks, frames of %d bytes", layers, pages, known, cold, frame)
	}
	r := &Root{cold: cold, size: int64(len(raw))}
	rest, err := r.unpack(raw)
	if err != nil {
		return nil, err
	}
	if want := int(pages)*pageEntry + int(known)*sha256.Size; len(rest) != want {
		return nil, invalid("%d bytes behind the columns, want %d", len(rest), want)
	}
	r.pages = make([]page, pages)
	at := int64(len(raw))
	for i := range r.pages {
		p := page{offset: at, size: int(le.Uint16(rest)), sum: [sha256.Size]byte(rest[2:pageEntry])}
		if p.size < sha256.Size {
			return nil, invalid("page %d of %d bytes", i, p.size)
		}
		r.pages[i] = p
		at += int64(p.size)
		rest = rest[pageEntry:]
	}
	r.ids = make([]chunk.ID, known)
	for i := range r.ids {
		if r.ids[i] = chunk.ID(rest[i*sha256.Size:]); r.ids[i] == (chunk.ID{}) {
			return nil, invalid("known chunk %d has no ID", i)
		}
	}
	for _, parse := range []func() error{
		r.parseProfiles, r.parseTimes,
		func() error { return r.parseLayers(int(layers)) },
		func() error { return r.parseHot(frame) },
		func() error { return r.parseKnown(known) },
	} {
		if err := parse(); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// unpack decompresses the columns and returns what lies behind them.
func (r *Root) unpack(raw []byte) (rest []byte, err error) {
	z, err := decompressor(maxColumns)
	if err != nil {
		return nil, err
	}
	defer z.Close()
	rest = raw[columnsAt:]
	total := uint64(0)
	for i := range r.columns {
		size, packed := le.Uint32(raw[headerSize+8*i:]), le.Uint32(raw[headerSize+8*i+4:])
		if total += uint64(size); total > maxColumns || packed > size || uint64(packed) > uint64(len(rest)) {
			return nil, invalid("column %d of %d bytes in %d", i, size, packed)
		}
		r.columns[i] = rest[:packed:packed]
		if packed < size {
			if r.columns[i], err = inflate(z, rest[:packed], size); err != nil {
				return nil, invalid("column %d: %w", i, err)
			}
		}
		rest = rest[packed:]
	}
	return rest, nil
}

// decompressor takes frames of at most so many bytes.
func decompressor(size int) (*zstd.Decoder, error) {
	return zstd.NewReader(nil,
		zstd.WithDecoderConcurrency(1),
		zstd.WithDecoderMaxMemory(uint64(size)),
		zstd.WithDecodeAllCapLimit(true))
}

// inflate decompresses frames that make exactly size bytes. Memory is given to
// what they say of themselves, if that is so much.
func inflate(z *zstd.Decoder, packed []byte, size uint32) ([]byte, error) {
	var h zstd.Header
	if err := h.Decode(packed); err != nil {
		return nil, err
	}
	if !h.HasFCS || h.FrameContentSize != uint64(size) {
		return nil, fmt.Errorf("a frame of %d bytes, want %d", h.FrameContentSize, size)
	}
	out, err := z.DecodeAll(packed, make([]byte, 0, size))
	if err != nil {
		return nil, err
	}
	if uint64(len(out)) != uint64(size) {
		return nil, fmt.Errorf("%d bytes, want %d", len(out), size)
	}
	return out, nil
}

func (r *Root) parseProfiles() error {
	c := &cursor{b: r.columns[colProfiles]}
	xattrs := uint64(0)
	for len(c.b) > 0 {
		p := toc.Entry{Attr: toc.Attr{Mode: c.u32(), UID: c.u32(), GID: c.u32(), Rdev: c.u32()}}
		n := c.uvarint()
		if xattrs += n; n > maxXattrs || xattrs > maxXattrs {
			return invalid("more than %d extended attributes", maxXattrs)
		}
		for range n {
			p.Xattrs = append(p.Xattrs, toc.Xattr{Name: string(c.text()), Value: c.text()})
			if c.err != nil {
				return c.err
			}
		}
		if r.profiles = append(r.profiles, p); len(r.profiles) > maxProfiles {
			return invalid("more than %d combinations of attributes", maxProfiles)
		}
	}
	return c.err
}

func (r *Root) parseTimes() error {
	c := &cursor{b: r.columns[colTimes]}
	var sec int64
	for len(c.b) > 0 {
		sec += c.varint()
		nsec := c.u32()
		if nsec >= 1e9 {
			return invalid("a time of %d nanoseconds", nsec)
		}
		if r.times = append(r.times, time.Unix(sec, int64(nsec))); len(r.times) > maxEntries {
			return invalid("more than %d times", maxEntries)
		}
	}
	return c.err
}

func (r *Root) parseLayers(n int) error {
	c := &cursor{b: r.columns[colLayers]}
	var at [numShares]uint64
	entries := uint64(0)
	for i := range n {
		l := layer{entries: c.u32(), chunkSize: c.u32(), chunks: c.u32(), known: c.u32(), timesBefore: c.u32()}
		if c.err == nil && (l.known > l.chunks || l.chunks > maxChunks || uint64(l.timesBefore) > uint64(len(r.times))) {
			return invalid("layer %d: %d of %d chunks known, %d times", i, l.known, l.chunks, l.timesBefore)
		}
		if entries += uint64(l.entries); entries > maxEntries {
			return invalid("more than %d entries", maxEntries)
		}
		l.cold = l.chunks - l.known
		for k := range l.shares {
			size, col := c.uvarint(), r.columns[perLayer+k]
			if size > uint64(len(col))-at[k] {
				return invalid("layer %d has more of column %d than there is", i, perLayer+k)
			}
			l.shares[k] = col[at[k] : at[k]+size : at[k]+size]
			at[k] += size
		}
		if c.err != nil {
			return c.err
		}
		if uint64(l.entries) != uint64(uvarints(l.shares[colProfile-perLayer])) {
			return invalid("layer %d has %d entries, and attributes for others", i, l.entries)
		}
		r.layers = append(r.layers, l)
	}
	for k, end := range at {
		if end != uint64(len(r.columns[perLayer+k])) {
			return invalid("column %d is longer than its layers", perLayer+k)
		}
	}
	if len(c.b) > 0 {
		return invalid("more than %d layers", n)
	}
	return nil
}

// uvarints counts numbers: so many bytes have no successor in theirs.
func uvarints(b []byte) (n int) {
	for _, x := range b {
		if x < 0x80 {
			n++
		}
	}
	return n
}

// parseKnown finds out which chunks the root has the IDs of: all of the files
// that the hot set has any of.
func (r *Root) parseKnown(known uint32) error {
	byLayer := make([][]Run, len(r.layers))
	for _, h := range r.hot.runs() {
		byLayer[h.Layer] = append(byLayer[h.Layer], h)
	}
	var knownBefore, coldBefore uint32
	for i := range r.layers {
		l := &r.layers[i]
		l.knownBefore, l.coldBefore = knownBefore, coldBefore
		if err := r.findKnown(l, byLayer[i]); err != nil {
			return fmt.Errorf("layer %d: %w", i, err)
		}
		knownBefore += l.known
		coldBefore += l.cold
	}
	if knownBefore != known || coldBefore != r.cold {
		return invalid("%d known and %d cold chunks, and their layers have %d and %d", known, r.cold, knownBefore, coldBefore)
	}
	return nil
}

func (r *Root) findKnown(l *layer, hot []Run) error {
	slices.SortFunc(hot, func(a, b Run) int { return int(int64(a.First) - int64(b.First)) })
	files := newFiles(r, l)
	var chunks, known uint32
	for e := range l.entries {
		if err := files.next(e); err != nil {
			return err
		}
		n := files.count()
		if uint64(chunks)+uint64(n) > uint64(l.chunks) {
			return invalid("more than %d chunks", l.chunks)
		}
		for len(hot) > 0 && hot[0].First+hot[0].Count <= chunks {
			hot = hot[1:]
		}
		if n > 0 && len(hot) > 0 && hot[0].First < chunks+n {
			if k := len(l.runs); k > 0 && l.runs[k-1].end == chunks {
				l.runs[k-1].end += n
			} else {
				l.runs = append(l.runs, run{chunks, chunks + n, known})
			}
			known += n
		}
		chunks += n
	}
	if chunks != l.chunks || known != l.known {
		return invalid("%d chunks, %d known, and its files have %d and %d", l.chunks, l.known, chunks, known)
	}
	return files.end()
}

// knownBelow returns how many chunks below c the root has the ID of, and whether
// c is one.
func (l *layer) knownBelow(c uint32) (n uint32, is bool) {
	i := sort.Search(len(l.runs), func(i int) bool { return l.runs[i].end > c })
	switch {
	case i == len(l.runs):
		return l.known, false
	case c >= l.runs[i].first:
		return l.runs[i].before + c - l.runs[i].first, true
	}
	return l.runs[i].before, false
}

// Layers returns how many layers the image has.
func (r *Root) Layers() int { return len(r.layers) }

// Hot returns the hot set, or nil if there is none.
func (r *Root) Hot() *Hot { return r.hot }
