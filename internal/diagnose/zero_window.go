package diagnose

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/tcptrace/tcptrace/internal/timeline"
)

const codeZeroWindow = "zero-window"

var docZeroWindow = Doc{
	Code:     codeZeroWindow,
	Severity: Warning,
	Summary:  "the receiver kept its window shut: its process does not read, and the sender has to wait",
	Meaning: `Each end tells the other how much it can take: its receive window. When the application does not read, the receive queue fills and the window shuts. The sender then sends nothing but a probe now and then, and what its application goes on to write fills the send queue, until write() blocks. The network is not at fault.

A window that shuts for a moment is how TCP slows a sender down to the pace of its receiver, and healthy. It counts when it stayed shut for longer than --zero-window (5 s): by then a sender has probed five times, a person has noticed, and a receiver that merely is slow has read something. Some receivers stop on purpose (a paused player, a pager, a suspended program): then this is what was meant.

It is measured where a probe or a snapshot of the sockets showed the window shut, from the first to the last that did with nothing sent between, so that the truth is somewhat longer. A probe counts where the one before it was answered. Where probes go unanswered, the peer or the way to it is gone, whatever its window: that is told apart, once it has lasted for --backoff (15 s) or the kernel gave up. It also gives up when the socket's TCP_USER_TIMEOUT is over, which since Linux 5.11 (and stable kernels of 2021) counts from when the window was shut, answered or not.

Where both ends are on this host, one verdict names the process that does not read.`,
	Counts: "connections",
	Evidence: []DocKey{
		{"stalled_ms", "ms", "the longest that a window was seen shut, at least"},
		{"side", "", "what this host is to the connection: sender, receiver or both"},
		{"recv_queue", "bytes", "received and not read, the most of one connection; null where the receiver is elsewhere"},
		{"send_queue", "bytes", "written and not acknowledged, the most of one connection; null where the sender is elsewhere"},
		{"stalled_now", "connections", "whose window is shut as far as is known"},
		{"silent_ms", "ms", "the longest that probes of a shut window went unanswered, at least; 0 where they were answered as far as was seen"},
		{"killed", "connections", "given up by the kernel with the window shut"},
		{"receiver", "", "the process that does not read, or its address where it is elsewhere"},
		{"sender", "", "the process that waits, or its address where it is elsewhere"},
	},
	Fix: []string{
		"find out why the receiving process does not read: blocked on something else (a lock, a disk, its own downstream), stopped, or waiting for its turn",
		"a sender that must not wait needs a time limit: on write(), or TCP_USER_TIMEOUT, which ends the connection; or a bounded queue that may drop",
		"larger buffers (SO_RCVBUF, net.ipv4.tcp_rmem) only delay it",
		"probes that go unanswered: look at whether the peer's host is up, and at the way to it (firewalls, routes)",
	},
	Counters: []string{"TcpExt.TCPToZeroWindowAdv", "TcpExt.TCPFromZeroWindowAdv", "TcpExt.TCPWantZeroWindowAdv", "TcpExt.TCPWinProbe"},
	Source: []string{
		"net/ipv4/tcp_output.c: tcp_select_window(), tcp_send_probe0()",
		"net/ipv4/tcp_timer.c: tcp_probe_timer()",
	},
}

const (
	zeroWindowGroups = 4096
	zeroWindowShut   = 65536 // connections that are followed
)

// zeroWindow follows connections whose window is shut: the sender's end by its
// probes and by snapshots, the receiver's by snapshots.
type zeroWindow struct {
	shut  groups[*timeline.Conn, stall]
	found groups[Key, *stalls]
	next  int64
}

func newZeroWindow() *zeroWindow {
	return &zeroWindow{
		shut:  groups[*timeline.Conn, stall]{max: zeroWindowShut},
		found: groups[Key, *stalls]{max: zeroWindowGroups},
	}
}

func (*zeroWindow) Code() string { return codeZeroWindow }
func (*zeroWindow) Doc() Doc     { return docZeroWindow }

// stall is a window that is shut.
type stall struct {
	from, to int64         // when it was first and last seen shut
	probe    int64         // the newest probe
	gap      time.Duration // between the newest two
	mute     int64         // when probes were last known to go unanswered, 0 if they do not
	moved    uint64        // bytes sent, or received by this end, by then
	receiver bool          // it is this end's own window
	known    bool
	in       *stalls        // the finding that it is part of, nil none yet
	as       *timeline.Conn // the end by which it counts there
}

// stalls are those of one receiver, or of one sender towards another host.
type stalls struct {
	key              Key
	sender, receiver timeline.Owner
	from, to         netip.AddrPort // the ends, where they are elsewhere
	both, own        bool           // sides that were seen here: both, or only the receiver
	first            int64          // when a window was first seen shut
	longest          time.Duration
	silent           time.Duration // the longest that probes went unanswered
	recv, send       uint32
	now              map[*timeline.Conn]struct{}
	killed           uint64
	errno            uint16 // of the newest of these
}

func (r *zeroWindow) Entry(x *Engine, c *timeline.Conn, e *timeline.Entry) {
	switch e.Kind {
	case timeline.EntryZeroWindow:
		// A probe is sent because the window was shut when the peer was last
		// heard: that the one before it was answered.
		r.seen(x, c, c.Last(), sighting{probe: true, mute: e.Probes() > 1})
	case timeline.EntryClosed:
		r.closed(x, c, e)
	}
}

// Changed hears of what a snapshot showed.
func (r *zeroWindow) Changed(x *Engine, c *timeline.Conn) {
	if c.Phase() != timeline.PhaseSocket || c.SnapshotAt() == 0 || c.SnapshotAt() < c.Last() {
		return
	}
	shut, unanswered := c.Window()
	switch {
	case shut:
		r.seen(x, c, c.SnapshotAt(), sighting{mute: unanswered > 1})
	case c.OwnWindowShut():
		r.seen(x, c, c.SnapshotAt(), sighting{own: true})
	case len(r.shut.m) > 0:
		r.opened(x, c)
	}
}

func (r *zeroWindow) opened(x *Engine, c *timeline.Conn) {
	s := r.shut.m[c]
	if s == nil || !s.v.known {
		return
	}
	if f := s.v.in; f != nil {
		delete(f.now, s.v.as)
		x.touch(r, f.key)
	}
	s.v = stall{}
}

// one is the end by which a connection is counted that may have both here.
func one(c *timeline.Conn, own bool) *timeline.Conn {
	if p := c.Peer(); p != nil && !own {
		return p
	}
	return c
}

// sighting is what showed that a window was shut: a probe, or else a snapshot.
type sighting struct {
	probe bool
	mute  bool // probes go unanswered: it was shut when the peer was last heard
	own   bool // it is this end's own, else the peer's
}

// seen takes note that a window was shut at that time.
func (r *zeroWindow) seen(x *Engine, c *timeline.Conn, at int64, by sighting) {
	s := r.shut.make(c)
	moved := c.Traffic().BytesSent
	if by.own {
		moved = c.Traffic().BytesReceived
	}
	// The time between probes doubles while a window stays shut, and begins
	// anew when it has been open. (A timer may be a little early or late.)
	var gap time.Duration
	if by.probe && s.probe != 0 {
		gap = time.Duration(at - s.probe)
	}
	again := gap > 0 && gap < s.gap*3/5
	slept := time.Duration(at-max(s.to, s.mute)) > timerPause
	if !s.known || s.receiver != by.own || moved != s.moved || again || slept {
		r.opened(x, c)
		*s = stall{from: at, to: at, moved: moved, receiver: by.own, known: true}
		gap = 0
	}
	if by.probe && at > s.probe {
		s.probe, s.gap = at, gap
	}
	if at <= max(s.to, s.mute) {
		return
	}
	if by.mute {
		s.mute = at
	} else {
		s.to, s.mute = at, 0
	}
	if s.stalled() > x.o.ZeroWindow || s.silent() > x.o.Backoff {
		r.report(x, c, s, at, nil)
	}
}

// stalled is for how long the window was seen shut.
func (s *stall) stalled() time.Duration { return time.Duration(s.to - s.from) }

// silent is for how long probes have gone unanswered, 0 if they have not.
func (s *stall) silent() time.Duration {
	return time.Duration(max(0, s.mute-s.to))
}

// Tick asks for another look where a window was seen shut once, and may be shut
// for too long by now.
func (r *zeroWindow) Tick(x *Engine, now int64, _ *timeline.Tracker) {
	const pause = int64(500 * time.Millisecond)
	if len(r.shut.m) == 0 || now < r.next {
		return
	}
	r.next = math.MaxInt64
	if now < math.MaxInt64-pause {
		r.next = now + pause
	}
	for g := r.shut.oldest; g != nil; g = g.newer {
		if g.v.known && g.v.in == nil && now-g.v.from > int64(x.o.ZeroWindow) {
			x.sockets.add(g.key.Netns(), now)
		}
	}
}

// closed hears of the end of a connection.
func (r *zeroWindow) closed(x *Engine, c *timeline.Conn, e *timeline.Entry) {
	s := r.shut.m[c]
	// (That probes went unanswered does not say so alone: the kernel probes also
	// where this host itself, a firewall for example, lets nothing out.)
	if s != nil && s.v.known && !s.v.receiver && silence(e.Err()) && !e.ByProcess() && c.Traffic().BytesSent == s.v.moved {
		if e.Probes() > 1 {
			s.v.mute = max(s.v.mute, e.At)
		} else {
			s.v.to = max(s.v.to, e.At)
		}
		r.report(x, c, &s.v, e.At, e)
	}
	r.opened(x, c)
}

// Ended lets go of c.
func (r *zeroWindow) Ended(x *Engine, c *timeline.Conn) {
	if len(r.shut.m) == 0 {
		return
	}
	r.opened(x, c)
	r.shut.drop(c)
}

// zeroWindowKey says what a verdict about c is about: the process that does not
// read, where that is here, else the peer. It returns both ends as far as they
// are here.
func zeroWindowKey(c *timeline.Conn, own bool) (k Key, sender, receiver *timeline.Conn) {
	sender, receiver = c, c.Peer()
	if own {
		sender, receiver = c.Peer(), c
	}
	if receiver != nil {
		a, what := place(receiver)
		return Key{Netns: receiver.Netns(), PID: receiver.Owner().PID, Addr: a, What: "receiver at " + what}, sender, receiver
	}
	return Key{Netns: c.Netns(), PID: c.Owner().PID, Addr: remoteOf(c), What: "sender"}, sender, nil
}

// report tells of c, whose window is shut. closed is with what the kernel gave it
// up, nil if it did not.
func (r *zeroWindow) report(x *Engine, c *timeline.Conn, s *stall, at int64, closed *timeline.Entry) {
	k, sender, receiver := zeroWindowKey(c, s.receiver)
	f := s.in
	if f == nil {
		p := r.found.make(k)
		if *p == nil {
			*p = &stalls{key: k, first: s.from, now: make(map[*timeline.Conn]struct{})}
		}
		f, s.in = *p, *p
	}
	if closed != nil {
		f.killed++
		f.errno = closed.Err()
	}
	f.first = min(f.first, s.from)
	f.longest = max(f.longest, s.stalled())
	f.silent = max(f.silent, s.silent())
	f.both = f.both || sender != nil && receiver != nil
	f.own = f.own || receiver != nil
	var conns []*timeline.Conn
	if receiver != nil {
		f.receiver = receiver.Owner()
		f.recv = max(f.recv, receiver.Traffic().Unread)
		f.from, f.to = remoteOf(receiver), receiver.Local()
		conns = append(conns, receiver)
	}
	if sender != nil {
		f.sender = sender.Owner()
		f.send = max(f.send, sender.Traffic().Unacked)
		f.to = sender.Remote()
		if receiver == nil {
			f.from, f.to = sender.Local(), remoteOf(sender)
		}
		conns = append(conns, sender)
	}
	n := uint64(1)
	for _, x := range conns {
		if tagged(r, x) { // again, or seen from its other end
			n = 0
		}
	}
	delete(f.now, s.as) // the other end may have become known
	if len(f.now) < zeroWindowShut && c.Phase() == timeline.PhaseSocket && closed == nil {
		s.as = one(c, s.receiver)
		f.now[s.as] = struct{}{}
	}
	x.Report(r, f.key, f, at, n, conns...)
}

func (f *stalls) since() int64 { return f.first }

func (f *stalls) Describe(x *Engine, v *Verdict) {
	v.Severity, v.Confidence = Warning, Certain
	side, who := "sender", f.sender
	switch {
	case f.both:
		side, who = "both", f.receiver
	case f.own:
		side, who = "receiver", f.receiver
	}
	v.Process = process(who)
	sender, receiver := end(f.sender, f.from), end(f.receiver, f.to)
	v.Subject = Subject{"process", f.receiver.Name()}
	if !f.receiver.Known() {
		v.Subject = Subject{"peer", receiver}
		if side != "sender" {
			v.Subject.Kind = "port"
		}
	}
	noun := "connections"
	if v.Count == 1 {
		noun = "connection"
	}
	shut, does, keeps, waits := timeline.Duration(f.longest), "does not", "keeps", "waits"
	if len(f.now) == 0 {
		does, keeps, waits = "did not", "kept", "waited"
	}
	recv := Fact{Key: "recv_queue", Note: "the receiver is on another host"}
	send := Fact{Key: "send_queue", Note: "the sender is on another host"}
	if side != "sender" {
		recv = Fact{Key: recv.Key, Value: int64(f.recv)}
		v.Story = fmt.Sprintf("%s %s read: %s unread, the receive window of %d %s shut for %s",
			receiver, does, Bytes(uint64(f.recv)), v.Count, noun, shut)
	} else {
		v.Story = fmt.Sprintf("%s %s read: it %s the window of %d %s shut for %s", receiver, does, keeps, v.Count, noun, shut)
	}
	// Was it shut for so long, or did the peer only have it shut when it was
	// last heard?
	silent := timeline.Duration(f.silent)
	fell := f.silent > 0 && f.longest <= x.o.ZeroWindow
	if fell {
		v.Story = fmt.Sprintf("%s fell silent with its window shut: probes of %d %s went unanswered for %s, so it or the way to it was gone",
			receiver, v.Count, noun, silent)
	}
	if side != "receiver" {
		send = Fact{Key: send.Key, Value: int64(f.send)}
		v.Story += fmt.Sprintf("; %s from %s %s", Bytes(uint64(f.send)), sender, waits)
	}
	if f.silent > 0 && !fell {
		v.Story += fmt.Sprintf("; then probes went unanswered for %s", silent)
	}
	if f.killed > 0 {
		which := ""
		if v.Count > 1 {
			which = fmt.Sprintf(" %d of them", f.killed)
		}
		v.Story += fmt.Sprintf("; the kernel gave up%s (%s)", which, timeline.Errno(f.errno))
	}
	v.Evidence = Evidence{
		{Key: "stalled_ms", Value: int64(f.longest / time.Millisecond)},
		{Key: "side", Value: side},
		recv,
		send,
		{Key: "stalled_now", Value: int64(len(f.now))},
		{Key: "silent_ms", Value: int64(f.silent / time.Millisecond)},
		{Key: "killed", Value: int64(f.killed)},
		{Key: "receiver", Value: receiver},
		{Key: "sender", Value: sender},
	}
	fix := docZeroWindow.Fix
	v.Fix = fix[:3]
	switch {
	case fell:
		v.Fix = []string{fix[3], fix[1]}
	case side == "sender":
		v.Fix = []string{"look on the peer's host at why its process does not read", fix[1]}
	}
	if f.silent > 0 && !fell {
		v.Fix = append(slices.Clip(v.Fix), fix[3])
	}
}

// end names a process, or the address of one that is elsewhere or unknown.
func end(o timeline.Owner, a netip.AddrPort) string {
	switch {
	case o.Known():
		return o.Name()
	case !a.IsValid() && !a.Addr().IsValid():
		return "unknown"
	case a.Port() == 0:
		return a.Addr().String()
	}
	return a.String()
}
