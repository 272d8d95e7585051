package delta

import (
	"context"
	"fmt"
	"io"
	"sort"
)

const (
	pageSize = 64 << 10
	// pages is how many pages of bases are kept at a time.
	pages = 32
	// openBases is how many bases are held open at a time.
	openBases = 64
)

// text reads the bases of a group laid end to end, without holding them: pages
// that were read last are kept.
type text struct {
	have   []*File
	spans  []span
	starts []int // of spans, and the end
	size   int
	open   map[int]Content // by span
	pages  map[pageOf]*page
	clock  int
}

type pageOf struct{ span, page int }

type page struct {
	content []byte
	used    int
}

func newText(have []*File, spans []span) *text {
	t := &text{have: have, spans: spans, open: map[int]Content{}, pages: map[pageOf]*page{}}
	for _, s := range spans {
		t.starts = append(t.starts, t.size)
		t.size += int(s.length)
	}
	t.starts = append(t.starts, t.size)
	return t
}

// start returns where the span with that number begins, 0 for -1.
func (t *text) start(number int) int {
	if number < 0 {
		return 0
	}
	return t.starts[number]
}

// readAt fills p from the text at, which has that many bytes.
func (t *text) readAt(ctx context.Context, p []byte, at int) error {
	i := sort.SearchInts(t.starts, at+1) - 1
	for len(p) > 0 {
		for t.starts[i+1] <= at {
			i++
		}
		off := at - t.starts[i]
		content, err := t.page(ctx, pageOf{i, off / pageSize})
		if err != nil {
			return err
		}
		n := copy(p, content[off%pageSize:])
		p, at = p[n:], at+n
	}
	return nil
}

func (t *text) page(ctx context.Context, of pageOf) ([]byte, error) {
	t.clock++
	if p := t.pages[of]; p != nil {
		p.used = t.clock
		return p.content, nil
	}
	s := t.spans[of.span]
	f := t.have[s.base]
	c := t.open[of.span]
	if c == nil {
		if len(t.open) == openBases {
			if err := t.closeAll(); err != nil {
				return nil, err
			}
		}
		var err error
		if c, err = f.Open(ctx); err != nil {
			return nil, fmt.Errorf("delta: %s: %w: %w", f.Path, ErrBase, err)
		}
		t.open[of.span] = c
	}
	p := t.oldest()
	off := int64(of.page) * pageSize
	p.content = p.content[:min(pageSize, s.length-off)]
	if _, err := io.ReadFull(io.NewSectionReader(c, s.off+off, int64(len(p.content))), p.content); err != nil {
		return nil, fmt.Errorf("delta: %s: %w: %w", f.Path, ErrBase, err)
	}
	p.used = t.clock
	t.pages[of] = p
	return p.content, nil
}

// oldest returns a page to read into, taken from the cache if it is full.
func (t *text) oldest() *page {
	if len(t.pages) < pages {
		return &page{content: make([]byte, pageSize)}
	}
	var least pageOf
	used := t.clock
	for of, p := range t.pages {
		if p.used < used {
			least, used = of, p.used
		}
	}
	p := t.pages[least]
	delete(t.pages, least)
	return p
}

func (t *text) closeAll() (err error) {
	for i, c := range t.open {
		if e := c.Close(); err == nil && e != nil {
			err = fmt.Errorf("delta: %w", e)
		}
		delete(t.open, i)
	}
	return err
}

// Close closes the bases.
func (t *text) Close() error { return t.closeAll() }
