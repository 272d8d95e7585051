package images

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"golang.org/x/sys/unix"
)

// layerFile is a layer on disk.
type layerFile struct {
	Digest       v1.Hash // of the gzip file
	DiffID       v1.Hash // of the tar stream
	Size         int64   // bytes, gzip file
	Uncompressed int64   // bytes, tar stream
	path         string
	docker       bool // which media type it claims
}

var _ v1.Layer = (*blob)(nil)

// blob is a layerFile as go-containerregistry wants to see it.
type blob struct{ *layerFile }

func (b *blob) Digest() (v1.Hash, error)             { return b.layerFile.Digest, nil }
func (b *blob) DiffID() (v1.Hash, error)             { return b.layerFile.DiffID, nil }
func (b *blob) Size() (int64, error)                 { return b.layerFile.Size, nil }
func (b *blob) Compressed() (io.ReadCloser, error)   { return os.Open(b.path) }
func (b *blob) Uncompressed() (io.ReadCloser, error) { return nil, errors.ErrUnsupported }
func (b *blob) MediaType() (types.MediaType, error) {
	if b.docker {
		return types.DockerLayer, nil
	}
	return types.OCILayer, nil
}

// layerWriter compresses and hashes a tar stream into a file. Everything goes
// through it once: a layer is never held in memory.
type layerWriter struct {
	file         *os.File
	buf          *bufio.Writer
	zip          *gzip.Writer
	digest, diff hash.Hash
	size, plain  int64
}

func newLayerWriter(path string) (*layerWriter, error) {
	file, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	w := &layerWriter{file: file, digest: sha256.New(), diff: sha256.New()}
	w.buf = bufio.NewWriterSize(writerFunc(func(p []byte) (int, error) {
		w.digest.Write(p)
		w.size += int64(len(p))
		return w.file.Write(p)
	}), 1<<18)
	// Level 6 is what docker build and most registries' contents have.
	w.zip, err = gzip.NewWriterLevel(w.buf, 6)
	return w, err
}

func (w *layerWriter) Write(p []byte) (int, error) {
	w.diff.Write(p)
	w.plain += int64(len(p))
	return w.zip.Write(p)
}

// finish closes the file and says what is in it.
func (w *layerWriter) finish() (*layerFile, error) {
	err := errors.Join(w.zip.Close(), w.buf.Flush(), w.file.Sync(), w.file.Close())
	return &layerFile{
		Digest:       sum(w.digest),
		DiffID:       sum(w.diff),
		Size:         w.size,
		Uncompressed: w.plain,
		path:         w.file.Name(),
	}, err
}

func sum(h hash.Hash) v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: fmt.Sprintf("%x", h.Sum(nil))}
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// layer returns the layer of step i, built now if the cache doesn't have it.
func (b *Builder) layer(ctx context.Context, r *recipe, i int) (*layerFile, error) {
	s := &r.steps[i]
	dir := filepath.Join(b.Dir, "steps", r.stepDir(i))
	if raw, err := os.ReadFile(filepath.Join(dir, "layer.json")); err == nil {
		layer := &layerFile{path: filepath.Join(dir, "layer.tar.gz")}
		return layer, json.Unmarshal(raw, layer)
	}
	b.logf("images: %s: layer %s: %s", r.name, s.name, s.describe())
	tmp := dir + ".tmp"
	if err := os.Mkdir(tmp, 0o755); err != nil {
		return nil, err
	}
	begin := time.Now()
	if s.entries == nil {
		if err := b.buildUpper(ctx, r, i, tmp); err != nil {
			return nil, err
		}
	}
	prepared := time.Since(begin)

	w, err := newLayerWriter(filepath.Join(tmp, "layer.tar.gz"))
	if err != nil {
		return nil, err
	}
	tw := tar.NewWriter(w)
	if s.entries != nil {
		var ready []byte
		if ready, err = buildReady(ctx); err == nil {
			err = s.entries(&oddTar{Writer: tw, ready: ready})
		}
	} else {
		err = writeUpper(ctx, tw, filepath.Join(tmp, "upper"))
	}
	layer, closeErr := w.finishTar(tw)
	if err := errors.Join(err, closeErr); err != nil {
		return nil, err
	}
	raw, err := json.Marshal(layer)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(tmp, "layer.json"), raw, 0o644); err != nil {
		return nil, err
	}
	if err := os.Rename(tmp, dir); err != nil {
		return nil, err
	}
	layer.path = filepath.Join(dir, "layer.tar.gz")
	b.logf("images: %s: layer %s: %.1f MB (%.1f MB unpacked), %.1f s + %.1f s to compress", r.name, s.name,
		float64(layer.Size)/1e6, float64(layer.Uncompressed)/1e6, prepared.Seconds(), (time.Since(begin) - prepared).Seconds())
	return layer, nil
}

// finishTar ends the tar stream and then the file.
func (w *layerWriter) finishTar(tw *tar.Writer) (*layerFile, error) {
	err := tw.Close()
	layer, closeErr := w.finish()
	return layer, errors.Join(err, closeErr)
}

// inode tells files apart within one file system.
type inode struct{ dev, ino uint64 }

// writeUpper writes an overlay's upper directory as a layer: the kernel's
// whiteouts become .wh. entries, an opaque directory gets its marker ahead of
// its content, and the attributes that overlayfs keeps for itself stay behind.
// Times are whole seconds, as docker build and BuildKit write them.
func writeUpper(ctx context.Context, w *tar.Writer, root string) error {
	links := map[inode]string{} // first name of each file that has several
	return filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if path == root {
			return nil // overlayfs takes the root's attributes from the topmost layer's folder
		}
		name := strings.TrimPrefix(path, root+"/")
		info, err := d.Info()
		if err != nil {
			return err
		}
		stat, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return fmt.Errorf("no inode for %s", path)
		}
		if isWhiteout(stat) {
			dir, file := filepath.Split(name)
			return w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: dir + ".wh." + file, Format: tar.FormatPAX})
		}
		if stat.Mode&syscall.S_IFMT == syscall.S_IFSOCK {
			return nil // a tar can't say it, and no image has a use for it
		}
		return writeEntry(w, path, name, info, stat, links)
	})
}

func isWhiteout(stat *syscall.Stat_t) bool {
	return stat.Mode&syscall.S_IFMT == syscall.S_IFCHR && stat.Rdev == 0
}

func writeEntry(w *tar.Writer, path, name string, info os.FileInfo, stat *syscall.Stat_t, links map[inode]string) error {
	target := ""
	if info.Mode()&os.ModeSymlink != 0 {
		var err error
		if target, err = os.Readlink(path); err != nil {
			return err
		}
	}
	header, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return err
	}
	// Names of users and groups are those of the machine that builds.
	header.Uname, header.Gname = "", ""
	header.Format = tar.FormatPAX
	header.ModTime = header.ModTime.Truncate(time.Second)
	header.AccessTime, header.ChangeTime = time.Time{}, time.Time{}
	header.Name = name
	if info.IsDir() {
		header.Name += "/"
	}
	if stat.Mode&syscall.S_IFMT == syscall.S_IFCHR || stat.Mode&syscall.S_IFMT == syscall.S_IFBLK {
		header.Devmajor, header.Devminor = int64(unix.Major(stat.Rdev)), int64(unix.Minor(stat.Rdev))
	}
	if !info.IsDir() && stat.Nlink > 1 {
		id := inode{stat.Dev, stat.Ino}
		if first, ok := links[id]; ok {
			header.Typeflag, header.Linkname, header.Size = tar.TypeLink, first, 0
			return w.WriteHeader(header)
		}
		links[id] = name
	}
	opaque, err := addXattrs(header, path)
	if err != nil {
		return err
	}
	if err := w.WriteHeader(header); err != nil {
		return err
	}
	if opaque {
		marker := &tar.Header{Typeflag: tar.TypeReg, Name: header.Name + ".wh..wh..opq", Format: tar.FormatPAX}
		if err := w.WriteHeader(marker); err != nil {
			return err
		}
	}
	if header.Size == 0 {
		return nil
	}
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close() //nolint:errcheck // a reader
	_, err = io.CopyN(w, file, header.Size)
	return err
}

const xattrPrefix = "SCHILY.xattr."

// addXattrs puts the file's extended attributes into header, without those of
// overlayfs itself, and says whether one of these makes it an opaque directory.
func addXattrs(header *tar.Header, path string) (opaque bool, err error) {
	buf := make([]byte, 1<<16) // XATTR_LIST_MAX, XATTR_SIZE_MAX
	n, err := unix.Llistxattr(path, buf)
	if err != nil {
		return false, fmt.Errorf("list xattrs of %s: %w", path, err)
	}
	for name := range strings.SplitSeq(string(buf[:n]), "\x00") {
		if name == "" {
			continue
		}
		n, err := unix.Lgetxattr(path, name, buf)
		if err != nil {
			return false, fmt.Errorf("read xattr %s of %s: %w", name, path, err)
		}
		value := string(buf[:n])
		switch {
		case name == "trusted.overlay.opaque":
			opaque = value == "y"
		case strings.HasPrefix(name, "trusted.overlay."):
		default:
			if header.PAXRecords == nil {
				header.PAXRecords = map[string]string{}
			}
			header.PAXRecords[xattrPrefix+name] = value
		}
	}
	return opaque, nil
}
