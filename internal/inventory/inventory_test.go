package inventory

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func fleet(n int) (images []Image) {
	for i := range n {
		images = append(images, Image{fmt.Sprintf("registry.example.com/fleet/service-%d", i/2), digest.FromString(fmt.Sprint(i))})
	}
	return images
}

func TestWhatWasWrittenIsRead(t *testing.T) {
	for _, n := range []int{0, 1, 7, 50} {
		want := fleet(n)
		b, err := Encode(append(slices.Clone(want), want...)) // twice is once
		if err != nil {
			t.Fatal(err)
		}
		got, err := Parse(b)
		if err != nil {
			t.Fatal(err)
		}
		less := func(a, b Image) int { return slices.Compare([]string{a.Name()}, []string{b.Name()}) }
		slices.SortFunc(got, less)
		slices.SortFunc(want, less)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	}
}

func TestAnImageTakesLessThan64Bytes(t *testing.T) {
	b, err := Encode(fleet(50))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d bytes for 50 images", len(b))
	if len(b) > 64*50 {
		t.Errorf("%d bytes for 50 images", len(b))
	}
}

func TestDamageIsNoticed(t *testing.T) {
	b, err := Encode(fleet(5))
	if err != nil {
		t.Fatal(err)
	}
	for i := range b {
		c := slices.Clone(b)
		c[i] ^= 4
		if _, err := Parse(c); !errors.Is(err, ErrInvalid) {
			t.Errorf("byte %d: %v", i, err)
		}
		if _, err := Parse(b[:i]); !errors.Is(err, ErrInvalid) {
			t.Errorf("%d bytes: %v", i, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	b, err := Encode(fleet(5))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, b []byte) {
		images, err := Parse(b)
		if err != nil {
			return
		}
		if _, err := Encode(images); err != nil {
			t.Error(err)
		}
	})
}
