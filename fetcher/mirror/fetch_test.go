package mirror

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestAnIndexIsChosenFromByPlatform(t *testing.T) {
	entry := func(os, arch, variant string) ocispec.Descriptor {
		p := &ocispec.Platform{OS: os, Architecture: arch, Variant: variant}
		return ocispec.Descriptor{Digest: digest.FromString(os + arch + variant), Platform: p}
	}
	attestation := entry("unknown", "unknown", "")
	index, err := json.Marshal(ocispec.Index{Manifests: []ocispec.Descriptor{
		attestation, {Digest: digest.FromString("no platform")}, entry("linux", "amd64", ""), entry("linux", "arm", "v7"), entry("linux", "arm64", "v8"), entry("windows", "amd64", ""),
	}})
	if err != nil {
		t.Fatal(err)
	}
	for platform, want := range map[string]digest.Digest{
		"linux/amd64":   digest.FromString("linuxamd64"),
		"linux/arm64":   digest.FromString("linuxarm64v8"),
		"linux/arm/v7":  digest.FromString("linuxarmv7"),
		"windows/amd64": digest.FromString("windowsamd64"),
	} {
		if got, err := choose(index, platform); err != nil || got != want {
			t.Errorf("%s: got %s, %v", platform, got, err)
		}
	}
	for _, platform := range []string{"linux/arm/v6", "linux", "linux/riscv64", "unknown/unknown"} {
		got, err := choose(index, platform)
		if !errors.Is(err, ErrNotImage) || !strings.Contains(err.Error(), "it has linux/amd64, linux/arm/v7, linux/arm64/v8, windows/amd64") {
			t.Errorf("%s: got %s, %v", platform, got, err)
		}
	}
	if _, err := choose([]byte("<html>"), ""); !errors.Is(err, ErrNotImage) {
		t.Errorf("what is no index: %v", err)
	}
}
