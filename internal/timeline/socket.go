package timeline

import (
	"time"

	"github.com/tcptrace/tcptrace/tracer/event"
)

// transition handles a state change of a socket that does not listen.
func (t *Tracker) transition(e *event.Event) {
	if e.Sock == 0 {
		t.stats.Unmatched++
		return
	}
	connecting := e.Old == event.StateClose && e.New == event.StateSynSent
	// A server's socket shows first as it leaves SYN_RECV. (So does a client's
	// in a simultaneous open; it is known then.)
	child := e.Old == event.StateSynRecv
	c := t.current(e, func(c *Conn) bool { return t.sameLife(c, e, connecting, child) })
	if c == nil && child {
		c = t.adopt(e, e.Sock)
	}
	if c == nil {
		c = t.create(e, e.Sock, PhaseSocket)
	}
	t.toSocket(c)
	if connecting {
		c.flags |= flagBirth
		c.setRole(RoleClient)
		c.flag(flagPicked, e.Local.Port() == 0)
	} else if child && c.Role() != RoleClient {
		c.flags |= flagBirth
		t.serve(c, 0)
	} else if e.Old == event.StateSynSent {
		c.setRole(RoleClient)
	}
	t.update(c, e)
	p := t.process(e)
	if connecting {
		t.own(c, p, SourceConnect)
	}

	var arg uint32
	if p != nil {
		arg |= argProcess
		if e.Has(event.FlagExiting) {
			arg |= argExiting
		}
	}
	switch kind := entryOf(e); kind {
	case EntryFINSent:
		if e.Has(event.FlagShutRD | event.FlagShutWR) {
			arg |= argClose
		}
		t.closing(c, p)
		t.add(c, e, kind, arg)
	case EntryConnectFailed:
		arg |= uint32(e.Err)&0xff | min(e.Reason, 0xff)<<8 | uint32(e.Attempt)<<24
		if e.Local.Port() == 0 {
			arg |= argNoPort
		}
		t.add(c, e, kind, arg)
	case EntryClosed:
		arg |= uint32(e.Err)&0xff | min(e.Reason, 0xff)<<8 | uint32(e.Attempt)<<24
		if e.Has(event.FlagLingerZero) {
			arg |= argLingerZero
		}
		t.closing(c, p)
		t.add(c, e, kind, arg)
	case EntryTimeWait:
		e.New = event.StateTimeWait
		t.add(c, e, kind, 0)
		e.New = event.StateClose
	case EntryState:
		if e.New == event.StateClose { // FIN_WAIT2 goes on in a minisocket
			e.New = event.StateFinWait2
			arg := uint32(argFinWait2)
			if e.Has(event.FlagInferred) {
				arg |= argGuessed
			}
			t.add(c, e, kind, arg)
			e.New = event.StateClose
			if rst := c.Find(EntryRSTSent); rst != nil { // told before
				c.unguess(rst.At)
			}
			break
		}
		t.add(c, e, kind, 0)
	default:
		t.add(c, e, kind, 0)
	}
	if e.New == event.StateClose {
		t.end(c)
	}
}

// current returns the connection that the socket of e is known as, nil if it is
// that of another life. That one is over then, unless a line of a snapshot was
// ahead of e.
func (t *Tracker) current(e *event.Event, same func(*Conn) bool) *Conn {
	for {
		c := t.bySock.find(e.Sock)
		if c == nil || same(c) {
			return c
		}
		if c.flags&flagBirth == 0 && c.snapshot > e.Time && !c.SameAddresses(e) {
			return nil
		}
		t.replace(c, e.Time)
	}
}

// entryOf names a transition.
func entryOf(e *event.Event) EntryKind {
	switch e.New {
	case event.StateSynSent:
		return EntrySYNSent
	case event.StateEstablished:
		return EntryEstablished
	case event.StateFinWait1, event.StateLastAck:
		return EntryFINSent
	case event.StateCloseWait, event.StateClosing:
		return EntryFINReceived
	case event.StateClose:
		switch {
		case e.Has(event.FlagTimeWait):
			return EntryTimeWait
		case e.Has(event.FlagTimeWaitFW2):
			return EntryState
		case e.Old == event.StateSynSent:
			return EntryConnectFailed
		}
		return EntryClosed
	}
	return EntryState
}

// sameLife reports whether e belongs to the life of the socket that c tells,
// rather than to a later one: sockets can connect again, and where identities
// are addresses they are reused.
func (t *Tracker) sameLife(c *Conn, e *event.Event, connecting, child bool) bool {
	if !c.SameAddresses(e) {
		return false
	}
	if closed := c.Closed(); closed != 0 && e.Time > closed {
		return false
	}
	if c.Phase() == PhaseEnded && c.Closed() == 0 {
		return !connecting && !child || c.Find(EntryGone) != nil && c.flags&flagBirth == 0
	}
	switch {
	case connecting:
		// It came late, or twice.
		if first := c.Find(EntrySYNSent); first != nil {
			return e.Time == first.At
		}
		return e.Time <= c.Seen()
	case child:
		if !t.address {
			return true // a cookie is never used again, and a child is born once
		}
		if c.sock != e.Sock || c.Phase() != PhaseSocket {
			return true // the child of this request
		}
		if est := c.Find(EntryEstablished); est != nil {
			return e.Time == est.At || e.New != event.StateEstablished && e.Time < est.At
		}
		if c.flags&flagBirth != 0 && c.Role() == RoleClient {
			return c.state == event.StateSynRecv
		}
		// accept() can come first.
		return e.Time <= c.Seen() || e.Time-c.Seen() < int64(time.Second)
	}
	return true
}

// SameAddresses reports whether e can be about c: where both know their
// addresses, they agree.
func (c *Conn) SameAddresses(e *event.Event) bool {
	if e.Netns != c.netns {
		return false
	}
	local, lport := pack(e.Local)
	remote, rport := pack(e.Remote)
	if c.rport != 0 && rport != 0 && (c.rport != rport || c.remote != remote) {
		return false
	}
	if c.lport != 0 && lport != 0 && (c.lport != lport || c.local != local) {
		return false
	}
	return true
}

// replace makes room in the index for another life of the socket of c, which was
// seen at that time.
func (t *Tracker) replace(c *Conn, at int64) {
	t.bySock.remove(c)
	switch {
	case c.Phase() == PhaseRequest && at >= c.last+int64(c.patience()):
		t.expire(c, at) // its memory is free since its timer passed
	case c.Phase() != PhaseEnded: // its end was missed
		t.file(c, Entry{At: max(c.last, c.Seen()), Kind: EntryGone})
		t.stats.Gone++
		t.end(c)
	}
}

// find returns the connection of e, which is no birth; nil if there is none.
func (t *Tracker) find(e *event.Event) *Conn {
	c := t.bySock.find(e.Sock)
	if c == nil || !c.SameAddresses(e) {
		return nil
	}
	return c
}

// accepted handles accept(), which can even precede SYN_RECV to ESTABLISHED.
func (t *Tracker) accepted(e *event.Event) {
	if e.Sock == 0 {
		t.stats.Unmatched++
		return
	}
	dead := e.New == event.StateClose // it was reset in the queue
	c := t.current(e, func(c *Conn) bool {
		closed := c.Closed()
		stale := !c.SameAddresses(e) || closed != 0 && e.Time > closed && t.address && !dead
		if !stale && t.address {
			// accept() returns a socket once.
			first := c.Find(EntryAccepted)
			stale = first != nil && first.At != e.Time
		}
		return !stale
	})
	if c == nil && dead { // and told, and forgotten
		t.stats.Unmatched++
		return
	}
	if c == nil {
		c = t.adopt(e, e.Sock)
	}
	if c == nil {
		c = t.create(e, e.Sock, PhaseSocket)
	}
	t.toSocket(c)
	c.flags |= flagAccepted
	t.serve(c, 0)
	t.update(c, e)
	t.own(c, t.process(e), SourceAccept)
	t.add(c, e, EntryAccepted, 0)
}

// happened handles what happens to a living socket without changing its state.
func (t *Tracker) happened(e *event.Event) {
	c := t.find(e)
	if c == nil || c.Phase() == PhaseEnded && e.Time > c.last+int64(t.o.Grace) {
		t.stats.Unmatched++
		return
	}
	t.update(c, e)
	switch e.Kind {
	case event.KindRSTReceived:
		t.add(c, e, EntryRSTReceived, 0)
	case event.KindRetransmit:
		if e.New == event.StateSynSent {
			t.add(c, e, EntrySYNRetransmitted, 0)
		} else {
			t.add(c, e, EntryRetransmitted, uint32(e.Attempt)<<24)
		}
	case event.KindRTO:
		if e.New != event.StateSynSent { // there the retransmission tells it
			t.add(c, e, EntryRTO, uint32(e.Attempt)<<24)
		}
	case event.KindProbe:
		kind := EntryKeepaliveProbe
		if e.Reason == 2 {
			kind = EntryZeroWindow
		}
		t.add(c, e, kind, min(uint32(e.Attempt)+1, 0xff)<<24)
	case event.KindMemory:
		t.add(c, e, EntryMemory, e.Reason)
	case event.KindShutdown:
		t.add(c, e, EntryShutdownCalled, min(e.Reason, 3)<<24)
	}
}

// resetSent handles a RST from a full socket, from a listener or from none.
func (t *Tracker) resetSent(e *event.Event) {
	if c := t.find(e); c != nil && !e.Has(event.FlagNoSocket) {
		t.update(c, e)
		if name := t.o.Capabilities.RSTReasons[e.Reason]; name != "" && e.Reason != 0 {
			c.ext().reason = name
		}
		c.unguess(e.Time)
		t.add(c, e, EntryRSTSent, e.Reason&^argMinisocket)
		return
	}
	if e.New == event.StateTimeWait && e.Old == event.StateFinWait2 {
		t.lateData(e)
		return
	}
	// A final ACK that met a full accept queue is answered through the
	// listener. All other resets without a socket of their own answer stray
	// segments and belong to no connection.
	c := t.byAddresses(e, func(c *Conn) bool {
		d := c.Find(EntryRequestDropped)
		return d != nil && c.sock != e.Sock && c.last <= e.Time && e.Time-c.last < int64(time.Second) && c.answered()
	})
	if c == nil {
		t.stray(e)
		return
	}
	t.file(c, Entry{At: e.Time, Kind: EntryOverflowAnswered})
}

// segmentDropped handles a segment that this host dropped, of a connection or
// of none.
func (t *Tracker) segmentDropped(e *event.Event) {
	c := t.find(e)
	if c == nil && e.Remote.IsValid() {
		c = t.byAddresses(e, func(c *Conn) bool { return c.Phase() != PhaseEnded || e.Time-c.last < int64(t.o.Grace) })
	}
	if c == nil {
		t.incident(e, IncidentSegmentDropped)
		return
	}
	x := c.ext()
	x.where, x.drop = e.Where, t.o.Capabilities.DropReasons[e.Reason]
	entry := Entry{At: e.Time, Kind: EntrySegmentDropped, Arg: min(e.Reason, 0xff) << 24}
	if e.Out {
		entry.states |= outbound
	}
	const syn, ack = 0x02, 0x10
	if e.TCPFlags&(syn|ack) == syn {
		entry.states |= droppedSYN
	}
	c.last = max(c.last, e.Time)
	t.file(c, entry)
}

// lateData handles a RST by the minisocket of an orphan in FIN_WAIT2: data came
// for a connection that this end has closed, mostly so long ago that it is not
// remembered any more (tcp_timewait_state_process).
func (t *Tracker) lateData(e *event.Event) {
	c := t.find(e)
	if c == nil {
		c = t.byAddresses(e, func(c *Conn) bool { return c.Phase() == PhaseEnded && e.Time-c.last < int64(t.o.Grace) })
	}
	if c == nil {
		c = t.create(e, e.Sock, PhaseSocket)
		c.flags |= flagBefore
		if o := t.orphans.find(c); o != nil {
			t.own(c, o.process, o.source)
			c.setRole(o.role)
		}
		if l, _ := t.resolve(c.netns, c.Local()); l != nil && c.Role() != RoleClient {
			t.serve(c, 0)
		}
	}
	if name := t.o.Capabilities.RSTReasons[e.Reason]; name != "" && e.Reason != 0 {
		c.ext().reason = name
	}
	e.New = event.StateFinWait2
	t.add(c, e, EntryRSTSent, e.Reason&^argMinisocket|argMinisocket)
	// A minisocket has taken over, also where that was not seen.
	t.end(c)
}

// unguess corrects what was concluded of a closed socket in FIN_WAIT2: one
// that goes on as a minisocket sends no RST as it does.
func (c *Conn) unguess(rst int64) {
	for i := int(c.n) - 1; i >= 0; i-- {
		if e := c.At(i); e.arg(argGuessed, EntryState) && e.At <= rst && rst-e.At < atOnce {
			*e = Entry{At: e.At, Kind: EntryClosed, Count: 1, states: uint8(event.StateFinWait2)<<4 | uint8(event.StateClose)}
			c.state = event.StateClose
			return
		}
	}
}

// answered reports whether a dropped final ACK of c was answered by RST.
func (c *Conn) answered() bool {
	for i := 0; i < int(c.n); i++ {
		if c.At(i).AnsweredRST() {
			return true
		}
	}
	return false
}

// closing notes the process that closes c.
func (t *Tracker) closing(c *Conn, p *process) {
	if p == nil {
		return
	}
	t.own(c, p, SourceClose)
	if c.process == p && c.source() == SourceClose || c.extra != nil && c.extra.closer != nil {
		return
	}
	if c.process != p {
		c.ext().closer = p
	}
}

// toSocket tells that c has a socket from now on.
func (t *Tracker) toSocket(c *Conn) {
	if p := c.Phase(); p == PhaseAttempt || p == PhaseRequest {
		t.half.remove(c)
		c.setPhase(PhaseSocket)
		t.live.push(c)
	}
}

// byAddresses returns the most recently active connection with the addresses
// of e in its namespace that ok approves.
func (t *Tracker) byAddresses(e *event.Event, ok func(*Conn) bool) *Conn {
	local, lport := pack(e.Local)
	remote, rport := pack(e.Remote)
	var best *Conn
	for c := t.byTuple.first(local, remote, lport, rport); c != nil; c = c.nextTuple {
		if c.netns == e.Netns && c.lport == lport && c.rport == rport && c.local == local && c.remote == remote &&
			(best == nil || c.last > best.last || c.last == best.last && c.id < best.id) && ok(c) {
			best = c
		}
	}
	return best
}
