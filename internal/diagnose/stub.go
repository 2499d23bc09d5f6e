package diagnose

import (
	"time"

	"github.com/tcptrace/tcptrace/internal/timeline"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// Options of an [Engine]. The zero value of each field means its default.
type Options struct {
	Capabilities event.Capabilities
	Immediate    time.Duration // a close this soon after accept() is immediate, 50 ms
	CloseWait    time.Duration // CLOSE_WAIT for longer is a leak, 60 s
	Interval     time.Duration // a growing verdict is handed out at most once in this time, 1 s
	MaxVerdicts  int           // kept at a time, 1,024
}

// Stats of an [Engine].
type Stats struct {
	Verdicts map[string]uint64 // count by code, as the closing summary shows them
	Live     int               // verdicts now kept
	Evicted  uint64            // verdicts closed early to stay within the bound
}

// Engine runs the rules. It is a [timeline.Observer]; it and what it hands
// out belong to one goroutine.
type Engine struct{}

// New returns an engine that hands its verdicts to s.
func New(o Options, s Sink) *Engine { return &Engine{} }

func (e *Engine) Entry(c *timeline.Conn, x *timeline.Entry)        {}
func (e *Engine) Changed(c *timeline.Conn)                         {}
func (e *Engine) Ended(c *timeline.Conn)                           {}
func (e *Engine) Listener(l *timeline.Listener, x *timeline.Entry) {}
func (e *Engine) Namespace(ns event.Namespace)                     {}
func (e *Engine) Tick(now int64, t *timeline.Tracker)              {}

// SnapshotWanted returns the network namespaces whose sockets should be looked
// at again before CLOSE_WAIT connections in them are judged, at most each once
// in a while. Call it after Tick; an answer is welcome, not needed.
func (e *Engine) SnapshotWanted() []uint32 { return nil }

// Finish hands out the last word on every verdict, in the order in which they
// first held. Call it after the tracker's Drain.
func (e *Engine) Finish(now int64, t *timeline.Tracker) {}

// Stats returns the counts.
func (e *Engine) Stats() Stats { return Stats{} }

// Codes returns the codes of the verdicts that c is part of, in the order of
// the catalogue.
func Codes(c *timeline.Conn) []string { return nil }

// Story tells in one line what happened to c.
func Story(c *timeline.Conn) string { return "" }

// Well reports whether c went well: no verdict other than informational ones
// and nothing that its user would call an error.
func Well(c *timeline.Conn) bool { return false }

// Catalogue describes every verdict there is a rule for, in a fixed order.
func Catalogue() []Doc { return nil }

var _ timeline.Observer = (*Engine)(nil)
