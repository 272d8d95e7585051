package bundle

import (
	"fmt"
	"os"
	"strings"

	"aead.dev/minisign"
)

// Signer signs bundles. Its keys are minisign's.
type Signer struct{ key minisign.PrivateKey }

// ReadSigner reads a secret key as minisign -G writes it; password is asked if the
// key is encrypted.
func ReadSigner(file string, password func() (string, error)) (*Signer, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("bundle: %w", err)
	}
	s := &Signer{}
	if minisign.IsEncrypted(text) {
		var word string
		if word, err = password(); err == nil {
			s.key, err = minisign.DecryptKey(word, text)
		}
	} else {
		err = s.key.UnmarshalText(text)
	}
	if err != nil {
		return nil, fmt.Errorf("bundle: secret key %s: %w", file, err)
	}
	return s, nil
}

func (s *Signer) sign(id ID, body []byte) []byte {
	return minisign.SignWithComments(s.key, body, "airstream bundle "+id.String(), "signature of an airstream bundle's manifest")
}

// Key is a public key, as minisign has it.
type Key struct{ key minisign.PublicKey }

// ParseKey reads a public key: the line that begins with RW, or a file's name.
func ParseKey(s string) (Key, error) {
	var k Key
	if strings.HasPrefix(s, "RW") && len(s) == 56 {
		if err := k.key.UnmarshalText([]byte(s)); err != nil {
			return k, fmt.Errorf("bundle: public key %q: %w", s, err)
		}
		return k, nil
	}
	var err error
	if k.key, err = minisign.PublicKeyFromFile(s); err != nil {
		return k, fmt.Errorf("bundle: public key %s: %w", s, err)
	}
	return k, nil
}

// ReadKeys reads a file of public keys, each on a line that begins with RW; other
// lines are comments.
func ReadKeys(file string) (keys []Key, err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("bundle: public keys: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); !strings.HasPrefix(line, "RW") {
			continue
		}
		k, err := ParseKey(line)
		if err != nil {
			return nil, err
		}
		keys = append(keys, k)
	}
	if len(keys) == 0 { // nobody is not anybody
		return nil, fmt.Errorf("bundle: %s holds no minisign public key", file)
	}
	return keys, nil
}

// ID returns the key's ID in hex digits, as minisign shows it.
func (k Key) ID() string { return fmt.Sprintf("%016X", k.key.ID()) }

// Signature is what a bundle says of who made it.
type Signature struct {
	text []byte
	body []byte
}

// Signed tells whether there is a signature at all.
func (s *Signature) Signed() bool { return len(s.text) > 0 }

// KeyID returns the ID of the key that the bundle claims to be signed with; empty:
// none, or a signature that makes no sense.
func (s *Signature) KeyID() string {
	var sig minisign.Signature
	if sig.UnmarshalText(s.text) != nil {
		return ""
	}
	return fmt.Sprintf("%016X", sig.KeyID)
}

// Text returns the signature as minisign writes it, and Body what it is of.
func (s *Signature) Text() []byte { return s.text }

// Body returns the bytes that were signed.
func (s *Signature) Body() []byte { return s.body }

// Verify returns the key that the bundle is signed with, of those that are
// trusted. Errors are ErrSignature.
func (s *Signature) Verify(trusted []Key) (Key, error) {
	if !s.Signed() {
		return Key{}, fmt.Errorf("bundle: %w: it is not signed", ErrSignature)
	}
	for _, k := range trusted {
		if s.KeyID() == k.ID() {
			if minisign.Verify(k.key, s.body, s.text) {
				return k, nil
			}
			return Key{}, fmt.Errorf("bundle: %w: it is not what key %s has signed", ErrSignature, k.ID())
		}
	}
	if s.KeyID() == "" {
		return Key{}, fmt.Errorf("bundle: %w: it can't be read", ErrSignature)
	}
	return Key{}, fmt.Errorf("bundle: %w: it is by key %s, which is not one of those that are trusted", ErrSignature, s.KeyID())
}
