package trace_test

import (
	"bytes"
	"errors"
	"io"
	"math"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"

	"github.com/airstream-io/airstream/internal/trace"
)

func TestTraceRoundTrip(t *testing.T) {
	for name, want := range map[string]*trace.Trace{
		"empty": {Version: trace.Version, Reads: nil},
		"reads": {Version: trace.Version, Image: "example.com/app:1", Manifest: "sha256:ab", Layers: 3, Reads: []trace.Read{
			{Layer: 2, Path: "usr/bin/<app> & \"it\"", Offset: 0, Size: 65536},
			{Layer: 0, Path: "lib/ü\n", Offset: math.MaxInt64 - 1, Size: 1},
		}},
	} {
		var b bytes.Buffer
		if err := want.Encode(&b); err != nil {
			t.Fatal(err)
		}
		got, err := trace.Decode(bytes.NewReader(b.Bytes()))
		if err != nil {
			t.Fatalf("%s: %v\n%s", name, err, b.String())
		}
		if len(got.Reads) == 0 {
			got.Reads = nil
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		// A line for each read, between the first and the last.
		if n := strings.Count(b.String(), "\n"); n != len(want.Reads)+2 {
			t.Errorf("%s: %d lines:\n%s", name, n, b.String())
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	read := func(fields string) string {
		return `{"version":1,"image":"","manifest":"","layers":2,"reads":[{` + fields + `}]}`
	}
	two := func(fields string) string { return strings.Replace(read(fields), `"version":1`, `"version":2`, 1) }
	for name, test := range map[string]struct{ in, say string }{
		"nothing":               {"", "JSON"},
		"text":                  {"usr/bin/app\n", "invalid character"},
		"null":                  {"null", "version 0"},
		"no version":            {`{"layers":2,"reads":[]}`, "version 0"},
		"later version":         {`{"version":3,"layers":2,"runs":[]}`, "version 3, want 1 to 2"},
		"unknown field":         {`{"version":1,"layers":2,"runs":[]}`, `unknown field "runs"`},
		"cut short":             {`{"version":1,"layers":2,"reads":[{"layer":0,`, "unexpected end"},
		"two of them":           {`{"version":1,"layers":0,"reads":[]}{"version":1}`, "after top-level value"},
		"negative layers":       {`{"version":1,"layers":-1,"reads":[]}`, "-1 layers"},
		"layer too many":        {read(`"layer":2,"path":"a","offset":0,"size":1`), "read 0"},
		"negative layer":        {read(`"layer":-1,"path":"a","offset":0,"size":1`), "read 0"},
		"no path":               {read(`"layer":0,"offset":0,"size":1`), "read 0"},
		"negative offset":       {read(`"layer":0,"path":"a","offset":-1,"size":1`), "read 0"},
		"nothing read":          {read(`"layer":0,"path":"a","offset":0,"size":0`), "read 0"},
		"look-up in version 1":  {read(`"layer":0,"path":"a","lookup":"found"`), "read 0"},
		"unknown look-up":       {two(`"layer":0,"path":"a","lookup":"maybe"`), "read 0"},
		"look-up with a size":   {two(`"layer":0,"path":"a","lookup":"found","size":1`), "has an offset"},
		"chunk in version 1":    {read(`"layer":0,"path":"a","offset":0,"size":1,"chunk":"0123456789abcdef"`), "read 0"},
		"short chunk":           {two(`"layer":0,"path":"a","offset":0,"size":1,"chunk":"0123"`), "4 hex digits"},
		"chunk that is not hex": {two(`"layer":0,"path":"a","offset":0,"size":1,"chunk":"0123456789abcdeg"`), "invalid byte"},
		"unknown key of a read": {two(`"layer":0,"path":"a","offset":0,"size":1,"rank":1`), "unknown field"},
		"too many layers":       {`{"version":2,"layers":1025,"reads":[]}`, "1025 layers"},
		"negative size":         {read(`"layer":0,"path":"a","offset":5,"size":-1`), "read 0"},
		"end that overflows":    {read(`"layer":0,"path":"a","offset":9223372036854775807,"size":1`), "read 0"},
		"number too large":      {read(`"layer":0,"path":"a","offset":9223372036854775808,"size":1`), "cannot unmarshal"},
	} {
		if _, err := trace.Decode(strings.NewReader(test.in)); !errors.Is(err, trace.ErrInvalid) || !strings.Contains(err.Error(), test.say) {
			t.Errorf("%s: got %v, want ErrInvalid that says %q", name, err, test.say)
		}
	}
	if _, err := trace.Decode(io.LimitReader(spaces{}, trace.MaxSize+10)); !errors.Is(err, trace.ErrInvalid) || !strings.Contains(err.Error(), "more than") {
		t.Errorf("too large: got %v", err)
	}
	broken := errors.New("broken")
	if _, err := trace.Decode(iotest.ErrReader(broken)); !errors.Is(err, broken) || errors.Is(err, trace.ErrInvalid) {
		t.Errorf("a reader's error: got %v", err)
	}
}

type spaces struct{}

func (spaces) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"version":1,"image":"a","manifest":"b","layers":2,"reads":[{"layer":1,"path":"usr/bin/a","offset":0,"size":65536}]}`))
	f.Add([]byte(`{"version":1,"layers":0,"reads":[]}`))
	f.Add([]byte(`{"version":1,"layers":1,"reads":[{"layer":0,"path":"\ud800","offset":9223372036854775807,"size":1}]}`))
	f.Add([]byte(`{"version":1,"version":2}`))
	f.Add([]byte(`{"version":2,"layers":1,"reads":[{"layer":0,"path":"a","lookup":"absent"},{"layer":0,"path":"a","offset":0,"size":9,"chunk":"0123456789abcdef"}]}`))
	f.Add([]byte(`{"version":2,"layers":1,"reads":[null,{"layer":0,"path":".","lookup":"list","chunk":"0000000000000000"}]}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, b []byte) {
		tr, err := trace.Decode(bytes.NewReader(b))
		if err != nil {
			if !errors.Is(err, trace.ErrInvalid) {
				t.Fatalf("got %v, want ErrInvalid", err)
			}
			return
		}
		var out bytes.Buffer
		if err := tr.Encode(&out); err != nil {
			t.Fatal(err)
		}
		again, err := trace.Decode(&out)
		if err != nil {
			t.Fatal(err)
		}
		if len(tr.Reads) == 0 {
			tr.Reads, again.Reads = nil, nil
		}
		if diff := cmp.Diff(tr, again); diff != "" {
			t.Error(diff)
		}
	})
}
