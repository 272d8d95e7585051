package registry

import (
	"context"
	"errors"
	"net"
	"sync"
)

// names dials hosts, and remembers where they were found: a site's name server
// often has its own servers across the link, or restarts with it, and a
// registry does not move because nobody can be asked where it is. Who answers
// there has to show the host's certificate as ever.
type names struct {
	dial dial

	mu   sync.Mutex
	last map[string]string // guarded by mu; host:port to the IP:port that answered last
}

// maxNames bounds what is remembered: hosts come from references.
const maxNames = 256

func remembering(d dial) dial { return (&names{dial: d, last: map[string]string{}}).connect }

func (n *names) connect(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := n.dial(ctx, network, address)
	if err == nil {
		n.found(address, conn.RemoteAddr())
		return conn, nil
	}
	var dns *net.DNSError
	if !errors.As(err, &dns) || dns.IsNotFound || ctx.Err() != nil {
		return nil, err // somebody was asked, or there is no such host
	}
	n.mu.Lock()
	last := n.last[address]
	n.mu.Unlock()
	if last == "" {
		return nil, err
	}
	conn, lastErr := n.dial(ctx, network, last)
	if lastErr != nil {
		return nil, errors.Join(err, lastErr)
	}
	return conn, nil
}

func (n *names) found(address string, at net.Addr) {
	tcp, ok := at.(*net.TCPAddr)
	if !ok {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.last) >= maxNames {
		clear(n.last)
	}
	n.last[address] = tcp.String()
}
