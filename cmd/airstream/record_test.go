package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/airstream-io/airstream/internal/trace"
	"github.com/airstream-io/airstream/test/rig/images"
	"github.com/airstream-io/airstream/test/rig/site"
	"github.com/airstream-io/airstream/test/rig/tools"
)

// recordRig runs airstream as a process of its own, with a work directory that
// nobody else uses.
type recordRig struct {
	t    *testing.T
	exe  string
	work string
}

func newRecordRig(t *testing.T) *recordRig {
	t.Helper()
	tools.Need(t, tools.Root, tools.FUSE, tools.Overlay, tools.NetNS, "runc")
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return &recordRig{t, exe, t.TempDir()}
}

// real makes it the binary that users get, and returns a real image. With the
// race detector, which the test's own binary may have, to convert one takes
// minutes.
func (r *recordRig) real(image string) *images.Image {
	r.t.Helper()
	if needs := images.Needs(image); len(needs) > 0 {
		tools.Need(r.t, needs...)
	}
	img, err := images.Build(r.t.Context(), image)
	if err == nil {
		r.exe, err = site.Build(r.t.Context())
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return img
}

// command makes the process of a conversion that records.
func (r *recordRig) command(args ...string) *exec.Cmd {
	r.t.Helper()
	cmd := exec.CommandContext(r.t.Context(), r.exe)
	cmd.Args = append([]string{"airstream", "convert", "--no-progress", "--work-dir", r.work}, args...)
	cmd.Env = append(os.Environ(), "XDG_CACHE_HOME="+r.work+"/cache")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL} // it ends with the test
	return cmd
}

// run runs it and returns its exit code and what it said.
func (r *recordRig) run(args ...string) (code int, stdout, stderr string) {
	r.t.Helper()
	var out, words bytes.Buffer
	cmd := r.command(args...)
	cmd.Stdout, cmd.Stderr = &out, &words
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		r.t.Fatal(err)
	} else if ok {
		code = exit.ExitCode()
	}
	return code, out.String(), words.String()
}

// leftovers returns what recordings have left: directories, cgroups, mounts.
func (r *recordRig) leftovers() (list []string) {
	r.t.Helper()
	for _, pattern := range []string{r.work + "/.airstream-record-*", "/sys/fs/cgroup/airstream-record/*", "/sys/fs/cgroup/*/airstream-record/*"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			r.t.Fatal(err)
		}
		list = append(list, slices.DeleteFunc(found, func(s string) bool { // files of a cgroup
			info, err := os.Stat(s)
			return err != nil || !info.IsDir()
		})...)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		r.t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, r.work) {
			list = append(list, line)
		}
	}
	return list
}

func readyImage(t *testing.T) string {
	t.Helper()
	img, err := images.Build(t.Context(), "odd-implied")
	if err != nil {
		t.Fatal(err)
	}
	return "oci:" + img.OCIPath()
}

func TestRecordAStart(t *testing.T) {
	r := newRecordRig(t)
	src, dst, file := readyImage(t), "oci:"+t.TempDir()+"/out", t.TempDir()+"/start.trace"
	code, out, words := r.run("--record", "", "--ready", "^READY", "--runs", "2", "--save-trace", file, "-o", "json", src, dst)
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, words)
	}
	if n := strings.Count(words, `recorded a start: it wrote "READY" after `); n != 2 {
		t.Errorf("said %q", words)
	}
	var report struct {
		Manifests []struct {
			Hot    int64
			Layers []struct{ How string }
		}
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil {
		t.Fatal(err)
	}
	if len(report.Manifests) != 1 || report.Manifests[0].Hot == 0 {
		t.Errorf("reported %s", out)
	}
	tr, err := readTrace(file)
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[trace.Kind]int{}
	for _, read := range tr.Reads {
		kinds[read.Kind]++
		if read.Kind == trace.Content && (read.Path != "bin/ready" && read.Path != "etc/passwd" || read.Chunk == (trace.Hint{})) {
			t.Errorf("read %+v", read)
		}
	}
	if kinds[trace.Content] < 5 || kinds[trace.Found] == 0 || kinds[trace.Absent] == 0 {
		t.Errorf("recorded %v", kinds)
	}
	if left := r.leftovers(); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	// The trace alone gives the same image.
	again := "oci:" + t.TempDir() + "/again"
	if code, _, words := r.run("--trace", file, src, again); code != 0 {
		t.Fatalf("exit code %d: %s", code, words)
	}
	if a, b := indexOf(t, dst), indexOf(t, again); a != b {
		t.Errorf("recorded: %s\nwith the trace: %s", a, b)
	}
	// And so does taking it over from the image, for another place.
	if code, _, words = r.run("--trace-from", dst, "--prioritize", src, "oci:"+t.TempDir()+"/next"); code != 0 {
		t.Fatalf("exit code %d: %s", code, words)
	}
}

func indexOf(t *testing.T, place string) string {
	t.Helper()
	b, err := os.ReadFile(strings.TrimPrefix(place, "oci:") + "/index.json")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestRecordThatFails(t *testing.T) {
	r := newRecordRig(t)
	src := readyImage(t)
	for name, test := range map[string]struct {
		args []string
		code int
		say  []string
	}{
		"never ready":        {[]string{"--record", "", "--ready", "NEVER", "--for", "1s"}, 1, []string{`no line that matches "NEVER" in 1s`, "It wrote:\n    READY", "was not changed"}},
		"no port":            {[]string{"--record", "", "--ready-tcp", "80", "--for", "500ms"}, 1, []string{"nothing takes connections at port 80 after 500ms"}},
		"no such program":    {[]string{"--record", "/bin/nothing --here"}, 1, []string{"did not get ready: it ended after", `["/bin/nothing" "--here"]`, "no such file"}},
		"not a command":      {[]string{"--record", "--ready=x"}, 2, []string{"--record --ready=x: want a command; '' runs what the image says"}},
		"two ways":           {[]string{"--record", "", "--ready", "x", "--ready-tcp", "1"}, 2, []string{"don't go together"}},
		"ready for nothing":  {[]string{"--ready", "x"}, 2, []string{"go with --record"}},
		"bad expression":     {[]string{"--record", "", "--ready", "("}, 2, []string{"missing closing )"}},
		"open quote":         {[]string{"--record", "sh -c 'x"}, 2, []string{"a quote is not closed"}},
		"no runs":            {[]string{"--record", "", "--runs", "0"}, 2, []string{"--runs 0: want 1 to 100"}},
		"other platforms":    {[]string{"--record", "", "--platform", "linux/riscv64"}, 2, []string{"and --platform leaves it out"}},
		"prioritize by what": {[]string{"--prioritize"}, 2, []string{"add --record, --trace or --trace-from"}},
		"save what":          {[]string{"--save-trace", "x"}, 2, []string{"there is no trace"}},
	} {
		t.Run(name, func(t *testing.T) {
			out := t.TempDir() + "/out"
			code, _, words := r.run(append(test.args, src, "oci:"+out)...)
			if code != test.code {
				t.Errorf("exit code %d, want %d", code, test.code)
			}
			for _, s := range test.say {
				if !strings.Contains(words, s) {
					t.Errorf("said %q, want %q", words, s)
				}
			}
			if _, err := os.Stat(out); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the destination is there: %v", err)
			}
		})
	}
	if left := r.leftovers(); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// Nothing stays behind when the recorder is interrupted, and when it is killed
// only what takes room, until the next time.
func TestRecordThatIsStopped(t *testing.T) {
	r := newRecordRig(t)
	src := readyImage(t)
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGKILL} {
		t.Run(sig.String(), func(t *testing.T) {
			var words bytes.Buffer
			cmd := r.command("--record", "", "--for", "10m", src, "oci:"+t.TempDir()+"/out")
			cmd.Stderr = &words
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			group := "" // of the container
			for end := time.Now().Add(time.Minute); group == "" && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
				found, err := filepath.Glob("/sys/fs/cgroup/*/airstream-record/*/cgroup.procs")
				if err != nil {
					t.Fatal(err)
				}
				for _, f := range found {
					if b, err := os.ReadFile(f); err == nil && len(b) > 0 {
						group = f
					}
				}
			}
			if group == "" {
				t.Errorf("no container was started: %s", words.String())
			}
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			err := cmd.Wait()
			exit, ok := errors.AsType[*exec.ExitError](err)
			if sig == syscall.SIGINT && (!ok || exit.ExitCode() != exitIncomplete || !strings.Contains(words.String(), "interrupted")) {
				t.Errorf("got %v: %s", err, words.String())
			}
			if sig == syscall.SIGKILL {
				// Its processes and mounts are gone by themselves, soon.
				for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
					if b, err := os.ReadFile(group); err != nil || len(b) == 0 {
						break
					}
				}
				if b, err := os.ReadFile(group); err == nil && len(b) > 0 {
					t.Errorf("processes of the container live on: %s", b)
				}
				if len(r.leftovers()) == 0 {
					t.Error("nothing was left behind; what does the rest of this test show?")
				}
				if code, _, words := r.run("--record", "", "--ready", "READY", src, "oci:"+t.TempDir()+"/out"); code != 0 {
					t.Fatalf("the next recording: exit code %d: %s", code, words)
				}
			}
			if left := r.leftovers(); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
		})
	}
}

// The container is alone, is who the image says, and changes nothing.
func TestRecordedContainer(t *testing.T) {
	r := newRecordRig(t)
	img := r.real("redis")
	const script = `id -un; id -gn; pwd; echo "$PATH"; hostname; grep -c : /proc/net/dev; ls -d /proc/[0-9]* | wc -l; touch made && echo wrote; touch /usr/no || echo kept; ` +
		`cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null; head -c 3 /dev/urandom | wc -c; mknod x b 8 0 || echo nodev; exit 7`
	code, _, words := r.run("--record", "sh -c '"+strings.ReplaceAll(script, "'", `'\''`)+"'", "oci:"+img.OCIPath(), "oci:"+t.TempDir()+"/out")
	if code != 1 {
		t.Errorf("exit code %d: %s", code, words)
	}
	_, said, _ := strings.Cut(words, "It wrote:\n")
	lines := strings.Fields(said)
	want := strings.Fields("redis redis /var/lib/redis /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin airstream 1")
	if len(lines) < len(want) || !slices.Equal(lines[:len(want)], want) {
		t.Errorf("it said %q, want %q", lines, want)
	}
	for _, s := range []string{"wrote", "kept", fmt.Sprint(4096), "nodev"} {
		if !slices.Contains(lines, s) {
			t.Errorf("it did not say %s: %q", s, lines)
		}
	}
	if !strings.Contains(words, "exit status 7") {
		t.Errorf("its exit code is not told: %s", words)
	}
}

// A port is as good as a line.
func TestRecordUntilAPortIsOpen(t *testing.T) {
	r := newRecordRig(t)
	img := r.real("redis")
	code, _, words := r.run("--record", "redis-server --port 7000", "--ready-tcp", "7000", "oci:"+img.OCIPath(), "oci:"+t.TempDir()+"/out")
	if code != 0 || !strings.Contains(words, "port 7000 takes connections") {
		t.Errorf("exit code %d: %s", code, words)
	}
}
