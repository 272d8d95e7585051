// Package report puts what benchmarks have measured into a document: each
// section between two markers of its own, with what it was measured on. Text
// outside of the markers is people's and stays as it is.
package report

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

const header = `# Benchmarks

Written by commands, never by hand: ` + "`make bench`" + `. Each section says what it was
measured with.
`

// Section puts text between the markers of a section, making file and markers if
// they are missing.
func Section(file, section, text string) error {
	begin, end := "<!-- begin "+section+" -->\n", "<!-- end "+section+" -->\n"
	old, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		old, err = []byte(header), nil
	}
	if err != nil {
		return err
	}
	before, rest, ok := strings.Cut(string(old), begin)
	after := ""
	if ok {
		if _, after, ok = strings.Cut(rest, end); !ok {
			return fmt.Errorf("%s: section %q has no end", file, section)
		}
	} else {
		before += "\n"
	}
	return os.WriteFile(file, []byte(before+begin+text+end+after), 0o644) //nolint:gosec // a document
}

// Machine says on what it was measured.
func Machine() string {
	var u unix.Utsname
	kernel := "unknown"
	if err := unix.Uname(&u); err == nil {
		kernel, _, _ = strings.Cut(unix.ByteSliceToString(u.Release[:]), "-")
	}
	return fmt.Sprintf("Linux %s, %d cores, %s", kernel, runtime.NumCPU(), runtime.Version())
}
