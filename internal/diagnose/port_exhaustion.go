package diagnose

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/tcptrace/tcptrace/internal/timeline"
	"github.com/tcptrace/tcptrace/tracer/event"
)

const (
	codePortExhaustion = "port-exhaustion"

	errnoInUse = 98
)

var docPortExhaustion = Doc{
	Code:     codePortExhaustion,
	Severity: Error,
	Summary:  "connect() or bind() failed for want of a free local port",
	Meaning: `connect() takes a local port from net.ipv4.ip_local_port_range. A port can serve many destinations at the same time, but only one connection from one address here to the same address and port: when every port of the range is in use from the source address towards the destination, connect() fails with EADDRNOTAVAIL ("cannot assign requested address"), and no SYN is sent. tcptrace sees this in the kernel as a socket that goes from SYN_SENT back to CLOSE without ever having had a local port; a missing route or source address fails before that, and gives no such verdict.

bind() to port 0 before connect() is stricter: such a port must be free towards all destinations, and it fails with EADDRINUSE. There is no destination yet then.

The usual reason is TIME_WAIT: a short connection for each request, closed by this end first, keeps its port for 60 s. With the default range (28,232 ports) that is enough from about 470 connections a second on, to one destination. The other reasons are as many connections that are open or leaked.

What the ports are used for comes from a list of all sockets, made as soon as a failure was seen (the first word waits for it, 3 s at most); "counted" says how long before or after. Ports that bind() holds, those in net.ipv4.ip_local_reserved_ports, and those outside a socket's own IP_LOCAL_PORT_RANGE are missing for connect() too, without being in that list.`,
	Counts: "calls that failed",
	Evidence: []DocKey{
		{"destination", "", "where to; null where bind() failed"},
		{"source", "", "the source address of the newest failure, whose ports are counted; null where it has none, and those of all are"},
		{"range", "", "net.ipv4.ip_local_port_range"},
		{"ports", "count", "how many these are"},
		{"in_use", "sockets", "from the source address towards the destination; where bind() failed, towards all"},
		{"time_wait", "sockets", "of these in TIME_WAIT"},
		{"by_state", "sockets", "of these in each state"},
		{"counted", "", "when the sockets were counted"},
		{"tw_reuse", "", "net.ipv4.tcp_tw_reuse: 0 never, 1 connect() may take a port in TIME_WAIT after 1 s, 2 the same on loopback only (the default)"},
		{"call", "", "what failed: connect, bind or listen"},
		{"errno_name", "", "EADDRNOTAVAIL of connect(), EADDRINUSE of the others"},
	},
	Fix: []string{
		"use a connection for more than one request (keep-alive, a pool) instead of one for each: it is the only fix that lasts",
		"net.ipv4.tcp_tw_reuse=1 lets connect() take ports in TIME_WAIT after 1 s, where both ends use timestamps",
		"widen net.ipv4.ip_local_port_range, or spread the connections over more addresses or ports of the destination, or over more source addresses",
		"where a source address must be chosen: set IP_BIND_ADDRESS_NO_PORT before bind(), so that connect() picks the port, and a port serves each destination once",
	},
	Source: []string{"net/ipv4/inet_hashtables.c: __inet_hash_connect()", "net/ipv4/inet_connection_sock.c: inet_csk_find_open_port()"},
}

// portExhaustion counts the failures by process and destination. The list of
// sockets that tells how the ports are used comes a little later.
type portExhaustion struct {
	found groups[Key, *exhaustion]
}

func newPortExhaustion() *portExhaustion {
	return &portExhaustion{groups[Key, *exhaustion]{max: 1024}}
}

func (*portExhaustion) Code() string { return codePortExhaustion }
func (*portExhaustion) Doc() Doc     { return docPortExhaustion }

// exhaustion is one process that finds no port, towards one destination or, by
// bind(), for one source address.
type exhaustion struct {
	key    Key
	to     netip.AddrPort // invalid: bind() failed
	from   netip.Addr     // of the newest failure: what connect() or bind() wanted
	listen bool           // listen() without bind() failed
	owner  timeline.Owner
	begun  int64 // first failure after a pause
	last   int64 // newest failure
	told   bool  // later failures need not wait
	held   uint64
	conns  []*timeline.Conn // examples of those that are held back

	// How the ports of an address were used at use.At; 0: not known.
	use     timeline.PortUse
	counted netip.Addr // which; none or unspecified: all
}

// exhaustionPatience is how long the first word waits for a snapshot that shows
// how the ports are used.
const exhaustionPatience = int64(3 * time.Second)

// stale is how far from a failure sockets may have been counted to say
// anything about it: much of what is in TIME_WAIT then still is.
const stale = int64(15 * time.Second)

// Entry hears of connect(). No port was found if there is none and no error
// came from the network: all else that can fail fails before SYN_SENT or after
// a port was taken.
func (r *portExhaustion) Entry(x *Engine, c *timeline.Conn, e *timeline.Entry) {
	if e.Kind != timeline.EntryConnectFailed || !e.NoPort() || e.Err() != 0 {
		return
	}
	f := r.get(connectKey(c))
	f.to, f.from, f.owner = c.Remote(), c.Local().Addr(), c.Owner()
	r.report(x, f, e.At, 1, c)
}

// Incident hears of bind() to any port.
func (r *portExhaustion) Incident(x *Engine, in *timeline.Incident) {
	if in.Kind != timeline.IncidentBindFailed || in.Err != errnoInUse || in.Local.Port() != 0 || !in.Local.IsValid() {
		return
	}
	f := r.get(Key{Netns: in.Netns, PID: in.Owner.PID, Addr: in.Local, What: "bind"})
	f.from, f.owner, f.listen = in.Local.Addr(), in.Owner, in.Reason == 1
	r.report(x, f, in.At, max(in.Count, 1))
}

func (r *portExhaustion) get(k Key) *exhaustion {
	p := r.found.make(k)
	if *p == nil {
		*p = &exhaustion{key: k}
	}
	return *p
}

func (r *portExhaustion) report(x *Engine, f *exhaustion, at int64, n uint64, conns ...*timeline.Conn) {
	if f.begun == 0 || at-f.last > stale {
		f.begun = at
	}
	f.last = max(f.last, at)
	if x.tracker != nil {
		f.count(x, x.tracker)
	}
	f.ask(x, x.now)
	f.held += n
	for _, c := range conns {
		x.tag(r, c, Error)
		if len(f.conns) < maxExamples {
			f.conns = append(f.conns, c)
		}
	}
	if f.told {
		r.tell(x, f)
	}
}

// tell reports what was held back.
func (r *portExhaustion) tell(x *Engine, f *exhaustion) {
	x.Report(r, f.key, f, f.last, f.held, f.conns...)
	f.told, f.held, f.conns = true, 0, nil
}

// since is the first failure of those that are told for the first time.
func (f *exhaustion) since() int64 { return f.begun }

// Finish tells what still waited for a snapshot.
func (r *portExhaustion) Finish(x *Engine) {
	for g := r.found.oldest; g != nil; g = g.newer {
		if g.v.held > 0 {
			r.tell(x, g.v)
		}
	}
}

// Tick takes the count that was asked for.
func (r *portExhaustion) Tick(x *Engine, now int64, t *timeline.Tracker) {
	for g := r.found.oldest; g != nil; g = g.newer {
		f := g.v
		if f.use.At < f.last && now-f.last <= stale {
			f.count(x, t)
			if f.use.At < f.last {
				f.ask(x, now)
			} else if f.held == 0 {
				x.Report(r, f.key, f, f.last, 0)
			}
		}
		if f.held > 0 && (f.use.At >= f.begun || now-f.begun >= exhaustionPatience) {
			r.tell(x, f)
		}
	}
}

// ask asks for the sockets to be counted: soon for the first failure after a
// pause, now and then while it goes on.
func (f *exhaustion) ask(x *Engine, now int64) {
	switch {
	case f.use.At >= f.last:
	case f.use.At < f.begun:
		x.sockets.soon(f.key.Netns, now)
	default:
		x.sockets.add(f.key.Netns, now)
	}
}

// count takes over how the newest snapshot shows the ports, unless that was
// long before the newest failure.
func (f *exhaustion) count(x *Engine, t *timeline.Tracker) {
	if !f.to.IsValid() && x.o.Asked != nil {
		return // some are not there to be counted
	}
	if use, ok := t.PortUse(f.key.Netns, timeline.Flow{From: f.from, To: f.to}); ok && f.last-use.At <= stale {
		f.use, f.counted = use, f.from
	}
}

// portRange is what connect() picks from, as far as the namespace's settings
// tell.
type portRange struct {
	low, high int
	reuse     int
	known     bool
}

func (x *Engine) portRange(netns uint32) portRange {
	ns := x.netns[netns]
	p := portRange{low: ns.Sysctls.PortRangeLow, high: ns.Sysctls.PortRangeHigh, reuse: ns.Sysctls.TWReuse}
	p.known = ns.Known && p.low > 0 && p.high >= p.low && p.high < 1<<16
	return p
}

// size is how many ports there are.
func (p portRange) size() int { return p.high - p.low + 1 }

func (p portRange) String() string { return fmt.Sprintf("%d-%d", p.low, p.high) }

func (p portRange) holds(port uint16) bool {
	return p.known && int(port) >= p.low && int(port) <= p.high
}

// reuses reports whether connect() to an address takes ports in TIME_WAIT
// again after 1 s.
func (p portRange) reuses(to netip.Addr) bool {
	return p.known && (p.reuse == 1 || p.reuse == 2 && to.Unmap().IsLoopback())
}

const settingsUnknown = "the settings of this network namespace are not known"

// facts are the range, how many ports it has, and tcp_tw_reuse.
func (p portRange) facts() (ports, size, reuse Fact) {
	ports, size, reuse = Fact{Key: "range", Note: settingsUnknown}, Fact{Key: "ports", Note: settingsUnknown}, Fact{Key: "tw_reuse", Note: settingsUnknown}
	if p.known {
		ports = Fact{Key: "range", Value: p.String()}
		size = Fact{Key: "ports", Value: int64(p.size())}
		reuse = Fact{Key: "tw_reuse", Value: int64(p.reuse)}
	}
	return ports, size, reuse
}

// byState lists the states of sockets that there are, the most first.
func byState(use *timeline.PortUse) (list Evidence, text string) {
	var states []event.State
	for s, n := range use.ByState {
		if n > 0 {
			states = append(states, event.State(s))
		}
	}
	slices.SortStableFunc(states, func(a, b event.State) int { return use.ByState[b] - use.ByState[a] })
	var words []string
	list = Evidence{}
	for _, s := range states {
		list = append(list, Fact{Key: timeline.StateName(s), Value: int64(use.ByState[s])})
		words = append(words, fmt.Sprintf("%d %s", use.ByState[s], timeline.StateName(s)))
	}
	return list, strings.Join(words, ", ")
}

func (f *exhaustion) call() (name, errno string) {
	switch {
	case f.to.IsValid():
		return "connect", "EADDRNOTAVAIL"
	case f.listen:
		return "listen", "EADDRINUSE"
	}
	return "bind", "EADDRINUSE"
}

func (f *exhaustion) Describe(x *Engine, v *Verdict) {
	v.Severity, v.Confidence = Error, Certain
	v.Process = process(f.owner)
	ports := x.portRange(f.key.Netns)
	rangeFact, size, reuse := ports.facts()
	call, errno := f.call()
	to := Fact{Key: "destination", Note: "there is none yet: " + call + "() failed"}
	towards := ""
	if f.to.IsValid() {
		to = Fact{Key: "destination", Value: destination(f.to)}
		towards = " towards " + destination(f.to)
		v.Subject = Subject{"peer", destination(f.to)}
		v.Story = fmt.Sprintf("%s finds no free local port for a connection to %s", f.owner.Name(), destination(f.to))
	} else {
		v.Subject = Subject{"process", f.owner.Name()}
		v.Which = call
		v.Story = fmt.Sprintf("%s finds no free local port: %s() at %s", f.owner.Name(), call, f.from)
	}
	inUse := Fact{Key: "in_use", Note: "the sockets of this network namespace are not listed yet"}
	timeWait := Fact{Key: "time_wait", Note: inUse.Note}
	states := Fact{Key: "by_state", Note: inUse.Note}
	counted := Fact{Key: "counted", Note: inUse.Note}
	from := f.from
	if f.use.At != 0 {
		from = f.counted
	}
	source := Fact{Key: "source", Note: "none yet: the ports of all are counted"}
	if from.IsValid() && !from.IsUnspecified() {
		source = Fact{Key: "source", Value: from.String()}
	}
	total, waiting := f.use.Total(), f.use.ByState[event.StateTimeWait]
	if f.use.At != 0 {
		list, text := byState(&f.use)
		inUse = Fact{Key: "in_use", Value: int64(total)}
		timeWait = Fact{Key: "time_wait", Value: int64(waiting)}
		states = Fact{Key: "by_state", Value: list}
		if f.use.Sources > 1 {
			inUse.Note = fmt.Sprintf("from %d source addresses", f.use.Sources)
			towards += " " + inUse.Note
		}
		counted = Fact{Key: "counted", Value: timeline.Duration(time.Duration(f.use.At-f.last)) + " after the newest failure"}
		if f.use.At < f.last {
			counted.Value = timeline.Duration(time.Duration(f.last-f.use.At)) + " before the newest failure"
		}
		// Several addresses may use the same port.
		single := ports.known && f.use.Sources == 1
		switch {
		case total == 0:
		case single && total < ports.size():
			inUse.Note = "the rest of the range is held by bind(), reserved, or free again"
			fallthrough
		case single && f.to.IsValid():
			v.Story += fmt.Sprintf(", %d of %d in use%s: %s", total, ports.size(), towards, text)
		default:
			v.Story += fmt.Sprintf(", %d in use%s: %s", total, towards, text)
		}
	}
	v.Evidence = Evidence{
		to, source, rangeFact, size, inUse, timeWait, states, counted, reuse,
		{Key: "call", Value: call},
		{Key: "errno_name", Value: errno},
	}
	v.Fix = f.fix(ports, total, waiting)
}

// fix is what helps against what fills the range.
func (f *exhaustion) fix(ports portRange, total, waiting int) []string {
	all := docPortExhaustion.Fix
	var out []string
	switch leaked := f.use.ByState[event.StateCloseWait]; {
	case f.use.At == 0:
		out = append(out, all[0], all[1])
	case total == 0 || ports.known && total < ports.size()/2:
		out = append(out, "find out what holds the other ports: net.ipv4.ip_local_reserved_ports, sockets that bind() to ports of the range, or a range of the program's own (IP_LOCAL_PORT_RANGE)")
	case 2*waiting >= total:
		out = append(out, all[0])
		if f.to.IsValid() && !ports.reuses(f.to.Addr()) {
			out = append(out, all[1])
		}
	case 2*leaked >= total:
		out = append(out, "most of these connections were closed by the peer and forgotten here: see "+codeCloseWaitLeak)
	default:
		out = append(out, "bound the number of connections that are open at the same time (a pool with a limit), and close those that are idle")
	}
	out = append(out, all[2])
	if !f.to.IsValid() && !f.listen {
		out = append(out, all[3])
	}
	return out
}
