package config

import (
	"encoding"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2/unstable"
)

// leaf is a setting that stands alone: every key but those in [registry] and
// in lists of tables.
type leaf struct {
	key   string // "mirror.patience"
	value reflect.Value
}

// leaves returns the settings of n in their order. Setting them changes n.
func (n *Node) leaves() []leaf {
	var all []leaf
	var walk func(prefix string, v reflect.Value)
	walk = func(prefix string, v reflect.Value) {
		for i := range v.NumField() {
			f, key := v.Field(i), prefix+tomlName(v.Type().Field(i))
			switch {
			case isText(f.Type()):
				all = append(all, leaf{key, f})
			case f.Kind() == reflect.Struct:
				walk(key+".", f)
			case f.Kind() == reflect.String, f.Kind() == reflect.Bool:
				all = append(all, leaf{key, f})
			}
		}
	}
	walk("", reflect.ValueOf(n).Elem())
	return all
}

func tomlName(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("toml"), ",")
	return name
}

func isText(t reflect.Type) bool {
	return reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
}

// variable is the name of the setting in the environment.
func (l leaf) variable() string {
	return "AIRSTREAM_" + strings.ToUpper(strings.ReplaceAll(l.key, ".", "_"))
}

func (l leaf) set(s string) error {
	if text, ok := reflect.TypeAssert[encoding.TextUnmarshaler](l.value.Addr()); ok {
		return text.UnmarshalText([]byte(s))
	}
	if l.value.Kind() == reflect.Bool {
		if s != "true" && s != "false" {
			return fmt.Errorf("%q is neither true nor false", s)
		}
		l.value.SetBool(s == "true")
		return nil
	}
	l.value.SetString(s)
	return nil
}

// unitless finds numbers where a text with a unit belongs. The TOML library
// would take 256 for 256 of the smallest unit.
func unitless(of reflect.Type, raw map[string]any, lines map[string]int) error {
	var errs []error
	var walk func(key string, t reflect.Type, raw any)
	walk = func(key string, t reflect.Type, raw any) {
		if isText(t) {
			if _, ok := raw.(string); !ok {
				errs = append(errs, fmt.Errorf("line %d: %s: %v needs quotes and a unit, as in the example in deploy", lines[key], key, raw))
			}
			return
		}
		switch raw := raw.(type) {
		case map[string]any:
			for i := range numField(t) {
				f := t.Field(i)
				if v, ok := raw[tomlName(f)]; ok {
					walk(strings.TrimPrefix(key+"."+tomlName(f), "."), f.Type, v)
				}
			}
		case []any:
			for i, v := range raw {
				walk(fmt.Sprintf("%s[%d]", key, i), t.Elem(), v)
			}
		}
	}
	walk("", of, raw)
	return errors.Join(errs...)
}

// numField is 0 for what is no struct: the map of registries has no units.
func numField(t reflect.Type) int {
	if t.Kind() != reflect.Struct {
		return 0
	}
	return t.NumField()
}

// keyLines returns the line of every key and table of a TOML text. Keys are
// written as in leaf; a part that is not plain is quoted, and tables of a list
// are counted: `registry."r.example:5000".url`, "limits.window[0].from".
func keyLines(b []byte) (map[string]int, error) {
	lines := map[string]int{}
	count := map[string]int{}
	p := unstable.Parser{}
	p.Reset(b)
	table := ""
	for p.NextExpression() {
		e := p.Expression()
		key, line := "", 0
		for it := e.Key(); it.Next(); {
			k := it.Node()
			if key = join(key, string(k.Data)); line == 0 {
				line = p.Shape(k.Raw).Start.Line
			}
		}
		switch e.Kind {
		case unstable.Table:
			table = key
		case unstable.ArrayTable:
			table = key + "[" + strconv.Itoa(count[key]) + "]"
			count[key]++
		case unstable.KeyValue:
			if table != "" {
				key = table + "." + key
			}
		default:
			continue
		}
		if e.Kind != unstable.KeyValue {
			key = table
		}
		lines[key] = line
	}
	return lines, p.Error()
}

func join(key, part string) string {
	if strings.ContainsFunc(part, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '_' && r != '-'
	}) || part == "" || key == "registry" {
		part = strconv.Quote(part)
	}
	if key == "" {
		return part
	}
	return key + "." + part
}
