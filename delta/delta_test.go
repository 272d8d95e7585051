package delta

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/airstream-io/airstream/internal/chunk"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type memory struct{ *bytes.Reader }

func (memory) Close() error { return nil }

// file returns a file with the content.
func file(path string, content []byte) File {
	f := File{Path: path, Size: int64(len(content))}
	for c := range slices.Chunk(content, chunk.DefaultSize) {
		f.Chunks = append(f.Chunks, chunk.Sum(c))
	}
	f.Open = func(context.Context) (Content, error) { return memory{bytes.NewReader(content)}, nil }
	return f
}

// collector is a sink that keeps everything.
type collector struct {
	files map[int][]byte
	sizes map[int]int64
	now   int
	ended int
}

func (c *collector) Begin(index int, size int64) error {
	c.files[index], c.sizes[index], c.now = []byte{}, size, index
	return nil
}

func (c *collector) Chunk(id chunk.ID, p []byte) error {
	c.files[c.now] = append(c.files[c.now], p...)
	return id.Verify(p)
}

func (c *collector) End() error {
	c.ended++
	if int64(len(c.files[c.now])) != c.sizes[c.now] {
		return fmt.Errorf("file %d ended with %d bytes of %d", c.now, len(c.files[c.now]), c.sizes[c.now])
	}
	return nil
}

func apply(tb testing.TB, coded []byte, have []Set, expect func(int) ([]chunk.ID, error)) (*collector, error) {
	tb.Helper()
	c := &collector{files: map[int][]byte{}, sizes: map[int]int64{}}
	_, err := Apply(tb.Context(), bytes.NewReader(coded), Receiver{
		Set: func(_ context.Context, name string) (Set, error) {
			for _, s := range have {
				if s.Name == name {
					return s, nil
				}
			}
			return Set{}, errors.New("it is not here")
		},
		Expect: expect,
		Sink:   c,
		Memory: 256 << 20,
		Bytes:  1 << 30,
	})
	return c, err
}

func encode(tb testing.TB, have []Set, want []File, o Options) ([]byte, Stats) {
	tb.Helper()
	var out bytes.Buffer
	stats, err := Encode(tb.Context(), have, want, o, &out)
	if err != nil {
		tb.Fatal(err)
	}
	if stats.Written != int64(out.Len()) {
		tb.Errorf("%d bytes written, %d reported", out.Len(), stats.Written)
	}
	return out.Bytes(), stats
}

// roundTrip checks that the receiver gets what it lacks of want, and nothing else.
func roundTrip(tb testing.TB, have []Set, want []File, contents [][]byte, o Options) ([]byte, Stats) {
	tb.Helper()
	coded, stats := encode(tb, have, want, o)
	got, err := apply(tb, coded, have, func(i int) ([]chunk.ID, error) { return want[i].Chunks, nil })
	if err != nil {
		tb.Fatal(err)
	}
	if len(got.files) != stats.Files || got.ended != stats.Files {
		tb.Errorf("%d files, %d ended, %d expected", len(got.files), got.ended, stats.Files)
	}
	for i, p := range got.files {
		if !bytes.Equal(p, contents[i]) {
			tb.Errorf("%s is not what it was (%d bytes, %d expected)", want[i].Path, len(p), len(contents[i]))
		}
	}
	return coded, stats
}

func random(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, seed))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// edit returns a copy of p with a byte changed every so often.
func edit(p []byte, every int) []byte {
	p = bytes.Clone(p)
	for i := every / 2; i < len(p); i += every {
		p[i] += 3
	}
	return p
}

// pair is what most tests use: a receiver's sets, and what it wants.
func pair() (have []Set, want []File, contents [][]byte) {
	lib, data, text := random(1, 300_000), random(2, 70_000), []byte(strings.Repeat("some text, which is here more than once\n", 500))
	have = []Set{
		{Name: "lower", Files: []File{file("usr/lib/libx.so.1.2.3", lib), file("etc/empty", nil), file("usr/share/text", text)}},
		{Name: "upper", Files: []File{file("data/old", data), file("zeros", make([]byte, 200_000))}},
	}
	contents = [][]byte{
		edit(lib, 500),
		nil,
		text, // unchanged
		append(append(bytes.Clone(data[:30_000]), random(3, 1000)...), data[20_000:]...),
		make([]byte, 300_000),
		random(4, 65536),
		slices.Concat(lib[1000:90_000], data[5000:60_000], []byte("and a tail")), // of two bases
		text[:100],
		random(4, 65536), // the same as another
	}
	for i, name := range []string{"usr/lib/libx.so.1.2.4", "etc/empty2", "usr/share/text", "data/moved/elsewhere", "zeros", "random", "opt/both", "usr/share/text2", "random2"} {
		want = append(want, file(name, contents[i]))
	}
	return have, want, contents
}

func TestTheReceiverGetsWhatItLacks(t *testing.T) {
	have, want, contents := pair()
	coded, stats := roundTrip(t, have, want, contents, Options{})
	if stats.Same != 3 || stats.Files != 6 {
		t.Errorf("%d files the same, %d coded, want 3 and 6", stats.Same, stats.Files)
	}
	if limit := 65536 + 1000 + 6000; len(coded) > limit {
		t.Errorf("%d bytes, want at most %d", len(coded), limit)
	}
	if slow, _ := roundTrip(t, have, want, contents, Options{Profile: Slow}); len(slow) > len(coded)+500 {
		t.Errorf("%d bytes, slowly %d", len(coded), len(slow))
	}
	if fast, _ := roundTrip(t, have, want, contents, Options{Profile: Fast}); len(fast) > len(coded)+2000 {
		t.Errorf("%d bytes, fast %d", len(coded), len(fast))
	}
	roundTrip(t, nil, want, contents, Options{})
	roundTrip(t, have, nil, nil, Options{})
	roundTrip(t, nil, nil, nil, Options{})
}

func TestNothingNewCostsNearlyNothing(t *testing.T) {
	have, _, _ := pair()
	coded, _ := roundTrip(t, have, have[0].Files, nil, Options{})
	if len(coded) > 80 {
		t.Errorf("%d bytes", len(coded))
	}
}

func TestChunkIDsCrossIfAskedFor(t *testing.T) {
	have, want, contents := pair()
	coded, _ := encode(t, have, want, Options{IDs: true})
	got, err := apply(t, coded, have, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range got.files {
		if !bytes.Equal(p, contents[i]) {
			t.Errorf("%s differs", want[i].Path)
		}
	}
}

func TestAWrongBaseIsNamed(t *testing.T) {
	have, want, _ := pair()
	coded, _ := encode(t, have, want, Options{})
	other, _, _ := pair()
	other[0].Files[0] = file("usr/lib/libx.so.1.2.3", random(9, 300_000))
	if _, err := apply(t, coded, other, nil); !errors.Is(err, ErrBase) || !strings.Contains(err.Error(), "libx.so.1.2.3") {
		t.Errorf("other content: %v", err)
	}
	if _, err := apply(t, coded, have[:1], nil); !errors.Is(err, ErrBase) || !strings.Contains(err.Error(), "upper") {
		t.Errorf("a set is missing: %v", err)
	}
	other, _, _ = pair()
	other[1].Files = other[1].Files[:1]
	if _, err := apply(t, coded, other, nil); !errors.Is(err, ErrBase) || !strings.Contains(err.Error(), "upper") {
		t.Errorf("a file is missing: %v", err)
	}
	// The table says what was expected, but the content is another's.
	other, _, _ = pair()
	other[0].Files[0].Open = file("", random(9, 300_000)).Open
	if _, err := apply(t, coded, other, func(i int) ([]chunk.ID, error) { return want[i].Chunks, nil }); !errors.Is(err, chunk.ErrMismatch) {
		t.Errorf("content that isn't what its IDs say: %v", err)
	}
	if _, err := apply(t, coded, other, nil); !errors.Is(err, chunk.ErrMismatch) && !errors.Is(err, ErrFormat) {
		t.Errorf("the same without expectation: %v", err)
	}
}

func TestDamageIsAnError(t *testing.T) {
	have, want, _ := pair()
	coded, _ := encode(t, have, want, Options{})
	for n := 0; n < len(coded); n += 1 + n/8 {
		if _, err := apply(t, coded[:n], have, nil); !errors.Is(err, ErrFormat) {
			t.Errorf("cut at %d of %d: %v", n, len(coded), err)
		}
	}
	if _, err := apply(t, append(bytes.Clone(coded), 0), have, nil); !errors.Is(err, ErrFormat) {
		t.Errorf("a byte behind the end: %v", err)
	}
	r := rand.New(rand.NewPCG(5, 5))
	for range 60 {
		bad := bytes.Clone(coded)
		at := r.IntN(len(bad))
		bad[at] ^= byte(1 + r.IntN(255))
		_, err := apply(t, bad, have, nil)
		if err == nil {
			t.Errorf("byte %d of %d changed, and nobody noticed", at, len(coded))
		}
	}
}

func TestLimitsAreKept(t *testing.T) {
	have, want, _ := pair()
	coded, _ := encode(t, have, want, Options{})
	for _, r := range []Receiver{{Memory: 1 << 20}, {Bytes: 1000}} {
		if _, err := Apply(t.Context(), bytes.NewReader(coded), r); !errors.Is(err, ErrTooLarge) {
			t.Errorf("%+v: %v", r, err)
		}
	}
	if _, err := Encode(t.Context(), nil, []File{{Path: "odd", Size: 5}}, Options{}, new(bytes.Buffer)); err == nil || !strings.Contains(err.Error(), "odd") {
		t.Errorf("a file without chunks: %v", err)
	}
}

func TestTheSameDeltaEveryTime(t *testing.T) {
	have, want, _ := pair()
	a, _ := encode(t, have, want, Options{})
	b, _ := encode(t, have, want, Options{})
	if !bytes.Equal(a, b) {
		t.Error("two deltas between the same differ")
	}
}

func TestReadHeader(t *testing.T) {
	have, want, _ := pair()
	coded, stats := encode(t, have, want, Options{})
	h, err := ReadHeader(bytes.NewReader(coded))
	if err != nil {
		t.Fatal(err)
	}
	if h.Files != stats.Files || h.Bytes != stats.Bytes || h.Wanted != len(want) || len(h.Sets) != 2 || h.Sets[1] != (SetName{"upper", 2}) {
		t.Errorf("%+v", h)
	}
}

func TestAFileThatCannotBeReadIsNamed(t *testing.T) {
	gone := errors.New("gone")
	fails := func(context.Context) (Content, error) { return nil, gone }
	have, want, _ := pair()
	want[0].Open = fails
	if _, err := Encode(t.Context(), have, want, Options{}, new(bytes.Buffer)); !errors.Is(err, gone) || !strings.Contains(err.Error(), want[0].Path) {
		t.Errorf("a wanted file: %v", err)
	}
	have, want, _ = pair()
	coded, _ := encode(t, have, want, Options{})
	have[0].Files[0].Open = fails
	if _, err := Encode(t.Context(), have, want, Options{}, new(bytes.Buffer)); !errors.Is(err, gone) || !strings.Contains(err.Error(), have[0].Files[0].Path) {
		t.Errorf("a base: %v", err)
	}
	if _, err := apply(t, coded, have, nil); !errors.Is(err, gone) || !errors.Is(err, ErrBase) || !strings.Contains(err.Error(), have[0].Files[0].Path) {
		t.Errorf("a base of the receiver: %v", err)
	}
}

func TestEncodeStopsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	have, want, _ := pair()
	if _, err := Encode(ctx, have, want, Options{}, new(bytes.Buffer)); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestManySmallFiles(t *testing.T) {
	var have Set
	var want []File
	var contents [][]byte
	for i := range 2000 {
		old := random(uint64(i), i%700)
		fresh := append(bytes.Clone(old), "and more"...)
		name := fmt.Sprintf("node_modules/p%d/index.js", i)
		have.Files = append(have.Files, file(name, old))
		want = append(want, file(name, fresh))
		contents = append(contents, fresh)
	}
	coded, _ := roundTrip(t, []Set{have}, want, contents, Options{})
	if len(coded) > 2000*10 {
		t.Errorf("%d bytes for %d files", len(coded), len(want))
	}
}

func FuzzApply(f *testing.F) {
	have, want, _ := pair()
	coded, _ := encode(f, have, want, Options{})
	f.Add(coded)
	small := []Set{{Name: "s", Files: []File{file("a", []byte("some old content, of some length, to be changed"))}}}
	coded, _ = encode(f, small, []File{file("a", []byte("some new content, of some length, to be changed"))}, Options{IDs: true})
	f.Add(coded)
	programs := []Set{{Name: "p", Files: []File{file("tool", program(40, nil))}}}
	coded, _ = encode(f, programs, []File{file("tool", program(40, map[int]int{7: 12}))}, Options{})
	f.Add(coded)
	f.Fuzz(func(t *testing.T, p []byte) {
		for _, h := range [][]Set{have, small, programs} {
			if got, err := apply(t, p, h, nil); err == nil {
				for i, p := range got.files {
					if got.sizes[i] != int64(len(p)) {
						t.Errorf("file %d: %d bytes of %d", i, len(p), got.sizes[i])
					}
				}
			}
		}
	})
}
