package config

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// Settings are a configuration and where each part of it comes from.
type Settings struct {
	Node
	File string // that was read; "" if there was none
	from map[string]string
}

// Load returns the configuration in file, or in DefaultFile if file is empty,
// with the environment's variables over it. A named file that isn't there is
// an error; DefaultFile may be missing.
func Load(file string, environ []string) (Node, error) {
	s, err := Read(file, environ)
	return s.Node, err
}

// Read is Load, and tells also where each setting comes from.
func Read(file string, environ []string) (Settings, error) {
	s := Settings{Node: Default(), from: map[string]string{}}
	name := file
	if name == "" {
		name = DefaultFile
	}
	var lines map[string]int
	b, err := os.ReadFile(name)
	switch {
	case errors.Is(err, fs.ErrNotExist) && file == "":
	case err != nil:
		return s, fmt.Errorf("config: %w", err)
	default:
		s.File = name
		if lines, err = s.decode(b); err != nil {
			return s, fmt.Errorf("config: %s: %w", name, err)
		}
	}
	if err := s.environment(environ); err != nil {
		return s, fmt.Errorf("config: %w", err)
	}
	if s.Snapshotter.Address == "" {
		s.Snapshotter.Address = filepath.Join(s.State, "snapshotter.sock")
	}
	if err := s.validate(lines); err != nil {
		return s, fmt.Errorf("config: %w", err)
	}
	return s, nil
}

// decode reads a file's content, and returns the line of every key in it.
func (s *Settings) decode(b []byte) (lines map[string]int, err error) {
	if lines, err = decode(b, &s.Node); err != nil {
		return nil, err
	}
	for _, l := range s.leaves() {
		if line, ok := lines[l.key]; ok {
			s.from[l.key] = fmt.Sprintf("line %d", line)
		}
	}
	return lines, nil
}

// decode reads TOML into a pointer to a configuration, and returns the line of
// every key in it.
func decode(b []byte, into any) (lines map[string]int, err error) {
	d := toml.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	err = d.Decode(into)
	if unknown, ok := errors.AsType[*toml.StrictMissingError](err); ok && len(unknown.Errors) > 0 {
		var said []string
		for i := range unknown.Errors {
			e := &unknown.Errors[i]
			row, _ := e.Position()
			said = append(said, fmt.Sprintf("line %d: unknown key %s", row, strings.Join(e.Key(), ".")))
		}
		return nil, errors.New(strings.Join(said, "; "))
	}
	if wrong, ok := errors.AsType[*toml.DecodeError](err); ok {
		row, col := wrong.Position()
		return nil, fmt.Errorf("line %d, column %d: %s", row, col, strings.TrimPrefix(wrong.Error(), "toml: "))
	}
	if err != nil {
		return nil, err
	}
	if lines, err = keyLines(b); err != nil {
		return nil, err
	}
	var raw map[string]any
	if err := toml.Unmarshal(b, &raw); err != nil {
		return nil, err
	}
	return lines, unitless(reflect.TypeOf(into).Elem(), raw, lines)
}

// environment sets what variables say. One that begins as settings do and is
// none is an error, like an unknown key.
func (s *Settings) environment(environ []string) error {
	leaves := s.leaves()
	var errs []error
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		i := slices.IndexFunc(leaves, func(l leaf) bool { return l.variable() == name })
		switch {
		case i < 0 && misspelt(name, leaves):
			errs = append(errs, fmt.Errorf("%s: there is no such setting", name))
		case i < 0:
		default:
			if err := leaves[i].set(value); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", name, err))
			}
			s.from[leaves[i].key] = name
		}
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(errs...)
}

// misspelt tells whether a variable that is no setting was meant to be one: it
// begins as those of a section do.
func misspelt(name string, leaves []leaf) bool {
	return slices.ContainsFunc(leaves, func(l leaf) bool {
		section, _, ok := strings.Cut(l.key, ".")
		return ok && strings.HasPrefix(name, "AIRSTREAM_"+strings.ToUpper(section)+"_")
	})
}
