package layerfs

import (
	"errors"
	"slices"
	"syscall"
	"testing"
)

func newOpens(t *testing.T) (*opens, *state) {
	t.Helper()
	st, err := newState()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.close(); err != nil {
			t.Error(err)
		}
	})
	return &opens{state: st}, st
}

// A process may be killed at any point of an OPEN or a RELEASE, and then does
// not know whether the kernel has its answer. Whoever goes on may do it again.
func TestOpensCanBeRepeated(t *testing.T) {
	o, st := newOpens(t)
	first, err := o.add(7, 100, 0)
	second, err2 := o.add(7, 101, 3)
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	next := &opens{state: st}
	if all := next.load(); !slices.Equal(all, []open{{first, 7, 0}, {second, 7, 3}}) {
		t.Errorf("the next process finds %+v", all)
	}
	// The OPEN again, as the kernel marks it.
	if e, ok := next.find(7, 101|resent); !ok || e != (open{second, 7, 3}) {
		t.Errorf("OPEN again: %+v, %v", e, ok)
	}
	if e, ok := next.find(8, 101); ok {
		t.Errorf("OPEN of another node: %+v", e)
	}
	if e, ok := next.find(7, 102); ok {
		t.Errorf("another OPEN: %+v", e)
	}
	if _, ok := next.remove(first, 7); !ok {
		t.Error("RELEASE: not there")
	}
	third, err := next.add(9, 103, 0) // in the slot that became free
	if err != nil {
		t.Fatal(err)
	}
	if uint32(third) != uint32(first) || third == first {
		t.Errorf("the slot of %x is used for %x", first, third)
	}
	for name, fh := range map[string]uint64{"RELEASE again": first, "empty file": 0, "nonsense": 1<<32 - 1} {
		if e, ok := next.remove(fh, 7); ok {
			t.Errorf("%s removes %+v", name, e)
		}
	}
	if all := (&opens{state: st}).load(); !slices.Equal(all, []open{{third, 9, 0}, {second, 7, 3}}) {
		t.Errorf("in the end: %+v", all)
	}
}

func TestOpensAreBounded(t *testing.T) {
	o, st := newOpens(t)
	st.u32(atOpens).Store(maxOpens)
	if _, err := o.add(7, 1, 0); !errors.Is(err, syscall.ENFILE) {
		t.Errorf("one more than there may be: %v", err)
	}
}

// Another version of this program, or one that died too early, leaves a state
// that is of no use.
func TestStateOfOthersIsRefused(t *testing.T) {
	for name, change := range map[string]func(*state){
		"not negotiated": func(*state) {},
		"another layout": func(s *state) {
			s.u32(atInitLen).Store(10)
			s.u32(atAnswerLen).Store(10)
			s.mem[15]++
		},
		"too many opens": func(s *state) {
			s.u32(atInitLen).Store(10)
			s.u32(atAnswerLen).Store(10)
			s.u32(atOpens).Store(maxOpens + 1)
		},
		"too long": func(s *state) {
			s.u32(atInitLen).Store(maxInit + 1)
			s.u32(atAnswerLen).Store(10)
		},
	} {
		_, st := newOpens(t)
		change(st)
		again, err := reopen(st)
		if err == nil {
			t.Errorf("%s: it was taken over", name)
			_ = again.close()
		}
	}
}

// reopen opens a state as another process does.
func reopen(s *state) (*state, error) {
	f, err := duplicateFile(s.file)
	if err != nil {
		return nil, err
	}
	return openState(f)
}
