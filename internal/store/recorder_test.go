package store

import (
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// event is one change to a file system, in the order in which the kernel asked
// for it, or a demand that changes be durable.
type event struct {
	What string // "create", "write", "size", "mkdir", "unlink", "rename", "link", "fsync", "fsyncdir"
	Ino  uint64
	Path string // below the root
	To   string // of rename and link
	Off  int64
	Size int64
	Data []byte
}

// recorder is a FUSE file system that passes everything on to a directory and
// writes down each event. It runs in a process of its own: a page fault on a
// file that is mapped and served by one and the same Go process can deadlock.
type recorder struct {
	mu  sync.Mutex
	log *gob.Encoder
}

func (r *recorder) add(e event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.log.Encode(e); err != nil {
		panic(err)
	}
}

// runRecorder serves dir at mount and writes the events to log, until it is
// unmounted.
func runRecorder(mount, dir, log string) (err error) {
	f, err := os.Create(log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	rec := &recorder{log: gob.NewEncoder(f)}
	root := &fs.LoopbackRoot{Path: dir}
	root.RootNode = &recNode{LoopbackNode: fs.LoopbackNode{RootData: root}, rec: rec}
	server, err := fs.Mount(mount, root.RootNode, &fs.Options{MountOptions: fuse.MountOptions{DirectMountStrict: true, FsName: "recorder", Name: "recorder"}})
	if err != nil {
		return err
	}
	fmt.Println("mounted")
	server.Wait()
	return nil
}

type recNode struct {
	fs.LoopbackNode
	rec *recorder
}

// WrapChild implements fs.NodeWrapChilder.
func (n *recNode) WrapChild(_ context.Context, child fs.InodeEmbedder) fs.InodeEmbedder {
	l, ok := child.(*fs.LoopbackNode)
	if !ok {
		panic(fmt.Sprintf("a loopback node is a %T", child))
	}
	return &recNode{LoopbackNode: fs.LoopbackNode{RootData: l.RootData}, rec: n.rec}
}

func (n *recNode) at(name string) string { return filepath.Join(n.Path(n.Root()), name) }

func (n *recNode) Create(ctx context.Context, name string, flags, mode uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	inode, fh, ff, errno := n.LoopbackNode.Create(ctx, name, flags, mode, out)
	if errno == 0 {
		n.rec.add(event{What: "create", Ino: inode.StableAttr().Ino, Path: n.at(name)})
		fh = recorded(fh, n.rec, inode)
	}
	return inode, fh, ff, errno
}

func (n *recNode) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	fh, ff, errno := n.LoopbackNode.Open(ctx, flags)
	if errno == 0 {
		fh = recorded(fh, n.rec, &n.Inode)
	}
	return fh, ff, errno
}

func (n *recNode) Setattr(ctx context.Context, f fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	errno := n.LoopbackNode.Setattr(ctx, nil, in, out)
	if size, ok := in.GetSize(); ok && errno == 0 {
		n.rec.add(event{What: "size", Ino: n.StableAttr().Ino, Size: int64(size)})
	}
	return errno
}

func (n *recNode) Mkdir(ctx context.Context, name string, mode uint32, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	inode, errno := n.LoopbackNode.Mkdir(ctx, name, mode, out)
	if errno == 0 {
		n.rec.add(event{What: "mkdir", Path: n.at(name)})
	}
	return inode, errno
}

func (n *recNode) Unlink(ctx context.Context, name string) syscall.Errno {
	errno := n.LoopbackNode.Unlink(ctx, name)
	if errno == 0 {
		n.rec.add(event{What: "unlink", Path: n.at(name)})
	}
	return errno
}

func (n *recNode) Rename(ctx context.Context, name string, to fs.InodeEmbedder, newName string, flags uint32) syscall.Errno {
	errno := n.LoopbackNode.Rename(ctx, name, to, newName, flags)
	if errno == 0 {
		n.rec.add(event{What: "rename", Path: n.at(name), To: filepath.Join(to.EmbeddedInode().Path(n.Root()), newName)})
	}
	return errno
}

func (n *recNode) Link(ctx context.Context, target fs.InodeEmbedder, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	from := target.EmbeddedInode().Path(n.Root())
	inode, errno := n.LoopbackNode.Link(ctx, target, name, out)
	if errno == 0 {
		n.rec.add(event{What: "link", Path: from, To: n.at(name)})
	}
	return inode, errno
}

func (n *recNode) OpendirHandle(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	fh, ff, errno := n.LoopbackNode.OpendirHandle(ctx, flags)
	if errno != 0 {
		return nil, 0, errno
	}
	entries, ok := fh.(fs.FileReaddirenter)
	release, ok2 := fh.(fs.FileReleasedirer)
	if !ok || !ok2 {
		panic(fmt.Sprintf("a loopback directory is a %T", fh))
	}
	return &recDir{entries, release, n}, ff, 0
}

type recDir struct {
	fs.FileReaddirenter
	fs.FileReleasedirer
	n *recNode
}

func (d *recDir) Fsyncdir(context.Context, uint32) syscall.Errno {
	d.n.rec.add(event{What: "fsyncdir", Path: d.n.at("")})
	return 0
}

// recFile hides that its file could be passed through.
type recFile struct {
	*fs.LoopbackFile
	rec *recorder
	ino uint64
}

func recorded(fh fs.FileHandle, rec *recorder, inode *fs.Inode) fs.FileHandle {
	f, ok := fh.(*fs.LoopbackFile)
	if !ok {
		panic(fmt.Sprintf("a loopback file is a %T", fh))
	}
	return &recFile{f, rec, inode.StableAttr().Ino}
}

func (f *recFile) PassthroughFd() (int, bool) { return 0, false }

func (f *recFile) Write(ctx context.Context, data []byte, off int64) (uint32, syscall.Errno) {
	n, errno := f.LoopbackFile.Write(ctx, data, off)
	if errno == 0 {
		f.rec.add(event{What: "write", Ino: f.ino, Off: off, Data: append([]byte(nil), data[:n]...)})
	}
	return n, errno
}

func (f *recFile) Fsync(context.Context, uint32) syscall.Errno {
	f.rec.add(event{What: "fsync", Ino: f.ino})
	return 0
}

// recording runs f on a file system that is recorded, and returns the events.
func recording(t *testing.T, f func(mount string)) []event {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to mount a FUSE file system")
	}
	dir := t.TempDir()
	mount, back, log := filepath.Join(dir, "mount"), filepath.Join(dir, "back"), filepath.Join(dir, "log")
	must(t, errors.Join(os.Mkdir(mount, 0o700), os.Mkdir(back, 0o700)))
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "AIRSTREAM_TEST_RECORDER="+mount+":"+back+":"+log)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	if line := make([]byte, 8); true {
		if _, err := io.ReadFull(out, line); err != nil || string(line) != "mounted\n" {
			t.Fatalf("the recorder does not start: %q, %v", line, errors.Join(err, cmd.Wait()))
		}
	}
	done := false
	stop := func() {
		if !done {
			done = true
			must(t, unix.Unmount(mount, unix.MNT_DETACH))
			must(t, cmd.Process.Kill()) // a file may still be open
			_ = cmd.Wait()
		}
	}
	defer stop()
	f(mount)
	stop()

	file, err := os.Open(log)
	must(t, err)
	var all []event
	for dec := gob.NewDecoder(file); ; {
		var e event
		if err := dec.Decode(&e); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, e)
	}
	must(t, file.Close())
	return all
}
