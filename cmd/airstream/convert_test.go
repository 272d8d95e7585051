package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	digest "github.com/opencontainers/go-digest"
	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/airstream-io/airstream/internal/annotation"
	"github.com/airstream-io/airstream/internal/trace"
)

// The scripts in testdata/convert run airstream as a process of its own;
// registries and images are made here.
func TestConvertScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/convert",
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			for k, v := range map[string]string{"XDG_CACHE_HOME": "cache", "DOCKER_CONFIG": "docker", "AIRSTREAM_WORK_DIR": "scratch"} {
				e.Setenv(k, filepath.Join(e.WorkDir, v))
			}
			return os.Mkdir(filepath.Join(e.WorkDir, "scratch"), 0o755)
		},
		Condition: func(cond string) (bool, error) {
			if cond == "root" {
				return os.Geteuid() == 0, nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"registry":   scriptRegistry,
			"image":      scriptImage,
			"damage":     scriptDamage,
			"lazy":       scriptLazy,
			"same":       scriptSame,
			"smalldisk":  scriptSmallDisk,
			"uploading":  scriptUploading,
			"unchanged":  scriptUnchanged,
			"samelayers": scriptSameLayers,
			"hot":        scriptHot,
		},
	})
}

// convertMain is airstream as the scripts run it.
func convertMain() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], streams{os.Stdin, os.Stdout, os.Stderr})
	stop()
	os.Exit(code)
}

// testRegistry is a registry that can misbehave.
type testRegistry struct {
	http.Handler
	mode string

	once      sync.Once
	uploading chan struct{} // closed when a layer's upload has begun
	quit      chan struct{}
}

func (r *testRegistry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if r.mode == "auth" {
		if user, pass, _ := req.BasicAuth(); user != "me" || pass != "secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"who are you"}]}`, http.StatusUnauthorized)
			return
		}
	}
	if req.Method == http.MethodPatch && req.ContentLength > 100 {
		r.once.Do(func() { close(r.uploading) })
		if r.mode == "slow" {
			select {
			case <-req.Context().Done():
			case <-r.quit:
			}
			return
		}
	}
	if r.mode == "readonly" && req.Method != http.MethodGet && req.Method != http.MethodHead {
		http.Error(w, `{"errors":[{"code":"DENIED","message":"read only"}]}`, http.StatusForbidden)
		return
	}
	r.Handler.ServeHTTP(w, req)
}

var testRegistries sync.Map // address to *testRegistry

// registry VAR [auth|slow|readonly|tls] starts one and puts its address in VAR.
func scriptRegistry(ts *testscript.TestScript, _ bool, args []string) {
	r := &testRegistry{
		Handler:   registry.New(registry.Logger(log.New(io.Discard, "", 0))),
		uploading: make(chan struct{}), quit: make(chan struct{}),
	}
	if len(args) > 1 {
		r.mode = args[1]
	}
	s := httptest.NewServer(r)
	addr := strings.TrimPrefix(s.URL, "http://")
	testRegistries.Store(addr, r)
	ts.Setenv(args[0], addr)
	ts.Defer(func() { close(r.quit); s.Close() })
}

// uploading ADDR waits until a layer is being sent.
func scriptUploading(ts *testscript.TestScript, _ bool, args []string) {
	r, ok := testRegistries.Load(args[0])
	if !ok {
		ts.Fatalf("no registry %s", args[0])
	}
	<-r.(*testRegistry).uploading //nolint:errcheck // it is one
}

// testImage has two layers of some hundred kilobytes.
func testImage(ts *testscript.TestScript) v1.Image {
	img := empty.Image
	for i := range 2 {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for j := range 20 {
			content := bytes.Repeat(fmt.Appendf(nil, "%d %d airstream ", i, j*j), 1000*j)
			if j == 0 { // something that doesn't compress
				content = make([]byte, 100_000)
				_, err := rand.NewChaCha8([32]byte{byte(i)}).Read(content)
				ts.Check(err)
			}
			ts.Check(w.WriteHeader(&tar.Header{Name: fmt.Sprintf("usr/share/%d/%d.txt", i, j), Mode: 0o644, Size: int64(len(content))}))
			_, err := w.Write(content)
			ts.Check(err)
		}
		ts.Check(w.Close())
		l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
		ts.Check(err)
		img, err = mutate.AppendLayers(img, l)
		ts.Check(err)
	}
	cf, err := img.ConfigFile()
	ts.Check(err)
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture = "linux", "amd64"
	img, err = mutate.ConfigFile(img, cf)
	ts.Check(err)
	return img
}

// image KIND PLACE makes an image: docker, oci, encrypted, unknown, artifact;
// at a registry's ADDR/NAME:TAG, in a new layout directory, or, for archive,
// in a file.
func scriptImage(ts *testscript.TestScript, _ bool, args []string) {
	img := testImage(ts)
	var err error
	switch args[0] {
	case "docker":
	case "oci":
		img = mutate.ConfigMediaType(mutate.MediaType(img, types.OCIManifestSchema1), types.OCIConfigJSON)
	case "encrypted", "unknown":
		mt := types.MediaType("application/vnd.oci.image.layer.v1.tar+gzip+encrypted")
		if args[0] == "unknown" {
			mt = "application/vnd.example.disk"
		}
		img, err = mutate.Append(img, mutate.Addendum{Layer: static.NewLayer([]byte("secret"), mt)})
	case "artifact":
		img = mutate.ConfigMediaType(img, "application/vnd.cncf.helm.config.v1+json")
	case "archive":
		tag, err := name.NewTag("example.com/app:1")
		ts.Check(err)
		ts.Check(tarball.WriteToFile(ts.MkAbs(args[1]), tag, img))
		return
	default:
		ts.Fatalf("unknown image %s", args[0])
	}
	ts.Check(err)
	if strings.Contains(args[1], ":") {
		ref, err := name.ParseReference(args[1])
		ts.Check(err)
		ts.Check(remote.Write(ref, img))
		return
	}
	l, err := layout.Write(ts.MkAbs(args[1]), empty.Index)
	ts.Check(err)
	ts.Check(l.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "1"})))
}

// damage flip|cut|remove DIR spoils the largest blob of a layout.
func scriptDamage(ts *testscript.TestScript, _ bool, args []string) {
	list, err := filepath.Glob(filepath.Join(ts.MkAbs(args[1]), "blobs/sha256/*"))
	ts.Check(err)
	var path string
	var b []byte
	for _, p := range list {
		c, err := os.ReadFile(p)
		ts.Check(err)
		if len(c) > len(b) {
			path, b = p, c
		}
	}
	switch args[0] {
	case "flip":
		b[len(b)/2] ^= 1
	case "cut":
		b = b[:len(b)/2]
	case "remove":
		ts.Check(os.Remove(path))
		return
	}
	ts.Check(os.Chmod(path, 0o644))
	ts.Check(os.WriteFile(path, b, 0o644))
}

func scriptOpen(ts *testscript.TestScript, place string) v1.Image {
	if dir, ok := strings.CutPrefix(place, "oci:"); ok {
		index, err := layout.ImageIndexFromPath(ts.MkAbs(dir))
		ts.Check(err)
		im, err := index.IndexManifest()
		ts.Check(err)
		img, err := index.Image(im.Manifests[len(im.Manifests)-1].Digest)
		ts.Check(err)
		return img
	}
	ref, err := name.ParseReference(place)
	ts.Check(err)
	img, err := remote.Image(ref)
	ts.Check(err)
	return img
}

// lazy PLACE checks that an image is complete and that estargz accepts its
// layers. ! lazy PLACE checks that there is none.
func scriptLazy(ts *testscript.TestScript, neg bool, args []string) {
	if neg {
		ref, err := name.ParseReference(args[0])
		ts.Check(err)
		if _, err := remote.Head(ref); err == nil {
			ts.Fatalf("%s has an image", args[0])
		}
		return
	}
	img := scriptOpen(ts, args[0])
	m, err := img.Manifest()
	ts.Check(err)
	cf, err := img.ConfigFile()
	ts.Check(err)
	layers, err := img.Layers()
	ts.Check(err)
	for i, l := range layers {
		rc, err := l.Compressed()
		ts.Check(err)
		b, err := io.ReadAll(rc)
		ts.Check(err)
		r, err := estargz.Open(io.NewSectionReader(bytes.NewReader(b), 0, int64(len(b))))
		ts.Check(err)
		_, err = r.VerifyTOC(digest.Digest(m.Layers[i].Annotations[annotation.TOCDigest]))
		ts.Check(err)
		u, err := l.Uncompressed()
		ts.Check(err)
		h, _, err := v1.SHA256(u)
		ts.Check(err)
		if h != cf.RootFS.DiffIDs[i] {
			ts.Fatalf("layer %d: diff ID %s, want %s", i, h, cf.RootFS.DiffIDs[i])
		}
	}
	if len(layers) != 2 || m.MediaType != types.OCIManifestSchema1 {
		ts.Fatalf("%d layers, %s", len(layers), m.MediaType)
	}
}

// same A B compares the digests of two images.
func scriptSame(ts *testscript.TestScript, neg bool, args []string) {
	a, err := scriptOpen(ts, args[0]).Digest()
	ts.Check(err)
	b, err := scriptOpen(ts, args[1]).Digest()
	ts.Check(err)
	if (a == b) == neg {
		ts.Fatalf("%s is %s, %s is %s", args[0], a, args[1], b)
	}
}

// smalldisk DIR mounts a file system of 128 KiB.
func scriptSmallDisk(ts *testscript.TestScript, _ bool, args []string) {
	dir := ts.MkAbs(args[0])
	ts.Check(os.MkdirAll(dir, 0o755))
	ts.Check(unix.Mount("tmpfs", dir, "tmpfs", 0, "size=128k"))
	ts.Defer(func() { ts.Check(unix.Unmount(dir, unix.MNT_DETACH)) })
}

// unchanged FILE checks that a report of -o json maps every digest to itself.
func scriptUnchanged(ts *testscript.TestScript, neg bool, args []string) {
	var r struct{ Digests map[string]string }
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[0])), &r))
	same := len(r.Digests) > 0
	for a, b := range r.Digests {
		same = same && a == b
	}
	if same == neg {
		ts.Fatalf("%v", r.Digests)
	}
}

// samelayers FILE FILE checks that two reports of -o json name the same layers.
func scriptSameLayers(ts *testscript.TestScript, _ bool, args []string) {
	layers := func(file string) (list []string) {
		var r struct {
			Manifests []struct{ Layers []struct{ New string } }
		}
		ts.Check(json.Unmarshal([]byte(ts.ReadFile(file)), &r))
		for _, m := range r.Manifests {
			for _, l := range m.Layers {
				list = append(list, l.New)
			}
		}
		return list
	}
	if a, b := layers(args[0]), layers(args[1]); len(a) == 0 || !slices.Equal(a, b) {
		ts.Fatalf("%v and %v", a, b)
	}
}

// hot PLACE N... checks how many runs the plan of each layer has.
func scriptHot(ts *testscript.TestScript, _ bool, args []string) {
	m, err := scriptOpen(ts, args[0]).Manifest()
	ts.Check(err)
	var got []string
	for _, l := range m.Layers {
		var p trace.Plan
		if s, ok := l.Annotations[annotation.Hot]; ok {
			p, err = trace.ParsePlan(s, l.Size)
			ts.Check(err)
		}
		got = append(got, strconv.Itoa(len(p)))
	}
	if !slices.Equal(got, args[1:]) {
		ts.Fatalf("got %v, want %v", got, args[1:])
	}
}
