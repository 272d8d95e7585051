package registry

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"go.uber.org/goleak"

	"github.com/airstream-io/airstream/test/rig/tools"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func start(t *testing.T, opt Options) *Registry {
	t.Helper()
	tools.Need(t, "registry")
	r, err := Start(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func image(t *testing.T, layers int) v1.Image {
	t.Helper()
	img, err := random.Image(100_000, int64(layers))
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func push(t *testing.T, r *Registry, tag string, img v1.Image) v1.Hash {
	t.Helper()
	digest, err := r.Push(t.Context(), tag, img)
	if err != nil {
		t.Fatal(err)
	}
	return digest
}

func TestPushedImageCanBePulled(t *testing.T) {
	r := start(t, Options{})
	img := image(t, 3)
	digest := push(t, r, "some/app:v1", img)

	ref, err := name.ParseReference(r.Host() + "/some/app:v1")
	if err != nil {
		t.Fatal(err)
	}
	got, err := remote.Image(ref, remote.WithContext(t.Context()), remote.WithTransport(r.pusher))
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(got); err != nil {
		t.Error(err)
	}
	if d, err := got.Digest(); err != nil || d != digest {
		t.Errorf("digest = %v, %v, want %v", d, err, digest)
	}
}

func TestPushIndex(t *testing.T) {
	r := start(t, Options{})
	index := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: image(t, 1)}, mutate.IndexAddendum{Add: image(t, 2)})
	digest, err := r.PushIndex(t.Context(), "multi:v1", index)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(r.Host() + "/multi@" + digest.String())
	if err != nil {
		t.Fatal(err)
	}
	got, err := remote.Index(ref, remote.WithContext(t.Context()), remote.WithTransport(r.pusher))
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(got); err != nil {
		t.Error(err)
	}
}

// A storage folder serves the next registry: nothing is uploaded again.
func TestStorageIsKept(t *testing.T) {
	dir := t.TempDir()
	img := image(t, 2)
	first := start(t, Options{Dir: dir})
	push(t, first, "kept:v1", img)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second := start(t, Options{Dir: dir})
	push(t, second, "kept:v1", img)
	for _, e := range second.local.Requests(KindUpload) {
		t.Errorf("uploaded again: %s %s", e.Method, e.Path)
	}
	if got := second.local.Requests(KindManifest, KindBlob); len(got) == 0 {
		t.Error("nothing was asked for at all")
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	r := start(t, Options{})
	run, pid := r.run, r.process.cmd.Process.Pid
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(run); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("run folder: %v, want it gone", err)
	}
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("process %d: %v, want it gone", pid, err)
	}
	if err := r.Close(); err != nil {
		t.Errorf("second Close = %v", err)
	}
}

func TestStartSaysWhyItFailed(t *testing.T) {
	program := filepath.Join(t.TempDir(), "registry")
	if err := os.WriteFile(program, []byte("#!/bin/sh\necho configuration error: no >&2\nexit 3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	_, err := Start(t.Context(), Options{Program: program})
	if err == nil || !strings.Contains(err.Error(), "exit status 3: configuration error: no") {
		t.Errorf("Start = %v, want what the program said", err)
	}
	if _, err := Start(t.Context(), Options{Program: program + "-none"}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Start = %v, want not exist", err)
	}
}

func TestStartObeysContext(t *testing.T) {
	program := filepath.Join(t.TempDir(), "registry")
	if err := os.WriteFile(program, []byte("#!/bin/sh\nexec sleep 60\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	begin := time.Now()
	if _, err := Start(ctx, Options{Program: program}); !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) > 3*time.Second {
		t.Errorf("Start = %v after %v, want the deadline at once", err, time.Since(begin))
	}
}
