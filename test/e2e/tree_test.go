package e2e

import (
	"context"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/airstream-io/airstream/test/rig/images"
	"github.com/airstream-io/airstream/test/rig/node"
	"github.com/airstream-io/airstream/test/rig/site"
	"github.com/airstream-io/airstream/test/rig/tree"
)

// The file tree that a container sees through Airstream is the one that
// overlayfs unpacks, for every image: of the image as it was before it was
// converted, of its Docker form, and of the unconverted image through Airstream.
func TestTreeEqualsWhatOverlayfsUnpacks(t *testing.T) {
	for _, name := range []string{"oddities", "odd-implied", "odd-duplicates", "redis", "nginx", "python", "node"} {
		t.Run(name, func(t *testing.T) {
			img := publish(t, name)
			s := newSite(t, site.Options{Config: "[fetch]\nbackground = false\n"})
			ctx := t.Context()
			must(t, s.PastMirror())
			must(t, s.Node.PullTransfer(ctx, s.Ref(name+":plain"), node.Overlayfs))
			want := view(t, s, name+":plain", node.Overlayfs)
			must(t, s.ThroughMirror())
			tags := []string{"lazy"}
			if name == "oddities" || name == "redis" {
				tags = append(tags, "docker") // whole layers, unpacked into Airstream's directories
			}
			for _, tag := range tags {
				ref := name + ":" + tag
				must(t, s.Node.PullTransfer(ctx, s.Ref(ref), lazySnapshotter))
				got := view(t, s, ref, lazySnapshotter)
				diffs, err := tree.Compare(ctx, want, got, treeOptions(img))
				must(t, err)
				if len(diffs) > 0 {
					t.Errorf("%s: %d differences\n%s", ref, len(diffs), tree.Lines(diffs, 40))
				}
			}
		})
	}
}

func treeOptions(img *images.Image) tree.Options {
	var o tree.Options
	if img.Name == "odd-implied" {
		// Directories that no entry names get the time at which they were
		// unpacked, or none.
		o.Ignore = []tree.Aspect{tree.MTime}
	}
	return o
}

// view mounts an image's file system read-only, as a container would see it,
// and returns where.
func view(t *testing.T, s *site.Site, name, snapshotter string) string {
	t.Helper()
	ctx := t.Context()
	ref := s.Ref(name)
	dir := t.TempDir()
	key := "view-" + filepath.Base(filepath.Dir(dir)) + "-" + filepath.Base(dir) + strings.ReplaceAll(name, ":", "-")
	_, err := s.Node.Ctr(ctx, "snapshots", "--snapshotter", snapshotter, "view", key, topChain(t, s, ref))
	must(t, err)
	// Nothing refers to the snapshot, so containerd would collect it.
	_, err = s.Node.Ctr(ctx, "snapshots", "--snapshotter", snapshotter, "label", key, "containerd.io/gc.root=test")
	must(t, err)
	line, err := s.Node.Ctr(ctx, "snapshots", "--snapshotter", snapshotter, "mounts", dir, key)
	must(t, err)
	args := strings.Fields(strings.TrimSpace(line))
	if len(args) < 3 || args[0] != "mount" {
		t.Fatalf("ctr snapshots mounts says %q", line)
	}
	if out, err := exec.CommandContext(ctx, "mount", args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		if out, err := exec.CommandContext(ctx, "umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v\n%s", err, out)
		}
		if _, err := s.Node.Ctr(ctx, "snapshots", "--snapshotter", snapshotter, "rm", key); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// topChain returns the chain ID of all of an image's layers.
func topChain(t *testing.T, s *site.Site, ref string) string {
	t.Helper()
	ctx := t.Context()
	out, err := s.Node.Ctr(ctx, "images", "list", "name=="+ref)
	must(t, err)
	manifest := regexp.MustCompile(`sha256:[0-9a-f]{64}`).FindString(out)
	var m ocispec.Manifest
	out, err = s.Node.Ctr(ctx, "content", "get", manifest)
	must(t, err)
	must(t, json.Unmarshal([]byte(out), &m))
	var config ocispec.Image
	out, err = s.Node.Ctr(ctx, "content", "get", m.Config.Digest.String())
	must(t, err)
	must(t, json.Unmarshal([]byte(out), &config))
	return identity.ChainID(config.RootFS.DiffIDs).String()
}
