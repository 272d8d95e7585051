package link

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/airstream-io/airstream/internal/link/wire"
)

const (
	// handshakeTime is what a connection may take until it is one: some round
	// trips of a link of 300 bit/s. It bounds strangers, not nodes.
	handshakeTime = 10 * time.Minute
	// keepIdle is how often the kernel probes a connection on which nothing is
	// said, so that a node that is gone is noticed within the hour. It costs
	// 100 bytes each time; a keepalive of 15 s is 0.6 MB a day (facts, links).
	keepIdle = 15 * time.Minute
)

// Handler serves sessions.
type Handler interface {
	// Serve answers one session until it ends. ctx ends with it. The certificate
	// was verified; whether its name is welcome is the handler's to say, with a
	// *Refusal.
	Serve(ctx context.Context, p *Peer) error
}

// Enroller gives out certificates. A refusal is a *Refusal; other errors are
// trouble that may pass.
type Enroller interface {
	// Enrol gives a certificate for a token, which is good once.
	Enrol(ctx context.Context, token string, request []byte) (certificate, authority []byte, err error)
	// Renew gives a new certificate to who has one.
	Renew(ctx context.Context, leaf *x509.Certificate, request []byte) (certificate, authority []byte, err error)
}

// Server is the proxy's end.
type Server struct {
	wire.UnimplementedLinkServer
	wire.UnimplementedEnrolmentServer

	handler  Handler
	enroller Enroller
	grpc     *grpc.Server
	readers  sync.WaitGroup
}

// NewServer returns a Server. conf has the proxy's certificate and the authority
// of its nodes' ones. It asks for a certificate and goes on without: enrolment
// is for those who have none.
func NewServer(conf *tls.Config, handler Handler, enroller Enroller) *Server {
	conf = conf.Clone()
	conf.ClientAuth = tls.VerifyClientCertIfGiven
	conf.MinVersion = tls.VersionTLS13
	s := &Server{handler: handler, enroller: enroller}
	s.grpc = grpc.NewServer(
		grpc.Creds(serverCreds{credentials.NewTLS(conf)}),
		grpc.ConnectionTimeout(handshakeTime),
		grpc.WaitForHandlers(true), // when it stops
		grpc.MaxConcurrentStreams(4),
		grpc.MaxRecvMsgSize(256<<10),
		grpc.InitialWindowSize(64<<10), grpc.InitialConnWindowSize(128<<10), // of what nodes say; fixed, so that nothing is sent to measure them
		// Idle nodes should cost little memory.
		grpc.ReadBufferSize(4<<10), grpc.WriteBufferSize(16<<10),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 1 << 62}), // the kernel's are cheaper
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Minute, PermitWithoutStream: true}),
	)
	wire.RegisterLinkServer(s.grpc, s)
	wire.RegisterEnrolmentServer(s.grpc, s)
	return s
}

// Serve accepts sessions until ctx ends, and closes l. Sessions end with it.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	if t, ok := l.(*net.TCPListener); ok {
		l = keptAlive{t}
	}
	stop := context.AfterFunc(ctx, s.grpc.Stop)
	defer stop()
	err := s.grpc.Serve(l)
	s.grpc.Stop() // waits for the handlers
	s.readers.Wait()
	if ctx.Err() != nil || errors.Is(err, grpc.ErrServerStopped) {
		return nil
	}
	return fmt.Errorf("link: serve: %w", err)
}

// keptAlive sets the kernel's probes.
type keptAlive struct{ *net.TCPListener }

// Accept implements net.Listener.
func (l keptAlive) Accept() (net.Conn, error) {
	c, err := l.AcceptTCP()
	if err == nil {
		err = c.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: keepIdle, Interval: time.Minute, Count: 5})
	}
	return c, err
}

// Session implements wire.LinkServer.
func (s *Server) Session(stream grpc.BidiStreamingServer[wire.Up, wire.Down]) error {
	p, err := newPeer(stream)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(stream.Context())
	var work sync.WaitGroup
	defer work.Wait()
	defer cancel()
	work.Go(func() {
		// What broke is told to whoever puts.
		_ = p.run(ctx) // see there
	})
	s.readers.Go(func() { p.listen(ctx) }) // the stream lets go of it when this returns
	// The answer to the stream itself, so that the node knows that the session
	// is one before it has asked for anything.
	if err := stream.SendHeader(nil); err != nil {
		return err
	}
	return asStatus(s.handler.Serve(ctx, p))
}

func newPeer(stream grpc.BidiStreamingServer[wire.Up, wire.Down]) (*Peer, error) {
	from, ok := peer.FromContext(stream.Context())
	if !ok {
		return nil, status.Error(codes.Internal, "link: no peer")
	}
	info, ok := from.AuthInfo.(peerInfo)
	if !ok || len(info.State.VerifiedChains) == 0 {
		return nil, status.Error(codes.Unauthenticated, "link: the node has no certificate of this proxy's authority: airstream enrol gets one")
	}
	leaf := info.State.VerifiedChains[0][0]
	return &Peer{
		Sender: newSender(info.sock, stream.Send, func(m *wire.Down) int64 { return 5 + int64(proto.Size(m)) }),
		Leaf:   leaf, Addr: from.Addr, stream: stream, sock: info.sock, heard: make(chan *wire.Up), broke: make(chan struct{}),
	}, nil
}

// Peer is one session as the proxy sees it.
type Peer struct {
	*Sender
	Leaf *x509.Certificate // the node's
	Addr net.Addr

	stream grpc.BidiStreamingServer[wire.Up, wire.Down]
	sock   *socket
	heard  chan *wire.Up
	broke  chan struct{} // closed when err is set
	err    error
}

// Node returns the node's name.
func (p *Peer) Node() string { return p.Leaf.Subject.CommonName }

// listen reads what the node says until the stream ends.
func (p *Peer) listen(ctx context.Context) {
	defer close(p.broke)
	for {
		m, err := p.stream.Recv()
		if err == nil {
			err = checkUp(m)
		}
		if errors.Is(err, io.EOF) {
			p.err = io.EOF
			return
		}
		if err != nil {
			p.err = fmt.Errorf("link: receive: %w", err)
			return
		}
		select {
		case p.heard <- m:
		case <-ctx.Done():
			p.err = ctx.Err()
			return
		}
	}
}

// Recv returns what the node says next; io.EOF if it has no more to say.
func (p *Peer) Recv(ctx context.Context) (*wire.Up, error) {
	select {
	case m := <-p.heard:
		return m, nil
	case <-p.broke:
		return nil, p.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// TCP returns what the kernel says of the connection.
func (p *Peer) TCP() TCP { return p.sock.tcp() }

// Enrol implements wire.EnrolmentServer.
func (s *Server) Enrol(ctx context.Context, r *wire.EnrolRequest) (*wire.EnrolAnswer, error) {
	cert, authority, err := s.enroller.Enrol(ctx, r.GetToken(), r.GetRequest())
	return &wire.EnrolAnswer{Certificate: cert, Authority: authority}, asStatus(err)
}

// Renew implements wire.EnrolmentServer.
func (s *Server) Renew(ctx context.Context, r *wire.RenewRequest) (*wire.EnrolAnswer, error) {
	from, ok := peer.FromContext(ctx)
	if !ok {
		return nil, status.Error(codes.Internal, "link: no peer")
	}
	info, ok := from.AuthInfo.(peerInfo)
	if !ok || len(info.State.VerifiedChains) == 0 {
		return nil, status.Error(codes.Unauthenticated, "link: a certificate is renewed with the one before it")
	}
	cert, authority, err := s.enroller.Renew(ctx, info.State.VerifiedChains[0][0], r.GetRequest())
	return &wire.EnrolAnswer{Certificate: cert, Authority: authority}, asStatus(err)
}

// asStatus gives an error the code that tells the other end what to do.
func asStatus(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return nil
	}
	code := codes.Unavailable
	if r, ok := errors.AsType[*Refusal](err); ok {
		switch r.Reason {
		case wire.Reason_REASON_NODE:
			code = codes.PermissionDenied
		case wire.Reason_REASON_LIMIT:
			code = codes.ResourceExhausted
		case wire.Reason_REASON_REQUEST:
			code = codes.InvalidArgument
		default:
		}
		return status.Error(code, r.Text)
	}
	if errors.Is(err, ErrProtocol) {
		code = codes.InvalidArgument
	}
	return status.Error(code, err.Error())
}

// checkUp refuses what no honest node says. The handler judges what it means.
func checkUp(m *wire.Up) error {
	switch k := m.GetKind().(type) {
	case *wire.Up_Pull:
		p := k.Pull
		if p.GetId() == 0 || len(p.GetReference()) > maxText || len(p.GetPlatform()) > maxText || len(p.GetHave()) > maxHave || len(p.GetWarm()) > maxWarm ||
			len(p.GetTables())%8 != 0 || len(p.GetTables()) > 8*maxTables || len(p.GetPartial()) > int(NumLanes) || len(p.GetKnown()) != 0 && len(p.GetKnown()) != 32 {
			return broken("a pull that can't be one")
		}
		if r := p.GetResume(); r != nil && (len(r.GetManifest()) != 32 || len(r.GetPlan()) != 0 && len(r.GetPlan()) != 32) {
			return broken("a pull resumes what can't be one")
		}
	case *wire.Up_Blob:
		b := k.Blob
		if b.GetId() == 0 || len(b.GetReference()) > maxText || b.GetOffset() < 0 || b.GetLane() >= uint32(NumLanes) {
			return broken("a question for a blob that can't be one")
		}
	case *wire.Up_Demand:
		if len(k.Demand.GetChunks()) > MaxDemand || k.Demand.GetLane() >= uint32(NumLanes) {
			return broken("a demand of %d chunks in lane %d", len(k.Demand.GetChunks()), k.Demand.GetLane())
		}
	case *wire.Up_Terms:
		if k.Terms.GetHeld() >= 1<<NumLanes {
			return broken("terms for lanes that there are not: %b", k.Terms.GetHeld())
		}
	}
	return nil
}

// MaxDemand is how many chunks one demand may name.
const MaxDemand = 1024
