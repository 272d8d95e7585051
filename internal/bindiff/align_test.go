package bindiff

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"testing"
)

func random(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// align checks that the segments are in order and within bounds, and returns
// them with how many bytes they get right.
func align(tb testing.TB, old, fresh []byte, hint int) (segments []Segment, right int) {
	tb.Helper()
	o, err := NewOld(old)
	if err != nil {
		tb.Fatal(err)
	}
	check(tb, NewOldSampled(old), old, fresh, hint)
	return check(tb, o, old, fresh, hint)
}

func check(tb testing.TB, o *Old, old, fresh []byte, hint int) (segments []Segment, right int) {
	tb.Helper()
	segments, err := o.Align(tb.Context(), fresh, hint)
	if err != nil {
		tb.Fatal(err)
	}
	end := 0
	for _, s := range segments {
		if s.New < end || s.Len <= 0 || s.Old < 0 || s.end() > len(fresh) || s.Old+s.Len > len(old) {
			tb.Fatalf("%+v behind %d, with %d bytes of old and %d of new", s, end, len(old), len(fresh))
		}
		end = s.end()
		for i := range s.Len {
			if old[s.Old+i] == fresh[s.New+i] {
				right++
			}
		}
	}
	return segments, right
}

func TestEqualContentIsOneSegment(t *testing.T) {
	old := random(rand.New(rand.NewPCG(1, 1)), 100_000)
	s, right := align(t, old, old, 0)
	if len(s) != 1 || right != len(old) {
		t.Errorf("%v, %d bytes right", s, right)
	}
}

func TestScatteredChangesStayInOneSegment(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 2))
	old := random(r, 100_000)
	fresh := bytes.Clone(old)
	for i := 20; i < len(fresh); i += 25 {
		fresh[i]++
	}
	if s, _ := align(t, old, fresh, 0); len(s) != 1 || s[0] != (Segment{Len: len(old)}) {
		t.Errorf("%d segments, the first %+v", len(s), s[0])
	}
}

func TestMovedAndInsertedContentIsFound(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	a, b, c, other := random(r, 5000), random(r, 7000), random(r, 3000), random(r, 500)
	old := bytes.Join([][]byte{a, b, c}, nil)
	fresh := bytes.Join([][]byte{c, other, a, b[:3000], b[3100:]}, nil)
	s, right := align(t, old, fresh, 0)
	if want := len(fresh) - len(other); right < want {
		t.Errorf("%d bytes right of %d", right, want)
	}
	if len(s) > 5 {
		t.Errorf("%d segments: %v", len(s), s)
	}
}

func TestSamplesFindLongMatches(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 4))
	a, b, c := random(r, 5000), random(r, 7000), random(r, 3000)
	old, fresh := bytes.Join([][]byte{a, b, c}, nil), bytes.Join([][]byte{c, a, b[:3000], b[3100:]}, nil)
	if _, right := check(t, NewOldSampled(old), old, fresh, 0); right < len(fresh)-100 {
		t.Errorf("%d bytes right of %d", right, len(fresh))
	}
}

func TestLongRunsTakeNoTime(t *testing.T) {
	zeros := make([]byte, 1<<20)
	old := append(bytes.Clone(zeros), 1)
	fresh := append(append(bytes.Clone(zeros[:700_000]), 2, 3, 4), zeros...)
	if _, right := align(t, old, fresh, 0); right < len(fresh)-100 {
		t.Errorf("%d bytes right of %d", right, len(fresh))
	}
}

func TestNothingToAlign(t *testing.T) {
	for _, c := range [][2][]byte{{nil, nil}, {nil, []byte("new")}, {[]byte("old"), nil}, {[]byte("a"), []byte("b")}} {
		if s, _ := align(t, c[0], c[1], 0); len(s) != 0 {
			t.Errorf("%q, %q: %v", c[0], c[1], s)
		}
	}
}

func TestAlignStopsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	o, err := NewOld([]byte("old content"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := o.Align(ctx, make([]byte, 100), 0); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func FuzzAlign(f *testing.F) {
	f.Add([]byte("the old content, which is a little longer"), []byte("the new content, which is a little longer"), 0)
	f.Add(bytes.Repeat([]byte("ab"), 100), bytes.Repeat([]byte("abc"), 70), 50)
	f.Fuzz(func(t *testing.T, old, fresh []byte, hint int) {
		align(t, old, fresh, hint%(len(old)+1))
	})
}
