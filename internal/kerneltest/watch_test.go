package kerneltest

import (
	"context"
	"errors"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tcptrace/tcptrace/internal/diagnose"
	"github.com/tcptrace/tcptrace/internal/filter"
	"github.com/tcptrace/tcptrace/internal/lab"
	"github.com/tcptrace/tcptrace/internal/pipeline"
	"github.com/tcptrace/tcptrace/internal/render"
	"github.com/tcptrace/tcptrace/tracer"
	"github.com/tcptrace/tcptrace/tracer/event"
)

func TestMain(m *testing.M) {
	lab.Main()
	os.Exit(m.Run())
}

// attach is the way to attach that is tested.
func attach() string {
	if a := os.Getenv("TCPTRACE_ATTACH"); a != "" {
		return a
	}
	return "auto"
}

// inVM says whether the kernel runs in the emulator, where everything takes
// ten to twenty times longer.
func inVM() bool { return os.Getenv("TCPTRACE_VM") != "" }

// patience is how long something that is sure to come may take.
func patience() time.Duration {
	if inVM() {
		return 3 * time.Minute
	}
	return time.Minute
}

// watcher is a whole tcptrace whose output is kept instead of printed.
type watcher struct {
	caps event.Capabilities

	mu          sync.Mutex
	verdicts    []*render.Verdict
	connections []*render.Connection
	events      []*render.Event
	lost        []*render.Lost
	summary     *render.Summary
	missed      uint64 // runs of programs that the kernel skipped

	stop context.CancelFunc
	done chan error
}

func (w *watcher) Start(*render.Start) error       { return nil }
func (w *watcher) Namespace(event.Namespace)       {}
func (w *watcher) Flush() error                    { return nil }
func (w *watcher) Event(e *render.Event) error     { return keep(w, &w.events, e) }
func (w *watcher) Verdict(v *render.Verdict) error { return keep(w, &w.verdicts, v) }
func (w *watcher) Lost(l *render.Lost) error       { return keep(w, &w.lost, l) }
func (w *watcher) Summary(s *render.Summary) error { w.summary = s; return nil }
func (w *watcher) Connection(c *render.Connection) error {
	return keep(w, &w.connections, c)
}

func keep[T any](w *watcher, list *[]T, v T) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	*list = append(*list, v)
	return nil
}

// watch starts tracing and returns once all hooks are attached.
func watch(t *testing.T, f filter.Filter, d diagnose.Options) *watcher {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	tr, err := tracer.Open(ctx, tracer.Options{Attach: attach(), Filter: tracer.KernelFilter{Netns: f.Netns, Ports: f.Ports}})
	if err != nil {
		cancel()
		t.Fatalf("%v (these tests need root and a kernel with BTF)", err)
	}
	w := &watcher{caps: tr.Capabilities(), stop: cancel, done: make(chan error, 1)}
	ready := make(chan struct{})
	go func() {
		_, err := pipeline.Run(ctx, pipeline.Config{
			Options: pipeline.Options{
				Out:      w,
				Show:     pipeline.Show{Verdicts: true, Connections: true, All: true},
				Filter:   f,
				Diagnose: d,
			},
			Tracer: tr,
			Ready:  func() error { close(ready); return nil },
		})
		w.done <- errors.Join(err, tr.Close())
	}()
	select {
	case <-ready:
	case err := <-w.done:
		t.Fatalf("watching: %v", err)
	case <-time.After(patience()):
		t.Fatal("watching: not ready in time")
	}
	t.Cleanup(func() { w.stop() })
	return w
}

// end stops tracing and waits for the summary.
func (w *watcher) end(t *testing.T) {
	t.Helper()
	w.stop()
	select {
	case err := <-w.done:
		require.NoError(t, err)
	case <-time.After(patience()):
		t.Fatal("the watch did not end")
	}
	require.NotNil(t, w.summary, "no summary")
}

// final returns the last word on each verdict in a namespace.
func (w *watcher) final(netns map[uint32]bool) []*render.Verdict {
	var out []*render.Verdict
	for _, v := range w.summary.Final {
		if netns[v.Netns] {
			out = append(out, v)
		}
	}
	return out
}
