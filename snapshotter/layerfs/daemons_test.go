package layerfs_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/airstream-io/airstream/internal/fdstore"
	"github.com/airstream-io/airstream/snapshotter/layerfs"
)

// daemons are processes that serve one tree after the other. The test keeps
// their descriptors.
type daemons struct {
	t      *testing.T
	keeper *fdstore.Keeper
	what   serving

	cmd *exec.Cmd
	out *bufio.Reader
	log bytes.Buffer // of the last one, complete when it has ended
}

// kernels are this one, and one before 6.9, which doesn't resend requests and
// has no passthrough.
var kernels = map[string]bool{"resend": false, "olderkernel": true}

func newDaemons(t *testing.T, layer []byte, noResend bool) *daemons {
	t.Helper()
	needFUSE(t)
	dir := t.TempDir()
	d := &daemons{t: t, what: serving{
		Dir: filepath.Join(dir, "tree"), Layer: filepath.Join(dir, "layer"), Store: filepath.Join(dir, "store"), NoResend: noResend,
	}}
	if err := errors.Join(os.WriteFile(d.what.Layer, layer, 0o600), os.WriteFile(d.what.Layer+".toc", tocOf(t, layer), 0o600), os.Mkdir(d.what.Store, 0o700)); err != nil {
		t.Fatal(err)
	}
	var err error
	if d.keeper, err = fdstore.NewKeeper(func(string) {}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if d.cmd != nil {
			d.kill()
		}
		// Ends the connection, and with it whatever may wait.
		if err := unix.Unmount(d.what.Dir, unix.MNT_FORCE|unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			t.Error(err)
		}
		if err := d.keeper.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("the last daemon said:\n%s", &d.log)
		}
	})
	return d
}

// start starts a daemon, waits until it serves, and returns how long its Mount
// took.
func (d *daemons) start(change ...func(*serving)) (took time.Duration) {
	d.t.Helper()
	what := d.what
	for _, c := range change {
		c(&what)
	}
	arg, err := json.Marshal(what)
	if err != nil {
		d.t.Fatal(err)
	}
	env, files, err := d.keeper.Environ(append(os.Environ(), helperEnv+"=serve:"+string(arg), "GORACE=atexit_sleep_ms=0"))
	if err != nil {
		d.t.Fatal(err)
	}
	d.log.Reset()
	d.cmd = exec.Command(os.Args[0])
	d.cmd.Env, d.cmd.ExtraFiles, d.cmd.Stderr = env, files, &d.log
	pipe, err := d.cmd.StdoutPipe()
	if err != nil {
		d.t.Fatal(err)
	}
	if err := d.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	d.keeper.Started(d.cmd.Process.Pid)
	for _, f := range files {
		_ = f.Close()
	}
	d.out = bufio.NewReader(pipe)
	line, err := d.out.ReadString('\n')
	if err == nil {
		took, err = time.ParseDuration(strings.TrimPrefix(strings.TrimSpace(line), "ready "))
	}
	if err != nil {
		d.t.Fatalf("daemon said %q, %v", line, err)
	}
	return took
}

func hold(names ...string) func(*serving) {
	return func(s *serving) { s.Hold = names }
}

func (d *daemons) kill() { d.end(syscall.SIGKILL) }

func (d *daemons) end(sig syscall.Signal) {
	_ = d.cmd.Process.Signal(sig)
	_ = d.cmd.Wait()
	d.cmd = nil
}

// stats returns those of the present daemon.
func (d *daemons) stats() (s layerfs.Stats) {
	d.t.Helper()
	if err := d.cmd.Process.Signal(syscall.SIGUSR1); err != nil {
		d.t.Fatal(err)
	}
	line, err := d.out.ReadString('\n')
	if err == nil {
		err = json.Unmarshal([]byte(line), &s)
	}
	if err != nil {
		d.t.Fatal(err)
	}
	return s
}

// abort ends the connection, and with it whatever waits.
func (d *daemons) abort() { _ = unix.Unmount(d.what.Dir, unix.MNT_FORCE|unix.MNT_DETACH) }

// openFiles returns how many opens the state has that the keeper has.
func (d *daemons) openFiles() (n int) {
	d.t.Helper()
	_, files, err := d.keeper.Environ(nil)
	if err != nil {
		d.t.Fatal(err)
	}
	for _, f := range files {
		if f.Name() == "tree-state" {
			if n, err = layerfs.OpenFiles(f); err != nil {
				d.t.Fatal(err)
			}
			continue
		}
		_ = f.Close()
	}
	return n
}

func (d *daemons) path(name string) string { return filepath.Join(d.what.Dir, "0.base", name) }
