package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/airstream-io/airstream/fetcher/uplink"
	"github.com/airstream-io/airstream/test/flow"
	"github.com/airstream-io/airstream/test/rig/link"
	"github.com/airstream-io/airstream/test/rig/registry"
)

// What is measured of the transport. All loss rates at once, each on a link of
// its own, take about 4 minutes.
const (
	bulkSize   = 28 << 20 // bytes; over 2 Mbit/s at least 117 s
	bulkSpan   = 8        // round trips' worth in a request
	demandSize = 64 << 10 // bytes
	demands    = 7        // of which the median counts
	demandGap  = 3 * time.Second
)

var bulkLosses = []float64{0, 0.01, 0.03}

// bulkRow is what was measured at one loss rate.
type bulkRow struct {
	loss       float64
	took       time.Duration // for bulkSize, from the first connection on
	steady     time.Duration // for all of it but the first quarter
	parallel   int           // connections at the end
	idle, busy []time.Duration
}

// bulk measures how much of the link bulk transfers use, and what somebody who
// waits notices of them, and returns the section.
func (b *bench) bulk(ctx context.Context) (_ string, err error) {
	reg, err := registry.Start(ctx, registry.Options{})
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, reg.Close()) }()
	blob, err := flow.Push(ctx, reg, bulkSize)
	if err != nil {
		return "", err
	}
	rows := make([]bulkRow, len(bulkLosses))
	group, ctx := errgroup.WithContext(ctx)
	for i, loss := range bulkLosses {
		group.Go(func() error {
			profile := b.profile.Lossless()
			if loss > 0 {
				profile.Loss = link.Loss{Mean: loss, Burst: b.profile.Loss.Burst}
			}
			path, err := flow.Open(ctx, flow.Options{Profile: profile, Seed: 1, Registry: reg, Blob: blob, Size: bulkSize})
			if err != nil {
				return err
			}
			rows[i] = bulkRow{loss: loss}
			return errors.Join(b.measureBulk(ctx, path, &rows[i]), path.Close()) //nolint:contextcheck // cleans up even when ctx has ended
		})
	}
	if err := group.Wait(); err != nil {
		return "", err
	}
	return b.bulkTable(rows), nil
}

func (b *bench) measureBulk(ctx context.Context, path *flow.Path, r *bulkRow) error {
	demand := func() (time.Duration, error) {
		select {
		case <-time.After(demandGap):
		case <-ctx.Done():
			return 0, ctx.Err()
		}
		began := time.Now()
		err := path.Read(ctx, uplink.Demand, 0, demandSize, nil)
		return time.Since(began), err
	}
	series := func() (all []time.Duration, err error) {
		if _, err := demand(); err != nil { // the connection is warm, and the sender has seen the link as it is
			return nil, err
		}
		for range demands {
			d, err := demand()
			if err != nil {
				return nil, err
			}
			all = append(all, d)
		}
		slices.Sort(all)
		return all, nil
	}
	var err error
	if r.idle, err = series(); err != nil {
		return err
	}
	b.say("loss %.0f%%: 64 KiB alone %v", 100*r.loss, r.idle)
	if err := r.transfer(ctx, path); err != nil {
		return err
	}
	b.say("loss %.0f%%: bulk %.1f%%, with %d connections", 100*r.loss, 100*r.efficiency(b.profile, bulkSize, r.took), r.parallel)
	under, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- path.Bulk(under, uplink.Prefetch, 100*bulkSize, bulkSpan, nil) }()
	select {
	case <-time.After(5 * time.Second): // it fills the link
	case <-ctx.Done():
	}
	r.busy, err = series()
	cancel()
	<-done //nolint:errcheck // ended by cancel
	b.say("loss %.0f%%: 64 KiB under bulk %v", 100*r.loss, r.busy)
	return err
}

// transfer brings bulkSize.
func (r *bulkRow) transfer(ctx context.Context, path *flow.Path) error {
	pieces := make(chan int, 1024)
	began := time.Now()
	var quarter time.Time
	counted := make(chan struct{})
	go func() {
		defer close(counted)
		var n int64
		for k := range pieces {
			if n += int64(k); n >= bulkSize/4 && quarter.IsZero() {
				quarter = time.Now()
				n = bulkSize // once
			}
		}
	}()
	err := path.Bulk(ctx, uplink.Prefetch, bulkSize, bulkSpan, func(k int) { pieces <- k })
	r.took = time.Since(began)
	close(pieces)
	<-counted
	r.steady = time.Since(quarter)
	r.parallel = path.Meter.Parallel(uplink.Prefetch)
	return err
}

// efficiency is the share of what the link carries in that time.
func (r *bulkRow) efficiency(p link.Profile, size int64, took time.Duration) float64 {
	return float64(size) / float64(p.Down.Bytes(took))
}

func (b *bench) bulkTable(rows []bulkRow) string {
	var t strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&t, format+"\n", args...) }
	say("## Bulk, and who waits meanwhile, over %s", b.profile.Name)
	say("")
	say("Link: `%s`, with the loss of the first column instead of its own and without outages. The", b.profile)
	say("registry's sender uses cubic, over TLS; the node's registry client and link meter run without a fetcher before")
	say("them. Bulk is %d MiB of a blob, on new connections; its share is bytes of the blob by bytes that the link can carry", bulkSize>>20)
	say("as IP packets, of which headers alone take 4.5%%. A demand is %d KiB in one request on a warm connection, %v after", demandSize>>10, demandGap)
	say("the one before; of %d the median, and in parentheses the slowest. %s", demands, b.conditions())
	say("")
	say("| loss | bulk | without its first quarter | connections | demand alone | under bulk | |")
	say("|--:|--:|--:|--:|--:|--:|--:|")
	for _, r := range rows {
		idle, busy := r.idle[demands/2], r.busy[demands/2]
		say("| %.0f%% | **%.1f%%** | %.1f%% | %d | %.2f s (%.2f s) | %.2f s (%.2f s) | **%.2f ×** |", 100*r.loss,
			100*r.efficiency(b.profile, bulkSize, r.took), 100*r.efficiency(b.profile, bulkSize*3/4, r.steady), r.parallel,
			idle.Seconds(), r.idle[demands-1].Seconds(), busy.Seconds(), r.busy[demands-1].Seconds(), busy.Seconds()/idle.Seconds())
	}
	return t.String()
}
