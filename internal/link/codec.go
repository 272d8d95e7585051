package link

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/airstream-io/airstream/internal/link/wire"
)

// baseID is the number of dictionaries in frames; it says nothing, but has to
// be there.
const baseID = 1

// minGain is how many bytes a codec has to save to be used: its cost at the
// receiver is worth that. A guess.
const minGain = 16

// encoder is shared: EncodeAll may be called concurrently, and each call uses one
// of its states, one for each core. The level is the slowest, 5 to 8 MB/s of
// content a core: of programs it makes 5% less than the next one, and 3% less
// than the gzip of layers.
var encoder = sync.OnceValue(func() *zstd.Encoder {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(runtime.GOMAXPROCS(0)), zstd.WithEncoderLevel(zstd.SpeedBestCompression),
		zstd.WithWindowSize(1<<20), zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true))
	if err != nil {
		panic(err) // the options are constants
	}
	return e
})

// Encode returns content as it crosses, in a buffer of its own. The same content
// has the same bytes in every process of one version, which resuming within a
// record relies on; if they differ all the same, the content's hash shows it.
func Encode(content []byte) (wire.Codec, []byte) {
	out := encoder().EncodeAll(content, make([]byte, 0, len(content)/2+64))
	if len(out)+minGain > len(content) {
		return wire.Codec_CODEC_PLAIN, bytes.Clone(content)
	}
	return wire.Codec_CODEC_ZSTD, out
}

// EncodeWith returns content as it crosses to a node that has base. If that is
// no smaller than what Encode returns, it is that.
func EncodeWith(content, base []byte) (wire.Codec, []byte) {
	codec, best := Encode(content)
	// An encoder is made for each base. The default level makes smaller tables for
	// that, and loses little: the base is what saves.
	e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithLowerEncoderMem(true),
		zstd.WithWindowSize(512<<10), zstd.WithEncoderCRC(false), zstd.WithEncoderDictRaw(baseID, base))
	if err != nil {
		return codec, best // too short to be one
	}
	out := e.EncodeAll(content, make([]byte, 0, len(content)/2+64))
	if len(out)+64 > len(best) { // naming the base takes 50
		return codec, best
	}
	return wire.Codec_CODEC_ZSTD_BASE, out
}

// decode undoes Encode. length is what it must come to; base is the content that
// CODEC_ZSTD_BASE needs. Nothing longer is ever held.
func decode(codec wire.Codec, payload []byte, length uint64, base []byte) ([]byte, error) {
	switch codec {
	case wire.Codec_CODEC_PLAIN:
		if uint64(len(payload)) != length {
			return nil, fmt.Errorf("%d bytes, not %d", len(payload), length)
		}
		return payload, nil
	case wire.Codec_CODEC_ZSTD, wire.Codec_CODEC_ZSTD_BASE:
	default:
		return nil, fmt.Errorf("unknown codec %d", codec)
	}
	d, ok := decoders.Get().(*zstd.Decoder)
	if codec == wire.Codec_CODEC_ZSTD_BASE {
		var err error
		if d, err = newDecoder(zstd.WithDecoderDictRaw(baseID, base)); err != nil {
			return nil, err
		}
		ok = false
		defer d.Close()
	}
	if d == nil {
		return nil, errors.New("no decoder")
	}
	if ok {
		defer decoders.Put(d)
	}
	if err := d.Reset(bytes.NewReader(payload)); err != nil {
		return nil, err
	}
	// The length is the sender's word: room is made as content really comes.
	var out bytes.Buffer
	out.Grow(int(min(length, 1<<20)))
	n, err := io.Copy(&out, io.LimitReader(d, int64(length)+1)) //nolint:gosec // bounded by the caller
	if err != nil {
		return nil, err
	}
	if uint64(n) != length { //nolint:gosec // not negative
		return nil, fmt.Errorf("it decodes to %d bytes or more, not %d", n, length)
	}
	return out.Bytes(), nil
}

var decoders = sync.Pool{New: func() any {
	d, err := newDecoder()
	if err != nil {
		return (*zstd.Decoder)(nil)
	}
	return d
}}

func newDecoder(opts ...zstd.DOption) (*zstd.Decoder, error) {
	return zstd.NewReader(nil, append(opts, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(8<<20), zstd.IgnoreChecksum(true))...)
}
