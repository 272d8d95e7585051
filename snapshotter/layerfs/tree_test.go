package layerfs_test

import (
	"archive/tar"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/airstream-io/airstream/snapshotter/layerfs"
)

// sight is all that a program can see of a file, but for inode numbers.
type sight struct {
	Mode, UID, GID uint32
	Rdev           uint64
	Nlink          uint64 // not of directories: file systems disagree
	Size           int64  // not of directories
	Mtime          string
	Link           string
	SHA256         string
	Xattrs         map[string]string
	SameAs         string // first name of the same inode
}

// look walks a tree and returns what it sees, by path.
func look(tb testing.TB, root string) map[string]sight {
	tb.Helper()
	all := make(map[string]sight)
	first := make(map[uint64]string)
	err := filepath.WalkDir(root, func(name string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		s, ino, err := lookAt(name)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if s.Nlink > 1 {
			if _, ok := first[ino]; !ok {
				first[ino] = rel
			}
			s.SameAs = first[ino]
		}
		all[rel] = s
		return nil
	})
	if err != nil {
		tb.Fatal(err)
	}
	return all
}

func lookAt(name string) (s sight, ino uint64, err error) {
	var st unix.Stat_t
	if err := unix.Lstat(name, &st); err != nil {
		return s, 0, err
	}
	s = sight{Mode: st.Mode, UID: st.Uid, GID: st.Gid, Rdev: st.Rdev, Mtime: fmt.Sprintf("%d.%09d", st.Mtim.Sec, st.Mtim.Nsec), Xattrs: map[string]string{}}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
	case unix.S_IFREG:
		b, err := os.ReadFile(name)
		if err != nil {
			return s, 0, err
		}
		s.SHA256 = fmt.Sprintf("%x", sha256.Sum256(b))
		s.Nlink, s.Size = st.Nlink, st.Size
	case unix.S_IFLNK:
		s.Nlink, s.Size = st.Nlink, st.Size
		if s.Link, err = os.Readlink(name); err != nil {
			return s, 0, err
		}
	default:
		s.Nlink, s.Size = st.Nlink, st.Size
	}
	size, err := unix.Llistxattr(name, nil)
	if err != nil {
		return s, 0, err
	}
	list := make([]byte, size)
	if size, err = unix.Llistxattr(name, list); err != nil {
		return s, 0, err
	}
	for attr := range strings.SplitSeq(strings.TrimSuffix(string(list[:size]), "\x00"), "\x00") {
		if attr == "" {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(name, attr, value)
		if err != nil {
			return s, 0, fmt.Errorf("%s: %w", attr, err)
		}
		s.Xattrs[attr] = string(value[:n])
	}
	return s, st.Ino, nil
}

// capNetBind is security.capability of a program with cap_net_bind_service=ep.
const capNetBind = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// aclNobody gives user 65534 r-x on top of 0750: version 2, then tag, rights
// and id of owner, user, group, mask and others.
const aclNobody = "\x02\x00\x00\x00" +
	"\x01\x00\x07\x00\xff\xff\xff\xff" + "\x02\x00\x05\x00\xfe\xff\x00\x00" +
	"\x04\x00\x05\x00\xff\xff\xff\xff" + "\x10\x00\x05\x00\xff\xff\xff\xff" + "\x20\x00\x00\x00\xff\xff\xff\xff"

// baseLayer has one of everything.
func baseLayer(tb testing.TB) []byte {
	tb.Helper()
	long := strings.Repeat("n", 255)
	entries := []header{
		dir("bin", 0o755),
		file("bin/tool", 0o755, random(1, 300<<10)),
		file("bin/suid", 0o4755, []byte("#!/bin/sh\n")),
		xattr(file("bin/cap", 0o755, random(2, 5000)), "security.capability", capNetBind),
		link(tar.TypeLink, "bin/tool2", "bin/tool"),
		link(tar.TypeSymlink, "bin/sh", "tool"),
		at(owned(dir("home", 0o2775), 1000, 1001), 1234567890),
		owned(file("home/empty", 0o600, nil), 1000, 1001),
		xattr(xattr(file("home/x", 0o644, []byte("x")), "user.one", "1"), "user.two", strings.Repeat("v", 3000)),
		dir("tmp", 0o1777),
		dir("dev", 0o755),
		device(tar.TypeChar, "dev/null", 1, 3),
		device(tar.TypeChar, "dev/high", 260, 70000),
		device(tar.TypeBlock, "dev/sda", 8, 300),
		device(tar.TypeFifo, "dev/pipe", 0, 0),
		dir("odd", 0o755),
		file("odd/with space", 0o644, []byte("1")),
		file("odd/new\nline", 0o644, []byte("2")),
		file("odd/ünïcödé-日本", 0o644, []byte("3")),
		file("odd/-rf", 0o644, []byte("4")),
		file("odd/back\\slash:and,comma", 0o644, []byte("5")),
		file("odd/"+long, 0o644, []byte("6")),
		link(tar.TypeSymlink, "odd/far", strings.Repeat("../", 600)+"x"),
		dir("many", 0o755),
		xattr(dir("acl", 0o750), "system.posix_acl_access", aclNobody),
		file("acl/secret", 0o644, []byte("readable by nobody")),
		dir("gone", 0o755),
		file("gone/a", 0o644, []byte("a")),
		dir("veil", 0o755),
		file("veil/below", 0o644, []byte("below")),
		file("removed", 0o644, []byte("removed")),
	}
	for i := range 400 {
		entries = append(entries, file(fmt.Sprintf("many/%04d", i), 0o644, fmt.Appendf(nil, "%d", i)))
	}
	return tarOf(tb, entries)
}

// upperLayer hides and replaces things of baseLayer.
func upperLayer(tb testing.TB) []byte {
	tb.Helper()
	return tarOf(tb, []header{
		file(".wh.removed", 0, nil),
		file(".wh.gone", 0, nil),
		at(dir("veil", 0o700), 1111111111),
		file("veil/.wh..wh..opq", 0, nil),
		file("veil/above", 0o644, []byte("above")),
		dir("many", 0o755),
		file("many/.wh.0007", 0, nil),
		file("many/0008", 0o600, []byte("eight")),
		dir("fresh", 0o755),
		file("fresh/new", 0o644, random(3, 200<<10)),
	})
}

func TestTreeEqualsUnpackedLayer(t *testing.T) {
	n := newNode(t)
	layer := baseLayer(t)
	n.add(t, 7, layer)
	want := look(t, unpack(t, layer)[0])
	delete(want, ".") // the archive doesn't say anything of its root

	for _, opts := range []layerfs.Options{{}, {CacheOnly: true}} {
		_, at := mount(t, n, opts)
		got := look(t, filepath.Join(at, layerfs.DirName(7, true)))
		root := got["."]
		delete(got, ".")
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("CacheOnly %v: tree differs from the unpacked layer (-unpacked +served):\n%s", opts.CacheOnly, diff)
		}
		if root.Mode != unix.S_IFDIR|0o755 || root.UID != 0 {
			t.Errorf("root is %+v", root)
		}
	}
}

func TestOverlayOnTreesEqualsOverlayOnUnpackedLayers(t *testing.T) {
	n := newNode(t)
	layers := [][]byte{baseLayer(t), upperLayer(t), tarOf(t, []header{
		dir("gone", 0o711), // comes back, empty
		dir("bin", 0o755),
		file("bin/.wh.cap", 0, nil),
		dir("veil", 0o700),
		file("veil/.wh.above", 0, nil),
	})}
	native := unpack(t, layers...)
	s, at := mount(t, n, layerfs.Options{})
	var lower []string
	for i, layer := range layers {
		n.add(t, uint32(i), layer)
		lower = append([]string{filepath.Join(at, layerfs.DirName(uint32(i), i == 0))}, lower...)
	}
	slices.Reverse(native)
	want, have := overlay(t, native...), overlay(t, lower...)
	if diff := cmp.Diff(look(t, want), look(t, have), cmp.FilterPath(func(p cmp.Path) bool {
		return len(p) > 1 && p[1].String() == `["."]`
	}, cmp.Ignore())); diff != "" {
		t.Errorf("overlay on the tree differs (-unpacked +served):\n%s", diff)
	}
	if s.Stats().Passthrough == 0 {
		t.Log("kernel without passthrough")
	}

	// What a container does to it, with the same result.
	for _, root := range []string{want, have} {
		for _, err := range []error{
			os.WriteFile(filepath.Join(root, "bin/tool"), []byte("replaced"), 0o755),
			os.RemoveAll(filepath.Join(root, "many")),
			os.Mkdir(filepath.Join(root, "many"), 0o700),
			os.Chmod(filepath.Join(root, "fresh/new"), 0o400),
			os.Rename(filepath.Join(root, "odd/-rf"), filepath.Join(root, "odd/moved")),
			os.Symlink("x", filepath.Join(root, "tmp/x")),
		} {
			if err != nil {
				t.Error(err)
			}
		}
	}
	got, wanted := names(look(t, have)), names(look(t, want))
	if diff := cmp.Diff(wanted, got); diff != "" {
		t.Errorf("after changes (-unpacked +served):\n%s", diff)
	}
}

func names(m map[string]sight) []string {
	var out []string
	for name, s := range m {
		out = append(out, fmt.Sprintf("%s %o %s", name, s.Mode, s.SHA256))
	}
	sort.Strings(out)
	return out
}

func TestLowestLayerShowsNoTraceOfWhiteouts(t *testing.T) {
	n := newNode(t)
	n.add(t, 3, upperLayer(t))
	_, at := mount(t, n, layerfs.Options{})
	base := look(t, filepath.Join(at, "3.base"))
	for name, s := range base {
		if s.Mode&unix.S_IFMT == unix.S_IFCHR {
			t.Errorf("%s is a whiteout", name)
		}
		for attr := range s.Xattrs {
			t.Errorf("%s has %s", name, attr)
		}
	}
	if _, err := os.Lstat(filepath.Join(at, "3.base", "many", "0007")); !os.IsNotExist(err) {
		t.Errorf("look-up of a hidden whiteout: %v", err)
	}
	lower := look(t, filepath.Join(at, "3"))
	if s := lower["many/0007"]; s.Mode != unix.S_IFCHR || s.Rdev != 0 {
		t.Errorf("whiteout is %+v", s)
	}
	if got := lower["veil"].Xattrs["trusted.overlay.opaque"]; got != "y" {
		t.Errorf("opaque directory has %q", got)
	}
	if len(lower) != len(base)+3 {
		t.Errorf("%d names with whiteouts, %d without, want 3 more", len(lower), len(base))
	}
}

func TestRootOfMountShowsNothingAndKnowsOnlyLayers(t *testing.T) {
	n := newNode(t)
	n.add(t, 3, upperLayer(t))
	_, at := mount(t, n, layerfs.Options{})
	if list, err := os.ReadDir(at); err != nil || len(list) != 0 {
		t.Errorf("ReadDir: %v, %v", list, err)
	}
	for _, name := range []string{"4", "03", "3.bas", "3.base.base", "+3", "-1", "x", "8388608", "99999999999999999999"} {
		if _, err := os.Lstat(filepath.Join(at, name)); !os.IsNotExist(err) {
			t.Errorf("%s: %v, want that it does not exist", name, err)
		}
	}
	if err := os.WriteFile(filepath.Join(at, "3", "new"), nil, 0o600); err == nil {
		t.Error("the tree can be written to")
	}
	// A slot that did not exist may come into being.
	n.add(t, 4, upperLayer(t))
	if _, err := os.Lstat(filepath.Join(at, "4")); err != nil {
		t.Error(err)
	}
}

func TestInodeNumbersSurviveRemount(t *testing.T) {
	n := newNode(t)
	layer := baseLayer(t)
	n.add(t, 0, layer)
	n.add(t, 1, layer)
	inodes := func() map[string]uint64 {
		needFUSE(t)
		at := filepath.Join(t.TempDir(), "tree")
		s, err := layerfs.Mount(at, n, layerfs.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}()
		all := make(map[string]uint64)
		seen := map[uint64]string{1: "root of the mount"}
		for _, view := range []string{"1", "0.base", "0", "1.base"} {
			for name, look := range look(t, filepath.Join(at, view)) {
				var st unix.Stat_t
				if err := unix.Lstat(filepath.Join(at, view, name), &st); err != nil {
					t.Fatal(err)
				}
				all[view+"/"+name] = st.Ino
				if other, taken := seen[st.Ino]; taken && look.SameAs == "" {
					t.Errorf("%s/%s and %s have inode number %d", view, name, other, st.Ino)
				}
				seen[st.Ino] = view + "/" + name
			}
		}
		return all
	}
	if diff := cmp.Diff(inodes(), inodes()); diff != "" {
		t.Errorf("inode numbers changed:\n%s", diff)
	}
}

func TestPosixACLIsObeyed(t *testing.T) {
	n := newNode(t)
	n.add(t, 0, baseLayer(t))
	_, at := mount(t, n, layerfs.Options{})
	for _, lower := range []string{filepath.Join(at, "0.base"), unpack(t, baseLayer(t))[0]} {
		root := overlay(t, lower)
		for uid, want := range map[int]string{65534: "readable by nobody", 65533: "ermission denied"} {
			if got := readAs(t, uid, root, "acl/secret"); !strings.Contains(got, want) {
				t.Errorf("%s: user %d reads %q, want %q", lower, uid, got, want)
			}
		}
	}
}
