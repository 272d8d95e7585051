package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/airstream-io/airstream/test/rig/checker"
)

// The checker finds a single wrong bit, a byte too many, a missing file, and a
// page that can't be had, and nothing where all is well.
func TestCheckerFindsWhatIsWrong(t *testing.T) {
	files := checker.Spec{Seed: 5, Size: 1 << 20}.Files()
	for _, tc := range []struct {
		name          string
		harm          func(path string) error
		wrong, failed bool
	}{
		{name: "nothing", harm: func(string) error { return nil }},
		{name: "a bit", wrong: true, harm: func(path string) error {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			b[len(b)/2] ^= 4
			return os.WriteFile(path, b, 0o600)
		}},
		{name: "a byte too many", wrong: true, harm: func(path string) error {
			info, err := os.Stat(path)
			if err != nil {
				return err
			}
			return os.Truncate(path, info.Size()+1)
		}},
		{name: "a short file", wrong: true, failed: true, harm: func(path string) error { return os.Truncate(path, 10) }},
		{name: "no file", failed: true, harm: os.Remove},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := &check{root: t.TempDir()}
			for _, f := range files {
				path := filepath.Join(c.root, f.Path)
				if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
					t.Fatal(err)
				}
				b := make([]byte, f.Size)
				f.Fill(b, 0)
				if err := os.WriteFile(path, b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if err := tc.harm(filepath.Join(c.root, files[9].Path)); err != nil {
				t.Fatal(err)
			}
			for _, f := range files {
				c.file(f)
			}
			if r := c.report; (r.Wrong > 0) != tc.wrong || (r.Errors > 0) != tc.failed || (r.First != "") != (tc.wrong || tc.failed) {
				t.Errorf("%+v", r)
			}
		})
	}
}
