package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/airstream-io/airstream/config"
	"github.com/airstream-io/airstream/internal/units"
)

func newLimitCommand(std streams) *cobra.Command {
	var (
		rate, daily, reserve string
		classes              []string
		hard, always, reset  bool
	)
	cmd := &cobra.Command{
		Use:   "limit",
		Short: "Show or change what may cross the link, until the next restart",
		Long: `Show what may cross the link, or change it until the daemon starts again. What
must last belongs into the configuration: [limits] in ` + config.DefaultFile + `,
followed by airstream reload.`,
		Example: `  airstream limit
  airstream limit --rate 256kbit --daily 500MB --reserve 50MB
  airstream limit --class background=20MB --class prefetch=none
  airstream limit --reset`,
		Args: cobra.NoArgs,
	}
	v := newVerb(std, cmd, tableJSONYAML...)
	fs := cmd.Flags()
	fs.StringVar(&rate, "rate", "", "bits a second, like 256kbit or 1.5mbit, or none")
	fs.StringVar(&daily, "daily", "", "bytes from midnight to midnight, like 500MB, or none")
	fs.StringVar(&reserve, "reserve", "", "part of --daily that is kept for what somebody waits for, or none")
	fs.StringSliceVar(&classes, "class", nil, "`CLASS=SIZE` a day for demand, hot, ahead, prefetch or background")
	fs.BoolVar(&hard, "hard", false, "what somebody waits for stops at --daily, too")
	fs.BoolVar(&always, "always", false, "ignore the contact windows")
	fs.BoolVar(&reset, "reset", false, "go back to what the configuration says")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		change := limitChange{Reset: reset, Always: always}
		err := errors.Join(
			flagText(fs.Changed("rate"), "rate", rate, &change.Rate),
			flagText(fs.Changed("daily"), "daily", daily, &change.Daily),
			flagText(fs.Changed("reserve"), "reserve", reserve, &change.Reserve),
			classFlags(classes, &change),
		)
		if err != nil {
			return exitWith(exitUsage, err)
		}
		if fs.Changed("hard") {
			change.Hard = &hard
		}
		var s limitStatus
		if slices.ContainsFunc([]string{"rate", "daily", "reserve", "class", "hard", "always", "reset"}, fs.Changed) {
			err = v.ask(cmd.Context(), "POST", "/v1/limits", change, &s)
		} else {
			err = v.ask(cmd.Context(), "GET", "/v1/limits", nil, &s)
		}
		if err != nil {
			return runtimeError(err)
		}
		return runtimeError(v.print(s, func(w io.Writer) error { return printLimits(w, &s, time.Now()) }))
	}
	return cmd
}

// flagText reads a flag's value if it was given.
func flagText[T any, P interface {
	*T
	UnmarshalText([]byte) error
}](given bool, name, value string, to **T) error {
	if !given {
		return nil
	}
	v := new(T)
	if err := P(v).UnmarshalText([]byte(value)); err != nil {
		return fmt.Errorf("--%s: %w", name, err)
	}
	*to = v
	return nil
}

func classFlags(classes []string, change *limitChange) error {
	for _, c := range classes {
		name, value, ok := strings.Cut(c, "=")
		var size *config.Size
		if !ok {
			return fmt.Errorf("--class %s: want CLASS=SIZE, like background=20MB", c)
		}
		if err := flagText(true, "class", value, &size); err != nil {
			return err
		}
		if change.Class == nil {
			change.Class = map[string]config.Size{}
		}
		change.Class[name] = *size
	}
	return nil
}

func printLimits(w io.Writer, s *limitStatus, now time.Time) error {
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	line := func(key string, format string, args ...any) {
		_, _ = fmt.Fprintf(t, "%s\t%s\n", key, fmt.Sprintf(format, args...)) // the writer keeps its error for Flush
	}
	line("rate", "%s", s.Rate)
	day := s.Daily.String()
	if s.Daily > 0 {
		day += ", " + units.Short(s.Link.BudgetLeft) + " left today"
	}
	line("daily", "%s", day)
	line("reserve", "%s", s.Reserve)
	if s.Daily > 0 {
		line("hard", "%s", yesNo(s.Hard))
	}
	for _, c := range slices.Sorted(maps.Keys(s.Class)) {
		line("class "+c, "%s, %s used today", s.Class[c], units.Short(s.Link.Today[c]))
	}
	for _, win := range s.Windows {
		days := make([]string, 0, len(win.Days))
		for _, d := range win.Days {
			days = append(days, d.String())
		}
		line("window", "%s", strings.TrimSpace(fmt.Sprintf("%s to %s %s", win.From, win.To, strings.Join(days, " "))))
	}
	if len(s.Windows) > 0 {
		open := "it is open"
		if at := s.Link.NextWindow; at != nil {
			open = "it opens in " + units.Span(at.Sub(now))
		}
		line("", "%s; outside of it: %s", open, s.Outside)
	}
	if s.Changed {
		line("", "changed until the next restart; airstream limit --reset takes it back")
	}
	return t.Flush()
}

func newReloadCommand(std streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "reload",
		Short: "Have the node read its configuration again",
		Long: `Have the node read its configuration again, as a SIGHUP does. Limits, the
cache and the log level change at once; keys that need a restart are named. If the
configuration is wrong, nothing changes.`,
		Args: cobra.NoArgs,
	}
	v := newVerb(std, cmd, tableJSONYAML...)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var done reloaded
		if err := v.ask(cmd.Context(), "POST", "/v1/reload", nil, &done); err != nil {
			return runtimeError(err)
		}
		return runtimeError(v.print(done, func(w io.Writer) error {
			for _, key := range done.Applied {
				if _, err := fmt.Fprintf(w, "%s: in force\n", key); err != nil {
					return err
				}
			}
			for _, key := range done.Restart {
				if _, err := fmt.Fprintf(w, "%s: needs a restart of the daemon\n", key); err != nil {
					return err
				}
			}
			if len(done.Applied)+len(done.Restart) == 0 {
				return v.say("nothing has changed")
			}
			return nil
		}))
	}
	return cmd
}
