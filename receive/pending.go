package receive

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/airstream-io/airstream/internal/bundle"
	"github.com/airstream-io/airstream/internal/store"
)

// pending is a bundle that is being taken in.
type pending struct {
	r  *Receiver
	id string

	about                   // as in contents.json
	received []byte         // bit set, by number - 1
	waiting  []uint32       // numbers of records in the spool
	parts    map[sum][]part // those of tables that are among them

	slots   map[sum]uint32         // of tables
	unused  map[sum]bool           // blobs that the node has no use for
	open    map[sum]*store.Partial // blobs that are being written
	changed map[string]activated   // names that mean something else since now
}

// about is what is written down of a bundle.
type about struct {
	Contents bundle.Contents `json:"contents"`
	Records  int             `json:"records"`
	Activate bool            `json:"activate"`
	Partial  bool            `json:"partial"`
}

type sum = bundle.Sum

// part is a spooled part of a table.
type part struct {
	number       uint32
	offset, size int64
}

func (r *Receiver) open(id string, c *bundle.Contents, o Order) (*pending, error) {
	p, err := r.load(id)
	if err != nil || p.Records != len(c.Records) {
		p = r.pending(id)
		if err := os.MkdirAll(p.path(""), 0o700); err != nil {
			return nil, err
		}
	}
	p.Contents, p.Records = *c, len(c.Records)
	p.Contents.Records = nil // they are not needed any more
	p.Activate, p.Partial = p.Activate || o.Activate, p.Partial || o.Partial
	p.received = append(p.received, make([]byte, max(0, (p.Records+7)/8-len(p.received)))...)
	text, err := json.Marshal(p.about)
	if err == nil {
		err = writeFile(p.path("contents.json"), text)
	}
	if err == nil {
		err = p.meet()
	}
	return p, err
}

func (r *Receiver) pending(id string) *pending {
	return &pending{
		r: r, id: id, parts: map[sum][]part{}, slots: map[sum]uint32{}, unused: map[sum]bool{}, open: map[sum]*store.Partial{},
		changed: map[string]activated{},
	}
}

// load reads what an earlier Apply has left of a bundle.
func (r *Receiver) load(id string) (*pending, error) {
	p := r.pending(id)
	text, err := os.ReadFile(p.path("contents.json"))
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, &p.about); err != nil || p.Records < 0 {
		return nil, fmt.Errorf("%s: %w", p.path("contents.json"), errors.Join(err, bundle.ErrDamaged))
	}
	p.received = make([]byte, (p.Records+7)/8)
	if b, err := os.ReadFile(p.path("received")); err == nil && len(b) == len(p.received)+4 {
		n := len(b) - 4
		if crc32.Checksum(b[:n], castagnoli) == le.Uint32(b[n:]) {
			copy(p.received, b)
		}
	}
	names, err := os.ReadDir(p.path(""))
	if err != nil {
		return nil, err
	}
	for _, e := range names {
		if n, err := strconv.ParseUint(e.Name(), 10, 32); err == nil && n > 0 && n <= uint64(p.Records) {
			p.waiting = append(p.waiting, uint32(n))
		}
	}
	slices.Sort(p.waiting)
	for _, n := range p.waiting {
		if kind, payload, err := p.spooled(n); err == nil {
			p.note(n, kind, payload)
		}
	}
	return p, p.meet()
}

func (p *pending) path(name string) string { return filepath.Join(p.r.dir, p.id, name) }

func (p *pending) has(n uint32) bool { return p.received[(n-1)/8]&(1<<((n-1)%8)) != 0 }
func (p *pending) got(n uint32)      { p.received[(n-1)/8] |= 1 << ((n - 1) % 8) }
func (p *pending) lost(n uint32)     { p.received[(n-1)/8] &^= 1 << ((n - 1) % 8) }

func (p *pending) count() (n int) {
	for i := range uint32(p.Records) {
		if p.has(i + 1) {
			n++
		}
	}
	return n
}

// save makes what has come durable, and then notes that it has come.
func (p *pending) save() error {
	var errs []error
	for s, part := range p.open {
		errs = append(errs, part.Close())
		delete(p.open, s)
	}
	errs = append(errs, p.r.store.Flush())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("receive: %w", err)
	}
	b := le.AppendUint32(slices.Clone(p.received), crc32.Checksum(p.received, castagnoli))
	if err := writeFile(p.path("received"), b); err != nil {
		return fmt.Errorf("receive: %w", err)
	}
	return nil
}

// spool keeps a record that can't be placed yet.
func (p *pending) spool(rec bundle.Record) error {
	b := append([]byte{byte(rec.Kind)}, rec.Payload...)
	b = le.AppendUint32(b, crc32.Checksum(b, castagnoli))
	if err := writeFile(p.path(fmt.Sprint(rec.Number)), b); err != nil {
		return fmt.Errorf("receive: spool: %w", err)
	}
	p.waiting = append(p.waiting, rec.Number)
	p.note(rec.Number, rec.Kind, rec.Payload)
	return nil
}

// note remembers parts of tables that wait for the others.
func (p *pending) note(n uint32, kind bundle.Kind, payload []byte) {
	if kind != bundle.KindTable {
		return
	}
	if x, err := bundle.ParsePart(kind, payload); err == nil {
		p.parts[x.Sum] = append(p.parts[x.Sum], part{n, x.Offset, int64(len(x.Data))})
	}
}

// spooled reads a record back.
func (p *pending) spooled(n uint32) (bundle.Kind, []byte, error) {
	b, err := os.ReadFile(p.path(fmt.Sprint(n)))
	if err != nil {
		return 0, nil, err
	}
	if len(b) < 5 || crc32.Checksum(b[:len(b)-4], castagnoli) != le.Uint32(b[len(b)-4:]) {
		return 0, nil, bundle.ErrDamaged
	}
	return bundle.Kind(b[0]), b[1 : len(b)-4], nil
}

// unspool forgets a record that was placed, or that must come again.
func (p *pending) unspool(n uint32) error {
	err := os.Remove(p.path(fmt.Sprint(n)))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	p.waiting = slices.DeleteFunc(p.waiting, func(x uint32) bool { return x == n })
	for s, parts := range p.parts {
		p.parts[s] = slices.DeleteFunc(parts, func(x part) bool { return x.number == n })
	}
	return err
}

// remove forgets the bundle.
func (p *pending) remove() error {
	if err := os.RemoveAll(p.path("")); err != nil {
		return fmt.Errorf("receive: %w", err)
	}
	return syncDir(p.r.dir)
}

// writeFile writes a file that is durable and whole, or as it was.
func writeFile(name string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(name), ".new-")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncDir(filepath.Dir(name))
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// next returns the number of the first record that is not here; 0 if none is
// missing.
func (p *pending) next() uint32 {
	for n := uint32(1); n <= uint32(p.Records); n++ {
		if !p.has(n) {
			return n
		}
	}
	return 0
}

func validID(s string) bool {
	return len(s) == 16 && strings.Trim(s, "0123456789abcdef") == ""
}
