package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/airstream-io/airstream/fetcher"
	"github.com/airstream-io/airstream/fetcher/registry"
	"github.com/airstream-io/airstream/internal/store"
)

// adminHandler routes the admin socket.
func (n *node) adminHandler() http.Handler {
	mux := http.NewServeMux()
	for pattern, h := range map[string]http.HandlerFunc{
		"GET /healthz":             n.getHealth,
		"GET /v1/status":           n.getStatus,
		"GET /v1/images":           n.getImages,
		"GET /v1/trace":            n.getTrace,
		"POST /v1/prefetch":        n.postPrefetch,
		"POST /v1/pin":             n.postPin,
		"POST /v1/unpin":           n.postUnpin,
		"POST /v1/remove":          n.postRemove,
		"POST /v1/gc":              n.postGC,
		"POST /v1/verify":          n.postVerify,
		"GET /v1/limits":           n.getLimits,
		"POST /v1/limits":          n.postLimits,
		"POST /v1/reload":          n.postReload,
		"GET /v1/bundles":          n.getBundles,
		"POST /v1/bundles/forget":  n.postForgetBundles,
		"POST /v1/bundle":          n.postBundle,
		"GET /v1/inventory":        n.getInventory,
		"POST /v1/rollback":        n.postRollback,
		"GET /debug/pprof/":        pprof.Index,
		"GET /debug/pprof/profile": pprof.Profile,
		"GET /debug/pprof/symbol":  pprof.Symbol,
		"GET /debug/pprof/trace":   pprof.Trace,
	} {
		mux.HandleFunc(pattern, h)
	}
	return mux
}

// serveAdmin answers on the admin socket until ctx ends.
func (n *node) serveAdmin(ctx context.Context, lis net.Listener) error {
	srv := &http.Server{Handler: n.adminHandler(), ReadHeaderTimeout: 10 * time.Second, BaseContext: func(net.Listener) context.Context { return ctx }}
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

// answer answers with v, or with err.
func (n *node) answer(w http.ResponseWriter, r *http.Request, v any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		status := http.StatusInternalServerError
		if codeOf(err) == exitUsage {
			status = http.StatusBadRequest
		}
		w.WriteHeader(status)
		v = apiError{Error: err.Error(), Code: codeOf(err)}
	}
	if err := json.NewEncoder(w).Encode(v); err != nil {
		n.log.DebugContext(r.Context(), "client went away", slog.Any("error", err))
	}
}

// order reads what a request asks for.
func order[T any](r *http.Request) (T, error) {
	var v T
	d := json.NewDecoder(io.LimitReader(r.Body, maxAnswer))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		return v, exitWith(exitUsage, fmt.Errorf("admin: the request: %w", err))
	}
	return v, nil
}

// eventStream writes values one by one, each a line, until the client goes
// away.
type eventStream struct {
	log *slog.Logger
	enc *json.Encoder
	rc  *http.ResponseController
}

func (n *node) stream(w http.ResponseWriter) *eventStream {
	w.Header().Set("Content-Type", "application/x-ndjson")
	return &eventStream{n.log, json.NewEncoder(w), http.NewResponseController(w)}
}

func (s *eventStream) send(v any) {
	if err := errors.Join(s.enc.Encode(v), s.rc.Flush()); err != nil {
		s.log.Debug("client went away", slog.Any("error", err))
	}
}

// codeOf returns the exit code that an error of the node means.
func codeOf(err error) int {
	known, ok := errors.AsType[*exitError](err)
	switch {
	case err == nil:
		return exitOK
	case ok:
		return known.code
	case errors.Is(err, store.ErrNoSpace), errors.Is(err, fetcher.ErrBudget):
		return exitSpace
	case errors.Is(err, fetcher.ErrWrongContent), errors.Is(err, fetcher.ErrBadTable), errors.Is(err, registry.ErrContent), errors.Is(err, fetcher.ErrQuarantined),
		errors.Is(err, store.ErrMismatch), errors.Is(err, store.ErrDamaged):
		return exitVerify
	case errors.Is(err, fetcher.ErrDark):
		return exitLink
	case errors.Is(err, context.Canceled):
		return exitIncomplete
	case errors.Is(err, fs.ErrNotExist), registry.NotFound(err):
		return exitFailure
	case registry.Temporary(err):
		return exitLink
	}
	return exitFailure
}
