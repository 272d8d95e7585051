package e2e

import (
	"context"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/airstream-io/airstream/test/rig/images"
	"github.com/airstream-io/airstream/test/rig/node"
	"github.com/airstream-io/airstream/test/rig/site"
	"github.com/airstream-io/airstream/test/rig/tree"
)

// The file tree that a container sees through Airstream is the one that
// overlayfs unpacks, for every image: of the image as it was before it was
// converted, of its Docker form, and of the unconverted image through Airstream.
func TestTreeEqualsWhatOverlayfsUnpacks(t *testing.T) {
	for _, name := range []string{"oddities", "odd-implied", "odd-duplicates", "odd-rawnames", "redis", "nginx", "python", "node"} {
		t.Run(name, func(t *testing.T) {
			notShort(t, name)
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
	switch img.Name {
	case "odd-implied":
		// Directories that no entry names get the time at which they were
		// unpacked, or none.
		o.Ignore = []tree.Aspect{tree.MTime}
	case "odd-rawnames":
		// A table of contents is JSON with the names of attributes as keys, so
		// these have to be UTF-8. Names of files need not.
		o.IgnoreXattr = func(name string) bool {
			return !utf8.ValidString(name) || strings.ContainsRune(name, utf8.RuneError)
		}
	}
	return o
}

// view mounts an image's file system read-only, as a container would see it,
// and returns where.
func view(t *testing.T, s *site.Site, name, snapshotter string) string {
	t.Helper()
	ctx := t.Context()
	dir := t.TempDir()
	// It holds the view with a lease, or containerd would collect it.
	_, err := s.Node.Ctr(ctx, "images", "mount", "--snapshotter", snapshotter, s.Ref(name), dir)
	must(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		_, err := s.Node.Ctr(ctx, "images", "unmount", "--rm", "--snapshotter", snapshotter, dir)
		if err != nil {
			t.Error(err)
		}
	})
	return dir
}
