package convert

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/airstream-io/airstream/convert/internal/cancelable"
	"github.com/airstream-io/airstream/convert/layer"
	"github.com/airstream-io/airstream/internal/annotation"
	"github.com/airstream-io/airstream/internal/toc"
	"github.com/airstream-io/airstream/internal/trace"
)

// collectTraces says for each image which traces are for it, and for each layer
// which files are to come first.
func (w *works) collectTraces(ctx context.Context, p *plan) error {
	w.traces = append(w.traces, w.o.Traces...)
	recalled := map[*plan]int{} // in w.traces
	if w.o.TraceFrom != nil {
		var err error
		if recalled, err = w.recall(ctx, p); err != nil {
			return fmt.Errorf("trace of the earlier image: %w", err)
		}
	}
	known := map[string]int{} // in w.matchers, by the numbers of the traces
	for _, m := range p.images() {
		var mine []int
		for i := range w.o.Traces {
			mine = append(mine, i)
		}
		if i, ok := recalled[m]; ok {
			mine = append(mine, i)
		}
		merged, err := w.merge(m.image, mine, known)
		if err != nil {
			return err
		}
		if !w.o.Prioritize {
			continue
		}
		for i := range m.image.layers {
			l := &m.image.layers[i]
			if l.first = trace.Files(i, len(m.image.layers), merged...); len(l.first) > 0 {
				l.firstI = fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(strings.Join(l.first, "\x00"))))
			}
		}
	}
	return nil
}

// merge gives an image matchers for the traces with these numbers. Those of
// images with as many layers are merged first, so that the result is that of
// one file into which they were merged before; the others are merged in terms
// of the image.
func (w *works) merge(img *image, numbers []int, known map[string]int) (merged []*trace.Trace, err error) {
	alike := map[int][]int{} // by number of layers
	for _, i := range numbers {
		n := w.traces[i].Layers
		alike[n] = append(alike[n], i)
	}
	for _, n := range slices.Sorted(maps.Keys(alike)) {
		list := make([]*trace.Trace, 0, len(alike[n]))
		for _, i := range alike[n] {
			list = append(list, w.traces[i])
		}
		t, err := trace.Merge(1, list...)
		if err != nil {
			return nil, err
		}
		merged = append(merged, t)
		k := fmt.Sprint(alike[n])
		if !has(known, k) {
			known[k] = len(w.matchers)
			w.matchers = append(w.matchers, trace.NewMatcher(t))
		}
		img.matchers = append(img.matchers, known[k])
	}
	return merged, nil
}

// recall turns the plans of Options.TraceFrom back into traces, and says which of
// them is for which image.
func (w *works) recall(ctx context.Context, p *plan) (map[*plan]int, error) {
	old, err := readPlan(ctx, w.o.TraceFrom, nil)
	if err != nil {
		return nil, err
	}
	var planned []*plan
	for _, m := range old.images() {
		for _, l := range m.image.layers {
			if l.d.Annotations[annotation.Hot] != "" {
				planned = append(planned, m)
				break
			}
		}
	}
	if len(planned) == 0 {
		w.o.Log.WarnContext(ctx, "the earlier image says nothing of what its start reads, so neither does this one", slog.String("digest", old.d.Digest.String()))
		return nil, nil
	}
	number, recalled := map[*plan]int{}, map[*plan]int{} // by the earlier image, and by the new one
	for _, m := range p.images() {
		from := planned[0]
		for _, o := range planned {
			if o.image.is.String() == m.image.is.String() {
				from = o
				break
			}
		}
		if !has(number, from) {
			t, err := w.recallImage(ctx, from)
			if err != nil {
				return nil, fmt.Errorf("manifest %s: %w", from.d.Digest, err)
			}
			number[from] = len(w.traces)
			w.traces = append(w.traces, t)
		}
		recalled[m] = number[from]
	}
	return recalled, nil
}

func (w *works) recallImage(ctx context.Context, m *plan) (*trace.Trace, error) {
	var r trace.Recall
	for i, l := range m.image.layers {
		text := l.d.Annotations[annotation.Hot]
		if text == "" {
			continue
		}
		c, ok := lazyLayer(l.d)
		if !ok {
			continue // a plan, and no table to read it with
		}
		plan, err := trace.ParsePlan(text, c.Size)
		if err != nil {
			return nil, fmt.Errorf("layer %s: %w", l.d.Digest, err)
		}
		err = readTable(ctx, w.o.TraceFrom, c, func(int64) {}, func(tree *toc.Tree) { r.Add(i, tree, plan) })
		if err != nil {
			return nil, fmt.Errorf("layer %s: %w", l.d.Digest, err)
		}
	}
	return r.Trace("", m.d.Digest.String(), len(m.image.layers)), nil
}

// lazyLayer reads as much of a converted layer's annotations as it takes to find
// its table, whatever version and options it was converted with.
func lazyLayer(d v1.Descriptor) (converted, bool) {
	table, err := v1.NewHash(d.Annotations[annotation.TOCDigest])
	c := converted{Digest: d.Digest, Size: d.Size, TOCDigest: table, TOCOffset: decimal(d, annotation.TOCOffset)}
	return c, err == nil && c.TOCOffset > 0 && c.TOCOffset < c.Size
}

// plans returns the plans of an image's layers, once all layers are done. Those
// that would be empty are nil.
func (w *works) plans(img *image) []trace.Plan {
	var orders []trace.Order
	for _, i := range img.matchers {
		matches := make([]*trace.Match, len(img.layers))
		for n, l := range img.layers {
			matches[n] = w.done[w.o.key(l)].matches[i]
		}
		orders = append(orders, w.matchers[i].Order(matches))
	}
	return trace.Plans(len(img.layers), orders...)
}

// rangeSource is a Source that need not be read from the beginning.
type rangeSource interface {
	// BlobFrom returns a blob from an offset on, in bytes.
	BlobFrom(ctx context.Context, d v1.Descriptor, offset int64) (io.ReadCloser, error)
}

// readTable reads the table of contents of a converted layer at src and hands
// its tree to use. The tree is gone when it returns: with layers of a million
// files, one for each of Options.Jobs is enough to hold.
func readTable(ctx context.Context, src Source, c converted, advance func(int64), use func(*toc.Tree)) error {
	d := c.descriptor()
	if rs, ok := src.(rangeSource); ok {
		blob, err := rs.BlobFrom(ctx, d, c.TOCOffset)
		if err == nil {
			advance(c.TOCOffset)
			defer blob.Close() //nolint:errcheck // a reader
			return parseTable(cancelable.Reader(ctx, &counter{io.LimitReader(blob, c.Size-c.TOCOffset), advance}), c, use)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	blob, err := open(ctx, src, d)
	if err != nil {
		return err
	}
	defer blob.Close() //nolint:errcheck // a reader
	if _, err = io.CopyN(io.Discard, cancelable.Reader(ctx, &counter{blob, advance}), c.TOCOffset); err != nil {
		return fmt.Errorf("table of contents: %w", err)
	}
	return parseTable(cancelable.Reader(ctx, &counter{io.LimitReader(blob, c.Size-c.TOCOffset), advance}), c, use)
}

func parseTable(table io.Reader, c converted, use func(*toc.Tree)) error {
	z, err := layer.Decompress(table)
	if err != nil {
		return fmt.Errorf("table of contents: %w", err)
	}
	defer z.Close() //nolint:errcheck // a reader
	file := tar.NewReader(z)
	if _, err := file.Next(); err != nil {
		return fmt.Errorf("table of contents: %w: %w", layer.ErrInvalid, err)
	}
	sum := sha256.New()
	raw := io.TeeReader(io.LimitReader(file, toc.MaxJSONSize), sum)
	tree, err := toc.Parse(raw, c.TOCOffset)
	if _, derr := io.Copy(io.Discard, raw); derr != nil {
		return fmt.Errorf("table of contents: %w", errors.Join(err, derr))
	}
	// What is not the table that the layer names may well not be one at all.
	if got := fmt.Sprintf("%x", sum.Sum(nil)); got != c.TOCDigest.Hex {
		return fmt.Errorf("table of contents: %w: it has the digest sha256:%s, and the layer names %s", ErrVerify, got, c.TOCDigest)
	}
	if err != nil {
		return err
	}
	use(tree)
	return nil
}
