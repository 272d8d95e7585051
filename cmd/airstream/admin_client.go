package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"syscall"
)

// maxAnswer bounds what is read of an answer in one piece, in bytes.
const maxAnswer = 64 << 20

// errNoNode says that no node listens. What it would say is not known then.
var errNoNode = errors.New("airstream node does not answer")

// adminClient talks to the node of this machine.
type adminClient struct {
	socket string
	http   http.Client
}

func newAdminClient(state string) *adminClient {
	c := &adminClient{socket: adminSocket(state)}
	c.http.Transport = &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", c.socket)
	}}
	return c
}

// ask sends in as JSON, unless it is nil, and decodes the answer into out.
func (c *adminClient) ask(ctx context.Context, method, path string, in, out any) error {
	return c.do(ctx, method, path, in, func(r io.Reader) error {
		if err := json.NewDecoder(io.LimitReader(r, maxAnswer)).Decode(out); err != nil {
			return exitWith(exitFailure, fmt.Errorf("the answer of airstream node: %w", err))
		}
		return nil
	})
}

// do sends a request and hands its answer to read. Errors have exit codes.
func (c *adminClient) do(ctx context.Context, method, path string, in any, read func(io.Reader) error) error {
	body := []byte{}
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return err
		}
	}
	return c.exchange(ctx, method, path, bytes.NewReader(body), read)
}

// send posts a stream and hands the answer to read. Errors have exit codes.
func (c *adminClient) send(ctx context.Context, path string, body io.Reader, read func(io.Reader) error) error {
	return c.exchange(ctx, http.MethodPost, path, body, read)
}

func (c *adminClient) exchange(ctx context.Context, method, path string, body io.Reader, read func(io.Reader) error) (err error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://node"+path, body)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	switch {
	case ctx.Err() != nil:
		return exitWith(exitIncomplete, fmt.Errorf("interrupted: %w", ctx.Err()))
	case err != nil:
		why := err
		if errno, ok := errors.AsType[syscall.Errno](err); ok {
			why = errno // around it stand an address that nobody has, and the socket's once more
		}
		return exitWith(exitFailure, fmt.Errorf("%w on %s: %w; is it running, and is this root?", errNoNode, c.socket, why))
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	if resp.StatusCode >= http.StatusBadRequest {
		var said apiError
		b, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
		if json.Unmarshal(b, &said) == nil && said.Error != "" {
			return exitWith(max(said.Code, exitFailure), errors.New(said.Error))
		}
		return exitWith(exitFailure, errors.Join(fmt.Errorf("airstream node: %s: %s; is it of this version?", resp.Status, bytes.TrimSpace(b)), err))
	}
	return read(resp.Body)
}
