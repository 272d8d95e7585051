package bundle

import (
	"bytes"
	"crypto/sha256"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func FuzzReader(f *testing.F) {
	raw, _ := write(f, Options{}, 100, 3000)
	f.Add(raw)
	f.Add(raw[:len(raw)/2])
	f.Add(raw[40:])
	f.Add(append(bytes.Clone(raw[:300]), raw[200:]...))
	f.Add([]byte(magic))
	f.Fuzz(func(_ *testing.T, b []byte) {
		r, err := NewReader(bytes.NewReader(b))
		if err != nil {
			return
		}
		defer r.Close()
		if _, err := r.Begin(); err != nil {
			return
		}
		for {
			rec, err := r.Next()
			if err != nil {
				return
			}
			if rec.Number == 0 || int(rec.Number) > len(r.contents.Records) {
				panic("a record that isn't listed")
			}
		}
	})
}

func FuzzBody(f *testing.F) {
	_, c := write(f, Options{}, 100)
	b, err := c.body()
	must(f, err)
	f.Add(b)
	f.Add([]byte(jsonBody(`{"images":[null,null]}`)))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := parseBody(b)
		if err != nil {
			return
		}
		if _, err := c.body(); err != nil {
			t.Error(err)
		}
	})
}

func FuzzPayloads(f *testing.F) {
	sum := sha256.Sum256([]byte("a"))
	doc := Document{"application/x", []byte("{}")}
	part := Part{Sum: sum, Size: 10, Offset: 3, At: 99, Data: []byte("abc")}
	group := Chunks{Tables: []Sum{sum}, Runs: []Run{{0, 5, 2}, {0, 1, 1}}, Data: []byte("content")}
	delta := Delta{Codec: "x", Sum: sum, Bases: []Object{{sum, 100, 2}}, Tables: []Sum{sum}, Targets: []Target{{0, 7}}}
	for _, b := range [][]byte{doc.Encode(), part.Encode(KindBlob), part.Encode(KindTable), group.Encode(), delta.Encode(), {}} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		same := func(what string, a, b any) {
			if diff := cmp.Diff(a, b); diff != "" {
				t.Errorf("%s is read otherwise the second time: %s", what, diff)
			}
		}
		if d, err := ParseDocument(b); err == nil {
			again, err := ParseDocument(d.Encode())
			must(t, err)
			same("document", d, again)
		}
		for _, kind := range []Kind{KindBlob, KindTable} {
			if p, err := ParsePart(kind, b); err == nil {
				again, err := ParsePart(kind, p.Encode(kind))
				must(t, err)
				same("part", p, again)
			}
		}
		if g, err := ParseChunks(b); err == nil {
			again, err := ParseChunks(g.Encode())
			must(t, err)
			same("chunks", g, again)
		}
		if d, err := ParseDelta(b); err == nil {
			again, err := ParseDelta(d.Encode())
			must(t, err)
			same("delta", d, again)
		}
	})
}
