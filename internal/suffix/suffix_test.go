package suffix

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// check reports whether sa lists all suffixes of text in order.
func check(text []byte, sa []int32) error {
	seen := make([]bool, len(text))
	for i, s := range sa {
		if seen[s] {
			return fmt.Errorf("suffix %d is there twice", s)
		}
		seen[s] = true
		if i > 0 && bytes.Compare(text[sa[i-1]:], text[s:]) >= 0 {
			return fmt.Errorf("rank %d: suffix %d does not follow %d", i, s, sa[i-1])
		}
	}
	return nil
}

func texts() [][]byte {
	r := rand.New(rand.NewPCG(1, 2))
	all := [][]byte{nil, {0}, {255}, {1, 0}, {0, 1}, {0, 0}, []byte("banana"), []byte("mississippi"), bytes.Repeat([]byte{0}, 3000), bytes.Repeat([]byte("ab"), 2000), []byte(strings.Repeat("abcabcabd", 300))}
	for _, alphabet := range []int{1, 2, 3, 4, 26, 256} {
		for range 60 {
			b := make([]byte, r.IntN(400))
			for i := range b {
				b[i] = byte(r.IntN(alphabet))
			}
			all = append(all, b)
		}
	}
	// A text in which substrings return, so that the recursion goes deep.
	a, b := []byte("a"), []byte("ab")
	for len(b) < 20000 {
		a, b = b, append(bytes.Clone(b), a...)
	}
	return append(all, b)
}

func TestArrayIsInOrder(t *testing.T) {
	for _, text := range texts() {
		sa, err := Array(text)
		if err != nil {
			t.Fatal(err)
		}
		if len(sa) != len(text) {
			t.Fatalf("%d suffixes of %d", len(sa), len(text))
		}
		if err := check(text, sa); err != nil {
			t.Fatalf("%.40q (%d bytes): %v", text, len(text), err)
		}
	}
}

func TestLongestFindsTheLongest(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for _, size := range []int{1, 50, 3000, 70 << 10} {
		text := make([]byte, size)
		for i := range text {
			text[i] = byte(r.IntN(3))
		}
		x, err := New(text)
		if err != nil {
			t.Fatal(err)
		}
		for range 200 {
			p := make([]byte, 1+r.IntN(40))
			for i := range p {
				p[i] = byte(r.IntN(3))
			}
			want := 0
			for i := range text {
				want = max(want, Common(p, text[i:]))
			}
			at, got := x.Longest(p, r.IntN(size), 1<<20)
			if want < x.width {
				want = got // too short to be looked for
			}
			if got != want || got > 0 && Common(p, text[at:]) != got {
				t.Fatalf("%d bytes of text: %d at %d, want %d", size, got, at, want)
			}
		}
	}
}

func TestResetForgetsTheTextBefore(t *testing.T) {
	x, err := New([]byte("the text before, which is longer"))
	if err != nil {
		t.Fatal(err)
	}
	if err := x.Reset([]byte("another text")); err != nil {
		t.Fatal(err)
	}
	if at, n := x.Longest([]byte("text before"), 0, 100); at != 8 || n != 4 {
		t.Errorf("%d bytes at %d", n, at)
	}
}

func TestLongestPrefersTheNearest(t *testing.T) {
	text := []byte("-needle-----needle-----needle--")
	x, err := New(text)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []int{1, 12, 23} {
		if at, n := x.Longest([]byte("needle!"), want, 100); at != want || n != 6 {
			t.Errorf("near %d: %d bytes at %d", want, n, at)
		}
	}
	if _, n := x.Longest([]byte("needle!"), 0, 3); n != 3 {
		t.Errorf("%d bytes compared, 3 were allowed", n)
	}
}

func FuzzArray(f *testing.F) {
	f.Add([]byte("mississippi"))
	f.Add(bytes.Repeat([]byte("ab\x00"), 50))
	f.Fuzz(func(t *testing.T, text []byte) {
		sa, err := Array(text)
		if err != nil {
			t.Fatal(err)
		}
		if err := check(text, sa); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	})
}

func BenchmarkArray(b *testing.B) {
	r := rand.New(rand.NewPCG(5, 6))
	const size = 8 << 20
	var text []byte
	for len(text) < size { // text that repeats itself as programs do
		if len(text) > 1000 && r.IntN(3) > 0 {
			from := r.IntN(len(text) - 100)
			text = append(text, text[from:from+8+r.IntN(90)]...)
			continue
		}
		text = append(text, byte(r.IntN(256)))
	}
	text = text[:size]
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		if _, err := Array(text); err != nil {
			b.Fatal(err)
		}
	}
}
