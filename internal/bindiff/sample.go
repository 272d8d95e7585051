package bindiff

import (
	"encoding/binary"

	"github.com/airstream-io/airstream/internal/suffix"
)

const (
	// sampleStep is how far apart the sampled positions are, sampleSize how many
	// bytes of them are hashed: every match of sampleStep+sampleSize-1 bytes is met.
	sampleStep = 4
	sampleSize = 10
)

// samples is an index of every sampleStep-th position of a text by the bytes
// there. Where several are alike it knows the first: it finds some long match
// quickly, not the longest.
type samples struct {
	text  []byte
	first []int32 // by hash: the position plus 1, 0 for none
	shift uint
}

func newSamples(text []byte) *samples {
	s := &samples{text: text, shift: 64 - 10}
	for n := 1 << 10; n < len(text)/sampleStep*2 && s.shift > 64-26; n <<= 1 {
		s.shift--
	}
	s.first = make([]int32, 1<<(64-s.shift))
	for i := 0; i+sampleSize <= len(text); i += sampleStep {
		if h := s.hash(text[i:]); s.first[h] == 0 {
			s.first[h] = int32(i + 1)
		}
	}
	return s
}

func (s *samples) hash(p []byte) uint64 {
	return (binary.LittleEndian.Uint64(p)*0x9e3779b97f4a7c15 ^ uint64(binary.LittleEndian.Uint16(p[8:]))*0xbf58476d1ce4e5b9) * 0x94d049bb133111eb >> s.shift
}

// Longest is what suffix.Text.Longest is, for a match that isn't the longest.
func (s *samples) Longest(p []byte, _, limit int) (at, length int) {
	if len(p) < sampleSize {
		return 0, 0
	}
	i := int(s.first[s.hash(p)])
	if i == 0 {
		return 0, 0
	}
	return i - 1, suffix.Common(p[:min(len(p), limit)], s.text[i-1:])
}
