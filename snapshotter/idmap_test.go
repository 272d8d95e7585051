package snapshotter

import (
	"testing"

	"github.com/containerd/errdefs"
)

func FuzzHostRoot(f *testing.F) {
	for _, mapping := range []string{"0:100000:65536", "65536:1:1,0:5:1", "", "0:0:0", "1:2", "0:-1:1", "0:4294967295:1", "0:4294967296:1", ","} {
		f.Add(mapping)
	}
	f.Fuzz(func(t *testing.T, mapping string) {
		id, err := hostRoot(mapping)
		if err != nil && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", mapping, err)
		}
		if id < 0 || id >= 1<<32-1 {
			t.Errorf("%q: ID %d", mapping, id)
		}
	})
}
