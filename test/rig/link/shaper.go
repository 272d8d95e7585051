package link

import (
	"math/rand/v2"
	"time"
)

// Count is a number of packets and their bytes, IP headers included.
type Count struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

func (c *Count) add(size int) {
	c.Packets++
	c.Bytes += uint64(size) //nolint:gosec // the length of a slice
}

func (c Count) minus(d Count) Count {
	return Count{c.Packets - d.Packets, c.Bytes - d.Bytes}
}

// Mode is what a command has done to the link.
type Mode string

// The modes. In each of them packets that are lost say nothing to anybody,
// except that ModeReset answers.
const (
	ModeOpen      Mode = "open"      // as the profile says
	ModeCut       Mode = "cut"       // dark: what is in the air is lost, too
	ModeBlackhole Mode = "blackhole" // the modem takes packets and forgets them; what is in the air arrives
	ModeReset     Mode = "reset"     // the same, but TCP is answered with RST, as by a modem that has rebooted
)

// packet is one IP packet on its way.
type packet struct {
	data []byte
	due  time.Duration // arrival, once it is in the air
}

// shaper decides what happens to the packets of one direction, and when. It
// knows no clock: every method is told the time since the link began, which
// must never run backwards. It is not safe for concurrent use.
//
// Data handed to offer belongs to the shaper until it comes out of deliver
// or discard.
type shaper struct {
	deliver func(now time.Duration, p packet) // a packet has arrived
	discard func(data []byte)                 // a packet is lost; its buffer is free

	rate     BitsPerSecond
	limit    int64 // bytes that may wait, the packet that is being sent included
	noise    noise
	delay    wander
	mode     Mode
	outages  []Outage
	outageT0 time.Duration // when the timetable was set

	waiting ring[packet] // to be sent; the first one is being sent
	queued  int64        // bytes in waiting
	sentAt  time.Duration
	air     ring[packet] // sent, sorted by arrival
	last    time.Duration

	count DirectionStats
}

// newShaper makes the shaper of an open link.
func newShaper(seed uint64, deliver func(time.Duration, packet), discard func([]byte)) *shaper {
	return &shaper{
		deliver: deliver, discard: discard, mode: ModeOpen,
		noise: noise{random: rand.New(rand.NewPCG(seed, 1))},
		delay: wander{random: rand.New(rand.NewPCG(seed, 2))},
	}
}

// set changes the link from now on. What is in the air keeps its arrival; the
// packet that is being sent goes on at the new rate.
func (s *shaper) set(now time.Duration, p Profile, rate BitsPerSecond) {
	s.advance(now)
	if s.waiting.len() > 0 && s.rate > 0 && rate > 0 {
		left := s.sentAt - now
		s.sentAt = now + time.Duration(float64(left)*float64(s.rate)/float64(rate))
	}
	s.rate, s.limit = rate, p.QueueLimit(rate)
	if rate == 0 {
		for s.waiting.len() > 0 {
			s.drop(&s.count.Blackholed, s.waiting.pop())
		}
		s.queued = 0
	}
	s.noise.set(p.Loss)
	s.delay.set(now, p.RTT/2, max(p.RTT, p.RTTMax)/2)
	s.schedule(now, p.Outages)
	s.advance(now)
}

// schedule replaces the timetable of outages; it starts now.
func (s *shaper) schedule(now time.Duration, outages []Outage) {
	s.advance(now)
	s.outages, s.outageT0 = outages, now
}

// command changes the mode from now on.
func (s *shaper) command(now time.Duration, m Mode) {
	s.advance(now)
	s.mode = m
}

// offer takes a packet that the sender puts on the link.
func (s *shaper) offer(now time.Duration, data []byte) {
	s.advance(now)
	s.count.Offered.add(len(data))
	p := packet{data: data}
	switch {
	case s.rate == 0 || s.mode == ModeBlackhole || s.mode == ModeReset:
		s.drop(&s.count.Blackholed, p)
		return
	case s.queued+int64(len(data)) > s.limit:
		s.drop(&s.count.QueueDropped, p)
		return
	}
	if s.waiting.len() == 0 {
		s.sentAt = now + s.rate.transmit(len(data))
	}
	s.waiting.push(p)
	s.queued += int64(len(data))
	s.count.MaxQueue = max(s.count.MaxQueue, s.queued)
	s.advance(now)
}

// advance lets happen what is due by now.
func (s *shaper) advance(now time.Duration) {
	for s.waiting.len() > 0 && s.sentAt <= now {
		p := s.waiting.pop()
		s.queued -= int64(len(p.data))
		sent := s.sentAt
		if s.waiting.len() > 0 {
			s.sentAt += s.rate.transmit(len(s.waiting.first().data))
		}
		s.launch(sent, p)
	}
	for s.air.len() > 0 && s.air.first().due <= now {
		p := s.air.pop()
		if s.dark(p.due) {
			s.drop(&s.count.OutageDropped, p)
			continue
		}
		s.count.Delivered.add(len(p.data))
		s.count.MaxLate = max(s.count.MaxLate, now-p.due)
		s.deliver(now, p)
	}
}

// launch sends a packet into the air at time sent, or loses it.
func (s *shaper) launch(sent time.Duration, p packet) {
	lost := s.noise.lost() // always asked, so that darkness does not shift the bursts that follow
	switch {
	case s.dark(sent):
		s.drop(&s.count.OutageDropped, p)
	case lost:
		s.drop(&s.count.LossDropped, p)
	default:
		p.due = max(sent+s.delay.at(sent), s.last)
		s.last = p.due
		s.air.push(p)
	}
}

func (s *shaper) drop(c *Count, p packet) {
	c.add(len(p.data))
	s.discard(p.data)
}

// next returns when advance has something to do again; ok is false if only
// an offer can change anything.
func (s *shaper) next() (at time.Duration, ok bool) {
	switch {
	case s.air.len() > 0:
		return s.air.first().due, true
	case s.waiting.len() > 0:
		return s.sentAt, true
	}
	return 0, false
}

// dark reports whether the link is down at t, which may lie a little in the
// past but not before the last command.
func (s *shaper) dark(t time.Duration) bool {
	if s.mode == ModeCut {
		return true
	}
	for _, o := range s.outages {
		if o.dark(t - s.outageT0) {
			return true
		}
	}
	return false
}

// stats returns the counters as of now.
func (s *shaper) stats(now time.Duration) DirectionStats {
	s.advance(now)
	c := s.count
	c.Queue = s.queued
	c.InAir = s.air.len()
	return c
}

// wander is a one-way delay: fixed, or on its way from one random aim between
// low and high to the next.
type wander struct {
	random     *rand.Rand
	low, high  time.Duration
	step       time.Duration // from one aim to the next
	from, to   time.Duration // delays at start and at start + step
	start      time.Duration
	travelling bool
}

// minWanderStep is how often a delay that wanders picks its next aim, at the
// most. Guess: satellites hand over every few seconds to minutes.
const minWanderStep = 10 * time.Second

// set changes the bounds from now on. Steps are so long that the delay never
// changes by more than a hundredth of the time that passes: packets come
// closer together while it falls and further apart while it rises, and the
// rate that a receiver sees must not show that.
func (w *wander) set(now, low, high time.Duration) {
	w.low, w.high = low, high
	w.travelling = high > low
	if w.travelling {
		w.step = max(minWanderStep, 100*(high-low))
		w.start, w.from, w.to = now, w.aim(), w.aim()
	}
}

func (w *wander) aim() time.Duration {
	return w.low + time.Duration(w.random.Int64N(int64(w.high-w.low)+1))
}

// at returns the delay at t, which must never run backwards.
func (w *wander) at(t time.Duration) time.Duration {
	if !w.travelling {
		return w.low
	}
	for t-w.start >= w.step {
		w.start += w.step
		w.from, w.to = w.to, w.aim()
	}
	done := float64(t-w.start) / float64(w.step)
	return w.from + time.Duration(float64(w.to-w.from)*done)
}

// ring is a first-in, first-out queue that reuses its memory.
type ring[T any] struct {
	items []T // its length is a power of two
	head  int
	n     int
}

func (r *ring[T]) len() int  { return r.n }
func (r *ring[T]) first() *T { return &r.items[r.head] }
func (r *ring[T]) pop() T {
	var zero T
	v := r.items[r.head]
	r.items[r.head] = zero
	r.head = (r.head + 1) & (len(r.items) - 1)
	r.n--
	return v
}

func (r *ring[T]) push(v T) {
	if r.n == len(r.items) {
		grown := make([]T, max(64, 2*len(r.items)))
		for i := range r.n {
			grown[i] = r.items[(r.head+i)&(len(r.items)-1)]
		}
		r.items, r.head = grown, 0
	}
	r.items[(r.head+r.n)&(len(r.items)-1)] = v
	r.n++
}
