// Package tree says in what two directory trees differ, as strictly as the
// kernel lets a program look: names, types, content, sizes, modes, owners,
// times, link counts, extended attributes of every namespace, which names are
// hardlinks of one file, where symlinks point, device numbers. It is how the
// tests know that what is seen through Airstream is what an unpacked image has.
//
// Scan reads one tree into memory (not its content, of which it keeps the
// SHA-256), Diff compares two scans, Compare does both. Differences come sorted
// by path, a line each:
//
//	"usr/bin/redis-cli": mode: 0755 | 0644
//
// with the first tree's value before the bar.
//
// What is left out, and why: access and change times, inode and device numbers,
// allocated blocks and the sizes of directories, because they belong to the file
// system and not to the tree; the attributes of the tree's root, because
// overlayfs takes them from the folder above the layers (see Options.Root); the
// attributes that overlayfs keeps for itself.
//
// To see trusted.* and security.* attributes and every file, be root.
package tree

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Aspect is one thing in which two entries can differ.
type Aspect string

// The aspects, in the order in which they are reported for a path.
const (
	Existence Aspect = "exists"      // the name is in one tree only
	Type      Aspect = "type"        // file, directory, symlink, …
	DirType   Aspect = "dirent type" // what readdir says differs from what stat says
	Mode      Aspect = "mode"        // permissions, setuid, setgid, sticky
	Owner     Aspect = "owner"       // uid:gid
	Size      Aspect = "size"        // of files, bytes
	Content   Aspect = "content"     // of files, SHA-256
	Target    Aspect = "target"      // of symlinks, bytes as they are
	Device    Aspect = "device"      // of devices, major:minor
	MTime     Aspect = "mtime"       // see Options.MTimeWithin
	Xattr     Aspect = "xattr"       // names and values
	Hardlinks Aspect = "hardlinks"   // the set of names in the tree that are this file
	LinkCount Aspect = "link count"  // st_nlink of everything but directories
)

// WholeSeconds is for Options.MTimeWithin where one side holds whole seconds
// only, rounded or truncated, as the TOC of an eStargz layer does.
const WholeSeconds = time.Second - time.Nanosecond //nolint:staticcheck // not a number of seconds but what both sides can hold

// Options says how strict to be. The zero value is as strict as can be.
type Options struct {
	// MTimeWithin is how far two modification times may be apart; 0 means equal
	// to the nanosecond.
	MTimeWithin time.Duration
	// Ignore lists aspects that don't count.
	Ignore []Aspect
	// Skip, if set, reports paths that are left out, and all beneath them. Paths
	// are relative to the root, without a leading slash.
	Skip func(path string) bool
	// IgnoreXattr, if set, reports names of attributes that don't count, such as
	// labels that a security module of the machine writes by itself.
	IgnoreXattr func(name string) bool
	// Root compares the attributes of the root directory too. Its path is ".".
	Root bool
}

// Difference is one aspect in which a path differs.
type Difference struct {
	Path   string // relative to the root, bytes as on disk
	Aspect Aspect
	A, B   string // the values, readable; empty where there is none
}

// String returns the line for people. The path is quoted: it may hold any byte.
func (d Difference) String() string {
	return fmt.Sprintf("%q: %s: %s | %s", d.Path, d.Aspect, d.A, d.B)
}

// Compare scans the trees at a and b, one after the other, and returns in what
// they differ: nil if in nothing. The error is for what couldn't be read.
func Compare(ctx context.Context, a, b string, opt Options) ([]Difference, error) {
	ta, err := Scan(ctx, a, opt)
	if err != nil {
		return nil, err
	}
	tb, err := Scan(ctx, b, opt)
	if err != nil {
		return nil, err
	}
	return Diff(ta, tb, opt), nil
}

// Lines formats at most limit differences, a line each, and says how many there
// are more.
func Lines(diffs []Difference, limit int) string {
	var s strings.Builder
	for i, d := range diffs {
		if i == limit {
			fmt.Fprintf(&s, "… and %d more\n", len(diffs)-limit)
			break
		}
		fmt.Fprintln(&s, d)
	}
	return s.String()
}

// Diff returns in what two scans differ, sorted by path. Both should have been
// made with the same options.
func Diff(a, b *Tree, opt Options) []Difference {
	c := &comparison{opt: opt}
	for path, ea := range a.entries {
		if eb, ok := b.entries[path]; ok {
			c.entry(path, ea, eb)
		} else {
			c.add(path, Existence, ea.kind(), "")
		}
	}
	for path, eb := range b.entries {
		if _, ok := a.entries[path]; !ok {
			c.add(path, Existence, "", eb.kind())
		}
	}
	slices.SortStableFunc(c.diffs, func(x, y Difference) int { return strings.Compare(x.Path, y.Path) })
	return c.diffs
}

type comparison struct {
	opt   Options
	diffs []Difference
}

func (c *comparison) add(path string, aspect Aspect, a, b string) {
	if slices.Contains(c.opt.Ignore, aspect) {
		return
	}
	if a == "" {
		a = "–"
	}
	if b == "" {
		b = "–"
	}
	c.diffs = append(c.diffs, Difference{Path: path, Aspect: aspect, A: a, B: b})
}

func (c *comparison) check(path string, aspect Aspect, a, b string) {
	if a != b {
		c.add(path, aspect, a, b)
	}
}

func (c *comparison) entry(path string, a, b *Entry) {
	// A tree that contradicts itself is wrong whatever the other one says.
	if a.dirType() != a.kind() || b.dirType() != b.kind() {
		c.add(path, DirType, a.dirType()+", stat: "+a.kind(), b.dirType()+", stat: "+b.kind())
	}
	if a.kind() != b.kind() {
		c.add(path, Type, a.kind(), b.kind())
		return // nothing else can be compared
	}
	c.check(path, Mode, fmt.Sprintf("%04o", a.Mode&0o7777), fmt.Sprintf("%04o", b.Mode&0o7777))
	c.check(path, Owner, a.owner(), b.owner())
	switch a.kind() {
	case "file":
		c.check(path, Size, fmt.Sprint(a.Size), fmt.Sprint(b.Size))
		c.check(path, Content, a.content(), b.content())
	case "symlink":
		c.check(path, Size, fmt.Sprint(a.Size), fmt.Sprint(b.Size))
		c.check(path, Target, fmt.Sprintf("%q", a.Target), fmt.Sprintf("%q", b.Target))
	case "character device", "block device":
		c.check(path, Device, a.device(), b.device())
	}
	if apart := a.MTime.Sub(b.MTime).Abs(); apart > c.opt.MTimeWithin {
		const layout = "2006-01-02T15:04:05.000000000Z"
		c.add(path, MTime, a.MTime.UTC().Format(layout), b.MTime.UTC().Format(layout))
	}
	c.xattrs(path, a.Xattrs, b.Xattrs)
	if a.kind() != "directory" {
		c.check(path, Hardlinks, a.names(), b.names())
		c.check(path, LinkCount, fmt.Sprint(a.Nlink), fmt.Sprint(b.Nlink))
	}
}

func (c *comparison) xattrs(path string, a, b map[string]string) {
	for name, va := range a {
		if vb, ok := b[name]; !ok {
			c.add(path, Xattr, fmt.Sprintf("%s=%q", name, va), "")
		} else if va != vb {
			c.add(path, Xattr, fmt.Sprintf("%s=%q", name, va), fmt.Sprintf("%s=%q", name, vb))
		}
	}
	for name, vb := range b {
		if _, ok := a[name]; !ok {
			c.add(path, Xattr, "", fmt.Sprintf("%s=%q", name, vb))
		}
	}
}
