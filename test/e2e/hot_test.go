package e2e

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/airstream-io/airstream/internal/annotation"
	"github.com/airstream-io/airstream/internal/artifact"
	"github.com/airstream-io/airstream/test/rig/node"
	"github.com/airstream-io/airstream/test/rig/registry"
	"github.com/airstream-io/airstream/test/rig/site"
)

// A first start of an image that was recorded costs its root and its hot set, and no
// layer's table of contents.
func TestFirstStartCostsNoTable(t *testing.T) {
	img := publish(t, "redis")
	_, err := site.Convert(t.Context(), shore.binary, shore.reg, "redis:plain", "redis:root", "--record", "", "--ready", img.ReadyLine)
	must(t, err)
	ref, err := name.ParseReference(shore.reg.Host() + "/redis:root")
	must(t, err)
	converted, err := remote.Image(ref)
	must(t, err)
	manifest, err := converted.Manifest()
	must(t, err)
	root, ok := artifact.ParseRef(manifest.Annotations)
	if !ok {
		t.Fatalf("it has no artifact: %v", manifest.Annotations)
	}
	tables := map[string]int64{} // where they begin, by the layer's digest
	for _, l := range manifest.Layers {
		tables[l.Digest.String()], err = strconv.ParseInt(l.Annotations[annotation.TOCOffset], 10, 64)
		must(t, err)
	}

	s := newSite(t, site.Options{Profile: fast(t), Config: "[fetch]\nbackground = false\n"})
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	s.Front.Reset()
	must(t, s.Node.PullTransfer(ctx, s.Ref("redis:root"), lazySnapshotter))
	_, err = s.Node.RunUntil(ctx, node.Run{Ref: s.Ref("redis:root"), Snapshotter: lazySnapshotter, Ready: img.Ready()})
	must(t, err)
	requests, counts := s.Front.Requests(registry.KindBlob, registry.KindStorage), s.Front.Counts()
	tocs := 0
	for _, r := range requests {
		t.Logf("%s %s: %d bytes", r.Path, r.Range, r.Bytes)
		if r.Redirected {
			continue
		}
		if strings.Contains(r.Path, root.TOC.Digest) {
			tocs++
		}
		for layer, at := range tables {
			var from int64
			if _, err := fmt.Sscanf(r.Range, "bytes=%d-", &from); strings.Contains(r.Path, layer) && (err != nil || from >= at) {
				t.Errorf("a table was asked for before the program was ready: %s %s", r.Path, r.Range)
			}
		}
	}
	t.Logf("%d requests, %d bytes until ready; the root has %d, the hot set %d", counts.Total(), counts.Body, root.Root.Size, root.Hot.Size)
	if tocs == 0 {
		t.Error("the root was not asked for")
	}
	if most := root.Root.Size + root.Hot.Size; counts.Body > most+most/5+64<<10 {
		t.Errorf("%d bytes crossed, want little more than the %d of root and hot set", counts.Body, most)
	}

	// All that a start doesn't read is what the layers' own tables say.
	_, err = s.Run(ctx, "prefetch", s.Ref("redis:root"))
	must(t, err)
	all, err := s.Images(ctx)
	must(t, err)
	if len(all) != 1 || !all[0].Complete || all[0].Dark != "yes" {
		t.Errorf("after a prefetch: %+v", all)
	}
}

// Of an image that was recorded only the hot set is fetched. The link goes away,
// and the power: after the boot its container starts all the same.
func TestPartialImageStartsDarkFromItsHotSet(t *testing.T) {
	img := publish(t, "redis")
	_, err := site.Convert(t.Context(), shore.binary, shore.reg, "redis:plain", "redis:hot", "--record", "", "--ready", img.ReadyLine)
	must(t, err)
	s := newSite(t, site.Options{Profile: fast(t), Config: "[fetch]\nbackground = false\n"})
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	ref := s.Ref("redis:hot")
	must(t, s.Node.PullTransfer(ctx, ref, lazySnapshotter))
	_, err = s.Run(ctx, "prefetch", "--hot", ref)
	must(t, err)
	_, err = s.Link.Cut(ctx)
	must(t, err)
	partial := func(when string) {
		t.Helper()
		all, err := s.Images(ctx)
		must(t, err)
		if len(all) != 1 || all[0].Dark != "hot" || all[0].Complete || all[0].Missing < all[0].Total/2 {
			t.Fatalf("%s: %+v", when, all)
		}
	}
	partial("before")
	must(t, s.PowerOff(ctx))
	must(t, s.StartDaemon(ctx))
	must(t, s.Node.Restart(ctx))
	partial("after the boot")
	began := time.Now()
	_, err = s.Node.RunUntil(ctx, node.Run{Ref: ref, Snapshotter: lazySnapshotter, Ready: img.Ready()})
	must(t, err)
	t.Logf("ready after %v, dark", time.Since(began).Round(time.Millisecond))
	partial("after the start")
}
