// Package dns is a name server for a namespace of the rig, which can go away.
//
// A process in a network namespace reads the machine's /etc/resolv.conf and
// asks the servers that stand in it, in its own namespace, where nobody
// answers. So the server takes their addresses there: the machine's file stays
// as it is, and no mount namespace is needed, which would cut a daemon's mounts
// off from everybody else.
package dns

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/airstream-io/airstream/test/rig/netns"
)

// Server answers for one namespace until Close.
type Server struct {
	hosts map[string]netip.Addr // by name, without the last dot
	conns []net.PacketConn
	work  sync.WaitGroup
	gone  atomic.Bool
	asked atomic.Int64
}

// Start makes the names of hosts resolve in a namespace. All others don't
// exist.
func Start(ctx context.Context, ns *netns.NS, hosts map[string]netip.Addr) (_ *Server, err error) {
	s := &Server{hosts: hosts}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	addrs, err := servers("/etc/resolv.conf")
	if err != nil {
		return nil, fmt.Errorf("dns: %w", err)
	}
	for _, addr := range addrs {
		if !addr.IsLoopback() {
			if err := ns.AddAddress("lo", addr); err != nil {
				return nil, fmt.Errorf("dns: %w", err)
			}
		}
		conn, err := ns.ListenPacket(ctx, "udp", netip.AddrPortFrom(addr, 53).String())
		if err != nil {
			return nil, fmt.Errorf("dns: %w", err)
		}
		s.conns = append(s.conns, conn)
		s.work.Go(func() { s.serve(conn) })
	}
	return s, nil
}

// servers returns the IPv4 name servers of a resolv.conf, or what is asked
// where there is none (resolv.conf(5)).
func servers(path string) ([]netip.Addr, error) {
	f, err := os.Open(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var addrs []netip.Addr
	if err == nil {
		defer f.Close() //nolint:errcheck // only read
		for lines := bufio.NewScanner(f); lines.Scan(); {
			fields := strings.Fields(lines.Text())
			if len(fields) < 2 || fields[0] != "nameserver" {
				continue
			}
			if a, err := netip.ParseAddr(fields[1]); err == nil && a.Is4() {
				addrs = append(addrs, a)
			}
		}
	}
	if len(addrs) == 0 {
		addrs = append(addrs, netip.AddrFrom4([4]byte{127, 0, 0, 1}))
	}
	return addrs, nil
}

// Vanish makes the server take questions and answer none, or answer again.
func (s *Server) Vanish(gone bool) { s.gone.Store(gone) }

// Asked returns how many questions have come.
func (s *Server) Asked() int64 { return s.asked.Load() }

// Close ends the server. The addresses go with their namespace.
func (s *Server) Close() error {
	var errs []error
	for _, c := range s.conns {
		errs = append(errs, c.Close())
	}
	s.work.Wait()
	return errors.Join(errs...)
}

func (s *Server) serve(conn net.PacketConn) {
	buf := make([]byte, 1500)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return // Close
		}
		s.asked.Add(1)
		if s.gone.Load() {
			continue
		}
		if answer, err := s.answer(buf[:n]); err == nil {
			_, _ = conn.WriteTo(answer, from) // who asks asks again
		}
	}
}

func (s *Server) answer(question []byte) ([]byte, error) {
	var m dnsmessage.Message
	if err := m.Unpack(question); err != nil {
		return nil, err
	}
	m.Response, m.Authoritative, m.RecursionAvailable = true, true, true
	m.Additionals = nil
	for _, q := range m.Questions {
		addr, ok := s.hosts[strings.TrimSuffix(q.Name.String(), ".")]
		switch {
		case !ok:
			m.RCode = dnsmessage.RCodeNameError
		case q.Type == dnsmessage.TypeA:
			// Valid for one second, so that a resolver that keeps answers keeps
			// no test busy.
			m.Answers = append(m.Answers, dnsmessage.Resource{
				Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 1},
				Body:   &dnsmessage.AResource{A: addr.As4()},
			})
		}
	}
	return m.Pack()
}
