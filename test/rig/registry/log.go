package registry

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Kind is what a request is for.
type Kind string

// Kinds of requests.
const (
	KindPing     Kind = "ping"     // /v2/
	KindManifest Kind = "manifest" // a manifest or index, by tag or digest
	KindBlob     Kind = "blob"     // a blob, sent or redirected by the registry
	KindStorage  Kind = "storage"  // a blob, at the storage host
	KindToken    Kind = "token"    // the token service
	KindUpload   Kind = "upload"   // part of a push
	KindOther    Kind = "other"    // tags, referrers, anything else
)

// Entry is one request in a front's log.
type Entry struct {
	Kind       Kind
	Method     string
	Path       string
	Range      string // header as asked, empty if there was none
	Authorized bool   // an Authorization header came along
	Conn       uint64 // number of the connection, from 1 over all listeners of the front
	Start      time.Time
	Took       time.Duration // until the response was handed over; 0 as long as it isn't
	Status     int           // 0 as long as there is none
	Bytes      int64         // of the response's body, so far
	Redirected bool          // the answer was a redirect to the storage host
}

// Counts is what went over a front since it was started or reset.
type Counts struct {
	Requests    map[Kind]int // all of them, whatever the answer
	Redirects   int          // blob requests that were redirected
	Ranges      int          // requests with a Range header
	Connections int          // accepted
	Body        int64        // bytes of response bodies
	Sent        int64        // bytes written to connections: with TLS and headers
	Received    int64        // bytes read from connections
}

// Total returns the number of requests of all kinds.
func (c Counts) Total() int {
	n := 0
	for _, k := range c.Requests {
		n += k
	}
	return n
}

// record of a request. Its parts that change while it is served are atomic, so
// that a log can be read at any time.
type record struct {
	entry      Entry
	status     atomic.Int64
	bytes      atomic.Int64
	took       atomic.Int64
	redirected atomic.Bool
}

// book is a front's log and counters.
type book struct {
	mu       sync.Mutex
	records  []*record // guarded by mu; in order of arrival
	accepted int       // guarded by mu; connections since the last reset

	conns    atomic.Uint64 // number of the last connection
	sent     atomic.Int64
	received atomic.Int64
}

// Log returns the requests in order of arrival, those included that are still
// being answered.
func (f *Front) Log() []Entry {
	f.book.mu.Lock()
	defer f.book.mu.Unlock()
	list := make([]Entry, len(f.book.records))
	for i, r := range f.book.records {
		list[i] = r.entry
		list[i].Status = int(r.status.Load())
		list[i].Bytes = r.bytes.Load()
		list[i].Took = time.Duration(r.took.Load())
		list[i].Redirected = r.redirected.Load()
	}
	return list
}

// Counts returns the counters.
func (f *Front) Counts() Counts {
	c := Counts{Requests: map[Kind]int{}, Sent: f.book.sent.Load(), Received: f.book.received.Load()}
	for _, e := range f.Log() {
		c.Requests[e.Kind]++
		c.Body += e.Bytes
		if e.Redirected {
			c.Redirects++
		}
		if e.Range != "" {
			c.Ranges++
		}
	}
	f.book.mu.Lock()
	defer f.book.mu.Unlock()
	c.Connections = f.book.accepted
	return c
}

// Reset empties log and counters. Requests that are still being answered go
// uncounted.
func (f *Front) Reset() {
	f.book.mu.Lock()
	defer f.book.mu.Unlock()
	f.book.records, f.book.accepted = nil, 0
	f.book.sent.Store(0)
	f.book.received.Store(0)
}

// Requests returns those entries of the log that are of one of the kinds.
func (f *Front) Requests(kinds ...Kind) []Entry {
	return slices.DeleteFunc(f.Log(), func(e Entry) bool { return !slices.Contains(kinds, e.Kind) })
}

// record wraps a site's handler: it writes the log and lets the hook have its
// way.
func (f *Front) record(handler http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.enter()
		defer f.handlers.Done()
		rec := &record{entry: Entry{
			Kind:       parse(r.URL.Path).kind,
			Method:     r.Method,
			Path:       r.URL.Path,
			Range:      r.Header.Get("Range"),
			Authorized: r.Header.Get("Authorization") != "",
			Conn:       connNumber(r.Context()),
			Start:      time.Now(),
		}}
		f.book.mu.Lock()
		f.book.records = append(f.book.records, rec)
		f.book.mu.Unlock()
		// Also after a panic, which is how a response is cut.
		defer func() { rec.took.Store(int64(max(1, time.Since(rec.entry.Start)))) }()

		rw := &recorder{ResponseWriter: w, record: rec}
		if hook := *f.hook.Load(); hook != nil {
			hook(rec.entry.Kind, rw, r, handler)
			return
		}
		handler(rw, r)
	})
}

// recorder counts what a response has.
type recorder struct {
	http.ResponseWriter
	record *record
}

func (w *recorder) WriteHeader(status int) {
	if status >= http.StatusOK { // an informational one isn't the answer
		w.record.status.CompareAndSwap(0, int64(status))
	}
	if status == http.StatusTemporaryRedirect && w.record.entry.Kind == KindBlob {
		w.record.redirected.Store(true)
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *recorder) Write(p []byte) (int, error) {
	w.record.status.CompareAndSwap(0, http.StatusOK)
	n, err := w.ResponseWriter.Write(p)
	w.record.bytes.Add(int64(n))
	return n, err
}

func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// target is what a path of the API names.
type target struct {
	kind      Kind
	repo      string // empty if it names none
	reference string // tag or digest, empty if it names none
}

func parse(path string) target {
	switch {
	case path == tokenPath:
		return target{kind: KindToken}
	case strings.HasPrefix(path, storagePath):
		return target{kind: KindStorage}
	case path == "/v2/" || path == "/v2":
		return target{kind: KindPing}
	}
	rest, ok := strings.CutPrefix(path, "/v2/")
	if !ok {
		return target{kind: KindOther}
	}
	for _, part := range []struct {
		name string
		kind Kind
	}{
		{"/manifests/", KindManifest},
		{"/blobs/uploads/", KindUpload},
		{"/blobs/", KindBlob},
		{"/tags/", KindOther},
		{"/referrers/", KindOther},
	} {
		if i := strings.LastIndex(rest, part.name); i > 0 {
			return target{kind: part.kind, repo: rest[:i], reference: rest[i+len(part.name):]}
		}
	}
	return target{kind: KindOther}
}

// countedListener numbers the connections and counts their bytes.
type countedListener struct {
	net.Listener
	book *book
}

func (l *countedListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.book.mu.Lock()
	l.book.accepted++
	l.book.mu.Unlock()
	return &countedConn{Conn: conn, book: l.book, number: l.book.conns.Add(1)}, nil
}

type countedConn struct {
	net.Conn
	book   *book
	number uint64
}

func (c *countedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.book.received.Add(int64(n))
	return n, err
}

func (c *countedConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.book.sent.Add(int64(n))
	return n, err
}

type connKey struct{}

// connContext remembers the connection for its requests.
func connContext(ctx context.Context, conn net.Conn) context.Context {
	if secure, ok := conn.(*tls.Conn); ok {
		conn = secure.NetConn()
	}
	if counted, ok := conn.(*countedConn); ok {
		return context.WithValue(ctx, connKey{}, counted)
	}
	return ctx
}

func connNumber(ctx context.Context) uint64 {
	if conn := connOf(ctx); conn != nil {
		return conn.number
	}
	return 0
}

// connOf returns the connection that a request came on, or nil.
func connOf(ctx context.Context) *countedConn {
	conn, _ := ctx.Value(connKey{}).(*countedConn)
	return conn
}
