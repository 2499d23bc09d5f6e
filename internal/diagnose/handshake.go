package diagnose

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/tcptrace/tcptrace/internal/timeline"
)

// Two verdicts on handshakes that took more than one SYN-ACK: completed in
// the end, or never.

const (
	codeFinalACKLost     = "final-ack-lost"
	codeHandshakeTimeout = "handshake-timeout"
)

var docFinalACKLost = Doc{
	Code:     codeFinalACKLost,
	Severity: Info,
	Summary:  "a SYN-ACK had to be sent again, then the handshake completed",
	Meaning: `The server's SYN-ACK or the client's final ACK was lost on the way, or late by more than a second. If the client sends data at once, the data carries the ACK, and nobody notices. It is not an error; many of them mean loss between this host and the clients.

It is not reported where the accept queue was full (that is accept-queue-overflow), where the round trip itself takes a second or more, or where the client's own repeated SYN asked for another SYN-ACK. A listener with TCP_DEFER_ACCEPT, which waits for the first data on purpose, cannot be told apart.`,
	Counts: "connections",
	Evidence: []DocKey{
		{"retransmits", "count", "SYN-ACKs sent again, in all"},
		{"retransmits_max", "count", "the most for one connection"},
		{"delay_ms_max", "ms", "from the first retransmission to the end of the handshake, the longest"},
		{"clients", "count", "different client addresses"},
	},
	Fix: []string{
		"nothing, for a few: TCP repaired it",
		"for many from the same clients, look for packet loss or a stateful firewall on the way",
	},
	Counters: []string{"TcpExt.TCPTimeouts", "TcpExt.TCPSynRetrans"},
	Source:   []string{"net/ipv4/inet_connection_sock.c: reqsk_timer_handler()"},
}

var docHandshakeTimeout = Doc{
	Code:     codeHandshakeTimeout,
	Severity: Warning,
	Summary:  "SYN-ACKs were sent to the end and never acknowledged",
	Meaning: `A SYN arrived, this host answered it and repeated its SYN-ACK net.ipv4.tcp_synack_retries times, and no final ACK came before the last timer passed. The client vanished, its address was forged, or one direction of the way is blocked.

It is not reported where a final ACK did arrive and met a full accept queue (accept-queue-overflow), or where events were lost. It is information where so many handshakes are left half done that the listener's SYN queue is full: syn-queue-overflow says that then.`,
	Counts: "connections",
	Evidence: []DocKey{
		{"retransmits", "count", "SYN-ACKs sent again for one connection, the most"},
		{"synack_retries", "count", "how often the listener sends it again: net.ipv4.tcp_synack_retries or its own TCP_SYNCNT"},
		{"clients", "count", "different client addresses"},
	},
	Fix: []string{
		"check the way back to the client: asymmetric routing, or a firewall that drops SYN-ACKs",
		"from many addresses that never complete, suspect forged SYNs: leave net.ipv4.tcp_syncookies at 1",
	},
	Counters: []string{"TcpExt.TCPTimeouts", "TcpExt.TCPSynRetrans"},
	Source:   []string{"net/ipv4/inet_connection_sock.c: reqsk_timer_handler()"},
}

func listenerKey(c *timeline.Conn) Key {
	k := Key{Netns: c.Netns()}
	k.Addr, _ = place(c)
	return k
}

type finalACKLost struct {
	found groups[Key, *lateACKs]
}

func newFinalACKLost() *finalACKLost { return &finalACKLost{groups[Key, *lateACKs]{max: 4096}} }

func (*finalACKLost) Code() string { return codeFinalACKLost }
func (*finalACKLost) Doc() Doc     { return docFinalACKLost }

type lateACKs struct {
	name        netip.AddrPort
	owner       timeline.Owner
	total, most int
	delay       time.Duration
	seen        bool // the client is on this host too, and did not repeat its SYN
	clients     addresses
}

func (r *finalACKLost) Entry(x *Engine, c *timeline.Conn, e *timeline.Entry) {
	if e.Kind != timeline.EntryEstablished || c.Role() != timeline.RoleServer || tagged(r, c) {
		return
	}
	again := c.Find(timeline.EntrySYNACKRetransmitted)
	if again == nil || again.At > e.At || c.Incomplete() || c.QueueWasFull() ||
		c.Find(timeline.EntryRequestDropped) != nil {
		return
	}
	const slow = 1_000_000 // microseconds
	if c.Traffic().SRTT >= slow {
		return
	}
	peer := c.Peer()
	if peer != nil && (peer.Incomplete() || peer.Find(timeline.EntrySYNRetransmitted) != nil) {
		return // it asked for each of them, or may have
	}
	p := r.found.make(listenerKey(c))
	if *p == nil {
		*p = &lateACKs{name: listenerKey(c).Addr, owner: c.Owner(), seen: true}
	}
	f := *p
	f.total += again.Attempt()
	f.most = max(f.most, again.Attempt())
	f.delay = max(f.delay, e.Since(again))
	f.seen = f.seen && peer != nil
	f.clients.add(c.Remote().Addr())
	x.Report(r, listenerKey(c), f, e.At, 1, c)
}

func (f *lateACKs) Describe(x *Engine, v *Verdict) {
	v.Severity, v.Confidence = Info, Likely
	if !x.o.Capabilities.HasACKDrops {
		v.Confidence = Suspected
	}
	v.Subject = Subject{"listener", f.name.String()}
	v.Process = process(f.owner)
	v.Story = fmt.Sprintf("SYN-ACK sent again %s, then the handshake completed: a SYN-ACK or final ACK was lost or late on the way",
		times(f.total))
	v.Evidence = Evidence{
		{Key: "retransmits", Value: int64(f.total)},
		{Key: "retransmits_max", Value: int64(f.most)},
		{Key: "delay_ms_max", Value: int64(f.delay / time.Millisecond)},
		f.clients.fact("clients"),
	}
	v.Fix = docFinalACKLost.Fix
}

type handshakeTimeout struct {
	found groups[Key, *expired]
}

func newHandshakeTimeout() *handshakeTimeout {
	return &handshakeTimeout{groups[Key, *expired]{max: 4096}}
}

func (*handshakeTimeout) Code() string { return codeHandshakeTimeout }
func (*handshakeTimeout) Doc() Doc     { return docHandshakeTimeout }

type expired struct {
	key         Key
	name        netip.AddrPort
	owner       timeline.Owner
	retransmits int
	retries     int
	clients     addresses
}

func (r *handshakeTimeout) Entry(x *Engine, c *timeline.Conn, e *timeline.Entry) {
	if e.Kind != timeline.EntryExpired || c.Incomplete() || c.QueueWasFull() ||
		c.Find(timeline.EntryRequestDropped) != nil {
		return
	}
	again := c.Find(timeline.EntrySYNACKRetransmitted)
	if again == nil {
		return
	}
	// Fewer than the kernel sends means that something else ended it.
	retries := c.SYNACKRetries()
	if retries == 0 || again.Attempt() < retries {
		return
	}
	p := r.found.make(listenerKey(c))
	if *p == nil {
		*p = &expired{key: listenerKey(c), name: listenerKey(c).Addr, owner: c.Owner()}
	}
	f := *p
	f.retransmits = max(f.retransmits, again.Attempt())
	f.retries = retries
	f.clients.add(c.Remote().Addr())
	x.Report(r, listenerKey(c), f, e.At, 1, c)
}

func (f *expired) Describe(x *Engine, v *Verdict) {
	v.Severity, v.Confidence = Warning, Certain
	if !x.o.Capabilities.HasACKDrops {
		v.Confidence = Likely
	}
	v.Subject = Subject{"listener", f.name.String()}
	v.Process = process(f.owner)
	v.Story = fmt.Sprintf("SYN-ACK sent again %s and never acknowledged: the handshake expired", times(f.retransmits))
	flooded := x.holds(codeSYNQueueOverflow, f.key)
	if flooded {
		// One cause, not two warnings.
		v.Severity = Info
		v.Story += ": see syn-queue-overflow of the same listener"
	}
	v.Evidence = Evidence{
		{Key: "retransmits", Value: int64(f.retransmits)},
		{Key: "synack_retries", Value: int64(f.retries)},
		f.clients.fact("clients"),
	}
	v.Fix = docHandshakeTimeout.Fix
	if flooded {
		v.Fix = []string{"see the verdict about the listener's full SYN queue: " + codeSYNQueueOverflow}
	}
}
