package link

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"
)

// The control protocol: on a unix socket, one JSON object in a line asks, one
// answers, as often as the client likes.
type (
	request struct {
		Do      string   `json:"do"` // stats, profile, mode or schedule
		Profile *Profile `json:"profile,omitempty"`
		Mode    Mode     `json:"mode,omitempty"`
		Outages []Outage `json:"outages,omitempty"`
	}
	response struct {
		Error string `json:"error,omitempty"`
		Stats *Stats `json:"stats,omitempty"` // after the request was done
	}
)

// maxLine bounds requests and answers, in bytes.
const maxLine = 64 << 10

// serve takes commands until ctx ends.
func (e *Emulator) serve(ctx context.Context, path string, ready func() error) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return fmt.Errorf("link: control socket: %w", err)
	}
	if err := errors.Join(os.Chmod(path, 0o600), ready()); err != nil {
		return errors.Join(fmt.Errorf("link: control socket: %w", err), l.Close())
	}
	unhook := context.AfterFunc(ctx, func() { l.Close() }) //nolint:errcheck // makes Accept return
	defer unhook()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("link: control socket: %w", err)
		}
		wg.Go(func() { e.converse(ctx, conn) })
	}
}

// converse answers one client until it leaves.
func (e *Emulator) converse(ctx context.Context, conn net.Conn) {
	unhook := context.AfterFunc(ctx, func() { conn.Close() }) //nolint:errcheck // makes Scan return
	defer unhook()
	defer conn.Close() //nolint:errcheck // each answer has been written or not
	lines := bufio.NewScanner(conn)
	lines.Buffer(nil, maxLine)
	answers := json.NewEncoder(conn)
	for lines.Scan() {
		if answers.Encode(e.answer(lines.Bytes())) != nil {
			return
		}
	}
}

// answer obeys one request.
func (e *Emulator) answer(line []byte) response {
	q, err := parseRequest(line)
	if err == nil {
		err = e.obey(q)
	}
	var s Stats
	if err == nil {
		s, err = e.Stats()
	}
	if err != nil {
		return response{Error: err.Error()}
	}
	return response{Stats: &s}
}

func (e *Emulator) obey(q request) error {
	switch q.Do {
	case "profile":
		return e.SetProfile(*q.Profile)
	case "mode":
		return e.SetMode(q.Mode)
	case "schedule":
		return e.Schedule(q.Outages)
	default: // stats: every answer has them
		return nil
	}
}

// parseRequest reads a request that can be obeyed.
func parseRequest(line []byte) (request, error) {
	var q request
	if err := json.Unmarshal(line, &q); err != nil {
		return request{}, fmt.Errorf("link: request: %w", err)
	}
	switch q.Do {
	case "stats", "mode", "schedule":
		return q, nil
	case "profile":
		if q.Profile == nil {
			return request{}, errors.New("link: request: no profile")
		}
		return q, nil
	}
	return request{}, fmt.Errorf("link: request: cannot do %q", q.Do)
}

// Client commands an emulator through its control socket. It is safe for
// concurrent use and holds nothing open.
type Client struct{ Path string }

// Stats returns the counters.
func (c Client) Stats(ctx context.Context) (Stats, error) {
	return c.ask(ctx, request{Do: "stats"})
}

// SetProfile changes the link; see Emulator.SetProfile. Like all commands it
// returns the counters as they are afterwards.
func (c Client) SetProfile(ctx context.Context, p Profile) (Stats, error) {
	return c.ask(ctx, request{Do: "profile", Profile: &p})
}

// Cut makes the link dark until Restore.
func (c Client) Cut(ctx context.Context) (Stats, error) {
	return c.ask(ctx, request{Do: "mode", Mode: ModeCut})
}

// Blackhole makes the link take packets and forget them until Restore.
func (c Client) Blackhole(ctx context.Context) (Stats, error) {
	return c.ask(ctx, request{Do: "mode", Mode: ModeBlackhole})
}

// Reset makes the link answer every TCP segment with a reset until Restore.
func (c Client) Reset(ctx context.Context) (Stats, error) {
	return c.ask(ctx, request{Do: "mode", Mode: ModeReset})
}

// Restore undoes Cut, Blackhole and Reset.
func (c Client) Restore(ctx context.Context) (Stats, error) {
	return c.ask(ctx, request{Do: "mode", Mode: ModeOpen})
}

// Schedule replaces the timetable of outages; it starts now.
func (c Client) Schedule(ctx context.Context, outages ...Outage) (Stats, error) {
	return c.ask(ctx, request{Do: "schedule", Outages: outages})
}

func (c Client) ask(ctx context.Context, q request) (s Stats, err error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", c.Path)
	if err != nil {
		return Stats{}, fmt.Errorf("link: command: %w", err)
	}
	defer conn.Close()                                                             //nolint:errcheck // the answer has been read or not
	unhook := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) }) //nolint:errcheck // ends the waits below
	defer unhook()
	if err := json.NewEncoder(conn).Encode(q); err != nil {
		return Stats{}, fmt.Errorf("link: command %s: %w", q.Do, explain(ctx, err))
	}
	lines := bufio.NewScanner(conn)
	lines.Buffer(nil, maxLine)
	if !lines.Scan() {
		err := lines.Err()
		if err == nil {
			err = errStopped
		}
		return Stats{}, fmt.Errorf("link: command %s: %w", q.Do, explain(ctx, err))
	}
	var a response
	if err := json.Unmarshal(lines.Bytes(), &a); err != nil {
		return Stats{}, fmt.Errorf("link: command %s: %w", q.Do, err)
	}
	if a.Error != "" {
		return Stats{}, fmt.Errorf("link: command %s: %s", q.Do, a.Error)
	}
	return *a.Stats, nil
}

// explain prefers the reason why ctx ended to its consequence.
func explain(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}
