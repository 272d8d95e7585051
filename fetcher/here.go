package fetcher

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/airstream-io/airstream/internal/toc"
)

// ReadHere returns n bytes from byte off on of a file of the layer in slot, if
// they are on the node; it never asks for any. They were verified by this
// process. The error is fs.ErrNotExist if some are missing, fs.ErrInvalid if
// there is no such part of a file, or store.ErrDamaged.
func (f *Fetcher) ReadHere(slot, entry uint32, off int64, n uint32) (content []byte, err error) {
	tree, err := f.TreeHere(slot)
	if err != nil {
		return nil, err
	}
	if tree == nil {
		return nil, fmt.Errorf("fetcher: the table of layer %d: %w", slot, fs.ErrNotExist)
	}
	if int64(entry) >= int64(tree.Len()) || tree.Attr(entry).Mode&toc.TypeMask != toc.TypeRegular ||
		off < 0 || n == 0 || off > tree.Attr(entry).Size-int64(n) {
		return nil, fmt.Errorf("fetcher: bytes %d+%d of entry %d of layer %d: %w", off, n, entry, slot, fs.ErrInvalid)
	}
	first, end := tree.Chunks(entry)
	o, err := f.store.Object(tree.ObjectID(entry), tree.Attr(entry).Size, end-first)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, o.Close()) }()
	c, ok := tree.FindChunk(entry, off)
	for ; ok && c < end && tree.Chunk(c).Offset < off+int64(n); c++ {
		if err := o.Check(c-first, tree.Chunk(c)); err != nil {
			return nil, err
		}
	}
	content = make([]byte, n)
	_, err = o.ReadAt(content, off)
	return content, err
}
