package convert

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"

	"github.com/airstream-io/airstream/convert/internal/cancelable"
	"github.com/airstream-io/airstream/convert/layer"
	"github.com/airstream-io/airstream/convert/location"
	"github.com/airstream-io/airstream/internal/trace"
)

// fetchTries is how often a layer is read before a broken connection ends the
// conversion. The shore side's links are good; three is one more than luck.
const fetchTries = 3

// works is one conversion under way.
type works struct {
	src     Source
	dst     Destination
	o       Options
	pool    *layer.Pool
	scratch layer.Scratch
	records records

	previous Source             // what the destination's name holds; may be nil
	earlier  map[made]converted // in previous
	atHand   map[made]converted // in Options.AtHand

	traces   []*trace.Trace   // of Options, then of Options.TraceFrom
	matchers []*trace.Matcher // for them, merged; image.matchers says which are for whom

	done map[key]outcome // complete when layers has returned

	mu     sync.Mutex
	spools []*spool // guarded by mu; all there are, to be closed
}

// outcome is what became of one layer.
type outcome struct {
	converted
	how string
	inspected
}

// layers brings all layers of the plan to the destination, each once.
func (w *works) layers(ctx context.Context, p *plan) error {
	var todo []sourceLayer
	at := map[key]int{} // in todo
	for _, m := range p.images() {
		for _, l := range m.image.layers {
			if k := w.o.key(l); !has(at, k) {
				at[k] = len(todo)
				todo = append(todo, l)
			}
		}
	}
	results := make([]outcome, len(todo))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(w.o.Jobs)
	for i, l := range todo {
		task := w.o.Progress.Layer(l.d.Digest, l.d.Size)
		g.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			var err error
			if results[i], err = w.layer(ctx, l, task); err != nil {
				return fmt.Errorf("layer %s: %w", l.d.Digest, err)
			}
			task.Done(results[i].how)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	w.done = make(map[key]outcome, len(todo))
	for k, i := range at {
		w.done[k] = results[i]
	}
	return nil
}

func has[K comparable, V any](m map[K]V, k K) bool { _, ok := m[k]; return ok }

// layer brings one layer to the destination, with as little work as possible.
func (w *works) layer(ctx context.Context, l sourceLayer, task Task) (outcome, error) {
	if !w.o.Rebuild {
		// One that has other files first is not what was asked for, unless
		// nothing was asked for.
		if _, c, ok := fromAnnotations(l.d, l.diffID, w.o); ok && (l.firstI == "" || l.firstI == c.Prioritized) {
			if err := w.copyBlob(ctx, w.src, l.d, task); err != nil {
				return outcome{}, err
			}
			in, err := w.inspectAt(ctx, w.src, c, task)
			return outcome{c, Kept, in}, err
		}
		for _, known := range []func() (converted, bool){
			func() (converted, bool) { return w.records.get(w.o.key(l)) },
			func() (converted, bool) { c, ok := w.earlier[made{l.d.Digest, l.firstI}]; return c, ok },
		} {
			c, ok := known()
			if !ok {
				continue
			}
			if there, err := w.dst.HasBlob(ctx, c.descriptor()); err != nil {
				return outcome{}, err
			} else if !there {
				continue
			}
			in, err := w.inspectAt(ctx, w.previous, c, task)
			if err == nil {
				return outcome{c, Known, in}, nil
			}
			w.o.Log.DebugContext(ctx, "table of contents can't be read back, so the layer is built again", slog.String("layer", l.d.Digest.String()), slog.Any("error", err))
		}
	}
	if c, ok := w.atHand[made{l.d.Digest, l.firstI}]; ok {
		if err := w.copyBlob(ctx, w.o.AtHand, c.descriptor(), task); err != nil {
			return outcome{}, err
		}
		in, err := w.inspectAt(ctx, w.o.AtHand, c, task)
		return outcome{c, Built, in}, err
	}
	c, in, err := w.build(ctx, l, task)
	if err != nil {
		return outcome{}, err
	}
	if err := w.records.put(w.o.key(l), c); err != nil {
		w.o.Log.WarnContext(ctx, "conversion not recorded, the next one will build this layer again", slog.String("layer", l.d.Digest.String()), slog.Any("error", err))
	}
	return outcome{c, Built, in}, nil
}

// build converts a layer, looks into it and sends it.
func (w *works) build(ctx context.Context, l sourceLayer, task Task) (c converted, in inspected, err error) {
	tar, size, err := w.fetch(ctx, l, task)
	if err != nil {
		return converted{}, inspected{}, err
	}
	defer tar.Close() //nolint:errcheck // a scratch file, only read from here on
	out, err := w.scratch()
	if err != nil {
		return converted{}, inspected{}, err
	}
	defer out.Close() //nolint:errcheck // likewise
	task.Phase("convert", size)
	o := w.o.Layer
	o.Prioritize = l.first
	r, err := layer.Convert(ctx, out, layer.Tar{ReaderAt: tar, Size: size}, o, w.pool, w.scratch, task.Advance)
	if err != nil {
		return converted{}, inspected{}, err
	}
	if err := tar.Close(); err != nil { // frees the disk while the rest waits for the network
		return converted{}, inspected{}, err
	}
	c = fromResult(r, l.firstI)
	if in, err = w.inspect(ctx, c, scratchLayer{out, c.Size}); err != nil {
		return converted{}, inspected{}, err
	}
	return c, in, w.put(ctx, c.descriptor(), task, func() (io.ReadCloser, error) {
		return io.NopCloser(io.NewSectionReader(out, 0, c.Size)), nil
	})
}

// fetch unpacks a layer to a scratch file, and tries again where the
// connection breaks.
func (w *works) fetch(ctx context.Context, l sourceLayer, task Task) (*os.File, int64, error) {
	for try := 1; ; try++ {
		f, err := w.scratch()
		if err != nil {
			return nil, 0, err
		}
		task.Phase("fetch", l.d.Size)
		size, err := w.fetchOnce(ctx, l, f, task)
		if err == nil {
			return f, size, nil
		}
		err = errors.Join(err, f.Close())
		if try == fetchTries || !errors.Is(err, location.ErrUnreachable) {
			return nil, 0, err
		}
		w.o.Log.WarnContext(ctx, "connection lost, trying again", slog.String("layer", l.d.Digest.String()), slog.Any("error", err))
		if err := wait(ctx, time.Duration(try)*time.Second); err != nil {
			return nil, 0, err
		}
	}
}

func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d/2 + rand.N(d))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (w *works) fetchOnce(ctx context.Context, l sourceLayer, f *os.File, task Task) (int64, error) {
	blob, err := open(ctx, w.src, l.d)
	if err != nil {
		return 0, err
	}
	defer blob.Close() //nolint:errcheck // a reader
	v := newVerifier(&counter{blob, task.Advance}, l.d)
	diffID := sha256.New()
	size, err := unpack(ctx, io.MultiWriter(f, diffID), v)
	if errors.Is(err, layer.ErrInvalid) || err == nil {
		// A blob that isn't what the manifest names explains all that is wrong
		// with what was in it.
		if verr := v.drain(); verr != nil {
			return 0, verr
		}
	}
	if err != nil {
		return 0, err
	}
	if got := fmt.Sprintf("%x", diffID.Sum(nil)); got != l.diffID.Hex {
		return 0, fmt.Errorf("%w: it unpacks to sha256:%s, and the config says %s", ErrVerify, got, l.diffID)
	}
	return size, nil
}

func unpack(ctx context.Context, w io.Writer, r io.Reader) (int64, error) {
	tar, err := layer.Decompress(r)
	if err != nil {
		return 0, err
	}
	defer tar.Close() //nolint:errcheck // a reader
	return io.Copy(w, cancelable.Reader(ctx, tar))
}

// copyBlob brings a blob of src to the destination as it is.
func (w *works) copyBlob(ctx context.Context, src Source, d v1.Descriptor, task Task) error {
	return w.put(ctx, d, task, func() (io.ReadCloser, error) {
		rc, err := open(ctx, src, d)
		if err != nil {
			return nil, err
		}
		return &verifiedBlob{newVerifier(rc, d), rc}, nil
	})
}

// put sends a blob and counts what is sent.
func (w *works) put(ctx context.Context, d v1.Descriptor, task Task, open func() (io.ReadCloser, error)) error {
	task.Phase("send", d.Size)
	sent := int64(0)
	return w.dst.PutBlob(ctx, d, func() (io.ReadCloser, error) {
		task.Advance(-sent) // it may begin anew
		sent = 0
		rc, err := open()
		if err != nil {
			return nil, err
		}
		return &countedBlob{&counter{rc, func(n int64) { sent += n; task.Advance(n) }}, rc}, nil
	})
}

type verifiedBlob struct {
	*verifier
	io.Closer
}

type countedBlob struct {
	io.Reader
	io.Closer
}

type counter struct {
	r       io.Reader
	advance func(int64)
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.advance(int64(n))
	return n, err
}
