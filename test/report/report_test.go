package report

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSection(t *testing.T) {
	file := filepath.Join(t.TempDir(), "doc.md")
	for _, step := range []struct{ section, text, want string }{
		{"a", "one\n", header + "\n<!-- begin a -->\none\n<!-- end a -->\n"},
		{"b c", "two\n", header + "\n<!-- begin a -->\none\n<!-- end a -->\n\n<!-- begin b c -->\ntwo\n<!-- end b c -->\n"},
		{"a", "three\n", header + "\n<!-- begin a -->\nthree\n<!-- end a -->\n\n<!-- begin b c -->\ntwo\n<!-- end b c -->\n"},
	} {
		if err := Section(file, step.section, step.text); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if string(b) != step.want {
			t.Errorf("after %s:\n%s\nwant:\n%s", step.section, b, step.want)
		}
	}
	if err := os.WriteFile(file, []byte("<!-- begin a -->\nno end\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Section(file, "a", ""); err == nil || !strings.Contains(err.Error(), "no end") {
		t.Errorf("got %v", err)
	}
	if m := Machine(); !strings.HasPrefix(m, "Linux ") {
		t.Errorf("machine: %s", m)
	}
}
