// Package event defines what tcptrace observes: one [Event] for each thing
// that happened to a TCP socket, and the [Namespace] facts needed to judge it.
//
// It is a leaf: standard library only, no kernel, no files, no clock. Values
// are plain data and safe to copy.
package event

import (
	"bytes"
	"fmt"
	"net/netip"
	"time"
)

// Kind says what happened. The numbers are those of bpf/event.h and are never
// reused, since dumps keep them.
type Kind uint8

const (
	KindNone           Kind = 0
	KindState          Kind = 1  // Old -> New
	KindListen         Kind = 2  // listen() succeeded: Listener.Backlog is the raw argument; follows CLOSE -> LISTEN, or stands alone when a listener is re-listened
	KindAccept         Kind = 3  // accept() returned this socket
	KindShutdown       Kind = 4  // shutdown() called: Reason 0 RD, 1 WR, 2 RDWR
	KindSYNDropped     Kind = 5  // a SYN met a full accept queue and was dropped; Sock 0
	KindSYNQueueFull   Kind = 6  // a SYN met a full request queue: cookie (FlagCookie) or dropped; Sock 0
	KindACKOverflow    Kind = 7  // a final ACK met a full accept queue: RST (FlagRST) or dropped; Sock = request
	KindSYNACKRetrans  Kind = 8  // SYN-ACK retransmitted; Sock = request
	KindRetransmit     Kind = 9  // a segment was retransmitted; New = state, SYN_SENT means the SYN
	KindRTO            Kind = 10 // the retransmission timer expired; Attempt counts
	KindRSTSent        Kind = 11 // Reason = enum sk_rst_reason, 0 where the kernel names none; New TIME_WAIT: by a minisocket, whose substate is Old
	KindRSTReceived    Kind = 12
	KindRequestAborted Kind = 13 // a half-open request was killed by RST or SYN; Sock = request
	KindSnapshot       Kind = 14 // a socket that exists now: Inventory is set

	KindBindFailed       Kind = 15 // bind() (Reason 0) or listen() (1) failed, Err EADDRINUSE; Local is what was wanted, port 0 any
	KindProbe            Kind = 16 // a silent peer was probed: Reason 1 keepalive, 2 zero window; Attempt = probes before it without an answer
	KindSegmentDropped   Kind = 17 // this host dropped a segment: Reason = enum skb_drop_reason, Where, TCPFlags, Out; Sock where known
	KindMemory           Kind = 18 // the kernel killed the socket: Reason 1 too many orphans, 0 that or want of TCP memory
	KindTimeWaitOverflow Kind = 19 // no TIME_WAIT minisocket could be made: tcp_max_tw_buckets, or no memory
	kinds                     = 20
)

// kindNames are the names of docs/events.md, and where a timeline has an entry for
// just this event, that entry's name.
var kindNames = [...]string{
	KindState:            "state",
	KindListen:           "listen",
	KindAccept:           "accepted",
	KindShutdown:         "shutdown-called",
	KindSYNDropped:       "syn-dropped",
	KindSYNQueueFull:     "syn-queue-full",
	KindACKOverflow:      "ack-overflow",
	KindSYNACKRetrans:    "syn-ack-retransmitted",
	KindRetransmit:       "retransmitted",
	KindRTO:              "rto",
	KindRSTSent:          "rst-sent",
	KindRSTReceived:      "rst-received",
	KindRequestAborted:   "request-aborted",
	KindSnapshot:         "snapshot",
	KindBindFailed:       "bind-failed",
	KindProbe:            "probe",
	KindSegmentDropped:   "dropped",
	KindMemory:           "memory",
	KindTimeWaitOverflow: "time-wait-overflow",
}

// String names a kind; of one that is not known it gives the number.
func (k Kind) String() string {
	if int(k) < len(kindNames) && kindNames[k] != "" {
		return kindNames[k]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Known reports whether k is one of the kinds above.
func (k Kind) Known() bool { return k > KindNone && k < kinds }

// State is a TCP state with the kernel's number (include/net/tcp_states.h).
type State uint8

const (
	StateUnknown     State = 0
	StateEstablished State = 1
	StateSynSent     State = 2
	StateSynRecv     State = 3
	StateFinWait1    State = 4
	StateFinWait2    State = 5
	StateTimeWait    State = 6
	StateClose       State = 7
	StateCloseWait   State = 8
	StateLastAck     State = 9
	StateListen      State = 10
	StateClosing     State = 11
	StateNewSynRecv  State = 12
)

// Flags qualify an Event; see bpf/event.h.
type Flags uint16

const (
	FlagDead        Flags = 1 << 0  // no process holds the socket (orphan)
	FlagDone        Flags = 1 << 1  // the peer's FIN was received
	FlagKeepalive   Flags = 1 << 2  // SO_KEEPALIVE on
	FlagLinger      Flags = 1 << 3  // SO_LINGER on
	FlagShutRD      Flags = 1 << 4  // receiving shut down (by FIN or by the application)
	FlagShutWR      Flags = 1 << 5  // sending shut down
	FlagRST         Flags = 1 << 6  // KindACKOverflow: answered by RST
	FlagCookie      Flags = 1 << 7  // a SYN cookie was sent (KindSYNQueueFull) or came back (KindACKOverflow)
	FlagTimeWait    Flags = 1 << 8  // to CLOSE: lives on as a TIME_WAIT minisocket
	FlagTimeWaitFW2 Flags = 1 << 9  // to CLOSE: lives on as a minisocket in FIN_WAIT2 (orphan)
	FlagAmbiguous   Flags = 1 << 10 // the listener is one of several on this port (SO_REUSEPORT)
	FlagNoSocket    Flags = 1 << 11 // KindRSTSent: there was no full socket
	FlagLingerZero  Flags = 1 << 12 // SO_LINGER with a timeout of 0: close() resets
	FlagInferred    Flags = 1 << 13 // concluded from the queue after the fact, or the TIME_WAIT flags from the state (tracepoint-only mode)
	FlagProcess     Flags = 1 << 14 // PID, Comm and Cgroup are the process that did this
	FlagACKed       Flags = 1 << 15 // KindSYNACKRetrans: the final ACK had come and was dropped at a full accept queue
	FlagExiting     Flags = 1 << 15 // KindState with FlagProcess: the kernel closed it as the process ended
)

// Comm is a process name as the kernel keeps it: up to 15 bytes, not
// necessarily printable, so escape it before it reaches a terminal.
type Comm [16]byte

// String returns the name up to its first NUL, unescaped.
func (c Comm) String() string {
	if i := bytes.IndexByte(c[:], 0); i >= 0 {
		return string(c[:i])
	}
	return string(c[:])
}

// Traffic of a full socket at the moment of the event.
type Traffic struct {
	BytesSent     uint64 // payload, without retransmissions
	BytesReceived uint64 // payload received in order
	SRTT          uint32 // microseconds, 0 unknown
	Retransmits   uint32 // segments, over the whole life
	Unread        uint32 // Recv-Q, bytes
	Unacked       uint32 // Send-Q, bytes
}

// Listener holds a listening socket's facts at the moment of the event, with
// the sysctls of its own namespace.
type Listener struct {
	ID              uint64 // identity of the listening socket, 0 unknown
	QueueLen        uint32 // connections waiting for accept(); full when QueueLen > QueueLimit
	QueueLimit      uint32 // min(backlog, somaxconn)
	SYNQueueLen     uint32 // half-open requests
	Somaxconn       uint32
	Backlog         uint32 // KindListen: the raw argument of listen() (a negative int shows as > 1<<31)
	AbortOnOverflow bool
	SYNCookies      uint8 // net.ipv4.tcp_syncookies: 0, 1 or 2
	Attempt         uint8 // KindSYNACKRetrans: retransmissions so far, this one included
	SYNACKRetries   uint8 // the listener's own limit or net.ipv4.tcp_synack_retries
}

// Inventory is what a socket snapshot knows beyond Event.
type Inventory struct {
	Inode             uint64        // 0: orphan
	UID               uint32        // owner of the inode
	KeepaliveTime     time.Duration // idle time before the first probe
	KeepaliveInterval time.Duration
	KeepaliveProbes   uint32
	Idle              time.Duration // since the last segment was received; <0 unknown
	SentIdle          time.Duration // since data was last sent; <0 unknown
	Left              time.Duration // of a minisocket: until it goes; <0 unknown
	SendWindow        uint32        // bytes: the peer's window
	ReceiveWindow     uint32        // bytes: ours
	Probes            uint8         // keepalive or window probes without an answer
	Retransmits       uint8         // expiries of the retransmission timer in a row
	Minisocket        bool          // TIME_WAIT or FIN_WAIT2 of which no socket is left
}

// Event is one thing that happened to one socket.
//
// Sock is the socket's identity: the kernel's cookie, which request and full
// socket share and which is never reused; or, where the kernel gives tracers
// no cookie (before 5.12), the socket's address, which is reused
// (Capabilities.Identity says which). It is 0 where there is no socket.
//
// Arrival order is not time order.
type Event struct {
	Time   int64 // CLOCK_BOOTTIME, ns
	Sock   uint64
	Kind   Kind
	Old    State
	New    State // the state after the event
	Flags  Flags
	Netns  uint32 // inode number of the network namespace
	Local  netip.AddrPort
	Remote netip.AddrPort // invalid for listeners; IPv4-mapped addresses are unmapped

	PID    uint32 // thread group id in the initial pid namespace; where FlagProcess
	Comm   Comm   // of the thread group's leader; where FlagProcess
	Cgroup uint64 // cgroup v2 id; where FlagProcess

	Err     uint16 // sk_err, an errno
	Attempt uint8  // KindRetransmit, KindRTO: consecutive timer expiries; SYN_SENT to CLOSE: SYN retransmissions; other states to CLOSE: probes without an answer
	Reason  uint32 // see Kind; SYN_SENT to CLOSE: how often the SYN may be sent again (tcp_syn_retries or TCP_SYNCNT); other states to CLOSE: consecutive timer expiries

	TCPFlags uint8  // KindSegmentDropped: of the segment; KindRSTSent without a socket: of what was answered
	Out      bool   // KindSegmentDropped: on its way out
	Where    string // KindSegmentDropped: the kernel's function, "" unknown
	Count    uint32 // under a flood one event stands for so many (0: one); then it has no Remote

	Traffic   Traffic    // of full sockets
	Listener  Listener   // of listeners: KindListen, KindSYN*, KindACKOverflow, KindSYNACKRetrans, KindState from or to LISTEN, KindSnapshot in LISTEN
	Inventory *Inventory // KindSnapshot only
}

// Times is how many events like this one e stands for, at least 1.
func (e *Event) Times() uint64 { return uint64(max(e.Count, 1)) }

// Has reports whether all bits of f are set.
func (e *Event) Has(f Flags) bool { return e.Flags&f == f }

// HasListener reports which facts the event has: those of a listening socket,
// in Listener, or else the Traffic of another one.
func (e *Event) HasListener() bool {
	switch e.Kind {
	case KindListen, KindSYNDropped, KindSYNQueueFull, KindACKOverflow, KindSYNACKRetrans, KindRequestAborted:
		return true
	case KindState:
		return e.Old == StateListen || e.New == StateListen
	case KindSnapshot, KindRSTSent:
		return e.New == StateListen
	}
	return false
}

// Namespace holds facts of a network namespace read when it was first seen.
// A zero field of Sysctls is unknown only when Known is false.
type Namespace struct {
	Inode   uint32
	Name    string // as under /run/netns, "" if it has none
	Sysctls Sysctls
	Known   bool
}

// Sysctls are the settings that verdicts quote, in the kernel's units
// (seconds where the kernel shows seconds).
type Sysctls struct {
	Somaxconn         int // net.core.somaxconn
	SYNRetries        int // net.ipv4.tcp_syn_retries
	SYNACKRetries     int // net.ipv4.tcp_synack_retries
	SYNCookies        int // net.ipv4.tcp_syncookies
	AbortOnOverflow   int // net.ipv4.tcp_abort_on_overflow
	MaxSYNBacklog     int // net.ipv4.tcp_max_syn_backlog
	Retries2          int // net.ipv4.tcp_retries2
	KeepaliveTime     int // s
	KeepaliveInterval int // s
	KeepaliveProbes   int
	FinTimeout        int // s
	TWReuse           int
	MaxTWBuckets      int
	PortRangeLow      int
	PortRangeHigh     int
}

// Process is what is known of a process beyond an event.
type Process struct {
	PID    uint32
	Comm   string
	Cgroup string // cgroup path, "" unknown
	Exe    string
}

// Lost counts events that never arrived.
type Lost struct {
	Where string // ring, map, memory, or the missed hook's name
	Count uint64 // since the previous report
}

// Hook tells how one hook is attached.
type Hook struct {
	Name  string `json:"name"`          // the kernel's function or tracepoint
	Via   string `json:"via"`           // fentry, kprobe, tracepoint or none
	Gives string `json:"gives"`         // what it lets tcptrace know
	Why   string `json:"why,omitempty"` // why it is not attached the better way
}

// Identity names of Capabilities.
const (
	IdentityCookie  = "cookie"
	IdentityAddress = "address"
)

// Capabilities say what this kernel and these hooks can show.
type Capabilities struct {
	Kernel     string   `json:"kernel"`   // uname -r
	Attach     string   `json:"attach"`   // fentry, kprobe or tracepoint: the way most function hooks use
	Identity   string   `json:"identity"` // IdentityCookie or IdentityAddress
	Hooks      []Hook   `json:"hooks"`
	Unknowable []string `json:"unknowable"` // sentences for people

	// What rules need to know before they conclude anything from absence.
	HasAccept     bool `json:"has_accept"`       // KindAccept is seen
	HasSYNDrops   bool `json:"has_syn_drops"`    // KindSYNDropped is seen
	HasACKDrops   bool `json:"has_ack_drops"`    // KindACKOverflow is seen
	HasRSTReason  bool `json:"has_rst_reason"`   // KindRSTSent carries the kernel's reason
	HasAllRSTSent bool `json:"has_all_rst_sent"` // KindRSTSent includes resets without a full socket
	HasListenArg  bool `json:"has_listen_arg"`   // KindListen is seen

	HasRequestAborts    bool `json:"has_request_aborts"`     // KindRequestAborted is seen
	HasBindFailures     bool `json:"has_bind_failures"`      // KindBindFailed is seen
	HasProbes           bool `json:"has_probes"`             // KindProbe is seen
	HasDrops            bool `json:"has_drops"`              // KindSegmentDropped is seen, at least for netfilter
	HasDropReasons      bool `json:"has_drop_reasons"`       // and with the kernel's reason
	HasMemory           bool `json:"has_memory"`             // KindMemory is seen
	HasTimeWaitOverflow bool `json:"has_time_wait_overflow"` // KindTimeWaitOverflow is seen

	RSTReasons  map[uint32]string `json:"rst_reasons"`  // enum sk_rst_reason from BTF, e.g. 11: "TCP_ABORT_ON_CLOSE"
	DropReasons map[uint32]string `json:"drop_reasons"` // enum skb_drop_reason from BTF, e.g. 8: "NETFILTER_DROP"
}
