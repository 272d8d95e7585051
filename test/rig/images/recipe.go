package images

import (
	"archive/tar"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"runtime"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// recipeVersion is part of every key: raise it when the code that builds
// changes what comes out.
const recipeVersion = 1

// suite is the Debian release that all real images are made of, whatever the
// machine itself runs: an image must not change with the machine.
const suite = "bookworm"

// recipe says how an image is made.
type recipe struct {
	name  string
	about string
	steps []step    // bottom layer first
	run   v1.Config // Env, Cmd, User, WorkingDir … of the image
	ready string    // regular expression
}

// step makes one layer. Its parts run in the order of the fields; exactly one
// of base, entries, program or the rest is set.
type step struct {
	name string

	base    bool                  // debootstrap
	entries func(w *oddTar) error // writes the layer's tar itself
	program string                // a Go program, as "go install" takes it, of a module's root; into /usr/bin

	packages []string // Debian packages, without recommended ones
	released bool     // as they were in the last release of the suite, without updates since
	npm      string   // folder in apps with package.json and its lock; installed into /srv/app
	files    string   // folder in apps; copied over /
	script   string   // sh -e, in a chroot, without network
}

// env is what every real image has in its environment.
var env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}

var base = step{name: "base", base: true}

// recipes is every image, real ones first.
var recipes = []recipe{
	{
		name:  "redis",
		about: "Debian base, redis-server, own configuration; runs as a user; whiteouts and an opaque directory",
		steps: []step{
			base,
			{name: "redis", packages: []string{"redis-server"}},
			{name: "redis-conf", files: "redis", script: `
				# As image authors do it: what the package brought along and nobody
				# needs goes, and its data folder starts anew.
				rm -rf /etc/redis /etc/cron.daily /usr/bin/redis-benchmark
				rm -rf /var/lib/redis && mkdir -m 750 /var/lib/redis && chown redis:redis /var/lib/redis
				ln /usr/bin/redis-cli /usr/local/bin/rcli`},
		},
		run:   v1.Config{Env: env, User: "redis", WorkingDir: "/var/lib/redis", Cmd: []string{"redis-server", "/usr/local/etc/redis.conf"}},
		ready: `Ready to accept connections`,
	},
	{
		name:  "nginx",
		about: "Debian base, nginx, a static site; logs are symlinks to /dev/stdout and /dev/stderr; a file capability",
		steps: []step{
			base,
			{name: "nginx", packages: []string{"nginx", "libcap2-bin"}},
			{name: "nginx-site", files: "nginx", script: `
				setcap cap_net_bind_service=+ep /usr/sbin/nginx
				rm -rf /var/www/html /etc/nginx/sites-enabled/default
				ln -sf /dev/stdout /var/log/nginx/access.log
				ln -sf /dev/stderr /var/log/nginx/error.log
				ln -s ../sites-available/site /etc/nginx/sites-enabled/site`},
		},
		run:   v1.Config{Env: env, ExposedPorts: map[string]struct{}{"80/tcp": {}}, Cmd: []string{"nginx", "-g", "daemon off; error_log stderr notice;"}},
		ready: `start worker processes`,
	},
	{
		name:  "python",
		about: "Debian base, Python 3.11, flask, requests, SQLAlchemy, numpy and a web application",
		steps: []step{
			base,
			{name: "python", packages: []string{"python3", "python3-pkg-resources"}},
			{name: "python-deps", packages: []string{"python3-flask", "python3-requests", "python3-sqlalchemy", "python3-yaml", "python3-numpy"}},
			{name: "python-app", files: "python", script: `
				python3 -m compileall -q /srv/app
				rm -rf /usr/lib/python3/dist-packages/pkg_resources
				rm -rf /usr/share/python3 && mkdir /usr/share/python3`},
		},
		run:   v1.Config{Env: append([]string{"PYTHONUNBUFFERED=1"}, env...), WorkingDir: "/srv/app", ExposedPorts: map[string]struct{}{"8000/tcp": {}}, Cmd: []string{"python3", "app.py"}},
		ready: `^READY`,
	},
	{
		name:  "node",
		about: "Debian base, Node.js 18, 147 npm packages in 8,700 files and an express application",
		steps: []step{
			base,
			{name: "node", packages: []string{"nodejs"}},
			{name: "node-modules", npm: "node"},
			{name: "node-app", files: "node", script: `
				# The usual second thoughts of an image's author.
				rm -rf /srv/app/node_modules/swagger-ui-dist/*.map
				rm -rf /srv/app/node_modules/lodash/fp && mkdir /srv/app/node_modules/lodash/fp
				cp /srv/app/node_modules/lodash/fp.js /srv/app/node_modules/lodash/fp/index.js`},
		},
		run:   v1.Config{Env: append([]string{"NODE_ENV=production"}, env...), WorkingDir: "/srv/app", ExposedPorts: map[string]struct{}{"3000/tcp": {}}, Cmd: []string{"node", "server.js"}},
		ready: `READY`,
	},
	{
		name:  "oddities",
		about: "every kind of entry, name, mode, owner, time, size, link, xattr and change between layers that a layer may have and eStargz can say",
		steps: []step{
			{name: "odd-tree", entries: oddTree},
			{name: "odd-changes", entries: oddChanges},
			{name: "odd-again", entries: oddAgain},
		},
		run:   readyConfig,
		ready: `^READY`,
	},
	{
		name:  "odd-rawnames",
		about: "names, a link target and an xattr name that are not UTF-8: legal in a tar and on disk, not in a JSON TOC",
		steps: []step{{name: "odd-plain", entries: oddPlain}, {name: "odd-rawnames", entries: oddRawNames}},
		run:   readyConfig,
		ready: `^READY`,
	},
	{
		name:  "odd-crosslink",
		about: "a hardlink whose target is in the layer beneath: legal in a tar, refused by containerd over overlayfs, unknown to a TOC",
		steps: []step{{name: "odd-plain", entries: oddPlain}, {name: "odd-crosslink", entries: oddCrossLink}},
		run:   readyConfig,
		ready: `^READY`,
	},
	{
		name:  "odd-implied",
		about: "files whose parent directories have no entries of their own, as Bazel and Nix write them",
		steps: []step{{name: "odd-plain", entries: oddPlain}, {name: "odd-implied", entries: oddImplied}},
		run:   readyConfig,
		ready: `^READY`,
	},
	{
		name:  "odd-duplicates",
		about: "the same path several times in one layer: the last entry counts",
		steps: []step{{name: "odd-plain", entries: oddPlain}, {name: "odd-duplicates", entries: oddDuplicates}},
		run:   readyConfig,
		ready: `^READY`,
	},
}

// readyConfig runs the only program that an odd image has.
var readyConfig = v1.Config{Env: []string{"PATH=/bin"}, WorkingDir: "/", Cmd: []string{"/bin/ready"}}

//go:embed apps
var apps embed.FS

// real reports whether the image is made of packages, which takes root.
func (r *recipe) real() bool { return r.steps[0].base }

// key identifies the image's inputs.
func (r *recipe) key() string {
	inputs := []any{r.run, r.ready, r.about}
	for i := range r.steps {
		inputs = append(inputs, r.stepDir(i))
	}
	raw, err := json.Marshal(inputs)
	if err != nil {
		panic(err) // plain data always marshals
	}
	return short(raw)
}

// stepKey identifies the inputs of step i: its own, and those of the steps
// beneath it.
func (r *recipe) stepKey(i int) string {
	s := &r.steps[i]
	parent := ""
	if i > 0 && s.entries == nil {
		parent = r.stepKey(i - 1)
	}
	inputs := []any{recipeVersion, suite, runtime.GOARCH, parent, s.name, s.base, s.packages, s.npm, s.files, s.script}
	// Later kinds of steps must not change the keys of those before.
	if s.released {
		inputs = append(inputs, "released")
	}
	switch {
	case s.program != "":
		inputs = append(inputs, s.program, runtime.Version())
	case s.base:
		inputs = append(inputs, baseScript)
	case s.entries != nil:
		// The program in an odd image, and what compresses to how much, change
		// with Go. The entries are code: they are hashed as they come out.
		h := sha256.New()
		if err := s.entries(&oddTar{Writer: tar.NewWriter(h), ready: []byte(readySource())}); err != nil {
			panic(fmt.Sprintf("images: %s: %v", s.name, err)) // a mistake in the recipe
		}
		inputs = append(inputs, runtime.Version(), hex.EncodeToString(h.Sum(nil)))
	}
	for _, dir := range []string{s.npm, s.files} {
		if dir != "" {
			inputs = append(inputs, hashFiles(dir))
		}
	}
	raw, err := json.Marshal(inputs)
	if err != nil {
		panic(err) // plain data always marshals
	}
	return short(raw)
}

// stepDir names the step's folder: readable, and different for other inputs.
func (r *recipe) stepDir(i int) string { return r.steps[i].name + "-" + r.stepKey(i) }

func hashFiles(dir string) string {
	h := sha256.New()
	err := fs.WalkDir(apps, "apps/"+dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		raw, err := apps.ReadFile(path)
		_, _ = fmt.Fprintf(h, "%s %d\n%s", path, len(raw), raw)
		return err
	})
	if err != nil {
		panic(err) // the files are in the binary
	}
	return hex.EncodeToString(h.Sum(nil))
}

func short(raw []byte) string {
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:8])
}

// describe says what the step did, for the image's history.
func (s *step) describe() string {
	switch {
	case s.base:
		return "debootstrap " + suite
	case s.program != "":
		return "go install " + s.program
	case len(s.packages) > 0:
		return "apt-get install " + strings.Join(s.packages, " ")
	case s.npm != "":
		return "npm ci"
	case s.files != "":
		return "copy " + s.files
	default:
		return s.name
	}
}
