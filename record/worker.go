package record

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/airstream-io/airstream/internal/toc"
)

// Mount serves layers at a directory through FUSE: layer n at the directory
// DirName says, below it, and tells layers of look-ups.
type Mount struct {
	Serve   func(dir string, layers *Layers) error
	DirName func(slot uint32, base bool) string
}

// Work is the worker's part of Run: in namespaces that Run has made it does what
// it reads from in, and says what came of it on out. The process must exit when
// it returns; the kernel does the rest.
func Work(ctx context.Context, in io.Reader, out io.Writer, mount Mount) error {
	dec := json.NewDecoder(in)
	var j job
	if err := dec.Decode(&j); err != nil {
		return fmt.Errorf("record: read job: %w", err)
	}
	if os.Getpid() != 1 {
		return errors.New("record: this is for the recorder, which runs it in namespaces of its own")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // until the process exits
		defer cancel()
		_, _ = io.Copy(io.Discard, in) // its end is the news
	}()
	enc := json.NewEncoder(out)
	m, err := j.do(ctx, mount, func(line string) error { return enc.Encode(message{Line: line}) })
	m.Done = true
	if err != nil {
		m.Err, m.NotReady = err.Error(), errors.Is(err, ErrNotReady)
		m.Err = strings.TrimPrefix(m.Err, ErrNotReady.Error()+": ")
	}
	if err := enc.Encode(m); err != nil {
		return fmt.Errorf("record: report: %w", err)
	}
	return nil
}

// Names below the job's directory. They are short because the options of an
// overlay mount name each layer and have one page.
const (
	treeDir   = "t"
	rootDir   = "rootfs"
	upperDir  = "u"
	workDir   = "w"
	bundleDir = "bundle"
	runcDir   = "runc"
)

func (j *job) do(ctx context.Context, mount Mount, say func(string) error) (message, error) {
	layers, err := openLayers(j.Layers)
	if err != nil {
		return message{}, err
	}
	if err := j.isolate(); err != nil {
		return message{}, err
	}
	if err := mount.Serve(filepath.Join(j.Dir, treeDir), layers); err != nil {
		return message{}, err
	}
	if err := j.overlay(layers, mount.DirName); err != nil {
		return message{}, err
	}
	user, err := findUser(rootDir, j.Process.User)
	if err != nil {
		return message{}, fmt.Errorf("user %q: %w", j.Process.User, err)
	}
	if err := j.bundle(user); err != nil {
		return message{}, err
	}
	r, err := j.start(ctx, say)
	if err != nil {
		return message{}, err
	}
	t := layers.trace() // now, and no later
	var b bytes.Buffer
	if err := t.Encode(&b); err != nil {
		return message{}, err
	}
	return message{Report: r, Trace: b.Bytes()}, nil
}

// isolate makes the new namespaces fit to live in.
func (j *job) isolate() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keep mounts to ourselves: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := loopbackUp(); err != nil {
		return fmt.Errorf("loopback interface: %w", err)
	}
	if err := unix.Mount("airstream", j.Dir, "tmpfs", 0, fmt.Sprintf("mode=700,size=%d", j.Writes)); err != nil {
		return fmt.Errorf("mount scratch memory: %w", err)
	}
	for _, dir := range []string{treeDir, rootDir, upperDir, workDir, bundleDir, runcDir} {
		if err := os.Mkdir(filepath.Join(j.Dir, dir), 0o755); err != nil { //nolint:gosec // the container's user passes through
			return err
		}
	}
	return os.Chdir(j.Dir)
}

// loopbackUp raises the only interface that there is.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // only asked
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, req); err != nil {
		return err
	}
	req.SetUint16(req.Uint16() | unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
}

// overlay stacks the layers as a node does.
func (j *job) overlay(layers *Layers, dirName func(uint32, bool) string) error {
	top := layers.layers[len(layers.layers)-1].tree.Attr(toc.Root)
	if err := os.Lchown(upperDir, int(top.UID), int(top.GID)); err != nil {
		return err
	}
	var lower []string
	for slot := uint32(len(layers.layers)); slot >= 1; slot-- {
		lower = append(lower, treeDir+"/"+dirName(slot, slot == 1))
	}
	options := "index=off,workdir=" + workDir + ",upperdir=" + upperDir + ",lowerdir=" + strings.Join(lower, ":")
	if len(options) >= os.Getpagesize() {
		return fmt.Errorf("%d layers are more than overlayfs takes", len(lower))
	}
	if err := unix.Mount("overlay", rootDir, "overlay", 0, options); err != nil {
		return fmt.Errorf("mount overlay: %w", err)
	}
	return nil
}

// start runs the container until it is ready.
func (j *job) start(ctx context.Context, say func(string) error) (Report, error) {
	read, write, err := os.Pipe()
	if err != nil {
		return Report{}, err
	}
	cmd := exec.CommandContext(ctx, j.Runc, "--root", filepath.Join(j.Dir, runcDir), "run", "--bundle", filepath.Join(j.Dir, bundleDir), j.ID) //nolint:gosec // looked up by Run
	cmd.Stdout, cmd.Stderr = write, write
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	w, err := newWatch(j.Ready, say)
	if err != nil {
		return Report{}, errors.Join(err, read.Close(), write.Close())
	}
	if err := cmd.Start(); err != nil {
		return Report{}, errors.Join(err, read.Close(), write.Close())
	}
	_ = write.Close() // runc has it
	// Neither goroutine is waited for: the process exits, and all with it.
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	go w.listen(read)
	return w.wait(ctx, ended)
}
