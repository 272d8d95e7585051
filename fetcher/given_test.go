package fetcher

import (
	"archive/tar"
	"bytes"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
)

// tableJSON returns the layer's table of contents.
func (s *shore) tableJSON(t *testing.T) []byte {
	t.Helper()
	zr, err := gzip.NewReader(bytes.NewReader(s.blob[s.at:]))
	if err != nil {
		t.Fatal(err)
	}
	tr := tar.NewReader(zr)
	if _, err := tr.Next(); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(tr)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A table that is brought by other means than the link, a bundle say, ends the wait
// of whoever waits for it, though nothing is covered and the link is dark.
func TestATableThatIsGivenEndsTheWaitForTheLink(t *testing.T) {
	for _, early := range []bool{false, true} { // before anybody asks, or while it is asked for
		s := newShore(t)
		s.setMood(func(_ http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true })
		b := newBench(t, s, t.TempDir(), s.at)
		type got struct {
			files int
			err   error
		}
		waiting := make(chan got, 1)
		if !early {
			go func() {
				tree, err := b.Tree(t.Context(), slot)
				if err != nil {
					waiting <- got{0, err}
					return
				}
				waiting <- got{tree.Len(), nil}
			}()
			for s.asked() == 0 {
				time.Sleep(time.Millisecond)
			}
		}
		json := s.tableJSON(t)
		for range 2 { // twice is no harm
			tree, err := b.PutTable(t.Context(), slot, json, s.at)
			if err != nil || tree.Len() < len(s.files) {
				t.Fatalf("%v, %v", tree, err)
			}
		}
		if early {
			continue
		}
		select {
		case g := <-waiting:
			if g.err != nil || g.files < len(s.files) {
				t.Errorf("%+v", g)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("the reader still waits for the link")
		}
	}
}
