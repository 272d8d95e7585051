package layerfs_test

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/airstream-io/airstream/snapshotter/layerfs"
)

// helper is the main of a process that a test starts: "what:argument".
func helper(what string) int {
	what, arg, _ := strings.Cut(what, ":")
	var err error
	switch what {
	case "mount":
		err = helperMount(arg)
	case "fault":
		err = helperFault(arg)
	default:
		err = fmt.Errorf("no helper %q", what)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// helperMount serves an empty tree until it is killed.
func helperMount(dir string) error {
	if _, err := layerfs.Mount(dir, &node{}, layerfs.Options{}); err != nil {
		return err
	}
	fmt.Println("mounted")
	select {}
}

// helperFault prints the byte at an offset of a file, which it maps:
// "offset:name".
func helperFault(arg string) error {
	offset, name, _ := strings.Cut(arg, ":")
	at, err := strconv.Atoi(offset)
	if err != nil {
		return err
	}
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	mapped, err := unix.Mmap(int(f.Fd()), 0, at+1, unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	fmt.Println(mapped[at])
	return nil
}
