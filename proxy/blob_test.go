package proxy

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/airstream-io/airstream/internal/link"
)

// blobReaderOf is a Blob as an io.Reader.
type blobReaderOf struct {
	ctx context.Context //nolint:containedctx // of a test
	b   *link.Blob
}

func (r blobReaderOf) Read(p []byte) (int, error) { return r.b.ReadContext(r.ctx, p) }

// A blob comes as the registry has it, from any byte on, beside everything else.
func TestABlobComesFromAnyByteOn(t *testing.T) {
	s := newShore(t)
	img := app(t, s)
	p := serve(t, t.TempDir(), "127.0.0.1:0", Options{})
	sess := dial(t, p.addr, "vessel-1", nil)
	await(t, "the session", func() bool { st, _ := sess.State(); return st.Up })
	blob := img.blobs[0]
	ref := s.host() + "/team/app@" + digest.FromBytes(blob).String()
	for _, c := range []struct{ off, n int64 }{{0, int64(len(blob))}, {100_000, 70_000}, {int64(len(blob)) - 5, 5}, {0, -1}} {
		b, err := sess.Blob(link.Rest, ref, c.off, c.n)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(blobReaderOf{t.Context(), b})
		want := blob[c.off:]
		if c.n >= 0 {
			want = want[:c.n]
		}
		if err != nil || string(got) != string(want) {
			t.Errorf("%d bytes from %d on: %d, %v", c.n, c.off, len(got), err)
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
	b, err := sess.Blob(link.Rest, s.host()+"/team/app@"+digest.FromString("none").String(), 0, 10)
	if err != nil {
		t.Fatal(err)
	}
	var r *link.Refusal
	if err := b.Ready(t.Context()); !errors.As(err, &r) || r.Temporary() {
		t.Errorf("a blob that there is not: %v", err)
	}
}

// A reader that stops holds up nothing for long, and one whose session breaks is
// told.
func TestABlobEndsWithItsSession(t *testing.T) {
	s := newShore(t)
	img := app(t, s)
	p := serve(t, t.TempDir(), "127.0.0.1:0", Options{})
	r := newRelay(t, p.addr, 0, 5*time.Millisecond)
	sess := dial(t, r.addr(), "vessel-1", nil)
	await(t, "the session", func() bool { st, _ := sess.State(); return st.Up })
	b, err := sess.Blob(link.Demand, s.host()+"/team/app@"+digest.FromBytes(img.blobs[0]).String(), 0, int64(len(img.blobs[0])))
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.breakAll()
	if _, err := io.ReadAll(blobReaderOf{t.Context(), b}); !errors.Is(err, link.ErrDown) {
		t.Errorf("it ended with %v", err)
	}
	n := newNode()
	wait(t, sess.Pull(all(img), n))
	n.everything(t, img)
}
