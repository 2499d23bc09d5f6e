package render

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"net/netip"
	"time"

	"github.com/tcptrace/tcptrace/internal/container"
	"github.com/tcptrace/tcptrace/internal/diagnose"
	"github.com/tcptrace/tcptrace/internal/timeline"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// Renderer writes what was found. Its methods are called from one goroutine,
// Start first and Summary last. Errors are those of the writer beneath and
// final.
type Renderer interface {
	Start(*Start) error
	// Namespace tells the name of a namespace that later values mention.
	Namespace(event.Namespace)
	Event(*Event) error
	Connection(*Connection) error
	Verdict(*Verdict) error
	Lost(*Lost) error
	Summary(*Summary) error
	// Flush hands on what is buffered.
	Flush() error
}

// Stamp is a wall-clock time in nanoseconds since 1970, 0 unknown.
type Stamp int64

// Time converts it, in UTC.
func (s Stamp) Time() time.Time { return time.Unix(0, int64(s)).UTC() }

// MarshalJSON writes RFC 3339 in UTC with nanoseconds, or null.
func (s Stamp) MarshalJSON() ([]byte, error) {
	if s == 0 {
		return []byte("null"), nil
	}
	return []byte(s.Time().Format(`"2006-01-02T15:04:05.000000000Z"`)), nil
}

// Clock turns event times (CLOCK_BOOTTIME) into wall-clock times.
type Clock struct {
	Offset int64 // ns to add
}

// Stamp converts a time; 0 stays 0.
func (c Clock) Stamp(at int64) Stamp {
	if at == 0 {
		return 0
	}
	return Stamp(at + c.Offset)
}

// Start says what is watching.
type Start struct {
	Time       Stamp
	Version    string
	Kernel     string
	Host       string
	Attach     string
	Hooks      []event.Hook
	Unknowable []string
}

// Event is one thing that happened to a connection.
type Event struct {
	Time   Stamp
	Event  string
	Conn   string // the connection's ID; "" for a listener
	Netns  uint32
	Local  netip.AddrPort
	Remote netip.AddrPort // invalid for listeners
	Text   string
	Detail Details
}

// Process is the owner of a connection.
type Process struct {
	PID    uint32 `json:"pid"`
	Comm   string `json:"comm"`
	Source string `json:"source"`
	Cgroup string `json:"cgroup"`
	// Container is what the cgroup's path tells of a container, nil if it is
	// none's.
	Container *container.Container `json:"container,omitempty"`
}

// Entry is one line of a timeline.
type Entry struct {
	At     int64 // CLOCK_BOOTTIME, ns
	Event  string
	Text   string
	Detail Details
}

// Connection is one end of a connection with its timeline.
type Connection struct {
	Time       Stamp
	ID         string
	Netns      uint32
	Role       string
	Local      netip.AddrPort
	Remote     netip.AddrPort
	Listener   netip.AddrPort // invalid: not known or none
	Process    Process
	Opened     Stamp         // 0: before it was first seen
	Closed     Stamp         // 0: it was not seen to close
	Duration   time.Duration // <0 unknown
	State      string
	ClosedBy   string
	Traffic    event.Traffic
	Story      string
	Verdicts   []string
	Incomplete bool
	Well       bool // nothing that its user would call an error
	Timeline   []Entry

	// Peer is the other end of the connection where it is on this host too.
	// The peer's own Peer is nil.
	Peer *Connection
}

// Verdict is a cause as it stands at Time.
type Verdict struct {
	Time        Stamp
	First, Last Stamp
	Phase       diagnose.Phase
	*diagnose.Verdict

	// Since is the count when it was last told of, 0 if it was not.
	Since uint64
	// Early is how much of Count was before the time from which on was asked.
	Early uint64
	// Example is one of the connections; nil if it is not known any more.
	Example *Connection
}

// Lost counts events that never arrived.
type Lost struct {
	Time  Stamp
	Where string
	Count uint64
}

// Audit holds one counter of the kernel against what was seen.
type Audit struct {
	Counter   string `json:"counter"`
	Netns     uint32 `json:"netns"`
	Kernel    uint64 `json:"kernel"`    // how much it grew
	Explained uint64 `json:"explained"` // by events that were seen
	// Exact says that in this way of attaching every increment is seen. Where
	// it is not, Note says why.
	Exact bool   `json:"exact"`
	Note  string `json:"note,omitempty"`
}

// Unexplained is how many increments no event explains, and Excess how many
// events no increment does.
func (a Audit) Unexplained() uint64 { return a.Kernel - min(a.Kernel, a.Explained) }

// Excess is how many events no increment explains.
func (a Audit) Excess() uint64 { return a.Explained - min(a.Kernel, a.Explained) }

// Cost is what the tracer took from the machine.
type Cost struct {
	BPFNanosPerEvent float64 `json:"bpf_ns_per_event"` // kernel time of all programs by events delivered
	BPFCPUPercent    float64 `json:"bpf_cpu_percent"`  // of one processor
	UserCPUPercent   float64 `json:"user_cpu_percent"` // of one processor
	RSSBytes         uint64  `json:"rss_bytes"`
	BPFKnown         bool    `json:"bpf_known"` // the kernel keeps run-time statistics

	// Filtered says that the programs ran for more than the events delivered,
	// so that people are not told of their time by event.
	Filtered bool `json:"-"`
}

// Summary closes the output.
type Summary struct {
	Time        Stamp
	Duration    time.Duration
	Connections uint64
	Events      uint64
	Lost        uint64
	Evicted     uint64 // connections dropped to stay within the bounds
	Verdicts    map[string]uint64
	Final       []*Verdict // the last word on each
	Audit       []Audit
	AuditNotes  []string // what is missing from Audit, and why
	Cost        Cost
}

// Details are named facts in a fixed order.
type Details []timeline.Detail

// MarshalJSON writes an object with the keys in order.
func (d Details) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, f := range d {
		if i > 0 {
			b.WriteByte(',')
		}
		key, err := json.Marshal(f.Key)
		if err != nil {
			return nil, err
		}
		value, err := json.Marshal(f.Value)
		if err != nil {
			return nil, err
		}
		b.Write(key)
		b.WriteByte(':')
		b.Write(value)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// NewEvent shows one entry as it happened.
func NewEvent(c *timeline.Conn, e *timeline.Entry, at int64, clock Clock) *Event {
	return &Event{
		Time: clock.Stamp(at), Event: e.Name(), Conn: c.ID(), Netns: c.Netns(),
		Local: c.Local(), Remote: c.Remote(), Text: e.Text(c), Detail: e.Detail(c),
	}
}

// NewListen shows that listen() was called.
func NewListen(l *timeline.Listener, e *timeline.Entry, clock Clock) *Event {
	v := &Event{Time: clock.Stamp(e.At), Event: e.Name(), Netns: l.Netns, Local: l.Addr, Text: e.Text(nil)}
	if l.BacklogKnown {
		v.Detail = append(v.Detail, timeline.Detail{Key: "backlog_argument", Value: l.Backlog})
		v.Text += fmt.Sprintf(", backlog %d", l.Backlog)
	}
	if l.LimitKnown {
		v.Detail = append(v.Detail, timeline.Detail{Key: "backlog_limit", Value: int64(l.QueueLimit)})
		v.Text += fmt.Sprintf(", accept queue limit %d", l.QueueLimit)
	}
	if o := l.Owner(); o.Known() {
		v.Detail = append(v.Detail, timeline.Detail{Key: "pid", Value: int64(o.PID)}, timeline.Detail{Key: "comm", Value: o.Comm})
		if c := o.Container(); c != nil {
			v.Detail = append(v.Detail, timeline.Detail{Key: "container", Value: c.String()})
		}
		v.Text += ", by " + person(o.PID, o.Comm, o.Container())
	}
	return v
}

// NewConnection shows a connection as it stands, and its peer beside it. now
// is CLOCK_BOOTTIME.
func NewConnection(c *timeline.Conn, now int64, clock Clock) *Connection {
	v := newEnd(c, now, clock)
	if p := c.Peer(); p != nil {
		v.Peer = newEnd(p, now, clock)
	}
	return v
}

func newEnd(c *timeline.Conn, now int64, clock Clock) *Connection {
	owner := c.Owner()
	v := &Connection{
		Time: clock.Stamp(now), ID: c.ID(), Netns: c.Netns(), Role: c.Role().String(),
		Local: c.Local(), Remote: c.Remote(),
		Process: Process{PID: owner.PID, Comm: owner.Comm, Source: owner.Source.String(), Cgroup: owner.Cgroup, Container: owner.Container()},
		Opened:  clock.Stamp(c.Opened()), Closed: clock.Stamp(c.Closed()), Duration: -1,
		State: timeline.StateName(c.State()), ClosedBy: c.Closer().String(), Traffic: c.Traffic(),
		Story: diagnose.Story(c), Verdicts: diagnose.Codes(c), Incomplete: c.Incomplete(), Well: diagnose.Well(c),
		Timeline: make([]Entry, c.Len()),
	}
	if l := c.Listener(); l != nil {
		v.Listener = l.Addr
	}
	if c.Opened() != 0 && c.Closed() >= c.Opened() {
		v.Duration = time.Duration(c.Closed() - c.Opened())
	}
	for i := range v.Timeline {
		e := c.At(i)
		v.Timeline[i] = Entry{At: e.At, Event: e.Name(), Text: e.Text(c), Detail: e.Detail(c)}
	}
	return v
}

// Addr shows an address with its port as spec.md has it; "" if there is none.
func Addr(a netip.AddrPort) string {
	if !a.IsValid() {
		return ""
	}
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()).String()
}

// millis gives milliseconds to the microsecond.
func millis(d time.Duration) float64 {
	return math.Round(float64(d)/1e3) / 1e3
}
