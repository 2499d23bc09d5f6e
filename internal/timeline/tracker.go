package timeline

import (
	"time"

	"github.com/tcptrace/tcptrace/tracer/event"
)

// Options of a [Tracker]. The zero value of each field means its default.
type Options struct {
	Capabilities event.Capabilities
	Observer     Observer // nil: nobody is told

	// Key makes connection IDs that cannot be traced back to what they are
	// made of: random for each recording, and the recording's on a replay.
	Key [16]byte

	MaxConnections int           // everything tracked, 1,000,000
	MaxRequests    int           // of these half-open or merely attempted, 65,536
	MaxListeners   int           // 16,384
	MaxProcesses   int           // 65,536
	Grace          time.Duration // wait after the end for late events and the peer, 200 ms
}

// Stats of a [Tracker]: totals since New, except where said otherwise.
type Stats struct {
	Events      uint64 // handled
	Connections uint64 // created
	Live        int    // now: not yet ended
	Requests    int    // now: of these without a socket
	Listeners   int    // now
	Evicted     uint64 // connections dropped to stay within the bounds
	Truncated   uint64 // entries left out to stay within the bounds
	Late        uint64 // events of connections that had been delivered already
	Gone        uint64 // connections whose end was missed, found out by a snapshot
	Lost        uint64 // events reported lost
}
