package images

import (
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Workload is a program in two versions, for what starts and updates cost. The
// second differs from the first as an application's next release does: its own
// files changed a little, and of the packages that it is made of those that
// Debian has published security updates for, or that its lock file has newer
// ones of.
type Workload struct {
	Name     string
	Versions [2]string // names of images, the older first
}

// Workloads returns what the benchmark of starts measures. It alone builds those
// of the images that Names lacks.
func Workloads() []Workload {
	return []Workload{
		{"go", [2]string{"go-1", "go-2"}},
		{"redis", [2]string{"redis-1", "redis"}},
		{"nginx", [2]string{"nginx-1", "nginx"}},
		{"python", [2]string{"python-1", "python"}},
		{"node", [2]string{"node-1", "node-2"}},
		{"postgres", [2]string{"postgres-1", "postgres-2"}},
	}
}

// workloadRecipes are the images of workloads that nothing else needs.
var workloadRecipes = slices.Concat(
	[]recipe{
		older("redis", `sed -i 's/^port 6379$/&\ntcp-keepalive 60/' /usr/local/etc/redis.conf`),
		older("nginx", `sed -i 's/It crossed/It has crossed/' /srv/www/index.html`),
		older("python", `
			sed -i 's/large, and needed by this page only/large/' /srv/app/app.py
			python3 -m compileall -q /srv/app`),
	},
	goService("go-1", natsServer+"@v2.12.14", "max_payload: 1MB\n"),
	goService("go-2", natsServer+"@v2.12.15", "max_payload: 2MB\n"),
	nodeApp("node-1", "nodeapp-1", true, `sed -i 's/listening on 3000/listening/' /srv/app/server.js`),
	nodeApp("node-2", "nodeapp-2", false, ``),
	postgres("postgres-1", true, `sed -i '/heading/s/271/272/' /usr/local/share/app/schema.sql`),
	postgres("postgres-2", false, ``),
)

// older returns the release before the one that a recipe makes: packages as
// they were released, without Debian's updates since, and what a script changes
// of the application.
func older(name, script string) recipe {
	r := recipes[slices.IndexFunc(recipes, func(r recipe) bool { return r.name == name })]
	r.name += "-1"
	r.about = "the release before: " + r.about
	r.steps = slices.Clone(r.steps)
	for i := range r.steps {
		r.steps[i].released = len(r.steps[i].packages) > 0
	}
	r.steps[len(r.steps)-1].script += "\n" + script
	return r
}

const natsServer = "github.com/nats-io/nats-server/v2"

// goService is a static Go program and the few files that it needs beside it,
// as distroless images have them.
func goService(name, program, config string) []recipe {
	conf := func(w *oddTar) error {
		w.file("etc/nats.conf", "listen: 0.0.0.0:4222\n"+config)
		return w.err
	}
	return []recipe{{
		name:  name,
		about: "a static Go program and a few files: " + program,
		steps: []step{{name: "static", entries: staticBase}, {name: name, program: program}, {name: name + "-conf", entries: conf}},
		run:   v1.Config{Env: env, User: "1000", WorkingDir: "/", Cmd: []string{"/usr/bin/nats-server", "--config", "/etc/nats.conf"}},
		ready: `Server is ready`,
	}}
}

func staticBase(w *oddTar) error {
	for _, dir := range []string{"dev", "etc", "home", "proc", "sys", "usr", "usr/bin", "var"} {
		w.dir(dir)
	}
	w.dir("tmp", mode(0o1777))
	w.file("etc/passwd", "root:x:0:0:root:/root:/sbin/nologin\napp:x:1000:1000:app:/home/app:/sbin/nologin\n")
	w.file("etc/group", "root:x:0:\napp:x:1000:\n")
	w.file("etc/nsswitch.conf", "hosts: files dns\n")
	w.dir("home/app", owner(1000, 1000))
	return w.err
}

func nodeApp(name, npm string, released bool, script string) []recipe {
	return []recipe{{
		name:  name,
		about: "Debian base, Node.js 18, 150 npm packages in 14,500 files and an express application",
		steps: []step{
			base,
			{name: "nodejs", packages: []string{"nodejs"}, released: released},
			{name: "nodeapp-modules", npm: npm},
			{name: "nodeapp", files: "node", script: script},
		},
		run:   v1.Config{Env: append([]string{"NODE_ENV=production"}, env...), WorkingDir: "/srv/app", ExposedPorts: map[string]struct{}{"3000/tcp": {}}, Cmd: []string{"node", "server.js"}},
		ready: `READY`,
	}}
}

func postgres(name string, released bool, script string) []recipe {
	return []recipe{{
		name:  name,
		about: "Debian base, PostgreSQL 15, a schema; makes its cluster on the first start",
		steps: []step{
			base,
			{name: "postgres-common", packages: []string{"postgresql-common"}, released: released, script: `
				sed -i 's/^#\?create_main_cluster.*/create_main_cluster = false/' /etc/postgresql-common/createcluster.conf`},
			{name: "postgres", packages: []string{"postgresql-15"}, released: released},
			{name: "postgres-app", files: "postgres", script: `
				chmod 755 /usr/local/bin/start-postgres
				` + script},
		},
		run:   v1.Config{Env: env, User: "postgres", WorkingDir: "/", ExposedPorts: map[string]struct{}{"5432/tcp": {}}, Cmd: []string{"/usr/local/bin/start-postgres"}},
		ready: `database system is ready to accept connections`,
	}}
}
