package link

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/airstream-io/airstream/test/rig/netns"
)

// airlink is the command that runs an emulator in a process of its own.
const airlink = "github.com/airstream-io/airstream/test/cmd/airlink"

// Ready is what airlink prints on a line of its own once packets cross.
const Ready = "ready"

// Options describes a link to start.
type Options struct {
	EmulatorOptions

	// Airlink is the emulator's binary. If it is empty, Start builds it into
	// the user's cache, which takes the go command and a working directory
	// within this module.
	Airlink string

	Shore, Node netns.Options
}

// Link is a running link with a namespace at either end. It is safe for
// concurrent use.
type Link struct {
	Client                // commands
	Shore, Node *netns.NS // the two ends; Close deletes them

	dir     string
	process *netns.Process
	stdin   io.Closer
}

// Start sweeps away what dead runs have left, makes two namespaces and joins
// them by an emulator in a process of its own, which dies with this one.
func Start(ctx context.Context, opts Options) (_ *Link, err error) {
	if err := opts.Profile.Validate(); err != nil {
		return nil, err
	}
	if _, err := netns.Sweep(); err != nil {
		return nil, err
	}
	l := &Link{}
	defer func() { //nolint:contextcheck // cleans up even when ctx has ended
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	if l.dir, err = os.MkdirTemp("", "airlink-"); err != nil {
		return nil, fmt.Errorf("link: start: %w", err)
	}
	if opts.Airlink == "" {
		if opts.Airlink, err = Build(ctx); err != nil {
			return nil, err
		}
	}
	if l.Shore, err = netns.Create("shore", opts.Shore); err != nil {
		return nil, err
	}
	if l.Node, err = netns.Create("node", opts.Node); err != nil {
		return nil, err
	}
	l.Client = Client{Path: filepath.Join(l.dir, "control.sock")}
	return l, l.launch(ctx, opts)
}

// launch starts the emulator's process and waits until it is ready.
func (l *Link) launch(ctx context.Context, opts Options) error {
	stdinR, stdinW, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("link: start: %w", err)
	}
	defer stdinR.Close() //nolint:errcheck // the child has its own
	l.stdin = stdinW
	stdoutR, stdoutW, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("link: start: %w", err)
	}
	defer stdoutR.Close() //nolint:errcheck // only read
	var here *netns.NS
	l.process, err = here.Start(netns.Command{
		Args: []string{
			opts.Airlink,
			"-shore", l.Shore.Path(), "-node", l.Node.Path(), "-control", l.Path,
			"-profile", opts.Profile.String(), "-seed", strconv.FormatUint(opts.Seed, 10),
			"-shore-congestion", opts.ShoreCongestionControl, "-node-congestion", opts.NodeCongestionControl,
		},
		Log:   filepath.Join(l.dir, "log"),
		Stdin: stdinR, Stdout: stdoutW,
	})
	err = errors.Join(err, stdoutW.Close())
	if err != nil {
		return err
	}
	unhook := context.AfterFunc(ctx, func() { stdoutR.SetReadDeadline(time.Unix(1, 0)) }) //nolint:errcheck // ends the wait below
	defer unhook()
	line, err := bufio.NewReader(io.LimitReader(stdoutR, maxLine)).ReadString('\n')
	if err != nil || strings.TrimSpace(line) != Ready {
		return l.process.Explain(fmt.Errorf("not ready: %w", explain(ctx, err)))
	}
	return nil
}

// Close stops the emulator and deletes both namespaces.
func (l *Link) Close() error {
	var errs []error
	if l.process != nil {
		// Its input ends: airlink takes that as a request to stop.
		errs = append(errs, l.stdin.Close(), l.process.Stop(context.Background(), 5*time.Second))
	}
	for _, ns := range []*netns.NS{l.Shore, l.Node} {
		if ns != nil {
			errs = append(errs, ns.Close())
		}
	}
	if l.dir != "" {
		errs = append(errs, os.RemoveAll(l.dir))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("link: close: %w", err)
	}
	return nil
}

// Build brings the emulator's binary in the user's cache up to date and
// returns its path. It takes the go command and a working directory within
// this module.
func Build(ctx context.Context) (path string, err error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("link: build airlink: %w", err)
	}
	bin := filepath.Join(cache, "airstream", "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return "", fmt.Errorf("link: build airlink: %w", err)
	}
	path = filepath.Join(bin, "airlink")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", path, airlink)
	// Built next to where it goes, the binary gets there by a rename: another
	// run may be using the old one.
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOTMPDIR="+bin)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("link: build airlink: %w\n%s", err, out)
	}
	return path, nil
}
