package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// goPackages have benchmarks whose figures users may want to compare: the
// converter against estargz.Build, the FUSE tree against plain directories.
var goPackages = []string{"./convert/layer", "./snapshotter/layerfs", "./internal/toc"}

// goBenchmarks runs the benchmarks beside the code and returns a section with
// what they print.
func (b *bench) goBenchmarks(ctx context.Context) (string, error) {
	b.say("go test -bench . %s", strings.Join(goPackages, " "))
	args := append([]string{"test", "-run", "^$", "-bench", ".", "-p", "1", "-timeout", "60m"}, goPackages...)
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	var out, words bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &words
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("go %s: %w\n%s%s", strings.Join(args, " "), err, out.String(), words.String())
	}
	var t strings.Builder
	fmt.Fprintf(&t, "## Beside the code\n\n`go test -bench .` of the converter, the FUSE tree and the table of contents. %s\n\n```\n", b.conditions())
	for line := range strings.Lines(out.String()) {
		if strings.HasPrefix(line, "Benchmark") || strings.HasPrefix(line, "pkg:") {
			t.WriteString(line)
		}
	}
	t.WriteString("```\n")
	return t.String(), nil
}
