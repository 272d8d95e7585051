package snapshotter

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

// mappedRoot returns what user and group 0 of a container are on the host
// according to the labels, 0 and 0 if they don't say (mapped is false then).
func mappedRoot(labels map[string]string) (uid, gid int, mapped bool, err error) {
	for label, id := range map[string]*int{
		snapshots.LabelSnapshotUIDMapping: &uid,
		snapshots.LabelSnapshotGIDMapping: &gid,
	} {
		mapping, ok := labels[label]
		if !ok || mapping == "" {
			continue
		}
		mapped = true
		if *id, err = hostRoot(mapping); err != nil {
			return 0, 0, true, fmt.Errorf("label %s: %w", label, err)
		}
	}
	return uid, gid, mapped, nil
}

// hostRoot returns the host ID of ID 0 in a mapping as containerd writes it:
// "container:host:length", more of them after commas.
func hostRoot(mapping string) (int, error) {
	for part := range strings.SplitSeq(mapping, ",") {
		var ids [3]uint32
		fields := strings.Split(part, ":")
		if len(fields) != len(ids) {
			return 0, fmt.Errorf("mapping %q: want container:host:length: %w", part, errdefs.ErrInvalidArgument)
		}
		for i, f := range fields {
			n, err := strconv.ParseUint(f, 10, 32)
			if err != nil {
				return 0, fmt.Errorf("mapping %q: %w: %w", part, errdefs.ErrInvalidArgument, err)
			}
			ids[i] = uint32(n)
		}
		if ids[0] == 0 && ids[2] > 0 && ids[1] != math.MaxUint32 { // which is no ID
			return int(ids[1]), nil
		}
	}
	return 0, fmt.Errorf("mapping %q has no entry for ID 0: %w", mapping, errdefs.ErrInvalidArgument)
}
