package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"slices"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/airstream-io/airstream/config"
	"github.com/airstream-io/airstream/fetcher/registry"
	"github.com/airstream-io/airstream/internal/catalog"
)

func newPrefetchCommand(std streams) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "prefetch REF…",
		Short: "Make images that the node has met complete, before going dark",
		Long: `Make images complete on this node: fetch what is missing of every lazy layer,
and wait until it is here. What has arrived stays if it is interrupted, and the
next run goes on from there. The images must have been pulled through the node.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, refs []string) error {
			cfg, err := config.Load(file, os.Environ())
			if err != nil {
				return exitWith(exitUsage, err)
			}
			client := newAdminClient(cfg.State)
			for _, ref := range refs {
				if err := prefetch(cmd.Context(), client, ref, std.err); err != nil {
					return runtimeError(err)
				}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "the node's TOML file")
	return cmd
}

// prefetch asks the node for one image and follows it.
func prefetch(ctx context.Context, client *adminClient, ref string, words io.Writer) error {
	q := url.Values{"ref": {ref}}
	return client.do(ctx, http.MethodPost, "/v1/prefetch?"+q.Encode(), func(r io.Reader) error {
		dec := json.NewDecoder(r)
		for {
			var s prefetchStatus
			if err := dec.Decode(&s); err != nil {
				return exitWith(exitIncomplete, fmt.Errorf("%s: the node stopped; run it again to go on: %w", ref, err))
			}
			if s.Error != "" {
				return exitWith(max(s.Code, exitFailure), fmt.Errorf("%s: %s", ref, s.Error))
			}
			if _, err := fmt.Fprintln(words, prefetchLine(ref, &s)); err != nil {
				return err
			}
			if s.Done {
				return nil
			}
		}
	})
}

func prefetchLine(ref string, s *prefetchStatus) string {
	switch {
	case s.Done:
		return fmt.Sprintf("%s: complete, %s in files", ref, byteCount(s.Image.Total))
	case s.Link.Dark:
		return fmt.Sprintf("%s: %s; waiting for the link", ref, s.Image.here())
	case s.Image.Tables < s.Image.Lazy:
		return fmt.Sprintf("%s: %s", ref, s.Image.here())
	}
	return fmt.Sprintf("%s: %s, %s of files missing, %s/s", ref, s.Image.here(), byteCount(s.Image.Missing), byteCount(int64(s.Link.Rate)))
}

// postPrefetch completes an image and streams how far it has come.
func (n *node) postPrefetch(w http.ResponseWriter, r *http.Request) {
	ctx := r.Context()
	enc, rc := json.NewEncoder(w), http.NewResponseController(w)
	say := func(s prefetchStatus) {
		if err := errors.Join(enc.Encode(s), rc.Flush()); err != nil {
			n.log.DebugContext(ctx, "client went away", slog.Any("error", err))
		}
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	img, err := n.find(r.URL.Query().Get("ref"))
	if err != nil {
		say(prefetchStatus{Error: err.Error(), Code: exitFailure})
		return
	}
	var slots []uint32
	for _, l := range img.Layers {
		if l.Slot > 0 && !slices.Contains(slots, l.Slot) {
			slots = append(slots, l.Slot)
		}
	}
	done := make(chan error, 1)
	go func() { done <- n.fetcher.Complete(ctx, slots...) }()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case err = <-done:
			s, serr := n.status(&img)
			st := prefetchStatus{Image: s, Link: summary(n.meter.State()), Done: true}
			if err = errors.Join(err, serr); err != nil {
				st.Error, st.Code = err.Error(), codeOf(err)
			}
			say(st)
			return
		case <-tick.C:
			if s, err := n.status(&img); err == nil {
				say(prefetchStatus{Image: s, Link: summary(n.meter.State())})
			}
		}
	}
}

func codeOf(err error) int {
	switch {
	case errors.Is(err, context.Canceled):
		return exitIncomplete
	case registry.Temporary(err):
		return exitLink
	}
	return exitFailure
}

// find returns the image that a reference or manifest digest names.
func (n *node) find(ref string) (catalog.Image, error) {
	if d := digest.Digest(ref); d.Validate() == nil {
		return n.catalog.Image(d)
	}
	want, err := name.ParseReference(ref)
	if err != nil {
		return catalog.Image{}, fmt.Errorf("not an image reference: %w", err)
	}
	images, err := n.catalog.Images()
	if err != nil {
		return catalog.Image{}, err
	}
	var found *catalog.Image
	for i := range images {
		img := &images[i]
		named := img.Manifest.String() == want.Identifier() || slices.ContainsFunc(img.Names, func(s string) bool { return same(s, want) })
		if named && (found == nil || img.Learned.After(found.Learned)) {
			found = img
		}
	}
	if found == nil {
		return catalog.Image{}, fmt.Errorf("the node has not met it: pull it through the node first (%w)", fs.ErrNotExist)
	}
	return *found, nil
}

// same tells whether a name that containerd used is a reference, written out
// or short.
func same(s string, ref name.Reference) bool {
	other, err := name.ParseReference(s)
	return err == nil && other.Name() == ref.Name()
}
