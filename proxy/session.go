package proxy

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/airstream-io/airstream/internal/link"
	"github.com/airstream-io/airstream/internal/link/wire"
)

// session is a node that is here.
type session struct {
	s     *Server
	peer  *link.Peer
	end   context.CancelCauseFunc
	began time.Time
	log   *slog.Logger
	work  sync.WaitGroup

	ledger *ledger
	seen   atomic.Uint64 // records of this connection that the node is known to have
	held   atomic.Uint32 // as wire.Terms has it

	mu    sync.Mutex
	pulls map[uint32]*pull // guarded by mu; by ID, blobs too
	blobs int              // guarded by mu; of these, blobs
}

// serve answers what the node says until it has no more to say, or is gone.
func (ss *session) serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer ss.work.Wait()
	defer cancel()
	for {
		m, err := ss.peer.Recv(ctx)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch k := m.GetKind().(type) {
		case *wire.Up_Pull:
			ss.heard(k.Pull.GetRecords())
			ss.pull(ctx, k.Pull)
		case *wire.Up_Blob:
			ss.blob(ctx, k.Blob)
		case *wire.Up_Demand:
			ss.heard(k.Demand.GetRecords())
			ss.demand(k.Demand)
		case *wire.Up_Cancel:
			ss.heard(k.Cancel.GetRecords())
			ss.cancel(k.Cancel.GetPull())
		case *wire.Up_Terms:
			ss.terms(k.Terms)
		}
	}
}

// pull begins a pull, unless it is under way already.
func (ss *session) pull(ctx context.Context, req *wire.Pull) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if _, ok := ss.pulls[req.GetId()]; ok {
		return
	}
	p := newPull(ss, req)
	if len(ss.pulls)-ss.blobs >= ss.s.opts.Limits.Pulls {
		ss.work.Go(func() {
			_ = p.refuse(ctx, refuse(wire.Reason_REASON_REQUEST, "%d images at a time are too many", ss.s.opts.Limits.Pulls+1)) // the session ends anyway
		})
		return
	}
	ss.pulls[req.GetId()] = p
	ctx, p.stop = context.WithCancel(ctx)
	ss.work.Go(func() { p.run(ctx) })
	for lane := range link.NumLanes {
		ss.work.Go(func() { p.serveDemands(ctx, lane) })
	}
	ss.work.Go(func() { p.reassure(ctx) })
}

func (ss *session) find(id uint32) *pull {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	return ss.pulls[id]
}

func (ss *session) demand(m *wire.Demand) {
	if p := ss.find(m.GetPull()); p != nil {
		p.want(m)
	}
}

// heard notes how many records have come whole.
func (ss *session) heard(records uint64) {
	if records > ss.seen.Load() { // one goroutine listens
		ss.seen.Store(records)
	}
}

// cancel ends a pull. What others had left to it is theirs again.
func (ss *session) cancel(id uint32) {
	ss.mu.Lock()
	p := ss.pulls[id]
	delete(ss.pulls, id)
	others := slices.Collect(maps.Values(ss.pulls))
	ss.mu.Unlock()
	if p == nil {
		return
	}
	p.stop()
	ss.ledger.leave(id)
	for _, o := range others {
		o.takeBack(id, arrived(ss.seen.Load()))
	}
}

// terms puts in force what the node's policy has.
func (ss *session) terms(m *wire.Terms) {
	ss.held.Store(m.GetHeld())
	rate := int64(min(m.GetRate(), 1<<40)) //nolint:gosec // bounded
	if most := ss.s.opts.Limits.Rate; most > 0 && (rate == 0 || most < rate) {
		rate = most
	}
	ss.peer.Pace(rate)
	ss.peer.Hold(m.GetHeld())
}

// tableLane is the lane for tables: whoever looks at a file waits for them, so that
// they cross even if what a start reads may not.
func (ss *session) tableLane() link.Lane {
	if ss.held.Load()&(1<<link.Hot) != 0 {
		return link.Demand
	}
	return link.Hot
}
