package delta

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/airstream-io/airstream/internal/chunk"
)

// Header says what a delta is about, before anything of it is decoded.
type Header struct {
	Profile   Profile
	ChunkSize int
	IDs       bool  // chunk IDs are in the delta
	Memory    int64 // bytes that Apply needs beyond the bases
	Wanted    int   // length of the list of wanted files
	Files     int   // how many of them are in the delta
	Bytes     int64 // sum of their sizes
	Sets      []SetName
}

// SetName is a set that a delta has bases in.
type SetName struct {
	Name  string
	Files int
}

func (h *Header) append(p []byte) []byte {
	ids := uint64(0)
	if h.IDs {
		ids = 1
	}
	b := binary.AppendUvarint([]byte{byte(h.Profile)}, uint64(h.ChunkSize))
	for _, v := range []uint64{ids, uint64(h.Memory), uint64(h.Wanted), uint64(h.Files), uint64(h.Bytes), uint64(len(h.Sets))} {
		b = binary.AppendUvarint(b, v)
	}
	for _, s := range h.Sets {
		b = binary.AppendUvarint(b, uint64(len(s.Name)))
		b = append(b, s.Name...)
		b = binary.AppendUvarint(b, uint64(s.Files))
	}
	p = append(p, magic...)
	p = binary.AppendUvarint(p, uint64(len(b)))
	return append(p, b...)
}

// ReadHeader reads the header of a delta. It reads ahead in r.
func ReadHeader(r io.Reader) (Header, error) { return readHeader(bufio.NewReader(r)) }

func readHeader(r *bufio.Reader) (Header, error) {
	var h Header
	m := make([]byte, len(magic))
	if _, err := io.ReadFull(r, m); err != nil {
		return h, broken("header", err)
	}
	if string(m) != magic {
		return h, fmt.Errorf("delta: it begins with %q: %w", m, ErrFormat)
	}
	n, err := binary.ReadUvarint(r)
	if err != nil {
		return h, broken("header", err)
	}
	if n > maxHeader {
		return h, fmt.Errorf("delta: header of %d bytes: %w", n, ErrFormat)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return h, broken("header", err)
	}
	f := fields{rest: b}
	h.Profile = Profile(f.number("profile", uint64(profiles-1)))
	h.ChunkSize = int(f.number("chunk size", chunk.MaxSize))
	h.IDs = f.number("flag", 1) == 1
	h.Memory = int64(f.number("memory", 1<<40))
	h.Wanted = int(f.number("wanted files", 1<<31-1))
	h.Files = int(f.number("files", uint64(h.Wanted)))
	h.Bytes = int64(f.number("size", 1<<50))
	sets := f.number("sets", n)
	for range sets {
		if f.err != nil {
			break
		}
		s := SetName{Name: f.text(255)}
		s.Files = int(f.number("files of a set", 1<<31-1))
		h.Sets = append(h.Sets, s)
	}
	if f.err == nil && (len(f.rest) > 0 || h.ChunkSize == 0) {
		f.err = fmt.Errorf("delta: header: %w", ErrFormat)
	}
	return h, f.err
}

// fields reads what a header holds. After an error it returns zeros.
type fields struct {
	rest []byte
	err  error
}

func (f *fields) number(what string, limit uint64) uint64 {
	v, n := binary.Uvarint(f.rest)
	if f.err == nil && (n <= 0 || v > limit) {
		f.err = fmt.Errorf("delta: header: %s: %w", what, ErrFormat)
	}
	if f.err != nil {
		return 0
	}
	f.rest = f.rest[n:]
	return v
}

func (f *fields) text(limit uint64) string {
	n := f.number("length of a name", limit)
	if f.err == nil && n > uint64(len(f.rest)) {
		f.err = fmt.Errorf("delta: header: name: %w", ErrFormat)
	}
	if f.err != nil {
		return ""
	}
	s := string(f.rest[:n])
	f.rest = f.rest[n:]
	return s
}

// broken says that what was being read ends too early, or that reading failed.
func broken(what string, err error) error {
	if errors.Is(err, ErrFormat) {
		return err
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("delta: %s: it ends too early: %w", what, ErrFormat)
	}
	return fmt.Errorf("delta: %s: %w", what, err)
}
