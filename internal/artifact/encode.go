package artifact

import (
	"crypto/sha256"
	"fmt"
	"slices"

	"github.com/klauspost/compress/zstd"

	"github.com/airstream-io/airstream/internal/chunk"
	"github.com/airstream-io/airstream/internal/toc"
)

// Encoder writes a TOC blob. Layers are added from the lowest up, each once.
type Encoder struct {
	columns  [numColumns]column
	before   [numColumns]int // sizes of the columns before the layer under way
	profiles map[string]uint64
	times    map[moment]uint64
	xattrs   uint64           // in profiles
	last     moment           // the one that was added last
	hot      map[int][]uint32 // chunks of the hot set, by layer, sorted
	layers   int
	entries  int
	runs     []Run
	frames   []uint32
	frame    uint32

	ids   []chunk.ID // known ones
	pages pager
}

type moment struct{ sec, nsec int64 }

// NewEncoder returns an Encoder for an image whose hot set is list, in frames of
// these sizes as WriteHot made them. Both are empty if there is none.
func NewEncoder(list []Wanted, frames []uint32) *Encoder {
	e := &Encoder{profiles: map[string]uint64{}, times: map[moment]uint64{}, hot: map[int][]uint32{}, runs: runs(list), frames: frames}
	for _, w := range list {
		e.hot[w.Layer] = append(e.hot[w.Layer], w.Number)
	}
	for _, numbers := range e.hot {
		slices.Sort(numbers)
	}
	if len(list) > 0 {
		e.frame = FrameSize
	}
	return e
}

// Add adds the next layer. The tree is not used any more when it returns.
func (e *Encoder) Add(tree *toc.Tree) error {
	if e.layers == maxLayers {
		return fmt.Errorf("artifact: encode: %w: more than %d layers", ErrTooLarge, maxLayers)
	}
	info := []uint64{uint64(tree.Len()), 0, uint64(tree.NumChunks()), 0, uint64(len(e.times))}
	names := namesOf(tree)
	for entry := range uint32(tree.Len()) {
		e.attr(tree, entry)
		if entry > 0 {
			e.name(names, entry)
		}
	}
	info[1] = e.cut(tree)
	for _, x := range names.extra {
		c := &e.columns[colExtra]
		c.uvarint(uint64(x.dir))
		c.uvarint(uint64(x.entry))
		c.text(x.name)
	}
	known := len(e.ids)
	e.chunks(tree)
	info[3] = uint64(len(e.ids) - known)

	for i := perLayer; i < numColumns; i++ {
		info = append(info, uint64(e.columns[i].Len()-e.before[i]))
		e.before[i] = e.columns[i].Len()
	}
	for _, v := range info {
		e.columns[colLayers].uvarint(v)
	}
	e.layers++
	if e.entries += tree.Len(); e.entries > maxEntries {
		return fmt.Errorf("artifact: encode: %w: more than %d entries", ErrTooLarge, maxEntries)
	}
	if len(e.ids)+e.pages.chunks > maxChunks {
		return fmt.Errorf("artifact: encode: %w: more than %d chunks", ErrTooLarge, maxChunks)
	}
	total := 0
	for i := range e.columns {
		total += e.columns[i].Len()
	}
	if total > maxColumns {
		return fmt.Errorf("artifact: encode: %w: more than %d bytes of names and attributes", ErrTooLarge, maxColumns)
	}
	return nil
}

// attr writes what stat(2), readlink(2) and listxattr(2) say of an entry.
func (e *Encoder) attr(tree *toc.Tree, entry uint32) {
	a := tree.Attr(entry)
	var p column
	for _, v := range []uint32{a.Mode, a.UID, a.GID, a.Rdev} {
		p.uvarint(uint64(v))
	}
	var xattrs column
	n := uint64(0)
	for name, value := range tree.Xattrs(entry) {
		xattrs.text(name)
		xattrs.text(string(value))
		n++
	}
	p.uvarint(n)
	p.Write(xattrs.Bytes())
	number, ok := e.profiles[p.String()]
	if !ok {
		number = uint64(len(e.profiles))
		e.profiles[p.String()] = number
		e.xattrs += n
		e.columns[colProfiles].Write(p.Bytes())
	}
	e.columns[colProfile].uvarint(number)

	when := moment{a.Mtime.Unix(), int64(a.Mtime.Nanosecond())}
	number, ok = e.times[when]
	if ok {
		e.columns[colTime].uvarint(number + 1)
	} else {
		e.times[when] = uint64(len(e.times))
		e.columns[colTime].uvarint(0)
		e.columns[colTimes].varint(when.sec - e.last.sec)
		e.columns[colTimes].uvarint(uint64(when.nsec))
		e.last = when
	}

	switch a.Mode & toc.TypeMask {
	case toc.TypeRegular:
		e.columns[colLow].WriteByte(byte(a.Size))
		e.columns[colHigh].uvarint(uint64(a.Size) >> 8)
	case toc.TypeSymlink:
		e.columns[colLink].zeroTerminated(tree.Readlink(entry))
	}
}

// names are where the entries of a layer are.
type names struct {
	parent []uint32
	name   []string
	extra  []extra
}

type extra struct {
	dir, entry uint32
	name       string
}

// namesOf takes of several names the first, in the order of the directories'
// entries and then of the names.
func namesOf(tree *toc.Tree) *names {
	n := &names{parent: make([]uint32, tree.Len()), name: make([]string, tree.Len())}
	for dir := range uint32(tree.Len()) {
		for k := range tree.NumChildren(dir) {
			name, entry := tree.Child(dir, k)
			if n.name[entry] != "" {
				n.extra = append(n.extra, extra{dir, entry, name})
				continue
			}
			n.name[entry], n.parent[entry] = name, dir
		}
	}
	return n
}

func (e *Encoder) name(n *names, entry uint32) {
	before := entry - 1
	e.columns[colParent].uvarint(n.code(entry))
	prefix := 0
	for a, b := n.name[before], n.name[entry]; prefix < len(a) && prefix < len(b) && a[prefix] == b[prefix]; prefix++ {
	}
	e.columns[colPrefix].uvarint(uint64(prefix))
	e.columns[colName].zeroTerminated(n.name[entry][prefix:])
}

// code says which directory an entry is in, given the one before it: tars are
// written directory by directory, so it is near.
func (n *names) code(entry uint32) uint64 {
	before, dir := entry-1, n.parent[entry]
	if dir == before {
		return 1
	}
	at := n.parent[before]
	if at == dir {
		return 0
	}
	// What is named by a hardlink only may be in a directory that comes later,
	// whose own place a reader doesn't know yet.
	for code := uint64(2); at != toc.Root && at < entry && code < absolute; code++ {
		if at = n.parent[at]; at == dir {
			return code
		}
	}
	return absolute + uint64(dir)
}

// cut returns the layer's chunk size, and writes which files are not cut there.
func (e *Encoder) cut(tree *toc.Tree) (size uint64) {
	for c := range uint32(tree.NumChunks()) {
		size = max(size, uint64(tree.Chunk(c).Size)) // of any honest layer with a file longer than that
	}
	last := uint32(0)
	for entry := range uint32(tree.Len()) {
		first, end := tree.Chunks(entry)
		regular := true
		for c := first; c < end; c++ {
			k := tree.Chunk(c)
			regular = regular && uint64(k.Size) == min(size, uint64(tree.Attr(entry).Size-k.Offset))
		}
		if regular {
			continue
		}
		col := &e.columns[colCut]
		col.uvarint(uint64(entry - last))
		last = entry
		for c := first; c < end; c++ {
			col.uvarint(uint64(tree.Chunk(c).Size))
		}
	}
	return size
}

// chunks writes the chunks of files that a start reads to the root, the others
// to pages.
func (e *Encoder) chunks(tree *toc.Tree) {
	files := map[uint32]struct{}{}
	for _, c := range e.hot[e.layers] {
		files[tree.ChunkFile(c)] = struct{}{}
	}
	var before where
	e.pages.before = where{}
	for c := range uint32(tree.NumChunks()) {
		k := tree.Chunk(c)
		if _, known := files[tree.ChunkFile(c)]; known {
			e.ids = append(e.ids, k.ID)
			before.encode(&e.columns[colWhere], tree, k)
			continue
		}
		e.pages.add(tree, k)
	}
}

// Blob returns the TOC blob; its first root bytes are the root.
func (e *Encoder) Blob() (blob []byte, root int, err error) {
	e.pages.flush()
	next := map[int]int64{}
	for _, r := range e.runs {
		col := &e.columns[colOrder]
		col.uvarint(uint64(r.Layer))
		col.varint(int64(r.First) - next[r.Layer])
		col.uvarint(uint64(r.Count))
		next[r.Layer] = int64(r.First) + int64(r.Count)
	}
	for _, f := range e.frames {
		e.columns[colFrames].uvarint(uint64(f))
	}
	hot := 0
	for _, numbers := range e.hot {
		hot += len(numbers)
	}
	if hot > maxHot {
		return nil, 0, fmt.Errorf("artifact: encode: %w: a start reads more than %d chunks", ErrTooLarge, maxHot)
	}
	if len(e.profiles) > maxProfiles || e.xattrs > maxXattrs {
		return nil, 0, fmt.Errorf("artifact: encode: %w: more than %d combinations of attributes", ErrTooLarge, maxProfiles)
	}
	z, err := compressor()
	if err != nil {
		return nil, 0, fmt.Errorf("artifact: encode: %w", err)
	}
	defer z.Close() //nolint:errcheck // nothing is under way
	blob = append(blob, magic...)
	for _, v := range []int{e.layers, len(e.pages.sizes), len(e.ids), e.pages.chunks, int(e.frame), 0} {
		blob = le.AppendUint32(blob, uint32(v))
	}
	var packed [numColumns][]byte
	for i := range e.columns {
		packed[i] = z.EncodeAll(e.columns[i].Bytes(), nil)
		if len(packed[i]) >= e.columns[i].Len() {
			packed[i] = e.columns[i].Bytes()
		}
		blob = le.AppendUint32(blob, uint32(e.columns[i].Len()))
		blob = le.AppendUint32(blob, uint32(len(packed[i])))
	}
	for _, p := range packed {
		blob = append(blob, p...)
	}
	rest := e.pages.raw.Bytes()
	for _, n := range e.pages.sizes {
		sum := sha256.Sum256(rest[:n])
		blob = append(le.AppendUint16(blob, uint16(n)), sum[:]...)
		rest = rest[n:]
	}
	for _, id := range e.ids {
		blob = append(blob, id[:]...)
	}
	if len(blob) > MaxRoot {
		return nil, 0, fmt.Errorf("artifact: encode: %w: a root of %d bytes", ErrTooLarge, len(blob))
	}
	return append(blob, e.pages.raw.Bytes()...), len(blob), nil
}

// pager cuts chunks into pages.
type pager struct {
	raw    column // finished pages
	sizes  []int
	chunks int
	ids    column // of the page under way
	wheres column
	before where
}

func (p *pager) add(tree *toc.Tree, k toc.Chunk) {
	p.ids.Write(k.ID[:])
	p.before.encode(&p.wheres, tree, k)
	if p.chunks++; p.chunks%PageChunks == 0 {
		p.flush()
	}
}

func (p *pager) flush() {
	if p.ids.Len() == 0 {
		return
	}
	p.sizes = append(p.sizes, p.ids.Len()+p.wheres.Len())
	p.raw.Write(p.ids.Bytes())
	p.raw.Write(p.wheres.Bytes())
	p.ids.Reset()
	p.wheres.Reset()
	p.before = where{}
}

// compressor makes the same bytes of the same input on any machine: with one
// goroutine, and settings that are written here.
func compressor() (*zstd.Encoder, error) {
	return zstd.NewWriter(nil,
		zstd.WithEncoderLevel(zstd.SpeedBestCompression),
		zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(1<<20),
		zstd.WithSingleSegment(true), // so that a frame says how large it is
		zstd.WithEncoderCRC(false))   // SHA-256 is the check
}
