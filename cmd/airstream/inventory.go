package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/airstream-io/airstream/internal/inventory"
)

func newInventoryCommand(std streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "inventory",
		Short: "Say in few bytes what this node has",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return runtimeError(cmd.Help()) },
	}
	cmd.AddCommand(newInventoryExportCommand(std), newInventoryShowCommand(std))
	return cmd
}

func newInventoryExportCommand(std streams) *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:   "export -o FILE",
		Short: "Write which images are here whole, for airstream bundle create --to-inventory",
		Long: `Write which images are here whole, in less than 64 bytes for each: what shore needs to
know to leave out what is here. - is standard output.`,
		Args: cobra.NoArgs,
	}
	v := newVerb(std, cmd)
	cmd.Flags().StringVarP(&out, "output", "o", "-", "write to `FILE`")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var images []inventory.Image
		if err := v.ask(cmd.Context(), http.MethodGet, "/v1/inventory", nil, &images); err != nil {
			return runtimeError(err)
		}
		b, err := inventory.Encode(images)
		if err != nil {
			return runtimeError(err)
		}
		if out == "-" {
			if f, ok := std.out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
				return exitWith(exitUsage, errors.New("an inventory is not for reading; write it to a file with -o, and airstream inventory show FILE shows it"))
			}
			_, err = std.out.Write(b)
		} else {
			err = os.WriteFile(out, b, 0o644) //nolint:gosec // it is no secret
		}
		if err != nil {
			return runtimeError(err)
		}
		return runtimeError(v.say("%s in %d bytes", count(len(images), "image"), len(b)))
	}
	return cmd
}

func newInventoryShowCommand(std streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "show FILE",
		Short: "Show what an inventory names",
		Args:  cobra.ExactArgs(1),
	}
	v := newVerb(std, cmd, tableJSONYAML...)
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		images, err := readInventory(args[0])
		if err != nil {
			return exitWith(exitVerify, err)
		}
		return runtimeError(v.print(images, func(w io.Writer) error {
			for _, img := range images {
				if _, err := fmt.Fprintln(w, img.Name()); err != nil {
					return err
				}
			}
			return nil
		}))
	}
	return cmd
}
