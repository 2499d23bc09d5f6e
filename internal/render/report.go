package render

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/tcptrace/tcptrace/internal/diagnose"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// ReportOptions fit a [Report].
type ReportOptions struct {
	TextOptions
	// Causes says that the causes are asked for, and Rest that connections or
	// events are.
	Causes, Rest bool
	// Several says that several runs are to be told apart by their hosts.
	Several bool
	// Spool keeps connections and events until the causes are written.
	Spool io.ReadWriteSeeker
}

// Report is a renderer for what is over: the causes of all runs come first, the
// worst at the top, then connections, and then the counters. It writes when it
// is closed.
type Report struct {
	o      ReportOptions
	t      *Text
	rest   *Text // writes to the spool
	runs   []*reportRun
	now    *reportRun
	causes []*reportCause
	open   map[verdictKey]*reportCause // of the run at hand
	over   uint64                      // causes beyond the bound
}

type reportRun struct {
	start    *Start
	began    Stamp
	summary  *Summary
	lost     []*Lost
	problems []string
	notes    []string
	names    map[uint32]string
	netns    uint32
	filtered bool
}

// reportCause is a verdict of one of the runs.
type reportCause struct {
	*Verdict
	run *reportRun
}

// maxCauses bounds the causes of a report, maxNames the namespaces whose names
// it knows, and maxWhere the places where events were lost.
const (
	maxCauses = 10_000
	maxNames  = 4096
	maxWhere  = 64
)

// NewReport returns a renderer that writes to w.
func NewReport(w io.Writer, o ReportOptions) *Report {
	r := &Report{o: o, t: NewText(w, o.TextOptions)}
	if o.Rest {
		r.rest = NewText(o.Spool, o.TextOptions)
	}
	return r
}

// Run announces a run, the network namespace of the one who recorded it, and
// whether filters leave some of it out.
func (r *Report) Run(netns uint32, filtered bool) {
	r.now = &reportRun{names: make(map[uint32]string), netns: netns, filtered: filtered}
	r.runs = append(r.runs, r.now)
	r.open = make(map[verdictKey]*reportCause)
	if r.rest != nil {
		r.rest = &Text{o: r.rest.o, out: r.rest.out, err: r.rest.err, name: r.now.names, told: make(map[verdictKey]told)}
		r.rest.o.Netns = netns
	}
}

// Whole tells when what is there of the run at hand begins, what is missing of
// it, and what else is to be said.
func (r *Report) Whole(began Stamp, problems, notes []string) {
	r.now.began, r.now.problems, r.now.notes = began, problems, notes
}

// Start keeps who recorded.
func (r *Report) Start(s *Start) error { r.now.start = s; return nil }

// Namespace keeps a namespace's name.
func (r *Report) Namespace(ns event.Namespace) {
	if ns.Name != "" && len(r.now.names) < maxNames {
		r.now.names[ns.Inode] = ns.Name
	}
}

// header says of which host the following is, if there are several.
func (r *Report) header() {
	if r.o.Several && r.rest.day == "" {
		r.rest.print(r.rest.style(bold, "on "+Safe(r.now.start.Host)) + "\n")
	}
}

// Event writes one line to the spool.
func (r *Report) Event(e *Event) error {
	if r.rest == nil {
		return nil
	}
	r.header()
	return r.rest.Event(e)
}

// Connection writes a connection to the spool.
func (r *Report) Connection(c *Connection) error {
	if r.rest == nil {
		return nil
	}
	r.header()
	return r.rest.Connection(c)
}

// Verdict keeps a verdict as it stands.
func (r *Report) Verdict(v *Verdict) error {
	key := verdictKey{v.Code, v.Key}
	c := r.open[key]
	if c == nil {
		if len(r.causes) >= maxCauses {
			r.over++
			return nil
		}
		c = &reportCause{run: r.now}
		r.causes = append(r.causes, c)
		r.open[key] = c
	}
	was := c.Verdict
	c.Verdict = v
	if was != nil && v.Example == nil {
		v.Example = was.Example
	}
	if v.Phase == diagnose.PhaseFinal {
		delete(r.open, key) // the next one of this name is another one
	}
	return nil
}

// Lost keeps where events were lost.
func (r *Report) Lost(l *Lost) error {
	for _, have := range r.now.lost {
		if have.Where == l.Where {
			have.Count += l.Count
			return nil
		}
	}
	if len(r.now.lost) >= maxWhere {
		l = &Lost{Time: l.Time, Where: "elsewhere", Count: l.Count}
		if last := r.now.lost[len(r.now.lost)-1]; last.Where == l.Where {
			last.Count += l.Count
			return nil
		}
	}
	r.now.lost = append(r.now.lost, &Lost{Time: l.Time, Where: l.Where, Count: l.Count})
	return nil
}

// Summary takes the last word.
func (r *Report) Summary(s *Summary) error {
	r.now.summary = s
	for _, v := range s.Final {
		if err := r.Verdict(v); err != nil {
			return err
		}
	}
	return nil
}

// Flush does nothing before the report is closed.
func (r *Report) Flush() error {
	if r.rest != nil {
		return r.rest.result()
	}
	return nil
}

// Close writes the report.
func (r *Report) Close() error {
	t := r.t
	for _, run := range r.runs {
		r.about(run)
	}
	t.print("\n")
	if r.o.Causes {
		r.writeCauses()
	}
	if r.rest != nil {
		if err := r.unspool(); err != nil {
			return err
		}
	}
	for _, run := range r.runs {
		if run.summary == nil || !r.o.Causes {
			continue
		}
		if r.o.Several {
			t.print(t.style(bold, "on "+Safe(run.start.Host)) + "\n")
		}
		t.name, t.o.Netns = run.names, run.netns
		t.audit(run.summary)
		if c := run.summary.Cost; c != (Cost{}) {
			t.cost(c)
		}
	}
	if r.o.Causes {
		r.unknowable()
	}
	return t.Flush()
}

// unknowable says what could not be known, once of all hosts.
func (r *Report) unknowable() {
	var list []string
	of := make(map[string]int)
	for _, run := range r.runs {
		for _, u := range run.start.Unknowable {
			if of[u]++; of[u] == 1 {
				list = append(list, u)
			}
		}
	}
	for _, u := range list {
		text := Safe(u)
		if n := of[u]; n < len(r.runs) {
			text += fmt.Sprintf(" (%d of %d recordings)", n, len(r.runs))
		}
		r.t.para("  not known  ", dim, text, dim)
	}
}

// about says what a run is, and what is missing of it.
func (r *Report) about(run *reportRun) {
	t, s, sum := r.t, run.start, run.summary
	if sum == nil {
		sum = &Summary{Time: run.began}
	}
	began := time.Unix(0, int64(run.began)).In(t.o.Location)
	ended := time.Unix(0, int64(max(sum.Time, run.began))).In(t.o.Location)
	end := ended.Format("15:04:05 MST")
	if ended.YearDay() != began.YearDay() || ended.Year() != began.Year() {
		end = ended.Format("2006-01-02 15:04:05 MST")
	}
	t.para(Safe(s.Host)+"  ", bold, fmt.Sprintf("%s to %s (%s), Linux %s, %s, recorded by tcptrace %s",
		began.Format("2006-01-02 15:04:05"), end, roughly(ended.Sub(began)), Safe(s.Kernel), Safe(s.Attach), Safe(s.Version)), plain)
	lost, style := "none lost", plain
	if sum.Lost > 0 {
		var where []string
		for _, l := range run.lost {
			where = append(where, Thousands(l.Count)+" "+whereLost(l.Where))
		}
		lost, style = fmt.Sprintf("%s lost (%s): what they touched is marked incomplete", Thousands(sum.Lost), strings.Join(where, ", ")), yellow
	}
	conns := "connections"
	if sum.Connections == 1 {
		conns = "connection"
	}
	t.para("  ", plain, fmt.Sprintf("%s %s, %s events, %s", Thousands(sum.Connections), conns, Thousands(sum.Events), lost), style)
	if sum.Evicted > 0 {
		t.para("  ", plain, Thousands(sum.Evicted)+" connections were dropped to stay within the memory bounds", yellow)
	}
	for _, n := range run.notes {
		t.para("  ", plain, Safe(n), plain)
	}
	for _, p := range run.problems {
		t.para("  not whole: ", yellow, Safe(p), plain)
	}
}

// whereLost names where events were lost.
func whereLost(where string) string {
	switch where {
	case "dump":
		return "not in the dump"
	case "ring":
		return "ring full"
	}
	return Safe(where)
}

// ByHarm compares verdicts, the worst first: by severity, then by confidence,
// then by how many connections or events they are about.
func ByHarm(a, b *Verdict) int {
	return cmp.Or(
		cmp.Compare(a.Severity.Rank(), b.Severity.Rank()),
		cmp.Compare(a.Confidence.Rank(), b.Confidence.Rank()),
		cmp.Compare(b.Count, a.Count),
	)
}

func (r *Report) writeCauses() {
	t := r.t
	if len(r.causes) == 0 {
		none := "No cause for trouble was found"
		filtered := slices.ContainsFunc(r.runs, func(run *reportRun) bool { return run.filtered })
		missing := slices.ContainsFunc(r.runs, func(run *reportRun) bool { return len(run.problems) > 0 || run.summary != nil && run.summary.Lost > 0 })
		switch {
		case filtered && missing:
			none += " in what is there and the filters let through. Not all is there: see above"
		case filtered:
			none += " in what the filters let through"
		case missing:
			none += " in what is there, which is not all: see above"
		}
		t.para("", plain, none+".", bold)
		t.print("\n")
		return
	}
	slices.SortStableFunc(r.causes, func(a, b *reportCause) int { return ByHarm(a.Verdict, b.Verdict) })
	t.print(t.style(bold, "Causes, the worst first") + "\n\n")
	for i, c := range r.causes {
		t.name, t.o.Netns = c.run.names, c.run.netns
		r.cause(i+1, c)
	}
	if r.over > 0 {
		t.para("", plain, fmt.Sprintf("%s more causes are left out: filters tell of fewer", Thousands(r.over)), yellow)
		t.print("\n")
	}
}

func (r *Report) cause(number int, c *reportCause) {
	t, v := r.t, c.Verdict
	const indent = 4
	t.para(fmt.Sprintf("%2d. ", number)+Pad(string(v.Severity), tagWidth)+" ", severityStyle(v.Severity), Safe(v.Story), bold)
	about := []string{Safe(v.Code), t.about(v)}
	if r.o.Several {
		about = append(about, "on "+Safe(c.run.start.Host))
	}
	count := Thousands(v.Count)
	if v.Early > 0 {
		count += fmt.Sprintf(" (%s of them before)", Thousands(v.Early))
	}
	t.pack(indent, append(about, "count "+count+", "+string(v.Confidence), r.span(c)), plain)
	t.pack(indent, facts(v.Evidence), dim)
	if e := v.Example; e != nil {
		items := []string{e.ID, route(e)}
		draw := v.Severity != diagnose.Info && t.draws(e)
		if v.Severity != diagnose.Info && !draw {
			items = append(items, "timeline above")
		}
		t.para("    example ", dim, strings.Join(items, "  "), plain)
		if draw {
			t.timeline(e)
		}
	}
	var others []string
	for _, id := range v.Examples {
		if v.Example == nil || id != v.Example.ID {
			others = append(others, Safe(id))
		}
	}
	switch {
	case len(others) > 0 && v.Example != nil:
		t.para("    more ", dim, strings.Join(others, " "), dim)
	case len(others) > 0:
		t.para("    examples ", dim, strings.Join(others, " "), dim)
	}
	for _, f := range v.Fix {
		t.para("    fix: ", green, Safe(f), plain)
	}
	t.print("\n")
}

// span says when a cause was first and last seen.
func (r *Report) span(c *reportCause) string {
	day := time.Unix(0, int64(r.runs[0].began)).In(r.t.o.Location).Format("2006-01-02")
	show := func(s Stamp) string {
		at := time.Unix(0, int64(s)).In(r.t.o.Location)
		if at.Format("2006-01-02") != day {
			return at.Format("2006-01-02 15:04:05.000")
		}
		return at.Format("15:04:05.000")
	}
	if c.First == c.Last {
		return "at " + show(c.First)
	}
	return show(c.First) + " to " + show(c.Last)
}

// unspool writes the connections and events that were kept.
func (r *Report) unspool() error {
	if err := r.rest.Flush(); err != nil {
		return err
	}
	if _, err := r.o.Spool.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("reading the kept connections: %w", err)
	}
	n, err := bufio.NewReader(r.o.Spool).WriteTo(r.t.out)
	if err != nil {
		return fmt.Errorf("writing the output: %w", err)
	}
	if n == 0 && !r.o.Causes {
		r.t.print("No connection is like that.\n\n")
	}
	return nil
}
