package main

import (
	"bytes"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
)

func TestShortNamesAreTheLongOnes(t *testing.T) {
	long := "registry.example:5000/team/app:1"
	for ref, want := range map[string]bool{long: true, "registry.example:5000/team/app:2": false, "registry.example/team/app:1": false} {
		r, err := name.ParseReference(ref)
		if err != nil {
			t.Fatal(err)
		}
		if got := same(long, r); got != want {
			t.Errorf("%s: %v", ref, got)
		}
	}
	short, err := name.ParseReference("redis")
	if err != nil {
		t.Fatal(err)
	}
	if !same(name.DefaultRegistry+"/library/redis:latest", short) {
		t.Error("a short name is not found")
	}
}

func TestReferencesAreTakenApartAsContainerdDoes(t *testing.T) {
	d := "sha256:" + strings.Repeat("a", 64)
	for in, want := range map[string][3]string{
		"redis":                              {"docker.io", "library/redis", "latest"},
		"crew/app:1":                         {"docker.io", "crew/app", "1"},
		"registry.example:5000/app@" + d:     {"registry.example:5000", "app", d},
		"localhost:5000/crew/app:1":          {"localhost:5000", "crew/app", "1"},
		"registry.example/a/b/c:v1.2.3-rc.1": {"registry.example", "a/b/c", "v1.2.3-rc.1"},
		"docker.io/library/redis:7":          {"docker.io", "library/redis", "7"},
		"registry.example/crew/app:1@" + d:   {"registry.example", "crew/app", d},
	} {
		src, ref, err := parseRef(in)
		if diff := cmp.Diff([3]string{want[0], want[1], want[2]}, [3]string{src.Host, src.Repo, ref}); err != nil || diff != "" {
			t.Errorf("%s: %v\n%s", in, err, diff)
		}
	}
	for _, in := range []string{"", "Upper/Case", "a b", "registry.example/app:", "https://registry.example/app"} {
		if src, ref, err := parseRef(in); err == nil || codeOf(err) != exitUsage {
			t.Errorf("%q: %v %s, %v", in, src, ref, err)
		}
	}
}

func TestListsOfReferences(t *testing.T) {
	got, err := readRefs("-", strings.NewReader("# images of the ship\n\nregistry.example/app:1  # the app\n\t redis\n"))
	if diff := cmp.Diff([]string{"registry.example/app:1", "redis"}, got); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
	if _, err := readRefs("-", strings.NewReader("a\nb c\n")); err == nil || !strings.Contains(err.Error(), "line 2") {
		t.Errorf("two on a line: %v", err)
	}
}

func TestPrefetchTables(t *testing.T) {
	e := &prefetchEvent{Wire: 6_049_000, Left: 6_049_000, Link: linkStatus{Rate: 230_000}, Images: []prefetchImage{
		{Ref: "registry.example/app:1", State: stateReady, Wire: 6_049_000, Left: 6_049_000},
		{Ref: "registry.example/db:16", State: stateReady},
		{Ref: "registry.example/none:1", State: stateFailed, Hot: true},
	}}
	var b bytes.Buffer
	if err := printPrefetch(&b, e, 32_000, true); err != nil {
		t.Fatal(err)
	}
	const dry = `IMAGE                    TO FETCH  AT 256 kbit/s  STATE
registry.example/app:1   6.05 MB   3m09s          ready
registry.example/db:16   0 B       -              complete
registry.example/none:1  0 B       -              failed
all of them              6.05 MB   3m09s          
`
	if diff := cmp.Diff(dry, b.String()); diff != "" {
		t.Error(diff)
	}
	b.Reset()
	e.Images = e.Images[:1]
	e.Images[0].State, e.Images[0].Left, e.Link.Limit = stateFetching, 1_000_000, 125_000
	if err := printPrefetch(&b, e, 0, false); err != nil {
		t.Fatal(err)
	}
	const run = `IMAGE                   FETCHED  LEFT  AT 1 Mbit/s  STATE
registry.example/app:1  5.05 MB  1 MB  8s           fetching
`
	if diff := cmp.Diff(run, b.String()); diff != "" {
		t.Error(diff)
	}
}

func TestProgressWithoutATerminalIsALineAnInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		p := newByteProgress(&b, "prefetch", false)
		for i := range 11 {
			time.Sleep(time.Second)
			if i == 8 {
				p.hold("the link is dark")
			}
			p.update(int64(i)*1_000_000, 20_000_000, 1_000_000)
		}
		p.finish()
		const want = "prefetch: 4 MB of 20 MB, 8 Mbit/s, 16s left\nprefetch: 9 MB of 20 MB; the link is dark\n"
		if diff := cmp.Diff(want, b.String()); diff != "" {
			t.Error(diff)
		}
		off := newByteProgress(&b, "prefetch", true)
		time.Sleep(time.Minute)
		off.update(1, 2, 3)
		if b.Len() != len(want) {
			t.Error("it was to be silent")
		}
	})
}

func TestPaceWithoutAGuessIsWhatArrives(t *testing.T) {
	var p pace
	now := time.Now()
	for i := range 3 {
		p.rate(now.Add(time.Duration(i)*time.Second), int64(i)*5000, 0)
	}
	if got := p.rate(now.Add(3*time.Second), 15_000, 0); got < 4900 || got > 5100 {
		t.Errorf("5000 bytes/s from the beginning: %v", got)
	}
}

func TestPaceFollowsWhatArrives(t *testing.T) {
	var p pace
	now := time.Now()
	if got := p.rate(now, 0, 1000); got != 1000 {
		t.Errorf("nothing is known yet, and it says %v", got)
	}
	var got float64
	for i := range 200 {
		now = now.Add(time.Second)
		got = p.rate(now, int64(i+1)*5000, 1000)
	}
	if got < 4900 || got > 5000 {
		t.Errorf("5000 bytes/s for 200 s: %v", got)
	}
	for range 200 {
		now = now.Add(time.Second)
		got = p.rate(now, 200*5000, 1000)
	}
	if got > 10 {
		t.Errorf("nothing for 200 s: %v", got)
	}
}
