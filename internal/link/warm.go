package link

import (
	"context"
	"time"

	"github.com/airstream-io/airstream/internal/link/wire"
)

// A warm session
//
// A connection begins with leave to have ten packets on their way, 14 kB, and gets
// leave for as many more as have been acknowledged. So the first answer would take
// three round trips, however quick the link. Congestion control counts packets and
// not bytes. So while nothing is asked for yet, a session is warmed with the
// smallest packets there are: some 5 kB make room for the first chunk of a start and
// what goes before it. On a link that takes its time for ten of them it stops: there
// ten large ones fill it. Where round trips are short, three of them don't matter.
const (
	warmWindow  = 64                    // packets: 90 kB
	warmRounds  = 5                     // at most: 10, 20, 40 and then some
	warmAfter   = 50 * time.Millisecond // that nothing is asked for
	warmLook    = 20 * time.Millisecond // how often acknowledgments are looked for
	warmQueued  = 1.3                   // times the shortest round trip
	warmSlack   = 30 * time.Millisecond // what it may take beyond
	warmPatient = 10 * time.Second      // for acknowledgments
)

// warm opens the window while there is nothing to send. sent are the bytes of
// messages so far, and with what it sent; warm is false if something came between.
func (s *Sender) warm(ctx context.Context, sent int64) (_ int64, warm bool, err error) {
	if !s.idle(ctx, warmAfter) {
		return sent, false, ctx.Err()
	}
	defer func() {
		if warm {
			s.forgetRate()
		}
	}()
	for range warmRounds {
		t := s.sock.tcp()
		if t.Window == 0 || t.Window >= warmWindow || t.MinRTT < farAway {
			return sent, true, nil
		}
		for range min(t.Window, warmWindow-t.Window) {
			if !s.idle(ctx, 0) {
				return sent, false, ctx.Err()
			}
			m := &wire.Down{Head: &wire.Head{Kind: &wire.Head_Status{Status: &wire.Status{}}}}
			s.mu.Lock()
			s.records++
			s.mu.Unlock()
			if err := s.send(m); err != nil {
				return sent, false, err
			}
			sent += s.size(m)
			if err := s.gone(ctx, sent); err != nil {
				return sent, false, err
			}
		}
		began := time.Now()
		for s.sock.tcp().Waiting {
			if time.Since(began) > warmPatient || !s.idle(ctx, warmLook) {
				return sent, false, ctx.Err()
			}
		}
		if time.Since(began) > time.Duration(warmQueued*float64(t.MinRTT))+warmSlack+2*warmLook {
			break
		}
	}
	return sent, true, nil
}

// forgetRate has BBR begin anew behind packets that were too small to show what the
// link carries: else it takes their few bytes for all there is, and comes to the real
// rate in half a minute.
func (s *Sender) forgetRate() {
	t := s.sock.tcp()
	if t.Control != "bbr" || t.MinRTT < farAway {
		return
	}
	s.sock.pace(0)
	s.sock.renew()
	s.brake.began(time.Now())
}

// gone waits until all that was sent has left this machine, so that what is sent next
// goes in a packet of its own.
func (s *Sender) gone(ctx context.Context, sent int64) error {
	if err := s.sock.room(ctx, sent, 0); err != nil {
		return err
	}
	t := time.NewTicker(time.Millisecond)
	defer t.Stop()
	for until := time.Now().Add(warmLook); s.sock.tcp().Unsent > 0 && time.Now().Before(until); {
		select {
		case <-t.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// idle tells whether there is nothing to send for so long, and no limit.
func (s *Sender) idle(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	for {
		s.mu.Lock()
		idle, changed := s.bucket.rate == 0, s.changed
		for i := range s.lanes {
			idle = idle && len(s.lanes[i].records) == 0
		}
		s.mu.Unlock()
		if !idle {
			return false
		}
		select {
		case <-t.C:
			return true
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}
