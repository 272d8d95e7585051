package bundle

import (
	"bytes"
	"crypto/cipher"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"filippo.io/age"
	"github.com/klauspost/compress/zstd"
)

// Record is a record that is what the manifest says.
type Record struct {
	Number   uint32 // from 1 on
	Kind     Kind
	Priority uint8
	Offset   int64  // where it begins in the stream
	Payload  []byte // unpacked; valid until the next call
}

// Damage is a part of a stream that is no record of the bundle.
type Damage struct {
	Offset int64 `json:"offset"` // bytes into the stream
	Size   int64 `json:"size"`
}

// Reader reads a bundle from a stream, in memory that its largest record bounds. It
// is not safe for concurrent use.
type Reader struct {
	// Identities open bundles that are encrypted.
	Identities []age.Identity

	r      io.Reader
	err    error // of r
	window []byte
	buf    []byte // of window; from off on
	off    int64

	z        *zstd.Decoder
	seal     cipher.AEAD
	known    bool // id is
	id       ID
	contents *Contents
	sig      Signature
	first    []byte // the record that the manifest was read from
	copy     []byte // the other one, once it was seen
	at       int64  // where it was
	damage   []Damage
	last     uint32 // number of the last record that was returned
	ended    bool   // the copy of the manifest was seen
}

// NewReader returns a Reader of r. Close must be called.
func NewReader(r io.Reader) (*Reader, error) {
	z, err := newUnpacker()
	if err != nil {
		return nil, fmt.Errorf("bundle: %w", err)
	}
	return &Reader{r: r, z: z}, nil
}

// Close frees what the Reader holds.
func (r *Reader) Close() { r.z.Close() }

// Begin reads up to the manifest. Where the first one is damaged that is the copy
// at the end: Late tells, and the records are behind it then. Errors are
// ErrNotBundle, ErrDamaged, ErrSealed, or the stream's.
func (r *Reader) Begin() (*Contents, error) {
	for {
		h, payload, at, err := r.next()
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			if r.known {
				return nil, fmt.Errorf("bundle: %w: its manifest can't be read: %w", ErrDamaged, io.ErrUnexpectedEOF)
			}
			return nil, fmt.Errorf("bundle: %w: it has no record that this version reads", ErrNotBundle)
		}
		if err != nil {
			return nil, fmt.Errorf("bundle: %w", err)
		}
		if h.kind != KindManifest {
			continue
		}
		if r.contents, err = r.manifest(&h, payload); err != nil {
			return nil, fmt.Errorf("bundle: manifest: %w", err)
		}
		if r.seal == nil {
			h.number = 0 // as the one in front was; a sealed one can't be another
		}
		r.first = append(h.append(make([]byte, 0, headerSize+len(payload))), payload...)
		r.at = at
		return r.contents, nil
	}
}

// manifest reads the payload of one.
func (r *Reader) manifest(h *header, p []byte) (*Contents, error) {
	c := &cursor{b: p}
	signature := c.take(uint64(c.le32()))
	key := c.take(uint64(c.le32()))
	if err := c.end("manifest"); err != nil {
		return nil, err
	}
	if len(key) > 0 {
		var err error
		if r.seal, err = openSeal(key, r.Identities); err != nil {
			return nil, err
		}
	}
	body, err := unpack(r.z, r.seal, h, c.b)
	if err != nil {
		return nil, err
	}
	if idOf(body) != h.bundle {
		return nil, damaged("its body is of another bundle")
	}
	r.sig = Signature{text: bytes.Clone(signature), body: body}
	return parseBody(body)
}

// Late tells whether the manifest that Begin read was the copy at the end, so that
// records are to be read from the beginning again, with Resume.
func (r *Reader) Late() bool { return r.at > 0 && r.contents != nil }

// Resume makes the Reader read on from a stream that begins at byte off of the
// bundle.
func (r *Reader) Resume(from io.Reader, off int64) {
	r.r, r.err, r.buf, r.off, r.damage, r.last, r.ended = from, nil, nil, off, nil, 0, false
}

// ID returns the bundle's ID, after Begin.
func (r *Reader) ID() ID { return r.id }

// Signature returns the bundle's signature, after Begin.
func (r *Reader) Signature() *Signature { return &r.sig }

// Manifest returns the record with the manifest as it is in the bundle.
func (r *Reader) Manifest() []byte { return r.first }

// Sealed tells whether the bundle is encrypted.
func (r *Reader) Sealed() bool { return r.seal != nil }

// Damage returns what was skipped so far.
func (r *Reader) Damage() []Damage { return r.damage }

// Offset returns where a record, numbered from 1 on, begins in an undamaged bundle.
func (r *Reader) Offset(number uint32) int64 {
	off := int64(len(r.first))
	for i := range r.contents.Records[:number-1] {
		off += r.contents.Records[i].Len()
	}
	return off
}

// Next returns the next record that is sound. At the end it returns io.EOF, and
// io.ErrUnexpectedEOF if the stream breaks off before; what was skipped is in Damage
// in either case.
func (r *Reader) Next() (Record, error) {
	h, payload, at, err := r.record()
	if err != nil {
		return Record{}, err
	}
	raw, err := unpack(r.z, r.seal, &h, payload)
	if err != nil { // the sender made it so: its hash is what the manifest says
		return Record{}, fmt.Errorf("bundle: %w", err)
	}
	return Record{Number: h.number, Kind: h.kind, Priority: h.priority, Offset: at, Payload: raw}, nil
}

// NextPacked returns the next record as it is in the bundle, header and all. The
// bytes are valid until the next call; errors are Next's.
func (r *Reader) NextPacked() (number uint32, packed []byte, err error) {
	h, payload, _, err := r.record()
	if err != nil {
		return 0, nil, err
	}
	return h.number, append(h.append(make([]byte, 0, headerSize+len(payload))), payload...), nil
}

// Copy returns the second record of the manifest, if it was read.
func (r *Reader) Copy() []byte { return r.copy }

// Rest returns what follows the records that were read.
func (r *Reader) Rest() io.Reader { return io.MultiReader(bytes.NewReader(r.buf), r.r) }

func (r *Reader) record() (header, []byte, int64, error) {
	for {
		h, payload, at, err := r.next()
		switch {
		case errors.Is(err, io.EOF) && r.last < uint32(len(r.contents.Records)) && !r.ended:
			return h, nil, 0, fmt.Errorf("bundle: after record %d of %d: %w", r.last, len(r.contents.Records), io.ErrUnexpectedEOF)
		case errors.Is(err, io.EOF):
			return h, nil, 0, io.EOF
		case err != nil:
			return h, nil, 0, fmt.Errorf("bundle: after record %d of %d: %w", r.last, len(r.contents.Records), err)
		case h.kind == KindManifest && h.number > 0:
			r.ended = true
			r.copy = append(h.append(nil), payload...)
		case h.kind != KindManifest:
			r.last = h.number
			return h, payload, at, nil
		}
	}
}

// next returns the next record of which header and payload are sound. The payload
// is valid until the next call.
func (r *Reader) next() (h header, payload []byte, at int64, err error) {
	bad := int64(0)  // bytes skipped
	cut := int64(-1) // where a record begins that the stream's end cuts off
	skip := func(n int) {
		r.buf = r.buf[n:]
		r.off += int64(n)
		bad += int64(n)
	}
	note := func() {
		if bad > 0 {
			r.damage = append(r.damage, Damage{r.off - bad, bad})
			if len(r.damage) > maxDamage { // a hostile stream; the last ones grow together
				n := len(r.damage) - 2
				r.damage[n].Size = r.off - r.damage[n].Offset
				r.damage = r.damage[:n+1]
			}
		}
	}
	for {
		r.need(headerSize)
		if len(r.buf) < headerSize {
			if skip(len(r.buf)); bad >= headerSize && cut != r.off-bad {
				note()
			}
			if r.err == nil || errors.Is(r.err, io.EOF) {
				r.err = io.EOF
			}
			return h, nil, 0, r.err
		}
		if h, ok := parseHeader(r.buf); ok && r.fits(&h) {
			if r.need(headerSize + int(h.size)); len(r.buf) >= headerSize+int(h.size) {
				payload := r.buf[headerSize : headerSize+int(h.size)]
				if r.sound(&h, payload) {
					note()
					at := r.off
					r.buf = r.buf[headerSize+int(h.size):]
					r.off = at + headerSize + int64(h.size)
					r.known, r.id = true, h.bundle
					return h, payload, at, nil
				}
			} else if cut < 0 {
				cut = r.off
			}
		}
		if i := bytes.Index(r.buf[1:], []byte(magic)); i >= 0 {
			skip(1 + i)
		} else {
			skip(len(r.buf) - len(magic) + 1)
		}
	}
}

const (
	maxDamage   = 10_000
	firstWindow = 256 << 10 // bytes
)

// fits tells whether a header is one of this bundle.
func (r *Reader) fits(h *header) bool {
	if r.known && h.bundle != r.id {
		return false
	}
	if r.contents == nil || h.kind == KindManifest {
		return true
	}
	if h.number == 0 || h.number > uint32(len(r.contents.Records)) {
		return false
	}
	e := &r.contents.Records[h.number-1]
	return e.Kind == h.kind && e.flags == h.flags && e.Size == h.size && e.Raw == h.raw && e.Priority == h.priority
}

// sound tells whether a payload is what its header, and the manifest, say.
func (r *Reader) sound(h *header, payload []byte) bool {
	sum := sha256.Sum256(payload)
	if [8]byte(sum[:8]) != h.sum {
		return false
	}
	return r.contents == nil || h.kind == KindManifest || r.contents.Records[h.number-1].Sum == sum
}

// need reads until n bytes are in buf, or the stream ends.
func (r *Reader) need(n int) {
	if len(r.buf) >= n || r.err != nil {
		return
	}
	if r.window == nil {
		r.window = make([]byte, firstWindow)
	}
	r.buf = r.window[:copy(r.window, r.buf)]
	for len(r.buf) < n && r.err == nil {
		if len(r.buf) == len(r.window) { // what a header claims gets memory as it comes
			r.window = append(r.window, make([]byte, min(len(r.window), n-len(r.buf)))...)
		}
		var m int
		m, r.err = r.r.Read(r.window[len(r.buf):])
		r.buf = r.window[:len(r.buf)+m]
	}
}
