package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"github.com/airstream-io/airstream/fetcher/uplink"
	"github.com/airstream-io/airstream/internal/catalog"
)

// The admin socket: HTTP with JSON on a unix socket that only root can open.
// It serves the verbs of this binary and makes no promise to others.
//
//	GET  /v1/images            []imageStatus
//	GET  /v1/trace?ref=REF     a trace file
//	POST /v1/prefetch?ref=REF  a stream of prefetchStatus, the last one final
func adminSocket(state string) string { return filepath.Join(state, "admin.sock") }

// imageStatus is what the node has of an image.
type imageStatus struct {
	Names    []string `json:"names"`
	Manifest string   `json:"manifest"`
	Platform string   `json:"platform"`
	Layers   int      `json:"layers"`
	Lazy     int      `json:"lazyLayers"`
	Size     int64    `json:"size"`    // bytes, compressed, as the registry has it
	Total    int64    `json:"total"`   // bytes in files of the lazy layers whose table is here
	Missing  int64    `json:"missing"` // of these
	Tables   int      `json:"tables"`  // lazy layers whose table of contents is here
	Complete bool     `json:"complete"`
}

// prefetchStatus is how far a prefetch has come.
type prefetchStatus struct {
	Image imageStatus   `json:"image"`
	Link  uplinkSummary `json:"link"`
	Done  bool          `json:"done"`
	Error string        `json:"error,omitempty"`
	Code  int           `json:"code,omitempty"` // exit code that Error means
}

type uplinkSummary struct {
	Dark bool    `json:"dark"`
	Rate float64 `json:"rate"` // bytes/s
}

func summary(s uplink.State) uplinkSummary { return uplinkSummary{Dark: s.Dark, Rate: s.Rate} }

// serveAdmin answers on the admin socket until ctx ends.
func (n *node) serveAdmin(ctx context.Context, lis net.Listener) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/images", n.getImages)
	mux.HandleFunc("POST /v1/prefetch", n.postPrefetch)
	mux.HandleFunc("GET /v1/trace", n.getTrace)
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, BaseContext: func(net.Listener) context.Context { return ctx }}
	stopped := make(chan error, 1)
	go func() {
		<-ctx.Done()
		stopped <- srv.Close()
	}()
	if err := srv.Serve(lis); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("admin: serve: %w", err)
	}
	return <-stopped
}

func (n *node) answer(w http.ResponseWriter, r *http.Request, v any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		w.WriteHeader(http.StatusInternalServerError)
		v = map[string]string{"error": err.Error()}
	}
	if err := json.NewEncoder(w).Encode(v); err != nil {
		n.log.DebugContext(r.Context(), "client went away", slog.Any("error", err))
	}
}

func (n *node) getImages(w http.ResponseWriter, r *http.Request) {
	images, err := n.catalog.Images()
	all := make([]imageStatus, 0, len(images))
	for i := range images {
		s, serr := n.status(&images[i])
		if serr != nil {
			n.log.WarnContext(r.Context(), "an image cannot be counted", slog.String("manifest", images[i].Manifest.String()), slog.Any("error", serr))
		}
		all = append(all, s)
	}
	n.answer(w, r, all, err)
}

// status counts what is here of an image.
func (n *node) status(img *catalog.Image) (imageStatus, error) {
	s := imageStatus{
		Names: img.Names, Manifest: img.Manifest.String(), Platform: img.Platform,
		Layers: len(img.Layers), Size: img.Size(), Complete: true,
	}
	var errs []error
	seen := map[uint32]bool{}
	for _, l := range img.Layers {
		if l.Slot == 0 {
			// containerd has it, or asks for it when it needs it.
			blob, err := n.store.Blob(l.Blob)
			if err != nil {
				s.Complete = false
				continue
			}
			errs = append(errs, blob.Close())
			continue
		}
		s.Lazy++
		if seen[l.Slot] {
			s.Tables++
			continue
		}
		seen[l.Slot] = true
		missing, total, ok, err := n.fetcher.Missing(l.Slot)
		errs = append(errs, err)
		if ok {
			s.Tables++
		}
		s.Missing += missing
		s.Total += total
		s.Complete = s.Complete && ok && missing == 0
	}
	return s, errors.Join(errs...)
}

// adminClient talks to the node of this machine.
type adminClient struct {
	socket string
	http   http.Client
}

func newAdminClient(state string) *adminClient {
	c := &adminClient{socket: adminSocket(state)}
	c.http.Transport = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", c.socket)
	}}
	return c
}

// do sends a request and hands its answer to read. Errors have exit codes.
func (c *adminClient) do(ctx context.Context, method, path string, read func(io.Reader) error) (err error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://node"+path, http.NoBody)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return exitWith(exitFailure, fmt.Errorf("airstream node does not answer on %s; is it running, and is this root? %w", c.socket, err))
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	if resp.StatusCode != http.StatusOK {
		b, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
		return exitWith(exitFailure, errors.Join(fmt.Errorf("airstream node: %s: %s", resp.Status, bytes.TrimSpace(b)), err))
	}
	return read(resp.Body)
}
