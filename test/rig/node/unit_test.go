package node

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestWatcherFindsALineInPieces(t *testing.T) {
	w := newWatcher(regexp.MustCompile(`^ready in \d+ ms$`))
	for _, piece := range []string{"star", "ting\nrea", "dy in 1", "2 ms", "\nmore\nready in 13 ms\n"} {
		if n, err := w.Write([]byte(piece)); n != len(piece) || err != nil {
			t.Fatal(n, err)
		}
	}
	r := w.result(time.Now())
	if r.Line != "ready in 12 ms" || r.Output != "starting\nready in 12 ms\nmore\nready in 13 ms\n" {
		t.Errorf("%+v", r)
	}
}

func TestWatcherKeepsAtMostItsLimit(t *testing.T) {
	w := newWatcher(regexp.MustCompile("never"))
	chunk := bytes.Repeat([]byte("x"), 100_000)
	for range 30 {
		w.Write(chunk) //nolint:errcheck // never fails
	}
	if n := len(w.result(time.Now()).Output); n != outputLimit {
		t.Errorf("keeps %d bytes", n)
	}
	if len(w.line) > outputLimit+len(chunk) {
		t.Errorf("a line without an end takes %d bytes", len(w.line))
	}
}

func TestCRILog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l := logReader{path: path}
	var got strings.Builder
	if err := l.copyTo(&got); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{
		"2026-01-02T15:04:05.1Z stdout F one\n2026-01-02T15:04:05.2Z std",
		"err P tw\n2026-01-02T15:04:05.3Z stderr F o words\n",
	} {
		f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(text); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if err := l.copyTo(&got); err != nil {
			t.Fatal(err)
		}
	}
	if got.String() != "one\ntwo words\n" {
		t.Errorf("got %q", got.String())
	}
}

func FuzzLogText(f *testing.F) {
	f.Add([]byte("2026-01-02T15:04:05.1Z stdout F text"))
	f.Add([]byte("2026-01-02T15:04:05.1Z stdout P "))
	f.Add([]byte("  F "))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, entry []byte) {
		if text := logText(entry); len(text) > len(entry)+1 {
			t.Errorf("%q says %q", entry, text)
		}
	})
}

func TestDescendants(t *testing.T) {
	parents := map[int]int{1: 0, 10: 1, 11: 10, 12: 11, 20: 1, 21: 20, 30: 999}
	got := descendants(parents, []int{10})
	slices.Sort(got)
	if !slices.Equal(got, []int{11, 12}) {
		t.Errorf("got %v", got)
	}
}

func TestConfigNamesTheSnapshotter(t *testing.T) {
	n := &Node{dir: "/tmp/x", opts: Options{CRISnapshotter: Airstream, AirstreamSocket: "/run/a.sock", AirstreamRoot: "/var/a"}}
	for _, want := range []string{
		"[proxy_plugins.airstream]\ntype = \"snapshot\"\naddress = \"/run/a.sock\"",
		"root = \"/var/a\"\nenable_remote_snapshot_annotations = \"true\"",
		"snapshotter = \"airstream\"\n[plugins.\"io.containerd.cri.v1.images\".pinned_images]",
		"platform = \"linux\"\nsnapshotter = \"overlayfs\"",
		"platform = \"linux\"\nsnapshotter = \"airstream\"",
	} {
		if !strings.Contains(string(n.config()), want) {
			t.Errorf("%q is not in\n%s", want, n.config())
		}
	}
}
