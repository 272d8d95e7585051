package proxy

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
)

// cache keeps what was read from registries on disk, within a limit. Each entry
// is a file, named after its key. The one that was used least lately goes first.
//
// Nothing is synced: after a power failure an entry may be cut short or empty,
// and whatever is read from it is verified before it is sent anyway. Entries of
// another process in the same directory are not seen until the next start.
type cache struct {
	dir   string
	limit int64 // bytes; 0: none

	fills singleflight.Group

	mu      sync.Mutex
	entries map[string]*list.Element // guarded by mu; of *entry
	order   *list.List               // guarded by mu; the latest used first
	size    int64                    // guarded by mu; bytes of all
	hits    int64                    // guarded by mu
	misses  int64                    // guarded by mu
}

type entry struct {
	key  string
	size int64
}

// openCache opens the cache in dir, which is made if it isn't there.
func openCache(dir string, limit int64) (*cache, error) {
	c := &cache{dir: dir, limit: limit, entries: map[string]*list.Element{}, order: list.New()}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("proxy: cache: %w", err)
	}
	type found struct {
		entry
		used time.Time
	}
	var all []found
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if strings.HasPrefix(d.Name(), tempPrefix) {
			return os.Remove(path) // a process was stopped while it wrote it
		}
		all = append(all, found{entry{rel, info.Size()}, info.ModTime()})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("proxy: cache: %w", err)
	}
	slices.SortFunc(all, func(a, b found) int { return a.used.Compare(b.used) })
	for _, f := range all {
		c.entries[f.key] = c.order.PushFront(&f.entry)
		c.size += f.size
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c, c.evict()
}

const tempPrefix = ".new-"

// open opens an entry; ok is false if it isn't there.
func (c *cache) open(key string) (f *os.File, ok bool) {
	c.mu.Lock()
	e, ok := c.entries[key]
	if ok {
		c.order.MoveToFront(e)
		c.hits++
	} else {
		c.misses++
	}
	c.mu.Unlock()
	if !ok {
		return nil, false
	}
	f, err := os.Open(filepath.Join(c.dir, key))
	if err != nil {
		c.drop(key)
		return nil, false
	}
	return f, true
}

// has tells whether there is an entry, without using it.
func (c *cache) has(key string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.entries[key]
	return ok
}

// get reads an entry of at most limit bytes.
func (c *cache) get(key string, limit int64) ([]byte, bool) {
	f, ok := c.open(key)
	if !ok {
		return nil, false
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err = errors.Join(err, f.Close()); err != nil || int64(len(b)) > limit {
		c.drop(key)
		return nil, false
	}
	return b, true
}

// readAt fills p from a place in an entry; ok is false if it isn't there, or ends
// before.
func (c *cache) readAt(key string, p []byte, off int64) (ok bool) {
	f, ok := c.open(key)
	if !ok {
		return false
	}
	n, err := f.ReadAt(p, off)
	if closeErr := f.Close(); n < len(p) || closeErr != nil {
		c.drop(key)
		return false
	}
	return err == nil || errors.Is(err, io.EOF)
}

// put writes an entry. That it can't be is no error: the disk is full, and what
// it would have held is at hand.
func (c *cache) put(key string, content []byte) {
	name := filepath.Join(c.dir, key)
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return
	}
	tmp, err := os.CreateTemp(filepath.Dir(name), tempPrefix)
	if err != nil {
		return
	}
	_, err = tmp.Write(content)
	if err = errors.Join(err, tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), name)
	}
	if err != nil {
		_ = os.Remove(tmp.Name()) // it goes at the next start
		return
	}
	c.added(key, int64(len(content)))
}

// added notes that an entry is in its place.
func (c *cache) added(key string, size int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.entries[key]; ok {
		c.size -= e.Value.(*entry).size //nolint:errcheck,forcetypeassert // nothing else is in it
		c.order.Remove(e)
	}
	c.entries[key] = c.order.PushFront(&entry{key, size})
	c.size += size
	_ = c.evict() // what can't be removed is tried again
}

// evict removes entries until the limit holds. c.mu is held. A file that
// somebody has open stays readable.
func (c *cache) evict() error {
	var errs []error
	for c.limit > 0 && c.size > c.limit && c.order.Len() > 1 {
		last := c.order.Back()
		e := last.Value.(*entry) //nolint:errcheck,forcetypeassert // nothing else is in it
		c.order.Remove(last)
		delete(c.entries, e.key)
		c.size -= e.size
		if err := os.Remove(filepath.Join(c.dir, e.key)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// drop removes an entry that turned out to be wrong.
func (c *cache) drop(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.entries[key]; ok {
		c.size -= e.Value.(*entry).size //nolint:errcheck,forcetypeassert // nothing else is in it
		c.order.Remove(e)
		delete(c.entries, key)
	}
	_ = os.Remove(filepath.Join(c.dir, key)) // it may be gone
}

// bytes returns an entry, and makes it with fill if it isn't there. Whoever asks
// for it meanwhile waits for the same fill, which goes on when they leave.
func (c *cache) bytes(ctx, run context.Context, key string, limit int64, fill func(context.Context) ([]byte, error)) ([]byte, error) {
	if b, ok := c.get(key, limit); ok {
		return b, nil
	}
	done := c.fills.DoChan(key, func() (any, error) {
		b, err := fill(run)
		if err == nil {
			c.put(key, b)
		}
		return b, err
	})
	select {
	case r := <-done:
		b, _ := r.Val.([]byte) // nil with an error
		return b, r.Err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// usage returns how much there is, and how often it helped.
func (c *cache) usage() (size, hits, misses int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.size, c.hits, c.misses
}
