package artifact

import (
	"crypto/sha256"

	"github.com/airstream-io/airstream/internal/chunk"
	"github.com/airstream-io/airstream/internal/toc"
)

// addChunk adds the next chunk, of so many bytes.
func (b *builder) addChunk(size uint32) error {
	number := b.chunk
	b.chunk++
	if !b.ahead.none && b.ahead.number == number {
		f := b.ahead
		b.before, b.unsure = f.where, 0
		if err := b.scout.next(&b.ahead); err != nil {
			return err
		}
		return b.to.Chunk(f.id, size, f.where.inner, f.where.member)
	}
	m, inner := b.guess()
	b.unsure++
	return b.to.Chunk(chunk.ID{}, size, inner, m)
}

// guess returns a member for a chunk of which only the neighbours' places are
// known: what lies between them, for chunks are in the order of the blob. Where
// that is nothing it is a part of the member of a neighbour.
func (b *builder) guess() (m toc.Member, inner uint32) {
	gap := toc.Member{Offset: b.before.member.End, End: b.limit}
	if !b.ahead.none {
		gap.End = b.ahead.where.member.Offset
	}
	switch none := b.before == (where{}); {
	case gap.End > gap.Offset && (b.ahead.none || b.ahead.where.member != b.before.member):
		return gap, b.unsure
	case none:
		return b.ahead.where.member, b.unsure
	}
	return b.before.member, b.before.inner + b.before.size + b.unsure
}

// found is a chunk whose ID and place are known.
type found struct {
	none   bool // there is no other
	number uint32
	id     chunk.ID
	where  where
}

// scout goes ahead of the builder and finds the chunks that are in the root or
// on pages that are here.
type scout struct {
	r     *Root
	l     *layer
	pages [][]byte // nil: not here

	earlier *toc.Tree // what was known before; nil: no more than the root

	files       *files
	entry       uint32 // the next one
	k, of       uint32 // the next chunk of the entry before that, of how many
	number      uint32 // of the next chunk
	known, cold uint32 // how many of either kind came before

	root   cursor // where column
	before where  // of the root
	page   cursor // wheres of the page that the last cold chunk was on
	ids    []byte // of the same page, all of them
	paged  where  // before, of the page
}

func newScout(r *Root, l *layer, pages *Pages) *scout {
	return &scout{r: r, l: l, pages: pages.here(), files: newFiles(r, l), root: cursor{b: l.shares[colWhere-perLayer]}}
}

// size returns the size of the next chunk; ok is false behind the last one.
func (s *scout) size() (size uint32, ok bool, err error) {
	for s.k == s.of {
		if s.entry == s.l.entries {
			return 0, false, nil
		}
		if err := s.files.next(s.entry); err != nil {
			return 0, false, err
		}
		s.entry++
		s.k, s.of = 0, s.files.count()
	}
	s.k++
	return s.files.size(s.k - 1), true, nil
}

// next finds the next chunk.
func (s *scout) next(f *found) error {
	for {
		size, ok, err := s.size()
		if err != nil {
			return err
		}
		if !ok {
			*f = found{none: true}
			return nil
		}
		number := s.number
		s.number++
		if _, known := s.l.knownBelow(number); known {
			*f = found{number: number, id: s.r.ids[s.l.knownBefore+s.known], where: s.before.decode(&s.root, size)}
			s.known++
			return s.root.err
		}
		at := s.l.coldBefore + s.cold
		s.cold++
		if s.pages == nil || s.pages[at/PageChunks] == nil {
			if s.knew(f, number, size) {
				return nil
			}
			continue
		}
		raw := s.pages[at/PageChunks]
		k := at % PageChunks
		if k == 0 || s.cold == 1 {
			s.turn(raw, at)
		}
		*f = found{number: number, id: chunk.ID(s.ids[k*sha256.Size:]), where: s.paged.decode(&s.page, size)}
		return s.page.err
	}
}

// knew finds a chunk in the earlier tree.
func (s *scout) knew(f *found, number, size uint32) bool {
	if s.earlier == nil {
		return false
	}
	k := s.earlier.Chunk(number)
	if k.ID == (chunk.ID{}) || k.Size != size {
		return false
	}
	*f = found{number: number, id: k.ID, where: where{member: s.earlier.Member(k.Member), inner: k.Inner, size: size}}
	return true
}

// turn opens the page of cold chunk number at of the image, which is the first
// of the page or of the layer.
func (s *scout) turn(raw []byte, at uint32) {
	n := s.r.onPage(at / PageChunks)
	s.ids = raw[:n*sha256.Size]
	s.page = cursor{b: raw[n*sha256.Size:]}
	s.paged = where{}
	for range at % PageChunks {
		skipWhere(&s.page) // those of layers below
	}
}

// end checks that the column has been used.
func (s *scout) end() error {
	if len(s.root.b) > 0 {
		return invalid("there are more places than chunks")
	}
	return nil
}

// skipWhere reads a place that nobody wants to know.
func skipWhere(c *cursor) {
	code := c.uvarint()
	if code&1 == 1 && code>>1 != 0 {
		c.varint()
	}
	if code&1 == 1 {
		c.uvarint()
	}
}
