package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"
)

// readLines reads words, one a line; # begins a comment. check refuses some.
func readLines(file string, in io.Reader, check func(word string) error) (words []string, err error) {
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer f.Close() //nolint:errcheck // a reader
		in = f
	}
	lines := bufio.NewScanner(in)
	for n := 1; lines.Scan(); n++ {
		text, _, _ := strings.Cut(lines.Text(), "#")
		switch fields := strings.Fields(text); len(fields) {
		case 0:
		case 1:
			if err := check(fields[0]); err != nil {
				return nil, fmt.Errorf("%s: line %d: %w", file, n, err)
			}
			words = append(words, fields[0])
		default:
			return nil, fmt.Errorf("%s: line %d: %q is more than one reference", file, n, strings.TrimSpace(text))
		}
	}
	return words, lines.Err()
}
