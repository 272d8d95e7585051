package netns

import (
	"fmt"
	"os"
	"strings"
)

// Sysctl reads a setting of the namespace by its name with dots.
func (n *NS) Sysctl(name string) (string, error) {
	var value []byte
	err := n.Do(func() (err error) {
		value, err = os.ReadFile(sysctlPath(name))
		return err
	})
	if err != nil {
		return "", fmt.Errorf("netns: sysctl %s: %w", name, err)
	}
	return strings.TrimSpace(string(value)), nil
}

// SetSysctl changes a setting of the namespace. Only net.* belongs to it:
// anything else would change the machine, so it is refused.
func (n *NS) SetSysctl(name, value string) error {
	if !strings.HasPrefix(name, "net.") {
		return fmt.Errorf("netns: sysctl %s: not a network setting", name)
	}
	err := n.Do(func() error {
		return os.WriteFile(sysctlPath(name), []byte(value), 0)
	})
	if err != nil {
		return fmt.Errorf("netns: sysctl %s=%s: %w", name, value, err)
	}
	return nil
}

// sysctlPath: the kernel resolves these files for the thread that opens them.
func sysctlPath(name string) string {
	return "/proc/sys/" + strings.ReplaceAll(name, ".", "/")
}
