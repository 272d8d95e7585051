package toc

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/google/go-cmp/cmp"
)

// rawEntry is an entry as airstream's converter writes it for names that are
// not UTF-8.
type rawEntry struct {
	estargz.TOCEntry
	RawName     []byte `json:"rawName,omitempty"`
	RawLinkName []byte `json:"rawLinkName,omitempty"`
}

func rawTable(tb testing.TB, entries ...rawEntry) []byte {
	tb.Helper()
	b, err := json.Marshal(map[string]any{"version": 1, "entries": entries})
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

func raw(e estargz.TOCEntry, name, link string) rawEntry {
	return rawEntry{TOCEntry: e, RawName: []byte(name), RawLinkName: []byte(link)}
}

func rawSample(tb testing.TB) []byte {
	tb.Helper()
	return rawTable(tb,
		raw(estargz.TOCEntry{Name: `d\xff`, Type: "dir", Mode: 0o755}, "d\xff/", ""),
		raw(estargz.TOCEntry{Name: `d\xff/gr\xf6`, Type: "reg", Mode: 0o644}, "d\xff/gr\xf6", ""),
		raw(estargz.TOCEntry{Name: `d\xff/gr\xe4`, Type: "reg", Mode: 0o644}, "d\xff/gr\xe4", ""),
		raw(estargz.TOCEntry{Name: "hard", Type: "hardlink", LinkName: `d\xff/gr\xf6`}, "", "d\xff/gr\xf6"),
		raw(estargz.TOCEntry{Name: "sym", Type: "symlink", Mode: 0o777, LinkName: `gr\xf6`}, "", "gr\xf6"),
		raw(estargz.TOCEntry{Name: `.wh.\xfe`, Type: "reg"}, ".wh.\xfe", ""))
}

func TestRawNamesReplaceTheReadableOnes(t *testing.T) {
	tree, err := Parse(bytes.NewReader(rawSample(t)), 1<<40)
	if err != nil {
		t.Fatal(err)
	}
	want := "d\xff 40755 2\nd\xff/gr\xe4 100644 1\nd\xff/gr\xf6 100644 2\nhard 100644 2\nsym 120777 1 -> gr\xf6\n\xfe 20000 1\n"
	if diff := cmp.Diff([]byte(want), []byte(dump(tree))); diff != "" {
		t.Error(diff)
	}
	if got := tree.Attr(find(t, tree, "sym")).Size; got != 3 {
		t.Errorf("the symbolic link has a size of %d, want the 3 bytes of its raw target", got)
	}
}

// What a readable name must not be, a raw one must not be either.
func TestRawNamesAreDistrustedAlike(t *testing.T) {
	for _, tc := range []struct {
		name  string
		entry rawEntry
		want  string
	}{
		{"traversal", raw(*empty("a"), "../etc/passwd", ""), "leaves the layer"},
		{"traversal by hardlink", raw(*hardlinkTo("a", "b"), "", "../../etc/shadow"), "leaves the layer"},
		{"NUL", raw(*empty("a"), "a\x00\xff", ""), "NUL"},
		{"long name", raw(*empty("a"), strings.Repeat("\xff", 256), ""), "256 bytes"},
		{"long target", raw(estargz.TOCEntry{Name: "a", Type: "symlink", LinkName: "b"}, "", strings.Repeat("\xff", 4097)), "target"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := Parse(bytes.NewReader(rawTable(t, tc.entry)), 1<<40)
			if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want ErrInvalid with %q", err, tc.want)
			}
		})
	}
}
