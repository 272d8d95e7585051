package main

import (
	"slices"
	"strings"
	"testing"
)

func TestSplitWords(t *testing.T) {
	for in, want := range map[string][]string{
		"":                               nil,
		" \t\n":                          nil,
		"redis-server":                   {"redis-server"},
		"  a  b\tc\n":                    {"a", "b", "c"},
		`python3 -c "import asyncio"`:    {"python3", "-c", "import asyncio"},
		`sh -c 'echo "x"; exit'`:         {"sh", "-c", `echo "x"; exit`},
		`a""b '' ""`:                     {"ab", "", ""},
		`a\ b \"c\" 'd\e'`:               {"a b", `"c"`, `d\e`},
		`"a\"b\\c\d"`:                    {`a"b\c\d`},
		"größe 'mit ümlaut'":             {"größe", "mit ümlaut"},
		"$HOME is `not` expanded & *.go": {"$HOME", "is", "`not`", "expanded", "&", "*.go"},
	} {
		if got, err := splitWords(in); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %q, %v; want %q", in, got, err, want)
		}
	}
	for _, in := range []string{`"a`, `'a`, `a\`, `"a\`} {
		if got, err := splitWords(in); err == nil {
			t.Errorf("%q: %q, want an error", in, got)
		}
	}
}

// Words that are quoted come back as they were.
func FuzzSplitWords(f *testing.F) {
	f.Add(`a "b c" 'd'`, "x y")
	f.Add(`\`, `'"\`)
	f.Add("\xff\"", "\x00")
	f.Fuzz(func(t *testing.T, line, word string) {
		if words, err := splitWords(line); err == nil && strings.Join(words, "") == "" && strings.ContainsAny(line, "abc") {
			t.Errorf("%q lost all of it", line)
		}
		quoted := "'" + strings.ReplaceAll(strings.ToValidUTF8(word, "?"), "'", `'\''`) + "'"
		got, err := splitWords("x " + quoted + " y")
		if want := []string{"x", strings.ToValidUTF8(word, "?"), "y"}; err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %q, %v; want %q", quoted, got, err, want)
		}
	})
}
