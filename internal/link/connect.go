package link

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"

	"github.com/airstream-io/airstream/internal/link/wire"
)

const (
	// Windows of what the proxy sends: several times what any of our links holds.
	// Fixed ones also keep gRPC from sending pings to measure the link, and its
	// 64 KiB would cap a stream at 0.9 Mbit/s over 600 ms (facts, links).
	streamWindow = 8 << 20
	connWindow   = 8 << 20
	maxMessage   = 64 << 10 // pieces are far smaller
)

// once opens one connection and serves it until it breaks. progress tells that a
// session came about.
func (s *Session) once(ctx context.Context, failures int) (progress bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w := newWatch(s.opts.MinStall<<min(failures, 4), cancel)
	defer w.end()
	conn, err := s.opts.connect(w)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	stream, err := wire.NewLinkClient(conn).Session(ctx)
	if err != nil {
		return false, w.why(err)
	}
	if _, err := stream.Header(); err != nil {
		return false, w.why(err)
	}
	s.up(ctx)
	var sending sync.WaitGroup
	defer sending.Wait()
	defer cancel()
	s.begin(w)
	defer s.finish(w)
	sending.Go(func() {
		if err := s.sendAll(ctx, stream); err != nil && ctx.Err() == nil {
			s.log.DebugContext(ctx, "sending to the proxy", slog.Any("error", err))
			cancel()
		}
	})
	return true, w.why(s.receive(ctx, stream, w))
}

// connect prepares a connection under watch; it is made when it is used.
func (o *Options) connect(w *watch) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient("passthrough:///"+o.Address,
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			c, err := o.Dial(ctx, "tcp", addr)
			if err != nil {
				w.failed(err)
				return nil, err
			}
			return w.on(c, o.Traffic), nil
		}),
		grpc.WithTransportCredentials(heldCreds{credentials.NewTLS(o.TLS), w}),
		grpc.WithInitialWindowSize(streamWindow), grpc.WithInitialConnWindowSize(connWindow),
		grpc.WithReadBufferSize(16<<10), grpc.WithWriteBufferSize(4<<10),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: time.Hour, MaxDelay: time.Hour}, MinConnectTimeout: time.Hour}),
		grpc.WithIdleTimeout(0), grpc.WithDisableServiceConfig(), grpc.WithDisableRetry(), grpc.WithDisableHealthCheck(), grpc.WithNoProxy(),
	)
	if err != nil {
		return nil, fmt.Errorf("link: %s: %w", o.Address, err)
	}
	return conn, nil
}

// begin lets a connection begin with all that is wanted.
func (s *Session) begin(w *watch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watch, s.out = w, nil
	s.received.Store(new(atomic.Uint64))
	if s.terms != nil {
		s.out = append(s.out, &wire.Up{Kind: &wire.Up_Terms{Terms: s.terms}})
	}
	wanted := len(s.out)
	for _, p := range s.pulls {
		s.out = append(s.out, p.request()...)
	}
	if len(s.out) == wanted {
		w.rest()
	} else {
		w.busyNow()
	}
}

func (s *Session) finish(w *watch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watch, s.out = nil, nil
	s.state.Bytes += w.bytes()
	for _, b := range s.blobs {
		b.end(ErrDown)
	}
	s.blobs = map[uint32]*Blob{}
}

// sendAll sends what is queued until ctx ends.
func (s *Session) sendAll(ctx context.Context, stream grpc.BidiStreamingClient[wire.Up, wire.Down]) error {
	for {
		s.mu.Lock()
		out, more := s.out, s.more
		s.out = nil
		s.mu.Unlock()
		for _, m := range out {
			if err := stream.Send(m); err != nil {
				return err
			}
		}
		if len(out) > 0 {
			continue
		}
		select {
		case <-more:
		case <-ctx.Done():
			return nil
		}
	}
}

// receive takes what comes until the stream breaks, and keeps the beginnings of
// records.
func (s *Session) receive(ctx context.Context, stream grpc.BidiStreamingClient[wire.Up, wire.Down], w *watch) error {
	r := receiver{begun: s.begun}
	defer func() {
		for _, part := range r.partials() {
			if p := s.pull(part.head.GetPull()); p != nil {
				p.keep(part)
			}
		}
	}()
	unasked := idle{since: time.Now()}
	for {
		m, err := stream.Recv()
		if err != nil {
			return told(err)
		}
		w.busy(true) // what takes its time here is not the link
		rec, err := r.piece(m)
		if err == nil && rec != nil {
			if err = s.deliver(ctx, rec, &unasked); err == nil {
				s.counter().Add(1)
			}
		}
		w.busy(false)
		if err != nil {
			return err
		}
		if rec != nil && !s.waiting() {
			w.rest()
		}
	}
}

func (s *Session) pull(id uint32) *Pull {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pulls[id]
}

func (s *Session) begun(h *wire.Head) ([]byte, bool) {
	if p := s.pull(h.GetPull()); p != nil {
		return p.begun(h)
	}
	return nil, false
}

// deliver hands a record to its pull.
func (s *Session) deliver(ctx context.Context, r *record, unasked *idle) error {
	s.mu.Lock()
	p, b := s.pulls[r.head.GetPull()], s.blobs[r.head.GetPull()]
	s.mu.Unlock()
	if b != nil {
		return b.take(ctx, r)
	}
	if p == nil {
		return unasked.add(r)
	}
	switch k := r.head.GetKind().(type) {
	case *wire.Head_Refusal:
		if err := unasked.add(r); err != nil {
			return err
		}
		ref := refusalOf(k.Refusal)
		if ref.Temporary() {
			p.sink.Status(ref.Error())
			return nil // the proxy goes on trying
		}
		p.fail(ref)
		return nil
	case *wire.Head_Status:
		p.sink.Status(clip(k.Status.GetText()))
		return unasked.add(r)
	case nil:
		return unasked.add(r)
	}
	return p.take(ctx, r, unasked)
}

func refusalOf(m *wire.Refusal) *Refusal {
	r := &Refusal{Reason: m.GetReason(), Text: clip(m.GetText())}
	if t := m.GetSince(); t > 0 {
		r.Since = time.Unix(t, 0)
	}
	return r
}

func clip(s string) string { return s[:min(len(s), maxText)] }
