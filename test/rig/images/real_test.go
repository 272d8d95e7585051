package images

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/airstream-io/airstream/test/rig/tools"
	"github.com/airstream-io/airstream/test/rig/tree"
)

// built returns an image from the user's cache, building it if the machine can.
func built(t *testing.T, name string) *Image {
	t.Helper()
	if testing.Short() {
		t.Skip("builds images of Debian packages: not with -short")
	}
	if needs := Needs(name); len(needs) > 0 {
		tools.Need(t, needs...)
	}
	img, err := Build(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// TestRealImages takes each image of packages apart: what containerd unpacks is
// what overlayfs showed when the image was built, it has the shapes that it is
// there for, and its program gets ready.
func TestRealImages(t *testing.T) {
	for name, want := range map[string]struct {
		over   int64 // bytes, compressed
		shapes string
	}{
		"redis":  {30e6, "whiteout opaque hardlink device"},
		"nginx":  {30e6, "whiteout symlink capability device"},
		"python": {50e6, "whiteout opaque device"},
		"node":   {50e6, "whiteout opaque device"},
	} {
		t.Run(name, func(t *testing.T) {
			img := built(t, name)
			if img.Layers < 3 || img.Compressed < want.over {
				t.Errorf("%d layers, %d bytes; want at least 3, %d", img.Layers, img.Compressed, want.over)
			}
			docker, err := img.Docker()
			if err != nil {
				t.Fatal(err)
			}
			shapes := map[string]int{}
			root := unpack(t, docker, func(h *tar.Header) { count(shapes, h) })
			for shape := range strings.FieldsSeq(want.shapes) {
				if shapes[shape] == 0 {
					t.Errorf("no %s in any layer", shape)
				}
			}
			t.Logf("%d layers, %.1f MB, %.1f MB unpacked, %v", img.Layers, float64(img.Compressed)/1e6, float64(img.Uncompressed)/1e6, shapes)

			merged := mountUppers(t, name)
			// Layers have whole seconds; link counts of overlayfs are those of the
			// lower file, whatever is hidden of its names.
			opt := tree.Options{MTimeWithin: tree.WholeSeconds, Ignore: []tree.Aspect{tree.LinkCount}}
			diffs, err := tree.Compare(t.Context(), merged, root, opt)
			if err != nil {
				t.Fatal(err)
			}
			if len(diffs) > 0 {
				t.Errorf("built | unpacked:\n%s", tree.Lines(diffs, 20))
			}
			becomesReady(t, img, root)
		})
	}
}

// count counts the entries of some kinds.
func count(shapes map[string]int, h *tar.Header) {
	shapes["entries"]++
	switch base := filepath.Base(h.Name); {
	case base == ".wh..wh..opq":
		shapes["opaque"]++
	case strings.HasPrefix(base, ".wh."):
		shapes["whiteout"]++
	}
	switch h.Typeflag {
	case tar.TypeLink:
		shapes["hardlink"]++
	case tar.TypeSymlink:
		shapes["symlink"]++
	case tar.TypeChar, tar.TypeBlock:
		shapes["device"]++
	}
	if h.PAXRecords[xattrPrefix+"security.capability"] != "" {
		shapes["capability"]++
	}
}

// mountUppers mounts the folders in which the image was built, read-only.
func mountUppers(t *testing.T, name string) string {
	t.Helper()
	r, err := find(name)
	if err != nil {
		t.Fatal(err)
	}
	cache, err := tools.CacheDir("images", "steps")
	if err != nil {
		t.Fatal(err)
	}
	var lowers []string
	for i := range slices.Backward(r.steps) {
		lowers = append(lowers, filepath.Join(cache, r.stepDir(i), "upper"))
	}
	merged := t.TempDir()
	if err := syscall.Mount("overlay", merged, "overlay", syscall.MS_RDONLY, "lowerdir="+strings.Join(lowers, ":")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(merged, 0); err != nil {
			t.Error(err)
		}
	})
	return merged
}

// becomesReady runs the image's command in the unpacked tree, in namespaces of
// its own and without network, until its ready line comes.
func becomesReady(t *testing.T, img *Image, root string) {
	t.Helper()
	oci, err := img.OCI()
	if err != nil {
		t.Fatal(err)
	}
	config, err := oci.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	const script = `mount -t proc proc "$root/proc"; mount -t tmpfs tmpfs "$root/run"; mount --bind /dev "$root/dev"; ` +
		`cd "$root$dir"; exec chroot ${user:+--userspec=$user} "$root" /usr/bin/env -C "$dir" "$@"`
	cmd := exec.CommandContext(ctx, "/bin/sh", append([]string{"-ec", script, "sh"}, config.Config.Cmd...)...)
	cmd.Env = append([]string{"root=" + root, "dir=" + max(config.Config.WorkingDir, "/"), "user=" + config.Config.User}, config.Config.Env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC, Unshareflags: syscall.CLONE_NEWNS,
	}
	read, write := io.Pipe()
	cmd.Stdout, cmd.Stderr = write, write
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		err := cmd.Wait()
		write.CloseWithError(fmt.Errorf("the program ended: %w", errors.Join(err, io.EOF)))
		ended <- err
	}()
	var said strings.Builder
	lines := bufio.NewScanner(read)
	ready := false
	for !ready && lines.Scan() {
		fmt.Fprintln(&said, lines.Text())
		ready = img.Ready().MatchString(lines.Text())
	}
	cancel()
	go io.Copy(io.Discard, read) //nolint:errcheck // ends when the program does
	if err := <-ended; ready && err == nil {
		t.Errorf("%s said that it is ready, and ended", img.Name)
	}
	if !ready {
		t.Errorf("%s never said %q: %v\n%s", img.Name, img.ReadyLine, lines.Err(), said.String())
	}
}
