package pack

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/airstream-io/airstream/internal/bundle"
	"github.com/airstream-io/airstream/internal/toc"
)

type objectID = toc.ObjectID

// held is who has something.
type held struct {
	receivers int // how many have it
	last      int // which of them was seen last, from 1 on
	base      int // an image that it is in
}

func (h held) add(receiver, base int) held {
	if h.last != receiver {
		h.receivers, h.last = h.receivers+1, receiver
	}
	if h.receivers == 1 {
		h.base = base
	}
	return h
}

// have is what receivers have.
type have struct {
	receivers int
	images    []Held
	layers    []heldLayer
	digests   map[digest.Digest]held // blobs and tables
	objects   map[objectID]held
	needed    map[int]bool // images that something is left out for
}

// heldLayer is a converted layer that a receiver has.
type heldLayer struct {
	receiver, base int
	source         Source
	desc           ocispec.Descriptor
}

// which returns an image that has a blob or table which all receivers have.
func (h *have) which(d digest.Digest) (base int, ok bool) {
	x := h.digests[d]
	return x.base, h.receivers > 0 && x.receivers == h.receivers
}

func (h *have) all(d digest.Digest) bool {
	base, ok := h.which(d)
	if ok {
		h.used(base)
	}
	return ok
}

func (h *have) used(base int) { h.needed[base] = true }

// object tells whether all receivers have a file's content.
func (h *have) object(id objectID) bool {
	x := h.objects[id]
	if h.receivers == 0 || x.receivers != h.receivers {
		return false
	}
	h.used(x.base)
	return true
}

// receivers reads the manifests of what the receivers have.
func (p *packer) receivers(ctx context.Context) error {
	h := &p.have
	h.receivers, h.digests, h.objects, h.needed = len(p.Receivers), map[digest.Digest]held{}, map[objectID]held{}, map[int]bool{}
	for i, images := range p.Receivers {
		for _, img := range images {
			p.say("reading " + img.Name)
			base := slices.IndexFunc(h.images, func(x Held) bool { return x.Name == img.Name })
			if base < 0 {
				base = len(h.images)
				h.images = append(h.images, img)
			}
			if err := h.add(ctx, img.Source, i+1, base); err != nil {
				return fmt.Errorf("%s, which receiver %d has: %w", img.Name, i+1, err)
			}
		}
	}
	return nil
}

func (h *have) add(ctx context.Context, s Source, receiver, base int) error {
	desc, body, err := root(ctx, s)
	if err != nil {
		return err
	}
	if desc.MediaType.IsIndex() {
		return errors.New("an inventory names manifests, and this is an index")
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(body, &m); err != nil {
		return err
	}
	note := func(d digest.Digest) { h.digests[d] = h.digests[d].add(receiver, base) }
	note(digest.FromBytes(body))
	note(m.Config.Digest)
	for _, d := range m.Layers {
		if !isImage(m.Config.MediaType) || !lazy(d) {
			note(d.Digest)
			continue
		}
		note(tocOf(d))
		h.layers = append(h.layers, heldLayer{receiver, base, s, d})
	}
	return nil
}

// readTrees notes which files' content receivers have.
func (h *have) readTrees(ctx context.Context, workDir string) error {
	type seen struct {
		toc      digest.Digest
		receiver int
	}
	done := map[seen]bool{}
	for _, l := range h.layers {
		key := seen{tocOf(l.desc), l.receiver}
		if done[key] {
			continue
		}
		done[key] = true
		t, err := remoteTable(ctx, l.source, l.desc, workDir)
		if err != nil {
			return fmt.Errorf("%s: %w", h.images[l.base].Name, err)
		}
		for e := range uint32(t.Len()) {
			if first, end := t.Chunks(e); first < end {
				id := t.ObjectID(e)
				h.objects[id] = h.objects[id].add(l.receiver, l.base)
			}
		}
	}
	return nil
}

// bases returns the images that something was left out for.
func (p *packer) bases() (all []bundle.Base) {
	for i, img := range p.have.images {
		if !p.have.needed[i] {
			continue
		}
		d := img.Name[max(0, len(img.Name)-len("sha256:")-64):]
		if _, err := v1.NewHash(d); err == nil {
			all = append(all, bundle.Base{Name: img.Name, Digest: digest.Digest(d)})
		}
	}
	return all
}
