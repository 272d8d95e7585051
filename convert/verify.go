package convert

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// verifier passes a blob on and reports, instead of its end, that it is not
// what the descriptor says: too long, too short, or other bytes.
type verifier struct {
	r   io.Reader
	d   v1.Descriptor
	sum hash.Hash
	n   int64
	err error // sticky
}

func newVerifier(r io.Reader, d v1.Descriptor) *verifier {
	return &verifier{r: r, d: d, sum: sha256.New()}
}

func (v *verifier) Read(p []byte) (int, error) {
	if v.err != nil {
		return 0, v.err
	}
	n, err := v.r.Read(p)
	v.sum.Write(p[:n])
	v.n += int64(n)
	switch {
	case v.n > v.d.Size:
		v.err = v.bad("it has more than %d bytes", v.d.Size)
	case err == nil:
		return n, nil
	case !atEnd(err):
		v.err = &sourceError{err}
	case v.n < v.d.Size:
		v.err = v.bad("it ends after %d of %d bytes", v.n, v.d.Size)
	case v.digest() != v.d.Digest:
		v.err = v.bad("its bytes have the digest %s", v.digest())
	default:
		v.err = io.EOF
		return n, io.EOF
	}
	return 0, v.err
}

// atEnd tells whether a reader has ended, as opposed to broken. The registry
// client checks digests as well and has no error value for it; what is wrong
// is then said better here.
func atEnd(err error) bool {
	return errors.Is(err, io.EOF) || strings.Contains(err.Error(), "error verifying")
}

func (v *verifier) digest() v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: fmt.Sprintf("%x", v.sum.Sum(nil))}
}

func (v *verifier) bad(format string, args ...any) error {
	return &sourceError{fmt.Errorf("%w: %s", ErrVerify, fmt.Sprintf(format, args...))}
}

// drain reads the rest, so that the verdict on the whole blob is known.
func (v *verifier) drain() error {
	if _, err := io.Copy(io.Discard, v); err != nil {
		return err
	}
	return nil
}

// sourceError is an error of the blob and not of what a decompressor makes of
// it; see layer.Decompress.
type sourceError struct{ error }

func (e *sourceError) Unwrap() error     { return e.error }
func (e *sourceError) SourceError() bool { return true }
