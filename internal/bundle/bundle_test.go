package bundle

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/iotest"

	"aead.dev/minisign"
	"filippo.io/age"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// content returns bytes of which half compress.
func content(seed uint64, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b) // never fails
	for i := range n / 2 {
		b[i] &= 3
	}
	return b
}

// write writes a bundle of blobs with these sizes.
func write(tb testing.TB, o Options, sizes ...int) ([]byte, *Contents) {
	tb.Helper()
	o.WorkDir = tb.TempDir()
	w, err := Create(o)
	must(tb, err)
	defer func() { must(tb, w.Close()) }()
	doc := Document{"application/vnd.oci.image.manifest.v1+json", []byte(`{"schemaVersion":2}`)}
	must(tb, w.Add(KindDocument, PriorityNames, doc.Encode()))
	for i, n := range sizes {
		b := content(uint64(i), n)
		must(tb, w.AddBlob(KindBlob, PriorityRest, Part{Sum: sha256.Sum256(b), Size: int64(n)}, bytes.NewReader(b)))
	}
	c := &Contents{Images: []Image{{Name: "registry.example/app:1", Digest: digest.FromBytes(doc.Body), MediaType: doc.MediaType, Size: int64(len(doc.Body))}}}
	var out bytes.Buffer
	_, err = w.Finish(c, &out)
	must(tb, err)
	return out.Bytes(), c
}

// read returns the numbers of the records that arrive, and the error at the end.
func read(tb testing.TB, r io.Reader, ids ...age.Identity) (numbers []uint32, rd *Reader, err error) {
	tb.Helper()
	rd, err = NewReader(r)
	must(tb, err)
	defer rd.Close()
	rd.Identities = ids
	if _, err := rd.Begin(); err != nil {
		return nil, rd, err
	}
	for {
		rec, err := rd.Next()
		if err != nil {
			return numbers, rd, err
		}
		if rec.Kind == KindBlob {
			p, err := ParsePart(KindBlob, rec.Payload)
			must(tb, err)
			if len(p.Data) == 0 && p.Size > 0 {
				tb.Error("an empty part")
			}
		}
		numbers = append(numbers, rec.Number)
	}
}

func upTo(n uint32) (all []uint32) {
	for i := range n {
		all = append(all, i+1)
	}
	return all
}

func TestEverythingThatWasWrittenIsRead(t *testing.T) {
	for _, sizes := range [][]int{nil, {0}, {1}, {PartSize}, {PartSize + 1, 0, 7, 3*PartSize - 1}} {
		raw, c := write(t, Options{}, sizes...)
		for _, r := range []io.Reader{bytes.NewReader(raw), iotest.HalfReader(bytes.NewReader(raw))} {
			got, rd, err := read(t, r)
			if !errors.Is(err, io.EOF) || !slices.Equal(got, upTo(uint32(len(c.Records)))) || len(rd.Damage()) > 0 {
				t.Fatalf("%v: %v, %v, %v", sizes, got, err, rd.Damage())
			}
			c.Records, rd.contents.Records = nil, nil
			if diff := cmp.Diff(c, rd.contents, cmp.AllowUnexported(Entry{})); diff != "" {
				t.Error(diff)
			}
			c.Records = make([]Entry, len(got))
		}
	}
}

func TestTheSameContentMakesTheSameBytes(t *testing.T) {
	a, _ := write(t, Options{}, 100, 200_000)
	b, _ := write(t, Options{}, 100, 200_000)
	if !bytes.Equal(a, b) {
		t.Error("two bundles of the same differ")
	}
}

// Wherever a bundle is cut off, what came before is there.
func TestAnyPrefixIsOfUse(t *testing.T) {
	raw, c := write(t, Options{}, 600, 10, 900, 40)
	rd, err := NewReader(bytes.NewReader(raw))
	must(t, err)
	defer rd.Close()
	_, err = rd.Begin()
	must(t, err)
	var ends []int64
	for i := range c.Records {
		ends = append(ends, rd.Offset(uint32(i+1))+c.Records[i].Len())
	}
	begin := len(rd.Manifest())
	for n := 0; n < len(raw); n += 3 {
		got, rd, err := read(t, bytes.NewReader(raw[:n]))
		if n < begin {
			if !errors.Is(err, ErrNotBundle) && !errors.Is(err, ErrDamaged) {
				t.Fatalf("%d bytes: %v", n, err)
			}
			continue
		}
		want := uint32(0)
		for _, e := range ends {
			if e <= int64(n) {
				want++
			}
		}
		if !slices.Equal(got, upTo(want)) {
			t.Fatalf("%d bytes: records %v, want %d", n, got, want)
		}
		if err == nil || len(rd.Damage()) > 0 {
			t.Fatalf("%d bytes: what is cut off is not damage: %v", n, rd.Damage())
		}
		whole := want == uint32(len(ends))
		if errors.Is(err, io.ErrUnexpectedEOF) == whole || errors.Is(err, io.EOF) != whole {
			t.Fatalf("%d bytes: %v", n, err)
		}
	}
}

// A flipped bit costs the record that it is in.
func TestDamageCostsOnlyWhatItHit(t *testing.T) {
	raw, c := write(t, Options{}, 600, 10, 900, 40)
	rd, err := NewReader(bytes.NewReader(raw))
	must(t, err)
	defer rd.Close()
	_, err = rd.Begin()
	must(t, err)
	n := uint32(len(c.Records))
	for at := 0; at < len(raw); at += 5 {
		b := bytes.Clone(raw)
		b[at] ^= 1 << (at % 8)
		hit := uint32(0) // the manifest, or its copy
		for i := range n {
			if off := rd.Offset(i + 1); int64(at) >= off && int64(at) < off+c.Records[i].Len() {
				hit = i + 1
			}
		}
		if at < len(rd.Manifest()) {
			late, err := NewReader(bytes.NewReader(b))
			must(t, err)
			if _, err := late.Begin(); err != nil || !late.Late() {
				t.Fatalf("byte %d: the copy of the manifest is not found: %v", at, err)
			}
			late.Resume(bytes.NewReader(b), 0)
			for want := uint32(1); want <= n; want++ {
				if rec, err := late.Next(); err != nil || rec.Number != want {
					t.Fatalf("byte %d: record %d, want %d: %v", at, rec.Number, want, err)
				}
			}
			late.Close()
			continue
		}
		got, r, err := read(t, bytes.NewReader(b))
		if !errors.Is(err, io.EOF) || !slices.Equal(got, slices.DeleteFunc(upTo(n), func(x uint32) bool { return x == hit })) {
			t.Fatalf("byte %d, in record %d: records %v, %v", at, hit, got, err)
		}
		if hit > 0 && (len(r.Damage()) != 1 || r.Damage()[0] != Damage{rd.Offset(hit), c.Records[hit-1].Len()}) {
			t.Fatalf("byte %d: damage %v", at, r.Damage())
		}
	}
}

// Bytes that are lost or put in between cost the records around them.
func TestBytesThatAreLostOrAdded(t *testing.T) {
	raw, c := write(t, Options{}, 3000, 10, 5000, 400)
	n := len(c.Records)
	for at := 700; at < len(raw)-1000; at += 97 {
		less := slices.Delete(bytes.Clone(raw), at, at+33)
		more := slices.Insert(bytes.Clone(raw), at, content(uint64(at), 77)...)
		for _, b := range [][]byte{less, more} {
			got, _, err := read(t, bytes.NewReader(b))
			if len(got) < n-2 || !slices.IsSorted(got) {
				t.Fatalf("byte %d: records %v, %v", at, got, err)
			}
		}
	}
}

func TestSignatures(t *testing.T) {
	pub, secret, err := minisign.GenerateKey(nil)
	must(t, err)
	other, _, err := minisign.GenerateKey(nil)
	must(t, err)
	text, err := secret.MarshalText()
	must(t, err)
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "key"), text, 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "key.pub"), []byte("untrusted comment: minisign public key\n"+pub.String()+"\n"), 0o600))
	signer, err := ReadSigner(filepath.Join(dir, "key"), nil)
	must(t, err)
	good, err := ParseKey(filepath.Join(dir, "key.pub"))
	must(t, err)
	bad, err := ParseKey(other.String())
	must(t, err)

	raw, _ := write(t, Options{Sign: signer}, 1000)
	_, rd, err := read(t, bytes.NewReader(raw))
	if !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	if k, err := rd.Signature().Verify([]Key{bad, good}); err != nil || k.ID() != good.ID() {
		t.Errorf("signed by %s: %v", k.ID(), err)
	}
	if !minisign.Verify(pub, rd.Signature().Body(), rd.Signature().Text()) {
		t.Error("minisign doesn't take the signature")
	}
	if _, err := rd.Signature().Verify([]Key{bad}); !errors.Is(err, ErrSignature) {
		t.Errorf("another's key: %v", err)
	}
	plain, _ := write(t, Options{}, 1000)
	_, unsigned, _ := read(t, bytes.NewReader(plain))
	if _, err := unsigned.Signature().Verify([]Key{good}); !errors.Is(err, ErrSignature) {
		t.Errorf("no signature: %v", err)
	}
	// The signature of another bundle.
	raw2, _ := write(t, Options{Sign: signer}, 1001)
	_, rd2, _ := read(t, bytes.NewReader(raw2))
	forged := Signature{text: rd2.Signature().Text(), body: rd.Signature().Body()}
	if _, err := forged.Verify([]Key{good}); !errors.Is(err, ErrSignature) {
		t.Errorf("another bundle's signature: %v", err)
	}
}

// A key with a password, as minisign makes them by default: that takes 1 GiB of memory
// and seconds, on purpose.
func TestKeysWithAPassword(t *testing.T) {
	if os.Getenv("AIRSTREAM_SOAK") == "" {
		t.Skip("without AIRSTREAM_SOAK=1: it takes 1 GiB of memory")
	}
	pub, secret, err := minisign.GenerateKey(nil)
	must(t, err)
	locked, err := minisign.EncryptKey("secret", secret)
	must(t, err)
	file := filepath.Join(t.TempDir(), "key")
	must(t, os.WriteFile(file, locked, 0o600))
	if _, err := ReadSigner(file, func() (string, error) { return "wrong", nil }); err == nil {
		t.Error("a wrong password opens the key")
	}
	signer, err := ReadSigner(file, func() (string, error) { return "secret", nil })
	must(t, err)
	if !minisign.Verify(pub, []byte("body"), signer.sign(ID{}, []byte("body"))) {
		t.Error("minisign doesn't take the signature")
	}
}

func TestEncryptedBundles(t *testing.T) {
	me, err := age.GenerateX25519Identity()
	must(t, err)
	you, err := age.GenerateX25519Identity()
	must(t, err)
	secret := bytes.Repeat([]byte("the content that nobody is to see "), 50)
	o := Options{Recipients: []age.Recipient{me.Recipient(), you.Recipient()}, WorkDir: t.TempDir()}
	w, err := Create(o)
	must(t, err)
	defer func() { must(t, w.Close()) }()
	for i := range 4 {
		must(t, w.AddBlob(KindBlob, PriorityRest, Part{Sum: sha256.Sum256(append(secret, byte(i))), Size: int64(len(secret) + 1)}, bytes.NewReader(append(secret, byte(i)))))
	}
	var out bytes.Buffer
	_, err = w.Finish(&Contents{Files: []File{{Path: "etc/hidden-name", Digest: digest.FromBytes(secret)}}}, &out)
	must(t, err)
	raw := out.Bytes()
	if bytes.Contains(raw, []byte("hidden-name")) || bytes.Contains(raw, secret[:20]) {
		t.Error("it can be read")
	}
	for _, id := range []age.Identity{me, you} {
		got, rd, err := read(t, bytes.NewReader(raw), id)
		if !errors.Is(err, io.EOF) || !slices.Equal(got, upTo(4)) || !rd.Sealed() {
			t.Errorf("%v, %v", got, err)
		}
	}
	thief, err := age.GenerateX25519Identity()
	must(t, err)
	for _, ids := range [][]age.Identity{nil, {thief}} {
		if _, _, err := read(t, bytes.NewReader(raw), ids...); !errors.Is(err, ErrSealed) {
			t.Errorf("%v", err)
		}
	}
	raw[len(raw)/2] ^= 1 // in a record: the others are there
	if got, _, err := read(t, bytes.NewReader(raw), me); len(got) != 3 || !errors.Is(err, io.EOF) {
		t.Errorf("damaged: %v, %v", got, err)
	}
}

// A header may claim what it wants: memory follows what really comes.
func TestHostileHeaders(t *testing.T) {
	raw, _ := write(t, Options{}, 100)
	huge := header{kind: KindManifest, flags: flagZstd, size: maxManifest, raw: MaxBody}
	over := header{kind: KindBlob, size: MaxPayload + 1}
	for name, b := range map[string][]byte{
		"nothing":         {},
		"no bundle":       bytes.Repeat([]byte("hello "), 100_000),
		"magics":          bytes.Repeat([]byte(magic), 50_000),
		"a huge manifest": huge.append(nil),
		"huge ones":       bytes.Repeat(huge.append(nil), 1000),
		"a huge record":   over.append(nil),
		"other version":   append([]byte(magic+"\x02"), raw[5:200]...),
	} {
		if _, _, err := read(t, bytes.NewReader(b)); !errors.Is(err, ErrNotBundle) && !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, body := range map[string]string{
		"many records": bodyMagic + "\x02\x00\x00\x00{}\xff\xff\xff\xff",
		"long JSON":    bodyMagic + "\xff\xff\xff\xff{}",
		"no JSON":      bodyMagic + "\x02\x00\x00\x00[]\x00\x00\x00\x00",
		"bad digest":   jsonBody(`{"images":[{"name":"a","mediaType":"b","digest":"sha256:1"}]}`),
		"bad path":     jsonBody(fmt.Sprintf(`{"files":[{"path":"../a","digest":%q}]}`, digest.FromString("a"))),
	} {
		if _, err := parseBody([]byte(body)); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func jsonBody(text string) string {
	b := le.AppendUint32([]byte(bodyMagic), uint32(len(text)))
	return string(le.AppendUint32(append(b, text...), 0))
}
