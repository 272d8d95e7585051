package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/airstream-io/airstream/config"
)

// verb is what the commands that ask the node have in common.
type verb struct {
	std    streams
	config string // the node's TOML file
	output string // how the result is printed; "" if the command has no choice
}

// newVerb makes a command of c: with --config, with --output if it can print
// in formats, the first being the default, and with both from the environment.
func newVerb(std streams, c *cobra.Command, formats ...string) *verb {
	v := &verb{std: std}
	c.Flags().StringVar(&v.config, "config", "", "the node's TOML `FILE` (default "+config.DefaultFile+", if it is there)")
	if len(formats) > 0 {
		c.Flags().StringVarP(&v.output, "output", "o", formats[0], "print the result as "+strings.Join(formats, ", "))
	}
	c.PreRunE = func(c *cobra.Command, _ []string) error {
		for _, name := range []string{"config", "output", "no-progress"} {
			f := c.Flags().Lookup(name)
			if f == nil {
				continue
			}
			if err := flagFromEnv(f, c.Flags(), os.LookupEnv); err != nil {
				return exitWith(exitUsage, err)
			}
		}
		if v.output != "" && !slices.Contains(formats, v.output) {
			return exitWith(exitUsage, fmt.Errorf("--output %q: use %s", v.output, strings.Join(formats, ", ")))
		}
		return nil
	}
	return v
}

// tableJSONYAML are the formats of most verbs.
var tableJSONYAML = []string{"table", "json", "yaml"}

// settings reads the configuration of the node.
func (v *verb) settings() (config.Settings, error) {
	s, err := config.Read(v.config, os.Environ())
	return s, exitWith(exitUsage, err)
}

// client returns a client of the node.
func (v *verb) client() (*adminClient, error) {
	s, err := v.settings()
	if err != nil {
		return nil, err
	}
	return newAdminClient(s.State), nil
}

// ask sends in, unless it is nil, and decodes the node's answer into out.
func (v *verb) ask(ctx context.Context, method, path string, in, out any) error {
	c, err := v.client()
	if err != nil {
		return err
	}
	return c.ask(ctx, method, path, in, out)
}

// print prints a result: data for machines, or what table writes for people.
func (v *verb) print(data any, table func(io.Writer) error) error {
	if v.output == "table" {
		return table(v.std.out)
	}
	return printData(v.std.out, v.output, data)
}

// say writes a line for people, beside the result.
func (v *verb) say(format string, args ...any) error {
	_, err := fmt.Fprintf(v.std.err, format+"\n", args...)
	return err
}

// printData writes data as json or yaml.
func printData(w io.Writer, format string, data any) error {
	raw, err := json.MarshalIndent(data, "", "  ")
	if err != nil {
		return err
	}
	if format == "yaml" {
		return printYAML(w, raw)
	}
	_, err = w.Write(append(raw, '\n'))
	return err
}

// completeRefs offers the names of the node's images to the shell.
func (v *verb) completeRefs(c *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(c.Context(), time.Second) // somebody waits at a prompt
	defer cancel()
	var images []imageStatus
	if err := v.ask(ctx, "GET", "/v1/images", nil, &images); err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for i := range images {
		for _, n := range images[i].Names {
			if strings.HasPrefix(n, prefix) {
				names = append(names, n)
			}
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
