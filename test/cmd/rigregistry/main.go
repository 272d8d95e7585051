// Command rigregistry runs a registry with a front before it, as the tests do,
// until it is interrupted, and then says what went over it. See package
// test/rig/registry.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/airstream-io/airstream/test/rig/images"
	"github.com/airstream-io/airstream/test/rig/registry"
	"github.com/airstream-io/airstream/test/rig/tools"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	switch {
	case errors.Is(err, errUsage):
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

var errUsage = errors.New("usage")

// flags are what the command line says.
type flags struct {
	dir, listen, push, ca string
	auth                  string
	front                 registry.FrontOptions
}

var auths = map[string]registry.Auth{"none": registry.AuthNone, "basic": registry.AuthBasic, "bearer": registry.AuthBearer}

func parse(args []string, stderr io.Writer) (*flags, error) {
	var f flags
	set := flag.NewFlagSet("rigregistry", flag.ContinueOnError)
	set.SetOutput(stderr)
	set.StringVar(&f.dir, "dir", "", "`folder` of the storage (default: in the cache folder)")
	set.StringVar(&f.listen, "listen", "127.0.0.1", "`address` to listen on, each service on a port of its own")
	set.StringVar(&f.push, "push", "", "`images` of the rig to put in, separated by commas, as NAME:oci and NAME:docker")
	set.StringVar(&f.ca, "ca", "", "`file` to write the CA's certificate to")
	set.StringVar(&f.auth, "auth", "none", "`how` clients identify themselves: none, basic, bearer")
	set.StringVar(&f.front.Username, "user", "airstream", "`name` of the only account")
	set.StringVar(&f.front.Password, "password", "airstream", "`password` of the only account")
	set.StringVar(&f.front.Name, "name", "", "host `name` in addresses, in place of -listen")
	set.BoolVar(&f.front.TLS, "tls", false, "serve TLS under a CA of its own")
	set.BoolVar(&f.front.Anonymous, "anonymous", false, "give anybody tokens to pull with")
	set.DurationVar(&f.front.TokenLife, "token-life", 5*time.Minute, "`how long` a token is valid")
	set.BoolVar(&f.front.Redirect, "redirect", false, "redirect blobs to a storage host")
	set.DurationVar(&f.front.LinkLife, "link-life", 20*time.Minute, "`how long` the address of a redirect is valid")
	set.BoolVar(&f.front.IgnoreRange, "ignore-range", false, "send whole blobs, whatever range is asked for")
	if err := set.Parse(args); err != nil {
		return nil, errUsage // the flag package has said why
	}
	var known bool
	if f.front.Auth, known = auths[f.auth]; !known || set.NArg() > 0 {
		set.Usage()
		return nil, errUsage
	}
	if f.dir == "" {
		var err error
		if f.dir, err = tools.CacheDir("registry"); err != nil {
			return nil, err
		}
	}
	return &f, nil
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	f, err := parse(args, stderr)
	if err != nil {
		return err
	}
	f.front.Listen = func() (net.Listener, error) {
		return (&net.ListenConfig{}).Listen(ctx, "tcp", net.JoinHostPort(f.listen, "0"))
	}
	reg, err := registry.Start(ctx, registry.Options{Dir: f.dir})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, reg.Close()) }()
	for name := range strings.FieldsFuncSeq(f.push, func(r rune) bool { return r == ',' }) {
		if err := push(ctx, reg, name); err != nil {
			return err
		}
	}
	front, err := reg.Front(f.front)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, front.Close()) }()
	if f.ca != "" {
		if err := os.WriteFile(f.ca, front.CA(), 0o644); err != nil {
			return err
		}
	}
	_, _ = fmt.Fprintln(stdout, front.URL())
	<-ctx.Done()
	report(stderr, front.Counts())
	return nil
}

func push(ctx context.Context, reg *registry.Registry, name string) error {
	img, err := images.Build(ctx, name)
	if err != nil {
		return err
	}
	oci, err := img.OCI()
	if err != nil {
		return err
	}
	if _, err := reg.Push(ctx, name+":oci", oci); err != nil {
		return err
	}
	docker, err := img.Docker()
	if err != nil {
		return err
	}
	_, err = reg.Push(ctx, name+":docker", docker)
	return err
}

func report(w io.Writer, c registry.Counts) {
	_, _ = fmt.Fprintf(w, "%d connections, %d requests (%d with ranges, %d redirected), %d bytes of bodies, %d sent, %d received\n",
		c.Connections, c.Total(), c.Ranges, c.Redirects, c.Body, c.Sent, c.Received)
	kinds := make([]string, 0, len(c.Requests))
	for k, n := range c.Requests {
		kinds = append(kinds, fmt.Sprintf("%s %d", k, n))
	}
	slices.Sort(kinds)
	_, _ = fmt.Fprintln(w, strings.Join(kinds, ", "))
}
