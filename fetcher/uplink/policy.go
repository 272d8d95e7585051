package uplink

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// Policy limits what may cross the link. The zero value limits nothing.
//
// Demand is what somebody waits for, and is treated so: windows never hold it
// up, it goes first under a rate cap, and a part of the day's bytes is kept
// for it alone. When even that is used up it goes on unless Hard says
// otherwise, and the log says so once a day.
type Policy struct {
	Rate int64 // bytes/s of all classes together; 0: as fast as the link is

	// DailyBytes is what may cross between two midnights, local time, both
	// ways together with all headers as far as the kernel counts them; 0: any
	// number. Reserve of them are for Demand alone.
	DailyBytes int64
	Reserve    int64
	ClassBytes [NumClasses]int64 // of each class in a day; 0: any number
	Hard       bool              // used up means used up for Demand, too

	// Windows are when the link may be used by what nobody waits for; empty:
	// always. Outside is the least urgent class that may use it outside of
	// them as well: Demand, the zero value, means Demand alone.
	Windows []Window
	Outside Class
}

// Window is a time of the day that recurs. Times are local, on the clock on the
// wall: on days that daylight saving time makes longer or shorter, so is a
// window across the change.
type Window struct {
	From, To time.Duration // since midnight, 0 to 24 h; To <= From crosses midnight
	// Days are those on which the window begins, by time.Weekday; all false:
	// every day.
	Days [7]bool
}

const day = 24 * time.Hour

// Validate returns an error that names the first impossible value.
func (p Policy) Validate() error {
	switch {
	case p.Rate < 0:
		return fmt.Errorf("uplink: policy: a rate of %d bytes/s", p.Rate)
	case p.DailyBytes < 0 || p.Reserve < 0 || slices.Min(p.ClassBytes[:]) < 0:
		return errors.New("uplink: policy: a daily budget below 0")
	case p.DailyBytes == 0 && p.Reserve > 0:
		return errors.New("uplink: policy: a reserve without a daily budget")
	case p.DailyBytes > 0 && p.Reserve > p.DailyBytes:
		return fmt.Errorf("uplink: policy: a reserve of %d bytes out of %d", p.Reserve, p.DailyBytes)
	case int(p.Outside) >= NumClasses:
		return fmt.Errorf("uplink: policy: no class %d", p.Outside)
	}
	for _, w := range p.Windows {
		if w.From < 0 || w.From >= day || w.To < 0 || w.To > day {
			return fmt.Errorf("uplink: policy: window from %v to %v: want times of one day", w.From, w.To)
		}
	}
	return nil
}

// clone returns a copy that shares no memory.
func (p Policy) clone() Policy {
	p.Windows = slices.Clone(p.Windows)
	return p
}

// open tells whether a window is open at now, and when that changes next. It
// is zero if it never does.
func (p Policy) open(now time.Time) (open bool, until time.Time) {
	if len(p.Windows) == 0 {
		return true, time.Time{}
	}
	open = p.openAt(now)
	// Windows recur each week. One that began yesterday may still be open, and
	// the next may be as far as a week away.
	var edges []time.Time
	for d := -1; d <= 8; d++ {
		for _, w := range p.Windows {
			if from, to, ok := w.on(now, d); ok {
				edges = append(edges, from, to)
			}
		}
	}
	slices.SortFunc(edges, time.Time.Compare)
	for _, at := range edges {
		if at.After(now) && p.openAt(at) != open {
			return open, at
		}
	}
	return open, time.Time{}
}

func (p Policy) openAt(t time.Time) bool {
	for _, w := range p.Windows {
		for d := -1; d <= 0; d++ {
			if from, to, ok := w.on(t, d); ok && !t.Before(from) && t.Before(to) {
				return true
			}
		}
	}
	return false
}

// on returns when the window that begins d days after now's opens and closes.
func (w Window) on(now time.Time, d int) (from, to time.Time, ok bool) {
	midnight := func(d int) time.Time {
		return time.Date(now.Year(), now.Month(), now.Day()+d, 0, 0, 0, 0, now.Location())
	}
	if w.Days != [7]bool{} && !w.Days[midnight(d).Weekday()] {
		return from, to, false
	}
	from = onTheWall(midnight(d), w.From)
	if w.To > w.From {
		return from, onTheWall(midnight(d), w.To), true
	}
	return from, onTheWall(midnight(d+1), w.To), true
}

// onTheWall returns when clocks show a time of day, which on some days is not
// as long after midnight.
func onTheWall(midnight time.Time, of time.Duration) time.Time {
	return time.Date(midnight.Year(), midnight.Month(), midnight.Day(), int(of/time.Hour), int(of/time.Minute%60), int(of/time.Second%60), 0, midnight.Location())
}

// midnightAfter returns when the day of t ends.
func midnightAfter(t time.Time) time.Time {
	return time.Date(t.Year(), t.Month(), t.Day()+1, 0, 0, 0, 0, t.Location())
}
