package main

import (
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
)

func TestShortNamesAreTheLongOnes(t *testing.T) {
	long := "registry.example:5000/team/app:1"
	for ref, want := range map[string]bool{long: true, "registry.example:5000/team/app:2": false, "registry.example/team/app:1": false} {
		r, err := name.ParseReference(ref)
		if err != nil {
			t.Fatal(err)
		}
		if got := same(long, r); got != want {
			t.Errorf("%s: %v", ref, got)
		}
	}
	short, err := name.ParseReference("redis")
	if err != nil {
		t.Fatal(err)
	}
	if !same(name.DefaultRegistry+"/library/redis:latest", short) {
		t.Error("a short name is not found")
	}
}
