package timeline

import (
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/tcptrace/tcptrace/tracer/event"
)

var stateNames = [16]string{
	event.StateUnknown:     "unknown",
	event.StateEstablished: "ESTABLISHED",
	event.StateSynSent:     "SYN_SENT",
	event.StateSynRecv:     "SYN_RECV",
	event.StateFinWait1:    "FIN_WAIT1",
	event.StateFinWait2:    "FIN_WAIT2",
	event.StateTimeWait:    "TIME_WAIT",
	event.StateClose:       "CLOSE",
	event.StateCloseWait:   "CLOSE_WAIT",
	event.StateLastAck:     "LAST_ACK",
	event.StateListen:      "LISTEN",
	event.StateClosing:     "CLOSING",
	event.StateNewSynRecv:  "NEW_SYN_RECV",
}

// StateName is the kernel's name of a TCP state, without its prefix.
func StateName(s event.State) string {
	if int(s) < len(stateNames) && stateNames[s] != "" {
		return stateNames[s]
	}
	return "unknown"
}

// Duration writes a time for people: two or three digits and a unit, such as
// "0.4 ms", "3.2 s", "3 h".
func Duration(d time.Duration) string {
	if d < 0 {
		// The least has no opposite.
		return "-" + Duration(-max(d, -math.MaxInt64))
	}
	unit := func(n time.Duration, name string) string {
		if d < 10*n && d%n != 0 {
			s := fmt.Sprintf("%.1f", float64(d)/float64(n))
			return strings.TrimSuffix(s, ".0") + " " + name
		}
		return fmt.Sprintf("%d %s", d/n+(d%n+n/2)/n, name) // d+n/2 can be too much
	}
	switch {
	case d < 100*time.Microsecond && d > 0:
		return unit(time.Microsecond, "µs")
	case d < time.Second:
		return unit(time.Millisecond, "ms")
	case d < 2*time.Minute:
		return unit(time.Second, "s")
	case d < 2*time.Hour:
		return unit(time.Minute, "min")
	case d < 72*time.Hour:
		return unit(time.Hour, "h")
	}
	return unit(24*time.Hour, "days")
}

// Text says what happened in words, safe for a terminal.
func (e *Entry) Text(c *Conn) string {
	s := e.text(c)
	if e.Count > 1 {
		s += fmt.Sprintf(" (x%d", e.Count)
		if d := time.Duration(e.Until() - e.At); d > 0 {
			s += " in " + Duration(d)
		}
		s += ")"
	}
	return s
}

func (e *Entry) text(c *Conn) string {
	switch e.Kind {
	case EntryState:
		switch {
		case e.Arg&argFinWait2 != 0:
			return "closed here; waits in FIN_WAIT2, without a process, for the peer's FIN"
		case e.Found() && e.New() == event.StateCloseWait:
			return "found in CLOSE_WAIT: the peer's FIN came no later than this"
		case e.Found():
			return "found in " + StateName(e.New())
		case e.Old() == event.StateFinWait1 && e.New() == event.StateFinWait2:
			return "the peer acknowledged our FIN"
		}
		return StateName(e.Old()) + " to " + StateName(e.New())
	case EntrySYNSent:
		if o := c.Owner(); o.Source == SourceConnect {
			return o.Name() + " called connect(): SYN sent"
		}
		return "SYN sent"
	case EntrySYNRetransmitted:
		return "no answer, SYN sent again"
	case EntrySYNACKRetransmitted:
		return "no final ACK, SYN-ACK sent again"
	case EntryRequestDropped:
		s := "SYN dropped: accept queue full"
		switch {
		case e.AnsweredRST():
			s = "final ACK answered by RST: accept queue full"
		case e.Arg&argCookie != 0:
			s = "final ACK (of a SYN cookie) dropped: accept queue full"
		case e.DroppedACK():
			s = "final ACK dropped: accept queue full"
		}
		if f := c.Facts(); f.QueueLimit != 0 || f.QueueLen != 0 {
			s += fmt.Sprintf(" (%d waiting, limit %d)", f.QueueLen, f.QueueLimit)
		}
		return s
	case EntryRequestAborted:
		switch {
		case e.Arg&4 != 0:
			return "the peer reset the half-open connection"
		case e.Arg&2 != 0:
			return "a SYN out of place killed the half-open connection"
		}
		return "the half-open connection was dropped"
	case EntryEstablished:
		if c.Role() == RoleServer {
			return "final ACK received: handshake completed, waiting for accept()"
		}
		return "SYN-ACK received: handshake completed"
	case EntryAccepted:
		if o := c.Owner(); o.Source == SourceAccept {
			return o.Name() + " called accept()"
		}
		return "accepted"
	case EntryConnectFailed:
		n := e.SYNRetransmissions()
		switch err := e.Err(); {
		case err == errConnRefused && c.Find(EntryRSTReceived) == nil:
			return "connection refused, without a RST that was seen: by ICMP, as firewalls do"
		case err == errConnRefused:
			return "SYN answered by RST: connection refused"
		case err == errTimedOut:
			return fmt.Sprintf("gave up after %d SYN retransmissions: timed out", n)
		case err != 0:
			return "connect() failed: " + errText(err)
		case e.NoPort():
			return "connect() failed before a SYN was sent: no local port"
		case n > 0:
			return "the application gave up after " + several(n, "SYN retransmission")
		}
		return "the application gave up connecting"
	case EntryShutdownCalled:
		how := [...]string{"SHUT_RD", "SHUT_WR", "SHUT_RDWR", ""}[e.Arg>>24&3]
		return "shutdown(" + how + ") called"
	case EntryFINSent:
		s := "FIN sent"
		if o := c.doer(e); o.Known() {
			switch {
			case e.Exiting():
				s = o.Name() + " ended: FIN sent"
			case e.ByClose():
				s = o.Name() + " called close(): FIN sent"
			default:
				s = o.Name() + " called shutdown(SHUT_WR): FIN sent"
			}
		}
		return s
	case EntryFINReceived:
		return "FIN received: the peer closed"
	case EntryRSTSent:
		s := "RST sent"
		if r := c.ResetReason(); r != "" {
			s += " (" + Printable(r) + ")"
		}
		return s
	case EntryOverflowAnswered:
		return "RST sent"
	case EntryRSTReceived:
		for i := 0; i < int(c.n); i++ {
			if *c.At(i) == *e && c.dataAfterClose(i) {
				return "data arrived after close(): connection aborted"
			}
		}
		return "RST received"
	case EntryRetransmitted:
		return "segment sent again"
	case EntryRTO:
		return "retransmission timer expired"
	case EntryTimeWait:
		return "closed by both ends; the port stays in TIME_WAIT"
	case EntryClosed:
		switch err := e.Err(); {
		case err != 0:
			return "closed: " + errText(err)
		case e.Old() == event.StateEstablished || e.Old() == event.StateCloseWait:
			s := "aborted"
			if o := c.doer(e); o.Known() {
				s = o.Name() + " closed abruptly"
				if e.Exiting() {
					s = o.Name() + " ended: closed abruptly"
				}
			}
			switch {
			case c.unread > 0:
				return s + fmt.Sprintf(" with %s unread", several(int(c.unread), "byte"))
			case e.LingerZero():
				return s + " (SO_LINGER 0)"
			}
			return s
		}
		return "closed"
	case EntryGone:
		return "no longer there: its end was not seen"
	case EntryExpired:
		if d := c.Find(EntryRequestDropped); d != nil {
			return "the half-open connection expired: it never got into the accept queue"
		}
		return "no final ACK: the half-open connection expired"
	case EntryForgotten:
		return "no further SYN seen"
	case EntryListen:
		return "listen() called"
	case EntryKeepaliveProbe:
		return "keepalive probe sent"
	case EntryZeroWindow:
		return "the peer's receive window is shut: probed"
	case EntrySegmentDropped:
		s := "segment received and dropped by this host"
		if e.Outbound() {
			s = "segment to be sent dropped by this host"
		}
		if name := c.DropReasonName(e); name != "" {
			s += ": " + Printable(name)
		}
		if where := c.DropWhere(); where != "" {
			s += " in " + Printable(where)
		}
		return s
	case EntryMemory:
		if e.Reason() == 1 {
			return "killed by the kernel: too many orphans"
		}
		return "killed by the kernel: too many orphans, or no TCP memory left"
	}
	return ""
}

// doer is the process that did e by system call.
func (c *Conn) doer(e *Entry) Owner {
	if !e.ByProcess() {
		return Owner{}
	}
	if o := c.ClosedBy(); o.Known() {
		return o
	}
	return c.Owner()
}

func errText(err uint16) string {
	s := Errno(err)
	if t := ErrnoText(err); t != "" {
		s += " (" + t + ")"
	}
	return s
}

// Detail gives the entry's facts in a fixed order, nil if it has none.
func (e *Entry) Detail(c *Conn) []Detail {
	var d []Detail
	put := func(k string, v any) { d = append(d, Detail{k, v}) }
	if e.Count > 1 {
		put("count", int64(e.Count))
		put("span_ms", int64((e.Until()-e.At)/int64(time.Millisecond)))
	}
	switch e.Kind {
	case EntryState:
		if e.Found() {
			put("found", StateName(e.New()))
		} else {
			put("old", StateName(e.Old()))
			put("new", StateName(e.New()))
		}
	case EntrySYNACKRetransmitted:
		put("attempt", int64(e.Attempt()))
	case EntryRequestDropped:
		what := "SYN"
		if e.DroppedACK() {
			what = "ACK"
		}
		f := c.Facts()
		put("dropped", what)
		put("rst", e.AnsweredRST())
		put("inferred", e.Inferred())
		put("syncookie", e.Arg&argCookie != 0)
		put("queue_len", int64(f.QueueLen))
		put("queue_limit", int64(f.QueueLimit))
	case EntryRequestAborted:
		put("tcp_flags", int64(e.Arg))
	case EntrySYNSent, EntryAccepted:
		if o := c.Owner(); e.Kind == EntrySYNSent && o.Source == SourceConnect || e.Kind == EntryAccepted && o.Source == SourceAccept {
			put("pid", int64(o.PID))
			put("comm", o.Comm)
		}
	case EntryConnectFailed:
		if err := e.Err(); err != 0 {
			put("errno", int64(err))
			put("error", Errno(err))
		}
		put("syn_retransmits", int64(e.SYNRetransmissions()))
	case EntryFINSent:
		if o := c.doer(e); o.Known() {
			put("pid", int64(o.PID))
			put("comm", o.Comm)
			switch {
			case e.Exiting():
				put("call", "exit")
			case e.ByClose():
				put("call", "close")
			default:
				put("call", "shutdown")
			}
		}
	case EntryKeepaliveProbe, EntryZeroWindow:
		put("probes", int64(e.Probes()))
	case EntryRTO:
		put("backoff", int64(e.Backoff()))
	case EntrySegmentDropped:
		way := "in"
		if e.Outbound() {
			way = "out"
		}
		put("direction", way)
		if r := e.DropReason(); r != 0 {
			put("reason", int64(r))
		}
		if name := c.DropReasonName(e); name != "" {
			put("reason_name", name)
		}
		if where := c.DropWhere(); where != "" {
			put("where", where)
		}
	case EntryShutdownCalled:
		put("how", int64(e.Arg>>24))
	case EntryRSTSent:
		if r := e.Arg &^ argMinisocket; r != 0 {
			put("reason", int64(r))
		}
		if r := c.ResetReason(); r != "" {
			put("reason_name", r)
		}
	case EntryClosed:
		if err := e.Err(); err != 0 {
			put("errno", int64(err))
			put("error", Errno(err))
		}
		if o := c.doer(e); o.Known() {
			put("pid", int64(o.PID))
			put("comm", o.Comm)
		}
		if c.unread > 0 {
			put("unread_bytes", int64(c.unread))
		}
	}
	return d
}

// several writes a number of things.
func several(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}
