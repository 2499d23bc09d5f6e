// Package sockets makes an overview of the TCP sockets that exist at one
// moment: listeners with their queues, other sockets in groups, the use of
// local ports towards each destination.
//
// It is pure: sockets come in as values, one at a time, and memory is bounded
// however many there are.
package sockets

import (
	"net/netip"
	"time"

	"github.com/tcptrace/tcptrace/tracer/event"
)

// Role is the side of a connection that a socket is.
type Role uint8

// A server's socket has the address of a listener, or a port that connect()
// would not have chosen; a client's is the reverse.
const (
	RoleUnknown Role = iota
	RoleClient
	RoleServer
	RoleListener
)

func (r Role) String() string {
	return [...]string{"unknown", "client", "server", "listener"}[r]
}

// Hold tells who has a socket.
type Hold uint8

const (
	HoldUnknown Hold = iota // a process that was not found
	HoldProcess
	HoldQueue   // nobody yet: it waits for accept()
	HoldKernel  // nobody any more: closed, the kernel winds it up
	HoldRequest // half-open: there is no socket yet
	holds
)

func (h Hold) String() string {
	return [...]string{"unknown", "process", "accept-queue", "kernel", "request"}[h]
}

// Owner is the process that holds a socket; of a socket in an accept queue,
// the one that holds the listener. A zero PID is unknown.
type Owner struct {
	PID     uint32
	Comm    string // as it is: not necessarily printable
	Cgroup  string
	Holders int // processes that hold the same socket, this one included
}

// Socket is one socket as the kernel showed it.
type Socket struct {
	Time   int64 // CLOCK_BOOTTIME, ns
	Netns  uint32
	State  event.State // never NEW_SYN_RECV, which is told as SYN_RECV
	Local  netip.AddrPort
	Remote netip.AddrPort // invalid for listeners
	Role   Role
	// Listener is where a server's socket came in; invalid if that listener
	// does not exist any more.
	Listener netip.AddrPort
	Hold     Hold
	Owner    Owner
	UID      uint32
	Inode    uint64

	Full    bool           // there is more than addresses and a state
	Traffic event.Traffic  // where Full
	Queue   event.Listener // of listeners
	SYNFull bool           // of listeners: further SYNs find the queue of half-open requests full
	Idle    time.Duration  // since the last segment was received; <0 unknown
	Sent    time.Duration  // since data was last sent; <0 unknown
	Left    time.Duration  // of TIME_WAIT and the like: until it goes; <0 unknown
	// Where Full: the peer's window and ours in bytes, probes that were not
	// answered, expiries of the retransmission timer in a row.
	SendWindow, ReceiveWindow uint32
	Probes, Backoff           uint8

	Keepalive bool // where Full
	// The keepalive timers that apply or would: 0 unknown.
	KeepaliveTime, KeepaliveInterval time.Duration
	KeepaliveProbes                  uint32
}

// ReapedAfter is how long after the last segment keepalive ends a connection
// whose peer is silent, and how long after it one whose peer answers by RST.
// It is false where keepalive is off or does not apply.
func (s *Socket) ReapedAfter() (silent, reset time.Duration, ok bool) {
	if !s.Keepalive || s.KeepaliveTime == 0 || !Watched(s.State) {
		return 0, 0, false
	}
	return s.KeepaliveTime + time.Duration(s.KeepaliveProbes)*s.KeepaliveInterval, s.KeepaliveTime, true
}

// Watched tells in which states keepalive, on or off, makes a difference.
func Watched(st event.State) bool {
	return st == event.StateEstablished || st == event.StateCloseWait || st == event.StateFinWait2
}

// LimitedBy says what set a listener's limit: "backlog argument", "somaxconn",
// or "" if that cannot be told. The limit is min(argument, somaxconn) as they
// were when listen() was called, and the argument is not kept.
func LimitedBy(l event.Listener) string {
	switch {
	case l.Somaxconn == 0 || l.QueueLimit > l.Somaxconn:
		return "" // somaxconn is another one now
	case l.QueueLimit == l.Somaxconn:
		return "somaxconn"
	}
	return "backlog argument"
}

// Full reports whether a listener's accept queue takes no more.
func Full(l event.Listener) bool { return l.QueueLen > l.QueueLimit }

// ListenerNotes says what is wrong with a listener, in sentences.
func ListenerNotes(s *Socket) []string {
	l := s.Queue
	var notes []string
	if Full(l) {
		text := "the accept queue is full: SYNs and final ACKs are dropped"
		if l.AbortOnOverflow {
			text = "the accept queue is full: SYNs are dropped, final ACKs answered by RST"
		}
		notes = append(notes, text)
	}
	if s.SYNFull {
		end := "answered by SYN cookies"
		if l.SYNCookies == 0 {
			end = "dropped"
		}
		notes = append(notes, "the queue of half-open requests is full: further SYNs are "+end)
	}
	return notes
}
