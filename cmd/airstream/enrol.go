package main

import (
	"errors"
	"net"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/airstream-io/airstream/internal/enrol"
	"github.com/airstream-io/airstream/internal/link"
)

// identityDir is where a node's certificate is, below its root.
const identityDir = "identity"

func newEnrolCommand(std streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "enrol --proxy HOST:PORT TOKEN",
		Short: "Get this node's certificate from a shore proxy",
		Long: `Get this node's certificate from a shore proxy, with a token that airstream proxy
token made there. It is good once; the certificate is renewed by the node from
then on. It is stored below the node's root.`,
		Example: "  airstream enrol --proxy proxy.example:7075 ast1.…",
		Args:    cobra.ExactArgs(1),
	}
	address := cmd.Flags().String("proxy", "", "the proxy's `HOST:PORT`")
	v := newVerb(std, cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		s, err := v.settings()
		if err != nil {
			return err
		}
		host, _, err := net.SplitHostPort(*address)
		if err != nil || host == "" {
			return exitWith(exitUsage, errors.New("--proxy says where the proxy is: HOST:PORT"))
		}
		conf, err := enrol.Pinned(args[0], host)
		if err != nil {
			return exitWith(exitUsage, err)
		}
		key, request, err := enrol.Request()
		if err != nil {
			return runtimeError(err)
		}
		cert, ca, err := link.Enrol(cmd.Context(), link.Options{Address: *address, TLS: conf}, args[0], request)
		if refused := (*link.Refusal)(nil); errors.As(err, &refused) || errors.Is(err, enrol.ErrRefused) {
			return exitWith(exitFailure, err)
		}
		if err != nil {
			return exitWith(exitLink, err)
		}
		id, err := enrol.Store(filepath.Join(s.Root, identityDir), key, cert, ca)
		if err != nil {
			return runtimeError(err)
		}
		return v.say("this node is %s at %s, until %s", id.Name(), *address, id.Until().Format(time.DateOnly))
	}
	return cmd
}
