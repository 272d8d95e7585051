package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"filippo.io/age"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/airstream-io/airstream/convert/location"
	"github.com/airstream-io/airstream/internal/bundle"
	"github.com/airstream-io/airstream/internal/catalog"
	"github.com/airstream-io/airstream/internal/chunk"
	"github.com/airstream-io/airstream/internal/toc"
	"github.com/airstream-io/airstream/pack"
	"github.com/airstream-io/airstream/receive"
)

func newBundleCommand(std streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bundle",
		Short: "Carry images in a file, where no link is",
		Long: `Carry images in a file: by USB stick, pipe, HTTP, mail or radio.

On shore, "bundle create" writes what a node needs of images, less what it has; on
the node, "bundle apply" takes it in, without a link. Any beginning of a bundle is
of use, damage costs the records that it hit, and what broke off goes on.
docs/bundle.md tells more.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runtimeError(cmd.Help()) },
	}
	cmd.AddCommand(
		newBundleCreateCommand(std), newBundleVerifyCommand(std), newBundleInspectCommand(std), newBundleApplyCommand(std), newBundleWaitingCommand(std),
		newBundleSplitCommand(std), newBundleJoinCommand(std), newBundleExportCommand(std), newBundleImportCommand(std), newBundleExtractCommand(std),
	)
	return cmd
}

// bundleFile is a bundle that is being read.
type bundleFile struct {
	*bundle.Reader
	file     *os.File
	size     int64 // 0: not known
	contents *bundle.Contents
}

// readerFlags say who is to be able to read and to have made a bundle.
type readerFlags struct {
	keys       []string
	identities []string
}

func (f *readerFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringArrayVar(&f.keys, "key", nil, "refuse it unless it is signed with this minisign public `KEY`: the key, or a file; may be given several times")
	cmd.Flags().StringArrayVarP(&f.identities, "identity", "i", nil, "decrypt it with the age identities in `FILE`; may be given several times")
}

// trusted reads the public keys.
func (f *readerFlags) trusted() (keys []bundle.Key, err error) {
	for _, s := range f.keys {
		k, err := bundle.ParseKey(s)
		if err != nil {
			return nil, exitWith(exitUsage, err)
		}
		keys = append(keys, k)
	}
	return keys, nil
}

// readIdentities reads files of age identities.
func readIdentities(files []string) (all []age.Identity, err error) {
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return nil, exitWith(exitUsage, err)
		}
		ids, err := age.ParseIdentities(f)
		if err = errors.Join(err, f.Close()); err != nil {
			return nil, exitWith(exitUsage, fmt.Errorf("%s: %w", name, err))
		}
		all = append(all, ids...)
	}
	return all, nil
}

// openBundle opens a bundle, "-" being in, and reads its manifest, from wherever
// it is sound.
func openBundle(name string, in io.Reader, f *readerFlags) (b *bundleFile, err error) {
	b = &bundleFile{}
	r := in
	if name != "-" {
		if b.file, err = os.Open(name); err != nil {
			return nil, exitWith(exitFailure, err)
		}
		r = b.file
		if info, err := b.file.Stat(); err == nil && info.Mode().IsRegular() {
			b.size = info.Size()
		}
	}
	if b.Reader, err = bundle.NewReader(r); err != nil {
		return nil, err
	}
	fail := func(err error) (*bundleFile, error) {
		return nil, exitWith(bundleCode(err), fmt.Errorf("%s: %w", name, errors.Join(err, b.Close())))
	}
	if b.Identities, err = readIdentities(f.identities); err != nil {
		return fail(err)
	}
	if b.contents, err = b.Begin(); err != nil {
		return fail(err)
	}
	keys, err := f.trusted()
	if err != nil {
		return fail(err)
	}
	if len(keys) > 0 {
		if _, err := b.Signature().Verify(keys); err != nil {
			return fail(err)
		}
	}
	if b.Late() {
		if b.size == 0 {
			return fail(fmt.Errorf("%w: its first manifest; read it from a file, so that its copy at the end can be used", bundle.ErrDamaged))
		}
		if _, err := b.file.Seek(0, io.SeekStart); err != nil {
			return fail(err)
		}
		b.Resume(b.file, 0)
	}
	return b, nil
}

// Close closes the file and the reader.
func (b *bundleFile) Close() error {
	b.Reader.Close()
	if b.file == nil {
		return nil
	}
	return b.file.Close()
}

// bundleCode returns the exit code that an error of a bundle means.
func bundleCode(err error) int {
	known, ok := errors.AsType[*exitError](err)
	switch {
	case err == nil:
		return exitOK
	case ok:
		return known.code
	case errors.Is(err, context.Canceled), errors.Is(err, receive.ErrIncomplete) && !errors.Is(err, bundle.ErrDamaged), errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, bundle.ErrDamaged):
		return exitIncomplete
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EFBIG):
		return exitSpace
	case errors.Is(err, bundle.ErrDamaged), errors.Is(err, bundle.ErrNotBundle), errors.Is(err, bundle.ErrSignature), errors.Is(err, bundle.ErrSealed),
		errors.Is(err, pack.ErrContent), errors.Is(err, toc.ErrInvalid), errors.Is(err, receive.ErrWrong), errors.Is(err, chunk.ErrMismatch),
		errors.Is(err, catalog.ErrConflict), errors.Is(err, catalog.ErrInvalid):
		return exitVerify
	case errors.Is(err, receive.ErrBaseMissing):
		return exitBaseMissing
	case errors.Is(err, location.ErrUnreachable):
		return exitLink
	case errors.Is(err, location.ErrSyntax), errors.Is(err, pack.ErrNoPlatform):
		return exitUsage
	}
	return codeOf(err)
}

// bundleError gives an error its exit code and the next step.
func bundleError(err error) error {
	if err == nil {
		return nil
	}
	code := bundleCode(err)
	switch {
	case errors.Is(err, location.ErrDenied):
		err = nextStep(err, "Log in with docker login (a registry may also say this of an image that it doesn't have).")
	case errors.Is(err, location.ErrUnreachable):
		err = nextStep(err, "Check the address and the network, then run the same command again.")
	case errors.Is(err, bundle.ErrSealed):
		err = nextStep(err, "Give the file with the age identity: --identity FILE.")
	case code == exitSpace:
		err = nextStep(err, "A disk is full. Another place for scratch files can be given with --work-dir.")
	}
	return exitWith(code, err)
}

// askPassword asks for a password on the terminal.
func askPassword(std streams, what string) func() (string, error) {
	return func() (string, error) {
		if v := os.Getenv("AIRSTREAM_KEY_PASSWORD"); v != "" {
			return v, nil
		}
		in, ok := std.in.(*os.File)
		if !ok || !term.IsTerminal(int(in.Fd())) {
			return "", errors.New("it is encrypted; give the password in AIRSTREAM_KEY_PASSWORD")
		}
		if _, err := fmt.Fprintf(std.err, "Password of %s: ", what); err != nil {
			return "", err
		}
		b, err := term.ReadPassword(int(in.Fd()))
		_, _ = fmt.Fprintln(std.err)
		return string(b), err
	}
}
