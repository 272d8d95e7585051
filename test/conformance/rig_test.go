package conformance

import (
	"context"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/airstream-io/airstream/fetcher"
	"github.com/airstream-io/airstream/fetcher/mirror"
	fetchregistry "github.com/airstream-io/airstream/fetcher/registry"
	"github.com/airstream-io/airstream/fetcher/uplink"
	"github.com/airstream-io/airstream/internal/catalog"
	"github.com/airstream-io/airstream/internal/store"
	"github.com/airstream-io/airstream/test/rig/registry"
	"github.com/airstream-io/airstream/test/rig/tools"
)

const (
	repo  = "conformance/app"
	shore = "shore.example" // how the node calls the registry
)

// content is what stands in the registry.
type content struct {
	images    []*image
	referrers map[string]string // of the first image: artifact type by digest
}

type image struct {
	tag, digest, mediaType string
	manifest               []byte
	blobs                  map[string][]byte // by digest
}

func startRegistry(t *testing.T) *registry.Registry {
	t.Helper()
	tools.Need(t, "registry")
	reg, err := registry.Start(t.Context(), registry.Options{})
	must(t, err)
	t.Cleanup(func() { must(t, reg.Close()) })
	return reg
}

// pushContent puts images of every kind into the registry, past every front.
func pushContent(t *testing.T, reg *registry.Registry) content {
	t.Helper()
	c := content{referrers: map[string]string{}}
	oci := mutate.ConfigMediaType(mutate.MediaType(randomImage(t), types.OCIManifestSchema1), types.OCIConfigJSON)
	docker := randomImage(t)
	idx := mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex), mutate.IndexAddendum{Add: docker})
	for tag, img := range map[string]v1.Image{"oci": oci, "docker": docker} {
		_, err := reg.Push(t.Context(), repo+":"+tag, img)
		must(t, err)
	}
	_, err := reg.PushIndex(t.Context(), repo+":multi", idx)
	must(t, err)
	for _, described := range []struct {
		tag string
		m   interface {
			RawManifest() ([]byte, error)
			MediaType() (types.MediaType, error)
			Digest() (v1.Hash, error)
		}
		blobs v1.Image
	}{{"oci", oci, oci}, {"docker", docker, docker}, {"multi", idx, empty.Image}} {
		raw, err := described.m.RawManifest()
		must(t, err)
		mediaType, err := described.m.MediaType()
		must(t, err)
		d, err := described.m.Digest()
		must(t, err)
		img := &image{tag: described.tag, digest: d.String(), mediaType: string(mediaType), manifest: raw, blobs: map[string][]byte{}}
		if described.tag != "multi" {
			blobsOf(t, described.blobs, img.blobs)
		}
		c.images = append(c.images, img)
	}
	subject, err := remote.Head(reference(t, reg, "oci"), remote.WithContext(t.Context()))
	must(t, err)
	for _, kind := range []string{"application/signature", "application/sbom"} {
		artifact := mutate.ConfigMediaType(mutate.MediaType(randomImage(t), types.OCIManifestSchema1), types.MediaType(kind))
		refers, ok := mutate.Subject(artifact, *subject).(v1.Image)
		if !ok {
			t.Fatal("an image with a subject is no image")
		}
		d, err := refers.Digest()
		must(t, err)
		must(t, remote.Write(reference(t, reg, "oci").Context().Digest(d.String()), refers, remote.WithContext(t.Context())))
		c.referrers[d.String()] = kind
	}
	return c
}

func reference(t *testing.T, reg *registry.Registry, tag string) name.Reference {
	t.Helper()
	ref, err := name.NewTag(reg.Host() + "/" + repo + ":" + tag)
	must(t, err)
	return ref
}

func randomImage(t *testing.T) v1.Image {
	t.Helper()
	img, err := random.Image(50_000, 2)
	must(t, err)
	return img
}

func blobsOf(t *testing.T, img v1.Image, into map[string][]byte) {
	t.Helper()
	raw, err := img.RawConfigFile()
	must(t, err)
	d, err := img.ConfigName()
	must(t, err)
	into[d.String()] = raw
	layers, err := img.Layers()
	must(t, err)
	for _, l := range layers {
		d, err := l.Digest()
		must(t, err)
		rc, err := l.Compressed()
		must(t, err)
		b, err := io.ReadAll(rc)
		must(t, errors.Join(err, rc.Close()))
		into[d.String()] = b
	}
}

// shipNode is a mirror on loopback, with all that it needs in a directory.
type shipNode struct {
	url  string
	http *http.Client
	stop func()
}

func startNode(t *testing.T, dir string, front *registry.Front, opts registry.FrontOptions) *shipNode {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	st, err := store.Open(filepath.Join(dir, "store"), store.Options{Logger: log})
	must(t, err)
	cat, err := catalog.Open(filepath.Join(dir, "catalog.db"), log)
	must(t, err)
	host := fetchregistry.Host{URL: front.URL(), Username: opts.Username, Password: opts.Password}
	if opts.TLS {
		host.CA = x509.NewCertPool()
		host.CA.AppendCertsFromPEM(front.CA())
	}
	meter := uplink.NewMeter(log)
	reg := fetchregistry.New(fetchregistry.Options{Hosts: map[string]fetchregistry.Host{shore: host}, Keychain: authn.NewMultiKeychain(), Meter: meter, Logger: log})
	f := fetcher.New(st, cat, reg, meter, fetcher.Options{Logger: log})
	m := mirror.New(st, cat, reg, f, mirror.Options{Patience: 2 * time.Second, Default: shore, Referrers: true, Logger: log})
	lis, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	must(t, err)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	served := make(chan error, 1)
	go func() { served <- m.Serve(ctx, lis) }()
	tr := &http.Transport{}
	n := &shipNode{url: "http://" + lis.Addr().String(), http: &http.Client{Transport: tr}}
	n.stop = sync.OnceFunc(func() {
		tr.CloseIdleConnections()
		cancel()
		err := <-served
		m.Close()
		f.Close()
		reg.Close()
		must(t, errors.Join(err, cat.Close(), st.Close()))
	})
	t.Cleanup(n.stop)
	return n
}

// way is how a client says which registry it means.
type way struct {
	name string
	base string // "http://127.0.0.1:1234"
	repo string // as it stands in the path
	ns   string // or ""
	http *http.Client
}

func (n *shipNode) ways() []way {
	return []way{
		{name: "as containerd asks", base: n.url, repo: repo, ns: shore, http: n.http},
		{name: "the default registry", base: n.url, repo: repo, http: n.http},
		{name: "the registry in the path", base: n.url, repo: shore + "/" + repo, http: n.http},
	}
}

func (w way) url(what string) string {
	u := w.base + "/v2/"
	if what != "" {
		u += w.repo + "/" + what
	}
	if w.ns != "" {
		u += "?ns=" + w.ns
	}
	return u
}

// and is what joins one more parameter to a URL.
func (w way) and() string {
	if w.ns != "" {
		return "&"
	}
	return "?"
}

type answer struct {
	status int
	header http.Header
	body   []byte
}
