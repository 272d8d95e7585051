package flow

import (
	"testing"
	"time"

	"github.com/airstream-io/airstream/internal/link"
	"github.com/airstream-io/airstream/test/rig/capture"
	rig "github.com/airstream-io/airstream/test/rig/link"
)

// asked is what passed the node's end for one pull.
type asked struct {
	question time.Time   // the first packet that says something to the proxy
	said     int         // packets that did
	came     []time.Time // when each byte of the answer came, by packet
	bytes    []int       // of payload, that had come with each
}

// reaches returns how long it took until more than n bytes had come.
func (a asked) reaches(n int) time.Duration {
	for i, b := range a.bytes {
		if b > n {
			return a.came[i].Sub(a.question)
		}
	}
	return 0
}

// capturePull pulls an image, and returns what passed until all of it had come.
func (ps *pushed) capturePull(t *testing.T, depth link.Depth) (a asked) {
	t.Helper()
	c, err := capture.Start(ps.link.Node)
	if err != nil {
		t.Fatal(err)
	}
	pull := ps.session.Pull(link.Request{Reference: ps.ref, Platform: "linux/amd64", Depth: depth}, &arrivals{})
	if err := pull.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	packets, err := c.Stop()
	if err != nil {
		t.Fatal(err)
	}
	pull.Cancel()
	total := 0
	for _, p := range packets {
		switch {
		case p.SYN || p.RST:
			t.Fatalf("the session was no warm one: %+v", p)
		case p.Payload == 0:
		case p.Dst.Addr() == rig.ShoreAddr:
			if a.said++; a.said == 1 {
				a.question = p.At
			}
		case a.said > 0: // what came before answers something else
			total += p.Payload
			a.came, a.bytes = append(a.came, p.At), append(a.bytes, total)
		}
	}
	return a
}

// A packet capture on the node shows it: one packet asks, and one round trip later the
// first packet of the first hot chunk is here, behind manifest, config, plan and table.
func TestACaptureShowsOneRoundTrip(t *testing.T) {
	profile := satellite(0)
	ps := openPushed(t, profile, 1<<20)
	time.Sleep(warmTime)
	names := ps.capturePull(t, link.Names)
	before := names.bytes[len(names.bytes)-1] // all that goes before the first chunk, and the end
	time.Sleep(time.Second)                   // what is said of the last pull has crossed
	start := ps.capturePull(t, link.Start)
	if late := profile.RTT * 3 / 2; start.reaches(before) > late { // as in TestTheFirstChunkComesInOneRoundTrip
		time.Sleep(time.Second)
		start = ps.capturePull(t, link.Start)
	}
	for i, n := range start.bytes {
		if n <= before {
			continue
		}
		took := start.came[i].Sub(start.question)
		own := time.Duration(float64(n) * 1.05 / (float64(profile.Down) / 8) * float64(time.Second))
		t.Logf("%d bytes go before the first chunk, which begins %v after the question; %d packets were said", before, took, start.said)
		if took < profile.RTT || took > profile.RTT+own+80*time.Millisecond {
			t.Errorf("the first chunk began %v after the question: that is not one round trip of %v", took, profile.RTT)
		}
		break
	}
	if start.said != 1 {
		t.Errorf("%d packets were said to the proxy for one pull", start.said)
	}
	if last := start.bytes[len(start.bytes)-1]; last < before+64<<10 {
		t.Errorf("%d bytes came, without a chunk", last)
	}
}
