package pipeline

import (
	"time"

	"github.com/tcptrace/tcptrace/internal/dump"
	"github.com/tcptrace/tcptrace/internal/render"
	"github.com/tcptrace/tcptrace/tracer/event"
)

var _ dump.Feed = (*Machine)(nil)

// both hands everything to the recorder and then to the machine, which may
// correct an event.
type both struct {
	m *Machine
	r Recorder
}

func (b both) Clock(offset int64) {
	b.r.Clock(offset)
	b.m.Clock(offset)
}

func (b both) Namespace(ns event.Namespace) {
	b.r.Namespace(ns)
	b.m.Namespace(ns)
}

func (b both) Process(p event.Process) {
	b.r.Process(p)
	b.m.Process(p)
}

func (b both) Event(e *event.Event) {
	b.r.Event(e)
	b.m.Event(e)
}

func (b both) BeginSnapshot(netns uint32, now int64) {
	b.r.BeginSnapshot(netns, now)
	b.m.BeginSnapshot(netns, now)
}

func (b both) Snapshot(e *event.Event, pid uint32, comm string) {
	b.r.Snapshot(e, pid, comm)
	b.m.Snapshot(e, pid, comm)
}

func (b both) EndSnapshot(netns uint32, now int64) {
	b.r.EndSnapshot(netns, now)
	b.m.EndSnapshot(netns, now)
}

func (b both) Lost(at int64, l event.Lost) {
	b.r.Lost(at, l)
	b.m.Lost(at, l)
}

func (b both) Advance(now int64) {
	b.r.Advance(now)
	b.m.Advance(now)
}

func (b both) Audit(a dump.Audit) { b.r.Audit(a) }

// start is what is said in the beginning of the run that a header is of.
func start(h *dump.Header) *render.Start {
	return &render.Start{
		Time: render.Stamp(h.Started), Version: h.Tool, Kernel: h.Kernel, Host: h.Host,
		Attach: h.Capabilities.Attach, Hooks: h.Capabilities.Hooks, Unknowable: h.Capabilities.Unknowable,
	}
}

// auditOf and summaryOf are what a dump keeps of a summary, and back.
func auditOf(at int64, since time.Duration, lines []render.Audit, notes []string) dump.Audit {
	a := dump.Audit{At: at, Since: since, Notes: notes, Lines: make([]dump.AuditLine, len(lines))}
	for i, l := range lines {
		a.Lines[i] = dump.AuditLine(l)
	}
	return a
}

func endOf(now int64, s render.Summary, err error) dump.End {
	e := dump.End{Reason: dump.EndDone, At: now, Summary: &dump.Summary{
		Duration: s.Duration, Cost: dump.Cost(s.Cost), Audit: auditOf(now, s.Duration, s.Audit, s.AuditNotes),
	}}
	if err != nil {
		e.Reason, e.Text = dump.EndError, err.Error()
	}
	return e
}

func summaryOf(s *dump.Summary) render.Summary {
	out := render.Summary{Duration: s.Duration, Cost: render.Cost(s.Cost), AuditNotes: s.Audit.Notes}
	out.Audit = auditLines(s.Audit)
	return out
}

func auditLines(a dump.Audit) []render.Audit {
	var out []render.Audit
	for _, l := range a.Lines {
		out = append(out, render.Audit(l))
	}
	return out
}
