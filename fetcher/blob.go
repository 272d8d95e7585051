package fetcher

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/airstream-io/airstream/internal/catalog"
	"github.com/airstream-io/airstream/internal/store"
)

// abandonAfter is how long a download goes on that nobody reads. containerd
// comes back after it gave up; what has arrived stays in any case.
const abandonAfter = 2 * time.Minute

// blobHaste is how many times sooner than the completion of a layer a blob that
// is refused ends: a client waits for it, and asks again. A guess.
const blobHaste = 12

// download is a whole blob that is crossing. It runs on its own, and its
// readers follow it.
type download struct {
	f    *Fetcher
	d    digest.Digest
	size int64          // bytes; < 0: unknown
	from origins        // guarded by f.mu
	last catalog.Source // that was asked; run's own
	// class is that of the most urgent reader so far; guarded by f.mu
	class  Class
	stream promotable // guarded by f.mu; what arrives now
	ticket *ticket    // guarded by f.mu; of it

	mu      sync.Mutex
	changed chan struct{} // guarded by mu; closed and replaced when anything below changes
	part    *store.Partial
	length  int64 // guarded by mu
	ended   bool  // guarded by mu; length is final and the blob complete, or err
	err     error // guarded by mu
	readers int   // guarded by mu
	idle    *time.Timer
	cancel  context.CancelFunc
}

// Blob is a blob to read from its beginning to its end: from disk if it is
// here, following its download else. What a download brings is verified as a
// whole when it is complete, so a reader must check the digest of what it got,
// as containerd does; a wrong blob ends with an error and is never stored.
type Blob struct {
	ctx  context.Context //nolint:containedctx // a reader's wait, as in http.Request
	file *os.File
	d    *download
	off  int64
}

// Blob opens a whole blob with the urgency of class: size bytes, or unknown if size < 0. Reads wait for
// the link until ctx ends.
func (f *Fetcher) Blob(ctx context.Context, class Class, src catalog.Source, d digest.Digest, size int64) (*Blob, error) {
	for {
		f.mu.Lock()
		landed := f.landed
		f.mu.Unlock()
		file, err := f.store.Blob(d)
		if err == nil {
			return &Blob{ctx: ctx, file: file}, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		f.mu.Lock()
		if f.closing {
			f.mu.Unlock()
			return nil, fmt.Errorf("fetcher: stopping: %w", context.Canceled)
		}
		err = nil
		dl, ok := f.blobs[d]
		if !ok && f.landed != landed {
			f.mu.Unlock()
			continue // it may have been this one that ended since the look
		}
		if !ok {
			dl, err = f.download(class, src, d, size) //nolint:contextcheck // a download outlives its readers
		}
		joined := err == nil && dl.join()
		if joined {
			dl.promote(class)
		}
		f.mu.Unlock()
		if joined {
			return &Blob{ctx: ctx, d: dl}, nil
		}
		if err != nil && !errors.Is(err, store.ErrBusy) {
			return nil, err
		}
		// It ended between the two looks, and may have readers left; the next
		// look finds what it leaves.
		if !sleep(ctx, 5*time.Millisecond) {
			return nil, ctx.Err()
		}
	}
}

// download begins a download. f.mu is held.
func (f *Fetcher) download(class Class, src catalog.Source, d digest.Digest, size int64) (*download, error) {
	part, err := f.store.Partial(d)
	if err != nil {
		return nil, err
	}
	part.Expect(size)
	run, cancel := context.WithCancel(f.run)
	dl := &download{f: f, d: d, class: class, size: size, from: origins{sources: []catalog.Source{src}}, part: part, length: part.Len(), changed: make(chan struct{}), cancel: cancel}
	f.blobs[d] = dl
	f.work.Go(func() { dl.run(run) })
	return dl, nil
}

// promote makes a download as urgent as a reader is who joins it. f.mu is held.
func (d *download) promote(c Class) {
	if c >= d.class {
		return
	}
	d.class = c
	if d.stream != nil {
		d.ticket.class = c
		d.stream.SetClass(c)
	}
}

func (d *download) join() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ended {
		return false
	}
	d.readers++
	if d.idle != nil {
		d.idle.Stop()
	}
	return true
}

// leave counts a reader out. The last one leaves the download running for a
// while.
func (d *download) leave() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.readers--; d.readers == 0 && !d.ended {
		d.idle = time.AfterFunc(abandonAfter, d.cancel)
	}
	if d.readers == 0 && d.ended {
		d.close()
	}
}

// close gives the partial blob back. d.mu is held; nobody reads any more.
func (d *download) close() {
	if err := d.part.Close(); err != nil {
		d.f.log.Warn("closing a blob", slog.String("blob", d.d.String()), slog.Any("error", err))
	}
}

// run brings the blob, over as many requests as it takes.
func (d *download) run(ctx context.Context) {
	err := d.fetchAll(ctx)
	if err == nil {
		err = d.part.Commit()
	}
	if errors.Is(err, store.ErrMismatch) {
		d.f.reg.Distrust(d.last, d.d)
	}
	d.f.mu.Lock()
	delete(d.f.blobs, d.d)
	d.f.landed++
	d.f.mu.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cancel()
	if d.idle != nil {
		d.idle.Stop()
	}
	d.ended, d.err = true, err
	close(d.changed)
	if d.readers == 0 {
		d.close()
	}
}

func (d *download) fetchAll(ctx context.Context) error {
	for {
		begin := d.part.Len()
		if begin == d.size {
			return nil
		}
		t, err := d.f.ask(ctx, &errand{kind: forBlob, class: func() Class { return d.class }, from: &d.from})
		if err != nil {
			return err
		}
		d.last = t.src
		done, err := d.fetchSome(ctx, t, begin)
		d.f.mu.Lock()
		d.f.giveBack(t, &d.from, err, d.part.Len() > begin)
		lost := d.f.hopeless(&d.from, d.f.opts.Patience/blobHaste)
		d.f.dispatch()
		d.f.mu.Unlock()
		switch {
		case done && err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case isLocal(err):
			return err
		case lost != nil:
			return lost
		}
		d.f.log.DebugContext(ctx, "a blob goes on", slog.String("blob", d.d.String()), slog.Int64("at", d.part.Len()), slog.Any("error", err))
	}
}

// fetchSome makes one request and appends what it brings. done tells that the
// stream ended by itself.
func (d *download) fetchSome(ctx context.Context, t *ticket, begin int64) (done bool, err error) {
	n := int64(-1)
	if d.size >= 0 {
		n = d.size - begin
	}
	rc, start, err := d.f.reg.Blob(ctx, t.class, t.src, d.d, begin, n)
	if err != nil {
		return false, err
	}
	t.answer()
	defer func() { err = errors.Join(err, rc.Close()) }()
	d.arriving(t, rc)
	defer d.arriving(nil, nil)
	if _, err := io.CopyN(io.Discard, heard{rc, t}, begin-start); err != nil {
		return false, err
	}
	buf := make([]byte, 32<<10)
	for {
		n, err := rc.Read(buf)
		if n > 0 {
			t.hear()
			if _, err := d.part.Write(buf[:n]); err != nil {
				return false, fmt.Errorf("%w: %w", errLocal, err)
			}
			d.mu.Lock()
			d.length += int64(n)
			close(d.changed)
			d.changed = make(chan struct{})
			d.mu.Unlock()
		}
		if errors.Is(err, io.EOF) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
	}
}

// arriving notes what brings the blob now, so that it can be made more urgent.
func (d *download) arriving(t *ticket, rc io.Reader) {
	d.f.mu.Lock()
	defer d.f.mu.Unlock()
	d.ticket, d.stream = t, nil
	if s, ok := rc.(promotable); ok {
		d.stream = s
		if d.class < t.class {
			t.class = d.class
			s.SetClass(d.class)
		}
	}
}

// Read implements io.Reader.
func (b *Blob) Read(p []byte) (int, error) {
	if b.file != nil {
		return b.file.Read(p)
	}
	for {
		b.d.mu.Lock()
		length, ended, err, changed := b.d.length, b.d.ended, b.d.err, b.d.changed
		b.d.mu.Unlock()
		switch {
		case b.off < length && (err == nil || !errors.Is(err, store.ErrMismatch)):
			n, err := b.d.part.ReadAt(p[:min(int64(len(p)), length-b.off)], b.off)
			b.off += int64(n)
			return n, err
		case err != nil:
			return 0, err
		case ended:
			return 0, io.EOF
		}
		select {
		case <-changed:
		case <-b.ctx.Done():
			return 0, fmt.Errorf("fetcher: waiting for blob %s: %w", b.d.d, context.Cause(b.ctx))
		}
	}
}

// Skip moves on to byte off without reading what lies before.
func (b *Blob) Skip(off int64) error {
	if b.file != nil {
		_, err := b.file.Seek(off, io.SeekStart)
		return err
	}
	b.off = off
	return nil
}

// Close gives the blob back. Its download goes on for a while.
func (b *Blob) Close() error {
	if b.file != nil {
		return b.file.Close()
	}
	b.d.leave()
	return nil
}
