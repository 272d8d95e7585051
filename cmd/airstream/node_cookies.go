package main

import (
	"bytes"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/airstream-io/airstream/internal/catalog"
	"github.com/airstream-io/airstream/internal/database"
	"github.com/airstream-io/airstream/internal/link"
)

// What a daemon was being sent when it ended, the next one is sent from there on: the
// cookies of its pulls are kept beside the catalog. A cookie promises only what is
// durable, so it is taken before the store is flushed and kept after that. What
// became durable later, the store knows.

const (
	// cookiesEvery is how often cookies are kept while something is pushed. A daemon
	// that is killed loses less: only the beginning of what broke off.
	cookiesEvery = 10 * time.Second
	// maxCookie is how large a cookie may be, in bytes. Larger ones hold the beginning
	// of a large table, which comes again.
	maxCookie = 4 << 20
)

var bucketCookies = []byte("pulls") // digest of a manifest to a link.Pull's cookie

// openCookies opens the cookies of earlier pulls.
func (s *onShore) openCookies(root string) (err error) {
	s.cookies, err = database.Open(filepath.Join(root, "pulls.db"), database.Options{Buckets: [][]byte{bucketCookies}, Logger: s.log})
	if err != nil {
		return fmt.Errorf("pulls: %w", err)
	}
	return nil
}

// keepCookies keeps the cookies of pulls now and then.
func (s *onShore) keepCookies() {
	for s.rest(cookiesEvery) {
		if err := s.saveCookies(); err != nil {
			s.log.Warn("how far images have come cannot be stored", slog.Any("error", err))
		}
	}
}

// saveCookies keeps how far each pull is that is not complete.
func (s *onShore) saveCookies() error {
	s.mu.Lock()
	pulls := append([]*shorePull(nil), s.pulls...)
	s.mu.Unlock()
	cookies := map[digest.Digest][]byte{}
	for _, p := range pulls {
		at := p.pull.Progress()
		d := p.manifest()
		if d == "" || at.Complete || at.Position == 0 || at.Position == at.Items {
			continue
		}
		if c := p.pull.Cookie(); len(c) > 0 && len(c) <= maxCookie {
			cookies[d] = c
		}
	}
	if len(cookies) == 0 {
		return nil
	}
	if err := s.n.store.Flush(); err != nil {
		return err
	}
	return s.cookies.Update(func(tx *database.Tx) error {
		for d, c := range cookies {
			if err := tx.Put(bucketCookies, []byte(d), c); err != nil {
				return err
			}
		}
		return nil
	})
}

// manifest returns the digest of the image's manifest, if it is known.
func (p *shorePull) manifest() digest.Digest {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.own.Digest != "":
		return p.own.Digest
	case len(p.known.manifest) > 0:
		return digest.FromBytes(p.known.manifest)
	}
	return ""
}

// dropCookie forgets how far a pull was: it is complete, or has failed.
func (s *onShore) dropCookie(p *shorePull) {
	d := p.manifest()
	if d == "" {
		return
	}
	if err := s.cookies.Update(func(tx *database.Tx) error { return tx.Delete(bucketCookies, []byte(d)) }); err != nil {
		s.log.Warn("how far an image had come cannot be forgotten", slog.Any("error", err))
	}
}

// goOn goes on with a pull of an earlier daemon. It is nil if there is none, or not all
// is here that it builds on.
func (s *onShore) goOn(src catalog.Source, img *catalog.Image, known knownImage) *shorePull {
	var cookie []byte
	err := s.cookies.View(func(tx *database.Tx) error {
		b, err := tx.Get(bucketCookies, []byte(img.Manifest))
		cookie = bytes.Clone(b)
		return err
	})
	if err != nil || len(cookie) == 0 {
		return nil
	}
	here := map[int][]uint32{}
	for layer, l := range img.Layers {
		if l.Slot == 0 {
			continue
		}
		tree, err := s.n.fetcher.TreeHere(l.Slot)
		if err != nil || tree == nil {
			return nil
		}
		if here[layer], err = s.n.fetcher.ChunksHere(l.Slot); err != nil {
			return nil
		}
	}
	p, req := s.newPull(src, img.Manifest.String(), known), s.request(src, img.Manifest.String(), known)
	return s.enlist(p, func() *link.Pull {
		pull, err := s.session.Resume(cookie, here, p)
		if err == nil {
			return pull
		}
		s.log.Info("an image is asked for anew", slog.String("manifest", img.Manifest.String()), slog.Any("error", err))
		return s.session.Pull(req, p)
	})
}
