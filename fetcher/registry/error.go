package registry

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/airstream-io/airstream/internal/catalog"
)

// Error is what came of a request that did not succeed.
type Error struct {
	Source catalog.Source
	What   string        // "manifest 1.2", "blob sha256:…", "token"
	Status int           // of HTTP; 0 if there was no answer
	Detail string        // the registry's words, shortened
	After  time.Duration // how long it asked to wait; 0: it did not
	Err    error         // nil if there was an answer
}

func (e *Error) Error() string {
	s := fmt.Sprintf("registry: %s of %s/%s: ", e.What, e.Source.Host, e.Source.Repo)
	if e.Status == 0 {
		return s + e.Err.Error()
	}
	s += fmt.Sprintf("%d %s", e.Status, http.StatusText(e.Status))
	if e.Detail != "" {
		s += ": " + e.Detail
	}
	switch e.Status {
	case http.StatusUnauthorized, http.StatusForbidden:
		s += " (check the credentials for " + e.Source.Host + ")"
	case http.StatusNotFound:
		s += " (check the name, and that it was pushed)"
	}
	return s
}

// Unwrap returns the transport's error, if there was no answer.
func (e *Error) Unwrap() error { return e.Err }

// Temporary tells whether the same request may succeed later without anybody
// doing something about it.
func (e *Error) Temporary() bool {
	switch e.Status {
	case 0, http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusTooEarly:
		return true
	}
	return e.Status >= 500
}

// Temporary tells whether waiting can help against err.
func Temporary(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.Temporary()
}

// NotFound tells whether the registry says that it doesn't have the thing.
func NotFound(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.Status == http.StatusNotFound
}

// RetryAfter returns how long the registry asked to wait.
func RetryAfter(err error) time.Duration {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.After
	}
	return 0
}

// refused makes an Error of an answer, whose body it reads a little of and
// closes.
func refused(src catalog.Source, what string, resp *http.Response) error {
	// Whatever words there are; the status says enough without them.
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 300))
	e := &Error{Source: src, What: what, Status: resp.StatusCode, Detail: strings.Join(strings.Fields(strings.ToValidUTF8(string(b), "?")), " ")}
	if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && s > 0 && s < 86400 {
		e.After = time.Duration(s) * time.Second
	}
	if err := resp.Body.Close(); err != nil {
		e.Err = err
	}
	return e
}
