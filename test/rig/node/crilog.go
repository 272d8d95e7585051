package node

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strings"

	"github.com/airstream-io/airstream/test/rig/netns"
)

// logReader follows a container's log in the format of CRI: lines of
//
//	2026-01-02T15:04:05.999999999Z stdout F text
//
// in which P instead of F says that the line goes on in the next entry.
type logReader struct {
	path   string
	offset int64
	rest   []byte // of an entry that is not complete yet
}

// copyTo writes what has been logged since the last call, without the format.
// A log that does not exist yet is empty.
func (l *logReader) copyTo(w io.Writer) error {
	f, err := os.Open(l.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // only read
	text, err := io.ReadAll(io.NewSectionReader(f, l.offset, outputLimit))
	if err != nil {
		return err
	}
	l.offset += int64(len(text))
	l.rest = append(l.rest, text...)
	for {
		entry, rest, complete := bytes.Cut(l.rest, []byte("\n"))
		if !complete {
			return nil
		}
		l.rest = rest
		if _, err := w.Write(logText(entry)); err != nil {
			return err
		}
	}
}

// Output returns what the pod's container has printed so far, at most the last
// tailSize bytes of its log.
func (p *Pod) Output() string {
	var out strings.Builder
	for line := range strings.Lines(netns.Tail(p.log, tailSize)) {
		out.Write(logText([]byte(strings.TrimSuffix(line, "\n"))))
	}
	return out.String()
}

// tailSize is how much of a log Output reads.
const tailSize = 64 << 10

// logText returns what a container has printed according to one entry.
func logText(entry []byte) []byte {
	parts := bytes.SplitN(entry, []byte(" "), 4)
	if len(parts) < 4 {
		return nil
	}
	if string(parts[2]) == "P" {
		return parts[3]
	}
	return append(bytes.Clone(parts[3]), '\n')
}
