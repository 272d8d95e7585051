package main

import (
	"testing"

	"github.com/airstream-io/airstream/fetcher"
)

// What is a guess never holds up what a start is known to read, and whoever
// waits goes before both.
func TestLanesFollowUrgency(t *testing.T) {
	order := []fetcher.Class{fetcher.Demand, fetcher.Hot, fetcher.Ahead}
	for i, class := range order[1:] {
		if laneOf(class) <= laneOf(order[i]) {
			t.Errorf("%v comes in lane %v, %v in lane %v", class, laneOf(class), order[i], laneOf(order[i]))
		}
	}
}
