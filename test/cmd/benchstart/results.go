package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/airstream-io/airstream/test/rig/site"
)

// result is one start that was measured.
type result struct {
	cell
	site.Launch
	// Failed says why the workload did not get ready; Launch is nothing then.
	Failed string `json:",omitempty"`
	// Hot is how many bytes of the layers the start reads that the node does not
	// have; of the lower bound only.
	Hot int64 `json:",omitempty"`

	When    time.Time
	Product string // version of Airstream
	Machine string
}

func (r result) String() string {
	if r.Failed != "" {
		return "failed: " + r.Failed
	}
	return fmt.Sprintf("%s, %.0f kB up, %d connections", r.Launch, float64(r.Up)/1e3, r.Conns)
}

// results are kept in a file of JSON lines. Of a cell that was measured again
// the last line counts.
type results struct {
	file *os.File
	list []result
	at   map[cell]int // in list
}

func openResults(path string) (_ *results, err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // no secrets
		return nil, err
	}
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644) //nolint:gosec // no secrets
	if err != nil {
		return nil, err
	}
	r := &results{file: file, at: map[cell]int{}}
	defer func() {
		if err != nil {
			r.close()
		}
	}()
	b, err := io.ReadAll(file)
	if err != nil {
		return nil, err
	}
	// A line without an end was being written when the machine stopped.
	end := bytes.LastIndexByte(b, '\n') + 1
	lines := bufio.NewScanner(bytes.NewReader(b[:end]))
	lines.Buffer(nil, 1<<20)
	for n := 1; lines.Scan(); n++ {
		var one result
		if err := json.Unmarshal(lines.Bytes(), &one); err != nil {
			return nil, fmt.Errorf("%s: line %d: %w", path, n, err)
		}
		r.put(one)
	}
	_, err = file.Seek(int64(end), io.SeekStart)
	return r, errors.Join(lines.Err(), err, file.Truncate(int64(end)))
}

func (r *results) put(one result) {
	if i, ok := r.at[one.cell]; ok {
		r.list[i] = one
		return
	}
	r.at[one.cell] = len(r.list)
	r.list = append(r.list, one)
}

// add keeps a result. It is on the disk when add returns.
func (r *results) add(one result) error {
	b, err := json.Marshal(one)
	if err != nil {
		return err
	}
	if _, err := r.file.Write(append(b, '\n')); err != nil {
		return err
	}
	r.put(one)
	return r.file.Sync()
}

func (r *results) find(c cell) (result, bool) {
	i, ok := r.at[c]
	if !ok {
		return result{}, false
	}
	return r.list[i], true
}

func (r *results) all() []result { return r.list }

func (r *results) close() { _ = r.file.Close() } // all of it was synced
