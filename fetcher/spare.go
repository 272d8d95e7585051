package fetcher

// maxSpare is how many bytes of chunks that could not be stored are kept in
// memory: what a few programs read over and over. A guess.
const maxSpare = 16 << 20

// spare holds chunks that were verified and could not be stored, so that a
// full disk fails no read, and that who reads a file in small pieces does not
// fetch a chunk for each. The oldest go first. Guarded by Fetcher.mu.
type spare struct {
	chunks map[piece][]byte
	order  []piece
	bytes  int
}

func (s *spare) keep(p piece, data []byte) {
	if len(data) > maxSpare || s.chunks[p] != nil {
		return
	}
	for len(s.order) > 0 && s.bytes+len(data) > maxSpare {
		s.drop(s.order[0])
	}
	if s.chunks == nil {
		s.chunks = map[piece][]byte{}
	}
	s.chunks[p] = data
	s.order = append(s.order, p)
	s.bytes += len(data)
}

func (s *spare) drop(p piece) {
	data, ok := s.chunks[p]
	if !ok {
		return
	}
	delete(s.chunks, p)
	s.bytes -= len(data)
	for i, o := range s.order {
		if o == p {
			s.order = append(s.order[:i:i], s.order[i+1:]...)
			break
		}
	}
}
