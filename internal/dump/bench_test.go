package dump

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tcptrace/tcptrace/tracer/event"
)

// churn tells a feed what short connections over loopback look like: both
// ends, of two clients at a time, eleven events a connection.
func churn(f Feed, connections int) (events int) {
	r := rand.New(rand.NewPCG(4, 2))
	at := int64(5_000_000_000_000)
	server := netip.MustParseAddrPort("127.0.0.1:8080")
	cookies := [2]uint64{0x1000, 0x5000} // each CPU has a batch of its own
	port := [2]uint16{32768, 45000}
	type step struct {
		client bool
		event.Event
	}
	client, accepted := event.Comm{'w', 'r', 'k'}, event.Comm{'n', 'g', 'i', 'n', 'x'}
	connection := func(worker int) []step {
		cpu := worker
		if r.IntN(16) == 0 {
			cpu = 1 - cpu
		}
		c, s := cookies[cpu], cookies[cpu]+1
		cookies[cpu] += 2
		port[worker] += 2 * uint16(1+r.IntN(3)/2)
		if port[worker] > 60000 {
			port[worker] = 32768 + uint16(worker)
		}
		local := netip.AddrPortFrom(server.Addr(), port[worker])
		rtt := func() uint32 { return 12 + uint32(r.ExpFloat64()*9) }
		c1, s1, c2, s2, c3 := rtt(), rtt(), rtt(), rtt(), rtt()
		sent := event.Traffic{BytesSent: 100, BytesReceived: 1000}
		got := event.Traffic{BytesSent: 1000, BytesReceived: 100}
		with := func(t event.Traffic, srtt uint32) event.Traffic { t.SRTT = srtt; return t }
		both := event.FlagShutRD | event.FlagShutWR
		steps := []step{
			{true, event.Event{Kind: event.KindState, Old: event.StateClose, New: event.StateSynSent, Flags: event.FlagProcess}},
			{false, event.Event{Kind: event.KindState, Old: event.StateSynRecv, New: event.StateEstablished, Traffic: with(event.Traffic{}, s1)}},
			{true, event.Event{Kind: event.KindState, Old: event.StateSynSent, New: event.StateEstablished, Traffic: with(event.Traffic{}, c1)}},
			{false, event.Event{Kind: event.KindAccept, New: event.StateEstablished, Flags: event.FlagProcess, Traffic: with(event.Traffic{}, s1)}},
			{true, event.Event{Kind: event.KindState, Old: event.StateEstablished, New: event.StateFinWait1, Flags: event.FlagProcess | event.FlagShutWR, Traffic: with(sent, c2)}},
			{false, event.Event{Kind: event.KindState, Old: event.StateEstablished, New: event.StateCloseWait, Flags: event.FlagDone | event.FlagShutRD, Traffic: with(got, s2)}},
			{true, event.Event{Kind: event.KindState, Old: event.StateFinWait1, New: event.StateFinWait2, Flags: event.FlagDead | both, Traffic: with(sent, c3)}},
			{false, event.Event{Kind: event.KindState, Old: event.StateCloseWait, New: event.StateLastAck, Flags: event.FlagProcess | event.FlagDone | both, Traffic: with(got, s2)}},
			{true, event.Event{Kind: event.KindState, Old: event.StateFinWait2, New: event.StateClose, Flags: event.FlagDead | event.FlagDone | event.FlagTimeWait | both, Traffic: with(sent, c3)}},
			{false, event.Event{Kind: event.KindState, Old: event.StateLastAck, New: event.StateClose, Flags: event.FlagDead | event.FlagDone | both, Traffic: with(got, s2)}},
			{true, event.Event{Kind: event.KindState, Old: event.StateTimeWait, New: event.StateClose, Flags: event.FlagDead}},
		}
		for i := range steps {
			e := &steps[i].Event
			e.Netns, e.Sock, e.Local, e.Remote = 4026531840, s, server, local
			if steps[i].client {
				e.Sock, e.Local, e.Remote = c, local, server
			}
			if e.Has(event.FlagProcess) {
				e.PID, e.Comm, e.Cgroup = 4242, accepted, 77
				if steps[i].client {
					e.PID, e.Comm, e.Cgroup = 4343, client, 91
				}
			}
		}
		return steps
	}
	var open [2][]step
	for connections > 0 || len(open[0])+len(open[1]) > 0 {
		w := r.IntN(2)
		if len(open[w]) == 0 {
			if connections == 0 {
				w = 1 - w
			} else {
				connections--
				open[w] = connection(w)
			}
		}
		if len(open[w]) == 0 {
			continue
		}
		e := &open[w][0].Event
		open[w] = open[w][1:]
		at += 500 + int64(r.ExpFloat64()*5000)
		e.Time = at
		f.Event(e)
		if events++; events%1000 == 0 {
			f.Advance(at)
		}
	}
	return events
}

// nothing is a feed that does nothing.
type nothing struct{ events int }

func (n *nothing) Clock(int64)                           {}
func (n *nothing) Namespace(event.Namespace)             {}
func (n *nothing) Process(event.Process)                 {}
func (n *nothing) Event(*event.Event)                    { n.events++ }
func (n *nothing) BeginSnapshot(uint32, int64)           {}
func (n *nothing) Snapshot(*event.Event, uint32, string) {}
func (n *nothing) EndSnapshot(uint32, int64)             {}
func (n *nothing) Lost(int64, event.Lost)                {}
func (n *nothing) Advance(int64)                         {}
func (n *nothing) Audit(Audit)                           {}

// kept events are made before the clock runs.
type events struct {
	nothing
	list []event.Event
}

func (e *events) Event(ev *event.Event) { e.list = append(e.list, *ev) }

func churned() []event.Event {
	var e events
	churn(&e, 20_000)
	return e.list
}

func BenchmarkEncode(b *testing.B) {
	list := churned()
	e := NewEncoder(func(*Frame) {})
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		e.Event(&list[i%len(list)])
	}
}

func BenchmarkCompress(b *testing.B) {
	var frames []*Frame
	e := NewEncoder(func(f *Frame) { frames = append(frames, f) })
	n := churn(e, 20_000)
	e.Flush()
	var stored, raw int
	b.ResetTimer()
	for range b.N {
		stored, raw = 0, 0
		var dst []byte
		for _, f := range frames {
			dst = f.Append(dst[:0], 1, 1)
			stored += len(dst)
			raw += len(f.Raw)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/event")
	b.ReportMetric(float64(stored)/float64(n), "B/event")
	b.ReportMetric(float64(raw)/float64(n), "rawB/event")
}

func BenchmarkDecode(b *testing.B) {
	dump := written(b, func(f Feed) { churn(f, 20_000) }, false)
	var n nothing
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		n.events = 0
		r, err := NewReader(bytes.NewReader(dump))
		require.NoError(b, err)
		for err == nil {
			err = r.Next(&n)
		}
		require.ErrorIs(b, err, io.EOF)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n.events), "ns/event")
}

func TestChurnIsKeptInFewBytes(t *testing.T) {
	n := 0
	dump := written(t, func(f Feed) { n = churn(f, 20_000) }, false)
	require.Less(t, float64(len(dump))/float64(n), 9.0, "bytes an event")
	var want, got tape
	dump = written(t, func(f Feed) { churn(f, 2_000) }, false)
	churn(&want, 2_000)
	r, err := NewReader(bytes.NewReader(dump))
	require.NoError(t, err)
	for err == nil {
		err = r.Next(&got)
	}
	require.ErrorIs(t, err, io.EOF)
	require.Equal(t, want.lines, got.lines)
}
