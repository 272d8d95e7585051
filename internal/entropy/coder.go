// Package entropy codes numbers and bytes in as few bits as a model of them
// allows: binary arithmetic coding of what adaptive models predict, alone or
// mixed. All arithmetic is on integers, so that every architecture decodes the
// same.
//
// A model codes and decodes with one and the same method. A Coder made by
// NewEncoder writes the value it is given, one made by NewDecoder ignores it and
// returns what it reads; both return the value. So the two sides can't disagree
// about a model.
//
// The code is a range coder's: 32 bits of range, probabilities of 16 bits, carry
// by a cached byte (as in LZMA). It ends with 4 bytes that say nothing.
package entropy

import (
	"errors"
	"io"
)

// Coder is one end of a stream of coded values. It is not for concurrent use.
type Coder struct {
	decoding bool
	err      error
	width    uint32 // the range

	low   uint64 // encoder: 33 bits
	cache byte   // encoder: the last byte that a carry may still change
	held  int    // encoder: bytes 0xff behind it, and itself
	w     io.ByteWriter

	code uint32 // decoder
	r    io.ByteReader
}

// NewEncoder returns a coder that writes to w. Close it when everything is coded.
func NewEncoder(w io.ByteWriter) *Coder { return &Coder{w: w, width: ^uint32(0), held: 1} }

// NewDecoder returns a coder that reads from r, not a byte more than it needs.
func NewDecoder(r io.ByteReader) *Coder {
	c := &Coder{decoding: true, r: r, width: ^uint32(0)}
	for range 5 {
		c.pull()
	}
	return c
}

// Decoding reports whether c reads.
func (c *Coder) Decoding() bool { return c.decoding }

// Err returns the first error of the writer or the reader. After an error
// decoded values mean nothing; io.EOF is reported as io.ErrUnexpectedEOF.
func (c *Coder) Err() error { return c.err }

// Close writes what is held back, and returns Err.
func (c *Coder) Close() error {
	if !c.decoding {
		for range 5 {
			c.shift()
		}
	}
	return c.err
}

// bit codes one bit, which is 1 with the probability p1/65536, 0 < p1 < 65536.
func (c *Coder) bit(p1 uint32, bit int) int {
	bound := c.width >> 16 * p1
	if c.decoding {
		if c.code < bound {
			c.width = bound
			bit = 1
		} else {
			c.code -= bound
			c.width -= bound
			bit = 0
		}
		for c.width < 1<<24 {
			c.width <<= 8
			c.pull()
		}
		return bit
	}
	if bit != 0 {
		c.width = bound
	} else {
		c.low += uint64(bound)
		c.width -= bound
	}
	for c.width < 1<<24 {
		c.width <<= 8
		c.shift()
	}
	return bit
}

func (c *Coder) pull() {
	b, err := c.r.ReadByte()
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		if c.err == nil {
			c.err = err
		}
		b = 0
	}
	c.code = c.code<<8 | uint32(b)
}

func (c *Coder) shift() {
	if c.low < 0xff000000 || c.low > 0xffffffff {
		carry := byte(c.low >> 32)
		b := c.cache
		for ; c.held > 0; c.held-- {
			if err := c.w.WriteByte(b + carry); err != nil && c.err == nil {
				c.err = err
			}
			b = 0xff
		}
		c.cache = byte(c.low >> 24)
	}
	c.held++
	c.low = c.low & 0x00ffffff << 8
}
