package convert

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/airstream-io/airstream/convert/layer"
	"github.com/airstream-io/airstream/internal/annotation"
	"github.com/airstream-io/airstream/internal/chunk"
)

// converted is all that a manifest and a config need to know of a layer.
type converted struct {
	Digest           v1.Hash `json:"digest"`
	Size             int64   `json:"size"` // bytes
	DiffID           v1.Hash `json:"diffID"`
	UncompressedSize int64   `json:"uncompressedSize"` // bytes
	TOCDigest        v1.Hash `json:"tocDigest"`
	TOCOffset        int64   `json:"tocOffset"` // bytes into the blob
	// Prioritized identifies the list of files whose content comes first; "" if
	// the layer has none of them, or there was no list.
	Prioritized string `json:"prioritized,omitempty"`
}

func fromResult(r layer.Result, list string) converted {
	h := func(id chunk.ID) v1.Hash { return v1.Hash{Algorithm: "sha256", Hex: fmt.Sprintf("%x", id[:])} }
	c := converted{
		Digest: h(r.Digest), Size: r.Size, DiffID: h(r.DiffID), UncompressedSize: r.UncompressedSize,
		TOCDigest: h(r.TOCDigest), TOCOffset: r.TOCOffset,
	}
	if r.Prioritized > 0 {
		c.Prioritized = list
	}
	return c
}

func (c converted) valid() bool {
	for _, h := range []v1.Hash{c.Digest, c.DiffID, c.TOCDigest} {
		if h.Algorithm != "sha256" || len(h.Hex) != 2*sha256.Size {
			return false
		}
	}
	return c.Size > 0 && c.UncompressedSize > 0 && c.TOCOffset > 0 && c.TOCOffset < c.Size
}

func (c converted) descriptor() v1.Descriptor {
	return v1.Descriptor{MediaType: types.OCILayer, Digest: c.Digest, Size: c.Size}
}

// key names the conversion of one blob with one set of options. The same key
// means the same bytes.
type key struct {
	source v1.Hash
	diffID v1.Hash // that the source was checked against
	chunk  int64
	group  int64
	first  string // sourceLayer.firstI
}

func (o Options) key(l sourceLayer) key {
	size := o.Layer.ChunkSize
	if size == 0 {
		size = chunk.DefaultSize
	}
	return key{l.d.Digest, l.diffID, size, o.Layer.GroupSize, l.firstI}
}

// annotations are what a layer made for k carries.
func (k key) annotations(c converted) map[string]string {
	a := map[string]string{
		annotation.TOCDigest:        c.TOCDigest.String(),
		annotation.UncompressedSize: strconv.FormatInt(c.UncompressedSize, 10),
		annotation.TOCOffset:        strconv.FormatInt(c.TOCOffset, 10),
		annotation.ChunkSize:        strconv.FormatInt(k.chunk, 10),
		annotation.Format:           strconv.Itoa(layer.Format),
		annotation.Source:           k.source.String(),
	}
	if k.group != 0 {
		a[annotation.GroupSize] = strconv.FormatInt(k.group, 10)
	}
	if c.Prioritized != "" {
		a[annotation.Prioritized] = c.Prioritized
	}
	return a
}

// fromAnnotations reads a layer that this package made with o back from its
// descriptor.
func fromAnnotations(d v1.Descriptor, diffID v1.Hash, o Options) (source v1.Hash, c converted, ok bool) {
	number := func(name string) int64 { return decimal(d, name) }
	source, err := v1.NewHash(d.Annotations[annotation.Source])
	if err != nil {
		return v1.Hash{}, converted{}, false
	}
	table, err := v1.NewHash(d.Annotations[annotation.TOCDigest])
	if err != nil {
		return v1.Hash{}, converted{}, false
	}
	k := o.key(sourceLayer{})
	c = converted{d.Digest, d.Size, diffID, number(annotation.UncompressedSize), table, number(annotation.TOCOffset), d.Annotations[annotation.Prioritized]}
	ok = d.MediaType == types.OCILayer && c.valid() && number(annotation.Format) == layer.Format &&
		number(annotation.ChunkSize) == k.chunk && number(annotation.GroupSize) == k.group
	return source, c, ok
}

// decimal reads an annotation with a number; 0 if there is none.
func decimal(d v1.Descriptor, name string) int64 {
	n, err := strconv.ParseInt(d.Annotations[name], 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// records remembers conversions on disk, one small JSON file for each key.
// They save work and nothing depends on them: one that can't be read is as if
// it weren't there.
type records struct{ dir string }

func (r records) path(k key) string {
	name := fmt.Appendf(nil, "%d %s %s %d %d", layer.Format, k.source, k.diffID, k.chunk, k.group)
	if k.first != "" {
		name = append(append(name, ' '), k.first...)
	}
	return r.file(string(name))
}

// file returns where the record with a name is, which may be long.
func (r records) file(name string) string {
	return filepath.Join(r.dir, fmt.Sprintf("%x.json", sha256.Sum256([]byte(name))))
}

func (r records) get(k key) (c converted, ok bool) {
	ok = r.read(r.path(k), &c) && c.valid()
	return c, ok
}

func (r records) put(k key, c converted) error { return r.write(r.path(k), c) }

func (r records) read(path string, to any) bool {
	if r.dir == "" {
		return false
	}
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close() //nolint:errcheck // a reader
	return json.NewDecoder(io.LimitReader(f, 64<<10)).Decode(to) == nil
}

func (r records) write(path string, what any) error {
	if r.dir == "" {
		return nil
	}
	if err := os.MkdirAll(r.dir, 0o755); err != nil {
		return err
	}
	raw, err := json.Marshal(what)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(r.dir, ".record-")
	if err != nil {
		return err
	}
	_, err = f.Write(raw)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// made names a converted layer by what it was made of.
type made struct {
	source v1.Hash
	first  string // sourceLayer.firstI
}

// readEarlier finds the converted layers in what the destination's name holds
// so far, by what they were made of. Whatever is wrong with it, it is about to be
// replaced.
func readEarlier(ctx context.Context, previous Source, o Options) map[made]converted {
	found := map[made]converted{}
	p, err := readPlan(ctx, previous, nil)
	if err != nil {
		o.Log.DebugContext(ctx, "nothing to reuse at the destination", slog.Any("error", err))
		return found
	}
	for _, m := range p.images() {
		for _, l := range m.image.layers {
			if source, c, ok := fromAnnotations(l.d, l.diffID, o); ok {
				found[made{source, c.Prioritized}] = c
			}
		}
	}
	return found
}
