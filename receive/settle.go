package receive

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/airstream-io/airstream/internal/bundle"
	"github.com/airstream-io/airstream/internal/catalog"
)

// activated is what a name meant before.
type activated struct{ previous digest.Digest }

// Settle looks again at all bundles that wait: what they lack may be here by now.
func (r *Receiver) Settle(ctx context.Context) ([]Result, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, errClosed
	}
	return r.settle(ctx, nil)
}

// Pending returns the IDs of the bundles that wait for something.
func (r *Receiver) Pending() ([]string, error) {
	list, err := os.ReadDir(r.dir)
	if err != nil {
		return nil, fmt.Errorf("receive: %w", err)
	}
	var ids []string
	for _, e := range list {
		if e.IsDir() && validID(e.Name()) {
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}

// Waiting returns the bundles that wait for something, and what for.
func (r *Receiver) Waiting() ([]Result, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	ids, err := r.Pending()
	if err != nil {
		return nil, err
	}
	all := []Result{}
	for _, id := range ids {
		res := Result{Bundle: id}
		if p, err := r.load(id); err == nil {
			p.report(&res)
		}
		all = append(all, res)
	}
	return all, nil
}

// Forget gives a bundle up that waits: what it brought stays like anything else, and
// its spool goes. The error is fs.ErrNotExist if there is none.
func (r *Receiver) Forget(id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.pending(id)
	if _, err := os.Stat(p.path("")); err != nil || !validID(id) {
		return fmt.Errorf("receive: bundle %q: %w", id, fs.ErrNotExist)
	}
	return p.remove()
}

// settle looks at own, which may be nil, and all other bundles until nothing
// changes any more. It returns what became of others that are complete now.
func (r *Receiver) settle(ctx context.Context, own *pending) (done []Result, err error) {
	ids, err := r.Pending()
	if err != nil {
		return nil, err
	}
	all := make([]*pending, 0, len(ids)+1)
	if own != nil {
		all = append(all, own)
	}
	for _, id := range ids {
		if own != nil && id == own.id {
			continue
		}
		p, err := r.load(id)
		if err != nil {
			r.log.WarnContext(ctx, "a bundle that waits can't be read; apply it again", slog.String("bundle", id), slog.Any("error", err))
			continue
		}
		all = append(all, p)
	}
	for progress := true; progress; {
		progress = false
		for _, p := range all {
			n, err := p.drain(ctx)
			if err != nil {
				return done, fmt.Errorf("receive: bundle %s: %w", p.id, err)
			}
			progress = progress || n > 0
		}
	}
	for _, p := range all {
		ended, err := p.finish(ctx)
		if err != nil {
			return done, fmt.Errorf("receive: bundle %s: %w", p.id, err)
		}
		if ended && p != own {
			var res Result
			p.report(&res)
			done = append(done, res)
		}
	}
	return done, nil
}

// drain places what waits, and returns how many records it placed.
func (p *pending) drain(ctx context.Context) (placed int, err error) {
	for _, n := range slices.Clone(p.waiting) {
		if !slices.Contains(p.waiting, n) {
			continue
		}
		kind, payload, err := p.spooled(n)
		if err == nil {
			err = p.place(ctx, kind, payload)
		}
		switch {
		case errors.Is(err, errWait):
			continue
		case isWrong(err), errors.Is(err, fs.ErrNotExist):
			p.lost(n) // it must come again
		case err != nil:
			return placed, err
		default:
			placed++
		}
		// What it brought is durable before it is gone.
		if err := p.r.store.Flush(); err != nil {
			return placed, err
		}
		if err := p.unspool(n); err != nil {
			return placed, err
		}
	}
	if placed > 0 {
		err = p.save()
	}
	return placed, err
}

// finish activates what is complete, and forgets the bundle if nothing of it is
// left to do.
func (p *pending) finish(ctx context.Context) (ended bool, err error) {
	if err := p.learn(ctx); err != nil {
		return false, err
	}
	var list []catalog.Activation
	whole := true
	for i := range p.Contents.Images {
		img := &p.Contents.Images[i]
		missing, err := p.missing(img)
		if err != nil {
			return false, err
		}
		if missing != "" {
			whole = false
			continue
		}
		if !strings.Contains(img.Name, "@") {
			a := catalog.Activation{Name: img.Name, Tag: catalog.Tag{Digest: img.Digest, MediaType: img.MediaType, Size: img.Size, Seen: time.Now().UTC()}}
			for _, m := range img.Parts {
				a.Manifests = append(a.Manifests, m.Digest)
			}
			list = append(list, a)
		}
	}
	if p.Activate && (whole || p.Partial) {
		before, err := p.r.catalog.Activate(list...)
		if err != nil {
			return false, err
		}
		for name, d := range before {
			p.changed[name] = activated{d}
			p.r.log.InfoContext(ctx, "a name means another image", slog.String("image", name), slog.String("before", d.String()), slog.String("bundle", p.id))
		}
	}
	if err := p.refer(); err != nil {
		return false, err
	}
	if whole && p.count() == p.Records {
		return true, p.remove()
	}
	if bases, err := p.basesMissing(); err != nil || len(bases) > 0 || p.count() < p.Records {
		return false, err
	}
	// Content was evicted meanwhile, and only the bundle has it.
	clear(p.received)
	for _, n := range p.waiting {
		p.got(n)
	}
	return false, p.save()
}

// learn tells the catalog of images whose config is here.
func (p *pending) learn(ctx context.Context) error {
	for i := range p.Contents.Images {
		img := &p.Contents.Images[i]
		for _, m := range img.Parts {
			if _, err := p.r.catalog.Image(m.Digest); !errors.Is(err, fs.ErrNotExist) {
				if err != nil {
					return err
				}
				continue
			}
			mediaType, body, err := p.r.read(m.Digest)
			if errors.Is(err, fs.ErrNotExist) || !isManifest(mediaType) {
				continue
			}
			if err != nil {
				return err
			}
			var doc ocispec.Manifest
			if json.Unmarshal(body, &doc) != nil || !isImage(doc.Config.MediaType) {
				continue
			}
			config, err := p.r.store.ReadBlob(doc.Config.Digest, maxDocument)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err == nil {
				_, err = p.r.catalog.Learn(sourceOf(img.Name), "", mediaType, body, config)
			}
			if err == nil {
				err = p.r.catalog.Used(m.Digest, time.Now())
			}
			switch {
			case isWrong(err):
				p.r.log.WarnContext(ctx, "an image of a bundle can't be used", slog.String("image", img.Name), slog.Any("error", err))
			case err != nil:
				return err
			}
		}
	}
	return nil
}

// refer tells the catalog what refers to the images, as far as it is here.
func (p *pending) refer() error {
	for i := range p.Contents.Images {
		img := &p.Contents.Images[i]
		lists := map[digest.Digest][]ocispec.Descriptor{}
		for _, r := range img.Referrers {
			if what, err := p.r.missing(r.Digest); what == "" && err == nil {
				lists[r.Subject] = append(lists[r.Subject], ocispec.Descriptor{MediaType: r.MediaType, Digest: r.Digest, Size: r.Size, ArtifactType: r.ArtifactType, Annotations: r.Annotations})
			}
		}
		for subject, list := range lists {
			index, err := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: list})
			if err != nil {
				return err
			}
			src := sourceOf(img.Name)
			if old, err := p.r.catalog.Referrers(src, subject); err == nil && len(old.Index) >= len(index) {
				continue // a registry has told of more
			}
			if err := p.r.catalog.SetReferrers(src, subject, index, time.Now()); err != nil {
				return err
			}
		}
	}
	return nil
}

func isImage(configType string) bool {
	return configType == ocispec.MediaTypeImageConfig || configType == "application/vnd.docker.container.image.v1+json"
}

// whole tells whether all images of the bundle are here, and what refers to them.
func (p *pending) whole() (bool, error) {
	for i := range p.Contents.Images {
		if what, err := p.missing(&p.Contents.Images[i]); what != "" || err != nil {
			return false, err
		}
		for _, r := range p.Contents.Images[i].Referrers {
			if what, err := p.r.missing(r.Digest); what != "" || err != nil {
				return false, err
			}
		}
	}
	return true, nil
}

// missing says what is not here of an image; empty: all is.
func (p *pending) missing(img *bundle.Image) (string, error) {
	if _, ok := p.r.store.HasBlob(img.Digest); !ok {
		return "its manifest", nil
	}
	for _, m := range img.Parts {
		what, err := p.r.missing(m.Digest)
		if what != "" || err != nil {
			return what, err
		}
	}
	return "", nil
}

// missing says what is not here of a manifest.
func (r *Receiver) missing(d digest.Digest) (string, error) {
	mediaType, body, err := r.read(d)
	if errors.Is(err, fs.ErrNotExist) {
		return "its manifest", nil
	}
	if err != nil || !isManifest(mediaType) {
		return "", err
	}
	var doc ocispec.Manifest
	if json.Unmarshal(body, &doc) != nil {
		return "a manifest that can be read", nil //nolint:nilerr // that is what is missing
	}
	if _, ok := r.store.HasBlob(doc.Config.Digest); !ok {
		return "its config", nil
	}
	if !isImage(doc.Config.MediaType) {
		for _, l := range doc.Layers {
			if _, ok := r.store.HasBlob(l.Digest); !ok {
				return "blob " + l.Digest.String(), nil
			}
		}
		return "", nil
	}
	img, err := r.catalog.Image(d)
	if errors.Is(err, fs.ErrNotExist) {
		return "an image that agrees with those that are here", nil
	}
	if err != nil {
		return "", err
	}
	var slots []uint32
	for _, l := range img.Layers {
		if l.Slot != 0 {
			slots = append(slots, l.Slot)
		} else if _, ok := r.store.HasBlob(l.Blob); !ok {
			return "layer " + l.Blob.String(), nil
		}
	}
	if whole, err := r.content.Complete(slots...); !whole || err != nil {
		return "content of its layers", err
	}
	return "", nil
}

// basesMissing returns what the bundle builds upon and is not here whole.
func (p *pending) basesMissing() (all []bundle.Base, err error) {
	for _, b := range p.Contents.Bases {
		what, err := p.r.missing(b.Digest)
		if err != nil {
			return nil, err
		}
		if what != "" {
			all = append(all, b)
		}
	}
	return all, nil
}

// report fills in what is known of the bundle.
func (p *pending) report(res *Result) {
	res.Bundle, res.Records, res.Received, res.Waiting, res.Next = p.id, p.Records, p.count(), len(p.waiting), p.next()
	for i := range p.Contents.Images {
		img := &p.Contents.Images[i]
		ir := ImageResult{Name: img.Name, Digest: img.Digest}
		var err error
		if ir.Missing, err = p.missing(img); err != nil {
			ir.Missing = err.Error()
		}
		ir.Complete = ir.Missing == ""
		if tag, err := p.r.catalog.Tag(img.Name); err == nil {
			ir.Active = tag.Digest == img.Digest
		}
		if c, ok := p.changed[img.Name]; ok {
			ir.Changed, ir.Previous = true, c.previous
		}
		res.Images = append(res.Images, ir)
	}
	if !res.Complete() {
		res.Bases, _ = p.basesMissing() // for people: what is missing is said anyway
	}
}
