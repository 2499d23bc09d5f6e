package dump

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"net/netip"

	"github.com/tcptrace/tcptrace/tracer/event"
)

// Size of a frame's payload from which on it is closed, in bytes: long enough
// to compress well, short enough for a second of a busy host.
const frameTarget = 512 << 10

// Encoder turns a run into frames. It is a [Feed] and belongs to one
// goroutine. Texts of more than 4 KiB are cut off, and IPv6 zones left out.
type Encoder struct {
	sink   func(*Frame)
	kind   Kind
	buf    []byte
	events uint32
	before uint64
	number uint16 // of the frame at hand
	based  bool   // first is known
	first  int64  // time of the first record that has one
	newest int64
	at     int64 // time of the record before

	shapes    map[shape]uint32
	recent    [256]recentShape // those of shapes that were met lately
	frame     uint32           // that recent is of
	addrs     map[netip.Addr]uint32
	near      [4]numbered // the addresses that were met lately
	oldest    uint8       // of near
	sockets   sockets
	nsockets  uint32
	last      socketKey
	processes map[uint32]process
	nproc     uint32
	listeners map[uint64]*listener
	nlisten   uint32
	texts     map[string]uint32
	inventory [13]uint64

	// For preambles.
	clock  int64
	spaces kept[event.Namespace]
	known  kept[event.Process]
}

type numbered struct {
	addr  netip.Addr // not valid: none
	index uint32
}

type recentShape struct {
	shape shape
	tag   uint32
	frame uint32
}

type socketKey struct {
	sock          uint64
	netns         uint32
	local, remote netip.AddrPort
}

type socket struct {
	key     socketKey
	index   uint32
	traffic [6]uint64
}

type process struct {
	comm   event.Comm
	cgroup uint64
	index  uint32
}

type listener struct {
	index   uint32
	numbers [9]uint64
}

// NewEncoder returns an encoder that hands each frame to sink, which may keep
// it.
func NewEncoder(sink func(*Frame)) *Encoder {
	e := &Encoder{
		sink: sink, kind: FrameRecords,
		shapes: make(map[shape]uint32), addrs: make(map[netip.Addr]uint32),
		processes: make(map[uint32]process), listeners: make(map[uint64]*listener), texts: make(map[string]uint32),
		spaces: kept[event.Namespace]{most: keptSpaces}, known: kept[event.Process]{most: keptProcesses},
		buf: make([]byte, 0, frameTarget+frameTarget/8),
	}
	e.begin()
	return e
}

// begin starts an empty payload.
func (e *Encoder) begin() {
	e.buf = e.buf[:0]
	e.events, e.based, e.first = 0, false, e.newest
	clear(e.shapes)
	e.frame++
	clear(e.addrs)
	e.near = [4]numbered{}
	e.sockets.clear()
	clear(e.processes)
	clear(e.listeners)
	clear(e.texts)
	e.nsockets, e.nproc, e.nlisten = 0, 0, 0
	e.last = socketKey{}
	e.inventory = [13]uint64{}
}

// Flush closes the frame at hand, if it holds anything.
func (e *Encoder) Flush() {
	if len(e.buf) == 0 {
		return
	}
	// A frame is kept by others, perhaps for long: it has no room to spare.
	f := &Frame{Kind: e.kind, First: e.first, Last: e.newest, Before: e.before, Events: e.events, Number: e.number, Raw: bytes.Clone(e.buf)}
	if e.kind == FrameRecords {
		e.number++
	}
	e.before += uint64(e.events)
	e.begin()
	e.sink(f)
}

// Before is how many events of the recording came before what is not in a
// frame yet.
func (e *Encoder) Before() uint64 { return e.before }

// Preamble returns what was told of namespaces and processes, for the beginning
// of another part. It is to come before the frames of later calls. What was
// told of a process that has done nothing since very many others were told of
// is left out; there its name is all that is known.
func (e *Encoder) Preamble() *Frame {
	e.Flush()
	var out *Frame
	sink := e.sink
	e.sink = func(f *Frame) { out = f }
	e.kind = FramePreamble
	e.repeat()
	e.sink, e.kind = sink, FrameRecords
	return out
}

// Repeat puts what a preamble would tell into a frame of records.
func (e *Encoder) Repeat() {
	e.Flush()
	e.repeat()
}

func (e *Encoder) repeat() {
	e.uvarint(tagClock)
	e.uvarint(zigzag(e.clock))
	e.spaces.each(e.namespace)
	e.known.each(e.about)
	e.Flush()
}

// full closes a frame that has grown long.
func (e *Encoder) full() {
	if len(e.buf) >= frameTarget || e.nsockets >= maxDefined-1 || e.nproc >= maxDefined-1 || e.nlisten >= maxDefined-1 ||
		len(e.shapes) >= maxDefined-1 || len(e.texts) >= maxDefined-1 || len(e.addrs) >= maxDefined-4 {
		e.Flush()
	}
}

func (e *Encoder) uvarint(v uint64) { e.buf = binary.AppendUvarint(e.buf, v) }

func (e *Encoder) text(s string) {
	s = s[:min(len(s), maxText)]
	e.uvarint(uint64(len(s)))
	e.buf = append(e.buf, s...)
}

// time writes a time as its distance from the one before, the first in a frame
// from the frame's.
func (e *Encoder) time(t int64) {
	if !e.based {
		e.based, e.first, e.at = true, t, t
	}
	e.uvarint(zigzag(t - e.at))
	e.at = t
	e.newest = max(e.newest, t)
}

// Clock is [Feed].
func (e *Encoder) Clock(offset int64) {
	e.clock = offset
	e.uvarint(tagClock)
	e.uvarint(zigzag(offset))
	e.full()
}

// Advance is [Feed].
func (e *Encoder) Advance(now int64) {
	e.uvarint(tagAdvance)
	e.time(now)
	e.full()
}

// Namespace is [Feed].
func (e *Encoder) Namespace(ns event.Namespace) {
	e.spaces.put(ns.Inode, ns, len(ns.Name)+200)
	e.namespace(ns)
	e.full()
}

func (e *Encoder) namespace(ns event.Namespace) {
	e.uvarint(tagNamespace)
	e.uvarint(uint64(ns.Inode))
	e.text(ns.Name)
	e.uvarint(bit(ns.Known))
	for _, v := range sysctlNumbers(&ns.Sysctls) {
		e.uvarint(zigzag(int64(*v)))
	}
}

// Process is [Feed].
func (e *Encoder) Process(p event.Process) {
	e.known.put(p.PID, p, len(p.Comm)+len(p.Cgroup)+len(p.Exe)+20)
	e.about(p)
	e.full()
}

func (e *Encoder) about(p event.Process) {
	e.uvarint(tagAbout)
	e.uvarint(uint64(p.PID))
	e.text(p.Comm)
	e.text(p.Cgroup)
	e.text(p.Exe)
}

// Lost is [Feed].
func (e *Encoder) Lost(at int64, l event.Lost) {
	e.uvarint(tagLost)
	e.time(at)
	e.text(l.Where)
	e.uvarint(l.Count)
	e.full()
}

// Audit is [Feed]. Of one that is too long, the beginning is kept.
func (e *Encoder) Audit(a Audit) {
	b, err := encodeJSON(a)
	for err != nil || checkJSON(b) != nil {
		if !a.halve() {
			return // nothing but one giant note
		}
		b, err = encodeJSON(a)
	}
	e.uvarint(tagAudit)
	e.bytes(b)
	e.full()
}

func (e *Encoder) bytes(b []byte) {
	e.uvarint(uint64(len(b)))
	e.buf = append(e.buf, b...)
}

// BeginSnapshot is [Feed].
func (e *Encoder) BeginSnapshot(netns uint32, now int64) {
	e.uvarint(tagBeginSnapshot)
	e.time(now)
	e.uvarint(uint64(netns))
	e.full()
}

// EndSnapshot is [Feed].
func (e *Encoder) EndSnapshot(netns uint32, now int64) {
	e.uvarint(tagEndSnapshot)
	e.time(now)
	e.uvarint(uint64(netns))
	e.full()
}

// Event is [Feed].
func (e *Encoder) Event(ev *event.Event) {
	e.event(ev, 0, 0, "")
	e.events++
	e.full()
}

// Snapshot is [Feed].
func (e *Encoder) Snapshot(ev *event.Event, pid uint32, comm string) {
	has := uint8(isSnapshot)
	if pid != 0 {
		has |= hasOwner
	}
	e.event(ev, has, pid, comm)
	e.full()
}

func (e *Encoder) event(ev *event.Event, has uint8, pid uint32, comm string) {
	// Definitions come before what they are for.
	s := e.socket(ev)
	var proc, where, owner uint32
	if ev.PID != 0 || ev.Cgroup != 0 || ev.Comm != (event.Comm{}) {
		has |= hasProcess
		proc = e.process(ev)
	}
	if ev.Where != "" {
		has |= hasWhere
		where = e.string(ev.Where)
	}
	if ev.Count != 0 {
		has |= hasCount
	}
	var lis *listener
	if ev.Listener != (event.Listener{}) {
		has |= hasListener
		lis = e.listener(ev.Listener.ID)
	}
	if ev.Inventory != nil {
		has |= hasInventory
	}
	if has&hasOwner != 0 {
		owner = e.string(comm)
	}
	traffic := trafficNumbers(&ev.Traffic)
	var changed uint8
	for i, v := range traffic {
		if v != s.traffic[i] {
			changed |= 1 << i
		}
	}
	shape := shape{
		a: uint64(ev.Kind) | uint64(ev.Old)<<8 | uint64(ev.New)<<16 | uint64(ev.Attempt)<<24 | uint64(ev.Flags)<<32 | uint64(ev.Err)<<48,
		b: uint64(ev.Reason) | uint64(ev.TCPFlags)<<32 | bit(ev.Out)<<40 | uint64(has)<<48 | uint64(changed)<<56,
	}
	r := &e.recent[(shape.a*0x9e3779b97f4a7c15^shape.b*0xc2b2ae3d27d4eb4f)>>56]
	tag, ok := r.tag, r.frame == e.frame && r.shape == shape
	if !ok {
		tag, ok = e.shapes[shape]
	}
	if !ok {
		tag = uint32(len(e.shapes))
		e.shapes[shape] = tag
		e.uvarint(tagShape)
		for _, v := range shape.numbers() {
			e.uvarint(v)
		}
	}

	*r = recentShape{shape, tag, e.frame}

	e.uvarint(uint64(tag) + tagEvent)
	e.time(ev.Time)
	e.uvarint(uint64(e.nsockets - 1 - s.index))
	if has&hasProcess != 0 {
		e.uvarint(uint64(e.nproc - 1 - proc))
	}
	if has&hasWhere != 0 {
		e.uvarint(uint64(where))
	}
	if has&hasCount != 0 {
		e.uvarint(uint64(ev.Count))
	}
	for i, v := range traffic {
		if changed&(1<<i) != 0 {
			e.uvarint(zigzag(int64(v - s.traffic[i])))
		}
	}
	s.traffic = traffic
	if lis != nil {
		e.uvarint(uint64(e.nlisten - 1 - lis.index))
		now := listenerNumbers(&ev.Listener)
		e.differences(lis.numbers[:], now[:])
	}
	if ev.Inventory != nil {
		now := inventoryNumbers(ev.Inventory)
		e.differences(e.inventory[:], now[:])
	}
	if has&hasOwner != 0 {
		e.uvarint(uint64(pid))
		e.uvarint(uint64(owner))
	}
}

// differences writes which numbers are others than before, and by how much,
// and makes before now.
func (e *Encoder) differences(before, now []uint64) {
	var mask uint64
	for i := range now {
		if now[i] != before[i] {
			mask |= 1 << i
		}
	}
	e.uvarint(mask)
	for i := range now {
		if now[i] != before[i] {
			e.uvarint(zigzag(int64(now[i] - before[i])))
		}
	}
	copy(before, now)
}

// socket finds or defines the socket of an event.
func (e *Encoder) socket(ev *event.Event) *socket {
	key := socketKey{ev.Sock, ev.Netns, ev.Local, ev.Remote}
	s := e.sockets.find(ev.Sock)
	if s != nil && s.key == key {
		return s
	}
	if key.netns != e.last.netns {
		e.spaces.touch(key.netns)
	}
	local, remote := e.addr(ev.Local.Addr()), e.addr(ev.Remote.Addr())
	e.uvarint(tagSocket)
	e.uvarint(zigzag(int64(key.sock - e.last.sock)))
	e.uvarint(zigzag(int64(key.netns) - int64(e.last.netns)))
	e.uvarint(uint64(local))
	e.uvarint(uint64(ev.Local.Port()))
	e.uvarint(uint64(remote))
	e.uvarint(uint64(ev.Remote.Port()))
	e.last = key
	if s == nil {
		s = e.sockets.add(ev.Sock)
	}
	*s = socket{key: key, index: e.nsockets}
	e.nsockets++
	return s
}

// addr finds or defines an address; 0 is none.
func (e *Encoder) addr(a netip.Addr) uint32 {
	if !a.IsValid() {
		return 0
	}
	a = a.WithZone("")
	for _, r := range e.near {
		if r.addr == a {
			return r.index
		}
	}
	if i, ok := e.addrs[a]; ok {
		e.near[e.oldest&3] = numbered{a, i}
		e.oldest++
		return i
	}
	e.uvarint(tagAddr)
	e.bytes(a.AsSlice())
	i := uint32(len(e.addrs)) + 1
	e.addrs[a] = i
	return i
}

func (e *Encoder) process(ev *event.Event) uint32 {
	p, ok := e.processes[ev.PID]
	if ok && p.comm == ev.Comm && p.cgroup == ev.Cgroup {
		return p.index
	}
	p = process{ev.Comm, ev.Cgroup, e.nproc}
	e.known.touch(ev.PID)
	e.uvarint(tagProcess)
	e.uvarint(uint64(ev.PID))
	e.buf = append(e.buf, ev.Comm[:]...)
	e.uvarint(ev.Cgroup)
	e.processes[ev.PID] = p
	e.nproc++
	return p.index
}

func (e *Encoder) string(s string) uint32 {
	if i, ok := e.texts[s]; ok {
		return i
	}
	e.uvarint(tagString)
	e.text(s)
	i := uint32(len(e.texts))
	e.texts[s] = i
	return i
}

func (e *Encoder) listener(id uint64) *listener {
	if l := e.listeners[id]; l != nil {
		return l
	}
	e.uvarint(tagListener)
	e.uvarint(id)
	l := &listener{index: e.nlisten}
	e.listeners[id] = l
	e.nlisten++
	return l
}

// sockets finds those of a frame by their cookies.
type sockets struct {
	list  []socket
	table []uint32 // index in list, and 1, by hash; a power of two long
	shift uint8
}

func (t *sockets) clear() {
	t.list = t.list[:0]
	clear(t.table)
}

func (t *sockets) slot(sock uint64) uint64 { return sock * 0x9e3779b97f4a7c15 >> t.shift }

func (t *sockets) find(sock uint64) *socket {
	if len(t.table) == 0 {
		return nil
	}
	for i := t.slot(sock); ; i = (i + 1) & uint64(len(t.table)-1) {
		n := t.table[i]
		if n == 0 {
			return nil
		}
		if s := &t.list[n-1]; s.key.sock == sock {
			return s
		}
	}
}

// add takes one that is not there. What find returned before is no longer valid.
func (t *sockets) add(sock uint64) *socket {
	if 2*len(t.list) >= len(t.table) {
		n := max(1024, 2*len(t.table))
		t.table = make([]uint32, n)
		t.shift = uint8(64 - bits.TrailingZeros(uint(n)))
		for i := range t.list {
			t.put(t.list[i].key.sock, uint32(i+1))
		}
	}
	t.list = append(t.list, socket{})
	t.put(sock, uint32(len(t.list)))
	return &t.list[len(t.list)-1]
}

func (t *sockets) put(sock uint64, n uint32) {
	i := t.slot(sock)
	for t.table[i] != 0 {
		i = (i + 1) & uint64(len(t.table)-1)
	}
	t.table[i] = n
}
