package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/airstream-io/airstream/internal/catalog"
	"github.com/airstream-io/airstream/internal/store"
	"github.com/airstream-io/airstream/internal/toc"
)

// batch is how many objects are deleted in one transaction.
const batch = 256

// collection is one Collect.
type collection struct {
	ctx   context.Context //nolint:containedctx // of the one call that it lives for
	s     *store.Store
	c     *catalog.Catalog
	opts  Options
	v     *survey
	m     marks
	need  int64 // bytes that are to go
	freed Freed
}

func (k *collection) run() error {
	need, err := k.over()
	if err != nil {
		return err
	}
	free, garbage, err := k.c.Free()
	if err != nil || need <= 0 && !garbage && len(free) == 0 {
		return err
	}
	k.need = need
	if k.v, err = look(k.s, k.c, k.opts); err != nil {
		return err
	}
	if k.m, err = k.v.mark(k.ctx, k.s); err != nil {
		return err
	}
	unknown, err := k.s.TreesLost()
	if err != nil {
		return err
	}
	if err := k.garbage(free, unknown); err != nil {
		return err
	}
	for _, phase := range []func(r rank) error{k.dead, k.cold, k.hot, k.trees} {
		for i := range k.v.images {
			before := k.freed.Bytes
			if k.done() {
				return nil
			}
			if err := phase(rank(i + 1)); err != nil {
				return err
			}
			if k.freed.Bytes > before {
				k.name(k.v.images[i].Manifest)
			}
		}
	}
	if unknown && !k.done() {
		return k.orphans()
	}
	return nil
}

// over returns how many bytes are to go: those above the limit, or that the
// disk lacks, and some more, so that it isn't needed again at once.
func (k *collection) over() (int64, error) {
	u, err := k.s.Usage()
	if err != nil {
		return 0, err
	}
	if k.opts.All {
		return math.MaxInt64, nil
	}
	if k.opts.Limit > 0 {
		u.Limit = k.opts.Limit
	}
	u.Reserve += u.Reserve / 8 // where the store begins to press
	if u.Over() <= 0 {
		return 0, nil
	}
	u.Limit -= store.Margin(u.Limit)
	u.Reserve += u.Reserve / 8
	return u.Over(), nil
}

func (k *collection) done() bool { return k.freed.Bytes >= k.need || k.ctx.Err() != nil }

func (k *collection) name(d digest.Digest) {
	if !slices.Contains(k.freed.Images, d) {
		k.freed.Images = append(k.freed.Images, d)
	}
}

// garbage deletes what nobody wants, whatever the need.
func (k *collection) garbage(free map[uint32]bool, unknown bool) error {
	var swept []uint32
	for slot := range free {
		l := k.v.layers[slot]
		if l.rank != 0 {
			continue // it is in use, or has an image again
		}
		if err := k.objects(l.Layer, 0, func(*mark) bool { return true }, func() bool { return false }); err != nil {
			return err
		}
		if err := k.tree(l.Layer); err != nil {
			return err
		}
		swept = append(swept, slot)
	}
	blobs, err := k.s.Blobs()
	if err != nil {
		return err
	}
	all := true
	for _, b := range blobs {
		if _, wanted := k.v.blobs[b.Digest]; wanted {
			continue
		}
		if b.Young {
			all = false
			continue
		}
		if err := k.blob(b.Digest); err != nil {
			return err
		}
	}
	if !unknown {
		if err := k.orphans(); err != nil {
			return err
		}
	}
	if k.opts.DryRun || k.ctx.Err() != nil {
		return k.ctx.Err()
	}
	return k.c.Swept(all, swept...)
}

// orphans deletes objects that no layer has.
func (k *collection) orphans() error {
	var ids []toc.ObjectID
	err := k.s.EachObject(func(id toc.ObjectID) error {
		if k.m.find(id) == nil {
			ids = append(ids, id)
		}
		return k.ctx.Err()
	})
	if err != nil || len(ids) == 0 {
		return err
	}
	// Layers that were met since the marks were made have objects, too.
	all, err := k.c.AllLayers()
	if err != nil {
		return err
	}
	var late marks
	for _, l := range all {
		if _, ok := k.v.layers[l.Slot]; ok || !k.s.HasTree(l.TOC) {
			continue
		}
		t, err := k.s.Tree(l.TOC)
		if err == nil {
			late, err = late.markLayer(k.ctx, t, forever, l, nil)
		}
		if err != nil {
			return err
		}
	}
	late = late.settle()
	for len(ids) > 0 {
		n := min(batch, len(ids))
		some := ids[:0:0]
		for _, id := range ids[:n] {
			if late.find(id) == nil {
				some = append(some, id)
			}
		}
		if ids = ids[n:]; len(some) == 0 {
			continue
		}
		if err := k.delete(some); err != nil {
			return err
		}
	}
	return nil
}

// dead deletes layer blobs that are not needed to run their image.
func (k *collection) dead(r rank) error {
	return k.blobsOf(r, func(d digest.Digest) bool { return k.v.dead[d] })
}

// blobsOf deletes the blobs of the image of rank r that no image above has.
func (k *collection) blobsOf(r rank, which func(d digest.Digest) bool) error {
	for _, l := range k.v.images[r-1].Layers {
		if k.v.blobs[l.Blob] != r || !which(l.Blob) || k.done() {
			continue
		}
		if err := k.blob(l.Blob); err != nil {
			return err
		}
	}
	return nil
}

// cold deletes blobs, whole or not, and what a start doesn't read.
func (k *collection) cold(r rank) error {
	if err := k.blobsOf(r, func(digest.Digest) bool { return true }); err != nil {
		return err
	}
	if r == 1 { // what is no image's is not worth more than the oldest image
		for d, have := range k.v.blobs {
			if have == 1 && !k.done() {
				if err := k.blob(d); err != nil {
					return err
				}
			}
		}
	}
	return k.layersOf(r, func(l catalog.Layer) error {
		return k.objects(l, r, func(m *mark) bool { return !m.hot }, k.done)
	})
}

// hot deletes what a start reads.
func (k *collection) hot(r rank) error {
	return k.layersOf(r, func(l catalog.Layer) error {
		return k.objects(l, r, func(*mark) bool { return true }, k.done)
	})
}

// trees deletes trees of lazy layers, but not those that somebody's word made: no
// registry has what they were made from, and reads would wait for who said it.
func (k *collection) trees(r rank) error {
	return k.layersOf(r, func(l catalog.Layer) error {
		if l.OnWord() {
			return nil
		}
		return k.tree(l)
	})
}

// layersOf calls f for the lazy layers of the image of rank r that no image
// above has.
func (k *collection) layersOf(r rank, f func(l catalog.Layer) error) error {
	for _, il := range k.v.images[r-1].Layers {
		for _, slot := range []uint32{il.Slot, il.Own} {
			l, ok := k.v.layers[slot]
			if slot == 0 || !ok || l.rank > r || k.done() {
				continue
			}
			if err := f(l.Layer); err != nil {
				return err
			}
		}
	}
	return k.ctx.Err()
}

// objects deletes objects of a layer that have rank r and are wanted gone,
// until enough is.
func (k *collection) objects(l catalog.Layer, r rank, which func(m *mark) bool, enough func() bool) error {
	var ids []toc.ObjectID
	var size int64
	flush := func() error {
		some := ids
		ids, size = nil, 0
		if len(some) == 0 {
			return nil
		}
		return k.delete(some)
	}
	err := eachObject(k.s, k.m, l, r, func(id toc.ObjectID, m *mark) error {
		if !which(m) || enough() || k.ctx.Err() != nil {
			return k.ctx.Err()
		}
		m.gone = true
		ids = append(ids, id)
		size += k.s.ObjectSize(id)
		if len(ids) < batch && k.freed.Bytes+size < k.need {
			return nil
		}
		return flush()
	})
	return errors.Join(err, flush())
}

// delete deletes objects, or counts what that would free.
func (k *collection) delete(ids []toc.ObjectID) error {
	if k.opts.DryRun {
		for _, id := range ids {
			if n := k.s.ObjectSize(id); n > 0 {
				k.freed.Bytes += n
				k.freed.Objects++
			}
		}
		return nil
	}
	n, freed, err := k.s.DeleteObjects(ids...)
	k.freed.Objects += n
	k.freed.Bytes += freed
	return err
}

// blob deletes a blob, and the beginning of one. One that is crossing stays.
func (k *collection) blob(d digest.Digest) error {
	if k.opts.DryRun {
		if n := k.s.BlobOnDisk(d); n > 0 {
			k.freed.Bytes += n
			k.freed.Blobs++
		}
		return nil
	}
	freed, err := k.s.DeleteBlob(d)
	part, partErr := k.s.DeletePartial(d)
	if errors.Is(partErr, store.ErrInUse) {
		partErr = nil
	}
	if freed+part > 0 {
		k.freed.Bytes += freed + part
		k.freed.Blobs++
	}
	return errors.Join(err, partErr)
}

// tree deletes a layer's tree, once the fetcher has let go of it.
func (k *collection) tree(l catalog.Layer) error {
	if !k.s.HasTree(l.TOC) {
		return nil
	}
	if k.opts.DryRun {
		k.freed.Trees++
		k.freed.Bytes += k.s.TreeOnDisk(l.TOC)
		return nil
	}
	if k.opts.Forget != nil {
		if err := k.opts.Forget(l.Slot); err != nil {
			return nil //nolint:nilerr // somebody uses it again: it stays
		}
	}
	freed, err := k.s.DeleteTree(l.TOC)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	k.freed.Trees++
	k.freed.Bytes += freed
	return err
}

func collect(ctx context.Context, s *store.Store, c *catalog.Catalog, opts Options) (Freed, error) {
	k := &collection{ctx: ctx, s: s, c: c, opts: opts}
	// What arrived last has no blocks yet, and counts as open.
	err := s.Flush()
	if err == nil || errors.Is(err, store.ErrNoSpace) {
		err = k.run()
	}
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return k.freed, fmt.Errorf("cache: collect: %w", err)
	}
	return k.freed, nil
}

func verify(ctx context.Context, s *store.Store, c *catalog.Catalog, opts store.VerifyOptions, report func(store.Finding)) error {
	if opts.Wanted == nil {
		v, err := look(s, c, Options{})
		if err != nil {
			return fmt.Errorf("cache: verify: %w", err)
		}
		opts.Wanted = func(d digest.Digest) bool { _, ok := v.blobs[d]; return ok }
	}
	return s.Verify(ctx, opts, report)
}
