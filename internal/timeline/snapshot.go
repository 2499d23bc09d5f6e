package timeline

import (
	"slices"
	"time"

	"github.com/tcptrace/tcptrace/tracer/event"
)

// settle is how long an event may still be on its way when a snapshot already
// shows what came of it.
const settle = int64(time.Second)

// BeginSnapshot announces the KindSnapshot events of every socket in netns.
func (t *Tracker) BeginSnapshot(netns uint32, now int64) {
	if n := t.space(netns); n != nil {
		n.inRound = true
		n.roundAt = now
		n.round = new(inventory)
	}
}

// EndSnapshot ends what BeginSnapshot announced: sockets of netns that were
// known before it and that it did not show are gone, unless events that are
// still on their way tell their end.
func (t *Tracker) EndSnapshot(netns uint32, now int64) {
	n := t.space(netns)
	if n == nil || !n.inRound {
		return
	}
	n.inRound = false
	n.synced = true
	n.snapshotAt = n.roundAt
	n.round.at = n.roundAt
	t.stock += n.round.size() - n.newest.size()
	n.newest, n.round = n.round, nil
	for _, l := range slices.Clone(t.lisOrder) {
		if l.Netns == netns && l.Closed == 0 && l.seen < n.roundAt {
			t.closeListener(l, n.roundAt)
		}
	}
	for c := t.live.oldest; c != nil; c = c.newer {
		if c.netns != netns {
			continue
		}
		if c.last < n.roundAt {
			if c.flags&flagMissing == 0 {
				c.flags |= flagMissing
				t.missing = append(t.missing, missing{c: c, since: n.roundAt})
			}
			continue
		}
		if c.Role() == RoleUnknown && t.learnRole(c) {
			t.obs.Changed(c)
		}
	}
}

// missing is a connection that a snapshot did not show.
type missing struct {
	c     *Conn
	since int64
}

// sweep gives up connections that are missing for long enough that their end
// was lost.
func (t *Tracker) sweep() {
	i := 0
	for ; i < len(t.missing) && t.missing[i].since+settle <= t.now; i++ {
		m := t.missing[i]
		t.missing[i] = missing{}
		m.c.flags &^= flagMissing
		if m.c.Phase() == PhaseSocket && m.c.last < m.since {
			t.file(m.c, Entry{At: m.since, Kind: EntryGone})
			t.stats.Gone++
			t.end(m.c)
		}
	}
	if i > 0 {
		t.missing = t.missing[:copy(t.missing, t.missing[i:])]
	}
	// A snapshot with a time far off holds up all after it.
	const slack = 1024
	if len(t.missing) > 2*t.live.n+slack {
		t.missing = slices.DeleteFunc(t.missing, func(m missing) bool { return m.c.Phase() == PhaseEnded })
	}
}

// line is a socket at a time, as a snapshot's line tells of it.
type line struct {
	sock uint64
	at   int64
}

// SnapshotOwner tells which process holds the socket of a snapshot's line of that
// time, as /proc shows it.
func (t *Tracker) SnapshotOwner(sock uint64, at int64, pid uint32, comm string) {
	var name event.Comm
	copy(name[:len(name)-1], comm)
	p := t.procs.intern(pid, name, 0)
	c := t.bySock.find(sock)
	if l := t.lis[sock]; l != nil && (c == nil || c.snapshot != at) {
		if at >= l.Opened && (l.process == nil || l.source < SourceSnapshot) {
			l.process, l.source = p, SourceSnapshot
		}
		return
	}
	if c == nil || at < c.Seen() || t.refused == (line{sock, at}) {
		return // the line is of another life of the socket
	}
	if c.Phase() == PhaseSocket {
		c.flags |= flagAccepted
	}
	t.own(c, p, SourceSnapshot)
	t.obs.Changed(c)
}

// snapshot handles one socket of a snapshot.
func (t *Tracker) snapshot(e *event.Event) {
	if e.Sock == 0 {
		t.stats.Unmatched++
		return
	}
	t.refused = line{}
	var inv event.Inventory
	if e.Inventory != nil {
		inv = *e.Inventory
	}
	if e.New == event.StateListen {
		t.listenerFound(e)
		return
	}
	t.count(e, &inv)
	if l := t.lis[e.Sock]; l != nil && e.Time < l.Opened {
		return // it was there before l
	}
	switch e.New {
	case event.StateUnknown, event.StateClose, event.StateTimeWait, event.StateNewSynRecv:
		return // TIME_WAIT and requests: not a socket
	}
	if inv.Minisocket {
		return
	}
	c := t.bySock.find(e.Sock)
	if c != nil {
		closed := c.Closed()
		switch {
		case t.otherLife(c, e):
			t.refused = line{e.Sock, e.Time}
			return
		case !c.SameAddresses(e), t.address && closed != 0 && e.Time > closed+settle:
			t.replace(c, e.Time)
			c = nil
		case c.Phase() == PhaseEnded:
			return // it ended meanwhile
		}
	}
	known := c != nil
	if !known && !t.address && t.past[sockHash(e.Sock)%pastSocks] == e.Sock {
		return // it ended meanwhile, and was told
	}
	if !known {
		c = t.adopt(e, e.Sock)
	}
	if c == nil {
		first := true
		if n := t.space(e.Netns); n != nil {
			first = !n.synced
		}
		c = t.create(e, e.Sock, PhaseSocket)
		c.flag(flagBefore, first)
	}
	t.toSocket(c)
	if e.New == event.StateCloseWait && (e.Traffic.Unacked > 0 ||
		known && c.state == event.StateCloseWait && e.Traffic.BytesSent > c.bytesSent) {
		c.ext().progress = e.Time
	}
	t.update(c, e)
	c.snapshot = e.Time
	if inv.Idle >= 0 {
		c.silent = max(1, e.Time-int64(inv.Idle))
	}
	shut := inv.SendWindow == 0 && e.Traffic.Unacked > 0 && e.New != event.StateSynSent
	own := inv.ReceiveWindow == 0 && e.Traffic.Unread > 0
	if shut || own || inv.Probes > 0 || c.extra != nil {
		x := c.ext()
		x.shut, x.unreadFull, x.probes = shut, own, inv.Probes
	}
	c.flags |= flagFound
	if inv.Inode != 0 {
		c.flags |= flagAccepted
	}
	c.keepalive = t.timersOf(inv)
	if c.Role() == RoleUnknown {
		t.learnRole(c)
	}
	switch {
	case !known:
		t.found(c, e, inv)
	case c.state != e.New && t.stats.Lost > 0:
		c.flags |= flagLost
		t.found(c, e, inv)
	default:
		t.obs.Changed(c)
	}
}

// otherLife reports whether a line of a snapshot is of another life of the socket
// than c, of which events tell.
func (t *Tracker) otherLife(c *Conn, e *event.Event) bool {
	same := c.SameAddresses(e)
	switch {
	case e.Time < c.Seen() && (!same || c.lport == 0):
		return true // it was there before c, whose events overtook this line
	case c.Phase() != PhaseSocket || t.lostAt > c.last:
		return false
	case !same:
		return true // the end of c, and its birth, are on their way; else the next round shows it
	case t.address && c.lport == 0 && e.Local.Port() != 0:
		// Of c, or of the next one to the same server: events will tell.
		c.last = max(c.last, e.Time)
		return true
	}
	return false
}

func (t *Tracker) found(c *Conn, e *event.Event, inv event.Inventory) {
	at := e.Time
	if e.New == event.StateCloseWait && inv.Idle > 0 {
		// The FIN came with or before the last segment.
		at -= int64(inv.Idle)
	}
	t.file(c, Entry{At: at, Kind: EntryState, Arg: argFound, states: uint8(e.New)<<4 | uint8(e.New)&15})
}

// timersOf interns keepalive timers: few are ever in use.
func (t *Tracker) timersOf(inv event.Inventory) uint8 {
	k := keepalive{inv.KeepaliveTime, inv.KeepaliveInterval, inv.KeepaliveProbes}
	if k == (keepalive{}) {
		return 0
	}
	for i := 1; i < len(t.timers); i++ {
		if t.timers[i] == k {
			return uint8(i)
		}
	}
	if len(t.timers) == 256 {
		return 0
	}
	t.timers = append(t.timers, k)
	return uint8(len(t.timers) - 1)
}

// learnRole finds out which end c is, of a connection whose handshake was not
// seen. It reports whether it did.
func (t *Tracker) learnRole(c *Conn) bool {
	if l, _ := t.resolve(c.netns, c.Local()); l != nil {
		t.serve(c, 0)
		return true
	}
	if c.peer != nil && c.peer.Role() == RoleServer {
		c.setRole(RoleClient)
		return true
	}
	return false
}
