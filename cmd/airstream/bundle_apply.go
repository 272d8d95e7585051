package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/airstream-io/airstream/receive"
)

// applyFlags are the flags of one invocation.
type applyFlags struct {
	readerFlags
	activate   bool
	partial    bool
	noProgress bool
}

func newBundleApplyCommand(std streams) *cobra.Command {
	var f applyFlags
	cmd := &cobra.Command{
		Use:   "apply FILE",
		Short: "Take a bundle in on this node",
		Long: `Take a bundle in on this node; no link is needed. - is standard input. What is here
already changes nothing, and what broke off goes on where it stopped: run the same
command again, with the same file or more of it.

With --activate, names mean the bundle's images as soon as all of these are here, and
all names at once; what they meant before is kept, see airstream rollback. A bundle
that builds upon images which are not here waits until they are, in whatever order
bundles come.

Exit codes: 0 all of it is here; 1 failed; 2 wrong usage; 3 more is to come; 5 it is
damaged or not signed by whom it should be; 6 an image that it builds upon is not here;
7 no space.`,
		Example: `  airstream bundle apply --activate /media/usb/ship.bundle
  curl -s https://shore.example/ship.bundle | airstream bundle apply --key fleet.pub -`,
		Args: cobra.ExactArgs(1),
	}
	v := newVerb(std, cmd, tableJSONYAML...)
	f.register(cmd)
	cmd.Flags().BoolVar(&f.activate, "activate", false, "let names mean the bundle's images when all of these are here")
	cmd.Flags().BoolVar(&f.partial, "partial", false, "with --activate, each image alone, though others are not here")
	cmd.Flags().BoolVar(&f.noProgress, "no-progress", false, "don't show progress")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if f.partial && !f.activate {
			return exitWith(exitUsage, errors.New("--partial is for --activate"))
		}
		reply, err := applyBundle(cmd.Context(), v, f, args[0])
		if err != nil {
			return bundleError(err)
		}
		if err := v.print(reply.Result, func(w io.Writer) error { return printApplied(w, &reply.Result) }); err != nil {
			return runtimeError(err)
		}
		return eventError(reply.Error, reply.Code)
	}
	return cmd
}

// applyBundle sends the node what it lacks of a bundle.
func applyBundle(ctx context.Context, v *verb, f applyFlags, name string) (reply bundleReply, err error) {
	client, err := v.client()
	if err != nil {
		return reply, err
	}
	b, err := openBundle(name, v.std.in, &f.readerFlags)
	if err != nil {
		return reply, err
	}
	defer b.Close() //nolint:errcheck // a reader
	q := url.Values{"key": f.keys}
	for _, file := range f.identities {
		abs, err := filepath.Abs(file)
		if err != nil {
			return reply, err
		}
		q.Add("identity", abs)
	}
	if f.activate {
		q.Set("activate", "true")
	}
	if f.partial {
		q.Set("partial", "true")
	}
	send := func(body io.Reader) error {
		return client.send(ctx, "/v1/bundle?"+q.Encode(), body, func(r io.Reader) error {
			reply = bundleReply{}
			if err := json.NewDecoder(io.LimitReader(r, maxAnswer)).Decode(&reply); err != nil {
				return exitWith(exitIncomplete, fmt.Errorf("the node stopped; run the same command again to go on: %w", err))
			}
			return nil
		})
	}
	// By the manifest alone the node tells what it lacks, and whether it takes any.
	if err := send(bytes.NewReader(b.Manifest())); err != nil || reply.Code != exitIncomplete {
		return reply, err
	}
	rest, done := b.Rest(), int64(0)
	if b.size > 0 {
		if n := reply.Result.Next; n > 0 && int(n) <= len(b.contents.Records) {
			done = b.Offset(n)
		}
		if _, err := b.file.Seek(done, io.SeekStart); err != nil {
			return reply, err
		}
		rest = b.file
	}
	bar := newByteProgress(v.std.err, "apply", f.noProgress)
	defer bar.finish()
	err = send(io.MultiReader(bytes.NewReader(b.Manifest()), &meteredReader{r: rest, done: done, total: b.size, bar: bar}))
	if errors.Is(err, errNoNode) { // it was there a moment ago
		err = exitWith(exitIncomplete, fmt.Errorf("the node stopped; run the same command again to go on: %w", err))
	}
	return reply, err
}

// meteredReader shows how much was read.
type meteredReader struct {
	r           io.Reader
	done, total int64
	bar         *byteProgress
	pace        pace
}

func (m *meteredReader) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	m.done += int64(n)
	m.bar.update(min(m.done, max(m.total, m.done)), max(m.total, m.done), m.pace.rate(time.Now(), m.done, 0))
	return n, err
}

// printApplied says what became of a bundle.
func printApplied(w io.Writer, r *receive.Result) error {
	for _, img := range r.Images {
		state := "complete"
		switch {
		case !img.Complete:
			state = "incomplete: " + img.Missing + " is not here"
		case img.Changed:
			state = "complete, and what the name means now"
		case img.Active:
			state = "complete, and what the name meant before"
		}
		if _, err := fmt.Fprintf(w, "%s %s %s\n", img.Name, img.Digest, state); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(w, "%d of %s here, %d new", r.Received, count(r.Records, "record"), r.New)
	if err == nil && r.Waiting > 0 {
		_, err = fmt.Fprintf(w, ", %d waiting", r.Waiting)
	}
	if err == nil {
		_, err = fmt.Fprintln(w)
	}
	for i := range r.Others {
		if err == nil {
			_, err = fmt.Fprintf(w, "with it, bundle %s became complete:\n", r.Others[i].Bundle)
		}
		if err == nil {
			err = printApplied(w, &r.Others[i])
		}
	}
	return err
}
