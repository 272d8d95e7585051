package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

// timeline prints lines that begin with the seconds since the demo began.
type timeline struct {
	w     io.Writer
	began time.Time
	mu    sync.Mutex // one writer at a time
}

func newTimeline(w io.Writer) *timeline { return &timeline{w: w, began: time.Now()} }

const (
	indent = "         " // as wide as what say puts before a line
	width  = 78          // of the text behind it
)

// say tells what happens now.
func (t *timeline) say(format string, args ...any) {
	t.lines(fmt.Sprintf("%5.0f s  ", time.Since(t.began).Seconds()), fmt.Sprintf(format, args...))
}

// more explains what was said last.
func (t *timeline) more(format string, args ...any) { t.lines(indent, fmt.Sprintf(format, args...)) }

// title begins a part.
func (t *timeline) title(format string, args ...any) {
	t.raw("\n" + fmt.Sprintf(format, args...))
}

func (t *timeline) lines(prefix, text string) {
	for i, line := range wrap(text, width) {
		if i > 0 {
			prefix = indent
		}
		t.raw(prefix + line)
	}
}

// raw prints text as it is, and a line end.
func (t *timeline) raw(text string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	fmt.Fprintln(t.w, text) //nolint:errcheck // nobody to tell
}

// wrap breaks text between words; where its own lines end means nothing.
func wrap(text string, width int) []string {
	var lines []string
	line := ""
	for word := range strings.FieldsSeq(text) {
		switch {
		case line == "":
			line = word
		case utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > width:
			lines = append(lines, line)
			line = word
		default:
			line += " " + word
		}
	}
	return append(lines, line)
}

// tickEvery is how often a long wait says that it is alive.
const tickEvery = 15 * time.Second

// during runs work and meanwhile says every now and then what progress says.
func (t *timeline) during(ctx context.Context, progress func(ctx context.Context) (string, error), work func() error) error {
	ctx, cancel := context.WithCancel(ctx)
	var ticker sync.WaitGroup
	ticker.Go(func() {
		tick := time.NewTicker(tickEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if line, err := progress(ctx); err == nil && ctx.Err() == nil {
				t.say("… %s", line)
			}
		}
	})
	err := work()
	cancel()
	ticker.Wait()
	return err
}

// megabytes writes a size as registries and phone bills do.
func megabytes(n int64) string {
	switch f := float64(n) / 1e6; {
	case f < 0.95:
		return fmt.Sprintf("%.0f kB", f*1000)
	case f < 10:
		return fmt.Sprintf("%.1f MB", f)
	default:
		return fmt.Sprintf("%.0f MB", f)
	}
}

// span writes a duration with as much precision as anybody feels.
func span(d time.Duration) string {
	switch {
	case d < 10*time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d < 2*time.Minute:
		return fmt.Sprintf("%.0f s", d.Seconds())
	default:
		return fmt.Sprintf("%d min %02d s", int(d.Seconds()+.5)/60, int(d.Seconds()+.5)%60)
	}
}
