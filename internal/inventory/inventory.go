// Package inventory says in few bytes which images a node has whole, so that a
// sender on shore can leave out what they have. It names images, and not files or
// chunks: whoever reads it looks their contents up in a registry, where bytes are
// cheap.
//
// # Format, version 1
//
//	magic   4 B   "ASI1"
//	        uvarint repositories, in byte order; for each
//	          uvarint  bytes that its name, "host/repo", shares with the one before
//	          uvarint  bytes that follow, and these
//	          uvarint  images, and for each the SHA-256 of its manifest [32]
//	check   4 B   the first bytes of the SHA-256 of all before
//
// An image costs 32 bytes, and what its repository's name has that the one before
// it has not. A reader refuses another magic.
package inventory

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
)

// Image is one platform's image.
type Image struct {
	Repo     string        `json:"repo"` // "host/repo"
	Manifest digest.Digest `json:"manifest"`
}

// Name returns "host/repo@sha256:…".
func (i Image) Name() string { return i.Repo + "@" + i.Manifest.String() }

// ErrInvalid says that bytes are no inventory, or not one that this version reads.
var ErrInvalid = errors.New("not a valid inventory")

const (
	magic     = "ASI1"
	checkSize = 4
	maxName   = 1024
	// MaxSize bounds an inventory, in bytes: of 100,000 images.
	MaxSize = 8 << 20
)

// Encode writes an inventory. Images may come in any order, and twice.
func Encode(images []Image) ([]byte, error) {
	images = slices.Clone(images)
	slices.SortFunc(images, func(a, b Image) int {
		if c := strings.Compare(a.Repo, b.Repo); c != 0 {
			return c
		}
		return strings.Compare(a.Manifest.String(), b.Manifest.String())
	})
	images = slices.Compact(images)
	var repos [][]Image
	for i, img := range images {
		if i == 0 || img.Repo != images[i-1].Repo {
			repos = append(repos, nil)
		}
		repos[len(repos)-1] = append(repos[len(repos)-1], img)
	}
	b := binary.AppendUvarint([]byte(magic), uint64(len(repos)))
	before := ""
	for _, list := range repos {
		name := list[0].Repo
		if name == "" || len(name) > maxName {
			return nil, fmt.Errorf("inventory: repository %q: %w", name, ErrInvalid)
		}
		shared := 0
		for shared < min(len(name), len(before)) && name[shared] == before[shared] {
			shared++
		}
		b = binary.AppendUvarint(b, uint64(shared))
		b = binary.AppendUvarint(b, uint64(len(name)-shared))
		b = append(b, name[shared:]...)
		b = binary.AppendUvarint(b, uint64(len(list)))
		for _, img := range list {
			sum, err := hex.DecodeString(img.Manifest.Encoded())
			if err != nil || len(sum) != sha256.Size || img.Manifest.Algorithm() != digest.SHA256 {
				return nil, fmt.Errorf("inventory: %s: %w: only sha256 is supported", img.Manifest, ErrInvalid)
			}
			b = append(b, sum...)
		}
		before = name
	}
	sum := sha256.Sum256(b)
	return append(b, sum[:checkSize]...), nil
}

// Parse reads what Encode wrote. Errors are ErrInvalid.
func Parse(b []byte) ([]Image, error) {
	images, err := parse(b)
	if err != nil {
		return nil, fmt.Errorf("inventory: %w: %w", ErrInvalid, err)
	}
	return images, nil
}

func parse(b []byte) (images []Image, err error) {
	if !bytes.HasPrefix(b, []byte(magic)) || len(b) < len(magic)+checkSize || len(b) > MaxSize {
		return nil, errors.New("it does not begin as one, or is too large")
	}
	n := len(b) - checkSize
	if sum := sha256.Sum256(b[:n]); !bytes.Equal(sum[:checkSize], b[n:]) {
		return nil, errors.New("it is damaged")
	}
	b = b[len(magic):n]
	short := errors.New("it ends early")
	number := func() uint64 {
		v, n := binary.Uvarint(b)
		if n <= 0 {
			err, b = short, nil
			return 0
		}
		b = b[n:]
		return v
	}
	before := ""
	for repos := number(); repos > 0 && err == nil; repos-- {
		shared, rest := number(), number()
		if shared > uint64(len(before)) || rest > uint64(len(b)) || shared+rest > maxName {
			return nil, short
		}
		name := before[:shared] + string(b[:rest])
		b = b[rest:]
		if name <= before {
			return nil, errors.New("its repositories are not in order")
		}
		before = name
		count := number()
		if count > uint64(len(b)/sha256.Size) {
			return nil, short
		}
		for ; count > 0; count-- {
			images = append(images, Image{name, digest.NewDigestFromBytes(digest.SHA256, b[:sha256.Size])})
			b = b[sha256.Size:]
		}
	}
	if err == nil && len(b) > 0 {
		err = errors.New("more follows than it says")
	}
	return images, err
}
