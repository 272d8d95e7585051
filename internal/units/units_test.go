package units

import (
	"testing"
	"time"
)

func TestSizesAreReadWithTheirUnit(t *testing.T) {
	for in, want := range map[string]Bytes{
		"0B": 0, "7B": 7, "64KiB": 65536, "1 MiB": 1 << 20, "500MB": 500e6, "50GB": 50e9, "512MiB": 512 << 20,
		"1.5MB": 1.5e6, " 2.25 GiB ": 9 << 28, "1KB": 1000, "1kB": 1000, "2TB": 2e12, "0.5B": -1, "1.0005kB": 1000,
	} {
		got, err := ParseBytes(in)
		if want < 0 {
			if err == nil {
				t.Errorf("%q: got %d, want an error", in, got)
			}
			continue
		}
		if err != nil || got != want {
			t.Errorf("%q: got %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "0", "100", "GB", "-1GB", "1gb", "1Mb", "1mbit", "1e3B", "1/2B", "1.B", ".5B", "1..5B", "1.5.5B", "9999999999TB", "1XB", "1GB/s", "0x10B", "٣B"} {
		if got, err := ParseBytes(in); err == nil {
			t.Errorf("%q: got %d, want an error", in, got)
		}
	}
}

func TestRatesAreBitsPerSecond(t *testing.T) {
	for in, want := range map[string]BitRate{
		"300bit": 300, "2400 bit/s": 2400, "2.4kbit": 2400, "256kbit": 256_000, "1.5mbit": 1_500_000, "1.5Mbit/s": 1_500_000,
		"1Gbit": 1e9, "32kB/s": 256_000, "1MiB/s": 8 << 20, "0bit": 0,
	} {
		if got, err := ParseBitRate(in); err != nil || got != want {
			t.Errorf("%q: got %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "0", "256", "256k", "256kb", "256kB", "1mb/s", "1MBit/min", "-1kbit", "none", "99999999999gbit"} {
		if got, err := ParseBitRate(in); err == nil {
			t.Errorf("%q: got %d, want an error", in, got)
		}
	}
	for r, want := range map[BitRate]int64{0: 0, 1: 1, 8: 1, 9: 2, 256_000: 32_000} {
		if got := r.BytesPerSecond(); got != want {
			t.Errorf("%d bit/s: %d bytes/s, want %d", r, got, want)
		}
	}
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	for n, want := range map[Bytes]string{0: "0B", 1: "1B", 1000: "1kB", 65536: "64KiB", 1_500_000: "1.5MB", 50e9: "50GB", 1 << 30: "1GiB", 1_234_567: "1234.567kB", 1_234_567_891: "1234567.891kB"} {
		if got := n.String(); got != want {
			t.Errorf("%d bytes: %s, want %s", n, got, want)
		}
	}
	for n, want := range map[BitRate]string{0: "0bit", 300: "300bit", 2400: "2.4kbit", 256_000: "256kbit", 1_500_000: "1.5mbit"} {
		if got := n.String(); got != want {
			t.Errorf("%d bit/s: %s, want %s", n, got, want)
		}
	}
}

func FuzzBytes(f *testing.F) {
	for _, s := range []string{"64KiB", "1.5 MB", "50GB", "0B", "9223372036854775807B", "1.000000000000000001TiB"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseBytes(s)
		if err != nil {
			return
		}
		if n < 0 {
			t.Fatalf("%q is %d", s, n)
		}
		if again, err := ParseBytes(n.String()); err != nil || again != n {
			t.Fatalf("%q is %d, written %s, read %d, %v", s, n, n, again, err)
		}
	})
}

func FuzzBitRate(f *testing.F) {
	for _, s := range []string{"256kbit", "1.5mbit", "32kB/s", "300bit/s"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseBitRate(s)
		if err != nil {
			return
		}
		if n < 0 || n.BytesPerSecond() < 0 || n > 0 && n.BytesPerSecond() == 0 {
			t.Fatalf("%q is %d bit/s", s, n)
		}
		if again, err := ParseBitRate(n.String()); err != nil || again != n {
			t.Fatalf("%q is %d, written %s, read %d, %v", s, n, n, again, err)
		}
	})
}

func TestShortTexts(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 998: "998 B", 1000: "1 kB", 6_049_000: "6.05 MB", 999_600: "1 MB", 75e9: "75 GB", 5e15: "5000 TB"} {
		if got := Short(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
	if got := ShortRate(32_000); got != "256 kbit/s" {
		t.Errorf("a rate: %s", got)
	}
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 0: "0s", 3 * time.Millisecond: "3ms", time.Second: "1s", 1500 * time.Millisecond: "1.5s", 45*time.Second + 400*time.Millisecond: "45s", 10 * time.Minute: "10m00s",
		3*time.Hour + 5*time.Minute: "3h05m", 52 * time.Hour: "2d04h",
	} {
		if got := Span(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
	for _, c := range []struct {
		n          int64
		rate, want float64 // bytes/s, s
	}{{0, 0, 0}, {-5, 100, 0}, {320_000, 32_000, 10}, {1, 0, maxSpan.Seconds()}, {1 << 62, 0.001, maxSpan.Seconds()}} {
		if got := Transfer(c.n, c.rate); got.Seconds() != c.want {
			t.Errorf("%d bytes at %v bytes/s: %v, want %v s", c.n, c.rate, got, c.want)
		}
	}
}
