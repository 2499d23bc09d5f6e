// Package watchtest runs a whole tcptrace inside a test, on the kernel at
// hand, and keeps what it says instead of printing it.
package watchtest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tcptrace/tcptrace/internal/diagnose"
	"github.com/tcptrace/tcptrace/internal/filter"
	"github.com/tcptrace/tcptrace/internal/pipeline"
	"github.com/tcptrace/tcptrace/internal/render"
	"github.com/tcptrace/tcptrace/tracer"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// Attach is the way to attach that this run tests.
func Attach() string {
	if a := os.Getenv("TCPTRACE_ATTACH"); a != "" {
		return a
	}
	return "auto"
}

// InVM says whether the kernel runs in the emulator, where everything takes
// ten to twenty times longer.
func InVM() bool { return os.Getenv("TCPTRACE_VM") != "" }

// Patience is how long something that is sure to come may take.
func Patience() time.Duration {
	if InVM() {
		return 3 * time.Minute
	}
	return time.Minute
}

// Watcher is a whole tcptrace whose output is kept. The exported fields but
// Caps may be read once End has returned.
type Watcher struct {
	Caps        event.Capabilities
	Connections []*render.Connection
	Events      []*render.Event
	Summary     *render.Summary

	mu       sync.Mutex
	verdicts []*render.Verdict
	lost     []*render.Lost

	stop context.CancelFunc
	done chan error
	tape *tape // nil: not recorded
}

// keeper is what the pipeline writes to.
type keeper struct{ w *Watcher }

func (k keeper) Start(*render.Start) error       { return nil }
func (k keeper) Namespace(event.Namespace)       {}
func (k keeper) Flush() error                    { return nil }
func (k keeper) Event(e *render.Event) error     { return keep(k.w, &k.w.Events, e) }
func (k keeper) Verdict(v *render.Verdict) error { return keep(k.w, &k.w.verdicts, v) }
func (k keeper) Lost(l *render.Lost) error       { return keep(k.w, &k.w.lost, l) }
func (k keeper) Summary(s *render.Summary) error { k.w.Summary = s; return nil }
func (k keeper) Connection(c *render.Connection) error {
	return keep(k.w, &k.w.Connections, c)
}

func keep[T any](w *Watcher, list *[]T, v T) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	*list = append(*list, v)
	return nil
}

// Watch starts tracing and returns once all hooks are attached. It ends with
// the test at the latest.
func Watch(t *testing.T, f filter.Filter, d diagnose.Options) *Watcher {
	t.Helper()
	return watch(t, nil, f, d, nil)
}

// WatchScope does the same for some processes only.
func WatchScope(t *testing.T, scope pipeline.Scope, f filter.Filter, d diagnose.Options) *Watcher {
	t.Helper()
	return watch(t, scope, f, d, nil)
}

// WatchRecorded does what Watch does and records it, in several parts. End
// replays the recording, and fails the test unless that says the same.
func WatchRecorded(t *testing.T, f filter.Filter, d diagnose.Options) *Watcher {
	t.Helper()
	return watch(t, nil, f, d, newTape())
}

func watch(t *testing.T, scope pipeline.Scope, f filter.Filter, d diagnose.Options, tape *tape) *Watcher {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	tr, err := tracer.Open(ctx, tracer.Options{Attach: Attach(), Filter: tracer.KernelFilter{Netns: f.Netns, Ports: f.Ports}})
	if err != nil {
		cancel()
		t.Fatalf("%v (these tests need root and a kernel with BTF)", err)
	}
	w := &Watcher{Caps: tr.Capabilities(), stop: cancel, done: make(chan error, 1), tape: tape}
	ready := make(chan struct{})
	cfg := pipeline.Config{
		LookShare: 0.5, // the processor time is mostly that of the cases, in the same process
		Options: pipeline.Options{
			Out:      keeper{w},
			Show:     pipeline.Show{Verdicts: true, Connections: true, All: true},
			Filter:   f,
			Diagnose: d,
		},
		Tracer: tr,
		Scope:  scope,
		Ready:  func() error { close(ready); return nil },
	}
	if tape != nil {
		tape.record(&cfg)
	}
	go func() {
		_, err := pipeline.Run(ctx, cfg)
		w.done <- errors.Join(err, tr.Close())
	}()
	select {
	case <-ready:
	case err := <-w.done:
		t.Fatalf("watching: %v", err)
	case <-time.After(Patience()):
		t.Fatal("watching: not ready in time")
	}
	t.Cleanup(func() { w.stop() })
	return w
}

// Verdicts returns what has been said so far: a verdict comes again as it
// grows.
func (w *Watcher) Verdicts() []*render.Verdict {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.verdicts)
}

// End stops tracing and waits for the summary.
func (w *Watcher) End(t *testing.T) {
	t.Helper()
	w.stop()
	select {
	case err := <-w.done:
		require.NoError(t, err)
	case <-time.After(Patience()):
		t.Fatal("the watch did not end")
	}
	require.NotNil(t, w.Summary, "no summary")
	if w.tape != nil {
		w.tape.replay(t)
	}
}

// Final returns the last word on each verdict in the namespaces, after End.
func (w *Watcher) Final(netns map[uint32]bool) []*render.Verdict {
	var out []*render.Verdict
	for _, v := range w.Summary.Final {
		if netns[v.Netns] {
			out = append(out, v)
		}
	}
	return out
}

// CheckLost fails the test if an event was lost, after End. Kernels whose
// tracepoints can be preempted skip programs without a twin now and then:
// counted, told, and the only exception. It returns how often that was.
func (w *Watcher) CheckLost(t *testing.T) (missed uint64) {
	t.Helper()
	for _, l := range w.lost {
		t.Logf("lost: %s %d", l.Where, l.Count)
		// An interrupt in the middle of a program costs a few on every kernel: as
		// many as timers expire in it. In a case of the lab these are 17, half-open
		// requests at a backlog of 16, and six cases happen at the same time.
		const interrupted = 6 * 17
		assert.True(t, strings.HasPrefix(l.Where, "missed ") && (preemptible(w.Caps) || l.Count <= interrupted), "events were lost: %s", l.Where)
		missed += l.Count
	}
	return missed
}

// preemptible says whether the kernel guards tracepoints by SRCU.
func preemptible(c event.Capabilities) bool { return !before(c, 6, 19) }

// before says whether a kernel is older than a version.
func before(c event.Capabilities, major, minor int) bool {
	var a, b int
	if _, err := fmt.Sscanf(c.Kernel, "%d.%d", &a, &b); err != nil {
		panic(fmt.Sprintf("kernel %q: %v", c.Kernel, err)) // either answer would excuse something
	}
	return a < major || a == major && b < minor
}

// missed is how many runs of programs the kernel skipped.
func (w *Watcher) missed() (n uint64) {
	for _, l := range w.lost {
		if strings.HasPrefix(l.Where, "missed ") {
			n += l.Count
		}
	}
	return n
}

// inTimers are the counters that timers increment.
var inTimers = map[string]bool{"RetransSegs": true, "TCPSynRetrans": true, "TCPTimeouts": true, "TCPAbortOnTimeout": true}

// hidden reports whether a counter shows timers of which nothing was told, on
// kernels that neither run a program then nor count that they did not. Timers
// that expire together do so in one softirq: before 6.7 it passes by all kprobes
// if it comes in the middle of one, and what it passes by may be all that a case
// has (5.10: 16 SYN-ACKs, 6.1: 16 SYNs), but not the most of a run. On the build
// machine it may come in the middle of the machine's own agent. Elsewhere every
// increment has to be explained.
func (w *Watcher) hidden(a render.Audit) bool {
	switch {
	case !a.Exact || a.Unexplained() == 0:
		return false
	case !InVM():
		return inTimers[a.Counter]
	case w.Caps.Attach != "kprobe" || !before(w.Caps, 6, 7) || !atKprobes[a.Counter]:
		return false
	}
	var unexplained, explained uint64
	for _, b := range w.Summary.Audit {
		if b.Counter == a.Counter {
			unexplained += b.Unexplained()
			explained += b.Explained
		}
	}
	return unexplained <= explained
}

// atKprobes are the counters that timers increment where a kprobe sees it.
var atKprobes = map[string]bool{"TCPTimeouts": true, "TCPKeepAlive": true, "TCPWinProbe": true}

// Hidden is how many timers of these namespaces nothing was told of, after End.
func (w *Watcher) Hidden(netns map[uint32]bool) (n uint64) {
	for _, a := range w.Summary.Audit {
		if netns[a.Netns] && w.hidden(a) {
			n += a.Unexplained()
		}
	}
	return n
}

// neverExact tells of the counters for which this kernel has no exact hook.
func neverExact(c event.Capabilities, counter string) bool {
	switch counter {
	case "TCPAbortOnClose", "TCPAbortOnData", "TCPAbortOnLinger":
		return !c.HasRSTReason
	case "PAWSEstab":
		return !slices.Contains(slices.Collect(maps.Values(c.DropReasons)), "TCP_RFC7323_TW_PAWS")
	}
	return false
}

// retransmitFailures says whether this kernel hides retransmissions that failed
// on their way out: its tracepoint has no err then.
func retransmitFailures(c event.Capabilities) bool { return before(c, 6, 18) }

// CheckAudit fails the test if one of the kernel's counters grew otherwise
// than the events that were seen explain, after End. What these hooks cannot
// show must be said, and with full hooks nothing is excused.
func (w *Watcher) CheckAudit(t *testing.T, netns map[uint32]bool) {
	t.Helper()
	for _, a := range w.Summary.Audit {
		if !netns[a.Netns] {
			continue
		}
		if w.hidden(a) {
			t.Logf("%s of namespace %d: kernel %d, explained %d", a.Counter, a.Netns, a.Kernel, a.Explained)
			continue
		}
		if m := w.missed(); a.Exact && m > 0 {
			// What the kernel skipped, as it says itself, was not counted.
			assert.InDelta(t, a.Kernel, a.Explained, float64(m), "%s of namespace %d, with %d missed", a.Counter, a.Netns, m)
			continue
		}
		if a.Exact {
			assert.Equal(t, a.Kernel, a.Explained, "%s of namespace %d", a.Counter, a.Netns)
			continue
		}
		t.Logf("%s: kernel %d, explained %d: %s", a.Counter, a.Kernel, a.Explained, a.Note)
		assert.NotEmpty(t, a.Note, "%s is not exact and nobody says why", a.Counter)
		if strings.Contains(a.Note, "TCPRetransFail") && retransmitFailures(w.Caps) {
			continue
		}
		if Full(w.Caps) && !neverExact(w.Caps, a.Counter) {
			assert.Fail(t, "with full hooks every counter is exact", "%s: %s", a.Counter, a.Note)
		}
	}
}

// Full says whether every hook is attached the exact way.
func Full(c event.Capabilities) bool {
	for _, h := range c.Hooks {
		if h.Via == "none" {
			return false
		}
		if h.Name == "tcp_conn_request" && h.Via == "tracepoint" {
			return false
		}
	}
	return c.HasAllRSTSent
}

// Tell logs connections with their timelines, after End: at most nine of those
// that which picks.
func (w *Watcher) Tell(t *testing.T, which func(*render.Connection) bool) {
	t.Helper()
	told := 0
	for _, c := range w.Connections {
		if !which(c) || told > 8 {
			continue
		}
		told++
		t.Logf("%s %s %s %s->%s by %s[%d]: %s %v", c.ID, c.Role, c.State, c.Local, c.Remote, c.Process.Comm, c.Process.PID, c.Story, c.Verdicts)
		for _, e := range c.Timeline {
			t.Logf("    %10.3f ms  %-18s %s %v", float64(e.At-c.Timeline[0].At)/1e6, e.Event, e.Text, e.Detail)
		}
	}
}

// TellEvents logs what was recorded of some namespaces, event by event, after
// End.
func (w *Watcher) TellEvents(t *testing.T, netns map[uint32]bool) {
	t.Helper()
	if w.tape != nil {
		w.tape.tell(t, netns)
	}
}
