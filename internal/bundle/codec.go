package bundle

import (
	"bytes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"io"

	"filippo.io/age"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/crypto/chacha20poly1305"
)

// newPacker returns a compressor; slow for what crosses a slow link.
func newPacker() (*zstd.Encoder, error) {
	return zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false))
}

// newUnpacker returns a decompressor that makes no more than it is told to.
func newUnpacker() (*zstd.Decoder, error) {
	return zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(MaxBody), zstd.WithDecoderMaxWindow(32<<20), zstd.WithDecodeAllCapLimit(true))
}

// pack compresses and seals a payload; the result may be raw itself.
func pack(z *zstd.Encoder, seal cipher.AEAD, kind Kind, number uint32, raw []byte) (packed []byte, flags uint8) {
	packed = z.EncodeAll(raw, nil)
	if flags = flagZstd; len(packed) >= len(raw) {
		packed, flags = raw, 0
	}
	if seal != nil {
		packed = seal.Seal(nil, nonce(number), packed, []byte{byte(kind)})
		flags |= flagSealed
	}
	return packed, flags
}

// unpack takes back what pack did.
func unpack(z *zstd.Decoder, seal cipher.AEAD, h *header, packed []byte) (raw []byte, err error) {
	if h.flags&^(flagZstd|flagSealed) != 0 {
		return nil, damaged("record %d has flags %#x, which this version doesn't know", h.number, h.flags)
	}
	if h.flags&flagSealed != 0 {
		if seal == nil {
			return nil, fmt.Errorf("record %d: %w", h.number, ErrSealed)
		}
		if packed, err = seal.Open(nil, nonce(h.number), packed, []byte{byte(h.kind)}); err != nil {
			return nil, damaged("record %d can't be opened: %w", h.number, err)
		}
	}
	raw = packed
	if h.flags&flagZstd != 0 {
		if raw, err = z.DecodeAll(packed, make([]byte, 0, h.raw)); err != nil {
			return nil, damaged("record %d: %w", h.number, err)
		}
	}
	if len(raw) != int(h.raw) {
		return nil, damaged("record %d unpacks to %d bytes, want %d", h.number, len(raw), h.raw)
	}
	return raw, nil
}

func nonce(number uint32) []byte {
	return le.AppendUint32(make([]byte, 0, chacha20poly1305.NonceSize), number)[:chacha20poly1305.NonceSize]
}

// newSeal makes a key, and an age file that holds it for recipients.
func newSeal(recipients []age.Recipient) (seal cipher.AEAD, file []byte, err error) {
	key := make([]byte, chacha20poly1305.KeySize)
	if _, err := rand.Read(key); err != nil {
		return nil, nil, err
	}
	var out bytes.Buffer
	w, err := age.Encrypt(&out, recipients...)
	if err == nil {
		_, err = w.Write(key)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return nil, nil, err
	}
	seal, err = chacha20poly1305.New(key)
	return seal, out.Bytes(), err
}

// openSeal takes the key out of an age file.
func openSeal(file []byte, identities []age.Identity) (cipher.AEAD, error) {
	if len(identities) == 0 {
		return nil, fmt.Errorf("%w: give the identity that it is encrypted to", ErrSealed)
	}
	r, err := age.Decrypt(bytes.NewReader(file), identities...)
	if none := (*age.NoIdentityMatchError)(nil); errors.As(err, &none) {
		return nil, fmt.Errorf("%w: to none of the identities that were given", ErrSealed)
	}
	if err != nil {
		return nil, damaged("its key: %w", err)
	}
	key, err := io.ReadAll(io.LimitReader(r, chacha20poly1305.KeySize+1))
	if err != nil || len(key) != chacha20poly1305.KeySize {
		return nil, damaged("its key has %d bytes: %w", len(key), err)
	}
	return chacha20poly1305.New(key)
}
