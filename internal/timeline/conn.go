package timeline

import (
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"strings"
	"time"

	"github.com/tcptrace/tcptrace/tracer/event"
)

// Role is this end's part in the handshake.
type Role uint8

const (
	RoleUnknown Role = iota
	RoleClient
	RoleServer
)

// String returns the name used in the output.
func (r Role) String() string {
	switch r {
	case RoleClient:
		return "client"
	case RoleServer:
		return "server"
	}
	return "unknown"
}

// Closer says who ended a connection: the side whose FIN or RST came first,
// or the kernel where a timer or a full queue did.
type Closer uint8

const (
	CloserUnknown Closer = iota
	CloserLocal
	CloserRemote
	CloserKernel
)

// String returns the name used in the output.
func (c Closer) String() string {
	switch c {
	case CloserLocal:
		return "local"
	case CloserRemote:
		return "remote"
	case CloserKernel:
		return "kernel"
	}
	return "unknown"
}

// Phase tells how far this end of a connection has come.
type Phase uint8

const (
	PhaseAttempt Phase = iota // SYNs were dropped before there was a request
	PhaseRequest              // half-open: a request, no socket yet
	PhaseSocket               // a socket lives
	PhaseEnded                // it reached CLOSE or TIME_WAIT, expired, vanished or was evicted
)

type connFlags uint16

const (
	flagBirth         connFlags = 1 << iota // the event that brought the socket into being was seen
	flagFound                               // a snapshot found it
	flagBefore                              // it existed before its network namespace was known
	flagLost                                // events were lost while it lived
	flagEvicted                             // dropped to stay within the bounds
	flagKeepalive                           // SO_KEEPALIVE is on
	flagKeepaliveSeen                       // flagKeepalive means something
	flagAccepted                            // a process holds it by accept()
	flagDead                                // no process holds it any more
	flagTruncated                           // entries beyond the bound were left out
	flagUncertain                           // the listener is one of several, owner not from it
	flagIndexed                             // in the tuple index
	flagShutRD                              // the application can receive no more
	flagQueued                              // has a deadline in the heap
	flagMissing                             // a snapshot did not show it
	flagPicked                              // there was no local port yet as connect() began
)

// inlineEntries is how many entries fit in Conn itself; most live connections
// have no more.
const inlineEntries = 3

// Conn is one end of a TCP connection on this host, from the first SYN (or
// from when it was first seen) to the end.
//
// It is laid out to stay within 240 bytes, an allocation size class: its
// facts are read through methods.
type Conn struct {
	sock    uint64
	id      uint64
	last    int64 // time of the newest event
	local   [16]byte
	remote  [16]byte
	process *process
	lis     *Listener
	peer    *Conn
	extra   *extra
	// Links of the index by identity, of the index by addresses, and of the
	// list of everything not yet ended, least recently active first.
	nextSock, nextTuple *Conn
	older, newer        *Conn
	more                *[]Entry // all entries, once they are more than fit inline
	inline              [inlineEntries]Entry

	// Of the newest snapshot: when it was, and when the last segment had been
	// received by then.
	snapshot int64
	silent   int64

	bytesSent     uint64
	bytesReceived uint64
	srtt          uint32
	unread        uint32
	unacked       uint32
	netns         uint32
	lport, rport  uint16
	retransmits   uint16
	flags         connFlags
	keepalive     uint8 // index of its timers, 0 unknown
	state         event.State
	packed        uint8 // Phase: bits 0-1, Role: bits 2-3, Source: bits 4-6
	n             uint8 // entries

	// Tag belongs to the observer; the tracker never touches it.
	Tag uint32
}

// extra holds what only connections with a story have.
type extra struct {
	retries    uint8          // of SYN-ACKs that the listener allows, 0 unknown
	facts      event.Listener // of the listener, when it last dropped something of this connection
	full       bool           // its accept queue was full at a retransmission of the SYN-ACK
	closer     *process       // who closed it, where that is not the owner
	progress   int64          // when a snapshot last saw data move in CLOSE_WAIT
	reason     string         // the kernel's name for why it sent the RST
	where      string         // the kernel's function that last dropped a segment
	drop       string         // and why
	shut       bool           // the peer's window was shut, with data waiting, in the newest snapshot
	probes     uint8          // without an answer, in the newest snapshot
	unreadFull bool           // this end's own window was shut then, with data unread
}

// ID identifies the connection in the output: 16 hex digits, the same on a
// replay with the same Options.Key. It gives away no kernel address.
func (c *Conn) ID() string {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], c.id)
	return hex.EncodeToString(b[:])
}

// Netns is the inode number of the network namespace.
func (c *Conn) Netns() uint32 { return c.netns }

// Local is this end's address; its port is 0 while not yet known.
func (c *Conn) Local() netip.AddrPort { return addrPort(c.local, c.lport) }

// Remote is the other end's address.
func (c *Conn) Remote() netip.AddrPort { return addrPort(c.remote, c.rport) }

// Role is this end's part in the handshake.
func (c *Conn) Role() Role { return Role(c.packed >> 2 & 3) }

// Phase tells how far the connection has come.
func (c *Conn) Phase() Phase { return Phase(c.packed & 3) }

// State is the newest state: TIME_WAIT or FIN_WAIT2 where a minisocket goes
// on after the socket, NEW_SYN_RECV in the request phase.
func (c *Conn) State() event.State { return c.state }

// Picked reports whether connect() is known to have picked the local port.
func (c *Conn) Picked() bool { return c.flags&flagPicked != 0 }

// Bound reports whether there was a local port before connect(): of bind(), or
// left from an earlier connect() on the same socket.
func (c *Conn) Bound() bool {
	return c.flags&(flagBirth|flagPicked) == flagBirth && c.Role() == RoleClient
}

// Listener is the listening socket that a server's connection came from, nil
// if not known. With SO_REUSEPORT it may be another one on the same address.
func (c *Conn) Listener() *Listener { return c.lis }

// Owner is the process behind this end.
func (c *Conn) Owner() Owner {
	if c.process == nil {
		return Owner{}
	}
	return c.process.owner(c.source())
}

// ClosedBy is the process that closed or shut down this end, where one did.
// Its Source is SourceClose.
func (c *Conn) ClosedBy() Owner {
	if p := c.closer(); p != nil {
		return p.owner(SourceClose)
	}
	return Owner{}
}

func (c *Conn) closer() *process {
	if c.extra != nil && c.extra.closer != nil {
		return c.extra.closer
	}
	for i := 0; i < int(c.n) && c.process != nil; i++ {
		if c.At(i).ByProcess() {
			return c.process
		}
	}
	return nil
}

// Accepted reports whether accept() is known to have returned the connection.
func (c *Conn) Accepted() bool { return c.flags&flagAccepted != 0 }

// Opened is when the connection began: its first SYN or, at a server, the
// first that was seen of the handshake. 0 if it existed before.
func (c *Conn) Opened() int64 {
	if c.flags&flagBirth == 0 || c.n == 0 {
		return 0
	}
	return c.At(0).At
}

// Seen is when the first event of the connection was seen.
func (c *Conn) Seen() int64 {
	if c.n == 0 {
		return c.last
	}
	return c.At(0).At
}

// Last is the time of the newest event.
func (c *Conn) Last() int64 { return c.last }

// Closed is when the socket reached CLOSE or its minisocket TIME_WAIT, 0
// while that has not been seen.
func (c *Conn) Closed() int64 {
	for i := 0; i < int(c.n); i++ {
		switch e := c.At(i); e.Kind {
		case EntryClosed, EntryTimeWait, EntryConnectFailed, EntryExpired:
			return e.At
		case EntryState:
			if e.Arg&argFinWait2 != 0 {
				return e.At
			}
		}
	}
	return 0
}

// Traffic is the newest that is known; Unread and Unacked are those at the
// close once it was closed.
func (c *Conn) Traffic() event.Traffic {
	return event.Traffic{
		BytesSent:     c.bytesSent,
		BytesReceived: c.bytesReceived,
		SRTT:          c.srtt,
		Retransmits:   uint32(c.retransmits),
		Unread:        c.unread,
		Unacked:       c.unacked,
	}
}

// Keepalive reports whether SO_KEEPALIVE is on, and whether that is known.
func (c *Conn) Keepalive() (on, known bool) {
	return c.flags&flagKeepalive != 0, c.flags&flagKeepaliveSeen != 0
}

// ResetReason is the kernel's name for why this end sent a RST, such as
// "TCP_ABORT_ON_CLOSE"; "" where the kernel gives none or none was sent.
func (c *Conn) ResetReason() string {
	if c.extra == nil {
		return ""
	}
	return c.extra.reason
}

// Reset is the first RST that this end sent for the connection, nil if none. In
// SYN_SENT it answers segments of another one with the same addresses.
func (c *Conn) Reset() *Entry {
	for i := 0; i < int(c.n); i++ {
		if e := c.At(i); e.Kind == EntryRSTSent && e.New() != event.StateSynSent {
			return e
		}
	}
	return nil
}

// FastClosed reports whether MPTCP aborted its subflow (fastclose): by a RST while
// it was still open, which TCP's close() never sends. The kernel gives
// TCP_ABORT_ON_CLOSE as its reason then, whatever it was for.
func (c *Conn) FastClosed() bool {
	e := c.Reset()
	return e != nil && e.Old() != event.StateClose && strings.HasSuffix(c.ResetReason(), "ABORT_ON_CLOSE")
}

// DropWhere is the kernel's function that last dropped a segment of the
// connection, "" unknown.
func (c *Conn) DropWhere() string {
	if c.extra == nil {
		return ""
	}
	return c.extra.where
}

// DropReasonName is the kernel's name for why it dropped the segment of e, such
// as "NETFILTER_DROP"; "" where it gives none.
func (c *Conn) DropReasonName(e *Entry) string {
	if c.extra == nil || e.Kind != EntrySegmentDropped || e.DropReason() == 0 {
		return ""
	}
	return c.extra.drop
}

// SnapshotAt is when a snapshot last showed the connection, 0 if none did.
func (c *Conn) SnapshotAt() int64 { return c.snapshot }

// SilentSince is when the last segment had been received as the newest
// snapshot showed the connection. ok is false where none did, or did not say.
func (c *Conn) SilentSince() (at int64, ok bool) { return c.silent, c.silent != 0 }

// Window tells whether the peer's receive window was shut, with data waiting
// here, when a snapshot last showed the connection, and how many probes had
// gone without an answer (keepalive probes too).
func (c *Conn) Window() (shut bool, probes int) {
	if c.extra == nil {
		return false, 0
	}
	return c.extra.shut, int(c.extra.probes)
}

// OwnWindowShut tells whether this end's own receive window was shut, with data
// that nobody had read, when a snapshot last showed the connection.
func (c *Conn) OwnWindowShut() bool { return c.extra != nil && c.extra.unreadFull }

// Facts are those of the listener when its full accept queue last made it drop
// something of this connection; the zero value if it never did.
func (c *Conn) Facts() event.Listener {
	if c.extra == nil {
		return event.Listener{}
	}
	return c.extra.facts
}

// SYNACKRetries is how often the listener sends a SYN-ACK again, as it was at
// the last one; 0 unknown.
func (c *Conn) SYNACKRetries() int {
	if c.extra == nil {
		return 0
	}
	return int(c.extra.retries)
}

// QueueWasFull reports whether the listener's accept queue was full when a
// SYN-ACK was retransmitted: a final ACK may have been dropped then.
func (c *Conn) QueueWasFull() bool { return c.extra != nil && c.extra.full }

// Before reports whether the connection existed before tracing began.
func (c *Conn) Before() bool { return c.flags&(flagBefore|flagBirth) == flagBefore }

// Orphan reports whether no process holds the socket any more.
func (c *Conn) Orphan() bool { return c.flags&flagDead != 0 }

// ReceiveShut reports whether the application can receive no more.
func (c *Conn) ReceiveShut() bool { return c.flags&flagShutRD != 0 }

// Evicted reports whether the connection was dropped to stay within the
// bounds, not because it ended.
func (c *Conn) Evicted() bool { return c.flags&flagEvicted != 0 }

// Truncated reports whether entries were left out to stay within the bounds.
func (c *Conn) Truncated() bool { return c.flags&flagTruncated != 0 }

// Incomplete reports whether part of the timeline is known to be missing:
// events were lost while it lived, its beginning or end was missed, or it was
// evicted. Nothing may be concluded from the absence of an entry then.
func (c *Conn) Incomplete() bool {
	if c.flags&(flagLost|flagEvicted) != 0 || c.Find(EntryGone) != nil && c.Closed() == 0 {
		return true
	}
	return c.flags&(flagBirth|flagBefore) == 0 && c.Phase() >= PhaseSocket && c.sock != 0
}

// Peer is the other end of the connection where it is on this host too.
func (c *Conn) Peer() *Conn { return c.peer }

// Len is the number of entries.
func (c *Conn) Len() int { return int(c.n) }

// At returns the i-th entry in time order. It must not be changed, and does
// not stay valid beyond the next event.
func (c *Conn) At(i int) *Entry {
	if c.more != nil {
		return &(*c.more)[i]
	}
	return &c.inline[i]
}

// Entries returns a copy of the timeline, in time order.
func (c *Conn) Entries() []Entry {
	out := make([]Entry, c.n)
	for i := range out {
		out[i] = *c.At(i)
	}
	return out
}

// Find returns the first entry of one of the kinds, or nil.
func (c *Conn) Find(kinds ...EntryKind) *Entry {
	for i := 0; i < int(c.n); i++ {
		e := c.At(i)
		for _, k := range kinds {
			if e.Kind == k {
				return e
			}
		}
	}
	return nil
}

// Total is how often entries of this kind happened, repetitions included.
func (c *Conn) Total(kind EntryKind) int {
	total := 0
	for i := 0; i < int(c.n); i++ {
		if e := c.At(i); e.Kind == kind {
			total += int(e.Count)
		}
	}
	return total
}

// CloseWaitSince is when the peer's FIN arrived, of a connection in
// CLOSE_WAIT. Where it was found in that state, it is the latest time
// possible (exact is false): the FIN came no later than the last segment.
func (c *Conn) CloseWaitSince() (at int64, exact bool) {
	for i := int(c.n) - 1; i >= 0; i-- {
		e := c.At(i)
		if e.Kind == EntryFINReceived {
			return e.At, true
		}
		if e.Kind == EntryState && e.New() == event.StateCloseWait {
			return e.At, false
		}
	}
	return 0, false
}

// Progress is when a snapshot last saw data move on a connection in
// CLOSE_WAIT, 0 if none did.
func (c *Conn) Progress() int64 {
	if c.extra == nil {
		return 0
	}
	return c.extra.progress
}

// Closer says who ended the connection: the first FIN or RST decides, or the
// kernel's own end of it.
func (c *Conn) Closer() Closer {
	for i := 0; i < int(c.n); i++ {
		switch e := c.At(i); e.Kind {
		case EntryFINSent:
			return CloserLocal
		case EntryFINReceived:
			return CloserRemote
		case EntryState:
			if e.Found() {
				switch e.New() {
				case event.StateCloseWait, event.StateLastAck:
					return CloserRemote
				case event.StateFinWait1, event.StateFinWait2:
					return CloserLocal
				}
			}
		case EntryRSTReceived:
			if c.dataAfterClose(i) {
				return CloserLocal
			}
			return CloserRemote
		case EntryRSTSent:
			if e.New() == event.StateSynSent {
				continue // to another connection's segment: see Reset
			}
			if x := c.Find(EntryClosed); x != nil && x.Err() == errTimedOut {
				return CloserKernel // keepalive gave up
			}
			return CloserLocal
		case EntryRequestDropped:
			if e.AnsweredRST() {
				return CloserKernel
			}
		case EntryOverflowAnswered, EntryExpired, EntryForgotten:
			return CloserKernel
		case EntryRequestAborted:
			return CloserRemote
		case EntryConnectFailed, EntryClosed:
			switch e.Err() {
			case errConnReset, errPipe, errConnRefused:
				return CloserRemote
			case 0, errConnAborted:
				if e.ByProcess() || e.Err() != 0 {
					return CloserLocal
				}
			default:
				return CloserKernel
			}
		}
	}
	return CloserUnknown
}

// DataAfterClose reports whether the connection ended because data arrived
// after this end's close(): the kernel drops the socket and answers by RST. It
// may do so through its path for a received RST, of which there was none then.
func (c *Conn) DataAfterClose() bool {
	closed := false
	for i := 0; i < int(c.n); i++ {
		if c.At(i).ByMinisocket() {
			return true
		}
	}
	if n := c.ResetReason(); n != "" && !strings.HasSuffix(n, "ABORT_ON_DATA") || c.ClosedUnread() || c.LingerReset() {
		return false
	}
	for i := 0; i < int(c.n); i++ {
		switch e := c.At(i); e.Kind {
		case EntryFINSent:
			closed = closed || e.ByClose() || !e.ByProcess()
		case EntryRSTReceived:
			if closed && c.answeredByRST(i) || c.dataAfterClose(i) {
				return true
			}
		case EntryClosed:
			// After shutdown() of sending alone, close() itself leaves no entry. A
			// RST that was received is never answered by another.
			surely := c.ResetReason() != "" || e.Err() == errConnReset || e.Err() == errPipe
			if (closed || surely) && c.answeredByRST(i) {
				return true
			}
		}
	}
	return false
}

// ClosedUnread reports whether this end closed after its shutdown() with data
// unread, which the kernel answers by RST. Data that comes after close() is never
// unread: it is not taken in.
func (c *Conn) ClosedUnread() bool {
	for i := 0; i < int(c.n); i++ {
		e := c.At(i)
		if e.Kind != EntryClosed || e.Err() != 0 || !c.answeredByRST(i) {
			continue
		}
		switch e.Old() {
		case event.StateFinWait1, event.StateFinWait2, event.StateClosing, event.StateLastAck:
			reason := c.ResetReason()
			return strings.HasSuffix(reason, "ABORT_ON_CLOSE") || reason == "" && c.Traffic().Unread > 0
		}
	}
	return false
}

// LingerReset reports whether this end closed by SO_LINGER with a timeout of 0
// after its shutdown(), which the kernel answers by RST. A socket with that option
// never outlives its close(): what comes after cannot be what ended it.
func (c *Conn) LingerReset() bool {
	for i := 0; i < int(c.n); i++ {
		e := c.At(i)
		if e.Kind != EntryClosed || e.Err() != 0 || !e.LingerZero() || !c.answeredByRST(i) {
			continue
		}
		switch e.Old() {
		case event.StateFinWait1, event.StateFinWait2, event.StateClosing, event.StateLastAck:
			return !c.ClosedUnread()
		}
	}
	return false
}

// dataAfterClose reports whether the RST "received" at i is the kernel's own.
func (c *Conn) dataAfterClose(i int) bool {
	switch c.At(i).New() {
	case event.StateFinWait1, event.StateFinWait2, event.StateClosing, event.StateLastAck:
		return c.answeredByRST(i)
	}
	return false
}

// answeredByRST reports whether this end sent a RST at once after entry i,
// which ended a connection that it had closed before.
func (c *Conn) answeredByRST(i int) bool {
	e := c.At(i)
	if e.Kind == EntryClosed && (e.Old() == event.StateEstablished || e.Old() == event.StateCloseWait || e.Err() == errTimedOut) {
		return false
	}
	for j := i + 1; j < int(c.n); j++ {
		if x := c.At(j); x.Kind == EntryRSTSent {
			return x.At-e.At < atOnce
		}
	}
	return false
}

// atOnce is how far apart entries are that tell of one thing, ns.
const atOnce = int64(10 * time.Millisecond)

func (c *Conn) ext() *extra {
	if c.extra == nil {
		c.extra = new(extra)
	}
	return c.extra
}

func (c *Conn) source() Source { return Source(c.packed >> 4) }

func (c *Conn) setPhase(p Phase)   { c.packed = c.packed&^0x03 | uint8(p) }
func (c *Conn) setRole(r Role)     { c.packed = c.packed&^0x0c | uint8(r)<<2 }
func (c *Conn) setSource(s Source) { c.packed = c.packed&^0xf0 | uint8(s)<<4 }

func addrPort(a [16]byte, port uint16) netip.AddrPort {
	addr := netip.AddrFrom16(a)
	if a == [16]byte{} && port == 0 {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(addr.Unmap(), port)
}
