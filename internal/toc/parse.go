package toc

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"strings"
	"time"

	"github.com/airstream-io/airstream/internal/chunk"
)

// Limits on what a table of contents may ask a node to hold. The largest real
// layers have some 300,000 entries; these leave room and keep a hostile table
// from filling the memory of a small machine.
const (
	MaxJSONSize   = 256 << 20 // bytes of JSON
	maxEntries    = 300_000
	maxChunks     = 8 << 20 // 512 GiB of content in 64 KiB chunks
	maxMemberSpan = 256 << 20
	maxNameLen    = 255      // bytes, as in Linux
	maxPathLen    = 4096     // bytes
	maxDepth      = 256      // directories; tar writers refuse far earlier
	maxXattrSize  = 64 << 10 // bytes of one value, as in Linux
	maxXattrs     = 256      // on one entry
)

// ErrInvalid says that a table of contents is not one that can be served: it
// is malformed, contradicts itself or the blob, or asks for too much.
var ErrInvalid = errors.New("invalid table of contents")

// jsonEntry is one entry as eStargz writes it. See
// https://github.com/containerd/stargz-snapshotter/blob/main/docs/estargz.md
type jsonEntry struct {
	Name        string            `json:"name"`
	Type        string            `json:"type"`
	Size        int64             `json:"size"`
	ModTime     string            `json:"modtime"`
	LinkName    string            `json:"linkName"`
	Mode        int64             `json:"mode"`
	UID         int64             `json:"uid"`
	GID         int64             `json:"gid"`
	Offset      int64             `json:"offset"`
	InnerOffset int64             `json:"innerOffset"`
	DevMajor    int64             `json:"devMajor"`
	DevMinor    int64             `json:"devMinor"`
	Xattrs      map[string][]byte `json:"xattrs"`
	ChunkOffset int64             `json:"chunkOffset"`
	ChunkSize   int64             `json:"chunkSize"`
	ChunkDigest string            `json:"chunkDigest"`

	// Beyond eStargz: the bytes of names that are not UTF-8, which JSON can't
	// hold. Name and LinkName show something readable then.
	RawName     []byte `json:"rawName"`
	RawLinkName []byte `json:"rawLinkName"`
}

// useRaw puts the raw names where the readable ones are.
func (e *jsonEntry) useRaw() {
	if len(e.RawName) > 0 {
		e.Name = string(e.RawName)
	}
	if len(e.RawLinkName) > 0 {
		e.LinkName = string(e.RawLinkName)
	}
}

// Parse reads a table of contents: the JSON that eStargz keeps in
// stargz.index.json. payloadSize is where the table begins in the blob, so no
// chunk may lie behind it. The bytes are hostile until the caller has compared
// their digest with the manifest's, and their meaning is distrusted even then:
// errors are ErrInvalid, or the reader's.
func Parse(r io.Reader, payloadSize int64) (*Tree, error) {
	t, err := parse(r, payloadSize)
	if err != nil {
		return nil, fmt.Errorf("toc: parse: %w", err)
	}
	return t, nil
}

func parse(r io.Reader, payloadSize int64) (*Tree, error) {
	b := newBuilder(payloadSize)
	dec := json.NewDecoder(io.LimitReader(r, MaxJSONSize))
	if err := expect(dec, json.Delim('{')); err != nil {
		return nil, err
	}
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return nil, invalidJSON(err)
		}
		switch key {
		case "version":
			var v int
			if err := dec.Decode(&v); err != nil {
				return nil, invalidJSON(err)
			}
			if v != 1 {
				return nil, fmt.Errorf("%w: version %d, want 1", ErrInvalid, v)
			}
		case "entries":
			if err := parseEntries(dec, b); err != nil {
				return nil, err
			}
		default:
			var skip json.RawMessage
			if err := dec.Decode(&skip); err != nil {
				return nil, invalidJSON(err)
			}
		}
	}
	if err := expect(dec, json.Delim('}')); err != nil {
		return nil, err
	}
	return b.tree()
}

func parseEntries(dec *json.Decoder, b *builder) error {
	if err := expect(dec, json.Delim('[')); err != nil {
		return err
	}
	for n := 0; dec.More(); n++ {
		if n == maxEntries+maxChunks {
			return fmt.Errorf("%w: more than %d entries", ErrInvalid, n)
		}
		var e jsonEntry
		if err := dec.Decode(&e); err != nil {
			return invalidJSON(err)
		}
		e.useRaw()
		if err := b.add(&e); err != nil {
			return fmt.Errorf("%w: entry %d %q: %w", ErrInvalid, n, shorten(e.Name), err)
		}
	}
	return expect(dec, json.Delim(']'))
}

func expect(dec *json.Decoder, want json.Delim) error {
	got, err := dec.Token()
	if err != nil {
		return invalidJSON(err)
	}
	if got != want {
		return fmt.Errorf("%w: %v where %v should be", ErrInvalid, got, want)
	}
	return nil
}

// invalidJSON marks syntax errors and early ends as ErrInvalid and leaves the
// reader's own errors alone.
func invalidJSON(err error) error {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	var binary base64.CorruptInputError
	if errors.As(err, &syntax) || errors.As(err, &kind) || errors.As(err, &binary) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return err
}

func shorten(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}

// splitPath turns a tar name into its components. A leading slash or "./" is
// dropped as unpackers do; a ".." that leaves the root is an error where they
// clip it, because nothing honest writes one.
func splitPath(name string) ([]string, error) {
	if len(name) > maxPathLen {
		return nil, fmt.Errorf("path of %d bytes", len(name))
	}
	if strings.ContainsRune(name, 0) {
		return nil, errors.New("NUL in path")
	}
	clean := path.Clean(strings.TrimLeft(name, "/"))
	if clean == "." {
		return nil, nil
	}
	parts := strings.Split(clean, "/")
	if parts[0] == ".." {
		return nil, errors.New("path leaves the layer")
	}
	if len(parts) > maxDepth {
		return nil, fmt.Errorf("path of %d directories", len(parts))
	}
	for _, p := range parts {
		if len(p) > maxNameLen {
			return nil, fmt.Errorf("name of %d bytes", len(p))
		}
	}
	return parts, nil
}

// meta reads what every type of entry has.
func (e *jsonEntry) meta() (node, error) {
	n := node{parent: noNode, mode: uint32(e.Mode) & 0o7777}
	if e.UID < 0 || e.UID >= math.MaxUint32 || e.GID < 0 || e.GID >= math.MaxUint32 {
		return n, fmt.Errorf("owner %d:%d", e.UID, e.GID)
	}
	n.uid, n.gid = uint32(e.UID), uint32(e.GID)
	if err := n.setMtime(e.ModTime); err != nil {
		return n, err
	}
	return n, n.setXattrs(e.Xattrs)
}

func (e *jsonEntry) attr() (node, error) {
	n, err := e.meta()
	if err != nil {
		return n, err
	}
	switch e.Type {
	case "dir":
		n.mode |= TypeDir
	case "reg":
		n.mode |= TypeRegular
		n.size = e.Size
	case "symlink":
		n.mode |= TypeSymlink
		n.rare().link = e.LinkName
		n.size = int64(len(e.LinkName))
		if e.LinkName == "" || len(e.LinkName) > maxPathLen || strings.ContainsRune(e.LinkName, 0) {
			return n, errors.New("symbolic link without a valid target")
		}
	case "char", "block":
		if e.DevMajor < 0 || e.DevMajor > 0xfff || e.DevMinor < 0 || e.DevMinor > 0xfffff {
			return n, fmt.Errorf("device %d:%d", e.DevMajor, e.DevMinor)
		}
		if e.Type == "block" {
			n.mode |= TypeBlock
		} else {
			n.mode |= TypeChar
		}
		n.rdev = deviceNumber(uint32(e.DevMajor), uint32(e.DevMinor))
	case "fifo":
		n.mode |= TypeFifo
	default:
		return n, fmt.Errorf("unknown type %q", e.Type)
	}
	if e.Size < 0 {
		return n, fmt.Errorf("size %d", e.Size)
	}
	return n, nil
}

// deviceNumber encodes a device as the kernel does for FUSE (new_encode_dev).
func deviceNumber(major, minor uint32) uint32 {
	return minor&0xff | major<<8 | minor&^0xff<<12
}

func (n *node) setMtime(s string) error {
	if s == "" {
		return nil
	}
	// RFC 3339 allows a fraction, and our converter writes one where the tar
	// has it; stargz's own are whole seconds.
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return fmt.Errorf("time %q", shorten(s))
	}
	// Unpackers set what the kernel's nanoseconds in 64 bits can't hold to the
	// epoch, and so does this.
	if t.Before(time.Unix(0, 0)) || t.After(time.Unix(0, math.MaxInt64)) {
		t = time.Unix(0, 0)
	}
	n.mtime, n.mtimeNsec = t.Unix(), uint32(t.Nanosecond())
	return nil
}

// setXattrs keeps the attributes that an unpacker would set. containerd never
// sets trusted.*, and here it would let an image speak to overlayfs.
func (n *node) setXattrs(xattrs map[string][]byte) error {
	if len(xattrs) > maxXattrs {
		return fmt.Errorf("%d extended attributes", len(xattrs))
	}
	for name, value := range xattrs {
		if name == "" || len(name) > maxNameLen || strings.ContainsRune(name, 0) || len(value) > maxXattrSize {
			return fmt.Errorf("extended attribute %q of %d bytes", shorten(name), len(value))
		}
		if strings.HasPrefix(name, "trusted.") {
			continue
		}
		n.setXattr(name, value)
	}
	return nil
}

func (e *jsonEntry) chunk(fileSize int64) (pendingChunk, error) {
	c := pendingChunk{blobOffset: e.Offset}
	size := e.ChunkSize
	if size == 0 { // eStargz: "to the end of the file"
		size = fileSize - e.ChunkOffset
	}
	if e.ChunkOffset < 0 || size <= 0 || size > chunk.MaxSize || size > fileSize-e.ChunkOffset {
		return c, fmt.Errorf("chunk of %d bytes at %d in a file of %d", size, e.ChunkOffset, fileSize)
	}
	if e.InnerOffset < 0 || e.InnerOffset > maxMemberSpan-size {
		return c, fmt.Errorf("chunk %d bytes into its member", e.InnerOffset)
	}
	c.size, c.inner = uint32(size), uint32(e.InnerOffset)
	if e.ChunkDigest == "" {
		return c, errors.New("chunk without a digest: not eStargz")
	}
	var err error
	c.id, err = chunk.Parse(e.ChunkDigest)
	return c, err
}
