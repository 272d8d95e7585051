package link

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Parse reads a profile from a string: the name of a known one, or settings,
// or a name followed by settings that change it, separated by commas.
//
//	rtt=600ms        or rtt=700ms-1.1s for a delay that wanders
//	down=2mbit       shore to node; bit, kbit, mbit or gbit; "none" or "unlimited"
//	up=512kbit       node to shore
//	loss=1%/3        mean (or 0.01/3), and packets in a row; loss=0 for none
//	outage=30s/10m   down for 30 s in every 10 min, at the end of each;
//	                 outage=30s/10m@1m starts the first after 1 min;
//	                 outage=30s@1m is a single one; outage=none clears,
//	                 several add up
//	queue=64KiB      bytes that wait each way; B, kB, KiB, MB, MiB; "auto"
//	mtu=1500
//	name=TEXT
//
// Without a name the settings change Direct. An error names the setting.
func Parse(text string) (Profile, error) {
	p := Direct()
	p.Name = ""
	for i, setting := range strings.Split(text, ",") {
		setting = strings.TrimSpace(setting)
		key, value, ok := strings.Cut(setting, "=")
		if !ok {
			named, known := ProfileNamed(setting)
			if !known || i > 0 {
				return Profile{}, fmt.Errorf("link: profile %q: %q is neither a known profile nor a setting KEY=VALUE (known: %s)",
					text, setting, strings.Join(names(), ", "))
			}
			p = named
			continue
		}
		if err := p.set(key, value); err != nil {
			return Profile{}, fmt.Errorf("link: profile %q: %s: %w", text, key, err)
		}
	}
	if err := p.Validate(); err != nil {
		return Profile{}, err
	}
	return p, nil
}

// names lists the known profiles, for messages.
func names() []string {
	var all []string
	for _, p := range Profiles() {
		all = append(all, p.Name)
	}
	return append(all, Direct().Name, "any of them with "+losslessSuffix)
}

// set changes one setting. Outages add up within one string, so a profile
// that has some must be cleared first with outage=none.
func (p *Profile) set(key, value string) (err error) {
	switch key {
	case "name":
		p.Name = value
	case "rtt":
		low, high, ranged := strings.Cut(value, "-")
		p.RTT, err = time.ParseDuration(low)
		p.RTTMax = 0
		if ranged && err == nil {
			p.RTTMax, err = time.ParseDuration(high)
		}
	case "down":
		p.Down, err = parseRate(value)
	case "up":
		p.Up, err = parseRate(value)
	case "loss":
		p.Loss, err = parseLoss(value)
	case "outage":
		if value == "none" {
			p.Outages = nil
			break
		}
		var o Outage
		o, err = ParseOutage(value)
		p.Outages = append(slices.Clip(p.Outages), o)
	case "queue":
		p.Queue, err = parseSize(value)
	case "mtu":
		p.MTU, err = strconv.Atoi(value)
	default:
		err = errors.New("unknown setting (known: rtt, down, up, loss, outage, queue, mtu, name)")
	}
	return err
}

// String returns what Parse reads back as the same profile.
func (p Profile) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "rtt=%v", p.RTT)
	if p.RTTMax != 0 {
		fmt.Fprintf(&b, "-%v", p.RTTMax)
	}
	fmt.Fprintf(&b, ",down=%s,up=%s,loss=%s", p.Down, p.Up, formatFloat(p.Loss.Mean))
	if p.Loss.Burst != 0 {
		fmt.Fprintf(&b, "/%s", formatFloat(p.Loss.Burst))
	}
	for _, o := range p.Outages {
		fmt.Fprintf(&b, ",outage=%s", o)
	}
	if p.Queue != 0 {
		fmt.Fprintf(&b, ",queue=%dB", p.Queue)
	}
	fmt.Fprintf(&b, ",mtu=%d", p.MTU)
	if p.Name != "" {
		fmt.Fprintf(&b, ",name=%s", p.Name)
	}
	return b.String()
}

// MarshalText writes what String returns.
func (p Profile) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText reads what Parse reads.
func (p *Profile) UnmarshalText(text []byte) (err error) {
	*p, err = Parse(string(text))
	return err
}

// rateUnits, largest first.
var rateUnits = []struct {
	name string
	unit BitsPerSecond
}{{"gbit", 1000 * Mbit}, {"mbit", Mbit}, {"kbit", Kbit}, {"bit", Bit}}

// maxRate bounds rates: above it, emulating one would be pretence.
const maxRate = 1000 * 1000 * Mbit

func parseRate(text string) (BitsPerSecond, error) {
	switch text {
	case "none":
		return 0, nil
	case "unlimited":
		return Unlimited, nil
	}
	for _, u := range rateUnits {
		number, ok := strings.CutSuffix(text, u.name)
		if !ok {
			continue
		}
		v, err := strconv.ParseFloat(number, 64)
		rate := v * float64(u.unit)
		if err != nil || !(rate >= 1 && rate <= float64(maxRate)) {
			break
		}
		return BitsPerSecond(rate + 0.5), nil
	}
	return 0, fmt.Errorf("%q is not a rate such as 512kbit, none or unlimited", text)
}

// String writes the rate in the largest unit that shows it exactly.
func (r BitsPerSecond) String() string {
	if r == 0 {
		return "none"
	}
	if r == Unlimited {
		return "unlimited"
	}
	for _, u := range rateUnits {
		if r%u.unit == 0 {
			return strconv.FormatInt(int64(r/u.unit), 10) + u.name
		}
	}
	return strconv.FormatInt(int64(r), 10) + "bit"
}

func parseLoss(text string) (Loss, error) {
	mean, burst, ranged := strings.Cut(text, "/")
	var l Loss
	var err error
	percent, isPercent := strings.CutSuffix(mean, "%")
	if l.Mean, err = strconv.ParseFloat(percent, 64); err != nil {
		return Loss{}, fmt.Errorf("%q is not a loss such as 1%%/3", text)
	}
	if isPercent {
		l.Mean /= 100
	}
	if ranged {
		if l.Burst, err = strconv.ParseFloat(burst, 64); err != nil {
			return Loss{}, fmt.Errorf("%q is not a loss such as 1%%/3", text)
		}
	}
	return l, l.validate()
}

// ParseOutage reads an outage as Parse does: FOR[/EVERY][@AFTER].
func ParseOutage(text string) (Outage, error) {
	bad := fmt.Errorf("%q is not an outage such as 30s/10m or 30s@5m", text)
	spec, after, delayed := strings.Cut(text, "@")
	dark, every, repeated := strings.Cut(spec, "/")
	var o Outage
	var err error
	if o.For, err = time.ParseDuration(dark); err != nil {
		return Outage{}, bad
	}
	if repeated {
		if o.Every, err = time.ParseDuration(every); err != nil || o.Every <= 0 {
			return Outage{}, bad
		}
		o.After = o.Every - o.For
	}
	if delayed {
		if o.After, err = time.ParseDuration(after); err != nil {
			return Outage{}, bad
		}
	}
	return o, validateOutages([]Outage{o})
}

// String returns what ParseOutage reads back as the same outage.
func (o Outage) String() string {
	if o.Every == 0 {
		return fmt.Sprintf("%v@%v", o.For, o.After)
	}
	return fmt.Sprintf("%v/%v@%v", o.For, o.Every, o.After)
}

// MarshalText writes what String returns.
func (o Outage) MarshalText() ([]byte, error) { return []byte(o.String()), nil }

// UnmarshalText reads what ParseOutage reads.
func (o *Outage) UnmarshalText(text []byte) (err error) {
	*o, err = ParseOutage(string(text))
	return err
}

// maxQueue bounds queues: an emulator must not eat the machine.
const maxQueue = 1 << 30

func parseSize(text string) (int64, error) {
	if text == "auto" {
		return 0, nil
	}
	for _, u := range []struct {
		name string
		unit int64
	}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"kB", 1000}, {"MB", 1e6}, {"B", 1}} {
		number, ok := strings.CutSuffix(text, u.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(number, 10, 64)
		if err != nil || n <= 0 || n > maxQueue/u.unit {
			break
		}
		return n * u.unit, nil
	}
	return 0, fmt.Errorf("%q is not a size such as 64KiB or 1500B (at most 1 GiB), nor auto", text)
}

func formatFloat(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }
