package mirror

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/airstream-io/airstream/fetcher/registry"
	"github.com/airstream-io/airstream/internal/catalog"
)

// request is what a URL of the API asks for.
type request struct {
	src   catalog.Source // as the client says it; what the catalog calls the image
	from  catalog.Source // where it is fetched from
	kind  string         // "manifests", "blobs", "tags" or "referrers"
	ref   string         // a tag or a digest; "" for tags
	query url.Values     // without ns
	ns    bool           // the host came as the parameter ns
	path  string         // of the repository, as the client wrote it
	login registry.Login // of the client, for from; zero: none
	// offered says that the client has sent credentials, be they for from or not.
	offered bool
	via     []string // the way that the request has come
	self    bool     // the mirror asks, and no client
	still   bool     // nothing of the image is to be fetched yet but its tables of contents
}

// name returns what the catalog calls the image: "host/repo:tag" or
// "host/repo@digest".
func (q request) name() string {
	if strings.Contains(q.ref, ":") {
		return q.src.Host + "/" + q.src.Repo + "@" + q.ref
	}
	return q.src.Host + "/" + q.src.Repo + ":" + q.ref
}

// docker is the registry that short names mean, and what else it is called.
const docker = "docker.io"

var dockerAliases = map[string]bool{"index.docker.io": true, "registry-1.docker.io": true, "registry.docker.io": true}

// canonical returns the one name of a repository that has several.
func canonical(src catalog.Source) catalog.Source {
	src.Host = strings.ToLower(src.Host)
	if dockerAliases[src.Host] {
		src.Host = docker
	}
	if src.Host == docker && src.Repo != "" && !strings.Contains(src.Repo, "/") {
		src.Repo = "library/" + src.Repo
	}
	return src
}

// Validate tells what is wrong with a rule.
func (r Rule) Validate() error {
	for _, side := range []string{r.From, r.To} {
		host, repo, deeper := strings.Cut(side, "/")
		if !validHost(host) || deeper && !validRepo(repo) {
			return fmt.Errorf("mirror: rewrite %q to %q: %q is neither HOST nor HOST/PATH", r.From, r.To, side)
		}
	}
	return nil
}

// rewrite returns where a repository is fetched from. Rules are used once: a
// target that another rule names is final, so that they can't go in circles.
func rewrite(rules []Rule, src catalog.Source) catalog.Source {
	best := -1
	out := src
	for _, r := range rules {
		host, path, deeper := strings.Cut(r.From, "/")
		if dockerAliases[host] {
			host = docker
		}
		rest, fits := src.Repo, strings.EqualFold(host, src.Host)
		if deeper && fits {
			rest, fits = strings.CutPrefix(src.Repo+"/", path+"/")
			rest = strings.TrimSuffix(rest, "/")
		}
		if !fits || len(r.From) <= best {
			continue
		}
		to, prefix, _ := strings.Cut(r.To, "/")
		repo := strings.Trim(prefix+"/"+rest, "/")
		if repo == "" {
			continue
		}
		best, out = len(r.From), canonical(catalog.Source{Host: to, Repo: repo})
	}
	return out
}

// errNoHost says that a request does not say which registry it means.
var errNoHost = errors.New("no ns parameter says which registry is meant; point containerd here by a hosts.toml in its config_path, or put the registry's name before the repository's")

// parse reads a request of the API: of the registry that the parameter ns
// names, else of the one that the path begins with, else of def.
func parse(r *http.Request, def string) (request, error) {
	var q request
	path, ok := strings.CutPrefix(r.URL.Path, "/v2/")
	if repo, isTags := strings.CutSuffix(path, "/tags/list"); isTags {
		q.kind, q.path = "tags", repo
	} else {
		at := -1
		for _, kind := range []string{"manifests", "blobs", "referrers"} {
			if i := strings.LastIndex(path, "/"+kind+"/"); i > at {
				at = i
				q.kind, q.path, q.ref = kind, path[:i], path[i+len(kind)+2:]
			}
		}
	}
	if !ok || q.kind == "" || q.path == "" {
		return q, fmt.Errorf("%s is not a part of the registry API that the mirror has", r.URL.Path)
	}
	q.query = r.URL.Query()
	q.src = catalog.Source{Host: q.query.Get("ns"), Repo: q.path}
	q.ns = q.src.Host != ""
	q.query.Del("ns")
	if !q.ns {
		first, rest, deeper := strings.Cut(q.path, "/")
		switch {
		case deeper && (strings.ContainsAny(first, ".:") || first == "localhost"):
			q.src.Host, q.src.Repo = first, rest
		case def != "":
			q.src.Host = def
		default:
			return q, errNoHost
		}
	}
	if !validHost(q.src.Host) || !validRepo(q.src.Repo) {
		return q, fmt.Errorf("invalid name %s/%s", q.src.Host, q.src.Repo)
	}
	q.src = canonical(q.src)
	switch {
	case q.kind == "tags":
	case strings.Contains(q.ref, ":") || q.kind != "manifests":
		d := digest.Digest(q.ref)
		if err := d.Validate(); err != nil {
			return q, fmt.Errorf("%w %q", errDigest, q.ref)
		}
		if d.Algorithm() != digest.SHA256 {
			return q, fmt.Errorf("%w %q: sha256 alone is supported", errDigest, q.ref)
		}
	case !validTag(q.ref):
		return q, fmt.Errorf("invalid tag %q", q.ref)
	}
	return q, nil
}

var errDigest = errors.New("invalid digest")

func only(s, more string) bool {
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && strings.IndexByte(more, c) < 0 {
			return false
		}
	}
	return s != ""
}

func validHost(s string) bool { return len(s) < 300 && only(strings.ToLower(s), ".-:[]") }

func validTag(s string) bool {
	return len(s) <= 128 && only(strings.ToLower(s), "_.-") && s[0] != '.' && s[0] != '-'
}

func validRepo(s string) bool {
	for part := range strings.SplitSeq(s, "/") {
		if !only(part, "._-") || part[0] == '.' || strings.Contains(part, "..") {
			return false
		}
	}
	return len(s) < 256
}
