// Package test holds what is tested of the whole: here, that the architecture
// is what it says it is.
package test

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/airstream-io/airstream/"

// mayImport lists every package, and which of the others it may import. A
// package that isn't listed fails the test: to add one is a decision.
// Stations (convert, delta, fetcher, proxy, snapshotter, config) don't import each other;
// cmd joins them. Nouns (internal/...) import simpler nouns.
var mayImport = map[string][]string{
	"cmd/airstream": {
		"config", "convert", "convert/layer", "convert/location", "fetcher", "fetcher/mirror", "fetcher/registry", "fetcher/uplink",
		"internal/annotation", "internal/bundle", "internal/cache", "internal/catalog", "internal/chunk", "internal/database", "internal/enrol", "internal/fdstore", "internal/inventory", "internal/link", "internal/link/wire", "internal/store", "internal/supervise", "internal/toc", "internal/trace", "internal/units", "pack", "proxy", "receive", "record", "snapshotter", "snapshotter/layerfs",
	},
	"config":                      {"internal/units"},
	"convert":                     {"convert/internal/cancelable", "convert/internal/rawjson", "convert/layer", "convert/location", "internal/annotation", "internal/artifact", "internal/chunk", "internal/toc", "internal/trace"},
	"convert/internal/cancelable": {},
	"convert/internal/rawjson":    {},
	"convert/layer":               {"convert/internal/cancelable", "internal/annotation", "internal/chunk"},
	"convert/location":            {"convert/internal/cancelable", "convert/internal/rawjson", "convert/layer"},
	"delta":                       {"internal/bindiff", "internal/chunk", "internal/entropy", "internal/reference"},
	"fetcher":                     {"fetcher/registry", "fetcher/uplink", "internal/artifact", "internal/catalog", "internal/chunk", "internal/store", "internal/toc", "internal/trace"},
	"fetcher/mirror":              {"fetcher", "fetcher/registry", "internal/artifact", "internal/catalog", "internal/store"},
	"fetcher/registry":            {"fetcher/uplink", "internal/catalog"},
	"fetcher/uplink":              {},
	"internal/annotation":         {},
	"internal/artifact":           {"internal/annotation", "internal/chunk", "internal/toc", "internal/trace"},
	"internal/bundle":             {},
	"internal/bindiff":            {"internal/suffix"},
	"internal/cache":              {"internal/catalog", "internal/store", "internal/toc", "internal/trace"},
	"internal/catalog":            {"internal/annotation", "internal/artifact", "internal/database"},
	"internal/chunk":              {},
	"internal/enrol":              {},
	"internal/entropy":            {},
	"internal/fdstore":            {},
	"internal/database":           {},
	"internal/inventory":          {},
	"internal/link":               {"internal/annotation", "internal/chunk", "internal/link/wire"},
	"internal/link/wire":          {},
	"internal/store":              {"internal/database", "internal/toc"},
	"internal/suffix":             {},
	"internal/supervise":          {"internal/fdstore"},
	"internal/toc":                {"internal/chunk"},
	"internal/trace":              {"internal/chunk", "internal/toc"},
	"pack":                        {"internal/annotation", "internal/artifact", "internal/bundle", "internal/toc", "internal/trace"},
	"proxy":                       {"internal/annotation", "internal/link", "internal/link/wire", "internal/toc", "internal/trace"},
	"receive":                     {"internal/bundle", "internal/catalog", "internal/chunk", "internal/store", "internal/toc"},
	"internal/reference":          {},
	"record":                      {"internal/toc", "internal/trace"},
	"internal/units":              {},
	"snapshotter":                 {},
	"snapshotter/layerfs":         {"internal/toc"},
}

// owners lists heavy dependencies and the packages that may import them.
// "test/" stands for the rig and the tests.
var owners = map[string][]string{
	"aead.dev/minisign":                                {"internal/bundle"},
	"filippo.io/age":                                   {"cmd/airstream", "internal/bundle", "receive"},
	"github.com/containerd/containerd/v2":              {"snapshotter"},
	"github.com/containerd/containerd/api":             {"snapshotter"},
	"github.com/containerd/continuity":                 {"snapshotter"},
	"github.com/containerd/stargz-snapshotter/estargz": {"convert/layer"},
	"github.com/google/go-containerregistry/pkg/authn": {"convert/location", "fetcher/registry", "proxy"},
	"github.com/google/go-containerregistry/pkg/v1":    {"cmd/airstream", "convert", "convert/layer", "convert/location", "pack", "proxy"},
	"github.com/hanwen/go-fuse/v2":                     {"snapshotter/layerfs"},
	"github.com/klauspost/compress":                    {"convert/layer", "convert/location", "delta", "fetcher", "internal/artifact", "internal/bundle", "internal/link", "pack", "proxy"},
	"github.com/pelletier/go-toml/v2":                  {"config"},
	"github.com/prometheus/client_golang":              {"proxy"},
	"github.com/spf13/cobra":                           {"cmd/airstream"},
	"github.com/vbauerster/mpb/v8":                     {"cmd/airstream"},
	"go.etcd.io/bbolt":                                 {"internal/database", "snapshotter"},
	"google.golang.org/grpc":                           {"internal/link", "internal/link/wire", "snapshotter"},
	"google.golang.org/protobuf":                       {"internal/link", "internal/link/wire", "proxy"},
	"k8s.io/cri-api":                                   {},
}

type pkg struct {
	ImportPath string
	Imports    []string
}

func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports", "./...")
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var all []pkg
	dec := json.NewDecoder(bufio.NewReader(strings.NewReader(string(out))))
	for {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		p.ImportPath = strings.TrimPrefix(p.ImportPath, module)
		all = append(all, p)
	}
}

func TestLayering(t *testing.T) {
	listed := map[string]bool{}
	for _, p := range packages(t) {
		if p.ImportPath == "test" || strings.HasPrefix(p.ImportPath, "test/") {
			continue // the rig may use all of them
		}
		allowed, ok := mayImport[p.ImportPath]
		if !ok {
			t.Errorf("package %s is not in the list: say what it may import", p.ImportPath)
			continue
		}
		listed[p.ImportPath] = true
		for _, i := range p.Imports {
			if ours, isOurs := strings.CutPrefix(i, module); isOurs && !slices.Contains(allowed, ours) {
				t.Errorf("%s imports %s, which the architecture doesn't allow", p.ImportPath, ours)
			}
			for dep, who := range owners {
				if (i == dep || strings.HasPrefix(i, dep+"/")) && !slices.Contains(who, p.ImportPath) {
					t.Errorf("%s imports %s, which belongs to %s", p.ImportPath, i, strings.Join(who, ", "))
				}
			}
		}
	}
	for p := range mayImport {
		if !listed[p] {
			t.Errorf("package %s is listed and isn't there", p)
		}
	}
}
