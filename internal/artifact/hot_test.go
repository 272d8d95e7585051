package artifact

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"github.com/airstream-io/airstream/internal/chunk"
	"github.com/airstream-io/airstream/internal/toc"
	"github.com/airstream-io/airstream/internal/trace"
)

// contents is an image of two layers whose content exists.
type contents struct {
	trees []*toc.Tree
	plans []trace.Plan
	bytes map[chunk.ID][]byte
}

func newContents(tb testing.TB) *contents {
	tb.Helper()
	c := &contents{bytes: map[chunk.ID][]byte{}}
	r := rand.New(rand.NewPCG(4, 4))
	for l := range 2 {
		var rows []row
		offset := int64(100)
		for k, size := range []int{1, 1000, 200 << 10, 0, 64 << 10, 300 << 10, 70 << 10, 5} {
			e := row{Name: fmt.Sprintf("usr/lib/%d/file-%d", l, k), Type: "reg", Mode: 0o644, Size: int64(size)}
			for at := 0; at < size; at += 100 << 10 {
				p := make([]byte, min(100<<10, size-at))
				for i := range p {
					p[i] = "abcdefgh"[r.IntN(2)+r.IntN(7)]
				}
				c.bytes[chunk.Sum(p)] = p
				e.ChunkOffset, e.ChunkSize, e.ChunkDigest, e.Offset = int64(at), int64(len(p)), chunk.Sum(p).String(), offset
				offset += int64(len(p))/2 + 1
				rows = append(rows, e)
				e.Type = "chunk"
			}
			if size == 0 {
				rows = append(rows, e)
			}
		}
		tree := parse(tb, rows...)
		c.trees = append(c.trees, tree)
		c.plans = append(c.plans, planOf(tree, r, 0.7))
	}
	return c
}

func (c *contents) get(_ context.Context, w Wanted) ([]byte, error) {
	return c.bytes[w.Chunk.ID], nil
}

// encode returns the image with its hot blob.
func (c *contents) encode(tb testing.TB) (img image, hot []byte) {
	tb.Helper()
	var o Order
	for i, t := range c.trees {
		o.Add(i, t, c.plans[i])
	}
	img = image{trees: c.trees, wanted: o.Wanted()}
	var out bytes.Buffer
	var err error
	if img.frames, err = WriteHot(tb.Context(), &out, img.wanted, c.get); err != nil {
		tb.Fatal(err)
	}
	e := NewEncoder(img.wanted, img.frames)
	for _, t := range c.trees {
		if err := e.Add(t); err != nil {
			tb.Fatal(err)
		}
	}
	if img.blob, img.root, err = e.Blob(); err != nil {
		tb.Fatal(err)
	}
	return img, out.Bytes()
}

func TestHotBlobIsReadFromAnyFrame(t *testing.T) {
	c := newContents(t)
	img, blob := c.encode(t)
	root, err := ParseRoot(img.blob[:img.root])
	if err != nil {
		t.Fatal(err)
	}
	frames := root.Hot().Frames()
	if len(frames) < 3 || root.Hot().Size() != int64(len(blob)) {
		t.Fatalf("%d frames in %d bytes, which says %d", len(frames), len(blob), root.Hot().Size())
	}
	o, err := NewOpener()
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	for i, f := range slices.Backward(frames) { // last first: none needs another
		raw, err := o.Open(f, blob[f.Offset:f.Offset+f.Size])
		if err != nil {
			t.Fatal(err)
		}
		for _, run := range f.Chunks {
			for n := range run.Count {
				k := c.trees[run.Layer].Chunk(run.First + n)
				if err := k.ID.Verify(raw[:k.Size]); err != nil {
					t.Fatal(err)
				}
				raw = raw[k.Size:]
			}
		}
		if len(raw) > 0 {
			t.Fatalf("frame %d has %d bytes too many", i, len(raw))
		}
	}
}

func TestFramesThatLieAreRefused(t *testing.T) {
	c := newContents(t)
	img, blob := c.encode(t)
	root, err := ParseRoot(img.blob[:img.root])
	if err != nil {
		t.Fatal(err)
	}
	f := root.Hot().Frames()[0]
	packed := blob[f.Offset : f.Offset+f.Size]
	o, err := NewOpener()
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	longer, shorter := f, f
	longer.Raw++
	shorter.Raw--
	for name, open := range map[string]func() ([]byte, error){
		"cut short":  func() ([]byte, error) { return o.Open(f, packed[:len(packed)-1]) },
		"too long":   func() ([]byte, error) { return o.Open(longer, packed) },
		"too short":  func() ([]byte, error) { return o.Open(shorter, packed) },
		"no frame":   func() ([]byte, error) { return o.Open(f, make([]byte, len(packed))) },
		"the second": func() ([]byte, error) { return o.Open(f, blob[f.Size:2*f.Size]) },
	} {
		if _, err := open(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestOtherContentIsNotPacked(t *testing.T) {
	c := newContents(t)
	for id, p := range c.bytes {
		c.bytes[id] = append([]byte{1}, p[1:]...)
	}
	var o Order
	o.Add(0, c.trees[0], c.plans[0])
	if _, err := WriteHot(t.Context(), &bytes.Buffer{}, o.Wanted(), c.get); !errors.Is(err, chunk.ErrMismatch) {
		t.Errorf("content that is none of the image's: %v", err)
	}
}

// The golden files hold the formats still. They change with Format and never to
// make this test pass: what is published in the old one stays published. A new
// version of the compressor that writes other bytes is a new Format, too.
func TestGolden(t *testing.T) {
	img, hot := newContents(t).encode(t)
	names := odd(t)
	trees := []*toc.Tree{names["types"], names["attributes"], names["hardlinks"], names["groups"], names["pieces"], names["replaced"]}
	plans := make([]trace.Plan, len(trees))
	r := rand.New(rand.NewPCG(5, 5))
	for i, tree := range trees {
		plans[i] = planOf(tree, r, 0.5)
	}
	for name, got := range map[string][]byte{"content.toc": img.blob, "content.hot": hot, "odd.toc": encode(t, trees, plans).blob} {
		path := "testdata/v1/" + name
		if name == "content.hot" { // the digest says as much as 300 kB
			got = []byte(BlobOf(got).Digest + "\n")
		}
		if os.Getenv("AIRSTREAM_NEW_GOLDEN") != "" {
			if err := os.MkdirAll("testdata/v1", 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s is written in other bytes than version %d wrote", name, Format)
		}
	}
	// What the first version wrote is read for ever.
	raw, err := os.ReadFile("testdata/v1/odd.toc")
	if err != nil {
		t.Fatal(err)
	}
	old := encode(t, trees, plans)
	old.blob = raw
	check(t, old, r)
}
