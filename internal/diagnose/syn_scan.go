package diagnose

import (
	"fmt"
	"math/bits"
	"net/netip"
	"strconv"
	"time"

	"github.com/tcptrace/tcptrace/internal/timeline"
)

const codeSYNScan = "syn-scan"

// What makes a scan of single probes, argued in the doc: a score within a
// window, in which a port where a handshake was left half done weighs more than
// one that refused.
const (
	scanWindow   = 2 * time.Minute
	scanScore    = 8
	scanHalfOpen = 2
)

var docSYNScan = Doc{
	Code:     codeSYNScan,
	Severity: Info,
	Summary:  "one source left handshakes half done on several ports, or was refused on many",
	Meaning: `A port scanner sends a SYN to many ports and reads the answers: SYN-ACK means open, and it does not complete the handshake but sends RST or nothing; RST means closed.

It is reported for a source that within two minutes left handshakes half done on 4 ports, or was refused on 8, or anything between (a half-open port counts as two refused ones). A client with a wrong port or a stopped service is refused on one or two; one that tries a service's whole range of ports on a handful. A port whose listener was closed less than a minute before, or has been asked for without a minute's pause since, does not count: its service restarts or is gone, and its clients look for that (port-closed). Two minutes are more than twice what a handshake takes to expire (63 s by default). A slower scan, or one that is spread over many sources, is not told from noise; its refused SYNs show as port-closed.

What looks the same: health checks of a load balancer that connect to several services and reset after the SYN-ACK, and a host to which no answer gets through (then nothing comes after the SYN-ACK, and the verdict is only suspected; where this host itself is seen to drop the SYN-ACKs or what answers them, that is local-drop, and no scan). Sources of SYNs can be forged.

Where the kernel's hooks do not show half-open requests that are killed by RST, or RSTs of closed ports, a scan may go unseen (see doctor).`,
	Counts: "handshakes left half done and SYNs refused",
	Evidence: []DocKey{
		{"source", "", "where the SYNs came from"},
		{"ports", "count", "different local ports"},
		{"half_open", "count", "handshakes left half done"},
		{"refused", "count", "SYNs refused: nobody listens there"},
		{"reset", "count", "of those half done, how many were answered by RST after the SYN-ACK; the rest by nothing"},
		{"first_ports", "", "the first ports"},
		{"window_ms", "ms", "from the first to the last"},
	},
	Fix: []string{
		"nothing, from the internet: every host is scanned; see that only those ports are open that shall be",
		"from a host of your own, look for a scanner, a health check, or a client that searches for its server",
	},
	Counters: []string{"TcpExt.EmbryonicRsts", "Tcp.AttemptFails", "Tcp.OutRsts"},
	Source: []string{
		"net/ipv4/tcp_minisocks.c: tcp_check_req()",
		"net/ipv4/tcp_ipv4.c: tcp_v4_send_reset()",
	},
}

// synScan follows each source's half-open and refused SYNs.
type synScan struct {
	ports *portListeners
	found groups[Key, *prober]
	// latest is when a scan was last seen in a namespace.
	latest groups[uint32, int64]
}

func newSYNScan(ports *portListeners) *synScan {
	return &synScan{ports, groups[Key, *prober]{max: 2048}, groups[uint32, int64]{max: 1024}}
}

func (*synScan) Code() string { return codeSYNScan }
func (*synScan) Doc() Doc     { return docSYNScan }

// outcome of a single probe.
type outcome uint8

const (
	probeRefused outcome = iota
	probeReset           // half open, ended by RST
	probeSilent          // half open, never answered
)

type probe struct {
	at   int64
	conn *timeline.Conn // half open
	n    uint64
	port uint16
	what outcome
}

// prober is a source. Its probes are kept singly until they make a scan.
type prober struct {
	source      netip.Addr
	pending     []probe
	scanning    bool
	began, last int64
	ports       *[1 << 16 / 64]uint64 // a bit each
	first       []string
	counts      [3]uint64 // by outcome
}

func scanKey(netns uint32, source netip.Addr) Key {
	return Key{Netns: netns, Addr: netip.AddrPortFrom(source, 0)}
}

// Entry hears of SYN-ACKs that were never answered, unless this host dropped them
// or their answer.
func (r *synScan) Entry(x *Engine, c *timeline.Conn, e *timeline.Entry) {
	if e.Kind != timeline.EntryExpired || c.Incomplete() || c.QueueWasFull() ||
		c.Find(timeline.EntryRequestDropped, timeline.EntrySegmentDropped) != nil {
		return
	}
	r.add(x, c.Netns(), c.Remote().Addr(), probe{at: e.At, conn: c, n: 1, port: c.Local().Port(), what: probeSilent})
}

// Incident hears of SYNs that were refused, and SYN-ACKs answered by RST.
func (r *synScan) Incident(x *Engine, in *timeline.Incident) {
	const rst = 0x04
	p := probe{at: in.At, n: max(in.Count, 1), port: in.Local.Port()}
	switch {
	case !in.Remote.IsValid():
		return
	case in.Kind == timeline.IncidentRefused:
		if r.ports.restarting(in.Netns, in.Local, in.At) {
			return // its clients look for a service, not for a port
		}
		p.what = probeRefused
	case in.Kind == timeline.IncidentRequestAborted && in.Reason&rst != 0:
		p.what = probeReset
	default:
		return
	}
	r.add(x, in.Netns, in.Remote.Addr(), p)
}

// scanning reports whether the source was scanning at about that time.
func (r *synScan) scanning(netns uint32, source netip.Addr, at int64) bool {
	p := r.found.get(scanKey(netns, source))
	return p != nil && (*p).scanning && at-(*p).last <= int64(scanWindow)
}

// around reports whether some source was scanning in the namespace in the
// seconds before.
func (r *synScan) around(netns uint32, at int64) bool {
	last := r.latest.get(netns)
	return last != nil && at-*last <= int64(3*time.Second)
}

func (r *synScan) add(x *Engine, netns uint32, source netip.Addr, p probe) {
	if !source.IsValid() || p.port == 0 {
		return
	}
	k := scanKey(netns, source)
	e := r.found.make(k)
	if *e == nil {
		*e = &prober{source: source}
	}
	s := *e
	if s.scanning && p.at-s.last > int64(scanWindow) {
		s.scanning = false
	}
	s.last = max(s.last, p.at)
	if s.scanning {
		*r.latest.make(netns) = s.last
		s.take(p)
		if p.conn != nil {
			x.Report(r, k, s, p.at, p.n, p.conn)
		} else {
			x.Report(r, k, s, p.at, p.n)
		}
		return
	}
	if !s.hold(p) {
		return
	}
	s.scanning = true
	*r.latest.make(netns) = s.last
	var n uint64
	var conns []*timeline.Conn
	for _, p := range s.pending {
		s.take(p)
		n += p.n
		if p.conn != nil {
			conns = append(conns, p.conn)
		}
	}
	s.pending = nil
	x.Report(r, k, s, p.at, n, conns...)
}

// hold keeps a probe and says whether those of the window make a scan.
func (s *prober) hold(p probe) bool {
	fresh := s.pending[:0]
	known := false
	score := 0
	for _, q := range s.pending {
		if p.at-q.at > int64(scanWindow) {
			continue
		}
		if q.port == p.port && (q.what == probeRefused) == (p.what == probeRefused) {
			q.at, q.n, known = max(q.at, p.at), q.n+p.n, true
		}
		fresh = append(fresh, q)
	}
	clear(s.pending[len(fresh):]) // lets go of connections
	s.pending = fresh
	if !known {
		s.pending = append(s.pending, p)
	}
	for _, q := range s.pending {
		if q.what == probeRefused {
			score++
		} else {
			score += scanHalfOpen
		}
	}
	return score >= scanScore
}

// take makes a probe part of the scan.
func (s *prober) take(p probe) {
	if s.ports == nil {
		s.ports = new([1 << 16 / 64]uint64)
		s.began = p.at
	}
	s.began = min(s.began, p.at)
	s.counts[p.what] += p.n
	w, bit := p.port/64, uint64(1)<<(p.port%64)
	if s.ports[w]&bit == 0 {
		s.ports[w] |= bit
		if len(s.first) < 16 {
			s.first = append(s.first, strconv.Itoa(int(p.port)))
		}
	}
}

// since is when the scan began.
func (s *prober) since() int64 { return s.began }

func (s *prober) Describe(x *Engine, v *Verdict) {
	ports := 0
	for _, w := range s.ports {
		ports += bits.OnesCount64(w)
	}
	half := s.counts[probeReset] + s.counts[probeSilent]
	refused := s.counts[probeRefused]
	v.Severity, v.Confidence = Info, Likely
	if s.counts[probeReset] == 0 && refused < scanScore {
		v.Confidence = Suspected // its answers may be lost
	}
	v.Subject = Subject{"peer", s.source.String()}
	how := ""
	switch {
	case half > 0 && refused > 0:
		how = fmt.Sprintf("%s left half done, %s refused", plural(half, "handshake", "handshakes"), plural(refused, "SYN", "SYNs"))
	case half > 0:
		how = plural(half, "handshake", "handshakes") + " left half done"
		if s.counts[probeReset] == 0 {
			how += ", none of its SYN-ACKs answered: it may also be that they do not get through"
		}
	default:
		how = plural(refused, "SYN", "SYNs") + " refused"
	}
	v.Story = fmt.Sprintf("%s tried %d ports: %s", s.source, ports, how)
	v.Evidence = Evidence{
		{Key: "source", Value: s.source.String()},
		{Key: "ports", Value: int64(ports)},
		{Key: "half_open", Value: int64(half)},
		{Key: "refused", Value: int64(refused)},
		{Key: "reset", Value: int64(s.counts[probeReset])},
		{Key: "first_ports", Value: append([]string(nil), s.first...)},
		{Key: "window_ms", Value: milliseconds(time.Duration(s.last - s.began))},
	}
	if !x.o.Capabilities.HasRequestAborts {
		v.Evidence[2].Note = "without those that were ended by RST: these hooks do not show them"
	}
	if !x.o.Capabilities.HasAllRSTSent {
		v.Evidence[3] = Fact{Key: "refused", Note: "these hooks do not show RSTs without a socket"}
	}
	v.Fix = docSYNScan.Fix
}
