package registry

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
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

// Unreached tells whether no answer came at all.
func Unreached(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.Status == 0 && !errors.Is(err, ErrContent)
}

// NotFound tells whether the registry says that it doesn't have the thing.
func NotFound(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.Status == http.StatusNotFound
}

// Refused tells whether the registry wants other credentials, or has a rule
// against the one who asks.
func Refused(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && (e.Status == http.StatusUnauthorized || e.Status == http.StatusForbidden)
}

// TooMany tells whether the registry wants fewer requests.
func TooMany(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.Status == http.StatusTooManyRequests
}

// NoAnswer tells whether a request ended without an answer: it is the host that
// failed, or the way to it, and not what was asked for.
func NoAnswer(err error) bool {
	_, ok := errors.AsType[*url.Error](err)
	return ok || errors.Is(err, errStalled)
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
	e.After = retryAfter(resp.Header.Get("Retry-After"), time.Now())
	if err := resp.Body.Close(); err != nil {
		e.Err = err
	}
	return e
}

// retryAfter reads a Retry-After header: seconds or a date. What makes no
// sense, or lies more than a day ahead, is no request to wait.
func retryAfter(s string, now time.Time) time.Duration {
	var d time.Duration
	if n, err := strconv.Atoi(s); err == nil && n < 86400 {
		d = time.Duration(n) * time.Second
	} else if at, err := http.ParseTime(s); err == nil {
		d = at.Sub(now)
	}
	if d <= 0 || d > 24*time.Hour {
		return 0
	}
	return d
}
