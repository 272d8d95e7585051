package database

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
)

// What bbolt's file format, version 2, says, integers in the machine's order,
// which is little-endian wherever Airstream runs:
//
//	page     id u64, flags u16, count u16, overflow u32 (further pages)
//	meta     in pages 0 and 1: magic, version, pageSize, 0 u32; root bucket:
//	         page u64, sequence u64; free list's page, first unused page,
//	         transaction u64; FNV-1a of all before, u64
//	branch   count times: offset of key from here u32, its size u32, page u64
//	leaf     count times: flags u32 (1: a bucket), offset of key from here,
//	         size of key, size of value u32
//	bucket   as a value: page u64, sequence u64; if the page is 0, the bucket's
//	         one leaf page follows
//	free     count times, or if that is 65535 as often as the first says: page u64
const (
	pageHeader  = 16
	elementSize = 16
	metaSize    = 64
	metaMagic   = 0xED0CDAED
	metaVersion = 2

	flagBranch = 0x01
	flagLeaf   = 0x02
	flagFree   = 0x10
	noFreeList = ^uint64(0)

	maxDepth = 32 // of a tree of pages
)

var le = binary.LittleEndian

// checkFile looks at the whole file. The error is ErrDamaged if bbolt must not
// be let near it, or a record is not what was written.
func checkFile(name string) error {
	values := 0
	err := scanFile(name, func(bucket, key, stored []byte) {
		if _, ok := unseal(bucket, key, stored); !ok {
			values++
		}
	})
	if values > 0 {
		err = errors.Join(err, fmt.Errorf("%w: %d records do not match their checksums", ErrDamaged, values))
	}
	return err
}

// scanFile calls f for each record that can be reached, also of a damaged file.
// What f gets is valid until it returns. The error says what is wrong.
func scanFile(name string, f func(bucket, key, stored []byte)) error {
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	info, err := file.Stat()
	if err == nil {
		err = scan(file, info.Size(), f)
	}
	return errors.Join(err, file.Close())
}

// meta is what a meta page says.
type meta struct {
	pageSize             uint64
	root, free, end, txn uint64
}

func readMeta(b []byte) (m meta, ok bool) {
	if len(b) < pageHeader+metaSize {
		return m, false
	}
	b = b[pageHeader:]
	h := fnv.New64a()
	h.Write(b[:metaSize-8])
	if le.Uint32(b) != metaMagic || le.Uint32(b[4:]) != metaVersion || le.Uint64(b[metaSize-8:]) != h.Sum64() {
		return m, false
	}
	m = meta{pageSize: uint64(le.Uint32(b[8:])), root: le.Uint64(b[16:]), free: le.Uint64(b[32:]), end: le.Uint64(b[40:]), txn: le.Uint64(b[48:])}
	return m, m.pageSize >= 512 && m.pageSize <= 1<<20
}

type scanner struct {
	r     io.ReaderAt
	m     meta
	seen  []uint64 // bit per page: it is reached
	first error    // the first thing that is wrong
	count int      // how many are
	f     func(bucket, key, stored []byte)
}

func scan(r io.ReaderAt, size int64, f func(bucket, key, stored []byte)) error {
	s := &scanner{r: r, f: f}
	pageSize := int64(os.Getpagesize())
	var found bool
	for i := range int64(2) {
		b := make([]byte, pageHeader+metaSize)
		if _, err := r.ReadAt(b, i*pageSize); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		m, ok := readMeta(b)
		if !ok || int64(m.pageSize) != pageSize {
			s.wrong("meta page %d", i)
			continue
		}
		if !found || m.txn > s.m.txn {
			s.m, found = m, true
		}
	}
	if !found {
		return fmt.Errorf("%w: no meta page is valid", ErrDamaged)
	}
	if s.m.end > uint64(size)/s.m.pageSize+1 || s.m.end < 2 { // the last may not have been written
		s.wrong("the file ends before its last page")
		s.m.end = min(s.m.end, uint64(size)/s.m.pageSize+1)
	}
	s.seen = make([]uint64, (s.m.end+63)/64+1)
	if err := s.tree(s.m.root, nil, nil, nil, 0); err != nil {
		return err
	}
	if err := s.freeList(); err != nil {
		return err
	}
	if s.count > 0 {
		return fmt.Errorf("%w: %w and %d more", ErrDamaged, s.first, s.count-1)
	}
	return nil
}

func (s *scanner) wrong(format string, args ...any) {
	if s.count++; s.first == nil {
		s.first = fmt.Errorf(format, args...)
	}
}

// page reads a page with what overflows from it; nil if it can't be one.
func (s *scanner) page(id uint64) ([]byte, error) {
	if id < 2 || id >= s.m.end {
		s.wrong("page %d does not exist", id)
		return nil, nil
	}
	if s.seen[id/64]>>(id%64)&1 == 1 {
		s.wrong("page %d is reached twice", id)
		return nil, nil
	}
	b := make([]byte, s.m.pageSize)
	n, err := s.r.ReadAt(b, int64(id*s.m.pageSize))
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	over := uint64(le.Uint32(b[12:]))
	if n < len(b) || le.Uint64(b) != id || id+over >= s.m.end {
		s.wrong("page %d is not what it says", id)
		return nil, nil
	}
	for i := id; i <= id+over; i++ {
		s.seen[i/64] |= 1 << (i % 64)
	}
	if over > 0 {
		b = make([]byte, (over+1)*s.m.pageSize)
		if n, err := s.r.ReadAt(b, int64(id*s.m.pageSize)); n < len(b) {
			if err != nil && !errors.Is(err, io.EOF) {
				return nil, err
			}
			s.wrong("page %d is cut off", id)
			return nil, nil
		}
	}
	return b, nil
}

// tree goes through a bucket, nil being the root that holds the others.
// All its keys must be at least from and below to; nil: whatever they are.
func (s *scanner) tree(id uint64, bucket, from, to []byte, depth int) error {
	b, err := s.page(id)
	if b == nil || err != nil {
		return err
	}
	return s.elements(b, id, bucket, from, to, depth)
}

func (s *scanner) elements(b []byte, id uint64, bucket, from, to []byte, depth int) error {
	flags, count := le.Uint16(b[8:]), int(le.Uint16(b[10:]))
	if flags != flagBranch && flags != flagLeaf || pageHeader+count*elementSize > len(b) || depth > maxDepth || flags == flagBranch && count == 0 {
		s.wrong("page %d is no page of records", id)
		return nil
	}
	if count == 0 && len(b) >= pageHeader+8 && le.Uint64(b[pageHeader:]) != 0 {
		s.wrong("page %d holds more than it says", id)
	}
	var last []byte
	next := uint64(pageHeader + count*elementSize) // keys and values follow without gaps
	for i := range count {
		at := pageHeader + i*elementSize
		e := b[at : at+elementSize]
		var off, n, m uint64 // of the key; its size; the value's
		if flags == flagBranch {
			off, n = uint64(le.Uint32(e)), uint64(le.Uint32(e[4:]))
		} else {
			off, n, m = uint64(le.Uint32(e[4:])), uint64(le.Uint32(e[8:])), uint64(le.Uint32(e[12:]))
		}
		if n == 0 || uint64(at)+off+n+m > uint64(len(b)) {
			s.wrong("record %d of page %d lies outside", i, id)
			continue
		}
		if uint64(at)+off != next {
			s.wrong("record %d of page %d is not where it should be", i, id)
		}
		next = uint64(at) + off + n + m
		key := b[uint64(at)+off:][:n]
		if last != nil && bytes.Compare(last, key) >= 0 || bytes.Compare(key, from) < 0 || to != nil && bytes.Compare(key, to) >= 0 {
			s.wrong("page %d is out of order", id)
		}
		last = key
		if flags == flagBranch {
			if err := s.tree(le.Uint64(e[8:]), bucket, key, s.next(b, i, count, to), depth+1); err != nil {
				return err
			}
			continue
		}
		if err := s.leaf(le.Uint32(e), key, b[uint64(at)+off+n:][:m], bucket, id, depth); err != nil {
			return err
		}
	}
	return nil
}

// next returns the key behind element i of a branch page, or to behind the last.
func (s *scanner) next(b []byte, i, count int, to []byte) []byte {
	if i+1 == count {
		return to
	}
	at := pageHeader + (i+1)*elementSize
	off, n := uint64(at)+uint64(le.Uint32(b[at:])), uint64(le.Uint32(b[at+4:]))
	if off+n > uint64(len(b)) {
		return to // it is reported when it comes to it
	}
	return b[off : off+n]
}

// leaf is one record: a bucket in the root, a value in a bucket.
func (s *scanner) leaf(flags uint32, key, value, bucket []byte, id uint64, depth int) error {
	switch {
	case bucket != nil && flags == 0:
		s.f(bucket, key, value)
	case bucket == nil && flags == 1 && len(value) >= pageHeader:
		if root := le.Uint64(value); root != 0 {
			return s.tree(root, key, nil, nil, depth+1)
		}
		if len(value) < 2*pageHeader {
			s.wrong("bucket %q of page %d is cut off", key, id)
			return nil
		}
		return s.elements(value[pageHeader:], id, key, nil, nil, depth+1)
	default:
		s.wrong("record %q of page %d is of the wrong kind", key, id)
	}
	return nil
}

// freeList checks that no page that is in use is taken for free.
func (s *scanner) freeList() error {
	if s.m.free == noFreeList {
		s.wrong("it has no list of free pages")
		return nil
	}
	b, err := s.page(s.m.free)
	if b == nil || err != nil {
		return err
	}
	count := uint64(le.Uint16(b[10:]))
	ids := b[pageHeader:]
	if count == 0xFFFF {
		count, ids = le.Uint64(ids), ids[8:]
	}
	if le.Uint16(b[8:]) != flagFree || count > uint64(len(ids)/8) {
		s.wrong("page %d is no list of free pages", s.m.free)
		return nil
	}
	last := uint64(1)
	for i := range count {
		id := le.Uint64(ids[8*i:])
		if id <= last || id >= s.m.end || s.seen[id/64]>>(id%64)&1 == 1 {
			s.wrong("page %d is not free", id)
			return nil
		}
		s.seen[id/64] |= 1 << (id % 64)
		last = id
	}
	for id := uint64(2); id < s.m.end; id++ {
		if s.seen[id/64]>>(id%64)&1 == 0 {
			s.wrong("page %d is neither in use nor free", id)
			break
		}
	}
	return nil
}
