package registry

import (
	"context"
	"errors"
	"io"
	"net/http"
	"testing"
	"time"
)

// fetch gets bytes [from, to] of a blob and returns what arrived and how the
// answer ended.
func fetch(t *testing.T, transport *http.Transport, url, byteRange string) (a answer, err error) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Range", byteRange)
	resp, err := transport.RoundTrip(r)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close() //nolint:errcheck // only read
	body, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, string(body)}, err
}

// Each hook does to an answer what its name says, and an answer without it is
// as it was.
func TestSpoil(t *testing.T) {
	f, img := front(t, FrontOptions{})
	path, _ := blobOf(t, img)
	transport := client(t, f)
	const n = 900
	get := func(hook Hook) (answer, error) {
		f.SetHook(hook)
		return fetch(t, transport, f.URL()+path, "bytes=64-963")
	}
	good, err := get(nil)
	if err != nil || len(good.body) != n || good.status != http.StatusPartialContent {
		t.Fatalf("%d bytes, %d, %v", len(good.body), good.status, err)
	}

	for _, status := range []int{401, 404, 429, 503} {
		if a, err := get(Refuse(status)); err != nil || a.status != status || a.body == good.body {
			t.Errorf("Refuse(%d): %d, %v", status, a.status, err)
		}
	}
	if _, err := get(Abort(KindBlob)); err == nil {
		t.Error("Abort: an answer came")
	}
	if a, err := get(Abort(KindManifest)); err != nil || a.body != good.body {
		t.Errorf("Abort of another kind: %v", err)
	}
	truncate := Truncate(KindBlob)
	if a, err := get(truncate); err == nil || a.body != good.body[:len(a.body)] {
		t.Errorf("Truncate, cut off: %d bytes, %v", len(a.body), err)
	}
	if a, err := get(truncate); err != nil || a.body != good.body[:n/2] {
		t.Errorf("Truncate, honest: %d bytes, %v", len(a.body), err)
	}
	misplace := MisplaceRanges()
	for range 4 {
		a, err := get(misplace)
		if err != nil || a.header.Get("Content-Range") == good.header.Get("Content-Range") || a.body != good.body {
			t.Errorf("MisplaceRanges: %d bytes, %v, %v", len(a.body), a.header, err)
		}
	}
	if a, err := get(IgnoreRanges()); err != nil || a.status != http.StatusOK || len(a.body) <= n || a.body[64:964] != good.body {
		t.Errorf("IgnoreRanges: %d bytes, %v", len(a.body), err)
	}
	a, err := get(Corrupt(100, KindBlob))
	differ := 0
	for i := range len(a.body) {
		if a.body[i] != good.body[i] {
			differ++
		}
	}
	if err != nil || len(a.body) != n || differ != n/100 {
		t.Errorf("Corrupt: %d of %d bytes differ, %v", differ, len(a.body), err)
	}
	if a, err := get(ResetAfter(300, KindBlob)); err == nil || a.body != good.body[:300] {
		t.Errorf("ResetAfter: %d bytes, %v", len(a.body), err)
	}
	if a, err := get(nil); err != nil || a.body != good.body {
		t.Errorf("afterwards: %v", err)
	}
}

// A silent front keeps its connections and says nothing, not even what it had
// begun to say.
func TestSilence(t *testing.T) {
	f, _ := front(t, FrontOptions{})
	now, half := make(chan struct{}), make(chan struct{})
	silence := Silence(now)
	f.SetHook(func(kind Kind, w http.ResponseWriter, r *http.Request, _ http.Handler) {
		silence(kind, w, r, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte("before"))
			_ = http.NewResponseController(w).Flush()
			<-half
			_, _ = w.Write([]byte("after"))
		}))
	})
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, f.URL()+"/v2/", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	transport := client(t, f)
	resp, err := transport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	close(now)
	close(half)
	body, err := io.ReadAll(resp.Body)
	if string(body) != "before" || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("read %q, %v", body, err)
	}
	if err := resp.Body.Close(); err != nil {
		t.Error(err)
	}
	if resp, err := transport.RoundTrip(r.Clone(ctx)); err == nil {
		t.Errorf("an answer came: %d", resp.StatusCode)
		_ = resp.Body.Close()
	}
}
