package layerfs

import (
	"math"
	"testing"
)

func TestNodeIDsAreUniqueAndLeaveRoomForOverlayfs(t *testing.T) {
	seen := map[uint64]node{rootID: {}, math.MaxUint64: {}} // the root, and a node of go-fuse's own
	for _, slot := range []uint32{0, 1, 2, 1 << 16, MaxSlot} {
		for _, base := range []bool{false, true} {
			for _, entry := range []uint32{0, 1, 2, 1 << 20, math.MaxUint32} {
				n := node{slot: slot, base: base, entry: entry}
				id := n.id()
				if other, taken := seen[id]; taken {
					t.Errorf("%+v and %+v have the same id %#x", n, other, id)
				}
				seen[id] = n
				if back, ok := parseID(id); !ok || back != n {
					t.Errorf("%+v comes back as %+v, %v", n, back, ok)
				}
				if id>>57 != 0 {
					t.Errorf("%+v: id %#x uses the seven highest bits", n, id)
				}
			}
		}
	}
	for _, id := range []uint64{0, rootID, 2, 1<<33 - 1, uint64(MaxSlot+2) << 33, math.MaxUint64} {
		if n, ok := parseID(id); ok {
			t.Errorf("%#x is taken for %+v", id, n)
		}
	}
}

func FuzzParseDirName(f *testing.F) {
	for _, name := range []string{"0", "7.base", "8388607", "8388608", "01", "+1", "1.base.base", "", ".base", "1.Base"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		slot, base, ok := ParseDirName(name)
		if ok && (DirName(slot, base) != name || slot > MaxSlot) {
			t.Errorf("%q is taken for slot %d, base %v", name, slot, base)
		}
	})
}
