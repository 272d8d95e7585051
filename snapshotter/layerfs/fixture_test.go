package layerfs_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/stargz-snapshotter/estargz"
	"go.uber.org/goleak"

	"github.com/airstream-io/airstream/internal/toc"
	"github.com/airstream-io/airstream/snapshotter/layerfs"
)

// helperEnv selects what the test binary does when a test runs it again as
// another process, see helper_test.go.
const helperEnv = "LAYERFS_TEST_HELPER"

func TestMain(m *testing.M) {
	if what := os.Getenv(helperEnv); what != "" {
		os.Exit(helper(what))
	}
	goleak.VerifyTestMain(m)
}

// header is one tar entry of a fixture; content only for regular files.
type header struct {
	tar.Header
	content []byte
}

var epoch = time.Unix(1700000000, 0)

func dir(name string, mode int64) header {
	return header{Header: tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode, ModTime: epoch}}
}

func file(name string, mode int64, content []byte) header {
	return header{Header: tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(content)), ModTime: epoch}, content: content}
}

func owned(h header, uid, gid int) header { h.Uid, h.Gid = uid, gid; return h }

func at(h header, sec int64) header { h.ModTime = time.Unix(sec, 0); return h }

func xattr(h header, name, value string) header {
	records := map[string]string{"SCHILY.xattr." + name: value}
	maps.Copy(records, h.PAXRecords)
	h.PAXRecords = records
	return h
}

func link(kind byte, name, target string) header {
	return header{Header: tar.Header{Typeflag: kind, Name: name, Linkname: target, Mode: 0o755, ModTime: epoch}}
}

func device(kind byte, name string, major, minor int64) header {
	return header{Header: tar.Header{Typeflag: kind, Name: name, Mode: 0o640, Devmajor: major, Devminor: minor, ModTime: epoch}}
}

// random returns n bytes that compress badly and are the same for a seed.
func random(seed byte, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

func tarOf(tb testing.TB, entries []header) []byte {
	tb.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		h := e.Header
		h.Format = tar.FormatPAX
		if err := w.WriteHeader(&h); err != nil {
			tb.Fatalf("%s: %v", e.Name, err)
		}
		if _, err := w.Write(e.content); err != nil {
			tb.Fatalf("%s: %v", e.Name, err)
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return buf.Bytes()
}

// treeOf converts a layer to eStargz and parses its table of contents.
func treeOf(tb testing.TB, layer []byte) *toc.Tree {
	tb.Helper()
	return parse(tb, tocOf(tb, layer))
}

func parse(tb testing.TB, table []byte) *toc.Tree {
	tb.Helper()
	tree, err := toc.Parse(bytes.NewReader(table), 1<<40)
	if err != nil {
		tb.Fatal(err)
	}
	return tree
}

// tocOf converts a layer to eStargz and returns its table of contents.
func tocOf(tb testing.TB, layer []byte) []byte {
	tb.Helper()
	blob, err := estargz.Build(io.NewSectionReader(bytes.NewReader(layer), 0, int64(len(layer))), estargz.WithChunkSize(64<<10))
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = blob.Close() }()
	zr, err := gzip.NewReader(blob)
	if err != nil {
		tb.Fatal(err)
	}
	for r := tar.NewReader(zr); ; {
		h, err := r.Next()
		if err != nil {
			tb.Fatal(err)
		}
		if h.Name != estargz.TOCTarName {
			continue
		}
		table, err := io.ReadAll(r)
		if err != nil {
			tb.Fatal(err)
		}
		return table
	}
}

// unpack applies layers, the lowest first, as containerd's overlayfs does it,
// and returns their directories in the same order.
func unpack(tb testing.TB, layers ...[]byte) []string {
	tb.Helper()
	var dirs, parents []string
	for i, layer := range layers {
		at := filepath.Join(tb.TempDir(), fmt.Sprintf("native%d", i))
		if err := os.Mkdir(at, 0o755); err != nil {
			tb.Fatal(err)
		}
		var opts []archive.ApplyOpt
		if i > 0 {
			opts = append(opts, archive.WithConvertWhiteout(archive.OverlayConvertWhiteout), archive.WithParents(parents))
		}
		if _, err := archive.Apply(tb.Context(), at, bytes.NewReader(layer), opts...); err != nil {
			tb.Fatal(err)
		}
		dirs = append(dirs, at)
		parents = append([]string{at}, parents...)
	}
	return dirs
}

// node stands for the daemon behind the layerfs.Layers border: layers whose
// contents are files on disk, some of which a test makes wait.
type node struct {
	store  string
	mu     sync.Mutex
	layers map[uint32]*served // guarded by mu
	tocs   map[uint32]*gate   // slots whose TOC is on its way
	opened atomic.Int64       // contents that are open
}

type served struct {
	tree    *toc.Tree
	objects map[uint32]string // entry to file below store

	mu       sync.Mutex
	gates    map[uint32]*gate // entries whose content is on its way
	failures map[uint32]error
	asked    []span // of reads, in their order
}

// span is a piece of a file, in bytes.
type span struct{ off, size int64 }

// gate lets nobody pass until it is opened; it counts who waits.
type gate struct {
	open    chan struct{}
	waiting atomic.Int64
	left    atomic.Int64 // gave up
}

func newGate() *gate { return &gate{open: make(chan struct{})} }

func (g *gate) pass(ctx context.Context) error {
	select {
	case <-g.open:
		return nil
	default:
	}
	g.waiting.Add(1)
	defer g.waiting.Add(-1)
	select {
	case <-g.open:
		return nil
	case <-ctx.Done():
		g.left.Add(1)
		return ctx.Err()
	}
}

func newNode(tb testing.TB) *node {
	tb.Helper()
	return &node{store: tb.TempDir(), layers: make(map[uint32]*served), tocs: make(map[uint32]*gate)}
}

// add serves a layer in slot.
func (n *node) add(tb testing.TB, slot uint32, layer []byte) *served {
	tb.Helper()
	return n.addTree(tb, slot, layer, treeOf(tb, layer))
}

// addTree is add for a layer whose tree is there.
func (n *node) addTree(tb testing.TB, slot uint32, layer []byte, tree *toc.Tree) *served {
	tb.Helper()
	s := &served{tree: tree, objects: make(map[uint32]string), gates: make(map[uint32]*gate), failures: make(map[uint32]error)}
	for r := tar.NewReader(bytes.NewReader(layer)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.layers[slot] = s
			return s
		}
		if err != nil {
			tb.Fatal(err)
		}
		if h.Typeflag != tar.TypeReg || strings.HasPrefix(path.Base(h.Name), ".wh.") {
			continue
		}
		entry := s.find(tb, h.Name)
		name := filepath.Join(n.store, fmt.Sprintf("%d-%d", slot, entry))
		content, err := io.ReadAll(r)
		if err != nil {
			tb.Fatal(err)
		}
		s.objects[entry] = name
		if _, err := os.Stat(name); err == nil {
			continue // another process has written it, and may have it open
		}
		if err := os.WriteFile(name, content, 0o600); err != nil {
			tb.Fatal(err)
		}
	}
}

func (s *served) find(tb testing.TB, name string) uint32 {
	tb.Helper()
	entry := toc.Root
	for part := range strings.SplitSeq(strings.Trim(path.Clean(name), "/"), "/") {
		next, ok := s.tree.Lookup(entry, part)
		if !ok {
			tb.Fatalf("%q is not in the table", name)
		}
		entry = next
	}
	return entry
}

// hold makes the content of a file incomplete until the gate is opened.
func (s *served) hold(tb testing.TB, name string) *gate {
	tb.Helper()
	g := newGate()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gates[s.find(tb, name)] = g
	return g
}

// fail makes reads of a file fail.
func (s *served) fail(tb testing.TB, name string, err error) {
	tb.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failures[s.find(tb, name)] = err
}

func (n *node) Tree(ctx context.Context, slot uint32) (*toc.Tree, error) {
	n.mu.Lock()
	s, ok := n.layers[slot]
	n.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("slot %d: %w", slot, fs.ErrNotExist)
	}
	if g := n.tocs[slot]; g != nil {
		if err := g.pass(ctx); err != nil {
			return nil, err
		}
	}
	return s.tree, nil
}

func (n *node) Open(_ context.Context, slot, entry uint32) (layerfs.Content, error) {
	n.mu.Lock()
	s := n.layers[slot]
	n.mu.Unlock()
	f, err := os.Open(s.objects[entry])
	if err != nil {
		return nil, err
	}
	n.opened.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	return &content{node: n, layer: s, file: f, gate: s.gates[entry], failure: s.failures[entry]}, nil
}

type content struct {
	node    *node
	layer   *served
	file    *os.File
	gate    *gate
	failure error
}

func (c *content) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	c.layer.mu.Lock()
	c.layer.asked = append(c.layer.asked, span{off, int64(len(p))})
	c.layer.mu.Unlock()
	if c.failure != nil {
		return 0, c.failure
	}
	if c.gate != nil {
		if err := c.gate.pass(ctx); err != nil {
			return 0, err
		}
	}
	return c.file.ReadAt(p, off)
}

func (c *content) Complete() *os.File {
	if c.failure != nil {
		return nil
	}
	if c.gate != nil {
		select {
		case <-c.gate.open:
		default:
			return nil
		}
	}
	return c.file
}

func (c *content) Close() error {
	c.node.opened.Add(-1)
	return c.file.Close()
}
