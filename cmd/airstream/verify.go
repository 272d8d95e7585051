package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/airstream-io/airstream/internal/store"
	"github.com/airstream-io/airstream/internal/units"
)

// verified is what airstream verify prints.
type verified struct {
	Findings []store.Finding `json:"findings"`
	Damaged  int             `json:"damaged"`  // findings that are damage
	Orphans  int             `json:"orphans"`  // and that nobody needs
	Repaired int             `json:"repaired"` // of both
}

func newVerifyCommand(std streams) *cobra.Command {
	var o verifyOrder
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Look for damage in what is cached, and mend it",
		Long: `Look for damage in what is cached: sizes, presence and what is small; with --deep
all content is hashed. With --repair what is damaged is forgotten, so that it is
fetched again, and what nobody needs is deleted. A running node does it beside its
work; else it is done here.

Exit codes: 0 all is well, or was mended; 5 there is damage.`,
		Args: cobra.NoArgs,
	}
	v := newVerb(std, cmd, tableJSONYAML...)
	var noProgress bool
	cmd.Flags().BoolVar(&o.Deep, "deep", false, "hash all content")
	cmd.Flags().BoolVar(&o.Repair, "repair", false, "forget what is damaged, so that it is fetched again")
	cmd.Flags().BoolVar(&noProgress, "no-progress", false, "don't show progress")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		found := verified{Findings: []store.Finding{}}
		meter := newByteProgress(std.err, "verify", noProgress)
		err := v.verify(cmd.Context(), o, func(e verifyEvent) error {
			if e.Finding != nil {
				found.add(*e.Finding)
			} else {
				meter.update(e.Done, e.Total, 0)
			}
			return nil
		})
		meter.finish()
		if err != nil {
			return runtimeError(err)
		}
		if err := v.print(found, func(w io.Writer) error { return printVerified(w, &found) }); err != nil {
			return runtimeError(err)
		}
		return found.verdict(o)
	}
	return cmd
}

// verify has the node look, or looks itself if there is none.
func (v *verb) verify(ctx context.Context, o verifyOrder, report func(verifyEvent) error) error {
	s, err := v.settings()
	if err != nil {
		return err
	}
	err = newAdminClient(s.State).do(ctx, http.MethodPost, "/v1/verify", o, func(r io.Reader) error {
		dec := json.NewDecoder(r)
		for {
			var e verifyEvent
			if err := dec.Decode(&e); err != nil {
				return exitWith(exitIncomplete, fmt.Errorf("the node stopped; run it again: %w", err))
			}
			if e.End {
				return eventError(e.Error, e.Code)
			}
			if err := report(e); err != nil {
				return err
			}
		}
	})
	if !errors.Is(err, errNoNode) {
		return err
	}
	if _, serr := os.Stat(filepath.Join(s.Root, "store")); errors.Is(serr, fs.ErrNotExist) {
		return exitWith(exitFailure, fmt.Errorf("%w, and there is no store in %s", errNoNode, s.Root))
	}
	if err := v.say("no node runs; looking at %s", s.Root); err != nil {
		return err
	}
	err = verifyOffline(ctx, &s.Node, o, func(e verifyEvent) { _ = report(e) })
	return exitWith(codeOf(err), err)
}

// eventError is the error that ended a stream of events.
func eventError(text string, code int) error {
	if text == "" {
		return nil
	}
	return exitWith(max(code, exitFailure), errors.New(text))
}

func (f *verified) add(finding store.Finding) {
	f.Findings = append(f.Findings, finding)
	if finding.Orphan {
		f.Orphans++
	} else {
		f.Damaged++
	}
	if finding.Repaired {
		f.Repaired++
	}
}

// verdict is an error if damage was left.
func (f *verified) verdict(o verifyOrder) error {
	left := 0
	for _, x := range f.Findings {
		if !x.Orphan && !x.Repaired {
			left++
		}
	}
	switch {
	case left == 0:
		return nil
	case o.Repair:
		return exitWith(exitVerify, fmt.Errorf("%d of %d could not be mended", left, f.Damaged))
	}
	return exitWith(exitVerify, fmt.Errorf("%s damaged; airstream verify --repair has it fetched again", count(left, "item")))
}

func printVerified(w io.Writer, f *verified) error {
	for _, x := range f.Findings {
		what := "damaged"
		if x.Orphan {
			what = "not needed"
		}
		if x.Repaired {
			what += ", mended"
		}
		if _, err := fmt.Fprintf(w, "%s %s: %s: %s (%s)\n", x.Kind, x.Name, what, x.Problem, units.Short(x.Bytes)); err != nil {
			return err
		}
	}
	if len(f.Findings) == 0 {
		_, err := fmt.Fprintln(w, "no damage found")
		return err
	}
	_, err := fmt.Fprintf(w, "%d damaged, %d not needed, %d mended\n", f.Damaged, f.Orphans, f.Repaired)
	return err
}

// quiet is a logger for what says what is worth knowing by other means.
func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }
