package probe

import (
	"errors"
	"net/netip"
	"time"
	"unsafe"

	"github.com/tcptrace/tcptrace/tracer/event"
)

const (
	eventSize  = int(unsafe.Sizeof(bpfTcptraceEvent{}))
	socketSize = int(unsafe.Sizeof(bpfTcptraceSocket{}))
)

// ErrBadRecord is returned for bytes that no tcptrace program wrote.
var ErrBadRecord = errors.New("malformed event record")

// decode fills e from a record of the ring. It keeps no reference to b and
// does not allocate. All fields of e are overwritten. location is the address
// that e.Where is the name of, 0 if there is none.
func decode(b []byte, e *event.Event) (location uint64, err error) {
	if len(b) < eventSize {
		return 0, ErrBadRecord
	}
	var r bpfTcptraceEvent
	// The record may lie at any address: copy before looking at fields.
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&r)), eventSize), b)
	if err := r.to(e); err != nil {
		return 0, err
	}
	if e.Kind == event.KindSegmentDropped {
		location = (*bpfTcptraceDrop)(unsafe.Pointer(&r.T)).Location
	}
	return location, nil
}

func (r *bpfTcptraceEvent) to(e *event.Event) error {
	k := event.Kind(r.Kind)
	if !k.Known() || r.OldState > uint8(event.StateNewSynRecv) || r.NewState > uint8(event.StateNewSynRecv) {
		return ErrBadRecord
	}
	*e = event.Event{
		Time:    int64(r.Time),
		Sock:    r.Sock,
		Kind:    k,
		Old:     event.State(r.OldState),
		New:     event.State(r.NewState),
		Flags:   event.Flags(r.Flags),
		Netns:   r.Netns,
		PID:     r.Pid,
		Cgroup:  r.Cgroup,
		Comm:    event.Comm(r.Comm),
		Err:     r.Err,
		Attempt: r.Attempt,
		Reason:  r.Reason,
	}
	e.Local = netip.AddrPortFrom(netip.AddrFrom16(r.Local).Unmap(), r.LocalPort)
	if e.New != event.StateListen || k == event.KindSYNDropped || k == event.KindSYNQueueFull || k == event.KindRSTSent || k == event.KindSegmentDropped {
		e.Remote = netip.AddrPortFrom(netip.AddrFrom16(r.Remote).Unmap(), r.RemotePort)
	}
	switch {
	case k == event.KindSegmentDropped:
		d := (*bpfTcptraceDrop)(unsafe.Pointer(&r.T))
		e.TCPFlags, e.Out = d.TcpFlags, d.Out != 0
	case e.HasListener():
		l := (*bpfTcptraceListener)(unsafe.Pointer(&r.T))
		e.Listener = event.Listener{
			ID:              l.Listener,
			QueueLen:        l.QueueLen,
			QueueLimit:      l.QueueLimit,
			SYNQueueLen:     l.SynQueueLen,
			Somaxconn:       l.Somaxconn,
			Backlog:         l.Backlog,
			AbortOnOverflow: l.AbortOnOverflow != 0,
			SYNCookies:      l.Syncookies,
			Attempt:         l.Attempt,
			SYNACKRetries:   l.SynackRetries,
		}
	default:
		e.Traffic = event.Traffic{
			BytesSent:     r.T.BytesSent,
			BytesReceived: r.T.BytesReceived,
			SRTT:          r.T.SrttUs,
			Retransmits:   r.T.Retransmits,
			Unread:        r.T.Unread,
			Unacked:       r.T.Unacked,
		}
	}
	if k == event.KindRSTSent && e.Has(event.FlagNoSocket) {
		e.TCPFlags, e.Attempt = e.Attempt, 0
	}
	return nil
}

// decodeSocket fills e, with the Inventory that it has or a new one, from one
// line of the inventory.
// hz caches the kernel's tick rate, 0 while unknown.
func decodeSocket(b []byte, hz *uint32, e *event.Event) error {
	if len(b) < socketSize {
		return ErrBadRecord
	}
	var s bpfTcptraceSocket
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&s)), socketSize), b)
	inv := e.Inventory
	if err := s.Ev.to(e); err != nil {
		return err
	}
	if *hz == 0 && s.NetnsKeepaliveTime != 0 {
		*hz = tickRate(s.NetnsKeepaliveTime)
	}
	if inv == nil {
		inv = new(event.Inventory)
	}
	*inv = event.Inventory{
		Inode: s.Inode, UID: s.Uid, KeepaliveProbes: s.KeepaliveProbes,
		SendWindow: s.SndWnd, ReceiveWindow: s.RcvWnd, Probes: s.ProbesOut, Retransmits: s.Retransmits,
		Minisocket: s.Minisocket != 0, Idle: -1, SentIdle: -1, Left: -1,
	}
	if *hz != 0 && s.NetnsKeepaliveTime != 0 {
		inv.KeepaliveTime = jiffies(s.KeepaliveTime, *hz)
		inv.KeepaliveInterval = jiffies(s.KeepaliveIntvl, *hz)
		inv.Idle = jiffies(s.Idle, *hz)
		inv.SentIdle = jiffies(s.SentIdle, *hz)
	}
	if *hz != 0 && inv.Minisocket {
		inv.Left = max(0, jiffies(uint32(max(int32(s.Left), 0)), *hz))
	}
	e.Inventory = inv
	return nil
}

func jiffies(n, hz uint32) time.Duration {
	return time.Duration(n) * time.Second / time.Duration(hz)
}
