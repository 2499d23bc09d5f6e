package sockets

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/tcptrace/tcptrace/tracer/event"
)

// Key is what the sockets of a group have in common. What they are not
// grouped by is at its zero value.
type Key struct {
	Netns uint32
	State event.State // 0: several
	Hold  Hold        // where grouped by process
	PID   uint32      // where grouped by process
	Role  Role        // where grouped by service or peer
	// Local is a server's listener, or its own address if that is gone.
	Local netip.AddrPort
	// Remote is a client's destination; with port 0, a server's peer.
	Remote netip.AddrPort
	// Further holds what did not get a group of its own, for want of room.
	Further bool
}

// Address is a remote address with the number of sockets towards it.
type Address struct {
	Addr  netip.Addr
	Count uint64
}

// Group is some sockets of one namespace.
type Group struct {
	Key
	By     Dimensions
	Count  uint64
	States States
	Holds  [holds]uint64

	// Owners are up to ownersMax of the processes, in the order seen.
	Owners     []Owner
	OwnersMore bool

	// Idle times, since the last segment was received, of IdleKnown sockets.
	IdleOldest, IdleNewest time.Duration
	IdleKnown              uint64

	// Times until minisockets go, of LeftKnown.
	LeftLongest, LeftShortest time.Duration
	LeftKnown                 uint64

	RecvQ, SendQ              uint64 // bytes
	KeepaliveOn, KeepaliveOff uint64 // of sockets where it matters
	// When keepalive would end them, see Socket.ReapedAfter.
	ReapedSilent, ReapedReset time.Duration
	ReapedDiffer              bool          // these are the longest
	NextReap                  time.Duration // until the first could be reaped, if its peer stays silent
	reapKnown                 bool

	// What is older than the thresholds.
	closing         [len(closingStates)]waiting
	unread, unacked waiting
	silent          waiting
	shut, deaf      uint64 // the peer's window is 0 with data waiting; ours is with data unread

	// Addresses are the most frequent remote addresses, AddressCount is how
	// many different ones were counted.
	Addresses     []Address
	AddressCount  int
	AddressesMore bool // there are more than were counted
	addresses     map[netip.Addr]uint64

	Trouble bool
	Notes   []string // sentences
}

const (
	ownersMax  = 8
	addressMax = 16
)

// ReapKnown says that ReapedSilent, ReapedReset and NextReap hold.
func (g *Group) ReapKnown() bool { return g.reapKnown }

// Keepalive is "on", "off", "mixed", or "" where it does not apply.
func (g *Group) Keepalive() string {
	switch {
	case g.KeepaliveOn == 0 && g.KeepaliveOff == 0:
		return ""
	case g.KeepaliveOff == 0:
		return "on"
	case g.KeepaliveOn == 0:
		return "off"
	}
	return "mixed"
}

func (v *Survey) key(s *Socket) Key {
	by := v.o.By
	k := Key{Netns: s.Netns}
	if by&ByState != 0 {
		k.State = s.State
	}
	if by&ByProcess != 0 {
		k.Hold = s.Hold
		if s.Hold == HoldProcess || s.Hold == HoldQueue {
			k.PID = s.Owner.PID
		}
	}
	if by&(ByService|ByPeer) != 0 {
		k.Role = s.Role
		if s.Role == RoleServer {
			if k.Local = s.Listener; !k.Local.IsValid() {
				k.Local = s.Local
			}
			if by&ByPeer != 0 {
				k.Remote = netip.AddrPortFrom(s.Remote.Addr(), 0)
			}
		} else {
			k.Remote = s.Remote
		}
	}
	return k
}

// group adds a socket to its group.
func (v *Survey) group(s *Socket) {
	k := v.key(s)
	g := v.groups[k]
	if g == nil && len(v.groups) >= maxGroups {
		v.report.Ungrouped++
		k = Key{Netns: s.Netns, State: k.State, Further: true}
		g = v.groups[k]
	}
	if g == nil {
		g = &Group{Key: k, By: v.o.By}
		v.groups[k] = g
	}
	g.Count++
	g.States[s.State]++
	g.Holds[s.Hold]++
	g.own(s.Owner)
	if !k.Remote.IsValid() {
		v.address(g, s.Remote.Addr())
	}
	if s.Idle >= 0 {
		if g.IdleKnown == 0 || s.Idle < g.IdleNewest {
			g.IdleNewest = s.Idle
		}
		g.IdleOldest = max(g.IdleOldest, s.Idle)
		g.IdleKnown++
	}
	if s.Left >= 0 {
		if g.LeftKnown == 0 || s.Left < g.LeftShortest {
			g.LeftShortest = s.Left
		}
		g.LeftLongest = max(g.LeftLongest, s.Left)
		g.LeftKnown++
	}
	if !s.Full {
		return
	}
	g.RecvQ += uint64(s.Traffic.Unread)
	g.SendQ += uint64(s.Traffic.Unacked)
	g.keepalive(s)
	g.judge(s)
}

func (g *Group) own(o Owner) {
	if o.PID == 0 {
		return
	}
	for _, have := range g.Owners {
		if have.PID == o.PID {
			return
		}
	}
	if len(g.Owners) < ownersMax {
		g.Owners = append(g.Owners, o)
	} else {
		g.OwnersMore = true
	}
}

func (v *Survey) address(g *Group, a netip.Addr) {
	if _, ok := g.addresses[a]; !ok {
		if v.addresses >= maxAddresses {
			g.AddressesMore = true
			return
		}
		v.addresses++
		if g.addresses == nil {
			g.addresses = make(map[netip.Addr]uint64)
		}
	}
	g.addresses[a]++
}

func (g *Group) keepalive(s *Socket) {
	if !Watched(s.State) || s.Hold == HoldKernel {
		return // an orphan's end does not depend on it
	}
	if !s.Keepalive {
		g.KeepaliveOff++
		return
	}
	g.KeepaliveOn++
	silent, reset, ok := s.ReapedAfter()
	if !ok {
		return
	}
	g.ReapedDiffer = g.ReapedDiffer || g.reapKnown && (silent != g.ReapedSilent || reset != g.ReapedReset)
	if s.Idle >= 0 {
		if left := max(silent-s.Idle, 0); !g.reapKnown || left < g.NextReap {
			g.NextReap = left
		}
	}
	g.ReapedSilent, g.ReapedReset = max(g.ReapedSilent, silent), max(g.ReapedReset, reset)
	g.reapKnown = true
}

// waiting counts sockets that something has lasted too long for.
type waiting struct {
	n              uint64
	oldest, newest time.Duration
}

func (w *waiting) add(d time.Duration) {
	if w.n == 0 || d < w.newest {
		w.newest = d
	}
	w.oldest = max(w.oldest, d)
	w.n++
}

// span tells the ages, which are the least that they can be.
func (w *waiting) span() string {
	oldest, newest := Age(w.oldest), Age(w.newest)
	if oldest == newest {
		return "for at least " + oldest
	}
	return "for at least " + newest + " to " + oldest
}

// closingStates are passed through quickly when all is well.
var closingStates = [...]struct {
	state       event.State
	held, alone string // in words, with a process and without
}{
	{event.StateCloseWait, "the peer has closed, this process has not", "the peer has closed, nobody has accepted the connection"},
	{event.StateFinWait1, "the FIN sent is not acknowledged", "the FIN sent is not acknowledged"},
	{event.StateFinWait2, "this process has ended sending, the peer has not closed", "closed here, the peer has not closed"},
	{event.StateClosing, "the FIN sent is not acknowledged", "the FIN sent is not acknowledged"},
	{event.StateLastAck, "the FIN sent is not acknowledged", "the FIN sent is not acknowledged"},
}

// judge counts what is not as it should be. The last segment came after the
// peer's FIN and after any data, so idle is the least time that either has
// waited.
func (g *Group) judge(s *Socket) {
	if s.State != event.StateSynSent && s.State != event.StateClose {
		if s.SendWindow == 0 && s.Traffic.Unacked > 0 {
			g.shut++
		}
		if s.ReceiveWindow == 0 && s.Traffic.Unread > 0 {
			g.deaf++
		}
	}
	if s.Idle < 0 {
		return
	}
	for i, c := range closingStates {
		if c.state == s.State && s.Idle >= oldClosing {
			g.closing[i].add(s.Idle)
		}
	}
	if s.State == event.StateEstablished && s.Idle >= oldSilence && !s.Keepalive && s.Hold == HoldProcess {
		g.silent.add(s.Idle)
	}
	if s.Traffic.Unread > 0 && s.Idle >= oldUnread {
		g.unread.add(s.Idle)
	}
	if s.Traffic.Unacked > 0 && s.Idle >= oldUnacked {
		g.unacked.add(s.Idle)
	}
}

// settle draws conclusions, once all sockets are in.
func (g *Group) settle() {
	if g.Remote.IsValid() {
		g.addresses = map[netip.Addr]uint64{g.Remote.Addr(): g.Count}
	}
	g.AddressCount = len(g.addresses)
	for a, n := range g.addresses {
		g.Addresses = append(g.Addresses, Address{a, n})
	}
	slices.SortFunc(g.Addresses, func(a, b Address) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), a.Addr.Compare(b.Addr))
	})
	g.Addresses = slices.Clip(g.Addresses[:min(len(g.Addresses), addressMax)])
	g.addresses = nil
	slices.SortFunc(g.Owners, func(a, b Owner) int { return cmp.Compare(a.PID, b.PID) })

	note := func(trouble bool, format string, args ...any) {
		g.Trouble = g.Trouble || trouble
		g.Notes = append(g.Notes, fmt.Sprintf(format, args...))
	}
	for i, c := range closingStates {
		w := &g.closing[i]
		if w.n == 0 {
			continue
		}
		text := c.held
		if g.Holds[HoldProcess]+g.Holds[HoldUnknown] == 0 {
			text = c.alone
		}
		if g.State == 0 {
			text = StateName(c.state) + ", " + text
		}
		if c.state == event.StateCloseWait {
			text += ", " + w.span() + g.freed()
		} else {
			text += ", " + w.span()
		}
		note(true, "%s", g.of(w.n)+text)
	}
	if g.deaf > 0 {
		note(true, "%s", g.of(g.deaf)+"received data is not read, and the receive window is shut")
	}
	if w := &g.unread; w.n > g.deaf {
		note(true, "%s", g.of(w.n)+"received data is not read, "+w.span())
	}
	if g.shut > 0 {
		note(true, "%s", g.of(g.shut)+"data cannot be sent: the peer keeps its receive window shut")
	}
	if w := &g.unacked; w.n > g.shut {
		note(true, "%s", g.of(w.n)+"data waits to be sent or acknowledged, nothing was heard of the peer "+w.span())
	}
	if w := &g.silent; w.n > 0 {
		note(false, "%s", g.of(w.n)+"ESTABLISHED, silent "+w.span()+" and without keepalive: nobody would notice that the peer is gone")
	}
	if n := g.Holds[HoldQueue]; n > 0 && g.By&ByProcess == 0 {
		note(false, "%s", g.of(n)+"waiting for accept()")
	}
}

// Closing reports whether the group is of a state that sockets pass through
// quickly when all is well: CLOSE_WAIT, FIN_WAIT1, FIN_WAIT2, CLOSING, LAST_ACK.
func (g *Group) Closing() bool {
	for _, c := range closingStates {
		if c.state == g.State {
			return true
		}
	}
	return false
}

// freed says what keepalive will do about sockets in CLOSE_WAIT.
func (g *Group) freed() string {
	switch {
	case g.Keepalive() == "off":
		return "; keepalive is off: the kernel never frees them"
	case g.Keepalive() == "on" && g.reapKnown:
		return fmt.Sprintf("; keepalive frees them %s after the last segment if the peer is gone", Age(g.ReapedSilent))
	}
	return ""
}

// of says how many a sentence is about, "" for all.
func (g *Group) of(n uint64) string {
	if n == g.Count {
		return ""
	}
	return fmt.Sprintf("%d of %d: ", n, g.Count)
}

// StateName is a state as people know it.
func StateName(s event.State) string {
	switch s {
	case event.StateEstablished:
		return "ESTABLISHED"
	case event.StateSynSent:
		return "SYN_SENT"
	case event.StateSynRecv, event.StateNewSynRecv:
		return "SYN_RECV"
	case event.StateFinWait1:
		return "FIN_WAIT1"
	case event.StateFinWait2:
		return "FIN_WAIT2"
	case event.StateTimeWait:
		return "TIME_WAIT"
	case event.StateClose:
		return "CLOSE"
	case event.StateCloseWait:
		return "CLOSE_WAIT"
	case event.StateLastAck:
		return "LAST_ACK"
	case event.StateListen:
		return "LISTEN"
	case event.StateClosing:
		return "CLOSING"
	}
	return "unknown"
}

// Age is a time to its leading unit or two, such as 41s, 3m, 2h11m, 5d.
func Age(d time.Duration) string {
	d = max(d, 0)
	two := func(n, unit, sub time.Duration, name, subName string) string {
		s := fmt.Sprintf("%d%s", n/unit, name)
		if rest := n % unit / sub; n < 10*unit && rest > 0 {
			s += fmt.Sprintf("%d%s", rest, subName)
		}
		return s
	}
	const day = 24 * time.Hour
	switch {
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return two(d, time.Minute, time.Second, "m", "s")
	case d < 2*day:
		return two(d, time.Hour, time.Minute, "h", "m")
	}
	return two(d, day, time.Hour, "d", "h")
}

func compareGroups(a, b *Group) int {
	rank := func(g *Group) int {
		switch {
		case g.Further:
			return 4
		case g.Trouble:
			return 0
		case g.Closing():
			return 1
		case len(g.Notes) > 0:
			return 2
		}
		return 3
	}
	return cmp.Or(
		cmp.Compare(rank(a), rank(b)), cmp.Compare(b.Count, a.Count), cmp.Compare(a.Netns, b.Netns),
		cmp.Compare(a.State, b.State), cmp.Compare(a.PID, b.PID), cmp.Compare(a.Role, b.Role),
		a.Local.Compare(b.Local), a.Remote.Compare(b.Remote), cmp.Compare(a.Hold, b.Hold))
}

// compareListeners puts the fullest queue first.
func compareListeners(a, b Socket) int {
	fill := func(s *Socket) float64 { return float64(s.Queue.QueueLen) / float64(s.Queue.QueueLimit+1) }
	return cmp.Or(
		cmp.Compare(fill(&b), fill(&a)), cmp.Compare(b.Queue.SYNQueueLen, a.Queue.SYNQueueLen), cmp.Compare(a.Netns, b.Netns),
		cmp.Compare(a.Local.Port(), b.Local.Port()), a.Local.Compare(b.Local), cmp.Compare(a.Inode, b.Inode))
}

func comparePorts(a, b *PortUse) int {
	return cmp.Or(
		cmp.Compare(b.Share(), a.Share()), cmp.Compare(b.InUse, a.InUse), cmp.Compare(a.Netns, b.Netns),
		a.Remote.Compare(b.Remote), a.Local.Compare(b.Local))
}
