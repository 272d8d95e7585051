// Package flow moves bytes over an emulated link as a node does, in this
// process: the real registry behind TLS on shore, the node's registry client
// and link meter at the far end, and nothing between them and the figures. It
// shows what the transport does; what is asked for, and when, is the fetcher's
// and not in it.
package flow

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	fetch "github.com/airstream-io/airstream/fetcher/registry"
	"github.com/airstream-io/airstream/fetcher/uplink"
	"github.com/airstream-io/airstream/internal/catalog"
	"github.com/airstream-io/airstream/test/rig/link"
	"github.com/airstream-io/airstream/test/rig/registry"
)

// Options say how a path is.
type Options struct {
	Profile  link.Profile
	Seed     uint64             // of losses
	Registry *registry.Registry // with Size bytes pushed by Push
	Blob     digest.Digest      // what Push returned
	Size     int64              // bytes of it
	Policy   uplink.Policy
	Logger   *slog.Logger // nil: nothing is logged
}

// Path is a node's way to a registry over an emulated link.
type Path struct {
	Link  *link.Link
	Front *registry.Front
	Meter *uplink.Meter

	opts   Options
	client *fetch.Client
	src    catalog.Source

	mu   sync.Mutex
	next int64 // guarded by mu; offset that was not asked for yet
}

const repo = "bulk"

// Push puts a blob of size bytes that don't compress on shore.
func Push(ctx context.Context, reg *registry.Registry, size int64) (digest.Digest, error) {
	content := make([]byte, size)
	if _, err := io.ReadFull(rand.NewChaCha8([32]byte{1}), content); err != nil {
		return "", fmt.Errorf("flow: %w", err)
	}
	img, err := mutate.AppendLayers(empty.Image, static.NewLayer(content, types.OCIUncompressedLayer))
	if err != nil {
		return "", fmt.Errorf("flow: %w", err)
	}
	if _, err := reg.Push(ctx, repo+":1", img); err != nil {
		return "", fmt.Errorf("flow: %w", err)
	}
	return digest.FromBytes(content), nil
}

// Open makes a link and both of its ends. The caller closes the Path.
func Open(ctx context.Context, opts Options) (_ *Path, err error) {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	p := &Path{opts: opts}
	defer func() { //nolint:contextcheck // cleans up even when ctx has ended
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	p.Link, err = link.Start(ctx, link.Options{EmulatorOptions: link.EmulatorOptions{Profile: opts.Profile, Seed: opts.Seed}})
	if err != nil {
		return nil, err
	}
	p.Front, err = opts.Registry.Front(registry.FrontOptions{TLS: true, HTTP1: true, Listen: func() (net.Listener, error) {
		return p.Link.Shore.Listen(ctx, "tcp", netip.AddrPortFrom(link.ShoreAddr, 0).String())
	}})
	if err != nil {
		return nil, err
	}
	ca := x509.NewCertPool()
	if !ca.AppendCertsFromPEM(p.Front.CA()) {
		return nil, errors.New("flow: the registry's CA cannot be read")
	}
	p.Meter = uplink.NewMeter(opts.Logger)
	p.Meter.SetPolicy(opts.Policy)
	p.src = catalog.Source{Host: p.Front.Host(), Repo: repo}
	p.client = fetch.New(fetch.Options{
		Hosts: map[string]fetch.Host{p.src.Host: {URL: p.Front.URL(), CA: ca}}, Keychain: authn.NewMultiKeychain(),
		Meter: p.Meter, Logger: opts.Logger, Dial: p.Link.Node.Dial,
	})
	return p, nil
}

// Close ends everything.
func (p *Path) Close() error {
	var errs []error
	if p.client != nil {
		p.client.Close()
	}
	if p.Front != nil {
		errs = append(errs, p.Front.Close())
	}
	if p.Link != nil {
		errs = append(errs, p.Link.Close())
	}
	return errors.Join(errs...)
}

// Read asks for n bytes as one request of a class and reads them as they come;
// each, if set, is told of every piece. A request that fails is made again for
// what has not come, as the fetcher does.
func (p *Path) Read(ctx context.Context, class uplink.Class, off, n int64, each func(n int)) error {
	for n > 0 {
		got, err := p.once(ctx, class, off, n, each)
		off, n = off+got, n-got
		if err == nil {
			continue
		}
		if ctx.Err() != nil || !fetch.Temporary(err) {
			return err
		}
		if err := sleep(ctx, 250*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

func (p *Path) once(ctx context.Context, class uplink.Class, off, n int64, each func(n int)) (got int64, err error) {
	rc, start, err := p.client.Blob(ctx, class, p.src, p.opts.Blob, off, n)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, rc.Close()) }()
	if start != off {
		return 0, fmt.Errorf("flow: asked for byte %d, got %d", off, start)
	}
	buf := make([]byte, 32<<10)
	for {
		k, err := rc.Read(buf)
		got += int64(k)
		if k > 0 && each != nil {
			each(k)
		}
		if errors.Is(err, io.EOF) {
			return got, nil
		}
		if err != nil {
			return got, err
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Bulk brings the next total bytes as the fetcher completes images: with as
// many requests at a time as the meter says pay, each of span round trips'
// worth, and the next one made while the last bytes are still to come. each,
// if set, is told of every piece that arrived; calls may be concurrent.
func (p *Path) Bulk(ctx context.Context, class uplink.Class, total int64, span int64, each func(n int)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var work sync.WaitGroup
	defer work.Wait()
	wake := make(chan struct{}, 1)
	ready := func() {
		select {
		case wake <- struct{}{}:
		default:
		}
	}
	var active, ending atomic.Int64 // requests; of these, those whose last bytes are on their way
	made := int64(0)
	for left := total; ctx.Err() == nil; {
		bdp := max(p.Meter.BandwidthDelay(), 16<<10)
		n := int64(p.Meter.Parallel(class))
		for left > 0 && active.Load()-min(ending.Load(), 2) < n {
			size := min(left, min(span*bdp, max(left/n, bdp)))
			if made++; made < n { // not all of them end at once
				size = min(size, size*made/n)
			}
			off := p.take(&size)
			left -= size
			active.Add(1)
			work.Go(func() {
				toCome, isEnding := size, false
				err := p.Read(ctx, class, off, size, func(k int) {
					if toCome -= int64(k); toCome < bdp/n && !isEnding {
						isEnding = true
						ending.Add(1)
					}
					if each != nil {
						each(k)
					}
					ready()
				})
				if isEnding {
					ending.Add(-1)
				}
				if err != nil {
					cancel(err)
				}
				active.Add(-1)
				ready()
			})
		}
		if left == 0 && active.Load() == 0 {
			return nil
		}
		select {
		case <-wake:
		case <-ctx.Done():
		}
	}
	return context.Cause(ctx)
}

// take returns where the next n bytes are, in turns around the blob.
func (p *Path) take(n *int64) (off int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.next >= p.opts.Size {
		p.next = 0
	}
	*n = min(*n, p.opts.Size-p.next)
	off = p.next
	p.next += *n
	return off
}
