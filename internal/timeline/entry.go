package timeline

import (
	"time"

	"github.com/tcptrace/tcptrace/tracer/event"
)

// EntryKind names what a timeline entry tells.
type EntryKind uint8

// The names of these kinds (EntryKind.String) are part of the output's
// contract. Where several kinds share a name, their texts differ.
const (
	EntryState               EntryKind = iota // a bare transition, or the state a socket was found in
	EntrySYNSent                              // our SYN went out
	EntrySYNRetransmitted                     // our SYN went out again
	EntrySYNACKRetransmitted                  // our SYN-ACK went out again
	EntryRequestDropped                       // a SYN or a final ACK met a full accept queue
	EntryRequestAborted                       // the half-open request was killed by a segment
	EntryEstablished                          // the handshake completed at this end
	EntryAccepted                             // accept() returned the connection
	EntryConnectFailed                        // connect() came to nothing
	EntryListen                               // listen() was called
	EntryShutdownCalled                       // shutdown() was called
	EntryFINSent                              // this end closed or shut down sending
	EntryFINReceived                          // the peer's FIN arrived
	EntryRSTSent                              // this end reset the connection
	EntryOverflowAnswered                     // a final ACK that met a full accept queue was answered by RST
	EntryRSTReceived                          // the peer reset the connection
	EntryRetransmitted                        // data was sent again
	EntryRTO                                  // the retransmission timer expired
	EntryTimeWait                             // closed at both ends; a minisocket holds TIME_WAIT
	EntryClosed                               // the socket reached CLOSE
	EntryGone                                 // a snapshot no longer found the socket
	EntryExpired                              // no final ACK came until the last SYN-ACK's timer had passed
	EntryForgotten                            // no further SYN came after the dropped one
	EntryKeepaliveProbe                       // the silent peer was asked whether it is there
	EntryZeroWindow                           // the peer's shut window was probed
	EntrySegmentDropped                       // this host dropped a segment
	EntryMemory                               // the kernel killed the socket for want of memory
	entryKinds
)

var entryNames = [entryKinds]string{
	EntryState:               "state",
	EntrySYNSent:             "syn-sent",
	EntrySYNRetransmitted:    "syn-retransmitted",
	EntrySYNACKRetransmitted: "syn-ack-retransmitted",
	EntryRequestDropped:      "request-dropped",
	EntryRequestAborted:      "error",
	EntryEstablished:         "established",
	EntryAccepted:            "accepted",
	EntryConnectFailed:       "connect-failed",
	EntryListen:              "listen",
	EntryShutdownCalled:      "shutdown-called",
	EntryFINSent:             "fin-sent",
	EntryFINReceived:         "fin-received",
	EntryRSTSent:             "rst-sent",
	EntryOverflowAnswered:    "rst-sent",
	EntryRSTReceived:         "rst-received",
	EntryRetransmitted:       "retransmitted",
	EntryRTO:                 "rto",
	EntryTimeWait:            "time-wait",
	EntryClosed:              "closed",
	EntryGone:                "closed",
	EntryExpired:             "dropped",
	EntryForgotten:           "dropped",
	EntryKeepaliveProbe:      "keepalive-probe",
	EntryZeroWindow:          "zero-window",
	EntrySegmentDropped:      "dropped",
	EntryMemory:              "error",
}

// String returns the name used in the output.
func (k EntryKind) String() string {
	if k < entryKinds {
		return entryNames[k]
	}
	return "state"
}

// repeats reports whether entries of this kind fold into one when they come
// in a row, so that a storm does not grow a timeline.
func (k EntryKind) repeats() bool {
	switch k {
	case EntrySYNRetransmitted, EntrySYNACKRetransmitted, EntryRequestDropped, EntryRetransmitted, EntryRTO,
		EntryRSTReceived, EntryOverflowAnswered, EntryShutdownCalled, EntryListen,
		EntryKeepaliveProbe, EntryZeroWindow, EntrySegmentDropped:
		return true
	}
	return false
}

// numbered reports whether repetitions of this kind carry the kernel's own
// number, of which the newest counts.
func (k EntryKind) numbered() bool {
	switch k {
	case EntrySYNACKRetransmitted, EntryRetransmitted, EntryRTO, EntryKeepaliveProbe, EntryZeroWindow:
		return true
	}
	return false
}

// Entry is one line of a timeline. It is 16 bytes, since hundreds of thousands
// of connections keep theirs; [Entry.Text] and [Entry.Detail] spell it out.
type Entry struct {
	At     int64 // CLOCK_BOOTTIME, ns; of the first occurrence where Count > 1
	Arg    uint32
	Count  uint16 // how often it happened in a row, at least 1, saturating
	Kind   EntryKind
	states uint8 // old<<4 | new
}

// What Arg holds. Of kinds that repeat, the low 24 bits are the time from the
// first to the last occurrence: see [packSpan].
const (
	argSpan        = 1<<24 - 1
	argSpanSeconds = 1 << 23

	// EntryClosed, EntryConnectFailed, EntryFINSent, some also EntryState: these
	// bits, an errno in the low 8, and
	// of EntryConnectFailed how often the SYN may be sent again in the next 8,
	// SYN retransmissions in the high 8;
	// of EntryClosed expiries of the retransmission timer in a row in the next
	// 8, probes without an answer in the high 8
	argProcess    = 1 << 16 // a process did it by system call
	argLingerZero = 1 << 17 // SO_LINGER with a timeout of 0
	argNoPort     = 1 << 18 // there was no local port
	argClose      = 1 << 19 // by close(), not shutdown(SHUT_WR)
	argFinWait2   = 1 << 20 // EntryState: a minisocket waits for the peer's FIN
	argFound      = 1 << 21 // EntryState: a snapshot found the socket so
	argGuessed    = 1 << 22 // EntryState with argFinWait2: concluded, not observed
	argExiting    = 1 << 23 // with argProcess: the kernel did it as the process ended

	argMinisocket = 1 << 31 // EntryRSTSent: by the minisocket of an orphan in FIN_WAIT2, else enum sk_rst_reason

	// EntryRequestDropped
	argACK      = 1 << 24 // the final ACK, else the SYN
	argRST      = 1 << 25 // and it was answered by RST
	argInferred = 1 << 26 // concluded from the queue after the fact
	argCookie   = 1 << 27 // the ACK of a SYN cookie
)

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

// Err is the errno of EntryClosed and EntryConnectFailed, 0 for none.
func (e *Entry) Err() uint16 {
	switch e.Kind {
	case EntryClosed, EntryConnectFailed:
		return uint16(e.Arg & 0xff)
	}
	return 0
}

// Probes is how many keepalive or window probes had gone without an answer: of
// EntryKeepaliveProbe and EntryZeroWindow at the newest, which is included; of
// EntryClosed at the end.
func (e *Entry) Probes() int {
	switch e.Kind {
	case EntryKeepaliveProbe, EntryZeroWindow, EntryClosed:
		return int(e.Arg >> 24)
	}
	return 0
}

// Backoff is how often in a row the retransmission timer had expired without
// an answer: of EntryRetransmitted and EntryRTO at the newest, of EntryClosed at
// the end.
func (e *Entry) Backoff() int {
	switch e.Kind {
	case EntryRetransmitted, EntryRTO:
		return int(e.Arg >> 24)
	case EntryClosed:
		return int(e.Arg >> 8 & 0xff)
	}
	return 0
}

// DropReason is enum skb_drop_reason of EntrySegmentDropped, 0 where the
// kernel gives none; see Capabilities.DropReasons for its name.
func (e *Entry) DropReason() uint32 {
	if e.Kind == EntrySegmentDropped {
		return e.Arg >> 24
	}
	return 0
}

// Outbound reports whether the segment of EntrySegmentDropped was on its way
// out.
func (e *Entry) Outbound() bool { return e.Kind == EntrySegmentDropped && e.states&outbound != 0 }

// DroppedSYN reports whether the segment of EntrySegmentDropped wanted to open a
// connection.
func (e *Entry) DroppedSYN() bool { return e.Kind == EntrySegmentDropped && e.states&droppedSYN != 0 }

// These stand where other entries have the old state.
const (
	outbound   = 1 << 4
	droppedSYN = 1 << 5
)

// SYNRetries is how often the SYN of EntryConnectFailed was allowed to be sent
// again, 0 unknown.
func (e *Entry) SYNRetries() int {
	if e.Kind == EntryConnectFailed {
		return int(e.Arg >> 8 & 0xff)
	}
	return 0
}

func (e *Entry) arg(bit uint32, kinds ...EntryKind) bool {
	for _, k := range kinds {
		if e.Kind == k {
			return e.Arg&bit != 0
		}
	}
	return false
}

// ByProcess reports whether a process did it by system call: EntryClosed,
// EntryConnectFailed, EntryFINSent.
func (e *Entry) ByProcess() bool {
	return e.arg(argProcess, EntryClosed, EntryConnectFailed, EntryFINSent)
}

// Exiting reports whether the kernel did in the process's name what ByProcess
// tells, as the process ended or was killed: there was no close().
func (e *Entry) Exiting() bool {
	return e.arg(argExiting, EntryClosed, EntryConnectFailed, EntryFINSent)
}

// LingerZero reports whether the socket of EntryClosed had SO_LINGER with a
// timeout of 0.
func (e *Entry) LingerZero() bool { return e.arg(argLingerZero, EntryClosed) }

// NoPort reports whether EntryConnectFailed is for want of a local port: no
// SYN was sent.
func (e *Entry) NoPort() bool { return e.arg(argNoPort, EntryConnectFailed) }

// SYNRetransmissions is how often the SYN of EntryConnectFailed had been sent
// again.
func (e *Entry) SYNRetransmissions() int {
	if e.Kind == EntryConnectFailed {
		return int(e.Arg >> 24)
	}
	return 0
}

// ByClose reports whether EntryFINSent comes from close(), or from shutdown()
// of both directions.
func (e *Entry) ByClose() bool { return e.arg(argClose, EntryFINSent) }

// DroppedACK reports whether EntryRequestDropped is a final ACK rather than a
// SYN.
func (e *Entry) DroppedACK() bool { return e.arg(argACK, EntryRequestDropped) }

// AnsweredRST reports whether EntryRequestDropped was answered by RST.
func (e *Entry) AnsweredRST() bool { return e.arg(argRST, EntryRequestDropped) }

// Inferred reports whether EntryRequestDropped was concluded from the queue
// after the fact.
func (e *Entry) Inferred() bool { return e.arg(argInferred, EntryRequestDropped) }

// Attempt is the number of the newest EntrySYNACKRetransmitted, as the kernel
// counts: at least Count, unless some were missed.
func (e *Entry) Attempt() int {
	if e.Kind == EntrySYNACKRetransmitted {
		return max(int(e.Arg>>24), int(e.Count))
	}
	return 0
}

// Reason is enum sk_rst_reason of EntryRSTSent, 0 where the kernel names none;
// of EntryRequestAborted the TCP flags of the segment that killed the request,
// 0 unknown; of EntryMemory 1 for too many orphans, 0 for these or want of
// TCP memory.
func (e *Entry) Reason() uint32 {
	if e.Kind == EntryRSTSent || e.Kind == EntryRequestAborted || e.Kind == EntryMemory {
		return e.Arg &^ argMinisocket
	}
	return 0
}

// ByMinisocket reports whether EntryRSTSent answered data that came for an
// orphan in FIN_WAIT2, of which only a minisocket was left.
func (e *Entry) ByMinisocket() bool { return e.arg(argMinisocket, EntryRSTSent) }

// Found reports whether EntryState is how a snapshot found the socket.
func (e *Entry) Found() bool { return e.arg(argFound, EntryState) }

// Until is when the last of the folded occurrences happened: At where there
// was one. Later than 2.3 hours after At it may be told up to a second early.
func (e *Entry) Until() int64 {
	if e.Kind.repeats() {
		return e.At + unpackSpan(e.Arg)
	}
	return e.At
}

const (
	maxEntries   = 64 // of one connection
	spareEntries = 8  // beyond that, for how it ends
)

func (k EntryKind) ends() bool {
	switch k {
	case EntryFINSent, EntryFINReceived, EntryRSTSent, EntryRSTReceived, EntryTimeWait, EntryClosed,
		EntryConnectFailed, EntryGone, EntryExpired, EntryForgotten:
		return true
	}
	return false
}

// put files e into the timeline of c, in time order. It returns the entry as
// it stands there, or nil where there is nothing new: the entry was there
// already, or the timeline is full.
func (c *Conn) put(e Entry) *Entry {
	pos := int(c.n)
	for pos > 0 && c.At(pos-1).At > e.At {
		pos--
	}
	// At one moment, states follow from each other.
	for pos > 0 && e.Old() != e.New() {
		x := c.At(pos - 1)
		if x.At != e.At || x.Old() == x.New() || e.New() != x.Old() || e.Old() == x.New() {
			break
		}
		pos--
	}
	if e.Kind.repeats() {
		if x, known := c.fold(pos, e); known {
			return x
		}
	} else {
		for i := pos - 1; i >= 0 && c.At(i).At == e.At; i-- {
			if x := c.At(i); x.Kind == e.Kind && x.states == e.states && x.Arg == e.Arg {
				return nil
			}
		}
	}
	if int(c.n) >= maxEntries && (!e.Kind.ends() || int(c.n) >= maxEntries+spareEntries) {
		c.flags |= flagTruncated
		return nil
	}
	e.Count = 1
	c.grow(int(c.n) + 1)
	for i := int(c.n); i > pos; i-- {
		*c.At(i) = *c.At(i - 1)
	}
	*c.At(pos) = e
	c.n++
	return c.At(pos)
}

// fold adds e to an entry of its kind beside pos, with nothing but other
// repeating entries between. known is false where there is no such entry.
func (c *Conn) fold(pos int, e Entry) (x *Entry, known bool) {
	same := func(x *Entry) bool {
		if x.Kind != e.Kind || x.states != e.states {
			return false
		}
		return e.Kind.numbered() || x.Arg&^argSpan == e.Arg&^argSpan
	}
	for i := pos - 1; i >= 0 && c.At(i).Kind.repeats(); i-- {
		if same(c.At(i)) {
			x = c.At(i)
			break
		}
	}
	if x == nil && pos < int(c.n) && same(c.At(pos)) { // it came late
		x = c.At(pos)
		span := x.At - e.At + unpackSpan(x.Arg)
		x.At = e.At
		x.Arg = x.Arg&^argSpan | packSpan(span)
	} else if x == nil {
		return nil, false
	} else if x.At == e.At {
		return nil, true // the same twice
	}
	span := packSpan(e.At - x.At)
	if e.Kind.numbered() {
		n := e.Arg >> 24
		if e.Kind == EntrySYNACKRetransmitted && n != 0 && n == x.Arg>>24 {
			return nil, true
		}
		if span >= x.Arg&argSpan { // the newest
			x.Arg = n<<24 | x.Arg&argSpan
		}
	}
	x.Arg = x.Arg&^argSpan | max(span, x.Arg&argSpan)
	if x.Count < 1<<16-1 {
		x.Count++
	}
	return x, true
}

// packSpan keeps a time in 23 bits: of milliseconds where it fits, else of
// seconds, which is enough for 97 days. A longer time never gives less.
func packSpan(ns int64) uint32 {
	if ms := max(ns, 0) / int64(time.Millisecond); ms < argSpanSeconds {
		return uint32(ms)
	}
	return argSpanSeconds | uint32(min(ns/int64(time.Second), argSpanSeconds-1))
}

func unpackSpan(arg uint32) int64 {
	n := int64(arg & argSpan)
	if n < argSpanSeconds {
		return n * int64(time.Millisecond)
	}
	return (n - argSpanSeconds) * int64(time.Second)
}

// grow makes room for n entries.
func (c *Conn) grow(n int) {
	if c.more == nil {
		if n <= inlineEntries {
			return
		}
		more := make([]Entry, 8)
		copy(more, c.inline[:])
		c.more = &more
		return
	}
	if n > len(*c.more) {
		more := make([]Entry, 2*len(*c.more))
		copy(more, *c.more)
		*c.more = more
	}
}
