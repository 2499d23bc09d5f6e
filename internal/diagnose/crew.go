package diagnose

import (
	"fmt"
	"slices"
	"strconv"

	"github.com/tcptrace/tcptrace/internal/timeline"
)

// crewKey is a key about processes of one name rather than about one process:
// a loop in a shell runs a new one each time, and has one trouble. Where the
// user asked for some processes only, these are kept apart from others.
//
// Namespaces that end soon can have one number, one after the other: processes
// of one that is not known to be there have nothing in common but that.
func (x *Engine) crewKey(netns uint32, o timeline.Owner) Key {
	k := Key{Netns: netns, Comm: o.Comm, Other: x.o.Mine != nil && !x.o.Mine(o), Again: x.again[netns]}
	if !x.netns[netns].Known {
		k.PID = o.PID
	}
	return k
}

// crew are processes of one name that a finding is about.
type crew struct {
	last timeline.Owner
	pids []uint32 // the newest, oldest first
	seen map[uint32]struct{}
	more bool // seen is full
}

const (
	maxCrew = 256
	crewPID = 8 // of these named
)

func (w *crew) add(o timeline.Owner) {
	if !o.Known() {
		return
	}
	w.last = o
	if n := len(w.pids); n > 0 && w.pids[n-1] == o.PID {
		return
	}
	if i := slices.Index(w.pids, o.PID); i >= 0 {
		w.pids = slices.Delete(w.pids, i, i+1)
	} else if len(w.pids) >= crewPID {
		w.pids = slices.Delete(w.pids, 0, 1)
	}
	w.pids = append(w.pids, o.PID)
	if _, ok := w.seen[o.PID]; ok {
		return
	}
	if len(w.seen) >= maxCrew {
		w.more = true
		return
	}
	if w.seen == nil {
		w.seen = make(map[uint32]struct{})
	}
	w.seen[o.PID] = struct{}{}
}

// name is that of the latest process, and how many others there were.
func (w *crew) name() string {
	s := w.last.Name()
	switch n := len(w.seen) - 1; {
	case w.more:
		s += fmt.Sprintf(" and more than %d others", n)
	case n == 1:
		s += " and another"
	case n > 1:
		s += fmt.Sprintf(" and %d others", n)
	}
	return s
}

// facts say which processes there were.
func (w *crew) facts() Evidence {
	if len(w.seen) == 0 {
		const unknown = "no process is known"
		return Evidence{{Key: "processes", Note: unknown}, {Key: "pids", Note: unknown}}
	}
	n := Fact{Key: "processes", Value: int64(len(w.seen))}
	if w.more {
		n.Note = "at least"
	}
	list := make([]string, 0, len(w.pids))
	for _, pid := range w.pids {
		list = append(list, strconv.FormatUint(uint64(pid), 10))
	}
	pids := Fact{Key: "pids", Value: list}
	if len(w.seen) > len(w.pids) {
		pids.Note = "the newest"
	}
	return Evidence{n, pids}
}

// docCrew are the evidence keys of facts.
var docCrew = []DocKey{
	{"processes", "count", "how many processes of this name there were; the one that is named is the latest"},
	{"pids", "", "theirs, of the newest eight"},
}

const docCrewMeaning = `Processes of one name count together: a loop in a shell starts a new one each time. Not those of different network namespaces, nor of one that was not found.`

// doors are the listening sockets that a finding about one address is of: several
// at a time (SO_REUSEPORT), or one after the other.
type doors struct {
	all  []*timeline.Listener // the newest last
	more bool                 // than are kept
}

const maxDoors = 64

func (d *doors) add(l *timeline.Listener) {
	n := len(d.all)
	if n > 0 && d.all[n-1] == l {
		return
	}
	if i := slices.Index(d.all, l); i >= 0 {
		d.all = slices.Delete(d.all, i, i+1)
	} else if n >= maxDoors {
		d.all, d.more = slices.Delete(d.all, 0, 1), true
	}
	d.all = append(d.all, l)
}

// owners are those whose the sockets are, as is known by now: of one, that can
// change, which makes it no other one.
func (d *doors) owners() *crew {
	w := new(crew)
	for _, l := range d.all {
		w.add(l.Owner())
	}
	w.more = d.more && len(w.seen) > 1
	return w
}

// processes are the same, each once, those of the newest last.
func (d *doors) processes() []*Process {
	var list []*Process
	for _, l := range d.all {
		p := process(l.Owner())
		if p != nil && !slices.ContainsFunc(list, func(q *Process) bool { return q.PID == p.PID && q.Comm == p.Comm }) {
			list = append(list, p)
		}
	}
	return list
}

// share has a verdict be of all of them where they are several, with the limit of the
// newest one's queue, and returns their names, "" if it is one's alone.
func (d *doors) share(v *Verdict, limit *Fact) string {
	owners := d.owners()
	if len(owners.seen) < 2 {
		return ""
	}
	v.Process, v.Among = nil, d.processes()
	limit.Note = "of the newest listener"
	return owners.name()
}
