package layerfs_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/airstream-io/airstream/snapshotter/layerfs"
)

// readAs returns what cat says as another user of a file below root, a
// directory of the test.
func readAs(tb testing.TB, uid int, root, name string) string {
	tb.Helper()
	for d := filepath.Dir(root); d != filepath.Clean(os.TempDir()); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			tb.Fatal(err)
		}
	}
	cmd := exec.CommandContext(tb.Context(), "cat", filepath.Join(root, name))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out) + err.Error()
	}
	return string(out)
}

func TestKilledReaderDoesNotDisturbOthers(t *testing.T) {
	n := newNode(t)
	want := random(1, 300<<10)
	served := n.add(t, 0, tarOf(t, []header{file("big", 0o644, want), file("other", 0o644, []byte("other"))}))
	gate := served.hold(t, "big")
	_, at := mount(t, n, layerfs.Options{})
	name := filepath.Join(at, "0", "big")

	victim, patient := exec.Command("cat", name), exec.Command("cat", name)
	var got bytes.Buffer
	patient.Stdout = &got
	start(t, victim)
	start(t, patient)
	eventually(t, "both wait", func() bool { return gate.waiting.Load() >= 1 && inState(victim, "D") && inState(patient, "D") })
	if err := victim.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := victim.Wait(); err == nil || err.Error() != "signal: terminated" {
		t.Errorf("killed cat: %v", err)
	}
	if b, err := os.ReadFile(filepath.Join(at, "0", "other")); err != nil || string(b) != "other" {
		t.Errorf("another file while one waits: %q, %v", b, err)
	}
	close(gate.open)
	if err := patient.Wait(); err != nil {
		t.Errorf("cat that waited on: %v", err)
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("cat that waited on got %d other bytes", got.Len())
	}
}

// inState says whether a process is in a state of /proc/PID/stat.
func inState(cmd *exec.Cmd, state string) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", cmd.Process.Pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return strings.HasPrefix(rest, state) || strings.HasPrefix(rest, "S")
}

// A signal that a program lives with must not become an I/O error of a read,
// one that ends it or asks it to end must be obeyed at once.
func TestSignalsAndWaitingReads(t *testing.T) {
	n := newNode(t)
	served := n.add(t, 0, tarOf(t, []header{file("big", 0o644, random(1, 8192))}))
	gate := served.hold(t, "big")
	_, at := mount(t, n, layerfs.Options{})
	// dd has one thread, handlers for SIGUSR1 and SIGINT, and reads past the
	// page cache, which is the kind of wait that any signal interrupts.
	reader := func() (*exec.Cmd, *bytes.Buffer) {
		before := gate.waiting.Load()
		cmd := exec.Command("dd", "if="+filepath.Join(at, "0", "big"), "of=/dev/null", "iflag=direct", "bs=4096", "count=1")
		var out bytes.Buffer
		cmd.Stderr = &out
		start(t, cmd)
		eventually(t, "it waits", func() bool { return gate.waiting.Load() > before })
		return cmd, &out
	}

	asked, _ := reader()
	if err := asked.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := asked.Wait(); err == nil {
		t.Error("dd ended well after SIGINT")
	}
	eventually(t, "its request ends", func() bool { return gate.waiting.Load() == 0 })

	killed, _ := reader()
	if err := killed.Process.Signal(syscall.SIGUSR1); err != nil { // spends the kernel's one message
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond) // the message is on its way
	if err := killed.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := killed.Wait(); err == nil {
		t.Error("killed dd ended well")
	}
	eventually(t, "its request ends", func() bool { return gate.waiting.Load() == 0 })

	left := gate.left.Load()
	bothered, out := reader()
	for range 5 {
		if err := bothered.Process.Signal(syscall.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond) // a signal each, or they are one
	}
	if gate.waiting.Load() != 1 || gate.left.Load() != left {
		t.Errorf("%d readers wait after SIGUSR1 and %d gave up, want 1 and none", gate.waiting.Load(), gate.left.Load()-left)
	}
	close(gate.open)
	if err := bothered.Wait(); err != nil || !strings.Contains(out.String(), "4096 bytes") {
		t.Errorf("bothered dd: %v, %q; want all 4096 bytes", err, out)
	}
}

func TestLookUpWaitsForTOCAndCanBeKilled(t *testing.T) {
	n := newNode(t)
	layer := tarOf(t, []header{file("f", 0o644, []byte("f"))})
	n.add(t, 0, layer)
	n.add(t, 1, layer)
	toc := newGate()
	n.tocs[0] = toc
	_, at := mount(t, n, layerfs.Options{})

	killed, waits := exec.Command("cat", filepath.Join(at, "0", "f")), exec.Command("cat", filepath.Join(at, "0.base", "f"))
	var out bytes.Buffer
	waits.Stdout = &out
	start(t, killed)
	start(t, waits)
	eventually(t, "both wait for the TOC", func() bool { return toc.waiting.Load() == 2 })
	if b, err := os.ReadFile(filepath.Join(at, "1", "f")); err != nil || string(b) != "f" {
		t.Errorf("another layer: %q, %v", b, err)
	}
	if err := killed.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := killed.Wait(); err == nil {
		t.Error("killed cat ended well")
	}
	eventually(t, "one is left", func() bool { return toc.waiting.Load() == 1 && toc.left.Load() == 1 })
	close(toc.open)
	if err := waits.Wait(); err != nil || out.String() != "f" {
		t.Errorf("cat that waited: %v, %q", err, out.String())
	}
}

func TestHundredWaitingReadsBlockNothing(t *testing.T) {
	n := newNode(t)
	var entries []header
	for i := range 100 {
		entries = append(entries, file(fmt.Sprint(i), 0o644, random(byte(i), 100<<10)))
	}
	served := n.add(t, 0, tarOf(t, append(entries, file("free", 0o644, random(200, 1<<20)))))
	var gates []*gate
	for i := range 100 {
		gates = append(gates, served.hold(t, fmt.Sprint(i)))
	}
	_, at := mount(t, n, layerfs.Options{CacheOnly: true})
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			b, err := os.ReadFile(filepath.Join(at, "0", fmt.Sprint(i)))
			if err != nil || !bytes.Equal(b, random(byte(i), 100<<10)) {
				t.Errorf("file %d: %d bytes, %v", i, len(b), err)
			}
		})
	}
	eventually(t, "100 files wait", func() bool {
		for _, g := range gates {
			if g.waiting.Load() == 0 {
				return false
			}
		}
		return true
	})
	begin := time.Now()
	if b, err := os.ReadFile(filepath.Join(at, "0", "free")); err != nil || !bytes.Equal(b, random(200, 1<<20)) {
		t.Errorf("free file: %d bytes, %v", len(b), err)
	}
	t.Logf("1 MiB past 100 waiting reads took %v", time.Since(begin))
	for _, g := range gates {
		close(g.open)
	}
	wg.Wait()
}

// Each byte that is asked for beside the one that is wanted delays it.
func TestOneByteAsksForLittleMore(t *testing.T) {
	n := newNode(t)
	served := n.add(t, 0, tarOf(t, []header{file("big", 0o644, random(1, 4<<20))}))
	_, at := mount(t, n, layerfs.Options{CacheOnly: true})
	merged := overlay(t, filepath.Join(at, "0"))
	asked := func(what string, off int64) {
		t.Helper()
		served.mu.Lock()
		defer served.mu.Unlock()
		low, high := int64(math.MaxInt64), int64(0)
		for _, s := range served.asked {
			low, high = min(low, s.off), max(high, s.off+s.size)
		}
		if low > off || high <= off || high-low > 32<<10 {
			t.Errorf("%s at %d asked for %v", what, off, served.asked)
		}
		served.asked = nil
	}
	f, err := os.Open(filepath.Join(merged, "big"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if _, err := f.ReadAt(make([]byte, 1), 1<<20+77); err != nil {
		t.Fatal(err)
	}
	asked("read", 1<<20+77)
	// In another process: a Go process can't serve its own page faults.
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=fault:%d:%s", helperEnv, 3<<20+5, f.Name()))
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != fmt.Sprintln(random(1, 4<<20)[3<<20+5]) {
		t.Errorf("mapped byte is %s, %v", out, err)
	}
	asked("page fault", 3<<20+5)
}

func TestErrorsAreEIOAndLoggedOncePerFile(t *testing.T) {
	n := newNode(t)
	served := n.add(t, 0, tarOf(t, []header{file("dark", 0o644, []byte("dark")), file("cut", 0o644, random(1, 9000))}))
	served.fail(t, "dark", fmt.Errorf("policy: %w", layerfs.ErrUnavailable))
	served.fail(t, "cut", io.EOF)
	var mu sync.Mutex
	var logged bytes.Buffer
	handler := slog.NewTextHandler(writerFunc(func(p []byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		return logged.Write(p)
	}), nil)
	_, at := mount(t, n, layerfs.Options{Logger: slog.New(handler)})
	for range 3 {
		for _, name := range []string{"dark", "cut"} {
			if _, err := os.ReadFile(filepath.Join(at, "0", name)); !errors.Is(err, unix.EIO) {
				t.Errorf("%s: %v, want EIO", name, err)
			}
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if got := strings.Count(logged.String(), "\n"); got != 2 {
		t.Errorf("%d lines for 2 files:\n%s", got, &logged)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
