package link

import "time"

// How much is on its way
//
// What the kernel has taken can't be overtaken, so it gets little at a time. And
// what has left this machine waits in a modem, in front of what somebody waits for,
// unless it leaves no faster than the link carries it. BBR sees to that. Where the
// kernel has none, congestion control fills the modem's queue until it overflows:
// there the brake holds the connection to the rate that it delivers, as soon as
// packets take longer than they have to.

const (
	// Pieces are as large as the link carries in pieceTime, within bounds: the
	// smallest still spends less than 3% on headers, and the largest is one
	// record of TLS.
	minPiece   = 1400
	maxPiece   = 16<<10 - 64
	usualPiece = 4 << 10
	pieceTime  = 20 * time.Millisecond

	// ahead is how many bytes of messages may wait between the Sender and the
	// kernel: enough that the writer never starves while the next piece is made.
	// lowWater is how many bytes the kernel takes beyond what the congestion
	// window lets go (facts, links: priority). Both are for a time, within bounds.
	aheadTime     = 30 * time.Millisecond
	leastAhead    = 3 << 10
	mostAhead     = 8 << 10
	lowWaterTime  = 60 * time.Millisecond
	leastLowWater = 6 << 10
	mostLowWater  = 16 << 10
)

// portions are how much is handed on at a time, in bytes.
type portions struct {
	piece    int
	ahead    int64
	lowWater int
}

// portionsAt returns what fits a rate, in bytes/s; <= 0 is one that is not known.
func portionsAt(rate int64) portions {
	if rate <= 0 {
		return portions{usualPiece, mostAhead, mostLowWater}
	}
	in := func(d time.Duration, least, most int64) int64 {
		return min(max(int64(float64(rate)*d.Seconds()), least), most)
	}
	return portions{int(in(pieceTime, minPiece, maxPiece)), in(aheadTime, leastAhead, mostAhead), int(in(lowWaterTime, leastLowWater, mostLowWater))}
}

// bucket holds a session to a rate. What was sent is taken out afterwards and may
// leave a debt.
type bucket struct {
	rate   int64   // bytes/s; 0: any
	tokens float64 // bytes
	filled time.Time
}

const (
	// overhead is what headers of IP, TCP, TLS and HTTP/2 add to messages.
	overhead = 1.05
	// burst is how long a rate may be saved up. Short: the rate is one that
	// somebody has paid for.
	burst = 100 * time.Millisecond
)

func (b *bucket) set(now time.Time, rate int64) {
	b.fill(now)
	if b.rate = max(0, rate); b.rate == 0 {
		b.tokens = 0
	}
}

func (b *bucket) fill(now time.Time) {
	r := float64(b.rate)
	if !b.filled.IsZero() {
		b.tokens += r * now.Sub(b.filled).Seconds()
	}
	b.tokens = min(b.tokens, r*burst.Seconds())
	b.filled = now
}

func (b *bucket) take(now time.Time, n int64) {
	if b.rate > 0 {
		b.fill(now)
		b.tokens -= overhead * float64(n)
	}
}

// wait returns how long to wait before more is sent.
func (b *bucket) wait(now time.Time) time.Duration {
	if b.rate == 0 {
		return 0
	}
	if b.fill(now); b.tokens >= 0 {
		return 0
	}
	return max(time.Duration(-b.tokens/float64(b.rate)*float64(time.Second)), time.Millisecond)
}

// brake finds the rate to which the kernel is held: where it has no BBR, and for a
// moment where BBR begins anew.
type brake struct {
	best    int64         // bytes/s; the greatest that was delivered lately
	least   time.Duration // the shortest round trip
	held    int64         // bytes/s; 0: not held
	renewed time.Time     // when BBR began anew last
	steady  bool          // there had been no pause for long, then: the best rate is the link's
	rested  time.Time     // when there was a pause last
}

const (
	// queued is how many times the shortest round trip packets may take, and
	// slack what they may take beyond: below that it is jitter and not a queue.
	queued = 1.25
	slack  = 10 * time.Millisecond
	// eased and probed are how much below and above the best rate the connection
	// is held while a queue stands, and while none does. Guesses, of BBR's kind.
	eased  = 0.9
	probed = 1.1
	// faded is how much of the best rate is forgotten with each look, so that a
	// link that has become slower is noticed within seconds.
	faded = 0.98

	// BBR looks for the shortest round trip whenever it has seen none as short for
	// 10 s, and all but stops for that: for two round trips, which is an eighth of
	// a satellite's link, and who waits for a chunk just then waits twice as long. It
	// need not: TCP remembers the shortest of five minutes. So where a round trip is
	// longer than farAway, BBR begins anew before it comes to that, best after a pause.
	// For some round trips it would send at three times the rate then to find it out; so
	// long it is held to what is known. After a pause nothing is: to hold it to what has
	// been delivered since would have it take that for the link's rate, and come to
	// the real one in half a minute.
	renewEvery = 9 * time.Second
	renewAfter = 4 * time.Second // if there was a pause
	aPause     = 100 * time.Millisecond
	farAway    = 150 * time.Millisecond
	afresh     = 6 // round trips
)

// rate returns the pace for the kernel, in bytes/s; 0: none. most is what may be sent
// at all; the bucket sees to that, and the kernel evens it out.
func (b *brake) rate(now time.Time, t TCP, most int64) int64 {
	pace := most + most/10
	if t.Control == "" || t.Rate <= 0 || t.RTT <= 0 {
		return pace
	}
	b.best = max(int64(float64(b.best)*faded), t.Rate)
	if t.Control == "bbr" {
		b.held = 0
		if b.steady && now.Sub(b.renewed) < afresh*t.RTT {
			b.held = int64(probed * float64(b.best))
		}
	} else {
		b.watch(t)
	}
	if b.held > 0 && (pace == 0 || b.held < pace) {
		return max(b.held, minPiece)
	}
	return pace
}

// watch brakes while packets take longer than they have to.
func (b *brake) watch(t TCP) {
	if b.least == 0 || t.RTT < b.least {
		b.least = t.RTT
	}
	if t.MinRTT > 0 {
		b.least = min(b.least, t.MinRTT)
	}
	switch full := t.RTT > time.Duration(queued*float64(b.least))+slack; {
	case full:
		b.held = int64(eased * float64(b.best))
	case b.held > 0: // find out whether there is more
		b.held = max(int64(probed*float64(b.best)), b.held+b.held/20)
	}
}

// began notes that BBR has begun anew after a pause.
func (b *brake) began(now time.Time) {
	b.best, b.held, b.renewed, b.steady, b.rested = 0, 0, now, false, now
}

// renew tells whether BBR is to begin anew now that something is to be sent, after a
// pause of d.
func (b *brake) renew(now time.Time, t TCP, d time.Duration) bool {
	if d >= aPause {
		b.rested = now
	}
	since := now.Sub(b.renewed)
	if t.Control != "bbr" || t.MinRTT < farAway || t.Rate <= 0 || since < renewAfter || since < renewEvery && d < aPause {
		return false
	}
	b.renewed, b.steady = now, now.Sub(b.rested) > afresh*t.RTT
	return true
}
