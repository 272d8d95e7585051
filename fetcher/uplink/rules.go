package uplink

import (
	"log/slog"
	"time"
)

// NotNow is the error of a request whose class the policy doesn't let use the
// link now. It says nothing of the link, the registry or the content: ask
// again at Again, or when Meter.Changed says so.
type NotNow struct {
	Class Class
	Again time.Time // at the latest in askAgain, for clocks are set
	Why   string    // for people
}

// Error implements error.
func (n *NotNow) Error() string { return n.Why }

// askAgain is the longest time for which an answer holds.
const askAgain = 10 * time.Minute

// rules are the policy and what is needed to apply it. They are guarded by
// Meter.mu.
type rules struct {
	policy Policy
	usage  *Usage

	open          bool // a window is, from opened until closes
	opened, until time.Time
	told          string // the day on which was said that nothing is left for demand
}

// SetPolicy replaces the policy, which must be valid; what is under way obeys
// it, too.
func (m *Meter) SetPolicy(p Policy) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if least := leastCrowd(p); least != leastCrowd(m.rules.policy) {
		m.crowd.n = least
	}
	m.rules.policy = p.clone()
	m.rules.opened, m.rules.until, m.rules.told = time.Time{}, time.Time{}, ""
	m.divide()
	m.changed()
	m.wake()
}

// Policy returns the policy.
func (m *Meter) Policy() Policy {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rules.policy.clone()
}

// Account has what crosses counted in u, which the caller closes after the
// last stream has ended.
func (m *Meter) Account(u *Usage) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.rules.usage = u
}

// Admit tells whether a request of class c may begin now; if not, when to ask
// again, which may be earlier than anything changes, and why, for people.
func (m *Meter) Admit(c Class) (ok bool, again time.Time, why string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	if no := m.admit(now, c); no != nil {
		return false, no.Again, no.Why
	}
	return true, time.Time{}, ""
}

// admit returns why a class may not use the link, or nil. m.mu is held.
func (m *Meter) admit(now time.Time, c Class) *NotNow {
	p := &m.rules.policy
	if c > p.Outside && c != Demand {
		if open, until := m.rules.window(now); !open {
			why := "outside the contact window"
			if !until.IsZero() {
				why += " until " + clock(now, until)
			}
			return notNow(now, c, until, why)
		}
	}
	if p.DailyBytes == 0 && p.ClassBytes[c] == 0 {
		return nil
	}
	used, renewed := m.rules.usage.today()
	var total int64
	for _, n := range used {
		total += n
	}
	var what string
	switch {
	case p.ClassBytes[c] > 0 && used[c] >= p.ClassBytes[c]:
		what = "daily budget for " + c.String() + " is used up"
	case p.DailyBytes > 0 && total >= p.DailyBytes:
		what = "daily budget is used up"
	case p.DailyBytes > 0 && c != Demand && total >= p.DailyBytes-p.Reserve:
		what = "daily budget is used up but for the reserve for demand"
	default:
		return nil
	}
	if c == Demand && !p.Hard {
		if today := now.Format(time.DateOnly); m.rules.told != today {
			m.rules.told = today
			m.log.Warn("a daily budget is used up; what somebody waits for crosses all the same", slog.String("why", what), slog.Int64("bytes", total))
		}
		return nil
	}
	return notNow(now, c, renewed, what+" until "+clock(now, renewed))
}

// notNow says no until a time, which is zero if it is not known.
func notNow(now time.Time, c Class, until time.Time, why string) *NotNow {
	again := now.Add(askAgain)
	if !until.IsZero() && until.Before(again) {
		again = until
	}
	return &NotNow{Class: c, Again: again, Why: why}
}

// clock writes a time as short as it is clear.
func clock(now, t time.Time) string {
	if t.Sub(now) <= day && t.After(now) {
		return t.Format("15:04")
	}
	return t.Format("Mon 2006-01-02 15:04")
}

// window tells whether a contact window is open, and until when that holds.
// It remembers the answer: it is asked for every piece that is read.
func (r *rules) window(now time.Time) (open bool, until time.Time) {
	now = now.Round(0) // windows are on the wall, and that clock may be set back
	if r.opened.IsZero() || now.Before(r.opened) || !r.until.IsZero() && !now.Before(r.until) {
		r.open, r.until = r.policy.open(now)
		r.opened = now
	}
	return r.open, r.until
}

// Window tells whether a contact window is open, and until when that holds; zero: for
// ever.
func (m *Meter) Window() (open bool, until time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rules.window(m.now())
}

// describe fills in what a State says of the policy.
func (r *rules) describe(now time.Time, s *State) {
	s.BudgetLeft = -1
	var total int64
	s.Today, _ = r.usage.today()
	for _, n := range s.Today {
		total += n
	}
	if r.policy.DailyBytes > 0 {
		s.BudgetLeft = max(0, r.policy.DailyBytes-total)
	}
	if open, until := r.window(now); !open {
		s.NextWindow = until
	}
}
