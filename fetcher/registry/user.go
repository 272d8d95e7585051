package registry

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"strings"

	"github.com/airstream-io/airstream/internal/catalog"
)

// Login is a name and a password that a client of the mirror has sent. It is
// held in memory alone: a log has no words for it, and nothing writes it to
// disk.
type Login struct{ Username, Password string }

// String implements fmt.Stringer without telling anything.
func (Login) String() string { return "(credentials)" }

// GoString implements fmt.GoStringer likewise.
func (Login) GoString() string { return "(credentials)" }

// LogValue implements slog.LogValuer likewise.
func (Login) LogValue() slog.Value { return slog.StringValue("(credentials)") }

// ID tells logins apart without telling them; it is "" for no login.
func (l Login) ID() string {
	if l == (Login{}) {
		return ""
	}
	sum := sha256.Sum256([]byte(l.Username + "\x00" + l.Password))
	return hex.EncodeToString(sum[:8])
}

type (
	loginKey struct{}
	viaKey   struct{}
)

// As returns a context whose requests go out with a client's login, or, if it
// is the zero Login, with the node's own credentials. Without As, which is how
// the fetcher asks, a repository gets the login that it took last from a
// client, and the node's credentials if there was none.
func As(ctx context.Context, l Login) context.Context { return context.WithValue(ctx, loginKey{}, l) }

// Through returns a context whose requests say that they are made for one that
// came with these Via headers.
func Through(ctx context.Context, via []string) context.Context {
	if len(via) == 0 {
		return ctx
	}
	return context.WithValue(ctx, viaKey{}, strings.Join(via, ", "))
}

// Looped tells whether a request with these Via headers was made by this
// client: then it has come back to where it began.
func (c *Client) Looped(via []string) bool {
	for _, v := range via {
		for part := range strings.SplitSeq(v, ",") {
			if strings.TrimSpace(part) == c.via {
				return true
			}
		}
	}
	return false
}

// maxVia bounds the way that a request may have come, in bytes.
const maxVia = 1 << 10

func (c *Client) chain(ctx context.Context) string {
	if via, ok := ctx.Value(viaKey{}).(string); ok && len(via) < maxVia {
		return via + ", " + c.via
	}
	return c.via
}

// user is whom a request is made for.
type user struct {
	login Login
	id    string // "": the node itself
}

func (u user) key(repo string) credKey { return credKey{u.id, repo} }

// user returns whom a request to a host is made for. Clients' logins are for
// the registry that they named: mirrors of it don't get them.
func (c *Client) user(ctx context.Context, h *host, src catalog.Source) user {
	if !h.own {
		return user{}
	}
	l, ok := ctx.Value(loginKey{}).(Login)
	if !ok {
		c.mu.Lock()
		l = c.granted[src]
		c.mu.Unlock()
	}
	return user{login: l, id: l.ID()}
}

// maxGranted bounds how many repositories' logins are remembered.
const maxGranted = 1000

// grant remembers a login that a registry took for a repository: what is
// fetched of its images later needs it, too.
func (c *Client) grant(src catalog.Source, l Login) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.granted[src]; !ok && len(c.granted) >= maxGranted {
		for old := range c.granted {
			delete(c.granted, old)
			break
		}
	}
	c.granted[src] = l
}

// Granted tells whether a registry took a login for a repository, and what is
// fetched of it goes out with that login.
func (c *Client) Granted(src catalog.Source, l Login) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.granted[src] == l
}

func (c *Client) revoke(src catalog.Source, l Login) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.granted[src] == l {
		delete(c.granted, src)
	}
}
