package fetcher

import (
	"errors"
	"net/http"
	"syscall"

	"github.com/airstream-io/airstream/fetcher/registry"
	"github.com/airstream-io/airstream/fetcher/uplink"
	"github.com/airstream-io/airstream/internal/chunk"
	"github.com/airstream-io/airstream/internal/store"
)

// Why something that was asked for is not here yet, or will not be. Errors of
// this package wrap one of them where it applies; a full disk is
// store.ErrNoSpace, and what a registry said is a registry.Error.
var (
	// ErrDark says that the link is down. It passes by itself.
	ErrDark = errors.New("the link is dark")
	// ErrBudget says that the link may not be used now: a byte budget is spent
	// or no window is open. It passes by itself, when the error says.
	ErrBudget = errors.New("the link may not be used now")
	// ErrWrongContent says that every source sends bytes that are not what the
	// image says, again and again.
	ErrWrongContent = errors.New("what arrives is not what the image says")
	// ErrBusy says that something is in use and can't be forgotten.
	ErrBusy = errors.New("in use")
)

// errLocal marks failures of the node itself.
var errLocal = errors.New("the node cannot store it")

func isLocal(err error) bool { return errors.Is(err, errLocal) }

// isFull tells whether it is room that lacks.
func isFull(err error) bool {
	return errors.Is(err, store.ErrNoSpace) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// blame says what a failed request speaks against.
type blame uint8

const (
	nothing  blame = iota
	theHost        // it, or the way to it: other requests would fare no better
	theThing       // what was asked for, there: others are none the worse
	theNode        // its disk
)

// blameFor judges err, of a request that was answered or not. A broken answer
// is the thing's: if the link is down, the next request shows it.
func blameFor(err error, answered bool) blame {
	switch {
	case err == nil:
		return nothing
	case isLocal(err):
		return theNode
	case isNotNow(err):
		return nothing
	case errors.Is(err, chunk.ErrMismatch), errors.Is(err, errWrongBytes):
		return theThing
	}
	e, ok := errors.AsType[*registry.Error](err)
	if !ok {
		return theThing
	}
	if e.Status == 0 && !answered && registry.NoAnswer(err) {
		return theHost
	}
	switch e.Status {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return theHost
	}
	return theThing
}

// isNotNow tells whether the policy has ended a request: its window closed, or
// its budget was spent.
func isNotNow(err error) bool {
	_, ok := errors.AsType[*uplink.NotNow](err)
	return ok
}

// isRefusal tells whether a source says that it will not give the thing, or
// gives something else: waiting alone doesn't help.
func isRefusal(err error) bool {
	return err != nil && !isLocal(err) && !registry.Temporary(err)
}
