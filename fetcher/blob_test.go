package fetcher

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/airstream-io/airstream/internal/store"
)

func readBlob(ctx context.Context, b *bench, d digest.Digest, size int64) ([]byte, error) {
	blob, err := b.Blob(ctx, Prefetch, src, d, size)
	if err != nil {
		return nil, err
	}
	got, err := io.ReadAll(blob)
	return got, errors.Join(err, blob.Close())
}

func TestWholeBlobGoesOnAfterCutsAndRestarts(t *testing.T) {
	s := newShore(t)
	dir := t.TempDir()
	d, size := digest.FromBytes(s.blob), int64(len(s.blob))
	cutting := func(w http.ResponseWriter, r *http.Request) bool {
		http.ServeContent(&limited{w, r, 300_000, func(*http.Request) { panic(http.ErrAbortHandler) }}, r, "", time.Time{}, &counter{s: s, r: bytes.NewReader(s.blob)})
		return true
	}
	b := newBench(t, s, dir, s.at)
	s.setMood(cutting)
	ctx, cancel := context.WithCancel(t.Context())
	blob, err := b.Blob(ctx, Prefetch, src, d, size)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(blob, make([]byte, 400_000)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := blob.Close(); err != nil {
		t.Error(err)
	}
	b.close(t)

	b = newBench(t, s, dir, s.at)
	got, err := readBlob(t.Context(), b, d, size)
	if err != nil || digest.FromBytes(got) != d {
		t.Fatalf("%d of %d bytes, %v", len(got), size, err)
	}
	// What a cut leaves in the sender's buffers crosses again; nothing else.
	if _, twice := s.traffic(); twice > 20*64<<10 {
		t.Errorf("%d bytes crossed twice", twice)
	}
	before := s.asked()
	if got, err = readBlob(t.Context(), b, d, size); err != nil || digest.FromBytes(got) != d || s.asked() != before {
		t.Errorf("from the cache: %d bytes, %v, %d requests", len(got), err, s.asked()-before)
	}
}

func TestWrongBlobIsRefused(t *testing.T) {
	s := newShore(t)
	b := newBench(t, s, t.TempDir(), s.at)
	d := digest.FromString("another blob")
	if _, err := readBlob(t.Context(), b, d, int64(len(s.blob))); !errors.Is(err, store.ErrMismatch) {
		t.Errorf("got %v, want ErrMismatch", err)
	}
	if f, err := b.store.Blob(d); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it was stored: %v, %v", f, err)
	}
}

func TestMissingBlobEndsWithTheRegistrysWords(t *testing.T) {
	s := newShore(t)
	b := newBench(t, s, t.TempDir(), s.at)
	s.setMood(func(w http.ResponseWriter, _ *http.Request) bool {
		http.Error(w, "no such blob", http.StatusNotFound)
		return true
	})
	if _, err := readBlob(t.Context(), b, digest.FromString("x"), 10); err == nil || !strings.Contains(err.Error(), "no such blob") {
		t.Errorf("got %v", err)
	}
}
