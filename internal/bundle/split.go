package bundle

import (
	"errors"
	"fmt"
	"io"
)

// Split cuts a bundle into pieces of at most size bytes, for media that hold no
// more. Each begins with the manifest, so that each can be applied, and in any
// order. next opens the piece with a number, from 1 on. It returns how many there
// are; errors are those of Reader, and of next.
func Split(r *Reader, size int64, next func(n int) (io.WriteCloser, error)) (pieces int, err error) {
	var out io.WriteCloser
	left := int64(0)
	put := func(b []byte) error {
		if out == nil || int64(len(b)) > left {
			if least := int64(len(r.Manifest())) + int64(len(b)); least > size {
				return fmt.Errorf("bundle: a piece takes at least %d bytes here: the manifest and one record", least)
			}
			if out != nil {
				if err := out.Close(); err != nil {
					return err
				}
			}
			pieces++
			if out, err = next(pieces); err != nil {
				return err
			}
			if _, err := out.Write(r.Manifest()); err != nil {
				return err
			}
			left = size - int64(len(r.Manifest()))
		}
		left -= int64(len(b))
		_, err := out.Write(b)
		return err
	}
	for {
		_, b, err := r.NextPacked()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = put(b)
		}
		if err != nil {
			if out != nil {
				err = errors.Join(err, out.Close())
			}
			return pieces, err
		}
	}
	if len(r.Damage()) > 0 {
		err = fmt.Errorf("bundle: %w; the pieces lack what was damaged", ErrDamaged)
	}
	if pieces == 0 || int64(len(r.Copy())) <= left {
		err = errors.Join(err, put(r.Copy())) // else every piece has one in front
	}
	return pieces, errors.Join(err, out.Close())
}

// Join puts records of a bundle, from pieces in any order, where they belong in out.
// It notes in have, one for each record, which there are.
func Join(r *Reader, out io.WriterAt, have []bool) error {
	if !r.Late() || !r.Sealed() {
		if _, err := out.WriteAt(r.Manifest(), 0); err != nil {
			return err
		}
	}
	for {
		n, b, err := r.NextPacked()
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err == nil && !have[n-1] {
			_, err = out.WriteAt(b, r.Offset(n))
			have[n-1] = true
		}
		if err != nil {
			return err
		}
	}
	if len(r.Copy()) > 0 {
		_, err := out.WriteAt(r.Copy(), r.Offset(uint32(len(have)+1)))
		return err
	}
	return nil
}
