package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// freeAddress returns an address on loopback that nobody listens at.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // it is to be closed
	return l.Addr().String()
}

// do runs a command line and returns what it says.
func do(t *testing.T, args ...string) (out, said string, code int) {
	t.Helper()
	var o, e bytes.Buffer
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	code = run(ctx, args, streams{strings.NewReader(""), &o, &e})
	return strings.TrimSpace(o.String()), e.String(), code
}

// shoreProxy is a proxy that runs, of its command line.
type shoreProxy struct {
	config, listen, status string
	stop                   func()
}

func startProxy(t *testing.T, more string) *shoreProxy {
	t.Helper()
	dir := t.TempDir()
	p := &shoreProxy{config: filepath.Join(dir, "proxy.toml"), listen: freeAddress(t), status: freeAddress(t)}
	text := fmt.Sprintf("root = %q\nauthority = %q\nlisten = %q\nstatus = %q\n%s", filepath.Join(dir, "root"), filepath.Join(dir, "authority"), p.listen, p.status, more)
	if err := os.WriteFile(p.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, said, code := do(t, "proxy", "init", "--config", p.config, "127.0.0.1"); code != exitOK {
		t.Fatal(said)
	}
	p.start(t)
	return p
}

// start starts the proxy, or starts it again.
func (p *shoreProxy) start(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan int, 1)
	var said bytes.Buffer
	go func() {
		done <- run(ctx, []string{"proxy", "serve", "--config", p.config}, streams{strings.NewReader(""), io.Discard, &said})
	}()
	p.stop = sync.OnceFunc(func() {
		cancel()
		if code := <-done; code != exitOK {
			t.Errorf("the proxy ended with %d: %s", code, said.String())
		}
	})
	t.Cleanup(p.stop)
	for range 500 {
		if c, err := net.Dial("tcp", p.listen); err == nil {
			_ = c.Close()
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("the proxy does not listen")
}

// enrol makes a node of a directory and returns its configuration file.
func (p *shoreProxy) enrol(t *testing.T, node string) (dir, config string) {
	t.Helper()
	token, said, code := do(t, "proxy", "token", "--config", p.config, node)
	if code != exitOK {
		t.Fatal(said)
	}
	dir = t.TempDir()
	config = filepath.Join(dir, "airstream.toml")
	if err := os.WriteFile(config, fmt.Appendf(nil, "root = %q\nstate = %q\n", dir, dir), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, said, code = do(t, "enrol", "--config", config, "--proxy", p.listen, token); code != exitOK || !strings.Contains(said, "this node is "+node) {
		t.Fatalf("%d: %s", code, said)
	}
	if _, said, code = do(t, "enrol", "--config", config, "--proxy", p.listen, token); code != exitFailure || !strings.Contains(said, "it was used") {
		t.Errorf("a token was good twice: %d: %s", code, said)
	}
	return dir, config
}

// An operator sets a proxy up with three commands, and a node with one.
func TestAProxyIsSetUpWithAFewCommands(t *testing.T) {
	p := startProxy(t, "")
	dir, _ := p.enrol(t, "vessel-1")
	if info, err := os.Stat(filepath.Join(dir, identityDir, "node.pem")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	for args, want := range map[string]string{
		"proxy init --config " + p.config + " proxy.example":      "has an authority already",
		"proxy init --config " + p.config + " proxy.example:7075": "without a port",
		"proxy token --config " + p.config + " Vessel_1":          "can't be a node's name",
		"enrol --proxy " + p.listen + " nonsense":                 "that is no token",
		"enrol token": "HOST:PORT",
		"proxy serve --config " + filepath.Join(dir, "none.toml"): "no such file",
	} {
		if _, said, code := do(t, strings.Fields(args)...); code == exitOK || !strings.Contains(said, want) {
			t.Errorf("airstream %s: %d: %s", args, code, said)
		}
	}
	if _, said, code := do(t, "proxy", "revoke", "--config", p.config, "vessel-1"); code != exitOK {
		t.Error(said)
	}
	if _, said, code := do(t, "proxy", "token", "--config", p.config, "vessel-1"); code != exitFailure || !strings.Contains(said, "revoked") {
		t.Errorf("a revoked name got a token: %d: %s", code, said)
	}
}

func TestAProxyTellsHowItIs(t *testing.T) {
	p := startProxy(t, "")
	resp, err := http.Get("http://" + p.status + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	var h struct{ Status string }
	if err := json.NewDecoder(resp.Body).Decode(&h); err != nil || h.Status != "ok" || resp.StatusCode != http.StatusOK {
		t.Errorf("%s: %+v, %v", resp.Status, h, err)
	}
	_ = resp.Body.Close()
	if resp, err = http.Get("http://" + p.status + "/metrics"); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if err != nil || !strings.Contains(string(b), "airstream_proxy_sessions 0") || !strings.Contains(string(b), "process_resident_memory_bytes") {
		t.Errorf("%v\n%s", err, b)
	}
	http.DefaultClient.CloseIdleConnections()
}
