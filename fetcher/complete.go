package fetcher

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/airstream-io/airstream/internal/catalog"
	"github.com/airstream-io/airstream/internal/trace"
)

// Completeness is how much of some layers is here. Sizes are bytes of file
// content, uncompressed; what layers share counts in each.
type Completeness struct {
	Total, Missing       int64 // of the layers whose table is here
	HotTotal, HotMissing int64 // of their hot sets; 0 if they have no plan
	Tables, Lazy         int   // layers whose table of contents is here, of how many
}

// Complete tells whether nothing is missing.
func (c Completeness) Complete() bool { return c.Tables == c.Lazy && c.Missing == 0 }

// Hot tells whether there is a hot set and nothing of it is missing. Hot sets
// are known once Warm or Resume was told of them.
func (c Completeness) Hot() bool { return c.Tables == c.Lazy && c.HotTotal > 0 && c.HotMissing == 0 }

// Completeness tells how much of the layers in slots is here. The first time
// it looks at the disk, but never at the link; from then on it is cheap: it may
// be asked each second for all images. Errors that keep layers from being
// served are returned beside what is known of the others.
func (f *Fetcher) Completeness(slots ...uint32) (Completeness, error) {
	var c Completeness
	var errs []error
	for _, slot := range unique(slots) {
		c.Lazy++
		l, here, err := f.here(slot)
		errs = append(errs, err)
		if !here {
			continue
		}
		f.mu.Lock()
		n := &l.census.tally
		c.Tables++
		c.Total += n.total
		c.Missing += n.missing
		c.HotTotal += n.hot
		c.HotMissing += n.cold
		f.mu.Unlock()
	}
	return c, errors.Join(errs...)
}

// here returns the layer in slot, counted, if its tree is on the node.
func (f *Fetcher) here(slot uint32) (l *layer, here bool, err error) {
	if l, err = f.layer(slot, false); err != nil {
		return nil, false, err
	}
	select {
	case <-l.ready: // or it is absent, or about to be one of the two
	default:
		select {
		case <-l.ready:
		case <-l.absent:
			return l, false, nil
		case <-f.run.Done():
			return l, false, fmt.Errorf("fetcher: stopping: %w", context.Canceled)
		}
	}
	if l.bad != nil {
		return l, false, l.bad
	}
	f.count(l)
	return l, true, nil
}

// Missing returns how many bytes of a layer's files are not here, of how many.
// ok is false while its table has not arrived; sizes are uncompressed.
func (f *Fetcher) Missing(slot uint32) (missing, total int64, ok bool, err error) {
	c, err := f.Completeness(slot)
	return c.Missing, c.Total, c.Tables == 1, err
}

// Wire returns how many bytes would cross the link to complete the layers in
// slots. Of a layer whose table is not here it is all of the blob: more than
// will cross if it shares content with others.
func (f *Fetcher) Wire(slots ...uint32) (bytes int64, err error) {
	for _, slot := range unique(slots) {
		l, here, err := f.here(slot)
		switch {
		case err != nil:
			return 0, err
		case !here:
			bytes += l.Size
		default:
			f.mu.Lock()
			bytes += l.census.wire
			f.mu.Unlock()
		}
	}
	return bytes, nil
}

// HotWire returns how many bytes would cross the link to complete the hot sets
// of layers, whether Warm was told of them or not. Of a layer whose table is
// not here it is all of the hot set; tables themselves are not in it.
func (f *Fetcher) HotWire(layers ...catalog.Layer) (bytes int64, err error) {
	slots, plans, err := plansOf(layers)
	if err != nil {
		return 0, err
	}
	for _, slot := range slots {
		l, here, err := f.here(slot)
		if err != nil {
			return 0, err
		}
		if !here {
			bytes += covered(plans[slot])
			continue
		}
		f.mu.Lock()
		counted := map[uint32]bool{} // plans of several images may name a member twice
		for _, r := range plans[slot] {
			s := membersIn(l.tree, r.Offset, r.Offset+r.Size)
			for m := s.first; m < s.end; m++ {
				if !counted[m] && !l.census.hasMember(l.tree, m) {
					bytes += memberSize(l.tree, m)
				}
				counted[m] = true
			}
		}
		f.mu.Unlock()
	}
	return bytes, nil
}

// plansOf returns the slots of layers, each once, and what their plans name.
func plansOf(layers []catalog.Layer) (slots []uint32, plans map[uint32]trace.Plan, err error) {
	plans = map[uint32]trace.Plan{}
	for _, l := range layers {
		slots = append(slots, l.Slot)
		if l.Hot == "" {
			continue
		}
		plan, err := trace.ParsePlan(l.Hot, l.Size)
		if err != nil {
			return nil, nil, fmt.Errorf("fetcher: layer %s: %w", l.Blob, err)
		}
		plans[l.Slot] = append(plans[l.Slot], plan...)
	}
	return unique(slots), plans, nil
}

// covered returns how many bytes of a blob are in any range of a plan.
func covered(p trace.Plan) (bytes int64) {
	p = slices.Clone(p)
	slices.SortFunc(p, func(a, b trace.Run) int { return cmp.Compare(a.Offset, b.Offset) })
	var end int64
	for _, r := range p {
		last := r.Offset + r.Size
		bytes += max(0, last-max(end, r.Offset))
		end = max(end, last)
	}
	return bytes
}

func unique(slots []uint32) []uint32 {
	s := slices.Clone(slots)
	slices.Sort(s)
	return slices.Compact(s)
}

// Complete fetches all that is missing of the layers in slots, and waits until
// it is here or ctx ends; the error then wraps ctx's cause. What has arrived
// stays in any case. A link that is down and a budget that is spent are waited
// for, see Blocked; errors are store.ErrNoSpace, ErrBadTable, ErrWrongContent,
// or what a registry says when it refuses for longer than a moment.
func (f *Fetcher) Complete(ctx context.Context, slots ...uint32) error {
	return f.complete(ctx, unique(slots), nil)
}

// CompleteHot does the same for the hot sets of layers, which their plans name,
// and for the tables of all of them.
func (f *Fetcher) CompleteHot(ctx context.Context, layers ...catalog.Layer) error {
	slots, plans, err := plansOf(layers)
	if err != nil {
		return err
	}
	return f.complete(ctx, slots, func(l *layer) []uint64 {
		only := make([]uint64, (l.tree.NumMembers()+63)/64+1) // not nil: that would be all
		l.plan(plans[l.Slot])
		for _, r := range plans[l.Slot] {
			s := membersIn(l.tree, r.Offset, r.Offset+r.Size)
			for m := s.first; m < s.end; m++ {
				only[m/64] |= 1 << (m % 64)
			}
		}
		return only
	})
}

// complete walks through layers. only, called with f.mu held, says which
// members of one whose IDs are known; nil: all there are.
func (f *Fetcher) complete(ctx context.Context, slots []uint32, only func(*layer) []uint64) error {
	var walks []*walk
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, w := range walks {
			f.leave(w)
		}
	}()
	for _, slot := range slots { // tables cross beside each other
		if _, err := f.layer(slot, false); err != nil {
			return err
		}
	}
	for _, slot := range slots {
		l, err := f.layer(slot, false)
		if err != nil {
			return err
		}
		if err := f.awaitQuietly(ctx, l); err != nil {
			return err
		}
		var members []uint64
		if only == nil {
			if l, err = f.whole(ctx, l, Prefetch); err != nil {
				return err
			}
		}
		f.count(l)
		f.mu.Lock()
		if l.gone {
			f.mu.Unlock()
			return fmt.Errorf("fetcher: layer %s was just forgotten: %w", l.Blob, ErrBusy)
		}
		if only != nil {
			members = only(l)
		}
		walks = append(walks, f.startWalk(l, Prefetch, members))
		f.dispatch()
		f.mu.Unlock()
	}
	for _, w := range walks {
		select {
		case <-w.done:
			if w.err != nil {
				return w.err
			}
		case <-ctx.Done():
			return fmt.Errorf("fetcher: completing layer %s: %w", w.l.Blob, context.Cause(ctx))
		case <-f.run.Done():
			return fmt.Errorf("fetcher: stopping: %w", context.Canceled)
		}
	}
	return f.store.Flush()
}

// CompleteBlob brings a whole blob that has no table of contents, so that a
// pull of it needs no link, as Complete does. size < 0 is unknown.
func (f *Fetcher) CompleteBlob(ctx context.Context, src catalog.Source, d digest.Digest, size int64) error {
	blob, err := f.Blob(ctx, Prefetch, src, d, size)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, blob)
	return errors.Join(err, blob.Close())
}

// Blocked tells why requests of a class don't begin now: ErrDark, or ErrBudget
// with words that say until when, or nil if they do. Who doesn't want to wait cancels
// with it as the cause, and Complete's error wraps it.
func (f *Fetcher) Blocked(c Class) error {
	if ok, _, why := f.meter.Admit(c); !ok {
		return fmt.Errorf("fetcher: %w: %s", ErrBudget, why)
	}
	if f.meter.State().Dark {
		return fmt.Errorf("fetcher: %w", ErrDark)
	}
	return nil
}
