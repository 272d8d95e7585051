package site

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/airstream-io/airstream/test/rig/netns"
)

// otherGrace is how long another snapshotter may take to end. It takes moments.
const otherGrace = 20 * time.Second

// StartOther starts a snapshotter that isn't Airstream's where containerd looks
// for that: for a Site with NoDaemon. It is called with the path of its socket
// and of its root directory, and args after these, and prints "ready" as its
// first line once it answers. Close ends it.
func (s *Site) StartOther(ctx context.Context, program string, args ...string) error {
	for _, dir := range []string{filepath.Dir(s.SnapshotterSocket()), s.Root()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("site: %w", err)
		}
	}
	read, write, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("site: %w", err)
	}
	defer read.Close() //nolint:errcheck // only read
	s.other, err = s.Link.Node.Start(netns.Command{
		Args: append([]string{program, s.SnapshotterSocket(), s.Root()}, args...), Log: s.path("other.log"), Stdout: write,
	})
	if err = errors.Join(err, write.Close()); err != nil {
		return err
	}
	limit := time.Now().Add(startLimit)
	if at, ok := ctx.Deadline(); ok && at.Before(limit) {
		limit = at
	}
	_ = read.SetReadDeadline(limit) // a pipe can
	line := make([]byte, 100)
	n, err := read.Read(line)
	if err == nil && !strings.HasPrefix(string(line[:n]), "ready\n") {
		err = fmt.Errorf("it printed %q", line[:n])
	}
	if err != nil {
		return s.other.Explain(fmt.Errorf("site: another snapshotter did not get ready: %w", err))
	}
	return nil
}

// OtherLog returns the end of what that snapshotter has logged.
func (s *Site) OtherLog() string {
	if s.other == nil {
		return ""
	}
	return s.other.LogTail()
}

func (s *Site) stopOther(ctx context.Context) error {
	if s.other == nil {
		return nil
	}
	return s.other.Stop(ctx, otherGrace)
}
