package timeline

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/tcptrace/tcptrace/tracer/event"
)

// process is shared by all connections of one process.
type process struct {
	pid    uint32
	comm   string
	cgroup string
	id     uint64 // cgroup v2 id, 0 unknown
}

func (p *process) owner(s Source) Owner {
	return Owner{PID: p.pid, Comm: p.comm, Cgroup: p.cgroup, CgroupID: p.id, Source: s}
}

type processKey struct {
	pid  uint32
	comm event.Comm
}

// processes interns them. When full it forgets all: those in use live on in
// their connections, and come back on their next event.
type processes struct {
	max   int
	byKey map[processKey]*process
	byPID map[uint32]event.Process
	bytes int // of texts in byPID
}

// maxProcessText bounds what is kept of the processes' names and paths, in
// bytes: hundreds for each of very many.
const maxProcessText = 32 << 20

func textOf(p event.Process) int { return len(p.Comm) + len(p.Cgroup) + len(p.Exe) }

func newProcesses(max int) processes {
	return processes{max: max, byKey: make(map[processKey]*process), byPID: make(map[uint32]event.Process)}
}

func (ps *processes) intern(pid uint32, comm event.Comm, cgroup uint64) *process {
	k := processKey{pid, comm}
	p := ps.byKey[k]
	if p == nil {
		if len(ps.byKey) >= ps.max {
			clear(ps.byKey)
		}
		p = &process{pid: pid, comm: comm.String(), cgroup: ps.byPID[pid].Cgroup}
		ps.byKey[k] = p
	}
	if cgroup != 0 {
		p.id = cgroup
	}
	return p
}

func (ps *processes) learn(q event.Process) {
	if len(ps.byPID) >= ps.max || ps.bytes+textOf(q) > maxProcessText {
		clear(ps.byPID)
		ps.bytes = 0
	}
	ps.bytes += textOf(q) - textOf(ps.byPID[q.PID])
	ps.byPID[q.PID] = q
	var comm event.Comm
	copy(comm[:len(comm)-1], q.Comm)
	if p := ps.byKey[processKey{q.PID, comm}]; p != nil && q.Cgroup != "" {
		p.cgroup = q.Cgroup
	}
}

// Name is how people see the process, "nginx[812]", safe for a terminal.
func (o Owner) Name() string {
	if !o.Known() {
		return "unknown process"
	}
	return Printable(o.Comm) + "[" + strconv.FormatUint(uint64(o.PID), 10) + "]"
}

// Printable makes a name from the traced host safe for a terminal: what does
// not print is escaped as in Go, and control over the line's direction too.
func Printable(s string) string {
	safe := func(r rune) bool { return r != utf8.RuneError && r != '\\' && unicode.IsPrint(r) }
	clean := true
	for _, r := range s {
		if !safe(r) {
			clean = false
			break
		}
	}
	if clean {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		if safe(r) {
			b.WriteRune(r)
		} else {
			for _, c := range []byte(s[i : i+n]) {
				const hex = "0123456789abcdef"
				b.WriteString(`\x`)
				b.WriteByte(hex[c>>4])
				b.WriteByte(hex[c&15])
			}
		}
		i += n
	}
	return b.String()
}
