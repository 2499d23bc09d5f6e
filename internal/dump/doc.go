// Package dump is the format in which a run is kept: everything that it
// learned, in the order in which it learned it, so that it can be gone through
// again. docs/dump-format.md describes the bytes.
//
// An [Encoder] turns a run into frames, [Frame.Append] gives a frame its bytes,
// and a [Reader] hands the run to a [Feed] again. A frame stands alone: a dump
// that was cut off reads to its last whole frame, and one that is damaged
// loses the frames that are. The package knows nothing of files.
package dump

import "github.com/tcptrace/tcptrace/tracer/event"

// Feed takes what a run learns, in the order in which it learns it. Times are
// CLOCK_BOOTTIME in nanoseconds. Events are only valid during the call,
// and a feed may change them.
type Feed interface {
	// Clock tells what must be added to a time to have the wall clock's, in
	// nanoseconds since 1970.
	Clock(offset int64)
	Namespace(ns event.Namespace)
	Process(p event.Process)
	Event(e *event.Event)
	// BeginSnapshot announces all sockets of a network namespace. Without its
	// EndSnapshot nothing can be concluded from what is missing.
	BeginSnapshot(netns uint32, now int64)
	// Snapshot takes one of them and the process that holds it, pid 0 unknown.
	Snapshot(e *event.Event, pid uint32, comm string)
	EndSnapshot(netns uint32, now int64)
	// Lost tells that events never arrived, as noticed at a time.
	Lost(at int64, l event.Lost)
	// Advance tells that all events before now were handed over.
	Advance(now int64)
	// Audit tells how the kernel's counters and the hooks' stand so far.
	Audit(a Audit)
}

// Extension is how the name of a dump usually ends.
const Extension = ".tcpt"
