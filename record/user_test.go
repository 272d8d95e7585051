package record

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestFindUser(t *testing.T) {
	root := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(root, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n# a comment\nbad:x:nobody:7::/:\nredis:x:101:102::/var/lib/redis:/bin/false\n1234:x:55:56:a name of digits:/:\nshort\n")
	// A link leads to a place in the image, also where it is absolute.
	write("usr/share/group", "root:x:0:\nredis:x:102:\nssl:x:103:www,redis\naudio:x:29:redis\nodd:x:many:redis\n")
	if err := os.Symlink("/usr/share/group", filepath.Join(root, "etc/group")); err != nil {
		t.Fatal(err)
	}
	for spec, want := range map[string]string{
		"":            "0:0 []",
		"root":        "0:0 []",
		"redis":       "101:102 [103 29]",
		"101":         "101:102 [103 29]",
		"redis:ssl":   "101:103 []",
		"redis:9":     "101:9 []",
		"4000":        "4000:0 []",
		"4000:audio":  "4000:29 []",
		":audio":      "0:29 []",
		"1234":        "55:56 []", // a name before a number, as others have it
		"nobody":      "no such user",
		"redis:video": `no group "video"`,
		"4294967295":  "no such user",
	} {
		u, err := findUser(root, spec)
		got := fmt.Sprintf("%d:%d %v", u.UID, u.GID, u.Groups)
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, want) {
			t.Errorf("%q: %s, want %s", spec, got, want)
		}
	}
	// An image may have neither file; and may have something else there.
	if u, err := findUser(t.TempDir(), "12:13"); err != nil || u.UID != 12 || u.GID != 13 || len(u.Groups) != 0 {
		t.Errorf("without files: %+v, %v", u, err)
	}
	odd := t.TempDir()
	if err := os.MkdirAll(filepath.Join(odd, "etc/passwd"), 0o755); err != nil {
		t.Fatal(err)
	}
	if u, err := findUser(odd, "0"); err == nil {
		t.Errorf("/etc/passwd is a directory: %+v", u)
	}
}

func FuzzAccounts(f *testing.F) {
	f.Add("root:x:0:0:::\nredis:x:101:102::", "redis:x:102:redis,x\n", "redis:102")
	f.Add("::::\n:::", "\x00:\xff:4294967295:", ":")
	f.Fuzz(func(t *testing.T, passwd, group, spec string) {
		root := t.TempDir()
		if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string]string{"passwd": passwd, "group": group} {
			if err := os.WriteFile(filepath.Join(root, "etc", name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		u, err := findUser(root, spec)
		if err == nil && (u.UID == ^uint32(0) || u.GID == ^uint32(0) || slices.Contains(u.Groups, ^uint32(0))) {
			t.Errorf("%+v: -1 means to change nothing", u)
		}
	})
}
