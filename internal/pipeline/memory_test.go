package pipeline

import (
	"context"
	"io"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tcptrace/tcptrace/internal/dump"
	"github.com/tcptrace/tcptrace/internal/render"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// churn is a dump of short connections that is made as it is read: nobody holds
// the whole of it.
type churn struct {
	enc    *dump.Encoder
	script []event.Event // of one connection
	conns  int           // still to come
	n      uint64        // made
	now    int64
	run    uint32
	seq    uint32
	bytes  []byte // made and not read
	frame  []byte
	before uint64
}

// apart is the time between the beginnings of two connections.
const apart = 50 * time.Microsecond

func newChurn(t testing.TB, conns int) *churn {
	t.Helper()
	h := dump.Header{Run: "churn", Host: "h", Started: 1e18, StartedBoot: 1, Capabilities: event.Capabilities{
		Identity: event.IdentityCookie, HasAccept: true, HasSYNDrops: true, HasACKDrops: true, HasListenArg: true, HasAllRSTSent: true, HasProbes: true, HasDrops: true,
	}}
	begin, err := dump.HeaderFrame(h)
	require.NoError(t, err)
	c := &churn{script: short(1), conns: conns, run: dump.RunID(h.Run), seq: 2, bytes: begin}
	c.enc = dump.NewEncoder(func(f *dump.Frame) {
		c.before = f.Before + uint64(f.Events)
		c.add(f)
	})
	c.enc.Clock(1e18)
	return c
}

func (c *churn) add(f *dump.Frame) {
	c.bytes = f.Append(c.bytes, c.run, c.seq)
	c.seq++
}

// Read makes what is needed.
func (c *churn) Read(b []byte) (int, error) {
	for len(c.bytes) == 0 {
		c.bytes = c.frame[:0]
		switch {
		case c.conns > 0:
			c.connect()
			if c.conns == 0 {
				c.enc.Flush()
			}
		case c.conns == 0:
			c.conns = -1
			end, err := dump.EndFrame(dump.End{Reason: dump.EndDone, At: c.now}, c.before)
			if err != nil {
				return 0, err
			}
			c.add(end)
		default:
			return 0, io.EOF
		}
		c.frame = c.bytes
	}
	n := copy(b, c.bytes)
	c.bytes = c.bytes[n:]
	return n, nil
}

// connect tells of one more connection, with ports that come again after a
// while.
func (c *churn) connect() {
	c.conns--
	begun := int64(c.n) * int64(apart)
	port := uint16(32768 + c.n%28000)
	for _, e := range c.script {
		e.Time += begun
		e.Sock += 2 * c.n
		for _, a := range []*netip.AddrPort{&e.Local, &e.Remote} {
			if a.Port() == 1 {
				*a = netip.AddrPortFrom(a.Addr(), port)
			}
		}
		c.enc.Event(&e)
		c.now = max(c.now, e.Time)
	}
	if c.n++; c.n%2000 == 0 {
		c.enc.Advance(begun) // what comes later is later
	}
}

// measured has the live heap measured now and then while a dump is replayed.
type measured struct {
	render.Renderer
	flushes int
	heap    []uint64 // bytes
}

func (m *measured) Flush() error {
	if m.flushes++; m.flushes%2 == 0 {
		runtime.GC()
		var s runtime.MemStats
		runtime.ReadMemStats(&s)
		m.heap = append(m.heap, s.HeapAlloc)
	}
	return m.Renderer.Flush()
}

// TestReplayMemory: what a replay keeps is bounded by what lives, and not by
// how long the dump is. `make bench` has longer ones.
func TestReplayMemory(t *testing.T) {
	const conns, perConn, most = 100_000, 10, 48 << 20
	src := newChurn(t, conns)
	r, err := dump.NewReader(src)
	require.NoError(t, err)
	out := &measured{Renderer: render.NewJSON(io.Discard)}
	o := Options{Out: out, Show: Show{Verdicts: true, Connections: true}}
	runtime.GC()
	var before runtime.MemStats
	runtime.ReadMemStats(&before)
	got, err := Replay(context.Background(), ReplayConfig{Options: o}, Recording{Parts: []Part{{Name: "churn", Reader: r}}})
	require.NoError(t, err)
	require.Empty(t, got.Problems)
	require.EqualValues(t, conns*perConn, got.Summary.Events)
	require.EqualValues(t, 2*conns, got.Summary.Connections)
	require.Zero(t, got.Summary.Lost)
	n := len(out.heap)
	require.Greater(t, n, 5)
	for _, h := range out.heap {
		require.Less(t, h, before.HeapAlloc+most, "live heap, bytes: %v", out.heap)
	}
	require.Less(t, float64(out.heap[n-1]), 1.2*float64(out.heap[n/2]), "live heap at the end against the middle: %v", out.heap)
	t.Logf("%d frames, %d to %d kB of heap", out.flushes, out.heap[0]>>10, out.heap[n-1]>>10)
}
