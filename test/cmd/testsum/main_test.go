package main

import (
	"strings"
	"testing"
)

func TestRun(t *testing.T) {
	const pass = `{"Action":"start","Package":"p"}
{"Action":"output","Package":"p","Test":"TestA","Output":"quiet\n"}
{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Output":"ok  \tp\t0.1s\n"}
{"Action":"pass","Package":"p"}
`
	for _, c := range []struct {
		name, in  string
		ok        bool
		want, not string // in the output
	}{
		{"passes", pass, true, "ok  \tp", "quiet"},
		{"nothing at all", "", false, "nothing was tested", ""},
		{"a package without tests", `{"Action":"start","Package":"p"}` + "\n" + `{"Action":"skip","Package":"p"}` + "\n", false, "nothing was tested", ""},
		{"only skipped", `{"Action":"start","Package":"p"}
{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:3: the machine lacks root\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"--- SKIP: TestA (0.00s)\n"}
{"Action":"skip","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p"}
`, false, "p TestA: the machine lacks root", ""},
		{"skipped in one run and not in another", `{"Action":"skip","Package":"p","Test":"TestA"}` + "\n" + pass, true, "1 tests passed, 0 skipped", "no reason"},
		{"fails", pass + `{"Action":"start","Package":"q"}
{"Action":"output","Package":"q","Test":"TestB","Output":"it is wrong\n"}
{"Action":"fail","Package":"q","Test":"TestB"}
{"Action":"fail","Package":"q"}
`, false, "it is wrong", ""},
		{"does not compile", pass + `{"Action":"build-output","ImportPath":"q [q.test]","Output":"q.go:1: no\n"}
{"Action":"start","Package":"q"}
{"Action":"fail","Package":"q","FailedBuild":"q [q.test]"}
`, false, "q.go:1: no", ""},
		{"cut short", pass + `{"Action":"start","Package":"q"}` + "\n", false, "in the middle", ""},
		{"words of the go command", "go: no such package\n" + pass, true, "go: no such package", ""},
		{"last line without an end", strings.TrimSuffix(pass, "\n"), true, "1 tests passed", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out strings.Builder
			ok, err := run(strings.NewReader(c.in), &out)
			if err != nil || ok != c.ok {
				t.Errorf("got %v, %v, want %v", ok, err, c.ok)
			}
			if !strings.Contains(out.String(), c.want) {
				t.Errorf("output has no %q:\n%s", c.want, out.String())
			}
			if c.not != "" && strings.Contains(out.String(), c.not) {
				t.Errorf("output has %q:\n%s", c.not, out.String())
			}
		})
	}
}
