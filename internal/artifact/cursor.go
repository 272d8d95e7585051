package artifact

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

var le = binary.LittleEndian

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrInvalid, fmt.Errorf(format, args...))
}

var errShort = errors.New("a column ends early")

// cursor reads a column. After an error all it returns is zero, so that a row
// is read first and the error is looked at behind it; no loop may run on what it
// returned without doing so.
type cursor struct {
	b   []byte
	err error
}

func (c *cursor) fail() {
	if c.err == nil {
		c.err = fmt.Errorf("%w: %w", ErrInvalid, errShort)
	}
	c.b = nil
}

func (c *cursor) uvarint() uint64 {
	v, n := binary.Uvarint(c.b)
	if n <= 0 {
		c.fail()
		return 0
	}
	c.b = c.b[n:]
	return v
}

// u32 reads a uvarint that must fit.
func (c *cursor) u32() uint32 {
	v := c.uvarint()
	if v > math.MaxUint32 {
		c.fail()
		return 0
	}
	return uint32(v)
}

func (c *cursor) varint() int64 {
	v, n := binary.Varint(c.b)
	if n <= 0 {
		c.fail()
		return 0
	}
	c.b = c.b[n:]
	return v
}

// take returns the next n bytes, a part of the column.
func (c *cursor) take(n uint64) []byte {
	if n > uint64(len(c.b)) {
		c.fail()
		return nil
	}
	out := c.b[:n:n]
	c.b = c.b[n:]
	return out
}

func (c *cursor) byte() byte {
	if b := c.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (c *cursor) text() []byte { return c.take(c.uvarint()) }

// zeroTerminated returns what comes before the next 0 byte, and skips that.
func (c *cursor) zeroTerminated() []byte {
	i := bytes.IndexByte(c.b, 0)
	if i < 0 {
		c.fail()
		return nil
	}
	out := c.b[:i:i]
	c.b = c.b[i+1:]
	return out
}

// column is written with these.
type column struct{ bytes.Buffer }

func (c *column) uvarint(v uint64) { c.Write(binary.AppendUvarint(c.AvailableBuffer(), v)) }
func (c *column) varint(v int64)   { c.Write(binary.AppendVarint(c.AvailableBuffer(), v)) }

func (c *column) text(s string) {
	c.uvarint(uint64(len(s)))
	c.WriteString(s)
}

func (c *column) zeroTerminated(s string) {
	c.WriteString(s)
	c.WriteByte(0)
}
