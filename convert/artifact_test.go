package convert_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/airstream-io/airstream/convert"
	"github.com/airstream-io/airstream/convert/layer"
	"github.com/airstream-io/airstream/internal/annotation"
	"github.com/airstream-io/airstream/internal/artifact"
	"github.com/airstream-io/airstream/internal/toc"
	"github.com/airstream-io/airstream/internal/trace"
)

// refOf returns what a manifest says of its artifact.
func refOf(t *testing.T, m *memory, h v1.Hash) (artifact.Ref, bool) {
	t.Helper()
	mf, _ := manifestOf(t, m, h)
	return artifact.ParseRef(mf.Annotations)
}

// blobOf returns a blob of an artifact.
func blobOf(t *testing.T, m *memory, b artifact.Blob) []byte {
	t.Helper()
	h, err := v1.NewHash(b.Digest)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := m.get(h)
	if err != nil {
		t.Fatal(err)
	}
	if int64(len(raw)) != b.Size {
		t.Fatalf("%d bytes, want %d", len(raw), b.Size)
	}
	return raw
}

// treeOf returns what a layer's own table says.
func treeOf(t *testing.T, m *memory, d v1.Descriptor, limit int64) *toc.Tree {
	t.Helper()
	z, err := layer.Decompress(bytes.NewReader(m.blobs[d.Digest][limit:]))
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close() //nolint:errcheck // a reader
	tree, err := parseTar(z, limit)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

// checkArtifact reads an image's artifact as a node does and compares it with the
// layers.
func checkArtifact(t *testing.T, m *memory, was convert.Mapping) (hot int) {
	t.Helper()
	ref, ok := refOf(t, m, was.New)
	if !ok || was.Artifact == nil {
		t.Fatal("the manifest names no artifact")
	}
	raw, err := m.get(was.Artifact.Digest)
	if err != nil {
		t.Fatal(err)
	}
	var am struct {
		ArtifactType string
		Layers       []v1.Descriptor
		Subject      v1.Descriptor
	}
	if err := json.Unmarshal(raw, &am); err != nil {
		t.Fatal(err)
	}
	if am.ArtifactType != artifact.MediaType || am.Subject.Digest != was.New || am.Layers[0].Digest.String() != ref.TOC.Digest {
		t.Errorf("artifact manifest %s", raw)
	}
	blob := blobOf(t, m, ref.TOC)
	if err := ref.Root.Verify(blob[:ref.Root.Size]); err != nil {
		t.Fatal(err)
	}
	root, err := artifact.ParseRoot(blob[:ref.Root.Size])
	if err != nil {
		t.Fatal(err)
	}
	pages := root.NewPages()
	for n := range root.NumPages() {
		offset, size := root.Page(n)
		if err := pages.Add(n, blob[offset:offset+size]); err != nil {
			t.Fatal(err)
		}
	}
	mf, _ := manifestOf(t, m, was.New)
	trees := make([]*toc.Tree, len(mf.Layers))
	for i, d := range mf.Layers {
		want := treeOf(t, m, d, was.Layers[i].TOCOffset)
		if trees[i], err = root.Tree(i, was.Layers[i].TOCOffset, pages); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(trees[i].Bytes(), want.Bytes()) {
			t.Errorf("layer %d: the artifact has another tree", i)
		}
	}
	if ref.Hot == (artifact.Blob{}) {
		if root.Hot() != nil || len(am.Layers) != 1 {
			t.Error("a hot set without a blob")
		}
		return 0
	}
	if len(am.Layers) != 2 || am.Layers[1].Digest.String() != ref.Hot.Digest {
		t.Errorf("artifact manifest %s", raw)
	}
	o, err := artifact.NewOpener()
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	packed := blobOf(t, m, ref.Hot)
	for _, f := range root.Hot().Frames() {
		content, err := o.Open(f, packed[f.Offset:f.Offset+f.Size])
		if err != nil {
			t.Fatal(err)
		}
		for _, run := range f.Chunks {
			for c := range run.Count {
				k := trees[run.Layer].Chunk(run.First + c)
				if err := k.ID.Verify(content[:k.Size]); err != nil {
					t.Fatal(err)
				}
				content = content[k.Size:]
				hot++
			}
		}
	}
	return hot
}

func TestArtifact(t *testing.T) {
	src, dst := newMemory(), newMemory()
	addIndex(t, src)
	tr := traceOf(t, 2, "0:dir2/file2", "1:dir0/file3")
	for name, o := range map[string]convert.Options{
		"without a trace": {},
		"with one":        {Traces: []*trace.Trace{tr}},
		"grouped":         {Traces: []*trace.Trace{tr}, Layer: layer.Options{GroupSize: 16 << 10}},
	} {
		t.Run(name, func(t *testing.T) {
			r := run(t, src, dst, o)
			for _, m := range r.Manifests {
				if len(m.Layers) == 0 {
					continue // an attestation
				}
				if hot := checkArtifact(t, dst, m); hot > 0 != (len(o.Traces) > 0) {
					t.Errorf("%d hot chunks", hot)
				}
			}
		})
	}
}

func TestArtifactIsMadeOnce(t *testing.T) {
	src, dst, records := newMemory(), newMemory(), t.TempDir()
	addPlain(t, src)
	o := convert.Options{Traces: []*trace.Trace{traceOf(t, 2, "1:dir2/file5")}, Records: records}
	first := run(t, src, dst, o)
	puts := dst.puts
	for _, o := range []convert.Options{o, {Traces: o.Traces}, {Traces: o.Traces, Rebuild: true}} {
		if r := run(t, src, dst, o); r.New != first.New || *r.Manifests[0].Artifact != *first.Manifests[0].Artifact {
			t.Errorf("again: %s, artifact %+v; want %s, %+v", r.New, r.Manifests[0].Artifact, first.New, first.Manifests[0].Artifact)
		}
	}
	if dst.puts != puts {
		t.Errorf("%d blobs were sent again", dst.puts-puts)
	}
	// On record and gone from the destination, it is made and sent again.
	gone := dst.clone()
	ref, _ := refOf(t, dst, first.New)
	h, err := v1.NewHash(ref.TOC.Digest)
	if err != nil {
		t.Fatal(err)
	}
	delete(gone.blobs, h)
	if r := run(t, src, gone, o); r.New != first.New {
		t.Errorf("%s, want %s", r.New, first.New)
	}
	checkArtifact(t, gone, first.Manifests[0])
}

func TestWithoutArtifact(t *testing.T) {
	src := newMemory()
	addPlain(t, src)
	with, without := newMemory(), newMemory()
	r := run(t, src, with, convert.Options{})
	want := run(t, src, without, convert.Options{WithoutArtifact: true})
	if _, ok := refOf(t, without, want.New); ok || want.Manifests[0].Artifact != nil {
		t.Error("there is an artifact")
	}
	// What an earlier conversion said of one doesn't stay.
	again := newMemory()
	got := run(t, with, again, convert.Options{WithoutArtifact: true})
	if strings.Contains(string(again.blobs[got.New]), "io.airstream.artifact") {
		t.Error("the manifest names the artifact of the image that it was made of")
	}
	// And what it says stays where nothing changes.
	if back := run(t, with, newMemory(), convert.Options{}); back.New != r.New || !back.Manifests[0].Unchanged {
		t.Errorf("converted again: %s, want %s", back.New, r.New)
	}
}

func TestTraceChangesTheArtifactAndNoLayer(t *testing.T) {
	src, dst := newMemory(), newMemory()
	addPlain(t, src)
	one := run(t, src, dst, convert.Options{Traces: []*trace.Trace{traceOf(t, 2, "1:dir2/file5")}})
	other := run(t, src, dst, convert.Options{Traces: []*trace.Trace{traceOf(t, 2, "1:dir0/file0", "1:dir2/file5")}})
	a, _ := refOf(t, dst, one.New)
	b, _ := refOf(t, dst, other.New)
	if a == b || a.Hot == b.Hot {
		t.Error("both have the same artifact")
	}
	mf, _ := manifestOf(t, dst, other.New)
	if mf.Annotations[annotation.ArtifactHot] != b.Hot.Digest {
		t.Error("the manifest names another hot set")
	}
}

// parseTar reads a table of contents, which is the last entry of a tar.
func parseTar(r io.Reader, limit int64) (*toc.Tree, error) {
	file := tar.NewReader(r)
	if _, err := file.Next(); err != nil {
		return nil, err
	}
	return toc.Parse(file, limit)
}
