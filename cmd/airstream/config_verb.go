package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/airstream-io/airstream/config"
)

func newConfigCommand(std streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Check the node's configuration, and show what is in force",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return runtimeError(cmd.Help()) },
	}
	cmd.AddCommand(newConfigShowCommand(std), newConfigValidateCommand(std))
	return cmd
}

func newConfigShowCommand(std streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Print every setting and where it comes from",
		Long: `Print every setting with where it comes from: a line of the file, a variable of the
environment, or the default. What is printed is a valid configuration. A running
node may have been started with another environment; airstream limit shows the
limits that are in force there.`,
		Args: cobra.NoArgs,
	}
	v := newVerb(std, cmd, "toml", "json", "yaml")
	cmd.RunE = func(*cobra.Command, []string) error {
		s, err := v.settings()
		if err != nil {
			return err
		}
		if v.output == "toml" {
			text, err := s.TOML()
			if err == nil {
				_, err = io.WriteString(std.out, text)
			}
			return runtimeError(err)
		}
		m, err := s.Map()
		if err != nil {
			return runtimeError(err)
		}
		return runtimeError(printData(std.out, v.output, m))
	}
	return cmd
}

func newConfigValidateCommand(std streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "validate [FILE]",
		Short: "Check a configuration: keys, values, units, and the files that it names",
		Args:  cobra.MaximumNArgs(1),
	}
	v := newVerb(std, cmd)
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		if len(args) > 0 {
			v.config = args[0]
		}
		s, err := v.settings()
		if err != nil {
			return err
		}
		// What it names is read as the node would read it.
		if _, err := registryHosts(s.Registry); err != nil {
			return exitWith(exitUsage, fmt.Errorf("config: %w", err))
		}
		if s.File == "" {
			return runtimeError(v.say("%s is not there; all settings are defaults or from the environment, and valid", config.DefaultFile))
		}
		return runtimeError(v.say("%s is valid", s.File))
	}
	return cmd
}
