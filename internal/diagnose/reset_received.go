package diagnose

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/tcptrace/tcptrace/internal/timeline"
	"github.com/tcptrace/tcptrace/tracer/event"
)

const codeResetReceived = "reset-received"

var docResetReceived = Doc{
	Code:     codeResetReceived,
	Severity: Warning,
	Summary:  "the peer reset an established connection",
	Meaning: `A RST ended a connection that this end still used. What made the peer send it is only known there, unless both ends are on this host: then the verdict about the other end names the cause, and this one is information.

The phase helps to guess. Right after the handshake with nothing exchanged: often a full accept queue at the server, or a connection limit. After a request: the server's application crashed, or closed with the request unread. After a long silence: a firewall or load balancer forgot the connection. In CLOSE_WAIT: the peer had closed before, and this end sent data to it nevertheless.

Not reported: RSTs after this end's own close(), which nobody here can notice, those that find a forgotten socket in CLOSE_WAIT, and those after this end's last words, of which a sender on this host only left something like a TLS close notification unread.

Information: a server's connection that was reset before anything was exchanged (a health check or a port probe does that; not one that had waited for accept() longer than --slow-accept, where others of the listener are seen being accepted), within a minute of an exchange and with nothing of the server's on its way (the client closed without reading to the end), or as its answer came after the client had closed (it no longer waited); and a client's whose server, on this host, left no more than a TLS close notification unread, or that sent no more than a TLS close notification after the server had closed.

` + docCrewMeaning,
	Counts: "connections",
	Evidence: []DocKey{
		{"phase", "", "established, close-wait (the peer had closed) or half-closed (this end had shut down sending)"},
		{"after_ms", "ms", "from the handshake to the RST, the newest; null if the handshake was not seen"},
		{"bytes_sent", "bytes", "of the newest one"},
		{"bytes_received", "bytes", "of the newest one"},
		{"silent_ms", "ms", "from the last event seen before to the RST, or from the last segment received that a snapshot told of, the newest: at most so long"},
		{"peer_verdicts", "", "verdicts about the other end that may be why, where it is on this host"},
		docCrew[0], docCrew[1],
	},
	Fix: []string{
		"look at the peer: run tcptrace there, it names the reason",
		"right after the handshake with nothing exchanged, suspect a full accept queue at the server",
		"after long silence, suspect a firewall or load balancer that forgets idle connections: use keepalive below its timeout",
	},
	Counters: []string{"Tcp.EstabResets"},
	Source:   []string{"net/ipv4/tcp_input.c: tcp_reset()"},
}

type resetReceived struct {
	found   groups[Key, *resetsIn]
	hangups *immediateClose
	accepts *slowAccept
	later   later
}

func newResetReceived(hangups *immediateClose, accepts *slowAccept) *resetReceived {
	return &resetReceived{found: groups[Key, *resetsIn]{max: 4096}, hangups: hangups, accepts: accepts}
}

func (*resetReceived) Code() string { return codeResetReceived }
func (*resetReceived) Doc() Doc     { return docResetReceived }

type resetsIn struct {
	at      netip.AddrPort
	kind    string
	who     crew
	role    timeline.Role
	phase   string
	after   time.Duration
	known   bool // after
	silent  time.Duration
	traffic event.Traffic
	manner  string
	here    bool // the other end is on this host
	causes  []string
}

const (
	phaseEstablished = "established"
	phaseCloseWait   = "close-wait"
	phaseHalfClosed  = "half-closed"
)

// Resets that peers send with nothing wrong here, as far as this end can tell.
const (
	mannerOther  = ""
	mannerProbe  = " probe"  // to a server, with nothing exchanged
	mannerQueued = " queued" // to a server, with nothing exchanged, after a long wait for accept()
	mannerServed = " served" // to a server, after an exchange, with nothing of ours on the way
	mannerLate   = " late"   // to a server whose answer came after the client had closed
	mannerLeft   = " left"   // to a client whose server, on this host, left as much as a TLS close notification unread
	mannerNotify = " notify" // to a client that sent as much as a TLS close notification after the server had closed
)

// longSilence makes one suspect that somebody on the way forgot the connection.
const longSilence = time.Minute

// resetSlack is how much later the two ends of a connection may be told as
// ended, at most.
const resetSlack = 500 * time.Millisecond

// canReset are the verdicts about one end that may be why the other is reset. What
// the rest tell of does not end a connection. (Of two more it depends, see judge.)
var canReset = map[string]bool{
	codeImmediateClose: true, codeFinWaitStuck: true, codeZeroWindow: true,
	codeLocalDrop: true, codeHalfOpen: true, codeKeepaliveTimeout: true, codeRetransmissionTimeout: true,
	codePAWSRejected: true, codeAbortedOnMemory: true, codeResetSent: true,
	codeHandshakeTimeout: true,
}

func exchanged(t event.Traffic) bool { return t.BytesSent > 0 && t.BytesReceived > 0 }

// Ended waits for the verdict about the other end where reset-sent does so.
func (r *resetReceived) Ended(x *Engine, c *timeline.Conn) {
	phase, e := resetPhase(c)
	if e == nil {
		return
	}
	if p := c.Peer(); p != nil && r.hangups.undecided(x, p) &&
		r.later.put(c, x.clock()+int64(immediatePatience+resetSlack)) {
		return
	}
	r.judge(x, c, phase, e)
}

func (r *resetReceived) Tick(x *Engine, now int64, _ *timeline.Tracker) {
	r.later.take(now, func(c *timeline.Conn) bool { return r.hangups.mark(x, c.Peer()) }, func(c *timeline.Conn) { r.again(x, c) })
}

func (r *resetReceived) Finish(x *Engine) {
	r.later.rest(func(c *timeline.Conn) { r.again(x, c) })
}

func (r *resetReceived) again(x *Engine, c *timeline.Conn) {
	if phase, e := resetPhase(c); e != nil {
		r.judge(x, c, phase, e)
	}
}

func (r *resetReceived) judge(x *Engine, c *timeline.Conn, phase string, e *timeline.Entry) {
	t := c.Traffic()
	key := x.crewKey(c.Netns(), c.Owner())
	key.What = phase
	var kind string
	key.Addr, kind = place(c)
	var silent time.Duration
	for i := 1; i < c.Len(); i++ {
		if c.At(i).At == e.At && c.At(i).Kind == e.Kind {
			silent = time.Duration(e.At - c.At(i-1).Until())
		}
	}
	if at, ok := c.SilentSince(); ok && at <= e.At { // segments have no entries
		silent = min(silent, time.Duration(e.At-at))
	}
	var causes []string
	manner := mannerOther
	if p := c.Peer(); p != nil {
		r.hangups.mark(x, p)
		left := forgettable(x, p)
		if left && (c.Role() == timeline.RoleServer || phase == phaseHalfClosed) {
			return // what the other end left was the last of it
		}
		causes = slices.DeleteFunc(Codes(p), func(code string) bool {
			switch code {
			case codeAcceptQueueOverflow:
				return !resetByQueue(p)
			case codeResetReceived: // a RST at both ends has one cause; later, this one met no socket
				return p.Closed() == 0 || e.At-p.Closed() <= int64(resetSlack)
			}
			return !canReset[code]
		})
		if i := slices.Index(causes, codeResetSent); i > 0 {
			causes[0], causes[i] = causes[i], causes[0] // the others alone reset nothing
		}
		if left {
			manner = mannerLeft
		}
	}
	switch {
	case len(causes) > 0:
		key.What += " " + causes[0] // it names what to look at
		manner = mannerOther
	case manner == mannerLeft:
	case c.Role() != timeline.RoleServer:
		if phase == phaseCloseWait && exchanged(t) && t.Unacked >= closeNotify && t.Unacked <= leftover {
			manner = mannerNotify
		}
	case t.BytesSent == 0 && t.BytesReceived == 0:
		manner = mannerProbe
		est := c.Find(timeline.EntryEstablished)
		if est != nil && !c.Accepted() && !c.Incomplete() && x.o.Capabilities.HasAccept &&
			e.Since(est) > x.o.SlowAccept && r.accepts.shows(c) {
			manner = mannerQueued
		}
	case phase == phaseCloseWait:
		manner = mannerLate
	case phase != phaseCloseWait && exchanged(t) && t.Unacked == 0 && silent <= longSilence &&
		c.Find(timeline.EntryKeepaliveProbe) == nil:
		manner = mannerServed
	}
	key.What += manner
	p := r.found.make(key)
	if *p == nil {
		*p = &resetsIn{at: key.Addr, kind: kind, role: c.Role(), phase: phase, manner: manner, causes: causes}
	}
	f := *p
	f.who.add(c.Owner())
	f.known = false
	if est := c.Find(timeline.EntryEstablished); est != nil {
		f.after, f.known = e.Since(est), true
	}
	f.silent = silent
	f.traffic = t
	f.here = c.Peer() != nil
	x.Report(r, key, f, e.At, 1, c)
}

// resetPhase tells when the peer's RST met c, and with which entry: nil where
// there was none that this end's application can notice.
func resetPhase(c *timeline.Conn) (string, *timeline.Entry) {
	if c.DataAfterClose() {
		return "", nil
	}
	const errnoReset, errnoPipe = 104, 32
	e := c.Find(timeline.EntryRSTReceived)
	closed := c.Find(timeline.EntryClosed)
	state := event.StateUnknown
	switch {
	case e != nil:
		state = e.New()
	case closed != nil && (closed.Err() == errnoReset || closed.Err() == errnoPipe):
		e, state = closed, closed.Old()
	default:
		return "", nil
	}
	switch state {
	case event.StateEstablished:
		return phaseEstablished, e
	case event.StateCloseWait:
		// Only data of ours makes it an error here.
		if c.Traffic().Unacked > 0 {
			return phaseCloseWait, e
		}
	case event.StateFinWait1, event.StateFinWait2:
		fin := c.Find(timeline.EntryFINSent)
		if fin != nil && !fin.ByClose() && fin.ByProcess() && !c.Orphan() && !c.ReceiveShut() {
			return phaseHalfClosed, e
		}
	}
	return "", nil
}

func (f *resetsIn) Describe(x *Engine, v *Verdict) {
	v.Subject = Subject{f.kind, destination(f.at)}
	v.Process = process(f.who.last)
	v.Severity, v.Confidence = Warning, Certain
	v.Which = f.phase
	v.Which += f.manner
	if len(f.causes) > 0 {
		v.Which = f.causes[0]
	}
	whose := "connections"
	if v.Count == 1 {
		whose = "a connection"
	}
	if f.who.last.Known() {
		whose += " of " + f.who.name()
	}
	when := "while established"
	switch f.phase {
	case phaseCloseWait:
		when = "after its own close, with data of ours on the way"
	case phaseHalfClosed:
		when = "after this end had shut down sending"
	default:
		if f.known {
			when = fmt.Sprintf("%s after the handshake", timeline.Duration(f.after))
		}
	}
	said := "nothing exchanged"
	if f.traffic.BytesSent+f.traffic.BytesReceived > 0 {
		said = fmt.Sprintf("%s out, %s in", Bytes(f.traffic.BytesSent), Bytes(f.traffic.BytesReceived))
	}
	v.Story = fmt.Sprintf("the peer reset %s %s, %s", whose, when, said)
	v.Fix = docResetReceived.Fix[:1]
	after := Fact{Key: "after_ms", Note: "the handshake was not seen"}
	if f.known {
		after = Fact{Key: "after_ms", Value: milliseconds(f.after)}
	}
	other := Fact{Key: "peer_verdicts", Note: "nothing is known of the other end"}
	if f.here {
		other.Note = "the other end is on this host, with no verdict that explains it: see its timeline"
	}
	switch {
	case len(f.causes) > 0:
		v.Severity = Info
		v.Story += fmt.Sprintf(": see %s at the other end, on this host", f.causes[0])
		other = Fact{Key: "peer_verdicts", Value: f.causes}
		v.Fix = []string{"see the verdict about the other end: " + f.causes[0]}
	case f.manner == mannerProbe:
		v.Severity = Info
		v.Story += ": as a health check or port probe does"
		v.Fix = []string{"nothing, if it is a health check: let it close with FIN to keep it out of the way"}
	case f.manner == mannerQueued:
		v.Story += ": no accept() was seen in that time, for which the client would not wait"
		v.Fix = []string{
			"look whether the server accepts in time: `tcptrace sockets` and `ss -ltn` (Recv-Q) show how many connections wait",
			"nothing, if it is a health check that opens a connection and waits before it closes it",
		}
	case f.manner == mannerServed:
		v.Severity = Info
		v.Story += ": all that was sent had arrived, as when a client closes without reading to the end"
		v.Fix = []string{"nothing, if the client had what it wanted: else look there, run tcptrace there"}
	case f.manner == mannerLate:
		v.Severity = Info
		v.Story += ": as clients do that no longer wait for an answer"
		v.Fix = []string{"if answers are to be faster than clients are patient, look at what the server does that long"}
	case f.manner == mannerLeft:
		v.Severity = Info
		v.Story += ": the other end, on this host, left no more than a TLS close notification unread"
		v.Fix = []string{"nothing, if the client had what it wanted"}
	case f.manner == mannerNotify:
		v.Severity = Info
		v.Story += ", no more than a TLS close notification"
		v.Fix = []string{"nothing: the server had closed already"}
	case f.phase == phaseCloseWait && f.role == timeline.RoleClient:
		v.Fix = []string{"if the server closes idle connections, let the client close them earlier than that, and repeat a request that met such a close", docResetReceived.Fix[0]}
	case f.phase == phaseEstablished && f.role == timeline.RoleClient && f.traffic.BytesReceived == 0 && f.known && f.after < time.Second:
		v.Fix = docResetReceived.Fix[:2]
	case f.silent > longSilence:
		v.Fix = []string{docResetReceived.Fix[2], docResetReceived.Fix[0]}
	}
	v.Evidence = Evidence{
		{Key: "phase", Value: f.phase},
		after,
		{Key: "bytes_sent", Value: int64(f.traffic.BytesSent)},
		{Key: "bytes_received", Value: int64(f.traffic.BytesReceived)},
		{Key: "silent_ms", Value: int64(f.silent / time.Millisecond)},
		other,
	}
	v.Evidence = append(v.Evidence, f.who.facts()...)
}
