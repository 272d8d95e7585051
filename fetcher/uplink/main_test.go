package uplink

import (
	"bytes"
	"log/slog"
	"net"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newMeter(words *bytes.Buffer) *Meter {
	return NewMeter(slog.New(slog.NewTextHandler(words, nil)))
}

// Stream tells that a body of a class begins to arrive on conn, which may be
// nil if it is not known: Begin, On and Answered in one. End must be called.
func (m *Meter) Stream(class Class, conn net.Conn) *Stream {
	s := m.Begin(class)
	s.On(conn, true)
	s.Answered()
	return s
}
