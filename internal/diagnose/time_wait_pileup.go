package diagnose

import (
	"fmt"
	"math"
	"net/netip"
	"time"

	"github.com/tcptrace/tcptrace/internal/timeline"
	"github.com/tcptrace/tcptrace/tracer/event"
)

const codeTimeWaitPileup = "time-wait-pileup"

var docTimeWaitPileup = Doc{
	Code:     codeTimeWaitPileup,
	Severity: Warning,
	Summary:  "TIME_WAIT towards one destination fills much of the local port range, or reaches tcp_max_tw_buckets",
	Meaning: `The end whose FIN goes first keeps the connection's addresses and ports in TIME_WAIT for 60 s, so that segments which come late are not taken for those of a new connection. A client that closes first keeps a local port of net.ipv4.ip_local_port_range that long, and no new connection to the same destination can have it: when all are taken, connect() fails (port-exhaustion).

The verdict holds when TIME_WAIT towards one address and port fills more than --time-wait-share (0.5) of the range: half is well above what a client with some short connections comes to (with the default range, 14,000 in a minute, 235 a second to one destination), and leaves time to act. Each source address has the whole range, so the one with the most is judged.

It is information where net.ipv4.tcp_tw_reuse lets connect() take such a port again after one second (1: always; 2, the default: on loopback), which it does where both ends use timestamps and the program does not bind() to a port first.

TIME_WAIT on the port of a server that closes first takes no local port from anybody and is no trouble, in any number: it gives a verdict only where the network namespace has as many as net.ipv4.tcp_max_tw_buckets allows (from 90% on: information). Beyond that the kernel destroys sockets at once instead, which makes late segments dangerous again, and it answers a peer's FIN by RST if that comes too late.

net.ipv4.tcp_fin_timeout has nothing to do with it, and TIME_WAIT cannot be made shorter.`,
	Counts: "sockets in TIME_WAIT, the most at a time (of a whole network namespace that were listed, at least 1)",
	Evidence: []DocKey{
		{"count", "sockets", "in TIME_WAIT from one source address, the most at a time; or of the whole network namespace"},
		{"destination", "", "towards which; null where all of a network namespace count"},
		{"source", "", "the local address that these are from: the one with the most"},
		{"share", "", "of the local ports that these are"},
		{"closer", "", "who closes first: local, since the end that closes first keeps the TIME_WAIT"},
		{"closer_process", "", "and by which process, the most frequent one; null if none was seen closing"},
		{"closer_processes", "count", "processes seen closing first"},
		{"rate", "1/s", "connections that this end closed first, over up to 60 s, the most"},
		{"range", "", "net.ipv4.ip_local_port_range"},
		{"ports", "count", "how many these are"},
		{"local_addresses", "count", "source addresses with sockets towards the destination"},
		{"tw_reuse", "", "net.ipv4.tcp_tw_reuse: 0 never, 1 connect() may take a port in TIME_WAIT after 1 s, 2 the same on loopback only (the default)"},
		{"limit", "sockets", "net.ipv4.tcp_max_tw_buckets"},
		{"cut_short", "sockets", "destroyed at once because of that"},
	},
	Fix: []string{
		"use a connection for more than one request (keep-alive, a pool), so that there are fewer connections to close",
		"net.ipv4.tcp_tw_reuse=1 lets connect() take ports in TIME_WAIT after 1 s, where both ends use timestamps",
		"widen net.ipv4.ip_local_port_range, or spread the connections over more addresses or ports of the destination",
		"raise net.ipv4.tcp_max_tw_buckets: each takes about 250 bytes",
	},
	Counters: []string{"TcpExt.TCPTimeWaitOverflow", "TcpExt.TW"},
	Source:   []string{"net/ipv4/tcp_minisocks.c: tcp_time_wait()", "net/ipv4/inet_timewait_sock.c: inet_twsk_alloc()", "net/ipv4/tcp_ipv4.c: tcp_twsk_unique()"},
}

// timeWaitPileup counts in snapshots of the sockets, which show what there is
// whoever came before, and learns from the events who closes and how fast.
type timeWaitPileup struct {
	next   int64
	judged map[uint32]int64 // the snapshot of each namespace that was judged last
	flows  groups[flowKey, closers]
	found  groups[Key, *pileup]
}

// flowKey is a destination, or with the zero address a whole namespace.
type flowKey struct {
	netns  uint32
	remote netip.AddrPort
}

func newTimeWaitPileup() *timeWaitPileup {
	return &timeWaitPileup{
		judged: make(map[uint32]int64),
		flows:  groups[flowKey, closers]{max: 1024},
		found:  groups[Key, *pileup]{max: 1024},
	}
}

func (*timeWaitPileup) Code() string { return codeTimeWaitPileup }
func (*timeWaitPileup) Doc() Doc     { return docTimeWaitPileup }

// pileup is what is in TIME_WAIT towards one destination, or in all.
type pileup struct {
	key      Key
	count    int // the most at a time
	told     int // as the verdict's count: at least 1
	from     netip.Addr
	sources  int // local addresses with sockets towards the destination
	rate     float64
	owner    timeline.Owner
	owners   int
	more     bool   // than owners
	cutShort uint64 // of a whole namespace
}

func (p *pileup) all() bool { return !p.key.Addr.IsValid() }

// closers are the processes that close first, and how often that happens.
type closers struct {
	window perMinute
	owners [4]struct {
		o timeline.Owner
		n uint64
	}
	more bool // there are more owners than fit
}

func (c *closers) add(at int64, o timeline.Owner) {
	c.window.add(at)
	if !o.Known() {
		return
	}
	least := 0
	for i := range c.owners {
		w := &c.owners[i]
		if w.n == 0 || w.o.PID == o.PID && w.o.Comm == o.Comm {
			w.o = o
			w.n++
			return
		}
		if w.n < c.owners[least].n {
			least = i
		}
	}
	// Takes over the place and count of the rarest: one that is frequent
	// gets in and stays.
	c.more = true
	c.owners[least].o = o
	c.owners[least].n++
}

// top is the process that closes most, and how many there are.
func (c *closers) top() (o timeline.Owner, n int) {
	var most uint64
	for _, w := range c.owners {
		if w.n > 0 {
			n++
		}
		if w.n > most {
			o, most = w.o, w.n
		}
	}
	return o, n
}

// perMinute counts what happened in the last 50 to 60 s.
type perMinute struct {
	first int64
	last  int64
	slot  int64 // the newest
	n     [6]uint32
}

const slotLength = int64(10 * time.Second)

func (w *perMinute) move(slot int64) {
	if slot-w.slot >= int64(len(w.n)) {
		w.n = [6]uint32{}
		w.slot = slot
	}
	for w.slot < slot {
		w.slot++
		w.n[w.slot%int64(len(w.n))] = 0
	}
}

func (w *perMinute) add(at int64) {
	if at < 0 {
		return
	}
	if w.first == 0 || at < w.first {
		w.first = at
	}
	w.last = max(w.last, at)
	slot := at / slotLength
	w.move(slot)
	if w.slot-slot < int64(len(w.n)) {
		w.n[slot%int64(len(w.n))]++
	}
}

// sum is how many there were up to now.
func (w *perMinute) sum(now int64) uint64 {
	w.move(now / slotLength)
	sum := uint64(0)
	for _, n := range w.n {
		sum += uint64(n)
	}
	return sum
}

// rate is how many there were a second, up to now.
func (w *perMinute) rate(now int64) float64 {
	if w.first == 0 || now < w.first {
		return 0
	}
	sum := w.sum(now)
	begin := max(w.first, (w.slot-int64(len(w.n))+1)*slotLength)
	return float64(sum) / max(1, time.Duration(now-begin).Seconds())
}

// Entry hears of connections that this end closed first: they go on as
// minisockets in TIME_WAIT, or before that in FIN_WAIT2.
func (r *timeWaitPileup) Entry(x *Engine, c *timeline.Conn, e *timeline.Entry) {
	switch {
	case e.Kind == timeline.EntryTimeWait:
	case e.Kind == timeline.EntryState && e.New() == event.StateFinWait2 && e.Old() == event.StateFinWait2 && !e.Found():
	default:
		return
	}
	o := c.ClosedBy()
	if !o.Known() {
		o = c.Owner()
	}
	r.flows.make(flowKey{netns: c.Netns()}).add(e.At, o)
	if c.Role() != timeline.RoleServer && c.Listener() == nil {
		r.flows.make(flowKey{c.Netns(), c.Remote()}).add(e.At, o)
	}
}

// Incident hears that the kernel made no TIME_WAIT where one was due.
func (r *timeWaitPileup) Incident(x *Engine, in *timeline.Incident) {
	if in.Kind != timeline.IncidentTimeWaitOverflow {
		return
	}
	p := r.pileup(Key{Netns: in.Netns, What: "all"})
	p.cutShort += max(in.Count, 1)
	p.learn(r.flows.get(flowKey{netns: in.Netns}), x.now)
	p.told = max(p.told, 1)
	x.Report(r, p.key, p, in.At, 0)
	x.sockets.add(in.Netns, x.now)
}

func (r *timeWaitPileup) pileup(k Key) *pileup {
	p := r.found.make(k)
	if *p == nil {
		*p = &pileup{key: k}
	}
	return *p
}

// learn takes over what is known of who closes.
func (p *pileup) learn(c *closers, now int64) {
	if c == nil {
		return
	}
	p.rate = max(p.rate, c.window.rate(now))
	if o, n := c.top(); n > 0 {
		p.owner, p.owners, p.more = o, n, c.more
	}
}

// grow reports p, of which there are count now, if that is more than before.
func (r *timeWaitPileup) grow(x *Engine, p *pileup, count int, at int64) {
	if count <= p.count {
		return
	}
	p.count = count
	n := uint64(max(count-p.told, 0))
	p.told = max(p.told, count)
	x.Report(r, p.key, p, at, n)
}

// Tick judges each snapshot once.
func (r *timeWaitPileup) Tick(x *Engine, now int64, t *timeline.Tracker) {
	if now < r.next {
		return
	}
	r.next = math.MaxInt64
	if pause := int64(500 * time.Millisecond); now < math.MaxInt64-pause {
		r.next = now + pause
	}
	const most = 4096
	if len(r.judged) > most {
		clear(r.judged)
	}
	r.ask(x, t)
	for netns := range t.Namespaces() {
		if at := t.SnapshotAt(netns); at != 0 && at != r.judged[netns] {
			r.judged[netns] = at
			r.judge(x, t, netns, at)
		}
	}
}

// ask has the sockets of a namespace listed where so many connections were
// closed in the last minute that they may be a pile-up.
func (r *timeWaitPileup) ask(x *Engine, t *timeline.Tracker) {
	for g := r.flows.oldest; g != nil; g = g.newer {
		w := &g.v.window
		if w.last <= t.SnapshotAt(g.key.netns) {
			continue
		}
		limit := 0.9 * float64(x.buckets(g.key.netns))
		if g.key.remote.IsValid() {
			ports := x.portRange(g.key.netns)
			if !ports.known {
				continue
			}
			limit = x.o.TimeWait * float64(ports.size())
		}
		if limit > 0 && float64(w.sum(x.now)) > limit {
			x.sockets.add(g.key.netns, x.now)
		}
	}
}

func (r *timeWaitPileup) judge(x *Engine, t *timeline.Tracker, netns uint32, at int64) {
	if limit, n := x.buckets(netns), 0; limit > 0 {
		n, _ = t.TimeWaitCount(netns)
		if n >= nearly(limit) {
			p := r.pileup(Key{Netns: netns, What: "all"})
			p.learn(r.flows.get(flowKey{netns: netns}), x.now)
			r.grow(x, p, n, at)
		}
	}
	ports := x.portRange(netns)
	if !ports.known {
		return
	}
	least := x.o.TimeWait * float64(ports.size())
	for flow, use := range t.PortUses(netns) {
		if float64(use.Total()) <= least {
			break // the rest is smaller
		}
		n := use.ByState[event.StateTimeWait]
		if float64(n) <= least || !x.asked(netns, netip.AddrPort{}, flow.To) {
			continue
		}
		p := r.pileup(Key{Netns: netns, Addr: flow.To})
		p.learn(r.flows.get(flowKey{netns, flow.To}), x.now)
		if n > p.count {
			all, _ := t.PortUse(netns, timeline.Flow{To: flow.To})
			p.from, p.sources = flow.From, all.Sources
		}
		r.grow(x, p, n, at)
	}
}

// buckets is net.ipv4.tcp_max_tw_buckets, 0 unknown.
func (x *Engine) buckets(netns uint32) int {
	if ns := x.netns[netns]; ns.Known {
		return ns.Sysctls.MaxTWBuckets
	}
	return 0
}

// nearly is 90%.
func nearly(limit int) int { return limit - limit/10 }

func (p *pileup) Describe(x *Engine, v *Verdict) {
	ports := x.portRange(p.key.Netns)
	rangeFact, size, reuse := ports.facts()
	v.Severity, v.Confidence = Warning, Certain
	v.Process = process(p.owner)
	to := Fact{Key: "destination", Note: "all of the network namespace"}
	share := Fact{Key: "share", Note: "it is not a matter of ports"}
	from, sources := Fact{Key: "source", Note: share.Note}, Fact{Key: "local_addresses", Note: share.Note}
	who := p.owner.Name()
	if !p.owner.Known() {
		who = "this host"
	}
	if p.all() {
		p.describeAll(x, v, who)
	} else {
		to = Fact{Key: "destination", Value: destination(p.key.Addr)}
		v.Subject = Subject{"peer", destination(p.key.Addr)}
		from.Value, from.Note = p.from.String(), ""
		sources.Value, sources.Note = int64(p.sources), ""
		part := float64(p.count) / float64(max(1, ports.size()))
		share = Fact{Key: "share", Value: math.Round(part*100) / 100}
		of := ""
		if p.sources > 1 {
			of = " from " + p.from.String()
		}
		v.Story = fmt.Sprintf("%d sockets in TIME_WAIT%s towards %s, %.0f%% of the local ports: %s closes first", p.count, of, destination(p.key.Addr), part*100, who)
		if ports.reuses(p.key.Addr.Addr()) {
			v.Severity = Info
			v.Story += fmt.Sprintf("; connect() may take these ports again after 1 s (net.ipv4.tcp_tw_reuse is %d)", ports.reuse)
			v.Fix = []string{docTimeWaitPileup.Fix[0]}
		} else {
			v.Fix = docTimeWaitPileup.Fix[:3]
		}
	}
	closer := Fact{Key: "closer_process", Note: "none was seen closing: they are older than this trace, or their process was not known"}
	owners := Fact{Key: "closer_processes", Value: int64(p.owners)}
	if p.owner.Known() {
		closer = Fact{Key: "closer_process", Value: p.owner.Name()}
	}
	if p.more {
		owners.Note = "at least"
	}
	rate := Fact{Key: "rate", Note: "none was seen closing"}
	if p.rate > 0 {
		rate = Fact{Key: "rate", Value: math.Round(p.rate*10) / 10}
	}
	limit := Fact{Key: "limit", Note: settingsUnknown}
	if n := x.buckets(p.key.Netns); n > 0 {
		limit = Fact{Key: "limit", Value: int64(n)}
	}
	count := Fact{Key: "count", Value: int64(p.count)}
	if p.count == 0 {
		count = Fact{Key: "count", Note: "the sockets of this network namespace were not listed"}
	}
	cut := Fact{Key: "cut_short", Value: int64(p.cutShort)}
	if p.cutShort == 0 && !x.o.Capabilities.HasTimeWaitOverflow {
		cut = Fact{Key: "cut_short", Note: "it is not seen with these hooks"}
	}
	v.Evidence = Evidence{
		count, to, from, share,
		{Key: "closer", Value: timeline.CloserLocal.String()},
		closer, owners, rate, rangeFact, size, sources, reuse, limit,
		cut,
	}
}

// describeAll is for what fills tcp_max_tw_buckets.
func (p *pileup) describeAll(x *Engine, v *Verdict, who string) {
	v.Subject = Subject{"host", fmt.Sprintf("network namespace %d", p.key.Netns)}
	limit := x.buckets(p.key.Netns)
	near := limit > 0 && p.count >= nearly(limit)
	count := "TIME_WAIT"
	if p.count > 0 {
		count = fmt.Sprintf("%d sockets in TIME_WAIT", p.count)
	}
	switch {
	case p.cutShort == 0 && p.count < limit:
		v.Severity = Info
		v.Story = fmt.Sprintf("%s, of the %d that net.ipv4.tcp_max_tw_buckets allows: %s closes first", count, limit, who)
	case p.cutShort == 0:
		v.Story = fmt.Sprintf("%s, as many as net.ipv4.tcp_max_tw_buckets allows (%d), so further ones are cut short: %s closes first", count, limit, who)
	case near:
		v.Story = fmt.Sprintf("%s, as many as net.ipv4.tcp_max_tw_buckets allows (%d): the kernel cut it short %s; %s closes first", count, limit, times(int(min(p.cutShort, math.MaxInt32))), who)
	default:
		// The kernel says only that there was no room; no memory is rare.
		v.Confidence = Likely
		v.Story = fmt.Sprintf("the kernel cut TIME_WAIT short %s: net.ipv4.tcp_max_tw_buckets is reached; %s closes first", times(int(min(p.cutShort, math.MaxInt32))), who)
	}
	v.Fix = []string{docTimeWaitPileup.Fix[0], docTimeWaitPileup.Fix[3]}
}
