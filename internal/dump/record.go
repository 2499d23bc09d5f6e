package dump

import (
	"errors"
	"fmt"
	"time"

	"github.com/tcptrace/tcptrace/tracer/event"
)

// A payload of records is a row of them, each beginning with a tag. Numbers
// are varints of at most ten bytes (as in package encoding/binary), zigzagged
// where they can be negative. What is defined holds until the end of the frame.
const (
	tagAdvance       = 0  // Δtime
	tagClock         = 1  // offset
	tagShape         = 2  // a shape: the numbers of Layout.Shape
	tagAddr          = 3  // an address: 4 or 16 bytes, length first
	tagSocket        = 4  // a socket: Δcookie, Δnetns, local, port, remote, port
	tagProcess       = 5  // who did something: pid, comm, cgroup id
	tagString        = 6  // a text, length first
	tagListener      = 7  // a listener: its identity
	tagBeginSnapshot = 8  // Δtime, netns
	tagEndSnapshot   = 9  // Δtime, netns
	tagNamespace     = 10 // inode, name, known, the numbers of Layout.Sysctls
	tagAbout         = 11 // what is known of a process: pid, comm, cgroup, executable
	tagLost          = 12 // Δtime, where, count
	tagAudit         = 13 // an Audit as JSON, length first
	tagMore          = 14 // of a later version: a number, and bytes, length first; 15 is no tag
	// A tag from here on is an event whose shape is the tag without it.
	tagEvent = 16
)

// What an event has, in the order in which it follows.
const (
	hasProcess   = 1 << 0
	hasWhere     = 1 << 1
	hasCount     = 1 << 2
	hasListener  = 1 << 3
	hasInventory = 1 << 4
	hasOwner     = 1 << 5 // of a snapshot's line: pid and name
	isSnapshot   = 1 << 6 // belongs to a snapshot
	// For each further bit a later version has a group of numbers at the end of
	// the event, as a listener's is written.
	hasBits = 7
)

// maxDefined bounds each kind of definition in a frame.
const maxDefined = 1 << 16

// maxText bounds a text, in bytes.
const maxText = 4 << 10

// maxSymbol bounds the name of a function, in bytes: KSYM_NAME_LEN, which was
// 128 until Linux 6.1.
const maxSymbol = 512

// shape is what events have in common, packed, as it is looked up with each.
type shape struct {
	a uint64 // kind, old, new, attempt: 8 bits each; flags, err: 16
	b uint64 // reason: 32; tcpFlags, out, has, traffic: 8
}

// layoutShape is a shape of a dump, which can be of a later version.
type layoutShape struct {
	kind     event.Kind
	old, new event.State
	attempt  uint8
	flags    event.Flags
	err      uint16
	reason   uint32
	tcpFlags uint8
	out      bool
	has      uint64
	traffic  uint64 // which numbers of Traffic are not those of the socket's event before
}

var (
	errMalformed = errors.New("it is malformed")
	errTooMany   = fmt.Errorf("%w: more than %d definitions of a kind", errMalformed, maxDefined)
)

// numbers are those of the layout, in its order.
func (s shape) numbers() [11]uint64 {
	byte := func(v uint64, shift int) uint64 { return v >> shift & 0xff }
	return [11]uint64{
		byte(s.a, 0), byte(s.a, 8), byte(s.a, 16), s.a >> 32 & 0xffff, s.a >> 48, byte(s.a, 24),
		s.b & 0xffffffff, byte(s.b, 32), byte(s.b, 40), byte(s.b, 48), s.b >> 56,
	}
}

// shapeOf makes a shape of the numbers of the layout.
func shapeOf(n [11]uint64) (layoutShape, bool) {
	if n[0] > 0xff || n[1] > 0xff || n[2] > 0xff || n[3] > 0xffff || n[4] > 0xffff || n[5] > 0xff || n[6] > 0xffffffff ||
		n[7] > 0xff || n[8] > 1 {
		return layoutShape{}, false
	}
	return layoutShape{
		kind: event.Kind(n[0]), old: event.State(n[1]), new: event.State(n[2]), flags: event.Flags(n[3]), err: uint16(n[4]),
		attempt: uint8(n[5]), reason: uint32(n[6]), tcpFlags: uint8(n[7]), out: n[8] == 1, has: n[9], traffic: n[10],
	}, true
}

// The numbers of a listener, an inventory and the sysctls in the order of the
// layout. Those of a listener and an inventory are kept as differences from
// the one before.

func listenerNumbers(l *event.Listener) [9]uint64 {
	return [9]uint64{
		uint64(l.QueueLen), uint64(l.QueueLimit), uint64(l.SYNQueueLen), uint64(l.Somaxconn), uint64(l.Backlog),
		bit(l.AbortOnOverflow), uint64(l.SYNCookies), uint64(l.Attempt), uint64(l.SYNACKRetries),
	}
}

func setListener(l *event.Listener, n *[9]uint64) {
	l.QueueLen, l.QueueLimit, l.SYNQueueLen = uint32(n[0]), uint32(n[1]), uint32(n[2])
	l.Somaxconn, l.Backlog, l.AbortOnOverflow = uint32(n[3]), uint32(n[4]), n[5] != 0
	l.SYNCookies, l.Attempt, l.SYNACKRetries = uint8(n[6]), uint8(n[7]), uint8(n[8])
}

func inventoryNumbers(i *event.Inventory) [13]uint64 {
	return [13]uint64{
		i.Inode, uint64(i.UID), uint64(i.KeepaliveTime), uint64(i.KeepaliveInterval), uint64(i.KeepaliveProbes),
		uint64(i.Idle), uint64(i.SentIdle), uint64(i.Left), uint64(i.SendWindow), uint64(i.ReceiveWindow),
		uint64(i.Probes), uint64(i.Retransmits), bit(i.Minisocket),
	}
}

func setInventory(i *event.Inventory, n *[13]uint64) {
	i.Inode, i.UID = n[0], uint32(n[1])
	i.KeepaliveTime, i.KeepaliveInterval, i.KeepaliveProbes = nanos(n[2]), nanos(n[3]), uint32(n[4])
	i.Idle, i.SentIdle, i.Left = nanos(n[5]), nanos(n[6]), nanos(n[7])
	i.SendWindow, i.ReceiveWindow = uint32(n[8]), uint32(n[9])
	i.Probes, i.Retransmits, i.Minisocket = uint8(n[10]), uint8(n[11]), n[12] != 0
}

func trafficNumbers(t *event.Traffic) [6]uint64 {
	return [6]uint64{t.BytesSent, t.BytesReceived, uint64(t.SRTT), uint64(t.Retransmits), uint64(t.Unread), uint64(t.Unacked)}
}

func sysctlNumbers(s *event.Sysctls) [15]*int {
	return [15]*int{
		&s.Somaxconn, &s.SYNRetries, &s.SYNACKRetries, &s.SYNCookies, &s.AbortOnOverflow, &s.MaxSYNBacklog, &s.Retries2,
		&s.KeepaliveTime, &s.KeepaliveInterval, &s.KeepaliveProbes, &s.FinTimeout, &s.TWReuse, &s.MaxTWBuckets,
		&s.PortRangeLow, &s.PortRangeHigh,
	}
}

func bit(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}

func nanos(u uint64) time.Duration { return time.Duration(u) }

func zigzag(v int64) uint64   { return uint64(v)<<1 ^ uint64(v>>63) }
func unzigzag(u uint64) int64 { return int64(u>>1) ^ -int64(u&1) }
