package record

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"regexp"
	"strconv"
	"time"
)

// watch finds out when a start is over.
type watch struct {
	ready Ready
	line  *regexp.Regexp
	say   func(string) error
	began time.Time
	found chan string   // gets the line that matched
	heard chan struct{} // closed when the program's output has ended
}

const (
	maxLine = 64 << 10              // bytes; what is longer is cut
	tryTCP  = 20 * time.Millisecond // between two tries to connect
	settle  = 2 * time.Second       // for output that a program which has ended left behind
)

func newWatch(r Ready, say func(string) error) (*watch, error) {
	w := &watch{ready: r, say: say, began: time.Now(), found: make(chan string, 1), heard: make(chan struct{})}
	if r.Line != "" {
		var err error
		if w.line, err = regexp.Compile(r.Line); err != nil {
			return nil, fmt.Errorf("ready line: %w", err)
		}
	}
	return w, nil
}

// listen reads what the program writes.
func (w *watch) listen(r io.Reader) {
	defer close(w.heard)
	b := bufio.NewReaderSize(r, maxLine)
	for {
		line, more, err := b.ReadLine()
		if err != nil {
			return
		}
		text := string(line)
		if w.line != nil && w.line.MatchString(text) {
			select {
			case w.found <- text:
			default: // it was found before
			}
		}
		// Nobody may be there any more to hear it.
		_ = w.say(text)
		for more && err == nil { // the rest of a line that is too long
			_, more, err = b.ReadLine()
		}
	}
}

// wait returns when the start is over; ended gets how runc ended.
func (w *watch) wait(ctx context.Context, ended <-chan error) (Report, error) {
	timer := time.NewTimer(w.ready.For)
	defer timer.Stop()
	var tick <-chan time.Time
	if w.ready.TCP != 0 {
		t := time.NewTicker(tryTCP)
		defer t.Stop()
		tick = t.C
	}
	for {
		select {
		case line := <-w.found:
			return w.report(fmt.Sprintf("it wrote %q", line)), nil
		case <-tick:
			if connects(ctx, w.ready.TCP) {
				return w.report(fmt.Sprintf("port %d takes connections", w.ready.TCP)), nil
			}
		case <-timer.C:
			return w.timeUp()
		case err := <-ended:
			return w.ended(err)
		case <-ctx.Done():
			return Report{}, ctx.Err()
		}
	}
}

func (w *watch) report(why string) Report { return Report{time.Since(w.began), why} }

func (w *watch) timeUp() (Report, error) {
	switch {
	case w.line != nil:
		return Report{}, fmt.Errorf("%w: no line that matches %q in %v", ErrNotReady, w.ready.Line, w.ready.For)
	case w.ready.TCP != 0:
		return Report{}, fmt.Errorf("%w: nothing takes connections at port %d after %v", ErrNotReady, w.ready.TCP, w.ready.For)
	}
	return w.report(fmt.Sprintf("it ran for %v", w.ready.For)), nil
}

// ended says what the end of the program means.
func (w *watch) ended(err error) (Report, error) {
	// What it wrote last may still be on its way; children may hold the pipe.
	timer := time.NewTimer(settle)
	defer timer.Stop()
	select {
	case <-w.heard:
	case <-timer.C:
	}
	select {
	case line := <-w.found:
		return w.report(fmt.Sprintf("it wrote %q", line)), nil
	default:
	}
	switch {
	case err != nil:
		return Report{}, fmt.Errorf("%w: it ended after %v: %w", ErrNotReady, time.Since(w.began).Round(time.Millisecond), err)
	case w.line != nil || w.ready.TCP != 0:
		return Report{}, fmt.Errorf("%w: it ended after %v", ErrNotReady, time.Since(w.began).Round(time.Millisecond))
	}
	return w.report("it ended"), nil
}

// connects tells whether a port takes connections.
func connects(ctx context.Context, port int) bool {
	var d net.Dialer
	for _, host := range []string{"127.0.0.1", "::1"} {
		conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
		if err == nil {
			_ = conn.Close() // that it was there is all
			return true
		}
	}
	return false
}
