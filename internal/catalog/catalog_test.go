package catalog

import (
	"encoding/json"
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/goleak"

	"github.com/airstream-io/airstream/internal/annotation"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T, name string) *Catalog {
	t.Helper()
	c, err := Open(name, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// layer describes a test layer; toc "" makes it one that is not lazy.
type layer struct{ diff, toc, blob string }

func image(t *testing.T, layers ...layer) (manifest, config []byte) {
	t.Helper()
	var cfg ocispec.Image
	cfg.OS, cfg.Architecture = "linux", "amd64"
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest}
	for _, l := range layers {
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, digest.FromString(l.diff))
		desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromString(l.blob), Size: 1000}
		if l.toc != "" {
			desc.Annotations = map[string]string{annotation.TOCDigest: digest.FromString(l.toc).String(), annotation.TOCOffset: "900"}
		}
		m.Layers = append(m.Layers, desc)
	}
	config = marshal(t, cfg)
	m.Config = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(config), Size: int64(len(config))}
	return marshal(t, m), config
}

func marshal(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var src = Source{Host: "registry.example", Repo: "app"}

func learn(t *testing.T, c *Catalog, src Source, layers ...layer) (Image, error) {
	t.Helper()
	m, cfg := image(t, layers...)
	return c.Learn(src, "registry.example/app:1", ocispec.MediaTypeImageManifest, m, cfg)
}

func TestChainsLeadToSlotsAlsoAfterReopening(t *testing.T) {
	name := filepath.Join(t.TempDir(), "catalog.db")
	c, err := Open(name, nil)
	if err != nil {
		t.Fatal(err)
	}
	img, err := learn(t, c, src, layer{"a", "ta", "ba"}, layer{"b", "", "bb"}, layer{"c", "tc", "bc"})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	c = open(t, name)
	chains := identity.ChainIDs([]digest.Digest{digest.FromString("a"), digest.FromString("b"), digest.FromString("c")})
	for i, wantSlot := range []uint32{1, 0, 2} {
		l, err := c.Chain(chains[i])
		if err != nil || l.Slot != wantSlot || (l.Reason == "") != (wantSlot > 0) {
			t.Errorf("chain %d: slot %d, reason %q, %v; want slot %d", i, l.Slot, l.Reason, err, wantSlot)
		}
	}
	got, err := c.Layer(2)
	want := Layer{Slot: 2, TOC: digest.FromString("tc"), TOCOffset: 900, Blob: digest.FromString("bc"), Size: 1000, Sources: []Source{src}}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
	again, err := c.Image(img.Manifest)
	if diff := cmp.Diff(img, again); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
	if img.Platform != "linux/amd64" || img.Size() != 3000 {
		t.Errorf("%+v", img)
	}
	if _, err := c.Chain(digest.FromString("unknown")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("unknown chain: %v", err)
	}
}

func TestSharedLayersShareASlotAndGainSources(t *testing.T) {
	c := open(t, filepath.Join(t.TempDir(), "catalog.db"))
	if _, err := learn(t, c, src, layer{"a", "ta", "ba"}, layer{"b", "tb", "bb"}); err != nil {
		t.Fatal(err)
	}
	other := Source{Host: "mirror.example", Repo: "other"}
	img, err := learn(t, c, other, layer{"z", "tz", "bz"}, layer{"a", "ta", "ba"})
	if err != nil {
		t.Fatal(err)
	}
	if img.Layers[0].Slot != 3 || img.Layers[1].Slot != 1 {
		t.Errorf("slots %d, %d; want 3, 1", img.Layers[0].Slot, img.Layers[1].Slot)
	}
	l, err := c.Layer(1)
	if diff := cmp.Diff([]Source{other, src}, l.Sources); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
}

func TestImagesThatDisagreeAreRefused(t *testing.T) {
	for name, second := range map[string]layer{
		"another table for the same content": {"a", "evil", "bevil"},
		"no table for the same content":      {"a", "", "ba"},
		"another blob for the same table":    {"a", "ta", "bevil"},
	} {
		t.Run(name, func(t *testing.T) {
			c := open(t, filepath.Join(t.TempDir(), "catalog.db"))
			first, err := learn(t, c, src, layer{"a", "ta", "ba"})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := learn(t, c, src, second); !errors.Is(err, ErrConflict) {
				t.Fatalf("got %v, want ErrConflict", err)
			}
			l, err := c.Chain(first.Layers[0].ChainID)
			if err != nil || l.Slot != 1 {
				t.Errorf("the first image lost its layer: %+v, %v", l, err)
			}
			if all, err := c.Images(); err != nil || len(all) != 1 {
				t.Errorf("%d images, %v; want 1", len(all), err)
			}
		})
	}
}

func TestWhatIsNoImageIsRefused(t *testing.T) {
	c := open(t, filepath.Join(t.TempDir(), "catalog.db"))
	m, cfg := image(t, layer{"a", "ta", "ba"})
	_, cfg2 := image(t, layer{"a", "ta", "ba"}, layer{"b", "tb", "bb"})
	for name, in := range map[string][2][]byte{
		"manifest": {[]byte("<html>"), cfg},
		"config":   {m, []byte("{")},
		"diffIDs":  {m, cfg2},
		"digest":   {[]byte(strings.ReplaceAll(string(m), "sha256:", "sha:")), cfg},
	} {
		if _, err := c.Learn(src, "", "", in[0], in[1]); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: got %v, want ErrInvalid", name, err)
		}
	}
}

func TestTagsAndMediaTypes(t *testing.T) {
	c := open(t, filepath.Join(t.TempDir(), "catalog.db"))
	if _, err := c.Tag("h/r:t"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("unknown tag: %v", err)
	}
	tag := Tag{Digest: digest.FromString("m"), MediaType: ocispec.MediaTypeImageIndex, Size: 7, Seen: time.Now().UTC()}
	if err := c.SetTag("h/r:t", tag); err != nil {
		t.Fatal(err)
	}
	got, err := c.Tag("h/r:t")
	if diff := cmp.Diff(tag, got); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
	moved := tag
	moved.Digest = digest.FromString("n")
	if err := c.SetTag("h/r:t", moved); err != nil {
		t.Fatal(err)
	}
	if got, err := c.Tag("h/r:t"); err != nil || got.Digest != moved.Digest {
		t.Errorf("a moved tag: %+v, %v", got, err)
	}
	if mt, err := c.MediaType(tag.Digest); err != nil || mt != ocispec.MediaTypeImageIndex {
		t.Errorf("media type %q, %v", mt, err)
	}
}

func FuzzParse(f *testing.F) {
	var cfg ocispec.Image
	cfg.RootFS.DiffIDs = []digest.Digest{digest.FromString("a")}
	m := ocispec.Manifest{Config: ocispec.Descriptor{Digest: digest.FromString("c")}, Layers: []ocispec.Descriptor{{Digest: digest.FromString("b"), Annotations: map[string]string{annotation.TOCDigest: digest.FromString("t").String()}}}}
	mb, _ := json.Marshal(m)
	cb, _ := json.Marshal(cfg)
	f.Add(mb, cb)
	f.Fuzz(func(t *testing.T, manifest, config []byte) {
		p, err := parse("", manifest, config)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("error of an unknown kind: %v", err)
			}
			return
		}
		if len(p.Layers) != len(p.layers) {
			t.Fatal("layers don't line up")
		}
	})
}
