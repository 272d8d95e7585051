package record

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// What containers get that are given nothing special: containerd's defaults.
var (
	defaultPath  = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	capabilities = []string{
		"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
		"CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
	}
	maskedPaths = []string{
		"/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
		"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
	}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// maxProcesses is how many the container may have.
const maxProcesses = 4096

const hostname = "airstream"

type object = map[string]any

// bundle writes what runc reads: config.json, and the files that a pod gets
// from its node.
func (j *job) bundle(u user) error {
	files := map[string]string{
		"hosts":       "127.0.0.1 localhost " + hostname + "\n::1 localhost\n",
		"hostname":    hostname + "\n",
		"resolv.conf": "# There is no network here.\n",
	}
	raw, err := json.Marshal(j.config(u))
	if err != nil {
		return err
	}
	files["config.json"] = string(raw)
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(bundleDir, name), []byte(text), 0o644); err != nil { //nolint:gosec // for the container's user
			return err
		}
	}
	return nil
}

// config is the container as the runtime specification has it. There is no
// network namespace in it: the container shares the worker's.
func (j *job) config(u user) object {
	env := j.Process.Env
	if !slices.ContainsFunc(env, func(s string) bool { return strings.HasPrefix(s, "PATH=") }) {
		env = append([]string{defaultPath}, env...)
	}
	dir := j.Process.Dir
	if !strings.HasPrefix(dir, "/") {
		dir = "/" + dir
	}
	return object{
		"ociVersion": "1.0.2",
		"hostname":   hostname,
		"root":       object{"path": filepath.Join(j.Dir, rootDir)},
		"process": object{
			"args": j.Process.Args, "env": env, "cwd": dir, "user": u,
			"capabilities": object{"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
		},
		"mounts": j.mounts(),
		"linux": object{
			"namespaces":    []object{{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}},
			"cgroupsPath":   "/" + cgroupDir + "/" + j.ID,
			"maskedPaths":   maskedPaths,
			"readonlyPaths": readonlyPaths,
			"resources": object{
				"devices": []object{{"allow": false, "access": "rwm"}},
				"memory":  object{"limit": j.Memory},
				"pids":    object{"limit": maxProcesses},
			},
		},
	}
}

func (j *job) mounts() []object {
	kernel := func(kind, at string, options ...string) object {
		return object{"destination": at, "type": kind, "source": kind, "options": options}
	}
	mounts := []object{
		kernel("proc", "/proc", "nosuid", "noexec", "nodev"),
		kernel("tmpfs", "/dev", "nosuid", "strictatime", "mode=755", "size=65536k"),
		kernel("devpts", "/dev/pts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
		kernel("tmpfs", "/dev/shm", "nosuid", "noexec", "nodev", "mode=1777", "size=65536k"),
		kernel("mqueue", "/dev/mqueue", "nosuid", "noexec", "nodev"),
		kernel("sysfs", "/sys", "nosuid", "noexec", "nodev", "ro"),
		kernel("cgroup", "/sys/fs/cgroup", "nosuid", "noexec", "nodev", "relatime", "ro"),
	}
	for _, name := range []string{"hosts", "hostname", "resolv.conf"} {
		mounts = append(mounts, object{
			"destination": "/etc/" + name, "type": "bind", "source": filepath.Join(j.Dir, bundleDir, name),
			"options": []string{"rbind", "rprivate", "rw"},
		})
	}
	return mounts
}
