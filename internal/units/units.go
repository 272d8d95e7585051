// Package units reads and writes sizes and rates as people write them in a
// configuration and on a command line, with the unit always said: "256kbit" is
// 256,000 bits a second, "50GB" is 50,000,000,000 bytes, "64KiB" is 65,536. A
// bare number is an error, because on a metered link an eightfold mistake is
// expensive and looks right.
package units

import (
	"errors"
	"fmt"
	"math/big"
	"strconv"
	"strings"
)

// Bytes is a size.
type Bytes int64

// MB is a million bytes.
const MB Bytes = 1_000_000

// BitRate is a rate in bits per second, as links are sold.
type BitRate int64

// ErrUnit says that a text has no unit, or one that means something else.
var ErrUnit = errors.New("the unit is missing or unknown")

// unit is a factor and its name. In the lists the largest comes first, and of
// those with one factor the one that is written.
type unit struct {
	name   string
	factor int64
}

var byteUnits = []unit{
	{"TiB", 1 << 40}, {"TB", 1e12}, {"GiB", 1 << 30}, {"GB", 1e9}, {"MiB", 1 << 20}, {"MB", 1e6}, {"KiB", 1 << 10}, {"kB", 1e3}, {"KB", 1e3}, {"B", 1},
}

var bitUnits = []unit{{"gbit", 1e9}, {"mbit", 1e6}, {"kbit", 1e3}, {"bit", 1}}

// ParseBytes reads a size such as "64KiB", "50GB" or "1.5 MB". KiB, MiB, GiB
// and TiB are powers of two; kB, MB, GB and TB powers of ten. Parts of a byte
// are dropped.
func ParseBytes(s string) (Bytes, error) {
	n, err := parse(s, func(name string) int64 {
		for _, u := range byteUnits {
			if u.name == name {
				return u.factor
			}
		}
		return 0
	})
	if err != nil {
		return 0, fmt.Errorf("%q is not a size such as 64KiB, 500MB or 50GB: %w", s, err)
	}
	return Bytes(n), nil
}

// ParseBitRate reads a rate such as "256kbit", "1.5Mbit/s" or "32kB/s". Units of
// bits are per second, also if they don't say so; those of bytes must say it,
// so that nobody takes one for the other.
func ParseBitRate(s string) (BitRate, error) {
	n, err := parse(s, func(name string) int64 {
		name, perSecond := strings.CutSuffix(name, "/s")
		for _, u := range bitUnits {
			if strings.EqualFold(u.name, name) {
				return u.factor
			}
		}
		for _, u := range byteUnits {
			if perSecond && u.name == name && u.factor <= 1<<30 {
				return 8 * u.factor
			}
		}
		return 0
	})
	if err != nil {
		return 0, fmt.Errorf("%q is not a rate such as 2400bit, 256kbit or 1.5mbit: %w", s, err)
	}
	return BitRate(n), nil
}

// parse reads a decimal number and a unit that factor knows; 0 means that it
// doesn't.
func parse(s string, factor func(name string) int64) (int64, error) {
	s = strings.TrimSpace(s)
	digits := s[:len(s)-len(strings.TrimLeft(s, "0123456789."))]
	f := factor(strings.TrimSpace(s[len(digits):]))
	whole, part, point := strings.Cut(digits, ".")
	if len(digits) > 30 || whole == "" || point && part == "" || strings.Contains(part, ".") {
		return 0, errors.New("the number is malformed")
	}
	if f == 0 {
		return 0, ErrUnit
	}
	n, _ := new(big.Rat).SetString(digits)
	n.Mul(n, new(big.Rat).SetInt64(f))
	floor := new(big.Int).Quo(n.Num(), n.Denom())
	if !floor.IsInt64() {
		return 0, errors.New("it is too large")
	}
	if floor.Sign() == 0 && n.Sign() != 0 {
		return 0, errors.New("it is less than one")
	}
	return floor.Int64(), nil
}

// format writes n in the largest unit that leaves at most three decimals and
// is exact.
func format(n int64, units []unit) string {
	for _, u := range units {
		if u.factor == 1 || n < u.factor {
			continue
		}
		if n%u.factor == 0 {
			return strconv.FormatInt(n/u.factor, 10) + u.name
		}
		if step := u.factor / 1000; u.factor%1000 == 0 && n%step == 0 {
			return fmt.Sprintf("%d.%s%s", n/u.factor, strings.TrimRight(fmt.Sprintf("%03d", n%u.factor/step), "0"), u.name)
		}
	}
	return strconv.FormatInt(n, 10) + units[len(units)-1].name
}

// String writes the size exactly, as ParseBytes reads it: "64KiB", "1.5GB".
func (b Bytes) String() string { return format(int64(b), byteUnits) }

// MarshalText implements encoding.TextMarshaler.
func (b Bytes) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (b *Bytes) UnmarshalText(text []byte) (err error) {
	*b, err = ParseBytes(string(text))
	return err
}

// String writes the rate exactly, as ParseBitRate reads it: "1.5mbit".
func (r BitRate) String() string { return format(int64(r), bitUnits) }

// MarshalText implements encoding.TextMarshaler.
func (r BitRate) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (r *BitRate) UnmarshalText(text []byte) (err error) {
	*r, err = ParseBitRate(string(text))
	return err
}

// BytesPerSecond returns the rate as transfers count it, rounded up: a rate
// above 0 stays above 0.
func (r BitRate) BytesPerSecond() int64 {
	if r <= 0 {
		return 0
	}
	return (int64(r)-1)/8 + 1
}
