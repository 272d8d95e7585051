package chunk

import (
	"errors"
	"strings"
	"testing"
)

func TestVerify(t *testing.T) {
	id := Sum([]byte("content"))
	if err := id.Verify([]byte("content")); err != nil {
		t.Error(err)
	}
	if err := id.Verify([]byte("Content")); !errors.Is(err, ErrMismatch) || !strings.Contains(err.Error(), id.String()) {
		t.Errorf("got %v, want ErrMismatch that names the chunk", err)
	}
}

func TestParseReadsWhatStringWrites(t *testing.T) {
	id := Sum([]byte("content"))
	if got, err := Parse(id.String()); err != nil || got != id {
		t.Errorf("%s, %v", got, err)
	}
	for _, s := range []string{"", "sha256:", "sha512:" + strings.Repeat("a", 128), strings.Repeat("a", 64), "sha256:" + strings.Repeat("a", 63), "sha256:" + strings.Repeat("A", 64), "sha256:" + strings.Repeat("g", 64)} {
		if _, err := Parse(s); err == nil {
			t.Errorf("%q was taken for an ID", s)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(Sum(nil).String())
	f.Add("sha256:xyz")
	f.Fuzz(func(t *testing.T, s string) {
		if id, err := Parse(s); err == nil && id.String() != s {
			t.Errorf("%q is read as %q", s, id)
		}
	})
}
