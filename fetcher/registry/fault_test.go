package registry

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/airstream-io/airstream/fetcher/uplink"
)

func TestContentRangeMustFit(t *testing.T) {
	for _, tc := range []struct {
		header string
		length int
		ok     bool
	}{
		{"bytes 500-599/100000", 100, true},
		{"bytes 500-599/*", 100, true},
		{"bytes 0-99999/100000", 100_000, true}, // more than asked for, as from a cache that only knows the whole
		{"bytes 500-549/100000", 50, true},      // less: the rest is asked for anew
		{"bytes 400-499/100000", 100, false},    // ends before what was asked for
		{"bytes 500-599/550", 100, false},       // of less than it has
		{"bytes 500-599/599", 100, false},       // one byte less
		{"bytes 500-599/100000", 99, false},     // another length
		{"bytes 500-499/100000", 0, false},      // backwards
		{"bytes 501-599/100000", 99, false},     // begins too late
		{"bytes 500-599", 100, false},           // no total
		{"bytes 500-99999999999999999999/*", 100, false},
	} {
		s := newShore(t, false)
		s.setMood(func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Content-Range", tc.header)
			w.Header().Set("Content-Length", strconv.Itoa(tc.length))
			w.WriteHeader(http.StatusPartialContent)
			var begin, end int
			if _, err := fmt.Sscanf(tc.header, "bytes %d-%d", &begin, &end); err == nil && end >= begin {
				_, err := w.Write(s.blob[begin:min(begin+tc.length, len(s.blob))])
				return err == nil || !tc.ok
			}
			return true
		})
		got, start, err := read(t, client(t, s, nil), s, 500, 100)
		switch {
		case tc.ok && tc.length < 100:
			if !Temporary(err) || !bytes.Equal(got, s.blob[500:550]) {
				t.Errorf("%s: %d bytes, %v", tc.header, len(got), err)
			}
		case tc.ok:
			if want := s.blob[start:600]; err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: %d bytes from %d on, %v", tc.header, len(got), start, err)
			}
		case !Temporary(err) || !strings.Contains(err.Error(), "Content-Range"):
			t.Errorf("%s, %d bytes: %v", tc.header, tc.length, err)
		}
	}
}

func FuzzContentRange(f *testing.F) {
	f.Add("bytes 500-599/100000", int64(500), int64(100), int64(100))
	f.Add("bytes 0-0/*", int64(0), int64(1), int64(-1))
	f.Fuzz(func(t *testing.T, s string, off, n, length int64) {
		got, err := contentRange(s)
		if err != nil {
			return
		}
		if got.first < 0 || got.last < got.first || got.total >= 0 && got.total <= got.last {
			t.Errorf("%q: %+v", s, got)
		}
		if off >= 0 && got.fits(off, n, length) == nil && (got.first > off || got.last < off) {
			t.Errorf("%q fits %d", s, off)
		}
	})
}

func TestWholeBlobThatIsTooShort(t *testing.T) {
	s := newShore(t, false)
	s.setMood(func(w http.ResponseWriter, _ *http.Request) bool {
		_, err := io.WriteString(w, "<html>log in to the ship's network</html>")
		return err == nil
	})
	if _, _, err := read(t, client(t, s, nil), s, 500, 100); !Temporary(err) {
		t.Errorf("got %v", err)
	}
}

func TestProxyThatCompressesIsRefused(t *testing.T) {
	s := newShore(t, false)
	var accept []string
	s.setMood(func(w http.ResponseWriter, r *http.Request) bool {
		accept = append(accept, r.Header.Get("Accept-Encoding")+"|"+r.Header.Get("Cache-Control"))
		w.Header().Set("Content-Encoding", "gzip")
		w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
		zw := gzip.NewWriter(w)
		return errors.Join(second(zw.Write(s.blob)), zw.Close()) == nil
	})
	c := client(t, s, nil)
	_, _, err := read(t, c, s, 0, 100)
	_, err2 := c.Manifest(t.Context(), uplink.Demand, s.src(), "1")
	for _, err := range []error{err, err2} {
		if !errors.Is(err, ErrContent) || !strings.Contains(err.Error(), "proxy") {
			t.Errorf("got %v", err)
		}
	}
	if c.opts.Meter.State().Dark {
		t.Error("the link is not dark")
	}
	for _, a := range accept {
		if a != "identity|no-transform" {
			t.Errorf("asked with %q", a)
		}
	}
	s.setMood(func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Content-Encoding", "identity")
		return false
	})
	wantRange(t, c, s, 5, 10)
}

func TestEndlessBodies(t *testing.T) {
	s := newShore(t, false)
	s.setMood(func(w http.ResponseWriter, r *http.Request) bool {
		for {
			if _, err := w.Write(s.blob); err != nil || r.Context().Err() != nil {
				return true
			}
		}
	})
	c := client(t, s, nil)
	if _, err := c.Manifest(t.Context(), uplink.Demand, s.src(), "1"); !errors.Is(err, ErrContent) {
		t.Errorf("manifest: %v", err)
	}
	if got, _, err := read(t, c, s, 0, 500); err != nil || len(got) != 500 {
		t.Errorf("blob: %d bytes, %v", len(got), err)
	}
}

func TestHeaderFlood(t *testing.T) {
	s := newShore(t, false)
	s.setMood(func(w http.ResponseWriter, _ *http.Request) bool {
		for i := range 1000 {
			w.Header().Set("X-"+strconv.Itoa(i), strings.Repeat("x", 1000))
		}
		return true
	})
	if _, err := client(t, s, nil).Manifest(t.Context(), uplink.Demand, s.src(), "1"); !Temporary(err) {
		t.Errorf("got %v", err)
	}
}

// A server that lets bytes drip makes no progress, at the head or in the body.
func TestSlowLoris(t *testing.T) {
	s := newShore(t, false)
	for _, where := range []string{"head", "body"} {
		s.setMood(func(w http.ResponseWriter, r *http.Request) bool {
			conn, buf, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return true
			}
			defer conn.Close() //nolint:errcheck // the client closes it first
			text := "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"
			if where == "head" {
				text = "HTTP/1.1 200 OK\r\n"
			}
			_, err = buf.WriteString(text)
			for range 200 {
				if err = errors.Join(err, second(buf.WriteString("x")), buf.Flush()); err != nil {
					break
				}
				time.Sleep(50 * time.Millisecond) // a real wait: the stall limit runs on the real clock
			}
			return true
		})
		c := client(t, s, nil)
		c.opts.Meter.FirstByte(time.Millisecond)
		began := time.Now()
		_, err := c.Manifest(t.Context(), uplink.Demand, s.src(), "1")
		if took := time.Since(began); !Temporary(err) || !errors.Is(err, errStalled) || took > 3*time.Second {
			t.Errorf("%s: %v after %v", where, err, took)
		}
	}
}

func TestRedirectTargetThatDiesIsAskedForAnew(t *testing.T) {
	s, storage1, storage2 := newShore(t, false), newShore(t, false), newShore(t, false)
	to := storage1.URL
	s.setMood(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/blobs/") {
			http.Redirect(w, r, to+"/blobs/x", http.StatusTemporaryRedirect)
			return true
		}
		return false
	})
	c := client(t, s, nil)
	wantRange(t, c, s, 100, 50)
	storage1.Close()
	to = storage2.URL
	wantRange(t, c, s, 100, 50)
	if c.opts.Meter.State().Dark {
		t.Error("a dead storage host made the link dark")
	}
	storage2.Close() // and the registry still names it
	s.seen()
	for range 2 {
		if _, _, err := read(t, c, s, 100, 50); !Temporary(err) {
			t.Errorf("got %v", err)
		}
	}
	if n := len(s.seen()); n != 2 {
		t.Errorf("the registry was asked %d times for two requests", n)
	}
	if c.opts.Meter.State().Dark {
		t.Error("a dead storage host made the link dark though the registry answers")
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 11, 21, 8, 0, 0, 0, time.UTC)
	for s, want := range map[string]time.Duration{
		"":                              0,
		"7":                             7 * time.Second,
		"-7":                            0,
		"soon":                          0,
		"86401":                         0,
		"99999999999999999999":          0,
		"Sat, 21 Nov 2026 08:02:00 GMT": 2 * time.Minute,
		"Sat, 21 Nov 2026 07:00:00 GMT": 0,
		"Sat, 21 Nov 2027 08:02:00 GMT": 0, // a clock that jumped
	} {
		if got := retryAfter(s, now); got != want {
			t.Errorf("%q: %v, want %v", s, got, want)
		}
	}
}

func TestNameThatDoesNotResolve(t *testing.T) {
	s := newShore(t, false)
	c := client(t, s, func(h *Host) { h.URL = "http://nowhere.invalid" })
	if _, _, err := read(t, c, s, 0, 1); !Temporary(err) {
		t.Errorf("got %v", err)
	}
}
