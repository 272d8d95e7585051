package registry

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"time"

	"github.com/airstream-io/airstream/fetcher/uplink"
)

// dial is how connections are made.
type dial func(ctx context.Context, network, address string) (net.Conn, error)

// keepAlive costs two packets on a link that may be paid by the byte, and
// tells a modem that the connection is still used. Modems forget after minutes.
const keepAlive = 60 * time.Second

// connect gives a host its connections. What somebody waits for has its own:
// bulk would take every connection that is idle, and a new one costs two round
// trips and begins slowly.
func (h *host) connect(d dial) {
	sessions := tls.NewLRUClientSessionCache(16) // a certificate chain is 3 kB, 10 s at 2400 bit/s
	client := func() *http.Client {
		return &http.Client{
			Transport: h.transport(d, sessions),
			// Redirects are followed by hand: they are remembered, and must not
			// carry credentials to another host.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
	}
	h.http, h.bulk = client(), client()
}

// client returns what makes requests of a class.
func (h *host) client(c uplink.Class) *http.Client {
	if c >= uplink.Prefetch {
		return h.bulk
	}
	return h.http
}

// disconnect closes idle connections.
func (h *host) disconnect() {
	h.http.CloseIdleConnections()
	h.bulk.CloseIdleConnections()
}

// transport has no limits in time: a TLS handshake alone can take longer than
// net/http's default over a satellite. Stalls are watched by each attempt.
//
// Its buffers are small, because what they hold was granted to the sender
// again (package uplink); reads larger than they are go past them.
func (h *host) transport(d dial, sessions tls.ClientSessionCache) *http.Transport {
	return &http.Transport{
		Proxy:             http.ProxyFromEnvironment,
		DialContext:       d,
		ForceAttemptHTTP2: false, // one lost packet would hold up every stream at once
		TLSNextProto:      map[string]func(string, *tls.Conn) http.RoundTripper{},
		TLSClientConfig: &tls.Config{
			RootCAs: h.CA, InsecureSkipVerify: h.Insecure, //nolint:gosec // asked for by the configuration; content is verified by digest
			ClientSessionCache: sessions,
		},
		MaxIdleConnsPerHost: 16,
		IdleConnTimeout:     10 * time.Minute,
		DisableCompression:  true,
		ReadBufferSize:      4 << 10,
		// Headers are held in memory; a registry's have a few hundred bytes.
		MaxResponseHeaderBytes: 256 << 10,
	}
}
