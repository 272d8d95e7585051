// Package rawjson changes single members of a JSON object and leaves the rest
// as it is: order, unknown members, the digits of numbers.
//
// Manifests and configs are named by the hash of their bytes and carry fields
// that no struct of ours knows. Decoding them into a struct and back would
// lose these; here only what is set changes.
package rawjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
)

// ErrSyntax says that bytes are not one JSON object.
var ErrSyntax = errors.New("not a JSON object")

// Object is a JSON object as a list of members in their order.
type Object struct {
	keys   []string
	values []json.RawMessage
}

// Parse reads one object and nothing behind it. Of members with equal names
// the last one counts, as in encoding/json, and the others are dropped.
func Parse(raw []byte) (*Object, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	tok, err := dec.Token()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSyntax, err)
	}
	if tok != json.Delim('{') {
		return nil, ErrSyntax
	}
	o := &Object{}
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrSyntax, err)
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrSyntax, err)
		}
		name, ok := key.(string)
		if !ok {
			return nil, ErrSyntax
		}
		o.set(name, value)
	}
	if _, err := dec.Token(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSyntax, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: something follows it", ErrSyntax)
	}
	return o, nil
}

// Has tells whether the object has a member name.
func (o *Object) Has(name string) bool { return slices.Contains(o.keys, name) }

// Get decodes the member name into v, and leaves v alone if there is none.
func (o *Object) Get(name string, v any) error {
	i := slices.Index(o.keys, name)
	if i < 0 {
		return nil
	}
	if err := json.Unmarshal(o.values[i], v); err != nil {
		return fmt.Errorf("member %q: %w", name, err)
	}
	return nil
}

// Object returns the member name as an Object of its own, an empty one if
// there is none.
func (o *Object) Object(name string) (*Object, error) {
	i := slices.Index(o.keys, name)
	if i < 0 || string(o.values[i]) == "null" {
		return &Object{}, nil
	}
	c, err := Parse(o.values[i])
	if err != nil {
		return nil, fmt.Errorf("member %q: %w", name, err)
	}
	return c, nil
}

// Objects returns the member name, a list of objects.
func (o *Object) Objects(name string) ([]*Object, error) {
	var raw []json.RawMessage
	if err := o.Get(name, &raw); err != nil {
		return nil, err
	}
	list := make([]*Object, len(raw))
	for i, r := range raw {
		var err error
		if list[i], err = Parse(r); err != nil {
			return nil, fmt.Errorf("member %q: %d: %w", name, i, err)
		}
	}
	return list, nil
}

// Set gives the member name the value v, in its place if it exists and at the
// end if not.
func (o *Object) Set(name string, v any) error {
	raw, err := marshal(v)
	if err != nil {
		return fmt.Errorf("member %q: %w", name, err)
	}
	o.set(name, raw)
	return nil
}

func (o *Object) set(name string, raw json.RawMessage) {
	if i := slices.Index(o.keys, name); i >= 0 {
		o.values[i] = raw
		return
	}
	o.keys = append(o.keys, name)
	o.values = append(o.values, raw)
}

// Delete removes the member name.
func (o *Object) Delete(name string) {
	if i := slices.Index(o.keys, name); i >= 0 {
		o.keys = slices.Delete(o.keys, i, i+1)
		o.values = slices.Delete(o.values, i, i+1)
	}
}

// Bytes returns the object without white space between its members; what is
// within them is as it was read.
func (o *Object) Bytes() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, k := range o.keys {
		if i > 0 {
			b.WriteByte(',')
		}
		key, err := marshal(k)
		if err != nil {
			return nil, err
		}
		b.Write(key)
		b.WriteByte(':')
		b.Write(o.values[i])
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// marshal leaves <, > and & alone, and knows Objects.
func marshal(v any) (json.RawMessage, error) {
	switch v := v.(type) {
	case *Object:
		return v.Bytes()
	case []*Object:
		parts := make([][]byte, len(v))
		for i, o := range v {
			var err error
			if parts[i], err = o.Bytes(); err != nil {
				return nil, err
			}
		}
		return slices.Concat([]byte("["), bytes.Join(parts, []byte(",")), []byte("]")), nil
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimRight(b.Bytes(), "\n"), nil
}
