package images

import (
	"archive/tar"
	"fmt"
	"strings"
	"time"
)

// netBind is a security.capability value: VFS_CAP_REVISION_2, effective,
// permitted CAP_NET_BIND_SERVICE (bit 10). See linux/capability.h.
const netBind = "\x01\x00\x00\x02" + "\x00\x04\x00\x00" + "\x00\x00\x00\x00" + "\x00\x00\x00\x00" + "\x00\x00\x00\x00"

// oddTree is the lowest layer of oddities: everything that a layer can hold.
func oddTree(w *oddTar) error {
	w.dir("bin")
	w.file("bin/ready", string(w.ready), mode(0o755))
	w.dir("etc")
	w.file("etc/passwd", "root:x:0:0:root:/:/bin/ready\n")
	w.file("etc/stargz.index.json", "{\"about\": \"only a name\"}\n")
	for _, dir := range []string{"dev", "proc", "sys"} { // a runtime mounts there
		w.dir(dir)
	}
	w.dir("tmp", mode(0o1777))
	oddLinks(w)
	oddNames(w)
	oddAttributes(w)
	oddSizes(w)
	oddSubjects(w)
	return w.err
}

func oddLinks(w *oddTar) {
	w.dir("links")
	w.dir("links/other")
	w.file("links/file", "one content, several names\n", owner(1000, 1001), mode(0o4755))
	w.hard("links/same-dir", "links/file")
	w.hard("links/other/other-dir", "links/file")
	w.file("links/empty", "")
	w.hard("links/empty-too", "links/empty")
	w.file("links/attributed", "with attributes\n", xattr("user.note", "all names have it"))
	w.hard("links/attributed-too", "links/attributed")
	w.file("links/large", noise(1, 200_000))
	w.hard("links/other/large-too", "links/large")

	w.symlink("links/relative", "other/other-dir")
	w.symlink("links/absolute", "/links/file")
	w.symlink("links/up", "../etc/passwd")
	w.symlink("links/beyond-root", "../../../../../etc/passwd")
	w.symlink("links/dangling", "nowhere/at all")
	w.symlink("links/self", "self")
	w.symlink("links/loop-a", "loop-b")
	w.symlink("links/loop-b", "loop-a")
	w.symlink("links/to-dir", "other/")
	w.symlink("links/owned", "file", owner(1234, 5678), at(time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC)))
	w.symlink("links/long", strings.Repeat("long/", 800)+"end") // 4003 bytes; PATH_MAX is 4096
	w.symlink("links/unicode", "../names/größe")
}

func oddNames(w *oddTar) {
	w.dir("names")
	for i, name := range []string{
		" leading and trailing space ", "new\nline", "tab\there", "carriage\rreturn", "quote\"d", "apo'strophe", "back\\slash", "-rf", "--",
		"...", "dot.", "..data", "%2e%2e%2f", "a:b", "*?[x]", "$HOME", "`true`", "\x01control\x1f", "del\x7f", "#hash", "~", "semi;colon",
		"größe",       // one code point for ö
		"gro\u0308ße", // two: another name on Linux
		"日本語", "🚢", "\u202eright-to-left", "line\u2028separator", "\ufeffbom", "\ufffd",
		"File", "file", ".hidden", "wh.", ".wh", "x.wh.y", strings.Repeat("n", 255), strings.Repeat("ü", 127) + "z",
	} {
		w.file("names/"+name, fmt.Sprintf("name %d\n", i))
	}
	w.dir("names/dir with\nnewline")
	w.file("names/dir with\nnewline/ü", "x")

	// 30 levels of 100 bytes: about 3 kB of path, which leaves room for a
	// prefix within PATH_MAX.
	deep := "deep"
	w.dir(deep)
	for range 30 {
		deep += "/" + strings.Repeat("d", 99)
		w.dir(deep)
	}
	w.file(deep+"/bottom", "three kilobytes down\n")

	w.dir("many")
	for i := range 3000 { // more than one getdents call returns
		w.file(fmt.Sprintf("many/%04d", i), fmt.Sprint(i))
	}
}

func oddAttributes(w *oddTar) {
	w.dir("modes")
	for _, m := range []int64{0o0, 0o1, 0o111, 0o400, 0o640, 0o777, 0o1644, 0o2755, 0o4755, 0o6755, 0o7777} {
		w.file(fmt.Sprintf("modes/file-%04o", m), "mode\n", mode(m))
	}
	for _, m := range []int64{0o0, 0o700, 0o1777, 0o2775, 0o3777} {
		w.dir(fmt.Sprintf("modes/dir-%04o", m), mode(m))
	}

	w.dir("owners", owner(65534, 65534))
	for _, id := range []int{1, 65535, 65536, 2_097_152, 4_294_967_294} { // 7 octal digits end at 2097151
		w.file(fmt.Sprintf("owners/%d", id), "owned\n", owner(id, id-1))
	}

	w.dir("times", at(time.Date(1999, 12, 31, 23, 59, 59, 0, time.UTC)))
	// containerd unpacks what is before 1970 as the epoch.
	for _, f := range []struct {
		name string
		time time.Time
	}{
		{"nanosecond", time.Unix(1_700_000_000, 1)},
		{"half", time.Unix(1_700_000_000, 500_000_000)},
		{"almost-second", time.Unix(1_700_000_000, 999_999_999)},
		{"epoch", time.Unix(0, 0)},
		{"before-1970", time.Unix(-86_400, 0)},
		{"before-half", time.Unix(-86_400, 500_000_000)},
		{"after-2038", time.Unix(1<<31+1, 0)},
		{"far", time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC)},
	} {
		w.file("times/"+f.name, f.name+"\n", at(f.time))
	}

	w.dir("xattrs", xattr("user.on-directory", "yes"))
	w.file("xattrs/capability", string(w.ready[:min(len(w.ready), 100)]), mode(0o755), xattr("security.capability", netBind))
	w.file("xattrs/user", "x", xattr("user.text", "plain"), xattr("user.binary", "\x00\x01\xff\xfe\x00"), xattr("user.ünicode", "ü"))
	// containerd unpacks no trusted attributes, and so must nobody: an image
	// could talk to overlayfs with them.
	w.file("xattrs/opaque-by-hand", "x", xattr("trusted.overlay.opaque", "y"))
	w.file("xattrs/trusted", "x", xattr("trusted.airstream", "for root only"))
	w.file("xattrs/large", "x", xattr("user.large", noise(2, 2000)))
	w.file("xattrs/many", "x", xattr("user.1", "a"), xattr("user.2", "b"), xattr("user.3", "c"), xattr("user.4", "d"))
	w.file("xattrs/none", "x")

	w.dir("devices")
	w.device(tar.TypeChar, "devices/null", 1, 3, mode(0o666))
	w.device(tar.TypeChar, "devices/minor-above-255", 10, 1_000_000)
	w.device(tar.TypeBlock, "devices/loop", 7, 0)
	w.device(tar.TypeBlock, "devices/major-above-255", 300, 1, owner(0, 6))
	w.fifo("devices/fifo", mode(0o622))
}

func oddSizes(w *oddTar) {
	const chunk = 64 << 10
	w.dir("sizes")
	for i, n := range []int{0, 1, 511, 512, 513, chunk - 1, chunk, chunk + 1, 2*chunk - 1, 2 * chunk, 2*chunk + 1, 4 << 20, 4<<20 + 1} {
		w.file(fmt.Sprintf("sizes/%d", n), noise(byte(10+i), n))
	}
	w.file("sizes/zeroes", strings.Repeat("\x00", 8<<20))
	w.file("sizes/half-zeroes", noise(9, chunk)+strings.Repeat("\x00", chunk)+noise(8, 100))
	w.file("sizes/same-as-65536", noise(16, chunk)) // other name, same content
}

// oddSubjects are the files that the layers above change.
func oddSubjects(w *oddTar) {
	w.dir("changes")
	for _, name := range []string{"deleted", "deleted-then-added", "replaced", "chmodded", "file-to-dir", "file-to-symlink", "kept"} {
		w.file("changes/"+name, "from the first layer: "+name+"\n")
	}
	w.symlink("changes/deleted-symlink", "kept")
	w.symlink("changes/symlink-to-dir", "kept")
	w.fifo("changes/deleted-fifo")
	w.device(tar.TypeChar, "changes/deleted-device", 1, 3)
	w.file("changes/pair-a", "a pair\n")
	w.hard("changes/pair-b", "changes/pair-a")
	w.file("changes/pair-c", "another pair\n")
	w.hard("changes/pair-d", "changes/pair-c")
	for _, dir := range []string{"deleted-dir", "opaque-empty", "opaque-filled", "opaque-late", "dir-to-file", "dir-to-symlink", "redone", "restyled"} {
		w.dir("changes/" + dir)
		w.file("changes/"+dir+"/old", "old\n")
		w.dir("changes/" + dir + "/sub")
		w.file("changes/"+dir+"/sub/old", "old\n")
	}
}

// oddChanges is the middle layer: it hides, replaces and restyles.
func oddChanges(w *oddTar) error {
	w.dir("changes", mode(0o750), owner(7, 8))
	for _, name := range []string{"deleted", "deleted-then-added", "deleted-symlink", "deleted-fifo", "deleted-device", "deleted-dir", "pair-b", "redone", "never-existed"} {
		w.whiteout("changes/" + name)
	}
	w.file("changes/replaced", "from the second layer, and longer than before\n", mode(0o600))
	w.file("changes/chmodded", "from the first layer: chmodded\n", mode(0o755))
	w.file("changes/pair-c", "no longer of a pair\n")

	w.dir("changes/opaque-empty")
	w.opaque("changes/opaque-empty")
	w.dir("changes/opaque-filled", mode(0o700))
	w.opaque("changes/opaque-filled")
	w.file("changes/opaque-filled/new", "new\n")
	w.dir("changes/opaque-filled/sub")
	w.file("changes/opaque-filled/sub/new", "new\n")
	// The marker may come after its directory's entries, and covers only the
	// layers beneath all the same.
	w.dir("changes/opaque-late")
	w.file("changes/opaque-late/new", "new\n")
	w.opaque("changes/opaque-late")

	w.file("changes/dir-to-file", "was a directory\n")
	w.symlink("changes/dir-to-symlink", "kept")
	w.dir("changes/file-to-dir")
	w.file("changes/file-to-dir/inside", "was a file\n")
	w.symlink("changes/file-to-symlink", "kept")
	w.dir("changes/symlink-to-dir")
	w.file("changes/symlink-to-dir/inside", "was a symlink\n")
	// Nothing but its attributes: the content stays that of the layer beneath.
	w.dir("changes/restyled", mode(0o711), owner(70_000, 70_001), at(oddTime.Add(time.Hour)), xattr("user.style", "new"))
	return w.err
}

// oddAgain is the top layer: it undoes what the middle one did. Its entry of
// restyled has no xattr: over overlayfs a directory's attributes are those of
// its topmost entry, so user.style is gone, where layers unpacked one over the
// other into one folder still show it. The same goes for the link counts of
// changes/pair-a and pair-d, which overlayfs takes from the lower file.
func oddAgain(w *oddTar) error {
	w.dir("changes", mode(0o755))
	w.file("changes/deleted-then-added", "from the third layer\n")
	w.dir("changes/redone")
	w.file("changes/redone/new", "new\n")
	w.whiteout("changes/dir-to-file")
	w.dir("changes/opaque-filled", mode(0o700))
	w.whiteout("changes/opaque-filled/new")
	w.dir("changes/opaque-filled/sub")
	w.file("changes/opaque-filled/sub/newer", "newer\n")
	w.dir("changes/restyled", mode(0o711), owner(70_000, 70_001))
	w.whiteout("changes/restyled/old")
	w.dir("fresh")
	w.file("fresh/file", "only up here\n")
	return w.err
}
