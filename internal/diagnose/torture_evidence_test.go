package diagnose_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/tcptrace/tcptrace/internal/diagnose"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// What a verdict needs to have seen. It is written down from the contract and
// from what the kernel does, not from the rules, so that a rule which concludes
// from anything else is found out.

// need is a kind of event without which a verdict may not be given.
type need struct {
	what string
	// is reports whether e is such an event, whoever it is about.
	is func(k *knowledge, e *event.Event) bool
	// about reports whether such an event is about the verdict; nil: any in
	// its network namespace is.
	about func(v *diagnose.Verdict, e *event.Event) bool
	least int // how many different ones, 0: one
}

// row is what stands behind one code.
type row struct {
	needs []need
	// examples says that the verdict is always about connections, of which
	// it names some.
	examples bool
	// absence says that it also rests on something not having been seen, so
	// that it may not be given where that may be among lost events.
	absence bool
}

// knowledge is what is needed to read an event.
type knowledge struct {
	caps event.Capabilities
}

func (k *knowledge) resetReason(e *event.Event, suffix string) bool {
	return e.Kind == event.KindRSTSent && strings.HasSuffix(k.caps.RSTReasons[e.Reason], suffix)
}

func to(e *event.Event, old, new event.State) bool {
	return e.Kind == event.KindState && e.Old == old && e.New == new
}

// was reports whether e shows a socket in one of the states: every event tells
// the state after it.
func was(e *event.Event, states ...event.State) bool { return slices.Contains(states, e.New) }

// maybe reports whether two addresses can be one, of which a part may not have
// been known yet.
func maybe(a, b netip.AddrPort) bool {
	return a == b || !a.IsValid() || !b.IsValid() || a.Port() == 0 || b.Port() == 0 ||
		a.Port() == b.Port() && (a.Addr().IsUnspecified() || b.Addr().IsUnspecified())
}

func atLocal(v *diagnose.Verdict, e *event.Event) bool  { return maybe(v.Key.Addr, e.Local) }
func atRemote(v *diagnose.Verdict, e *event.Event) bool { return maybe(v.Key.Addr, e.Remote) }

// byListener is atLocal for what names its listening socket, which may be bound
// elsewhere than the SYN was sent to.
func byListener(v *diagnose.Verdict, e *event.Event) bool { return e.Listener.ID != 0 || atLocal(v, e) }

const (
	errPipe        = 32
	errInUse       = 98
	errUnavailable = 99
	errAborted     = 103
	errReset       = 104
	errTimedOut    = 110
	errRefused     = 111
)

// necessary has a row for each code of the contract.
var necessary = map[string]row{
	"accept-queue-overflow": {examples: true, needs: []need{{
		what: "a SYN or a final ACK that met a full accept queue",
		is: func(k *knowledge, e *event.Event) bool {
			return e.Kind == event.KindSYNDropped || e.Kind == event.KindACKOverflow
		},
		// About any port: a transparent proxy's listener has another than the
		// connections that it takes.
	}}},
	"backlog-clamped": {needs: []need{{
		what: "listen() with more than somaxconn",
		is: func(k *knowledge, e *event.Event) bool {
			return e.Kind == event.KindListen && int32(e.Listener.Backlog) > 0
		},
		about: func(v *diagnose.Verdict, e *event.Event) bool {
			return atLocal(v, e) && v.Evidence.Get("backlog_argument") == int64(int32(e.Listener.Backlog))
		},
	}}},
	"syn-queue-overflow": {needs: []need{{
		what:  "a SYN that met a full request queue",
		is:    func(k *knowledge, e *event.Event) bool { return e.Kind == event.KindSYNQueueFull },
		about: byListener,
	}}},
	"syn-scan": {needs: []need{{
		what: "handshakes that were left half done, or refused",
		is: func(k *knowledge, e *event.Event) bool {
			return e.Kind == event.KindRequestAborted || e.Kind == event.KindSYNACKRetrans ||
				e.Kind == event.KindRSTSent && e.Has(event.FlagNoSocket) && e.TCPFlags&2 != 0
		},
		about: func(v *diagnose.Verdict, e *event.Event) bool {
			return strings.Contains(v.Subject.Name, e.Remote.Addr().String())
		},
		least: 2,
	}}},
	"final-ack-lost": {examples: true, absence: true, needs: []need{
		{
			what: "a SYN-ACK that was sent again",
			is: func(k *knowledge, e *event.Event) bool {
				return e.Kind == event.KindSYNACKRetrans && !e.Has(event.FlagACKed)
			},
			about: byListener,
		},
		{
			what: "a handshake that completed",
			is: func(k *knowledge, e *event.Event) bool {
				return e.Kind == event.KindState && e.New == event.StateEstablished
			},
		},
	}},
	"handshake-timeout": {examples: true, absence: true, needs: []need{{
		what: "a SYN-ACK that was sent for the last time",
		is: func(k *knowledge, e *event.Event) bool {
			return e.Kind == event.KindSYNACKRetrans && !e.Has(event.FlagACKed)
		},
		about: byListener,
	}}},
	"connect-refused": {examples: true, needs: []need{{
		what: "SYN_SENT to CLOSE with ECONNREFUSED",
		is: func(k *knowledge, e *event.Event) bool {
			return to(e, event.StateSynSent, event.StateClose) && e.Err == errRefused
		},
		about: atRemote,
	}}},
	"connect-timeout": {examples: true, needs: []need{
		{
			what: "SYN_SENT to CLOSE with ETIMEDOUT, or by the application",
			is: func(k *knowledge, e *event.Event) bool {
				return to(e, event.StateSynSent, event.StateClose) && (e.Err == errTimedOut || e.Err == 0)
			},
			about: atRemote,
		},
		{
			what: "that end with ETIMEDOUT, or a SYN that was sent again",
			is: func(k *knowledge, e *event.Event) bool {
				return to(e, event.StateSynSent, event.StateClose) && (e.Err == errTimedOut || e.Attempt > 0) ||
					e.Kind == event.KindRetransmit && e.New == event.StateSynSent
			},
			about: atRemote,
		},
	}},
	"port-closed": {needs: []need{{
		what: "a RST without a socket, in answer to a SYN",
		is: func(k *knowledge, e *event.Event) bool {
			return e.Kind == event.KindRSTSent && e.Has(event.FlagNoSocket) && e.TCPFlags&2 != 0
		},
		about: atLocal,
	}}},
	"local-drop": {needs: []need{{
		what: "a segment that this host dropped",
		is:   func(k *knowledge, e *event.Event) bool { return e.Kind == event.KindSegmentDropped },
	}}},
	"port-exhaustion": {needs: []need{{
		what: "SYN_SENT to CLOSE without a local port, or with EADDRNOTAVAIL, or bind() that found no port",
		is: func(k *knowledge, e *event.Event) bool {
			return to(e, event.StateSynSent, event.StateClose) && (e.Local.Port() == 0 || e.Err == errUnavailable) ||
				e.Kind == event.KindBindFailed && e.Err == errInUse && e.Local.Port() == 0
		},
	}}},
	"bind-conflict": {needs: []need{{
		what: "bind() or listen() that failed with EADDRINUSE",
		is:   func(k *knowledge, e *event.Event) bool { return e.Kind == event.KindBindFailed && e.Err == errInUse },
	}}},
	"immediate-close": {examples: true, needs: []need{
		{
			what:  "accept()",
			is:    func(k *knowledge, e *event.Event) bool { return e.Kind == event.KindAccept },
			least: 5,
		},
		{
			what: "a process's close of an open connection",
			is: func(k *knowledge, e *event.Event) bool {
				return (to(e, event.StateEstablished, event.StateFinWait1) || to(e, event.StateEstablished, event.StateClose)) && e.Has(event.FlagProcess)
			},
			least: 5,
		},
	}},
	"reconnect-loop": {examples: true, needs: []need{
		{
			what: "a handshake that completed at the client",
			is: func(k *knowledge, e *event.Event) bool {
				return e.Kind == event.KindState && e.New == event.StateEstablished
			},
			about: atRemote,
			least: 10,
		},
		{
			what: "the peer's FIN or RST",
			is: func(k *knowledge, e *event.Event) bool {
				return e.Kind == event.KindState && (e.New == event.StateCloseWait || e.New == event.StateClosing) || e.Kind == event.KindRSTReceived
			},
			about: atRemote,
			least: 10,
		},
	}},
	"close-wait-leak": {examples: true, absence: true, needs: []need{{
		what:  "a socket in CLOSE_WAIT",
		is:    func(k *knowledge, e *event.Event) bool { return was(e, event.StateCloseWait, event.StateClosing) },
		about: atRemote,
	}}},
	"half-open": {absence: true, needs: []need{{
		what: "one end that is open, or a segment that says so of the other",
		is: func(k *knowledge, e *event.Event) bool {
			return was(e, event.StateEstablished) || e.Kind == event.KindSnapshot || resetEvent(e) || e.Kind == event.KindRSTSent && e.Has(event.FlagNoSocket)
		},
		about: func(v *diagnose.Verdict, e *event.Event) bool {
			switch v.Key.What {
			case "idle": // silent for long, as a snapshot shows it
				return e.Kind == event.KindSnapshot
			case "probe": // the peer answered one with RST
				return resetEvent(e)
			case "remote", "unknown": // this host answered a segment with RST
				return e.Kind == event.KindRSTSent
			}
			return was(e, event.StateEstablished)
		},
	}}},
	"keepalive-timeout": {examples: true, needs: []need{
		{
			what: "a keepalive probe, or a RST for want of answers to them",
			is: func(k *knowledge, e *event.Event) bool {
				return e.Kind == event.KindProbe && e.Reason == 1 || k.resetReason(e, "KEEPALIVE_TIMEOUT") ||
					gaveUp(e) && e.Has(event.FlagKeepalive) && e.Attempt > 0 // the socket's own count of probes
			},
		},
		{
			what: "CLOSE with ETIMEDOUT",
			is:   func(k *knowledge, e *event.Event) bool { return gaveUp(e) },
		},
	}},
	"retransmission-timeout": {examples: true, needs: []need{{
		what: "data that was sent again, or CLOSE with ETIMEDOUT",
		is: func(k *knowledge, e *event.Event) bool {
			return e.Kind == event.KindRTO || e.Kind == event.KindRetransmit || gaveUp(e)
		},
	}}},
	"fin-wait-stuck": {absence: true, needs: []need{{
		what: "a socket, or what is left of one, in FIN_WAIT1 or FIN_WAIT2",
		is: func(k *knowledge, e *event.Event) bool {
			return was(e, event.StateFinWait1, event.StateFinWait2) || e.Kind == event.KindState && (e.Old == event.StateFinWait1 || e.Old == event.StateFinWait2)
		},
	}}},
	"time-wait-pileup": {needs: []need{{
		what: "a snapshot with TIME_WAIT, or the kernel's refusal of one more",
		is: func(k *knowledge, e *event.Event) bool {
			return e.Kind == event.KindSnapshot && e.New == event.StateTimeWait || e.Kind == event.KindTimeWaitOverflow
		},
	}}},
	"paws-rejected": {needs: []need{{
		what: "a segment dropped for its timestamps",
		is:   func(k *knowledge, e *event.Event) bool { return e.Kind == event.KindSegmentDropped },
	}}},
	"reset-sent": {examples: true, needs: []need{{
		what: "a RST, or a close that can only be an abort",
		is: func(k *knowledge, e *event.Event) bool {
			return e.Kind == event.KindRSTSent || e.Kind == event.KindState && e.New == event.StateClose &&
				(e.Has(event.FlagProcess) && (e.Old == event.StateEstablished || e.Old == event.StateCloseWait) || e.Err == errAborted)
		},
	}}},
	"reset-received": {examples: true, needs: []need{{
		what: "a RST that was received, or CLOSE with ECONNRESET or EPIPE",
		is:   func(k *knowledge, e *event.Event) bool { return resetEvent(e) },
	}}},
	"zero-window": {needs: []need{{
		what: "a probe of a shut window, or a socket with data that waits",
		is: func(k *knowledge, e *event.Event) bool {
			return e.Kind == event.KindProbe && e.Reason == 2 || e.Kind == event.KindSnapshot && (e.Traffic.Unacked > 0 || e.Traffic.Unread > 0)
		},
	}}},
	"slow-accept": {needs: []need{{
		what: "accept(), or a queue seen with connections in it",
		is: func(k *knowledge, e *event.Event) bool {
			return e.Kind == event.KindAccept || e.Listener.QueueLen > 0
		},
	}}},
	"aborted-on-memory": {needs: []need{{
		what: "the kernel's word that it killed a socket for memory",
		is: func(k *knowledge, e *event.Event) bool {
			return e.Kind == event.KindMemory || k.resetReason(e, "ABORT_ON_MEMORY")
		},
	}}},
}

// resetEvent reports whether a RST was received.
func resetEvent(e *event.Event) bool {
	return e.Kind == event.KindRSTReceived || e.Kind == event.KindState && e.New == event.StateClose && (e.Err == errReset || e.Err == errPipe)
}

// gaveUp reports whether the kernel ended an open connection with ETIMEDOUT, or
// with what ICMP had said instead.
func gaveUp(e *event.Event) bool {
	const noNetwork, netUnreachable, hostDown, hostUnreachable = 64, 101, 112, 113
	return e.Kind == event.KindState && e.New == event.StateClose && e.Old != event.StateSynSent &&
		slices.Contains([]uint16{errTimedOut, noNetwork, netUnreachable, hostDown, hostUnreachable}, e.Err)
}

// stream is everything that a tracker was told so far.
type stream struct {
	knowledge
	events []event.Event
}

// unproven returns what a verdict lacks, "" nothing.
func (s *stream) unproven(v *diagnose.Verdict) string {
	r, ok := necessary[v.Code]
	if !ok {
		return "there is no row for this code in the table of necessary events"
	}
	for _, n := range r.needs {
		type identity struct {
			at   int64
			sock uint64
			e    [3]uint8
			ends [2]netip.AddrPort
		}
		seen := make(map[identity]bool)
		for i := range s.events {
			e := &s.events[i]
			if v.Netns != 0 && e.Netns != v.Netns || !n.is(&s.knowledge, e) || n.about != nil && !n.about(v, e) {
				continue
			}
			seen[identity{e.Time, e.Sock, [3]uint8{uint8(e.Kind), uint8(e.Old), uint8(e.New)}, [2]netip.AddrPort{e.Local, e.Remote}}] = true
			if len(seen) >= n.least {
				break
			}
		}
		if len(seen) < max(n.least, 1) {
			return fmt.Sprintf("%d of at least %d: %s", len(seen), max(n.least, 1), n.what)
		}
	}
	return ""
}

// contract lists the codes of the contract.
var contract = []string{
	"accept-queue-overflow", "backlog-clamped", "syn-queue-overflow", "syn-scan", "final-ack-lost", "handshake-timeout", "connect-refused",
	"connect-timeout", "port-closed", "local-drop", "port-exhaustion", "bind-conflict", "immediate-close", "reconnect-loop", "close-wait-leak",
	"half-open", "keepalive-timeout", "retransmission-timeout", "fin-wait-stuck", "time-wait-pileup", "paws-rejected", "reset-sent",
	"reset-received", "zero-window", "slow-accept", "aborted-on-memory",
}

// TestNecessaryRows holds the table to the catalogue: no rule without a row,
// no code that is not promised.
func TestNecessaryRows(t *testing.T) {
	for _, d := range diagnose.Catalogue() {
		if !slices.Contains(contract, d.Code) {
			t.Errorf("%s is not in the list of the contract's codes", d.Code)
		}
	}
	for _, code := range contract {
		if len(necessary[code].needs) == 0 {
			t.Errorf("%s has no row that says which events it needs", code)
		}
	}
	if len(necessary) != len(contract) {
		t.Errorf("%d rows for %d codes", len(necessary), len(contract))
	}
}
