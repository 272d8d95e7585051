package database

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
)

// The journal, version 1, integers little-endian: "ASJRNL01", then records of
//
//	magic   4 B  "ASr1"
//	length  u32  of the body
//	sum     u32  CRC-32C of the body
//	body         op u8 (1 put, 2 delete), n u8, bucket [n], m u16, key [m], value
//
// A record that is damaged is passed over: the next one begins at the next
// magic. Of a record that the file ends in, the writer was never told that it
// was written.
const (
	journalMagic = "ASJRNL01"
	recordMagic  = "ASr1"
	recordHeader = 12
	opPut        = 1
	opDelete     = 2

	maxBody    = 16 << 20  // bytes; an index of referrers is the longest value
	maxJournal = 256 << 20 // bytes that are read of a journal
)

// batch is the records of one transaction.
type batch struct{ b []byte }

func (l *batch) put(bucket, key, value []byte) { l.add(opPut, bucket, key, value) }
func (l *batch) delete(bucket, key []byte)     { l.add(opDelete, bucket, key, nil) }

func (l *batch) add(op byte, bucket, key, value []byte) {
	if l == nil {
		return
	}
	at := len(l.b)
	l.b = append(l.b, recordMagic...)
	l.b = append(l.b, make([]byte, 8)...)
	l.b = append(l.b, op, byte(len(bucket)))
	l.b = append(l.b, bucket...)
	l.b = binary.LittleEndian.AppendUint16(l.b, uint16(len(key)))
	l.b = append(l.b, key...)
	l.b = append(l.b, value...)
	body := l.b[at+recordHeader:]
	binary.LittleEndian.PutUint32(l.b[at+4:], uint32(len(body)))
	binary.LittleEndian.PutUint32(l.b[at+8:], crc32.Checksum(body, castagnoli))
}

// record is one change; its slices are parts of what was decoded.
type record struct {
	op                 byte
	bucket, key, value []byte
}

// decodeJournal calls f for each record that is as it was written, in their
// order, and returns how many bytes were passed over before the last of them.
func decodeJournal(b []byte, f func(r record)) (lost int) {
	skipped := 0
	if rest, ok := bytes.CutPrefix(b, []byte(journalMagic)); ok {
		b = rest
	}
	for len(b) > 0 {
		r, n := decodeRecord(b)
		if n > 0 {
			f(r)
			b, lost, skipped = b[n:], lost+skipped, 0
			continue
		}
		next := bytes.Index(b[1:], []byte(recordMagic))
		if next < 0 {
			break
		}
		skipped += next + 1
		b = b[next+1:]
	}
	return lost
}

func decodeRecord(b []byte) (r record, n int) {
	if len(b) < recordHeader || string(b[:4]) != recordMagic {
		return r, 0
	}
	length := binary.LittleEndian.Uint32(b[4:])
	if length > maxBody || int(length) > len(b)-recordHeader {
		return r, 0
	}
	body := b[recordHeader : recordHeader+int(length)]
	if crc32.Checksum(body, castagnoli) != binary.LittleEndian.Uint32(b[8:]) || len(body) < 2 {
		return r, 0
	}
	r.op = body[0]
	rest, ok := body[2:], r.op == opPut || r.op == opDelete
	if k := int(body[1]); ok && len(rest) >= k+2 {
		r.bucket, rest = rest[:k], rest[k:]
		m := int(binary.LittleEndian.Uint16(rest))
		if rest = rest[2:]; m > 0 && len(rest) >= m {
			r.key, r.value = rest[:m], rest[m:]
			return r, recordHeader + int(length)
		}
	}
	return r, 0
}

// readJournal decodes the journal in the file name; one that isn't there is
// empty.
func readJournal(name string, f func(r record)) (lost int, err error) {
	file, err := os.Open(name)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	b, err := io.ReadAll(io.LimitReader(file, maxJournal))
	if err = errors.Join(err, file.Close()); err != nil {
		return 0, err
	}
	return decodeJournal(b, f), nil
}

// journal is the journal of an open database.
type journal struct {
	file *os.File
	base int64 // bytes when it was rewritten last
	size int64 // bytes
	was  int64 // size before the last append
}

// append makes a batch durable.
func (j *journal) append(l *batch) error {
	j.was = j.size
	if len(l.b) == 0 {
		return nil
	}
	_, err := j.file.WriteAt(l.b, j.size)
	if err == nil {
		err = j.file.Sync()
	}
	if err != nil {
		return errors.Join(fmt.Errorf("database: write journal: %w", err), j.takeBack())
	}
	j.size += int64(len(l.b))
	return nil
}

// takeBack removes the last batch.
func (j *journal) takeBack() error {
	j.size = j.was
	if err := j.file.Truncate(j.size); err != nil {
		return err
	}
	return j.file.Sync()
}

func (j *journal) long() bool   { return j.size > 4*j.base+1<<20 }
func (j *journal) close() error { return j.file.Close() }

// shorten replaces the journal by one that has every record once.
func (d *DB) shorten() error {
	j, err := d.rewrite()
	if err != nil {
		// The one at hand is as good, only longer.
		d.journal.base = d.journal.size
		return nil //nolint:nilerr // as above; it is tried again when it has grown
	}
	err = d.journal.close()
	d.journal = j
	return err
}

// rewrite writes a new journal of all records.
func (d *DB) rewrite() (j *journal, err error) {
	f, err := os.CreateTemp(filepath.Dir(d.name), ".journal-")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), os.Remove(f.Name()))
		}
	}()
	w := bufio.NewWriterSize(f, 64<<10)
	if _, err := w.WriteString(journalMagic); err != nil {
		return nil, err
	}
	j = &journal{file: f, size: int64(len(journalMagic))}
	tx, err := d.bolt.Begin(false)
	if err != nil {
		return nil, err
	}
	t := &Tx{tx: tx}
	for _, bucket := range d.opts.Buckets {
		err = t.ForEach(bucket, func(key, value []byte) error {
			var l batch
			l.put(bucket, key, value)
			n, err := w.Write(l.b)
			j.size += int64(n)
			return err
		})
		if err != nil {
			break
		}
	}
	if err = errors.Join(err, guard(tx.Rollback), w.Flush()); err != nil {
		return nil, err
	}
	j.base, j.was = j.size, j.size
	if err := f.Sync(); err != nil {
		return nil, err
	}
	if err := os.Rename(f.Name(), d.name+".journal"); err != nil {
		return nil, err
	}
	return j, syncDir(filepath.Dir(d.name))
}
