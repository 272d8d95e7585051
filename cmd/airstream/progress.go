package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/airstream-io/airstream/internal/units"
)

// byteProgress shows how much of a number of bytes is done: a bar on a terminal,
// a line every progressInterval elsewhere, nothing if it is off.
type byteProgress struct {
	w     io.Writer
	label string
	now   func() time.Time
	bars  *mpb.Progress // nil without a terminal
	bar   *mpb.Bar

	mu   sync.Mutex
	note string    // guarded by mu; what stands instead of rate and time left
	text string    // guarded by mu
	last time.Time // guarded by mu; when a line was written
}

// newByteProgress shows progress on w. The caller finishes it.
func newByteProgress(w io.Writer, label string, off bool) *byteProgress {
	p := &byteProgress{w: w, label: label, now: time.Now}
	p.last = p.now()
	if off {
		p.w = io.Discard
		return p
	}
	if f, ok := w.(*os.File); ok && canDraw(f) {
		p.bars = mpb.New(mpb.WithOutput(w), mpb.WithWidth(20), mpb.WithRefreshRate(200*time.Millisecond))
		p.bar = p.bars.New(0, mpb.BarStyle(), mpb.BarRemoveOnComplete(),
			mpb.PrependDecorators(decor.Any(func(decor.Statistics) string { return p.label + " " })),
			mpb.AppendDecorators(decor.Any(func(decor.Statistics) string { return " " + p.numbers() })))
	}
	return p
}

func (p *byteProgress) numbers() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.text
}

// update says that done of total bytes are done, at a rate in bytes per second;
// 0 is unknown.
func (p *byteProgress) update(done, total int64, rate float64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.text = byteNumbers(done, total, rate)
	switch {
	case p.note != "" && total == 0:
		p.text = p.note
	case p.note != "":
		p.text = fmt.Sprintf("%s of %s; %s", units.Short(done), units.Short(total), p.note)
	}
	if p.bar != nil {
		p.bar.SetTotal(max(total, 1), false)
		p.bar.SetCurrent(max(0, min(done, total-1))) // only finish ends it
		return
	}
	if now := p.now(); now.Sub(p.last) >= progressInterval {
		p.last = now
		_, _ = fmt.Fprintf(p.w, "%s: %s\n", p.label, p.text) // who doesn't read misses nothing
	}
}

// hold says why nothing happens; empty: something does.
func (p *byteProgress) hold(why string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.note = why
}

// byteNumbers tells bytes, rate and time left.
func byteNumbers(done, total int64, rate float64) string {
	s := fmt.Sprintf("%s of %s", units.Short(done), units.Short(total))
	if rate <= 0 {
		return s
	}
	s += ", " + units.ShortRate(rate)
	if done < total {
		s += ", " + units.Span(units.Transfer(total-done, rate)) + " left"
	}
	return s
}

// finish takes the bar away.
func (p *byteProgress) finish() {
	if p.bar != nil {
		p.bar.Abort(true)
		p.bars.Wait()
		p.bar = nil
	}
}
