package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/airstream-io/airstream/test/rig/registry"
	"github.com/airstream-io/airstream/test/rig/site"
)

// clockFile names the environment variable with the path of a file that says
// how many seconds a daemon's clock is ahead; clockSignal has it read again.
const (
	clockFile   = "AIRSTREAM_E2E_CLOCK"
	clockSignal = syscall.Signal(40) // nothing uses real-time signals
	year        = 365 * 24 * 3600    // seconds
)

// The node's clock jumps: a year ahead, and two back, while a container reads
// and an image is being made complete, and across a restart. Nothing notices:
// neither tokens, nor pauses, nor what a tag means in the dark.
//
// The clock of the machine is everybody's, and no namespace has one of its own.
// So the daemon is built with a standard library whose time.Now can be told to
// be wrong; everything else in it is what users run. That takes a minute to
// compile: it is for a soak.
func TestFaultClockJumps(t *testing.T) {
	if !soak() {
		t.Skip("the standard library is compiled for it: AIRSTREAM_SOAK=1")
	}
	push(t, "odd-implied") // starts the registry
	file := filepath.Join(t.TempDir(), "clock")
	set := func(ahead int64) { must(t, os.WriteFile(file, []byte(strconv.FormatInt(ahead, 10)), 0o600)) }
	set(0)
	t.Setenv(clockFile, file)
	sc := newScene(t, site.Options{
		Profile: profile(t, "rtt=40ms,down=16mbit,up=8mbit"), Airstream: buildWithClock(t),
		Front: registry.FrontOptions{Auth: registry.AuthBearer, Username: "crew", Password: "right", TokenLife: 5 * time.Second},
	})
	sc.probe(t)
	jump := func(ahead int64) func(context.Context) error {
		return func(context.Context) error {
			set(ahead)
			return syscall.Kill(sc.DaemonPID(), clockSignal)
		}
	}
	for _, f := range []fault{
		{name: "clock-a-year-ahead", begin: jump(year), lasts: 10 * time.Second},
		{name: "clock-a-year-back", begin: jump(-year), lasts: 10 * time.Second},
		{name: "clock-is-right-again", begin: jump(0), lasts: 10 * time.Second},
	} {
		t.Run(f.name, func(t *testing.T) { sc.meet(t, f) })
	}
	for _, ahead := range []int64{year, -year, 0} {
		t.Run(fmt.Sprintf("restart-%d", ahead), func(t *testing.T) {
			ctx := t.Context()
			set(ahead)
			must(t, sc.StopDaemon(ctx))
			_, err := sc.Link.Cut(ctx)
			must(t, err)
			must(t, sc.StartDaemon(ctx))
			sc.allRight(t, newTarget(t, "clock-a-year-ahead-bulk", bulkSize)) // dark: a tag, and all of the image
			_, err = sc.Link.Restore(ctx)
			must(t, err)
			tg := sc.target(t, fmt.Sprintf("clock-restart%d", ahead), targetSize)
			sc.allRight(t, tg)
			sc.check(t, 0, tg)
		})
	}
}

// buildWithClock builds the airstream binary with a clock that can be set.
func buildWithClock(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	out, err := exec.CommandContext(t.Context(), "go", "env", "GOROOT", "GOMOD").Output()
	must(t, err)
	env := strings.Fields(string(out))
	clock := filepath.Join(env[0], "src", "time", "time.go")
	source, err := os.ReadFile(clock)
	must(t, err)
	changed := string(source)
	for _, change := range [][2]string{
		{"import (\n", "import (\n\t\"sync/atomic\"\n"},
		{"func Now() Time {\n\tsec, nsec, mono := runtimeNow()\n", "func Now() Time {\n\tsec, nsec, mono := runtimeNow()\n\tsec += Ahead.Load()\n"},
	} {
		if strings.Count(changed, change[0]) != 1 {
			t.Fatalf("%s has changed: it doesn't have %q once", clock, change[0])
		}
		changed = strings.Replace(changed, change[0], change[1], 1)
	}
	changed += "\n// Ahead is how many seconds Now is wrong.\nvar Ahead atomic.Int64\n"
	setter := fmt.Sprintf(`package main

import (
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

func init() {
	set := func() {
		if b, err := os.ReadFile(os.Getenv(%q)); err == nil {
			if n, err := strconv.ParseInt(string(b), 10, 64); err == nil {
				time.Ahead.Store(n)
			}
		}
	}
	set()
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.Signal(%d))
	go func() {
		for range c {
			set()
		}
	}()
}
`, clockFile, clockSignal)
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {
		clock: filepath.Join(dir, "time.go"),
		filepath.Join(filepath.Dir(env[1]), "cmd", "airstream", "clock_e2e.go"): filepath.Join(dir, "setter.go"),
	}})
	must(t, errors.Join(err,
		os.WriteFile(filepath.Join(dir, "time.go"), []byte(changed), 0o600),
		os.WriteFile(filepath.Join(dir, "setter.go"), []byte(setter), 0o600),
		os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o600)))
	binary := filepath.Join(dir, "airstream")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-overlay", filepath.Join(dir, "overlay.json"), "-o", binary, "github.com/airstream-io/airstream/cmd/airstream")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build with a clock: %v\n%s", err, out)
	}
	return binary
}
