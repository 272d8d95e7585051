package uplink

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Usage counts what crosses in a day, by class, and keeps the count in a file.
//
// A day ends at midnight, local time. Clocks of machines in the field jump:
// one that lost its battery comes up in 1970, and satellite time corrects it.
// A jump neither renews the budget nor blocks it for ever: the count goes on
// under the new date and ends with it, at the earliest half a day after the
// jump. What passes between two boots only the clock can tell, and is believed
// unless it went back.
//
// It is safe for concurrent use.
type Usage struct {
	path string // empty: in memory alone
	log  *slog.Logger
	wall func() time.Time
	boot func() time.Duration // since the machine started, sleep counted
	id   string               // of this start of the machine

	mu      sync.Mutex
	day     string            // guarded by mu; local, as time.DateOnly
	bytes   [NumClasses]int64 // guarded by mu; of the day
	renewed time.Duration     // guarded by mu; on the boot clock, when the last day began or the clock jumped; may be negative
	wallAt  time.Time         // guarded by mu; at the last look
	bootAt  time.Duration     // guarded by mu; at the last look
	unsaved int64             // guarded by mu; bytes that the file doesn't know of

	save chan struct{} // that much is unsaved
	stop chan struct{}
	done chan struct{}
}

const (
	halfDay      = 12 * time.Hour
	clockJump    = time.Hour        // more than this between the two clocks is no drift
	saveEvery    = 30 * time.Second // while something crosses
	saveAtBytes  = 1 << 20          // earlier if this many crossed: what a crash may give away
	usageVersion = 1
	maxUsageSize = 64 << 10
	maxClock     = 100 * 365 * day // that a machine runs
)

// usageFile is the file: JSON, versioned. Readers ignore fields that they
// don't know.
type usageFile struct {
	Version int              `json:"version"`
	Day     string           `json:"day"`
	Bytes   map[string]int64 `json:"bytes"` // by class
	Written time.Time        `json:"written"`
	Boot    string           `json:"boot"`       // which boot of the machine wrote it
	Clock   time.Duration    `json:"clock_ns"`   // since that boot, when it was written
	Renewed time.Duration    `json:"renewed_ns"` // since that boot, when the day began or the clock jumped
}

// bootTime returns how long ago the machine started, sleep counted.
func bootTime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return 0
	}
	return time.Duration(t.Nano())
}

func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func newUsage(wall func() time.Time, boot func() time.Duration) *Usage {
	u := &Usage{wall: wall, boot: boot}
	u.wallAt, u.bootAt = wall(), boot()
	u.day, u.renewed = u.wallAt.Format(time.DateOnly), u.bootAt-halfDay
	return u
}

// OpenUsage opens the day's count in the file at path, or begins one. A
// damaged file is replaced, which is logged: the count begins anew. The caller
// closes it.
func OpenUsage(path string, log *slog.Logger) (*Usage, error) {
	return openUsage(path, log, time.Now, bootTime, bootID())
}

func openUsage(path string, log *slog.Logger, wall func() time.Time, boot func() time.Duration, id string) (*Usage, error) {
	u := newUsage(wall, boot)
	u.path, u.log, u.id = path, log, id
	switch f, err := readUsage(path); {
	case errors.Is(err, fs.ErrNotExist):
	case errors.Is(err, errDamaged):
		log.Warn("the day's count of bytes is damaged; it begins anew", slog.Any("error", err))
	case err != nil:
		return nil, err
	default:
		u.resume(f)
	}
	if err := u.write(); err != nil {
		return nil, err
	}
	u.save, u.stop, u.done = make(chan struct{}, 1), make(chan struct{}), make(chan struct{})
	go u.keep()
	return u, nil
}

var errDamaged = errors.New("damaged")

func readUsage(path string) (f usageFile, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return f, fmt.Errorf("uplink: read usage: %w", err)
	}
	if len(b) > maxUsageSize {
		return f, fmt.Errorf("uplink: usage in %s: %d bytes: %w", path, len(b), errDamaged)
	}
	if err := json.Unmarshal(b, &f); err != nil {
		return f, fmt.Errorf("uplink: usage in %s: %w: %w", path, errDamaged, err)
	}
	if _, err := time.Parse(time.DateOnly, f.Day); err != nil || f.Version != usageVersion || f.Clock < 0 || f.Clock > maxClock || f.Renewed > f.Clock || f.Renewed < -maxClock {
		return f, fmt.Errorf("uplink: usage in %s: version %d, day %q: %w", path, f.Version, f.Day, errDamaged)
	}
	return f, nil
}

// resume goes on from a file. Nobody else has u yet.
func (u *Usage) resume(f usageFile) {
	u.day = f.Day
	for c := range NumClasses {
		u.bytes[c] = max(0, f.Bytes[Class(c).String()]) //nolint:gosec // few
	}
	if f.Boot == u.id && u.id != "" && f.Clock <= u.bootAt {
		u.renewed, u.wallAt, u.bootAt = f.Renewed, f.Written, f.Clock
	} else if back := f.Written.Sub(u.wallAt); back > 0 {
		u.date(u.wallAt, u.bootAt) // the clock went back while the machine was off
	} else {
		u.renewed = u.bootAt - (f.Clock - f.Renewed) + back
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.roll()
}

// date puts the count under a new date without renewing it.
func (u *Usage) date(wall time.Time, boot time.Duration) {
	u.day, u.renewed = wall.Format(time.DateOnly), boot
	u.wallAt, u.bootAt = wall, boot
}

// roll follows the clocks: renews the count if a day has ended. u.mu is held.
func (u *Usage) roll() {
	wall, boot := u.wall(), u.boot()
	jump := wall.Round(0).Sub(u.wallAt.Round(0)) - (boot - u.bootAt)
	if jump > clockJump || jump < -clockJump {
		if u.log != nil {
			u.log.Warn("the clock was set; the day's count of bytes goes on", slog.Duration("by", jump))
		}
		u.date(wall, boot)
		return
	}
	u.wallAt, u.bootAt = wall, boot
	if today := wall.Format(time.DateOnly); today > u.day && boot-u.renewed >= halfDay {
		u.day, u.renewed, u.bytes = today, boot, [NumClasses]int64{}
	}
}

// add counts n bytes of a class.
func (u *Usage) add(c Class, n int64) {
	if n <= 0 {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.roll()
	u.bytes[c] += n
	if u.unsaved += n; u.unsaved >= saveAtBytes {
		select {
		case u.save <- struct{}{}:
		default:
		}
	}
}

// today returns the count, and when it will be renewed.
func (u *Usage) today() (bytes [NumClasses]int64, renewed time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.roll()
	renewed = u.wallAt.Add(halfDay - (u.bootAt - u.renewed))
	if u.day >= u.wallAt.Format(time.DateOnly) {
		if midnight := midnightAfter(u.wallAt); midnight.After(renewed) {
			renewed = midnight
		}
	}
	return u.bytes, renewed
}

// keep writes the file now and then until Close.
func (u *Usage) keep() {
	defer close(u.done)
	tick := time.NewTicker(saveEvery)
	defer tick.Stop()
	for {
		select {
		case <-u.stop:
			return
		case <-u.save:
		case <-tick.C:
			u.mu.Lock()
			idle := u.unsaved == 0
			u.mu.Unlock()
			if idle {
				continue
			}
		}
		if err := u.write(); err != nil {
			u.log.Warn("the day's count of bytes cannot be stored", slog.Any("error", err))
		}
	}
}

// Close writes the count.
func (u *Usage) Close() error {
	close(u.stop)
	<-u.done
	return u.write()
}

// write replaces the file if there is anything new. After a crash it is the
// old one or the new one.
func (u *Usage) write() (err error) {
	u.mu.Lock()
	u.roll()
	f := usageFile{
		Version: usageVersion, Day: u.day, Bytes: map[string]int64{},
		Written: u.wallAt.Round(0), Boot: u.id, Clock: u.bootAt, Renewed: u.renewed,
	}
	for c, n := range u.bytes {
		f.Bytes[Class(c).String()] = n //nolint:gosec // few
	}
	unsaved := u.unsaved
	u.unsaved = 0
	u.mu.Unlock()
	defer func() {
		if err != nil {
			u.mu.Lock()
			u.unsaved += unsaved
			u.mu.Unlock()
		}
	}()
	b, err := json.Marshal(f)
	if err == nil {
		err = replaceFile(u.path, b)
	}
	if err != nil {
		return fmt.Errorf("uplink: write usage: %w", err)
	}
	return nil
}

// replaceFile writes a file so that power loss leaves the old one or the new
// one.
func replaceFile(path string, b []byte) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
