package mirror

import (
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/airstream-io/airstream/internal/catalog"
)

// A name that was rolled back means what it meant before, whatever the registry
// says, until it is fetched again.
func TestAHeldTagIsNotAskedFor(t *testing.T) {
	s := newShore(t)
	one, two := randomImage(t), randomImage(t)
	s.push(t, "app:1", one)
	n := newNode(t, s, t.TempDir())
	n.pull(t, "app:1", one)
	var name string
	tags, err := n.catalog.Tags()
	if err != nil || len(tags) != 1 {
		t.Fatal(tags, err)
	}
	name = tags[0].Name
	held := tags[0].Tag
	held.Held = true
	if err := n.catalog.SetTag(name, held); err != nil {
		t.Fatal(err)
	}
	s.push(t, "app:1", two)
	for range 2 {
		if got := n.means(t, "app:1"); got != digestOf(t, one) {
			t.Errorf("it means %s", got)
		}
	}
	if _, err := n.catalog.Activate(catalog.Activation{Name: name, Tag: catalog.Tag{Digest: digest.Digest(digestOf(t, one)), MediaType: held.MediaType, Size: held.Size, Seen: time.Now()}}); err != nil {
		t.Fatal(err)
	}
	if got := n.means(t, "app:1"); got != digestOf(t, two) {
		t.Errorf("let go, it means %s", got)
	}
}
