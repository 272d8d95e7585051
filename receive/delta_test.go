package receive_test

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/airstream-io/airstream/internal/bundle"
	"github.com/airstream-io/airstream/pack"
	"github.com/airstream-io/airstream/receive"
)

// A delta waits for its bytes and for what it is made from.
func TestADeltaWaitsForItsBase(t *testing.T) {
	data := random(7, 200_000)
	base, baseDigest := source(t, image(t, "", file{"data", data}), true)
	target, digest := source(t, image(t, "", file{"data", turned(data)}), true)
	whole := write(t, pack.Order{Images: []pack.Image{{Name: "registry.example/app:old", Source: base}}})
	full := write(t, pack.Order{Images: []pack.Image{{Name: name, Source: target}}})

	// Learn of the objects from a node that has both.
	both := newNode(t)
	both.apply(t, whole, receive.Order{}, nil)
	both.apply(t, full, receive.Order{}, nil)
	object := func(manifest string) (table bundle.Sum, entry uint32, o bundle.Object) {
		images, err := both.catalog.Images()
		must(t, err)
		for _, img := range images {
			if img.Manifest.String() != manifest {
				continue
			}
			l, err := both.catalog.Layer(img.Layers[0].Slot)
			must(t, err)
			tree, err := both.store.Tree(l.TOC)
			must(t, err)
			for e := range uint32(tree.Len()) {
				if first, end := tree.Chunks(e); end-first > 1 {
					table, err = bundle.SumOf(l.TOC)
					must(t, err)
					return table, e, bundle.Object{ID: bundle.Sum(tree.ObjectID(e)), Size: tree.Attr(e).Size, Chunks: end - first}
				}
			}
		}
		t.Fatal("no such file")
		return
	}
	_, _, from := object(baseDigest)
	table, entry, _ := object(digest)
	patch := []byte{1}
	delta := bundle.Delta{Codec: "test", Sum: sum(patch), Bases: []bundle.Object{from}, Tables: []bundle.Sum{table}, Targets: []bundle.Target{{Table: 0, Entry: entry}}}
	sent := false
	small := forge(t, full, func(kind bundle.Kind, payload []byte) []byte {
		if kind != bundle.KindChunks || sent {
			return payload
		}
		g, err := bundle.ParseChunks(payload)
		must(t, err)
		if len(g.Data) < 200_000 {
			return payload
		}
		sent = true
		// All but the file, which comes as a delta.
		var runs []bundle.Run
		var kept []byte
		at := 0
		l := g.Tables[0]
		tree, err := both.store.Tree(bundle.DigestOf(l))
		must(t, err)
		for _, r := range g.Runs {
			for c := r.First; c < r.First+r.Count; c++ {
				n := int(tree.Chunk(c).Size)
				if tree.ChunkFile(c) != entry {
					runs = append(runs, bundle.Run{Table: 0, First: c, Count: 1})
					kept = append(kept, g.Data[at:at+n]...)
				}
				at += n
			}
		}
		return (&bundle.Chunks{Tables: g.Tables, Runs: runs, Data: kept}).Encode()
	})
	small = extend(t, small, map[bundle.Kind][]byte{bundle.KindDelta: delta.Encode(), bundle.KindBlob: (&bundle.Part{Sum: delta.Sum, Size: 1, Data: patch}).Encode(bundle.KindBlob)}, baseDigest)
	n := newNode(t)
	res := n.apply(t, small, activate, receive.ErrBaseMissing)
	if res.Waiting != 1 || n.means(t, name) != "" {
		t.Errorf("%+v", res)
	}
	n.restart(t)
	n.apply(t, whole, receive.Order{}, nil)
	if n.means(t, name) != digest {
		t.Errorf("it means %s", n.means(t, name))
	}
}

// extend adds records and a base to a bundle.
func extend(t *testing.T, raw []byte, add map[bundle.Kind][]byte, base string) []byte {
	t.Helper()
	r, err := bundle.NewReader(bytes.NewReader(raw))
	must(t, err)
	defer r.Close()
	c, err := r.Begin()
	must(t, err)
	w, err := bundle.Create(bundle.Options{WorkDir: t.TempDir()})
	must(t, err)
	defer func() { must(t, w.Close()) }()
	for {
		rec, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		must(t, err)
		must(t, w.Add(rec.Kind, rec.Priority, rec.Payload))
	}
	for kind, p := range add {
		must(t, w.Add(kind, bundle.PriorityRest, p))
	}
	var out bytes.Buffer
	_, err = w.Finish(&bundle.Contents{Images: c.Images, Bases: []bundle.Base{{Name: "registry.example/app@" + base, Digest: bundle.DigestOf(mustSum(t, base))}}}, &out)
	must(t, err)
	return out.Bytes()
}
