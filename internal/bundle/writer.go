package bundle

import (
	"crypto/cipher"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"

	"filippo.io/age"
	"github.com/klauspost/compress/zstd"
)

// Options say how a bundle is written; the zero value is good.
type Options struct {
	Sign       *Signer         // nil: not signed
	Recipients []age.Recipient // nil: not encrypted
	WorkDir    string          // for as many bytes as the bundle has; "": the system's
}

// Writer makes a bundle. Records wait in a file, because the manifest, which
// comes first, has the hashes of all.
type Writer struct {
	opts Options
	work *os.File
	z    *zstd.Encoder
	seal cipher.AEAD
	key  []byte // age file
	list []Entry
	raw  int64
}

// Create begins a bundle. Close must be called.
func Create(opts Options) (w *Writer, err error) {
	w = &Writer{opts: opts}
	if len(opts.Recipients) > 0 {
		if w.seal, w.key, err = newSeal(opts.Recipients); err != nil {
			return nil, fmt.Errorf("bundle: encrypt: %w", err)
		}
	}
	if w.z, err = newPacker(); err != nil {
		return nil, fmt.Errorf("bundle: %w", err)
	}
	if w.work, err = os.CreateTemp(opts.WorkDir, ".airstream-bundle-"); err != nil {
		return nil, errors.Join(fmt.Errorf("bundle: %w", err), w.z.Close())
	}
	if err := os.Remove(w.work.Name()); err != nil { // it is gone with the process
		return nil, errors.Join(fmt.Errorf("bundle: %w", err), w.Close())
	}
	return w, nil
}

// Close frees what the Writer holds.
func (w *Writer) Close() error { return errors.Join(w.z.Close(), w.work.Close()) }

// Add adds a record. Records come in the order in which they are added; what is
// more important should be before.
func (w *Writer) Add(kind Kind, priority uint8, payload []byte) error {
	if len(payload) > MaxPayload {
		return fmt.Errorf("bundle: a record of %d bytes is larger than %d", len(payload), MaxPayload)
	}
	packed, flags := pack(w.z, w.seal, kind, uint32(len(w.list)+1), payload)
	if _, err := w.work.Write(packed); err != nil {
		return fmt.Errorf("bundle: %w", err)
	}
	w.list = append(w.list, Entry{Kind: kind, Priority: priority, flags: flags, Size: uint32(len(packed)), Raw: uint32(len(payload)), Sum: sha256.Sum256(packed)})
	w.raw += int64(len(payload))
	return nil
}

// Finish writes the bundle to out and returns its ID. What it says of records and
// their size in c is filled in.
func (w *Writer) Finish(c *Contents, out io.Writer) (ID, error) {
	id, err := w.finish(c, out)
	if err != nil {
		return id, fmt.Errorf("bundle: write: %w", err)
	}
	return id, nil
}

func (w *Writer) finish(c *Contents, out io.Writer) (ID, error) {
	c.Records, c.Raw = w.list, w.raw
	if err := c.check(); err != nil {
		return ID{}, err
	}
	body, err := c.body()
	if err != nil {
		return ID{}, err
	}
	id := idOf(body)
	if _, err := w.work.Seek(0, io.SeekStart); err != nil {
		return id, err
	}
	var signature []byte
	if w.opts.Sign != nil {
		signature = w.opts.Sign.sign(id, body)
	}
	if err := w.manifest(out, id, 0, signature, body); err != nil {
		return id, err
	}
	for i := range w.list {
		e := &w.list[i]
		h := header{kind: e.Kind, flags: e.flags, priority: e.Priority, bundle: id, number: uint32(i + 1), size: e.Size, raw: e.Raw, sum: [8]byte(e.Sum[:8])}
		if _, err := out.Write(h.append(nil)); err != nil {
			return id, err
		}
		if _, err := io.CopyN(out, w.work, int64(e.Size)); err != nil {
			return id, err
		}
	}
	return id, w.manifest(out, id, uint32(len(w.list)+1), signature, body)
}

// manifest writes the manifest as the record with a number.
func (w *Writer) manifest(out io.Writer, id ID, number uint32, signature, body []byte) error {
	packed := w.z.EncodeAll(body, nil)
	flags := uint8(flagZstd)
	if w.seal != nil {
		packed = w.seal.Seal(nil, nonce(number), packed, []byte{byte(KindManifest)})
		flags |= flagSealed
	}
	b := le.AppendUint32(nil, uint32(len(signature)))
	b = append(b, signature...)
	b = le.AppendUint32(b, uint32(len(w.key)))
	b = append(b, w.key...)
	b = append(b, packed...)
	sum := sha256.Sum256(b)
	h := header{kind: KindManifest, flags: flags, bundle: id, number: number, size: uint32(len(b)), raw: uint32(len(body)), sum: [8]byte(sum[:8])}
	if _, err := out.Write(h.append(nil)); err != nil {
		return err
	}
	_, err := out.Write(b)
	return err
}

// AddBlob adds content in parts, of which each is a record. size is in bytes.
func (w *Writer) AddBlob(kind Kind, priority uint8, p Part, r io.Reader) error {
	buf := make([]byte, min(PartSize, p.Size))
	h := sha256.New()
	for {
		n, err := io.ReadFull(r, buf[:min(int64(len(buf)), p.Size-p.Offset)])
		if err != nil {
			return fmt.Errorf("bundle: read %x: %w", p.Sum, err)
		}
		h.Write(buf[:n])
		p.Data = buf[:n]
		if err := w.Add(kind, priority, p.Encode(kind)); err != nil {
			return err
		}
		if p.Offset += int64(n); p.Offset == p.Size {
			break
		}
	}
	if Sum(h.Sum(nil)) != p.Sum {
		return fmt.Errorf("bundle: content is not %s: %w", DigestOf(p.Sum), ErrDamaged)
	}
	return nil
}
