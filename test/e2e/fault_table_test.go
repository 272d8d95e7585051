package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	"github.com/airstream-io/airstream/internal/annotation"
	"github.com/airstream-io/airstream/test/rig/site"
)

// entries are those of a table of contents.
type entries []map[string]any

// Somebody has pushed an image whose table of contents was made to do harm. The
// manifest vouches for it, so nothing is wrong on the way. It does not start,
// whoever tries is told soon, and nobody else notices.
func TestFaultHostileTable(t *testing.T) {
	sc := newScene(t, site.Options{})
	sc.probe(t)
	base := newTarget(t, "hostile-table", targetSize)
	file := func(name string) map[string]any {
		return map[string]any{"name": name, "type": "reg", "size": 0, "mode": 0o644}
	}
	hard := func(name, target string) map[string]any {
		return map[string]any{"name": name, "type": "hardlink", "linkName": target}
	}
	for _, tc := range []struct {
		name    string
		entries func(good entries) entries
	}{
		{"path-traversal", func(e entries) entries { return append(e, file("../../../../../../etc/evil")) }},
		{"path-traversal-within", func(e entries) entries { return append(e, file("data/../../evil")) }},
		{"hardlink-cycle", func(e entries) entries { return append(e, hard("x", "y"), hard("y", "x")) }},
		{"hardlink-to-its-parent", func(e entries) entries { return append(e, hard("data/a/up", "data")) }},
		{"hardlink-out", func(e entries) entries { return append(e, hard("out", "../../etc/passwd")) }},
		{"file-as-directory", func(e entries) entries { return append(e, file("bin/check/below")) }},
		{"overlapping-chunks", func(e entries) entries { return e.eachChunk(func(c map[string]any) { c["chunkOffset"] = 4096 }) }},
		{"absent-chunks", func(e entries) entries {
			return slices.DeleteFunc(e, func(c map[string]any) bool { return c["type"] == "chunk" })
		}},
		{"chunks-behind-the-blob", func(e entries) entries { return e.eachChunk(func(c map[string]any) { c["offset"] = int64(1) << 40 }) }},
		{"negative-offsets", func(e entries) entries { return e.eachChunk(func(c map[string]any) { c["offset"] = -1 }) }},
		{"huge-chunk", func(e entries) entries {
			return append(e, map[string]any{"name": "huge", "type": "reg", "size": int64(1) << 60, "mode": 0o644, "offset": 0, "chunkDigest": digest.FromString("").String()})
		}},
		{"huge-name", func(e entries) entries { return append(e, file(strings.Repeat("n", 300))) }},
		{"huge-depth", func(e entries) entries { return append(e, file(strings.Repeat("d/", 2000))) }},
	} {
		t.Run(tc.name, func(t *testing.T) { sc.refuses(t, base, tc.name, tc.entries) })
	}
}

// A table with more entries than any real layer has must not fill the node's
// memory, whether it is refused or not.
func TestFaultHostileTableWithHugeCounts(t *testing.T) {
	sc := newScene(t, site.Options{})
	sc.probe(t)
	const many = 2_200_000
	sc.refuses(t, newTarget(t, "hostile-table", targetSize), "huge-counts", func(e entries) entries {
		one := map[string]any{"name": "f"} // writeEntries numbers them
		return append(e, slices.Repeat(entries{one}, many)...)
	})
}

// refuses fails unless an image with such a table is refused, soon, and without
// harm to anybody else.
func (sc *scene) refuses(t *testing.T, base *target, name string, change func(entries) entries) {
	t.Helper()
	img, err := hostile(base.img, change)
	must(t, err)
	tag := base.name + ":" + name
	_, err = shore.reg.Push(t.Context(), tag, img)
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	pid, measure, began := sc.DaemonPID(), sc.prober.begin(t), time.Now()
	_, err = sc.cri.PullImage(ctx, sc.Ref(tag), nil)
	if err == nil {
		var c *checking
		if c, err = sc.run(ctx, sc.Ref(tag), base); err == nil {
			must(t, c.end(ctx))
			t.Fatal("it starts")
		}
	}
	if ctx.Err() != nil {
		t.Errorf("nobody is told that it is not valid: %v", err)
	}
	t.Logf("refused after %v: %v", time.Since(began).Round(time.Millisecond), err)
	if pid != sc.DaemonPID() {
		t.Error("the daemon is another one than before")
	}
	time.Sleep(time.Until(began.Add(1500 * time.Millisecond))) // for enough to measure
	measure.check(t)
	sc.checkMemory(t)
}

// eachChunk changes the entries that say where bytes are, but the first of each
// file.
func (e entries) eachChunk(f func(c map[string]any)) entries {
	for _, c := range e {
		if c["type"] == "chunk" {
			f(c)
		}
	}
	return e
}

// hostile replaces the table of an image's only layer.
func hostile(img v1.Image, change func(entries) entries) (v1.Image, error) {
	manifest, err := img.Manifest()
	if err != nil {
		return nil, err
	}
	desc := manifest.Layers[0]
	offset, err := strconv.ParseInt(desc.Annotations[annotation.TOCOffset], 10, 64)
	if err != nil {
		return nil, err
	}
	layer, err := img.LayerByDigest(desc.Digest)
	if err != nil {
		return nil, err
	}
	rc, err := layer.Compressed()
	if err != nil {
		return nil, err
	}
	blob, err := io.ReadAll(rc)
	if err = errors.Join(err, rc.Close()); err != nil {
		return nil, err
	}
	good, err := readEntries(blob[offset:])
	if err != nil {
		return nil, err
	}
	var table bytes.Buffer
	if err := writeEntries(&table, change(good)); err != nil {
		return nil, err
	}
	blob, err = withTable(blob[:offset], table.Bytes())
	if err != nil {
		return nil, err
	}
	bad, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(blob)), nil },
		tarball.WithMediaType(types.OCILayer), tarball.WithCompressedCaching)
	if err != nil {
		return nil, err
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.RootFS.DiffIDs, file.History = nil, nil
	bare, err := mutate.ConfigFile(mutate.MediaType(empty.Image, types.OCIManifestSchema1), file)
	if err != nil {
		return nil, err
	}
	return mutate.Append(bare, mutate.Addendum{Layer: bad, Annotations: map[string]string{
		annotation.TOCDigest: digest.FromBytes(table.Bytes()).String(),
		annotation.TOCOffset: strconv.FormatInt(offset, 10),
	}})
}

func readEntries(b []byte) (entries, error) {
	zr, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	tr := tar.NewReader(zr)
	if _, err := tr.Next(); err != nil {
		return nil, err
	}
	var toc struct {
		Entries entries `json:"entries"`
	}
	return toc.Entries, json.NewDecoder(tr).Decode(&toc)
}

// writeEntries writes a table. Entries named "f" get a number, so that many of
// them needn't be held.
func writeEntries(w *bytes.Buffer, e entries) error {
	w.WriteString(`{"version":1,"entries":[`)
	for i, one := range e {
		if i > 0 {
			w.WriteByte(',')
		}
		if one["name"] == "f" {
			fmt.Fprintf(w, `{"name":"many/%d/%d","type":"reg","mode":420}`, i%1000, i)
			continue
		}
		b, err := json.Marshal(one)
		if err != nil {
			return err
		}
		w.Write(b)
	}
	w.WriteString(`]}`)
	return nil
}

// withTable appends a table and the footer of eStargz, as the format's
// description has them.
func withTable(payload, table []byte) ([]byte, error) {
	var out bytes.Buffer
	out.Write(payload)
	zw, err := gzip.NewWriterLevel(&out, gzip.BestSpeed)
	if err != nil {
		return nil, err
	}
	tw := tar.NewWriter(zw)
	err = tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "stargz.index.json", Size: int64(len(table)), Mode: 0o444})
	if err == nil {
		_, err = tw.Write(table)
	}
	if err = errors.Join(err, tw.Close(), zw.Close()); err != nil {
		return nil, err
	}
	foot, err := gzip.NewWriterLevel(&out, gzip.NoCompression)
	if err != nil {
		return nil, err
	}
	foot.Extra = append([]byte{'S', 'G', 22, 0}, fmt.Sprintf("%016xSTARGZ", len(payload))...)
	if err := foot.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}
