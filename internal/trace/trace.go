// Package trace says what a container reads while it starts, and how a layer
// carries that knowledge to the next node.
//
// A Trace is recorded on a node, or by the converter: which pieces of which
// files were read and which names were looked up, in the order in which that was
// done first. It is a JSON file that people can look at, keep beside an image's
// sources and give to the converter, for the version that it was recorded of and
// for later ones. Traces of several starts are one after Merge.
//
// What a trace means for an image, the one it was recorded of or a later one, is
// found by a Matcher: most paths and offsets survive from version to version,
// and what was moved or renamed is known by its chunks.
//
// A Plan is the result for one layer: which runs of the blob hold what was
// read, and in what order over all layers they are wanted. It is small enough
// to stand in the layer's annotations, where the image digest vouches for it
// and where it costs no request. A node that knows it fetches the runs before
// anybody asks; one that doesn't loses nothing. A Recall turns the plans of an
// image back into a trace.
//
// # The file, version 2
//
// An object of version, image, manifest, layers and reads, of which each is one
// of these, a line each:
//
//	{"layer":1,"path":"usr/bin/app","offset":0,"size":65536,"chunk":"0123456789abcdef"}
//	{"layer":1,"path":"usr/bin/app","lookup":"found"}
//
// layer counts from the lowest, 0; path has no leading slash, and "." is the
// root of the layer; offset and size are bytes of the file. chunk, which may be
// left out, is there if the read is exactly one chunk: the first eight bytes of
// its ID, in hex, to recognise content and not to verify it. lookup says "found"
// of a name that is in the layer, "absent" of one that was looked for in vain
// (in a directory that the layer has), "list" of a directory whose names were
// listed.
//
// Version 1 has neither chunk nor lookup and is read as well. Unknown versions
// and unknown keys are refused.
package trace

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/airstream-io/airstream/internal/chunk"
)

// Version is the version of the file format that Encode writes. Decode reads
// those before it, too.
const Version = 2

// MaxSize bounds a trace file, in bytes.
const MaxSize = 64 << 20

// maxLayers bounds how many layers the image of a trace has; overlayfs takes 500.
const maxLayers = 1024

// Kind says what a Read is.
type Kind string

// The kinds of Read.
const (
	Content Kind = ""       // bytes were read
	Found   Kind = "found"  // a name was looked up that is in the layer
	Absent  Kind = "absent" // a name was looked up that is not
	List    Kind = "list"   // a directory was listed
)

// Hint is the beginning of a chunk's ID: enough to find it again in a later
// version of its image, and no proof of anything.
type Hint [8]byte

// HintOf returns the hint for a chunk.
func HintOf(id chunk.ID) Hint { return Hint(id[:8]) }

// MarshalText implements encoding.TextMarshaler.
func (h Hint) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, h[:]), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (h *Hint) UnmarshalText(b []byte) error {
	if len(b) != 2*len(h) {
		return fmt.Errorf("chunk %q: %d hex digits, want %d", b[:min(len(b), 80)], len(b), 2*len(h))
	}
	_, err := hex.Decode(h[:], b)
	return err
}

// Read is one piece of a file that was read, or one look-up.
type Read struct {
	Layer  int    // counted from the lowest, 0
	Path   string // within the layer, without a leading slash
	Kind   Kind
	Offset int64 // of Content: bytes into the file
	Size   int64 // of Content: bytes, at least 1
	Chunk  Hint  // of Content: the chunk that the read is; zero if that is not known
}

// line is a Read as the file has it.
type line struct {
	Layer  int    `json:"layer"`
	Path   string `json:"path"`
	Lookup Kind   `json:"lookup,omitempty"`
	Offset *int64 `json:"offset,omitempty"`
	Size   *int64 `json:"size,omitempty"`
	Chunk  Hint   `json:"chunk,omitzero"`
}

// MarshalJSON implements json.Marshaler.
func (r Read) MarshalJSON() ([]byte, error) {
	l := line{Layer: r.Layer, Path: r.Path, Lookup: r.Kind}
	if r.Kind == Content {
		l.Offset, l.Size, l.Chunk = &r.Offset, &r.Size, r.Chunk
	}
	return json.Marshal(l)
}

// UnmarshalJSON implements json.Unmarshaler. Unknown keys are errors.
func (r *Read) UnmarshalJSON(b []byte) error {
	var l line
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&l); err != nil {
		return err
	}
	if l.Lookup != Content && (l.Offset != nil || l.Size != nil || l.Chunk != Hint{}) {
		return fmt.Errorf("a look-up of %q has an offset, a size or a chunk", l.Path)
	}
	*r = Read{Layer: l.Layer, Path: l.Path, Kind: l.Lookup, Chunk: l.Chunk}
	if l.Offset != nil {
		r.Offset = *l.Offset
	}
	if l.Size != nil {
		r.Size = *l.Size
	}
	return nil
}

// valid tells whether a read can be one of an image of so many layers.
func (r *Read) valid(layers int) bool {
	if r.Layer < 0 || r.Layer >= layers || r.Path == "" {
		return false
	}
	switch r.Kind {
	case Content:
		return r.Offset >= 0 && r.Size > 0 && r.Size <= math.MaxInt64-r.Offset
	case Found, Absent, List:
		return true
	}
	return false
}

// Trace is what one or more starts of an image read, first things first.
type Trace struct {
	Version  int    `json:"version"`
	Image    string `json:"image"`    // reference, for people
	Manifest string `json:"manifest"` // digest of the image that it was recorded of
	Layers   int    `json:"layers"`   // how many that image has
	Reads    []Read `json:"reads"`
}

// Bytes returns how many bytes of content were read, and of how many files.
func (t *Trace) Bytes() (n int64, files int) {
	type file struct {
		layer int
		path  string
	}
	seen := map[file]struct{}{}
	for i := range t.Reads {
		if r := &t.Reads[i]; r.Kind == Content {
			n += r.Size
			seen[file{r.Layer, r.Path}] = struct{}{}
		}
	}
	return n, len(seen)
}

// ErrInvalid says that a file is not a trace that this version reads.
var ErrInvalid = errors.New("not a valid trace")

// Decode reads a trace file. Errors are ErrInvalid, or the reader's.
func Decode(r io.Reader) (*Trace, error) {
	b, err := io.ReadAll(io.LimitReader(r, MaxSize+1))
	if err != nil {
		return nil, fmt.Errorf("trace: read: %w", err)
	}
	if len(b) > MaxSize {
		return nil, fmt.Errorf("trace: %w: more than %d bytes", ErrInvalid, MaxSize)
	}
	// The version first: of a later one the fields may be unknown.
	var v struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(b, &v); err != nil { // which reads all of it, and nothing may follow
		return nil, fmt.Errorf("trace: %w: %w", ErrInvalid, err)
	}
	if v.Version < 1 || v.Version > Version {
		return nil, fmt.Errorf("trace: %w: version %d, want 1 to %d", ErrInvalid, v.Version, Version)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	var t Trace
	if err := dec.Decode(&t); err != nil {
		return nil, fmt.Errorf("trace: %w: %w", ErrInvalid, err)
	}
	if t.Layers < 0 || t.Layers > maxLayers {
		return nil, fmt.Errorf("trace: %w: %d layers", ErrInvalid, t.Layers)
	}
	for i, r := range t.Reads {
		if !r.valid(t.Layers) || v.Version == 1 && (r.Kind != Content || r.Chunk != Hint{}) {
			return nil, fmt.Errorf("trace: %w: read %d: %+v", ErrInvalid, i, r)
		}
	}
	t.Version = Version
	return &t, nil
}

// Encode writes a trace file, a line for each read, so that two of them can be
// compared by any diff.
func (t *Trace) Encode(w io.Writer) error {
	head := *t
	head.Version, head.Reads = Version, []Read{}
	b, err := json.Marshal(head)
	if err != nil {
		return fmt.Errorf("trace: encode: %w", err)
	}
	var out bytes.Buffer
	out.Write(bytes.TrimSuffix(b, []byte("]}")))
	for i, r := range t.Reads {
		line, err := json.Marshal(r)
		if err != nil {
			return fmt.Errorf("trace: encode: %w", err)
		}
		if i > 0 {
			out.WriteByte(',')
		}
		out.WriteString("\n  ")
		out.Write(line)
	}
	out.WriteString("\n]}\n")
	if _, err := w.Write(out.Bytes()); err != nil {
		return fmt.Errorf("trace: encode: %w", err)
	}
	return nil
}
