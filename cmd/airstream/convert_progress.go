package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"github.com/airstream-io/airstream/convert"
)

// progressInterval is how often progress is told where it can't be drawn.
const progressInterval = 5 * time.Second

// newConvertProgress shows progress on w: bars on a terminal, a line every
// progressInterval elsewhere. finish ends it and may be called again.
func newConvertProgress(w io.Writer) (p convert.Progress, finish func()) {
	c := &convertProgress{w: w, now: time.Now}
	if f, ok := w.(*os.File); ok && canDraw(f) {
		c.bars = mpb.New(mpb.WithOutput(w), mpb.WithWidth(30), mpb.WithRefreshRate(200*time.Millisecond))
		return c, sync.OnceFunc(c.finishBars)
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		c.lines(stop)
	}()
	return c, sync.OnceFunc(func() { close(stop); <-stopped })
}

// canDraw tells whether f is a terminal that knows its width. Some, like a
// serial console, don't.
func canDraw(f *os.File) bool {
	width, _, err := term.GetSize(int(f.Fd()))
	return err == nil && width > 0
}

// convertProgress is the convert.Progress of one invocation.
type convertProgress struct {
	w    io.Writer
	now  func() time.Time
	bars *mpb.Progress // nil without a terminal

	mu    sync.Mutex
	tasks []*convertTask // guarded by mu
}

func (c *convertProgress) Layer(digest v1.Hash, size int64) convert.Task {
	t := &convertTask{c: c, name: shortDigest(digest), size: size}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tasks = append(c.tasks, t)
	return t
}

// convertTask is one layer. A phase counts anew.
type convertTask struct {
	c    *convertProgress
	name string
	size int64 // bytes at the source
	bar  *mpb.Bar

	mu    sync.Mutex
	phase string    // guarded by mu, as all below; "" before the first
	total int64     // bytes of the phase
	done  int64     // bytes of it
	since time.Time // when it began
	how   string    // how the layer ended; "" while it hasn't
}

func (t *convertTask) Phase(name string, total int64) {
	t.mu.Lock()
	t.phase, t.total, t.done, t.since = name, total, 0, t.c.now()
	t.mu.Unlock()
	if t.c.bars == nil {
		return
	}
	if t.bar == nil {
		t.bar = t.c.bars.New(total, mpb.BarStyle(), mpb.BarRemoveOnComplete(),
			mpb.PrependDecorators(decor.Any(func(decor.Statistics) string { return t.label() }, decor.WCSyncSpaceR)),
			mpb.AppendDecorators(decor.Any(func(decor.Statistics) string { return t.numbers() })))
	}
	t.bar.SetTotal(max(total, 1), false)
	t.bar.SetCurrent(0)
}

func (t *convertTask) Advance(n int64) {
	t.mu.Lock()
	t.done += n
	done := t.done
	t.mu.Unlock()
	if t.bar != nil {
		// One short of the end: only Done ends a bar.
		t.bar.SetCurrent(max(0, min(done, t.total-1)))
	}
}

func (t *convertTask) Done(how string) {
	t.mu.Lock()
	t.how = how
	t.mu.Unlock()
	if t.bar != nil {
		t.bar.SetTotal(-1, true)
	}
	if t.c.bars != nil {
		_, _ = fmt.Fprintf(t.c.bars, "%s  %s\n", t.name, how) // a terminal that is gone misses nothing
	}
}

func (t *convertTask) label() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.name + " " + t.phase
}

// numbers tells bytes, rate and time left of the phase.
func (t *convertTask) numbers() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return progressNumbers(t.done, t.total, t.c.now().Sub(t.since))
}

func progressNumbers(done, total int64, took time.Duration) string {
	done = min(done, total)
	s := fmt.Sprintf("%s of %s", formatBytes(done), formatBytes(total))
	if took <= 0 || done <= 0 {
		return s
	}
	rate := float64(done) / took.Seconds()
	s += fmt.Sprintf(", %s/s", formatBytes(int64(rate)))
	if done < total {
		eta := time.Duration(float64(total-done) / rate * float64(time.Second))
		s += fmt.Sprintf(", %s left", eta.Round(time.Second))
	}
	return s
}

func (c *convertProgress) finishBars() {
	c.mu.Lock()
	tasks := slices.Clone(c.tasks)
	c.mu.Unlock()
	for _, t := range tasks {
		if t.bar != nil {
			t.bar.Abort(true) // no effect on one that is complete
		}
	}
	c.bars.Wait()
}

// lines writes a line at every interval until stop is closed.
func (c *convertProgress) lines(stop <-chan struct{}) {
	start := c.now()
	tick := time.NewTicker(progressInterval)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
			_, _ = fmt.Fprintln(c.w, c.line(c.now().Sub(start)))
		}
	}
}

// line sums up all layers. A layer's phases count a third each.
func (c *convertProgress) line(took time.Duration) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var done, total float64
	var finished int
	for _, t := range c.tasks {
		t.mu.Lock()
		total += float64(t.size)
		switch {
		case t.how != "":
			finished++
			done += float64(t.size)
		case t.phase != "":
			phase := slices.Index([]string{"fetch", "convert", "send"}, t.phase)
			done += float64(t.size) * (float64(phase) + min(1, float64(t.done)/max(1, float64(t.total)))) / 3
		}
		t.mu.Unlock()
	}
	return fmt.Sprintf("convert: %d of %d layers, %s", finished, len(c.tasks), progressNumbers(int64(done), int64(total), took))
}
