package images

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// oddTar writes the entries of an odd layer. It remembers the first error, so
// that a layer reads as a list of entries.
type oddTar struct {
	*tar.Writer
	ready []byte                 // the program that prints READY
	files map[string]*tar.Header // headers so far, by name
	err   error
}

// oddTime is the time of entries whose time doesn't matter.
var oddTime = time.Date(2024, time.February, 29, 12, 34, 56, 0, time.UTC)

// option changes a header before it is written.
type option func(*tar.Header)

func mode(m int64) option       { return func(h *tar.Header) { h.Mode = m } }
func owner(uid, gid int) option { return func(h *tar.Header) { h.Uid, h.Gid = uid, gid } }
func at(t time.Time) option     { return func(h *tar.Header) { h.ModTime = t } }
func xattr(name, value string) option {
	return func(h *tar.Header) {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[xattrPrefix+name] = value
	}
}

func (w *oddTar) add(h *tar.Header, content []byte, opts []option) {
	h.Format = tar.FormatPAX
	h.ModTime = oddTime
	h.Size = int64(len(content))
	for _, o := range opts {
		o(h)
	}
	if w.files == nil {
		w.files = map[string]*tar.Header{}
	}
	w.files[h.Name] = h
	err := w.WriteHeader(h)
	if err == nil {
		_, err = w.Write(content)
	}
	if err != nil && w.err == nil {
		w.err = fmt.Errorf("entry %q: %w", h.Name, err)
	}
}

func (w *oddTar) dir(name string, opts ...option) {
	w.add(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755}, nil, opts)
}

func (w *oddTar) file(name, content string, opts ...option) {
	w.add(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, []byte(content), opts)
}

// hard adds another name of a file. Its header repeats the attributes of the
// target, as every program's does that writes tars: containerd applies them.
func (w *oddTar) hard(name, target string) {
	h := &tar.Header{Mode: 0o644}
	if t, ok := w.files[target]; ok {
		copied := *t
		h = &copied
	}
	h.Typeflag, h.Name, h.Linkname = tar.TypeLink, name, target
	modTime := h.ModTime
	if modTime.IsZero() {
		modTime = oddTime
	}
	w.add(h, nil, []option{at(modTime)})
}

func (w *oddTar) symlink(name, target string, opts ...option) {
	w.add(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}, nil, opts)
}

func (w *oddTar) fifo(name string, opts ...option) {
	w.add(&tar.Header{Typeflag: tar.TypeFifo, Name: name, Mode: 0o600}, nil, opts)
}

func (w *oddTar) device(kind byte, name string, major, minor int64, opts ...option) {
	w.add(&tar.Header{Typeflag: kind, Name: name, Devmajor: major, Devminor: minor, Mode: 0o660}, nil, opts)
}

// whiteout hides a name of the layers beneath.
func (w *oddTar) whiteout(name string) {
	w.file(filepath.Join(filepath.Dir(name), ".wh."+filepath.Base(name)), "", mode(0))
}

// opaque hides all that the layers beneath have in dir.
func (w *oddTar) opaque(dir string) { w.file(dir+"/.wh..wh..opq", "", mode(0)) }

// noise returns n bytes that don't compress, the same for the same seed.
func noise(seed byte, n int) string {
	p := make([]byte, n)
	src := rand.NewChaCha8([32]byte{seed})
	if _, err := src.Read(p); err != nil {
		panic(err) // it is documented never to fail
	}
	return string(p)
}

// readySource is the program in the odd images.
func readySource() string {
	raw, err := apps.ReadFile("apps/ready/main.go.txt")
	if err != nil {
		panic(err) // it is in the binary
	}
	return string(raw)
}

// buildReady compiles the program that prints READY.
func buildReady(ctx context.Context) ([]byte, error) {
	dir, err := os.MkdirTemp("", "airstream-ready-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a temporary folder
	err = errors.Join(
		os.WriteFile(filepath.Join(dir, "main.go"), []byte(readySource()), 0o644),
		os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module ready\n"), 0o644))
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w -buildid=", "-o", "ready", ".")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOWORK=off", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the ready program: %w: %s", err, out)
	}
	return os.ReadFile(filepath.Join(dir, "ready"))
}
