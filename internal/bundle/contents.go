package bundle

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"

	"github.com/opencontainers/go-digest"
)

// Contents is what a bundle says of itself.
type Contents struct {
	Images []Image `json:"images,omitempty"`
	Files  []File  `json:"files,omitempty"`
	// Bases are images of which this bundle leaves out what they have: it is complete
	// only where they are.
	Bases []Base `json:"bases,omitempty"`
	Raw   int64  `json:"raw"` // bytes of content, uncompressed, that the records make

	Records []Entry `json:"-"`
}

// Image is an image, or any other artifact of OCI, and the name that it is to get.
type Image struct {
	Name      string        `json:"name"` // "host/repo:tag", or "host/repo@sha256:…" if no tag is to mean it
	Digest    digest.Digest `json:"digest"`
	MediaType string        `json:"mediaType"`
	Size      int64         `json:"size"`            // bytes of the document
	Parts     []Manifest    `json:"parts,omitempty"` // of an index, those that are in the bundle; else itself
	Referrers []Referrer    `json:"referrers,omitempty"`
}

// Manifest is one platform's image.
type Manifest struct {
	Digest   digest.Digest `json:"digest"`
	Platform string        `json:"platform,omitempty"` // "linux/arm64/v8"
}

// Referrer is an artifact, a signature say, whose subject is an image.
type Referrer struct {
	Subject      digest.Digest `json:"subject"`
	Digest       digest.Digest `json:"digest"`
	MediaType    string        `json:"mediaType"`
	ArtifactType string        `json:"artifactType,omitempty"`
	Size         int64         `json:"size"`
	// Annotations are those that the registry's list of referrers gives.
	Annotations map[string]string `json:"annotations,omitempty"`
}

// File is a plain file.
type File struct {
	Path   string        `json:"path"` // relative, with slashes, without ".."
	Digest digest.Digest `json:"digest"`
	Size   int64         `json:"size"`
	Mode   uint32        `json:"mode"` // permission bits
}

// Base is an image that the receiver is thought to have.
type Base struct {
	Name   string        `json:"name"` // "host/repo@sha256:…"
	Digest digest.Digest `json:"digest"`
}

// Entry is what the manifest says of one record.
type Entry struct {
	Kind     Kind
	Priority uint8
	flags    uint8
	Size     uint32 // bytes as it crosses, without the header
	Raw      uint32 // bytes, unpacked
	Sum      [sha256.Size]byte
}

// Limits on the JSON: a list of nothing would make much of little.
const (
	maxJSON   = 4 << 20 // bytes, several thousand images
	maxCommas = 200_000
)

const entrySize = 12 + sha256.Size

// Len returns how many bytes a record takes in the bundle.
func (e *Entry) Len() int64 { return headerSize + int64(e.Size) }

// Bytes returns how many bytes all records but the manifest take.
func (c *Contents) Bytes() int64 {
	var n int64
	for i := range c.Records {
		n += c.Records[i].Len()
	}
	return n
}

// body returns what is signed.
func (c *Contents) body() ([]byte, error) {
	text, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	b := append([]byte(bodyMagic), 0, 0, 0, 0)
	le.PutUint32(b[len(bodyMagic):], uint32(len(text)))
	b = append(b, text...)
	b = le.AppendUint32(b, uint32(len(c.Records)))
	for i := range c.Records {
		e := &c.Records[i]
		b = append(b, byte(e.Kind), e.Priority, e.flags, 0)
		b = le.AppendUint32(b, e.Size)
		b = le.AppendUint32(b, e.Raw)
		b = append(b, e.Sum[:]...)
	}
	if len(b) > MaxBody || len(c.Records) > maxRecords || len(text) > maxJSON || bytes.Count(text, []byte{','}) > maxCommas {
		return nil, fmt.Errorf("bundle: %d images in %d records are more than one bundle holds; make several", len(c.Images), len(c.Records))
	}
	return b, nil
}

// parseBody reads what body wrote.
func parseBody(b []byte) (*Contents, error) {
	rest, ok := bytes.CutPrefix(b, []byte(bodyMagic))
	if !ok || len(rest) < 4 {
		return nil, damaged("the manifest's body has no header")
	}
	n := le.Uint32(rest)
	if rest = rest[4:]; uint64(n)+4 > uint64(len(rest)) {
		return nil, damaged("the manifest's JSON ends early")
	}
	if n > maxJSON || bytes.Count(rest[:n], []byte{','}) > maxCommas {
		return nil, damaged("the manifest's JSON has %d bytes, or lists too much", n)
	}
	c := &Contents{}
	if err := json.Unmarshal(rest[:n], c); err != nil {
		return nil, damaged("the manifest's JSON: %w", err)
	}
	count := le.Uint32(rest[n:])
	if rest = rest[n+4:]; uint64(count)*entrySize != uint64(len(rest)) || count > maxRecords {
		return nil, damaged("the manifest lists %d records in %d bytes", count, len(rest))
	}
	c.Records = make([]Entry, count)
	for i := range c.Records {
		p := rest[i*entrySize:]
		c.Records[i] = Entry{Kind: Kind(p[0]), Priority: p[1], flags: p[2], Size: le.Uint32(p[4:]), Raw: le.Uint32(p[8:]), Sum: [32]byte(p[12:entrySize])}
		if e := &c.Records[i]; e.Kind == KindManifest || e.Size > MaxPayload || e.Raw > MaxPayload {
			return nil, damaged("record %d of %d bytes, %d unpacked, is larger than records are", i+1, e.Size, e.Raw)
		}
	}
	return c, c.check()
}

// check refuses contents that no sender writes.
func (c *Contents) check() error {
	valid := func(what string, d digest.Digest) error {
		if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 {
			return damaged("%s has the digest %q", what, d)
		}
		return nil
	}
	for i := range c.Images {
		img := &c.Images[i]
		if err := valid("image "+img.Name, img.Digest); err != nil {
			return err
		}
		if img.Name == "" || img.MediaType == "" || len(img.MediaType) > 255 || img.Size < 0 {
			return damaged("image %d has no name, media type or size", i)
		}
		for _, m := range img.Parts {
			if err := valid("a part of image "+img.Name, m.Digest); err != nil {
				return err
			}
		}
		for _, r := range img.Referrers {
			if valid("", r.Digest) != nil || valid("", r.Subject) != nil {
				return damaged("a referrer of image %s has no digest", img.Name)
			}
		}
	}
	for i := range c.Files {
		f := &c.Files[i]
		if err := valid("file "+f.Path, f.Digest); err != nil {
			return err
		}
		if err := checkPath(f.Path); err != nil {
			return err
		}
	}
	for i := range c.Bases {
		if err := valid("base "+c.Bases[i].Name, c.Bases[i].Digest); err != nil {
			return err
		}
	}
	return nil
}

func idOf(body []byte) ID {
	sum := sha256.Sum256(body)
	return ID(sum[:8])
}
