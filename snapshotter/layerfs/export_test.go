package layerfs

import "os"

// WithoutResend makes a tree do as on a kernel before 6.9.
func (o Options) WithoutResend() Options {
	o.noResend, o.CacheOnly = true, true
	return o
}

// OpenFiles counts the opens that a state has. It takes the file over.
func OpenFiles(file *os.File) (int, error) {
	s, err := openState(file)
	if err != nil {
		return 0, err
	}
	o := opens{state: s}
	return len(o.load()), s.close()
}

func duplicateFile(f *os.File) (*os.File, error) {
	fd, err := duplicate(f)
	return os.NewFile(uintptr(fd), f.Name()), err
}
