package sockets

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/tcptrace/tcptrace/internal/filter"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// Dimensions are what sockets are grouped by. A network namespace never
// shares a group with another.
type Dimensions uint8

const (
	ByState Dimensions = 1 << iota
	ByProcess
	ByService // a client's remote address and port; a server's listener
	ByPeer    // the same, with a server's remote address
)

// Default is what is most telling: who has how many sockets of a state
// towards what.
const Default = ByState | ByProcess | ByService

var dimensions = []struct {
	name string
	d    Dimensions
}{{"state", ByState}, {"process", ByProcess}, {"service", ByService}, {"peer", ByPeer}}

// DimensionNames are what ParseDimensions takes.
func DimensionNames() []string {
	var names []string
	for _, d := range dimensions {
		names = append(names, d.name)
	}
	return names
}

// ParseDimensions reads a list of names, separated by commas.
func ParseDimensions(list string) (Dimensions, error) {
	var by Dimensions
	for name := range strings.SplitSeq(list, ",") {
		name = strings.TrimSpace(name)
		found := false
		for _, d := range dimensions {
			if d.name == name {
				by, found = by|d.d, true
			}
		}
		if !found {
			return 0, fmt.Errorf("sockets are not grouped by %q", name)
		}
	}
	return by, nil
}

// Bounds of a survey; what is beyond them is counted, not dropped silently.
const (
	maxListeners = 65536
	maxGroups    = 65536
	maxPorts     = 65536  // destinations
	maxAddresses = 131072 // remote addresses of all groups together
)

// Options of a Survey.
type Options struct {
	By     Dimensions // 0: Default
	Filter filter.Filter
	// SYNFullAtLimit: the kernel takes as many half-open requests as a listener's
	// limit says, else one more (inet_csk_reqsk_queue_is_full(), since Linux 5.11).
	SYNFullAtLimit bool
}

// Survey takes in sockets and gives a [Report]. Use [New].
type Survey struct {
	o         Options
	spaces    map[uint32]event.Namespace
	ports     map[portKey]*PortUse
	groups    map[Key]*Group
	listeners []Socket
	listening map[listenKey][]listenAddr
	addresses int
	report    Report
}

type listenKey struct {
	netns uint32
	port  uint16
}

type listenAddr struct {
	addr  netip.Addr
	owner Owner
}

type portKey struct {
	netns  uint32
	local  netip.Addr
	remote netip.AddrPort
}

// New returns an empty survey.
func New(o Options) *Survey {
	if o.By == 0 {
		o.By = Default
	}
	return &Survey{
		o: o, spaces: make(map[uint32]event.Namespace), ports: make(map[portKey]*PortUse),
		groups: make(map[Key]*Group), listening: make(map[listenKey][]listenAddr),
	}
}

// Namespace begins a namespace. It comes before the sockets there.
func (v *Survey) Namespace(ns event.Namespace) {
	v.spaces[ns.Inode] = ns
	v.report.Namespaces++
}

// Add takes in one socket of a snapshot (event.KindSnapshot) with its owner,
// and reports whether the filter lets it through. Listeners of a namespace
// come first, as the kernel lists them: they tell servers from clients.
func (v *Survey) Add(e *event.Event, owner Owner) (Socket, bool) {
	s := v.classify(e, owner)
	if s.Role == RoleListener {
		v.listen(&s)
	}
	shown := v.match(&s)
	v.use(&s, shown)
	if !shown {
		return s, false
	}
	v.report.Sockets++
	v.report.States[s.State]++
	if s.Role != RoleListener {
		v.group(&s)
	} else if len(v.listeners) < maxListeners {
		v.listeners = append(v.listeners, s)
	} else {
		v.report.ListenersLeftOut++
	}
	return s, true
}

func (v *Survey) match(s *Socket) bool {
	f := &v.o.Filter
	if s.Role == RoleListener {
		if !f.MatchBound(s.Netns, s.Local) {
			return false
		}
	} else if !f.MatchTuple(s.Netns, s.Local, s.Remote) {
		return false
	}
	return f.MatchProcess(s.Owner.PID, s.Owner.Comm, s.Owner.Cgroup) && f.MatchState(s.State)
}

// listen remembers a listener, whatever the filter is.
func (v *Survey) listen(s *Socket) {
	k := listenKey{s.Netns, s.Local.Port()}
	list := v.listening[k]
	for _, have := range list {
		if have.addr == s.Local.Addr() {
			return // SO_REUSEPORT
		}
	}
	if len(v.listening) < maxListeners && len(list) < 1024 {
		v.listening[k] = append(list, listenAddr{s.Local.Addr(), s.Owner})
	}
}

// listener finds where a connection came in: the exact address before the
// unspecified ones, as the kernel looks it up.
func (v *Survey) listener(netns uint32, local netip.AddrPort) (listenAddr, bool) {
	var best listenAddr
	rank := 0
	for _, l := range v.listening[listenKey{netns, local.Port()}] {
		r := 0
		switch {
		case l.addr == local.Addr():
			r = 3
		case l.addr.IsUnspecified() && l.addr.Is4() == local.Addr().Is4():
			r = 2
		case l.addr == netip.IPv6Unspecified():
			r = 1 // takes IPv4 too
		}
		if r > rank {
			best, rank = l, r
		}
	}
	return best, rank > 0
}

func (v *Survey) classify(e *event.Event, owner Owner) Socket {
	s := Socket{
		Time: e.Time, Netns: e.Netns, State: e.New, Local: e.Local, Remote: e.Remote,
		Owner: owner, Traffic: e.Traffic, Queue: e.Listener, Idle: -1, Sent: -1, Left: -1,
		Keepalive: e.Has(event.FlagKeepalive),
	}
	if s.State > event.StateNewSynRecv {
		s.State = event.StateUnknown
	}
	if i := e.Inventory; i != nil {
		s.UID, s.Inode = i.UID, i.Inode
		s.KeepaliveTime, s.KeepaliveInterval, s.KeepaliveProbes = i.KeepaliveTime, i.KeepaliveInterval, i.KeepaliveProbes
		switch {
		case i.Minisocket:
			s.Left = i.Left
		case e.New != event.StateNewSynRecv && e.New != event.StateListen:
			s.Full, s.Idle, s.Sent = true, i.Idle, i.SentIdle
			s.SendWindow, s.ReceiveWindow, s.Probes, s.Backoff = i.SendWindow, i.ReceiveWindow, i.Probes, i.Retransmits
		}
	}
	if s.State == event.StateListen {
		s.Role, s.Hold = RoleListener, held(owner)
		n, limit := s.Queue.SYNQueueLen, s.Queue.QueueLimit
		s.SYNFull = n > limit || v.o.SYNFullAtLimit && n == limit
		return s
	}
	l, incoming := v.listener(s.Netns, s.Local)
	s.Role = v.role(&s, incoming)
	if incoming {
		s.Listener = netip.AddrPortFrom(l.addr, s.Local.Port())
	}
	switch {
	case s.State == event.StateNewSynRecv:
		s.State, s.Hold = event.StateSynRecv, HoldRequest
	case !s.Full || e.Has(event.FlagDead):
		s.Hold = HoldKernel
	case s.Inode == 0 && incoming:
		s.Hold = HoldQueue
		if s.Owner.PID == 0 {
			s.Owner = l.owner
		}
	default:
		s.Hold = held(owner)
	}
	if s.State == event.StateSynSent {
		s.Idle, s.Sent = -1, -1 // nothing was received yet
	}
	return s
}

func held(o Owner) Hold {
	if o.PID == 0 {
		return HoldUnknown
	}
	return HoldProcess
}

// role tells a client's socket from a server's.
func (v *Survey) role(s *Socket, incoming bool) Role {
	switch {
	case incoming || s.State == event.StateNewSynRecv:
		return RoleServer
	case s.State == event.StateSynSent:
		return RoleClient
	}
	// Its listener may be gone. connect() takes its port from the range.
	local, remote := v.inRange(s.Netns, s.Local.Port()), v.inRange(s.Netns, s.Remote.Port())
	switch {
	case local && !remote:
		return RoleClient
	case remote && !local:
		return RoleServer
	}
	return RoleUnknown
}

func (v *Survey) inRange(netns uint32, port uint16) bool {
	s := v.spaces[netns].Sysctls
	return s.PortRangeLow > 0 && int(port) >= s.PortRangeLow && int(port) <= s.PortRangeHigh
}

// PortUse is how much of the port range is in use from one local address
// towards one destination: there, a port can be used only once.
type PortUse struct {
	Netns     uint32
	Local     netip.Addr
	Remote    netip.AddrPort
	Low, High int // net.ipv4.ip_local_port_range
	InUse     int // ports
	States    States
	TWReuse   int // net.ipv4.tcp_tw_reuse
	shown     bool
}

// Ports is the number of ports in the range.
func (p *PortUse) Ports() int { return p.High - p.Low + 1 }

// Share is how much of the range is in use, 0 to 1.
func (p *PortUse) Share() float64 { return float64(p.InUse) / float64(max(p.Ports(), 1)) }

// use counts a local port. Sockets that the filter hides take ports too.
func (v *Survey) use(s *Socket, shown bool) {
	if s.Role == RoleListener || s.Role == RoleServer || !s.Remote.IsValid() || !v.inRange(s.Netns, s.Local.Port()) {
		return
	}
	k := portKey{s.Netns, s.Local.Addr(), s.Remote}
	p := v.ports[k]
	if p == nil {
		if len(v.ports) >= maxPorts {
			v.report.PortsLeftOut++
			return
		}
		sys := v.spaces[s.Netns].Sysctls
		p = &PortUse{
			Netns: s.Netns, Local: s.Local.Addr(), Remote: s.Remote,
			Low: sys.PortRangeLow, High: sys.PortRangeHigh, TWReuse: sys.TWReuse,
		}
		v.ports[k] = p
	}
	p.InUse++
	p.States[s.State]++
	p.shown = p.shown || shown
}

// States counts sockets by event.State.
type States [int(event.StateNewSynRecv) + 1]uint64

// Report is what a survey found, in the order to show it: what is most
// troubling first.
type Report struct {
	Sockets    uint64 // that the filter lets through, listeners included
	States     States
	Namespaces int

	Listeners []Socket
	Groups    []*Group
	Ports     []*PortUse

	// What is beyond the bounds.
	ListenersLeftOut uint64 // listeners
	Ungrouped        uint64 // sockets, in groups that are not told apart
	PortsLeftOut     uint64 // sockets towards further destinations
}

// Report ends the survey.
func (v *Survey) Report() *Report {
	r := &v.report
	r.Listeners = v.listeners
	slices.SortFunc(r.Listeners, compareListeners)
	r.Groups = make([]*Group, 0, len(v.groups))
	for _, g := range v.groups {
		g.settle()
		r.Groups = append(r.Groups, g)
	}
	slices.SortFunc(r.Groups, compareGroups)
	for _, p := range v.ports {
		if p.shown {
			r.Ports = append(r.Ports, p)
		}
	}
	slices.SortFunc(r.Ports, comparePorts)
	return r
}

// Ages from which something is called trouble. They are those of the verdicts'
// defaults.
const (
	oldClosing = time.Minute     // CLOSE_WAIT, FIN_WAIT, LAST_ACK
	oldUnread  = 5 * time.Second // data that the process does not read
	oldUnacked = 15 * time.Second
	oldSilence = 2 * time.Hour // without keepalive
)
