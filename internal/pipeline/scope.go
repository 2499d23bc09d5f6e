package pipeline

import (
	"slices"

	"github.com/tcptrace/tcptrace/internal/diagnose"
	"github.com/tcptrace/tcptrace/internal/timeline"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// Scope tells which processes a live run is about. It is asked by one goroutine.
type Scope interface {
	// Event reports whether the process that did something is meant; the event
	// has FlagProcess.
	Event(e *event.Event) bool
	// Process reports the same of a process that holds a socket.
	Process(p event.Process) bool
	// Tick is called about once a second, also where nothing happens.
	Tick()
}

// members are the processes that a run is about, by what the timeline knows of
// an owner. They are remembered beyond their end, and forgotten when many
// others came since they were last asked for.
type members struct {
	young, old map[member]bool
}

type member struct {
	pid  uint32
	comm string
}

// maxMembers bounds each of the two generations.
const maxMembers = 65536

func newMembers() *members {
	return &members{young: make(map[member]bool), old: make(map[member]bool)}
}

func (m *members) tell(k member, meant bool) {
	if !meant {
		// Its number was a member's once.
		delete(m.young, k)
		delete(m.old, k)
		return
	}
	if len(m.young) >= maxMembers {
		m.young, m.old = make(map[member]bool), m.young
	}
	m.young[k] = true
}

func (m *members) has(k member) bool {
	if m.young[k] {
		return true
	}
	if m.old[k] {
		m.tell(k, true)
		return true
	}
	return false
}

// Member tells whether a process is one of those that the run is about, if it
// is about some only (Options.Scoped). An owner of whom nothing was told is
// none.
func (m *Machine) Member(pid uint32, comm string, meant bool) {
	if m.members != nil {
		m.members.tell(member{pid, comm}, meant)
	}
}

// meant reports whether the run is about a connection of this owner.
func (m *Machine) meant(o timeline.Owner) bool {
	return m.members == nil || o.Known() && m.members.has(member{o.PID, o.Comm})
}

// meantVerdict reports whether the run is about a verdict: that of a process is
// the process's; one without is its connections'.
func (m *Machine) meantVerdict(v *diagnose.Verdict) bool {
	if m.members == nil {
		return true
	}
	if v.Process != nil || v.Among != nil {
		return ofProcess(v, func(p *diagnose.Process) bool { return m.members.has(member{p.PID, p.Comm}) })
	}
	return slices.ContainsFunc(v.Examples, func(id string) bool {
		c := m.example([]string{id})
		return c != nil && m.meant(c.Owner())
	})
}

// connections counts those that the run is about.
func (m *Machine) connections(created uint64) uint64 {
	if m.members == nil {
		return created
	}
	n := m.ours
	for c := range m.tracker.Conns() {
		if m.meant(c.Owner()) {
			n++
		}
	}
	return n
}
