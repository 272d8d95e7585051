package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"

	"github.com/airstream-io/airstream/config"
	"github.com/airstream-io/airstream/snapshotter"
)

// The scripts in testdata/plain run verbs on a machine without a node.
func TestPlainScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/plain", RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("AIRSTREAM_WORK_DIR", e.WorkDir)
			e.Setenv("XDG_CACHE_HOME", filepath.Join(e.WorkDir, "cache"))
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"image": scriptImage},
	})
}

// The scripts in testdata/node run verbs as processes of their own against a
// node that has all but the file system: it runs here, needs no root, and mounts
// nothing.
func TestNodeScripts(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/node",
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			for k, v := range map[string]string{"XDG_CACHE_HOME": "cache", "DOCKER_CONFIG": "docker", "AIRSTREAM_WORK_DIR": "scratch", "AIRSTREAM_CONFIG": "airstream.toml"} {
				e.Setenv(k, filepath.Join(e.WorkDir, v))
			}
			return os.Mkdir(filepath.Join(e.WorkDir, "scratch"), 0o755)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"shore": scriptShore,
			"link":  scriptLink,
			"image": scriptImage,
			"node":  scriptNode,
			"tag":   scriptTag,
		},
	})
}

// shore is a registry behind a link.
type shore struct {
	http.Handler
	dark  atomic.Bool
	wrong atomic.Value // string: a part of the paths whose answers are spoiled; "": none
	bytes atomic.Int64 // of answers

	mu    sync.Mutex
	stall chan struct{} // guarded by mu; while not nil and open, blobs hang
}

func (s *shore) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.dark.Load() {
		panic(http.ErrAbortHandler)
	}
	s.mu.Lock()
	stall := s.stall
	s.mu.Unlock()
	if stall != nil && r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
		select {
		case <-stall:
		case <-r.Context().Done():
			panic(http.ErrAbortHandler)
		}
	}
	wrong, _ := s.wrong.Load().(string)
	s.Handler.ServeHTTP(&countingWriter{w, &s.bytes, wrong != "" && strings.Contains(r.URL.Path, wrong)}, r)
}

type countingWriter struct {
	http.ResponseWriter
	n     *atomic.Int64
	spoil bool // every byte
}

func (w *countingWriter) Write(b []byte) (int, error) {
	if w.spoil {
		b = bytes.Clone(b)
		for i := range b {
			b[i] ^= 1
		}
	}
	n, err := w.ResponseWriter.Write(b)
	w.n.Add(int64(n))
	return n, err
}

// shore VAR starts a registry and puts its address in VAR.
func scriptShore(ts *testscript.TestScript, _ bool, args []string) {
	s := &shore{Handler: registry.New(registry.Logger(log.New(io.Discard, "", 0)))}
	srv := httptest.NewUnstartedServer(s)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.Start()
	addr := strings.TrimPrefix(srv.URL, "http://")
	testRegistries.Store("shore "+ts.Getenv("WORK"), s)
	ts.Setenv(args[0], addr)
	ts.Defer(func() { srv.CloseClientConnections(); srv.Close() })
}

// link dark|up|stalled|wrong PATH|spent N: cuts the shore off, or brings it back,
// or lets layers hang, or spoils the answers to paths that have PATH in them; spent checks that at most N bytes crossed since the last check.
func scriptLink(ts *testscript.TestScript, _ bool, args []string) {
	v, ok := testRegistries.Load("shore " + ts.Getenv("WORK"))
	s, isShore := v.(*shore)
	if !ok || !isShore {
		ts.Fatalf("no shore")
	}
	switch args[0] {
	case "spent":
		var most int64
		_, err := fmt.Sscan(args[1], &most)
		ts.Check(err)
		if n := s.bytes.Swap(0); n > most {
			ts.Fatalf("%d bytes crossed, want %d at most", n, most)
		}
	default:
		s.dark.Store(args[0] == "dark")
		s.wrong.Store("")
		if args[0] == "wrong" {
			s.wrong.Store(args[1])
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.stall != nil {
			close(s.stall)
			s.stall = nil
		}
		if args[0] == "stalled" {
			s.stall = make(chan struct{})
		}
	}
}

// tag FROM TO gives an image another tag at the registry.
func scriptTag(ts *testscript.TestScript, _ bool, args []string) {
	from, err := name.ParseReference(args[0])
	ts.Check(err)
	to, err := name.NewTag(args[1])
	ts.Check(err)
	d, err := remote.Get(from)
	ts.Check(err)
	ts.Check(remote.Tag(to, d))
}

// node REG [FILE] starts a node for the registry REG, with what FILE adds to its
// configuration. Started again, it is restarted. "node stop" stops it.
func scriptNode(ts *testscript.TestScript, _ bool, args []string) {
	if args[0] == "stop" {
		if stop, ok := testRegistries.LoadAndDelete("node " + ts.Getenv("WORK")); ok {
			stop.(func())() //nolint:errcheck // it is one
		}
		return
	}
	work := ts.Getenv("WORK")
	file := filepath.Join(work, "airstream.toml")
	text := fmt.Sprintf("root = %q\nstate = %q\n", filepath.Join(work, "root"), filepath.Join(work, "run"))
	if len(args) > 1 {
		text += ts.ReadFile(args[1])
	}
	text += fmt.Sprintf("\n[registry.%q]\nurl = \"http://%s\"\n", args[0], args[0])
	ts.Check(os.WriteFile(file, []byte(text), 0o600))
	cfg, err := config.Load(file, nil)
	ts.Check(err)
	if old, ok := testRegistries.LoadAndDelete("node " + work); ok {
		old.(func())() //nolint:errcheck // it is one
	}
	ctx, cancel := context.WithCancel(context.Background())
	n := newNode(file)
	err = n.openContent(cfg)
	var served chan error
	if err == nil {
		lis, lerr := snapshotter.Listen(ctx, adminSocket(cfg.State))
		if err = lerr; err == nil {
			served = make(chan error, 1)
			group, ctx := errgroup.WithContext(ctx)
			group.Go(func() error { return n.serveAdmin(ctx, lis) })
			group.Go(func() error { return n.evict(ctx) })
			group.Go(func() error { return n.recheck(ctx, 0) })
			group.Go(func() error { return n.resume(ctx) })
			go func() { served <- group.Wait() }()
		}
	}
	stop := func() {
		cancel()
		if served != nil {
			if err := <-served; err != nil {
				ts.Logf("admin: %v", err)
			}
		}
		if err := n.close(); err != nil {
			ts.Logf("close: %v", err)
		}
	}
	if err != nil {
		stop()
		ts.Check(errors.Join(err))
	}
	testRegistries.Store("node "+work, stop)
	ts.Defer(func() {
		if stop, ok := testRegistries.LoadAndDelete("node " + work); ok {
			stop.(func())() //nolint:errcheck // it is one
		}
	})
}
