package layer_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/gzip"

	"github.com/airstream-io/airstream/convert/layer"
	"github.com/airstream-io/airstream/internal/chunk"
)

// unpacked is what a tar leaves on disk, by the rules of containerd's
// archive.Apply, worked out the slow and plain way: path to description.
type unpacked map[string]*node

type node struct {
	Type, Link  string
	Mode        int64
	UID, GID    int
	Major, Dev  int64
	Time        string
	Xattrs      map[string]string
	Content     string
	implicitDir bool
}

func unpack(t *testing.T, raw []byte) unpacked {
	t.Helper()
	tree := unpacked{"": {Type: "dir", implicitDir: true}}
	var follow func(p string, depth int) string
	follow = func(p string, depth int) string {
		at := ""
		for part := range strings.SplitSeq(p, "/") {
			if part == "" || part == "." {
				continue
			}
			if part == ".." {
				at = at[:max(0, strings.LastIndex(at, "/"))]
				continue
			}
			at = strings.TrimPrefix(at+"/"+part, "/")
			if n := tree[at]; n != nil && n.Type == "symlink" && depth < 40 {
				at = follow(at[:max(0, strings.LastIndex(at, "/"))]+"/"+n.Link, depth+1)
			}
		}
		return at
	}
	place := func(name string) string {
		name = strings.Trim(strings.TrimPrefix(name, "./"), "/")
		i := strings.LastIndex(name, "/")
		if i < 0 {
			return name
		}
		parent := follow(name[:i], 0)
		for j := range parent {
			if parent[j] == '/' && tree[parent[:j]] == nil {
				tree[parent[:j]] = &node{Type: "dir", implicitDir: true}
			}
		}
		if tree[parent] == nil {
			tree[parent] = &node{Type: "dir", implicitDir: true}
		}
		return strings.TrimPrefix(parent+name[i:], "/")
	}
	tr := tar.NewReader(bytes.NewReader(raw))
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return tree
		}
		if err != nil {
			t.Fatal(err)
		}
		switch strings.Trim(strings.TrimPrefix(h.Name, "./"), "/") {
		case "stargz.index.json", ".prefetch.landmark", ".no.prefetch.landmark":
			continue
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		p := place(h.Name)
		old := tree[p]
		n := &node{Mode: h.Mode, UID: h.Uid, GID: h.Gid, Xattrs: map[string]string{}}
		if s := h.ModTime.Unix(); s >= 0 {
			n.Time = h.ModTime.UTC().String()
		} else {
			n.Time = "1970-01-01 00:00:00 +0000 UTC"
		}
		for k, v := range h.PAXRecords {
			if name, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
				n.Xattrs[name] = v
			}
		}
		switch h.Typeflag {
		case tar.TypeDir:
			n.Type = "dir"
		case tar.TypeReg, tar.TypeGNUSparse:
			n.Type = "reg"
			b, err := io.ReadAll(tr)
			if err != nil {
				t.Fatal(err)
			}
			n.Content = string(b)
		case tar.TypeSymlink:
			n.Type, n.Link = "symlink", h.Linkname
		case tar.TypeLink:
			target := tree[place(h.Linkname)]
			target.Mode, target.UID, target.GID, target.Time = n.Mode, n.UID, n.GID, n.Time
			n = target
		case tar.TypeChar, tar.TypeBlock:
			n.Type, n.Major, n.Dev = map[byte]string{tar.TypeChar: "char", tar.TypeBlock: "block"}[h.Typeflag], h.Devmajor, h.Devminor
		case tar.TypeFifo:
			n.Type = "fifo"
		}
		if old != nil && (old.Type != "dir" || n.Type != "dir") {
			for q := range tree {
				if strings.HasPrefix(q, p+"/") {
					delete(tree, q)
				}
			}
		}
		tree[p] = n
	}
}

// lazyTree reads the tree through the table and the chunks, as a lazy reader
// does: every chunk is fetched from its member alone and checked.
func lazyTree(t *testing.T, blob []byte, res layer.Result) unpacked {
	t.Helper()
	r, table := open(t, blob)
	raw := map[string]string{} // shown name to true name
	for _, e := range table.Entries {
		raw[strings.TrimSuffix(strings.TrimPrefix(e.Name, "./"), "/")] = unescape(e.Name)
	}
	tree := unpacked{}
	seen := map[*estargz.TOCEntry]*node{}
	var visit func(e *estargz.TOCEntry, at string)
	visit = func(e *estargz.TOCEntry, at string) {
		name := strings.Trim(unescape(at), "/")
		if n := seen[e]; n != nil {
			tree[name] = n
			return
		}
		n := &node{
			Type: e.Type, Link: e.LinkName, Mode: e.Mode, UID: e.UID, GID: e.GID,
			Major: int64(e.DevMajor), Dev: int64(e.DevMinor), Time: "1970-01-01 00:00:00 +0000 UTC", Xattrs: map[string]string{},
		}
		if !e.ModTime().IsZero() {
			n.Time = e.ModTime().UTC().String()
		}
		for k, v := range e.Xattrs {
			n.Xattrs[k] = string(v)
		}
		seen[e] = n
		if name != estargz.NoPrefetchLandmark && name != estargz.PrefetchLandmark {
			tree[name] = n
		}
		if e.Type == "reg" && e.Size > 0 {
			n.Content = string(content(t, blob, r, e.Name, e))
		}
		e.ForeachChild(func(base string, child *estargz.TOCEntry) bool {
			visit(child, at+"/"+base)
			return true
		})
	}
	root, ok := r.Lookup("")
	if !ok {
		t.Fatal("no root")
	}
	visit(root, "")
	return tree
}

func unescape(s string) string {
	return strings.NewReplacer(`\xe9`, "\xe9", `\xe8`, "\xe8").Replace(s)
}

func content(t *testing.T, blob []byte, r *estargz.Reader, name string, e *estargz.TOCEntry) []byte {
	t.Helper()
	var all []byte
	for int64(len(all)) < e.Size {
		c, ok := r.ChunkEntryForOffset(name, int64(len(all)))
		if !ok {
			t.Fatalf("%s: no chunk at %d", name, len(all))
		}
		z, err := gzip.NewReader(bytes.NewReader(blob[c.Offset:c.NextOffset()]))
		if err != nil {
			t.Fatalf("%s: member at %d: %v", name, c.Offset, err)
		}
		z.Multistream(false)
		if _, err := io.CopyN(io.Discard, z, c.InnerOffset); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		b := make([]byte, c.ChunkSize)
		if _, err := io.ReadFull(z, b); err != nil {
			t.Fatalf("%s: chunk at %d: %v", name, c.ChunkOffset, err)
		}
		if got := chunk.Sum(b).String(); got != c.ChunkDigest {
			t.Fatalf("%s: chunk at %d is %s, table says %s", name, c.ChunkOffset, got, c.ChunkDigest)
		}
		all = append(all, b...)
	}
	if got := chunk.Sum(all).String(); got != e.Digest {
		t.Fatalf("%s is %s, table says %s", name, got, e.Digest)
	}
	// And as stargz-snapshotter reads it.
	sr, err := r.OpenFile(name)
	if err != nil {
		t.Fatal(err)
	}
	whole := make([]byte, e.Size)
	if _, err := sr.ReadAt(whole, 0); err != nil || !bytes.Equal(whole, all) {
		t.Fatalf("%s: estargz reads something else: %v", name, err)
	}
	return all
}

func compareTrees(t *testing.T, want, got unpacked) {
	t.Helper()
	for _, tree := range []unpacked{want, got} {
		for p, n := range tree {
			if n.implicitDir || n.Type == "dir" && n.Mode == 0o755 && n.Time == "1970-01-01 00:00:00 +0000 UTC" {
				tree[p] = &node{Type: "dir"}
			}
		}
		delete(tree, "")
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(node{})); diff != "" {
		if len(diff) > 4000 {
			diff = diff[:4000]
		}
		t.Errorf("tree differs (-unpacked +lazy):\n%s", diff)
	}
}
