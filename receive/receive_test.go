package receive_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"aead.dev/minisign"

	"github.com/airstream-io/airstream/internal/bundle"
	"github.com/airstream-io/airstream/pack"
	"github.com/airstream-io/airstream/receive"
)

var activate = receive.Order{Activate: true}

func TestWhateverIsInABundleIsOnTheNode(t *testing.T) {
	for kind, converted := range map[string]bool{"converted": true, "plain": false, "chart": false} {
		t.Run(kind, func(t *testing.T) {
			img, _ := versions(t)
			if kind == "chart" {
				img = image(t, kind, file{"Chart.yaml", []byte("name: app")})
			}
			src, digest := source(t, img, converted)
			raw := write(t, pack.Order{Images: []pack.Image{{Name: name, Source: src}}})
			n := newNode(t)
			res := n.apply(t, raw, receive.Order{}, nil)
			if !res.Complete() || res.New != res.Records || n.means(t, name) != "" {
				t.Errorf("%+v; it means %s", res, n.means(t, name))
			}
			res = n.apply(t, raw, activate, nil)
			if n.means(t, name) != digest || res.New != 0 || !res.Images[0].Changed || !res.Images[0].Active {
				t.Errorf("%+v; it means %s, want %s", res, n.means(t, name), digest)
			}
			if res = n.apply(t, raw, activate, nil); res.New != 0 || res.Images[0].Changed {
				t.Errorf("again: %+v", res)
			}
			if left, err := n.Pending(); err != nil || len(left) > 0 {
				t.Errorf("left: %v, %v", left, err)
			}
		})
	}
}

// Wherever a bundle breaks off, the name means nothing new; and with the whole
// bundle it goes on.
func TestWhatBrokeOffGoesOn(t *testing.T) {
	img, _ := versions(t)
	src, digest := source(t, img, true)
	raw := write(t, pack.Order{Images: []pack.Image{{Name: name, Source: src}}})
	manifest, _ := records(t, raw)
	for _, cut := range []int{len(manifest), len(manifest) + 100, len(raw) / 4, len(raw) / 2, len(raw) * 3 / 4, len(raw) - len(manifest) - 1} {
		n := newNode(t)
		res := n.apply(t, raw[:cut], activate, receive.ErrIncomplete)
		if n.means(t, name) != "" || res.Complete() {
			t.Fatalf("%d bytes: %+v; it means %s", cut, res, n.means(t, name))
		}
		had := res.Received
		n.restart(t)
		if res = n.apply(t, raw, activate, nil); n.means(t, name) != digest || res.New != res.Records-had {
			t.Errorf("%d bytes, %d of %d records; then: %+v", cut, had, res.Records, res)
		}
	}
}

// What stops in the middle, by an error of the disk say, goes on.
func TestAnErrorOfTheDisk(t *testing.T) {
	img, _ := versions(t)
	src, digest := source(t, img, true)
	raw := write(t, pack.Order{Images: []pack.Image{{Name: name, Source: src}}})
	n := newNode(t)
	n.content.fail = 12
	if res := n.apply(t, raw, activate, errPush); n.means(t, name) != "" || res.Received == 0 {
		t.Errorf("%+v", res)
	}
	n.restart(t)
	if n.apply(t, raw, activate, nil); n.means(t, name) != digest {
		t.Errorf("it means %s", n.means(t, name))
	}
}

// Damage in a record costs that record, and another copy brings it.
func TestDamageCostsOneRecord(t *testing.T) {
	img, _ := versions(t)
	src, digest := source(t, img, true)
	raw := write(t, pack.Order{Images: []pack.Image{{Name: name, Source: src}}})
	manifest, all := records(t, raw)
	at := len(manifest)
	for i, rec := range all {
		spoilt := bytes.Clone(raw)
		spoilt[at+len(rec)/2] ^= 8
		at += len(rec)
		n := newNode(t)
		res := n.apply(t, spoilt, activate, bundle.ErrDamaged)
		if res.Received != res.Records-1 || n.means(t, name) != "" {
			t.Fatalf("record %d: %+v", i+1, res)
		}
		n.restart(t)
		if res = n.apply(t, raw, activate, nil); res.New != 1 || n.means(t, name) != digest {
			t.Errorf("record %d, mended: %+v", i+1, res)
		}
	}
}

// Records may come in any order: what can't be placed waits.
func TestRecordsInAnyOrder(t *testing.T) {
	one, two := versions(t)
	first, digest := source(t, one, true)
	second, _ := source(t, two, false)
	raw := write(t, pack.Order{Images: []pack.Image{{Name: name, Source: first}, {Name: "registry.example/other:1", Source: second}}})
	manifest, all := records(t, raw)
	for seed := range uint64(5) {
		if seed == 0 {
			slices.Reverse(all)
		} else {
			rand.New(rand.NewPCG(seed, 0)).Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		}
		mixed := bytes.Clone(manifest)
		for _, b := range all {
			mixed = append(mixed, b...)
		}
		n := newNode(t)
		// It breaks off, and the daemon is another one afterwards.
		_, err := n.Apply(t.Context(), bytes.NewReader(mixed[:len(mixed)/2]), activate)
		if err == nil {
			t.Error("half of it is enough")
		}
		n.restart(t)
		if n.apply(t, append(mixed, raw[len(raw)-len(manifest):]...), activate, nil); n.means(t, name) != digest {
			t.Errorf("seed %d: it means %s", seed, n.means(t, name))
		}
	}
}

// An update builds upon what is here. Without that it waits, named, and nobody
// sees anything of it.
func TestAnUpdateWaitsForItsBase(t *testing.T) {
	one, two := versions(t)
	first, was := source(t, one, true)
	second, is := source(t, two, true)
	whole := write(t, pack.Order{Images: []pack.Image{{Name: "registry.example/app:old", Source: first}}})
	update := write(t, pack.Order{
		Images:    []pack.Image{{Name: name, Source: second}},
		Receivers: [][]pack.Held{{{Name: "registry.example/app@" + was, Source: first}}},
	})
	if len(update) > len(whole)/3 {
		t.Errorf("%d bytes for an update, of %d for the image", len(update), len(whole))
	}
	n := newNode(t)
	res := n.apply(t, update, activate, receive.ErrBaseMissing)
	if len(res.Bases) != 1 || res.Bases[0].Digest.String() != was || n.means(t, name) != "" || res.Received != res.Records {
		t.Errorf("%+v", res)
	}
	n.apply(t, update, activate, receive.ErrBaseMissing) // again
	n.restart(t)
	res = n.apply(t, whole, receive.Order{}, nil)
	if len(res.Others) != 1 || !res.Others[0].Complete() || n.means(t, name) != is {
		t.Errorf("%+v; it means %s", res, n.means(t, name))
	}
	if left, err := n.Pending(); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// Several receivers get what one of them lacks.
func TestWhatServesAllReceivers(t *testing.T) {
	one, two := versions(t)
	first, was := source(t, one, true)
	second, _ := source(t, two, true)
	held := pack.Held{Name: "registry.example/app@" + was, Source: first}
	order := func(r ...[]pack.Held) pack.Order {
		return pack.Order{Images: []pack.Image{{Name: name, Source: second}}, Receivers: r}
	}
	all, some, both := write(t, order()), write(t, order([]pack.Held{held})), write(t, order([]pack.Held{held}, []pack.Held{}))
	if same := write(t, order([]pack.Held{held}, []pack.Held{held})); len(same) != len(some) {
		t.Errorf("%d bytes for two that have the same, %d for one", len(same), len(some))
	}
	if len(both) < len(all) {
		t.Errorf("%d bytes where one receiver has nothing, of %d", len(both), len(all))
	}
	n := newNode(t)
	n.apply(t, both, activate, nil)
}

func TestNamesComeBack(t *testing.T) {
	one, two := versions(t)
	first, was := source(t, one, true)
	second, is := source(t, two, true)
	n := newNode(t)
	n.apply(t, write(t, pack.Order{Images: []pack.Image{{Name: name, Source: first}}}), activate, nil)
	if _, _, err := n.catalog.Rollback(name); err == nil {
		t.Error("it was rolled back to nothing")
	}
	res := n.apply(t, write(t, pack.Order{Images: []pack.Image{{Name: name, Source: second}}}), activate, nil)
	if res.Images[0].Previous.String() != was {
		t.Errorf("%+v", res)
	}
	if kept, err := n.catalog.Kept(); err != nil || len(kept) != 1 {
		t.Errorf("kept: %v, %v", kept, err)
	}
	for _, want := range []string{was, is, was} {
		_, _, err := n.catalog.Rollback(name)
		must(t, err)
		if n.means(t, name) != want {
			t.Errorf("it means %s, want %s", n.means(t, name), want)
		}
	}
}

// All names change together, unless each may alone.
func TestNamesChangeTogether(t *testing.T) {
	one, two := versions(t)
	first, was := source(t, one, true)
	second, _ := source(t, two, false)
	raw := write(t, pack.Order{Images: []pack.Image{{Name: name, Source: first}, {Name: "registry.example/other:1", Source: second}}})
	manifest, all := records(t, raw)
	short := raw[:len(raw)-len(manifest)-len(all[len(all)-1])] // the other's layer ends early
	n := newNode(t)
	if n.apply(t, short, activate, receive.ErrIncomplete); n.means(t, name) != "" {
		t.Error("a name changed before the other could")
	}
	if n.apply(t, short, receive.Order{Activate: true, Partial: true}, receive.ErrIncomplete); n.means(t, name) != was {
		t.Errorf("it means %s", n.means(t, name))
	}
}

func TestWhoMaySign(t *testing.T) {
	pub, secret, err := minisign.GenerateKey(nil)
	must(t, err)
	text, err := secret.MarshalText()
	must(t, err)
	keyFile := filepath.Join(t.TempDir(), "key")
	must(t, os.WriteFile(keyFile, text, 0o600))
	signer, err := bundle.ReadSigner(keyFile, nil)
	must(t, err)
	key, err := bundle.ParseKey(pub.String())
	must(t, err)
	img := image(t, "", file{"a", []byte("b")})
	src, _ := source(t, img, true)
	images := []pack.Image{{Name: name, Source: src}}
	signed, plain := write(t, pack.Order{Images: images, Bundle: bundle.Options{Sign: signer}}), write(t, pack.Order{Images: images})
	n := newNode(t)
	n.apply(t, plain, receive.Order{Activate: true, Keys: []bundle.Key{key}}, bundle.ErrSignature)
	if left, err := n.Pending(); err != nil || len(left) > 0 || n.means(t, name) != "" {
		t.Errorf("it left %v, %v, and means %s", left, err, n.means(t, name))
	}
	if res := n.apply(t, signed, receive.Order{Activate: true, Keys: []bundle.Key{key}}, nil); res.Signer != key.ID() {
		t.Errorf("%+v", res)
	}
}

// A sender that signs nonsense spoils its own bundle and nothing else.
func TestContentThatIsNotWhatItSays(t *testing.T) {
	img, _ := versions(t)
	src, digest := source(t, img, true)
	raw := write(t, pack.Order{Images: []pack.Image{{Name: name, Source: src}}})
	n := newNode(t)
	forged := forge(t, raw, func(kind bundle.Kind, payload []byte) []byte {
		if kind == bundle.KindChunks {
			payload[len(payload)-1] ^= 1
		}
		return payload
	})
	res, err := n.Apply(t.Context(), bytes.NewReader(forged), activate)
	if err == nil || n.means(t, name) != "" || res.Complete() {
		t.Errorf("%v: %+v", err, res)
	}
	if n.apply(t, raw, activate, nil); n.means(t, name) != digest {
		t.Errorf("it means %s", n.means(t, name))
	}
}

// forge writes a bundle again with other payloads.
func forge(t *testing.T, raw []byte, change func(bundle.Kind, []byte) []byte) []byte {
	t.Helper()
	r, err := bundle.NewReader(bytes.NewReader(raw))
	must(t, err)
	defer r.Close()
	c, err := r.Begin()
	must(t, err)
	w, err := bundle.Create(bundle.Options{WorkDir: t.TempDir()})
	must(t, err)
	defer func() { must(t, w.Close()) }()
	for {
		rec, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		must(t, err)
		if p := change(rec.Kind, rec.Payload); p != nil {
			must(t, w.Add(rec.Kind, rec.Priority, p))
		}
	}
	var out bytes.Buffer
	_, err = w.Finish(&bundle.Contents{Images: c.Images, Files: c.Files, Bases: c.Bases}, &out)
	must(t, err)
	return out.Bytes()
}

// Names that containerd doesn't write are refused before anything is stored.
func TestHostileNames(t *testing.T) {
	src, _ := source(t, image(t, "", file{"a", []byte("b")}), true)
	for _, bad := range []string{"app", "registry.example/app", "registry.example/a b:1", "/app:1", "registry.example/" + strings.Repeat("a", 2000) + ":1"} {
		raw := write(t, pack.Order{Images: []pack.Image{{Name: bad, Source: src}}})
		n := newNode(t)
		n.apply(t, raw, activate, bundle.ErrDamaged)
	}
}
