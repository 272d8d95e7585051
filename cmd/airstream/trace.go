package main

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"

	"github.com/spf13/cobra"

	"github.com/airstream-io/airstream/internal/trace"
)

func newTraceCommand(std streams) *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:   "trace REF",
		Short: "Print what an image's containers have read on this node",
		Long: `Print what containers of an image have read and looked up on this node since
its daemon started, in the order in which they first did so. Given to "airstream convert
--trace", it makes the next node fetch that before anybody asks.

Record it on a node that does not have the image yet: pull it, start the
container, and run this when it is ready. Reads that the kernel answers from its
own cache are not seen.`,
		Args: cobra.ExactArgs(1),
	}
	v := newVerb(std, cmd)
	cmd.ValidArgsFunction = v.completeRefs
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		client, err := v.client()
		if err != nil {
			return err
		}
		q := url.Values{"ref": {args[0]}}
		err = client.do(cmd.Context(), http.MethodGet, "/v1/trace?"+q.Encode(), nil, func(r io.Reader) error {
			t, err := trace.Decode(r)
			if err != nil {
				return err
			}
			return writeTrace(t, out, std)
		})
		return runtimeError(err)
	}
	cmd.Flags().StringVarP(&out, "output", "o", "", "file to write it to (default: standard output)")
	cmd.AddCommand(newTraceMergeCommand(std))
	return cmd
}

func writeTrace(t *trace.Trace, file string, std streams) error {
	if n, _ := t.Bytes(); n == 0 { // to mount an image is to look things up in it
		return exitWith(exitFailure, fmt.Errorf("%s: nothing was read of it since the daemon started; start a container from it first", t.Image))
	}
	if file == "" {
		return t.Encode(std.out)
	}
	var b bytes.Buffer
	if err := t.Encode(&b); err != nil {
		return err
	}
	return os.WriteFile(file, b.Bytes(), 0o644) //nolint:gosec // a trace is no secret, and CI reads it as another user
}

// getTrace answers with the trace of an image.
func (n *node) getTrace(w http.ResponseWriter, r *http.Request) {
	img, err := n.find(r.URL.Query().Get("ref"))
	if err != nil {
		n.answer(w, r, nil, err)
		return
	}
	slots := make([]uint32, 0, len(img.Layers))
	for _, l := range img.Layers {
		slots = append(slots, l.Serving())
	}
	t, err := n.fetcher.Trace(r.Context(), slots)
	if err != nil {
		n.answer(w, r, nil, err)
		return
	}
	t.Image, t.Manifest = r.URL.Query().Get("ref"), img.Manifest.String()
	var b bytes.Buffer
	if err := t.Encode(&b); err != nil {
		n.answer(w, r, nil, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if _, err := w.Write(b.Bytes()); err != nil {
		n.log.DebugContext(r.Context(), "client went away", slog.Any("error", err))
	}
}
