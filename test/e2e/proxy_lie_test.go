package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/airstream-io/airstream/internal/toc"
	"github.com/airstream-io/airstream/test/rig/link"
)

// plain returns a target as it is on shore, unconverted, and its only layer's tar.
func (tg *target) plain(t *testing.T) (img v1.Image, layer v1.Layer, tar []byte) {
	t.Helper()
	ref, err := name.ParseReference(shore.reg.Host() + "/" + tg.name + ":plain")
	must(t, err)
	img, err = remote.Image(ref, remote.WithContext(t.Context()))
	must(t, err)
	layers, err := img.Layers()
	must(t, err)
	rc, err := layers[0].Uncompressed()
	must(t, err)
	defer rc.Close() //nolint:errcheck // it was read to its end
	tar, err = io.ReadAll(rc)
	must(t, err)
	return img, layers[0], tar
}

// lie has the proxy, which is stopped, say that a layer has another tar than it has.
// The cache is described in proxy/outline.go.
func (sc *scene) lie(t *testing.T, layer v1.Layer, tar []byte) {
	t.Helper()
	blob, err := layer.Digest()
	must(t, err)
	diffID, err := layer.DiffID()
	must(t, err)
	var out bytes.Buffer
	size, err := toc.WriteOutline(&out, bytes.NewReader(tar))
	must(t, err)
	body := sha256.Sum256(out.Bytes())
	head, err := hex.DecodeString(diffID.Hex)
	must(t, err)
	head = binary.BigEndian.AppendUint64(append(head, body[:]...), uint64(size))
	sum := sha256.Sum256(head)
	write := func(b []byte, elem ...string) {
		file := filepath.Join(append([]string{sc.ProxyCache()}, elem...)...)
		must(t, os.MkdirAll(filepath.Dir(file), 0o700))
		must(t, os.WriteFile(file, b, 0o600))
	}
	write(append(sum[:], head...), "outline", blob.Hex, "head")
	write(out.Bytes(), "outline", blob.Hex, "body")
	for i := 0; len(tar) > 0; i++ {
		k := min(len(tar), 1<<20)
		write(tar[:k], "tar", blob.Hex, strconv.Itoa(i))
		tar = tar[k:]
	}
}

// A proxy lies about what is in a layer that was never converted: a program of it has
// become one that runs as root. That comes out when the layer is here whole. Then nobody
// is served anything of it any more, whoever asks is told which layer of which image and
// what to do, and no other image notices. With an honest proxy it starts again.
func TestAProxyThatLiesOfAnImageIsFoundOut(t *testing.T) {
	sc := proxied(t, link.Direct(), proxyOnly)
	sc.probe(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	tg := newTarget(t, "proxy-lies", 2<<20)
	_, layer, tar := tg.plain(t)
	blob, err := layer.Digest()
	must(t, err)
	evil := bytes.Replace(tar, []byte("0000755\x00"), []byte("0004755\x00"), 1)
	if bytes.Equal(evil, tar) {
		t.Fatal("nothing was changed")
	}
	evil = withChecksum(t, evil)
	must(t, sc.StopProxy(ctx))
	sc.lie(t, layer, evil)
	must(t, sc.StartProxy(ctx))
	sc.wantProxy(t)

	ref := sc.Ref(tg.name + ":plain")
	_, err = sc.cri.PullImage(ctx, ref, nil)
	must(t, err)
	measure := sc.prober.begin(t)
	c, err := sc.run(ctx, ref, tg)
	must(t, err)
	must(t, c.readAll(ctx, time.Minute)) // its content is right, and it is believed
	must(t, c.end(ctx))
	_, err = sc.Run(ctx, "prefetch", ref)
	wantQuarantine(t, "prefetch", err, ref, blob.String())
	out, err := sc.Run(ctx, "status")
	must(t, err)
	if !strings.Contains(out, "quarantine: layer "+blob.Hex[:12]) {
		t.Errorf("status:\n%s", out)
	}
	wantLog(t, sc.Site, "is not what its image says", blob.String(), ref)
	if c, err := sc.run(ctx, ref, tg); err == nil {
		must(t, c.end(ctx))
		t.Error("it starts")
	} else {
		wantQuarantine(t, "a start", err, ref, blob.String())
	}
	measure.check(t)

	must(t, sc.StopProxy(ctx))
	must(t, os.RemoveAll(sc.ProxyCache()))
	must(t, sc.StartProxy(ctx))
	sc.wantProxy(t)
	must(t, sc.cri.RemoveImage(ctx, ref))
	_, err = sc.Run(ctx, "rm", ref)
	must(t, err)
	_, err = sc.cri.PullImage(ctx, ref, nil)
	must(t, err)
	c, err = sc.run(ctx, ref, tg)
	must(t, err)
	must(t, c.readAll(ctx, time.Minute))
	_, err = sc.Run(ctx, "prefetch", ref)
	must(t, err)
	must(t, c.end(ctx))
	wantLog(t, sc.Site, "is whole, and what its image says")
}

// wantQuarantine fails unless an error says which layer of which image is in
// quarantine, and what to do.
func wantQuarantine(t *testing.T, what string, err error, ref, layer string) {
	t.Helper()
	if err == nil {
		t.Errorf("%s of an image that is not what it says", what)
		return
	}
	for _, want := range []string{"quarantine", "image " + ref, "layer " + layer, "airstream rm " + ref, "pull it again"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%s doesn't say %q:\n%v", what, want, err)
		}
	}
}

// withChecksum corrects the checksum of a tar's first header with a mode of 4755.
func withChecksum(t *testing.T, tar []byte) []byte {
	t.Helper()
	at := bytes.Index(tar, []byte("0004755\x00"))
	if at < 100 {
		t.Fatal("no such header")
	}
	h := tar[at-100:][:512]
	copy(h[148:156], "        ")
	sum := 0
	for _, b := range h {
		sum += int(b)
	}
	copy(h[148:156], []byte(strconv.FormatInt(int64(1<<18+sum), 8)[1:]+"\x00 "))
	return tar
}
