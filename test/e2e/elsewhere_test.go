package e2e

import (
	"errors"
	"os/exec"
	"strings"
	"testing"

	"github.com/airstream-io/airstream/test/rig/node"
	"github.com/airstream-io/airstream/test/rig/site"
)

// A converted image is an image like any other to who knows nothing of it.
func TestOverlayfsRunsConvertedImage(t *testing.T) {
	img := publish(t, "redis")
	s := newSite(t, site.Options{NoDaemon: true})
	ctx := t.Context()
	must(t, s.PastMirror())
	ref := s.Ref("redis:lazy")
	must(t, s.Node.PullTransfer(ctx, ref, node.Overlayfs))
	_, err := s.Node.RunUntil(ctx, node.Run{Ref: ref, Snapshotter: node.Overlayfs, Ready: img.Ready()})
	must(t, err)
}

// containerd does not unpack a hardlink into a layer beneath, and no table of
// contents can hold one. The converter says so and publishes nothing.
func TestConvertRefusesHardlinkIntoAnotherLayer(t *testing.T) {
	push(t, "odd-crosslink")
	s := newSite(t, site.Options{NoDaemon: true})
	ctx := t.Context()
	_, err := s.Convert(ctx, "odd-crosslink:plain", "odd-crosslink:lazy")
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok || exit.ExitCode() != 5 {
		t.Fatalf("convert: %v, want exit code 5: the image is to blame", err)
	}
	for _, want := range []string{"etc/passwd-", "hardlink", "not in the layer"} {
		if _, said, _ := strings.Cut(err.Error(), "\n"); !strings.Contains(said, want) {
			t.Errorf("the error doesn't say %q:\n%v", want, err)
		}
	}
	must(t, s.PastMirror())
	if err := s.Node.PullTransfer(ctx, s.Ref("odd-crosslink:lazy"), node.Overlayfs); err == nil || !strings.Contains(err.Error(), "not found") {
		t.Errorf("pull of what was not converted: %v, want not found", err)
	}
	if err := s.Node.PullTransfer(ctx, s.Ref("odd-crosslink:plain"), node.Overlayfs); err == nil {
		t.Error("containerd has learned to unpack this image: the converter could, too")
	}
}
