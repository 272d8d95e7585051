package fdstore_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/airstream-io/airstream/internal/fdstore"
)

const helperEnv = "FDSTORE_TEST_HELPER"

func TestMain(m *testing.M) {
	if what := os.Getenv(helperEnv); what != "" {
		if err := helper(what); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// helper is a daemon with one thing to do.
func helper(what string) error {
	store, err := fdstore.Inherit()
	if err != nil {
		return err
	}
	if v, ok := os.LookupEnv("LISTEN_FDS"); ok {
		return fmt.Errorf("LISTEN_FDS=%s is left for children", v)
	}
	what, arg, _ := strings.Cut(what, ":")
	switch what {
	case "keep": // name=content, each in a file
		for pair := range strings.SplitSeq(arg, ",") {
			name, content, _ := strings.Cut(pair, "=")
			f, err := memory(content)
			if err != nil {
				return err
			}
			if err := errors.Join(store.Keep(name, f), f.Close()); err != nil {
				return err
			}
		}
	case "die": // right after it has sent a descriptor
		f, err := memory(arg)
		if err != nil {
			return err
		}
		if err := store.Keep("last", f); err != nil {
			return err
		}
		return unix.Kill(os.Getpid(), unix.SIGKILL)
	case "take": // names
		for name := range strings.SplitSeq(arg, ",") {
			f := store.Take(name)
			if f == nil {
				fmt.Println(name, "is not there")
				continue
			}
			flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0)
			if err != nil || flags&unix.FD_CLOEXEC == 0 {
				return fmt.Errorf("%s would be inherited by children: %x, %w", name, flags, err)
			}
			b, err := io.ReadAll(io.NewSectionReader(f, 0, 100))
			if err != nil {
				return err
			}
			fmt.Println(name, "=", string(b))
		}
	case "drop":
		return store.Drop(arg)
	case "droprest": // all but one
		if f := store.Take(arg); f == nil {
			return fmt.Errorf("%s is not there", arg)
		}
		return store.DropRest()
	case "notify":
		return store.Notify(arg)
	case "keeps":
		fmt.Println(store.Keeps())
	}
	return nil
}

func memory(content string) (*os.File, error) {
	fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "test")
	_, err = f.WriteString(content)
	return f, err
}

// run runs one daemon after the other with a keeper, and returns what the last
// one printed.
func run(t *testing.T, k *fdstore.Keeper, whats ...string) string {
	t.Helper()
	var out strings.Builder
	for _, what := range whats {
		out.Reset()
		env, files, err := k.Environ(append(os.Environ(), helperEnv+"="+what, "GORACE=atexit_sleep_ms=0"))
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env, cmd.ExtraFiles, cmd.Stdout, cmd.Stderr = env, files, &out, os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		k.Started(cmd.Process.Pid)
		for _, f := range files {
			_ = f.Close()
		}
		if err := cmd.Wait(); err != nil && !strings.HasPrefix(what, "die") {
			t.Fatalf("%s: %v", what, err)
		}
	}
	return out.String()
}

func newKeeper(t *testing.T, notify func(string)) *fdstore.Keeper {
	t.Helper()
	if notify == nil {
		notify = func(string) {}
	}
	k, err := fdstore.NewKeeper(notify)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	})
	return k
}

func TestDescriptorsReachTheNextProcess(t *testing.T) {
	k := newKeeper(t, nil)
	if got := run(t, k, "keep:a=1,b=2", "take:b,a,c"); got != "b = 2\na = 1\nc is not there\n" {
		t.Errorf("after one process: %q", got)
	}
	if got := run(t, k, "keep:a=new", "die:words", "take:a,b,last"); got != "a = new\nb = 2\nlast = words\n" {
		t.Errorf("after a replacement and a crash: %q", got)
	}
	if got := run(t, k, "drop:a", "take:a,b"); got != "a is not there\nb = 2\n" {
		t.Errorf("after a drop: %q", got)
	}
	if got := run(t, k, "droprest:b", "take:b,last"); got != "b = 2\nlast is not there\n" {
		t.Errorf("after the rest was dropped: %q", got)
	}
}

func TestKeeperDropsWhatHasEnded(t *testing.T) {
	k := newKeeper(t, nil)
	run(t, k, "keep:a=1")
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	store := own(t, k)
	if err := errors.Join(store.Keep("pipe", read), read.Close()); err != nil {
		t.Fatal(err)
	}
	if names := k.Names(); !slices.Equal(names, []string{"a", "pipe"}) {
		t.Errorf("kept: %q", names)
	}
	if err := write.Close(); err != nil {
		t.Fatal(err)
	}
	run(t, k, "keeps")
	if names := k.Names(); !slices.Equal(names, []string{"a"}) {
		t.Errorf("kept after the pipe's other end was closed: %q", names)
	}
}

// own is a Store of this process, to which its own keeper listens.
func own(t *testing.T, k *fdstore.Keeper) *fdstore.Store {
	t.Helper()
	env, files, err := k.Environ(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		_ = f.Close()
	}
	for _, e := range env {
		if name, value, _ := strings.Cut(e, "="); name == "NOTIFY_SOCKET" || name == "FDSTORE" {
			t.Setenv(name, value)
		}
	}
	store, err := fdstore.Inherit()
	if err != nil {
		t.Fatal(err)
	}
	return store
}

func TestStatesAreHeard(t *testing.T) {
	var mu sync.Mutex
	var heard []string
	k := newKeeper(t, func(s string) {
		mu.Lock()
		defer mu.Unlock()
		heard = append(heard, s)
	})
	run(t, k, "notify:READY=1\nSTATUS=fine", "keep:a=1", "notify:STOPPING=1", "keeps")
	mu.Lock()
	defer mu.Unlock()
	if want := []string{"READY=1\nSTATUS=fine", "STOPPING=1"}; !slices.Equal(heard, want) {
		t.Errorf("heard %q, want %q", heard, want)
	}
}

func TestWithoutKeeper(t *testing.T) {
	for name, env := range map[string][]string{
		"nothing":          nil,
		"service manager":  {"NOTIFY_SOCKET=@nobody", "FDSTORE=0"},
		"another's parent": {"LISTEN_FDS=3", "LISTEN_PID=1"},
	} {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(env, helperEnv+"=keeps", "GORACE=atexit_sleep_ms=0")
		if out, err := cmd.CombinedOutput(); err != nil || string(out) != "false\n" {
			t.Errorf("%s: keeps: %q, %v", name, out, err)
		}
	}
	store := &fdstore.Store{}
	f, err := memory("x")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(store.Keep("a", f), store.Drop("a"), store.DropRest(), store.Notify("READY=1"), f.Close()); err != nil {
		t.Errorf("without a keeper: %v", err)
	}
	if store.Take("a") != nil {
		t.Error("something came from nowhere")
	}
}

// The keeper must outlive whatever it is sent, and by whom.
func TestKeeperSurvivesHostileMessages(t *testing.T) {
	k := newKeeper(t, nil)
	run(t, k, "keep:a=1")
	socket := ""
	env, files, err := k.Environ(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		_ = f.Close()
	}
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "NOTIFY_SOCKET="); ok {
			socket = v
		}
	}
	before := descriptors(t)
	store := own(t, k)
	for _, text := range []string{
		"", "\n\n", "=", "FDSTORE=1", "FDSTORE=1\nFDNAME=", "FDSTORE=1\nFDNAME=a:b", "FDSTORE=1\nFDNAME=" + strings.Repeat("x", 300),
		"FDSTOREREMOVE=1\nFDNAME=nobody", strings.Repeat("A=B\n", 5000), "BARRIER=1\nREADY=1", "FDSTORE=2\nFDNAME=a", "\x00\xff",
	} {
		for _, n := range []int{0, 1, 3} {
			send(t, socket, text, n)
		}
	}
	// More descriptors than it keeps.
	for range 100 {
		send(t, socket, "FDSTORE=1\nFDNAME=many", 1)
	}
	if err := store.Drop("many"); err != nil {
		t.Fatal(err)
	}
	// By somebody who is not its child.
	stranger := exec.CommandContext(t.Context(), os.Args[0])
	stranger.Env = append(os.Environ(), helperEnv+"=drop:a", "GORACE=atexit_sleep_ms=0", "NOTIFY_SOCKET="+socket)
	if out, err := stranger.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, name := range []string{"stored"} { // FDSTORE without a name
		if err := store.Drop(name); err != nil {
			t.Fatal(err)
		}
	}
	if names := k.Names(); !slices.Equal(names, []string{"a"}) {
		t.Errorf("kept: %q", names)
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

func send(t *testing.T, socket, text string, fds int) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var rights []int
	for range fds {
		rights = append(rights, fd)
	}
	var oob []byte
	if fds > 0 {
		oob = unix.UnixRights(rights...)
	}
	if err := errors.Join(unix.Sendmsg(fd, []byte(text), oob, &unix.SockaddrUnix{Name: socket}, 0), unix.Close(fd)); err != nil {
		t.Fatal(err)
	}
}

// descriptors counts those of this process.
func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}
