package record

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestReady(t *testing.T) {
	failed := errors.New("exit status 7")
	for name, test := range map[string]struct {
		ready   Ready
		lines   string
		ends    bool
		err     error
		want    string
		took    time.Duration
		notWell bool
	}{
		"line":                     {Ready{Line: "^READY", For: time.Minute}, "one\nREADY now\n", false, nil, `it wrote "READY now"`, 0, false},
		"line without an end":      {Ready{Line: "^READY", For: time.Minute}, "one\nREADY", true, nil, `it wrote "READY"`, 0, false},
		"the last line of a crash": {Ready{Line: "READY", For: time.Minute}, "READY\n", true, failed, `it wrote "READY"`, 0, false},
		"in a very long line":      {Ready{Line: "READY", For: time.Minute}, strings.Repeat("x", 70_000) + "READY\nREADY 2\n", false, nil, `it wrote "READY 2"`, 0, false},
		"no such line":             {Ready{Line: "READY", For: time.Minute}, "one\n", false, nil, `no line that matches "READY" in 1m0s`, time.Minute, true},
		"ends before":              {Ready{Line: "READY", For: time.Minute}, "one\n", true, nil, "it ended after", 0, true},
		"time":                     {Ready{For: 20 * time.Second}, "one\n", false, nil, "it ran for 20s", 20 * time.Second, false},
		"ends well":                {Ready{For: 20 * time.Second}, "", true, nil, "it ended", 0, false},
		"fails":                    {Ready{For: 20 * time.Second}, "", true, failed, "exit status 7", 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, err := newWatch(test.ready, func(string) error { return nil })
				if err != nil {
					t.Fatal(err)
				}
				read, write := io.Pipe()
				ended := make(chan error, 1)
				go w.listen(read)
				go func() {
					_, _ = io.WriteString(write, test.lines) // the reader may be gone
					if test.ends {
						ended <- test.err
						_ = write.Close()
					}
				}()
				r, err := w.wait(t.Context(), ended)
				if errors.Is(err, ErrNotReady) != test.notWell || (err != nil) != test.notWell {
					t.Errorf("got %v", err)
				}
				got := r.Why
				if err != nil {
					got = err.Error()
				}
				if !strings.Contains(got, test.want) || time.Since(w.began) != test.took {
					t.Errorf("%q after %v, want %q after %v", got, time.Since(w.began), test.want, test.took)
				}
				_ = write.Close()
				<-w.heard
			})
		})
	}
}

// What holds the output open after the program has ended is not waited for.
func TestReadyWithChildrenThatStay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, err := newWatch(Ready{For: time.Minute}, func(string) error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		read, write := io.Pipe()
		ended := make(chan error, 1)
		go w.listen(read)
		ended <- nil
		if r, err := w.wait(t.Context(), ended); err != nil || r.Why != "it ended" || r.Took != settle {
			t.Errorf("%+v, %v", r, err)
		}
		_ = write.Close()
		<-w.heard
	})
}

func TestReadyEndsWithItsContext(t *testing.T) {
	w, err := newWatch(Ready{For: time.Hour}, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := w.wait(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if _, err := newWatch(Ready{Line: "("}, nil); err == nil {
		t.Error("( is no expression")
	}
}
