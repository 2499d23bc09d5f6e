package timeline

import (
	"cmp"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/tcptrace/tcptrace/tracer/event"
)

// inventory is what a snapshot of one namespace shows beyond connections: how
// ports are used, and the minisockets, of which there are no connections.
type inventory struct {
	at       int64
	uses     map[Flow]*PortUse
	timeWait int
	mini     map[uint16]minisocket // one for each local port
	orphans  map[uint64]*Orphan    // by identity
	cut      bool                  // orphans were left out
}

// Bounds of one inventory, and of those of all namespaces together. What is
// beyond them is left out.
const (
	maxUses    = 16384
	maxMini    = 16384
	maxOrphans = 8192
	maxStock   = 1 << 17
)

// size is how many things r remembers.
func (r *inventory) size() int {
	if r == nil {
		return 0
	}
	return len(r.uses) + len(r.mini) + len(r.orphans)
}

type minisocket struct {
	state         event.State
	local, remote netip.AddrPort
}

// Flow is what a local port can serve once: from one address here to one
// address and port there.
type Flow struct {
	From netip.Addr
	To   netip.AddrPort
}

// PortUse counts the sockets of one flow, or of several, that are not a
// listener's, as the newest snapshot of a namespace showed them.
type PortUse struct {
	At      int64 // when the snapshot began
	Sources int   // local addresses of these
	ByState [13]int
}

// Total is how many there are in all states.
func (u *PortUse) Total() int {
	n := 0
	for _, x := range u.ByState {
		n += x
	}
	return n
}

// Orphan is a FIN_WAIT2 minisocket: the process closed, the peer has not.
type Orphan struct {
	Since         int64 // when it took the socket's place; neither Exact nor Concluded: when it was first found
	Exact         bool  // that was seen
	Concluded     bool  // from the time that it has left, as if net.ipv4.tcp_fin_timeout held: with TCP_LINGER2 it may be younger
	SeenAt        int64
	Local, Remote netip.AddrPort
	Owner         Owner // who closed it, where its Source is SourceClose; else who held it; unknown if neither was seen
	Role          Role  // if that was seen
}

// timeWaitLen is the kernel's TCP_TIMEWAIT_LEN.
const timeWaitLen = time.Minute

// Holder is a socket that uses a local port.
type Holder struct {
	State         event.State
	Local, Remote netip.AddrPort
	Owner         Owner
	Client        bool // it called connect(), or is on no listener's port
	Picked, Bound bool // see Conn
}

// count takes note of a socket of a snapshot that does not listen.
func (t *Tracker) count(e *event.Event, inv *event.Inventory) {
	n := t.netns[e.Netns]
	if n == nil || n.round == nil || e.New == event.StateNewSynRecv {
		return
	}
	r := n.round
	if e.New == event.StateTimeWait {
		r.timeWait++
	}
	room := t.stock-n.newest.size()+r.size() < maxStock
	if l, _ := t.resolve(e.Netns, e.Local); l == nil && e.Remote.IsValid() && int(e.New) < len(PortUse{}.ByState) {
		f := Flow{e.Local.Addr(), e.Remote}
		u := r.uses[f]
		if u == nil && room && len(r.uses) < maxUses {
			if r.uses == nil {
				r.uses = make(map[Flow]*PortUse)
			}
			u = &PortUse{Sources: 1}
			r.uses[f] = u
		}
		if u != nil {
			u.ByState[e.New]++
		}
	}
	if !inv.Minisocket {
		return
	}
	if _, known := r.mini[e.Local.Port()]; !known && room && len(r.mini) < maxMini {
		if r.mini == nil {
			r.mini = make(map[uint16]minisocket)
		}
		r.mini[e.Local.Port()] = minisocket{e.New, e.Local, e.Remote}
	}
	switch {
	case e.New != event.StateFinWait2:
	case room && len(r.orphans) < maxOrphans:
		t.orphanFound(n, e, inv)
	default:
		r.cut = true
	}
}

func (t *Tracker) orphanFound(n *netns, e *event.Event, inv *event.Inventory) {
	o := &Orphan{Since: e.Time, Local: e.Local, Remote: e.Remote}
	c := &Conn{netns: e.Netns, last: e.Time}
	c.local, c.lport = pack(e.Local)
	c.remote, c.rport = pack(e.Remote)
	var old *Orphan
	if n.newest != nil {
		old = n.newest.orphans[e.Sock]
	}
	whole := time.Duration(n.facts.Sysctls.FinTimeout) * time.Second
	if whole > timeWaitLen {
		whole -= timeWaitLen // what is beyond, the socket itself stays (tcp_rcv_state_process)
	}
	known := t.orphans.find(c)
	switch {
	case known != nil:
		o.Since, o.Exact = known.at, true
		o.Owner, o.Role = known.process.owner(known.source), known.role
	case old != nil && old.Local == o.Local && old.Remote == o.Remote:
		*o = *old
	case n.facts.Known && inv.Left >= 0 && inv.Left <= whole:
		o.Since, o.Concluded = e.Time-int64(whole-inv.Left), true
		if n.newest != nil && !n.newest.cut {
			o.Since = min(max(o.Since, n.newest.at), e.Time) // it was not there then
		}
	}
	o.SeenAt = e.Time
	if n.round.orphans == nil {
		n.round.orphans = make(map[uint64]*Orphan)
	}
	n.round.orphans[e.Sock] = o
}

func (t *Tracker) newest(netns uint32) *inventory {
	if n := t.netns[netns]; n != nil {
		return n.newest
	}
	return nil
}

// PortUse counts the sockets of a flow in the newest snapshot of a namespace: of
// all source addresses where f.From is none, of all destinations where f.To is
// none. ok is false where there was no snapshot.
func (t *Tracker) PortUse(netns uint32, f Flow) (u PortUse, ok bool) {
	r := t.newest(netns)
	if r == nil {
		return PortUse{}, false
	}
	u.At = r.at
	anyFrom, anyTo := !f.From.IsValid() || f.From.IsUnspecified(), !f.To.IsValid()
	if !anyFrom && !anyTo {
		if x := r.uses[f]; x != nil {
			u.Sources, u.ByState = x.Sources, x.ByState
		}
		return u, true
	}
	sources := make(map[netip.Addr]struct{})
	for k, x := range r.uses {
		if !anyFrom && k.From != f.From || !anyTo && k.To != f.To {
			continue
		}
		sources[k.From] = struct{}{}
		for s, n := range x.ByState {
			u.ByState[s] += n
		}
	}
	u.Sources = len(sources)
	return u, true
}

// PortUses walks the flows of the newest snapshot of a namespace, those with the
// most sockets first.
func (t *Tracker) PortUses(netns uint32) iter.Seq2[Flow, PortUse] {
	return func(yield func(Flow, PortUse) bool) {
		r := t.newest(netns)
		if r == nil {
			return
		}
		type one struct {
			flow  Flow
			use   *PortUse
			total int
		}
		all := make([]one, 0, len(r.uses))
		for f, u := range r.uses {
			all = append(all, one{f, u, u.Total()})
		}
		slices.SortFunc(all, func(a, b one) int {
			return cmp.Or(cmp.Compare(b.total, a.total), a.flow.To.Compare(b.flow.To), a.flow.From.Compare(b.flow.From))
		})
		for _, x := range all {
			u := *x.use
			u.At = r.at
			if !yield(x.flow, u) {
				return
			}
		}
	}
}

// TimeWaitCount is how many TIME_WAIT minisockets the newest snapshot of a
// namespace showed. ok is false where there was none.
func (t *Tracker) TimeWaitCount(netns uint32) (n int, ok bool) {
	r := t.newest(netns)
	if r == nil {
		return 0, false
	}
	return r.timeWait, true
}

// Orphans walks the FIN_WAIT2 minisockets of the newest snapshot of a
// namespace, the oldest first.
func (t *Tracker) Orphans(netns uint32) iter.Seq[Orphan] {
	return func(yield func(Orphan) bool) {
		r := t.newest(netns)
		if r == nil {
			return
		}
		all := make([]*Orphan, 0, len(r.orphans))
		for _, o := range r.orphans {
			all = append(all, o)
		}
		slices.SortFunc(all, func(a, b *Orphan) int {
			return cmp.Or(cmp.Compare(a.Since, b.Since), a.Local.Compare(b.Local), a.Remote.Compare(b.Remote))
		})
		for _, o := range all {
			if !yield(*o) {
				return
			}
		}
	}
}

// Inhabited are the namespaces, sorted, in which a snapshot can teach
// something: with sockets, or with minisockets in the newest one.
func (t *Tracker) Inhabited() []uint32 {
	in := make(map[uint32]bool)
	for c := t.live.oldest; c != nil; c = c.newer {
		in[c.netns] = true
	}
	for inode, n := range t.netns {
		if n.newest != nil && len(n.newest.mini) > 0 {
			in[inode] = true
		}
	}
	return slices.Sorted(maps.Keys(in))
}

// Namespaces walks the network namespaces that are known, in the order in
// which they were met.
func (t *Tracker) Namespaces() iter.Seq[uint32] { return slices.Values(t.nsOrder) }

const maxHolders = 16

// Holders tells who uses the port of local now: listeners and connections that
// are known, and minisockets of the newest snapshot that may live still. Sockets
// with another address than local are left out, unless one of the two is a
// wildcard.
func (t *Tracker) Holders(netns uint32, local netip.AddrPort) []Holder {
	var out []Holder
	n := t.netns[netns]
	if n == nil || local.Port() == 0 {
		return nil
	}
	meets := func(a netip.Addr) bool {
		return a == local.Addr() || a.IsUnspecified() || local.Addr().IsUnspecified() || !local.Addr().IsValid()
	}
	for _, l := range n.ports[local.Port()] {
		if meets(l.Addr.Addr()) && len(out) < maxHolders {
			out = append(out, Holder{State: event.StateListen, Local: l.Addr, Owner: l.Owner()})
		}
	}
	listens := len(out) > 0
	for c := range t.Conns() {
		if len(out) >= maxHolders {
			break
		}
		if c.netns == netns && c.lport == local.Port() && c.Phase() == PhaseSocket && meets(c.Local().Addr()) {
			out = append(out, Holder{
				State: c.State(), Local: c.Local(), Remote: c.Remote(), Owner: c.Owner(),
				Client: c.Role() == RoleClient || c.Role() == RoleUnknown && !listens,
				Picked: c.Picked(), Bound: c.Bound(),
			})
		}
	}
	if n.newest != nil && len(out) < maxHolders {
		if m, ok := n.newest.mini[local.Port()]; ok && meets(m.local.Addr()) && t.now-n.newest.at <= n.lifetime(m.state) {
			out = append(out, Holder{State: m.state, Local: m.local, Remote: m.remote, Client: !listens})
		}
	}
	return out
}

// lifetime is how long a minisocket stays in a state.
func (n *netns) lifetime(s event.State) int64 {
	if s == event.StateFinWait2 && n.facts.Sysctls.FinTimeout > 0 {
		return int64(time.Duration(n.facts.Sysctls.FinTimeout) * time.Second)
	}
	return int64(timeWaitLen) // and tcp_fin_timeout by default
}
