package config

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/airstream-io/airstream/internal/units"
)

// Duration is a time.Duration that TOML has as a string: "90s", "15m".
type Duration time.Duration

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf("%q is not a duration such as 90s or 15m", b)
	}
	*d = Duration(v)
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// none is how "no limit" is written. A limit of 0 is refused: it would have to
// mean "nothing may cross", and no code may take it for "no limit".
const none = "none"

var errZero = errors.New("a limit of 0 would let nothing cross; for no limit say none")

// Rate is a limit of what crosses the link in a second: "256kbit", or "none",
// which is 0.
type Rate units.BitRate

// UnmarshalText implements encoding.TextUnmarshaler.
func (r *Rate) UnmarshalText(b []byte) error {
	if *r = 0; string(b) == none {
		return nil
	}
	v, err := units.ParseBitRate(string(b))
	if err == nil && v == 0 {
		err = errZero
	}
	*r = Rate(v)
	return err
}

// MarshalText implements encoding.TextMarshaler.
func (r Rate) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// String writes the rate as it is read.
func (r Rate) String() string {
	if r == 0 {
		return none
	}
	return units.BitRate(r).String()
}

// BytesPerSecond returns the rate as transfers count it; 0 is no limit.
func (r Rate) BytesPerSecond() int64 { return units.BitRate(r).BytesPerSecond() }

// Size is a limit in bytes: "500MB", "50GiB", or "none", which is 0.
type Size units.Bytes

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Size) UnmarshalText(b []byte) error {
	if *s = 0; string(b) == none {
		return nil
	}
	v, err := units.ParseBytes(string(b))
	if err == nil && v == 0 {
		err = errZero
	}
	*s = Size(v)
	return err
}

// MarshalText implements encoding.TextMarshaler.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// String writes the size as it is read.
func (s Size) String() string {
	if s == 0 {
		return none
	}
	return units.Bytes(s).String()
}

// TimeOfDay is a time since local midnight, in whole minutes: "22:00". "24:00"
// is the day's end.
type TimeOfDay time.Duration

// UnmarshalText implements encoding.TextUnmarshaler.
func (t *TimeOfDay) UnmarshalText(b []byte) error {
	v, err := time.Parse("15:04", string(b))
	switch {
	case string(b) == "24:00":
		*t = TimeOfDay(24 * time.Hour)
	case err != nil || len(b) != len("15:04"):
		return fmt.Errorf("%q is not a time of day such as 06:30 or 22:00", b)
	default:
		*t = TimeOfDay(time.Duration(v.Hour())*time.Hour + time.Duration(v.Minute())*time.Minute)
	}
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (t TimeOfDay) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// String writes the time as it is read.
func (t TimeOfDay) String() string {
	m := time.Duration(t) / time.Minute
	return fmt.Sprintf("%02d:%02d", m/60, m%60)
}

// Weekday is a day of the week: "mon".
type Weekday time.Weekday

var weekdays = []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Weekday) UnmarshalText(b []byte) error {
	i := slices.Index(weekdays, string(b))
	if i < 0 {
		return fmt.Errorf("%q is no day of the week; use %s", b, strings.Join(weekdays, ", "))
	}
	*d = Weekday(i)
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (d Weekday) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// String writes the day as it is read.
func (d Weekday) String() string { return weekdays[max(0, min(int(d), 6))] }
