package timeline

import (
	"net/netip"
	"slices"

	"github.com/tcptrace/tcptrace/tracer/event"
)

// Listener is a listening socket.
type Listener struct {
	ID    uint64 // identity of the socket, 0 unknown
	Netns uint32
	Addr  netip.AddrPort // as bound: a wildcard address stays one
	Exact bool           // Addr is as bound, not merely where a SYN was sent to

	Opened int64 // 0: it existed before, or not seen
	Closed int64 // 0: still open

	// The queue's limit and what it was made of, as far as seen.
	Backlog      int64 // the raw argument of listen(); meaningless unless BacklogKnown
	BacklogKnown bool
	QueueLimit   uint32 // min(argument, somaxconn); meaningless unless LimitKnown
	LimitKnown   bool
	QueueLen     uint32 // at the newest event
	Somaxconn    uint32 // of its namespace at the newest event, 0 unknown
	Abort        bool   // tcp_abort_on_overflow
	Shared       bool   // one of several on this address (SO_REUSEPORT)

	seen    int64 // time of the newest event
	process *process
	source  Source
}

// Owner is the process that opened or holds the listening socket.
func (l *Listener) Owner() Owner {
	if l.process == nil {
		return Owner{}
	}
	return l.process.owner(l.source)
}

// listenerState handles transitions from and to LISTEN.
func (t *Tracker) listenerState(e *event.Event) {
	if e.Old == event.StateListen && e.New != event.StateClose || e.Sock == 0 {
		return // LISTEN to SYN_RECV is a child
	}
	if e.New == event.StateClose {
		t.pastLis[sockHash(e.Sock)%pastListeners] = line{e.Sock, e.Time}
		l := t.lis[e.Sock]
		if l == nil || l.Opened > e.Time {
			t.stats.Unmatched++
			return
		}
		t.learnFacts(l, e)
		t.closeListener(l, e.Time)
		return
	}
	l := t.lis[e.Sock]
	if l != nil && (l.Opened != 0 && l.Opened != e.Time || !l.Exact || l.Addr != e.Local || l.Netns != e.Netns) {
		t.closeListener(l, l.seen) // an earlier one at this address of memory
		l = nil
	}
	if l == nil {
		l = t.newListener(e, e.Sock, true)
	}
	l.Opened = e.Time
	t.learnFacts(l, e)
	if p := t.process(e); p != nil {
		l.process, l.source = p, SourceListener
	}
	t.obs.Listener(l, &Entry{At: e.Time, Kind: EntryState, Count: 1, states: uint8(e.Old)<<4 | uint8(e.New)})
}

// listenCalled handles listen(), seen just before or after the socket gets to
// LISTEN, or again later.
func (t *Tracker) listenCalled(e *event.Event) {
	if e.Sock == 0 {
		t.stats.Unmatched++
		return
	}
	l := t.lis[e.Sock]
	if l != nil && (l.Netns != e.Netns || l.Exact && e.Local.IsValid() && l.Addr != e.Local) {
		t.closeListener(l, l.seen)
		l = nil
	}
	if l != nil && e.Local.IsValid() {
		t.bind(l, e.Local)
	}
	if l == nil {
		l = t.newListener(e, e.Sock, true)
	}
	t.learnFacts(l, e)
	l.Backlog = int64(int32(e.Listener.Backlog))
	l.BacklogKnown = true
	if p := t.process(e); p != nil {
		l.process, l.source = p, SourceListener
	}
	t.obs.Listener(l, &Entry{At: e.Time, Kind: EntryListen, Count: 1, states: uint8(event.StateListen)})
}

// listenerFound handles a listening socket of a snapshot.
func (t *Tracker) listenerFound(e *event.Event) {
	l := t.lis[e.Sock]
	if l != nil && e.Time < l.Opened {
		return // of an earlier life of the socket
	}
	if p := t.pastLis[sockHash(e.Sock)%pastListeners]; p.sock == e.Sock && e.Time <= p.at {
		return // it was closed meanwhile
	}
	if l != nil && (l.Netns != e.Netns || l.Exact && l.Addr != e.Local) {
		t.closeListener(l, l.seen)
		l = nil
	}
	if l != nil {
		t.bind(l, e.Local)
	}
	if l == nil {
		l = t.newListener(e, e.Sock, true)
	}
	t.learnFacts(l, e)
	t.obs.Listener(l, &Entry{At: e.Time, Kind: EntryState, Count: 1, Arg: argFound,
		states: uint8(event.StateListen)<<4 | uint8(event.StateListen)})
}

// bind notes where l is bound, if that was known from a dropped SYN only.
func (t *Tracker) bind(l *Listener, local netip.AddrPort) {
	if l.Exact {
		return
	}
	t.unport(l)
	l.Addr, l.Exact = local, true
	t.port(l)
}

// listenerFacts takes over the facts of the listener that an event of another
// socket carries.
func (t *Tracker) listenerFacts(e *event.Event) {
	id := e.Listener.ID
	if id == 0 {
		return
	}
	l := t.lis[id]
	if l == nil {
		// It was there before. Where it is bound is not known: the SYN
		// may have been sent to one of many addresses.
		if l, _ = t.resolve(e.Netns, e.Local); l != nil && l.ID != id {
			return
		}
		if l == nil {
			l = t.newListener(e, id, false)
		}
	}
	t.learnFacts(l, e)
	if e.Has(event.FlagAmbiguous) {
		l.Shared = true
	}
}

func (t *Tracker) learnFacts(l *Listener, e *event.Event) {
	if e.Time < l.seen {
		return
	}
	l.seen = e.Time
	f := &e.Listener
	l.QueueLimit, l.QueueLen, l.LimitKnown = f.QueueLimit, f.QueueLen, true
	l.Somaxconn, l.Abort = f.Somaxconn, f.AbortOnOverflow
}

func (t *Tracker) newListener(e *event.Event, id uint64, exact bool) *Listener {
	if len(t.lis) >= t.o.MaxListeners {
		t.closeListener(t.lisOrder[0], t.now)
		t.stats.Evicted++
	}
	l := &Listener{ID: id, Netns: e.Netns, Addr: e.Local, Exact: exact, seen: e.Time}
	t.lis[id] = l
	t.lisOrder = append(t.lisOrder, l)
	t.port(l)
	return l
}

func (t *Tracker) port(l *Listener) {
	n := t.space(l.Netns)
	if n == nil {
		return
	}
	port := l.Addr.Port()
	for _, x := range n.ports[port] {
		if x.Addr == l.Addr {
			x.Shared, l.Shared = true, true
		}
	}
	n.ports[port] = append(n.ports[port], l)
}

func (t *Tracker) unport(l *Listener) {
	n := t.netns[l.Netns]
	if n == nil {
		return
	}
	port := l.Addr.Port()
	rest := slices.DeleteFunc(n.ports[port], func(x *Listener) bool { return x == l })
	if len(rest) == 0 {
		delete(n.ports, port)
	} else {
		n.ports[port] = rest
	}
}

func (t *Tracker) closeListener(l *Listener, at int64) {
	if l.Closed != 0 {
		return
	}
	l.Closed = max(at, 1)
	t.unport(l)
	delete(t.lis, l.ID)
	if i := slices.Index(t.lisOrder, l); i >= 0 {
		t.lisOrder = slices.Delete(t.lisOrder, i, i+1)
	}
	t.obs.Listener(l, &Entry{At: at, Kind: EntryClosed, Count: 1, states: uint8(event.StateListen)<<4 | uint8(event.StateClose)})
}

// resolve finds the listening socket that serves local: bound to exactly that
// address, else to the wildcard address of its family, else to the IPv6
// wildcard address, which serves IPv4 too. alone is false where several are
// bound to the same address and do not belong to one process.
func (t *Tracker) resolve(netns uint32, local netip.AddrPort) (l *Listener, alone bool) {
	n := t.netns[netns]
	if n == nil {
		return nil, false
	}
	best := 0
	for _, x := range n.ports[local.Port()] {
		rank := 0
		switch a := x.Addr.Addr(); {
		case a == local.Addr():
			rank = 3
		case a.IsUnspecified() && a.Is4() == local.Addr().Is4():
			rank = 2
		case a.IsUnspecified() && a.Is6():
			rank = 1
		}
		switch {
		case rank == 0 || rank < best:
		case rank > best:
			l, alone, best = x, true, rank
		case x.process == nil || x.process != l.process:
			alone = false
		}
	}
	return l, alone
}

// serve makes c a server's connection and finds its listening socket, by its
// identity if that is known.
func (t *Tracker) serve(c *Conn, id uint64) {
	c.setRole(RoleServer)
	if c.lis == nil || c.lis.Closed != 0 && c.flags&flagBirth == 0 {
		alone := true
		l := t.lis[id]
		if l == nil || id == 0 {
			l, alone = t.resolve(c.netns, c.Local())
		}
		if l == nil {
			return
		}
		c.lis = l
		c.flag(flagUncertain, !alone)
	}
	if c.flags&flagUncertain == 0 {
		t.own(c, c.lis.process, SourceListener)
	}
}
