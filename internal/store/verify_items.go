package store

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/airstream-io/airstream/internal/database"
	"github.com/airstream-io/airstream/internal/toc"
)

// files calls f for each file of a kind that has an item's name, and reports
// others.
func (v *verifier) files(kind string, f func(name, path string, info fs.FileInfo) error) error {
	return filepath.WalkDir(filepath.Join(v.s.dir, kind), func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it was deleted meanwhile
		}
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		name := e.Name()
		if !isItem(kind, path) || !e.Type().IsRegular() {
			rel, relErr := filepath.Rel(v.s.dir, path)
			v.report(Finding{Kind: KindFile, Name: rel, Problem: "the store has no such file", Bytes: onDisk(info), Orphan: true})
			return relErr
		}
		if err := v.rest(); err != nil {
			return err
		}
		return f(name, path, info)
	})
}

// isItem tells whether a file has the name that an item of its kind has.
func isItem(kind, path string) bool {
	name := filepath.Base(path)
	b, err := hex.DecodeString(name)
	return err == nil && len(b) == 32 && (kind == "partial" || filepath.Base(filepath.Dir(path)) == name[:2])
}

// trees looks at all trees, and at all objects that they name.
func (v *verifier) trees() error {
	err := v.files("trees", func(name, path string, info fs.FileInfo) error {
		tree, raw, err := v.s.mapTree(name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case errors.Is(err, ErrDamaged):
			v.unknown = true
			f := Finding{Kind: KindTree, Name: "sha256:" + name, Problem: "it does not match its checksum; the layer's table must cross again", Bytes: info.Size()}
			return v.find(f, func() error { return v.s.loseTree(name) })
		case err != nil:
			return err
		}
		v.progress(onDisk(info))
		err = v.objects(tree)
		return errors.Join(err, unix.Munmap(raw))
	})
	lost, lostErr := v.s.TreesLost()
	v.unknown = v.unknown || lost
	return errors.Join(err, lostErr)
}

// objects looks at the objects of one layer.
func (v *verifier) objects(tree *toc.Tree) error {
	for entry := range uint32(tree.Len()) {
		first, end := tree.Chunks(entry)
		if first == end {
			continue
		}
		id := tree.ObjectID(entry)
		key := binary.LittleEndian.Uint64(id[:])
		if _, ok := v.seen[key]; ok {
			continue
		}
		v.seen[key] = struct{}{}
		if err := v.rest(); err != nil {
			return err
		}
		if err := v.object(id, tree, entry); err != nil {
			return err
		}
	}
	return nil
}

// object looks at one object, of which the file at entry is made.
func (v *verifier) object(id toc.ObjectID, tree *toc.Tree, entry uint32) error {
	first, end := tree.Chunks(entry)
	size := tree.Attr(entry).Size
	missing, _ := v.s.HasObject(id, end-first)
	here := end - first - missing
	info, err := os.Lstat(v.s.path("objects", id.String()))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if here == 0 {
			return nil
		}
		return v.lost(id, size, end-first, "its file is gone")
	case err != nil:
		return err
	case info.Size() != size && here > 0:
		return v.lost(id, size, end-first, fmt.Sprintf("its file has %d bytes, not %d", info.Size(), size))
	}
	v.progress(onDisk(info))
	if !v.opts.Deep || onDisk(info) == 0 && here == 0 || info.Size() != size {
		return nil
	}
	return v.hashObject(id, tree, entry)
}

// lost reports an object whose file isn't what the map was made for. To open it
// is to mend it.
func (v *verifier) lost(id toc.ObjectID, size int64, chunks uint32, problem string) error {
	return v.find(Finding{Kind: KindObject, Name: id.String(), Problem: problem, Bytes: size}, func() error {
		o, err := v.s.Object(id, size, chunks)
		if err != nil {
			return err
		}
		return o.Close()
	})
}

func (v *verifier) hashObject(id toc.ObjectID, tree *toc.Tree, entry uint32) error {
	first, end := tree.Chunks(entry)
	alone := v.s.opened(id, end-first) == nil
	o, err := v.s.Object(id, tree.Attr(entry).Size, end-first)
	if err != nil {
		return err
	}
	if alone {
		// What counts is what is on the disk, not what memory still has of it.
		_ = unix.Fadvise(int(o.file.Fd()), 0, 0, unix.FADV_DONTNEED)
	}
	var damaged int64
	for i := range end - first {
		o.mu.Lock()
		present := o.there.has(i) || o.there.doubt && v.opts.Repair
		o.mu.Unlock()
		if !present {
			continue
		}
		if err = v.rest(); err != nil {
			break
		}
		c := tree.Chunk(first + i)
		if v.opts.Repair {
			err = o.hash(i, c)
		} else {
			err = o.test(c)
		}
		if errors.Is(err, ErrDamaged) {
			damaged += int64(c.Size)
		} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
			break
		}
		err = nil
	}
	if err == nil && v.opts.Repair {
		o.believe()
	}
	if err = errors.Join(err, o.Close()); err != nil || damaged == 0 {
		return err
	}
	f := Finding{Kind: KindObject, Name: id.String(), Problem: "some of its chunks do not match their IDs", Bytes: damaged}
	return v.find(f, func() error { return nil }) // they were forgotten above
}

// test is hash, but only looks.
func (o *object) test(c toc.Chunk) error {
	p := make([]byte, c.Size)
	if _, err := o.file.ReadAt(p, c.Offset); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if c.ID.Verify(p) != nil {
		return ErrDamaged
	}
	return nil
}

// believe ends an object's doubt: all of its chunks were looked for.
func (o *object) believe() {
	o.mu.Lock()
	doubt := o.there.doubt
	o.there.doubt = false
	if doubt {
		o.gen++
	}
	o.mu.Unlock()
	if doubt {
		o.markDirty()
	}
}

// orphanObjects looks for objects that no tree names: files, and records.
func (v *verifier) orphanObjects() error {
	orphan := func(id toc.ObjectID, bytes int64, problem string) error {
		mend := func() error { _, err := v.s.DeleteObject(id); return err }
		if v.unknown {
			problem += "; it stays, because the table of a layer is missing that may have it"
			mend = nil
		}
		return v.find(Finding{Kind: KindObject, Name: id.String(), Problem: problem, Bytes: bytes, Orphan: true}, mend)
	}
	err := v.files("objects", func(name, _ string, info fs.FileInfo) error {
		b, _ := hex.DecodeString(name)
		if _, ok := v.seen[binary.LittleEndian.Uint64(b)]; ok {
			return nil
		}
		v.progress(onDisk(info))
		return orphan(toc.ObjectID(b), onDisk(info), "no layer has this file")
	})
	if err != nil {
		return err
	}
	return v.s.eachRecord(func(id toc.ObjectID) error {
		if _, ok := v.seen[binary.LittleEndian.Uint64(id[:])]; ok {
			return v.rest()
		}
		if _, err := os.Lstat(v.s.path("objects", id.String())); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return orphan(id, 0, "there is no file for this record, and no layer has it")
	})
}

// eachRecord calls f for each object that the database knows, some hundreds
// per transaction, so that a long walk keeps no pages from being used again.
func (s *Store) eachRecord(f func(id toc.ObjectID) error) error {
	var from []byte
	for {
		var ids []toc.ObjectID
		err := s.db.View(func(tx *database.Tx) error {
			ids = ids[:0]
			return tx.From(bucketObjects, from, func(key, _ []byte, _ error) (bool, error) {
				if len(key) == len(toc.ObjectID{}) {
					ids = append(ids, toc.ObjectID(key))
				}
				return len(ids) < 500, nil
			})
		})
		if err != nil || len(ids) == 0 {
			return err
		}
		for _, id := range ids {
			if err := f(id); err != nil {
				return err
			}
		}
		from = append(ids[len(ids)-1][:], 0)
	}
}

func (v *verifier) wanted(d digest.Digest) bool { return v.opts.Wanted == nil || v.opts.Wanted(d) }

func (v *verifier) blobs() error {
	return v.files("blobs", func(name, path string, info fs.FileInfo) error {
		d := digest.NewDigestFromEncoded(digest.SHA256, name)
		v.progress(onDisk(info))
		remove := func() error { _, err := v.s.DeleteBlob(d); return err }
		if !v.wanted(d) {
			return v.find(Finding{Kind: KindBlob, Name: d.String(), Problem: "no image has this blob", Bytes: onDisk(info), Orphan: true}, remove)
		}
		if !v.opts.Deep && info.Size() > small {
			return nil
		}
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
		h := digest.SHA256.Hash()
		_, err = io.Copy(h, restful{f, v})
		if err = errors.Join(err, f.Close()); err != nil || hex.EncodeToString(h.Sum(nil)) == name {
			return err
		}
		return v.find(Finding{Kind: KindBlob, Name: d.String(), Problem: "it does not match its digest", Bytes: info.Size()}, remove)
	})
}

// restful is a reader that rests now and then.
type restful struct {
	io.Reader
	v *verifier
}

// Read implements io.Reader.
func (r restful) Read(p []byte) (int, error) {
	if err := r.v.rest(); err != nil {
		return 0, err
	}
	return r.Reader.Read(p)
}

func (v *verifier) partials() error {
	return v.files("partial", func(name, path string, info fs.FileInfo) error {
		d := digest.NewDigestFromEncoded(digest.SHA256, name)
		v.progress(onDisk(info))
		if !v.wanted(d) {
			return v.find(Finding{Kind: KindPartial, Name: d.String(), Problem: "no image has this blob", Bytes: onDisk(info), Orphan: true},
				func() error { _, err := v.s.DeletePartial(d); return err })
		}
		if !v.opts.Deep {
			return nil
		}
		p, err := v.s.Partial(d)
		if errors.Is(err, ErrBusy) {
			return nil // it is crossing: Commit will tell
		}
		if err != nil {
			return err
		}
		if sound, damaged := p.soundLength(); damaged {
			f := Finding{Kind: KindPartial, Name: d.String(), Problem: fmt.Sprintf("it is damaged from byte %d on", sound), Bytes: p.Len() - sound}
			err = v.find(f, func() error { return p.cut(sound) })
		}
		return errors.Join(err, p.Close())
	})
}
