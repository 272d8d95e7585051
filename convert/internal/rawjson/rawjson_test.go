package rawjson

import (
	"encoding/json"
	"errors"
	"testing"
)

func TestOnlyWhatIsSetChanges(t *testing.T) {
	const in = `{"z": 1.50, "history": [ {"created_by": "a <b> & \u00e9"} ], "rootfs": {"type":"layers", "diff_ids": ["x"], "new": null}, "a": 12345678901234567890}`
	o, err := Parse([]byte(in))
	if err != nil {
		t.Fatal(err)
	}
	rootfs, err := o.Object("rootfs")
	if err != nil {
		t.Fatal(err)
	}
	if err := rootfs.Set("diff_ids", []string{"y", "<z>"}); err != nil {
		t.Fatal(err)
	}
	if err := o.Set("rootfs", rootfs); err != nil {
		t.Fatal(err)
	}
	got, err := o.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"z":1.50,"history":[ {"created_by": "a <b> & \u00e9"} ],"rootfs":{"type":"layers","diff_ids":["y","<z>"],"new":null},"a":12345678901234567890}`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestParseRefuses(t *testing.T) {
	for _, in := range []string{``, `[]`, `{`, `{"a":}`, `{"a":1} {}`, `{"a":1}x`, `null`, `1`} {
		if _, err := Parse([]byte(in)); !errors.Is(err, ErrSyntax) {
			t.Errorf("%q: got %v, want ErrSyntax", in, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{`{}`, `{"a":1,"a":{"b":[1,2]}}`, `{"a" : "\ud800" , "b":null}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		o, err := Parse(in)
		if err != nil {
			return
		}
		out, err := o.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		if !json.Valid(out) {
			t.Errorf("%q became invalid: %q", in, out)
		}
		again, err := Parse(out)
		if err != nil {
			t.Fatal(err)
		}
		if twice, err := again.Bytes(); err != nil || string(twice) != string(out) {
			t.Errorf("%q became %q, then %q", in, out, twice)
		}
	})
}
