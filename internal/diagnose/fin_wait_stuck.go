package diagnose

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/tcptrace/tcptrace/internal/timeline"
	"github.com/tcptrace/tcptrace/tracer/event"
)

const codeFinWaitStuck = "fin-wait-stuck"

var docFinWaitStuck = Doc{
	Code:     codeFinWaitStuck,
	Severity: Warning,
	Summary:  "this end has sent its FIN and waits: the peer does not acknowledge it (FIN_WAIT1), or does not close (FIN_WAIT2)",
	Meaning: `FIN_WAIT1: this end closed, and the peer has not acknowledged that, nor perhaps the data before it. The peer or the way to it is gone, or its receive window is shut. FIN_WAIT2: the peer's host has acknowledged the FIN, and the peer's application has not closed its end: what close-wait-leak is there, seen from here.

A connection counts when nothing has moved on it for longer than --fin-wait (60 s): in FIN_WAIT1 nothing more was acknowledged, in FIN_WAIT2 no data came. 60 s is what the kernel allows by default, too (net.ipv4.tcp_fin_timeout). A half-closed connection on which the answer still comes is healthy, and so is a long answer that a slow peer still takes.

What it costs depends on who holds the socket. While a process does (it called shutdown() and waits), the kernel waits in FIN_WAIT2 without limit. Once the process has closed, the end is an orphan, which the kernel reaps: in FIN_WAIT2 after net.ipv4.tcp_fin_timeout, in FIN_WAIT1 after net.ipv4.tcp_orphan_retries retransmissions (0 means 8: one to two minutes). By default that happens before --fin-wait has passed; so orphans in FIN_WAIT2 also count after three quarters of net.ipv4.tcp_fin_timeout, from 5 on, and orphans in FIN_WAIT1 when the kernel gave one up. A few of these are normal where clients come over the internet and vanish: that is info. From 5 at one address on it is a warning, and so is what a process holds.

A process that half-closed and waits for an answer that takes its peer very long looks the same.`,
	Counts: "connections found waiting too long, or given up by the kernel, so far",
	Evidence: []DocKey{
		{"state", "", "FIN_WAIT1 or FIN_WAIT2"},
		{"count", "connections", "so far"},
		{"waiting", "connections", "now"},
		{"reaped", "connections", "given up by the kernel (FIN_WAIT1)"},
		{"age_s", "s", "since the oldest entered the state, of a minisocket since it took the socket's place; if none waits now, the longest that one took"},
		{"age", "", "exact where this was seen of each; at least: some were found in the state; at most: of some it is concluded from the time that the kernel leaves them, which TCP_LINGER2 may have made shorter; about: both"},
		{"orphan", "", "whether no process holds them any more"},
		{"remote", "", "the other end's address, that of the most where there are several; without a port where this host is the server"},
		{"remotes", "count", "different remote addresses, of those found within 10 minutes"},
		{"unacked_bytes", "bytes", "FIN_WAIT1: the most that waits in one send queue before the FIN; null in FIN_WAIT2"},
		{"window_shut", "connections", "FIN_WAIT1: how many wait because the peer's receive window is shut; null in FIN_WAIT2"},
		{"peer_process", "", "who holds the other end, where that is on this host and has not closed; null if not"},
		{"fin_timeout_s", "s", "net.ipv4.tcp_fin_timeout; null if not known"},
	},
	Fix: []string{
		"FIN_WAIT2: the peer's application has to close when it reads end of file; look for close-wait-leak on its host",
		"FIN_WAIT2 held by a process: wait for the peer's end with a time limit, then close()",
		"FIN_WAIT1: look at whether the peer is still there and reads, and whether something on the way (a firewall, NAT) forgot the connection",
		"net.ipv4.tcp_fin_timeout and net.ipv4.tcp_orphan_retries make the kernel give up orphans sooner; that frees memory and mends nothing",
	},
	Counters: []string{"TcpExt.TCPAbortOnTimeout"},
	Source: []string{
		"net/ipv4/tcp.c: tcp_close(), tcp_shutdown()",
		"net/ipv4/tcp_input.c: tcp_rcv_state_process()",
		"net/ipv4/tcp_minisocks.c: tcp_time_wait()",
		"net/ipv4/tcp_timer.c: tcp_write_timeout(), tcp_orphan_retries()",
	},
}

const (
	finWaitGroups   = 4096            // of process and place
	finWaitMarks    = 65536           // connections whose progress is followed
	finWaitSpent    = 8192            // orphans remembered as counted
	finWaitMany     = 5               // orphans at one address from which on they are many
	finWaitPatience = 5 * time.Second // for a snapshot to confirm
	finWaitTogether = 10 * time.Minute
)

// finWaitStuck walks the connections in FIN_WAIT1 and FIN_WAIT2 now and then,
// and the minisockets that snapshots found in FIN_WAIT2.
type finWaitStuck struct {
	next  int64
	soon  int64 // not before this for what cannot wait until next
	found map[Key]*finWait
	marks map[*timeline.Conn]finMark
	spent groups[finOrphan, int64] // minisockets that were counted, and since when they were there
	left  groups[uint32, int64]    // by namespace: when the oldest minisocket since the last look entered FIN_WAIT2
}

func newFinWaitStuck() *finWaitStuck {
	return &finWaitStuck{
		found: make(map[Key]*finWait),
		spent: groups[finOrphan, int64]{max: finWaitSpent},
		left:  groups[uint32, int64]{max: 4096},
	}
}

func (*finWaitStuck) Code() string { return codeFinWaitStuck }
func (*finWaitStuck) Doc() Doc     { return docFinWaitStuck }

// finMark is how far a connection had come when it was last looked at.
type finMark struct {
	counted  *finWait // what it was counted in last, nil if in nothing
	state    event.State
	snapshot int64 // of which this is
	moved    int64 // when something last moved
	received uint64
	unacked  uint32
}

type finOrphan struct {
	netns         uint32
	local, remote netip.AddrPort
}

// finWait is what waits in one state at one process and place.
type finWait struct {
	key    Key
	who    crew
	state  event.State
	orphan bool
	server bool
	closed bool // who is known to have closed each

	at           int64 // of the present count
	waiting      int
	oldest       int64 // since when, of those that wait
	least, most  bool  // the age of some is at least, or at most, what is known
	sure         bool
	moves        bool          // of those counted, some are in the state and do not wait: data moves
	longest      time.Duration // of those that are gone
	reaped       uint64
	unacked      uint32
	shut         int
	peer         timeline.Owner
	remotes      map[netip.AddrPort]int // since metSince, bounded
	moreRemotes  bool
	metSince     int64
	finTimeout   int
	severe       bool
	pending      uint64 // orphans that are few so far
	pendingSince int64

	fresh    uint64
	examples []*timeline.Conn
}

func finWaitState(s event.State) string {
	if s == event.StateFinWait1 {
		return "FIN_WAIT1"
	}
	return "FIN_WAIT2"
}

// finWaitSince is when c entered its state, FIN_WAIT1 or FIN_WAIT2. Where it was
// found in it, it is the latest time possible and exact is false.
func finWaitSince(c *timeline.Conn) (at int64, exact bool) {
	for i := c.Len() - 1; i >= 0; i-- {
		switch e := c.At(i); {
		case e.Kind == timeline.EntryState && e.New() == c.State():
			return e.At, !e.Found()
		case e.Kind == timeline.EntryFINSent && e.New() == c.State():
			return e.At, true
		}
	}
	return 0, false
}

func (x *Engine) finWaitKey(netns uint32, owner timeline.Owner, state event.State, orphan, server bool, local, remote netip.AddrPort) Key {
	k := Key{Netns: netns, PID: owner.PID}
	if orphan { // no process holds it: which of a server's workers closed is no matter
		k = x.crewKey(netns, owner)
	}
	k.Addr, k.What = remote, finWaitState(state)
	if server {
		k.Addr = local // its clients are many
	}
	if orphan {
		k.What += " orphan"
	}
	return k
}

// Entry hears of orphans that the kernel gave up.
func (r *finWaitStuck) Entry(x *Engine, c *timeline.Conn, e *timeline.Entry) {
	if e.Kind != timeline.EntryClosed || e.Old() != event.StateFinWait1 || e.ByProcess() || !silence(e.Err()) {
		return
	}
	fin := c.Find(timeline.EntryFINSent)
	age := time.Duration(0)
	if fin != nil {
		age = e.Since(fin)
	}
	if !c.Orphan() && age < x.o.FinWait {
		return // the process was told, and it is no matter of the FIN
	}
	f, fresh := r.counted(c, event.StateFinWait1)
	if f == nil {
		f = r.group(x, c, event.StateFinWait1)
	}
	f.reaped++
	f.longest = max(f.longest, age)
	f.least = f.least || fin == nil
	f.unacked = max(f.unacked, c.Traffic().Unacked)
	n := uint64(0)
	if fresh {
		n = 1
		f.meet(remoteOf(c), e.At)
	}
	f.at = max(f.at, e.At)
	x.Report(r, f.key, f, e.At, n, c)
	r.next = min(r.next, r.soon) // it does not wait any more
}

// Finish counts once more who waits, for the last word.
func (r *finWaitStuck) Finish(x *Engine) {
	r.next = math.MinInt64
	r.Tick(x, x.now, x.tracker)
}

// Ended hears of what goes on as a minisocket: only a look at the sockets tells
// whether the peer closes.
func (r *finWaitStuck) Ended(_ *Engine, c *timeline.Conn) {
	if c.State() != event.StateFinWait2 || c.Evicted() {
		return
	}
	if at := r.left.make(c.Netns()); *at == 0 {
		*at = c.Last()
	}
}

// look asks for a look at the sockets of a namespace, once for all minisockets
// that came since the last one and are due.
func (r *finWaitStuck) look(x *Engine, now int64, t *timeline.Tracker, ns uint32, limit time.Duration) {
	at := r.left.m[ns]
	if at == nil || at.v == 0 || now-at.v < int64(limit) {
		return
	}
	if t.SnapshotAt(ns)-at.v >= int64(limit) {
		at.v = 0
		return
	}
	x.sockets.add(ns, now)
}

// remoteOf names the other end: a server's clients by their address alone.
func remoteOf(c *timeline.Conn) netip.AddrPort {
	if c.Role() == timeline.RoleServer {
		return netip.AddrPortFrom(c.Remote().Addr(), 0)
	}
	return c.Remote()
}

// counted returns what c was counted in as one that is in this state, held or
// not as it is now; nil if in nothing that is known. fresh: it is to be counted.
func (r *finWaitStuck) counted(c *timeline.Conn, state event.State) (f *finWait, fresh bool) {
	f = r.marks[c].counted
	if f != nil && f.state == state && f.orphan == c.Orphan() {
		return f, false
	}
	return nil, f != nil || !tagged(r, c)
}

func (r *finWaitStuck) group(x *Engine, c *timeline.Conn, state event.State) *finWait {
	server, owner := c.Role() == timeline.RoleServer, c.ClosedBy()
	if !owner.Known() {
		owner = c.Owner()
	}
	local, _ := place(c)
	return r.finding(x.finWaitKey(c.Netns(), owner, state, c.Orphan(), server, local, c.Remote()), owner, state, c.Orphan(), server)
}

func (r *finWaitStuck) finding(k Key, owner timeline.Owner, state event.State, orphan, server bool) *finWait {
	f := r.found[k]
	if f == nil && len(r.found) >= finWaitGroups {
		k.Addr, server = netip.AddrPort{}, false
		k.What += ", others"
		if f = r.found[k]; f == nil && len(r.found) >= 2*finWaitGroups {
			k.PID, k.Comm, owner = 0, "", timeline.Owner{}
			f = r.found[k]
		}
	}
	if f == nil {
		f = &finWait{key: k, state: state, orphan: orphan, server: server, closed: true, sure: true,
			oldest: math.MaxInt64, remotes: make(map[netip.AddrPort]int)}
		r.found[k] = f
	}
	f.who.add(owner)
	f.closed = f.closed && owner.Source == timeline.SourceClose
	return f
}

// meet counts one connection's other end.
func (f *finWait) meet(remote netip.AddrPort, at int64) {
	if at-f.metSince > int64(finWaitTogether) {
		clear(f.remotes)
		f.metSince, f.moreRemotes = at, false
	}
	if _, ok := f.remotes[remote]; !ok && len(f.remotes) >= maxAddresses {
		f.moreRemotes = true
		return
	}
	f.remotes[remote]++
	// A minisocket in FIN_WAIT2 costs next to nothing and goes by itself: clients
	// with pools leave them by the dozen.
	f.severe = f.severe || !f.orphan || f.state == event.StateFinWait1 && f.remotes[remote] >= finWaitMany
}

func (r *finWaitStuck) Tick(x *Engine, now int64, t *timeline.Tracker) {
	if now < r.next {
		return
	}
	pause := min(max(x.o.FinWait/10, 100*time.Millisecond), 5*time.Second)
	r.next, r.soon = math.MaxInt64, math.MaxInt64
	if now < math.MaxInt64-int64(pause) {
		r.next, r.soon = now+int64(pause), now+int64(min(pause, time.Second))
	}

	before := make(map[*finWait]int)
	for _, f := range r.found {
		before[f] = f.waiting
		if f.waiting > 0 {
			f.longest = max(f.longest, time.Duration(f.at-f.oldest))
		}
		f.waiting, f.shut, f.peer, f.moves = 0, 0, timeline.Owner{}, false
		f.oldest, f.at = math.MaxInt64, now
		if f.reaped == 0 {
			f.unacked = 0
		}
	}
	var order []*finWait
	orphans := r.orphans(x, now, t, &order)
	marks := make(map[*timeline.Conn]finMark)
	for c := range x.conns(t) {
		if c.Phase() != timeline.PhaseSocket {
			continue
		}
		switch c.State() {
		case event.StateCloseWait:
			f := orphans[finOrphan{c.Netns(), c.Remote(), c.Local()}]
			if f != nil && c.Owner().Known() {
				f.peer = c.Owner()
			}
			continue
		case event.StateFinWait1, event.StateFinWait2:
		default:
			continue
		}
		f, fresh := r.counted(c, c.State())
		since, exact, sure, due := r.judge(x, now, t, c, fresh, marks)
		if !due {
			if f != nil {
				f.moves = true
			}
			continue
		}
		if f == nil {
			f = r.group(x, c, c.State())
		}
		if f.waiting == 0 && f.fresh == 0 {
			order = append(order, f)
		}
		f.add(x, now, c, since, exact, sure)
		if m, ok := marks[c]; ok {
			m.counted = f
			marks[c] = m
		}
		if fresh {
			x.tag(r, c, Warning)
			f.meet(remoteOf(c), now)
			f.fresh++
			if len(f.examples) < maxExamples {
				f.examples = append(f.examples, c)
			}
		}
	}
	r.marks = marks
	for _, f := range order {
		if f.fresh > 0 {
			x.Report(r, f.key, f, now, f.fresh, f.examples...)
			f.fresh, f.examples = 0, nil
		}
	}
	for k, f := range r.found {
		if before[f] != f.waiting {
			x.touch(r, k)
		}
		if f.waiting == 0 && !f.moves && len(r.found) > finWaitGroups/2 {
			delete(r.found, k)
		}
	}
}

// judge reports whether c waits for too long, and since when it is in its
// state. fresh: it is not counted yet.
func (r *finWaitStuck) judge(x *Engine, now int64, t *timeline.Tracker, c *timeline.Conn, fresh bool, marks map[*timeline.Conn]finMark) (since int64, exact, sure, due bool) {
	since, exact = finWaitSince(c)
	if since == 0 && !exact || now-since < int64(x.o.FinWait)/4 {
		if m, known := r.marks[c]; known && len(marks) < finWaitMarks {
			marks[c] = m // it tells what c was counted in
		}
		return 0, false, false, false
	}
	m := r.mark(c, since, marks) // early: what a peer says at first may be no more than an ACK
	idle := now - max(since, m.moved)
	if idle < int64(x.o.FinWait) {
		return 0, false, false, false
	}
	looked := t.SnapshotAt(c.Netns())
	if looked > since && c.Last() < looked && c.SnapshotAt() < looked && fresh {
		return 0, false, false, false // it was not there any more
	}
	if t.LostAt() >= since && looked <= t.LostAt() && fresh {
		// Its end may be among what was lost: only a snapshot tells.
		x.sockets.add(c.Netns(), now)
		return 0, false, false, false
	}
	// Whether anything moves, a snapshot tells, if it is not much older.
	sure = c.SnapshotAt()-max(since, m.moved) >= int64(x.o.FinWait)*3/4
	if sure || !fresh {
		return since, exact, sure, true
	}
	x.sockets.add(c.Netns(), now)
	// Without one, FIN_WAIT1 may be a long answer that a slow peer still takes,
	// FIN_WAIT2 after a while is likely not one that still comes.
	due = c.State() == event.StateFinWait2 && idle >= int64(x.o.FinWait)+int64(finWaitPatience) && looked == 0
	return since, exact, false, due
}

// mark follows what moves on c from snapshot to snapshot.
func (r *finWaitStuck) mark(c *timeline.Conn, since int64, marks map[*timeline.Conn]finMark) finMark {
	m, known := r.marks[c]
	now := c.Traffic()
	switch {
	case !known || m.state != c.State():
		// What moved before cannot be told from the segment that brought c into
		// this state.
		m = finMark{counted: m.counted, state: c.State(), moved: since}
		if at, ok := c.SilentSince(); ok {
			m.moved = max(since, at)
		}
	case c.SnapshotAt() != m.snapshot && (now.BytesReceived > m.received || now.Unacked < m.unacked):
		m.moved = max(m.moved, c.SnapshotAt())
	}
	m.snapshot, m.received, m.unacked = c.SnapshotAt(), now.BytesReceived, now.Unacked
	if len(marks) < finWaitMarks {
		marks[c] = m
	}
	return m
}

func (f *finWait) add(x *Engine, now int64, c *timeline.Conn, since int64, exact, sure bool) {
	f.waiting++
	f.at, f.oldest = now, min(f.oldest, since)
	f.least, f.sure = f.least || !exact, f.sure && sure
	f.finTimeout = finTimeout(x, f.key.Netns)
	if f.state == event.StateFinWait1 {
		f.unacked = max(f.unacked, c.Traffic().Unacked)
		if shut, _ := c.Window(); shut {
			f.shut++
		}
	}
	if p := c.Peer(); p != nil && p.State() == event.StateCloseWait && p.Owner().Known() {
		f.peer = p.Owner()
	}
}

// finTimeout is net.ipv4.tcp_fin_timeout, in seconds, 0 if it is not known.
func finTimeout(x *Engine, netns uint32) int {
	if ns, ok := x.netns[netns]; ok && ns.Known {
		return ns.Sysctls.FinTimeout
	}
	return 0
}

// orphans judges the minisockets in FIN_WAIT2. It returns the findings of those
// that are part of one, so that the other end can be looked for.
func (r *finWaitStuck) orphans(x *Engine, now int64, t *timeline.Tracker, order *[]*finWait) map[finOrphan]*finWait {
	out := make(map[finOrphan]*finWait)
	var ports map[Key]*timeline.Listener
	for ns := range t.Namespaces() {
		whole := time.Duration(finTimeout(x, ns)) * time.Second
		if whole == 0 {
			whole = time.Minute
		}
		limit := min(x.o.FinWait, whole*3/4)
		r.look(x, now, t, ns, limit)
		var due []timeline.Orphan
		at := make(map[netip.AddrPort]int) // a server's end shares its address with others
		for o := range t.Orphans(ns) {
			if !x.asked(ns, o.Local, o.Remote) {
				continue
			}
			at[o.Local]++
			if age := time.Duration(o.SeenAt - o.Since); age >= limit {
				due = append(due, o)
			}
		}
		for _, o := range due {
			if ports == nil {
				ports = listeningPorts(t)
			}
			l := ports[Key{Netns: ns, Addr: netip.AddrPortFrom(netip.Addr{}, o.Local.Port())}]
			server := o.Role == timeline.RoleServer || o.Role == timeline.RoleUnknown && (l != nil || at[o.Local] > 1)
			owner, local, remote := o.Owner, o.Local, o.Remote
			if server {
				remote = netip.AddrPortFrom(remote.Addr(), 0)
				if l != nil {
					local = l.Addr
				}
				if l != nil && !owner.Known() {
					owner = l.Owner()
				}
			}
			f := r.finding(x.finWaitKey(ns, owner, event.StateFinWait2, true, server, local, o.Remote),
				owner, event.StateFinWait2, true, server)
			f.at, f.finTimeout = now, finTimeout(x, ns)
			f.most, f.sure = f.most || o.Concluded, f.sure && !o.Concluded
			f.least = f.least || !o.Exact && !o.Concluded
			id := finOrphan{ns, o.Local, o.Remote}
			if now-o.Since <= int64(whole) {
				out[id] = f
				f.waiting++
				f.oldest = min(f.oldest, o.Since)
			}
			f.longest = max(f.longest, time.Duration(o.SeenAt-o.Since))
			if was := r.spent.get(id); was == nil || o.Since-*was > int64(time.Second) {
				*r.spent.make(id) = o.Since
				if now-f.pendingSince > int64(finWaitTogether) {
					f.pending, f.pendingSince = 0, now
				}
				f.pending++
				f.meet(remote, now)
			}
			// The kernel ends it at its time anyway: few of them are no matter.
			alone := x.o.FinWait < whole && o.SeenAt-o.Since >= int64(x.o.FinWait)
			if f.pending > 0 && (alone || f.fresh > 0 || f.pending >= finWaitMany || x.kept[liveKey{ruleIndex(r), f.key}] != nil) {
				if f.fresh == 0 {
					*order = append(*order, f)
				}
				f.fresh, f.pending = f.fresh+f.pending, 0
			}
		}
	}
	return out
}

// listeningPorts finds a listener for each port that has one.
func listeningPorts(t *timeline.Tracker) map[Key]*timeline.Listener {
	ports := make(map[Key]*timeline.Listener)
	for l := range t.Listeners() {
		k := Key{Netns: l.Netns, Addr: netip.AddrPortFrom(netip.Addr{}, l.Addr.Port())}
		if ports[k] == nil {
			ports[k] = l
		}
	}
	return ports
}

// top is the remote address with the most connections.
func (f *finWait) top() netip.AddrPort {
	type one struct {
		addr netip.AddrPort
		n    int
	}
	var best one
	for a, n := range f.remotes {
		if n > best.n || n == best.n && a.Compare(best.addr) < 0 {
			best = one{a, n}
		}
	}
	return best.addr
}

func (f *finWait) since() int64 {
	if f.waiting == 0 {
		return f.at
	}
	return f.oldest
}

func (f *finWait) Describe(x *Engine, v *Verdict) {
	v.Severity, v.Confidence = Info, Likely
	if f.severe {
		v.Severity = Warning
	}
	if f.sure {
		v.Confidence = Certain
	}
	v.Process = process(f.who.last)
	remote, where := f.top(), ""
	if remote.Port() == 0 {
		where = remote.Addr().String()
	} else {
		where = remote.String()
	}
	to := where
	if n := len(f.remotes); n > 1 {
		to = fmt.Sprintf("%d addresses (most to %s)", n, where)
	}
	v.Subject = Subject{"process", f.who.last.Name()}
	if !f.who.last.Known() {
		v.Subject = Subject{"peer", where}
	}
	age := f.longest
	if f.waiting > 0 {
		age = time.Duration(f.at - f.oldest)
	}
	exact := "exact"
	switch {
	case f.least && f.most:
		exact = "about"
	case f.least:
		exact = "at least"
	case f.most:
		exact = "at most"
	}
	told := timeline.Duration(age)
	if exact != "exact" {
		told = exact + " " + told
	}
	v.Story = f.story(to, told)
	unacked := Fact{Key: "unacked_bytes", Note: "FIN_WAIT2: all was acknowledged"}
	shut := Fact{Key: "window_shut", Note: unacked.Note}
	if f.state == event.StateFinWait1 {
		unacked = Fact{Key: unacked.Key, Value: int64(f.unacked)}
		shut = Fact{Key: shut.Key, Value: int64(f.shut)}
	}
	peer := Fact{Key: "peer_process", Note: "not seen on this host"}
	switch {
	case f.peer.Known():
		peer = Fact{Key: peer.Key, Value: f.peer.Name()}
	case remote.Addr().IsLoopback() || f.waiting == 0:
		peer.Note = "not seen"
	}
	timeout := Fact{Key: "fin_timeout_s", Note: "the namespace's sysctls are not known"}
	if f.finTimeout != 0 {
		timeout = Fact{Key: timeout.Key, Value: int64(f.finTimeout)}
	}
	remotes := Fact{Key: "remotes", Value: int64(len(f.remotes))}
	if f.moreRemotes {
		remotes.Note = "at least"
	}
	v.Evidence = Evidence{
		{Key: "state", Value: finWaitState(f.state)},
		{Key: "count", Value: int64(v.Count)},
		{Key: "waiting", Value: int64(f.waiting)},
		{Key: "reaped", Value: int64(f.reaped)},
		{Key: "age_s", Value: seconds(age)},
		{Key: "age", Value: exact},
		{Key: "orphan", Value: f.orphan},
		{Key: "remote", Value: where},
		remotes,
		unacked,
		shut,
		peer,
		timeout,
	}
	fix := docFinWaitStuck.Fix
	switch {
	case f.state == event.StateFinWait1:
		v.Fix = []string{fix[2]}
	case f.orphan:
		v.Fix = []string{fix[0]}
	default:
		v.Fix = slices.Clone(fix[:2])
	}
	if f.orphan {
		v.Fix = append(v.Fix, fix[3])
	}
}

func (f *finWait) story(to, age string) string {
	n := f.waiting
	if n == 0 {
		n = int(f.reaped)
	}
	which := "connections"
	if n == 1 {
		which = "connection"
	}
	who, how := "a process", "closed"
	if f.who.last.Known() {
		who = f.who.name()
	}
	if !f.orphan {
		how = "shut down sending on"
	}
	if f.closed || !f.who.last.Known() {
		which += fmt.Sprintf(" to %s that %s %s", to, who, how)
	} else { // who did is not known
		which += fmt.Sprintf(" of %s to %s", who, to)
	}
	if f.waiting == 0 {
		if f.reaped > 0 {
			return fmt.Sprintf("%d %s: the FIN was never acknowledged, the kernel gave up after %s", f.reaped, which, age)
		}
		why := "the FIN was not acknowledged"
		if f.state == event.StateFinWait2 {
			why = "acknowledged, but the peer did not close"
		}
		now := "none is in " + finWaitState(f.state) + " any more"
		switch {
		case f.moves:
			now = "data moves again"
		case !f.orphan: // it may be an orphan now
			now = "none is held in " + finWaitState(f.state) + " any more"
		}
		return fmt.Sprintf("%s were in %s for %s: %s; %s", which, finWaitState(f.state), age, why, now)
	}
	s := fmt.Sprintf("%d %s in %s, for %s: ", f.waiting, which, finWaitState(f.state), age)
	switch {
	case f.state == event.StateFinWait1 && f.shut == f.waiting:
		s += "the peer's receive window is shut, so the FIN cannot be sent"
	case f.state == event.StateFinWait1:
		s += "the FIN is not acknowledged"
	case f.peer.Known():
		s += fmt.Sprintf("%s, at the other end on this host, has not closed", f.peer.Name())
	default:
		s += "acknowledged, but the peer has not closed"
	}
	if f.reaped > 0 {
		s += fmt.Sprintf("; the kernel gave up %d", f.reaped)
	}
	return s
}
