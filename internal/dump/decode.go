package dump

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"

	"github.com/tcptrace/tcptrace/tracer/event"
)

// decoder hands the records of payloads to a feed.
type decoder struct {
	feed Feed
	// fields is how many numbers each group has in this dump: some that this
	// version does not know, or fewer than it knows.
	fields struct{ shape, traffic, listener, inventory, sysctls int }

	b   []byte
	pos int // in b
	// bad says that a number of this payload could not be read.
	bad    bool
	at     int64
	newest int64
	ev     event.Event
	// partial says that something is missing since the last beginning of a
	// snapshot, or that its beginning is not known.
	partial bool

	shapes    []layoutShape
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

func newDecoder(h *Header) *decoder {
	d := new(decoder)
	l := &h.Layout
	d.fields.shape, d.fields.traffic, d.fields.listener = len(l.Shape), len(l.Traffic), len(l.Listener)
	d.fields.inventory, d.fields.sysctls = len(l.Inventory), len(l.Sysctls)
	return d
}

// broken is called when something is missing: what came of a snapshot is not
// the whole of it.
func (d *decoder) broken() { d.partial = true }

// payload hands over the records of one frame and returns how many events it
// had. After an error, those before it were handed over; it never hands over
// more events than the frame says it has.
func (d *decoder) payload(f *Frame, raw []byte) (events uint32, err error) {
	d.b, d.pos, d.bad, d.at = raw, 0, false, f.First
	d.shapes, d.addrs, d.sockets = d.shapes[:0], d.addrs[:0], d.sockets[:0]
	d.processes, d.texts, d.listeners = d.processes[:0], d.texts[:0], d.listeners[:0]
	d.last, d.numbers = known{}, [13]uint64{}
	for d.pos < len(d.b) {
		tag := d.number()
		if tag < tagEvent {
			err = d.record(tag)
		} else if shape := tag - tagEvent; shape >= uint64(len(d.shapes)) {
			err = errMalformed
		} else if s := &d.shapes[shape]; s.has&isSnapshot != 0 {
			err = d.event(s)
		} else if events == f.Events {
			err = fmt.Errorf("%w: it has more events than its header says", errMalformed)
		} else if err = d.event(s); err == nil {
			events++
		}
		if err != nil {
			return events, fmt.Errorf("at byte %d of %d: %w", d.pos, len(d.b), err)
		}
	}
	if events != f.Events {
		return events, fmt.Errorf("%w: it has %d events, and its header says %d", errMalformed, events, f.Events)
	}
	return events, nil
}

// number reads a varint; where there is none, the payload is bad.
func (d *decoder) number() uint64 {
	if d.pos < len(d.b) {
		if v := d.b[d.pos]; v < 0x80 {
			d.pos++
			return uint64(v)
		}
	}
	return d.long()
}

// long reads a varint of more than one byte.
func (d *decoder) long() uint64 {
	v, n := binary.Uvarint(d.b[d.pos:])
	if n <= 0 {
		d.bad, d.pos = true, len(d.b)
		return 0
	}
	d.pos += n
	return v
}

// number32 reads a number of 32 bits.
func (d *decoder) number32() uint32 {
	v := d.number()
	if v > 0xffffffff {
		d.bad = true
	}
	return uint32(v)
}

func (d *decoder) bytes(most int) []byte {
	n := d.number()
	if n > uint64(most) || n > uint64(len(d.b)-d.pos) {
		d.bad = true
		return nil
	}
	b := d.b[d.pos : d.pos+int(n)]
	d.pos += int(n)
	return b
}

func (d *decoder) text() string { return string(d.bytes(maxText)) }

func (d *decoder) time() int64 {
	d.at += unzigzag(d.number())
	return d.at
}

// told notes a time of a record that could be read.
func (d *decoder) told(at int64) { d.newest = max(d.newest, at) }

// record reads what is no event.
func (d *decoder) record(tag uint64) error {
	switch tag {
	case tagAdvance:
		if at := d.time(); !d.bad {
			d.told(at)
			d.feed.Advance(at)
		}
	case tagClock:
		if offset := unzigzag(d.number()); !d.bad {
			d.feed.Clock(offset)
		}
	case tagShape:
		return d.shape()
	case tagAddr:
		return d.addr()
	case tagSocket:
		return d.socket()
	case tagProcess:
		return d.process()
	case tagString:
		if len(d.texts) >= maxDefined {
			return errTooMany
		}
		d.texts = append(d.texts, d.text())
	case tagListener:
		if len(d.listeners) >= maxDefined {
			return errTooMany
		}
		d.listeners = append(d.listeners, lists{id: d.number()})
	case tagBeginSnapshot:
		if at, netns := d.time(), d.number32(); !d.bad {
			d.told(at)
			d.partial = false
			d.feed.BeginSnapshot(netns, at)
		}
	case tagEndSnapshot:
		if at, netns := d.time(), d.number32(); !d.bad {
			d.told(at)
			if !d.partial {
				d.feed.EndSnapshot(netns, at)
			}
		}
	case tagNamespace:
		d.namespace()
	case tagAbout:
		p := event.Process{PID: d.number32(), Comm: d.text(), Cgroup: d.text(), Exe: d.text()}
		if !d.bad {
			d.feed.Process(p)
		}
	case tagLost:
		at := d.time()
		if l := (event.Lost{Where: d.text(), Count: d.number()}); !d.bad {
			d.told(at)
			d.feed.Lost(at, l)
		}
	case tagAudit:
		b := d.bytes(maxJSON)
		if d.bad {
			break
		}
		var a Audit
		if err := decodeJSON(b, &a); err != nil {
			return fmt.Errorf("reading an audit: %w", err)
		}
		d.feed.Audit(a)
	case tagMore:
		// Of a later version.
		d.number()
		d.bytes(maxRaw)
	default:
		return fmt.Errorf("%w: no record has tag %d", errMalformed, tag)
	}
	if d.bad {
		return errMalformed
	}
	return nil
}

func (d *decoder) shape() error {
	if len(d.shapes) >= maxDefined {
		return errTooMany
	}
	var n [11]uint64
	for i := range d.fields.shape {
		if v := d.number(); i < len(n) {
			n[i] = v
		}
	}
	s, ok := shapeOf(n)
	if d.bad || !ok || s.traffic>>d.fields.traffic != 0 {
		return errMalformed
	}
	d.shapes = append(d.shapes, s)
	return nil
}

func (d *decoder) addr() error {
	if len(d.addrs) >= maxDefined {
		return errTooMany
	}
	a, ok := netip.AddrFromSlice(d.bytes(16))
	if !ok {
		return errMalformed
	}
	d.addrs = append(d.addrs, a)
	return nil
}

func (d *decoder) socket() error {
	if len(d.sockets) >= maxDefined {
		return errTooMany
	}
	s := known{
		sock:  d.last.sock + uint64(unzigzag(d.number())),
		netns: d.last.netns + uint32(unzigzag(d.number())),
	}
	for _, to := range []*netip.AddrPort{&s.local, &s.remote} {
		i, port := d.number(), d.number()
		if d.bad || i > uint64(len(d.addrs)) || port > 0xffff {
			return errMalformed
		}
		if i == 0 {
			*to = netip.AddrPortFrom(netip.Addr{}, uint16(port))
		} else {
			*to = netip.AddrPortFrom(d.addrs[i-1], uint16(port))
		}
	}
	d.sockets = append(d.sockets, s)
	d.last = s
	return nil
}

func (d *decoder) process() error {
	if len(d.processes) >= maxDefined {
		return errTooMany
	}
	p := doer{pid: d.number32()}
	if len(d.b)-d.pos < len(p.comm) {
		return errMalformed
	}
	d.pos += copy(p.comm[:], d.b[d.pos:])
	p.cgroup = d.number()
	if d.bad {
		return errMalformed
	}
	d.processes = append(d.processes, p)
	return nil
}

func (d *decoder) namespace() {
	ns := event.Namespace{Inode: d.number32(), Name: d.text(), Known: d.number() == 1}
	to := sysctlNumbers(&ns.Sysctls)
	for i := range d.fields.sysctls {
		if v := unzigzag(d.number()); i < len(to) {
			*to[i] = int(v)
		}
	}
	if !d.bad {
		d.feed.Namespace(ns)
	}
}

// event reads an event or a snapshot's line of a shape and hands it over.
func (d *decoder) event(s *layoutShape) error {
	at := d.time()
	back := d.number()
	if back >= uint64(len(d.sockets)) {
		return errMalformed
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
			return errMalformed
		}
		p := &d.processes[uint64(len(d.processes))-1-back]
		e.PID, e.Comm, e.Cgroup = p.pid, p.comm, p.cgroup
	}
	if s.has&hasWhere != 0 {
		i := d.number()
		if i >= uint64(len(d.texts)) {
			return errMalformed
		}
		e.Where = cut(d.texts[i], maxSymbol) // each connection keeps one
	}
	if s.has&hasCount != 0 {
		e.Count = d.number32()
	}
	if s.traffic != 0 {
		d.traffic(s.traffic, &sock.traffic)
	}
	e.Traffic = sock.traffic
	if s.has&hasListener != 0 {
		back := d.number()
		if back >= uint64(len(d.listeners)) {
			return errMalformed
		}
		l := &d.listeners[uint64(len(d.listeners))-1-back]
		d.differences(l.numbers[:], d.fields.listener)
		e.Listener.ID = l.id
		setListener(&e.Listener, &l.numbers)
	}
	if s.has&hasInventory != 0 {
		d.differences(d.numbers[:], d.fields.inventory)
		setInventory(&d.inventory, &d.numbers)
		e.Inventory = &d.inventory
	}
	var pid uint32
	var comm string
	if s.has&hasOwner != 0 {
		pid = d.number32()
		i := d.number()
		if i >= uint64(len(d.texts)) {
			return errMalformed
		}
		comm = d.texts[i]
	}
	for range bits.OnesCount64(s.has >> hasBits) {
		d.differences(nil, maxFields) // of a later version
	}
	if d.bad {
		return errMalformed
	}
	d.told(at)
	if s.has&isSnapshot == 0 {
		d.feed.Event(e)
	} else if !d.partial {
		d.feed.Snapshot(e, pid, comm)
	}
	return nil
}

// traffic adds to a socket's numbers those that changed.
func (d *decoder) traffic(which uint64, t *event.Traffic) {
	for ; which != 0; which &= which - 1 {
		delta := uint64(unzigzag(d.number()))
		switch bits.TrailingZeros64(which) {
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

// differences reads what [Encoder.differences] writes of a group that has so
// many fields in this dump.
func (d *decoder) differences(n []uint64, fields int) {
	which := d.number()
	if fields < 64 && which>>fields != 0 {
		d.bad = true
		return
	}
	for ; which != 0; which &= which - 1 {
		delta := uint64(unzigzag(d.number()))
		if i := bits.TrailingZeros64(which); i < len(n) {
			n[i] += delta
		}
	}
}
