package layerfs

import "syscall"

// opens is the table of open files as the kernel has them. The kernel refuses
// to open a file in one way, by cache or by passthrough, while it is open in
// the other, and by passthrough only with the same backing ID. So the next
// process must know.
//
// A slot:
//
//	 0  8  node ID, written last; 0 is a free slot
//	 8  8  number of the OPEN request
//	16  4  generation
//	20  4  backing ID, 0 if by cache
//
// An entry is made before the OPEN is answered and goes before its RELEASE is.
// Both may be met twice, when a process dies in between: an OPEN is known by
// its number, a RELEASE by the generation. Methods are not safe for concurrent
// use.
type opens struct {
	state *state
	free  []uint32 // slots below the mark that are
}

// open is an entry.
type open struct {
	fh      uint64 // what the kernel has for it: generation and slot+1
	node    uint64
	backing int32
}

// resent marks the number of a request that the kernel sends again
// (FUSE_UNIQUE_RESEND).
const resent = 1 << 63

func (o *opens) at(slot uint32) int { return opensBegin + int(slot)*openSize }

// load collects what a process before this one left.
func (o *opens) load() (all []open) {
	for slot := range o.state.u32(atOpens).Load() {
		if e, ok := o.entry(slot); ok {
			all = append(all, e)
		} else {
			o.free = append(o.free, slot)
		}
	}
	return all
}

func (o *opens) entry(slot uint32) (open, bool) {
	at := o.at(slot)
	e := open{
		node:    o.state.u64(at).Load(),
		fh:      uint64(o.state.u32(at+16).Load())<<32 | uint64(slot+1),
		backing: int32(o.state.u32(at + 20).Load()),
	}
	return e, e.node != 0
}

// add notes an open and returns what the kernel shall have for it.
func (o *opens) add(node, unique uint64, backing int32) (fh uint64, err error) {
	var slot uint32
	if n := len(o.free); n > 0 {
		slot, o.free = o.free[n-1], o.free[:n-1]
	} else if slot = o.state.u32(atOpens).Load(); slot < maxOpens {
		o.state.u32(atOpens).Store(slot + 1)
	} else {
		return 0, syscall.ENFILE
	}
	at := o.at(slot)
	generation := o.state.u32(at + 16).Add(1)
	o.state.u64(at + 8).Store(unique &^ resent)
	o.state.u32(at + 20).Store(uint32(backing))
	o.state.u64(at).Store(node)
	return uint64(generation)<<32 | uint64(slot+1), nil
}

// remove forgets an open; ok is false if it is not there.
func (o *opens) remove(fh, node uint64) (e open, ok bool) {
	slot := uint32(fh) - 1
	if uint32(fh) == 0 || slot >= o.state.u32(atOpens).Load() {
		return open{}, false
	}
	if e, ok = o.entry(slot); !ok || e.fh != fh || e.node != node {
		return open{}, false
	}
	o.state.u64(o.at(slot)).Store(0)
	o.free = append(o.free, slot)
	return e, true
}

// find returns the entry that an OPEN request has made already. It looks at
// all of them, which is for those few that a dead process has left unanswered.
func (o *opens) find(node, unique uint64) (e open, ok bool) {
	for slot := range o.state.u32(atOpens).Load() {
		if e, ok := o.entry(slot); ok && e.node == node && o.state.u64(o.at(slot)+8).Load() == unique&^resent {
			return e, true
		}
	}
	return open{}, false
}
