package timeline

import (
	"container/heap"
	"crypto/sha256"
	"encoding/binary"
	"hash/maphash"
	"iter"
	"math"
	"slices"
	"time"

	"github.com/tcptrace/tcptrace/tracer/event"
)

// Options of a [Tracker]. The zero value of each field means its default.
type Options struct {
	Capabilities event.Capabilities
	Observer     Observer // nil: nobody is told

	// Key makes connection IDs that cannot be traced back to what they are
	// made of: random for each recording, and the recording's on a replay.
	Key [16]byte

	MaxConnections int           // everything tracked, 1,000,000
	MaxRequests    int           // of these half-open or merely attempted, 65,536
	MaxListeners   int           // 16,384
	MaxNamespaces  int           // 4,096
	MaxProcesses   int           // names remembered, 65,536
	Grace          time.Duration // wait after the end for late events and the peer, 200 ms
}

// Stats of a [Tracker]: totals since New, except where said otherwise.
type Stats struct {
	Events      uint64 // handled
	Connections uint64 // created
	Live        int    // now: not yet ended
	Requests    int    // now: of these without a socket
	Listeners   int    // now
	Evicted     uint64 // connections dropped to stay within the bounds
	Truncated   uint64 // entries left out to stay within the bounds
	Unmatched   uint64 // events of sockets that are not known, or no longer, and that tell nothing by themselves
	Gone        uint64 // connections whose end was missed, found out by a snapshot
	Lost        uint64 // events reported lost
}

// Tracker turns events into connections.
type Tracker struct {
	o        Options
	obs      Observer
	now      int64
	address  bool // identities are addresses, which are reused
	stats    Stats
	bySock   sockIndex
	byTuple  tupleIndex
	live     list // with a socket
	half     list // without one
	ended    []ending
	endedAt  int // first of ended that is not released
	due      deadlines
	orphans  orphans
	past     [pastSocks]uint64 // cookies of sockets that ended lately, by hash: never used again
	refused  line              // the newest of a snapshot, if it was of another life of its socket
	procs    processes
	netns    map[uint32]*netns
	nsOrder  []uint32
	stock    int // things in all newest inventories
	lis      map[uint64]*Listener
	pastLis  [pastListeners]line // those that were closed lately, by hash
	lisOrder []*Listener
	timers   []keepalive
	missing  []missing
	lostAt   int64
	// endedLost is the first of ended that came after the newest loss.
	endedLost int
}

// pastSocks is how many sockets that ended are remembered, so that a snapshot
// which shows one as it was before does not bring it back.
const pastSocks = 1 << 14

// pastListeners is the same for listeners, which can come back: of each the time.
const pastListeners = 1 << 10

type ending struct {
	c   *Conn
	due int64
}

// netns is a network namespace.
type netns struct {
	facts      event.Namespace
	synced     bool       // a snapshot of it was completed
	inRound    bool       // one is going on
	roundAt    int64      // when that began
	snapshotAt int64      // when the newest completed one began
	round      *inventory // being collected
	newest     *inventory // of the newest completed one, nil if there was none
	ports      map[uint16][]*Listener
}

type keepalive struct {
	idle, interval time.Duration
	probes         uint32
}

type nobody struct{}

func (nobody) Entry(*Conn, *Entry)        {}
func (nobody) Changed(*Conn)              {}
func (nobody) Ended(*Conn)                {}
func (nobody) Listener(*Listener, *Entry) {}
func (nobody) Incident(*Incident)         {}
func (nobody) Namespace(event.Namespace)  {}
func (nobody) Tick(now int64, t *Tracker) {}
func orDefault[T int | time.Duration](v, d T) T {
	if v <= 0 {
		return d
	}
	return v
}

// New returns a tracker without connections.
func New(o Options) *Tracker {
	o.MaxConnections = orDefault(o.MaxConnections, 1_000_000)
	o.MaxRequests = orDefault(o.MaxRequests, 65_536)
	o.MaxListeners = orDefault(o.MaxListeners, 16_384)
	o.MaxNamespaces = orDefault(o.MaxNamespaces, 4_096)
	o.MaxProcesses = orDefault(o.MaxProcesses, 65_536)
	o.Grace = orDefault(o.Grace, 200*time.Millisecond)
	t := &Tracker{
		o:       o,
		obs:     o.Observer,
		address: o.Capabilities.Identity == event.IdentityAddress,
		procs:   newProcesses(o.MaxProcesses),
		netns:   make(map[uint32]*netns),
		lis:     make(map[uint64]*Listener),
		timers:  make([]keepalive, 1),
	}
	t.byTuple.seed = maphash.MakeSeed()
	if t.obs == nil {
		t.obs = nobody{}
	}
	return t
}

// Handle takes the next event, in arrival order. It keeps nothing of e.
func (t *Tracker) Handle(e *event.Event) {
	t.stats.Events++
	if e.Kind != event.KindSnapshot {
		t.now = max(t.now, e.Time)
	}
	switch e.Kind {
	case event.KindState:
		switch {
		case e.New == event.StateListen || e.Old == event.StateListen:
			t.listenerState(e)
		default:
			t.transition(e)
		}
	case event.KindListen:
		t.listenCalled(e)
	case event.KindAccept:
		t.accepted(e)
	case event.KindSYNDropped:
		t.dropped(e, 0)
	case event.KindACKOverflow:
		t.dropped(e, argACK)
	case event.KindSYNACKRetrans:
		t.synackRetransmitted(e)
	case event.KindRequestAborted:
		t.requestAborted(e)
	case event.KindRSTSent:
		t.resetSent(e)
	case event.KindSnapshot:
		t.snapshot(e)
	case event.KindRSTReceived, event.KindRetransmit, event.KindRTO, event.KindShutdown, event.KindProbe, event.KindMemory:
		t.happened(e)
	case event.KindSYNQueueFull:
		if e.Count == 0 { // a count of many carries no facts
			t.listenerFacts(e)
		}
		t.incident(e, IncidentSYNQueueFull)
	case event.KindBindFailed:
		t.incident(e, IncidentBindFailed)
	case event.KindSegmentDropped:
		t.segmentDropped(e)
	case event.KindTimeWaitOverflow:
		t.incident(e, IncidentTimeWaitOverflow)
	}
}

// Conn returns the connection that a socket is known as, nil if it is none's
// or what was known of it is forgotten.
func (t *Tracker) Conn(sock uint64) *Conn { return t.bySock.find(sock) }

// Namespace tells the facts of a network namespace.
func (t *Tracker) Namespace(ns event.Namespace) {
	if n := t.space(ns.Inode); n != nil {
		n.facts = ns
	}
	t.obs.Namespace(ns)
}

// Process tells what is known of a process beyond its events.
func (t *Tracker) Process(p event.Process) { t.procs.learn(p) }

// Lost tells that events never arrived, as noticed at that time. What lives
// then, or ended shortly before, may have missed some.
func (t *Tracker) Lost(at int64, l event.Lost) {
	t.stats.Lost += l.Count
	if l.Count == 0 {
		return
	}
	t.lostAt = max(t.lostAt, at)
	// There can be as many losses as events: each marks what came since the one
	// before.
	for _, l := range [...]*list{&t.live, &t.half} {
		for c := l.newest; c != l.lost; c = c.older {
			c.flags |= flagLost
		}
		l.lost = l.newest
	}
	for ; t.endedLost < len(t.ended); t.endedLost++ {
		t.ended[t.endedLost].c.flags |= flagLost
	}
}

// Advance tells that time has come to now and that every event before it was
// handled: what is due by then is concluded, and the observer hears its tick.
func (t *Tracker) Advance(now int64) {
	t.now = max(t.now, now)
	for len(t.due) > 0 && t.due[0].at <= t.now {
		c := heap.Pop(&t.due).(deadline).c
		c.flags &^= flagQueued
		if p := c.Phase(); p != PhaseAttempt && p != PhaseRequest {
			continue
		}
		if d := c.deadline(); d > t.now {
			t.schedule(c, d)
			continue
		}
		t.expire(c, t.now)
	}
	t.sweep()
	for t.endedAt < len(t.ended) && t.ended[t.endedAt].due <= t.now {
		t.release()
	}
	t.obs.Tick(t.now, t)
}

// Drain delivers the connections that have ended without waiting for their
// grace to pass. Those that still live stay, see Conns.
func (t *Tracker) Drain(now int64) {
	t.Advance(now)
	for t.endedAt < len(t.ended) {
		t.release()
	}
}

// Conns walks everything that has not ended, least recently active first:
// sockets, then requests and attempts.
func (t *Tracker) Conns() iter.Seq[*Conn] {
	return func(yield func(*Conn) bool) {
		for _, l := range [...]*list{&t.live, &t.half} {
			for c := l.oldest; c != nil; c = c.newer {
				if !yield(c) {
					return
				}
			}
		}
	}
}

// Listeners walks the open listening sockets, oldest first.
func (t *Tracker) Listeners() iter.Seq[*Listener] {
	return func(yield func(*Listener) bool) {
		for _, l := range t.lisOrder {
			if l.Closed == 0 && !yield(l) {
				return
			}
		}
	}
}

// Now is the newest time that an event or Advance has told. (Snapshots and
// losses may be ahead of events that are still on their way.)
func (t *Tracker) Now() int64 { return t.now }

// SnapshotAt is when the newest completed snapshot of netns began, 0 if there
// was none.
func (t *Tracker) SnapshotAt(netns uint32) int64 {
	if n := t.netns[netns]; n != nil {
		return n.snapshotAt
	}
	return 0
}

// LostAt is when events were last found to be lost, 0 if none were.
func (t *Tracker) LostAt() int64 { return t.lostAt }

// Stats returns the counts.
func (t *Tracker) Stats() Stats {
	s := t.stats
	s.Live = t.live.n + t.half.n
	s.Requests = t.half.n
	s.Listeners = len(t.lis)
	return s
}

// KeepaliveTimers returns what the kernel would do on c: idle time before the
// first probe, time between probes, and their number. ok is false where that
// is not known.
func (t *Tracker) KeepaliveTimers(c *Conn) (idle, interval time.Duration, probes uint32, ok bool) {
	if c.keepalive != 0 {
		k := t.timers[c.keepalive]
		return k.idle, k.interval, k.probes, true
	}
	n := t.netns[c.netns]
	if n == nil || !n.facts.Known || c.flags&flagFound != 0 && c.keepalive == 0 {
		return 0, 0, 0, false
	}
	s := n.facts.Sysctls
	return time.Duration(s.KeepaliveTime) * time.Second, time.Duration(s.KeepaliveInterval) * time.Second,
		uint32(max(s.KeepaliveProbes, 0)), true
}

// space returns the namespace, nil for 0 (not known).
func (t *Tracker) space(inode uint32) *netns {
	if inode == 0 {
		return nil
	}
	n := t.netns[inode]
	if n == nil {
		if len(t.nsOrder) >= t.o.MaxNamespaces {
			t.stock -= t.netns[t.nsOrder[0]].newest.size()
			delete(t.netns, t.nsOrder[0])
			t.nsOrder = t.nsOrder[1:]
		}
		n = &netns{ports: make(map[uint16][]*Listener)}
		n.facts.Inode = inode
		t.netns[inode] = n
		t.nsOrder = append(t.nsOrder, inode)
	}
	return n
}

// create makes the connection that e is the first to tell of.
func (t *Tracker) create(e *event.Event, sock uint64, p Phase) *Conn {
	c := &Conn{sock: sock, netns: e.Netns, last: e.Time}
	c.local, c.lport = pack(e.Local)
	c.remote, c.rport = pack(e.Remote)
	c.state = e.New
	c.id = t.identity(c)
	c.setPhase(p)
	t.stats.Connections++
	n := t.space(e.Netns)
	if p == PhaseSocket && (n == nil || !n.synced) && t.stats.Lost == 0 {
		c.flags |= flagBefore // unless its birth turns up
	}
	t.listOf(c).push(c)
	t.bySock.insert(c)
	t.byTuple.insert(c)
	t.link(c)
	t.bound(c)
	return c
}

// identity derives an ID that survives a replay, also of only some of the
// events: the socket, and when this life of it was first seen.
func (t *Tracker) identity(c *Conn) uint64 {
	var b [72]byte
	copy(b[:], t.o.Key[:])
	binary.LittleEndian.PutUint64(b[16:], c.sock)
	binary.LittleEndian.PutUint64(b[24:], uint64(c.last))
	binary.LittleEndian.PutUint32(b[32:], c.netns)
	n := 36
	if c.sock == 0 {
		copy(b[36:], c.local[:])
		copy(b[52:], c.remote[:])
		binary.LittleEndian.PutUint16(b[68:], c.lport)
		binary.LittleEndian.PutUint16(b[70:], c.rport)
		n = len(b)
	}
	h := sha256.Sum256(b[:n])
	return binary.BigEndian.Uint64(h[:])
}

func (t *Tracker) listOf(c *Conn) *list {
	if c.Phase() == PhaseSocket {
		return &t.live
	}
	return &t.half
}

// bound keeps the number of connections within the options, at the expense of
// others than the newest.
func (t *Tracker) bound(newest *Conn) {
	for t.half.n > t.o.MaxRequests && t.half.oldest != newest {
		t.evict(t.half.oldest)
	}
	for t.live.n+t.half.n+len(t.ended)-t.endedAt > t.o.MaxConnections {
		switch {
		case t.endedAt < len(t.ended):
			t.release()
		case t.half.n > 0 && t.half.oldest != newest:
			t.evict(t.half.oldest)
		case t.live.n > 0 && t.live.oldest != newest:
			t.evict(t.live.oldest)
		default:
			return
		}
	}
}

func (t *Tracker) evict(c *Conn) {
	t.stats.Evicted++
	c.flags |= flagEvicted
	t.listOf(c).remove(c)
	c.setPhase(PhaseEnded)
	t.forget(c)
	t.obs.Ended(c)
}

// end moves c to those that only wait for late events.
func (t *Tracker) end(c *Conn) {
	if c.Phase() == PhaseEnded {
		return
	}
	t.listOf(c).remove(c)
	c.setPhase(PhaseEnded)
	due := t.now
	if due <= math.MaxInt64-int64(t.o.Grace) {
		due += int64(t.o.Grace)
	}
	if n := len(t.ended); n > t.endedAt {
		due = max(due, t.ended[n-1].due)
	}
	t.ended = append(t.ended, ending{c, due})
}

// release delivers the connection that ended first.
func (t *Tracker) release() {
	c := t.ended[t.endedAt].c
	t.ended[t.endedAt] = ending{}
	t.endedAt++
	t.endedLost = max(t.endedLost, t.endedAt)
	if t.endedAt == len(t.ended) {
		t.ended, t.endedAt, t.endedLost = t.ended[:0], 0, 0
	} else if t.endedAt >= 1024 && t.endedAt > len(t.ended)/2 {
		n := copy(t.ended, t.ended[t.endedAt:])
		clear(t.ended[n:])
		t.ended, t.endedAt, t.endedLost = t.ended[:n], 0, t.endedLost-t.endedAt
	}
	t.forget(c)
	if !t.address && c.sock != 0 && c.Find(EntryGone) == nil {
		t.past[sockHash(c.sock)%pastSocks] = c.sock
	}
	if c.state == event.StateFinWait2 {
		t.orphans.add(c)
	}
	t.obs.Ended(c)
}

func (t *Tracker) forget(c *Conn) {
	t.bySock.remove(c)
	t.byTuple.remove(c)
}

// update takes over what every event of a connection tells.
func (t *Tracker) update(c *Conn, e *event.Event) {
	if c.Phase() != PhaseEnded && e.Kind != event.KindSnapshot {
		t.listOf(c).touch(c)
	}
	if c.lport == 0 && e.Local.Port() != 0 {
		c.local, c.lport = pack(e.Local)
		if c.rport == 0 {
			c.remote, c.rport = pack(e.Remote)
		}
		t.byTuple.insert(c)
		t.link(c)
	}
	switch e.Kind {
	case event.KindSYNDropped, event.KindACKOverflow, event.KindSYNACKRetrans, event.KindRequestAborted:
		c.last = max(c.last, e.Time)
		return
	}
	c.bytesSent = max(c.bytesSent, e.Traffic.BytesSent)
	c.bytesReceived = max(c.bytesReceived, e.Traffic.BytesReceived)
	c.retransmits = max(c.retransmits, uint16(min(e.Traffic.Retransmits, math.MaxUint16)))
	if e.Traffic.SRTT != 0 {
		c.srtt = e.Traffic.SRTT
	}
	if e.Time >= c.last && c.Phase() != PhaseEnded {
		c.unread, c.unacked = e.Traffic.Unread, e.Traffic.Unacked
		c.flag(flagKeepalive, e.Has(event.FlagKeepalive))
		c.flag(flagDead, e.Has(event.FlagDead))
		// A peer's FIN shuts receiving too, but what came before it can
		// still be read.
		c.flag(flagShutRD, e.Has(event.FlagShutRD) && !e.Has(event.FlagDone))
		c.flags |= flagKeepaliveSeen
	}
	c.last = max(c.last, e.Time)
}

func (c *Conn) flag(f connFlags, on bool) {
	if on {
		c.flags |= f
	} else {
		c.flags &^= f
	}
}

// own notes the process behind c if nothing better is known.
func (t *Tracker) own(c *Conn, p *process, s Source) {
	if p != nil && s > c.source() {
		if c.source() == SourceClose && c.process != p {
			c.ext().closer = c.process // who holds it need not have closed it
		}
		c.process = p
		c.setSource(s)
	}
}

// process returns the one that did e, nil if that is not known.
func (t *Tracker) process(e *event.Event) *process {
	if !e.Has(event.FlagProcess) {
		return nil
	}
	return t.procs.intern(e.PID, e.Comm, e.Cgroup)
}

// add files an entry for e and tells the observer.
func (t *Tracker) add(c *Conn, e *event.Event, kind EntryKind, arg uint32) {
	t.file(c, Entry{At: e.Time, Kind: kind, Arg: arg, states: uint8(e.Old)<<4 | uint8(e.New)&15})
}

func (t *Tracker) file(c *Conn, e Entry) {
	full := c.flags & flagTruncated
	x := c.put(e)
	if x == nil {
		if full == 0 && c.flags&flagTruncated != 0 || c.flags&flagTruncated != 0 && c.n >= maxEntries {
			t.stats.Truncated++
		}
		return
	}
	for i := int(c.n) - 1; i >= 0; i-- {
		if s := c.At(i).New(); s != event.StateUnknown {
			c.state = s
			break
		}
	}
	t.obs.Entry(c, x)
}

// deadlines is a heap of when half-open connections are to be looked at.
type deadlines []deadline

type deadline struct {
	at int64
	c  *Conn
}

func (d deadlines) Len() int           { return len(d) }
func (d deadlines) Less(i, j int) bool { return d[i].at < d[j].at }
func (d deadlines) Swap(i, j int)      { d[i], d[j] = d[j], d[i] }
func (d *deadlines) Push(x any)        { *d = append(*d, x.(deadline)) }
func (d *deadlines) Pop() any {
	old := *d
	x := old[len(old)-1]
	old[len(old)-1] = deadline{}
	*d = old[:len(old)-1]
	return x
}

func (t *Tracker) schedule(c *Conn, at int64) {
	if c.flags&flagQueued != 0 {
		return
	}
	// What ended before its date stays in the heap until that comes. Under a
	// flood these would soon be more than all that is tracked.
	const slack = 1024
	if len(t.due) > 2*t.half.n+slack {
		t.due = slices.DeleteFunc(t.due, func(d deadline) bool {
			p := d.c.Phase()
			over := p != PhaseAttempt && p != PhaseRequest
			if over {
				d.c.flags &^= flagQueued
			}
			return over
		})
		heap.Init(&t.due)
	}
	c.flags |= flagQueued
	heap.Push(&t.due, deadline{at, c})
}
