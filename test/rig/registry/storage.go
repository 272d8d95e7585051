package registry

import (
	"crypto/hmac"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// storagePath begins the addresses at the storage host.
const storagePath = "/storage/"

// redirect sends the client to the storage host, and reports whether it did: a
// blob that isn't there is answered here, as registries do.
func (f *Front) redirect(w http.ResponseWriter, r *http.Request, t target) bool {
	head, err := http.NewRequestWithContext(r.Context(), http.MethodHead, "http://registry"+r.URL.Path, http.NoBody)
	if err != nil {
		return false
	}
	resp, err := f.registry.transport.RoundTrip(head)
	if err != nil {
		return false
	}
	_ = resp.Body.Close() // a HEAD has none
	if resp.StatusCode != http.StatusOK {
		return false
	}
	path := storagePath + t.repo + "/" + t.reference
	expires := strconv.FormatInt(time.Now().Add(f.opt.LinkLife).UnixNano(), 10)
	query := url.Values{"expires": {expires}, "signature": {f.sign("storage", path+"?"+expires)}}
	w.Header().Set("Location", f.storage.url+path+"?"+query.Encode())
	w.WriteHeader(http.StatusTemporaryRedirect)
	return true
}

// serveStorage is the storage host: it knows signed addresses and nothing of
// registries.
func (f *Front) serveStorage(w http.ResponseWriter, r *http.Request) {
	rest, ok := strings.CutPrefix(r.URL.Path, storagePath)
	slash := strings.LastIndexByte(rest, '/')
	if !ok || slash <= 0 || r.Method != http.MethodGet && r.Method != http.MethodHead {
		deny(w, http.StatusNotFound, "NoSuchKey", "The specified key does not exist.")
		return
	}
	if f.opt.StorageRefusesAuth && r.Header.Get("Authorization") != "" {
		deny(w, http.StatusBadRequest, "InvalidArgument", "Only one auth mechanism allowed.")
		return
	}
	expires := r.URL.Query().Get("expires")
	if want := f.sign("storage", r.URL.Path+"?"+expires); !hmac.Equal([]byte(r.URL.Query().Get("signature")), []byte(want)) {
		deny(w, http.StatusForbidden, "SignatureDoesNotMatch", "The signature does not match.")
		return
	}
	if until, err := strconv.ParseInt(expires, 10, 64); err != nil || time.Now().UnixNano() >= until {
		deny(w, http.StatusForbidden, "AccessDenied", "Request has expired.")
		return
	}
	blob := r.Clone(r.Context())
	blob.URL = &url.URL{Path: "/v2/" + rest[:slash] + "/blobs/" + rest[slash+1:]}
	f.sendBlob(&plainStorage{w}, blob)
}

// deny answers in the way of object stores.
func deny(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	_, _ = fmt.Fprintf(w, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>%s</Code><Message>%s</Message></Error>\n", code, message)
}

// plainStorage leaves out the headers that only a registry has: no client may
// rely on them.
type plainStorage struct{ http.ResponseWriter }

func (w *plainStorage) WriteHeader(status int) {
	for name := range w.Header() {
		if strings.HasPrefix(name, "Docker-") {
			w.Header().Del(name)
		}
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *plainStorage) Unwrap() http.ResponseWriter { return w.ResponseWriter }
