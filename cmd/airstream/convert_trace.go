package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"

	"github.com/airstream-io/airstream/internal/trace"
)

func readTrace(name string) (*trace.Trace, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // a reader
	return trace.Decode(f)
}

// checkTraces finds flags that don't go together.
func (f convertFlags) checkTraces() error {
	if len(f.traces) == 0 && f.traceFrom == "" && !f.record.wanted {
		switch {
		case f.prioritize:
			return errors.New("--prioritize: it is not known what a start reads; add --record, --trace or --trace-from")
		case f.saveTrace != "":
			return errors.New("--save-trace: there is no trace; add --record, --trace or --trace-from")
		}
	}
	return f.record.check()
}

// saveTrace writes the traces that were used to a file, as one.
func (c *conversion) saveTrace(traces []*trace.Trace) error {
	if c.flags.saveTrace == "" {
		return nil
	}
	t, err := trace.Merge(1, traces...)
	if err == nil {
		if t.Image == "" {
			t.Image = c.flags.traceFrom
		}
		err = writeTraceFile(c.flags.saveTrace, t)
	}
	if err != nil {
		return exitWith(exitFailure, fmt.Errorf("convert: %s was written, but not --save-trace %s: %w", c.dst, c.flags.saveTrace, err))
	}
	return nil
}

func writeTraceFile(name string, t *trace.Trace) error {
	var b bytes.Buffer
	if err := t.Encode(&b); err != nil {
		return err
	}
	return os.WriteFile(name, b.Bytes(), 0o644) //nolint:gosec // a trace is no secret, and others read it
}
