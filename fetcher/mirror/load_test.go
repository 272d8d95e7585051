package mirror

import (
	"fmt"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/airstream-io/airstream/fetcher/registry"
)

// crowd is a node with many images of two registries.
type crowd struct {
	*nodeSide
	images [10]v1.Image
}

func newCrowd(t *testing.T, s, other *shore) *crowd {
	t.Helper()
	busy := quick
	busy.answer = 5 * time.Second // the machine may be busy
	c := &crowd{nodeSide: newPacedNode(t, s, t.TempDir(), busy, func(_ *Options, hosts map[string]registry.Host) {
		hosts["other.example"] = registry.Host{URL: other.URL}
	})}
	for i := range c.images {
		c.images[i] = randomImage(t)
		s.push(t, fmt.Sprintf("app%d:1", i), c.images[i])
		other.push(t, fmt.Sprintf("app%d:1", i), c.images[i])
	}
	return c
}

// answers measures how long answers take that need no other host than
// shore.example, or none: the 99th percentile.
func (c *crowd) answers(t *testing.T) time.Duration {
	t.Helper()
	const rounds = 300
	var times []time.Duration
	for i := range rounds {
		began := time.Now()
		var resp answer
		switch i % 3 {
		case 0: // a tag
			resp = c.get(t, "HEAD", fmt.Sprintf("app%d/manifests/1", i%10))
		case 1: // cached content
			resp = c.get(t, "GET", fmt.Sprintf("app%d/manifests/%s", i%10, digestOf(t, c.images[i%10])))
		case 2: // a cached tag of the other host
			resp = c.ask(t, "HEAD", "/v2/app0/manifests/1?ns=other.example")
		}
		times = append(times, time.Since(began))
		if resp.status != 200 {
			t.Errorf("round %d: %d", i, resp.status)
		}
	}
	slices.Sort(times)
	return times[rounds*99/100]
}

// 200 pulls at once ask each question once.
func TestManyPullsAskOnce(t *testing.T) {
	s, other := newShore(t), newShore(t)
	c := newCrowd(t, s, other)
	var mu sync.Mutex
	asked := map[string][]string{}
	s.setMood(func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodGet {
			mu.Lock()
			defer mu.Unlock()
			asked[r.URL.Path] = append(asked[r.URL.Path], r.Header.Get("Range"))
		}
		return false
	})
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() { c.pull(t, fmt.Sprintf("app%d:1", i%len(c.images)), c.images[i%len(c.images)]) })
	}
	wg.Wait()
	mu.Lock()
	defer mu.Unlock()
	for path, ranges := range asked {
		if len(ranges) > 1 {
			t.Errorf("%s was fetched %d times: %q", path, len(ranges), ranges)
		}
	}
}

// A host that is dead holds up nobody else, nor what is cached of it.
func TestDeadHostHoldsUpNobodyElse(t *testing.T) {
	s, other := newShore(t), newShore(t)
	c := newCrowd(t, s, other)
	c.ask(t, "GET", "/v2/app0/manifests/1?ns=other.example")
	for i, img := range c.images {
		c.pull(t, fmt.Sprintf("app%d:1", i), img)
	}
	before := c.answers(t)
	other.setMood(blackhole)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					c.ask(t, "HEAD", fmt.Sprintf("/v2/app%d/manifests/absent%d?ns=other.example", i%10, i))
				}
			}
		})
	}
	c.ask(t, "HEAD", "/v2/app0/manifests/1?ns=other.example") // cached; the first notices the silence
	after := c.answers(t)
	close(stop)
	other.setMood(dead)
	wg.Wait()
	t.Logf("99th percentile %v with both alive, %v with one dead", before, after)
	// On a machine that does other things, too, only the comparison says something.
	if after > max(100*time.Millisecond, 4*before) {
		t.Errorf("the 99th percentile of answers is %v, and was %v before the host died", after, before)
	}
}
