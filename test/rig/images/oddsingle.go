package images

// oddPlain is the lower layer of the images that have a single oddity.
func oddPlain(w *oddTar) error {
	w.dir("bin")
	w.file("bin/ready", string(w.ready), mode(0o755))
	for _, dir := range []string{"dev", "proc", "sys", "etc"} {
		w.dir(dir)
	}
	w.file("etc/passwd", "root:x:0:0:root:/:/bin/ready\n")
	return w.err
}

// oddRawNames has names that are bytes but not text. Of estargz v0.19.1 it is
// known that its TOC, being JSON, holds U+FFFD in their place: names that differ
// only there become one, and no name leads back to the file. A converter has to
// refuse such a layer or to carry the names in another way.
func oddRawNames(w *oddTar) error {
	w.dir("raw")
	w.file("raw/latin1-gr\xf6\xdfe", "ISO 8859-1\n")
	w.file("raw/latin1-gr\xe4\xdfe", "the same name to who replaces what isn't UTF-8\n")
	w.file("raw/truncated-\xe2\x82", "cut within a code point\n")
	w.file("raw/surrogate-\xed\xa0\x80", "a surrogate in UTF-8\n")
	w.dir("raw/dir-\xff")
	w.file("raw/dir-\xff/inside", "text in a raw directory\n")
	w.symlink("raw/symlink", "latin1-gr\xf6\xdfe")
	w.hard("raw/hardlink", "raw/latin1-gr\xf6\xdfe")
	w.file("raw/xattr", "x", xattr("user.gr\xf6\xdfe", "x"))
	return w.err
}

// oddCrossLink has a hardlink to a file of the layer beneath. Unpacked into one
// folder it is a second name; a layer seen alone doesn't have the content.
// containerd v2.4.2, which unpacks each layer by itself for overlayfs, refuses
// it, and estargz v0.19.1 can't open the TOC that it makes of it.
func oddCrossLink(w *oddTar) error {
	w.dir("etc")
	w.hard("etc/passwd-", "etc/passwd")
	return w.err
}

// oddImplied has files in directories without entries. Whoever unpacks makes
// them up: mode 0755, root's, at the time of unpacking. Two of its trees differ
// in these times.
func oddImplied(w *oddTar) error {
	w.file("opt/app/bin/tool", "#!/bin/sh\n", mode(0o755))
	w.file("opt/app/lib/data", "data\n")
	w.file("etc/app.conf", "in a directory of the layer beneath\n")
	return w.err
}

// oddDuplicates has the same path twice, with other content, another type, and
// other attributes.
func oddDuplicates(w *oddTar) error {
	w.dir("twice", mode(0o700))
	w.file("twice/file", "first\n")
	w.file("twice/kind", "a file at first\n")
	w.file("twice/file", "second, and last\n", mode(0o600))
	w.symlink("twice/kind", "file")
	w.dir("twice", mode(0o711))
	return w.err
}
