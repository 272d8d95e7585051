package delta

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
)

const (
	streamEnd      = 0
	streamModel    = 1
	streamLiterals = 2
	streams        = 3

	maxFrame = 64 << 10
	// maxAhead is how much of a stream may wait for another, in bytes; the
	// writer stays below by letting none go uneven by more than unevenness.
	maxAhead   = 4 << 20
	unevenness = 1 << 20
	checkSize  = 16
)

// frameWriter interleaves streams.
type frameWriter struct {
	w       io.Writer
	written int64
	parts   [streams]framePart
	// behind tells the owner of a stream that others have got far ahead of it.
	behind func(stream byte) error
}

type framePart struct {
	buffer  []byte
	waiting int // bytes of others since the last frame
}

// part returns the writer of a stream.
func (f *frameWriter) part(stream byte) *partWriter { return &partWriter{f, stream} }

type partWriter struct {
	f      *frameWriter
	stream byte
}

func (p *partWriter) Write(b []byte) (int, error) {
	n := len(b)
	for len(b) > 0 {
		part := &p.f.parts[p.stream]
		k := min(len(b), maxFrame-len(part.buffer))
		part.buffer = append(part.buffer, b[:k]...)
		b = b[k:]
		if len(part.buffer) == maxFrame {
			if err := p.f.flush(p.stream); err != nil {
				return 0, err
			}
		}
	}
	return n, nil
}

func (p *partWriter) WriteByte(b byte) error {
	part := &p.f.parts[p.stream]
	if part.buffer = append(part.buffer, b); len(part.buffer) == maxFrame {
		return p.f.flush(p.stream)
	}
	return nil
}

// flush writes what a stream has as a frame.
func (f *frameWriter) flush(stream byte) error {
	part := &f.parts[stream]
	n := len(part.buffer)
	part.waiting = 0
	if n == 0 {
		return nil
	}
	if err := f.put(binary.AppendUvarint([]byte{stream}, uint64(n))); err != nil {
		return err
	}
	if err := f.put(part.buffer); err != nil {
		return err
	}
	part.buffer = part.buffer[:0]
	for other := byte(1); other < streams; other++ {
		if other == stream {
			continue
		}
		o := &f.parts[other]
		if o.waiting += n; o.waiting > unevenness {
			o.waiting = 0
			if err := f.behind(other); err != nil {
				return err
			}
		}
	}
	return nil
}

func (f *frameWriter) put(p []byte) error {
	n, err := f.w.Write(p)
	f.written += int64(n)
	return err
}

// end writes what is left and the check.
func (f *frameWriter) end(check []byte) error {
	for s := byte(1); s < streams; s++ {
		if err := f.flush(s); err != nil {
			return err
		}
	}
	return f.put(append(binary.AppendUvarint([]byte{streamEnd}, uint64(len(check))), check...))
}

// frameReader takes streams apart.
type frameReader struct {
	r     *bufio.Reader
	parts [streams]bytes.Buffer
	ended bool
}

func (f *frameReader) part(stream byte) *partReader { return &partReader{f, stream} }

type partReader struct {
	f      *frameReader
	stream byte
}

func (p *partReader) Read(b []byte) (int, error) {
	if err := p.f.fill(p.stream); err != nil {
		return 0, err
	}
	return p.f.parts[p.stream].Read(b)
}

func (p *partReader) ReadByte() (byte, error) {
	if err := p.f.fill(p.stream); err != nil {
		return 0, err
	}
	return p.f.parts[p.stream].ReadByte()
}

// fill reads frames until the stream has bytes. It returns io.EOF if there are
// no more.
func (f *frameReader) fill(stream byte) error {
	for f.parts[stream].Len() == 0 {
		if f.ended {
			return io.EOF
		}
		if err := f.next(); err != nil {
			return err
		}
	}
	return nil
}

func (f *frameReader) next() error {
	stream, err := f.r.ReadByte()
	if err != nil {
		return broken("frame", err)
	}
	n, err := binary.ReadUvarint(f.r)
	if err != nil {
		return broken("frame", err)
	}
	if stream >= streams || n == 0 || n > maxFrame || stream == streamEnd && n != checkSize {
		return fmt.Errorf("delta: frame of stream %d with %d bytes: %w", stream, n, ErrFormat)
	}
	part := &f.parts[stream]
	if part.Len()+int(n) > maxAhead {
		return fmt.Errorf("delta: stream %d is too far ahead: %w", stream, ErrFormat)
	}
	if _, err := io.CopyN(part, f.r, int64(n)); err != nil {
		return broken("frame", err)
	}
	f.ended = stream == streamEnd
	return nil
}

// end reads what remains, which must be the check, and returns it.
func (f *frameReader) end() ([]byte, error) {
	for !f.ended {
		if err := f.next(); err != nil {
			return nil, err
		}
	}
	if _, err := f.r.ReadByte(); err != io.EOF {
		return nil, fmt.Errorf("delta: bytes behind the end: %w", ErrFormat)
	}
	return f.parts[streamEnd].Bytes(), nil
}
