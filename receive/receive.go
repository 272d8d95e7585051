// Package receive takes bundles in: on a node, with or without a link.
//
// A bundle's records go where the mirror and the fetcher look for content, as soon
// as they come; what can't be placed yet, because the table or the content that it
// is about isn't here, waits in a spool. Which records have come is written down
// after what they brought is durable, so that a bundle which breaks off goes on
// where it stopped, also after a crash, and one that comes again changes nothing.
//
// A name means a bundle's image only after all of that image is here, in one
// transaction for all names of the bundle. Until then nobody who pulls by name sees
// anything of it. A bundle that presumes images which are not here waits for them:
// whenever something comes, all that wait are looked at again, so the order in which
// bundles arrive doesn't matter.
//
// Below the directory that Open is given, each bundle that is not done has one:
//
//	<ID>/contents.json   what its manifest says, and what was asked for
//	<ID>/received        bit set of records that are durable, and a CRC-32C
//	<ID>/<number>        records that wait: kind u8 and payload
//
// What is damaged there is as if it had not come.
package receive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"sync"

	"filippo.io/age"
	"github.com/opencontainers/go-digest"

	"github.com/airstream-io/airstream/internal/bundle"
	"github.com/airstream-io/airstream/internal/catalog"
	"github.com/airstream-io/airstream/internal/store"
	"github.com/airstream-io/airstream/internal/toc"
)

// Content is what has layers' trees and their files' content. The fetcher is it.
type Content interface {
	// TreeHere returns the tree of a layer if it is on the node; else it is nil.
	TreeHere(slot uint32) (*toc.Tree, error)
	// PutTable takes a layer's table, whose digest was compared, and where it begins in
	// the layer blob.
	PutTable(ctx context.Context, slot uint32, json []byte, at int64) (*toc.Tree, error)
	// Push takes a chunk of a layer whose tree is here, and verifies it.
	Push(slot, number uint32, content []byte) error
	// Complete tells whether all content of layers is here.
	Complete(slots ...uint32) (bool, error)
}

// Rebuilder makes files of a delta, for one codec.
type Rebuilder interface {
	// Rebuild makes targets files of a delta, given its bytes and what it is made from,
	// in the order of the record. emit is called once for each target, in any order, and
	// reads to the end; what it is given is verified there. Memory must be bounded,
	// whatever the delta says.
	Rebuild(ctx context.Context, delta io.ReaderAt, size int64, bases []io.ReaderAt, targets int, emit func(target int, content io.Reader) error) error
}

// Options are what a node has beside its store and catalog.
type Options struct {
	Rebuilders map[string]Rebuilder // by codec; what none can read waits
	// Room is asked for space before content comes, and may be nil.
	Room   func(ctx context.Context, bytes int64) error
	Logger *slog.Logger
}

// Receiver is safe for concurrent use; bundles are taken in one at a time.
type Receiver struct {
	store   *store.Store
	catalog *catalog.Catalog
	content Content
	dir     string
	opts    Options
	log     *slog.Logger

	mu     sync.Mutex // held while a bundle is taken in
	closed bool       // guarded by mu
}

// Open opens the spool in dir, making it if it isn't there.
func Open(dir string, s *store.Store, c *catalog.Catalog, content Content, opts Options) (*Receiver, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("receive: %w", err)
	}
	r := &Receiver{store: s, catalog: c, content: content, dir: dir, opts: opts, log: opts.Logger}
	if r.log == nil {
		r.log = slog.Default()
	}
	return r, nil
}

// Close waits for the bundle that is being taken in, whose context should have ended,
// and takes no other in.
func (r *Receiver) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	return nil
}

// errClosed says that the node stops.
var errClosed = fmt.Errorf("receive: stopping: %w", context.Canceled)

// Order says what is to become of a bundle.
type Order struct {
	Activate   bool           // let its names mean its images, when all of these are here
	Partial    bool           // with Activate: each image alone, whatever becomes of the others
	Keys       []bundle.Key   // who may have signed it; none: anybody, or nobody
	Identities []age.Identity // that it may be encrypted to
}

// ErrBaseMissing says that a bundle leaves out what it thinks is here, and isn't.
var ErrBaseMissing = errors.New("the bundle builds upon images that are not here")

// ErrWrong says that a record contradicts what it is about.
var ErrWrong = errors.New("it contradicts what it is about")

// ErrIncomplete says that more of a bundle is to come.
var ErrIncomplete = errors.New("the bundle is not here whole")

// Result is what became of a bundle.
type Result struct {
	Bundle   string          `json:"bundle"`
	Signer   string          `json:"signer,omitempty"` // ID of the trusted key that signed it
	Records  int             `json:"records"`          // that it has
	Received int             `json:"received"`         // of these, how many are here
	New      int             `json:"new"`              // of these, how many came now
	Next     uint32          `json:"next,omitempty"`   // the first that is not here; 0: all are
	Waiting  int             `json:"waiting"`          // records that can't be placed yet
	Damage   []bundle.Damage `json:"damage,omitempty"`
	Images   []ImageResult   `json:"images"`
	Bases    []bundle.Base   `json:"missingBases,omitempty"`
	Others   []Result        `json:"others,omitempty"` // bundles that became complete by this one
}

// ImageResult is what became of one image of a bundle.
type ImageResult struct {
	Name     string        `json:"name"`
	Digest   digest.Digest `json:"digest"`
	Complete bool          `json:"complete"`
	Active   bool          `json:"active"`             // its name means it
	Changed  bool          `json:"changed"`            // since now
	Previous digest.Digest `json:"previous,omitempty"` // what it meant before, if it changed
	Missing  string        `json:"missing,omitempty"`  // what of it is not here
}

// Complete tells whether nothing of the bundle is missing.
func (r *Result) Complete() bool {
	return !slices.ContainsFunc(r.Images, func(i ImageResult) bool { return !i.Complete })
}

// Apply takes a bundle in, as much of it as comes. The result tells what is here
// also if there is an error. Errors are bundle's, ErrIncomplete, ErrBaseMissing,
// store.ErrNoSpace, or the disk's.
func (r *Receiver) Apply(ctx context.Context, in io.Reader, o Order) (Result, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return Result{}, errClosed
	}
	rd, err := bundle.NewReader(in)
	if err != nil {
		return Result{}, err
	}
	defer rd.Close()
	rd.Identities = o.Identities
	contents, err := rd.Begin()
	if err != nil {
		return Result{}, err
	}
	res := Result{Bundle: rd.ID().String(), Records: len(contents.Records)}
	if len(o.Keys) > 0 {
		key, err := rd.Signature().Verify(o.Keys)
		if err != nil {
			return res, err
		}
		res.Signer = key.ID()
	}
	p, err := r.open(rd.ID().String(), contents, o)
	if err != nil {
		return res, fmt.Errorf("receive: %w", err)
	}
	whole, err := p.whole()
	if err != nil {
		return res, fmt.Errorf("receive: %w", err)
	}
	if whole { // nothing of it is needed
		for n := range uint32(p.Records) {
			p.got(n + 1)
		}
	} else if err = r.room(ctx, p, contents); err == nil {
		err = r.take(ctx, p, rd, &res)
	}
	err = errors.Join(err, p.save())
	res.Damage = rd.Damage()
	others, settleErr := r.settle(ctx, p)
	err = errors.Join(err, settleErr)
	res.Others = others
	p.report(&res)
	return res, errors.Join(err, verdict(&res))
}

// verdict says what is wrong with a result, if that is not yet said.
func verdict(res *Result) error {
	switch {
	case len(res.Damage) > 0 && res.Received < res.Records:
		return fmt.Errorf("receive: bundle %s: %w: %d of %d records are missing; what is sound was taken, and another copy brings the rest", res.Bundle, bundle.ErrDamaged, res.Records-res.Received, res.Records)
	case res.Received < res.Records:
		return fmt.Errorf("receive: bundle %s: %w: %d of %d records came", res.Bundle, ErrIncomplete, res.Received, res.Records)
	case len(res.Bases) > 0:
		return fmt.Errorf("receive: bundle %s: %w: %s", res.Bundle, ErrBaseMissing, names(res.Bases))
	}
	for _, img := range res.Images {
		if !img.Complete { // it was evicted since, or never was what the image says
			return fmt.Errorf("receive: bundle %s: %w: %s: %s is missing; apply it again", res.Bundle, ErrIncomplete, img.Name, img.Missing)
		}
	}
	return nil
}

func names(bases []bundle.Base) (s string) {
	for i, b := range bases {
		if i > 0 {
			s += ", "
		}
		s += b.Name
	}
	return s
}

// room asks for space for what is to come.
func (r *Receiver) room(ctx context.Context, p *pending, c *bundle.Contents) error {
	if r.opts.Room == nil {
		return nil
	}
	var need int64
	for i := range c.Records {
		if !p.has(uint32(i + 1)) {
			need += int64(c.Records[i].Raw)
		}
	}
	return r.opts.Room(ctx, need)
}

// saveEvery is how many bytes of content come between two notes of what is durable.
const saveEvery = 16 << 20

// take places the records that come.
func (r *Receiver) take(ctx context.Context, p *pending, rd *bundle.Reader, res *Result) error {
	left := saveEvery
	var bad error
	for {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("receive: %w", err)
		}
		rec, err := rd.Next()
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return bad // what is missing, the result tells
		case err != nil:
			return errors.Join(bad, err)
		case p.has(rec.Number):
			continue
		}
		switch err := p.place(ctx, rec.Kind, rec.Payload); {
		case errors.Is(err, errWait):
			if err := p.spool(rec); err != nil {
				return errors.Join(bad, err)
			}
		case isWrong(err):
			// The sender made it so; the other records are none the worse for it.
			bad = fmt.Errorf("receive: record %d of bundle %s: %w", rec.Number, res.Bundle, err)
			r.log.WarnContext(ctx, "a record of a bundle is not what it says", slog.String("bundle", res.Bundle), slog.Any("error", err))
			continue
		case err != nil:
			return errors.Join(bad, fmt.Errorf("receive: record %d of bundle %s: %w", rec.Number, res.Bundle, err))
		}
		p.got(rec.Number)
		res.New++
		if left -= len(rec.Payload); left <= 0 {
			left = saveEvery
			if err := p.save(); err != nil {
				return errors.Join(bad, err)
			}
		}
	}
}
