package link

import (
	"context"
	"errors"
	"fmt"

	"github.com/airstream-io/airstream/internal/link/wire"
)

// Enrol asks a proxy for a certificate, with a token. opts.TLS must verify the
// proxy, and has no certificate.
func Enrol(ctx context.Context, opts Options, token string, request []byte) (certificate, authority []byte, err error) {
	return ask(ctx, opts, func(ctx context.Context, c wire.EnrolmentClient) (*wire.EnrolAnswer, error) {
		return c.Enrol(ctx, &wire.EnrolRequest{Token: token, Request: request})
	})
}

// Renew asks for a new certificate, with the one in opts.TLS.
func Renew(ctx context.Context, opts Options, request []byte) (certificate, authority []byte, err error) {
	return ask(ctx, opts, func(ctx context.Context, c wire.EnrolmentClient) (*wire.EnrolAnswer, error) {
		return c.Renew(ctx, &wire.RenewRequest{Request: request})
	})
}

func ask(ctx context.Context, opts Options, call func(context.Context, wire.EnrolmentClient) (*wire.EnrolAnswer, error)) (certificate, authority []byte, err error) {
	opts.defaults()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w := newWatch(opts.MinStall, cancel)
	defer w.end()
	conn, err := opts.connect(w)
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	a, err := call(ctx, wire.NewEnrolmentClient(conn))
	if err != nil {
		return nil, nil, fmt.Errorf("link: %s: %w", opts.Address, w.why(err))
	}
	return a.GetCertificate(), a.GetAuthority(), nil
}
