package diagnose

import (
	"fmt"
	"strings"
	"time"

	"github.com/tcptrace/tcptrace/internal/timeline"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// Story tells in one line what happened to c, safe for a terminal.
func Story(c *timeline.Conn) string { return StoryAt(c, c.Last()) }

// StoryAt is Story of a connection that still lives at now.
func StoryAt(c *timeline.Conn, now int64) string {
	s := &story{c: c, now: now}
	s.handshake()
	if !s.over {
		s.traffic()
		s.end()
	}
	if c.Evicted() {
		s.say("no longer followed: too many connections")
	}
	if len(s.parts) == 0 {
		s.say("%s", timeline.StateName(c.State()))
	}
	return strings.Join(s.parts, ", ")
}

// Well reports whether c went well: it came about, nothing that its user would
// call an error happened to it, and nothing of it is known to be missing.
// Verdicts that merely inform do not count.
func Well(c *timeline.Conn) bool { return !c.Incomplete() && !Wrong(c) }

// Wrong reports whether c is known not to have gone well. Of a connection that
// is merely incomplete neither is known.
func Wrong(c *timeline.Conn) bool {
	if c.Tag&tagBad != 0 || c.Phase() < timeline.PhaseSocket {
		return true
	}
	if e := c.Find(timeline.EntryExpired, timeline.EntryForgotten, timeline.EntryRequestDropped, timeline.EntryRequestAborted); e != nil {
		return true
	}
	if e := c.Find(timeline.EntryConnectFailed); e != nil {
		return e.Err() != 0 || e.NoPort()
	}
	if e := c.Find(timeline.EntryClosed); e != nil && e.Err() == errnoTimedOut {
		return true
	}
	_, rst := resetPhase(c)
	return rst != nil
}

type story struct {
	c     *timeline.Conn
	now   int64
	parts []string
	over  bool // there was no connection to go on about
}

func (s *story) say(format string, args ...any) {
	s.parts = append(s.parts, fmt.Sprintf(format, args...))
}

// handshake tells how the connection came about, or did not.
func (s *story) handshake() {
	c := s.c
	if e := c.Find(timeline.EntryRSTSent); e != nil && e.ByMinisocket() && c.Len() == 1 {
		s.over = true
		s.say("closed here earlier, then data arrived: RST sent")
		return
	}
	if c.Before() {
		if e := c.Find(timeline.EntryState); e != nil && e.Found() {
			s.say("existed before tracing began")
		} else {
			s.say("beginning not seen")
		}
		if e := c.Find(timeline.EntryConnectFailed); e != nil {
			s.over = true
			s.connectFailed(e)
		}
		return
	}
	est := c.Find(timeline.EntryEstablished)
	if s.dropped(est) {
		return
	}
	if e := c.Find(timeline.EntryConnectFailed); e != nil {
		s.over = true
		s.connectFailed(e)
		return
	}
	again := c.Find(timeline.EntrySYNACKRetransmitted)
	switch {
	case est == nil && c.Find(timeline.EntryExpired) != nil:
		s.over = true
		n := 0
		if again != nil {
			n = again.Attempt()
		}
		s.say("half-open: SYN-ACK sent again %s, no final ACK came", times(n))
	case est == nil && c.Find(timeline.EntryRequestAborted) != nil:
		s.over = true
		s.say("half-open: reset by the peer before the handshake was complete")
	case est == nil && c.Phase() != timeline.PhaseSocket && again != nil && c.Find(timeline.EntryAccepted) == nil:
		s.over = true
		s.say("half-open: SYN-ACK sent again %s", times(again.Attempt()))
		if c.Incomplete() {
			s.say("what became of it is not known")
		}
	case est == nil:
		if c.Incomplete() {
			s.say("beginning not seen")
		}
	case again != nil:
		s.say("connected after the SYN-ACK was sent again %s", times(again.Attempt()))
	default:
		s.connected(est)
	}
}

// connected tells how long the handshake took, or accept() after it.
func (s *story) connected(est *timeline.Entry) {
	c := s.c
	if syn := c.Find(timeline.EntrySYNSent); syn != nil {
		t := "connected in " + timeline.Duration(est.Since(syn))
		if n := c.Total(timeline.EntrySYNRetransmitted); n > 0 {
			t += " with the SYN sent again " + times(n)
		}
		s.say("%s", t)
		if c.Role() == timeline.RoleClient && c.Tag&(1<<codeIndex[codeAcceptQueueOverflow]) != 0 {
			s.othersQueue(est)
		}
		return
	}
	const late = 200 * time.Millisecond
	switch a := c.Find(timeline.EntryAccepted); {
	case a != nil && a.Since(est) > late:
		s.say("handshake completed, accepted after %s", timeline.Duration(a.Since(est)))
	case a != nil:
		s.say("accepted")
	default:
		s.say("handshake completed")
	}
}

// othersQueue tells a client whose server on this host had a full queue.
func (s *story) othersQueue(est *timeline.Entry) {
	p := s.c.Peer()
	if p == nil {
		return
	}
	drop := p.Find(timeline.EntryRequestDropped)
	in := p.Find(timeline.EntryEstablished)
	switch {
	case drop == nil:
	case in == nil:
		s.say("but the server never let it in: accept queue full")
	case p.Find(timeline.EntrySYNACKRetransmitted) == nil && !droppedACK(p):
		// Only its SYNs were dropped: that delayed the handshake itself.
		s.say("the server's accept queue was full")
	default:
		s.say("but the server let it in only %s later: accept queue full", timeline.Duration(max(0, in.Since(est))))
	}
}

// droppedACK reports whether the final ACK of c met a full accept queue.
func droppedACK(c *timeline.Conn) bool {
	for i := range c.Len() {
		if e := c.At(i); e.Kind == timeline.EntryRequestDropped && e.DroppedACK() {
			return true
		}
	}
	return false
}

// dropped tells what met a full accept queue, and whether it got in after all.
func (s *story) dropped(est *timeline.Entry) bool {
	c := s.c
	var syn, ack int
	var first *timeline.Entry
	rst := false
	for i := range c.Len() {
		e := c.At(i)
		if e.Kind != timeline.EntryRequestDropped {
			continue
		}
		if first == nil {
			first = e
		}
		switch {
		case e.AnsweredRST():
			rst = true
		case e.DroppedACK():
			ack += int(e.Count)
		default:
			syn += int(e.Count)
		}
	}
	if first == nil {
		return false
	}
	if rst {
		s.over = est == nil
		s.say("handshake completed, then server RST, accept queue full")
		return true
	}
	var what []string
	if syn > 0 {
		what = append(what, "SYN dropped"+more(syn))
	}
	if ack > 0 {
		what = append(what, "final ACK dropped"+more(ack))
	}
	s.say("%s, accept queue full", strings.Join(what, ", "))
	switch {
	case est != nil:
		s.say("got in after %s", timeline.Duration(est.Since(first)))
	case c.Phase() == timeline.PhaseEnded:
		s.over = true
		if !c.Incomplete() {
			s.say("never got in")
		}
	default:
		s.over = true
	}
	return true
}

// more is how often something happened that is told by itself once.
func more(n int) string {
	if n == 1 {
		return ""
	}
	return " " + times(n)
}

func (s *story) connectFailed(e *timeline.Entry) {
	c := s.c
	waited := ""
	if syn := c.Find(timeline.EntrySYNSent); syn != nil {
		waited = " in " + timeline.Duration(e.Since(syn))
	}
	n := max(e.SYNRetransmissions(), c.Total(timeline.EntrySYNRetransmitted))
	full := c.Tag&(1<<codeIndex[codeAcceptQueueOverflow]) != 0
	answer := "never answered"
	switch {
	case strangeEcho(c):
		answer = "answered with timestamps that were never sent only"
	case strayAnswers(c):
		answer = "answered by segments of another connection only"
	}
	switch err := e.Err(); {
	case err == errnoRefused && refusedHere(c, e):
		s.say("connection refused by this host itself: the SYN was dropped on its way out")
	case err == errnoRefused && c.Find(timeline.EntryRSTReceived) == nil:
		s.say("connection refused, by no RST that was seen")
	case err == errnoRefused:
		s.say("connection refused: SYN answered by RST")
	case err == errnoTimedOut:
		s.say("%s, SYN sent again %s%s, ETIMEDOUT", answer, times(n), waited)
	case err != 0:
		s.say("connect() failed: %s", timeline.Errno(err))
	case e.NoPort():
		s.say("connect() failed before a SYN was sent: no local port")
	case n > 0:
		s.say("%s, SYN sent again %s%s, the application gave up", answer, times(n), waited)
	default:
		s.say("given up by the application before an answer came")
	}
	if full {
		s.say("the server's accept queue was full")
	}
}

func (s *story) traffic() {
	t := s.c.Traffic()
	switch {
	case t.BytesSent == 0 && t.BytesReceived == 0:
		if s.c.Phase() == timeline.PhaseEnded {
			s.say("nothing exchanged")
		}
	default:
		s.say("%s out", Bytes(t.BytesSent))
		s.say("%s in", Bytes(t.BytesReceived))
	}
}

// waitTold is from when on time spent waiting is part of the story.
const waitTold = int64(time.Second)

// end tells how the connection ended, as far as it did.
func (s *story) end() {
	c := s.c
	lost := c.DataAfterClose()
	by := "this end"
	if o := c.ClosedBy(); o.Known() {
		by = o.Name()
	} else if o := c.Owner(); o.Known() {
		by = o.Name()
	}
	var ours, theirs int64
	for i := range c.Len() {
		e := c.At(i)
		switch e.Kind {
		case timeline.EntryFINSent:
			switch {
			case ours != 0:
			case theirs != 0:
				if d := e.At - theirs; d > waitTold {
					s.say("%s in CLOSE_WAIT until %s closed", timeline.Duration(time.Duration(d)), by)
				}
			case e.ByProcess() && !e.ByClose():
				s.say("%s shut down sending", by)
			default:
				s.say("closed by %s", by)
			}
			ours = e.At
		case timeline.EntryFINReceived:
			if ours == 0 && theirs == 0 {
				s.say("closed by the peer")
			}
			theirs = e.At
		case timeline.EntryState:
			if e.Found() && e.New() == event.StateCloseWait && theirs == 0 {
				theirs = e.At
				s.say("closed by the peer")
			}
		case timeline.EntryRSTReceived:
			if !lost {
				s.say("reset by the peer%s", s.othersCause())
				return
			}
		case timeline.EntryRSTSent:
			if lost {
				s.say("then data arrived for it: RST sent")
				return
			}
		case timeline.EntryClosed:
			if s.closed(e, by, lost, ours != 0) {
				return
			}
		case timeline.EntryGone:
			if c.Closed() == 0 {
				s.say("its end was not seen")
				return
			}
		}
	}
	if c.Phase() != timeline.PhaseEnded || c.Evicted() {
		s.living(theirs)
	}
}

// closed tells of the way to CLOSE that e is, if there is something to tell.
func (s *story) closed(e *timeline.Entry, by string, lost, ours bool) bool {
	const errnoReset, errnoPipe, errnoAborted = 104, 32, 103
	switch err := e.Err(); {
	case (err == errnoReset || err == errnoPipe) && !lost:
		s.say("reset by the peer%s", s.othersCause())
		return true
	case err == errnoTimedOut && gaveUpOnWindow(s.c, e):
		s.say("the peer did not read: timed out with its window shut")
		return true
	case err == errnoTimedOut:
		s.say("the peer stopped answering: timed out")
		return true
	case err == errnoAborted:
		s.say("destroyed by an administrator")
		return true
	case err != 0 && !lost:
		s.say("ended by %s", timeline.Errno(err))
		return true
	case s.c.ClosedUnread():
		s.say("then reset by %s, which %s with %s unread", by, closedOrEnded(e), unread(s.c.Traffic()))
		return true
	case s.c.LingerReset():
		s.say("then reset by %s on purpose (SO_LINGER 0)", by)
		return true
	case err == 0 && e.ByProcess() && !ours && (e.Old() == event.StateEstablished || e.Old() == event.StateCloseWait):
		t := s.c.Traffic()
		switch {
		case wentWithListener(s.c, e):
			s.say("reset: closed with its listener, before accept()")
		case t.Unread > 0:
			s.say("reset by %s, which %s with %s unread", by, closedOrEnded(e), unread(t))
		case e.LingerZero():
			s.say("reset by %s on purpose (SO_LINGER 0)", by)
		default:
			s.say("reset by %s", by)
		}
		return true
	}
	return false
}

// gaveUpOnWindow reports whether e, by ETIMEDOUT, came while the peer's window was
// shut: with data that no retransmission was due for. That the peer answers
// probes of its window does not keep TCP_USER_TIMEOUT from ending it.
func gaveUpOnWindow(c *timeline.Conn, e *timeline.Entry) bool {
	shut, _ := c.Window()
	return c.Traffic().Unacked > 0 && e.Backoff() == 0 && e.Probes() <= 1 && (shut || c.Find(timeline.EntryZeroWindow) != nil)
}

// closedOrEnded is what the process did that closed the connection by e.
func closedOrEnded(e *timeline.Entry) string {
	if e.Exiting() {
		return "ended"
	}
	return "closed"
}

// unread is how much was left unread: it may have been taken away, uncounted,
// before the kernel said that there was some.
func unread(t event.Traffic) string {
	if t.Unread == 0 {
		return "data"
	}
	return Bytes(uint64(t.Unread))
}

// othersCause tells why the peer reset c, where it is on this host.
func (s *story) othersCause() string {
	p := s.c.Peer()
	if p == nil {
		return ""
	}
	if p.Find(timeline.EntryRequestDropped) != nil && resetByQueue(p) {
		return ": accept queue full"
	}
	for i := range p.Len() {
		e := p.At(i)
		if e.Kind != timeline.EntryClosed || e.Err() != 0 || !e.ByProcess() && !p.ClosedUnread() {
			continue
		}
		who := p.ClosedBy().Name()
		switch t := p.Traffic(); {
		case t.Unread > 0:
			return fmt.Sprintf(": %s %s with %s unread", who, closedOrEnded(e), unread(t))
		case e.LingerZero():
			return fmt.Sprintf(": %s closed with SO_LINGER 0", who)
		}
	}
	if p.DataAfterClose() {
		return ": it had closed before our data came"
	}
	return ""
}

// living tells what a connection that has not ended waits for.
func (s *story) living(theirs int64) {
	c := s.c
	switch c.State() {
	case event.StateCloseWait:
		if theirs == 0 {
			return
		}
		_, exact := c.CloseWaitSince()
		age := timeline.Duration(time.Duration(max(0, s.now-theirs)))
		if !exact {
			age = "at least " + age
		}
		if c.Role() == timeline.RoleServer && !c.Accepted() {
			s.say("%s in CLOSE_WAIT, not yet accepted", age)
			return
		}
		who := "its process"
		if o := c.Owner(); o.Known() {
			who = o.Name()
		}
		s.say("%s in CLOSE_WAIT: %s has not called close()", age, who)
	case event.StateEstablished:
		s.say("open")
	}
}
