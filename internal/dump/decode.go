package dump

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/netip"

	"github.com/tcptrace/tcptrace/tracer/event"
)

// decoder hands the records of payloads to a feed.
type decoder struct {
	feed Feed
	// extra is how many numbers of a group this version does not know.
	extra struct{ shape, sysctls int }
	// sysctls is how many of those that it knows there are.
	sysctls int

	b      []byte
	at     int64
	newest int64
	ev     event.Event
	// partial says that something is missing since the last beginning of a
	// snapshot.
	partial bool

	shapes    []shape
	addrs     []netip.Addr
	sockets   []known
	last      known
	processes []doer
	texts     []string
	listeners []lists
	inventory event.Inventory
	numbers   [13]uint64
}

type known struct {
	sock          uint64
	netns         uint32
	local, remote netip.AddrPort
	traffic       event.Traffic
}

type doer struct {
	pid    uint32
	comm   event.Comm
	cgroup uint64
}

type lists struct {
	id      uint64
	numbers [9]uint64
}

func newDecoder(h *Header, feed Feed) *decoder {
	d := &decoder{feed: feed}
	d.extra.shape = len(h.Layout.Shape) - len(layout.Shape)
	d.sysctls = min(len(h.Layout.Sysctls), len(layout.Sysctls))
	d.extra.sysctls = len(h.Layout.Sysctls) - d.sysctls
	return d
}

// broken is called when something is missing: what came of a snapshot is not
// the whole of it.
func (d *decoder) broken() { d.partial = true }

// payload hands over the records of one frame and returns how many events it
// had. After an error, those before it were handed over.
func (d *decoder) payload(f *Frame, raw []byte) (events uint32, err error) {
	d.b, d.at = raw, f.First
	d.shapes, d.addrs, d.sockets = d.shapes[:0], d.addrs[:0], d.sockets[:0]
	d.processes, d.texts, d.listeners = d.processes[:0], d.texts[:0], d.listeners[:0]
	d.last, d.numbers = known{}, [13]uint64{}
	for len(d.b) > 0 && err == nil {
		tag := d.number()
		if tag >= tagEvent {
			var snapshot bool
			if snapshot, err = d.event(tag - tagEvent); err == nil && !snapshot {
				events++
			}
			continue
		}
		err = d.record(tag)
	}
	return events, err
}

// number reads a varint; where there is none it empties the payload and
// returns a number that is valid nowhere.
func (d *decoder) number() uint64 {
	if len(d.b) > 0 && d.b[0] < 0x80 {
		v := d.b[0]
		d.b = d.b[1:]
		return uint64(v)
	}
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.b = nil
		return ^uint64(0)
	}
	d.b = d.b[n:]
	return v
}

// number32 reads a number of 32 bits.
func (d *decoder) number32() (uint32, error) {
	v := d.number()
	if v > 0xffffffff {
		return 0, errMalformed
	}
	return uint32(v), nil
}

func (d *decoder) bytes(most int) ([]byte, error) {
	n := d.number()
	if n > uint64(most) || n > uint64(len(d.b)) {
		return nil, errMalformed
	}
	b := d.b[:n]
	d.b = d.b[n:]
	return b, nil
}

func (d *decoder) text() (string, error) {
	b, err := d.bytes(maxText)
	return string(b), err
}

func (d *decoder) time() int64 {
	d.at += unzigzag(d.number())
	d.newest = max(d.newest, d.at)
	return d.at
}

// record reads what is no event.
func (d *decoder) record(tag uint64) error {
	switch tag {
	case tagAdvance:
		d.feed.Advance(d.time())
	case tagClock:
		d.feed.Clock(unzigzag(d.number()))
	case tagShape:
		return d.shape()
	case tagAddr:
		return d.addr()
	case tagSocket:
		return d.socket()
	case tagProcess:
		return d.process()
	case tagString:
		s, err := d.text()
		if err != nil || len(d.texts) >= maxDefined {
			return errMalformed
		}
		d.texts = append(d.texts, s)
	case tagListener:
		if len(d.listeners) >= maxDefined {
			return errMalformed
		}
		d.listeners = append(d.listeners, lists{id: d.number()})
	case tagBeginSnapshot:
		at := d.time()
		netns, err := d.number32()
		if err != nil {
			return err
		}
		d.partial = false
		d.feed.BeginSnapshot(netns, at)
	case tagEndSnapshot:
		at := d.time()
		netns, err := d.number32()
		if err != nil {
			return err
		}
		if !d.partial {
			d.feed.EndSnapshot(netns, at)
		}
	case tagNamespace:
		return d.namespace()
	case tagAbout:
		return d.about()
	case tagLost:
		at := d.time()
		where, err := d.text()
		if err != nil {
			return err
		}
		d.feed.Lost(at, event.Lost{Where: where, Count: d.number()})
	case tagAudit:
		b, err := d.bytes(maxAudit)
		if err != nil {
			return err
		}
		var a Audit
		if err := json.Unmarshal(b, &a); err != nil {
			return fmt.Errorf("reading an audit: %w", err)
		}
		d.feed.Audit(a)
	default:
		return fmt.Errorf("%w: no record has tag %d", errMalformed, tag)
	}
	return nil
}

func (d *decoder) shape() error {
	var n [11]uint64
	for i := range n {
		n[i] = d.number()
	}
	for range d.extra.shape {
		d.number()
	}
	s, err := shapeOf(n)
	if err != nil || len(d.shapes) >= maxDefined {
		return errMalformed
	}
	d.shapes = append(d.shapes, s)
	return nil
}

func (d *decoder) addr() error {
	b, err := d.bytes(16)
	if err != nil {
		return err
	}
	a, ok := netip.AddrFromSlice(b)
	if !ok || len(d.addrs) >= maxDefined {
		return errMalformed
	}
	d.addrs = append(d.addrs, a)
	return nil
}

func (d *decoder) socket() error {
	s := known{
		sock:  d.last.sock + uint64(unzigzag(d.number())),
		netns: d.last.netns + uint32(unzigzag(d.number())),
	}
	for _, to := range []*netip.AddrPort{&s.local, &s.remote} {
		i, port := d.number(), d.number()
		if i > uint64(len(d.addrs)) || port > 0xffff {
			return errMalformed
		}
		if i == 0 {
			*to = netip.AddrPortFrom(netip.Addr{}, uint16(port))
		} else {
			*to = netip.AddrPortFrom(d.addrs[i-1], uint16(port))
		}
	}
	if len(d.sockets) >= maxDefined {
		return errMalformed
	}
	d.sockets = append(d.sockets, s)
	d.last = s
	return nil
}

func (d *decoder) process() error {
	pid, err := d.number32()
	if err != nil || len(d.b) < 16 || len(d.processes) >= maxDefined {
		return errMalformed
	}
	p := doer{pid: pid, comm: event.Comm(d.b[:16])}
	d.b = d.b[16:]
	p.cgroup = d.number()
	d.processes = append(d.processes, p)
	return nil
}

func (d *decoder) namespace() error {
	inode, err := d.number32()
	if err != nil {
		return err
	}
	ns := event.Namespace{Inode: inode}
	if ns.Name, err = d.text(); err != nil {
		return err
	}
	ns.Known = d.number() == 1
	known := sysctlNumbers(&ns.Sysctls)
	for _, to := range known[:d.sysctls] {
		*to = int(unzigzag(d.number()))
	}
	for range d.extra.sysctls {
		d.number()
	}
	d.feed.Namespace(ns)
	return nil
}

func (d *decoder) about() error {
	pid, err := d.number32()
	if err != nil {
		return err
	}
	p := event.Process{PID: pid}
	for _, to := range []*string{&p.Comm, &p.Cgroup, &p.Exe} {
		if *to, err = d.text(); err != nil {
			return err
		}
	}
	d.feed.Process(p)
	return nil
}

// event reads an event of a shape, and reports whether it was a line of a
// snapshot.
func (d *decoder) event(shape uint64) (snapshot bool, err error) {
	if shape >= uint64(len(d.shapes)) {
		return false, errMalformed
	}
	s := &d.shapes[shape]
	at := d.time()
	back := d.number()
	if back >= uint64(len(d.sockets)) {
		return false, errMalformed
	}
	sock := &d.sockets[uint64(len(d.sockets))-1-back]
	e := &d.ev
	*e = event.Event{
		Time: at, Sock: sock.sock, Kind: s.kind, Old: s.old, New: s.new, Flags: s.flags, Netns: sock.netns,
		Local: sock.local, Remote: sock.remote, Err: s.err, Attempt: s.attempt, Reason: s.reason, TCPFlags: s.tcpFlags, Out: s.out,
	}
	if s.has&hasProcess != 0 {
		back := d.number()
		if back >= uint64(len(d.processes)) {
			return false, errMalformed
		}
		p := &d.processes[uint64(len(d.processes))-1-back]
		e.PID, e.Comm, e.Cgroup = p.pid, p.comm, p.cgroup
	}
	if s.has&hasWhere != 0 {
		i := d.number()
		if i >= uint64(len(d.texts)) {
			return false, errMalformed
		}
		e.Where = d.texts[i]
	}
	if s.has&hasCount != 0 {
		if e.Count, err = d.number32(); err != nil {
			return false, err
		}
	}
	if s.traffic != 0 {
		d.traffic(s.traffic, &sock.traffic)
	}
	e.Traffic = sock.traffic
	if s.has&hasListener != 0 {
		if err := d.listener(e); err != nil {
			return false, err
		}
	}
	if s.has&hasInventory != 0 {
		d.differences(d.numbers[:])
		setInventory(&d.inventory, &d.numbers)
		e.Inventory = &d.inventory
	}
	var pid uint32
	var comm string
	if s.has&hasOwner != 0 {
		if pid, err = d.number32(); err != nil {
			return false, err
		}
		i := d.number()
		if i >= uint64(len(d.texts)) {
			return false, errMalformed
		}
		comm = d.texts[i]
	}
	if s.has&isSnapshot != 0 {
		if !d.partial {
			d.feed.Snapshot(e, pid, comm)
		}
		return true, nil
	}
	d.feed.Event(e)
	return false, nil
}

// traffic adds to a socket's numbers those that changed.
func (d *decoder) traffic(which uint8, t *event.Traffic) {
	for i := range 8 {
		if which&(1<<i) == 0 {
			continue
		}
		delta := uint64(unzigzag(d.number()))
		switch i {
		case 0:
			t.BytesSent += delta
		case 1:
			t.BytesReceived += delta
		case 2:
			t.SRTT += uint32(delta)
		case 3:
			t.Retransmits += uint32(delta)
		case 4:
			t.Unread += uint32(delta)
		case 5:
			t.Unacked += uint32(delta)
		}
	}
}

func (d *decoder) listener(e *event.Event) error {
	back := d.number()
	if back >= uint64(len(d.listeners)) {
		return errMalformed
	}
	l := &d.listeners[uint64(len(d.listeners))-1-back]
	d.differences(l.numbers[:])
	e.Listener.ID = l.id
	setListener(&e.Listener, &l.numbers)
	return nil
}

// differences reads what [Encoder.differences] writes.
func (d *decoder) differences(n []uint64) {
	mask := d.number()
	for i := 0; mask != 0 && len(d.b) > 0; i, mask = i+1, mask>>1 {
		if mask&1 == 0 {
			continue
		}
		delta := uint64(unzigzag(d.number()))
		if i < len(n) {
			n[i] += delta
		}
	}
}
