package timeline

import (
	"iter"

	"github.com/tcptrace/tcptrace/tracer/event"
)

// Tracker turns events into connections.
type Tracker struct{ o Options }

// New returns a tracker without connections.
func New(o Options) *Tracker { return &Tracker{o: o} }

// Handle takes the next event, in arrival order. It keeps nothing of e.
func (t *Tracker) Handle(e *event.Event) {}

// Namespace tells the facts of a network namespace.
func (t *Tracker) Namespace(ns event.Namespace) {}

// Process tells what is known of a process beyond its events.
func (t *Tracker) Process(p event.Process) {}

// SnapshotOwner tells which process holds the socket, as /proc shows it.
func (t *Tracker) SnapshotOwner(sock uint64, pid uint32, comm string) {}

// BeginSnapshot announces the KindSnapshot events of every socket in netns.
func (t *Tracker) BeginSnapshot(netns uint32, now int64) {}

// EndSnapshot ends what BeginSnapshot announced: sockets of netns that were
// known before it and that it did not show are gone.
func (t *Tracker) EndSnapshot(netns uint32, now int64) {}

// Lost tells that events never arrived, as noticed at that time.
func (t *Tracker) Lost(at int64, l event.Lost) {}

// Advance tells that time has come to now: what is due by then is concluded,
// and the observer hears its tick.
func (t *Tracker) Advance(now int64) {}

// Drain delivers the connections that have ended without waiting for their
// grace to pass. Those that still live stay, see Conns.
func (t *Tracker) Drain(now int64) {}

// Conns walks everything that has not ended, least recently active first.
func (t *Tracker) Conns() iter.Seq[*Conn] { return func(func(*Conn) bool) {} }

// Listeners walks the open listening sockets, oldest first.
func (t *Tracker) Listeners() iter.Seq[*Listener] { return func(func(*Listener) bool) {} }

// SnapshotAt is when the newest completed snapshot of netns began, 0 if there
// was none.
func (t *Tracker) SnapshotAt(netns uint32) int64 { return 0 }

// Stats returns the counts.
func (t *Tracker) Stats() Stats { return Stats{} }

type process struct{}

func (p *process) owner(s Source) Owner { return Owner{} }

func (k EntryKind) String() string { return "" }

// Text says what happened in words, for people.
func (e *Entry) Text(c *Conn) string { return "" }

// Detail gives the entry's facts in a fixed order.
func (e *Entry) Detail(c *Conn) []Detail { return nil }

// Closer says who ended the connection: the first FIN or RST decides.
func (c *Conn) Closer() Closer { return CloserUnknown }
