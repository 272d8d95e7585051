package layerfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Feature is what a tree takes from the machine, or would like to.
type Feature struct {
	Name     string // "passthrough"
	OK       bool
	Required bool   // without it there is no tree
	Detail   string // for people: what is there, or what its lack means
}

// Check looks for what a tree takes from the machine. It mounts nothing.
func Check() []Feature {
	release := kernelRelease()
	return []Feature{
		checkKernel(release),
		checkDevice(),
		checkOverlay(),
		since(release, 6, 9, "passthrough", "complete files are read without the daemon", "reads of complete files go through the daemon when the page cache has lost them"),
		since(release, 6, 9, "resend", "the kernel repeats requests that a dead daemon has left", "the daemon keeps its own record of requests that a dead one has left"),
		checkTimeout(),
	}
}

// kernelRelease returns what uname -r says.
func kernelRelease() string {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return ""
	}
	return unix.ByteSliceToString(name.Release[:])
}

// minKernel is the oldest kernel that overlayfs on FUSE is known to work with
// as we use it: FUSE_CACHE_SYMLINKS, FUSE_NO_OPENDIR_SUPPORT (5.1).
const minKernelMajor, minKernelMinor = 5, 4

func checkKernel(release string) Feature {
	f := Feature{Name: "kernel", Required: true, Detail: "Linux " + release, OK: atLeast(release, minKernelMajor, minKernelMinor)}
	if !f.OK {
		f.Detail += fmt.Sprintf(", older than %d.%d", minKernelMajor, minKernelMinor)
	}
	return f
}

// atLeast says whether a release as "6.18.44-generic" is this version or a
// later one.
func atLeast(release string, major, minor int) bool {
	parts := strings.FieldsFunc(release, func(r rune) bool { return r < '0' || r > '9' })
	if len(parts) < 2 {
		return false
	}
	have, err := strconv.Atoi(parts[0])
	haveMinor, err2 := strconv.Atoi(parts[1])
	if errors.Join(err, err2) != nil {
		return false
	}
	return have > major || have == major && haveMinor >= minor
}

func since(release string, major, minor int, name, there, lacks string) Feature {
	if atLeast(release, major, minor) {
		return Feature{Name: name, OK: true, Detail: there}
	}
	return Feature{Name: name, Detail: fmt.Sprintf("needs Linux %d.%d: %s", major, minor, lacks)}
}

func checkDevice() Feature {
	f := Feature{Name: "fuse", Required: true}
	fd, err := unix.Open(devFUSE, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		f.Detail = fmt.Sprintf("%s can't be opened: %v (modprobe fuse)", devFUSE, err)
		return f
	}
	_ = unix.Close(fd)
	f.OK, f.Detail = true, devFUSE
	return f
}

func checkOverlay() Feature {
	f := Feature{Name: "overlayfs", Required: true, Detail: "overlay is not in /proc/filesystems (modprobe overlay)"}
	list, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		f.Detail = err.Error()
		return f
	}
	for line := range strings.Lines(string(list)) {
		if strings.TrimSpace(strings.TrimPrefix(line, "nodev")) == "overlay" {
			f.OK, f.Detail = true, "overlay"
		}
	}
	return f
}

// checkTimeout looks whether the kernel would give up a connection whose
// requests take long (Linux 6.15): those that wait for a link do.
func checkTimeout() Feature {
	f := Feature{Name: "no request timeout", OK: true, Required: true, Detail: "reads may wait for as long as it takes"}
	for _, name := range []string{"max_request_timeout", "default_request_timeout"} {
		b, err := os.ReadFile("/proc/sys/fs/fuse/" + name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		value := strings.TrimSpace(string(b))
		if err != nil || value == "0" {
			continue
		}
		return Feature{Name: f.Name, Required: true, Detail: fmt.Sprintf("sysctl fs.fuse.%s is %s: the kernel ends the file system when a read waits that many seconds for the link; set it to 0", name, value)}
	}
	return f
}
