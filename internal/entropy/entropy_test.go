package entropy

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
)

// models is what a stream in these tests is coded with.
type models struct {
	bit    *Bit
	number *Number
	bytes  *Bytes
}

func newModels() models { return models{NewBit(2), NewNumber(2), NewBytes(2, 16, 18)} }

func (m models) code(c *Coder, text []byte, numbers []int64) ([]byte, []int64) {
	var t []byte
	var n []int64
	last, before := byte(0), byte(0)
	for i := range max(len(text), len(numbers)) {
		if i < len(text) {
			b := m.bytes.Code(c, i&1, []uint32{uint32(last), uint32(last)<<8 | uint32(before)}, text[i])
			m.bit.Code(c, i&1, int(b)&1)
			t = append(t, b)
			last, before = b, last
		}
		if i < len(numbers) {
			n = append(n, m.number.Signed(c, i&1, numbers[i]))
		}
	}
	return t, n
}

func roundTrip(tb testing.TB, text []byte, numbers []int64) (coded int) {
	tb.Helper()
	var out bytes.Buffer
	e := NewEncoder(&out)
	newModels().code(e, text, numbers)
	if err := e.Close(); err != nil {
		tb.Fatal(err)
	}
	in := bytes.NewReader(out.Bytes())
	d := NewDecoder(in)
	gotText, gotNumbers := newModels().code(d, make([]byte, len(text)), make([]int64, len(numbers)))
	if d.Err() != nil {
		tb.Fatal(d.Err())
	}
	if !bytes.Equal(gotText, text) {
		tb.Fatalf("%q comes back as %q", text, gotText)
	}
	for i, n := range numbers {
		if gotNumbers[i] != n {
			tb.Fatalf("%d comes back as %d", n, gotNumbers[i])
		}
	}
	return out.Len()
}

func TestWhatIsCodedComesBack(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	roundTrip(t, nil, nil)
	roundTrip(t, nil, []int64{0, 1, -1, 2, 1 << 62 >> 1, -1 << 61, 255, 256})
	for range 50 {
		text := make([]byte, r.IntN(3000))
		numbers := make([]int64, r.IntN(3000))
		for i := range text {
			text[i] = byte(r.IntN(1 + r.IntN(256)))
		}
		for i := range numbers {
			numbers[i] = int64(r.Uint64()) >> (2 + r.IntN(62))
		}
		roundTrip(t, text, numbers)
	}
	// Long runs of what is expected, which hold back carries.
	roundTrip(t, bytes.Repeat([]byte{0xff}, 100_000), nil)
}

func TestWhatIsExpectedCostsLittle(t *testing.T) {
	if n := roundTrip(t, bytes.Repeat([]byte("abcd"), 10_000), nil); n > 700 {
		t.Errorf("40,000 bytes that repeat themselves in %d", n)
	}
	if n := roundTrip(t, nil, make([]int64, 10_000)); n > 120 {
		t.Errorf("10,000 zeros in %d bytes", n)
	}
}

// A change of the code or of a model would make old streams unreadable.
func TestTheCodeStaysAsItIs(t *testing.T) {
	var out bytes.Buffer
	e := NewEncoder(&out)
	newModels().code(e, []byte("the code stays as it is, as the code is"), []int64{1, -2, 300, 4, -50000})
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	const want = "\x00\x8b\xfb\x17\xfa\x99ݠ\xcb\xf7\x93q\xdbj\xc2*\xddxVϩ\xf8\xb4\xedJ~Z+XhG\x12n\\{^\xbb>\xb8\b\x1eܩ\x85\x14\x8dWp"
	if got := out.String(); got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestATruncatedStreamIsAnError(t *testing.T) {
	var out bytes.Buffer
	e := NewEncoder(&out)
	newModels().code(e, []byte("some text that is coded"), nil)
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	d := NewDecoder(bytes.NewReader(out.Bytes()[:8]))
	newModels().code(d, make([]byte, 23), nil)
	if !errors.Is(d.Err(), io.ErrUnexpectedEOF) {
		t.Errorf("%v", d.Err())
	}
}

func FuzzRoundTrip(f *testing.F) {
	f.Add([]byte("some text"), []byte{1, 2, 3})
	f.Add(bytes.Repeat([]byte{0xff, 0}, 200), bytes.Repeat([]byte{0xff}, 80))
	f.Fuzz(func(t *testing.T, text, numbers []byte) {
		var n []int64
		for i := 0; i+8 <= len(numbers); i += 8 {
			v := int64(0)
			for _, b := range numbers[i : i+8] {
				v = v<<8 | int64(b)
			}
			n = append(n, v>>(2+numbers[i]&31))
		}
		roundTrip(t, text, n)
	})
}

func BenchmarkBytes(b *testing.B) {
	text := bytes.Repeat([]byte("a benchmark of mixed contexts. "), 4000)
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		newModels().code(NewEncoder(new(bytes.Buffer)), text, nil)
	}
}
