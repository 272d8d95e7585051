package layerfs_test

import (
	"bufio"
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/airstream-io/airstream/snapshotter/layerfs"
)

// otherDaemon serves a tree at dir from another process.
func otherDaemon(t *testing.T, dir string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), helperEnv+"=mount:"+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	start(t, cmd)
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "mounted\n" {
		t.Fatalf("helper said %q, %v", line, err)
	}
	return cmd
}

func TestMountReplacesTreeOfDeadProcessOnly(t *testing.T) {
	needFUSE(t)
	n := newNode(t)
	n.add(t, 0, tarOf(t, []header{file("f", 0o644, []byte("f"))}))
	at := filepath.Join(t.TempDir(), "tree")
	other := otherDaemon(t, at)
	t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) })

	if _, err := layerfs.Mount(at, n, layerfs.Options{}); err == nil || !strings.Contains(err.Error(), "living process") {
		t.Errorf("mount over a living process: %v", err)
	}
	if err := other.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = other.Wait()
	if _, err := os.ReadFile(filepath.Join(at, "0", "f")); !errors.Is(err, unix.ENOTCONN) {
		t.Fatalf("tree of a dead process: %v", err)
	}
	s, err := layerfs.Mount(at, n, layerfs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(at, "0", "f")); err != nil || string(b) != "f" {
		t.Errorf("after the new mount: %q, %v", b, err)
	}
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Error(err)
	}
	if err := unix.Unmount(at, 0); !errors.Is(err, unix.EINVAL) {
		t.Errorf("something is still mounted: %v", err)
	}
}

func TestCloseEndsWaitsAndDetachesWhatIsInUse(t *testing.T) {
	needFUSE(t)
	n := newNode(t)
	served := n.add(t, 0, tarOf(t, []header{file("f", 0o644, random(1, 10000)), file("held", 0o644, []byte("held"))}))
	gate := served.hold(t, "f")
	at := filepath.Join(t.TempDir(), "tree")
	s, err := layerfs.Mount(at, n, layerfs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	merged := overlay(t, filepath.Join(at, "0"))
	held, err := os.Open(filepath.Join(merged, "held"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = held.Close() }()
	cat := exec.Command("cat", filepath.Join(merged, "f"))
	var out bytes.Buffer
	cat.Stderr = &out
	start(t, cat)
	eventually(t, "it waits", func() bool { return gate.waiting.Load() > 0 })
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := cat.Wait(); err == nil {
		t.Error("cat ended well although its bytes never came")
	}
	select {
	case <-s.Done():
	default:
		t.Error("Done is open after Close")
	}
	if n := n.opened.Load(); n != 0 {
		t.Errorf("%d contents are open after Close", n)
	}
}

func TestDoneWhenSomebodyUnmounts(t *testing.T) {
	n := newNode(t)
	served := n.add(t, 0, tarOf(t, []header{file("f", 0o644, random(1, 10000))}))
	gate := served.hold(t, "f")
	s, at := mount(t, n, layerfs.Options{})
	cat := exec.Command("cat", filepath.Join(at, "0", "f"))
	start(t, cat)
	eventually(t, "it waits", func() bool { return gate.waiting.Load() > 0 })
	if err := unix.Unmount(at, unix.MNT_FORCE|unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	<-s.Done()
	_ = cat.Wait()
}

func TestCompleteFilesAreReadByTheKernel(t *testing.T) {
	n := newNode(t)
	want := random(9, 1<<20)
	served := n.add(t, 0, tarOf(t, []header{file("whole", 0o644, want), file("late", 0o644, want)}))
	late := served.hold(t, "late")
	s, at := mount(t, n, layerfs.Options{})
	merged := overlay(t, filepath.Join(at, "0.base"))
	read := func(name string) {
		t.Helper()
		b, err := os.ReadFile(name)
		if err != nil || !bytes.Equal(b, want) {
			t.Fatalf("%s: %d bytes, %v", name, len(b), err)
		}
	}
	read(filepath.Join(merged, "whole"))
	if s.Stats().Passthrough == 0 {
		t.Skip("skipped: this kernel has no FUSE passthrough (Linux 6.9)")
	}
	read(filepath.Join(at, "0.base", "whole"))
	if r := s.Stats().Reads; r != 0 {
		t.Errorf("%d reads reached the server", r)
	}

	// A file that was opened incomplete stays with the server until its last
	// close, whatever happens meanwhile.
	first, err := os.Open(filepath.Join(merged, "late"))
	if err != nil {
		t.Fatal(err)
	}
	close(late.open)
	before := s.Stats()
	read(filepath.Join(merged, "late"))
	if now := s.Stats(); now.Passthrough != before.Passthrough || now.Reads == before.Reads {
		t.Errorf("open beside a cached one: %+v, before %+v", now, before)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all opens are released", func() bool { return n.opened.Load() == 0 })
	before = s.Stats()
	read(filepath.Join(merged, "late"))
	if now := s.Stats(); now.Passthrough != before.Passthrough+1 || now.Reads != before.Reads {
		t.Errorf("open after completion: %+v, before %+v", now, before)
	}
	eventually(t, "the last is released", func() bool { return n.opened.Load() == 0 })

	// And executed and mapped by passthrough.
	n2 := newNode(t)
	program, err := os.ReadFile("/bin/true")
	if err != nil {
		t.Fatal(err)
	}
	program = append(program, make([]byte, 1<<20)...) // small files are not passed through
	n2.add(t, 0, tarOf(t, []header{file("hello", 0o755, program)}))
	s2, at2 := mount(t, n2, layerfs.Options{})
	// By a shell: a Go process stops, with all that it serves, between the fork
	// and the exec of a child, so it must not start a program of its own tree.
	hello := exec.Command("sh", "-c", filepath.Join(overlay(t, filepath.Join(at2, "0")), "hello"))
	if out, err := hello.CombinedOutput(); err != nil {
		t.Errorf("exec: %v: %s", err, out)
	}
	if st := s2.Stats(); st.Reads != 0 || st.Passthrough == 0 {
		t.Errorf("exec: %+v", st)
	}
}

func TestOverlayCanBeStackedTwiceOnCacheOnlyTree(t *testing.T) {
	n := newNode(t)
	n.add(t, 0, tarOf(t, []header{file("f", 0o644, []byte("f"))}))
	_, at := mount(t, n, layerfs.Options{CacheOnly: true})
	if b, err := os.ReadFile(filepath.Join(overlay(t, overlay(t, filepath.Join(at, "0"))), "f")); err != nil || string(b) != "f" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestCacheOnlyReadsThroughServerOnce(t *testing.T) {
	n := newNode(t)
	want := random(9, 1<<20)
	n.add(t, 0, tarOf(t, []header{file("f", 0o644, want)}))
	s, at := mount(t, n, layerfs.Options{CacheOnly: true})
	for i := range 2 {
		before := s.Stats()
		if b, err := os.ReadFile(filepath.Join(at, "0", "f")); err != nil || !bytes.Equal(b, want) {
			t.Fatalf("%d bytes, %v", len(b), err)
		}
		now := s.Stats()
		if now.Passthrough != 0 || (now.Reads > before.Reads) != (i == 0) {
			t.Errorf("read %d: %+v, before %+v", i, now, before)
		}
	}
}
