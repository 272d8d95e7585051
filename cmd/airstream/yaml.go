package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// printYAML writes JSON as block YAML, in the same order. Strings are written
// as JSON writes them, which YAML reads too.
func printYAML(w io.Writer, raw []byte) error {
	var b strings.Builder
	dec := json.NewDecoder(strings.NewReader(string(raw)))
	dec.UseNumber()
	if err := yamlValue(&b, dec, 0, false); err != nil {
		return err
	}
	_, err := io.WriteString(w, strings.TrimPrefix(b.String(), "\n"))
	return err
}

func yamlValue(b *strings.Builder, dec *json.Decoder, depth int, inList bool) error {
	tok, err := dec.Token()
	if err != nil {
		return err
	}
	delim, ok := tok.(json.Delim)
	if !ok {
		quoted, err := json.Marshal(tok)
		if err != nil {
			return err
		}
		fmt.Fprintf(b, " %s\n", quoted)
		return nil
	}
	if !dec.More() {
		b.WriteString(map[json.Delim]string{'{': " {}\n", '[': " []\n"}[delim])
		_, err = dec.Token()
		return err
	}
	if !inList {
		b.WriteByte('\n')
	}
	for first := true; dec.More(); first = false {
		switch {
		case inList && first:
			b.WriteByte(' ')
		default:
			b.WriteString(strings.Repeat("  ", depth))
		}
		if delim == '[' {
			b.WriteByte('-')
		} else {
			key, err := dec.Token()
			if err != nil {
				return err
			}
			fmt.Fprintf(b, "%s:", yamlKey(fmt.Sprint(key)))
		}
		if err := yamlValue(b, dec, depth+1, delim == '['); err != nil {
			return err
		}
	}
	_, err = dec.Token()
	return err
}

func yamlKey(s string) string {
	if strings.ContainsAny(s, ":/ \"'") {
		return strconv.Quote(s)
	}
	return s
}
