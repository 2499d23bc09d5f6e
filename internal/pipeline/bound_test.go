package pipeline

import (
	"bytes"
	"maps"
	"net/netip"
	"slices"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tcptrace/tcptrace/internal/filter"
	"github.com/tcptrace/tcptrace/internal/render"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// TestNoOtherEnd: a listener and a failed bind() have no remote end that could
// be the one that was asked for. What clients that were asked for met at a
// listener is told all the same.
func TestNoOtherEnd(t *testing.T) {
	const second = 1_000_000_000
	local := netip.MustParseAddrPort("10.0.0.1:8080")
	queue := event.Listener{ID: 1, QueueLen: 129, QueueLimit: 128, Somaxconn: 128, Backlog: 4096}
	base := event.Event{Netns: 5, Local: local, Flags: event.FlagProcess, PID: 7, Comm: comm("web"), Listener: queue}

	open, listen, bind, dropped := base, base, base, base
	open.Time, open.Kind, open.Sock, open.Old, open.New = second, event.KindState, 1, event.StateClose, event.StateListen
	listen.Time, listen.Kind, listen.Sock, listen.New = second+1, event.KindListen, 1, event.StateListen
	bind.Time, bind.Kind, bind.Err = 2*second, event.KindBindFailed, uint16(syscall.EADDRINUSE)
	dropped.Time, dropped.Kind, dropped.Flags, dropped.PID = 3*second, event.KindSYNDropped, 0, 0
	dropped.Remote = netip.MustParseAddrPort("192.0.2.9:40000")

	all := []string{"accept-queue-overflow", "backlog-clamped", "bind-conflict"}
	prefix := func(s string) []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix(s)} }
	for _, c := range []struct {
		name  string
		f     filter.Filter
		codes []string
		raw   int
	}{
		{"all", filter.Filter{}, all, 4},
		{"its port", filter.Filter{LocalPorts: []uint16{8080}}, all, 4},
		{"its address", filter.Filter{Addrs: prefix("10.0.0.0/8")}, all, 4},
		{"another remote port", filter.Filter{RemotePorts: []uint16{5432}}, nil, 0},
		{"the client's port", filter.Filter{RemotePorts: []uint16{40000}}, all[:1], 1},
		{"the client", filter.Filter{Addrs: prefix("192.0.2.9/32")}, all[:1], 1},
		{"another client", filter.Filter{Addrs: prefix("192.0.2.8/32")}, nil, 0},
	} {
		raw, out := 0, new(bytes.Buffer)
		m := NewMachine(Options{
			Out: render.NewJSON(out), Show: Show{Verdicts: true, Events: true}, Filter: c.f,
			Raw: func(*event.Event, render.Stamp, string) { raw++ },
		})
		m.Namespace(event.Namespace{Inode: 5, Known: true})
		for _, e := range []event.Event{open, listen, bind, dropped} {
			m.Event(&e)
			m.Advance(e.Time)
		}
		sum, err := m.Finish(20*second, render.Summary{})
		require.NoError(t, err)
		assert.Equal(t, c.codes, slices.Sorted(maps.Keys(sum.Verdicts)), c.name)
		assert.Equal(t, c.raw, raw, c.name)
		assert.Equal(t, c.raw == 4, bytes.Contains(out.Bytes(), []byte(`"event":"listen"`)), c.name)
	}
}
