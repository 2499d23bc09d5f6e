package diagnose

import (
	"cmp"
	"iter"
	"net/netip"
	"slices"
	"time"

	"github.com/tcptrace/tcptrace/internal/timeline"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// Options of an [Engine]. The zero value of each field means its default.
type Options struct {
	Capabilities event.Capabilities
	Immediate    time.Duration // a close this soon after accept() is immediate, 50 ms
	CloseWait    time.Duration // CLOSE_WAIT for longer is a leak, 60 s
	Idle         time.Duration // ESTABLISHED and silent for longer, without keepalive: perhaps half open, 2 h
	FinWait      time.Duration // FIN_WAIT1 or FIN_WAIT2 for longer is stuck, 60 s
	SlowAccept   time.Duration // in the accept queue for longer is slow, 200 ms
	ZeroWindow   time.Duration // a receive window shut for longer is a stall, 5 s
	Backoff      time.Duration // data unacknowledged for longer is worth telling before the kernel gives up, 15 s
	Aftermath    time.Duration // a segment this soon after its connection's end was on its way, 60 s
	TimeWait     float64       // TIME_WAIT in more than this share of the port range is a pile-up, 0.5
	Interval     time.Duration // a growing verdict is handed out at most once in this time, 1 s
	MaxVerdicts  int           // kept at a time, 1,024

	// Asked reports whether the user asked for connections with these addresses.
	// Of others nothing is told to the rules; it is for what they look up
	// themselves. nil: all.
	Asked func(netns uint32, local, remote netip.AddrPort) bool
	// Mine reports whether the user asked for what this process does. Verdicts
	// about processes of one name do not mix those with others. Nil: for all.
	Mine func(timeline.Owner) bool
}

// fill puts the defaults where nothing was said.
func (o *Options) fill() {
	or(&o.Immediate, 50*time.Millisecond)
	or(&o.CloseWait, time.Minute)
	or(&o.Idle, 2*time.Hour)
	or(&o.FinWait, time.Minute)
	or(&o.SlowAccept, 200*time.Millisecond)
	or(&o.ZeroWindow, 5*time.Second)
	or(&o.Backoff, 15*time.Second)
	or(&o.Aftermath, time.Minute)
	or(&o.TimeWait, 0.5)
	or(&o.Interval, time.Second)
	or(&o.MaxVerdicts, 1024)
}

func or[T cmp.Ordered](v *T, d T) {
	var zero T
	if *v <= zero {
		*v = d
	}
}

// Stats of an [Engine].
type Stats struct {
	Verdicts map[string]uint64 // count by code, as the closing summary shows them
	Live     int               // verdicts now kept
	Evicted  uint64            // verdicts closed early to stay within the bound
}

// Rule is the source of one verdict.
type Rule interface {
	Code() string
	Doc() Doc
}

// EntryRule hears of each timeline entry: see [timeline.Observer].
type EntryRule interface {
	Entry(x *Engine, c *timeline.Conn, e *timeline.Entry)
}

// EndRule hears of each connection's end.
type EndRule interface {
	Ended(x *Engine, c *timeline.Conn)
}

// ChangeRule hears of what snapshots teach.
type ChangeRule interface {
	Changed(x *Engine, c *timeline.Conn)
}

// ListenerRule hears of what happens on listening sockets.
type ListenerRule interface {
	Listener(x *Engine, l *timeline.Listener, e *timeline.Entry)
}

// IncidentRule hears of what belongs to no connection.
type IncidentRule interface {
	Incident(x *Engine, in *timeline.Incident)
}

// TickRule hears of time passing.
type TickRule interface {
	Tick(x *Engine, now int64, t *timeline.Tracker)
}

// FinishRule hears that nothing more comes, before the last word on its
// verdicts: one that waits before it judges must judge now.
type FinishRule interface {
	Finish(x *Engine)
}

// Finding is what a rule found about one subject, which may grow. Describe
// puts its present state into v: Severity, Confidence, Story, Subject,
// Process, Evidence and Fix. The engine keeps the rest.
type Finding interface {
	Describe(x *Engine, v *Verdict)
}

// Key tells findings of one rule apart.
type Key struct {
	Netns uint32
	PID   uint32
	Comm  string // where all processes of a name are one, see crewKey
	Other bool   // likewise: they are others than those asked for
	Addr  netip.AddrPort
	Again uint64 // likewise: which namespace of that number, see Engine.Namespace
	What  string // anything further
}

// Bits of timeline.Conn.Tag: the lowest are the codes in the order of the
// catalogue, the highest the engine's own.
const (
	tagHeld   = 1 << 31 // counted among the connections that its process holds
	tagBad    = 1 << 30 // part of a verdict that is not merely informational
	tagAtOnce = 1 << 29 // closed by its server right after accept()
	tagCodes  = tagAtOnce - 1
)

const maxExamples = 5

// Engine runs the rules. It is a [timeline.Observer]; it and what it hands
// out belong to one goroutine.
type Engine struct {
	o          Options
	sink       Sink
	onEntry    []EntryRule
	onChange   []ChangeRule
	onEnd      []EndRule
	onListen   []ListenerRule
	onIncident []IncidentRule
	onTick     []TickRule
	onFinish   []FinishRule
	now        int64
	tracker    *timeline.Tracker
	netns      map[uint32]event.Namespace
	again      map[uint32]uint64 // by number, of namespaces that may be others than those before
	renewed    uint64
	sockets    wishes // namespaces whose sockets should be looked at

	kept    map[liveKey]*live
	order   []*live // oldest first
	totals  map[string]uint64
	evicted uint64
}

type liveKey struct {
	rule int
	key  Key
}

// live is a verdict that can still grow.
type live struct {
	id      liveKey
	v       Verdict
	finding Finding
	dirty   bool
	told    int64 // when it was last handed out
}

// New returns an engine that hands its verdicts to s.
func New(o Options, s Sink) *Engine {
	o.fill()
	x := &Engine{
		o:      o,
		sink:   s,
		netns:  make(map[uint32]event.Namespace),
		again:  make(map[uint32]uint64),
		kept:   make(map[liveKey]*live),
		totals: make(map[string]uint64),
	}
	for _, r := range newRules() {
		if r, ok := r.(EntryRule); ok {
			x.onEntry = append(x.onEntry, r)
		}
		if r, ok := r.(ChangeRule); ok {
			x.onChange = append(x.onChange, r)
		}
		if r, ok := r.(EndRule); ok {
			x.onEnd = append(x.onEnd, r)
		}
		if r, ok := r.(ListenerRule); ok {
			x.onListen = append(x.onListen, r)
		}
		if r, ok := r.(IncidentRule); ok {
			x.onIncident = append(x.onIncident, r)
		}
		if r, ok := r.(TickRule); ok {
			x.onTick = append(x.onTick, r)
		}
		if r, ok := r.(FinishRule); ok {
			x.onFinish = append(x.onFinish, r)
		}
	}
	return x
}

// Entry implements [timeline.Observer].
func (x *Engine) Entry(c *timeline.Conn, e *timeline.Entry) {
	x.now = max(x.now, e.At)
	for _, r := range x.onEntry {
		r.Entry(x, c, e)
	}
}

// Changed implements [timeline.Observer].
func (x *Engine) Changed(c *timeline.Conn) {
	for _, r := range x.onChange {
		r.Changed(x, c)
	}
}

// Ended implements [timeline.Observer].
func (x *Engine) Ended(c *timeline.Conn) {
	for _, r := range x.onEnd {
		r.Ended(x, c)
	}
}

// Listener implements [timeline.Observer].
func (x *Engine) Listener(l *timeline.Listener, e *timeline.Entry) {
	x.now = max(x.now, e.At)
	for _, r := range x.onListen {
		r.Listener(x, l, e)
	}
}

// Incident implements [timeline.Observer].
func (x *Engine) Incident(in *timeline.Incident) {
	x.now = max(x.now, in.At)
	for _, r := range x.onIncident {
		r.Incident(x, in)
	}
}

// Namespace implements [timeline.Observer]. Of one that was known and is not any
// more, the number may be another's from now on.
func (x *Engine) Namespace(ns event.Namespace) {
	const most = 4096
	was, known := x.netns[ns.Inode]
	if !known && len(x.netns) >= most {
		clear(x.netns)
		clear(x.again)
	}
	if was.Known && !ns.Known {
		x.renewed++
		x.again[ns.Inode] = x.renewed
	}
	x.netns[ns.Inode] = ns
}

// Tick implements [timeline.Observer].
func (x *Engine) Tick(now int64, t *timeline.Tracker) {
	x.now = max(x.now, now)
	x.tracker = t
	for _, r := range x.onTick {
		r.Tick(x, x.now, t)
	}
	for _, l := range x.order {
		if l.dirty && x.now-l.told >= int64(x.o.Interval) {
			x.tell(l, PhaseGrowing)
		}
	}
}

// conns are the connections that live and that the user asked for.
func (x *Engine) conns(t *timeline.Tracker) iter.Seq[*timeline.Conn] {
	return func(yield func(*timeline.Conn) bool) {
		for c := range t.Conns() {
			if x.asked(c.Netns(), c.Local(), c.Remote()) && !yield(c) {
				return
			}
		}
	}
}

func (x *Engine) asked(netns uint32, local, remote netip.AddrPort) bool {
	return x.o.Asked == nil || x.o.Asked(netns, local, remote)
}

// anyPeer reports whether the user asked for all connections with this local
// end, whoever is at the other.
func (x *Engine) anyPeer(netns uint32, local netip.AddrPort) bool {
	nobody := netip.AddrFrom4([4]byte{255, 255, 255, 255})
	if local.Addr().Is6() {
		nobody = netip.IPv6LinkLocalAllNodes()
	}
	return x.asked(netns, local, netip.AddrPortFrom(nobody, 1))
}

// SnapshotWanted returns the network namespaces whose sockets should be looked
// at again before connections in them are judged, each at most once in a
// while. Call it after Tick; an answer is welcome, not needed.
func (x *Engine) SnapshotWanted() []uint32 { return x.sockets.take() }

// SnapshotEvery is how often all sockets should be looked at for the rules that
// judge silence: often enough for the shortest of their thresholds.
func (x *Engine) SnapshotEvery() time.Duration {
	shortest := min(x.o.Idle, x.o.FinWait, x.o.ZeroWindow*4, x.o.Backoff*2)
	return min(max(shortest/4, time.Second), 30*time.Second)
}

// wishes are asked for at most once in a while each.
type wishes struct {
	at   map[uint32]int64
	list []uint32
}

func (w *wishes) add(netns uint32, now int64) { w.ask(netns, now, 10*time.Second) }

// soon is for what will not be there any more after the usual pause.
func (w *wishes) soon(netns uint32, now int64) { w.ask(netns, now, 2*time.Second) }

func (w *wishes) ask(netns uint32, now int64, pause time.Duration) {
	const most = 4096
	if at, ok := w.at[netns]; ok && now-at < int64(pause) {
		return
	}
	if len(w.at) >= most {
		clear(w.at)
	}
	if w.at == nil {
		w.at = make(map[uint32]int64)
	}
	w.at[netns] = now
	if len(w.list) < most {
		w.list = append(w.list, netns)
	}
}

func (w *wishes) take() []uint32 {
	list := w.list
	w.list = nil
	return list
}

// clock is the time that has come, also to what is told before the next tick.
func (x *Engine) clock() int64 {
	if x.tracker == nil {
		return x.now
	}
	return max(x.now, x.tracker.Now())
}

// Finish hands out the last word on every verdict, in the order in which they
// first held. Call it after the tracker's Drain.
func (x *Engine) Finish(now int64, t *timeline.Tracker) {
	x.Tick(now, t)
	for _, r := range x.onFinish {
		r.Finish(x)
	}
	for _, l := range x.order {
		x.tell(l, PhaseFinal)
	}
	x.order = nil
	clear(x.kept)
}

// Stats returns the counts.
func (x *Engine) Stats() Stats {
	s := Stats{Verdicts: make(map[string]uint64, len(x.totals)), Live: len(x.order), Evicted: x.evicted}
	for code, n := range x.totals {
		s.Verdicts[code] = n
	}
	return s
}

// Report tells that rule holds for f, n times more at that time (0: for the
// same as before, but more of it), as conns
// show (none where no connection is part of it). The first report of a finding
// hands the verdict out, later ones let it grow.
func (x *Engine) Report(rule Rule, key Key, f Finding, at int64, n uint64, conns ...*timeline.Conn) {
	id := liveKey{ruleIndex(rule), key}
	l := x.kept[id]
	fresh := l == nil
	if fresh {
		n = max(n, 1)
		x.makeRoom()
		l = &live{id: id, v: Verdict{Code: codes[id.rule], Key: key, Netns: key.Netns, First: at, Last: at}}
		if s, ok := f.(interface{ since() int64 }); ok {
			l.v.First = min(at, s.since())
		}
		x.kept[id] = l
		x.order = append(x.order, l)
	}
	l.finding = f
	l.v.Count += n
	l.v.First, l.v.Last = min(l.v.First, at), max(l.v.Last, at)
	x.totals[l.v.Code] += n
	for _, c := range conns {
		if len(l.v.Examples) == maxExamples {
			break
		}
		if id := c.ID(); !slices.Contains(l.v.Examples, id) {
			l.v.Examples = append(l.v.Examples, id)
		}
	}
	l.dirty = true
	if fresh {
		x.tell(l, PhaseNew)
	}
	for _, c := range conns {
		x.tag(rule, c, l.v.Severity)
	}
}

// touch has the verdict under key, if there is one, told again: what its finding
// would describe has changed, though nothing was added to its count.
func (x *Engine) touch(rule Rule, key Key) {
	if l := x.kept[liveKey{ruleIndex(rule), key}]; l != nil {
		l.dirty = true
	}
}

// tag makes c part of the rule's verdict.
func (x *Engine) tag(rule Rule, c *timeline.Conn, s Severity) {
	c.Tag |= 1 << ruleIndex(rule)
	if s != Info {
		c.Tag |= tagBad
	}
}

func tagged(rule Rule, c *timeline.Conn) bool { return c.Tag&(1<<ruleIndex(rule)) != 0 }

// tell hands out a copy.
func (x *Engine) tell(l *live, p Phase) {
	l.v.Process, l.v.Among = nil, nil
	l.finding.Describe(x, &l.v)
	v := l.v
	v.Examples = slices.Clone(v.Examples)
	v.Fix = slices.Clone(v.Fix)
	l.v.Evidence = nil // the copy's own now
	l.dirty = false
	l.told = x.now
	if x.sink != nil {
		x.sink.Verdict(&v, p)
	}
}

// makeRoom closes the verdict with the smallest count, the oldest of these,
// when there are as many as may be kept.
func (x *Engine) makeRoom() {
	if len(x.order) < x.o.MaxVerdicts {
		return
	}
	least := 0
	for i, l := range x.order {
		if l.v.Count < x.order[least].v.Count {
			least = i
		}
	}
	l := x.order[least]
	x.tell(l, PhaseFinal)
	x.order = slices.Delete(x.order, least, least+1)
	delete(x.kept, l.id)
	x.evicted++
}

// holds reports whether a verdict is kept under that code and key.
func (x *Engine) holds(code string, k Key) bool {
	return x.kept[liveKey{codeIndex[code], k}] != nil
}

// complete reports whether what is known of a namespace's sockets can be
// counted: all were listed once, and again since events were last lost.
func (x *Engine) complete(netns uint32) bool {
	if x.tracker == nil {
		return false
	}
	at := x.tracker.SnapshotAt(netns)
	return at != 0 && at > x.tracker.LostAt()
}

// groups is a map of at most max entries that forgets the one that was used
// least recently.
type groups[K comparable, V any] struct {
	max    int
	m      map[K]*group[K, V]
	oldest *group[K, V]
	newest *group[K, V]
}

type group[K comparable, V any] struct {
	key          K
	v            V
	older, newer *group[K, V]
}

// get returns the value of k, nil if there is none.
func (g *groups[K, V]) get(k K) *V {
	e := g.m[k]
	if e == nil {
		return nil
	}
	if g.newest != e {
		g.unlink(e)
		g.link(e)
	}
	return &e.v
}

// make returns the value of k, a zero one if there is none.
func (g *groups[K, V]) make(k K) *V {
	if v := g.get(k); v != nil {
		return v
	}
	if g.m == nil {
		g.m = make(map[K]*group[K, V])
	}
	if len(g.m) >= g.max {
		old := g.oldest
		g.unlink(old)
		delete(g.m, old.key)
	}
	e := &group[K, V]{key: k}
	g.m[k] = e
	g.link(e)
	return &e.v
}

// drop forgets k.
func (g *groups[K, V]) drop(k K) {
	if e := g.m[k]; e != nil {
		g.unlink(e)
		delete(g.m, k)
	}
}

func (g *groups[K, V]) unlink(e *group[K, V]) {
	if e.older != nil {
		e.older.newer = e.newer
	} else {
		g.oldest = e.newer
	}
	if e.newer != nil {
		e.newer.older = e.older
	} else {
		g.newest = e.older
	}
	e.older, e.newer = nil, nil
}

func (g *groups[K, V]) link(e *group[K, V]) {
	e.older = g.newest
	if g.newest != nil {
		g.newest.newer = e
	} else {
		g.oldest = e
	}
	g.newest = e
}
