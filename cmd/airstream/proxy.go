package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/airstream-io/airstream/config"
	"github.com/airstream-io/airstream/internal/enrol"
)

func newProxyCommand(std streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "proxy",
		Short: "Serve nodes from shore: read registries, push what nodes lack",
		Long: `A proxy stands on shore, between registries and nodes. Nodes open one session with
it, and it sends what they lack of an image, in the order in which a start reads
it. Registries' credentials stay with it. docs/proxy.md says how to set one up.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runtimeError(cmd.Help()) },
	}
	cmd.AddCommand(newProxyInitCommand(std), newProxyTokenCommand(std), newProxyRevokeCommand(std), newProxyServeCommand(std))
	return cmd
}

// proxyConfig gives a command its --config, and reads it.
func proxyConfig(cmd *cobra.Command) func() (config.Proxy, error) {
	file := cmd.Flags().String("config", "", "the proxy's TOML `FILE` (default "+config.DefaultProxyFile+", if it is there)")
	return func() (config.Proxy, error) {
		p, err := config.LoadProxy(*file)
		return p, exitWith(exitUsage, err)
	}
}

func newProxyInitCommand(std streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "init HOST…",
		Short: "Make the authority that gives nodes their certificates",
		Long: `Make the authority that gives nodes their certificates. HOST are the names or
addresses that nodes reach the proxy at, without a port. Keep a copy of the
directory: without it, every node has to enrol again.`,
		Example: "  airstream proxy init proxy.example 192.0.2.10",
		Args:    cobra.MinimumNArgs(1),
	}
	load := proxyConfig(cmd)
	cmd.RunE = func(_ *cobra.Command, hosts []string) error {
		p, err := load()
		if err != nil {
			return err
		}
		for _, h := range hosts {
			if _, _, err := net.SplitHostPort(h); err == nil || strings.ContainsAny(h, "/ \n") {
				return exitWith(exitUsage, fmt.Errorf("%q is not a host name or an address without a port", h))
			}
		}
		err = enrol.Init(p.Authority, hosts)
		if errors.Is(err, fs.ErrExist) {
			return exitWith(exitFailure, fmt.Errorf("%s has an authority already: remove it if every node may enrol again", p.Authority))
		}
		if err != nil {
			return runtimeError(err)
		}
		_, err = fmt.Fprintf(std.err, "made %s; next: airstream proxy serve, and airstream proxy token NODE for each node\n", p.Authority)
		return err
	}
	return cmd
}

func newProxyTokenCommand(std streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "token NODE",
		Short:   "Make a token with which a node can enrol once",
		Long:    `Make a token with which a node can enrol once, as NODE, within a day or what --for says.`,
		Example: "  airstream proxy token vessel-1\n  # there: airstream enrol --proxy proxy.example:7075 TOKEN",
		Args:    cobra.ExactArgs(1),
	}
	load := proxyConfig(cmd)
	life := cmd.Flags().Duration("for", 24*time.Hour, "how `LONG` the token is good")
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		p, err := load()
		if err != nil {
			return err
		}
		a, err := openAuthority(p.Authority)
		if err != nil {
			return err
		}
		if a.Revoked(args[0]) && enrol.ValidName(args[0]) {
			return exitWith(exitFailure, fmt.Errorf("%q was revoked, for ever: give the node another name", args[0]))
		}
		token, err := a.Token(args[0], *life)
		if err != nil {
			return runtimeError(err)
		}
		_, err = fmt.Fprintln(std.out, token)
		return err
	}
	return cmd
}

func newProxyRevokeCommand(std streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "revoke NODE",
		Short: "Turn a node away from now on",
		Long: `Turn a node away from now on: its certificates are no longer good, and its sessions
end within a few seconds. The name can't be used again.`,
		Args: cobra.ExactArgs(1),
	}
	load := proxyConfig(cmd)
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		p, err := load()
		if err != nil {
			return err
		}
		a, err := openAuthority(p.Authority)
		if err != nil {
			return err
		}
		if err := a.Revoke(args[0]); err != nil {
			return runtimeError(err)
		}
		_, err = fmt.Fprintf(std.err, "%s is turned away\n", args[0])
		return err
	}
	return cmd
}

func openAuthority(dir string) (*enrol.Authority, error) {
	a, err := enrol.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, exitWith(exitUsage, fmt.Errorf("there is no authority in %s: airstream proxy init makes one", dir))
	}
	return a, runtimeError(err)
}
