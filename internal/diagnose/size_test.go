package diagnose_test

import (
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/internal/diagnose"
	"github.com/tcptrace/tcptrace/internal/timeline"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// leaking fills a tracker with n connections in CLOSE_WAIT, 360 to each
// remote, as they were before tracing began.
func leaking(n int, x *diagnose.Engine) *timeline.Tracker {
	tr := timeline.New(timeline.Options{Observer: x})
	now := int64(10 * time.Hour)
	tr.BeginSnapshot(1, now)
	for i := range n {
		e := event.Event{Time: now + 1, Sock: uint64(i + 1), Netns: 1, Kind: event.KindSnapshot, Old: event.StateCloseWait, New: event.StateCloseWait,
			Local:     netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 15), 1}), uint16(1024+i&(1<<15-1))),
			Remote:    netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(i / 360 >> 8), byte(i / 360)}), 3306),
			Inventory: &event.Inventory{Inode: uint64(i + 1), Idle: time.Hour, KeepaliveTime: 2 * time.Hour}}
		tr.Handle(&e)
		tr.SnapshotOwner(e.Sock, e.Time, 77, "worker")
	}
	tr.EndSnapshot(1, now+2)
	tr.Advance(now + 3)
	return tr
}

// TestBytesPerConnection holds tracker and rules together to what 200,000
// connections may cost when every one of them is part of a verdict.
func TestBytesPerConnection(t *testing.T) {
	const n = 200_000
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	x := diagnose.New(diagnose.Options{}, nil)
	tr := leaking(n, x)
	tr.Advance(tr.Now() + int64(6*time.Second))
	if got := x.Stats().Verdicts["close-wait-leak"]; got != n {
		t.Fatalf("%d of %d connections found", got, n)
	}
	per := float64(heap()-before) / n
	t.Logf("%.0f bytes for each connection", per)
	if per > 275 {
		t.Errorf("%.0f bytes for each connection", per)
	}
	runtime.KeepAlive(tr)
}

// BenchmarkCloseWaitPass is what looking at 200,000 connections in CLOSE_WAIT
// costs, every 5 s.
func BenchmarkCloseWaitPass(b *testing.B) {
	x := diagnose.New(diagnose.Options{}, nil)
	tr := leaking(200_000, x)
	now := tr.Now()
	b.ResetTimer()
	for range b.N {
		now += int64(6 * time.Second)
		tr.Advance(now)
	}
}

// BenchmarkShortConnection is both ends of a connection, tracked and judged.
func BenchmarkShortConnection(b *testing.B) {
	x := diagnose.New(diagnose.Options{Capabilities: fullCapabilities()}, nil)
	tr := timeline.New(timeline.Options{Observer: x})
	var comm event.Comm
	copy(comm[:], "relay")
	server := netip.MustParseAddrPort("10.2.0.1:8080")
	b.ReportAllocs()
	for i := range b.N {
		client := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, 0, 1}), uint16(1024+i%50000))
		e := event.Event{Time: int64(i+1) * 100_000, Netns: 1, Kind: event.KindState, PID: 7, Comm: comm}
		step := func(sock uint64, local, remote netip.AddrPort, old, new event.State, f event.Flags) {
			e.Sock, e.Local, e.Remote, e.Old, e.New, e.Flags = sock, local, remote, old, new, f
			e.Time += 1000
			tr.Handle(&e)
		}
		c, s := uint64(2*i+1), uint64(2*i+2)
		step(c, netip.AddrPortFrom(client.Addr(), 0), server, event.StateClose, event.StateSynSent, event.FlagProcess)
		step(s, server, client, event.StateSynRecv, event.StateEstablished, 0)
		step(c, client, server, event.StateSynSent, event.StateEstablished, 0)
		e.Kind = event.KindAccept
		step(s, server, client, event.StateEstablished, event.StateEstablished, event.FlagProcess)
		e.Kind = event.KindState
		e.Traffic = event.Traffic{BytesSent: 100, BytesReceived: 100}
		step(c, client, server, event.StateEstablished, event.StateFinWait1, event.FlagProcess|event.FlagShutRD|event.FlagShutWR)
		step(s, server, client, event.StateEstablished, event.StateCloseWait, event.FlagDone)
		step(s, server, client, event.StateCloseWait, event.StateLastAck, event.FlagProcess|event.FlagShutRD|event.FlagShutWR)
		step(c, client, server, event.StateFinWait1, event.StateFinWait2, 0)
		step(c, client, server, event.StateFinWait2, event.StateClose, event.FlagTimeWait)
		step(s, server, client, event.StateLastAck, event.StateClose, 0)
		e.Traffic = event.Traffic{}
		if i%100 == 0 {
			tr.Advance(e.Time)
		}
	}
}
