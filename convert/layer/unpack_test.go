package layer_test

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/airstream-io/airstream/convert/layer"
)

func TestDecompress(t *testing.T) {
	want := makeTar(t, nasty())
	var gz, zs bytes.Buffer
	g := gzip.NewWriter(&gz)
	_, _ = g.Write(want)
	_ = g.Close()
	z, _ := zstd.NewWriter(&zs)
	_, _ = z.Write(want)
	_ = z.Close()
	read := func(b []byte) ([]byte, error) {
		r, err := layer.Decompress(bytes.NewReader(b))
		if err != nil {
			return nil, err
		}
		defer r.Close() //nolint:errcheck // a reader
		return io.ReadAll(r)
	}
	for name, b := range map[string][]byte{"gzip": gz.Bytes(), "zstd": zs.Bytes(), "plain": want} {
		if got, err := read(b); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
		if name == "plain" {
			continue
		}
		for _, cut := range []int{10, len(b) / 2, len(b) - 1} {
			if _, err := read(b[:cut]); !errors.Is(err, layer.ErrInvalid) {
				t.Errorf("%s cut to %d bytes: got %v, want ErrInvalid", name, cut, err)
			}
		}
	}
}
