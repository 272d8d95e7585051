package location

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/airstream-io/airstream/convert/internal/cancelable"
)

const (
	refName     = "org.opencontainers.image.ref.name"
	layoutFile  = `{"imageLayoutVersion":"1.0.0"}`
	maxManifest = 32 << 20 // bytes; registries accept 4 MiB
)

// layout is an image in an OCI image layout directory.
type layout struct {
	Location

	mu        sync.Mutex
	made      []string   // guarded by mu; what this process added, in order
	referrers []referrer // guarded by mu; that have no entry in index.json yet
	committed bool
}

func openLayout(l Location) *layout { return &layout{Location: l} }

func (l *layout) blobPath(h v1.Hash) string {
	return filepath.Join(l.path, "blobs", h.Algorithm, h.Hex)
}

func (l *layout) Root(context.Context) (v1.Descriptor, []byte, error) {
	d, err := l.choose()
	if err != nil {
		return v1.Descriptor{}, nil, fmt.Errorf("location: read %s: %w", l, err)
	}
	raw, err := l.read(d)
	return d, raw, err
}

// choose finds the descriptor that the location means in index.json.
func (l *layout) choose() (v1.Descriptor, error) {
	if fi, err := os.Stat(l.path); err != nil {
		return v1.Descriptor{}, notFound(err)
	} else if !fi.IsDir() {
		return v1.Descriptor{}, fmt.Errorf("%w: it is a file, and oci: wants a directory; for docker save's output write docker-archive:%s", ErrNotImage, l.path)
	}
	raw, err := readLimited(filepath.Join(l.path, "index.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return v1.Descriptor{}, fmt.Errorf("%w: the directory has no index.json, so it is no OCI layout", ErrNotImage)
	}
	if err != nil {
		return v1.Descriptor{}, err
	}
	var index v1.IndexManifest
	if err := json.Unmarshal(raw, &index); err != nil {
		return v1.Descriptor{}, fmt.Errorf("%w: index.json: %w", ErrNotImage, err)
	}
	var names []string
	var fit []v1.Descriptor
	for _, d := range index.Manifests {
		tag := d.Annotations[refName]
		if l.tag == "" && l.hash == "" && isReferrersTag(tag) {
			continue // it is about an image, and is none
		}
		if l.hash == d.Digest.String() || l.hash == "" && (l.tag == "" || l.tag == tag) {
			fit = append(fit, d)
		}
		if tag == "" {
			tag = "@" + d.Digest.String()
		}
		names = append(names, tag)
	}
	switch {
	case len(fit) == 1, len(fit) > 1 && l.hash != "":
		return fit[0], nil
	case len(fit) == 0 && (l.tag != "" || l.hash != ""):
		return v1.Descriptor{}, fmt.Errorf("%w: no image %s there; it has: %s", ErrNotFound, l.tag+l.hash, strings.Join(names, ", "))
	case len(fit) == 0:
		return v1.Descriptor{}, fmt.Errorf("%w: index.json lists no image", ErrNotFound)
	}
	return v1.Descriptor{}, fmt.Errorf("%w: %d images there; say which with oci:%s:TAG or oci:%s@DIGEST: %s", ErrNotFound, len(fit), l.path, l.path, strings.Join(names, ", "))
}

func (l *layout) Manifest(_ context.Context, d v1.Descriptor) ([]byte, error) { return l.read(d) }

func (l *layout) read(d v1.Descriptor) ([]byte, error) {
	raw, err := readLimited(l.blobPath(d.Digest))
	if err != nil {
		return nil, fmt.Errorf("location: read manifest %s of %s: %w", d.Digest, l, notFound(err))
	}
	return raw, nil
}

func (l *layout) Blob(_ context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	f, err := os.Open(l.blobPath(d.Digest))
	if err != nil {
		return nil, fmt.Errorf("location: read blob %s of %s: %w", d.Digest, l, notFound(err))
	}
	return f, nil
}

// Check finds out whether the directory is one that an image can be put in.
func (l *layout) Check(context.Context) error {
	list, err := os.ReadDir(l.path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(list) == 0 {
		return nil
	}
	if err == nil {
		_, err = os.Stat(filepath.Join(l.path, "index.json"))
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w: the directory has files, and no index.json that would make it an OCI layout", ErrReadOnly)
		}
	}
	if err != nil {
		return fmt.Errorf("location: write %s: %w", l, err)
	}
	return nil
}

func (l *layout) HasBlob(_ context.Context, d v1.Descriptor) (bool, error) {
	fi, err := os.Stat(l.blobPath(d.Digest))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("location: look for blob %s in %s: %w", d.Digest, l, err)
	}
	return fi.Size() == d.Size, nil
}

func (l *layout) PutBlob(ctx context.Context, d v1.Descriptor, open func() (io.ReadCloser, error)) error {
	if ok, err := l.HasBlob(ctx, d); ok || err != nil {
		return err
	}
	rc, err := open()
	if err != nil {
		return err
	}
	defer rc.Close() //nolint:errcheck // a reader
	return l.put(ctx, d, rc)
}

func (l *layout) PutManifest(ctx context.Context, d v1.Descriptor, raw []byte) error {
	if ok, err := l.HasBlob(ctx, d); ok || err != nil {
		return err
	}
	return l.put(ctx, d, strings.NewReader(string(raw)))
}

func (l *layout) put(ctx context.Context, d v1.Descriptor, r io.Reader) error {
	path := l.blobPath(d.Digest)
	err := l.mkdirAll(filepath.Dir(path))
	if err == nil {
		err = l.writeFile(ctx, path, r)
	}
	if err != nil {
		return fmt.Errorf("location: write blob %s to %s: %w", d.Digest, l, err)
	}
	return nil
}

// mkdirAll makes a directory and those above it, and remembers which are new.
func (l *layout) mkdirAll(dir string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mkdirAllLocked(dir)
}

func (l *layout) mkdirAllLocked(dir string) error {
	err := os.Mkdir(dir, 0o755)
	if errors.Is(err, fs.ErrNotExist) {
		if err := l.mkdirAllLocked(filepath.Dir(dir)); err != nil {
			return err
		}
		err = os.Mkdir(dir, 0o755)
	}
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err == nil {
		l.made = append(l.made, dir)
	}
	return err
}

// writeFile writes a file that is complete and durable, or not there.
func (l *layout) writeFile(ctx context.Context, path string, r io.Reader) (err error) {
	f, err := os.CreateTemp(l.path, ".airstream-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), os.Remove(f.Name()))
		}
	}()
	if _, err := io.Copy(f, cancelable.Reader(ctx, r)); err != nil {
		return err
	}
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	_, missing := os.Lstat(path)
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	if missing != nil {
		l.mu.Lock()
		l.made = append(l.made, path)
		l.mu.Unlock()
	}
	_ = f.Close() // synced
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// lock keeps two processes from changing index.json at once.
func lock(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() { _ = f.Close() }, nil
}

// Close leaves the directory as it was found, unless there was a Commit.
func (l *layout) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.committed {
		return nil
	}
	var errs []error
	for _, path := range slices.Backward(l.made) {
		// A directory that somebody else uses by now is not empty.
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
			errs = append(errs, fmt.Errorf("location: clean up %s: %w", l, err))
		}
	}
	l.made = nil
	return errors.Join(errs...)
}

func readLimited(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // a reader
	b, err := io.ReadAll(io.LimitReader(f, maxManifest+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxManifest {
		return nil, fmt.Errorf("%w: %s is larger than %d bytes", ErrNotImage, path, maxManifest)
	}
	return b, nil
}

func notFound(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	return err
}
