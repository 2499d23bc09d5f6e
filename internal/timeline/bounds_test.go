package timeline

import (
	"math"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/tracer/event"
)

// torrent makes events without end, for which more is remembered than there is
// room for.
type torrent struct {
	r   *rand.Rand
	now int64
	n   uint64 // events so far
	// extreme lets some times be far off.
	extreme bool
}

func (f *torrent) end() netip.AddrPort {
	var a [4]byte
	v := f.r.Uint32()
	a[0], a[1], a[2], a[3] = 10, byte(v), byte(v>>8), byte(v>>16)
	return netip.AddrPortFrom(netip.AddrFrom4(a), uint16(1+f.r.IntN(65535)))
}

// next fills e with one more event of the given kind.
func (f *torrent) next(e *event.Event, kind event.Kind) {
	f.n++
	f.now += 10_000
	local := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, 9}), uint16(8080+f.r.IntN(50)))
	*e = event.Event{Time: f.now, Sock: f.n<<8 + 1, Netns: 1 + uint32(f.r.IntN(3)), Kind: kind, Local: local, Remote: f.end(),
		PID: f.r.Uint32(), Flags: event.FlagProcess, Count: f.r.Uint32()}
	e.Comm[0] = 'a' + byte(f.r.IntN(26))
	e.Listener = event.Listener{ID: uint64(1 + f.r.IntN(500)), QueueLen: 2, QueueLimit: 1, Attempt: uint8(f.r.IntN(8)), SYNACKRetries: 5}
	if f.r.IntN(50) == 0 {
		e.Netns = f.r.Uint32()
	}
	if f.extreme && f.r.IntN(20) == 0 {
		e.Time = []int64{0, -1, math.MinInt64, math.MaxInt64, f.now + int64(1000*time.Hour), f.now - int64(time.Hour)}[f.r.IntN(6)]
	}
	switch kind {
	case event.KindSYNDropped:
		e.Sock = 0
	case event.KindACKOverflow:
		if f.r.IntN(3) == 0 {
			e.Flags |= event.FlagCookie
		}
	case event.KindState:
		t := [][2]event.State{{event.StateClose, event.StateSynSent}, {event.StateSynSent, event.StateEstablished}, {event.StateSynRecv, event.StateEstablished},
			{event.StateEstablished, event.StateFinWait1}, {event.StateFinWait2, event.StateClose}, {event.StateLastAck, event.StateClose},
			{event.StateEstablished, event.StateClose}, {event.StateClose, event.StateListen}, {event.StateListen, event.StateClose}}[f.r.IntN(9)]
		e.Old, e.New = t[0], t[1]
		if f.r.IntN(2) == 0 {
			e.Flags |= event.FlagTimeWaitFW2
		}
		if f.r.IntN(4) > 0 { // of one that is there
			e.Sock = max(1, f.n-uint64(f.r.IntN(100)))<<8 + 1
		}
	case event.KindRSTSent:
		e.Old, e.New, e.Flags = event.StateFinWait2, event.StateTimeWait, e.Flags|event.FlagNoSocket
	case event.KindSnapshot:
		e.Old, e.New = event.StateEstablished, event.StateEstablished
		if f.r.IntN(4) == 0 {
			e.New = []event.State{event.StateTimeWait, event.StateFinWait2, event.StateCloseWait}[f.r.IntN(3)]
		}
		e.Inventory = &event.Inventory{Inode: f.n, Idle: time.Duration(f.r.Int64N(int64(time.Hour))), KeepaliveTime: time.Duration(f.r.Int64()),
			Minisocket: e.New == event.StateTimeWait || e.New == event.StateFinWait2}
	}
}

// tight are small bounds.
var tight = Options{MaxConnections: 1000, MaxRequests: 200, MaxListeners: 100, MaxNamespaces: 20, MaxProcesses: 50}

// hold checks everything that a tracker keeps.
func hold(t *testing.T, tr *Tracker) {
	t.Helper()
	o := tr.o
	for _, x := range []struct {
		what   string
		n, max int
	}{
		{"connections", tr.live.n + tr.half.n + len(tr.ended) - tr.endedAt, o.MaxConnections},
		{"half-open", tr.half.n, o.MaxRequests},
		{"listeners", len(tr.lis), o.MaxListeners},
		{"listeners in order", len(tr.lisOrder), o.MaxListeners},
		{"namespaces", len(tr.netns), o.MaxNamespaces},
		{"namespaces in order", len(tr.nsOrder), o.MaxNamespaces},
		{"processes", len(tr.procs.byKey), o.MaxProcesses},
		{"process names", len(tr.procs.byPID), o.MaxProcesses},
		{"keepalive timers", len(tr.timers), 256},
		{"orphans", len(tr.orphans), orphanSlots},
		{"by socket", tr.bySock.n, o.MaxConnections},
		{"by addresses", tr.byTuple.n, o.MaxConnections},
		{"deadlines", len(tr.due), 4*o.MaxRequests + 4096},
		{"missing", len(tr.missing), 4*o.MaxConnections + 4096},
		{"ended", cap(tr.ended), 4*o.MaxConnections + 4096},
	} {
		if x.n > x.max {
			t.Errorf("%d %s, at most %d", x.n, x.what, x.max)
		}
	}
}

// TestBounds sends torrents of each kind of event, and of all: what is kept
// stays within what was asked for, and the heap stops growing.
func TestBounds(t *testing.T) {
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	kinds := map[string][]event.Kind{"all": nil}
	names := map[event.Kind]string{event.KindState: "state", event.KindAccept: "accept", event.KindSYNDropped: "syn-dropped", event.KindACKOverflow: "ack-overflow",
		event.KindSYNACKRetrans: "synack-retrans", event.KindRSTSent: "rst-sent", event.KindSnapshot: "snapshot", event.KindListen: "listen",
		event.KindSYNQueueFull: "syn-queue-full"}
	for k := event.KindState; k.Known(); k++ {
		kinds["all"] = append(kinds["all"], k)
		if names[k] != "" {
			kinds[names[k]] = []event.Kind{k}
		}
	}
	for name, of := range kinds {
		for _, extreme := range []bool{false, true} {
			for _, identity := range []string{event.IdentityCookie, event.IdentityAddress} {
				if name != "all" && (extreme || identity != event.IdentityCookie) {
					continue
				}
				title := name + " " + identity
				if extreme {
					title += " extreme"
				}
				t.Run(title, func(t *testing.T) {
					o := tight
					o.Capabilities.Identity = identity
					tr := New(o)
					f := &torrent{r: rand.New(rand.NewPCG(1, 5)), now: int64(time.Hour), extreme: extreme}
					var e event.Event
					run := func(n int) {
						for i := range n {
							f.next(&e, of[f.r.IntN(len(of))])
							if e.Kind == event.KindSnapshot && i%500 == 0 {
								tr.BeginSnapshot(e.Netns, f.now)
							}
							tr.Handle(&e)
							switch {
							case e.Kind == event.KindSnapshot && i%500 == 400:
								tr.EndSnapshot(e.Netns, f.now)
							case i%1000 == 0:
								tr.SnapshotOwner(e.Sock, e.Time, f.r.Uint32(), "x")
								tr.Process(event.Process{PID: f.r.Uint32(), Comm: "x"})
								tr.Lost(f.now, event.Lost{Count: 1})
							}
							if i%1000 == 999 {
								tr.Advance(f.now)
								hold(t, tr)
							}
							if t.Failed() {
								t.Fatalf("after %d events", f.n)
							}
						}
					}
					run(20_000)
					was := heap()
					run(40_000)
					// The stop of growth shows in what the second, longer run adds.
					if is := heap(); float64(is) > 1.25*float64(was)+256<<10 {
						t.Errorf("%d bytes after %d events, %d after %d", was, 20_000, is, f.n)
					}
					runtime.KeepAlive(tr)
				})
			}
		}
	}
}
