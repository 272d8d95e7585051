package config

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// TOML returns the configuration as a file that says all of it, each setting
// with where it comes from.
func (s *Settings) TOML() (string, error) {
	var b strings.Builder
	if s.File != "" {
		fmt.Fprintf(&b, "# Lines are those of %s.\n\n", s.File)
	}
	section := ""
	for _, l := range s.leaves() {
		if i := strings.LastIndex(l.key, "."); i >= 0 && l.key[:i] != section {
			section = l.key[:i]
			fmt.Fprintf(&b, "\n[%s]\n", section)
		}
		line, err := toml.Marshal(map[string]any{l.key[strings.LastIndex(l.key, ".")+1:]: l.value.Interface()})
		if err != nil {
			return "", fmt.Errorf("config: show %s: %w", l.key, err)
		}
		fmt.Fprintf(&b, "%-40s # %s\n", bytes.TrimSpace(line), cmp.Or(s.from[l.key], "default"))
	}
	var tables errTables
	for _, r := range s.Mirror.Rewrite {
		tables.add("[[mirror.rewrite]]", r)
	}
	for _, w := range s.Limits.Window {
		tables.add("[[limits.window]]", w)
	}
	for _, host := range slices.Sorted(maps.Keys(s.Registry)) {
		tables.add("["+join("registry", host)+"]", s.Registry[host])
	}
	if tables.err != nil {
		return "", fmt.Errorf("config: show: %w", tables.err)
	}
	b.Write(tables.text)
	return b.String(), nil
}

// errTables are tables in TOML, or the error of the first that can't be one.
type errTables struct {
	text []byte
	err  error
}

func (t *errTables) add(header string, table any) {
	b, err := toml.Marshal(table)
	t.err = cmp.Or(t.err, err)
	t.text = append(append(t.text, "\n"+header+"\n"...), b...)
}

// Map returns the configuration with the keys and values that TOML has.
func (s *Settings) Map() (map[string]any, error) {
	b, err := toml.Marshal(s.Node)
	if err != nil {
		return nil, fmt.Errorf("config: show: %w", err)
	}
	var m map[string]any
	if err := toml.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("config: show: %w", err)
	}
	return m, nil
}

// Changed returns the keys whose values differ between two configurations, in
// their order; lists of tables and [registry] as one key each.
func Changed(a, b *Node) []string {
	var keys []string
	other := b.leaves()
	for i, l := range a.leaves() {
		if !l.value.Equal(other[i].value) {
			keys = append(keys, l.key)
		}
	}
	if !slices.Equal(a.Mirror.Rewrite, b.Mirror.Rewrite) {
		keys = append(keys, "mirror.rewrite")
	}
	if !slices.EqualFunc(a.Limits.Window, b.Limits.Window, func(x, y Window) bool { return x.From == y.From && x.To == y.To && slices.Equal(x.Days, y.Days) }) {
		keys = append(keys, "limits.window")
	}
	if !reflect.DeepEqual(a.Registry, b.Registry) {
		keys = append(keys, "registry")
	}
	return keys
}
