package timeline

import (
	"net/netip"
	"runtime"
	"testing"
	"unsafe"

	"github.com/tcptrace/tcptrace/tracer/event"
)

func TestSizes(t *testing.T) {
	// 240 is one of the allocator's size classes; the next is 256.
	if n := unsafe.Sizeof(Conn{}); n > 240 {
		t.Errorf("Conn is %d bytes", n)
	}
	if n := unsafe.Sizeof(Entry{}); n != 16 {
		t.Errorf("Entry is %d bytes", n)
	}
}

// TestBytesPerConnection holds the tracker to what 200,000 live connections
// may cost. Each has the entries that a long-lived one has: syn-sent and
// established, or established, accepted and fin-received.
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
	tr := New(Options{})
	var comm event.Comm
	copy(comm[:], "relay")
	for i := range n / 2 {
		client := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 16), byte(i >> 8)}), uint16(1024+i&255))
		server := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 2, 0, 1}), 8080)
		now := int64(i) * 1000
		e := event.Event{Time: now, Sock: uint64(2 * i), Netns: 1, Kind: event.KindState, Local: netip.AddrPortFrom(client.Addr(), 0), Remote: server,
			Old: event.StateClose, New: event.StateSynSent, Flags: event.FlagProcess, PID: 7, Comm: comm}
		e.Sock += 1000
		tr.Handle(&e)
		e.Local = client
		e.Old, e.New, e.Time = event.StateSynSent, event.StateEstablished, now+100
		tr.Handle(&e)
		s := event.Event{Time: now + 200, Sock: uint64(2*i) + 1001, Netns: 1, Kind: event.KindState, Local: server, Remote: client,
			Old: event.StateSynRecv, New: event.StateEstablished}
		tr.Handle(&s)
		s.Kind, s.Old, s.Flags, s.PID, s.Comm = event.KindAccept, event.StateEstablished, event.FlagProcess, 8, comm
		s.Time += 100
		tr.Handle(&s)
		s.Kind, s.New, s.Flags = event.KindState, event.StateCloseWait, event.FlagDone
		s.Time += 100
		tr.Handle(&s)
	}
	per := float64(heap()-before) / n
	t.Logf("%.0f bytes for each live connection", per)
	if s := tr.Stats(); s.Live != n {
		t.Fatalf("%d connections live, not %d", s.Live, n)
	}
	if per > 265 {
		t.Errorf("%.0f bytes for each live connection", per)
	}
	runtime.KeepAlive(tr)
}

// BenchmarkShortConnection is a client's connection from SYN to TIME_WAIT.
func BenchmarkShortConnection(b *testing.B) {
	tr := New(Options{})
	var comm event.Comm
	copy(comm[:], "relay")
	server := netip.MustParseAddrPort("10.2.0.1:8080")
	b.ReportAllocs()
	for i := range b.N {
		client := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, 0, 1}), uint16(1024+i%50000))
		now := int64(i) * 100_000
		e := event.Event{Time: now, Sock: uint64(i) + 1, Netns: 1, Kind: event.KindState, Local: client, Remote: server,
			Old: event.StateClose, New: event.StateSynSent, Flags: event.FlagProcess, PID: 7, Comm: comm}
		for _, s := range []event.State{event.StateEstablished, event.StateFinWait1, event.StateFinWait2, event.StateClose, event.StateClose} {
			tr.Handle(&e)
			e.Old, e.New = e.New, s
			e.Time += 1000
		}
		if i%100 == 0 {
			tr.Advance(now)
		}
	}
}
