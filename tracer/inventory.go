package tracer

import (
	"context"

	"go.uber.org/zap"

	"github.com/tcptrace/tcptrace/internal/probe"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// Inventory lists the TCP sockets that exist, without tracing anything: one
// program that runs only while it is read. Its methods may be called from
// several goroutines.
type Inventory struct {
	t Tracer
}

// OpenInventory loads the iterator, usually within 0.2 s. It fails with an
// error that wraps ErrNotPermitted or ErrNotSupported. It needs CAP_BPF and
// CAP_PERFMON, or root. log may be nil.
func OpenInventory(ctx context.Context, log *zap.Logger) (*Inventory, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	p, err := probe.OpenInventory(log)
	if err != nil {
		return nil, err
	}
	return &Inventory{Tracer{p}}, nil
}

// Snapshot is [Tracer.Snapshot]. Listeners come before all other sockets.
func (i *Inventory) Snapshot(netns int, fn func(*event.Event)) error {
	return i.t.Snapshot(netns, fn)
}

// Close releases the iterator.
func (i *Inventory) Close() error { return i.t.Close() }
