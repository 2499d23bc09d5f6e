package timeline

import "github.com/tcptrace/tcptrace/tracer/event"

// Observer is told what the tracker learns, in the order in which it learns
// it. The pointers stay valid as long as the observer keeps them, but what
// they show changes with later events.
type Observer interface {
	// Entry reports that something happened on c. e is the entry as it now
	// stands in the timeline of c: where a repetition was folded into an
	// earlier entry, that entry with its new Count. It must not be kept.
	Entry(c *Conn, e *Entry)
	// Changed reports that a snapshot or the process table taught something
	// about c (its owner, listener or traffic) without anything happening.
	Changed(c *Conn)
	// Ended reports, once for each connection, that nothing more is expected
	// of it. See [Conn.Incomplete] and [Conn.Evicted].
	Ended(c *Conn)
	// Listener reports that something happened on a listening socket:
	// EntryListen, or EntryState when it was found, opened or closed.
	Listener(l *Listener, e *Entry)
	// Incident reports what belongs to no connection. It must not be kept.
	Incident(in *Incident)
	// Namespace passes on the facts of a network namespace.
	Namespace(ns event.Namespace)
	// Tick reports that time has come to now, after everything due by then
	// was concluded.
	Tick(now int64, t *Tracker)
}

// Observers tells several observers, in order.
type Observers []Observer

func (o Observers) Entry(c *Conn, e *Entry) {
	for _, x := range o {
		x.Entry(c, e)
	}
}

func (o Observers) Changed(c *Conn) {
	for _, x := range o {
		x.Changed(c)
	}
}

func (o Observers) Ended(c *Conn) {
	for _, x := range o {
		x.Ended(c)
	}
}

func (o Observers) Listener(l *Listener, e *Entry) {
	for _, x := range o {
		x.Listener(l, e)
	}
}

func (o Observers) Incident(in *Incident) {
	for _, x := range o {
		x.Incident(in)
	}
}

func (o Observers) Namespace(ns event.Namespace) {
	for _, x := range o {
		x.Namespace(ns)
	}
}

func (o Observers) Tick(now int64, t *Tracker) {
	for _, x := range o {
		x.Tick(now, t)
	}
}
