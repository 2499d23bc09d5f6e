package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sort"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/lab"
	"github.com/tcptrace/tcptrace/internal/probe"
	"github.com/tcptrace/tcptrace/tracer/event"
)

type bench struct {
	ctx         context.Context
	connections int
	rounds      int
	attach      string

	binary  string // of tcptrace, once built
	cleanup []func()
}

// stretch is one measured run of short connections.
type stretch struct {
	runs, ns uint64 // of all programs
	by       map[string]probe.Runtime
	events   int
	lost     uint64
	perSec   float64
}

// churn runs the load under attached programs, empty ones or the real ones,
// with both ends traced and a reader that only decodes.
func (b *bench) churn(empty bool) (stretch, error) {
	ns, err := lab.NewNamespace()
	if err != nil {
		return stretch{}, err
	}
	defer ns.Close()
	p, err := probe.Open(probe.Options{Attach: b.attach, Empty: empty})
	if err != nil {
		return stretch{}, err
	}
	defer p.Close()

	var wg sync.WaitGroup
	events := 0
	var readErr error
	wg.Go(func() {
		batch := make([]event.Event, 1024)
		for {
			n, err := p.Read(batch, 100*time.Millisecond)
			events += n
			if err != nil {
				if !errors.Is(err, io.EOF) {
					readErr = err
				}
				return
			}
		}
	})
	before, err := p.Stats()
	if err != nil {
		return stretch{}, err
	}
	start := time.Now()
	_, err = lab.Churn(b.ctx, ns, b.connections, 100)
	took := time.Since(start)
	if err != nil {
		return stretch{}, err
	}
	after, err := p.Stats()
	if err != nil {
		return stretch{}, err
	}
	p.Stop()
	wg.Wait()
	if readErr != nil {
		return stretch{}, readErr
	}
	s := stretch{by: map[string]probe.Runtime{}, events: events, perSec: float64(b.connections) / took.Seconds()}
	for i, r := range after.Runtime {
		r.Runs -= before.Runtime[i].Runs
		r.Time -= before.Runtime[i].Time
		s.by[r.Program] = r
		s.runs += r.Runs
		s.ns += uint64(r.Time)
	}
	for _, n := range after.Lost {
		s.lost += n
	}
	return s, nil
}

// kernelCost compares the programs with empty ones on the same hooks.
func (b *bench) kernelCost() error {
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		return fmt.Errorf("enabling run-time statistics: %w", err)
	}
	defer stats.Close()
	var empty, full []stretch
	for range b.rounds {
		e, err := b.churn(true)
		if err != nil {
			return err
		}
		f, err := b.churn(false)
		if err != nil {
			return err
		}
		empty, full = append(empty, e), append(full, f)
	}
	e, f := median(empty), median(full)
	n := float64(b.connections)
	fmt.Printf("kernel: %d connections a stretch, both ends traced, median of %d\n", b.connections, b.rounds)
	names := make([]string, 0, len(f.by))
	for name := range f.by {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		r, q := f.by[name], e.by[name]
		if r.Runs == 0 {
			continue
		}
		fmt.Printf("  %-22s %6.2f runs/conn  %7.1f ns a run, empty %6.1f\n", name, float64(r.Runs)/n,
			float64(r.Time)/float64(r.Runs), float64(q.Time)/float64(max(q.Runs, 1)))
	}
	fmt.Printf("  all programs           %7.2f us/conn, empty %7.2f, ratio %.2f (limit 4)\n",
		float64(f.ns)/n/1000, float64(e.ns)/n/1000, float64(f.ns)/float64(e.ns))
	fmt.Printf("  events                 %6.2f a connection, lost %d\n", float64(f.events)/n, f.lost)
	return nil
}

func mid(v []float64) float64 {
	sort.Float64s(v)
	return v[len(v)/2]
}

func median(s []stretch) stretch {
	sort.Slice(s, func(i, j int) bool { return s[i].ns < s[j].ns })
	return s[len(s)/2]
}
