package store

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/airstream-io/airstream/internal/database"
)

// VerifyOptions say how much Verify looks at, and what it does about it.
type VerifyOptions struct {
	Deep   bool // hash all content; else only sizes, presence and what is small
	Repair bool // forget what is damaged, so that it is fetched again, and delete what nobody knows
	Keep   bool // Repair leaves what nobody knows
	Gentle bool // rest as long as it works, at the lowest I/O priority: beside a node that serves

	// Wanted tells whether somebody may ask for a blob; nil: all of them.
	Wanted func(d digest.Digest) bool

	// Progress is called now and then with bytes of disk; nil: it isn't.
	Progress func(done, total int64)
}

// Kind says what a Finding is about.
type Kind string

// What can be found.
const (
	KindObject   Kind = "object"
	KindBlob     Kind = "blob"
	KindPartial  Kind = "partial"
	KindTree     Kind = "tree"
	KindDatabase Kind = "database"
	KindFile     Kind = "file" // one that is no item of the store
)

// Finding is one thing that is not as it should be.
type Finding struct {
	Kind     Kind   `json:"kind"`
	Name     string `json:"name"`    // object ID, digest or path below the store
	Problem  string `json:"problem"` // for people
	Bytes    int64  `json:"bytes"`   // that are damaged, or that an orphan takes
	Orphan   bool   `json:"orphan"`  // not damaged; nobody knows it
	Repaired bool   `json:"repaired"`
}

// Verify looks for damage and for what nobody knows, and reports each once. It
// works beside everything else that uses the store. The error is ctx's or the
// disk's; findings are no error.
func (s *Store) Verify(ctx context.Context, opts VerifyOptions, report func(Finding)) error {
	v := &verifier{s: s, ctx: ctx, opts: opts, report: report, seen: map[uint64]struct{}{}, total: s.space.used.Load(), since: time.Now()}
	if opts.Gentle {
		defer lowPriority()()
	}
	for _, step := range []func() error{v.database, v.remember, v.trees, v.orphanObjects, v.blobs, v.partials, s.Flush, v.confirm} {
		if err := step(); err != nil {
			return fmt.Errorf("store: verify: %w", err)
		}
	}
	v.total = v.done
	v.progress(0)
	return nil
}

// verifier is one Verify.
type verifier struct {
	s       *Store
	ctx     context.Context //nolint:containedctx // of the one call that it lives for
	opts    VerifyOptions
	report  func(Finding)
	seen    map[uint64]struct{} // the first 8 bytes of objects that a tree names
	unknown bool                // a layer's objects can't be told: its tree is missing
	done    int64               // bytes of disk that were looked at
	total   int64
	since   time.Time // when work began after the last rest
	mark    string    // of the rebuilt database whose content is verified; "": it was not rebuilt
}

func (v *verifier) remember() (err error) {
	v.mark, err = v.s.rebuilt()
	return err
}

func (v *verifier) confirm() error {
	if !v.opts.Deep || !v.opts.Repair {
		return nil
	}
	return v.s.confirm(v.mark)
}

// slice is how long a gentle verification works before it rests as long.
const slice = 20 * time.Millisecond

// progress counts n bytes of disk.
func (v *verifier) progress(n int64) {
	v.done += n
	v.total = max(v.total, v.done)
	if v.opts.Progress != nil {
		v.opts.Progress(v.done, v.total)
	}
}

// rest returns ctx's error, after a pause if it is time for one.
func (v *verifier) rest() error {
	if worked := time.Since(v.since); v.opts.Gentle && worked > slice {
		pause := time.NewTimer(min(worked, time.Second))
		select {
		case <-pause.C:
		case <-v.ctx.Done():
			pause.Stop()
		}
		v.since = time.Now()
	}
	return v.ctx.Err()
}

// find reports something, and mends it if that is wanted.
func (v *verifier) find(f Finding, mend func() error) error {
	if v.opts.Repair && mend != nil && (!f.Orphan || !v.opts.Keep) {
		if err := mend(); errors.Is(err, ErrInUse) {
			f.Problem += "; it is in use and stays"
		} else if err != nil {
			return err
		} else {
			f.Repaired = true
		}
	}
	v.report(f)
	return nil
}

// lowPriority makes the caller's thread wait for everybody else's I/O, until
// what it returns is called. Where the I/O scheduler has no priorities, that
// changes nothing.
func lowPriority() (restore func()) {
	const whoProcess, idle = 1, 3 << 13 // ioprio_set(2): this thread; IOPRIO_CLASS_IDLE
	runtime.LockOSThread()
	_, _, errno := unix.Syscall(unix.SYS_IOPRIO_SET, whoProcess, 0, idle)
	return func() {
		if errno == 0 {
			_, _, _ = unix.Syscall(unix.SYS_IOPRIO_SET, whoProcess, 0, 0)
		}
		runtime.UnlockOSThread()
	}
}

func (v *verifier) database() error {
	if cause := v.s.db.Mended(); cause != nil {
		v.report(Finding{Kind: KindDatabase, Name: "store.db", Problem: "it was damaged and has been made anew: " + cause.Error(), Repaired: true})
	}
	err := v.s.db.Check()
	if !errors.Is(err, database.ErrDamaged) {
		return err
	}
	return v.find(Finding{Kind: KindDatabase, Name: "store.db", Problem: err.Error()}, func() error { return v.s.db.Mend(err) })
}
