package timeline

import (
	"net/netip"
	"time"

	"github.com/tcptrace/tcptrace/tracer/event"
)

// IncidentKind names what happened where there is no connection to tell it of.
type IncidentKind uint8

const (
	IncidentSYNQueueFull     IncidentKind = iota + 1 // a SYN met a full request queue: FlagCookie a cookie was sent, else it was dropped
	IncidentRefused                                  // a SYN for a port where nobody listens was answered by RST
	IncidentStray                                    // another segment of no known connection was answered by RST
	IncidentRequestAborted                           // a half-open request was killed; Reason: TCP flags of the segment that did it
	IncidentBindFailed                               // bind() (Reason 0) or listen() (1) found the port taken
	IncidentSegmentDropped                           // this host dropped a segment of no known connection
	IncidentTimeWaitOverflow                         // TIME_WAIT was cut short: tcp_max_tw_buckets
)

// Incident is something that happened to no connection.
type Incident struct {
	At       int64
	Kind     IncidentKind
	Netns    uint32
	Local    netip.AddrPort // invalid where many are told together
	Remote   netip.AddrPort // invalid where many are told together
	Owner    Owner          // IncidentBindFailed: who tried
	Listener *Listener      // nil: none, or not known
	Facts    event.Listener // of the listener, zero where not known
	Err      uint16
	Reason   uint32
	State    event.State // of the socket that the segment was for, 0 unknown
	Flags    event.Flags
	TCPFlags uint8 // of the segment dropped, or answered
	Out      bool
	Where    string
	Count    uint64 // how often, at least 1
}

// incident tells the observer of e.
func (t *Tracker) incident(e *event.Event, kind IncidentKind) {
	in := Incident{
		At: e.Time, Kind: kind, Netns: e.Netns, Local: e.Local, Remote: e.Remote,
		Facts: e.Listener, Err: e.Err, Reason: e.Reason, State: e.New, Flags: e.Flags,
		TCPFlags: e.TCPFlags, Out: e.Out, Where: e.Where, Count: e.Times(),
	}
	if p := t.process(e); p != nil {
		in.Owner = p.owner(SourceUnknown)
		if in.Owner.Source = SourceConnect; kind == IncidentBindFailed {
			in.Owner.Source = SourceListener
		}
	}
	if l := t.lis[e.Listener.ID]; l != nil && e.Listener.ID != 0 && !t.countedBefore(l, e) {
		in.Listener = l
	} else if e.Local.IsValid() && kind != IncidentBindFailed {
		in.Listener, _ = t.resolve(e.Netns, e.Local)
	}
	t.obs.Incident(&in)
}

// countedBefore reports whether what e counted was another listener's, which had the
// memory of l before: it is told late. (That a SYN was sent to another port says it
// of a young one only: TPROXY and sk_lookup programs give a listener those to any.)
func (t *Tracker) countedBefore(l *Listener, e *event.Event) bool {
	if !t.address || e.Count == 0 || l.Opened == 0 || e.Time-l.Opened > countedFor {
		return false
	}
	return l.Netns != e.Netns || e.Local.IsValid() && l.Addr.Port() != e.Local.Port()
}

// countedFor is how long after it happened something counted is told, at most.
const countedFor = int64(10 * time.Second)

// stray handles a RST without a connection.
func (t *Tracker) stray(e *event.Event) {
	const fin, syn, rst, ack = 1, 2, 4, 16
	switch {
	case !e.Has(event.FlagNoSocket) || e.New == event.StateTimeWait || e.New == event.StateNewSynRecv:
		t.stats.Unmatched++
	case e.TCPFlags&(syn|ack|rst) == syn:
		t.incident(e, IncidentRefused)
	default:
		t.incident(e, IncidentStray)
	}
}
