package layer

import (
	"archive/tar"
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"maps"
	"math"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/containerd/stargz-snapshotter/estargz"

	"github.com/airstream-io/airstream/internal/chunk"
)

// tableEntry is an entry of the table as it is written: eStargz's fields, and
// ours behind them.
type tableEntry struct {
	estargz.TOCEntry
	RawName     []byte `json:"rawName,omitempty"`
	RawLinkName []byte `json:"rawLinkName,omitempty"`
}

// table collects the JSON on disk, because a layer of two gigabytes can have a
// table of a hundred megabytes.
type table struct {
	file   *os.File
	w      *bufio.Writer
	sum    hash.Hash
	size   int64 // bytes so far
	unames map[int]string
	gnames map[int]string
}

func newTable(scratch Scratch) (*table, error) {
	f, err := scratch()
	if err != nil {
		return nil, err
	}
	t := &table{file: f, sum: sha256.New(), unames: map[int]string{}, gnames: map[int]string{}}
	t.w = bufio.NewWriterSize(io.MultiWriter(f, t.sum), 64<<10)
	return t, t.write([]byte(`{"version":1,"entries":[`))
}

func (t *table) write(p []byte) error {
	t.size += int64(len(p))
	if _, err := t.w.Write(p); err != nil {
		return fmt.Errorf("layer: write table: %w", err)
	}
	return nil
}

func (t *table) add(e *tableEntry) error {
	e.Name, e.RawName = jsonName(e.Name)
	e.LinkName, e.RawLinkName = jsonName(e.LinkName)
	// eStargz gives a user's name with the first entry of the user only.
	if e.Type != "chunk" {
		e.Uname, _ = jsonName(e.Uname)
		e.Gname, _ = jsonName(e.Gname)
		e.Uname = ifNew(t.unames, e.UID, e.Uname)
		e.Gname = ifNew(t.gnames, e.GID, e.Gname)
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(e); err != nil {
		return fmt.Errorf("layer: write table: %q: %w", shorten(e.Name), err)
	}
	line := bytes.TrimRight(b.Bytes(), "\n")
	if t.size > int64(len(`{"version":1,"entries":[`)) {
		line = append([]byte{','}, line...)
	}
	return t.write(line)
}

func ifNew(names map[int]string, id int, name string) string {
	if name == "" || names[id] == name {
		return ""
	}
	names[id] = name
	return name
}

// finish ends the JSON and returns its digest. The file can be read from its
// beginning afterwards.
func (t *table) finish() (chunk.ID, error) {
	if err := t.write([]byte(`]}`)); err != nil {
		return chunk.ID{}, err
	}
	if err := t.w.Flush(); err != nil {
		return chunk.ID{}, fmt.Errorf("layer: write table: %w", err)
	}
	if _, err := t.file.Seek(0, io.SeekStart); err != nil {
		return chunk.ID{}, fmt.Errorf("layer: write table: %w", err)
	}
	return chunk.ID(t.sum.Sum(nil)), nil
}

// jsonName makes a tar name fit for JSON. What isn't UTF-8 is shown as \xNN,
// so that two odd names stay two, and is given raw besides.
func jsonName(s string) (string, []byte) {
	if utf8.ValidString(s) {
		return s, nil
	}
	var b strings.Builder
	for rest := s; len(rest) > 0; {
		r, n := utf8.DecodeRuneInString(rest)
		if r == utf8.RuneError && n == 1 {
			fmt.Fprintf(&b, `\x%02x`, rest[0])
		} else {
			b.WriteString(rest[:n])
		}
		rest = rest[n:]
	}
	return b.String(), []byte(s)
}

// attributes fills in all that the header says of an entry but its content.
func attributes(e *tableEntry, h *tar.Header) {
	e.Mode, e.UID, e.GID = h.Mode, h.Uid, h.Gid
	e.Uname, e.Gname = h.Uname, h.Gname
	e.ModTime3339 = formatTime(h.ModTime)
	var xattrs map[string][]byte
	for k, v := range h.PAXRecords {
		if name, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
			if xattrs == nil {
				xattrs = map[string][]byte{}
			}
			xattrs[name] = []byte(v)
		}
	}
	if e.Xattrs == nil {
		e.Xattrs = xattrs
	} else {
		maps.Copy(e.Xattrs, xattrs)
	}
}

var maxTime = time.Unix(0, math.MaxInt64)

// formatTime writes a time as the table has it. Times that a kernel can't
// store are the epoch, as containerd unpacks them, and the epoch is "".
func formatTime(t time.Time) string {
	if t.Before(time.Unix(0, 0)) || t.After(maxTime) || t.UnixNano() == 0 {
		return ""
	}
	return t.UTC().Format(time.RFC3339Nano)
}

var typeNames = map[byte]string{
	tar.TypeReg: "reg", tar.TypeDir: "dir", tar.TypeSymlink: "symlink", tar.TypeLink: "hardlink",
	tar.TypeChar: "char", tar.TypeBlock: "block", tar.TypeFifo: "fifo",
}

// plainHeader is the tar header of the files that eStargz adds: ustar, mode
// 0444, the epoch, root. It is written here and not by archive/tar so that no
// Go release can change it.
func plainHeader(name string, size int64) []byte {
	h := make([]byte, blockSize)
	copy(h, name)
	copy(h[100:], "0000444\x000000000\x000000000\x00")
	if size < 1<<33 {
		copy(h[124:], fmt.Sprintf("%011o\x00", size))
	} else { // GNU's base-256
		h[124] = 0x80
		binary.BigEndian.PutUint64(h[128:], uint64(size))
	}
	copy(h[136:], "00000000000\x00        0")
	copy(h[257:], "ustar\x0000")
	sum := 0
	for _, b := range h {
		sum += int(b)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
	return h
}

// footer is eStargz's: see estargz.FooterSize.
func footer(tocOffset int64) []byte {
	field := fmt.Sprintf("%016xSTARGZ", tocOffset)
	extra := binary.LittleEndian.AppendUint16([]byte("SG"), uint16(len(field)))
	return estargz.CreateGzipFooter(append(extra, field...))
}
