package supervise_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/airstream-io/airstream/internal/fdstore"
	"github.com/airstream-io/airstream/internal/supervise"
)

const helperEnv = "SUPERVISE_TEST_HELPER"

func TestMain(m *testing.M) {
	if what := os.Getenv(helperEnv); what != "" {
		code, err := helper(what)
		if err != nil {
			fmt.Println("error:", err)
		}
		os.Exit(code)
	}
	goleak.VerifyTestMain(m)
}

// helper is a daemon, or with "supervised" the supervisor of one. Daemons print
// a line when they start: their process ID, which VERSION they are and how many
// daemons there were before, as the descriptor that they keep says.
func helper(what string) (int, error) {
	if what == "supervised" {
		if err := os.Setenv(helperEnv, "daemon"); err != nil {
			return 1, err
		}
		return supervise.Run(context.Background(), nil, supervise.Options{Command: []string{os.Args[0]}})
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGUSR1)
	if what == "deaf" {
		signal.Ignore(syscall.SIGTERM, syscall.SIGINT)
	}
	store, err := fdstore.Inherit()
	if err != nil {
		return 1, err
	}
	if what == "misconfigured" {
		return 2, errors.New("misconfigured")
	}
	before, err := count(store)
	if err != nil {
		return 1, err
	}
	if err := store.Notify("READY=1"); err != nil {
		return 1, err
	}
	fmt.Println("started", os.Getpid(), os.Getenv("VERSION"), before)
	if what == "shortlived" {
		return 0, nil
	}
	for sig := range signals {
		fmt.Println("signal", sig)
		switch sig {
		case syscall.SIGTERM:
			return 0, nil
		case syscall.SIGINT:
			return 7, nil
		}
	}
	return 0, nil
}

// count returns how many processes have counted before this one.
func count(store *fdstore.Store) (int, error) {
	f := store.Take("count")
	if f == nil {
		fd, err := unix.MemfdCreate("count", unix.MFD_CLOEXEC)
		if err != nil {
			return 0, err
		}
		f = os.NewFile(uintptr(fd), "count")
		if err := store.Keep("count", f); err != nil {
			return 0, err
		}
	}
	b, err := io.ReadAll(io.NewSectionReader(f, 0, 100))
	if err != nil {
		return 0, err
	}
	_, err = f.WriteAt(append(b, '.'), 0)
	return len(b), errors.Join(err, f.Close())
}

// running is a supervisor under test.
type running struct {
	t       *testing.T
	signals chan os.Signal
	out     *bufio.Reader
	ended   chan struct{}
	code    int
	err     error
}

func start(t *testing.T, opts supervise.Options, env ...string) *running {
	t.Helper()
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range append(env, "GORACE=atexit_sleep_ms=0") {
		name, value, _ := strings.Cut(e, "=")
		t.Setenv(name, value)
	}
	r := &running{t: t, signals: make(chan os.Signal, 8), out: bufio.NewReader(read), ended: make(chan struct{})}
	opts.Stdout, opts.Stderr = write, write
	opts.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	if opts.Command == nil {
		opts.Command = []string{os.Args[0]}
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer close(r.ended)
		r.code, r.err = supervise.Run(ctx, r.signals, opts)
		_ = write.Close()
	}()
	t.Cleanup(func() {
		cancel()
		_, _ = io.Copy(io.Discard, r.out)
		<-r.ended
		_ = read.Close()
	})
	return r
}

func (r *running) line() string {
	r.t.Helper()
	line, err := r.out.ReadString('\n')
	if err != nil {
		r.t.Fatalf("%q, %v", line, err)
	}
	return strings.TrimSpace(line)
}

// started reads the line of a daemon that starts.
func (r *running) started() (pid int, version string, before int) {
	r.t.Helper()
	f := strings.Split(r.line(), " ")
	if len(f) != 4 || f[0] != "started" {
		r.t.Fatalf("daemon said %q", f)
	}
	pid, err := strconv.Atoi(f[1])
	before, err2 := strconv.Atoi(f[3])
	if err := errors.Join(err, err2); err != nil {
		r.t.Fatal(err)
	}
	return pid, f[2], before
}

func (r *running) end() int {
	r.t.Helper()
	<-r.ended
	if r.err != nil {
		r.t.Error(r.err)
	}
	return r.code
}

func TestKilledDaemonIsStartedAgainAtOnce(t *testing.T) {
	r := start(t, supervise.Options{}, helperEnv+"=daemon")
	pid, _, before := r.started()
	if before != 0 {
		t.Errorf("%d before the first", before)
	}
	began := time.Now()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	next, _, before := r.started()
	if took := time.Since(began); took > time.Second || next == pid || before != 1 {
		t.Errorf("the next daemon: %d after %d, %d before it, in %v", next, pid, before, took)
	}
	r.signals <- syscall.SIGTERM
	if line := r.line(); line != "signal interrupt" {
		t.Errorf("the daemon heard %q", line)
	}
	if code := r.end(); code != 7 {
		t.Errorf("exit code %d, want the daemon's", code)
	}
}

// Whatever the moment at which a daemon dies, the next one gets what was kept.
func TestDaemonKilledManyTimesLosesNothing(t *testing.T) {
	rounds := 6
	if os.Getenv("AIRSTREAM_SOAK") != "" {
		rounds = 30
	}
	r := start(t, supervise.Options{}, helperEnv+"=daemon")
	for i := range rounds {
		pid, _, before := r.started()
		if before != i {
			t.Fatalf("daemon %d finds %d before it", i, before)
		}
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		r.signals <- syscall.SIGUSR2 // don't wait
	}
}

func TestDaemonThatDoesNotStayIsNotStartedTooOften(t *testing.T) {
	r := start(t, supervise.Options{}, helperEnv+"=shortlived")
	began := time.Now()
	for i := range 4 {
		if _, _, before := r.started(); before != i {
			t.Errorf("daemon %d finds %d before it", i, before)
		}
	}
	// At once, then after 100 and 200 ms.
	if took := time.Since(began); took < 300*time.Millisecond {
		t.Errorf("four starts in %v", took)
	}
}

func TestUpgradeRunsTheNewProgram(t *testing.T) {
	program := filepath.Join(t.TempDir(), "daemon")
	install := func(version string) {
		t.Helper()
		script := fmt.Sprintf("#!/bin/sh\nVERSION=%s exec %s\n", version, os.Args[0])
		if err := errors.Join(os.WriteFile(program+".new", []byte(script), 0o700), os.Rename(program+".new", program)); err != nil { //nolint:gosec // it must run
			t.Fatal(err)
		}
	}
	install("1")
	r := start(t, supervise.Options{Command: []string{program}}, helperEnv+"=daemon")
	if _, version, _ := r.started(); version != "1" {
		t.Errorf("version %s", version)
	}
	r.signals <- syscall.SIGHUP
	if line := r.line(); line != "signal hangup" {
		t.Errorf("the daemon heard %q", line)
	}
	install("2")
	r.signals <- syscall.SIGUSR2
	if line := r.line(); line != "signal terminated" {
		t.Errorf("the daemon heard %q", line)
	}
	if _, version, before := r.started(); version != "2" || before != 1 {
		t.Errorf("version %s, %d before it", version, before)
	}
	// A program that doesn't work can be replaced by one that does.
	if err := os.WriteFile(program, []byte("#!/bin/sh\nexit 1\n"), 0o700); err != nil { //nolint:gosec // it must run
		t.Fatal(err)
	}
	r.signals <- syscall.SIGUSR2
	if line := r.line(); line != "signal terminated" {
		t.Errorf("the daemon heard %q", line)
	}
	time.Sleep(300 * time.Millisecond) // it fails a few times
	install("3")
	if _, version, before := r.started(); version != "3" || before != 2 {
		t.Errorf("version %s, %d before it", version, before)
	}
}

func TestDaemonThatNeverWorkedIsNotStartedAgain(t *testing.T) {
	r := start(t, supervise.Options{}, helperEnv+"=misconfigured")
	if line := r.line(); line != "error: misconfigured" {
		t.Errorf("it said %q", line)
	}
	if code := r.end(); code != 2 {
		t.Errorf("exit code %d, want the daemon's", code)
	}
	if _, err := supervise.Run(t.Context(), nil, supervise.Options{Command: []string{"/nonexistent"}}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no program: %v", err)
	}
}

func TestDeafDaemonIsKilled(t *testing.T) {
	r := start(t, supervise.Options{Grace: 100 * time.Millisecond}, helperEnv+"=deaf")
	r.started()
	r.signals <- syscall.SIGTERM
	if code := r.end(); code != 128+9 {
		t.Errorf("exit code %d", code)
	}
}

// Without its supervisor a daemon would be nobody's.
func TestDaemonEndsWithItsSupervisor(t *testing.T) {
	supervisor := exec.Command(os.Args[0])
	supervisor.Env = append(os.Environ(), helperEnv+"=supervised")
	out, err := supervisor.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := supervisor.Start(); err != nil {
		t.Fatal(err)
	}
	r := &running{t: t, out: bufio.NewReader(out)}
	r.started()
	if err := supervisor.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if line := r.line(); line != "signal terminated" {
		t.Errorf("the daemon heard %q", line)
	}
	_, _ = io.Copy(io.Discard, r.out)
	_ = supervisor.Wait()
}

// What the daemon says reaches the supervisor's own service manager.
func TestServiceManagerIsTold(t *testing.T) {
	told := make(chan string, 8)
	manager, err := fdstore.NewKeeper(func(s string) { told <- s })
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = manager.Close() }()
	env, _, err := manager.Environ(nil)
	if err != nil {
		t.Fatal(err)
	}
	r := start(t, supervise.Options{}, append(env, helperEnv+"=daemon")...)
	r.started()
	if s := <-told; s != "READY=1" {
		t.Errorf("told %q", s)
	}
}
