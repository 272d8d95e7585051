package registry

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"sync"
	"sync/atomic"
	"time"
)

// Auth is how a front wants clients to identify themselves.
type Auth int

// Ways to identify oneself.
const (
	AuthNone   Auth = iota // anybody may do everything
	AuthBasic              // user and password with every request
	AuthBearer             // a token from the token service with every request
)

// FrontOptions says what a front is like. The zero value is plain HTTP on
// loopback.
type FrontOptions struct {
	// Listen makes the listeners: one, and one more for TokenElsewhere and for
	// Redirect. It may make them in another network namespace. Nil means
	// loopback, any port.
	Listen func() (net.Listener, error)
	// Name is the host name in URLs and certificates in place of the listener's
	// address. Whoever sets it sees to it that clients can resolve it.
	Name string

	TLS   bool // with a certificate of the registry's CA; clients may use HTTP/2
	HTTP1 bool // no HTTP/2 with TLS

	Auth               Auth
	Username, Password string        // for AuthBasic, and at the token service
	Anonymous          bool          // the token service lets anybody pull
	TokenLife          time.Duration // 0 means 5 minutes, as Docker Hub has it
	TokenElsewhere     bool          // the token service has a port of its own; set Name, as clients may refuse a private address there

	Redirect           bool          // GET of a blob redirects to a storage host
	LinkLife           time.Duration // how long its address is valid; 0 means 20 minutes, as distribution has it
	StorageRefusesAuth bool          // the storage host answers 400 to an Authorization header, as S3 does

	IgnoreRange bool // blobs are sent from the beginning, whatever range is asked for

	// Hook, if set, sees every request before anything else does. See SetHook.
	Hook Hook
}

// Hook stands before a front: it may answer itself, wait, spoil the response,
// or panic with http.ErrAbortHandler to cut the connection; else it calls next.
type Hook func(kind Kind, w http.ResponseWriter, r *http.Request, next http.Handler)

// Front is a server before a registry. Its methods may be called concurrently.
type Front struct {
	opt       FrontOptions
	registry  *Registry
	backend   *httputil.ReverseProxy
	secret    [32]byte // signs tokens and addresses of storage
	authority *authority

	api, token, storage *site // token and storage may be api
	sites               []*site
	hook                atomic.Pointer[Hook]
	revoked             atomic.Int64 // tokens from before this time, in ns, are void
	book                book
	servers             sync.WaitGroup

	mu       sync.Mutex
	closed   bool           // guarded by mu; no request begins any more
	handlers sync.WaitGroup // Add is called under mu and only while not closed
}

// site is one listener and its server.
type site struct {
	url    string // scheme and host, no trailing slash
	host   string
	server *http.Server
}

// Front starts a front. It serves until Close.
func (r *Registry) Front(opt FrontOptions) (*Front, error) {
	if opt.Listen == nil {
		opt.Listen = func() (net.Listener, error) {
			return (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
		}
	}
	if opt.TokenLife == 0 {
		opt.TokenLife = 5 * time.Minute
	}
	if opt.LinkLife == 0 {
		opt.LinkLife = 20 * time.Minute
	}
	f := &Front{opt: opt, registry: r, authority: r.authority}
	if _, err := rand.Read(f.secret[:]); err != nil {
		return nil, fmt.Errorf("registry: front: %w", err)
	}
	f.SetHook(opt.Hook)
	f.backend = &httputil.ReverseProxy{
		Transport:     r.transport,
		FlushInterval: -1, // as it comes: the link is what delays
		ErrorLog:      log.New(io.Discard, "", 0),
		Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL.Scheme, p.Out.URL.Host = "http", "registry"
			p.Out.Header.Del("Authorization")
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) },
	}
	var err error
	if f.api, err = f.serve(f.serveAPI); err != nil {
		return nil, err
	}
	f.token, f.storage = f.api, f.api
	if opt.TokenElsewhere {
		if f.token, err = f.serve(f.serveToken); err != nil {
			return nil, errors.Join(err, f.Close())
		}
	}
	if opt.Redirect {
		if f.storage, err = f.serve(f.serveStorage); err != nil {
			return nil, errors.Join(err, f.Close())
		}
	}
	return f, nil
}

// serve opens one more listener and answers on it.
func (f *Front) serve(handler http.HandlerFunc) (*site, error) {
	listener, err := f.opt.Listen()
	if err != nil {
		return nil, fmt.Errorf("registry: front: listen: %w", err)
	}
	s := &site{host: listener.Addr().String()}
	if f.opt.Name != "" {
		_, port, err := net.SplitHostPort(s.host)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("registry: front: %w", err), listener.Close())
		}
		s.host = net.JoinHostPort(f.opt.Name, port)
	}
	s.url = "http://" + s.host
	s.server = &http.Server{ // no timeouts: requests come over a link that takes minutes
		Handler:     f.record(handler),
		ConnContext: connContext,
		ErrorLog:    log.New(io.Discard, "", 0), // a client that goes away is part of the game
	}
	listener = &countedListener{Listener: listener, book: &f.book}
	start := func() error { return s.server.Serve(listener) }
	if f.opt.TLS {
		s.url = "https://" + s.host
		host, _, err := net.SplitHostPort(s.host)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("registry: front: %w", err), listener.Close())
		}
		cert, err := f.authority.issue(host)
		if err != nil {
			return nil, errors.Join(err, listener.Close())
		}
		s.server.TLSConfig = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
		s.server.Protocols = new(http.Protocols)
		s.server.Protocols.SetHTTP1(true)
		s.server.Protocols.SetHTTP2(!f.opt.HTTP1)
		start = func() error { return s.server.ServeTLS(listener, "", "") }
	}
	f.sites = append(f.sites, s)
	f.servers.Go(func() { _ = start() }) // it returns when Close closes the listener
	return s, nil
}

// Host returns address and port of the front, as in an image reference.
func (f *Front) Host() string { return f.api.host }

// URL returns the address of the front with its scheme, without a trailing
// slash.
func (f *Front) URL() string { return f.api.url }

// TokenHost returns address and port of the token service.
func (f *Front) TokenHost() string { return f.token.host }

// StorageHost returns address and port of the host that blobs redirect to.
func (f *Front) StorageHost() string { return f.storage.host }

// CA returns the certificate, in PEM, that a client must trust to reach any
// front of this registry that has TLS.
func (f *Front) CA() []byte { return f.authority.pem }

// SetHook replaces the hook for requests that come from now on; nil for none.
func (f *Front) SetHook(h Hook) { f.hook.Store(&h) }

// Close ends all connections at once, as a host that goes down does, and
// returns when nothing of the front runs any more.
func (f *Front) Close() error {
	var errs []error
	for _, s := range f.sites {
		errs = append(errs, s.server.Close())
	}
	f.servers.Wait()
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.handlers.Wait()
	return errors.Join(errs...)
}

// enter counts a request in; it cuts one that was read while the front closed.
func (f *Front) enter() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		panic(http.ErrAbortHandler)
	}
	f.handlers.Add(1)
}

// serveAPI is the registry itself.
func (f *Front) serveAPI(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == tokenPath && !f.opt.TokenElsewhere {
		f.serveToken(w, r)
		return
	}
	t := parse(r.URL.Path)
	if !f.authorize(w, r, t) {
		return
	}
	if t.kind == KindBlob {
		if f.opt.Redirect && r.Method == http.MethodGet && f.redirect(w, r, t) {
			return
		}
		f.sendBlob(w, r)
		return
	}
	f.backend.ServeHTTP(w, r)
}

// sendBlob passes a blob on, without ranges where they are to be ignored.
func (f *Front) sendBlob(w http.ResponseWriter, r *http.Request) {
	if f.opt.IgnoreRange {
		r = r.Clone(r.Context())
		r.Header.Del("Range")
		r.Header.Del("If-Range")
		w = &rangeless{w}
	}
	f.backend.ServeHTTP(w, r)
}

// rangeless doesn't offer ranges.
type rangeless struct{ http.ResponseWriter }

func (w *rangeless) WriteHeader(status int) {
	w.Header().Del("Accept-Ranges")
	w.ResponseWriter.WriteHeader(status)
}

func (w *rangeless) Unwrap() http.ResponseWriter { return w.ResponseWriter }
