package node

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/airstream-io/airstream/test/rig/link"
	"github.com/airstream-io/airstream/test/rig/netns"
)

var ready = regexp.MustCompile(`^ready to \w+$`)

func TestPullAndRunAcrossTheLink(t *testing.T) {
	s := newSite(t, "rtt=100ms,down=20mbit,up=5mbit")
	ctx := t.Context()

	t.Run("transfer", func(t *testing.T) {
		before, err := s.link.Stats(ctx)
		if err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		if err := s.node.PullTransfer(ctx, s.ref, Overlayfs); err != nil {
			t.Fatal(err)
		}
		after, err := s.link.Stats(ctx)
		if err != nil {
			t.Fatal(err)
		}
		crossed := after.Since(before)
		t.Logf("pulled in %v: %d bytes down, %d connections", time.Since(begin), crossed.Down.Delivered.Bytes, crossed.Up.Connections)
		if crossed.Down.Delivered.Bytes < 500_000 || crossed.Up.Connections == 0 {
			t.Errorf("the image did not cross the link: %+v", crossed)
		}
		r, err := s.node.RunUntil(ctx, Run{Ref: s.ref, Args: []string{"/hello", "sailor"}, Env: []string{"GREETING=ahoy"}, Ready: ready})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("ready after %v", r.Ready)
		checkHello(t, r, "starting as [/hello sailor]", "greeting=ahoy")
	})

	t.Run("cri", func(t *testing.T) {
		c, err := s.node.CRI()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close() //nolint:errcheck // the test is over
		if _, err := c.PullImage(ctx, s.ref, nil); err != nil {
			t.Fatal(err)
		}
		r, err := c.RunUntil(ctx, Run{Ref: s.ref, Args: []string{"/hello", "kubelet"}, Env: []string{"GREETING=hello"}, Ready: ready})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("ready after %v", r.Ready)
		checkHello(t, r, "starting as [/hello kubelet]", "greeting=hello")
		pod, err := c.StartPod(ctx, Run{Ref: s.ref})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := pod.Wait(ctx, ready); err != nil {
			t.Error(err)
		}
		if out, err := pod.Exec(ctx, "/hello", "end"); err != nil || !strings.HasSuffix(out, "\ndone\n") {
			t.Errorf("exec: %q, %v", out, err)
		}
		if _, err := pod.Exec(ctx, "/hello", "fail"); err == nil || !strings.Contains(err.Error(), "exit code 7") {
			t.Errorf("exec of a failing command: %v", err)
		}
		if err := pod.Remove(ctx); err != nil {
			t.Error(err)
		}
	})
}

// checkHello checks what the container has printed.
func checkHello(t *testing.T, r Result, want ...string) {
	t.Helper()
	for _, line := range append(want, link.Device+":") { // it sees the node's network
		if !strings.Contains(r.Output, line) {
			t.Errorf("%q is not in the output:\n%s", line, r.Output)
		}
	}
	if r.Line != "ready to serve" || r.Ready <= 0 || r.Ready > time.Minute {
		t.Errorf("ready line %q after %v", r.Line, r.Ready)
	}
}

func TestContainersThatNeverGetReady(t *testing.T) {
	s := newSite(t, "direct")
	ctx := t.Context()
	if err := s.node.PullTransfer(ctx, s.ref, Overlayfs); err != nil {
		t.Fatal(err)
	}
	c, err := s.node.CRI()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // the test is over
	if _, err := c.PullImage(ctx, s.ref, nil); err != nil {
		t.Fatal(err)
	}
	for way, until := range map[string]func(context.Context, Run) (Result, error){"ctr": s.node.RunUntil, "cri": c.RunUntil} {
		t.Run(way, func(t *testing.T) {
			_, err := until(ctx, Run{Ref: s.ref, Args: []string{"/hello", "fail"}, Ready: ready})
			if err == nil || !strings.Contains(err.Error(), "cannot go on") {
				t.Errorf("failing container: %v", err)
			}
			_, err = until(ctx, Run{Ref: s.ref, Args: []string{"/hello", "end"}, Ready: ready})
			if !errors.Is(err, ErrNotReady) {
				t.Errorf("container that ends: %v", err)
			}
			r, err := until(ctx, Run{Ref: s.ref, Args: []string{"/hello", "end"}})
			if err != nil || !strings.HasSuffix(r.Output, "\ndone\n") {
				t.Errorf("container run to its end: %q, %v", r.Output, err)
			}
			short, cancel := context.WithTimeout(ctx, 3*time.Second)
			defer cancel()
			_, err = until(short, Run{Ref: s.ref, Ready: regexp.MustCompile("never")})
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("given up: %v", err)
			}
			if _, err := until(ctx, Run{Ref: s.ref + "missing", Ready: ready}); err == nil {
				t.Error("an image that is not there was run")
			}
		})
	}
	if out, err := s.node.Ctr(ctx, "containers", "list", "-q"); err != nil || out != "" {
		t.Errorf("containers left: %q, %v", out, err)
	}
	if out, err := s.node.Ctr(ctx, "-n", CRINamespace, "containers", "list", "-q"); err != nil || out != "" {
		t.Errorf("containers left: %q, %v", out, err)
	}
	if err := s.node.PullTransfer(ctx, s.ref+"missing", Overlayfs); err == nil || !strings.Contains(err.Error(), "not found") {
		t.Errorf("pull of a missing image: %v", err)
	}
}

func TestContainersSurviveContainerd(t *testing.T) {
	s := newSite(t, "direct")
	ctx := t.Context()
	c, err := s.node.CRI()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // the test is over
	if _, err := c.PullImage(ctx, s.ref, nil); err != nil {
		t.Fatal(err)
	}
	pod, err := c.StartPod(ctx, Run{Ref: s.ref})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pod.Wait(ctx, ready); err != nil {
		t.Fatal(err)
	}
	for what, restart := range map[string]func() error{
		"restart":     func() error { return s.node.Restart(ctx) },
		"after crash": func() error { return errors.Join(s.node.Kill(), s.node.Restart(ctx)) },
	} {
		before := s.node.PID()
		if err := restart(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if s.node.PID() == before {
			t.Errorf("%s: the same process", what)
		}
		if ended, err := pod.ended(ctx); err != nil || ended {
			t.Errorf("%s: container has ended: %v, %v", what, ended, err)
		}
	}
	// The image is still there with the link cut.
	if _, err := s.link.Cut(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := c.RunUntil(ctx, Run{Ref: s.ref, Ready: ready}); err != nil {
		t.Error(err)
	}
	// The pod still runs when the node is stopped: stopClean checks that
	// nothing is left of it.
}

// orphanEnv makes the test binary a run that is going to be killed.
const orphanEnv = "AIRSTREAM_TEST_ORPHAN"

func TestMain(m *testing.M) {
	if os.Getenv(orphanEnv) != "" {
		if err := orphan(context.Background()); err != nil {
			fmt.Println("error:", err)
		}
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

// orphan starts a node with a container in a namespace, says where they are,
// and waits for the end.
func orphan(ctx context.Context) error {
	ns, err := netns.Create("node", netns.Options{})
	if err != nil {
		return err
	}
	n, err := Start(ctx, Options{Namespace: ns})
	if err != nil {
		return err
	}
	_, err = n.Ctr(ctx, "-n", CRINamespace, "run", "--detach", "--net-host", "--cgroup", n.cgroup()+"/orphan",
		"--runc-root", n.path("runc"), "--fifo-dir", n.path("fifo"), pauseRef, "orphan")
	if err != nil {
		return err
	}
	fmt.Println(n.Dir(), ns.Path(), n.PID())
	select {}
}

// A run that is killed leaves a node behind; the next one takes it away.
func TestSweepTakesAwayWhatACrashLeft(t *testing.T) {
	if err := Available(""); err != nil {
		t.Skip(err)
	}
	alive, err := Start(t.Context(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer stopClean(t, alive)

	crash := exec.CommandContext(t.Context(), "/proc/self/exe")
	crash.Env = append(os.Environ(), orphanEnv+"=1")
	stdout, err := crash.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := crash.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	var dir, ns string
	var containerd int
	if _, scanErr := fmt.Sscan(line, &dir, &ns, &containerd); err != nil || scanErr != nil {
		t.Errorf("orphan says %q: %v, %v", line, err, scanErr)
	}
	if err := crash.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	crash.Wait() //nolint:errcheck // it was killed

	left := &Node{dir: dir}
	var parents map[int]int
	err = poll(t.Context(), pollEvery, "containerd outlives its owner", func() (bool, error) {
		parents, err = processes()
		return parents[containerd] == 0, err
	})
	if err != nil {
		t.Error(err)
	}
	if len(shimsOf(parents, left.Socket())) == 0 {
		t.Error("no shim is left: the test proves nothing")
	}
	if err := Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := netns.Sweep(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(ns); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there", ns)
	}
	checkGone(t, left)
	if _, err := alive.Ctr(t.Context(), "version"); err != nil {
		t.Errorf("Sweep harmed a node that is alive: %v", err)
	}
}

func TestStartSaysWhatIsWrong(t *testing.T) {
	if err := Available(""); err != nil {
		t.Skip(err)
	}
	if _, err := Start(t.Context(), Options{Bin: t.TempDir()}); err == nil || !strings.Contains(err.Error(), "no containerd in") {
		t.Errorf("no tools: %v", err)
	}
	if _, err := Start(t.Context(), Options{CRISnapshotter: Airstream}); err == nil || !strings.Contains(err.Error(), "socket") {
		t.Errorf("no snapshotter: %v", err)
	}
	if _, err := Start(t.Context(), Options{Hosts: map[string]string{"../etc": ""}}); err == nil || !strings.Contains(err.Error(), "../etc") {
		t.Errorf("a host that is a path: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Start(ctx, Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	left, err := filepath.Glob(filepath.Join(os.TempDir(), fmt.Sprintf("airstream.%d.*", os.Getpid())))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
