package convert_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/airstream-io/airstream/convert"
	"github.com/airstream-io/airstream/convert/location"
	"github.com/airstream-io/airstream/internal/trace"
)

// With AIRSTREAM_SOAK=1, the artifacts of the images that the rig has in its cache
// say what the layers say, and their hot blobs hold what their starts read, as far
// as the rig has recorded that.
func TestArtifactsOfRealImages(t *testing.T) {
	if os.Getenv("AIRSTREAM_SOAK") == "" {
		t.Skip("AIRSTREAM_SOAK is not set: converts some real images")
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Skip(err)
	}
	found, err := filepath.Glob(filepath.Join(cache, "airstream", "images", "*", "oci"))
	if err != nil || len(found) == 0 {
		t.Skip("the rig has built no image")
	}
	for _, dir := range found {
		name := filepath.Base(filepath.Dir(dir))
		t.Run(name, func(t *testing.T) {
			l, err := location.Parse("oci:"+dir, location.Options{})
			if err != nil {
				t.Fatal(err)
			}
			src, err := l.OpenSource(t.Context(), location.Options{}, t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			defer src.Close() //nolint:errcheck // only read from
			o := convert.Options{WorkDir: t.TempDir()}
			if f, err := os.Open(filepath.Join(cache, "airstream", "starts", "traces", name+".trace")); err == nil {
				tr, err := trace.Decode(f)
				if err := f.Close(); err != nil {
					t.Fatal(err)
				}
				if err != nil {
					t.Fatal(err)
				}
				o.Traces = append(o.Traces, tr)
			}
			dst := newMemory()
			r, err := convert.Run(t.Context(), src, dst, dst, o)
			if err != nil {
				t.Fatal(err)
			}
			m := r.Manifests[0]
			chunks := checkArtifact(t, dst, m)
			var tables int64
			entries := 0
			mf, _ := manifestOf(t, dst, m.New)
			for i, l := range m.Layers {
				tables += l.NewSize - l.TOCOffset
				entries += treeOf(t, dst, mf.Layers[i], l.TOCOffset).Len()
			}
			t.Logf("%s: %d entries; tables %d bytes, root %d, all of the TOC %d; %d hot chunks, %d bytes of the layers, %d of the hot blob",
				strings.SplitN(name, "-", 2)[0], entries, tables, m.Artifact.Root, m.Artifact.TOC, chunks, m.Hot, m.Artifact.Hot)
		})
	}
}
