package bundle

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
)

// What version 1 wrote is read for ever. The file is never made again: if this
// fails, a reader has forgotten something.
func TestGolden(t *testing.T) {
	raw, err := os.ReadFile("testdata/v1.bundle")
	must(t, err)
	rd, err := NewReader(bytes.NewReader(raw))
	must(t, err)
	defer rd.Close()
	c, err := rd.Begin()
	must(t, err)
	said := *c
	said.Records = nil
	if diff := cmp.Diff(golden(), &said); diff != "" {
		t.Error(diff)
	}
	h := sha256.New()
	var kinds []Kind
	for {
		rec, err := rd.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		must(t, err)
		kinds = append(kinds, rec.Kind)
		h.Write(rec.Payload)
	}
	if diff := cmp.Diff([]Kind{KindDocument, KindBlob, KindTable, KindChunks, KindDelta}, kinds); diff != "" {
		t.Error(diff)
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != goldenSum {
		t.Errorf("its payloads have the SHA-256 %s", got)
	}
}

func golden() *Contents {
	d := digest.FromString("golden")
	return &Contents{
		Images: []Image{{
			Name: "registry.example/app:1", Digest: d, MediaType: "application/vnd.oci.image.index.v1+json", Size: 6,
			Parts:     []Manifest{{Digest: d, Platform: "linux/arm64/v8"}},
			Referrers: []Referrer{{Subject: d, Digest: d, MediaType: "application/vnd.oci.image.manifest.v1+json", ArtifactType: "application/x", Size: 6}},
		}},
		Files: []File{{Path: "etc/motd", Digest: d, Size: 6, Mode: 0o644}},
		Bases: []Base{{Name: "registry.example/app@" + d.String(), Digest: d}},
		Raw:   goldenRaw,
	}
}

const (
	goldenRaw = 1123
	goldenSum = "f1ecc13e3b78e79a3a8f04c2a10fea775c0787e3df3572c62ea52a2c682489ba"
)
