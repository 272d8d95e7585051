package capture

import (
	"bytes"
	"context"
	"io"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/airstream-io/airstream/test/rig/netns"
	"github.com/airstream-io/airstream/test/rig/tools"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// What one end sends is seen, byte for byte.
func TestWhatPassesIsSeen(t *testing.T) {
	tools.Need(t, tools.Root, tools.NetNS, "ip")
	ns, err := netns.Create("capture", netns.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close() //nolint:errcheck // of a test
	if err := ns.SetUp("lo"); err != nil {
		t.Fatal(err)
	}
	c, err := Start(ns)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	l, err := ns.Listen(t.Context(), "tcp", "127.0.0.1:7000")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err == nil {
			_, err = io.Copy(io.Discard, conn)
			conn.Close() //nolint:errcheck // of a test
		}
		done <- err
	}()
	conn, err := ns.Dial(context.Background(), "tcp", "127.0.0.1:7000")
	if err != nil {
		t.Fatal(err)
	}
	const size = 100_000
	if _, err := conn.Write(bytes.Repeat([]byte{1}, size)); err != nil {
		t.Fatal(err)
	}
	conn.Close() //nolint:errcheck // of a test
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	l.Close() //nolint:errcheck // of a test
	packets, err := c.Stop()
	if err != nil {
		t.Fatal(err)
	}
	sent, seen := map[uint32]int{}, 0 // lo shows each packet twice: as it goes and as it comes
	for _, p := range packets {
		if p.Dst.Port() == 7000 {
			sent[p.Seq] = max(sent[p.Seq], p.Payload)
		}
		if p.At.Before(began.Add(-time.Second)) || p.At.After(time.Now().Add(time.Second)) {
			t.Errorf("a packet of %v", p.At)
		}
	}
	for _, n := range sent {
		seen += n
	}
	if seen != size {
		t.Errorf("%d bytes were seen, of %d", seen, size)
	}
}

// No header leads a parser astray.
func FuzzParse(f *testing.F) {
	f.Add([]byte{0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 1, 1, 2, 2, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 2, 0, 0, 0, 0, 0, 0})
	f.Add([]byte{0x4f, 0, 255, 255})
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, ok := parse(b); ok && (p.Payload < 0 || p.Payload > 1<<16) {
			t.Errorf("%d bytes of payload", p.Payload)
		}
	})
}
