package tree

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var when = time.Date(2020, 5, 6, 7, 8, 9, 123456789, time.UTC)

// plant makes a small tree of what needs no root, with fixed times.
func plant(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	must(t,
		os.MkdirAll(filepath.Join(root, "dir/sub"), 0o755),
		os.WriteFile(filepath.Join(root, "dir/file"), []byte("content\n"), 0o644),
		os.WriteFile(filepath.Join(root, "dir/other"), []byte("other\n"), 0o644),
		os.WriteFile(filepath.Join(root, "new\nline \xff"), nil, 0o644),
		os.Symlink("dir/file", filepath.Join(root, "symlink")),
		os.Link(filepath.Join(root, "dir/file"), filepath.Join(root, "hardlink")),
		unix.Mkfifo(filepath.Join(root, "fifo"), 0o600),
	)
	setTimes(t, root, when)
	return root
}

// setTimes gives everything beneath root one time.
func setTimes(t *testing.T, root string, to time.Time) {
	t.Helper()
	must(t, filepath.Walk(root, func(path string, _ os.FileInfo, err error) error {
		must(t, err)
		return setTime(path, to)
	}))
}

func setTime(path string, to time.Time) error {
	ts := unix.NsecToTimespec(to.UnixNano())
	return unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func compare(t *testing.T, a, b string, opt Options) []Difference {
	t.Helper()
	diffs, err := Compare(t.Context(), a, b, opt)
	must(t, err)
	return diffs
}

func TestEqualTrees(t *testing.T) {
	if diffs := compare(t, plant(t), plant(t), Options{Root: true}); len(diffs) > 0 {
		t.Errorf("differences between equal trees:\n%s", Lines(diffs, 100))
	}
}

// Each kind of difference that can be made is found, is the only one found, and
// is described by both values.
func TestEachDifferenceIsFound(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(root string) error
		want   string // the line, without times
		root   bool   // needs root
	}{
		"missing file":     {func(r string) error { return os.Remove(r + "/dir/other") }, `"dir/other": exists: file | –`, false},
		"extra directory":  {func(r string) error { return os.Mkdir(r+"/dir/extra", 0o755) }, `"dir/extra": exists: – | directory`, false},
		"missing raw name": {func(r string) error { return os.Remove(r + "/new\nline \xff") }, `"new\nline \xff": exists: file | –`, false},
		"type": {func(r string) error {
			return errors.Join(os.Remove(r+"/dir/sub"), os.WriteFile(r+"/dir/sub", nil, 0o755))
		}, `"dir/sub": type: directory | file`, false},
		"mode":         {func(r string) error { return os.Chmod(r+"/dir/other", 0o600) }, `"dir/other": mode: 0644 | 0600`, false},
		"setuid":       {func(r string) error { return unix.Chmod(r+"/dir/other", 0o4644) }, `"dir/other": mode: 0644 | 4644`, false},
		"sticky":       {func(r string) error { return unix.Chmod(r+"/dir", 0o1755) }, `"dir": mode: 0755 | 1755`, false},
		"size":         {func(r string) error { return os.Truncate(r+"/new\nline \xff", 3) }, `"new\nline \xff": size: 0 | 3`, false},
		"content":      {func(r string) error { return os.WriteFile(r+"/dir/other", []byte("OTHER\n"), 0) }, `"dir/other": content: sha256`, false},
		"target":       {func(r string) error { return relink(r+"/symlink", "dir/fil3") }, `"symlink": target: "dir/file" | "dir/fil3"`, false},
		"nanosecond":   {func(r string) error { return setTime(r+"/dir/other", when.Add(1)) }, `"dir/other": mtime: 2020-05-06T07:08:09.123456789Z | 2020-05-06T07:08:09.123456790Z`, false},
		"symlink time": {func(r string) error { return setTime(r+"/symlink", when.Add(-time.Hour)) }, `"symlink": mtime: 2020-05-06T07:08:09.123456789Z | 2020-05-06T06:08:09.123456789Z`, false},
		"before 1970":  {func(r string) error { return setTime(r+"/fifo", time.Unix(-1, 5)) }, `"fifo": mtime: 2020-05-06T07:08:09.123456789Z | 1969-12-31T23:59:59.000000005Z`, false},
		"new xattr":    {func(r string) error { return unix.Lsetxattr(r+"/dir/other", "user.x", []byte("\x00v"), 0) }, `"dir/other": xattr: – | user.x="\x00v"`, false},
		"empty xattr":  {func(r string) error { return unix.Lsetxattr(r+"/dir", "user.x", nil, 0) }, `"dir": xattr: – | user.x=""`, false},

		"owner":      {func(r string) error { return os.Lchown(r+"/dir/other", 70000, 0) }, `"dir/other": owner: 0:0 | 70000:0`, true},
		"group":      {func(r string) error { return os.Lchown(r+"/symlink", 0, 4294967294) }, `"symlink": owner: 0:0 | 0:4294967294`, true},
		"trusted":    {func(r string) error { return unix.Lsetxattr(r+"/symlink", "trusted.x", []byte("v"), 0) }, `"symlink": xattr: – | trusted.x="v"`, true},
		"capability": {func(r string) error { return unix.Lsetxattr(r+"/dir/other", "security.capability", capability, 0) }, `"dir/other": xattr: – | security.capability=`, true},
	} {
		t.Run(name, func(t *testing.T) {
			if tt.root && os.Geteuid() != 0 {
				t.Skip("needs root")
			}
			a, b := plant(t), plant(t)
			must(t, tt.change(b))
			if !strings.Contains(tt.want, "mtime") {
				setTimes(t, b, when)
			}
			diffs := compare(t, a, b, Options{})
			if tt.want == `"new\nline \xff": size: 0 | 3` && len(diffs) == 2 && diffs[1].Aspect == Content {
				diffs = diffs[:1] // another size is another content
			}
			if len(diffs) != 1 || !strings.HasPrefix(diffs[0].String(), tt.want) {
				t.Errorf("differences:\n%swant\n%s", Lines(diffs, 100), tt.want)
			}
			// The other way round it is as many.
			if back := compare(t, b, a, Options{}); len(back) == 0 || back[0].Path != diffs[0].Path {
				t.Errorf("the other way round:\n%s", Lines(back, 100))
			}
		})
	}
}

var capability = []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")

func relink(path, target string) error {
	return errors.Join(os.Remove(path), os.Symlink(target, path))
}

func TestDevices(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	a, b := plant(t), plant(t)
	for path, dev := range map[string][2]uint64{
		a + "/null": {unix.Mkdev(1, 3), unix.S_IFCHR}, b + "/null": {unix.Mkdev(1, 5), unix.S_IFCHR},
		a + "/loop": {unix.Mkdev(7, 0), unix.S_IFBLK}, b + "/loop": {unix.Mkdev(7, 0), unix.S_IFCHR},
	} {
		must(t, unix.Mknod(path, uint32(dev[1])|0o600, int(dev[0])))
	}
	setTimes(t, a, when)
	setTimes(t, b, when)
	got := Lines(compare(t, a, b, Options{}), 100)
	want := "\"loop\": type: block device | character device\n\"null\": device: 1:3 | 1:5\n"
	if got != want {
		t.Errorf("differences:\n%swant\n%s", got, want)
	}
}

// Two files of the same content are not a hardlink, though nothing but the
// inode tells.
func TestHardlinkGroups(t *testing.T) {
	a, b := plant(t), plant(t)
	must(t,
		os.Remove(b+"/hardlink"),
		os.WriteFile(b+"/hardlink", []byte("content\n"), 0o644))
	setTimes(t, b, when)
	got := Lines(compare(t, a, b, Options{}), 100)
	for _, want := range []string{
		`"dir/file": hardlinks: ["dir/file" "hardlink"] | ["dir/file"]`,
		`"hardlink": hardlinks: ["dir/file" "hardlink"] | ["hardlink"]`,
		`"hardlink": link count: 2 | 1`,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%s is missing from\n%s", want, got)
		}
	}

	// Same groups' sizes, other members.
	must(t, os.Remove(b+"/hardlink"), os.Remove(b+"/dir/other"),
		os.WriteFile(b+"/hardlink", []byte("content\n"), 0o644),
		os.Link(b+"/dir/file", b+"/dir/other"))
	setTimes(t, b, when)
	if got := Lines(compare(t, a, b, Options{}), 100); !strings.Contains(got, `"dir/file": hardlinks: ["dir/file" "hardlink"] | ["dir/file" "dir/other"]`) {
		t.Errorf("other members of a group aren't found:\n%s", got)
	}
}

func TestLinkCountOutsideTheTree(t *testing.T) {
	a, b := plant(t), plant(t)
	outside := t.TempDir() + "/outside"
	if err := os.Link(b+"/dir/other", outside); err != nil {
		t.Skip(err)
	}
	if got := Lines(compare(t, a, b, Options{}), 9); got != "\"dir/other\": link count: 1 | 2\n" {
		t.Errorf("differences:\n%s", got)
	}
}

func TestOptions(t *testing.T) {
	a, b := plant(t), plant(t)
	must(t,
		setTime(b+"/dir/other", when.Truncate(time.Second)),
		os.Chmod(b+"/dir/file", 0o600),
		unix.Lsetxattr(b+"/dir", "user.label", []byte("x"), 0),
		os.Chmod(b, 0o700))
	opt := Options{
		MTimeWithin: WholeSeconds,
		Ignore:      []Aspect{Mode},
		IgnoreXattr: func(name string) bool { return name == "user.label" },
	}
	if diffs := compare(t, a, b, opt); len(diffs) > 0 {
		t.Errorf("differences that were to be ignored:\n%s", Lines(diffs, 9))
	}
	must(t, setTime(b+"/dir/other", when.Add(-time.Second)))
	if got := compare(t, a, b, opt); len(got) != 1 || got[0].Aspect != MTime {
		t.Errorf("a second apart is not the same second:\n%s", Lines(got, 9))
	}
	opt.Skip = func(path string) bool { return path == "dir" }
	if diffs := compare(t, a, b, opt); len(diffs) != 1 || diffs[0].Aspect != Hardlinks && diffs[0].Aspect != LinkCount {
		if len(diffs) > 0 {
			t.Errorf("differences in what was skipped:\n%s", Lines(diffs, 9))
		}
	}
	opt = Options{MTimeWithin: time.Hour, Root: true, Skip: func(string) bool { return true }}
	if got := Lines(compare(t, a, b, opt), 9); got != "\".\": mode: 0755 | 0700\n" {
		t.Errorf("differences of the roots:\n%s", got)
	}
}

// A readdir that lies about a type is reported even where both trees lie.
func TestDirentTypeIsChecked(t *testing.T) {
	scan, err := Scan(t.Context(), plant(t), Options{})
	must(t, err)
	scan.Entry("fifo").dirMode = unix.S_IFREG
	if got := Lines(Diff(scan, scan, Options{}), 9); got != "\"fifo\": dirent type: file, stat: fifo | file, stat: fifo\n" {
		t.Errorf("differences:\n%s", got)
	}
}

// A file that is shorter than its size says, as a broken file system can have,
// is a difference.
func TestContentIsAllOfIt(t *testing.T) {
	a, err := Scan(t.Context(), plant(t), Options{})
	must(t, err)
	b, err := Scan(t.Context(), plant(t), Options{})
	must(t, err)
	if e := a.Entry("dir/file"); e.Read != 8 || e.Size != 8 {
		t.Fatalf("read %d of %d bytes, want 8 of 8", e.Read, e.Size)
	}
	b.Entry("dir/file").Read = 7
	if got := Diff(a, b, Options{}); len(got) != 1 || got[0].Aspect != Content {
		t.Errorf("differences:\n%s", Lines(got, 9))
	}
}

func TestLinesAreLimited(t *testing.T) {
	a, b := plant(t), t.TempDir()
	diffs := compare(t, a, b, Options{})
	if got := Lines(diffs, 2); strings.Count(got, "\n") != 3 || !strings.HasSuffix(got, "… and 6 more\n") {
		t.Errorf("Lines(%d differences, 2) =\n%s", len(diffs), got)
	}
}

func TestScanFailsOnWhatItCannotRead(t *testing.T) {
	if _, err := Scan(t.Context(), t.TempDir()+"/nowhere", Options{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Scan = %v, want not exist", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Scan(ctx, plant(t), Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("Scan = %v, want canceled", err)
	}
}
