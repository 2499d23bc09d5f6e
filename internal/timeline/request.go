package timeline

import (
	"time"

	"github.com/tcptrace/tcptrace/tracer/event"
)

// A request is half of a connection that the kernel remembers by a request
// socket. Where a SYN is dropped there is not even that: only the addresses
// tell that a later SYN is another attempt of the same client.

const (
	maxRTO = 120 * time.Second // TCP_RTO_MAX
	// adoptWindow is how long after its last event a request or attempt can
	// still belong to a socket with the same addresses: the longest wait for
	// the next SYN or SYN-ACK.
	adoptWindow = maxRTO + 15*time.Second
)

// adopt returns the request or attempt that e continues under another
// identity (or under its first one), nil if there is none.
func (t *Tracker) adopt(e *event.Event, sock uint64) *Conn {
	c := t.byAddresses(e, func(c *Conn) bool {
		if p := c.Phase(); p != PhaseAttempt && p != PhaseRequest {
			return false
		}
		// A cookie is the same for request and socket: another one is
		// another connection.
		if c.sock != 0 && c.sock != sock && sock != 0 && !t.address {
			return false
		}
		d := e.Time - c.last
		return d <= int64(adoptWindow) && d >= -int64(time.Second)
	})
	if c == nil || sock == 0 || c.sock == sock {
		return c
	}
	t.bySock.remove(c)
	c.sock = sock
	t.bySock.insert(c)
	return c
}

// request returns the half-open connection of e, made if need be.
func (t *Tracker) request(e *event.Event, p Phase) *Conn {
	sock := e.Sock
	if e.Has(event.FlagCookie) || p == PhaseAttempt {
		sock = 0 // behind a SYN cookie each ACK makes a request of its own
	}
	c := t.bySock.find(sock)
	if c != nil && (!c.SameAddresses(e) || c.Phase() == PhaseEnded) {
		t.replace(c, e.Time)
		c = nil
	}
	if c == nil {
		c = t.adopt(e, sock)
	}
	if c == nil && (sock == 0 || t.address) {
		c = t.byAddresses(e, func(c *Conn) bool { return c.Role() == RoleServer && c.tookOver(e.Time) })
	}
	if c == nil {
		c = t.create(e, sock, p)
	}
	if p == PhaseRequest && c.Phase() == PhaseAttempt {
		c.setPhase(p)
	}
	if c.Phase() != PhaseSocket {
		c.flags |= flagBirth
	}
	t.update(c, e)
	t.listenerFacts(e)
	t.serve(c, e.Listener.ID)
	if e.Has(event.FlagAmbiguous) {
		c.flags |= flagUncertain
	}
	return c
}

// tookOver reports whether c is the socket of a request, or attempt, of which an
// event of that time comes late, when the socket is there already.
func (c *Conn) tookOver(at int64) bool {
	if est := c.Find(EntryEstablished); est != nil && est.At >= at && est.At-at < settle {
		return true
	}
	// Snapshots are not in line with the events, and overtake them by as much as
	// there is to read.
	for i := 0; i < int(c.n); i++ {
		if e := c.At(i); e.Found() {
			return e.At >= at && e.At-at <= int64(adoptWindow)
		}
	}
	return false
}

// dropped handles a SYN or, with argACK, a final ACK that met a full accept
// queue.
func (t *Tracker) dropped(e *event.Event, arg uint32) {
	p := PhaseAttempt
	if arg&argACK != 0 {
		p = PhaseRequest
		if e.Has(event.FlagRST) {
			arg |= argRST
		}
		if e.Has(event.FlagCookie) {
			arg |= argCookie
		}
	}
	if e.Has(event.FlagInferred) {
		arg |= argInferred
	}
	if !e.Remote.IsValid() || !e.Local.IsValid() {
		t.stats.Unmatched++
		return
	}
	c := t.request(e, p)
	c.ext().facts = e.Listener
	e.Old, e.New = halfState(c), halfState(c)
	t.add(c, e, EntryRequestDropped, arg)
	if arg&argRST != 0 && c.Phase() == PhaseRequest {
		t.end(c)
		return
	}
	t.await(c)
}

func halfState(c *Conn) event.State {
	if c.Phase() == PhaseAttempt {
		return event.StateUnknown
	}
	return event.StateNewSynRecv
}

func (t *Tracker) synackRetransmitted(e *event.Event) {
	if !e.Remote.IsValid() || !e.Local.IsValid() {
		t.stats.Unmatched++
		return
	}
	c := t.request(e, PhaseRequest)
	if sent := time.Second << min(e.Listener.Attempt, 7); c.n == 0 && t.lostAt != 0 && t.lostAt >= e.Time-int64(sent) {
		c.flags |= flagLost // what happened to it since the first SYN-ACK, perhaps
	}
	// The final ACK came and was dropped, says the kernel; or may have been.
	c.ext().retries = e.Listener.SYNACKRetries
	if x := c.ext(); e.Has(event.FlagACKed) || e.Listener.QueueLen > e.Listener.QueueLimit {
		x.full = true
	}
	e.Old, e.New = event.StateNewSynRecv, event.StateNewSynRecv
	t.add(c, e, EntrySYNACKRetransmitted, uint32(e.Listener.Attempt)<<24)
	t.await(c)
}

func (t *Tracker) requestAborted(e *event.Event) {
	c := t.find(e)
	if c == nil {
		c = t.byAddresses(e, func(c *Conn) bool { return c.Phase() == PhaseRequest && (c.sock == 0 || t.address) })
	}
	t.incident(e, IncidentRequestAborted)
	if c == nil || c.Phase() == PhaseSocket {
		return
	}
	t.update(c, e)
	t.add(c, e, EntryRequestAborted, e.Reason)
	t.end(c)
}

// await sets a date for when c is to be given up.
func (t *Tracker) await(c *Conn) {
	if p := c.Phase(); p == PhaseAttempt || p == PhaseRequest {
		t.schedule(c, c.deadline())
	}
}

// deadline is when the next event of a half-open connection is overdue. The
// kernel's timers may be late by an eighth of their length.
func (c *Conn) deadline() int64 {
	wait := c.patience()
	return c.last + int64(wait+wait/8+time.Second)
}

// patience is for how long a half-open connection waits for its next event.
func (c *Conn) patience() (wait time.Duration) {
	if c.Phase() == PhaseRequest {
		n := 0
		dropped := false
		for i := 0; i < int(c.n); i++ {
			e := c.At(i)
			n = max(n, e.Attempt())
			dropped = dropped || e.DroppedACK() && !e.arg(argCookie, EntryRequestDropped)
		}
		if n == 0 && dropped {
			// How many SYN-ACKs came before is not known: as many as
			// there can be.
			const byDefault = 5
			if n = int(c.Facts().SYNACKRetries); n == 0 {
				n = byDefault
			}
		}
		wait = min(time.Second<<min(n, 10), maxRTO)
	} else {
		// Each wait of the client for an answer is as long as all before
		// it together and a second more.
		first, last := c.last, c.last
		for i := 0; i < int(c.n); i++ {
			if e := c.At(i); e.Kind == EntryRequestDropped {
				first, last = min(first, e.At), max(last, e.Until())
			}
		}
		wait = min(time.Duration(last-first)+time.Second, maxRTO)
	}
	return wait
}

// expire ends a half-open connection of which nothing more came in time, as is
// known now.
func (t *Tracker) expire(c *Conn, now int64) {
	kind := EntryForgotten
	if c.Phase() == PhaseRequest {
		kind = EntryExpired
	}
	closed := c.lis != nil && c.lis.Closed != 0 // and took its requests along
	if c.flags&flagLost == 0 && !closed {
		at := min(now, c.deadline()-int64(time.Second))
		t.file(c, Entry{At: at, Kind: kind, states: uint8(halfState(c))})
	}
	t.end(c)
}
