package main

import (
	"context"
	"errors"
)

// Exit codes, for scripts: facts that a caller can act on.
const (
	exitOK          = 0
	exitFailure     = 1
	exitUsage       = 2
	exitIncomplete  = 3 // run again to go on
	exitLink        = 4 // the link or the registry can't be reached
	exitVerify      = 5 // content is not what its digest says
	exitBaseMissing = 6 // a delta's base is not here
	exitSpace       = 7 // disk or budget is used up
)

// exitError is an error with the code that the process ends with. Errors
// without one are cobra's own, about the command line.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

func exitWith(code int, err error) error {
	if err == nil {
		return nil
	}
	return &exitError{code: code, err: err}
}

// runtimeError gives an error that happened while a command ran its code,
// unless it has one.
func runtimeError(err error) error {
	if _, ok := errors.AsType[*exitError](err); ok || err == nil {
		return err
	}
	if errors.Is(err, context.Canceled) {
		return exitWith(exitIncomplete, err)
	}
	return exitWith(exitFailure, err)
}
