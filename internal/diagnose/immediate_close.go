package diagnose

import (
	"fmt"
	"math"
	"net/netip"
	"time"

	"github.com/tcptrace/tcptrace/internal/timeline"
	"github.com/tcptrace/tcptrace/tracer/event"
)

const codeImmediateClose = "immediate-close"

var docImmediateClose = Doc{
	Code:     codeImmediateClose,
	Severity: Error,
	Summary:  "a server closed connections right after accept(), having read nothing, again and again",
	Meaning: `The application accepts a connection and closes it within --immediate (50 ms) without having read a byte; at most it writes a short refusal, as redis does at maxclients. One such close proves nothing. When the process held the same number of connections every time, that number looks like a limit of the application or its framework: it is kept, and each connection beyond it is closed. A connection counts as held once it is older than --immediate, or has ended before that with something read from it: in a burst that is known only later, and counts then for the closes before. Where others were accepted beyond the number and held, it is no limit. The limit is no more than suspected where the number is below 5, where short ones are part of it, or where none of those held comes from an address that was refused and the number was not left and reached again: it may be what the process happens to hold while an access list refuses others.

A connection that is part of this verdict is not told as reset-sent too, though its server may have reset it.

Nothing of this shows in the kernel's counters, in limits of the process or, often, in its log.

Without such a plateau the cause stays open (an access list, a failing handler, a server that is shutting down), and the verdict is a suspicion. A service that writes something and closes is only reported at a plateau: it may be its job.`,
	Counts: "connections closed immediately",
	Evidence: []DocKey{
		{"count", "connections", "closed immediately so far"},
		{"after_ms", "ms", "longest time from accept() to the close, of the recent ones"},
		{"bytes_written", "bytes", "the most that was written to one of them"},
		{"unread_bytes", "bytes", "the most that had arrived and was not read"},
		{"live_connections", "connections", "held by the process on this listener at the last such close, without those just accepted"},
		{"plateau", "connections", "that number, where it was the same at each of the recent closes; else null"},
		{"accepted", "connections", "accepted by the process in the time of the recent closes (32 at most)"},
		{"clients", "count", "different client addresses"},
	},
	Fix: []string{
		"look for a connection limit in the application or its framework (maxclients, max_connections, a pool or semaphore of that size), and raise it or add instances",
		"find out why the connections it holds do not end: leaked or idle ones fill the limit",
		"look in the application for what else makes it hang up before reading: an access list, a handler that fails at once, a shutdown in progress",
	},
	Source: []string{"net/ipv4/tcp.c: __tcp_close()"},
}

const (
	immediateLeast   = 5                // closes before anything is said
	immediateWindow  = 60 * time.Second // in which they count together
	immediateRefusal = 512              // bytes: a longer answer is no refusal
	immediateKept    = 32               // recent closes remembered
	youngKept        = 512              // recent accepts remembered

	// A close that would be a reset of its own waits this long for others like
	// it before it is told as one.
	immediatePatience = 5 * time.Second
)

// immediateClose follows what each process holds on each of its listeners.
type immediateClose struct {
	found   groups[Key, *holding]
	pending []*holding // whose recent closes were amid a burst that is not over
}

func newImmediateClose() *immediateClose {
	return &immediateClose{found: groups[Key, *holding]{max: 4096}}
}

func (*immediateClose) Code() string { return codeImmediateClose }
func (*immediateClose) Doc() Doc     { return docImmediateClose }

// holding is what one process holds on one listening address.
type holding struct {
	key      Key
	name     netip.AddrPort
	owner    timeline.Owner
	lis      *timeline.Listener
	live     int     // connections held
	young    []young // of these accepted a moment ago, oldest first
	above    [2]int  // the most that were held when others were accepted that were held too
	aboveAt  int64   // when the newest of these was
	accepted uint64  // so far
	pending  bool    // it stands in the rule's list

	closes  []immediate // recent ones, oldest first
	began   int64       // the first of them since there was none for a second
	total   uint64
	unsaid  uint64           // of total, not yet part of the verdict
	first   int64            // of these
	waiting []*timeline.Conn // the newest of these, oldest first
	clients addresses
	shown   pattern // when the verdict last held
	said    int64   // the newest close that was part of it

	// Was the plateau left and reached again, and did it hold? Then it is a
	// limit and no coincidence.
	plateau int // of the newest verdict, 0 none
	dipped  bool
	regrown bool

	// Does it hold connections of a client that it hung up on, too? Then it is
	// no access list.
	shared bool
	looked int64 // when that was last looked for
}

// young is a connection of which it is not known yet whether it is held.
type young struct {
	c    *timeline.Conn
	n    uint64 // it was the n-th that was accepted
	live int    // held for sure when it was
}

type immediate struct {
	at       int64
	after    time.Duration
	live     int  // -1 not known
	young    int  // connections of which it is not known yet whether they were held too
	brief    bool // some of those held ended before they were of age
	accepted uint64
	written  uint64
	unread   uint64
}

// pattern is what the recent closes have in common.
type pattern struct {
	closes, accepted uint64
	after            time.Duration // the longest
	written, unread  uint64        // the most
	live             int           // at the last, -1 not known
	plateau          int           // 0 none
	certain, doubted bool
}

func holdingKey(c *timeline.Conn) Key {
	k := Key{Netns: c.Netns(), PID: c.Owner().PID}
	k.Addr, _ = place(c)
	return k
}

// held reports whether the process behind c holds it.
func held(c *timeline.Conn) bool {
	if c.Role() != timeline.RoleServer || c.Phase() != timeline.PhaseSocket || !c.Accepted() ||
		c.Owner().Source < timeline.SourceSnapshot {
		return false
	}
	s := c.State()
	return s == event.StateEstablished || s == event.StateCloseWait
}

func (r *immediateClose) Changed(x *Engine, c *timeline.Conn) { r.count(c) }

// count keeps the number of connections held.
func (r *immediateClose) count(c *timeline.Conn) {
	switch is, was := held(c), c.Tag&tagHeld != 0; {
	case is && !was:
		c.Tag |= tagHeld
		r.holding(c).live++
	case !is && was:
		c.Tag &^= tagHeld
		if p := r.found.get(holdingKey(c)); p != nil && (*p).live > 0 {
			h := *p
			h.live--
			h.dipped = h.dipped || h.plateau > 0 && h.live < h.plateau
		}
	}
}

func (r *immediateClose) holding(c *timeline.Conn) *holding {
	k := holdingKey(c)
	p := r.found.make(k)
	if *p == nil {
		*p = &holding{key: k, name: k.Addr, owner: c.Owner()}
	}
	(*p).lis = c.Listener()
	return *p
}

func (r *immediateClose) Ended(x *Engine, c *timeline.Conn) {
	r.count(c)
	for _, c := range []*timeline.Conn{c, c.Peer()} {
		if c == nil || !closedAtOnce(x, c) {
			continue
		}
		if p := r.found.get(holdingKey(c)); p != nil && (*p).pending {
			(*p).settle(x, x.clock())
			r.judge(x, *p)
		}
		r.mark(x, c)
	}
}

// closedAtOnce reports whether c was closed right after accept(), or may have
// been, where its accept() was missed.
func closedAtOnce(x *Engine, c *timeline.Conn) bool {
	if c.Tag&tagAtOnce != 0 {
		return true
	}
	if c.Role() != timeline.RoleServer || c.Accepted() || !x.o.Capabilities.HasAccept || c.Closer() != timeline.CloserLocal {
		return false
	}
	t := c.Traffic()
	return t.BytesReceived <= uint64(t.Unread) && t.BytesSent > 0 && t.BytesSent <= immediateRefusal
}

// mark makes c part of the verdict, if it was counted in it.
func (r *immediateClose) mark(x *Engine, c *timeline.Conn) bool {
	if c == nil || !closedAtOnce(x, c) {
		return false
	}
	if tagged(r, c) {
		return true
	}
	p := r.found.get(holdingKey(c))
	if p == nil {
		return false
	}
	l := x.kept[liveKey{ruleIndex(r), (*p).key}]
	end := c.Find(timeline.EntryFINSent, timeline.EntryClosed)
	if l == nil || end == nil || end.At > (*p).said {
		return false
	}
	x.tag(r, c, l.v.Severity)
	return true
}

// undecided reports whether c, closed immediately, may yet turn out to be part
// of the verdict: there are others like it, and as many connections were held
// at each of them.
func (r *immediateClose) undecided(x *Engine, c *timeline.Conn) bool {
	if c.Tag&tagAtOnce == 0 || r.mark(x, c) {
		return false
	}
	p := r.found.get(holdingKey(c))
	if p == nil {
		return false
	}
	lately, lo, hi := 0, math.MaxInt, 0
	for _, i := range (*p).closes {
		if x.clock()-i.at > int64(immediatePatience) {
			continue
		}
		lately++
		if i.young == 0 {
			lo, hi = min(lo, i.live), max(hi, i.live)
		}
	}
	return lately > 1 && lo > 0 && hi-lo <= 1
}

// Tick judges what had to wait for the connections of a burst to come of age.
func (r *immediateClose) Tick(x *Engine, now int64, _ *timeline.Tracker) {
	keep := r.pending[:0]
	for _, h := range r.pending {
		h.settle(x, now)
		r.judge(x, h)
		if h.pending = h.unsettled() || len(h.closes) > 0 && h.unsaid > 0 && now-h.began <= int64(x.o.Immediate); h.pending {
			keep = append(keep, h)
		}
	}
	clear(r.pending[len(keep):])
	r.pending = keep
}

func (r *immediateClose) Entry(x *Engine, c *timeline.Conn, e *timeline.Entry) {
	if c.Role() != timeline.RoleServer {
		return
	}
	if e.Kind == timeline.EntryAccepted {
		r.holding(c).settle(x, e.At)
	}
	r.count(c)
	switch e.Kind {
	case timeline.EntryAccepted:
		h := r.holding(c)
		h.accepted++
		if end := c.Find(timeline.EntryFINSent, timeline.EntryClosed); end != nil { // told before
			r.ending(x, c, end)
			return
		}
		if len(h.young) >= youngKept { // too many to wait for
			h.leave(h.young[0], true, false)
			h.young = append(h.young[:0], h.young[1:]...)
		}
		h.young = append(h.young, young{c, h.accepted, h.live - 1 - len(h.young)})
	case timeline.EntryFINSent, timeline.EntryClosed:
		r.ending(x, c, e)
	}
}

// ending looks at whether e is a process's close of an open connection.
func (r *immediateClose) ending(x *Engine, c *timeline.Conn, e *timeline.Entry) {
	if e.Old() == event.StateEstablished && e.ByProcess() && (e.ByClose() || e.Kind == timeline.EntryClosed && e.Err() == 0) {
		r.closed(x, c, e)
	}
}

// settle lets the connections that outlived the immediate phase come of age.
func (h *holding) settle(x *Engine, now int64) {
	keep := h.young[:0]
	grown := false
	for _, y := range h.young {
		a := y.c.Find(timeline.EntryAccepted)
		switch {
		case y.c.Tag&tagHeld == 0 || a == nil:
			h.leave(y, served(y.c), true)
		case now-a.At > int64(x.o.Immediate):
			grown = true
			h.leave(y, true, false)
		default:
			keep = append(keep, y)
		}
	}
	clear(h.young[len(keep):])
	h.young = keep
	if h.plateau == 0 {
		return
	}
	switch n := h.live - len(keep); {
	case grown && n == h.plateau && h.dipped:
		h.regrown = true
	case grown && n > h.plateau, h.beyond(h.plateau, now): // so it was no limit
		h.closes, h.plateau, h.dipped, h.regrown = h.closes[:0], 0, false, false
	}
}

// served reports whether the process read from c, which it does not do where
// it has no room for it.
func served(c *timeline.Conn) bool {
	t := c.Traffic()
	return t.BytesReceived > uint64(t.Unread)
}

// leave tells the closes before which y was accepted whether it was held, and
// whether only for a moment.
func (h *holding) leave(y young, held, brief bool) {
	switch a := y.c.Find(timeline.EntryAccepted); {
	case !held || a == nil:
	case y.live >= h.above[0]:
		h.above[0], h.above[1], h.aboveAt = y.live, h.above[0], a.At
	case y.live > h.above[1]:
		h.above[1], h.aboveAt = y.live, a.At
	}
	for j := range h.closes {
		i := &h.closes[j]
		if i.young == 0 || i.accepted < y.n {
			continue
		}
		i.young--
		if held && i.live >= 0 {
			i.live++
			i.brief = i.brief || brief
		}
	}
}

// beyond reports whether connections were held lately that had been accepted
// while so many were held already. One proves nothing: a process may count one
// out just before it closes it.
func (h *holding) beyond(plateau int, now int64) bool {
	if now-h.aboveAt > int64(immediateWindow) {
		h.above = [2]int{}
	}
	return plateau > 0 && h.above[1] >= plateau
}

// unsettled reports whether there are closes of which it is not known yet how
// many connections were held.
func (h *holding) unsettled() bool {
	for _, i := range h.closes {
		if i.young > 0 {
			return true
		}
	}
	return false
}

// closed looks at a connection that the server closed first.
func (r *immediateClose) closed(x *Engine, c *timeline.Conn, e *timeline.Entry) {
	if c.Closer() != timeline.CloserLocal {
		return
	}
	from := c.Find(timeline.EntryAccepted)
	if from == nil || !x.o.Capabilities.HasAccept {
		return
	}
	t := c.Traffic()
	after := e.Since(from)
	if after > x.o.Immediate || after < 0 || t.BytesReceived > uint64(t.Unread) || t.BytesSent > immediateRefusal {
		return
	}
	h := r.holding(c)
	h.settle(x, e.At)
	c.Tag |= tagAtOnce
	i := immediate{at: e.At, after: after, live: -1, young: len(h.young), accepted: h.accepted, written: t.BytesSent, unread: uint64(t.Unread)}
	if h.countable(x, c) {
		i.live = max(0, h.live-len(h.young))
	}
	for len(h.closes) > 0 && (len(h.closes) >= immediateKept || e.At-h.closes[0].at > int64(immediateWindow)) {
		h.closes = h.closes[:copy(h.closes, h.closes[1:])]
	}
	if n := len(h.closes); n == 0 || e.At-h.closes[n-1].at > int64(time.Second) {
		h.began = e.At
	}
	h.closes = append(h.closes, i)
	if h.unsaid == 0 {
		h.first = e.At
	}
	h.total++
	h.unsaid++
	if len(h.waiting) >= immediateLeast {
		h.waiting = h.waiting[:copy(h.waiting, h.waiting[1:])]
	}
	h.waiting = append(h.waiting, c)
	h.clients.add(c.Remote().Addr())
	r.judge(x, h)
	if !h.pending && (h.unsaid > 0 || i.young > 0) && len(h.closes) >= immediateLeast {
		h.pending = true
		r.pending = append(r.pending, h)
	}
}

// judge reports what the recent closes have in common, unless nothing was
// added.
func (r *immediateClose) judge(x *Engine, h *holding) {
	if len(h.closes) == 0 {
		return
	}
	plateau, same := h.level()
	if h.beyond(plateau, x.clock()) {
		plateau, same = 0, false
	}
	if plateau == 0 && !h.most() || h.unsaid == 0 && plateau == h.shown.plateau {
		return
	}
	newest := h.closes[len(h.closes)-1].at
	if plateau == 0 {
		// Connections count as held once they are not young any more: wait until
		// those of the same burst are.
		if h.unsaid == 0 || max(newest, x.clock())-h.began <= int64(x.o.Immediate) {
			return
		}
	}
	if plateau > 0 {
		h.share(x)
	}
	if same && h.plateau != plateau {
		h.plateau, h.dipped, h.regrown = plateau, false, false
	}
	h.shown = h.pattern(plateau, same && h.regrown)
	n := h.unsaid
	h.unsaid = 0
	h.said = max(h.said, newest)
	// Those before may have been handed out as ended; but their other ends, which
	// hear of it later, ask.
	x.Report(r, h.key, h, newest, n, h.waiting...)
	clear(h.waiting)
	h.waiting = h.waiting[:0]
}

// share looks for a connection that is held and comes from where others were
// hung up on.
func (h *holding) share(x *Engine) {
	const pause = int64(5 * time.Second)
	now := x.clock()
	if h.shared || x.tracker == nil || h.looked != 0 && now-h.looked < pause {
		return
	}
	h.looked = now
	for c := range x.conns(x.tracker) {
		if c.Tag&tagHeld != 0 && c.Tag&tagAtOnce == 0 && h.clients.has(c.Remote().Addr()) && holdingKey(c) == h.key {
			h.shared = true
			return
		}
	}
}

// countable reports whether the number of connections held is known: none is
// filtered out, and either all were listed, or none can be older than the trace.
func (h *holding) countable(x *Engine, c *timeline.Conn) bool {
	if !x.anyPeer(c.Netns(), c.Local()) {
		return false
	}
	return x.complete(c.Netns()) || h.lis != nil && h.lis.Opened != 0 && (x.tracker == nil || x.tracker.LostAt() == 0)
}

// level returns the number of connections held at each of the recent closes of
// which that is settled, 0 if it was not the same (give or take one that was
// just ending) or not known. same is whether it was exactly the same.
func (h *holding) level() (n int, same bool) {
	lo, hi, settled := math.MaxInt, 0, 0
	for _, i := range h.closes {
		if i.young > 0 {
			continue
		}
		settled++
		lo, hi = min(lo, i.live), max(hi, i.live)
	}
	if settled < immediateLeast || lo <= 0 || hi-lo > 1 || hi-lo == 1 && lo < immediateLeast {
		return 0, false
	}
	return hi, lo == hi
}

// most reports whether most connections accepted lately were closed
// immediately, with nothing said.
func (h *holding) most() bool {
	if len(h.closes) < immediateLeast {
		return false
	}
	for _, i := range h.closes {
		if i.written > 0 {
			return false
		}
	}
	return uint64(len(h.closes))*2 > h.acceptedSince()
}

// acceptedSince is how many were accepted in the time of the recent closes.
func (h *holding) acceptedSince() uint64 {
	n := uint64(len(h.closes))
	return max(n, h.closes[n-1].accepted-h.closes[0].accepted+1)
}

// since is when the first of the closes was.
func (h *holding) since() int64 { return h.first }

func (h *holding) pattern(plateau int, certain bool) pattern {
	p := pattern{
		closes:   uint64(len(h.closes)),
		accepted: h.acceptedSince(),
		live:     h.closes[len(h.closes)-1].live,
		plateau:  plateau,
		certain:  certain,
		// It may be what the process happens to hold while it refuses others for
		// another reason.
		doubted: plateau < immediateLeast || !h.shared && !certain,
	}
	for _, i := range h.closes {
		if i.young == 0 {
			p.live = i.live
		}
		p.doubted = p.doubted || i.brief
		p.after, p.written, p.unread = max(p.after, i.after), max(p.written, i.written), max(p.unread, i.unread)
	}
	return p
}

func (h *holding) Describe(x *Engine, v *Verdict) {
	p := h.shown
	who := h.owner.Name()
	said := "nothing read or written"
	switch {
	case p.written > 0:
		said = fmt.Sprintf("nothing read, %s written", Bytes(p.written))
	case p.unread > 0:
		said = "nothing read though data had come, nothing written"
	}
	v.Subject = Subject{"listener", h.name.String()}
	v.Process = process(h.owner)
	level := Fact{Key: "plateau", Note: "the number of connections held was not the same each time"}
	live := Fact{Key: "live_connections", Value: int64(p.live)}
	switch {
	case p.live == 0:
		level.Note = "no other connections were held"
	case p.live < 0:
		live = Fact{Key: live.Key, Note: "not every connection of the process is known"}
		level.Note = live.Note
	}
	if p.plateau > 0 {
		level = Fact{Key: "plateau", Value: int64(p.plateau)}
		v.Severity, v.Confidence = Error, Likely
		v.Fix = docImmediateClose.Fix[:2]
		looks := "looks like"
		switch {
		case p.doubted:
			v.Confidence, v.Fix, looks = Suspected, docImmediateClose.Fix, "perhaps"
		case p.certain:
			v.Confidence = Certain
		}
		v.Story = fmt.Sprintf("%s closed connections within %s of accept(), %s, holding %d others each time: %s an application limit of %d",
			who, timeline.Duration(p.after), said, p.plateau, looks, p.plateau)
	} else {
		v.Severity, v.Confidence = Warning, Suspected
		v.Story = fmt.Sprintf("%s closed %d of the last %d connections within %s of accept(), %s",
			who, p.closes, p.accepted, timeline.Duration(p.after), said)
		v.Fix = docImmediateClose.Fix[2:]
	}
	v.Evidence = Evidence{
		{Key: "count", Value: int64(h.total - h.unsaid)},
		{Key: "after_ms", Value: milliseconds(p.after)},
		{Key: "bytes_written", Value: int64(p.written)},
		{Key: "unread_bytes", Value: int64(p.unread)},
		live,
		level,
		{Key: "accepted", Value: int64(p.accepted)},
		h.clients.fact("clients"),
	}
}
