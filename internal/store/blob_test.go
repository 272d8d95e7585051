package store

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
)

func TestBlobRoundTrip(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	b := []byte(`{"schemaVersion":2}`)
	d := digest.FromBytes(b)
	if _, err := s.ReadBlob(d, 100); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("before: %v", err)
	}
	if err := s.PutBlob(d, []byte("other")); !errors.Is(err, ErrMismatch) {
		t.Errorf("other bytes: %v", err)
	}
	must(t, s.PutBlob(d, b))
	after := openStore(t, crash(t, dir))
	got, err := after.ReadBlob(d, 100)
	if err != nil || !bytes.Equal(got, b) {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := after.ReadBlob(d, 5); err == nil {
		t.Error("the limit was not kept")
	}
	must(t, after.Close())

	must(t, os.WriteFile(filepath.Join(dir, "blobs", d.Encoded()[:2], d.Encoded()), []byte("rot"), 0o600))
	if _, err := s.ReadBlob(d, 100); !errors.Is(err, ErrDamaged) {
		t.Errorf("damaged: %v", err)
	}
	if _, err := s.ReadBlob(d, 100); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after damage: %v", err)
	}
	must(t, s.Close())
}

func TestDigestsAreDistrusted(t *testing.T) {
	s := openStore(t, t.TempDir())
	for _, d := range []digest.Digest{"", "sha256:../../../../etc/passwd", "sha512:" + digest.Digest(bytes.Repeat([]byte("a"), 128)), "sha256:AB"} {
		if _, err := s.Blob(d); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q: %v", d, err)
		}
		if _, err := s.Partial(d); err == nil {
			t.Errorf("%q: a partial blob was opened", d)
		}
	}
	must(t, s.Close())
}

func openPartial(t *testing.T, s *Store, d digest.Digest) *Partial {
	t.Helper()
	p, err := s.Partial(d)
	must(t, err)
	return p
}

func write(t *testing.T, w io.Writer, b []byte) {
	t.Helper()
	_, err := w.Write(b)
	must(t, err)
}

func TestPartialGoesOnWhereItWas(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	b := newContent(9, 5000).data
	d := digest.FromBytes(b)
	p := openPartial(t, s, d)
	write(t, p, b[:2000])
	must(t, s.Flush())
	write(t, p, b[2000:3000])
	if _, err := s.Partial(d); !errors.Is(err, ErrBusy) {
		t.Errorf("second writer: %v", err)
	}

	after := openStore(t, crash(t, dir))
	q := openPartial(t, after, d)
	if q.Len() != 2000 {
		t.Errorf("after a crash: %d bytes, want the 2000 that were flushed", q.Len())
	}
	write(t, q, b[2000:])
	must(t, q.Commit())
	must(t, q.Close())
	if got, err := after.ReadBlob(d, 9999); err != nil || !bytes.Equal(got, b) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	must(t, after.Close())

	must(t, p.Close())
	must(t, s.Close())
	s = openStore(t, dir)
	p = openPartial(t, s, d)
	if p.Len() != 3000 {
		t.Errorf("after a clean stop: %d bytes, want 3000", p.Len())
	}
	must(t, p.Close())
	must(t, s.Close())
}

func TestPartialOfOtherBytesIsThrownAway(t *testing.T) {
	s := openStore(t, t.TempDir())
	d := digest.FromString("right")
	p := openPartial(t, s, d)
	write(t, p, []byte("wrong"))
	if err := p.Commit(); !errors.Is(err, ErrMismatch) {
		t.Errorf("commit: %v", err)
	}
	must(t, p.Close())
	if _, err := s.Blob(d); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("blob: %v", err)
	}
	p = openPartial(t, s, d)
	if p.Len() != 0 {
		t.Errorf("%d wrong bytes are left", p.Len())
	}
	write(t, p, []byte("right"))
	must(t, p.Commit())
	must(t, p.Close())
	must(t, s.Close())
}
