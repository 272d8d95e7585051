package layerfs

import "testing"

func TestAtLeast(t *testing.T) {
	for _, c := range []struct {
		release      string
		major, minor int
		want         bool
	}{
		{"6.18.44-generic", 6, 9, true},
		{"6.9.0", 6, 9, true},
		{"6.8.12", 6, 9, false},
		{"5.15.0-1051-azure", 6, 9, false},
		{"7.0-rc1", 6, 9, true},
		{"6.9-rc2", 6, 9, true},
		{"10.1", 6, 9, true},
		{"", 5, 4, false},
		{"linux", 5, 4, false},
		{"6", 5, 4, false},
	} {
		if got := atLeast(c.release, c.major, c.minor); got != c.want {
			t.Errorf("%q is %d.%d or later: %v, want %v", c.release, c.major, c.minor, got, c.want)
		}
	}
}

// What Check says must hold where the other tests of this package run.
func TestCheckFindsWhatIsThere(t *testing.T) {
	needed := map[string]bool{}
	for _, f := range Check() {
		if f.Name == "" || f.Detail == "" {
			t.Errorf("%+v says too little", f)
		}
		needed[f.Name] = f.Required
		t.Logf("%+v", f)
	}
	for _, name := range []string{"kernel", "fuse", "overlayfs"} {
		if !needed[name] {
			t.Errorf("%s is not required", name)
		}
	}
}
