package catalog

import (
	"encoding/json"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/airstream-io/airstream/internal/artifact"
)

func TestImageRemembersItsArtifact(t *testing.T) {
	want := artifact.Ref{TOC: artifact.BlobOf([]byte("toc")), Root: artifact.BlobOf([]byte("t")), Hot: artifact.BlobOf([]byte("hot"))}
	for name, change := range map[string]func(map[string]string){
		"named":   func(map[string]string) {},
		"damaged": func(a map[string]string) { a["io.airstream.artifact.root-size"] = "many" },
	} {
		t.Run(name, func(t *testing.T) {
			raw, cfg := image(t, layer{"a", "ta", "ba"})
			var m ocispec.Manifest
			if err := json.Unmarshal(raw, &m); err != nil {
				t.Fatal(err)
			}
			m.Annotations = want.Annotations()
			change(m.Annotations)
			c := open(t, filepath.Join(t.TempDir(), "catalog.db"))
			learned, err := c.Learn(src, "registry.example/app:1", ocispec.MediaTypeImageManifest, marshal(t, m), cfg)
			if err != nil {
				t.Fatal(err)
			}
			got, err := c.Image(learned.Manifest)
			if err != nil {
				t.Fatal(err)
			}
			if name == "damaged" {
				if got.Artifact != nil {
					t.Errorf("%+v was taken", got.Artifact)
				}
				return
			}
			if diff := cmp.Diff(&want, got.Artifact); diff != "" {
				t.Error(diff)
			}
		})
	}
}
