// Command benchdelta makes deltas between two trees and says what they cost:
//
//	benchdelta OLD NEW
//
// It checks that what is applied is what was wanted. In the environment, MODE is
// fast or slow for these profiles, VERBOSE lists the files, and PROFILE names a
// file for a profile of the CPU.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"syscall"
	"time"

	"github.com/airstream-io/airstream/delta"
	"github.com/airstream-io/airstream/internal/chunk"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: benchdelta OLD NEW")
		os.Exit(2)
	}
	if err := run(context.Background(), os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, from, to string) (err error) {
	have, err := list(from)
	if err != nil {
		return err
	}
	want, err := list(to)
	if err != nil {
		return err
	}
	if name := os.Getenv("PROFILE"); name != "" {
		f, err := os.Create(name)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	report := func(p delta.Piece) {
		if os.Getenv("VERBOSE") != "" {
			fmt.Printf("%9d missed %9d literal of %9d  %s  (%s)\n", p.Missed, p.Literal, p.Size, p.Path, p.Base)
		}
	}
	profile := map[string]delta.Profile{"fast": delta.Fast, "slow": delta.Slow}[os.Getenv("MODE")]
	sets := []delta.Set{{Name: "old", Files: have}}
	var out bytes.Buffer
	var stats delta.Stats
	cost, err := measure(func() (err error) {
		stats, err = delta.Encode(ctx, sets, want, delta.Options{Report: report, Profile: profile}, &out)
		return err
	})
	if err != nil {
		return err
	}
	fmt.Printf("encode  %9d bytes, %s\n        %+v\n", out.Len(), cost, stats)
	sink := &check{}
	cost, err = measure(func() error {
		_, err := delta.Apply(ctx, &out, delta.Receiver{
			Set:    func(context.Context, string) (delta.Set, error) { return sets[0], nil },
			Expect: func(i int) ([]chunk.ID, error) { return want[i].Chunks, nil },
			Sink:   sink,
			Memory: 256 << 20,
		})
		return err
	})
	if err != nil {
		return err
	}
	fmt.Printf("apply   %9d bytes, %s\n", sink.bytes, cost)
	return nil
}

type check struct{ bytes int64 }

func (c *check) Begin(int, int64) error { return nil }
func (c *check) End() error             { return nil }
func (c *check) Chunk(_ chunk.ID, p []byte) error {
	c.bytes += int64(len(p))
	return nil
}

// list returns the regular files below dir, which may be a file itself.
func list(dir string) (files []delta.File, err error) {
	err = filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		p, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, name)
		if err != nil {
			return err
		}
		f := delta.File{Path: rel, Size: int64(len(p)), Open: func(context.Context) (delta.Content, error) { return os.Open(name) }}
		for ; len(p) > 0; p = p[min(len(p), chunk.DefaultSize):] {
			f.Chunks = append(f.Chunks, chunk.Sum(p[:min(len(p), chunk.DefaultSize)]))
		}
		files = append(files, f)
		return nil
	})
	return files, err
}

// measure says how long f took, and the most memory that the process had.
func measure(f func() error) (string, error) {
	debug.FreeOSMemory()
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0o600); err != nil {
		return "", err
	}
	before, start := cpu(), time.Now()
	err := f()
	took, used := time.Since(start), cpu()-before
	status, e := os.ReadFile("/proc/self/status")
	if e != nil {
		return "", e
	}
	peak := 0
	for line := range bytes.Lines(status) {
		if n, _ := fmt.Sscanf(string(line), "VmHWM: %d kB", &peak); n == 1 {
			break
		}
	}
	return fmt.Sprintf("%.1f s, %.1f s of CPU, %d MiB at most (%d CPUs)", took.Seconds(), used.Seconds(), peak>>10, runtime.NumCPU()), err
}

func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
