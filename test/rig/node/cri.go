package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// CRINamespace is containerd's namespace for what comes through CRI.
const CRINamespace = "k8s.io"

// CRI speaks to the node as kubelet does. It is safe for concurrent use.
type CRI struct {
	node    *Node
	conn    *grpc.ClientConn
	runtime cri.RuntimeServiceClient
	images  cri.ImageServiceClient
}

// CRI connects to the node's Container Runtime Interface. The connection
// survives a restart of containerd.
func (n *Node) CRI() (*CRI, error) {
	conn, err := n.dial()
	if err != nil {
		return nil, err
	}
	return &CRI{n, conn, cri.NewRuntimeServiceClient(conn), cri.NewImageServiceClient(conn)}, nil
}

// Close closes the connection.
func (c *CRI) Close() error { return c.conn.Close() }

// criReady waits until CRI answers and says that its runtime is ready. The
// network never is: pods use the host's.
func (n *Node) criReady(ctx context.Context, conn *grpc.ClientConn) error {
	client := cri.NewRuntimeServiceClient(conn)
	return poll(ctx, 50*time.Millisecond, "CRI is not ready", func() (bool, error) {
		answer, err := client.Status(ctx, &cri.StatusRequest{})
		if err != nil {
			return false, nil //nolint:nilerr // it is starting
		}
		for _, c := range answer.Status.GetConditions() {
			if c.Type == cri.RuntimeReady && c.Status {
				return true, nil
			}
		}
		return false, nil
	})
}

// waitImage waits until CRI has noticed an image that came another way.
func (n *Node) waitImage(ctx context.Context, ref string) error {
	c, err := n.CRI()
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // nothing is under way
	return poll(ctx, 20*time.Millisecond, "CRI does not see "+ref, func() (bool, error) {
		answer, err := c.images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: ref}})
		return err == nil && answer.Image != nil, err
	})
}

// poll asks until the answer is yes or an error, for at most startLimit.
func poll(ctx context.Context, every time.Duration, otherwise string, ask func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if yes, err := ask(); err != nil || yes {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("node: %s: %w", otherwise, context.Cause(ctx))
		}
	}
}

// PullImage pulls an image and returns the reference that CRI gives it. auth
// may be nil.
func (c *CRI) PullImage(ctx context.Context, ref string, auth *cri.AuthConfig) (string, error) {
	answer, err := c.images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}, Auth: auth})
	if err != nil {
		return "", fmt.Errorf("node: cri: pull %s: %w", ref, err)
	}
	return answer.ImageRef, nil
}

// RemoveImage removes an image.
func (c *CRI) RemoveImage(ctx context.Context, ref string) error {
	_, err := c.images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: ref}})
	if err != nil {
		return fmt.Errorf("node: cri: remove %s: %w", ref, err)
	}
	return nil
}

// Pod is a sandbox on the host's network, with one container in it.
type Pod struct {
	cri       *CRI
	name      string
	sandbox   string // id
	container string // id; empty until it is created
	config    *cri.PodSandboxConfig
	log       string // path of the container's log
	created   time.Time
}

// StartPod makes a sandbox and starts one container in it. r.Snapshotter and
// r.Namespace have no meaning for CRI and must be empty.
func (c *CRI) StartPod(ctx context.Context, r Run) (_ *Pod, err error) {
	if r.Snapshotter != "" || r.Namespace != "" {
		return nil, errors.New("node: cri: the node's configuration chooses snapshotter and namespace")
	}
	p := &Pod{cri: c, name: c.node.newID("pod")}
	p.config = &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: p.name, Uid: p.name, Namespace: "default"},
		LogDirectory: filepath.Join(c.node.path("logs"), p.name),
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent: c.node.cgroup(),
			SecurityContext: &cri.LinuxSandboxSecurityContext{
				NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE},
			},
		},
	}
	if err := os.MkdirAll(p.config.LogDirectory, 0o700); err != nil {
		return nil, fmt.Errorf("node: cri: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Remove(context.WithoutCancel(ctx)))
		}
	}()
	sandbox, err := c.runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: p.config})
	if err != nil {
		return nil, fmt.Errorf("node: cri: run sandbox: %w", err)
	}
	p.sandbox = sandbox.PodSandboxId
	return p, p.start(ctx, r)
}

// start creates and starts the pod's container.
func (p *Pod) start(ctx context.Context, r Run) error {
	config := &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: "main"},
		Image:    &cri.ImageSpec{Image: r.Ref},
		Command:  r.Args,
		LogPath:  "main.log",
		Linux: &cri.LinuxContainerConfig{
			SecurityContext: &cri.LinuxContainerSecurityContext{
				NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE},
			},
		},
	}
	for _, env := range r.Env {
		key, value, _ := strings.Cut(env, "=")
		config.Envs = append(config.Envs, &cri.KeyValue{Key: key, Value: []byte(value)})
	}
	p.log = filepath.Join(p.config.LogDirectory, config.LogPath)
	p.created = time.Now()
	container, err := p.cri.runtime.CreateContainer(ctx, &cri.CreateContainerRequest{
		PodSandboxId: p.sandbox, Config: config, SandboxConfig: p.config,
	})
	if err != nil {
		return fmt.Errorf("node: cri: create container of %s: %w", r.Ref, err)
	}
	p.container = container.ContainerId
	if _, err := p.cri.runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: p.container}); err != nil {
		return fmt.Errorf("node: cri: start container of %s: %w", r.Ref, err)
	}
	return nil
}

// Exec runs a command in the pod's container and returns its output. Its
// error quotes the command's standard error.
func (p *Pod) Exec(ctx context.Context, args ...string) (string, error) {
	answer, err := p.cri.runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: p.container, Cmd: args})
	if err == nil && answer.ExitCode != 0 {
		err = fmt.Errorf("exit code %d: %s", answer.ExitCode, answer.Stderr)
	}
	if err != nil {
		return "", fmt.Errorf("node: cri: exec %s: %w", strings.Join(args, " "), err)
	}
	return string(answer.Stdout), nil
}

// Wait waits until the container prints a line that matches ready, or, if
// ready is nil, until it ends. Result.Ready counts from the moment when the
// creation of the container was asked for, its sandbox already running.
func (p *Pod) Wait(ctx context.Context, ready *regexp.Regexp) (Result, error) {
	w := newWatcher(ready)
	log := logReader{path: p.log}
	tick := time.NewTicker(logEvery)
	defer tick.Stop()
	for round := 0; ; round++ {
		var ended bool
		var err error
		if round%statusEvery == 0 {
			ended, err = p.ended(ctx)
		}
		// Whether it has ended is asked first: all it has said is in the log.
		err = errors.Join(err, log.copyTo(w))
		result := w.result(p.created)
		switch {
		case err != nil:
			return result, fmt.Errorf("node: cri: wait for %s: %w", p.name, err)
		case result.Line != "" || (ended && ready == nil):
			return result, nil
		case ended:
			return result, fmt.Errorf("node: cri: wait for %s: %w\n%s", p.name, ErrNotReady, result.Output)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return result, fmt.Errorf("node: cri: wait for %s: %w\n%s", p.name, context.Cause(ctx), result.Output)
		}
	}
}

// How often a container's log is read while it is waited for, and after how
// many rounds it is asked whether it still runs.
const (
	logEvery    = 10 * time.Millisecond
	statusEvery = 20
)

// ended reports whether the container has ended.
func (p *Pod) ended(ctx context.Context) (bool, error) {
	answer, err := p.cri.runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: p.container})
	if err != nil {
		return false, err
	}
	return answer.Status.State == cri.ContainerState_CONTAINER_EXITED, nil
}

// Remove kills the container and takes the pod away.
func (p *Pod) Remove(ctx context.Context) error {
	var errs []error
	if p.container != "" {
		_, err := p.cri.runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: p.container})
		errs = append(errs, err)
		_, err = p.cri.runtime.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: p.container})
		errs = append(errs, err)
	}
	if p.sandbox != "" {
		_, err := p.cri.runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.sandbox})
		errs = append(errs, err)
		_, err = p.cri.runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.sandbox})
		errs = append(errs, err)
	}
	errs = append(errs, os.RemoveAll(p.config.LogDirectory))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("node: cri: remove %s: %w", p.name, err)
	}
	return nil
}

// RunUntil runs a container in a pod until it is ready, or until it ends if
// r.Ready is nil, and takes both away. Result.Ready is that of Pod.Wait.
func (c *CRI) RunUntil(ctx context.Context, r Run) (result Result, err error) {
	p, err := c.StartPod(ctx, r)
	if err != nil {
		return Result{}, err
	}
	defer func() { err = errors.Join(err, p.Remove(context.WithoutCancel(ctx))) }()
	return p.Wait(ctx, r.Ready)
}
