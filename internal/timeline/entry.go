package timeline

import (
	"time"

	"github.com/tcptrace/tcptrace/tracer/event"
)

// EntryKind names what a timeline entry tells.
type EntryKind uint8

// The names of these kinds (EntryKind.String) are part of the output's
// contract.
const (
	EntryState               EntryKind = iota // a bare transition, or the state a socket was found in
	EntrySYNSent                              // our SYN went out
	EntrySYNRetransmitted                     // our SYN went out again
	EntrySYNACKRetransmitted                  // our SYN-ACK went out again
	EntryRequestDropped                       // a SYN or a final ACK met a full accept queue
	EntryRequestAborted                       // the half-open request was killed by a segment ("error")
	EntryEstablished                          // the handshake completed at this end
	EntryAccepted                             // accept() returned the connection
	EntryConnectFailed                        // connect() came to nothing
	EntryListen                               // listen() was called
	EntryShutdownCalled                       // shutdown() was called
	EntryFINSent                              // this end closed or shut down sending
	EntryFINReceived                          // the peer's FIN arrived
	EntryRSTSent                              // this end reset the connection
	EntryRSTReceived                          // the peer reset the connection
	EntryRetransmitted                        // data was sent again
	EntryRTO                                  // the retransmission timer expired
	EntryTimeWait                             // closed at both ends; a minisocket holds TIME_WAIT
	EntryClosed                               // the socket reached CLOSE
	EntryGone                                 // a snapshot no longer found the socket ("closed")
	EntryQueueFullAnswered                    // a final ACK that met a full accept queue was answered by RST ("rst-sent")
	EntryHandshakeExpired                     // the last SYN-ACK went unanswered until its timer passed ("dropped")
	EntryAttemptForgotten                     // no more SYNs came after the dropped one ("dropped")
	entryKinds
)

// Entry is one line of a timeline. It is 16 bytes, since hundreds of thousands
// of connections keep theirs; [Entry.Text] and [Entry.Detail] spell it out.
type Entry struct {
	At     int64 // CLOCK_BOOTTIME, ns; of the first occurrence where Count > 1
	Arg    uint32
	Count  uint16 // how often it happened in a row, at least 1, saturating
	Kind   EntryKind
	states uint8 // old<<4 | new
}

// Old is the state before the entry.
func (e *Entry) Old() event.State { return event.State(e.states >> 4) }

// New is the state after the entry.
func (e *Entry) New() event.State { return event.State(e.states & 15) }

// Detail is one named fact of an entry, for machines. Value is a string, a
// bool, an int64, a uint64 or a float64.
type Detail struct {
	Key   string
	Value any
}

// Name is the entry's name in the output, one of spec's timeline event names.
func (e *Entry) Name() string { return e.Kind.String() }

// Since is the time from a to this entry.
func (e *Entry) Since(a *Entry) time.Duration { return time.Duration(e.At - a.At) }
