package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/airstream-io/airstream/config"
	"github.com/airstream-io/airstream/internal/units"
	"github.com/airstream-io/airstream/snapshotter/layerfs"
)

// The verdicts of a finding.
const (
	verdictOK   = "ok"
	verdictWarn = "warn" // it works, not as well as it could
	verdictFail = "fail" // it doesn't work
)

// finding is what airstream doctor says of one thing.
type finding struct {
	Verdict string `json:"verdict"`
	Name    string `json:"name"`
	Detail  string `json:"detail"`
	Next    string `json:"next,omitempty"` // what to do about it
}

// patient is what airstream doctor looks at.
type patient struct {
	cfg        config.Node
	containerd []string // places of containerd's configuration, the first that is there counts
	findings   []finding
}

// containerdConfigs are where containerd's configuration is on the
// distributions that Airstream is for.
var containerdConfigs = []string{
	"/etc/containerd/config.toml",
	"/var/lib/rancher/k3s/agent/etc/containerd/config.toml",
	"/var/lib/rancher/rke2/agent/etc/containerd/config.toml",
}

func newDoctorCommand(std streams) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check what the node needs, and say what to do about what lacks",
		Long: `Check the machine, the configuration, the running node, containerd's configuration,
disk, clock and link. Nothing is changed, and nothing crosses the link.

Exit codes: 0 it works, perhaps with warnings; 1 something does not.`,
		Args: cobra.NoArgs,
	}
	v := newVerb(std, cmd, tableJSONYAML...)
	cmd.Flags().StringVar(&file, "containerd-config", "", "containerd's `FILE` (default: the usual places)")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		p := &patient{containerd: containerdConfigs}
		if file != "" {
			p.containerd = []string{file}
		}
		p.examine(cmd.Context(), v)
		if err := v.print(p.findings, func(w io.Writer) error { return printFindings(w, p.findings) }); err != nil {
			return runtimeError(err)
		}
		failed := 0
		for _, f := range p.findings {
			if f.Verdict == verdictFail {
				failed++
			}
		}
		if failed > 0 {
			return exitWith(exitFailure, fmt.Errorf("%s to mend", count(failed, "thing")))
		}
		return nil
	}
	return cmd
}

func (p *patient) examine(ctx context.Context, v *verb) {
	p.machine()
	s, err := v.settings()
	if err == nil {
		_, err = registryHosts(s.Registry)
	}
	if err != nil {
		p.note(verdictFail, "configuration", err.Error(), "mend the file; airstream config validate checks it")
		s.Node = config.Default()
	} else {
		from := s.File
		if from == "" {
			from = "no file; all defaults"
		}
		p.note(verdictOK, "configuration", from, "")
	}
	p.cfg = s.Node
	p.node(ctx)
	p.mirror(ctx)
	p.containerdConfig()
	p.disk()
	p.clock()
}

func (p *patient) note(verdict, name, detail, next string) {
	p.findings = append(p.findings, finding{verdict, name, detail, next})
}

// check notes good if ok, and bad and the next step if not.
func (p *patient) check(ok bool, verdict, name, good, bad, next string) {
	if ok {
		p.note(verdictOK, name, good, "")
		return
	}
	p.note(verdict, name, bad, next)
}

func (p *patient) machine() {
	for _, f := range layerfs.Check() {
		verdict := verdictFail
		if !f.Required {
			verdict = verdictWarn
		}
		p.check(f.OK, verdict, f.Name, f.Detail, f.Detail, "")
	}
}

// node asks the running daemon.
func (p *patient) node(ctx context.Context) {
	var s nodeStatus
	err := newAdminClient(p.cfg.State).ask(ctx, "GET", "/v1/status", nil, &s)
	if err != nil {
		next := "look at its log: journalctl -u airstream"
		if errors.Is(err, errNoNode) {
			next = "start it: systemctl start airstream"
		}
		p.note(verdictFail, "node", err.Error(), next)
		return
	}
	p.check(s.Version == version(), verdictWarn, "node", "up for "+units.Span(s.Now.Sub(s.Started))+", "+shortVersion(s.Version),
		fmt.Sprintf("it runs version %s, and this is %s", s.Version, version()), "systemctl restart airstream")
	for _, problem := range s.Health.Problems {
		p.note(verdictFail, "node", problem, "")
	}
	p.check(s.Keeper != "", verdictWarn, "keeper", s.Keeper+" keeps the file systems of containers over a restart of the daemon",
		"nobody keeps the file systems of containers over a restart of the daemon: containers on lazy layers lose them", "run it by systemd as deploy/airstream.service has it, or by airstream supervise")
	l := s.Link.lines(s.Now)
	p.check(s.Link.Phase == "up", verdictWarn, "link", l[0], l[0], "")
	for _, h := range s.Queue.Paused {
		p.note(verdictWarn, "registry "+h.Host, h.Error, "")
	}
}

func printFindings(w io.Writer, findings []finding) error {
	width := 0
	for _, f := range findings {
		width = max(width, len(f.Name))
	}
	for _, f := range findings {
		if _, err := fmt.Fprintf(w, "%-4s  %-*s  %s\n", f.Verdict, width, f.Name, f.Detail); err != nil {
			return err
		}
		if f.Next != "" {
			if _, err := fmt.Fprintf(w, "%-4s  %-*s  → %s\n", "", width, "", f.Next); err != nil {
				return err
			}
		}
	}
	return nil
}
