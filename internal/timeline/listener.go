package timeline

import (
	"net/netip"
)

// Listener is a listening socket.
type Listener struct {
	ID    uint64 // identity of the socket, 0 unknown
	Netns uint32
	Addr  netip.AddrPort // as bound: a wildcard address stays one
	Exact bool           // Addr is as bound, not merely where a SYN was sent to

	Opened int64 // 0: it existed before, or not seen
	Closed int64 // 0: still open

	// The queue's limit and what it was made of, as far as seen.
	Backlog      int64 // the raw argument of listen(); meaningless unless BacklogKnown
	BacklogKnown bool
	QueueLimit   uint32 // min(argument, somaxconn); meaningless unless LimitKnown
	LimitKnown   bool
	QueueLen     uint32 // at the newest event
	Somaxconn    uint32 // of its namespace at the newest event, 0 unknown
	Abort        bool   // tcp_abort_on_overflow
	Shared       bool   // one of several on this address (SO_REUSEPORT)

	process *process
	source  Source
}

// Owner is the process that opened or holds the listening socket.
func (l *Listener) Owner() Owner {
	if l.process == nil {
		return Owner{}
	}
	return l.process.owner(l.source)
}
