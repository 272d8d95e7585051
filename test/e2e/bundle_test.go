package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	ggcr "github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/airstream-io/airstream/internal/inventory"
	"github.com/airstream-io/airstream/test/rig/node"
	"github.com/airstream-io/airstream/test/rig/site"
	"github.com/airstream-io/airstream/test/rig/tree"
)

// packBundle runs airstream bundle create on shore and returns what it says, and the
// bundle's size in bytes.
func packBundle(t *testing.T, file string, args ...string) int64 {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), shore.binary, append([]string{"bundle", "create", "--plain-http", "--no-progress", "-o", file}, args...)...)
	cmd.Env = append(os.Environ(), "AIRSTREAM_WORK_DIR="+t.TempDir())
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Logf("%s", out)
	info, err := os.Stat(file)
	must(t, err)
	return info.Size()
}

// digestOnShore returns what a name means at the registry.
func digestOnShore(t *testing.T, tag string) string {
	t.Helper()
	ref, err := ggcr.ParseReference(shore.reg.Host()+"/"+tag, ggcr.Insecure)
	must(t, err)
	d, err := remote.Head(ref, remote.WithContext(t.Context()))
	must(t, err)
	return d.Digest.String()
}

// An image gets to a node whose link was never up, in a file; an update as what
// changed; and back.
func TestBundleNeedsNoLink(t *testing.T) {
	old, img := publish(t, "redis-1"), publish(t, "redis")
	// The first has a hot set, and with it an artifact, which the bundle leaves out.
	_, err := site.Convert(t.Context(), shore.binary, shore.reg, "redis-1:plain", "redis-1:recorded", "--record", "", "--ready", old.ReadyLine)
	must(t, err)
	s := newSite(t, site.Options{Profile: fast(t)})
	ctx := t.Context()
	_, err = s.Link.Cut(ctx)
	must(t, err)
	dir := t.TempDir()
	ref := s.Ref("redis:ship")
	one, two := filepath.Join(dir, "one.bundle"), filepath.Join(dir, "two.bundle")
	first := packBundle(t, one, ref+"="+shore.reg.Host()+"/redis-1:recorded")

	was, is := digestOnShore(t, "redis-1:recorded"), digestOnShore(t, "redis:lazy")
	// means pulls the name as containerd does, and starts it.
	means := func(digest string, run node.Run) {
		t.Helper()
		must(t, s.Node.PullTransfer(ctx, ref, lazySnapshotter))
		list, err := s.Node.Ctr(ctx, "images", "ls", "name=="+ref)
		must(t, err)
		if !strings.Contains(list, digest) {
			t.Errorf("want %s, as on shore: %s", digest, list)
		}
		run.Ref, run.Snapshotter = ref, lazySnapshotter
		_, err = s.Node.RunUntil(ctx, run)
		must(t, err)
	}
	// apply takes a bundle in, and wants to read something of it.
	apply := func(want string, args ...string) {
		t.Helper()
		out, err := s.Run(ctx, append([]string{"bundle", "apply", "--no-progress"}, args...)...)
		must(t, err)
		if !strings.Contains(out, want) {
			t.Errorf("want %q: %s", want, out)
		}
	}
	// It breaks off, and the daemon dies; then it goes on.
	raw, err := os.ReadFile(one)
	must(t, err)
	part := filepath.Join(dir, "part.bundle")
	must(t, os.WriteFile(part, raw[:len(raw)*6/10], 0o600))
	if out, err := s.Run(ctx, "bundle", "apply", "--no-progress", "--activate", part); err == nil {
		t.Errorf("a part of a bundle is all of it: %s", out)
	}
	must(t, s.CrashDaemon(ctx))
	apply("what the name means now", "--activate", one)
	means(was, node.Run{Ready: old.Ready()})
	all, err := s.Images(ctx)
	must(t, err)
	if len(all) != 1 || !all[0].Complete {
		t.Errorf("images: %+v", all)
	}

	_, err = s.Run(ctx, "inventory", "export", "-o", filepath.Join(dir, "have"))
	must(t, err)
	second := packBundle(t, two, "--to-inventory", onShore(t, s, filepath.Join(dir, "have")), ref+"="+shore.reg.Host()+"/redis:lazy")
	t.Logf("%d bytes for the image, %d for its update", first, second)
	if second > first/2 {
		t.Errorf("%d bytes for an update, of %d for the image", second, first)
	}
	apply(" complete", two)
	means(was, node.Run{Ready: old.Ready()})
	apply("what the name means now", "--activate", two)
	means(is, node.Run{Ready: img.Ready()})
	apply("0 new", "--activate", two)

	_, err = s.Run(ctx, "rollback", ref)
	must(t, err)
	means(was, node.Run{Ready: old.Ready()})
	apply("what the name means now", "--activate", two)
	means(is, node.Run{Ready: img.Ready()})
	if c := s.Front.Counts(); c.Connections > 0 {
		t.Errorf("something crossed the link: %+v", s.Front.Log())
	}

	// The tree is the one that a registry's image has.
	got := view(t, s, "redis:ship", lazySnapshotter)
	_, err = s.Link.Restore(ctx)
	must(t, err)
	must(t, s.PastMirror())
	must(t, s.Node.PullTransfer(ctx, s.Ref("redis:plain"), node.Overlayfs))
	diffs, err := tree.Compare(ctx, view(t, s, "redis:plain", node.Overlayfs), got, treeOptions(img))
	must(t, err)
	if len(diffs) > 0 {
		t.Errorf("%d differences\n%s", len(diffs), tree.Lines(diffs, 40))
	}
}

// onShore has an inventory's names mean the registry as it is called on shore.
func onShore(t *testing.T, s *site.Site, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	must(t, err)
	images, err := inventory.Parse(b)
	must(t, err)
	host := strings.TrimSuffix(s.Ref("x"), "/x")
	for i := range images {
		// The repository is what the bundle called it; on shore it has another name.
		images[i].Repo = strings.Replace(images[i].Repo, host+"/redis", shore.reg.Host()+"/redis-1", 1)
	}
	b, err = inventory.Encode(images)
	must(t, err)
	must(t, os.WriteFile(file, b, 0o600))
	return file
}
