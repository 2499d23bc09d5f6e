// Package tracer attaches tcptrace's hooks and delivers what they see.
//
// [Open] attaches, [Tracer.Read] delivers events, [Tracer.Stop] detaches, and
// Read then drains what is left. The package observes; correlation and
// diagnosis are other packages' work.
package tracer

import (
	"context"
	"fmt"
	"net/netip"
	"runtime"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/probe"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// Errors that Open wraps.
var (
	ErrNotPermitted = probe.ErrNotPermitted
	ErrNotSupported = probe.ErrNotSupported
)

// FilterMax is how many values of one kind a KernelFilter can hold; a kind
// with more is not evaluated in the kernel.
const FilterMax = probe.FilterMax

// KernelFilter is evaluated in the kernel: values of a kind are combined with
// OR, kinds with AND, and an empty kind lets everything pass. It never drops
// an event whose ports or addresses are not known yet.
type KernelFilter struct {
	Ports       []uint16 // either end
	LocalPorts  []uint16
	RemotePorts []uint16
	Addrs       []netip.Prefix // either end
	Netns       []uint32       // inode numbers
}

// Options of Open. The zero value traces everything by the best means.
type Options struct {
	Attach   string // auto (or ""), fentry, kprobe or tracepoint
	RingSize int    // bytes, a power of two and a multiple of the page size; 0: 8 MiB
	Filter   KernelFilter
	Log      *zap.Logger // diagnostics; nil: none
}

// Tracer is a set of attached hooks. Read must not be called concurrently
// with itself; all other methods may be called at any time.
type Tracer struct {
	p *probe.Probe
}

// Open attaches the hooks, usually within half a second. Hooks that this
// kernel does not allow are told by Capabilities; Open fails only where the
// main job can't be done, with an error that wraps ErrNotPermitted or
// ErrNotSupported. Needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN, or root.
func Open(ctx context.Context, o Options) (*Tracer, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	p, err := probe.Open(probe.Options{
		Attach:   o.Attach,
		RingSize: o.RingSize,
		Filter:   probe.Filter(o.Filter),
		Log:      o.Log,
	})
	if err != nil {
		return nil, err
	}
	return &Tracer{p}, nil
}

// Capabilities tells what this kernel and these hooks can show.
func (t *Tracer) Capabilities() event.Capabilities { return t.p.Capabilities() }

// Read fills batch in arrival order and returns how many events it holds,
// which may be 0 after timeout. Events are delayed by at most the timeout.
// After Stop, Read drains the ring and then returns io.EOF.
func (t *Tracer) Read(batch []event.Event, timeout time.Duration) (int, error) {
	return t.p.Read(batch, timeout)
}

// Stop detaches the hooks; what is in the ring can still be read.
func (t *Tracer) Stop() { t.p.Stop() }

// Close detaches the hooks and releases everything.
func (t *Tracer) Close() error { return t.p.Close() }

// Snapshot calls fn for each TCP socket that exists now in the network
// namespace behind the descriptor netns, or in the caller's own for -1. The
// sockets are not frozen meanwhile. fn must not keep the event.
func (t *Tracer) Snapshot(netns int, fn func(*event.Event)) error {
	if netns < 0 {
		return t.p.Snapshot(fn)
	}
	res := make(chan error, 1)
	go func() {
		// Never unlocked: a thread in another namespace must not be reused.
		runtime.LockOSThread()
		if err := unix.Setns(netns, unix.CLONE_NEWNET); err != nil {
			res <- fmt.Errorf("listing sockets: entering the network namespace: %w", err)
			return
		}
		res <- t.p.Snapshot(fn)
	}()
	return <-res
}

// Folded returns events for what a flood made too many of to be told one by
// one since it was last called, with their Count, as of now (CLOCK_BOOTTIME,
// ns). Call it about once a second, and after Stop a last time.
func (t *Tracer) Folded(now int64) ([]event.Event, error) { return t.p.Folded(now) }

// Stats are counters since Open.
type Stats struct {
	// Lost counts events that never arrived, by where they were lost: ring
	// (full), map (full), memory (unreadable), decode, and "missed HOOK".
	Lost map[string]uint64
	// Audit counts what the kernel's own counters count, by namespace, before
	// any filter.
	Audit map[AuditKey]uint64
	// Runtime is the cost of each program; zero unless
	// kernel.bpf_stats_enabled is on.
	Runtime []Runtime
}

// AuditKey names a kernel counter, as nstat does without its family
// ("ListenOverflows"), in the namespace with this inode number.
type AuditKey struct {
	Netns   uint32
	Counter string
}

// Runtime is the cost of one program since it was loaded.
type Runtime struct {
	Program string
	Runs    uint64
	Time    time.Duration
	Missed  uint64 // runs that the kernel skipped
}

// Stats reads the counters.
func (t *Tracer) Stats() (Stats, error) {
	s, err := t.p.Stats()
	if err != nil {
		return Stats{}, err
	}
	out := Stats{Lost: s.Lost, Audit: make(map[AuditKey]uint64, len(s.Audit))}
	for k, v := range s.Audit {
		out.Audit[AuditKey(k)] = v
	}
	for _, r := range s.Runtime {
		out.Runtime = append(out.Runtime, Runtime(r))
	}
	return out, nil
}
