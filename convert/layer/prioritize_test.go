package layer_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"

	"github.com/airstream-io/airstream/convert/layer"
	"github.com/airstream-io/airstream/internal/chunk"
)

// namesIn returns the names in a converted layer's tar, in order.
func namesIn(t *testing.T, blob []byte) (names []string) {
	t.Helper()
	tr := tar.NewReader(bytes.NewReader(gunzip(t, blob)))
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return names
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
	}
}

func TestPrioritizedFilesComeFirst(t *testing.T) {
	opaque := regular("v/.wh..wh..opq", "")
	global := file{tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "pax_global_header", PAXRecords: map[string]string{"comment": "x"}}, nil}
	for name, test := range map[string]struct {
		files []file
		list  []string
		want  string // the names up to the landmark; "" if nothing is moved
	}{
		"in the list's order":               {[]file{regular("a", "a"), regular("b", "b"), regular("c", "c")}, []string{"c", "a"}, "c a"},
		"with their directories":            {[]file{dir("./"), dir("u/"), dir("u/l/"), regular("x", "x"), regular("u/l/a", "a"), dir("v/"), regular("v/b", "b"), regular("u/b", "b")}, []string{"u/l/a", "v/b", "u/b"}, "./ u/ u/l/ u/l/a v/ v/b u/b"},
		"directories that nobody lists":     {[]file{regular("x", "x"), regular("u/l/a", "a")}, []string{"u/l/a"}, "u/l/a"},
		"however they are written":          {[]file{regular("x", "x"), regular("./u/a", "a")}, []string{"/u/a"}, "./u/a"},
		"what isn't there":                  {[]file{regular("a", "a")}, []string{"b"}, ""},
		"named twice":                       {[]file{regular("x", "x"), regular("a", "a")}, []string{"a", "a"}, "a"},
		"everything":                        {[]file{regular("a", "a"), regular("b", "b")}, []string{"b", "a"}, "b a"},
		"a hardlink means its file":         {[]file{regular("x", "x"), dir("u"), regular("u/a", "a"), link("b", "u/a")}, []string{"b"}, "u u/a"},
		"nothing but files":                 {[]file{regular("x", "x"), dir("u"), symlink("s", "x")}, []string{"u", "s"}, ""},
		"empty ones, too":                   {[]file{regular("x", "x"), regular("a", "")}, []string{"a"}, "a"},
		"a file that is replaced":           {[]file{regular("x", "x"), regular("a", "a"), regular("a", "b")}, []string{"a"}, ""},
		"a directory that is listed twice":  {[]file{dir("u"), regular("x", "x"), regular("u/a", "a"), dir("u")}, []string{"u/a"}, ""},
		"a whiteout of the file":            {[]file{regular(".wh.a", ""), regular("x", "x"), regular("a", "a")}, []string{"a"}, ""},
		"a whiteout of the directory":       {[]file{regular(".wh.u", ""), dir("u"), regular("x", "x"), regular("u/a", "a")}, []string{"u/a"}, ""},
		"a whiteout itself":                 {[]file{regular("x", "x"), regular(".wh.a", "")}, []string{".wh.a"}, ""},
		"an opaque directory":               {[]file{dir("v"), opaque, regular("x", "x"), regular("v/a", "a")}, []string{"v/a"}, "v v/.wh..wh..opq v/a"},
		"an opaque directory without entry": {[]file{opaque, regular("x", "x"), regular("v/a", "a")}, []string{"v/a"}, ""},
		"a tar that goes through links":     {[]file{dir("u"), symlink("s", "u"), regular("x", "x"), regular("a", "a"), regular("s/b", "b")}, []string{"a"}, ""},
		"a tar with global headers":         {[]file{global, regular("x", "x"), regular("a", "a")}, []string{"a"}, ""},
	} {
		raw := makeTar(t, test.files)
		o := layer.Options{Prioritize: test.list}
		blob, res := convertTar(t, raw, o)
		names := namesIn(t, blob)
		if got := strings.Join(names[:max(slices.Index(names, estargz.PrefetchLandmark), 0)], " "); got != test.want {
			t.Errorf("%s: %v; want %q before the landmark", name, names, test.want)
		}
		if test.want == "" {
			plain, _ := convertTar(t, raw, layer.Options{})
			if !bytes.Equal(plain, blob) || res.Prioritized != 0 || slices.Contains(names, estargz.PrefetchLandmark) {
				t.Errorf("%s: nothing could be moved, and the layer is another: %v", name, names)
			}
		} else if res.Prioritized != len(strings.Fields(test.want)) || slices.Contains(names, estargz.NoPrefetchLandmark) {
			t.Errorf("%s: %d entries, %v", name, res.Prioritized, names)
		}
		if !strings.Contains(name, "whiteout") { // which this model of an unpacker doesn't know
			compareTrees(t, unpack(t, raw), lazyTree(t, blob, res))
			compareTrees(t, unpack(t, raw), unpack(t, gunzip(t, blob)))
		}
		checkBlob(t, blob, res, o)
	}
}

// What is in front of the landmark is what stargz-snapshotter fetches at once:
// all content that was asked for, and no other.
func TestLandmarkIsBehindWhatIsPrioritized(t *testing.T) {
	var files []file
	for i := range 20 {
		files = append(files, regular(fmt.Sprintf("f%d", i), string(text(uint64(i), 150_000))))
	}
	blob, res := convertTar(t, makeTar(t, files), layer.Options{Prioritize: []string{"f7", "f3"}})
	r, table := open(t, blob)
	mark, ok := r.Lookup(estargz.PrefetchLandmark)
	if !ok {
		t.Fatal("no landmark")
	}
	for _, e := range table.Entries {
		if (e.Type == "reg" || e.Type == "chunk") && e.Name != estargz.PrefetchLandmark {
			if first := e.Name == "f7" || e.Name == "f3"; first != (e.Offset < mark.Offset) {
				t.Errorf("%s at %d, landmark at %d", e.Name, e.Offset, mark.Offset)
			}
		}
	}
	checkBlob(t, blob, res, layer.Options{})
}

// Whatever is asked to be first, and however odd the tar is, the tree is that of
// the source, and the chunks are the same.
func TestPrioritizedTreeIsThatOfTheSource(t *testing.T) {
	moved := 0
	n := int(seeds(400))
	for seed := range uint64(n) {
		names := []string{"a", "b", "c", "d/a", "d/b", "d/e/a", "s/a", "d/e/b", "x/y/z", "x/a", "q"}
		if seed%4 != 0 { // without names below the symbolic link
			names = slices.DeleteFunc(names, func(s string) bool { return s == "s/a" })
		}
		raw := randomTarOf(t, seed, names)
		r := rand.New(rand.NewPCG(seed, 3))
		r.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
		o := layer.Options{ChunkSize: 4 << 10, GroupSize: int64(seed%2) << 14, Prioritize: names[:1+r.IntN(len(names))]}
		var out bytes.Buffer
		res, err := layer.Convert(t.Context(), &out, layer.Tar{ReaderAt: bytes.NewReader(raw), Size: int64(len(raw))}, o, pool, layer.ScratchIn(t.TempDir()), nil)
		if errors.Is(err, layer.ErrInvalid) {
			continue // a file where a directory should be
		}
		if err != nil {
			t.Fatal(err)
		}
		if res.Prioritized > 0 {
			moved++
		}
		compareTrees(t, unpack(t, raw), lazyTree(t, out.Bytes(), res))
		compareTrees(t, unpack(t, raw), unpack(t, gunzip(t, out.Bytes())))
		checkBlob(t, out.Bytes(), res, o)
		if t.Failed() {
			t.Fatalf("seed %d, first %v: %v", seed, o.Prioritize, namesIn(t, out.Bytes()))
		}
	}
	if moved < n/4 {
		t.Errorf("something was moved in %d of %d only", moved, n)
	}
}

func TestPrioritizedNastyTar(t *testing.T) {
	raw := makeTar(t, nasty())
	var names []string
	for _, f := range nasty() {
		names = append(names, f.Name)
	}
	slices.Reverse(names)
	o := layer.Options{Prioritize: names}
	blob, res := convertTar(t, raw, o)
	compareTrees(t, unpack(t, raw), lazyTree(t, blob, res))
	compareTrees(t, unpack(t, raw), unpack(t, gunzip(t, blob)))
	checkBlob(t, blob, res, o)
	again, _ := convertTar(t, raw, o)
	if chunk.Sum(again) != res.Digest {
		t.Error("other bytes the second time")
	}
}
