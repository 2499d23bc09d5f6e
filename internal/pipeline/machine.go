package pipeline

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/tcptrace/tcptrace/internal/diagnose"
	"github.com/tcptrace/tcptrace/internal/dump"
	"github.com/tcptrace/tcptrace/internal/filter"
	"github.com/tcptrace/tcptrace/internal/render"
	"github.com/tcptrace/tcptrace/internal/timeline"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// Show says what is shown.
type Show struct {
	Verdicts    bool
	Connections bool
	Events      bool
	All         bool // also connections that went well
	Open        bool // in the end, also connections that have not
}

// Options of a [Machine].
type Options struct {
	Out      render.Renderer
	Show     Show
	Filter   filter.Filter
	Scoped   bool             // only what belongs to processes that Member told of
	Count    uint64           // things to show before Done, 0: no limit
	Timeline timeline.Options // its Observer is the machine's
	Diagnose diagnose.Options
	// Spaces are names of network namespaces that the filter means beside its
	// inode numbers.
	Spaces []string
	// Since leaves out what was over before it; 0 nothing. What is counted then
	// counts for what goes on.
	Since render.Stamp
	// Raw is told of each event, and of each line of a snapshot, after the
	// timeline took it, with the connection that it is of, "" none; e is only
	// valid during the call. May be nil.
	Raw func(e *event.Event, at render.Stamp, conn string)
}

// Machine turns events into output. It belongs to one goroutine.
type Machine struct {
	o       Options
	tracker *timeline.Tracker
	engine  *diagnose.Engine
	clock   render.Clock
	now     int64 // newest time told, CLOCK_BOOTTIME
	at      int64 // time of the event being handled, 0: none
	events  uint64
	lost    uint64
	shown   uint64
	err     error // the renderer's first

	narrow bool           // the filter looks at addresses, ports or namespaces
	cur    *timeline.Conn // whom the observer is being told of
	met    *timeline.Conn // whom the observer was last told of
	// recent holds connections that ended lately, for the timelines of
	// examples.
	recent    [512]*timeline.Conn
	recentPos int

	cgroups map[uint32]string // by pid, for --cgroup on verdicts
	// cgroupText is how many bytes they take.
	cgroupText int
	growing    map[verdictKey]growth
	finished   bool
	counts     map[string]uint64 // by code, of verdicts that had their last word
	final      []*render.Verdict
	members    *members // nil: of all processes
	ours       uint64   // connections of members that ended
}

// maxFinal bounds the verdicts of a summary: more are counted only.
const maxFinal = 1024

// maxPIDs bounds the processes whose cgroup is remembered.
const maxPIDs = 65536

// maxCgroupText bounds what that takes, in bytes.
const maxCgroupText = 32 << 20

// maxMeant bounds the namespaces that the filter means, which are looked through
// with each event.
const maxMeant = 4096

type verdictKey struct {
	code string
	key  diagnose.Key
}

type growth struct {
	count   uint64
	told    bool
	example *timeline.Conn // the one that was shown with it
	early   uint64         // the count before Options.Since, when nothing was shown yet
}

func keyOf(v *diagnose.Verdict) verdictKey { return verdictKey{v.Code, v.Key} }

// NewMachine returns a machine that has seen nothing.
func NewMachine(o Options) *Machine {
	f := &o.Filter
	m := &Machine{
		o:       o,
		narrow:  len(f.Ports)+len(f.LocalPorts)+len(f.RemotePorts)+len(f.Addrs)+len(f.Netns)+len(o.Spaces) > 0,
		cgroups: make(map[uint32]string),
		growing: make(map[verdictKey]growth),
		counts:  make(map[string]uint64),
	}
	if o.Scoped {
		m.members = newMembers()
	}
	if len(o.Spaces) > 0 {
		f.Netns = append(slices.Clip(f.Netns), 0) // of which there is none
	}
	m.o.Filter.Netns = f.Netns
	if o.Scoped || len(f.PIDs)+len(f.Comms)+len(f.Cgroups) > 0 {
		o.Diagnose.Mine = func(o timeline.Owner) bool { return m.meant(o) && f.MatchProcess(o.PID, o.Comm, o.Cgroup) }
	}
	if m.narrow {
		o.Diagnose.Asked = (*gate)(m).tuple
	}
	m.engine = diagnose.New(o.Diagnose, diagnose.SinkFunc(m.verdict))
	o.Timeline.Observer = (*gate)(m)
	m.tracker = timeline.New(o.Timeline)
	return m
}

// Clock tells what to add to a time for the wall clock's from now on.
func (m *Machine) Clock(offset int64) { m.clock = render.Clock{Offset: offset} }

// Audit takes a reading of the counters. That of the end comes with the
// summary.
func (m *Machine) Audit(dump.Audit) {}

// Event takes the next event, in arrival order. It keeps nothing of e.
func (m *Machine) Event(e *event.Event) {
	m.events++
	m.now = max(m.now, e.Time)
	m.at = e.Time
	if m.o.Raw != nil {
		m.raw(e)
	} else {
		m.tracker.Handle(e)
	}
	m.at = 0
}

// raw has the timeline take an event and tells of it.
func (m *Machine) raw(e *event.Event) {
	c := m.tracker.Conn(e.Sock)
	m.met = nil
	as := *e // the timeline may correct it
	m.tracker.Handle(&as)
	if after := m.tracker.Conn(e.Sock); after != nil {
		c = after
	}
	if c != nil && !c.SameAddresses(e) { // of another life of the socket
		c = nil
	}
	if c == nil {
		c = m.met
	}
	f := &m.o.Filter
	if !m.reaches(e) || !m.late(m.clock.Stamp(e.Time)) {
		return
	}
	if len(f.PIDs)+len(f.Comms)+len(f.Cgroups) > 0 {
		o := timeline.Owner{PID: e.PID, Comm: e.Comm.String(), Cgroup: m.cgroups[e.PID]}
		if c != nil {
			o = c.Owner()
		}
		if !f.MatchProcess(o.PID, o.Comm, o.Cgroup) {
			return
		}
	}
	id := ""
	if c != nil {
		id = c.ID()
	}
	m.o.Raw(e, m.clock.Stamp(e.Time), id)
}

// reaches reports whether the filter means the addresses of an event.
func (m *Machine) reaches(e *event.Event) bool {
	g := (*gate)(m)
	switch e.Kind {
	case event.KindListen, event.KindBindFailed:
		return g.bound(e.Netns, e.Local)
	case event.KindState, event.KindSnapshot:
		if e.New == event.StateListen || e.Old == event.StateListen && e.New == event.StateClose {
			return g.bound(e.Netns, e.Local)
		}
	}
	return g.tuple(e.Netns, e.Local, e.Remote)
}

// late reports whether a time, 0 unknown, is one that was asked for.
func (m *Machine) late(t render.Stamp) bool { return m.o.Since == 0 || t == 0 || t >= m.o.Since }

// Namespace tells the facts of a network namespace.
func (m *Machine) Namespace(ns event.Namespace) {
	m.o.Out.Namespace(ns)
	if ns.Name != "" && len(m.o.Filter.Netns) < maxMeant && slices.Contains(m.o.Spaces, ns.Name) && !slices.Contains(m.o.Filter.Netns, ns.Inode) {
		m.o.Filter.Netns = append(m.o.Filter.Netns, ns.Inode)
	}
	m.tracker.Namespace(ns)
}

// Process tells what is known of a process.
func (m *Machine) Process(p event.Process) {
	if len(m.o.Filter.Cgroups) > 0 {
		if len(m.cgroups) >= maxPIDs || m.cgroupText+len(p.Cgroup) > maxCgroupText {
			clear(m.cgroups)
			m.cgroupText = 0
		}
		m.cgroupText += len(p.Cgroup) - len(m.cgroups[p.PID])
		m.cgroups[p.PID] = p.Cgroup
	}
	m.tracker.Process(p)
}

// BeginSnapshot announces all sockets of a namespace as they are at now.
func (m *Machine) BeginSnapshot(netns uint32, now int64) { m.tracker.BeginSnapshot(netns, now) }

// Snapshot takes one socket of a snapshot; pid 0 is an unknown owner.
func (m *Machine) Snapshot(e *event.Event, pid uint32, comm string) {
	if m.o.Raw != nil {
		m.raw(e)
	} else {
		m.tracker.Handle(e)
	}
	if pid != 0 {
		m.tracker.SnapshotOwner(e.Sock, e.Time, pid, comm)
	}
}

// EndSnapshot ends what BeginSnapshot announced.
func (m *Machine) EndSnapshot(netns uint32, now int64) { m.tracker.EndSnapshot(netns, now) }

// Lost tells that events never arrived, as noticed at a time.
func (m *Machine) Lost(at int64, l event.Lost) {
	m.now = max(m.now, at)
	m.lost += l.Count
	m.tracker.Lost(at, l)
	m.fail(m.o.Out.Lost(&render.Lost{Time: m.clock.Stamp(at), Where: l.Where, Count: l.Count}))
}

// Advance tells that time has come to now and that all events before it were
// handed over.
func (m *Machine) Advance(now int64) {
	m.now = max(m.now, now)
	m.tracker.Advance(m.now)
}

// SnapshotWanted lists the namespaces whose sockets should be looked at again
// before they are judged.
func (m *Machine) SnapshotWanted() []uint32 { return m.engine.SnapshotWanted() }

// SnapshotEvery is how often all sockets should be looked at.
func (m *Machine) SnapshotEvery() time.Duration { return m.engine.SnapshotEvery() }

// Inhabited are the namespaces in which a look at all sockets can teach
// something.
func (m *Machine) Inhabited() []uint32 { return m.tracker.Inhabited() }

// Err returns the first error of the renderer: nothing more can be shown.
func (m *Machine) Err() error { return m.err }

// Done reports whether as much was shown as was asked for.
func (m *Machine) Done() bool { return m.o.Count > 0 && m.shown >= m.o.Count }

// Finish takes the last word on everything and shows the summary, of which
// the caller knows the audit, the cost and the duration.
func (m *Machine) Finish(now int64, s render.Summary) (*render.Summary, error) {
	m.now = max(m.now, now)
	m.tracker.Drain(m.now)
	m.finished = true
	m.engine.Finish(m.now, m.tracker)
	if m.o.Show.Connections && m.o.Show.Open {
		for c := range m.tracker.Conns() {
			if (*gate)(m).of(c) && m.wanted(c) {
				m.show(func() error { return m.o.Out.Connection(render.NewConnection(c, m.now, m.clock)) })
			}
		}
	}
	stats := m.tracker.Stats()
	s.Time = m.clock.Stamp(m.now)
	s.Connections = m.connections(stats.Connections)
	s.Evicted = stats.Evicted
	s.Events = m.events
	s.Lost = m.lost
	s.Verdicts = m.counts
	s.Final = m.final
	m.fail(m.o.Out.Summary(&s))
	m.fail(m.o.Out.Flush())
	return &s, m.err
}

func (m *Machine) fail(err error) {
	if m.err == nil {
		m.err = err
	}
}

// gate is the machine as the tracker's observer: what the filter leaves out
// never reaches the rules, so that their counts are about what was asked for.
type gate Machine

func (g *gate) tuple(netns uint32, local, remote netip.AddrPort) bool {
	return !g.narrow || g.o.Filter.MatchTuple(netns, local, remote)
}

// bound is tuple for a listener or a bind(). What comes to a listener is told of
// connections and incidents, which have another end.
func (g *gate) bound(netns uint32, local netip.AddrPort) bool {
	return !g.narrow || g.o.Filter.MatchBound(netns, local)
}

func (g *gate) of(c *timeline.Conn) bool {
	return !g.narrow || g.o.Filter.MatchTuple(c.Netns(), c.Local(), c.Remote())
}

func (g *gate) Entry(c *timeline.Conn, e *timeline.Entry) {
	g.met = c
	if !g.of(c) {
		return
	}
	m := (*Machine)(g)
	m.cur = c
	m.engine.Entry(c, e)
	m.cur = nil
	// To be found by a snapshot is nothing that happens to a connection.
	if m.o.Show.Events && !e.Found() && m.owned(c) {
		at := e.At
		if e.Count > 1 && m.at != 0 {
			at = m.at // the entry has the time of the first
		}
		if !m.late(m.clock.Stamp(at)) {
			return
		}
		m.show(func() error { return m.o.Out.Event(render.NewEvent(c, e, at, m.clock)) })
	}
}

func (g *gate) Changed(c *timeline.Conn) {
	if !g.of(c) {
		return
	}
	g.cur = c
	g.engine.Changed(c)
	g.cur = nil
}

func (g *gate) Ended(c *timeline.Conn) {
	if !g.of(c) {
		return
	}
	m := (*Machine)(g)
	m.cur = c
	m.engine.Ended(c)
	m.cur = nil
	if m.members != nil && m.meant(c.Owner()) {
		m.ours++
	}
	well := diagnose.Well(c)
	if !well {
		m.recent[m.recentPos] = c
		m.recentPos = (m.recentPos + 1) % len(m.recent)
	}
	if m.o.Show.Connections && m.wanted(c) {
		m.show(func() error { return m.o.Out.Connection(render.NewConnection(c, m.now, m.clock)) })
	}
}

// wanted reports whether a connection is one to show. After a loss everything
// that lived then is incomplete: that is said once, and not of each connection
// of which nothing worse is known.
func (m *Machine) wanted(c *timeline.Conn) bool {
	return (m.o.Show.All || diagnose.Wrong(c)) && m.owned(c) && m.late(m.clock.Stamp(c.Closed()))
}

func (g *gate) Listener(l *timeline.Listener, e *timeline.Entry) {
	if !g.bound(l.Netns, l.Addr) {
		return
	}
	g.engine.Listener(l, e)
	m := (*Machine)(g)
	o := l.Owner()
	if m.o.Show.Events && e.Kind == timeline.EntryListen && m.o.Filter.MatchState(event.StateListen) &&
		m.o.Filter.MatchProcess(o.PID, o.Comm, o.Cgroup) && m.meant(o) && len(m.o.Filter.Codes) == 0 && m.late(m.clock.Stamp(e.At)) {
		m.show(func() error { return m.o.Out.Event(render.NewListen(l, e, m.clock)) })
	}
}

func (g *gate) Incident(in *timeline.Incident) {
	meant := g.tuple(in.Netns, in.Local, in.Remote)
	if in.Kind == timeline.IncidentBindFailed {
		meant = g.bound(in.Netns, in.Local)
	}
	if meant {
		g.engine.Incident(in)
	}
}

func (g *gate) Namespace(ns event.Namespace) { g.engine.Namespace(ns) }

func (g *gate) Tick(now int64, t *timeline.Tracker) { g.engine.Tick(now, t) }

// owned reports whether the filter means the connection's process, state and
// verdicts, which can change while it lives.
func (m *Machine) owned(c *timeline.Conn) bool {
	f := &m.o.Filter
	if !m.meant(c.Owner()) {
		return false
	}
	if len(f.PIDs)+len(f.Comms)+len(f.Cgroups) > 0 {
		o := c.Owner()
		if !f.MatchProcess(o.PID, o.Comm, o.Cgroup) {
			return false
		}
	}
	if len(f.Codes) > 0 && !f.MatchCodes(diagnose.Codes(c)) {
		return false
	}
	return f.MatchState(c.State())
}

// show has something written, unless enough was.
func (m *Machine) show(write func() error) {
	if m.err != nil || m.Done() {
		return
	}
	m.shown++
	m.fail(write())
}

// verdict is the engine's sink.
func (m *Machine) verdict(v *diagnose.Verdict, p diagnose.Phase) {
	if !m.asked(v) {
		return
	}
	key := keyOf(v)
	was := m.growing[key]
	out := &render.Verdict{
		Time: m.clock.Stamp(m.now), First: m.clock.Stamp(v.First), Last: m.clock.Stamp(v.Last),
		Phase: p, Verdict: v, Since: was.count, Early: was.early,
	}
	if !m.late(out.Last) {
		if p == diagnose.PhaseFinal {
			delete(m.growing, key)
		} else {
			m.growing[key] = growth{early: v.Count}
		}
		return
	}
	if was.early != 0 && !was.told && p == diagnose.PhaseGrowing {
		p, out.Phase = diagnose.PhaseNew, diagnose.PhaseNew // nobody was told
	}
	if p == diagnose.PhaseFinal {
		if was.example != nil {
			// By now more is known of it than when the verdict was new.
			out.Example = render.NewConnection(was.example, m.now, m.clock)
		}
		m.counts[v.Code] += v.Count
		delete(m.growing, key)
		if m.finished {
			if len(m.final) < maxFinal && m.o.Show.Verdicts {
				m.final = append(m.final, out)
			}
			return
		}
	} else {
		if was.example == nil && m.o.Show.Verdicts {
			was.example = m.example(v.Examples)
		}
		m.growing[key] = growth{v.Count, true, was.example, was.early}
	}
	if !m.o.Show.Verdicts {
		return
	}
	if p != diagnose.PhaseNew {
		if m.err == nil {
			m.fail(m.o.Out.Verdict(out))
		}
		return
	}
	m.show(func() error {
		if c := m.growing[key].example; c != nil {
			out.Example = render.NewConnection(c, m.now, m.clock)
		}
		return m.o.Out.Verdict(out)
	})
}

// asked reports whether the filter means a verdict.
func (m *Machine) asked(v *diagnose.Verdict) bool {
	f := &m.o.Filter
	if !f.MatchCode(v.Code) || !m.meantVerdict(v) {
		return false
	}
	if len(f.PIDs)+len(f.Comms)+len(f.Cgroups) > 0 {
		if !ofProcess(v, func(p *diagnose.Process) bool { return f.MatchProcess(p.PID, p.Comm, m.cgroups[p.PID]) }) {
			return false
		}
	}
	if len(f.States) > 0 {
		c := m.example(v.Examples)
		return c != nil && f.MatchState(c.State())
	}
	return true
}

// ofProcess reports whether a verdict is of a process that is meant, be it with others.
func ofProcess(v *diagnose.Verdict, meant func(*diagnose.Process) bool) bool {
	return v.Process != nil && meant(v.Process) || slices.ContainsFunc(v.Among, meant)
}

// example finds one of the connections that a verdict names: most often the
// one at hand, else one that ended lately, else one that lives.
func (m *Machine) example(ids []string) *timeline.Conn {
	if len(ids) == 0 {
		return nil
	}
	if m.cur != nil && slices.Contains(ids, m.cur.ID()) {
		return m.cur
	}
	for i := range m.recent {
		c := m.recent[(m.recentPos-1-i+2*len(m.recent))%len(m.recent)]
		if c == nil {
			break
		}
		if slices.Contains(ids, c.ID()) {
			return c
		}
	}
	for c := range m.tracker.Conns() {
		if slices.Contains(ids, c.ID()) {
			return c
		}
	}
	return nil
}

// sortAudit puts audit lines in the order in which they are shown.
func sortAudit(a []render.Audit) {
	slices.SortFunc(a, func(a, b render.Audit) int {
		return cmp.Or(cmp.Compare(a.Netns, b.Netns), cmp.Compare(auditRank(a.Counter), auditRank(b.Counter)))
	})
}
