package record

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// user is who a container's program runs as.
type user struct {
	UID    uint32   `json:"uid"`
	GID    uint32   `json:"gid"`
	Groups []uint32 `json:"additionalGids,omitempty"`
}

// maxAccounts bounds what is read of /etc/passwd and /etc/group, in bytes.
const maxAccounts = 4 << 20

// findUser resolves a user as an image's config names it, in the root file
// system at root: NAME, UID, and either with :GROUP or :GID.
func findUser(root, spec string) (user, error) {
	name, group, hasGroup := strings.Cut(spec, ":")
	if name == "" {
		name = "0"
	}
	var u user
	found := false
	id, numeric := number(name)
	err := accounts(root, "etc/passwd", 4, func(f []string) bool {
		uid, ok := number(f[2])
		gid, gok := number(f[3])
		if !ok || !gok || f[0] != name && (!numeric || uid != id) {
			return false
		}
		found, u.UID, u.GID, name = true, uid, gid, f[0]
		return true
	})
	switch {
	case err != nil:
		return user{}, err
	case !found && !numeric:
		return user{}, errors.New("the image's /etc/passwd has no such user")
	case !found:
		u.UID = id
	}
	wanted, numeric := number(group)
	gidFound := false
	err = accounts(root, "etc/group", 3, func(f []string) bool {
		gid, ok := number(f[2])
		if !ok {
			return false
		}
		if hasGroup {
			if f[0] == group || numeric && gid == wanted {
				gidFound, u.GID = true, gid
			}
			return gidFound
		}
		if len(f) > 3 && slices.Contains(strings.Split(f[3], ","), name) && !slices.Contains(u.Groups, gid) {
			u.Groups = append(u.Groups, gid)
		}
		return false
	})
	switch {
	case err != nil:
		return user{}, err
	case hasGroup && !gidFound && !numeric:
		return user{}, fmt.Errorf("the image's /etc/group has no group %q", group)
	case hasGroup && !gidFound:
		u.GID = wanted
	}
	return u, nil
}

func number(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && n < math.MaxUint32
}

// accounts calls yield for each line of a file in root that has so many fields,
// until it returns true. A file that isn't there has no lines.
func accounts(root, file string, fields int, yield func(fields []string) bool) error {
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dir) //nolint:errcheck // only a place
	// Symbolic links of the image lead to places in the image.
	fd, err := unix.Openat2(dir, file, &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open %s: %w", file, err)
	}
	f := os.NewFile(uintptr(fd), file)
	defer f.Close() //nolint:errcheck // a reader
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a file: %w", file, errors.Join(err, unix.EINVAL))
	}
	lines := bufio.NewScanner(io.LimitReader(f, maxAccounts))
	for lines.Scan() {
		if f := strings.Split(strings.TrimSpace(lines.Text()), ":"); len(f) >= fields && yield(f) {
			return nil
		}
	}
	return lines.Err()
}
