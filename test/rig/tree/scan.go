package tree

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Tree is what a scan found.
type Tree struct {
	entries map[string]*Entry // by path
}

// Entry is one name of a tree.
type Entry struct {
	Mode    uint32 // type and permission bits as stat has them
	UID     uint32
	GID     uint32
	Size    int64  // bytes; of files and symlinks
	Rdev    uint64 // of devices
	Nlink   uint64
	MTime   time.Time
	Target  string            // of symlinks
	SHA256  [sha256.Size]byte // of files
	Read    int64             // bytes of content that could be read; of files
	Xattrs  map[string]string // without overlayfs's own
	Names   []string          // all paths in the tree that are this file, sorted; at least one
	dirMode uint32            // type as readdir told it, 0 if it didn't
}

// Len returns the number of entries.
func (t *Tree) Len() int { return len(t.entries) }

// Paths returns the paths of all entries, sorted.
func (t *Tree) Paths() []string {
	paths := make([]string, 0, len(t.entries))
	for path := range t.entries {
		paths = append(paths, path)
	}
	slices.Sort(paths)
	return paths
}

// Entry returns the entry at path, nil if there is none. It belongs to the
// tree.
func (t *Tree) Entry(path string) *Entry { return t.entries[path] }

// readers is how many files are hashed at a time. A tree that is read across a
// link should not be read one file after the other, and a local one gains
// nothing from more.
const readers = 8

// inode tells files apart while one tree is scanned.
type inode struct{ dev, ino uint64 }

type scanner struct {
	root  string
	opt   Options
	tree  *Tree
	links map[inode][]string // paths of files with more than one link
	files []string           // paths of which the content is to be read
}

// Scan reads the tree at root, and the whole content of its files. Other types
// are never opened. Of the options it obeys Skip, IgnoreXattr, Root, and
// Ignore: content that doesn't count isn't read.
func Scan(ctx context.Context, root string, opt Options) (*Tree, error) {
	s := &scanner{root: root, opt: opt, tree: &Tree{entries: map[string]*Entry{}}, links: map[inode][]string{}}
	if err := s.dir(ctx, "."); err != nil {
		return nil, fmt.Errorf("tree: scan %s: %w", root, err)
	}
	if opt.Root {
		if err := s.entry(".", unix.DT_DIR); err != nil {
			return nil, fmt.Errorf("tree: scan %s: %w", root, err)
		}
	}
	for _, names := range s.links {
		slices.Sort(names)
		for _, path := range names {
			s.tree.entries[path].Names = names
		}
	}
	if slices.Contains(opt.Ignore, Content) {
		return s.tree, nil
	}
	if err := s.hash(ctx); err != nil {
		return nil, fmt.Errorf("tree: scan %s: %w", root, err)
	}
	return s.tree, nil
}

// dir adds what is in one directory, and beneath.
func (s *scanner) dir(ctx context.Context, dir string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	list, err := os.ReadDir(filepath.Join(s.root, dir))
	if err != nil {
		return err
	}
	for i, d := range list {
		path := filepath.Join(dir, d.Name())
		if i > 0 && list[i-1].Name() == d.Name() {
			return fmt.Errorf("%q is listed twice", path)
		}
		if s.opt.Skip != nil && s.opt.Skip(path) {
			continue
		}
		if err := s.entry(path, direntType(d)); err != nil {
			return err
		}
		if s.tree.entries[path].Mode&unix.S_IFMT == unix.S_IFDIR {
			if err := s.dir(ctx, path); err != nil {
				return err
			}
		}
	}
	return nil
}

// entry adds one name.
func (s *scanner) entry(path string, dirent uint32) error {
	full := filepath.Join(s.root, path)
	var stat unix.Stat_t
	if err := unix.Lstat(full, &stat); err != nil {
		return &os.PathError{Op: "lstat", Path: full, Err: err}
	}
	e := &Entry{
		Mode:    stat.Mode,
		UID:     stat.Uid,
		GID:     stat.Gid,
		Size:    stat.Size,
		Rdev:    stat.Rdev,
		Nlink:   uint64(stat.Nlink), //nolint:unconvert // 32 bits on arm64
		MTime:   time.Unix(stat.Mtim.Unix()),
		Names:   []string{path},
		dirMode: dirent << 12, // DT_x are the type bits of st_mode
	}
	s.tree.entries[path] = e
	var err error
	switch stat.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		if e.Target, err = os.Readlink(full); err != nil {
			return err
		}
	case unix.S_IFREG:
		s.files = append(s.files, path)
	}
	if stat.Nlink > 1 && stat.Mode&unix.S_IFMT != unix.S_IFDIR {
		id := inode{stat.Dev, stat.Ino}
		s.links[id] = append(s.links[id], path)
	}
	e.Xattrs, err = s.xattrs(full)
	return err
}

// direntType returns the DT_ type that readdir gave. os.ReadDir looks it up by
// itself where the file system doesn't know it.
func direntType(d os.DirEntry) uint32 {
	switch d.Type() {
	case os.ModeDir:
		return unix.DT_DIR
	case os.ModeSymlink:
		return unix.DT_LNK
	case os.ModeDevice:
		return unix.DT_BLK
	case os.ModeDevice | os.ModeCharDevice:
		return unix.DT_CHR
	case os.ModeNamedPipe:
		return unix.DT_FIFO
	case os.ModeSocket:
		return unix.DT_SOCK
	default:
		return unix.DT_REG
	}
}

// overlayOwn are the attributes that overlayfs keeps for itself in the folders
// of its layers, as root and in a user namespace.
var overlayOwn = []string{"trusted.overlay.", "user.overlay."}

func (s *scanner) xattrs(path string) (map[string]string, error) {
	buf := make([]byte, 1<<16) // XATTR_LIST_MAX, XATTR_SIZE_MAX
	n, err := unix.Llistxattr(path, buf)
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, &os.PathError{Op: "llistxattr", Path: path, Err: err}
	}
	var found map[string]string
	for name := range strings.SplitSeq(string(buf[:n]), "\x00") {
		own := slices.ContainsFunc(overlayOwn, func(prefix string) bool { return strings.HasPrefix(name, prefix) })
		if name == "" || own || s.opt.IgnoreXattr != nil && s.opt.IgnoreXattr(name) {
			continue
		}
		n, err := unix.Lgetxattr(path, name, buf)
		if err != nil {
			return nil, &os.PathError{Op: "lgetxattr " + name, Path: path, Err: err}
		}
		if found == nil {
			found = map[string]string{}
		}
		found[name] = string(buf[:n])
	}
	return found, nil
}

// hash reads all files, each name for itself: that two names are one file is
// for the tree to prove, not for the scan to rely on.
func (s *scanner) hash(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(readers)
	for _, path := range s.files {
		e := s.tree.entries[path]
		group.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			return e.read(filepath.Join(s.root, path))
		})
	}
	return group.Wait()
}

func (e *Entry) read(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // a reader
	h := sha256.New()
	if e.Read, err = io.Copy(h, f); err != nil {
		return err
	}
	h.Sum(e.SHA256[:0])
	return nil
}

func (e *Entry) kind() string { return kind(e.Mode) }

func (e *Entry) dirType() string {
	if e.dirMode == 0 {
		return e.kind()
	}
	return kind(e.dirMode)
}

func kind(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return "file"
	case unix.S_IFDIR:
		return "directory"
	case unix.S_IFLNK:
		return "symlink"
	case unix.S_IFCHR:
		return "character device"
	case unix.S_IFBLK:
		return "block device"
	case unix.S_IFIFO:
		return "fifo"
	case unix.S_IFSOCK:
		return "socket"
	default:
		return fmt.Sprintf("type %#o", mode&unix.S_IFMT)
	}
}

func (e *Entry) owner() string { return fmt.Sprintf("%d:%d", e.UID, e.GID) }

func (e *Entry) device() string {
	return fmt.Sprintf("%d:%d", unix.Major(e.Rdev), unix.Minor(e.Rdev))
}

func (e *Entry) content() string { return fmt.Sprintf("sha256 %x of %d bytes", e.SHA256, e.Read) }

func (e *Entry) names() string { return fmt.Sprintf("%q", e.Names) }
