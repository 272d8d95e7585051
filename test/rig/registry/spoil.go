package registry

import (
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// The hooks below are what goes wrong between a registry and its clients:
// servers that are overloaded or misconfigured, proxies, caches, damaged
// memory. They are for SetHook, alone or one after another.

// Refuse answers every request with a status. Retry-After is set with those
// that have it by custom.
func Refuse(status int) Hook {
	return func(_ Kind, w http.ResponseWriter, r *http.Request, _ http.Handler) {
		switch status {
		case http.StatusUnauthorized:
			w.Header().Set("WWW-Authenticate", `Basic realm="`+service+`"`)
		case http.StatusTooManyRequests:
			w.Header().Set("Retry-After", "1")
		}
		http.Error(w, http.StatusText(status), status)
	}
}

// Abort cuts the connection of every request of these kinds before it is
// answered.
func Abort(kinds ...Kind) Hook {
	return spoil(kinds, func(http.ResponseWriter, *http.Request, http.Handler) { panic(http.ErrAbortHandler) })
}

// Truncate ends answers of these kinds half way: one by cutting the connection,
// the next by saying that this was all.
func Truncate(kinds ...Kind) Hook {
	var n atomic.Int64
	return spoil(kinds, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		t := &truncated{ResponseWriter: w, honest: n.Add(1)%2 == 0}
		next.ServeHTTP(t, r)
		if !t.honest {
			panic(http.ErrAbortHandler)
		}
	})
}

type truncated struct {
	http.ResponseWriter
	honest bool  // about the length
	left   int64 // bytes to send
	began  bool
}

func (w *truncated) WriteHeader(status int) {
	w.began = true
	if n, err := strconv.ParseInt(w.Header().Get("Content-Length"), 10, 64); err == nil {
		w.left = n / 2
		if w.honest {
			w.Header().Set("Content-Length", strconv.FormatInt(w.left, 10))
		}
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *truncated) Write(p []byte) (int, error) {
	if !w.began {
		w.WriteHeader(http.StatusOK)
	}
	n := min(int64(len(p)), w.left)
	w.left -= n
	if _, err := w.ResponseWriter.Write(p[:n]); err != nil {
		return 0, err
	}
	return len(p), nil // whoever writes need not know
}

func (w *truncated) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// MisplaceRanges answers requests for ranges with Content-Range headers that
// are wrong: they name other bytes, or nothing, or are missing.
func MisplaceRanges() Hook {
	var n atomic.Int64
	return spoil([]Kind{KindBlob, KindStorage}, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		next.ServeHTTP(&misplaced{ResponseWriter: w, how: n.Add(1)}, r)
	})
}

type misplaced struct {
	http.ResponseWriter
	how int64
}

func (w *misplaced) WriteHeader(status int) {
	var from, to, size int64
	if _, err := fmt.Sscanf(w.Header().Get("Content-Range"), "bytes %d-%d/%d", &from, &to, &size); err == nil {
		switch w.how % 4 {
		case 0:
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from+512, to+512, size))
		case 1:
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", max(0, from-512), max(0, to-512), size))
		case 2:
			w.Header().Set("Content-Range", "bytes -1-/*")
		case 3:
			w.Header().Del("Content-Range")
		}
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *misplaced) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// IgnoreRanges sends blobs whole, whatever range is asked for.
func IgnoreRanges() Hook {
	return spoil([]Kind{KindBlob, KindStorage}, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		r = r.Clone(r.Context())
		r.Header.Del("Range")
		next.ServeHTTP(w, r)
	})
}

// Corrupt changes one bit in every so many bytes of answers of these kinds,
// also in answers that are shorter. Lengths and headers stay as they are.
func Corrupt(every int64, kinds ...Kind) Hook {
	return spoil(kinds, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		next.ServeHTTP(&corrupted{ResponseWriter: w, every: every}, r)
	})
}

type corrupted struct {
	http.ResponseWriter
	every, at int64
}

func (w *corrupted) Write(p []byte) (int, error) {
	p = append([]byte(nil), p...) // a Writer must not change what it is given
	for i := range p {
		// The first within a few bytes, so that no answer is spared.
		if (w.at+int64(i))%w.every == 7 {
			p[i] ^= 0x10
		}
	}
	w.at += int64(len(p))
	return w.ResponseWriter.Write(p)
}

func (w *corrupted) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// ResetAfter lets so many bytes of each answer of these kinds arrive and then
// resets the connection.
func ResetAfter(bytes int64, kinds ...Kind) Hook {
	return spoil(kinds, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		next.ServeHTTP(&resetting{ResponseWriter: w, left: bytes, conn: connOf(r.Context())}, r)
	})
}

type resetting struct {
	http.ResponseWriter
	left int64
	conn *countedConn
}

func (w *resetting) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p[:min(int64(len(p)), w.left)])
	w.left -= int64(n)
	if err != nil || w.left > 0 {
		return n, err
	}
	if err := http.NewResponseController(w.ResponseWriter).Flush(); err != nil {
		return n, err
	}
	if w.conn != nil {
		w.conn.reset()
	}
	panic(http.ErrAbortHandler)
}

func (w *resetting) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Silence answers as ever until now is closed. Then it says nothing more, not
// even the rest of what is under way, and keeps the connections: a host that is
// unplugged.
func Silence(now <-chan struct{}) Hook {
	return spoil(nil, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		q := &silenced{ResponseWriter: w, now: now, gone: r.Context().Done()}
		q.hold()
		next.ServeHTTP(q, r)
		q.hold()
	})
}

type silenced struct {
	http.ResponseWriter
	now, gone <-chan struct{}
}

// hold waits, if it is time to be silent, until the client has given up.
func (w *silenced) hold() {
	select {
	case <-w.now:
		<-w.gone
		panic(http.ErrAbortHandler)
	default:
	}
}

func (w *silenced) Write(p []byte) (int, error) {
	w.hold()
	return w.ResponseWriter.Write(p)
}

func (w *silenced) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// reset closes a connection with a RST once everything that was written has
// arrived: what hasn't would be lost with it.
func (c *countedConn) reset() {
	defer c.Close() //nolint:errcheck // that is the point
	tcp, ok := c.Conn.(*net.TCPConn)
	if !ok {
		return
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for range 1000 {
		queued := 0
		if err := raw.Control(func(fd uintptr) { queued, err = unix.IoctlGetInt(int(fd), unix.TIOCOUTQ) }); err != nil || queued == 0 {
			break
		}
		<-tick.C
	}
	_ = tcp.SetLinger(0) // the next close says so if it can't
}

// spoil calls f for requests of these kinds, or of all if there are none.
func spoil(kinds []Kind, f func(w http.ResponseWriter, r *http.Request, next http.Handler)) Hook {
	is := map[Kind]bool{}
	for _, k := range kinds {
		is[k] = true
	}
	return func(kind Kind, w http.ResponseWriter, r *http.Request, next http.Handler) {
		if len(is) > 0 && !is[kind] {
			next.ServeHTTP(w, r)
			return
		}
		f(w, r, next)
	}
}
