// Command airlink puts a bad link on your desk: two network namespaces, shore
// and node, joined by an emulated satellite, radio or one-way link.
//
//	airlink -profile geo-vsat
//
// makes them, prints how to enter either side, and takes them away again at
// Ctrl-C. Meanwhile, from another shell,
//
//	airlink -control SOCKET stats
//	airlink -control SOCKET cut | restore | blackhole | reset
//	airlink -control SOCKET profile l-band
//	airlink -control SOCKET schedule 30s/10m 5m/1h | schedule none
//
// commands the link; every command prints the counters as JSON. A profile is
// one of the names that -list prints, or settings such as
// rtt=600ms,down=2mbit,up=512kbit,loss=1%/3, or a name followed by settings.
//
// Tests and demos use the same command, with -shore and -node naming
// namespaces that they have made themselves.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/airstream-io/airstream/test/rig/link"
	"github.com/airstream-io/airstream/test/rig/netns"
)

// Exit codes, those of airstream.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := link.Prioritise(); err != nil {
		fmt.Fprintln(os.Stderr, "airlink:", err)
	}
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// settings are what the flags say.
type settings struct {
	emulator    link.EmulatorOptions
	shore, node string // paths of namespaces; empty: make them
	control     string
	list        bool
	command     []string
}

// errUsage marks errors that the command line is to blame for.
var errUsage = errors.New("see airlink -h")

func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	s, err := parse(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil:
	case s.list:
		err = list(stdout)
	case len(s.command) > 0:
		err = command(ctx, s.control, s.command, stdout)
	case s.shore != "":
		err = attach(ctx, s, stdin, stdout)
	default:
		err = rehearse(ctx, s, stdout, stderr)
	}
	if err == nil {
		return exitOK
	}
	fmt.Fprintf(stderr, "airlink: %v\n", err) //nolint:errcheck // nobody to tell
	if errors.Is(err, errUsage) {
		return exitUsage
	}
	return exitFailure
}

func parse(args []string, stderr io.Writer) (settings, error) {
	var s settings
	flags := flag.NewFlagSet("airlink", flag.ContinueOnError)
	flags.SetOutput(stderr)
	profile := flags.String("profile", "geo-vsat", "the link: a `name` of -list, or settings")
	flags.Uint64Var(&s.emulator.Seed, "seed", 0, "of losses and delays: the same `number`, the same fate")
	flags.StringVar(&s.emulator.ShoreCongestionControl, "shore-congestion", "", "TCP congestion control of the shore (default "+link.DefaultCongestionControl+")")
	flags.StringVar(&s.emulator.NodeCongestionControl, "node-congestion", "", "TCP congestion control of the node (default "+link.DefaultCongestionControl+")")
	flags.StringVar(&s.shore, "shore", "", "namespace `file` of the shore side (default: make one)")
	flags.StringVar(&s.node, "node", "", "namespace `file` of the node side (default: make one)")
	flags.StringVar(&s.control, "control", "", "`socket` for commands (default: in a new directory)")
	flags.BoolVar(&s.list, "list", false, "print the known profiles and end")
	flags.Usage = func() {
		io.WriteString(stderr, "usage: airlink [flags]                              emulate a link until Ctrl-C\n"+ //nolint:errcheck // nobody to tell
			"       airlink -control SOCKET COMMAND [ARGUMENT...]  "+strings.Join(commandNames, ", ")+"\n\nflags:\n")
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return s, err
		}
		return s, fmt.Errorf("%w; %w", err, errUsage)
	}
	s.command = flags.Args()
	if (s.shore == "") != (s.node == "") {
		return s, fmt.Errorf("-shore and -node go together; %w", errUsage)
	}
	if s.control == "" && (len(s.command) > 0 || s.shore != "") {
		return s, fmt.Errorf("-control is missing; %w", errUsage)
	}
	var err error
	if s.emulator.Profile, err = link.Parse(*profile); err != nil {
		return s, fmt.Errorf("%w; %w", err, errUsage)
	}
	return s, nil
}

func list(stdout io.Writer) error {
	for _, p := range append(link.Profiles(), link.Direct()) {
		if _, err := fmt.Fprintf(stdout, "%-15s %s\n", p.Name, strings.TrimSuffix(p.String(), ",name="+p.Name)); err != nil {
			return err
		}
	}
	return nil
}

// attach emulates a link between namespaces that somebody else has made,
// until its input ends.
func attach(ctx context.Context, s settings, stdin io.Reader, stdout io.Writer) (err error) {
	shore, err := netns.Open(s.shore)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, shore.Close()) }()
	node, err := netns.Open(s.node)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, node.Close()) }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // ends with the process: nothing interrupts a read from a terminal
		io.Copy(io.Discard, stdin) //nolint:errcheck // however it ended
		cancel()
	}()
	return link.Serve(ctx, shore, node, s.emulator, s.control, func() error {
		_, err := fmt.Fprintln(stdout, link.Ready)
		return err
	})
}

// rehearse makes both namespaces, says how to use them, and takes them away.
func rehearse(ctx context.Context, s settings, stdout, stderr io.Writer) (err error) {
	if _, err := netns.Sweep(); err != nil {
		return err
	}
	shore, err := netns.Create("shore", netns.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, shore.Close()) }()
	node, err := netns.Create("node", netns.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, node.Close()) }()
	if s.control == "" {
		dir, err := os.MkdirTemp("", "airlink-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir) //nolint:errcheck // a socket at most
		s.control = filepath.Join(dir, "control.sock")
	}
	err = link.Serve(ctx, shore, node, s.emulator, s.control, func() error {
		_, err := fmt.Fprintf(stdout, `link     %s
shore    %s   nsenter --net=%s
node     %s   nsenter --net=%s
command  airlink -control %s %s
`, s.emulator.Profile, link.ShoreAddr, shore.Path(), link.NodeAddr, node.Path(), s.control, strings.Join(commandNames, "|"))
		fmt.Fprintln(stderr, "Ctrl-C ends the link and takes both sides away.") //nolint:errcheck // nobody to tell
		return err
	})
	return err
}

// commandNames lists what command knows.
var commandNames = []string{"stats", "cut", "restore", "blackhole", "reset", "profile", "schedule"}

// command commands a running link and prints its counters.
func command(ctx context.Context, socket string, args []string, stdout io.Writer) error {
	client := link.Client{Path: socket}
	plain := map[string]func(context.Context) (link.Stats, error){
		"stats": client.Stats, "cut": client.Cut, "restore": client.Restore,
		"blackhole": client.Blackhole, "reset": client.Reset,
	}
	var stats link.Stats
	var err error
	switch do, ok := plain[args[0]]; {
	case ok && len(args) == 1:
		stats, err = do(ctx)
	case args[0] == "profile" && len(args) == 2:
		var p link.Profile
		if p, err = link.Parse(args[1]); err == nil {
			stats, err = client.SetProfile(ctx, p)
		}
	case args[0] == "schedule" && len(args) >= 2:
		var outages []link.Outage
		if outages, err = parseOutages(args[1:]); err == nil {
			stats, err = client.Schedule(ctx, outages...)
		}
	default:
		return fmt.Errorf("cannot do %q; %w", strings.Join(args, " "), errUsage)
	}
	if err != nil {
		return err
	}
	out := json.NewEncoder(stdout)
	out.SetIndent("", "  ")
	return out.Encode(stats)
}

func parseOutages(args []string) ([]link.Outage, error) {
	if len(args) == 1 && args[0] == "none" {
		return nil, nil
	}
	var outages []link.Outage
	for _, arg := range args {
		o, err := link.ParseOutage(arg)
		if err != nil {
			return nil, fmt.Errorf("%w; %w", err, errUsage)
		}
		outages = append(outages, o)
	}
	return outages, nil
}
