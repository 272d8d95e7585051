// Package record runs an image in a container of its own and says what it reads
// while it starts.
//
// The container is a real one: runc starts it over an overlay of the layers,
// with the user, environment and working directory that the image says and the
// capabilities and mounts that a pod gets. The layers are served through the
// same FUSE tree as on a node, from converted blobs that are at hand, so that
// what the kernel asks for here is what it will ask for there.
//
// Run starts a process of the same binary, the worker, in mount, process,
// network, IPC and host name namespaces of its own; the worker calls Work, which
// mounts the tree and the overlay and starts the container. Whatever happens to
// either of them, the kernel takes the mounts and the container's processes away
// with the namespaces: when Run's context ends, when its process is killed, when
// the worker crashes. What can be left is a directory of the scratch space and an
// empty cgroup, and the next Open removes those.
//
// The network is a loopback interface and nothing else. What the container
// writes goes to memory of a bounded size and is gone with it; the image is not
// changed. A cgroup bounds memory and processes.
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
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/airstream-io/airstream/internal/trace"
)

// Errors that a caller tells apart.
var (
	// ErrLacking says that the machine lacks something that a recording needs.
	// The text says what, and what can be done.
	ErrLacking = errors.New("this machine can't record")
	// ErrNotReady says that the program ended, or its time was up, before it was
	// ready.
	ErrNotReady = errors.New("the program did not get ready")
)

// Layer is a converted layer in a local file.
type Layer struct {
	Path      string // of the file with the blob
	Size      int64  // bytes of the blob
	TOCOffset int64  // where the table of contents begins in it
	TOCDigest string // "sha256:…", of the table's JSON
}

// Process is what runs in the container.
type Process struct {
	Args []string // at least one
	Env  []string
	Dir  string // working directory; "" is /
	User string // as an image's config has it: name or number, and perhaps a group; "" is root
}

// Ready says when a start is over. At most one of Line and TCP is set; with
// neither it is over when For has passed or the program has ended well.
type Ready struct {
	Line string // regular expression that a line of standard output or error matches
	TCP  int    // port that takes connections at 127.0.0.1
	// For is how long to wait. Default: 10 minutes for a line or a port, 20
	// seconds without.
	For time.Duration
}

// Options say how to record.
type Options struct {
	// Worker is the command line with which this program calls Work, its name
	// first.
	Worker []string
	// Scratch is where the worker works.
	Scratch *Scratch
	// Log, if not nil, gets what the program writes, a line at a time.
	Log func(line string)
}

// Defaults of Ready.For.
const (
	defaultPatience = 10 * time.Minute
	defaultFor      = 20 * time.Second
)

// Report is what a recording was like.
type Report struct {
	Took time.Duration `json:"took"` // from the start of the container until it was ready
	Why  string        `json:"why"`  // what ended it, for people
}

// job is what the worker is told, on its standard input.
type job struct {
	ID      string
	Dir     string
	Runc    string
	Layers  []Layer
	Process Process
	Ready   Ready
	Memory  int64 // bytes for the container
	Writes  int64 // bytes that it may write
}

// message is what the worker says, one JSON object each, on file 3.
type message struct {
	Line     string `json:",omitempty"` // that the program wrote
	Done     bool   `json:",omitempty"` // the last one
	Report   Report
	Trace    []byte `json:",omitempty"` // as trace.Encode writes it
	Err      string `json:",omitempty"`
	NotReady bool   `json:",omitempty"` // Err is ErrNotReady
}

// Run records one start of an image, given its layers from the lowest up.
// Errors are ErrLacking, ErrNotReady, ctx's, or what went wrong.
func Run(ctx context.Context, layers []Layer, p Process, ready Ready, o Options) (*trace.Trace, Report, error) {
	t, r, err := run(ctx, layers, p, ready, o)
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err() // the rest is what comes of it
		}
		return nil, Report{}, fmt.Errorf("record: %w", err)
	}
	return t, r, nil
}

func run(ctx context.Context, layers []Layer, p Process, ready Ready, o Options) (_ *trace.Trace, _ Report, err error) {
	runc, err := lacking()
	if err != nil {
		return nil, Report{}, err
	}
	if len(layers) == 0 || len(p.Args) == 0 {
		return nil, Report{}, errors.New("an image without layers, or without a program to run")
	}
	if ready.For == 0 {
		ready.For = defaultFor
		if ready.Line != "" || ready.TCP != 0 {
			ready.For = defaultPatience
		}
	}
	id, dir, err := o.Scratch.next()
	if err != nil {
		return nil, Report{}, err
	}
	defer func() { err = errors.Join(err, o.Scratch.clear(id, dir)) }()
	j := job{ID: id, Dir: dir, Runc: runc, Layers: layers, Process: p, Ready: ready}
	j.Memory, j.Writes = bounds()
	raw, err := json.Marshal(j)
	if err != nil {
		return nil, Report{}, err
	}
	m, err := work(ctx, o, raw)
	if err != nil {
		return nil, Report{}, err
	}
	t, err := trace.Decode(bytes.NewReader(m.Trace))
	return t, m.Report, err
}

// bounds says how much memory the container gets, and how much of it may be
// what it writes: most of the machine, so that what starts on a node starts
// here, and not all of it.
func bounds() (memory, writes int64) {
	var info syscall.Sysinfo_t
	memory = 2 << 30
	if syscall.Sysinfo(&info) == nil {
		memory = int64(info.Totalram) * int64(info.Unit) / 4 * 3
	}
	return memory, min(memory/2, 4<<30)
}

// work starts the worker and hears it out.
func work(ctx context.Context, o Options, job []byte) (message, error) {
	read, write, err := os.Pipe()
	if err != nil {
		return message{}, err
	}
	defer read.Close() //nolint:errcheck // only read from
	// The worker dies with the thread that has started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args = o.Worker
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS,
		Pdeathsig:  syscall.SIGKILL,
		Setpgid:    true, // Ctrl-C is for us, and ends the worker through ctx
	}
	var said tail
	cmd.Stderr, cmd.ExtraFiles = &said, []*os.File{write}
	cmd.WaitDelay = 10 * time.Second
	// The worker goes when its standard input ends, which it does not before we do.
	in, err := cmd.StdinPipe()
	if err != nil {
		return message{}, errors.Join(err, write.Close())
	}
	err = cmd.Start()
	_ = write.Close() // the worker has it
	if err != nil {
		if errors.Is(err, syscall.EPERM) {
			return message{}, fmt.Errorf("%w: it may not make namespaces: %w; in a container, run that with --privileged", ErrLacking, err)
		}
		return message{}, fmt.Errorf("start worker: %w", err)
	}
	_, werr := in.Write(job)
	m, rerr := listen(read, o.Log)
	_ = in.Close() // it ends
	err = cmd.Wait()
	switch {
	case m.Done && m.Err != "" && m.NotReady:
		return message{}, fmt.Errorf("%w: %s", ErrNotReady, m.Err)
	case m.Done && m.Err != "":
		return message{}, errors.New(m.Err)
	case m.Done:
		return m, nil
	}
	err = errors.Join(werr, rerr, err)
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return message{}, fmt.Errorf("the worker ended: %w%s", err, said.after(": "))
}

// listen reads what the worker says until its last message.
func listen(r io.Reader, log func(string)) (message, error) {
	// A trace in base64, and what is around it.
	dec := json.NewDecoder(io.LimitReader(r, 4*trace.MaxSize))
	for {
		var m message
		if err := dec.Decode(&m); err != nil {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return message{}, err
		}
		if m.Done {
			return m, nil
		}
		if log != nil {
			log(m.Line)
		}
	}
}

// tail keeps the end of what is written to it.
type tail struct{ b []byte }

const tailSize = 4 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	if over := len(t.b) - tailSize; over > 0 {
		t.b = append(t.b[:0], t.b[over:]...)
	}
	return len(p), nil
}

// after returns the text behind sep, or nothing if there is none.
func (t *tail) after(sep string) string {
	s := strings.TrimSpace(string(t.b))
	if s == "" {
		return ""
	}
	return sep + s
}

// lacking looks for what a recording needs and returns where runc is.
func lacking() (runc string, err error) {
	if os.Geteuid() != 0 {
		return "", fmt.Errorf("%w: it takes root; run it with sudo, or record on a node with airstream trace", ErrLacking)
	}
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return "", fmt.Errorf("%w: %w; load it with modprobe fuse, or give the device to the container that this runs in", ErrLacking, err)
	}
	_ = f.Close() // it was only tried
	if runc, err = exec.LookPath("runc"); err != nil {
		return "", fmt.Errorf("%w: there is no runc; install it (apt-get install runc), or record on a node with airstream trace", ErrLacking)
	}
	return runc, nil
}

// Check tells whether this machine can record. Errors are ErrLacking.
func Check() error {
	if _, err := lacking(); err != nil {
		return fmt.Errorf("record: %w", err)
	}
	return nil
}
