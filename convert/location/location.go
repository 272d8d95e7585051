// Package location knows the places that images are read from and written to:
//
//	registry.example/app:1.0        a registry; the name as docker writes it
//	oci:DIR, oci:DIR:TAG            an OCI image layout; also oci:DIR@sha256:…
//	docker-archive:FILE             what docker save writes; also …FILE:NAME:TAG
//
// A place hands out bytes as they are. Nothing is verified here: the caller
// knows the digest and size of all that it asks for, and checks. What a place
// writes is complete or absent, and an image gets its name last.
package location

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Errors that a caller tells apart. All are wrapped with the place and the
// object.
var (
	// ErrSyntax says that a string does not name a place.
	ErrSyntax = errors.New("not an image location")
	// ErrNotFound says that the place is there, and the image or blob is not.
	ErrNotFound = errors.New("not found")
	// ErrDenied says that the registry refused the credentials, or asked for
	// some where there were none.
	ErrDenied = errors.New("access denied")
	// ErrUnreachable says that the registry could not be asked, or broke off.
	// Trying again can help.
	ErrUnreachable = errors.New("cannot reach the registry")
	// ErrNotImage says that what is there is no image.
	ErrNotImage = errors.New("not an image")
	// ErrReadOnly says that a place can't be written to.
	ErrReadOnly = errors.New("cannot hold a converted image")
)

type kind int

const (
	registryKind kind = iota
	layoutKind
	archiveKind
)

// Location names an image in a place.
type Location struct {
	kind kind
	raw  string
	path string         // of a directory or file
	tag  string         // within it; "" means the only one
	hash string         // or a digest within it
	ref  name.Reference // in a registry
}

// Options say how registries are spoken to.
type Options struct {
	// PlainHTTP allows HTTP where a registry doesn't speak TLS. Registries on
	// the loopback interface may do so anyway.
	PlainHTTP bool
	// Keychain finds credentials; nil means docker's config and helpers.
	Keychain authn.Keychain
	// Transport carries requests; nil means one that honours HTTPS_PROXY.
	Transport http.RoundTripper
	// Jobs is how many blobs are read at once; 0 means 4.
	Jobs int
}

// Parse reads a location as the package comment has them. Errors are ErrSyntax.
func Parse(s string, o Options) (Location, error) {
	l := Location{raw: s}
	if rest, ok := strings.CutPrefix(s, "oci:"); ok {
		l.kind = layoutKind
		l.path, l.tag = rest, ""
		if path, hash, ok := strings.Cut(rest, "@"); ok {
			if _, err := v1.NewHash(hash); err != nil {
				return Location{}, fmt.Errorf("location: %q: %w: %w", s, ErrSyntax, err)
			}
			l.path, l.hash = path, hash
		} else if i := strings.LastIndexByte(rest, ':'); i > strings.LastIndexByte(rest, '/') {
			l.path, l.tag = rest[:i], rest[i+1:]
		}
		if l.path == "" {
			return Location{}, fmt.Errorf("location: %q: %w: no directory; write oci:DIR or oci:DIR:TAG", s, ErrSyntax)
		}
		return l, nil
	}
	if rest, ok := strings.CutPrefix(s, "docker-archive:"); ok {
		l.kind = archiveKind
		l.path, l.tag, _ = strings.Cut(rest, ":")
		if l.path == "" {
			return Location{}, fmt.Errorf("location: %q: %w: no file; write docker-archive:FILE", s, ErrSyntax)
		}
		return l, nil
	}
	s = strings.TrimPrefix(s, "docker://")
	var opts []name.Option
	if o.PlainHTTP {
		opts = append(opts, name.Insecure)
	}
	ref, err := name.ParseReference(s, opts...)
	if err != nil {
		return Location{}, fmt.Errorf("location: %q: %w: %w", s, ErrSyntax, err)
	}
	l.ref = ref
	return l, nil
}

// InLayout returns the location of the only image of the OCI image layout in a
// directory, whatever characters its name has.
func InLayout(dir string) Location { return Location{kind: layoutKind, raw: "oci:" + dir, path: dir} }

// String returns the location as it was written.
func (l Location) String() string { return l.raw }

// Host returns the name of the registry, or "" if the location isn't in one.
func (l Location) Host() string {
	if l.ref == nil {
		return ""
	}
	return l.ref.Context().RegistryStr()
}
