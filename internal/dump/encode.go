package dump

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"

	"github.com/tcptrace/tcptrace/tracer/event"
)

// Size of a frame's payload from which on it is closed, in bytes: long enough
// to compress well, short enough for a second of a busy host.
const frameTarget = 512 << 10

// maxKept bounds the processes and namespaces that a preamble repeats, each.
const maxKept = 1 << 16

// Encoder turns a run into frames. It is a [Feed] and belongs to one
// goroutine.
type Encoder struct {
	sink   func(*Frame)
	kind   Kind
	buf    []byte
	events uint32
	before uint64
	based  bool  // first is known
	first  int64 // time of the first record that has one
	newest int64
	at     int64 // time of the record before

	shapes    map[shape]uint32
	addrs     map[netip.Addr]uint32
	sockets   map[uint64]*socket
	nsockets  uint32
	spare     []socket
	last      socketKey
	processes map[uint32]process
	nproc     uint32
	listeners map[uint64]*listener
	nlisten   uint32
	texts     map[string]uint32
	inventory [13]uint64

	// For preambles.
	clock  int64
	spaces map[uint32]event.Namespace
	known  map[uint32]event.Process
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
		shapes: make(map[shape]uint32), addrs: make(map[netip.Addr]uint32), sockets: make(map[uint64]*socket),
		processes: make(map[uint32]process), listeners: make(map[uint64]*listener), texts: make(map[string]uint32),
		spaces: make(map[uint32]event.Namespace), known: make(map[uint32]event.Process),
	}
	e.begin()
	return e
}

// begin starts an empty payload.
func (e *Encoder) begin() {
	e.buf = make([]byte, 0, frameTarget+frameTarget/8)
	e.events, e.based, e.first = 0, false, e.newest
	clear(e.shapes)
	clear(e.addrs)
	clear(e.sockets)
	clear(e.processes)
	clear(e.listeners)
	clear(e.texts)
	e.nsockets, e.nproc, e.nlisten = 0, 0, 0
	e.spare = e.spare[:0]
	e.last = socketKey{}
	e.inventory = [13]uint64{}
}

// Flush closes the frame at hand, if it holds anything.
func (e *Encoder) Flush() {
	if len(e.buf) == 0 {
		return
	}
	f := &Frame{Kind: e.kind, First: e.first, Last: e.newest, Before: e.before, Events: e.events, Raw: e.buf}
	e.before += uint64(e.events)
	e.begin()
	e.sink(f)
}

// Skip tells of events that are not in any frame, so that a reader knows of
// them: those of frames that could not be written.
func (e *Encoder) Skip(events uint64) { e.before += events }

// Preamble returns what was told of namespaces and processes, for the beginning
// of another part. It is to come before the frames of later calls.
func (e *Encoder) Preamble() *Frame {
	e.Flush()
	var out *Frame
	sink := e.sink
	e.sink = func(f *Frame) { out = f }
	e.kind = FramePreamble
	e.number(tagClock)
	e.number(zigzag(e.clock))
	for _, inode := range slices.Sorted(maps.Keys(e.spaces)) {
		e.namespace(e.spaces[inode])
	}
	for _, pid := range slices.Sorted(maps.Keys(e.known)) {
		if len(e.buf) > maxRaw/2 {
			break // of many thousands, the rest will be told again
		}
		e.about(e.known[pid])
	}
	e.Flush()
	e.sink, e.kind = sink, FrameRecords
	return out
}

// full closes a frame that has grown long.
func (e *Encoder) full() {
	if len(e.buf) >= frameTarget || e.nsockets >= maxDefined-1 || e.nproc >= maxDefined-1 || e.nlisten >= maxDefined-1 ||
		len(e.shapes) >= maxDefined-1 || len(e.texts) >= maxDefined-1 || len(e.addrs) >= maxDefined-4 {
		e.Flush()
	}
}

func (e *Encoder) number(v uint64) { e.buf = binary.AppendUvarint(e.buf, v) }

func (e *Encoder) text(s string) {
	s = s[:min(len(s), maxText)]
	e.number(uint64(len(s)))
	e.buf = append(e.buf, s...)
}

// time writes a time as its distance from the one before, the first in a frame
// from the frame's.
func (e *Encoder) time(t int64) {
	if !e.based {
		e.based, e.first, e.at = true, t, t
	}
	e.number(zigzag(t - e.at))
	e.at = t
	e.newest = max(e.newest, t)
}

// Clock is [Feed].
func (e *Encoder) Clock(offset int64) {
	e.clock = offset
	e.number(tagClock)
	e.number(zigzag(offset))
}

// Advance is [Feed].
func (e *Encoder) Advance(now int64) {
	e.number(tagAdvance)
	e.time(now)
}

// Namespace is [Feed].
func (e *Encoder) Namespace(ns event.Namespace) {
	if _, ok := e.spaces[ns.Inode]; !ok && len(e.spaces) >= maxKept {
		clear(e.spaces)
	}
	e.spaces[ns.Inode] = ns
	e.namespace(ns)
	e.full()
}

func (e *Encoder) namespace(ns event.Namespace) {
	e.number(tagNamespace)
	e.number(uint64(ns.Inode))
	e.text(ns.Name)
	e.number(bit(ns.Known))
	for _, v := range sysctlNumbers(&ns.Sysctls) {
		e.number(zigzag(int64(*v)))
	}
}

// Process is [Feed].
func (e *Encoder) Process(p event.Process) {
	if _, ok := e.known[p.PID]; !ok && len(e.known) >= maxKept {
		clear(e.known)
	}
	e.known[p.PID] = p
	e.about(p)
	e.full()
}

func (e *Encoder) about(p event.Process) {
	e.number(tagAbout)
	e.number(uint64(p.PID))
	e.text(p.Comm)
	e.text(p.Cgroup)
	e.text(p.Exe)
}

// Lost is [Feed].
func (e *Encoder) Lost(at int64, l event.Lost) {
	e.number(tagLost)
	e.time(at)
	e.text(l.Where)
	e.number(l.Count)
}

// Audit is [Feed].
func (e *Encoder) Audit(a Audit) {
	b, err := encodeJSON(a)
	for err != nil || len(b) > maxAudit {
		if len(a.Lines) == 0 {
			return
		}
		a.Lines = a.Lines[:len(a.Lines)/2]
		a.Notes = append(slices.Clip(a.Notes), "not kept, because there were too many: the counters of further network namespaces")
		b, err = encodeJSON(a)
	}
	e.number(tagAudit)
	e.bytes(b)
	e.full()
}

func (e *Encoder) bytes(b []byte) {
	e.number(uint64(len(b)))
	e.buf = append(e.buf, b...)
}

// BeginSnapshot is [Feed].
func (e *Encoder) BeginSnapshot(netns uint32, now int64) {
	e.number(tagBeginSnapshot)
	e.time(now)
	e.number(uint64(netns))
}

// EndSnapshot is [Feed].
func (e *Encoder) EndSnapshot(netns uint32, now int64) {
	e.number(tagEndSnapshot)
	e.time(now)
	e.number(uint64(netns))
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
	shape := shape{
		kind: ev.Kind, old: ev.Old, new: ev.New, flags: ev.Flags, err: ev.Err, attempt: ev.Attempt, reason: ev.Reason,
		tcpFlags: ev.TCPFlags, out: ev.Out, has: has,
	}
	var proc, where, owner uint32
	if ev.PID != 0 || ev.Cgroup != 0 || ev.Comm != (event.Comm{}) {
		shape.has |= hasProcess
		proc = e.process(ev)
	}
	if ev.Where != "" {
		shape.has |= hasWhere
		where = e.string(ev.Where)
	}
	if ev.Count != 0 {
		shape.has |= hasCount
	}
	var lis *listener
	if ev.Listener != (event.Listener{}) {
		shape.has |= hasListener
		lis = e.listener(ev.Listener.ID)
	}
	if ev.Inventory != nil {
		shape.has |= hasInventory
	}
	if has&hasOwner != 0 {
		owner = e.string(comm)
	}
	traffic := trafficNumbers(&ev.Traffic)
	for i, v := range traffic {
		if v != s.traffic[i] {
			shape.traffic |= 1 << i
		}
	}
	tag, ok := e.shapes[shape]
	if !ok {
		tag = uint32(len(e.shapes))
		e.shapes[shape] = tag
		e.number(tagShape)
		for _, v := range shape.numbers() {
			e.number(v)
		}
	}

	e.number(uint64(tag) + tagEvent)
	e.time(ev.Time)
	e.number(uint64(e.nsockets - 1 - s.index))
	if shape.has&hasProcess != 0 {
		e.number(uint64(e.nproc - 1 - proc))
	}
	if shape.has&hasWhere != 0 {
		e.number(uint64(where))
	}
	if shape.has&hasCount != 0 {
		e.number(uint64(ev.Count))
	}
	for i, v := range traffic {
		if shape.traffic&(1<<i) != 0 {
			e.number(zigzag(int64(v - s.traffic[i])))
		}
	}
	s.traffic = traffic
	if lis != nil {
		e.number(uint64(e.nlisten - 1 - lis.index))
		now := listenerNumbers(&ev.Listener)
		e.differences(lis.numbers[:], now[:])
	}
	if ev.Inventory != nil {
		now := inventoryNumbers(ev.Inventory)
		e.differences(e.inventory[:], now[:])
	}
	if shape.has&hasOwner != 0 {
		e.number(uint64(pid))
		e.number(uint64(owner))
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
	e.number(mask)
	for i := range now {
		if now[i] != before[i] {
			e.number(zigzag(int64(now[i] - before[i])))
		}
	}
	copy(before, now)
}

// socket finds or defines the socket of an event.
func (e *Encoder) socket(ev *event.Event) *socket {
	key := socketKey{ev.Sock, ev.Netns, ev.Local, ev.Remote}
	s := e.sockets[ev.Sock]
	if s != nil && s.key == key {
		return s
	}
	local, remote := e.addr(ev.Local.Addr()), e.addr(ev.Remote.Addr())
	e.number(tagSocket)
	e.number(zigzag(int64(key.sock - e.last.sock)))
	e.number(zigzag(int64(key.netns) - int64(e.last.netns)))
	e.number(uint64(local))
	e.number(uint64(ev.Local.Port()))
	e.number(uint64(remote))
	e.number(uint64(ev.Remote.Port()))
	e.last = key
	if s == nil {
		if len(e.spare) == cap(e.spare) {
			e.spare = make([]socket, 0, 1024)
		}
		e.spare = e.spare[:len(e.spare)+1]
		s = &e.spare[len(e.spare)-1]
		e.sockets[ev.Sock] = s
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
	if i, ok := e.addrs[a]; ok {
		return i
	}
	e.number(tagAddr)
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
	e.number(tagProcess)
	e.number(uint64(ev.PID))
	e.buf = append(e.buf, ev.Comm[:]...)
	e.number(ev.Cgroup)
	e.processes[ev.PID] = p
	e.nproc++
	return p.index
}

func (e *Encoder) string(s string) uint32 {
	if i, ok := e.texts[s]; ok {
		return i
	}
	e.number(tagString)
	e.text(s)
	i := uint32(len(e.texts))
	e.texts[s] = i
	return i
}

func (e *Encoder) listener(id uint64) *listener {
	if l := e.listeners[id]; l != nil {
		return l
	}
	e.number(tagListener)
	e.number(id)
	l := &listener{index: e.nlisten}
	e.listeners[id] = l
	e.nlisten++
	return l
}
