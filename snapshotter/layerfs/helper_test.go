package layerfs_test

import (
	"bufio"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/airstream-io/airstream/internal/fdstore"
	"github.com/airstream-io/airstream/snapshotter/layerfs"
)

// helper is the main of a process that a test starts: "what:argument".
func helper(what string) int {
	what, arg, _ := strings.Cut(what, ":")
	var err error
	switch what {
	case "mount":
		err = helperMount(arg)
	case "fault":
		err = helperFault(arg)
	case "serve":
		err = helperServe(arg)
	case "map":
		err = helperMap(arg)
	default:
		err = fmt.Errorf("no helper %q", what)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// helperMount serves an empty tree until it is killed.
func helperMount(dir string) error {
	if _, err := layerfs.Mount(dir, &node{}, layerfs.Options{}); err != nil {
		return err
	}
	fmt.Println("mounted")
	select {}
}

// helperFault prints the byte at an offset of a file, which it maps:
// "offset:name".
func helperFault(arg string) error {
	offset, name, _ := strings.Cut(arg, ":")
	at, err := strconv.Atoi(offset)
	if err != nil {
		return err
	}
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	mapped, err := unix.Mmap(int(f.Fd()), 0, at+1, unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	fmt.Println(mapped[at])
	return nil
}

// serving is what a helper serves, as JSON in its argument.
type serving struct {
	Dir, Layer, Store string   // Layer is a tar file, with its table of contents beside it in Layer.toc
	Hold              []string // files whose content does not come
	HoldTOC           bool
	NoResend          bool
	Final             bool // SIGTERM ends the tree
}

// tb is what fixtures need of a test in a process that is none.
type tb struct{ testing.TB }

func (tb) Helper() {}

func (tb) Fatal(args ...any) { panic(fmt.Sprint(args...)) }

func (tb) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }

// helperServe serves a layer in slot 0, with what the process before it left,
// until SIGTERM. It says "ready" and how long Mount took, and on SIGUSR1 its Stats as JSON.
func helperServe(arg string) error {
	var what serving
	if err := json.Unmarshal([]byte(arg), &what); err != nil {
		return err
	}
	keeper, err := fdstore.Inherit()
	if err != nil {
		return err
	}
	layer, err := os.ReadFile(what.Layer)
	table, err2 := os.ReadFile(what.Layer + ".toc")
	if err := errors.Join(err, err2); err != nil {
		return err
	}
	n := &node{store: what.Store, layers: make(map[uint32]*served), tocs: make(map[uint32]*gate)}
	s := n.addTree(tb{}, 0, layer, parse(tb{}, table))
	for _, name := range what.Hold {
		s.hold(tb{}, name)
	}
	if what.HoldTOC {
		n.tocs[0] = newGate()
	}
	opts := layerfs.Options{Keeper: keeper, Logger: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	if what.NoResend {
		opts = opts.WithoutResend()
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGUSR1)
	began := time.Now()
	server, err := layerfs.Mount(what.Dir, n, opts)
	if err != nil {
		return err
	}
	fmt.Println("ready", time.Since(began))
	for sig := range signals {
		switch {
		case sig == syscall.SIGUSR1:
			stats, err := json.Marshal(server.Stats())
			if err != nil {
				return err
			}
			fmt.Println(string(stats))
		case what.Final:
			return server.Close()
		default:
			return server.Leave()
		}
	}
	return nil
}

// helperMap maps a file, reads its first byte, says "mapped", waits for a line
// and prints the sum of all of it.
func helperMap(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	mapped, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	fmt.Println("mapped", mapped[0])
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return err
	}
	fmt.Printf("%x\n", sha256.Sum256(mapped))
	return nil
}
