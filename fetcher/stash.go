package fetcher

import "slices"

const (
	// maxStash bounds what is kept of members that did not arrive whole, in
	// bytes: a few of the largest. A guess.
	maxStash = 24 << 20
	// maxTee is the size up to which a member is kept the first time that it
	// breaks; one up to maxLateTee is from the second time on. That is a chunk
	// of 4 MiB as stargz cuts them; larger ones have to come in one piece.
	maxTee     = 256 << 10
	maxLateTee = 5 << 20
)

// stash keeps the beginnings of members that broke off, so that the next
// request goes on within them: where connections last for fewer bytes than a
// member has, nothing would ever arrive otherwise. Nothing is verified of it
// before the member is whole. The oldest go first. Guarded by Fetcher.mu.
type stash struct {
	parts map[stashKey][]byte
	order []stashKey
	bytes int
}

type stashKey struct {
	l      *layer
	member uint32
}

// take returns what is kept of a member, and no longer keeps it; broken says
// that it broke before.
func (s *stash) take(k stashKey) (part []byte, broken bool) {
	part, broken = s.parts[k]
	if broken {
		delete(s.parts, k)
		s.bytes -= len(part)
		s.order = slices.DeleteFunc(s.order, func(o stashKey) bool { return o == k })
	}
	return part, broken
}

func (s *stash) keep(k stashKey, part []byte) {
	s.take(k)
	for len(s.order) > 0 && (s.bytes+len(part) > maxStash || len(s.order) >= maxUnits) {
		s.take(s.order[0])
	}
	if s.parts == nil {
		s.parts = map[stashKey][]byte{}
	}
	s.parts[k] = slices.Clone(part)
	s.order = append(s.order, k)
	s.bytes += len(part)
}

// forget drops what is kept of a layer.
func (s *stash) forget(l *layer) {
	for _, k := range slices.Clone(s.order) {
		if k.l.standing == l.standing {
			s.take(k)
		}
	}
}
