package delta

import (
	"bufio"
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/airstream-io/airstream/internal/bindiff"
	"github.com/airstream-io/airstream/internal/chunk"
	"github.com/airstream-io/airstream/internal/entropy"
	"github.com/airstream-io/airstream/internal/reference"
)

// Sink takes what Apply rebuilds, one file after the other, from one goroutine.
// Chunks were verified if their IDs were known; if not, nothing may be made
// visible before Apply has returned nil and the IDs were checked against a table
// of contents.
type Sink interface {
	// Begin announces a file by its index in the list of wanted files.
	Begin(index int, size int64) error
	// Chunk takes the next chunk of the file. The content is valid until it returns.
	Chunk(id chunk.ID, content []byte) error
	// End says that the file is complete.
	End() error
}

// Receiver is what Apply works with.
type Receiver struct {
	// Set returns what the receiver has under the name. An error ends Apply.
	Set func(ctx context.Context, name string) (Set, error)
	// Expect returns the IDs of a wanted file's chunks; nil if they are in the
	// delta or not known yet.
	Expect func(index int) ([]chunk.ID, error)
	// Sink takes the files.
	Sink Sink
	// Memory is how much a delta may take beyond the bases, in bytes; 0 for 96 MiB.
	Memory int64
	// Bytes is how much may be rebuilt; 0 for no limit but the header's word.
	Bytes int64
}

const defaultMemory = 96 << 20

// memoryOf returns how much Apply needs beyond the bases, in bytes: models,
// segments in both orders, references and what is known of their targets, the
// literals' window and what is decoded of it, what waits of a stream, pages, a
// chunk.
func memoryOf(p Profile, chunkSize int) int64 {
	tables := int64(15 << 20)
	if p == Slow {
		tables <<= slowTables
	}
	return tables + maxSegments*36 + reference.MaxFields*12 + knownTargets*8 + 2*literalWindow + maxAhead + pages*pageSize + int64(chunkSize)
}

// Apply rebuilds what the delta in r holds. It reads r to its end. Errors wrap
// ErrFormat, ErrBase (and name the base), ErrTooLarge, chunk.ErrMismatch, or come
// from r or the receiver.
func Apply(ctx context.Context, r io.Reader, to Receiver) (Header, error) {
	in := bufio.NewReaderSize(r, 32<<10)
	h, err := readHeader(in)
	if err != nil {
		return h, err
	}
	limit := to.Memory
	if limit == 0 {
		limit = defaultMemory
	}
	if need := max(h.Memory, memoryOf(h.Profile, h.ChunkSize)); need > limit {
		return h, fmt.Errorf("delta: %d bytes of memory, %d are allowed: %w", need, limit, ErrTooLarge)
	}
	if to.Bytes > 0 && h.Bytes > to.Bytes {
		return h, fmt.Errorf("delta: it makes %d bytes, %d are allowed: %w", h.Bytes, to.Bytes, ErrTooLarge)
	}
	sets := make([]Set, len(h.Sets))
	for i, s := range h.Sets {
		if sets[i], err = to.Set(ctx, s.Name); err != nil {
			return h, fmt.Errorf("delta: base %s: %w: %w", s.Name, ErrBase, err)
		}
		if len(sets[i].Files) != s.Files {
			return h, fmt.Errorf("delta: base %s has %d files here, the delta was made from %d: %w", s.Name, len(sets[i].Files), s.Files, ErrBase)
		}
	}
	d := &decoder{to: to, header: h, have: flatten(sets), frames: &frameReader{r: in}, ids: sha256.New(), chunk: make([]byte, 0, h.ChunkSize)}
	err = d.run(ctx)
	if d.literals != nil {
		d.literals.Close()
	}
	if d.bases != nil {
		if e := d.bases.Close(); err == nil {
			err = e
		}
	}
	return h, err
}

type decoder struct {
	to       Receiver
	header   Header
	have     []*File
	frames   *frameReader
	code     *code
	literals *zstd.Decoder // nil until there are any
	bases    *text         // of the group
	ids      hash.Hash     // of all chunk IDs
	index    int           // behind the last file
	base     int           // behind the last base
	files    int           // so far
	bytes    int64         // begun so far

	open   bool // a file is
	size   int64
	left   int64 // bytes of the file that are to come
	expect []chunk.ID
	chunk  []byte // what there is of the next chunk
	done   int    // chunks of the file
}

func (d *decoder) run(ctx context.Context) error {
	d.code = newCode(entropy.NewDecoder(d.frames.part(streamModel)), d.header.Profile)
	for {
		n, err := d.code.number(fieldPieces, 0, groupPieces)
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		if err := d.group(ctx, int(n)); err != nil {
			return err
		}
	}
	if d.open || d.files != d.header.Files || d.bytes != d.header.Bytes {
		return fmt.Errorf("delta: %d files, the header says %d: %w", d.files, d.header.Files, ErrFormat)
	}
	check, err := d.frames.end()
	if err != nil {
		return err
	}
	if string(check) != string(d.ids.Sum(nil)[:checkSize]) {
		return fmt.Errorf("delta: what was rebuilt is not what was meant: %w", chunk.ErrMismatch)
	}
	return nil
}

func (d *decoder) group(ctx context.Context, pieces int) error {
	bases, err := d.code.bases(nil, d.have, &d.base)
	if err != nil {
		return err
	}
	if d.bases != nil {
		if err := d.bases.Close(); err != nil {
			return err
		}
	}
	d.bases = newText(d.have, bases)
	for range pieces {
		if err := d.piece(ctx, len(bases)); err != nil {
			return err
		}
	}
	return nil
}

func (d *decoder) piece(ctx context.Context, bases int) error {
	k := d.code
	if !d.open {
		if err := d.begin(); err != nil {
			return err
		}
	}
	size := int(min(d.left, pieceSize))
	likest, err := k.number(fieldLikest, 0, int64(bases))
	if err != nil {
		return err
	}
	segments, err := k.segments(nil, size, d.bases.size, d.bases.start(int(likest)-1))
	if err != nil {
		return err
	}
	first, last := d.bases.start(int(likest)-1), d.bases.start(int(likest))
	pr, err := k.predict(ctx, nil, first, last-first, segments, func(ctx context.Context) (*reference.File, error) {
		base := make([]byte, last-first) // as long as fields are looked for
		if err := d.bases.readAt(ctx, base, first); err != nil {
			return nil, err
		}
		return reference.Find(base), nil
	})
	if err != nil {
		return err
	}
	modelled, err := k.number(fieldModelled, 0, 1)
	if err != nil {
		return err
	}
	read := d.readLiteral
	if modelled == 1 {
		read = k.literals
	}
	k.startResidual()
	end := 0
	for _, s := range segments {
		if err := d.literal(ctx, read, s.New-end); err != nil {
			return err
		}
		if err := d.segment(ctx, pr, s); err != nil {
			return err
		}
		end = s.New + s.Len
	}
	if err := k.endResidual(); err != nil {
		return err
	}
	if err := d.literal(ctx, read, size-end); err != nil {
		return err
	}
	if d.left == 0 {
		d.open = false
		return d.to.Sink.End()
	}
	return nil
}

// begin reads what stands before a file.
func (d *decoder) begin() error {
	by, err := d.code.signed(fieldIndex, 0)
	if err != nil {
		return err
	}
	if by < -1<<32 || by > 1<<32 || int64(d.index)+by < 0 || int64(d.index)+by >= int64(d.header.Wanted) {
		return d.code.wrong("index of a file", by)
	}
	index := d.index + int(by)
	d.index = index + 1
	if d.size, err = d.code.number(fieldSize, 0, d.header.Bytes-d.bytes); err != nil {
		return err
	}
	if d.files++; d.files > d.header.Files {
		return d.code.wrong("number of files", d.files)
	}
	d.bytes += d.size
	d.left, d.open, d.done, d.expect = d.size, true, 0, nil
	chunks := (d.size + int64(d.header.ChunkSize) - 1) / int64(d.header.ChunkSize)
	if d.header.IDs {
		for range chunks {
			var id chunk.ID
			if err := d.readLiteral(id[:]); err != nil {
				return err
			}
			d.expect = append(d.expect, id)
		}
	}
	if d.to.Expect != nil {
		ids, err := d.to.Expect(index)
		if err != nil {
			return err
		}
		if ids != nil {
			d.expect = ids
		}
	}
	if d.expect != nil && int64(len(d.expect)) != chunks {
		return fmt.Errorf("delta: file %d has %d bytes, which are not %d chunks: %w", index, d.size, len(d.expect), chunk.ErrMismatch)
	}
	return d.to.Sink.Begin(index, d.size)
}

// room returns where the next bytes of the file go: up to n, within its chunk.
func (d *decoder) room(n int) []byte {
	have := len(d.chunk)
	return d.chunk[have : have+min(n, d.header.ChunkSize-have)]
}

// filled takes n bytes that were written into the room, and hands the chunk on
// if it is complete.
func (d *decoder) filled(ctx context.Context, n int) error {
	d.chunk = d.chunk[:len(d.chunk)+n]
	d.left -= int64(n)
	if len(d.chunk) < d.header.ChunkSize && d.left > 0 {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	id := chunk.Sum(d.chunk)
	if d.expect != nil && d.expect[d.done] != id {
		return fmt.Errorf("delta: file %d, chunk %d: %w", d.index-1, d.done, d.expect[d.done].Verify(d.chunk))
	}
	d.ids.Write(id[:])
	d.done++
	err := d.to.Sink.Chunk(id, d.chunk)
	d.chunk = d.chunk[:0]
	return err
}

func (d *decoder) literal(ctx context.Context, read func([]byte) error, n int) error {
	for n > 0 {
		p := d.room(n)
		if err := read(p); err != nil {
			return err
		}
		if err := d.filled(ctx, len(p)); err != nil {
			return err
		}
		n -= len(p)
	}
	return nil
}

func (d *decoder) readLiteral(p []byte) error {
	if d.literals == nil {
		z, err := zstd.NewReader(d.frames.part(streamLiterals), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(literalWindow), zstd.WithDecoderMaxMemory(1<<62))
		if err != nil {
			return broken("literals", err)
		}
		d.literals = z
	}
	if _, err := io.ReadFull(d.literals, p); err != nil {
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return broken("literals", err)
		}
		return fmt.Errorf("delta: literals: %w: %w", ErrFormat, err)
	}
	return nil
}

func (d *decoder) segment(ctx context.Context, pr *predictor, s bindiff.Segment) error {
	for done := 0; done < s.Len; {
		p := d.room(s.Len - done)
		if err := d.bases.readAt(ctx, p, s.Old+done); err != nil {
			return err
		}
		if _, err := d.code.stretch(pr, p, nil, s.Old+done, d.size-d.left); err != nil {
			return err
		}
		if err := d.filled(ctx, len(p)); err != nil {
			return err
		}
		done += len(p)
	}
	return nil
}
