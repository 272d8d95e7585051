package registry

import (
	"io"
	"net/http"
	"testing"
	"time"
)

// A handler returns long before what it wrote has arrived, if the client
// doesn't read; and what has arrived is known to have.
func TestArrivalIsThatOfTheClient(t *testing.T) {
	f, _ := front(t, FrontOptions{})
	const size = 8 << 20
	arrivals := make(chan *Arrival, 1)
	out := make(chan struct{})
	f.SetHook(func(_ Kind, w http.ResponseWriter, r *http.Request, _ http.Handler) {
		a := FollowArrival(r)
		arrivals <- a
		go func() {
			defer close(out)
			<-r.Context().Done() // done when the handler has returned, and its server has written the rest
			a.Out()
		}()
		_, _ = w.Write(make([]byte, size))
	})
	transport := client(t, f)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, f.URL()+"/v2/", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	a := <-arrivals
	for { // the header is here; its acknowledgement is seen a moment later
		if when, ok := a.At(1); ok {
			if when.Before(began) || when.After(time.Now()) {
				t.Errorf("the first byte arrived at %v; the request was made at %v", when, began)
			}
			break
		}
		time.Sleep(pollAcks)
	}
	time.Sleep(10 * pollAcks)
	if when, ok := a.At(size); ok {
		t.Errorf("byte %d arrived at %v, and nobody has read it", size, when)
	}
	first, _ := a.At(1)
	reads := time.Now()
	if n, err := io.Copy(io.Discard, resp.Body); err != nil || n != size {
		t.Fatalf("read %d bytes: %v", n, err)
	}
	if err := resp.Body.Close(); err != nil {
		t.Error(err)
	}
	<-out
	for {
		if when, ok := a.At(size); ok {
			if when.Before(reads) {
				t.Errorf("the last byte arrived %v before it was read", reads.Sub(when))
			}
			break
		}
		time.Sleep(pollAcks)
	}
	if again, _ := a.At(1); !again.Equal(first) {
		t.Errorf("the first byte arrived at %v, and later at %v", first, again)
	}
}

// What never arrives is not said to have until its connection is gone.
func TestArrivalEndsWithItsConnection(t *testing.T) {
	f, _ := front(t, FrontOptions{})
	arrivals := make(chan *Arrival, 1)
	f.SetHook(func(_ Kind, w http.ResponseWriter, r *http.Request, _ http.Handler) {
		a := FollowArrival(r)
		defer a.Out()
		arrivals <- a
		_, _ = w.Write(make([]byte, 64<<20))
	})
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, f.URL()+"/v2/", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client(t, f).RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	a := <-arrivals
	gone := time.Now()
	if err := resp.Body.Close(); err != nil { // unread: the connection is closed
		t.Error(err)
	}
	for {
		if when, ok := a.At(64 << 20); ok {
			if when.Before(gone) {
				t.Errorf("it ended %v before its connection", gone.Sub(when))
			}
			return
		}
		time.Sleep(pollAcks)
	}
}
