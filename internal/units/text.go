package units

import (
	"fmt"
	"time"
)

// Short writes n bytes for people, in three digits or so and with decimal
// prefixes, as rates have them: "998 B", "6.05 MB".
func Short(n int64) string { return short(float64(n), 1, []string{"B", "kB", "MB", "GB", "TB"}) }

// ShortRate writes a rate given in bytes per second for people, in bits per
// second as links are sold: "256 kbit/s".
func ShortRate(bytesPerSecond float64) string {
	return short(8*bytesPerSecond, 1, []string{"bit/s", "kbit/s", "Mbit/s", "Gbit/s"})
}

func short(v float64, whole int, units []string) string {
	u := 0
	for u < len(units)-1 && v >= 999.5 {
		v /= 1000
		u++
	}
	if u < whole || v >= 999.5 {
		return fmt.Sprintf("%.0f %s", v, units[u])
	}
	return fmt.Sprintf("%.3g %s", v, units[u])
}

// Span writes a duration for people, in its two largest units: "45s", "12m",
// "3h05m", "2d04h". It is never negative.
func Span(d time.Duration) string {
	const day = 24 * time.Hour
	switch d = max(0, d); {
	case d < time.Second && d > 0:
		return fmt.Sprintf("%dms", max(1, d.Milliseconds()))
	case d < 10*time.Second && d%time.Second != 0:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", d/time.Minute, d%time.Minute/time.Second)
	case d < day:
		return fmt.Sprintf("%dh%02dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%dd%02dh", d/day, d%day/time.Hour)
}

// maxSpan is what Transfer answers where the exact time says nothing: longer
// than any crew waits.
const maxSpan = 100 * 365 * 24 * time.Hour

// Transfer returns how long n bytes take at a rate in bytes per second: 0 for
// nothing, at most 100 years.
func Transfer(n int64, bytesPerSecond float64) time.Duration {
	if n <= 0 {
		return 0
	}
	if bytesPerSecond <= 0 || float64(n)/bytesPerSecond > maxSpan.Seconds() {
		return maxSpan
	}
	return time.Duration(float64(n) / bytesPerSecond * float64(time.Second))
}
