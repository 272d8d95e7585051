package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/airstream-io/airstream/config"
	"github.com/airstream-io/airstream/internal/supervise"
)

func newSuperviseCommand(std streams) *cobra.Command {
	return &cobra.Command{
		Use:   "supervise [-- COMMAND...]",
		Short: "Keep the node daemon running, and containers across its restarts",
		Long: `Run COMMAND, "airstream node" unless given, and start it again whenever it ends.

The node daemon hands this process what running containers hang on: while the
daemon is away, their reads wait, and the next daemon answers them. systemd does
the same by itself (deploy/airstream.service); this is for machines without it.

  SIGUSR2         restarts the daemon, from what its file holds now: an upgrade
  SIGTERM, SIGINT ends it for good; containers on lazy layers lose their files
  other signals   are passed on; the node daemon reads its configuration again
                  on SIGHUP`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				self, err := os.Executable()
				if err != nil {
					return runtimeError(err)
				}
				args = []string{self, "node"}
			}
			signals := make(chan os.Signal, 16)
			signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2)
			defer signal.Stop(signals)
			opts := supervise.Options{
				Command: args, Logger: newLogger(config.Default().Log, new(slog.LevelVar), std).With(slog.String("by", "supervise")),
			}
			if f, ok := std.out.(*os.File); ok {
				opts.Stdout = f
			}
			if f, ok := std.err.(*os.File); ok {
				opts.Stderr = f
			}
			// Signals end it, not ctx: it must tell them apart.
			code, err := supervise.Run(context.WithoutCancel(cmd.Context()), signals, opts)
			if err == nil && code != exitOK {
				return exitWith(code, fmt.Errorf("%s ended with code %d", args[0], code))
			}
			return runtimeError(err)
		},
	}
}
