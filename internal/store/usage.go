package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/airstream-io/airstream/internal/database"
)

// ErrNoSpace says that bytes were not stored because the disk is full, what is
// left of it is kept back for the databases, or the store is at its limit and
// nothing more can be evicted. It concerns the call alone: once there is room,
// the same call succeeds.
var ErrNoSpace = errors.New("no space left for the store")

// Usage is what the store takes and may take, in bytes of disk.
type Usage struct {
	Bytes   int64 // what the store takes: blocks, so holes of sparse files don't count
	Limit   int64 // what it may take; 0: as much as there is
	Free    int64 // what the file system has left
	Reserve int64 // how much of Free is not for content
}

// Over returns how many bytes must go until the store is within its limit and
// the file system has its reserve; 0 or less: none.
func (u Usage) Over() int64 {
	over := u.Reserve - u.Free
	if u.Limit > 0 {
		over = max(over, u.Bytes-u.Limit)
	}
	return over
}

// Margin returns by how much eviction goes below the limit, in bytes, so that
// it doesn't begin again at once. Content may go above it by as much meanwhile.
func Margin(limit int64) int64 { return limit / 16 }

// ballastSize is how much room is kept for the database where others fill the
// disk, in bytes. A flush writes some hundred pages of 4 KiB at most. A guess.
const ballastSize = 4 << 20

// space is the store's account of the disk. Files are counted when a flush has
// given them their blocks, so it lags by what arrived since.
type space struct {
	used    atomic.Int64 // bytes
	pending atomic.Int64 // bytes written since the last flush
	limit   atomic.Int64 // bytes; 0: none
	reserve atomic.Int64 // bytes
	short   chan struct{}

	ballastMu sync.Mutex
	ballast   bool // guarded by ballastMu; the file is there
}

// Usage says what the store takes and may take.
func (s *Store) Usage() (Usage, error) {
	free, err := s.free()
	if err != nil {
		return Usage{}, fmt.Errorf("store: usage of %s: %w", s.dir, err)
	}
	used := s.space.used.Load() + s.space.pending.Load() + s.db.Size()
	return Usage{Bytes: used, Limit: s.space.limit.Load(), Free: free, Reserve: s.space.reserve.Load()}, nil
}

// SetLimit changes the limit and the reserve, in bytes; 0: none.
func (s *Store) SetLimit(limit, reserve int64) {
	s.space.limit.Store(limit)
	s.space.reserve.Store(reserve)
}

// Pressure returns a channel that gets a value when the store is over its limit
// or the disk near its reserve: it is time to evict. It is for one receiver.
func (s *Store) Pressure() <-chan struct{} { return s.space.short }

func (s *Store) free() (int64, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(s.root.Fd()), &st); err != nil {
		return 0, err
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// small is what may still be written when content may not, in bytes: manifests
// and configs cost little and open the door to much.
const small = 1 << 20

// room says whether n more bytes may be written of content that comes in pieces,
// and asks for eviction in good time.
func (s *Store) room(n int64) error { return s.roomAbove(n, s.space.reserve.Load()) }

// roomFor is room for something that is written whole.
func (s *Store) roomFor(n int64) error { return s.roomIn(n, n) }

// roomIn is room for n bytes of something that has so many in all; 0: not known.
func (s *Store) roomIn(n, whole int64) error {
	reserve := s.space.reserve.Load()
	if whole > 0 && whole <= small {
		reserve /= 2
	}
	return s.roomAbove(n, reserve)
}

func (s *Store) roomAbove(n, floor int64) error {
	if limit := s.space.limit.Load(); limit > 0 {
		used := s.space.used.Load() + s.space.pending.Load() + n
		if used > limit {
			s.press()
		}
		if used > limit+Margin(limit) {
			return fmt.Errorf("%w: it has its limit of %d bytes", ErrNoSpace, limit)
		}
	}
	if reserve := s.space.reserve.Load(); reserve > 0 {
		free, err := s.free()
		if err != nil {
			return err
		}
		if free-n < reserve+reserve/8 {
			s.press()
		}
		if free-n < floor {
			return fmt.Errorf("%w: %d bytes are free, and kept for the databases", ErrNoSpace, free)
		}
	}
	return nil
}

func (s *Store) press() {
	select {
	case s.space.short <- struct{}{}:
	default:
	}
}

// recount brings objects' blocks into the account.
func (s *Store) recount(notes []note) {
	s.space.pending.Store(0)
	for _, n := range notes {
		n.o.account()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.partials {
		p.account()
	}
}

var keyUsed = []byte("used") // bytes, little-endian

func (s *Store) putSpace(tx *database.Tx) error {
	return tx.Put(bucketSpace, keyUsed, binary.LittleEndian.AppendUint64(nil, uint64(s.space.used.Load())))
}

// saveSpace is putSpace by itself.
func (s *Store) saveSpace() error { return s.update(s.putSpace) }

// openSpace reads the account, and counts all files if there is none.
func (s *Store) openSpace() error {
	var v []byte
	err := s.db.View(func(tx *database.Tx) (err error) { v, err = tx.Get(bucketSpace, keyUsed); return err })
	if err != nil && !errors.Is(err, database.ErrValue) {
		return err
	}
	if len(v) == 8 {
		s.space.used.Store(int64(binary.LittleEndian.Uint64(v)))
	} else if err := s.Recount(); err != nil {
		return err
	}
	_, err = os.Stat(filepath.Join(s.dir, "ballast"))
	s.space.ballast = err == nil
	s.takeBallast()
	return nil
}

// Recount counts what the store takes by looking at every file. The account is
// kept up to date by itself; a power loss may leave it a little off.
func (s *Store) Recount() error {
	before := s.space.used.Load()
	sum := int64(0)
	err := filepath.WalkDir(s.dir, func(name string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it was deleted meanwhile
		}
		if err != nil || !e.Type().IsRegular() || filepath.Dir(name) == s.dir {
			return err
		}
		info, err := e.Info()
		if err == nil {
			sum += onDisk(info)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("store: count %s: %w", s.dir, err)
	}
	s.space.used.Add(sum - before)
	return nil
}

// update changes the database. If the disk is full, the ballast makes room.
func (s *Store) update(f func(tx *database.Tx) error) error {
	err := s.db.Update(f)
	if errors.Is(noSpace(err), ErrNoSpace) && s.dropBallast() {
		err = s.db.Update(f)
	}
	if err == nil {
		s.takeBallast()
	}
	return noSpace(err)
}

// dropBallast gives the room away that was kept for the database.
func (s *Store) dropBallast() bool {
	s.space.ballastMu.Lock()
	defer s.space.ballastMu.Unlock()
	had := s.space.ballast
	s.space.ballast = false
	return had && os.Remove(filepath.Join(s.dir, "ballast")) == nil
}

// takeBallast takes room for the database if there is enough.
func (s *Store) takeBallast() {
	s.space.ballastMu.Lock()
	defer s.space.ballastMu.Unlock()
	if s.space.ballast || s.space.reserve.Load() < 2*ballastSize {
		return
	}
	if free, err := s.free(); err != nil || free < s.space.reserve.Load()/2 {
		return
	}
	name := filepath.Join(s.dir, "ballast")
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return
	}
	err = unix.Fallocate(int(f.Fd()), 0, 0, ballastSize)
	if err = errors.Join(err, f.Close()); err != nil {
		// Not every file system can; the reserve has to do then.
		_ = os.Remove(name)
		return
	}
	s.space.ballast = true
}

// onDisk returns how many bytes of disk a file takes.
func onDisk(info fs.FileInfo) int64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return info.Size()
}
