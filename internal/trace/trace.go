// Package trace says what a container reads while it starts, and how a layer
// carries that knowledge to the next node.
//
// A Trace is recorded on a node: which pieces of which files were read, in the
// order in which they were first read. It is a JSON file that people can look
// at, keep beside an image's sources and give to the converter, for the version
// that it was recorded of and for later ones: paths and offsets mostly survive.
//
// A Plan is what a trace means for one layer: which runs of the blob hold those
// pieces, and in what order over all layers they are wanted. It is small enough
// to stand in the layer's annotations, where the image digest vouches for it
// and where it costs no request. A node that knows it fetches the runs before
// anybody asks; one that doesn't loses nothing.
package trace

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
)

// Version is the version of the file format. A reader refuses others.
const Version = 1

// MaxSize bounds a trace file, in bytes.
const MaxSize = 64 << 20

// Read is one piece of a file that was read.
type Read struct {
	Layer  int    `json:"layer"`  // counted from the lowest, 0
	Path   string `json:"path"`   // within the layer, without a leading slash
	Offset int64  `json:"offset"` // bytes into the file
	Size   int64  `json:"size"`   // bytes
}

// Trace is what one or more starts of an image read, first things first.
type Trace struct {
	Version  int    `json:"version"`
	Image    string `json:"image"`    // reference, for people
	Manifest string `json:"manifest"` // digest of the image that it was recorded of
	Layers   int    `json:"layers"`   // how many that image has
	Reads    []Read `json:"reads"`
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
	if v.Version != Version {
		return nil, fmt.Errorf("trace: %w: version %d, want %d", ErrInvalid, v.Version, Version)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	var t Trace
	if err := dec.Decode(&t); err != nil {
		return nil, fmt.Errorf("trace: %w: %w", ErrInvalid, err)
	}
	if t.Layers < 0 {
		return nil, fmt.Errorf("trace: %w: %d layers", ErrInvalid, t.Layers)
	}
	for i, r := range t.Reads {
		if r.Layer < 0 || r.Layer >= t.Layers || r.Path == "" || r.Offset < 0 || r.Size <= 0 || r.Size > math.MaxInt64-r.Offset {
			return nil, fmt.Errorf("trace: %w: read %d: %+v", ErrInvalid, i, r)
		}
	}
	return &t, nil
}

// Encode writes a trace file, a line for each read, so that two of them can be
// compared by any diff.
func (t *Trace) Encode(w io.Writer) error {
	head := *t
	head.Reads = []Read{}
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
