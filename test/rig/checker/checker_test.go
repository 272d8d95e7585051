package checker

import (
	"bytes"
	"testing"
)

// What a piece of a file holds does not depend on how it is asked for, and no
// two files or specs hold the same.
func TestFillIsAFunctionOfPlace(t *testing.T) {
	files := Spec{Seed: 1, Size: 1 << 20}.Files()
	var total int64
	seen := map[string]string{}
	for _, f := range files {
		whole := make([]byte, f.Size)
		f.Fill(whole, 0)
		total += f.Size
		for _, off := range []int64{1, 7, 8, 4095, f.Size / 2} {
			if off >= f.Size {
				continue
			}
			part := make([]byte, min(f.Size-off, 10_001))
			f.Fill(part, off)
			if !bytes.Equal(part, whole[off:off+int64(len(part))]) {
				t.Errorf("%s from byte %d on is not what it is as part of the whole", f.Path, off)
			}
		}
		if f.Size > 100 {
			if other := seen[string(whole[:100])]; other != "" {
				t.Errorf("%s begins like %s", f.Path, other)
			}
			seen[string(whole[:100])] = f.Path
		}
	}
	if total < 1<<20 || total > 2<<20 {
		t.Errorf("%d bytes, asked for %d", total, 1<<20)
	}
	for _, f := range (Spec{Seed: 2, Size: 1 << 20}).Files() {
		p := make([]byte, 100)
		if f.Size > 100 {
			if f.Fill(p, 0); seen[string(p)] != "" {
				t.Errorf("%s of another seed begins like %s", f.Path, seen[string(p)])
			}
		}
	}
}

func TestOrderHasEachOnce(t *testing.T) {
	seen := map[int]bool{}
	for _, i := range Order(3, 50) {
		seen[i] = true
	}
	if len(seen) != 50 {
		t.Errorf("%d of 50", len(seen))
	}
}
