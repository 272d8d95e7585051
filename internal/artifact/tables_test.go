package artifact

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/airstream-io/airstream/internal/chunk"
	"github.com/airstream-io/airstream/internal/toc"
	"github.com/airstream-io/airstream/internal/trace"
)

// row is an entry of a table of contents, as eStargz has it.
type row struct {
	Name        string            `json:"name"`
	Type        string            `json:"type"`
	Size        int64             `json:"size,omitempty"`
	ModTime     string            `json:"modtime,omitempty"`
	LinkName    string            `json:"linkName,omitempty"`
	Mode        int64             `json:"mode,omitempty"`
	UID         int64             `json:"uid,omitempty"`
	GID         int64             `json:"gid,omitempty"`
	Offset      int64             `json:"offset,omitempty"`
	InnerOffset int64             `json:"innerOffset,omitempty"`
	DevMajor    int64             `json:"devMajor,omitempty"`
	DevMinor    int64             `json:"devMinor,omitempty"`
	Xattrs      map[string][]byte `json:"xattrs,omitempty"`
	ChunkOffset int64             `json:"chunkOffset,omitempty"`
	ChunkSize   int64             `json:"chunkSize,omitempty"`
	ChunkDigest string            `json:"chunkDigest,omitempty"`
	RawName     []byte            `json:"rawName,omitempty"`
}

// payload is where the tables of these tests are said to begin in their blobs.
const payload = int64(1) << 40

func parse(tb testing.TB, rows ...row) *toc.Tree {
	tb.Helper()
	b, err := json.Marshal(map[string]any{"version": 1, "entries": append([]row{}, rows...)})
	if err != nil {
		tb.Fatal(err)
	}
	tree, err := toc.Parse(bytes.NewReader(b), payload)
	if err != nil {
		tb.Fatal(err)
	}
	return tree
}

func id(s string) string { return chunk.Sum([]byte(s)).String() }

// file is a file of one chunk, and another for each that follows.
func file(name string, offset int64, sizes ...int64) []row {
	r := row{Name: name, Type: "reg", Mode: 0o644, ModTime: "2024-02-29T12:00:00Z", Offset: offset}
	for _, s := range sizes {
		r.Size += s
	}
	if len(sizes) == 0 {
		return []row{r}
	}
	r.ChunkSize, r.ChunkDigest = sizes[0], id(name)
	rows := []row{r}
	at := sizes[0]
	for i, s := range sizes[1:] {
		offset += 100
		rows = append(rows, row{Name: name, Type: "chunk", Offset: offset, ChunkOffset: at, ChunkSize: s, ChunkDigest: id(fmt.Sprint(name, i))})
		at += s
	}
	return rows
}

func inside(offset, inner int64, rows []row) []row {
	rows[0].Offset, rows[0].InnerOffset = offset, inner
	return rows
}

func join(parts ...[]row) (all []row) {
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

// odd are tables with what a compact form could get wrong.
func odd(tb testing.TB) map[string]*toc.Tree {
	tb.Helper()
	return map[string]*toc.Tree{
		"empty":    parse(tb),
		"one file": parse(tb, file("a", 10, 5)...),
		"root":     parse(tb, row{Name: "./", Type: "dir", Mode: 0o700, UID: 7, GID: 8, ModTime: "2001-01-01T00:00:00.123456789Z"}),
		"types": parse(tb, join([]row{
			{Name: "dev/null", Type: "char", Mode: 0o666, DevMajor: 1, DevMinor: 3},
			{Name: "dev/disk", Type: "block", Mode: 0o660, DevMajor: 259, DevMinor: 70000},
			{Name: "pipe", Type: "fifo", Mode: 0o600},
			{Name: "link", Type: "symlink", Mode: 0o777, LinkName: "pipe"},
			{Name: "lost/.wh.found", Type: "reg"},
			{Name: "etc", Type: "dir", Mode: 0o1777},
			{Name: "etc/.wh..wh..opq", Type: "reg"},
		}, file("none", 1))...),
		"attributes": parse(tb,
			row{Name: "a", Type: "dir", Mode: 0o755, Xattrs: map[string][]byte{"user.b": []byte("2"), "user.a": {0, 1}, "trusted.x": []byte("no")}},
			row{Name: "b", Type: "fifo", UID: 70000, GID: 80000, Mode: 0o4755, ModTime: "2024-02-29T12:00:00.5Z", Xattrs: map[string][]byte{"security.capability": bytes.Repeat([]byte{7}, 20)}},
			row{Name: "c", Type: "fifo", ModTime: "1969-01-01T00:00:00Z"}),
		"hardlinks": parse(tb, join(
			[]row{{Name: "early", Type: "hardlink", LinkName: "z/late"}},
			file("a/x", 10, 9),
			[]row{{Name: "b/y", Type: "hardlink", LinkName: "a/x", Mode: 0o600, ModTime: "2020-01-01T00:00:00Z"}, {Name: "b/x", Type: "hardlink", LinkName: "a/x"}},
			[]row{{Name: "a", Type: "fifo"}}, // the first name is gone with its directory
			file("z/late", 20, 3),
		)...),
		"replaced": parse(tb, join(file("a", 10, 9), file("b", 30, 9, 9, 2), file("a", 500, 4), file("c", 700, 1), file("b", 800), file("d", 900, 8))...),
		"pieces":   parse(tb, join(file("a", 10, 100, 100, 50), file("b", 1000, 70, 100, 3, 100), file("c", 2000, 250), file("d", 3000, 100, 100))...),
		"groups":   parse(tb, join(inside(10, 512, file("a", 0, 100)), inside(10, 2048, file("b", 0, 100)), inside(10, 4096, file("c", 0, 9)), inside(99, 0, file("d", 0, 100)), inside(99, 700, file("e", 0, 100)))...),
		"names":    parse(tb, join(file("ab", 1, 1), file("abc", 2, 1), file("a", 3, 1), file("dir/deeper/deepest/file", 4, 1), file("dir/b", 5, 1), file(strings.Repeat("n", 255), 6, 1), []row{{Name: `odd\xff`, RawName: []byte("odd\xff"), Type: "fifo"}})...),
		"far":      parse(tb, join(file("a", 1<<39, 1), file("b", 1<<40-1, 16<<20))...),
	}
}

// random is a table as a stranger might write one.
func random(tb testing.TB, r *rand.Rand) *toc.Tree {
	tb.Helper()
	var rows []row
	dirs := []string{""}
	var names []string
	kinds := map[string]string{"": "dir"}
	offset, inner := int64(r.IntN(3)), int64(0)
	for range r.IntN(60) {
		base := fmt.Sprintf("%s%c%d", strings.Repeat("n", r.IntN(3)), 'a'+rune(r.IntN(3)), r.IntN(4))
		name := dirs[r.IntN(len(dirs))] + base
		e := row{Name: name, Mode: int64(r.IntN(8)) << 6, UID: int64(r.IntN(2)), ModTime: fmt.Sprintf("20%02d-01-01T00:00:00Z", r.IntN(5))}
		if r.IntN(10) == 0 {
			e.Xattrs = map[string][]byte{"user.x": {byte(r.IntN(2))}}
		}
		switch k := r.IntN(10); {
		case k < 2:
			if kinds[name] != "" && kinds[name] != "dir" {
				continue
			}
			e.Type = "dir"
			dirs = append(dirs, name+"/")
		case k == 2:
			e.Type, e.LinkName = "symlink", "over/there"
		case k == 3 && len(names) > 0:
			e.Type, e.LinkName = "hardlink", names[r.IntN(len(names))]
			if kinds[name] != "" || kinds[e.LinkName] != "reg" {
				continue
			}
		default:
			if kinds[name] == "dir" {
				continue
			}
			e.Type = "reg"
			rest := 0
			for range r.IntN(5) {
				if rest++; rest == 1 {
					names = append(names, name)
				}
				c := row{Name: name, Type: "chunk", ChunkOffset: e.Size, ChunkSize: 1 + r.Int64N(3)*50, ChunkDigest: id(fmt.Sprint(r.Uint64()))}
				if r.IntN(3) > 0 || len(rows) == 0 {
					offset, inner = offset+1+r.Int64N(100), r.Int64N(2)*r.Int64N(600)
				}
				c.Offset, c.InnerOffset = offset, inner
				inner += c.ChunkSize + r.Int64N(2)*512
				e.Size += c.ChunkSize
				rows = append(rows, c)
			}
			if rest > 0 {
				first := len(rows) - rest
				c := rows[first]
				e.Offset, e.InnerOffset, e.ChunkSize, e.ChunkDigest = c.Offset, c.InnerOffset, c.ChunkSize, c.ChunkDigest
				rows[first] = e
				kinds[name] = "reg"
				continue
			}
		}
		kinds[name] = e.Type
		rows = append(rows, e)
	}
	b, err := json.Marshal(map[string]any{"version": 1, "entries": append([]row{}, rows...)})
	if err != nil {
		tb.Fatal(err)
	}
	tree, err := toc.Parse(bytes.NewReader(b), payload)
	if err != nil {
		return parse(tb) // a contradiction, and not what is asked about
	}
	return tree
}

// planOf names some of a tree's members.
func planOf(tree *toc.Tree, r *rand.Rand, part float64) (p trace.Plan) {
	for m := range uint32(tree.NumMembers()) {
		if r.Float64() < part {
			x := tree.Member(m)
			p = append(p, trace.Run{Rank: r.Uint32N(5), Offset: x.Offset, Size: x.End - x.Offset})
		}
	}
	return p
}

// image is an encoded image.
type image struct {
	trees  []*toc.Tree
	wanted []Wanted
	frames []uint32
	blob   []byte
	root   int
}

// encode encodes trees, of which the plans are hot; without content, for these
// tables have none.
func encode(tb testing.TB, trees []*toc.Tree, plans []trace.Plan) image {
	tb.Helper()
	var o Order
	for i, t := range trees {
		o.Add(i, t, plans[i])
	}
	img := image{trees: trees, wanted: o.Wanted()}
	for rest := img.wanted; len(rest) > 0; {
		n := inFrame(len(rest), FrameSize, func(i int) uint32 { return rest[i].Chunk.Size })
		img.frames = append(img.frames, 1+uint32(len(rest)))
		rest = rest[n:]
	}
	for i := range img.frames {
		img.frames[i] = min(img.frames[i], 64)
	}
	e := NewEncoder(img.wanted, img.frames)
	for _, t := range trees {
		if err := e.Add(t); err != nil {
			tb.Fatal(err)
		}
	}
	var err error
	if img.blob, img.root, err = e.Blob(); err != nil {
		tb.Fatal(err)
	}
	if len(img.blob) > math.MaxInt32 {
		tb.Fatal("unreasonable")
	}
	return img
}
