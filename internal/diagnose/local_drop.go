package diagnose

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tcptrace/tcptrace/internal/timeline"
	"github.com/tcptrace/tcptrace/tracer/event"
)

const codeLocalDrop = "local-drop"

const (
	// dropHold is how long a dropped SYN from an unknown source waits for a
	// client on this host to send it again, which that does after 1 s.
	dropHold = 2500 * time.Millisecond
	// dropHurts is how many segments dropped on their way in to one connection
	// are more than a stray or two, if they come no further apart than
	// dropApart on average.
	dropHurts = 3
	dropApart = 20 * time.Second
)

var docLocalDrop = Doc{
	Code:     codeLocalDrop,
	Severity: Warning,
	Summary:  "this host dropped a SYN or segment before its TCP handled it: netfilter, routing, or another reason that the kernel names",
	Meaning: `The segment was there: it had arrived at this host, or its TCP had sent it, and the host itself threw it away. Nothing was lost on the network. To the program it looks the same: a connect() that times out, or data that is retransmitted.

The kernel says why. NETFILTER_DROP is a rule of nftables, iptables or firewalld. Other reasons are reverse path filtering (IP_RPFILTER), no route, a neighbour that does not answer, other packet filters (BPF_CGROUP_EGRESS, TC_INGRESS, SOCKET_FILTER, XFRM_POLICY), segments damaged on their way (TCP_CSUM, IP_CSUM), TCP-MD5 or TCP-AO keys that do not match, and want of memory. Kernels before 5.17 give no reason; there only the drops of netfilter are seen, by the function that makes them.

It is a warning where it hits a process of this host: a SYN that a local client sent, a connection's segments on their way out, or 3 and more of a connection's on their way in, no further apart than 20 s on average. It is information where segments come from elsewhere and belong to no connection, which is what firewalls are for; all of those with one reason make one verdict. It is information as well for damaged segments, for want of memory, and for what comes after a connection was closed: stateful firewalls drop that as invalid, and nobody misses it.

Not reported: what TCP itself discards (old and duplicate data), segments refused for old timestamps (paws-rejected), congestion of a queueing discipline, and packets that are forwarded. A rule that answers (reject) drops as well; that it answered is not seen.

` + docCrewMeaning,
	Counts: "segments",
	Evidence: []DocKey{
		{"reason", "", "the kernel's enum skb_drop_reason, such as NETFILTER_DROP; null where the kernel gives none"},
		{"hook", "", "the kernel function that dropped it"},
		{"direction", "", "in or out"},
		{"cause", "", "firewall, routing, damaged, authentication, memory, or other"},
		{"syns", "count", "how many of the segments were SYNs"},
		{"segments", "count", "how many were not"},
		{"destination", "", "where they were going; null where that is many"},
		{"top_sources", "", "of what came from elsewhere: addresses and networks that stand out, with how many are surely theirs"},
		{"top_ports", "", "of what came from elsewhere: the local ports that it was for most often"},
		docCrew[0], docCrew[1],
	},
	Fix: []string{
		"netfilter: `nft list ruleset` (or iptables-save) in that network namespace shows the rules, their counters which one it is; `nft monitor trace` follows a packet",
		"IP_RPFILTER: a route back to the source through the same interface, or net.ipv4.conf.*.rp_filter=2",
	},
	Counters: []string{"TcpExt.IPReversePathFilter", "Ip.InDiscards", "Ip.OutNoRoutes", "Tcp.InCsumErrors"},
	Source: []string{
		"net/core/skbuff.c: kfree_skb_reason()",
		"net/netfilter/core.c: nf_hook_slow()",
		"include/net/dropreason-core.h: enum skb_drop_reason",
	},
}

// localDrop follows segments that this host dropped: of the connections and
// clients that it hit, and of everything else together.
type localDrop struct {
	found groups[Key, *drops]
	held  []heldDrop // SYNs that may be a local client's, in the order of arrival
	// mine are local clients whose SYN was dropped, by where that was.
	mine groups[synPath, *timeline.Conn]
}

func newLocalDrop() *localDrop {
	return &localDrop{
		found: groups[Key, *drops]{max: 1024},
		mine:  groups[synPath, *timeline.Conn]{max: 4096},
	}
}

func (*localDrop) Code() string { return codeLocalDrop }
func (*localDrop) Doc() Doc     { return docLocalDrop }

// synPath is where a SYN came in, which may be another network namespace than
// its client's.
type synPath struct {
	netns         uint32
	local, remote netip.AddrPort
}

// heldDrop is a dropped SYN that came in.
type heldDrop struct {
	at            int64
	netns         uint32
	local, remote netip.AddrPort
	d             dropped
	n             uint64
}

func (h *heldDrop) path() synPath { return synPath{h.netns, h.local, h.remote} }

// of reports whether the SYN can be c's. What is sent to a loopback address does
// not leave its namespace.
func (h *heldDrop) of(c *timeline.Conn) bool {
	return h.remote == c.Local() && h.local == c.Remote() && (h.netns == c.Netns() || !h.local.Addr().IsLoopback())
}

// dropped tells a drop's reason and place.
type dropped struct {
	reason string // "" unknown
	where  string // "" unknown
	out    bool
}

// Causes of a drop.
const (
	dropByFirewall = "firewall"
	dropByRouting  = "routing"
	dropByDamaged  = "damaged"
	dropByKeys     = "authentication"
	dropByMemory   = "memory"
	dropByOther    = "other"
)

// cause sorts the kernel's reasons. It is "" for those that are no local drop.
func (d dropped) cause() string {
	switch d.reason {
	case "":
		if d.where == "nf_hook_slow" {
			return dropByFirewall
		}
		return dropByOther
	case "NETFILTER_DROP", "BPF_CGROUP_EGRESS", "SOCKET_FILTER", "TC_EGRESS", "TC_INGRESS", "XDP", "XFRM_POLICY":
		return dropByFirewall
	case "IP_RPFILTER", "IP_INNOROUTES", "IP_OUTNOROUTES", "IP_INVALID_SOURCE", "IP_LOCAL_SOURCE", "IP_LOCALNET", "IP_INVALID_DEST":
		return dropByRouting
	case "IP_CSUM", "IP_INHDR", "TCP_CSUM":
		return dropByDamaged
	case "TCP_FLAGS": // TCP's own doing: an ACK that met a listener, and was answered with RST
		return ""
	case "SOCKET_RCVBUFF", "SOCKET_BACKLOG", "PROTO_MEM":
		return dropByMemory
	}
	switch {
	case strings.HasPrefix(d.reason, "TCP_RFC7323"): // old timestamps: paws-rejected
		return ""
	case strings.HasPrefix(d.reason, "TCP_MD5"), strings.HasPrefix(d.reason, "TCP_AO"), d.reason == "TCP_MINTTL":
		return dropByKeys
	case strings.HasPrefix(d.reason, "NEIGH_"):
		return dropByRouting
	}
	return dropByOther
}

// by names what dropped it, for people.
func (d dropped) by() string {
	switch d.reason {
	case "":
		if d.where == "nf_hook_slow" {
			return "netfilter, on this host,"
		}
		return "this host"
	case "NETFILTER_DROP":
		return "netfilter, on this host,"
	case "IP_RPFILTER":
		return "reverse path filtering (rp_filter) of this host"
	}
	return "this host (" + d.reason + ")"
}

// short names it in a word.
func (d dropped) short() string {
	switch {
	case d.reason == "NETFILTER_DROP", d.reason == "" && d.where == "nf_hook_slow":
		return "netfilter"
	case d.reason == "":
		return "unknown"
	}
	return d.reason
}

func (d dropped) what() string {
	if d.out {
		return d.reason + " " + d.where + " out"
	}
	return d.reason + " " + d.where + " in"
}

// drops is what was dropped for one reason of one process's connections to one
// place, or of nobody's.
type drops struct {
	d              dropped
	to             netip.AddrPort
	who            crew
	noise          bool // from elsewhere, of no connection
	late           bool // nothing but after the close
	server         bool // to is where the process listens, else its destination
	claimed        bool // a local client's SYN, which came in again
	syns, segments uint64
	synacks        uint64 // of segments
	hurts          bool
	from           sources
	ports          heavy[uint16]
}

// add counts n segments of a kind.
func (f *drops) add(n uint64, syn, synack bool) {
	if syn {
		f.syns += n
		return
	}
	f.segments += n
	if synack {
		f.synacks += n
	}
}

func (r *localDrop) finding(k Key, d dropped) *drops {
	p := r.found.make(k)
	if *p == nil {
		*p = &drops{d: d}
	}
	return *p
}

// Entry hears of drops that hit a connection, and of clients that send their
// SYN again.
func (r *localDrop) Entry(x *Engine, c *timeline.Conn, e *timeline.Entry) {
	switch e.Kind {
	case timeline.EntrySegmentDropped:
		r.hit(x, c, e)
	case timeline.EntrySYNRetransmitted, timeline.EntryConnectFailed:
		r.claim(x, c)
	}
}

func (r *localDrop) hit(x *Engine, c *timeline.Conn, e *timeline.Entry) {
	d := dropped{reason: c.DropReasonName(e), where: c.DropWhere(), out: e.Outbound()}
	if d.reason == "" && e.DropReason() != 0 {
		d.reason = "reason " + strconv.Itoa(int(e.DropReason()))
	}
	cause := d.cause()
	if cause == "" {
		return
	}
	var late, syn, synack bool
	switch c.State() {
	case event.StateEstablished, event.StateCloseWait, event.StateUnknown:
	case event.StateSynSent:
		syn = d.out
	case event.StateNewSynRecv, event.StateSynRecv:
		synack = d.out
	case event.StateFinWait1, event.StateFinWait2:
		// After shutdown() of sending alone, the answer is waited for.
		fin := c.Find(timeline.EntryFINSent)
		late = c.Orphan() || c.Phase() == timeline.PhaseEnded || fin != nil && fin.ByClose()
	default:
		late = true
	}
	if d.out && c.State() != event.StateClose && c.State() != event.StateTimeWait {
		late = false // the FIN, or data before it
	}
	owner := c.Owner()
	to, _ := place(c)
	k := x.crewKey(c.Netns(), owner)
	k.Addr, k.What = to, d.what()
	if late {
		k.What += " late" // apart from the others: it hurts nobody
	}
	f := r.finding(k, d)
	f.to, f.late = to, late
	f.who.add(owner)
	f.server = c.Role() == timeline.RoleServer
	f.add(1, syn, synack)
	f.hurts = f.hurts || d.out || e.Count >= dropHurts && e.Until()-e.At <= int64(e.Count)*int64(dropApart)
	x.Report(r, k, f, e.Until(), 1, c)
}

// Incident hears of drops of no known connection.
func (r *localDrop) Incident(x *Engine, in *timeline.Incident) {
	if in.Kind != timeline.IncidentSegmentDropped {
		return
	}
	if in.Netns == 0 && !in.Local.IsValid() && in.Reason == 0 {
		return // counted where there was no room to note whose it was, nor why
	}
	const syn, rst, ack = 0x02, 0x04, 0x10
	d := dropped{reason: x.o.Capabilities.DropReasons[in.Reason], where: in.Where, out: in.Out}
	if d.reason == "" && in.Reason != 0 {
		d.reason = "reason " + strconv.Itoa(int(in.Reason))
	}
	if d.cause() == "" {
		return
	}
	n := max(in.Count, 1)
	isSYN := in.TCPFlags&(syn|rst|ack) == syn
	switch {
	case in.Out && in.TCPFlags&rst == 0 && in.Local.IsValid():
		// Of a process here: a listener's SYN-ACK, or a connection that is
		// not known any more.
		k := Key{Netns: in.Netns, Addr: in.Local, What: d.what()}
		if in.Listener != nil && in.Listener.Exact {
			k.Addr = in.Listener.Addr
		}
		f := r.finding(k, d)
		f.to, f.hurts, f.server = k.Addr, true, true
		f.who.add(in.Owner)
		if in.Listener != nil && !in.Owner.Known() {
			f.who.add(in.Listener.Owner())
		}
		f.add(n, isSYN, in.TCPFlags&(syn|ack) == syn|ack)
		f.from.add(in.Remote.Addr())
		x.Report(r, k, f, in.At, n)
	case !in.Out && isSYN && in.Remote.IsValid():
		h := heldDrop{in.At, in.Netns, in.Local, in.Remote, d, n}
		if p := r.mine.get(h.path()); p != nil && (*p).State() == event.StateSynSent && (*p).Phase() != timeline.PhaseEnded {
			r.clients(x, *p, h)
			return
		}
		const most = 4096
		if len(r.held) >= most {
			r.noise(x, r.held[0], true)
			r.held = slices.Delete(r.held, 0, 1)
		}
		r.held = append(r.held, h)
	default:
		r.noise(x, heldDrop{in.At, in.Netns, in.Local, in.Remote, d, n}, isSYN)
	}
}

// claim makes the dropped SYNs of a local client its own.
func (r *localDrop) claim(x *Engine, c *timeline.Conn) {
	if len(r.held) == 0 || c.Role() == timeline.RoleServer {
		return
	}
	rest := r.held[:0]
	for _, h := range r.held {
		if !h.of(c) {
			rest = append(rest, h)
			continue
		}
		*r.mine.make(h.path()) = c
		r.clients(x, c, h)
	}
	r.held = rest
}

// clients reports a SYN that a client of this host sent, and that this host
// dropped as it came in.
func (r *localDrop) clients(x *Engine, c *timeline.Conn, h heldDrop) {
	k := x.crewKey(c.Netns(), c.Owner())
	k.Addr, k.What = c.Remote(), h.d.what()+" SYN"
	f := r.finding(k, h.d)
	f.to, f.hurts, f.claimed = c.Remote(), true, true
	f.who.add(c.Owner())
	f.syns += h.n
	x.Report(r, k, f, h.at, h.n, c)
}

// noise reports what came from elsewhere.
func (r *localDrop) noise(x *Engine, h heldDrop, syn bool) {
	k := Key{Netns: h.netns, What: h.d.what() + " noise"}
	f := r.finding(k, h.d)
	f.noise = true
	f.add(h.n, syn, false)
	if h.local.IsValid() && !h.d.out {
		f.ports.add(h.local.Port())
	}
	if h.remote.IsValid() {
		f.from.add(h.remote.Addr())
	}
	x.Report(r, k, f, h.at, h.n)
}

// Tick gives up on those that no local client claims.
func (r *localDrop) Tick(x *Engine, now int64, _ *timeline.Tracker) {
	n := 0
	for n < len(r.held) && now-r.held[n].at >= int64(dropHold) {
		r.noise(x, r.held[n], true)
		n++
	}
	r.held = slices.Delete(r.held, 0, n)
}

// Finish gives up on the rest.
func (r *localDrop) Finish(x *Engine) {
	for _, h := range r.held {
		r.noise(x, h, true)
	}
	r.held = nil
}

func (f *drops) Describe(x *Engine, v *Verdict) {
	cause := f.d.cause()
	v.Severity, v.Confidence = Warning, Certain
	switch {
	case f.noise, f.late, !f.hurts && f.syns == 0:
		v.Severity = Info
	case cause == dropByDamaged, cause == dropByMemory:
		v.Severity = Info
	}
	var what []string
	if f.syns > 0 {
		what = append(what, plural(f.syns, "SYN", "SYNs"))
	}
	if f.synacks > 0 {
		what = append(what, plural(f.synacks, "SYN-ACK", "SYN-ACKs"))
	}
	if n := f.segments - f.synacks; n > 0 {
		what = append(what, plural(n, "segment", "segments"))
	}
	direction, way := "in", "on the way in"
	if f.d.out {
		direction, way = "out", "on the way out"
	}
	to := Fact{Key: "destination", Note: "many"}
	switch {
	case f.noise && f.d.out:
		v.Subject = Subject{"host", f.d.short()}
		v.Story = fmt.Sprintf("%s dropped %s %s, sent by no process (RST)", f.d.by(), strings.Join(what, " and "), way)
	case f.noise:
		v.Subject = Subject{"host", f.d.short()}
		v.Story = fmt.Sprintf("%s dropped %s %s, from elsewhere and of no connection", f.d.by(), strings.Join(what, " and "), way)
	default:
		to = Fact{Key: to.Key, Value: destination(f.to)}
		v.Subject = Subject{"peer", destination(f.to)}
		v.Process = process(f.who.last)
		whose := ""
		switch {
		case f.server && f.d.out:
			whose = fmt.Sprintf("of %s at %s", f.who.name(), destination(f.to))
		case f.server:
			whose = fmt.Sprintf("for %s at %s", f.who.name(), destination(f.to))
		case f.d.out || f.claimed:
			whose = fmt.Sprintf("of %s to %s", f.who.name(), destination(f.to))
		default:
			whose = fmt.Sprintf("for %s from %s", f.who.name(), destination(f.to))
		}
		if f.server {
			v.Subject.Kind = "listener"
		}
		v.Story = fmt.Sprintf("%s dropped %s %s %s", f.d.by(), strings.Join(what, " and "), whose, way)
		if f.late {
			v.Story += ", after the connection was closed"
		}
	}
	reason := Fact{Key: "reason", Value: f.d.reason}
	if f.d.reason == "" {
		reason = Fact{Key: "reason", Note: "this kernel gives none"}
	}
	hook := Fact{Key: "hook", Value: f.d.where}
	if f.d.where == "" {
		hook = Fact{Key: "hook", Note: "the kernel's symbols can't be read"}
	}
	v.Evidence = Evidence{
		reason,
		hook,
		{Key: "direction", Value: direction},
		{Key: "cause", Value: cause},
		{Key: "syns", Value: int64(f.syns)},
		{Key: "segments", Value: int64(f.segments)},
		to,
	}
	sources, ports := Fact{Key: "top_sources", Note: "it is one connection's, or one process's"}, Fact{Key: "top_ports", Note: "it is one connection's, or one process's"}
	if f.noise {
		list := []string{}
		top := f.ports.top(8)
		if len(f.ports.list) <= 8 { // all of them
			top = f.ports.list
		}
		for _, h := range top {
			list = append(list, fmt.Sprintf("%d (%d)", h.key, h.least()))
		}
		sources, ports = f.from.fact("top_sources", f.syns+f.segments), Fact{Key: "top_ports", Value: list}
	}
	v.Evidence = append(append(v.Evidence, sources, ports), f.who.facts()...)
	v.Fix = f.fix(cause)
}

func (f *drops) fix(cause string) []string {
	switch {
	case f.noise && cause == dropByFirewall:
		return []string{"nothing, if the firewall does what it shall; else: " + docLocalDrop.Fix[0]}
	case f.late:
		return []string{"nothing: a stateful firewall drops what comes after the close as invalid"}
	}
	switch cause {
	case dropByFirewall:
		switch f.d.reason {
		case "", "NETFILTER_DROP":
			return docLocalDrop.Fix[:1]
		case "XFRM_POLICY":
			return []string{"an IPsec policy asks for encryption here: `ip xfrm policy`"}
		case "SOCKET_FILTER":
			return []string{"the socket's own filter (SO_ATTACH_FILTER, SO_ATTACH_BPF) or a cgroup's ingress program dropped it: ask the application, and `bpftool cgroup tree`"}
		case "BPF_CGROUP_EGRESS":
			return []string{"a BPF program of the process's cgroup dropped it: `bpftool cgroup tree`; systemd's IPAddressDeny= is one"}
		}
		return []string{"a BPF program or a filter of the interface dropped it: `tc filter show`, `bpftool net`"}
	case dropByRouting:
		if f.d.reason == "IP_RPFILTER" {
			return docLocalDrop.Fix[1:2]
		}
		if strings.HasPrefix(f.d.reason, "NEIGH_") {
			return []string{"the next hop does not answer to ARP or neighbour discovery: `ip neigh`, `ip route get`"}
		}
		return []string{"look at the routes: `ip route get` for both addresses, in that network namespace"}
	case dropByDamaged:
		return []string{"segments come damaged from the network: look for a faulty device, cable or checksum offload on the way"}
	case dropByKeys:
		return []string{"both ends must be configured with the same TCP-MD5 or TCP-AO keys, and addresses they are for"}
	case dropByMemory:
		return []string{"the socket's receive buffer or backlog was full: a process that reads too slowly, or net.ipv4.tcp_mem and tcp_rmem too small"}
	}
	return []string{"the kernel's reason names the cause; it is explained in include/net/dropreason-core.h"}
}
