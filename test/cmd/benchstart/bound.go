package main

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/airstream-io/airstream/internal/annotation"
	"github.com/airstream-io/airstream/internal/chunk"
	"github.com/airstream-io/airstream/internal/toc"
	"github.com/airstream-io/airstream/internal/trace"
	"github.com/airstream-io/airstream/test/rig/images"
	"github.com/airstream-io/airstream/test/rig/link"
)

// ideal is the bound that is computed: a round trip, and the bytes at the rate
// of the link, without headers, without a beginning.
func ideal(p link.Profile, hot int64) time.Duration {
	rtt := (p.RTT + max(p.RTT, p.RTTMax)) / 2
	return rtt + time.Duration(float64(hot)*8/float64(p.Down)*float64(time.Second))
}

// lacking returns how many bytes the layers of an image have that another has
// none of.
func lacking(has, wants *images.Image) (n int64, err error) {
	known := map[v1.Hash]bool{}
	for _, i := range []*images.Image{has, wants} {
		img, err := i.OCI()
		if err != nil {
			return 0, err
		}
		m, err := img.Manifest()
		if err != nil {
			return 0, err
		}
		for _, l := range m.Layers {
			if i == has {
				known[l.Digest] = true
			} else if !known[l.Digest] {
				n += l.Size
			}
		}
	}
	return n, nil
}

// getHot measures one GET of as many bytes as the start reads of its layers,
// compressed, that the node does not have: nothing before it, nothing after it,
// over one TCP connection.
func getHot(ctx context.Context, b *bench, c cell) (result, error) {
	r := result{cell: c}
	older, newer := c.versions()
	known := map[chunk.ID]bool{}
	if c.Kind == update {
		if _, err := b.shore.hot(ctx, older, known); err != nil {
			return r, err
		}
	}
	var err error
	if r.Hot, err = b.shore.hot(ctx, newer, known); err != nil {
		return r, err
	}
	p, err := c.profile()
	if err != nil {
		return r, err
	}
	r.Ready, r.Down, r.Up, err = get(ctx, p, uint64(c.Run), r.Hot)
	r.Pull, r.Conns = r.Ready, 1
	return r, err
}

// hot returns how many bytes of its layers the plan of an image has, without
// those chunks that are known already, and adds its chunks to these.
func (s *shore) hot(ctx context.Context, image string, known map[chunk.ID]bool) (n int64, err error) {
	if _, err := s.publish(ctx, image, tracedTag); err != nil {
		return 0, err
	}
	img, err := s.published(ctx, image, tracedTag)
	if err != nil {
		return 0, err
	}
	m, err := img.Manifest()
	if err != nil {
		return 0, err
	}
	layers, err := img.Layers()
	if err != nil {
		return 0, err
	}
	for i, l := range layers {
		of, err := hotLayer(l, m.Layers[i], known)
		if err != nil {
			return 0, fmt.Errorf("layer %d of %s: %w", i+1, image, err)
		}
		n += of
	}
	return n, nil
}

func hotLayer(l v1.Layer, desc v1.Descriptor, known map[chunk.ID]bool) (n int64, err error) {
	hot := desc.Annotations[annotation.Hot]
	if hot == "" {
		return 0, nil
	}
	plan, err := trace.ParsePlan(hot, desc.Size)
	if err != nil {
		return 0, err
	}
	at, err := strconv.ParseInt(desc.Annotations[annotation.TOCOffset], 10, 64)
	if err != nil {
		return 0, err
	}
	blob, err := l.Compressed()
	if err != nil {
		return 0, err
	}
	defer blob.Close() //nolint:errcheck // only read
	tree, err := readTree(blob, at)
	if err != nil {
		return 0, err
	}
	return hotBytes(tree, plan, known), nil
}

// readTree reads the table of contents at an offset of a blob.
func readTree(blob io.Reader, at int64) (*toc.Tree, error) {
	if _, err := io.CopyN(io.Discard, blob, at); err != nil {
		return nil, err
	}
	z, err := gzip.NewReader(blob)
	if err != nil {
		return nil, err
	}
	file := tar.NewReader(z)
	if _, err := file.Next(); err != nil {
		return nil, err
	}
	return toc.Parse(io.LimitReader(file, toc.MaxJSONSize), at)
}

// hotBytes returns the size of those members in a plan that have a chunk that is
// not known, and adds their chunks.
func hotBytes(tree *toc.Tree, plan trace.Plan, known map[chunk.ID]bool) (n int64) {
	for m := range uint32(tree.NumMembers()) {
		member := tree.Member(m)
		planned := false
		for _, r := range plan {
			planned = planned || member.Offset >= r.Offset && member.Offset < r.Offset+r.Size
		}
		if !planned {
			continue
		}
		news := false
		for c, end := tree.MemberChunks(m); c < end; c++ {
			id := tree.Chunk(c).ID
			news = news || !known[id]
			known[id] = true
		}
		if news {
			n += member.End - member.Offset
		}
	}
	return n
}

// get moves size bytes over a link in one response, and returns how long that
// took and how many bytes crossed each way.
func get(ctx context.Context, p link.Profile, seed uint64, size int64) (took time.Duration, down, up int64, err error) {
	l, err := link.Start(ctx, link.Options{EmulatorOptions: link.EmulatorOptions{Profile: p, Seed: seed}})
	if err != nil {
		return 0, 0, 0, err
	}
	defer func() { err = errors.Join(err, l.Close()) }() //nolint:contextcheck // cleans up even when ctx has ended
	listener, err := l.Shore.Listen(ctx, "tcp", netip.AddrPortFrom(link.ShoreAddr, 0).String())
	if err != nil {
		return 0, 0, 0, err
	}
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
		_, _ = io.CopyN(w, rand.NewChaCha8([32]byte{}), size) // who asked sees what is missing
	})}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	defer func() {
		err = errors.Join(err, server.Close())
		<-served //nolint:errcheck // closed
	}()
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		return l.Node.Dial(ctx, network, address)
	}, DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+listener.Addr().String()+"/", nil)
	if err != nil {
		return 0, 0, 0, err
	}
	began := time.Now()
	resp, err := client.Do(req)
	if err != nil {
		return 0, 0, 0, notReady{err}
	}
	n, err := io.Copy(io.Discard, resp.Body)
	took = time.Since(began)
	if err = errors.Join(err, resp.Body.Close()); err == nil && n != size {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return 0, 0, 0, notReady{err}
	}
	stats, err := l.Stats(ctx)
	return took, int64(stats.Down.Delivered.Bytes), int64(stats.Up.Delivered.Bytes), err
}
