package diagnose

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/tcptrace/tcptrace/internal/timeline"
	"github.com/tcptrace/tcptrace/tracer/event"
)

const codeHalfOpen = "half-open"

var docHalfOpen = Doc{
	Code:     codeHalfOpen,
	Severity: Warning,
	Summary:  "the two ends disagree about whether a connection exists; or, as a suspicion, it has been silent for long with keepalive off",
	Meaning: `A connection is half open when one end believes in it and the other has nothing left of it: a host lost power or was started again, a NAT entry or the way between was gone when one end closed, a full accept queue dropped the last step of the handshake. The end that believes learns of it only when it sends something, or through keepalive. Until then it holds the connection, and whatever goes with it: a login, a lock, a worker.

Certain: both ends are on this host and one of them has ended for more than 2 s, but the other is ESTABLISHED; or a peer sends on a connection that ended here more than a minute ago without the peer's being told (a segment that comes sooner was on its way).

Likely: a peer answered a keepalive probe with RST, as a host does that was started again.

Likely or suspected: a peer sends on a connection that this host does not know, and is answered with RST. The connection was lost here, as in a restart, before tracing began. Data makes it likely; a bare ACK may as well be a scan, and makes it a suspicion. This is information. Nothing is said of these in the first minute of tracing, once events were lost, or once more connections have ended than are remembered (16,384): a peer may also send late on a connection that was closed here in order.

Suspected, information: ESTABLISHED, keepalive off, and nothing received for longer than --idle (2 h, what the kernel's own keepalive would wait if it were on). It is only a suspicion: idle pools of database connections, message queues and shells look exactly the same and are healthy. The verdict says where nobody would notice if the peer were gone. Connections whose other end is seen to live on this host are left out.`,
	Counts: "connections",
	Evidence: []DocKey{
		{"side", "", "which end believes in the connection: local or remote"},
		{"idle_s", "s", "how long nothing has been received, the longest; null where that is not known"},
		{"keepalive", "", "of this host's end: on, off or mixed"},
		{"count", "count", "connections in this state now, where that is known"},
		{"other_end", "", "how the other end ended, or what shows that it does not agree"},
	},
	Fix: []string{
		"switch SO_KEEPALIVE on in the application, with TCP_KEEPIDLE, TCP_KEEPINTVL and TCP_KEEPCNT of minutes rather than the kernel's hours, or have the protocol ask in its own words (a heartbeat)",
		"let a new login of the same client take the place of its old connection",
	},
	Counters: []string{"Tcp.OutRsts", "Tcp.EstabResets", "TcpExt.TCPKeepAlive"},
	Source: []string{
		"net/ipv4/tcp_ipv4.c: tcp_v4_rcv() (no_tcp_socket)",
		"net/ipv4/tcp_timer.c: tcp_keepalive_timer()",
	},
}

const (
	// ghostAfter is how long two ends may disagree because something is on its
	// way between them, or between the kernel and this program.
	ghostAfter = 2 * time.Second
	// ghostPatience is how much longer a snapshot is waited for that shows that
	// the end which believes still does.
	ghostPatience = 10 * time.Second
	// straySettles is how long a stray segment waits for events of its
	// connection that come late.
	straySettles = time.Second
	// probeAnswered is how soon an answer to a keepalive probe comes at the
	// latest: longer than any round trip.
	probeAnswered = 2 * time.Second

	maxPast   = 16384 // ends that are remembered, by a hash of their addresses
	maxAbrupt = 4096  // and with how they went, where the peer may not know
	maxStrays = 1024  // of a second
	maxIdle   = 1024  // groups of idle connections
	maxGhosts = 4096  // pairs of ends that are looked at
)

type halfOpen struct {
	found  groups[Key, *ghosts]
	past   pastEnds
	abrupt groups[tuple, pastEnd]
	pairs  []ghostPair
	strays []stray
	told   groups[tuple, int64] // strays that were told, and when
	began  int64                // of tracing; 0 nothing was seen yet
	forgot bool                 // more connections have ended than past holds

	idle map[Key]*idlers
	next int64 // when to look for idle connections
}

func newHalfOpen() *halfOpen {
	return &halfOpen{
		found:  groups[Key, *ghosts]{max: 1024},
		abrupt: groups[tuple, pastEnd]{max: maxAbrupt},
		told:   groups[tuple, int64]{max: maxAbrupt},
		idle:   make(map[Key]*idlers),
	}
}

func (*halfOpen) Code() string { return codeHalfOpen }
func (*halfOpen) Doc() Doc     { return docHalfOpen }

// tuple is a connection's addresses.
type tuple struct {
	netns         uint32
	local, remote netip.AddrPort
}

// pastEnds remembers that connections ended, the last maxPast of them.
type pastEnds struct {
	known map[uint64]struct{} // by a hash of the addresses
	ring  []uint64            // in the order in which they were first met
	next  int                 // of ring, the oldest once it is full
}

// hash is the same in a replay, and cheap: there is one for each connection.
func (k tuple) hash() uint64 {
	local, remote := k.local.Addr().As16(), k.remote.Addr().As16()
	h := uint64(k.netns)<<32 | uint64(k.local.Port())<<16 | uint64(k.remote.Port())
	for _, w := range [...]uint64{
		binary.LittleEndian.Uint64(local[:8]), binary.LittleEndian.Uint64(local[8:]),
		binary.LittleEndian.Uint64(remote[:8]), binary.LittleEndian.Uint64(remote[8:]),
	} {
		h = (h ^ w) * 0x9e3779b97f4a7c15
		h ^= h >> 32
	}
	return h
}

// add remembers an end. It reports whether another is forgotten for it.
func (p *pastEnds) add(k tuple) bool {
	h := k.hash()
	if _, ok := p.known[h]; ok {
		return false
	}
	if p.known == nil {
		p.known, p.ring = make(map[uint64]struct{}, maxPast), make([]uint64, 0, maxPast)
	}
	p.known[h] = struct{}{}
	if len(p.ring) < maxPast {
		p.ring = append(p.ring, h)
		return false
	}
	delete(p.known, p.ring[p.next])
	p.ring[p.next] = h
	p.next = (p.next + 1) % maxPast
	return true
}

func (p *pastEnds) has(k tuple) bool {
	_, ok := p.known[k.hash()]
	return ok
}

// pastEnd is what is remembered of a connection that ended here.
type pastEnd struct {
	at      int64
	owner   timeline.Owner
	place   netip.AddrPort
	kind    string
	how     string
	orderly bool // the peer had closed, or been told
	dropped bool // a handshake whose final ACK was dropped: the peer believes in it
}

// ghostPair is a connection of which the other end, on this host, has ended.
type ghostPair struct {
	alive, gone *timeline.Conn
	at          int64
}

// stray is a segment of no connection, which was answered with RST.
type stray struct {
	at       int64
	key      tuple
	listener *timeline.Listener
	data     bool
}

// Kinds of findings.
const (
	ghostHere   = "disagree" // the other end is on this host
	ghostProbe  = "probe"    // the peer answered a keepalive probe with RST
	ghostRemote = "remote"   // the peer believes in what has ended here
	ghostNone   = "unknown"  // the peer believes in what is not known here
)

// ghosts are half-open connections of one process and place, of one kind.
type ghosts struct {
	which     string
	at        netip.AddrPort
	kind      string
	owner     timeline.Owner
	idle      time.Duration
	idleKnown bool
	on, off   int // keepalive
	how       string
	data      bool
}

// Entry remembers how connections end.
func (r *halfOpen) Entry(x *Engine, c *timeline.Conn, e *timeline.Entry) {
	if r.began == 0 && !e.Found() { // what a snapshot finds can be hours old
		r.began = e.At
	}
	p := pastEnd{at: e.At}
	switch e.Kind {
	case timeline.EntryTimeWait:
		p.orderly = true
	case timeline.EntryClosed:
		p.how = endOf(c, e)
		// LAST_ACK and CLOSING: the peer had closed. A minisocket in FIN_WAIT2
		// that went by its own timer shows nothing, but the FIN was acknowledged.
		switch e.Old() {
		case event.StateLastAck, event.StateClosing, event.StateFinWait2, event.StateCloseWait:
			p.orderly = true
		}
		const errnoReset, errnoPipe = 104, 32
		p.orderly = p.orderly || e.Err() == errnoReset || e.Err() == errnoPipe
	case timeline.EntryState:
		if e.New() != event.StateFinWait2 {
			return
		}
		p.orderly = true // our FIN was acknowledged
	case timeline.EntryRSTReceived, timeline.EntryConnectFailed, timeline.EntryRequestAborted, timeline.EntryGone:
		p.orderly = true // or so it may have been
	case timeline.EntryExpired:
		p.how = "the handshake was given up: no final ACK came"
		if droppedACK(c) {
			p.how, p.dropped = "the handshake was given up: its final ACK was dropped at a full accept queue", true
		}
	case timeline.EntryOverflowAnswered, timeline.EntryRSTSent:
		p.how = "it had been reset here"
	case timeline.EntryRequestDropped:
		if !e.AnsweredRST() {
			return
		}
		p.how = "the accept queue was full, and it was reset"
	default:
		return
	}
	if c.Local().Port() == 0 || !c.Remote().IsValid() {
		return
	}
	k := tuple{c.Netns(), c.Local(), c.Remote()}
	if r.past.add(k) {
		r.forgot = true
	}
	if old := r.abrupt.get(k); old != nil && old.at >= c.Seen() {
		if e.Kind == timeline.EntryRSTSent { // of the same end
			p.how = cmp.Or(old.how, p.how)
		}
		p.dropped = p.dropped || old.dropped
		p.at = max(p.at, old.at)
	}
	if p.orderly {
		r.abrupt.drop(k)
		return
	}
	if c.Find(timeline.EntryRSTReceived, timeline.EntryTimeWait) != nil {
		return // it was orderly before that
	}
	p.owner = c.Owner()
	p.place, p.kind = place(c)
	*r.abrupt.make(k) = p
}

// endOf tells how a socket came to CLOSE.
func endOf(c *timeline.Conn, e *timeline.Entry) string {
	switch {
	case e.Err() == errnoTimedOut && gaveUpOnWindow(c, e):
		return "the kernel had given it up: the peer did not read"
	case e.Err() == errnoTimedOut:
		return "the kernel had given it up: the peer did not answer"
	case e.Err() != 0:
		return "it had ended with " + timeline.Errno(e.Err())
	case e.ByProcess():
		return "the process had closed it by RST"
	}
	return "it had been closed"
}

// Ended looks whether the other end, on this host, still believes, and whether
// it was a RST that answered a keepalive probe.
func (r *halfOpen) Ended(x *Engine, c *timeline.Conn) {
	if p := c.Peer(); p != nil && !c.Evicted() && believes(p, c) && len(r.pairs) < maxGhosts {
		if at := ended(c); at != 0 {
			r.pairs = append(r.pairs, ghostPair{alive: p, gone: c, at: at})
		}
	}
	r.probed(x, c)
}

// believes reports whether c is an open connection whose other end was gone.
func believes(c, gone *timeline.Conn) bool {
	if c.Phase() != timeline.PhaseSocket || c.State() != event.StateEstablished || c.Peer() != gone ||
		c.Reset() != nil || c.Find(timeline.EntryRSTReceived, timeline.EntryMemory) != nil {
		return false
	}
	if c.Netns() == gone.Netns() {
		return true
	}
	// Addresses may mean different hosts in different namespaces: a handshake
	// at the same time makes them one connection.
	a, b := c.Opened(), gone.Opened()
	const together = int64(3 * time.Second)
	return a != 0 && b != 0 && a-b < together && b-a < together
}

// ended is when a connection's end was seen to be over for good, 0 if it was
// not.
func ended(c *timeline.Conn) int64 {
	e := c.Find(timeline.EntryClosed, timeline.EntryExpired)
	if e == nil || c.State() == event.StateTimeWait || c.State() == event.StateFinWait2 {
		return 0
	}
	return e.At
}

// probed tells of peers that answered a keepalive probe with RST.
func (r *halfOpen) probed(x *Engine, c *timeline.Conn) {
	phase, e := resetPhase(c)
	if e == nil || phase == phaseHalfClosed || c.Traffic().Unacked > 0 {
		return
	}
	if on, known := c.Keepalive(); !on || !known {
		return
	}
	// Any ACK sets the kernel's count of unanswered probes back, a RST does not.
	closed := c.Find(timeline.EntryClosed)
	asked := closed != nil && closed.Probes() > 0
	for i := range c.Len() {
		p := c.At(i)
		if closed == nil && p.Kind == timeline.EntryKeepaliveProbe && p.Until() <= e.At+int64(time.Millisecond) && e.At-p.Until() < int64(probeAnswered) {
			asked = true
		}
	}
	if !asked {
		return
	}
	f, key := r.finding(c, ghostProbe)
	f.on++
	f.how = "the peer answered a keepalive probe with RST: it had lost the connection"
	if idle, _, _, ok := keepaliveTimers(x, c); ok && idle > f.idle {
		f.idle, f.idleKnown = idle, true
	}
	x.Report(r, key, f, e.At, 1, c)
}

// keepaliveTimers are those of the socket, where a snapshot has shown them.
func keepaliveTimers(x *Engine, c *timeline.Conn) (idle, interval time.Duration, probes uint32, ok bool) {
	if x.tracker == nil || c.SnapshotAt() == 0 {
		return 0, 0, 0, false
	}
	return x.tracker.KeepaliveTimers(c)
}

func (r *halfOpen) finding(c *timeline.Conn, which string) (*ghosts, Key) {
	key := Key{Netns: c.Netns(), PID: c.Owner().PID, What: which}
	var kind string
	key.Addr, kind = place(c)
	p := r.found.make(key)
	if *p == nil {
		*p = &ghosts{which: which, at: key.Addr, kind: kind, owner: c.Owner()}
	}
	return *p, key
}

// Incident takes note of segments for connections that do not exist.
func (r *halfOpen) Incident(x *Engine, in *timeline.Incident) {
	if r.began == 0 {
		r.began = in.At
	}
	const fin, syn, rst, psh = 1, 2, 4, 8
	if in.Kind != timeline.IncidentStray || !in.Remote.IsValid() || !in.Local.IsValid() || in.Count > 1 ||
		in.TCPFlags == 0 || in.TCPFlags&(fin|syn|rst) != 0 {
		return // a FIN ends what the peer believes in anyway
	}
	if len(r.strays) >= maxStrays {
		return
	}
	r.strays = append(r.strays, stray{
		at: in.At, key: tuple{in.Netns, in.Local, in.Remote}, listener: in.Listener, data: in.TCPFlags&psh != 0,
	})
}

// Tick judges what has waited long enough.
func (r *halfOpen) Tick(x *Engine, now int64, t *timeline.Tracker) {
	if r.began == 0 {
		r.began = now
	}
	if len(r.pairs) > 0 {
		r.pairs = slices.DeleteFunc(r.pairs, func(p ghostPair) bool { return r.disagree(x, now, t, p) })
	}
	n := 0
	for n < len(r.strays) && (r.strays[n].at+int64(straySettles) <= now || now == math.MaxInt64) {
		r.judge(x, t, r.strays[n])
		n++
	}
	if n > 0 {
		r.strays = r.strays[:copy(r.strays, r.strays[n:])]
	}
	if now >= r.next {
		pause := int64(min(max(x.o.Idle/8, 250*time.Millisecond), 30*time.Second))
		r.next = math.MaxInt64
		if now < math.MaxInt64-pause {
			r.next = now + pause
		}
		r.silent(x, now, t)
	}
}

// disagree reports a connection whose other end is gone, once that is sure. It
// returns true when nothing is to be waited for any more.
func (r *halfOpen) disagree(x *Engine, now int64, t *timeline.Tracker, p ghostPair) bool {
	c := p.alive
	if !believes(c, p.gone) {
		return true // it has learnt of it, or there is a new connection
	}
	waited := now - p.at
	if waited < int64(ghostAfter) {
		return false
	}
	if c.SnapshotAt() <= p.at {
		// Its end may be among what was lost.
		x.sockets.add(c.Netns(), now)
		if waited < int64(ghostAfter+ghostPatience) {
			return false
		}
		if t.LostAt() >= c.Seen() || c.Incomplete() {
			return true
		}
	}
	f, key := r.finding(c, ghostHere)
	f.how = otherEnd(p.gone)
	if since, ok := c.SilentSince(); ok && time.Duration(now-since) > f.idle {
		f.idle, f.idleKnown = time.Duration(now-since), true
	}
	if on, known := c.Keepalive(); known && on {
		f.on++
	} else if known {
		f.off++
	}
	x.Report(r, key, f, now, 1, c)
	return true
}

// otherEnd tells how the end of a connection that is gone went.
func otherEnd(c *timeline.Conn) string {
	who := "the other end"
	if o := c.Owner(); o.Known() {
		who = o.Name()
	}
	closed := c.Find(timeline.EntryClosed)
	switch {
	case c.Find(timeline.EntryExpired) != nil && droppedACK(c):
		return who + " never had it: the final ACK was dropped at a full accept queue, and the handshake given up"
	case closed == nil:
		return who + " never had it: the handshake was given up"
	case keepaliveEnd(c) != nil:
		return who + "'s kernel had given it up: keepalive probes went unanswered"
	case retransmissionEnd(c) != nil:
		return who + "'s kernel had given it up: data went unacknowledged"
	case closed.Err() != 0:
		return who + "'s end had ended with " + timeline.Errno(closed.Err())
	case closed.ByProcess():
		return who + " had closed it by RST, which did not arrive"
	}
	return who + " had closed it"
}

// judge looks what is known of the connection of a stray segment.
func (r *halfOpen) judge(x *Engine, t *timeline.Tracker, s stray) {
	aftermath := int64(x.o.Aftermath)
	if at := r.told.get(s.key); at != nil && s.at-*at < aftermath {
		return // the same connection
	}
	key := Key{Netns: s.key.netns, Addr: netip.AddrPortFrom(s.key.remote.Addr(), 0), What: ghostNone}
	f := &ghosts{which: ghostNone, kind: "peer", data: s.data}
	if l := s.listener; l != nil {
		key.Addr, key.PID = l.Addr, l.Owner().PID
		f.kind, f.owner = "listener", l.Owner()
	}
	if p := r.abrupt.get(s.key); p != nil {
		if s.at-p.at < aftermath && !(p.dropped && s.at > p.at) {
			return
		}
		key = Key{Netns: s.key.netns, Addr: p.place, PID: p.owner.PID, What: ghostRemote}
		f.which, f.kind, f.owner, f.how = ghostRemote, p.kind, p.owner, p.how
		if p.how == "" {
			f.how = "it had ended here"
		}
	} else {
		if r.past.has(s.key) {
			return // it ended in a way that the peer was told of
		}
		if s.at-r.began < aftermath || r.forgot || t.LostAt() != 0 {
			return // it may have ended in order, long ago
		}
		f.how = "this host has no such connection, and has seen none end"
	}
	f.at = key.Addr
	p := r.found.make(key)
	if *p == nil {
		*p = f
	} else {
		(*p).data = (*p).data || f.data
		(*p).how = f.how
	}
	*r.told.make(s.key) = s.at
	x.Report(r, key, *p, s.at, 1)
}

// idlers are connections of one process and place that have been silent for
// long with keepalive off.
type idlers struct {
	key      Key
	kind     string
	at       string
	owner    timeline.Owner
	count    int
	oldest   int64 // time of the last segment
	seen     int64 // by the snapshot of then
	fresh    uint64
	examples []*timeline.Conn
}

// silent looks for connections that would not notice if their peer were gone.
func (r *halfOpen) silent(x *Engine, now int64, t *timeline.Tracker) {
	before := make(map[Key]int, len(r.idle))
	for k, l := range r.idle {
		before[k] = l.count
		l.count, l.oldest, l.fresh, l.examples = 0, math.MaxInt64, 0, nil
	}
	var order []*idlers
	for c := range x.conns(t) {
		if !r.unnoticed(x, c) {
			continue
		}
		since, _ := c.SilentSince()
		l := r.group(c)
		if l.count == 0 {
			order = append(order, l)
		}
		l.count++
		l.oldest, l.seen = min(l.oldest, since), max(l.seen, c.SnapshotAt())
		if !tagged(r, c) {
			x.tag(r, c, Info)
			l.fresh++
			if len(l.examples) < maxExamples {
				l.examples = append(l.examples, c)
			}
		}
	}
	for _, l := range order {
		if l.fresh > 0 {
			x.Report(r, l.key, l, now, l.fresh, l.examples...)
		}
	}
	for k, l := range r.idle {
		if l.count != before[k] && l.fresh == 0 {
			if v := x.kept[liveKey{ruleIndex(r), k}]; v != nil {
				v.dirty = true
			}
		}
		if l.count == 0 && len(before) > maxIdle/2 {
			delete(r.idle, k)
		}
	}
}

// unnoticed reports whether c is open, has been silent for long, and nothing
// here would notice if its peer were gone.
func (r *halfOpen) unnoticed(x *Engine, c *timeline.Conn) bool {
	if c.State() != event.StateEstablished || c.Phase() != timeline.PhaseSocket || c.Traffic().Unacked > 0 {
		return false
	}
	since, ok := c.SilentSince()
	if !ok || c.SnapshotAt()-since < int64(x.o.Idle) {
		return false
	}
	if on, known := c.Keepalive(); on || !known {
		return false
	}
	// Nobody's yet: that is the accept queue's affair.
	if c.Role() != timeline.RoleClient && !c.Accepted() {
		return false
	}
	// The other end is seen to live, or would be seen to end.
	here := c.Peer() != nil || c.Remote().Addr().IsLoopback() || c.Remote().Addr() == c.Local().Addr()
	return !here
}

func (r *halfOpen) group(c *timeline.Conn) *idlers {
	o := c.Owner()
	k := Key{Netns: c.Netns(), PID: o.PID, What: "idle"}
	var kind string
	k.Addr, kind = place(c)
	if r.idle[k] == nil && len(r.idle) >= maxIdle {
		k.Addr, k.What = netip.AddrPort{}, "idle, others"
	}
	l := r.idle[k]
	if l == nil {
		l = &idlers{key: k, kind: kind, at: destination(k.Addr), owner: o, oldest: math.MaxInt64}
		if !k.Addr.IsValid() {
			l.at = "many others"
		}
		r.idle[k] = l
	}
	return l
}

func (l *idlers) Describe(x *Engine, v *Verdict) {
	v.Severity, v.Confidence = Info, Suspected
	v.Which = "idle"
	v.Subject = Subject{l.kind, l.at}
	v.Process = process(l.owner)
	who := l.owner.Name()
	if !l.owner.Known() {
		who = "a process"
	}
	idle := Fact{Key: "idle_s", Note: "none of them is silent any more"}
	if l.count == 0 {
		v.Story = fmt.Sprintf("the connections of %s that had been silent for long have spoken or ended", who)
	} else {
		d := time.Duration(l.seen - l.oldest)
		idle = Fact{Key: "idle_s", Value: seconds(d)}
		what, have := "connections", "have"
		if l.count == 1 {
			what, have = "connection", "has"
		}
		v.Story = fmt.Sprintf("%d %s of %s %s heard nothing for up to %s, with keepalive off: if the peer were gone, nobody would notice (idle connections in order look the same)",
			l.count, what, who, have, timeline.Duration(d))
	}
	v.Evidence = Evidence{
		{Key: "side", Value: "local"},
		idle,
		{Key: "keepalive", Value: "off"},
		{Key: "count", Value: int64(l.count)},
		{Key: "other_end", Note: "nothing is known of it: this is only a suspicion"},
	}
	v.Fix = append([]string{"nothing, if these are meant to be idle: a pool, a queue, a shell"}, docHalfOpen.Fix[0])
}

func (f *ghosts) Describe(x *Engine, v *Verdict) {
	v.Severity, v.Confidence = Warning, Certain
	v.Which = f.which
	v.Subject = Subject{f.kind, destination(f.at)}
	if f.at.Port() == 0 && f.at.IsValid() {
		v.Subject.Name = f.at.Addr().String()
	}
	v.Process = process(f.owner)
	whose := fmt.Sprintf("%d connections", v.Count)
	if v.Count == 1 {
		whose = "a connection"
	}
	side := "local"
	switch f.which {
	case ghostHere:
		who := "a process"
		if f.owner.Known() {
			who = f.owner.Name()
		}
		v.Story = fmt.Sprintf("%s believes in %s that the other end does not have: %s", who, whose, f.how)
		v.Fix = docHalfOpen.Fix[:1]
	case ghostProbe:
		if f.owner.Known() {
			whose += " of " + f.owner.Name()
		}
		v.Confidence = Likely
		v.Story = fmt.Sprintf("%s: %s", whose, f.how)
		v.Fix = []string{"look at the peer: was it started again, or is a firewall or load balancer between that forgets connections?"}
	default:
		side = "remote"
		v.Story = fmt.Sprintf("peers sent on %s that this host no longer had, and were answered with RST: %s", whose, f.how)
		if v.Count == 1 {
			v.Story = fmt.Sprintf("a peer sent on a connection that this host no longer had, and was answered with RST: %s", f.how)
		}
		if f.which == ghostNone {
			v.Severity, v.Confidence = Info, Suspected
			v.Story = fmt.Sprintf("peers sent on %s that this host does not have, and were answered with RST: they were lost here, or from before tracing", whose)
			if v.Count == 1 {
				v.Story = "a peer sent on a connection that this host does not have, and was answered with RST: it was lost here, or from before tracing"
			}
			if f.data {
				v.Confidence = Likely
			} else {
				v.Story += "; a scan looks the same"
			}
		}
		v.Fix = []string{"nothing at this end: the RST has told the peer; it would have noticed sooner with keepalive, see the fix at the peer"}
	}
	idle := Fact{Key: "idle_s", Note: "not known"}
	if f.idleKnown {
		idle = Fact{Key: "idle_s", Value: seconds(f.idle)}
	}
	keepalive := Fact{Key: "keepalive", Value: "mixed"}
	switch {
	case side == "remote":
		keepalive = Fact{Key: "keepalive", Note: "of the peer's end nothing is known"}
	case f.on+f.off == 0:
		keepalive = Fact{Key: "keepalive", Note: "not known"}
	case f.on == 0:
		keepalive.Value = "off"
	case f.off == 0:
		keepalive.Value = "on"
	}
	v.Evidence = Evidence{
		{Key: "side", Value: side},
		idle,
		keepalive,
		{Key: "count", Note: "they are counted as they are found"},
		{Key: "other_end", Value: f.how},
	}
}
