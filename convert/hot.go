package convert

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"github.com/airstream-io/airstream/convert/internal/cancelable"
	"github.com/airstream-io/airstream/convert/layer"
	"github.com/airstream-io/airstream/internal/toc"
	"github.com/airstream-io/airstream/internal/trace"
)

// place is where a layer stands in an image.
type place struct {
	layer int // counted from the lowest, 0
	count int // layers of the image
}

// hotPlans are what a trace means for a layer, at every place that it has. Those
// that would be empty are absent.
type hotPlans map[place]trace.Plan

// traced returns the places where the trace can mean something for a layer. If
// there are none, its table of contents needn't be looked at.
func (o Options) traced(all []place) (some []place) {
	if o.Trace == nil {
		return nil
	}
	for _, p := range all {
		if o.Trace.Concerns(p.layer, p.count) {
			some = append(some, p)
		}
	}
	return some
}

// hotPlans reads a converted layer's table of contents, from a reader that stands
// where it begins in the blob, and makes the layer's plans. The tree is gone
// when it returns: with layers of a million files, one for each of Options.Jobs
// is enough to hold.
func (o Options) hotPlans(table io.Reader, c converted, places []place) (hotPlans, error) {
	z, err := layer.Decompress(table)
	if err != nil {
		return nil, fmt.Errorf("table of contents: %w", err)
	}
	defer z.Close() //nolint:errcheck // a reader
	file := tar.NewReader(z)
	if _, err := file.Next(); err != nil {
		return nil, fmt.Errorf("table of contents: %w: %w", layer.ErrInvalid, err)
	}
	sum := sha256.New()
	raw := io.TeeReader(io.LimitReader(file, toc.MaxJSONSize), sum)
	tree, err := toc.Parse(raw, c.TOCOffset)
	if _, derr := io.Copy(io.Discard, raw); derr != nil {
		return nil, fmt.Errorf("table of contents: %w", errors.Join(err, derr))
	}
	// What is not the table that the layer names may well not be one at all.
	if got := fmt.Sprintf("%x", sum.Sum(nil)); got != c.TOCDigest.Hex {
		return nil, fmt.Errorf("table of contents: %w: it has the digest sha256:%s, and the layer names %s", ErrVerify, got, c.TOCDigest)
	}
	if err != nil {
		return nil, err
	}
	list := hotPlans{}
	for _, p := range places {
		if plan := o.Trace.NewPlan(tree, p.layer, p.count); len(plan) > 0 {
			list[p] = plan
		}
	}
	return list, nil
}

// readHotPlans makes the plans of a layer that was converted earlier, and is at
// src: the same that it got, or would have got, when it was built.
func (w *works) readHotPlans(ctx context.Context, src Source, c converted, places []place, task Task) (hotPlans, error) {
	if len(places) == 0 {
		return nil, nil
	}
	if src == nil {
		return nil, errors.New("there is no place to read the table of contents from")
	}
	d := c.descriptor()
	blob, err := open(ctx, src, d)
	if err != nil {
		return nil, err
	}
	defer blob.Close() //nolint:errcheck // a reader
	task.Phase("fetch", d.Size)
	if s, ok := blob.(io.Seeker); ok {
		_, err = s.Seek(c.TOCOffset, io.SeekStart)
		task.Advance(c.TOCOffset)
	} else {
		_, err = io.CopyN(io.Discard, cancelable.Reader(ctx, &counter{blob, task.Advance}), c.TOCOffset)
	}
	if err != nil {
		return nil, fmt.Errorf("table of contents: %w", err)
	}
	return w.o.hotPlans(cancelable.Reader(ctx, &counter{io.LimitReader(blob, c.Size-c.TOCOffset), task.Advance}), c, places)
}
