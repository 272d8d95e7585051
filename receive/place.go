package receive

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/airstream-io/airstream/internal/bundle"
	"github.com/airstream-io/airstream/internal/catalog"
	"github.com/airstream-io/airstream/internal/chunk"
	"github.com/airstream-io/airstream/internal/store"
	"github.com/airstream-io/airstream/internal/toc"
)

var (
	le         = binary.LittleEndian
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// errWait says that a record can't be placed before something else is here.
var errWait = errors.New("something that it needs is not here yet")

// isWrong tells whether it is the record's fault that it can't be placed.
func isWrong(err error) bool {
	return errors.Is(err, ErrWrong) || errors.Is(err, bundle.ErrDamaged) || errors.Is(err, chunk.ErrMismatch) || errors.Is(err, store.ErrMismatch) ||
		errors.Is(err, toc.ErrInvalid) || errors.Is(err, catalog.ErrInvalid) || errors.Is(err, catalog.ErrConflict)
}

// Limits on blobs that are read into memory, in bytes.
const (
	maxDocument = 8 << 20
	smallBlob   = 1 << 20
)

// place puts a record's content where it belongs.
func (p *pending) place(ctx context.Context, kind bundle.Kind, payload []byte) error {
	switch kind {
	case bundle.KindDocument:
		d, err := bundle.ParseDocument(payload)
		if err != nil {
			return err
		}
		return p.document(d)
	case bundle.KindBlob:
		b, err := bundle.ParsePart(kind, payload)
		if err != nil {
			return err
		}
		return p.blob(b)
	case bundle.KindTable:
		t, err := bundle.ParsePart(kind, payload)
		if err != nil {
			return err
		}
		return p.table(ctx, t)
	case bundle.KindChunks:
		g, err := bundle.ParseChunks(payload)
		if err != nil {
			return err
		}
		return p.chunks(g)
	case bundle.KindDelta:
		d, err := bundle.ParseDelta(payload)
		if err != nil {
			return err
		}
		return p.delta(ctx, d)
	case bundle.KindManifest:
	}
	return nil // a later version's
}

func (p *pending) document(d bundle.Document) error {
	name := digest.FromBytes(d.Body)
	if len(d.Body) > maxDocument {
		return fmt.Errorf("%w: document %s has %d bytes", ErrWrong, name, len(d.Body))
	}
	if err := p.r.store.PutBlob(name, d.Body); err != nil {
		return err
	}
	if err := p.r.catalog.SetMediaType(name, d.MediaType); err != nil {
		return err
	}
	return p.layers(name, d.MediaType, d.Body)
}

// isManifest tells whether a media type is one that lists layers.
func isManifest(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageManifest || mediaType == "application/vnd.docker.distribution.manifest.v2+json"
}

// layers notes which slots the layers of a manifest have.
func (p *pending) layers(name digest.Digest, mediaType string, body []byte) error {
	if !isManifest(mediaType) {
		return nil
	}
	src, ok := p.source(name)
	if !ok {
		return nil // it is nobody's
	}
	layers, err := p.r.catalog.Layers(src, body)
	if err != nil {
		return err
	}
	for _, l := range layers {
		s, err := bundle.SumOf(l.TOC)
		if err != nil {
			return err
		}
		p.slots[s] = l.Slot
		if s, err = bundle.SumOf(l.Blob); err == nil {
			p.unused[s] = true // its files come one by one
		}
	}
	return nil
}

// meet does so for the manifests that are here already.
func (p *pending) meet() error {
	for i := range p.Contents.Files {
		if s, err := bundle.SumOf(p.Contents.Files[i].Digest); err == nil {
			p.unused[s] = true // bundle extract is for them
		}
	}
	for i := range p.Contents.Images {
		img := &p.Contents.Images[i]
		if err := checkName(img.Name); err != nil {
			return fmt.Errorf("%w: image %q: %w", bundle.ErrDamaged, img.Name, err)
		}
		for _, m := range img.Parts {
			mediaType, body, err := p.r.read(m.Digest)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err == nil {
				err = p.layers(m.Digest, mediaType, body)
			}
			if err != nil && !isWrong(err) {
				return err
			}
		}
	}
	return nil
}

// read returns a document that is here.
func (r *Receiver) read(d digest.Digest) (mediaType string, body []byte, err error) {
	if body, err = r.store.ReadBlob(d, maxDocument); err == nil {
		mediaType, err = r.catalog.MediaType(d)
	}
	return mediaType, body, err
}

// source returns where the image that has a manifest comes from.
func (p *pending) source(manifest digest.Digest) (src catalog.Source, ok bool) {
	for i := range p.Contents.Images {
		img := &p.Contents.Images[i]
		if slices.ContainsFunc(img.Parts, func(m bundle.Manifest) bool { return m.Digest == manifest }) ||
			slices.ContainsFunc(img.Referrers, func(r bundle.Referrer) bool { return r.Digest == manifest }) {
			return sourceOf(img.Name), true
		}
	}
	return src, false
}

// sourceOf returns host and repository of "host/repo:tag" or "host/repo@digest".
func sourceOf(name string) catalog.Source {
	host, repo, _ := strings.Cut(name, "/")
	repo, _, _ = strings.Cut(repo, "@")
	repo, _, _ = strings.Cut(repo, ":")
	return catalog.Source{Host: host, Repo: repo}
}

// checkName refuses names that containerd doesn't write.
func checkName(name string) error {
	src := sourceOf(name)
	rest := strings.TrimPrefix(name, src.Host+"/"+src.Repo)
	if src.Host == "" || src.Repo == "" || len(rest) < 2 || len(name) > 1024 || strings.ContainsFunc(name, func(c rune) bool { return c <= ' ' || c > '~' }) {
		return errors.New("want a name like registry.example/app:1.0")
	}
	return nil
}

func (p *pending) blob(b bundle.Part) (err error) {
	d := bundle.DigestOf(b.Sum)
	if _, here := p.r.store.HasBlob(d); here || p.unused[b.Sum] && b.Size > 0 {
		return nil
	}
	if b.Offset == 0 && int64(len(b.Data)) == b.Size && b.Size <= smallBlob {
		return p.r.store.PutBlob(d, b.Data)
	}
	part := p.open[b.Sum]
	if part == nil {
		if part, err = p.r.store.Partial(d); err != nil {
			if errors.Is(err, store.ErrBusy) {
				return errWait // it crosses the link just now
			}
			return err
		}
		part.Expect(b.Size)
		p.open[b.Sum] = part
	}
	n := part.Len()
	switch {
	case b.Offset > n:
		return errWait
	case b.Offset+int64(len(b.Data)) <= n && n < b.Size:
		return nil
	}
	if _, err := part.Write(b.Data[min(n-b.Offset, int64(len(b.Data))):]); err != nil {
		return err
	}
	if part.Len() < b.Size {
		return nil
	}
	delete(p.open, b.Sum)
	return errors.Join(part.Commit(), part.Close())
}

func (p *pending) table(ctx context.Context, t bundle.Part) error {
	slot, ok := p.slots[t.Sum]
	if !ok {
		return errWait // for the manifest
	}
	if tree, err := p.r.content.TreeHere(slot); err == nil && tree != nil {
		return nil
	}
	body := t.Data
	if t.Size > toc.MaxJSONSize {
		return fmt.Errorf("%w: a table of %d bytes", ErrWrong, t.Size)
	}
	if int64(len(body)) < t.Size {
		var err error
		if body, err = p.assemble(t); err != nil {
			return err
		}
	}
	if sha256.Sum256(body) != t.Sum {
		return fmt.Errorf("%w: table %s", store.ErrMismatch, bundle.DigestOf(t.Sum))
	}
	_, err := p.r.content.PutTable(ctx, slot, body, t.At)
	return err
}

// assemble joins a part of a table with those that wait.
func (p *pending) assemble(t bundle.Part) ([]byte, error) {
	parts := slices.Clone(p.parts[t.Sum])
	slices.SortFunc(parts, func(a, b part) int { return int(a.offset - b.offset) })
	covered := int64(0)
	for _, x := range append(parts, part{0, t.Offset, int64(len(t.Data))}) {
		if x.offset == covered {
			covered += x.size
		}
	}
	if covered < t.Size && t.Offset+int64(len(t.Data)) < t.Size { // the last one makes it whole
		return nil, errWait
	}
	body := bytes.NewBuffer(make([]byte, 0, min(t.Size, 4<<20)))
	for int64(body.Len()) < t.Size {
		at := int64(body.Len())
		if t.Offset == at {
			body.Write(t.Data)
			continue
		}
		i := slices.IndexFunc(parts, func(x part) bool { return x.offset == at && x.size > 0 })
		if i < 0 {
			return nil, errWait
		}
		_, payload, err := p.spooled(parts[i].number)
		if err != nil {
			return nil, err
		}
		x, err := bundle.ParsePart(bundle.KindTable, payload)
		if err != nil {
			return nil, err
		}
		body.Write(x.Data)
	}
	return body.Bytes(), nil
}

func (p *pending) chunks(g bundle.Chunks) error {
	trees := make([]*toc.Tree, len(g.Tables))
	for i, s := range g.Tables {
		slot, ok := p.slots[s]
		if !ok {
			return errWait
		}
		var err error
		if trees[i], err = p.r.content.TreeHere(slot); err != nil {
			return err
		}
		if trees[i] == nil {
			return errWait
		}
	}
	data := g.Data
	for _, run := range g.Runs {
		t := trees[run.Table]
		if uint64(run.First)+uint64(run.Count) > uint64(t.NumChunks()) {
			return fmt.Errorf("%w: chunk %d of %d", ErrWrong, run.First+run.Count-1, t.NumChunks())
		}
		for c := run.First; c < run.First+run.Count; c++ {
			n := int(t.Chunk(c).Size)
			if n > len(data) {
				return fmt.Errorf("%w: content ends early", ErrWrong)
			}
			if err := p.r.content.Push(p.slots[g.Tables[run.Table]], c, data[:n]); err != nil {
				return err
			}
			data = data[n:]
		}
	}
	if len(data) > 0 {
		return fmt.Errorf("%w: %d bytes too many", ErrWrong, len(data))
	}
	return nil
}

// delta makes files of content that is here.
func (p *pending) delta(ctx context.Context, d bundle.Delta) (err error) {
	codec := p.r.opts.Rebuilders[d.Codec]
	if codec == nil {
		return errWait // for a node that can
	}
	body, err := p.r.store.Blob(bundle.DigestOf(d.Sum))
	if err != nil {
		return errWait
	}
	defer func() { err = errors.Join(err, body.Close()) }()
	info, err := body.Stat()
	if err != nil {
		return err
	}
	var bases []io.ReaderAt
	for _, b := range d.Bases {
		o, err := p.r.store.Object(toc.ObjectID(b.ID), b.Size, b.Chunks)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, o.Close()) }()
		if o.Missing() > 0 {
			return errWait
		}
		bases = append(bases, o)
	}
	trees := make([]*toc.Tree, len(d.Tables))
	for i, s := range d.Tables {
		slot, ok := p.slots[s]
		if !ok {
			return errWait
		}
		if trees[i], err = p.r.content.TreeHere(slot); err != nil || trees[i] == nil {
			return errors.Join(err, errWait)
		}
	}
	return codec.Rebuild(ctx, body, info.Size(), bases, len(d.Targets), func(i int, content io.Reader) error {
		target := d.Targets[i]
		return p.rebuilt(trees[target.Table], p.slots[d.Tables[target.Table]], target.Entry, content)
	})
}

// rebuilt stores the content of a file, which is verified chunk by chunk.
func (p *pending) rebuilt(t *toc.Tree, slot, entry uint32, content io.Reader) error {
	if int(entry) >= t.Len() {
		return fmt.Errorf("%w: entry %d of %d", ErrWrong, entry, t.Len())
	}
	var buf []byte
	for c, end := t.Chunks(entry); c < end; c++ {
		n := int(t.Chunk(c).Size)
		buf = slices.Grow(buf[:0], n)[:n]
		if _, err := io.ReadFull(content, buf); err != nil {
			return fmt.Errorf("%w: a delta makes too little: %w", ErrWrong, err)
		}
		if err := p.r.content.Push(slot, c, buf); err != nil {
			return err
		}
	}
	return nil
}
