package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/airstream-io/airstream/test/rig/link"
	"github.com/airstream-io/airstream/test/rig/netns"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// airlink runs the command line to its end.
func airlink(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), args, strings.NewReader(""), &out, &errs)
	return code, out.String(), errs.String()
}

func TestListNamesEveryProfile(t *testing.T) {
	code, out, _ := airlink(t, "-list")
	if code != exitOK {
		t.Fatalf("exit code %d", code)
	}
	for _, p := range link.Profiles() {
		if !strings.Contains(out, p.Name) {
			t.Errorf("%s is missing in\n%s", p.Name, out)
		}
	}
}

func TestMistakesSayWhatToDo(t *testing.T) {
	for _, c := range []struct {
		args string
		code int
		says string
	}{
		{"-profile geovsat", exitUsage, "known: vlf-oneway"},
		{"-profile rtt=5", exitUsage, "rtt"},
		{"-nosuch", exitUsage, "airlink -h"},
		{"-shore /run/netns/x", exitUsage, "go together"},
		{"cut", exitUsage, "-control"},
		{"-control /nonexistent/socket fly", exitUsage, `"fly"`},
		{"-control /nonexistent/socket schedule often", exitUsage, "30s/10m"},
		{"-control /nonexistent/socket cut", exitFailure, "/nonexistent/socket"},
		{"-shore /nonexistent/a -node /nonexistent/b -control /tmp/x", exitFailure, "/nonexistent/a"},
	} {
		code, out, errs := airlink(t, strings.Fields(c.args)...)
		if code != c.code || !strings.Contains(errs, c.says) || out != "" {
			t.Errorf("airlink %s: exit code %d, want %d; says %q, want %q", c.args, code, c.code, errs, c.says)
		}
	}
	if code, _, errs := airlink(t, "-h"); code != exitOK || !strings.Contains(errs, "usage:") {
		t.Errorf("-h: exit code %d, says %q", code, errs)
	}
}

// A user starts a link, commands it from elsewhere, and ends it.
func TestRehearsal(t *testing.T) {
	if err := netns.Available(); err != nil {
		t.Skip(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r, w := io.Pipe()
	ended := make(chan int, 1)
	var errs bytes.Buffer
	go func() {
		ended <- run(ctx, []string{"-profile", "geo-vsat-lossless"}, nil, w, &errs)
		w.Close() //nolint:errcheck // never fails
	}()
	said := make(map[string][]string)
	lines := bufio.NewScanner(r)
	for len(said) < 4 && lines.Scan() {
		fields := strings.Fields(lines.Text())
		said[fields[0]] = fields[1:]
	}
	if len(said) < 4 {
		t.Fatalf("said only %v; %s", said, errs.String())
	}
	shore := strings.TrimPrefix(said["shore"][2], "--net=")
	node := strings.TrimPrefix(said["node"][2], "--net=")
	control := said["command"][2]
	for _, args := range [][]string{
		{"cut"},
		{"restore"},
		{"schedule", "30s/10m", "1s@5s"},
		{"profile", "l-band"},
		{"blackhole"},
		{"schedule", "none"},
		{"reset"},
		{"stats"},
	} {
		code, out, errs := airlink(t, append([]string{"-control", control}, args...)...)
		var s link.Stats
		if err := json.Unmarshal([]byte(out), &s); code != exitOK || err != nil {
			t.Fatalf("%v: exit code %d, %v; %s", args, code, err, errs)
		}
		if args[0] == "stats" && (s.Profile.Name != "l-band" || s.Mode != link.ModeReset || len(s.Profile.Outages) != 0) {
			t.Errorf("in the end: %+v", s)
		}
	}
	cancel()
	select {
	case code := <-ended:
		if code != exitOK {
			t.Errorf("exit code %d; %s", code, errs.String())
		}
	case <-time.After(10 * time.Second):
		t.Fatal("does not end")
	}
	for _, path := range []string{shore, node, control} {
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there", path)
		}
	}
}
