package diagnose

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/tcptrace/tcptrace/internal/timeline"
	"github.com/tcptrace/tcptrace/tracer/event"
)

const codeResetSent = "reset-sent"

var docResetSent = Doc{
	Code:     codeResetSent,
	Severity: Warning,
	Summary:  "this host reset a connection",
	Meaning: `The connection did not end with FIN: this end sent RST, and the peer's application gets "connection reset by peer" or loses data that was on its way. The kernel (6.12 and later) names its reason; before that, the cause is concluded only from what the socket itself showed as it closed.

Severities: data lost unread by an application that did not look at it is a warning. A reset on purpose (SO_LINGER with a timeout of 0), data that came after close(), or leftovers that nobody waits for any more is information.

Where a process closed several connections right after accept(), having read nothing, this verdict waits up to 5 s for what they have in common: those that are part of immediate-close are not told twice.

Not reported: RSTs to stray segments of connections that are closed already, to SYNs for closed ports, and to final ACKs at a full accept queue (accept-queue-overflow); a few unread bytes after an exchange that the peer had closed too, or that may be a TLS close notification.

` + docCrewMeaning + ` Where a process ended or was killed, the kernel closed its connections in its stead, and the cause says so.`,
	Counts: "connections",
	Evidence: []DocKey{
		{"reason", "", "the kernel's name, enum sk_rst_reason; null where it gives none"},
		{"cause", "", "in plain words"},
		{"unread_bytes", "bytes", "received and not read, the most"},
		{"state", "", "the connection's state when it was reset"},
		{"bytes_sent", "bytes", "of the newest one"},
		{"bytes_received", "bytes", "of the newest one"},
		docCrew[0], docCrew[1],
	},
	Fix: []string{
		"unread data: read until end of file before close(), or shutdown(SHUT_WR) first and drain",
		"SO_LINGER 0: set on purpose somewhere in the application or its library",
		"data after close(): the peer was still sending; shutdown(SHUT_WR) and read on where its data matters",
	},
	Counters: []string{"Tcp.OutRsts", "Tcp.EstabResets", "TcpExt.TCPAbortOnClose", "TcpExt.TCPAbortOnData", "TcpExt.TCPAbortOnLinger", "TcpExt.TCPAbortOnMemory"},
	Source:   []string{"net/ipv4/tcp.c: __tcp_close(), tcp_disconnect()", "net/ipv4/tcp_output.c: tcp_send_active_reset()"},
}

// leftover is how much unread data after an exchange nobody misses. A TLS close
// notification has 24 to 31 bytes; before the peer's FIN anything smaller may be
// a request.
const (
	closeNotify = 24
	leftover    = 64
)

// cause of a reset by this host, in plain words and with what to do.
type cause struct {
	text     string
	severity Severity
	fix      string // "" where there is nothing to do
}

var (
	causeUnread   = cause{"closed with data unread", Warning, docResetSent.Fix[0]}
	causeFinished = cause{"closed with data unread, after the peer had closed", Info, docResetSent.Fix[0]}
	causeLinger   = cause{"SO_LINGER with a timeout of 0: close() resets on purpose", Info, docResetSent.Fix[1]}
	causePending  = cause{"the listener was closed before the connection was accepted", Warning,
		"stop taking new connections before closing the listener: drain the accept queue, or take the server out of rotation first"}
	causeLate       = cause{"data arrived after close()", Info, docResetSent.Fix[2]}
	causeLinger2    = cause{"TCP_LINGER2 passed in FIN_WAIT2", Info, ""}
	causeMemory     = cause{"the kernel was short of TCP memory or had too many orphans", Error, "check net.ipv4.tcp_mem and net.ipv4.tcp_max_orphans against `ss -s`, and what holds the memory"}
	causeKeepalive  = cause{"the peer did not answer keepalive probes", Warning, "the peer or the way to it is gone; look there"}
	causeDisconnect = cause{"connect(AF_UNSPEC) dropped the connection with data outstanding", Info, ""}
	causeKilled     = cause{"destroyed by an administrator (ss -K, SOCK_DESTROY)", Warning, "somebody or something ran ss -K or a program like it"}

	// The kernel closes what a process that ends has open.
	fixEnded           = "the process ended or was killed with connections open: see why (its log, its exit status, the OOM killer's message), and let it drain before it ends"
	causeUnreadEnded   = cause{"the process ended with data unread", Warning, fixEnded}
	causeFinishedEnded = cause{"the process ended with data unread, after the peer had closed", Info, fixEnded}
	causeLingerEnded   = cause{"SO_LINGER with a timeout of 0: the process's end reset it", Info, docResetSent.Fix[1]}
	causePendingEnded  = cause{"the listening process ended before the connection was accepted", Warning, fixEnded}
	causeLateEnded     = cause{"data arrived after the process had ended", Info, ""}
)

type resetSent struct {
	found   groups[Key, *resets]
	hangups *immediateClose
	later   later
}

func newResetSent(hangups *immediateClose) *resetSent {
	return &resetSent{found: groups[Key, *resets]{max: 4096}, hangups: hangups}
}

func (*resetSent) Code() string { return codeResetSent }
func (*resetSent) Doc() Doc     { return docResetSent }

type resets struct {
	at        netip.AddrPort
	kind      string // of the place
	who       crew
	cause     *cause // nil: not known
	reason    string
	confirmed bool // the RST itself was seen
	state     string
	unread    uint32 // the most
	traffic   event.Traffic
	past      bool // only minisockets were left, which keep no counts
}

// Ended waits for the RST, which follows the close, and where that may be one
// of many immediate ones, for what these have in common.
func (r *resetSent) Ended(x *Engine, c *timeline.Conn) {
	if r.hangups.undecided(x, c) && r.later.put(c, x.clock()+int64(immediatePatience)) {
		return
	}
	r.judge(x, c)
}

func (r *resetSent) Tick(x *Engine, now int64, _ *timeline.Tracker) {
	r.later.take(now, func(c *timeline.Conn) bool { return r.hangups.mark(x, c) }, func(c *timeline.Conn) { r.judge(x, c) })
}

func (r *resetSent) Finish(x *Engine) {
	r.later.rest(func(c *timeline.Conn) { r.judge(x, c) })
}

func (r *resetSent) judge(x *Engine, c *timeline.Conn) {
	r.hangups.mark(x, c)
	named := []string{codeImmediateClose, codeKeepaliveTimeout, codeAbortedOnMemory}
	if resetByQueue(c) {
		named = append(named, codeAcceptQueueOverflow)
	}
	for _, code := range named {
		if c.Tag&(1<<codeIndex[code]) != 0 {
			return // named already
		}
	}
	k, state, at, ok := resetBy(x, c)
	if !ok {
		return
	}
	t := c.Traffic()
	if isLeftover(k, t, state) {
		return
	}
	k = k.ended(c)
	owner := c.Owner()
	if o := c.ClosedBy(); o.Known() {
		owner = o
	}
	key := x.crewKey(c.Netns(), owner)
	key.What = c.ResetReason()
	var kind string
	key.Addr, kind = place(c)
	switch {
	case k == &causeLate, k == &causeLateEnded:
		key.What = k.text // answered by the socket or its minisocket, for two reasons
	case k != nil:
		key.What += " " + k.text
	}
	p := r.found.make(key)
	if *p == nil {
		*p = &resets{at: key.Addr, kind: kind, cause: k}
	}
	f := *p
	f.who.add(owner)
	f.reason = c.ResetReason()
	f.confirmed = f.confirmed || c.Reset() != nil
	f.state = timeline.StateName(state)
	f.unread = max(f.unread, t.Unread)
	f.traffic = t
	f.past = c.Len() == 1
	x.Report(r, key, f, at, 1, c)
}

// isLeftover reports whether a reset told no more than that something was left
// unread that nobody misses.
func isLeftover(k *cause, t event.Traffic, state event.State) bool {
	return (k == &causeUnread || k == &causeFinished) && t.BytesReceived > uint64(t.Unread) && t.BytesSent > 0 &&
		t.Unread <= leftover && (state == event.StateCloseWait || t.Unread >= closeNotify)
}

// forgettable reports whether c was reset by this end as it left something
// unread that nobody misses.
func forgettable(x *Engine, c *timeline.Conn) bool {
	k, state, _, ok := resetBy(x, c)
	return ok && isLeftover(k, c.Traffic(), state)
}

// ended is the cause of a reset of c that close() would have had, where the
// process's end did what close() would have done.
func (why *cause) ended(c *timeline.Conn) *cause {
	e := c.Find(timeline.EntryFINSent)
	if e == nil || !e.Exiting() {
		e = c.Find(timeline.EntryClosed)
	}
	if e == nil || !e.Exiting() {
		return why
	}
	switch why {
	case &causeUnread:
		return &causeUnreadEnded
	case &causeFinished:
		return &causeFinishedEnded
	case &causeLinger:
		return &causeLingerEnded
	case &causePending:
		return &causePendingEnded
	case &causeLate:
		return &causeLateEnded
	}
	return why
}

// resetByQueue reports whether a full accept queue may be what c was reset by:
// one that got in later was only delayed.
func resetByQueue(c *timeline.Conn) bool { return c.Find(timeline.EntryEstablished) == nil }

// resetBy tells why this end reset c: nil where that is not known. ok is false
// where it did not, or not while the connection lived.
func resetBy(x *Engine, c *timeline.Conn) (why *cause, state event.State, at int64, ok bool) {
	reason := c.ResetReason()
	sent := c.Reset()
	closed := c.Find(timeline.EntryClosed)
	if sent != nil && (closed == nil || sent.ByMinisocket()) && c.DataAfterClose() {
		return &causeLate, sent.Old(), sent.At, true
	}
	if closed == nil {
		return nil, 0, 0, false
	}
	t := c.Traffic()
	// A socket in repair mode (CRIU) closes with no RST, and none is due to end what
	// both ends have closed. Where RSTs are seen, one that was not is not told.
	silently := sent == nil && x.o.Capabilities.HasAllRSTSent
	const errnoAborted = 103
	switch {
	case c.ClosedUnread():
		// After shutdown(), close() says nothing else but this.
		if s := closed.Old(); s == event.StateLastAck || s == event.StateClosing {
			return &causeFinished, s, closed.At, true
		}
		return &causeUnread, closed.Old(), closed.At, true
	case c.LingerReset():
		return &causeLinger, closed.Old(), closed.At, true
	case c.DataAfterClose():
		// An orphan that is killed for want of memory looks the same where
		// nothing names the reason.
		if reason == "" && !x.o.Capabilities.HasMemory && closed.Old() == event.StateFinWait1 {
			return nil, closed.Old(), closed.At, true
		}
		return &causeLate, closed.Old(), closed.At, true
	case silently:
		return nil, 0, 0, false
	case closed.Err() == errnoAborted:
		return &causeKilled, closed.Old(), closed.At, true
	case closed.ByProcess() && closed.Err() == 0 &&
		(closed.Old() == event.StateEstablished || closed.Old() == event.StateCloseWait):
		// Only an abort leads from these to CLOSE by system call. Where close() finds
		// something unread, the kernel names just that.
		byClose := reason == "" || strings.HasSuffix(reason, "ABORT_ON_CLOSE")
		switch {
		case strings.HasSuffix(reason, "DISCONNECT_WITH_DATA"):
			why = &causeDisconnect
		case x.o.Capabilities.HasAccept && wentWithListener(c, closed):
			why = &causePending
		case strings.HasSuffix(reason, "ABORT_ON_MEMORY"):
			why = &causeMemory
		case t.Unread > 0 && byClose && closed.Old() == event.StateCloseWait:
			why = &causeFinished
		case t.Unread > 0 && byClose || strings.HasSuffix(reason, "ABORT_ON_CLOSE") && !c.FastClosed():
			why = &causeUnread
		case closed.LingerZero():
			why = &causeLinger
		}
		return why, closed.Old(), closed.At, true
	case sent == nil:
		return nil, 0, 0, false
	case strings.HasSuffix(reason, "KEEPALIVE_TIMEOUT"):
		why = &causeKeepalive
	case strings.HasSuffix(reason, "ABORT_ON_MEMORY"):
		why = &causeMemory
	case strings.HasSuffix(reason, "ABORT_ON_LINGER"):
		why = &causeLinger2
	default:
		// Resets that answer a segment out of place, or of a kind that is
		// not known: nothing to say.
		return nil, 0, 0, false
	}
	return why, closed.Old(), closed.At, true
}

// listenerEnds is how long a listener takes to end what waits in its queue.
const listenerEnds = int64(time.Second)

// wentWithListener reports whether closed, c's end, came from its listener being
// closed before anybody accepted it. An accept() may go unseen: so nobody may have
// written or read, and the listener must be gone, as far as it is known.
func wentWithListener(c *timeline.Conn, closed *timeline.Entry) bool {
	t := c.Traffic()
	if c.Role() == timeline.RoleClient || c.Accepted() || t.BytesSent > 0 || t.BytesReceived > uint64(t.Unread) {
		return false
	}
	l := c.Listener()
	if c.Role() != timeline.RoleServer || c.Before() {
		// Nobody saw it being accepted; but no close() that found something unread
		// did this.
		return t.Unread > 0 && strings.HasSuffix(c.ResetReason(), "TCP_STATE") &&
			l != nil && l.Closed != 0 && closed.At-l.Closed < listenerEnds
	}
	return l == nil || l.Shared || l.Closed != 0 && closed.At-l.Closed < listenerEnds
}

func (f *resets) Describe(x *Engine, v *Verdict) {
	v.Subject = Subject{f.kind, destination(f.at)}
	v.Process = process(f.who.last)
	reason := Fact{Key: "reason", Note: "this kernel names no reason"}
	if f.reason != "" {
		reason = Fact{Key: "reason", Value: f.reason}
	} else if x.o.Capabilities.HasRSTReason {
		reason.Note = "the RST itself was not seen"
		if f.confirmed {
			reason.Note = "the kernel named none"
		}
	}
	who := f.who.name()
	if !f.who.last.Known() {
		who = "this end"
	}
	v.Which = f.reason
	why := Fact{Key: "cause", Note: "the socket showed nothing that explains it"}
	v.Severity, v.Confidence = Info, Suspected
	v.Story = fmt.Sprintf("%s reset the connection while it was %s, cause unknown", who, f.state)
	v.Fix = nil
	if c := f.cause; c != nil {
		why = Fact{Key: "cause", Value: c.text}
		v.Severity, v.Confidence = c.severity, Likely
		if f.confirmed {
			v.Confidence = Certain
		}
		switch c {
		case &causeUnread, &causeFinished:
			v.Story = fmt.Sprintf("%s %s (%s): RST sent", who, c.text, Bytes(uint64(f.unread)))
		case &causeUnreadEnded, &causeFinishedEnded:
			v.Story = fmt.Sprintf("%s %s (%s): RST sent", who, strings.TrimPrefix(c.text, "the process "), Bytes(uint64(f.unread)))
		case &causeLateEnded:
			v.Story = fmt.Sprintf("data arrived after %s had ended: RST sent", who)
		case &causeLinger:
			v.Story = fmt.Sprintf("%s closed with SO_LINGER 0: RST sent on purpose", who)
		case &causeLate:
			v.Story = fmt.Sprintf("data arrived on a connection that %s had closed, or left by ending: RST sent", who)
		default:
			v.Story = fmt.Sprintf("RST sent on a connection of %s: %s", who, c.text)
		}
		if c.fix != "" {
			v.Fix = []string{c.fix}
		}
	}
	if f.past {
		const gone = "the socket was gone already"
		v.Evidence = Evidence{
			reason, why, {Key: "unread_bytes", Note: gone}, {Key: "state", Value: f.state},
			{Key: "bytes_sent", Note: gone}, {Key: "bytes_received", Note: gone},
		}
		v.Evidence = append(v.Evidence, f.who.facts()...)
		return
	}
	v.Evidence = Evidence{
		reason,
		why,
		{Key: "unread_bytes", Value: int64(f.unread)},
		{Key: "state", Value: f.state},
		{Key: "bytes_sent", Value: int64(f.traffic.BytesSent)},
		{Key: "bytes_received", Value: int64(f.traffic.BytesReceived)},
	}
	v.Evidence = append(v.Evidence, f.who.facts()...)
}
