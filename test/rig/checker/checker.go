// Package checker knows what the files of a test image hold, byte by byte, so
// that a program in a container can tell whether what it reads is what was
// put into the image.
//
// Content is computed from a seed and never read from anywhere: a checker that
// took digests from a file of the image would trust the bytes that it is to
// check. The program (test/rig/checker/program) is in the image, reads its
// files in random order, at random places, whole, in pieces and through
// mappings, and prints a Report as a line of JSON every now and then.
package checker

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"time"
)

// Slow is how long a read may take that nothing holds up.
const Slow = 100 * time.Millisecond

// Spec says which files there are. Equal specs have equal files.
type Spec struct {
	Seed uint64
	Size int64 // bytes of content, about
}

// File is one file of a Spec.
type File struct {
	Path string // relative, with slashes
	Size int64  // bytes
	key  uint64
}

// sizes are those at which something changes: chunks have 64 KiB, pages 4 KiB.
// A few large files hold most of the bytes, as in real images.
var sizes = []int64{0, 1, 511, 4 << 10, 4<<10 + 1, 20_000, 64<<10 - 1, 64 << 10, 64<<10 + 1, 200_000, 3 * 64 << 10, 700_001}

// Files returns the files, in the order of their directories.
func (s Spec) Files() []File {
	var files []File
	var total int64
	for i := 0; total < s.Size; i++ {
		f := File{
			Path: fmt.Sprintf("data/%c/%02d/file-%d", 'a'+rune(i%3), i%7, i),
			Size: sizes[i%len(sizes)],
			key:  mix(s.Seed) ^ mix(uint64(i)+1),
		}
		files = append(files, f)
		total += f.Size
	}
	return files
}

// Fill fills p with the bytes of the file from off on. The caller keeps within
// the file's size.
func (f File) Fill(p []byte, off int64) {
	var word [8]byte
	for n := 0; n < len(p); {
		at := off + int64(n)
		binary.LittleEndian.PutUint64(word[:], mix(f.key+uint64(at/8)))
		n += copy(p[n:], word[at%8:])
	}
}

// mix is the output function of SplitMix64 (Steele, Lea and Flood, 2014): a
// bijection whose outputs for neighbouring inputs look unrelated.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// Order returns the numbers below n in an order that the seed decides.
func Order(seed uint64, n int) []int { return rand.New(rand.NewPCG(seed, 0)).Perm(n) }

// Report is what a checker has seen since it began.
type Report struct {
	Passes  int    `json:"passes"`  // times that every file was read whole
	Reads   int    `json:"reads"`   // that ended
	Slow    int    `json:"slow"`    // of them, those that took longer than the constant Slow
	Bytes   int64  `json:"bytes"`   // that were compared
	Wrong   int    `json:"wrong"`   // reads that brought other bytes
	Errors  int    `json:"errors"`  // reads that failed
	First   string `json:"first"`   // what was wrong first
	Longest int64  `json:"longest"` // ms; of the read that took longest, also if it has not ended
	Waiting int64  `json:"waiting"` // ms; for how long the present read has been waited for
}
