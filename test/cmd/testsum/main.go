// Command testsum reads what "go test -json" prints and tells it shortly: a
// line for each package, the output of tests that failed, and at the end what
// was skipped and why.
//
//	go test -json ./... | testsum
//
// It fails when a package or test failed, when what it reads is cut short, and
// when no test ran at all: a green run that tested nothing is worth nothing.
package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
)

func main() {
	ok, err := run(os.Stdin, os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "testsum:", err)
	}
	if !ok || err != nil {
		os.Exit(1)
	}
}

// event is a line of "go test -json"; see "go doc test2json".
type event struct {
	Action      string
	Package     string
	ImportPath  string // of build events
	Test        string
	Elapsed     float64 // seconds
	Output      string
	FailedBuild string
}

type key struct{ pkg, test string }

// sum is what has been read so far.
type sum struct {
	w       io.Writer
	output  map[key][]string // of tests that are not over
	builds  map[string][]string
	open    map[string]bool // packages that have begun and not ended
	failed  []string
	skipped map[key]string // why
	passed  map[key]bool
}

// run returns whether all is well.
func run(r io.Reader, w io.Writer) (ok bool, err error) {
	s := &sum{w: w, output: map[key][]string{}, builds: map[string][]string{}, open: map[string]bool{}, skipped: map[key]string{}, passed: map[key]bool{}}
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadString('\n')
		if errors.Is(err, io.EOF) && line == "" {
			return s.end(), nil
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return false, fmt.Errorf("read: %w", err)
		}
		var e event
		if json.Unmarshal([]byte(line), &e) != nil {
			s.say("%s", line) // words of the go command itself
			continue
		}
		s.take(e)
	}
}

func (s *sum) say(format string, args ...any) {
	fmt.Fprintf(s.w, format, args...) //nolint:errcheck // nobody to tell
}

func (s *sum) take(e event) {
	k := key{e.Package, e.Test}
	switch e.Action {
	case "start":
		s.open[e.Package] = true
	case "build-output":
		s.builds[e.ImportPath] = append(s.builds[e.ImportPath], e.Output)
	case "output":
		s.output[k] = append(s.output[k], e.Output)
	case "pass", "skip", "fail":
		if e.Test == "" {
			s.pkg(e)
		} else {
			s.test(e)
		}
		delete(s.output, k)
	}
}

// test ends a test.
func (s *sum) test(e event) {
	k := key{e.Package, e.Test}
	switch e.Action {
	case "pass":
		s.passed[k] = true
	case "skip":
		s.skipped[k] = reason(s.output[k])
	case "fail":
		s.failed = append(s.failed, e.Package+" "+e.Test)
		s.say("%s", strings.Join(s.output[k], ""))
	}
}

// pkg ends a package: its own output has the line that go test prints.
func (s *sum) pkg(e event) {
	delete(s.open, e.Package)
	out := s.output[key{e.Package, ""}]
	switch e.Action {
	case "fail":
		s.failed = append(s.failed, e.Package)
		s.say("%s", strings.Join(s.builds[e.FailedBuild], ""))
		// A crash or a timeout: what the tests that it hit have said.
		for k, lines := range s.output {
			if k.pkg == e.Package && k.test != "" {
				s.say("%s", strings.Join(lines, ""))
				delete(s.output, k)
			}
		}
		s.say("%s", strings.Join(out, ""))
		if len(out) == 0 {
			s.say("FAIL\t%s\n", e.Package)
		}
	case "skip": // a package without tests
	default:
		for _, line := range out {
			if strings.HasPrefix(line, "ok ") || strings.HasPrefix(line, "? ") {
				s.say("%s", line)
			}
		}
	}
}

// reason is what a test said when it skipped itself.
func reason(output []string) string {
	for _, line := range slices.Backward(output) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "--- ") || strings.HasPrefix(line, "=== ") {
			continue
		}
		// "file_test.go:12: reason"
		if place, said, ok := strings.Cut(line, ": "); ok && strings.Contains(place, "_test.go:") {
			return said
		}
		return line
	}
	return "no reason given"
}

func (s *sum) end() bool {
	// What one run skipped and another ran was not skipped.
	maps.DeleteFunc(s.skipped, func(k key, _ string) bool { return s.passed[k] })
	if len(s.skipped) > 0 {
		s.say("\nskipped:\n")
		for _, k := range slices.SortedFunc(maps.Keys(s.skipped), func(a, b key) int {
			return cmp.Or(strings.Compare(a.pkg, b.pkg), strings.Compare(a.test, b.test))
		}) {
			s.say("  %s %s: %s\n", k.pkg, k.test, s.skipped[k])
		}
	}
	if len(s.failed) > 0 {
		s.say("\nfailed:\n")
		for _, line := range s.failed {
			s.say("  %s\n", line)
		}
	}
	s.say("\n%d tests passed, %d skipped, %d failed\n", len(s.passed), len(s.skipped), len(s.failed))
	if len(s.open) > 0 {
		s.say("go test ended in the middle of %d packages\n", len(s.open))
	}
	if len(s.passed) == 0 {
		s.say("nothing was tested\n")
	}
	return len(s.failed) == 0 && len(s.open) == 0 && len(s.passed) > 0
}
