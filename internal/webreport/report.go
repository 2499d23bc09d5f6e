package webreport

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/tcptrace/tcptrace/internal/diagnose"
	"github.com/tcptrace/tcptrace/internal/render"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// DefaultConnections is how many connections a page shows at most unless
// Options says otherwise.
const DefaultConnections = 100_000

// maxVerdicts bounds the causes of a page; maxLost the places where events were
// lost, of a run.
const (
	maxVerdicts = 2048
	maxLost     = 64
	maxRuns     = 1024
	maxNames    = 4096
)

// Options of a [Report].
type Options struct {
	Title string // "" is "TCP report"
	// MaxConnections bounds the table of connections, DefaultConnections where
	// it is 0.
	MaxConnections int
}

// Report collects what a page will show. It belongs to one goroutine. Its
// methods return no error: nothing is written before [Report.Write].
type Report struct {
	o       Options
	runs    []*run
	more    uint64 // runs beyond maxRuns, which count as the last
	hosts   []*hostSeries
	byHost  map[string]*hostSeries
	conns   *store
	listens listeners

	growing     map[verdictKey]*verdict
	done        []*verdict
	order       int
	lessHarmful uint64 // verdicts left out
	raw         bool   // Raw was called: counts come from it
}

var _ render.Renderer = (*Report)(nil)

// run is what is known of one run.
type run struct {
	start   render.Start
	summary *render.Summary
	names   map[uint32]string // of network namespaces
	lost    []render.Lost     // by where
	missing []string          // what of the recording could not be read
	first   render.Stamp      // of what was seen
	last    render.Stamp
	host    *hostSeries
	alive   alive

	// offset is from CLOCK_BOOTTIME to wall-clock time, as newest known.
	offset int64
}

type verdictKey struct {
	run  int
	code string
	key  diagnose.Key
}

type verdict struct {
	*render.Verdict
	run   int
	order int
}

// New returns a report of nothing.
func New(o Options) *Report {
	if o.Title == "" {
		o.Title = "TCP report"
	}
	if o.MaxConnections <= 0 {
		o.MaxConnections = DefaultConnections
	}
	return &Report{
		o:       o,
		byHost:  make(map[string]*hostSeries),
		conns:   newStore(o.MaxConnections),
		listens: listeners{all: make(map[listenerKey]*listener)},
		growing: make(map[verdictKey]*verdict),
	}
}

// Start begins a run.
func (r *Report) Start(s *render.Start) error {
	if len(r.runs) >= maxRuns {
		r.more++
		return nil
	}
	start := *s
	start.Hooks = slices.Clone(s.Hooks)
	start.Unknowable = slices.Clone(s.Unknowable)
	r.runs = append(r.runs, &run{
		start: start,
		names: make(map[uint32]string),
		host:  r.host(s.Host),
		alive: alive{socks: make(map[uint64]struct{})},
	})
	r.run().saw(s.Time)
	return nil
}

// host returns the series of a host; those beyond the bound share one.
func (r *Report) host(name string) *hostSeries {
	name = clean(name)
	if name == "" {
		name = "(unnamed host)"
	}
	if len(r.hosts) >= maxHosts && r.byHost[name] == nil {
		name = "(further hosts)"
	}
	if h := r.byHost[name]; h != nil {
		return h
	}
	h := &hostSeries{name: name, grid: newGrid(maxBuckets, mergeActivity)}
	r.byHost[name] = h
	r.hosts = append(r.hosts, h)
	return h
}

// run is the one at hand. Without Start there is one of which nothing is known.
func (r *Report) run() *run {
	if len(r.runs) == 0 {
		_ = r.Start(&render.Start{})
	}
	return r.runs[len(r.runs)-1]
}

func (r *run) saw(at render.Stamp) {
	if at <= 0 {
		return
	}
	if r.first == 0 || at < r.first {
		r.first = at
	}
	r.last = max(r.last, at)
}

// Namespace keeps a namespace's name.
func (r *Report) Namespace(ns event.Namespace) {
	if names := r.run().names; ns.Name != "" && len(names) < maxNames {
		names[ns.Inode] = clean(ns.Name)
	}
}

// Event does nothing: the page counts the kernel's events, see [Report.Raw].
func (r *Report) Event(*render.Event) error { return nil }

// Raw counts an event of the kernel, and takes from it how full a listener's
// queue was. It keeps nothing of e. Its signature is that of the pipeline's
// option of the same name.
func (r *Report) Raw(e *event.Event, at render.Stamp, _ string) {
	run := r.run()
	r.raw = true
	if at > 0 {
		run.offset = int64(at) - e.Time
	}
	run.saw(at)
	run.host.take(&run.alive, e, int64(at))
	r.listens.take(len(r.runs)-1, e, int64(at))
}

// Connection keeps a connection, within the bounds.
func (r *Report) Connection(c *render.Connection) error {
	r.keep(c)
	run := r.run()
	if isWrong(c) {
		if b := run.host.grid.at(int64(cmp.Or(c.Closed, c.Time))); b != nil {
			b.wrong++
		}
	}
	if r.raw {
		return nil
	}
	// Without the kernel's events these tell of the connections that are shown.
	if b := run.host.grid.at(int64(c.Opened)); b != nil {
		b.opened++
	}
	if b := run.host.grid.at(int64(c.Closed)); b != nil {
		b.closed++
	}
	return nil
}

func (r *Report) keep(c *render.Connection) {
	run := r.run()
	if len(c.Timeline) > 0 && c.Opened > 0 {
		run.offset = int64(c.Opened) - c.Timeline[0].At
	} else if run.offset == 0 && len(c.Timeline) > 0 {
		run.offset = int64(c.Time) - c.Timeline[len(c.Timeline)-1].At
	}
	run.saw(c.Opened)
	run.saw(c.Closed)
	r.conns.add(len(r.runs)-1, c, run.offset)
}

// Verdict keeps a verdict as it stands.
func (r *Report) Verdict(v *render.Verdict) error {
	i := len(r.runs) - 1
	if i < 0 {
		r.run()
		i = 0
	}
	k := verdictKey{i, v.Code, v.Key}
	mine := *v
	if v.Example != nil && r.conns.byKey[key{i, v.Example.ID}] == nil {
		r.conns.pin(key{i, v.Example.ID})
		r.keep(v.Example)
	}
	mine.Example = nil
	for _, id := range v.Examples {
		r.conns.pin(key{i, id})
	}
	r.run().saw(v.First)
	r.run().saw(v.Last)
	have := r.growing[k]
	if have == nil {
		have = &verdict{run: i, order: r.order}
		r.order++
		r.growing[k] = have
	}
	have.Verdict = &mine
	if v.Phase == diagnose.PhaseFinal {
		delete(r.growing, k)
		r.done = append(r.done, have)
	}
	if len(r.done)+len(r.growing) > maxVerdicts {
		r.dropVerdicts()
	}
	return nil
}

// dropVerdicts lets the half that harms least go.
func (r *Report) dropVerdicts() {
	all := r.ranked()
	r.lessHarmful += uint64(len(all) - maxVerdicts/2)
	keep := make(map[*verdict]bool, maxVerdicts/2)
	for _, v := range all[:maxVerdicts/2] {
		keep[v] = true
	}
	r.done = slices.DeleteFunc(r.done, func(v *verdict) bool { return !keep[v] })
	for k, v := range r.growing {
		if !keep[v] {
			delete(r.growing, k)
		}
	}
}

// Lost keeps where events were lost.
func (r *Report) Lost(l *render.Lost) error {
	run := r.run()
	for i := range run.lost {
		if run.lost[i].Where == l.Where || i == maxLost-1 {
			run.lost[i].Count += l.Count
			return nil
		}
	}
	run.lost = append(run.lost, *l)
	return nil
}

// maxProblems bounds what is told of damages, of a run.
const maxProblems = 20

// Problems tells what is missing of the recording of the newest run, a sentence
// each; the page says it at its head.
func (r *Report) Problems(list []string) {
	run := r.run()
	for i, p := range list {
		if len(run.missing) >= maxProblems {
			run.missing = append(run.missing, render.Thousands(uint64(len(list)-i))+" further remarks on this recording are left out.")
			return
		}
		run.missing = append(run.missing, clean(p))
	}
}

// Summary ends a run.
func (r *Report) Summary(s *render.Summary) error {
	run := r.run()
	for _, v := range s.Final {
		last := *v
		last.Phase = diagnose.PhaseFinal
		if err := r.Verdict(&last); err != nil {
			return err
		}
	}
	mine := *s
	mine.Final = nil // kept above
	run.summary = &mine
	run.saw(s.Time)
	run.host.stop(run.last)
	run.alive = alive{socks: make(map[uint64]struct{})}
	return nil
}

// Flush does nothing: see [Report.Write].
func (r *Report) Flush() error { return nil }

// ranked lists the verdicts by harm: severity, then confidence, then count.
func (r *Report) ranked() []*verdict {
	all := slices.Clone(r.done)
	for _, v := range r.growing {
		all = append(all, v)
	}
	slices.SortFunc(all, func(a, b *verdict) int {
		return cmp.Or(
			render.ByHarm(a.Verdict, b.Verdict),
			cmp.Compare(a.First, b.First),
			cmp.Compare(a.order, b.order),
		)
	})
	return all
}

// netns names a network namespace of a run.
func (r *run) netns(inode uint32) string {
	if n := r.names[inode]; n != "" {
		return n
	}
	return ""
}

// duration of a run, as its summary says or from what was seen.
func (r *run) duration() time.Duration {
	if r.summary != nil && r.summary.Duration > 0 {
		return r.summary.Duration
	}
	return time.Duration(r.last - r.first)
}

// about says what a verdict is about.
func (v *verdict) about() (kind, name string) {
	return clean(v.Subject.Kind), clean(v.Subject.Name)
}

// process names the process of a verdict, "" unless it says more than the
// subject does.
func (v *verdict) process() string {
	p := v.Process
	if p == nil {
		return ""
	}
	in := ""
	if p.Container != nil {
		in = p.Container.String()
	}
	s := person(p.PID, p.Comm, in)
	if s == "" || in == "" && strings.Contains(render.Safe(v.Subject.Name), s) {
		return ""
	}
	return s
}
