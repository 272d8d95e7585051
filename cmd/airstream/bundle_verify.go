package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/airstream-io/airstream/internal/bundle"
	"github.com/airstream-io/airstream/internal/units"
)

// checkedBundle is what airstream bundle verify prints.
type checkedBundle struct {
	Bundle  string          `json:"bundle"`
	Signer  string          `json:"signer,omitempty"` // ID of the key that it claims
	Trusted bool            `json:"trusted"`          // the signature is by one of the keys that were given
	Records int             `json:"records"`
	Sound   int             `json:"sound"`
	Damage  []bundle.Damage `json:"damage,omitempty"`
	Cut     bool            `json:"cut"` // it breaks off before its end
}

func newBundleVerifyCommand(std streams) *cobra.Command {
	var f readerFlags
	cmd := &cobra.Command{
		Use:   "verify FILE",
		Short: "Check a bundle's signature and each of its records",
		Long: `Check a bundle's signature, if --key says whose it should be, and each of its records.
- is standard input.

Exit codes: 0 all is well; 2 wrong usage; 3 it breaks off before its end; 5 it is
damaged, encrypted to somebody else, or not signed by one of the keys.`,
		Args: cobra.ExactArgs(1),
	}
	v := newVerb(std, cmd, tableJSONYAML...)
	f.register(cmd)
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		b, err := openBundle(args[0], std.in, &f)
		if err != nil {
			return bundleError(err)
		}
		defer b.Close() //nolint:errcheck // a reader
		c := checkedBundle{Bundle: b.ID().String(), Signer: b.Signature().KeyID(), Trusted: len(f.keys) > 0, Records: len(b.contents.Records)}
		for {
			_, err := b.Next()
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				c.Cut = errors.Is(err, io.ErrUnexpectedEOF)
				break
			}
			if err != nil {
				return bundleError(err)
			}
			c.Sound++
		}
		c.Damage = b.Damage()
		if err := v.print(c, c.table); err != nil {
			return runtimeError(err)
		}
		return c.verdict()
	}
	return cmd
}

func (c *checkedBundle) table(w io.Writer) error {
	signed := "not signed"
	switch {
	case c.Trusted:
		signed = "signed by key " + c.Signer
	case c.Signer != "":
		signed = "signed, it says, by key " + c.Signer + " (--key checks that)"
	}
	if _, err := fmt.Fprintf(w, "bundle %s, %s\n%d of %s sound\n", c.Bundle, signed, c.Sound, count(c.Records, "record")); err != nil {
		return err
	}
	for _, d := range c.Damage {
		if _, err := fmt.Fprintf(w, "damaged: %s from byte %d on\n", units.Short(d.Size), d.Offset); err != nil {
			return err
		}
	}
	return nil
}

// verdict is an error if something is wrong.
func (c *checkedBundle) verdict() error {
	switch {
	case len(c.Damage) > 0 && c.Sound == c.Records:
		return exitWith(exitVerify, errors.New("the bundle is damaged, and none of its records: all of it can be applied"))
	case len(c.Damage) > 0:
		return exitWith(exitVerify, fmt.Errorf("the bundle is damaged: %d of %d records are missing; what is sound can be applied", c.Records-c.Sound, c.Records))
	case c.Cut:
		return exitWith(exitIncomplete, fmt.Errorf("the bundle breaks off: %d of %d records are here; what is here can be applied", c.Sound, c.Records))
	}
	return nil
}
