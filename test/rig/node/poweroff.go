package node

import (
	"context"
	"errors"
	"fmt"
	"os"
)

// PowerOff ends containerd and all containers at once, as a node does that
// loses power: nothing of them runs, nothing is mounted, and what containerd
// keeps in memory file systems is gone. Restart is the reboot.
func (n *Node) PowerOff(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stopGrace)
	defer cancel()
	err := errors.Join(
		n.process.Kill(),
		killAll(ctx, n.Socket()),
		unmountBeneath(n.dir),
		removeCgroups(ctx, n.cgroup()[1:]),
		os.RemoveAll(n.path("state")))
	if err != nil {
		return fmt.Errorf("node: power off: %w", err)
	}
	return nil
}
