package diagnose

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/tcptrace/tcptrace/internal/timeline"
	"github.com/tcptrace/tcptrace/tracer/event"
)

const codePAWSRejected = "paws-rejected"

// pawsHurts is how many segments of one connection that are refused are more
// than late copies of what was retransmitted, if they come no further apart than
// dropApart on average.
const pawsHurts = 3

var docPAWSRejected = Doc{
	Code:     codePAWSRejected,
	Severity: Warning,
	Summary:  "segments were refused because their timestamps are older than those before (PAWS, RFC 7323)",
	Meaning: `With TCP timestamps, a segment whose timestamp lies before the newest one of its connection is taken for a leftover of old times and dropped. That is right for leftovers. It hits live traffic where one address and port stand for several clocks: hosts behind NAT or a load balancer of which each has a clock of its own, a middlebox that rewrites timestamps or goes back to an older state, a virtual machine that was set back.

The phase says what was refused. established: data of a living connection; the sender hears the last ACK again, retransmits, and stalls. time-wait: a new SYN, from an address and port that were in use shortly before; the client hears an ACK instead of SYN-ACK, and connects late or not at all. request: the ACK that completes a handshake; the connection comes late or not at all. unknown: one of these, of a socket that was not known and that the kernel did not show.

On an established connection it is information up to two segments in a row, no further apart than 20 s on average: a late copy of a segment that was retransmitted meanwhile is refused so, and nobody misses it. From the third on, and in the other phases, it is a warning. So it is where the phase is unknown.

Not reported: old pure ACKs that were overtaken on their way (TCP_RFC7323_PAWS_ACK), which do no harm.`,
	Counts: "segments",
	Evidence: []DocKey{
		{"count", "count", "segments refused so far"},
		{"phase", "", "established, time-wait, request or unknown"},
		{"reason", "", "the kernel's name, enum skb_drop_reason"},
		{"connections", "count", "of how many connections, told apart by their addresses and ports"},
		{"remote", "", "one of them, the newest"},
	},
	Fix: []string{
		"look at what stands between: NAT, load balancers and proxies that let several hosts share one address must not pass on their timestamps unchanged, or must not use a port again within a minute",
		"time-wait: let the client close first, or the NAT have more addresses and ports, so that ports are not used again so soon",
		"as a last resort net.ipv4.tcp_timestamps=0 at the server: it costs RTT measurement and protection on fast links",
	},
	Counters: []string{"TcpExt.PAWSEstab", "TcpExt.PAWSTimewait"},
	Source: []string{
		"net/ipv4/tcp_input.c: tcp_validate_incoming()",
		"net/ipv4/tcp_minisocks.c: tcp_timewait_state_process(), tcp_check_req()",
	},
}

// isPAWS reports whether enum skb_drop_reason's name says that a segment was
// refused for its timestamps: not a drop by this host's own will.
func isPAWS(name string) bool {
	return strings.HasPrefix(name, "TCP_RFC7323_") && strings.Contains(name, "PAWS")
}

// oldACK is how the kernel names an old pure ACK, from 6.14 on.
const oldACK = "TCP_RFC7323_PAWS_ACK"

const (
	phaseTimeWait = "time-wait"
	phaseRequest  = "request"
	phaseUnknown  = "unknown"
)

type pawsRejected struct {
	found groups[Key, *refusedOld]
}

func newPAWSRejected() *pawsRejected {
	return &pawsRejected{groups[Key, *refusedOld]{max: 1024}}
}

func (*pawsRejected) Code() string { return codePAWSRejected }
func (*pawsRejected) Doc() Doc     { return docPAWSRejected }

type refusedOld struct {
	at     netip.AddrPort
	kind   string
	owner  timeline.Owner
	phase  string
	reason string
	count  uint64
	most   uint64 // in a row, of one connection
	conns  map[pawsEnds]pawsRow
	more   bool // than conns holds
	newest netip.AddrPort
}

// pawsEnds are a connection's addresses.
type pawsEnds struct{ local, remote netip.AddrPort }

// pawsRow are the newest segments of a connection that came soon after each other.
type pawsRow struct {
	n     uint64
	began int64
}

func (r *pawsRejected) Entry(x *Engine, c *timeline.Conn, e *timeline.Entry) {
	if e.Kind != timeline.EntrySegmentDropped || e.Outbound() {
		return
	}
	reason := c.DropReasonName(e)
	if !isPAWS(reason) || reason == oldACK {
		return
	}
	at, kind := place(c)
	phase := phaseEstablished
	switch {
	case strings.Contains(reason, "_TW_") || c.State() == event.StateTimeWait:
		phase = phaseTimeWait
	case c.Phase() == timeline.PhaseRequest || c.Phase() == timeline.PhaseAttempt:
		phase = phaseRequest
	}
	if phase == phaseTimeWait && !e.DroppedSYN() {
		return // the connection's own, overtaken by what ended it
	}
	key := Key{Netns: c.Netns(), PID: c.Owner().PID, Addr: at, What: phase}
	f := r.finding(key, kind, c.Owner())
	f.add(reason, pawsEnds{c.Local(), c.Remote()}, e.Until(), 1)
	x.Report(r, key, f, e.Until(), 1, c)
}

// Incident hears of segments for which there is no connection: only a
// minisocket or a half-open request that was not seen.
func (r *pawsRejected) Incident(x *Engine, in *timeline.Incident) {
	if in.Kind != timeline.IncidentSegmentDropped || in.Out {
		return
	}
	reason := x.o.Capabilities.DropReasons[in.Reason]
	if !isPAWS(reason) || reason == oldACK {
		return
	}
	const syn, ack = 0x02, 0x10
	phase := phaseEstablished
	switch in.State {
	case event.StateListen, event.StateNewSynRecv, event.StateSynRecv:
		phase = phaseRequest
	case event.StateTimeWait:
		phase = phaseTimeWait
	case event.StateUnknown, event.StateSynSent, event.StateClose:
		phase = phaseUnknown
	}
	if strings.Contains(reason, "_TW_") {
		phase = phaseTimeWait
	}
	if phase == phaseTimeWait && in.TCPFlags&(syn|ack) != syn {
		return // late, of the connection that ended
	}
	key := Key{Netns: in.Netns, Addr: in.Local, What: phase}
	kind := "port"
	var owner timeline.Owner
	if in.Listener != nil {
		key.Addr, kind, owner = in.Listener.Addr, "listener", in.Listener.Owner()
		key.PID = owner.PID
	}
	f := r.finding(key, kind, owner)
	n := max(in.Count, 1)
	f.add(reason, pawsEnds{in.Local, in.Remote}, in.At, n)
	x.Report(r, key, f, in.At, n)
}

func (r *pawsRejected) finding(k Key, kind string, owner timeline.Owner) *refusedOld {
	p := r.found.make(k)
	if *p == nil {
		*p = &refusedOld{at: k.Addr, kind: kind, owner: owner, phase: k.What, conns: make(map[pawsEnds]pawsRow)}
	}
	return *p
}

func (f *refusedOld) add(reason string, of pawsEnds, at int64, n uint64) {
	f.reason = reason
	f.count += n
	if !of.remote.IsValid() {
		f.more = true
		return
	}
	f.newest = of.remote
	row, known := f.conns[of]
	if !known && len(f.conns) >= maxAddresses {
		f.more = true
		return
	}
	row.n += n
	if !known || at-row.began > int64(row.n)*int64(dropApart) {
		row = pawsRow{n, at} // the ones before were another matter, or another connection's
	}
	f.conns[of] = row
	f.most = max(f.most, row.n)
}

func (f *refusedOld) Describe(x *Engine, v *Verdict) {
	v.Severity, v.Confidence = Warning, Certain
	v.Which = f.phase
	v.Subject = Subject{f.kind, destination(f.at)}
	v.Process = process(f.owner)
	segments := fmt.Sprintf("%d segments", f.count)
	if f.count == 1 {
		segments = "a segment"
	}
	v.Fix = docPAWSRejected.Fix[:1]
	switch f.phase {
	case phaseTimeWait:
		v.Story = fmt.Sprintf("%s for sockets in TIME_WAIT at %s refused for old timestamps: another clock behind an address and port that were just in use", segments, destination(f.at))
		v.Fix = docPAWSRejected.Fix
		if f.count == 1 {
			v.Severity, v.Confidence = Info, Suspected
			v.Story += ", or a SYN that came late and double"
		}
	case phaseRequest:
		v.Story = fmt.Sprintf("%s that would complete a handshake with %s refused: timestamps older than the SYN's", segments, destination(f.at))
		if f.count == 1 {
			v.Severity, v.Confidence = Info, Suspected
			v.Story += ", or a SYN that came late and double"
		}
	default:
		v.Story = fmt.Sprintf("%s on established connections of %s refused for old timestamps", segments, f.owner.Name())
		if f.phase == phaseUnknown {
			v.Story = fmt.Sprintf("%s for %s refused for old timestamps", segments, destination(f.at))
		}
		if f.most < pawsHurts {
			v.Severity = Info
			v.Story += ": as late copies of retransmitted segments are"
		}
	}
	connections := Fact{Key: "connections", Value: int64(len(f.conns))}
	if f.more {
		connections.Note = "at least"
	}
	v.Evidence = Evidence{
		{Key: "count", Value: f.count},
		{Key: "phase", Value: f.phase},
		{Key: "reason", Value: f.reason},
		connections,
		{Key: "remote", Value: destination(f.newest)},
	}
}
