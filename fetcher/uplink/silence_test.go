package uplink

import (
	"testing"
	"testing/synctest"
	"time"
)

// A server that says nothing for a while makes the link's rate look like nothing.
// What has arrived of another answer is read at once all the same: a manifest of
// a few kilobytes would take minutes, a little every 20 s. And bulk goes on as
// soon as something comes.
func TestBulkIsReadAfterASilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newModel(t, 250_000, 100*time.Millisecond)
		defer l.end()
		silent := l.open(Prefetch, 0)
		l.run(20 * time.Second)
		l.next = time.Now().Add(10 * time.Second)
		l.run(10 * time.Second)
		if limit := l.m.StallLimit(1 << 20); limit > time.Minute {
			t.Errorf("a request for a megabyte may say nothing for %v", limit)
		}
		silent.close()
		small := l.open(Prefetch, 4*modelPacket)
		small.sent, small.c.received, small.c.segments = 4*modelPacket, 4*modelPacket, 4
		small.st.seen = small.c // it came with the headers
		l.run(100 * time.Millisecond)
		if small.got < 4*modelPacket {
			t.Errorf("%d of %d bytes that are here were read", small.got, 4*modelPacket)
		}
		bulk := l.open(Prefetch, 0)
		l.run(10 * time.Second)
		if rate := float64(bulk.got) / 10; rate < 0.7*l.rate {
			t.Errorf("after the silence bulk brings %.0f bytes/s of %.0f", rate, l.rate)
		}
	})
}

// A link that was thin, so that a window had two packets, and becomes a hundred
// times as fast is used: windows grow by whole packets.
func TestThinLinkBecomesFast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newModel(t, 2500, 100*time.Millisecond)
		defer l.end()
		bulk := l.open(Prefetch, 0)
		l.run(2 * time.Minute)
		l.rate, l.free = 250_000, time.Now()
		l.run(30 * time.Second)
		before := bulk.got
		l.run(30 * time.Second)
		if rate := float64(bulk.got-before) / 30; rate < 0.7*l.rate {
			t.Errorf("bulk brings %.0f bytes/s of %.0f", rate, l.rate)
		}
	})
}
