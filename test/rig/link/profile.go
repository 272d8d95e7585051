// Package link emulates the thin, far, lossy link between shore and node.
//
// The two sides are network namespaces (package netns), each with a TUN
// device. Everything that one side sends comes out of its device as IP
// packets; the emulator carries them to the other device, later, slower, and
// not all of them:
//
//	sender ─ TUN ─ queue ─ serialiser ─ air (loss, delay, darkness) ─ TUN ─ receiver
//
// The queue is finite and drops what does not fit. The serialiser puts one
// packet after another on the link, at the rate of the profile, counted in
// bytes of whole IP packets: it is a token bucket as deep as one packet, so
// that no burst ever exceeds the rate. In the air a packet is lost to noise
// in bursts (Gilbert-Elliott), or to darkness if the link is down when it is
// sent or when it would arrive, and it never overtakes another one. TCP over
// such a link behaves as it does at sea: nothing in it is simulated.
//
// A Profile says how a link is; Profiles lists the ones that Airstream is
// made for. Start makes namespaces, devices and an emulator in a process of
// its own (test/cmd/airlink), which runs with raised priority so that a busy
// machine does not turn into a slow link, and returns a Link to command it
// with. The shaping itself (shaper.go) knows neither devices nor clocks: it
// is told the time, so its tests need neither root nor patience.
//
// Only IPv4 is carried with understanding (connections are counted and can
// be reset); anything else crosses uncounted by connection.
package link

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// BitsPerSecond is a rate, counted over whole IP packets.
type BitsPerSecond int64

// Units of rates, and the rate of a link that is not the bottleneck.
const (
	Bit       BitsPerSecond = 1
	Kbit                    = 1000 * Bit
	Mbit                    = 1000 * Kbit
	Unlimited               = BitsPerSecond(math.MaxInt64)
)

// transmit returns how long it takes to put size bytes on the link.
func (r BitsPerSecond) transmit(size int) time.Duration {
	if r == Unlimited {
		return 0
	}
	return time.Duration(int64(size) * 8 * int64(time.Second) / int64(r))
}

// Bytes returns how many bytes cross in d, at most math.MaxInt64.
func (r BitsPerSecond) Bytes(d time.Duration) int64 {
	n := float64(r) / 8 * d.Seconds()
	if n >= math.MaxInt64 {
		return math.MaxInt64
	}
	return int64(n)
}

// Loss is noise: the share of packets that are lost, and how many are lost
// in a row. Packets are lost in a bad state that is entered and left at
// random so that both figures hold on average (Gilbert-Elliott with nothing
// lost in the good state and everything in the bad one).
type Loss struct {
	Mean  float64 // 0 to 1 exclusive
	Burst float64 // packets, at least 1; 0 means 1 / (1 - Mean), that is, independent losses
}

// Outage is darkness by timetable. Times count from the moment when the
// timetable was set.
type Outage struct {
	For   time.Duration // how long the link is down; above 0
	Every time.Duration // from the start of one to the start of the next; 0: once only
	After time.Duration // start of the first one
}

// dark reports whether the outage holds at t.
func (o Outage) dark(t time.Duration) bool {
	t -= o.After
	if t < 0 {
		return false
	}
	if o.Every > 0 {
		t %= o.Every
	}
	return t < o.For
}

// Profile says how a link is. The zero value carries nothing: see Direct.
type Profile struct {
	Name string // for people

	// RTT is the delay of both ways together, half of it each way, without
	// the time that packets wait in the queue and that they take to be sent.
	// If RTTMax is above it, the delay wanders between the two.
	RTT    time.Duration
	RTTMax time.Duration

	Down BitsPerSecond // shore to node; 0: nothing crosses
	Up   BitsPerSecond // node to shore; 0: nothing crosses

	Loss    Loss // each way
	Outages []Outage

	MTU   int   // bytes of the largest IP packet
	Queue int64 // bytes that may wait to be sent, each way; 0: see QueueLimit
}

// Sizes that bound a profile.
const (
	MinMTU     = 68    // RFC 791: what every link must carry
	MaxMTU     = 65535 // RFC 791: the largest packet there is
	DefaultMTU = 1500
)

// Direct is a link without any limit: two machines on one cable.
func Direct() Profile {
	return Profile{Name: "direct", Down: Unlimited, Up: Unlimited, MTU: DefaultMTU}
}

// Profiles returns the links that Airstream is made for, slowest first.
//
// Rates, delays, loss and sizes are public figures and engineering estimates
// of such links. Where the source gives a range of rates, the upper end is
// here. How often a geo-vsat is down for 30 s (heavy rain, a mast in the way)
// and for 5 min (handover between beams) is a guess: both come late, so that
// nothing that is measured in the first half hour meets one.
func Profiles() []Profile {
	return []Profile{
		{
			Name: "vlf-oneway", Down: 300 * Bit, MTU: 200,
			Loss: Loss{0.15, 5}, Outages: []Outage{periodic(6*time.Hour, 24*time.Hour)},
		},
		{
			Name: "hf", RTT: 8 * time.Second, RTTMax: 20 * time.Second,
			Down: 2400 * Bit, Up: 600 * Bit, MTU: 576,
			Loss: Loss{0.05, 6}, Outages: []Outage{periodic(20*time.Minute, time.Hour)},
		},
		{
			Name: "iridium-narrow", RTT: 1400 * time.Millisecond, RTTMax: 2 * time.Second,
			Down: 2400 * Bit, Up: 2400 * Bit, MTU: 576,
			Loss: Loss{0.01, 3}, Outages: []Outage{periodic(20*time.Second, 9*time.Minute)},
		},
		{
			Name: "iridium-certus", RTT: 700 * time.Millisecond, RTTMax: 1100 * time.Millisecond,
			Down: 352 * Kbit, Up: 176 * Kbit, MTU: 1358,
			Loss: Loss{0.02, 8}, Outages: []Outage{periodic(40*time.Second, 10*time.Minute)},
		},
		{
			Name: "l-band", RTT: 900 * time.Millisecond, RTTMax: 1200 * time.Millisecond,
			Down: 432 * Kbit, Up: 256 * Kbit, MTU: 1400, Loss: Loss{0.005, 4},
		},
		{
			Name: "pass", RTT: 40 * time.Millisecond, Down: 1 * Mbit, Up: 64 * Kbit, MTU: 1400,
			Loss: Loss{0.01, 5}, Outages: []Outage{periodic(87*time.Minute, 95*time.Minute)},
		},
		{
			Name: "geo-vsat", RTT: 600 * time.Millisecond, Down: 2 * Mbit, Up: 500 * Kbit, MTU: 1500,
			Loss: Loss{0.01, 3}, Outages: []Outage{
				periodic(30*time.Second, time.Hour),
				{For: 5 * time.Minute, Every: 24 * time.Hour, After: 12*time.Hour + 30*time.Minute},
			},
		},
		{
			Name: "leo", RTT: 40 * time.Millisecond, RTTMax: 70 * time.Millisecond,
			Down: 50 * Mbit, Up: 8 * Mbit, MTU: 1500,
			Loss: Loss{0.01, 20}, Outages: []Outage{periodic(150*time.Millisecond, 15*time.Second)},
		},
		{Name: "diode", Down: 100 * Mbit, MTU: 1500, Loss: Loss{0.0005, 30}},
	}
}

// periodic is an outage that ends each period: the link starts up.
func periodic(dark, every time.Duration) Outage {
	return Outage{For: dark, Every: every, After: every - dark}
}

// losslessSuffix makes the name of a profile's lossless variant.
const losslessSuffix = "-lossless"

// ProfileNamed returns the profile of that name, or the lossless variant of
// "NAME-lossless".
func ProfileNamed(name string) (Profile, bool) {
	for _, p := range append(Profiles(), Direct()) {
		switch name {
		case p.Name:
			return p, true
		case p.Name + losslessSuffix:
			return p.Lossless(), true
		}
	}
	return Profile{}, false
}

// Lossless returns the link on its best day: no noise and no outages, so that
// only the queue drops anything. Figures taken on it can be reproduced.
func (p Profile) Lossless() Profile {
	if p.Name != "" {
		p.Name += losslessSuffix
	}
	p.Loss, p.Outages = Loss{}, nil
	return p
}

// queuePackets is how many full packets a queue holds at least; modems are
// not built with fewer. Guess.
const queuePackets = 16

// QueueLimit returns how many bytes may wait to be sent at rate, which is the
// profile's Down or Up: Queue if it is set, else what the rate carries in one
// round trip (at least in 10 ms), but no fewer than 16 full packets.
func (p Profile) QueueLimit(rate BitsPerSecond) int64 {
	if p.Queue > 0 {
		return p.Queue
	}
	if rate == Unlimited {
		return math.MaxInt64 // nothing ever waits
	}
	return max(rate.Bytes(max(p.RTT, p.RTTMax, 10*time.Millisecond)), int64(queuePackets*p.MTU))
}

// Validate returns an error that names the first impossible value.
func (p Profile) Validate() error {
	switch {
	case p.MTU < MinMTU || p.MTU > MaxMTU:
		return fmt.Errorf("link: profile: mtu %d: want %d to %d", p.MTU, MinMTU, MaxMTU)
	case p.RTT < 0 || p.RTT > time.Hour || p.RTTMax > time.Hour:
		return fmt.Errorf("link: profile: rtt %v-%v: want 0 to 1h", p.RTT, p.RTTMax)
	case p.RTTMax != 0 && p.RTTMax < p.RTT:
		return fmt.Errorf("link: profile: rtt %v-%v: the second is the longer one", p.RTT, p.RTTMax)
	case p.Down < 0 || p.Up < 0:
		return fmt.Errorf("link: profile: rates %d, %d: below 0", p.Down, p.Up)
	case p.Queue != 0 && p.Queue < int64(p.MTU):
		return fmt.Errorf("link: profile: queue of %d bytes can't hold a packet of %d", p.Queue, p.MTU)
	}
	if err := p.Loss.validate(); err != nil {
		return err
	}
	return validateOutages(p.Outages)
}

func (l Loss) validate() error {
	if !(l.Mean >= 0 && l.Mean < 1) {
		return fmt.Errorf("link: profile: loss %v: want 0 to below 1", l.Mean)
	}
	if l.Burst != 0 && !(l.Burst >= 1 && l.Burst <= 1e6) {
		return fmt.Errorf("link: profile: loss burst %v: want 1 to 1e6 packets", l.Burst)
	}
	if enter, _ := l.transitions(); enter > 1 {
		return fmt.Errorf("link: profile: loss of %v in bursts of %v: such short bursts can't lose that much", l.Mean, l.Burst)
	}
	return nil
}

func validateOutages(outages []Outage) error {
	for _, o := range outages {
		if o.For <= 0 || o.After < 0 || o.Every < 0 || (o.Every > 0 && o.For > o.Every) {
			return fmt.Errorf("link: outage %s: want a duration within its period", o)
		}
	}
	return nil
}

// clone returns a copy that shares no memory.
func (p Profile) clone() Profile {
	p.Outages = slices.Clone(p.Outages)
	return p
}
