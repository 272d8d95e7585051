package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"

	"github.com/airstream-io/airstream/internal/fdstore"
	"github.com/airstream-io/airstream/snapshotter"
	"github.com/airstream-io/airstream/snapshotter/layerfs"
)

// handover is what a node daemon got from the one before it, and leaves to the
// next: the FUSE tree and the sockets. They are with a keeper: systemd, or
// "airstream supervise".
//
// SIGTERM says that another daemon may follow: nothing is ended, and what hangs
// on the tree or in the queue of a socket waits. SIGINT says that none does.
// Without a keeper any end is final.
type handover struct {
	store *fdstore.Store
	log   *slog.Logger
	final chan os.Signal
	ends  []func() error // of what a final end takes away
}

// begin takes over what there is. It comes before any descriptor is opened.
func (h *handover) begin(log *slog.Logger) (err error) {
	h.log = log
	if h.store, err = fdstore.Inherit(); err != nil {
		return err
	}
	h.final = make(chan os.Signal, 1)
	signal.Notify(h.final, os.Interrupt)
	if !h.store.Keeps() {
		log.Warn("running containers will lose their lazy layers when this daemon ends, since nobody keeps its descriptors; start it by systemd, or with airstream supervise")
	}
	return nil
}

// kept says whether containers survive the end of this daemon.
func (h *handover) kept() bool { return h.store.Keeps() }

// leaves says whether everything is left for another daemon.
func (h *handover) leaves() bool {
	select {
	case sig := <-h.final:
		h.final <- sig
		return false
	default:
		return h.store.Keeps()
	}
}

// endTree ends the service of the tree, or the tree.
func (h *handover) endTree(tree *layerfs.Server) error {
	if h.leaves() {
		return tree.Leave()
	}
	return tree.Close()
}

// end comes last.
func (h *handover) end() error {
	defer signal.Stop(h.final)
	if h.leaves() {
		return nil
	}
	var errs []error
	for _, end := range h.ends {
		errs = append(errs, end())
	}
	return errors.Join(errs...)
}

// listen makes a unix socket for root, or goes on with that of the daemon
// before this one, in whose queue clients may be.
func (h *handover) listen(ctx context.Context, name, path string) (net.Listener, error) {
	if lis := h.inherited(name, path); lis != nil {
		return lis, nil
	}
	lis, err := snapshotter.Listen(ctx, path)
	if err != nil || !h.keep(name, lis) {
		return lis, err
	}
	if l, ok := lis.(*net.UnixListener); ok {
		l.SetUnlinkOnClose(false)
	}
	h.endWith(name, path)
	return lis, nil
}

// listenTCP does it for TCP.
func (h *handover) listenTCP(ctx context.Context, name, address string) (net.Listener, error) {
	if lis := h.inherited(name, address); lis != nil {
		return lis, nil
	}
	lis, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err == nil && h.keep(name, lis) {
		h.endWith(name, "")
	}
	return lis, err
}

// inherited returns the socket that an earlier daemon had at an address, or
// nil. One at another address is for nobody any more.
func (h *handover) inherited(name, address string) net.Listener {
	file := h.store.Take(name)
	if file == nil {
		return nil
	}
	lis, err := net.FileListener(file)
	err = errors.Join(err, file.Close())
	if err == nil && lis.Addr().String() != address {
		err = fmt.Errorf("it listens on %s", lis.Addr())
	}
	path := ""
	if lis != nil && lis.Addr().Network() == "unix" {
		path = address
		if err == nil {
			_, err = os.Stat(path)
		}
	}
	if err == nil {
		h.endWith(name, path)
		return lis
	}
	h.log.Info("a socket of the daemon before this one is of no use", slog.String("socket", name), slog.Any("reason", err))
	if lis != nil {
		err = lis.Close()
	}
	if err := errors.Join(err, h.store.Drop(name)); err != nil {
		h.log.Warn("it can't be closed", slog.String("socket", name), slog.Any("error", err))
	}
	return nil
}

// keep has a socket kept. Without that it works all the same.
func (h *handover) keep(name string, lis net.Listener) bool {
	filer, ok := lis.(interface{ File() (*os.File, error) })
	if !ok || !h.kept() {
		return false
	}
	file, err := filer.File()
	if err == nil {
		err = errors.Join(h.store.Keep(name, file), file.Close())
	}
	if err != nil {
		h.log.Warn("a socket is not kept for the next daemon", slog.String("socket", name), slog.Any("error", err))
	}
	return err == nil
}

// endWith has a final end take a socket away, and its file if it has one.
func (h *handover) endWith(name, path string) {
	h.ends = append(h.ends, func() error {
		err := h.store.Drop(name)
		if path == "" {
			return err
		}
		if rerr := os.Remove(path); !errors.Is(rerr, os.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
		return err
	})
}

// notify tells systemd or "airstream supervise", if it wants to know.
func (h *handover) notify(state string) {
	if err := h.store.Notify(state); err != nil {
		h.log.Warn("the service manager was not told", slog.String("state", state), slog.Any("error", err))
	}
}
