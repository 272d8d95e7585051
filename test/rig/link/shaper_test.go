package link

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// arrival is what came out of a shaper.
type arrival struct {
	at   time.Duration
	size int
	id   byte
}

// bench is a shaper under a clock that the test sets.
type bench struct {
	*shaper
	now      time.Duration
	arrivals []arrival
	lost     int
}

func newBench(p Profile, rate BitsPerSecond, seed uint64) *bench {
	b := &bench{}
	b.shaper = newShaper(seed,
		func(now time.Duration, p packet) {
			b.arrivals = append(b.arrivals, arrival{now, len(p.data), p.data[0]})
		},
		func([]byte) { b.lost++ })
	b.set(0, p, rate)
	return b
}

func (b *bench) send(size int, id byte) {
	data := make([]byte, size)
	data[0] = id
	b.offer(b.now, data)
}

// until lets the time pass, waking the shaper exactly when it asks for it.
func (b *bench) until(t time.Duration) {
	for {
		at, ok := b.next()
		if !ok || at > t {
			b.now = t
			b.advance(t)
			return
		}
		b.now = max(b.now, at)
		b.advance(b.now)
	}
}

// conserved fails unless every packet is accounted for.
func (b *bench) conserved(t *testing.T) {
	t.Helper()
	s := b.stats(b.now)
	under := uint64(b.waiting.len() + s.InAir)
	if sum := s.Delivered.Packets + s.Dropped().Packets + under; sum != s.Offered.Packets {
		t.Errorf("%d packets offered, %d accounted for: %+v", s.Offered.Packets, sum, s)
	}
	if uint64(len(b.arrivals)) != s.Delivered.Packets || uint64(b.lost) != s.Dropped().Packets {
		t.Errorf("counters say %d delivered and %d dropped, it was %d and %d",
			s.Delivered.Packets, s.Dropped().Packets, len(b.arrivals), b.lost)
	}
}

var clean = Profile{RTT: 600 * time.Millisecond, MTU: 1500}

func TestOnePacketTakesItsTimeAndTheDelay(t *testing.T) {
	b := newBench(clean, 2*Mbit, 1)
	b.now = time.Second
	b.send(1500, 1)
	b.until(10 * time.Second)
	// 12000 bits at 2 Mbit/s are 6 ms; half a round trip is 300 ms.
	want := []arrival{{time.Second + 306*time.Millisecond, 1500, 1}}
	if !slices.Equal(b.arrivals, want) {
		t.Errorf("got %v, want %v", b.arrivals, want)
	}
	b.conserved(t)
}

func TestRateHoldsToTheNanosecond(t *testing.T) {
	b := newBench(clean, 2*Mbit, 1)
	for i := range 100 {
		b.send(1500, byte(i))
	}
	b.until(10 * time.Second)
	for i, a := range b.arrivals {
		if want := 300*time.Millisecond + time.Duration(i+1)*6*time.Millisecond; a.at != want || a.id != byte(i) {
			t.Fatalf("packet %d arrived as %d at %v, want %v", i, a.id, a.at, want)
		}
	}
	if len(b.arrivals) != 100 {
		t.Errorf("%d arrived", len(b.arrivals))
	}
}

// A worker that oversleeps must not lower the rate.
func TestLateWakeupsKeepTheRate(t *testing.T) {
	b := newBench(clean, 2*Mbit, 1)
	for range 1000 {
		b.send(1500, 0)
		b.now += 5 * time.Millisecond // the queue grows slowly
		b.advance(b.now)
	}
	if got := b.count.Delivered.Packets; got != (5000-300)/6 {
		t.Errorf("%d packets in 5 s, want %d", got, (5000-300)/6)
	}
}

func TestQueueDropsTheTail(t *testing.T) {
	p := clean
	p.Queue = 4500
	b := newBench(p, 2*Mbit, 1)
	for i := range 5 {
		b.send(1500, byte(i))
	}
	b.until(6 * time.Millisecond) // the first one has been sent: room for one
	b.send(1500, 5)
	b.send(1500, 6)
	b.until(time.Minute)
	var ids []byte
	for _, a := range b.arrivals {
		ids = append(ids, a.id)
	}
	if !slices.Equal(ids, []byte{0, 1, 2, 5}) {
		t.Errorf("arrived: %v", ids)
	}
	if b.count.MaxQueue != 4500 || b.count.QueueDropped != (Count{3, 4500}) {
		t.Errorf("counters %+v", b.count)
	}
	b.conserved(t)
}

func TestDefaultQueue(t *testing.T) {
	for name, want := range map[string]int64{
		"geo-vsat": 150000, // 2 Mbit/s × 600 ms
		"leo":      437500, // 50 Mbit/s × 70 ms
		"diode":    125000, // no round trip: 10 ms
		"hf":       9216,   // 16 packets: a round trip is less
	} {
		p, ok := ProfileNamed(name)
		if !ok {
			t.Fatal(name)
		}
		if got := p.QueueLimit(p.Down); got != want {
			t.Errorf("%s: %d bytes, want %d", name, got, want)
		}
	}
}

func TestLossHasItsMeanAndItsBursts(t *testing.T) {
	for _, l := range []Loss{{0.01, 3}, {0.15, 5}, {0.0005, 30}, {0.01, 20}, {0.03, 0}} {
		n := noise{random: rand.New(rand.NewPCG(7, 1))}
		n.set(l)
		const packets = 4_000_000
		lost, bursts, before := 0, 0, false
		for range packets {
			now := n.lost()
			if now {
				lost++
			}
			if now && !before {
				bursts++
			}
			before = now
		}
		burst := l.Burst
		if burst == 0 {
			burst = 1 / (1 - l.Mean)
		}
		mean, length := float64(lost)/packets, float64(lost)/float64(bursts)
		// Four standard errors, a burst being one event.
		tolerance := 4 / math.Sqrt(packets*l.Mean/burst)
		if math.Abs(mean/l.Mean-1) > 1.5*tolerance || math.Abs(length/burst-1) > tolerance {
			t.Errorf("%+v: lost %.5f in bursts of %.2f", l, mean, length)
		}
	}
}

func TestSameSeedSameFate(t *testing.T) {
	run := func(seed uint64) []arrival {
		p := Profile{RTT: 40 * time.Millisecond, RTTMax: 70 * time.Millisecond, MTU: 1500, Loss: Loss{0.1, 3}}
		b := newBench(p, 8*Mbit, seed)
		for i := range 2000 {
			b.send(100+i%1000, byte(i))
			b.until(b.now + time.Millisecond)
		}
		return b.arrivals
	}
	if !slices.Equal(run(1), run(1)) {
		t.Error("the same seed gave two fates")
	}
	if slices.Equal(run(1), run(2)) {
		t.Error("two seeds gave the same fate")
	}
}

func TestOutagesByTimetable(t *testing.T) {
	p := Profile{MTU: 1500, Outages: []Outage{periodic(20*time.Second, time.Minute), {For: time.Second, After: 10 * time.Second}}}
	b := newBench(p, Unlimited, 1)
	got := make(map[time.Duration]bool)
	for s := range 180 {
		b.until(time.Duration(s)*time.Second + 500*time.Millisecond)
		n := len(b.arrivals)
		b.send(100, 0)
		got[time.Duration(s)*time.Second] = len(b.arrivals) > n
	}
	for at, arrived := range got {
		want := at%time.Minute < 40*time.Second && at != 10*time.Second
		if arrived != want {
			t.Errorf("packet at %v: arrived %v, want %v", at, arrived, want)
		}
	}
	if b.count.OutageDropped.Packets != 61 {
		t.Errorf("%d dropped", b.count.OutageDropped.Packets)
	}
	b.conserved(t)
}

func TestCutLosesWhatIsInTheAir(t *testing.T) {
	b := newBench(clean, 2*Mbit, 1)
	b.send(1500, 0) // arrives at 306 ms
	b.until(100 * time.Millisecond)
	b.command(b.now, ModeCut)
	b.send(1500, 1)
	b.until(time.Second)
	b.command(b.now, ModeOpen)
	b.send(1500, 2)
	b.until(2 * time.Second)
	if len(b.arrivals) != 1 || b.arrivals[0].id != 2 || b.count.OutageDropped.Packets != 2 {
		t.Errorf("arrived %v, counters %+v", b.arrivals, b.count)
	}
	b.conserved(t)
}

func TestBlackholeLetsTheAirArrive(t *testing.T) {
	b := newBench(clean, 2*Mbit, 1)
	b.send(1500, 0)
	b.until(100 * time.Millisecond)
	b.command(b.now, ModeBlackhole)
	b.send(1500, 1)
	b.until(time.Second)
	if len(b.arrivals) != 1 || b.arrivals[0].id != 0 || b.count.Blackholed.Packets != 1 {
		t.Errorf("arrived %v, counters %+v", b.arrivals, b.count)
	}
	b.conserved(t)
}

func TestOneWayLinkCarriesNothingBack(t *testing.T) {
	p, _ := ProfileNamed("diode")
	b := newBench(p, p.Up, 1)
	b.send(1500, 0)
	b.until(time.Minute)
	if len(b.arrivals) != 0 || b.count.Blackholed.Packets != 1 {
		t.Errorf("arrived %v, counters %+v", b.arrivals, b.count)
	}
}

func TestProfileChangesUnderWay(t *testing.T) {
	b := newBench(clean, 2*Mbit, 1)
	b.send(1500, 0) // takes 6 ms at the old rate
	b.send(1500, 1)
	b.until(3 * time.Millisecond)
	faster := clean
	faster.RTT = 40 * time.Millisecond
	b.set(b.now, faster, 4*Mbit)
	b.until(time.Second)
	// Half of the first one is left, at twice the rate 1.5 ms; the second
	// takes 3 ms.
	want := []arrival{
		{20*time.Millisecond + 4500*time.Microsecond, 1500, 0},
		{20*time.Millisecond + 7500*time.Microsecond, 1500, 1},
	}
	if !slices.Equal(b.arrivals, want) {
		t.Errorf("got %v, want %v", b.arrivals, want)
	}
}

func TestNothingOvertakes(t *testing.T) {
	p := Profile{RTT: 8 * time.Second, RTTMax: 20 * time.Second, MTU: 576}
	b := newBench(p, 2400*Bit, 3)
	low, high := time.Hour, time.Duration(0)
	for i := range 5000 {
		b.send(48, byte(i)) // 160 ms
		sent := b.now + 160*time.Millisecond
		b.until(b.now + time.Second)
		at := b.delay.at(max(sent, b.now))
		low, high = min(low, at), max(high, at)
	}
	b.until(b.now + time.Minute)
	for i, a := range b.arrivals {
		if a.id != byte(i) {
			t.Fatalf("packet %d came out as number %d", a.id, i)
		}
		if i > 0 && a.at-b.arrivals[i-1].at < 900*time.Millisecond {
			t.Errorf("packets sent 1 s apart arrived %v apart", a.at-b.arrivals[i-1].at)
		}
	}
	if low < 4*time.Second || high > 10*time.Second || high-low < 3*time.Second {
		t.Errorf("one-way delay wandered from %v to %v", low, high)
	}
}

// A sender that never stops for longer than a queue lasts, at many sizes:
// the ring that holds the packets grows and wraps.
func TestManyPackets(t *testing.T) {
	p := clean
	p.Queue = 1 << 20
	p.Loss = Loss{0.02, 4}
	b := newBench(p, 10*Mbit, 5)
	for i := range 20000 {
		b.send(40+i*37%1460, byte(i))
		b.until(b.now + time.Duration(i%7)*100*time.Microsecond)
	}
	b.conserved(t)
	b.until(b.now + time.Minute)
	b.conserved(t)
	if b.queued != 0 || b.air.len() != 0 {
		t.Errorf("%d bytes and %d packets never left", b.queued, b.air.len())
	}
}

func BenchmarkShaper(b *testing.B) {
	p, _ := ProfileNamed("leo")
	s := newShaper(1, func(time.Duration, packet) {}, func([]byte) {})
	s.set(0, p, p.Down)
	data := make([]byte, 1500)
	var now time.Duration
	for b.Loop() {
		now += 240 * time.Microsecond
		s.offer(now, data)
	}
}
