// Package sample makes runs up, of which the tests of package export and of
// what reads its files know all that must come out.
package sample

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/tcptrace/tcptrace/internal/container"
	"github.com/tcptrace/tcptrace/internal/diagnose"
	"github.com/tcptrace/tcptrace/internal/export"
	"github.com/tcptrace/tcptrace/internal/render"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// Hostile is what a process may call itself: a terminal escape, a newline, a
// right-to-left override, an invalid byte, a quote and a backslash. HostileSafe
// is how it is shown.
const (
	Hostile     = "e\x1b[31m\n\u202e\xff'\\"
	HostileSafe = `e\x1b[31m\n\u202e\xff'\`
)

// Hosts that the runs come from, in their order.
var Hosts = []string{"web-1", "db-1"}

// Boot is CLOCK_BOOTTIME of a run's first event, in ns, and Began the wall-clock
// time of that; the second host's run began an hour later.
const Boot = 1_000_000_000_007

// Began is when the first run began, with nanoseconds that are not zeros.
var Began = time.Date(2026, 3, 1, 3, 0, 0, 123_456_789, time.UTC)

// EventsEach is how many events each connection has, and OtherEvents how many
// each run has beside.
const (
	EventsEach  = 5
	OtherEvents = 8
	Verdicts    = 3 // of each run
)

// Conn is the ID of a host's i-th connection.
func Conn(host, i int) string { return fmt.Sprintf("%04x%012x", host+1, i) }

// ResetEvery says which connections ended badly: each that has a number
// divisible by it.
const ResetEvery = 10

// Capabilities of the runs.
func Capabilities() event.Capabilities {
	return event.Capabilities{
		Kernel: "6.12.0", Attach: "fentry", Identity: event.IdentityCookie,
		RSTReasons:  map[uint32]string{11: "TCP_ABORT_ON_CLOSE"},
		DropReasons: map[uint32]string{8: "NETFILTER_DROP"},
	}
}

// Feed gives a run of each host to a sink, with n connections each. With cut,
// the last run has no end. The sink is not closed.
func Feed(sink export.Sink, n int, cut bool) error {
	for host := range Hosts {
		if err := feed(sink, host, n, cut && host == len(Hosts)-1); err != nil {
			return err
		}
	}
	return nil
}

func comm(s string) (c event.Comm) {
	copy(c[:15], s)
	return c
}

func feed(sink export.Sink, host, n int, cut bool) error {
	began := Began.Add(time.Duration(host) * time.Hour)
	clock := render.Clock{Offset: began.UnixNano() - Boot}
	raw := func(e event.Event, conn string) { sink.Raw(&e, clock.Stamp(e.Time), conn) }
	const netns = 4026531840
	sink.Capabilities(Capabilities())
	if err := sink.Start(&render.Start{Time: clock.Stamp(Boot), Version: "test", Kernel: "6.12.0", Host: Hosts[host], Attach: "fentry", Unknowable: []string{"nothing\x1b"}}); err != nil {
		return err
	}
	sink.Namespace(event.Namespace{Inode: netns, Name: "blue\x1b"})

	listener := netip.MustParseAddrPort("0.0.0.0:80")
	client6 := netip.MustParseAddrPort("[2001:db8::7]:40000")
	raw(event.Event{Time: Boot, Sock: 1, Kind: event.KindListen, Old: event.StateListen, New: event.StateListen, Netns: netns, Local: listener,
		Flags: event.FlagProcess, PID: 812, Comm: comm("nginx"), Cgroup: 77,
		Listener: event.Listener{ID: 1, QueueLimit: 16, Somaxconn: 4096, Backlog: 1<<32 - 1}}, "")
	raw(event.Event{Time: Boot + 1, Kind: event.KindSYNDropped, Netns: netns, Local: listener, Remote: client6, Flags: event.FlagInferred | event.FlagAmbiguous,
		Listener: event.Listener{ID: 1, QueueLen: 17, QueueLimit: 16, Somaxconn: 4096, SYNCookies: 1}}, "")
	raw(event.Event{Time: Boot + 2, Kind: event.KindSegmentDropped, Netns: netns, Local: listener, Reason: 8, Where: "nf_hook_slow", TCPFlags: 0x12, Out: true, Count: 300}, "")
	raw(event.Event{Time: Boot + 3, Kind: event.KindRSTSent, Netns: netns, Local: netip.MustParseAddrPort("[::ffff:10.0.0.1]:81"), Remote: client6, Flags: event.FlagNoSocket, TCPFlags: 2}, "")
	raw(event.Event{Time: Boot + 4, Kind: event.KindBindFailed, Netns: netns, Local: listener, Err: 98, Flags: event.FlagProcess, PID: 900, Comm: comm(Hostile)}, "")
	raw(event.Event{Time: Boot + 5, Kind: event.KindMemory, Reason: 1, Sock: 9, Netns: netns, Local: listener, Remote: client6}, "")
	raw(event.Event{Time: Boot + 6, Kind: 250, Old: 99, New: 99, Flags: 1 << 15}, "")
	raw(event.Event{Time: Boot + 7, Kind: event.KindState, Old: event.StateListen, New: event.StateClose, Sock: 1, Netns: netns, Local: listener, Remote: netip.MustParseAddrPort("0.0.0.0:0"),
		Listener: event.Listener{ID: 1, QueueLen: 2, QueueLimit: 16, AbortOnOverflow: true}}, "")
	// A line of a snapshot is no event.
	raw(event.Event{Time: Boot + 8, Kind: event.KindSnapshot, New: event.StateListen, Inventory: new(event.Inventory)}, "")

	server := netip.MustParseAddrPort("192.0.2.1:5432")
	for i := range n {
		at := Boot + int64(i+1)*int64(time.Millisecond)
		local := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), uint16(1024+i%60000))
		id := Conn(host, i)
		e := event.Event{Sock: uint64(100 + i), Kind: event.KindState, Netns: netns, Local: local, Remote: server,
			Flags: event.FlagProcess, PID: uint32(1000 + i%3), Comm: comm("curl"), Cgroup: 5}
		life := []event.State{event.StateClose, event.StateSynSent, event.StateEstablished, event.StateFinWait1, event.StateFinWait2, event.StateClose}
		reset := i%ResetEvery == 0
		for k := range EventsEach {
			e.Old, e.New, e.Time = life[k], life[k+1], at+int64(k)*100_001
			e.Traffic = event.Traffic{BytesSent: uint64(k * 100), SRTT: uint32(k * 10)}
			if k > 0 {
				e.Flags, e.PID, e.Comm, e.Cgroup = 0, 0, event.Comm{}, 0
			}
			if k == EventsEach-1 && reset {
				e.Kind, e.Reason, e.Old, e.New = event.KindRSTSent, 11, event.StateEstablished, event.StateClose
			}
			raw(e, id)
		}
		c := &render.Connection{
			Time: clock.Stamp(at + 1e6), ID: id, Netns: netns, Role: "client", Local: local, Remote: server,
			Process: render.Process{PID: uint32(1000 + i%3), Comm: "curl", Source: "connect", Cgroup: "/user.slice"},
			Opened:  clock.Stamp(at), Closed: clock.Stamp(at + 400_004), Duration: 400_004, State: "CLOSE", ClosedBy: "local",
			Traffic: event.Traffic{BytesSent: 400, SRTT: 40}, Story: "connected, closed", Well: true,
			Timeline: []render.Entry{
				{At: at, Event: "syn-sent", Text: "SYN sent", Detail: render.Details{{Key: "pid", Value: uint64(1000)}}},
				{At: at + 100_001, Event: "established", Text: "established"},
				{At: at + 400_004, Event: "closed", Text: "closed"},
			},
		}
		if reset {
			c.Well, c.Story, c.Verdicts = false, "reset: "+Hostile, []string{"reset-sent"}
			c.Process = render.Process{PID: 666, Comm: Hostile, Source: "connect", Cgroup: "/\xfe", Container: &container.Container{Runtime: "docker", ID: "3f1c\x00", Pod: "p"}}
			c.Timeline[2] = render.Entry{At: at + 400_004, Event: "rst-sent", Text: "RST sent", Detail: render.Details{{Key: "why", Value: Hostile}}}
			c.Peer = &render.Connection{ID: "feed000000000000"}
			c.Listener = listener
		}
		if i%ResetEvery == 1 { // older than the trace, and it lives
			c.Opened, c.Closed, c.Duration, c.State, c.Traffic.SRTT, c.Incomplete = 0, 0, -1, "ESTABLISHED", 0, true
			c.Timeline = c.Timeline[:2]
		}
		if err := sink.Connection(c); err != nil {
			return err
		}
	}

	verdict := func(code string, phase diagnose.Phase, count uint64) *render.Verdict {
		return &render.Verdict{
			Time: clock.Stamp(Boot + 1e9), First: clock.Stamp(Boot + 10), Last: clock.Stamp(Boot + 5e8), Phase: phase,
			Verdict: &diagnose.Verdict{
				Code: code, Severity: diagnose.Error, Confidence: diagnose.Certain, Story: "it broke: " + Hostile,
				Subject: diagnose.Subject{Kind: "process", Name: Hostile}, Netns: netns, Process: &diagnose.Process{PID: 666, Comm: Hostile},
				Count: count, First: Boot + 10, Last: Boot + 5e8, Examples: []string{Conn(host, 0), Conn(host, ResetEvery)},
				Evidence: diagnose.Evidence{{Key: "reason", Value: "TCP_ABORT_ON_CLOSE"}, {Key: "clients", Value: []string{Hostile}}, {Key: "unread_bytes", Value: uint64(1<<53 + 1)}, {Key: "none", Note: "it is not known"}},
				Fix:      []string{"read what came", "or do not close"},
			},
		}
	}
	growing := verdict("reset-sent", diagnose.PhaseNew, 1)
	growing.Process = nil
	for _, v := range []*render.Verdict{growing, verdict("reset-sent", diagnose.PhaseGrowing, 2), verdict("connect-refused", diagnose.PhaseFinal, 7)} {
		if err := sink.Verdict(v); err != nil {
			return err
		}
	}
	info := verdict("port-closed", diagnose.PhaseNew, 1)
	info.Severity, info.Process = diagnose.Info, nil
	if err := sink.Verdict(info); err != nil {
		return err
	}
	if err := sink.Lost(&render.Lost{Time: clock.Stamp(Boot + 2e9), Where: "ring", Count: 12}); err != nil {
		return err
	}
	if cut {
		return nil
	}
	info2 := *info
	info2.Phase = diagnose.PhaseFinal
	return sink.Summary(&render.Summary{
		Time: clock.Stamp(Boot + 3e9), Duration: 3 * time.Second, Events: uint64(EventsEach*n + OtherEvents), Connections: uint64(n), Lost: 12,
		Verdicts: map[string]uint64{"reset-sent": 40}, Final: []*render.Verdict{verdict("reset-sent", diagnose.PhaseFinal, 40), &info2},
	})
}
