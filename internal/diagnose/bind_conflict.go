package diagnose

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/tcptrace/tcptrace/internal/timeline"
	"github.com/tcptrace/tcptrace/tracer/event"
)

const codeBindConflict = "bind-conflict"

var docBindConflict = Doc{
	Code:     codeBindConflict,
	Severity: Error,
	Summary:  "bind() or listen() failed with EADDRINUSE: the port is taken",
	Meaning: `A program wanted a port that another socket holds, and the kernel refused. Who holds it is looked up among the listeners and connections that are known at that moment, and if none of them does, in a list of all sockets that is asked for then: the verdict waits for it, 3 s at most.

The port may be held by another service that listens on it, or an older instance of the same one.

It may be held by a client connection that got it as its ephemeral port, because it lies in net.ipv4.ip_local_port_range: for as long as that lives, and in TIME_WAIT for 60 s after that if it was closed here first. The service's own SO_REUSEADDR does not help, since clients don't set that.

It may be held by connections in TIME_WAIT, or still open, of an earlier instance of the service, where that one or this one did not set SO_REUSEADDR.

And it may be held by a socket that is bound, but neither listens nor is connected: that is in no list that tcptrace can read, and the holder is then unknown.

The further attempts of a service that is started again and again let one verdict grow. It is a warning where the same process then listened on another port, or a later attempt succeeded: it looked for a free port, or was a moment too early. It is information where the process itself holds the port, as a program does that binds to [::] and then to 0.0.0.0, and where a port of net.ipv4.ip_local_port_range was wanted and the process connected from another one of it within a second. A program that looks for a free source port, as mount.nfs does below 1024, fails on the way: where it then connects from another port of the kind, there is no verdict.`,
	Counts: "calls that failed",
	Evidence: []DocKey{
		{"port", "", "that was wanted"},
		{"wanted", "", "with the address"},
		{"call", "", "what failed: bind or listen"},
		{"holder_pid", "", "of the process that holds the port; null if unknown or if there is none (TIME_WAIT)"},
		{"holder_comm", "", "its name"},
		{"holder_state", "", "of the socket that holds it"},
		{"holder_local", "", "its address here"},
		{"holder_remote", "", "where it is connected to; null for a listener"},
		{"ephemeral", "", "whether it is a client's connection that got the port from ip_local_port_range; null if not known"},
		{"range", "", "net.ipv4.ip_local_port_range"},
		{"holders", "count", "sockets found on the port"},
		{"instead", "", "where the same process listened later, or what it connected from; null if neither was seen"},
	},
	Fix: []string{
		"held by a client connection: add the port to net.ipv4.ip_local_reserved_ports, so that connect() does not hand it out, or choose one outside of net.ipv4.ip_local_port_range",
		"held by connections of an earlier instance: set SO_REUSEADDR before bind()",
		"held by another service: one of the two has to move, or if both are meant to share the port, SO_REUSEPORT on both",
	},
	Source: []string{"net/ipv4/inet_connection_sock.c: inet_csk_get_port(), inet_csk_bind_conflict()"},
}

// servicePorts end where clients' begin: rresvport(), which NFS and the like
// use, hands out 512 to 1023.
const servicePorts = 512

const (
	bindAttempt  = int64(time.Millisecond) // in LISTEN for less: listen() failed
	bindPatience = int64(3 * time.Second)  // for a list of sockets that shows the holder
	bindPause    = int64(time.Second)      // before the verdict: what does the process do next?
	bindLater    = int64(30 * time.Second) // what a process does so long after has to do with it
	bindServer   = int64(2 * time.Minute)  // a port that was listened on has a server's TIME_WAITs so long
)

// bindConflict holds failures back until the holder is known, or not to be
// found.
type bindConflict struct {
	found groups[Key, *conflict]

	// Ports that were listened on until lately: what is in TIME_WAIT there is
	// a server's.
	servers groups[listenPort, int64]
}

type listenPort struct {
	netns uint32
	port  uint16
}

func newBindConflict() *bindConflict {
	return &bindConflict{
		found:   groups[Key, *conflict]{max: 1024},
		servers: groups[listenPort, int64]{max: 4096},
	}
}

func (*bindConflict) Code() string { return codeBindConflict }
func (*bindConflict) Doc() Doc     { return docBindConflict }

// conflict is a port that one program can't have.
type conflict struct {
	key    Key
	local  netip.AddrPort
	listen bool           // listen() failed, not bind()
	owner  timeline.Owner // of the newest attempt
	first  int64          // attempt that is not told yet, 0: all are
	last   int64          // attempt
	held   uint64         // attempts that are not told yet

	holder  timeline.Holder // of the newest attempt for which it is known
	known   bool
	own     bool // it is the process's own
	server  bool // the port was listened on until lately
	holders int
	mixed   bool  // they are connected to several ports
	looked  int64 // when, for the newest attempt
	listed  bool  // all sockets were listed after an attempt

	opened  bool           // somebody listens on the port since the newest attempt
	instead netip.AddrPort // where the same process listened after it
	from    netip.AddrPort // or what it connected from
	got     bool           // on what it wanted
}

func (r *bindConflict) Incident(x *Engine, in *timeline.Incident) {
	if in.Kind != timeline.IncidentBindFailed || in.Err != errnoInUse || in.Local.Port() == 0 {
		return
	}
	// A service that is started again has another process ID each time.
	key := x.crewKey(in.Netns, in.Owner)
	key.Addr = in.Local
	p := r.found.make(key)
	if *p == nil {
		*p = &conflict{key: key, local: in.Local}
	}
	f := *p
	again := f.last != 0 && in.At-f.last < bindPause && f.owner.PID == in.Owner.PID && f.known
	f.owner, f.listen = in.Owner, in.Reason == 1
	if f.held == 0 {
		f.first = in.At
	}
	f.held += max(in.Count, 1)
	f.last = max(f.last, in.At)
	f.opened, f.instead, f.from, f.got = false, netip.AddrPort{}, netip.AddrPort{}, false
	closed := r.servers.get(listenPort{in.Netns, in.Local.Port()})
	f.server = closed != nil && in.At-*closed < bindServer
	if again {
		return
	}
	f.known, f.looked, f.listed = false, 0, false
	if x.tracker == nil {
		return
	}
	f.looked = in.At
	if !f.look(x.tracker, false) {
		x.sockets.soon(in.Netns, x.now)
	}
}

// look finds the holder. Later than at once, what listens only since then does
// not count.
func (f *conflict) look(t *timeline.Tracker, later bool) bool {
	all := t.Holders(f.key.Netns, f.local)
	if f.listen && !later {
		// The socket whose listen() fails is in LISTEN while the kernel looks.
		for i := len(all) - 1; i >= 0; i-- {
			if h := &all[i]; h.State == event.StateListen && h.Local == f.local && h.Owner.PID == f.owner.PID {
				all = slices.Delete(all, i, i+1)
				break
			}
		}
	}
	best, n := -1, 0
	var to uint16
	mixed := false
	rank := func(h *timeline.Holder) int {
		switch {
		case h.State == event.StateListen:
			return 4
		case h.Client && h.Owner.Known(): // has no SO_REUSEADDR, as a rule
			return 3
		case h.Owner.Known():
			return 2
		}
		return 1
	}
	for i := range all {
		h := &all[i]
		switch {
		case later && h.State == event.StateListen && f.opened:
			continue
		case !later && mini(h.State) && !h.Owner.Known():
			continue // as some snapshot showed it: the next one tells what it is now
		}
		n++
		if h.State != event.StateListen {
			mixed = mixed || to != 0 && to != h.Remote.Port()
			to = h.Remote.Port()
		}
		if best < 0 || rank(h) > rank(&all[best]) {
			best = i
		}
	}
	if best < 0 {
		return false
	}
	f.holder, f.known, f.holders, f.mixed = all[best], true, n, mixed
	f.own = f.holder.State == event.StateListen && f.holder.Owner.Known() && f.holder.Owner.PID == f.owner.PID
	return true
}

// Listener follows who listens on the ports in question.
func (r *bindConflict) Listener(x *Engine, l *timeline.Listener, e *timeline.Entry) {
	if l.Closed != 0 && l.Closed-l.Opened > bindAttempt {
		*r.servers.make(listenPort{l.Netns, l.Addr.Port()}) = l.Closed
	}
	if l.Opened == 0 || l.Closed != 0 || e.Found() {
		return
	}
	o := l.Owner()
	for g := r.found.oldest; g != nil; g = g.newer {
		f := g.v
		if f.key.Netns != l.Netns || l.Opened < f.last || l.Opened-f.last > bindLater {
			continue
		}
		switch {
		case l.Addr == f.local && o.Comm == f.owner.Comm:
			f.opened, f.got = true, true
		case l.Addr.Port() == f.local.Port():
			f.opened = true
			continue
		case o.Known() && o.PID == f.owner.PID && o.Comm == f.owner.Comm && !f.instead.IsValid():
			f.instead = l.Addr
		default:
			continue
		}
		if f.held == 0 {
			x.Report(r, f.key, f, f.last, 0)
		}
	}
}

// Entry hears of connect(). A program that wants a source port of its own tries
// one after the other, and means no harm by those that are taken.
func (r *bindConflict) Entry(x *Engine, c *timeline.Conn, e *timeline.Entry) {
	if e.Kind != timeline.EntrySYNSent || !c.Bound() {
		return
	}
	o, from := c.Owner(), c.Local()
	ports := x.portRange(c.Netns())
	kind := kindOfPort(from.Port(), ports)
	for g := r.found.newest; g != nil; {
		key, f := g.key, g.v
		if g = g.older; e.At-f.last > bindPause {
			break
		}
		if key.Netns != c.Netns() || f.owner.PID != o.PID || f.owner.Comm != o.Comm || f.listen || e.At < f.last ||
			f.local.Port() == from.Port() || kindOfPort(f.local.Port(), ports) != kind {
			continue
		}
		told := x.holds(codeBindConflict, key)
		if !told && kind != portOfRange {
			r.found.drop(key)
			continue
		}
		// A port of the range may be from bind() to port 0, which a service
		// does too that failed to get its own.
		f.from = from
		if told {
			x.touch(r, key)
		}
	}
}

const (
	portReserved = iota // for root: nobody gets one by chance
	portOfRange         // perhaps, where the range is not known
	portOther
)

func kindOfPort(port uint16, ports portRange) int {
	switch {
	case port < 1024:
		return portReserved
	case !ports.known || ports.holds(port):
		return portOfRange
	}
	return portOther
}

// Tick tells what is due.
func (r *bindConflict) Tick(x *Engine, now int64, t *timeline.Tracker) {
	for g := r.found.oldest; g != nil; g = g.newer {
		f := g.v
		if f.looked == 0 {
			f.looked = f.last
			f.look(t, true)
		}
		if at := t.SnapshotAt(f.key.Netns); !f.listed && at >= f.last {
			f.listed = true
			if (!f.known || f.looked < f.last) && f.look(t, true) && f.held == 0 {
				x.Report(r, f.key, f, f.last, 0)
			}
		}
		if f.held == 0 {
			continue
		}
		if !f.known && !f.listed {
			x.sockets.soon(f.key.Netns, now)
		}
		if waited := now - f.first; waited >= bindPatience || (f.known || f.listed) && waited >= bindPause {
			if !f.known {
				f.look(t, true)
			}
			r.tell(x, f)
		}
	}
}

// Finish tells what was still held back.
func (r *bindConflict) Finish(x *Engine) {
	for g := r.found.oldest; g != nil; g = g.newer {
		if g.v.held > 0 {
			r.tell(x, g.v)
		}
	}
}

func (r *bindConflict) tell(x *Engine, f *conflict) {
	n := f.held
	f.held = 0
	x.Report(r, f.key, f, f.last, n)
}

// since is the first attempt of those that are told for the first time.
func (f *conflict) since() int64 { return f.first }

// ephemeral reports whether the holder is a client's connection whose port
// connect() picked, where that is known.
func (f *conflict) ephemeral(ports portRange) (yes, known bool) {
	switch h := &f.holder; {
	case !f.known:
		return false, false
	case h.State == event.StateListen:
		return false, true
	case !ports.known:
		return false, false
	case !ports.holds(f.local.Port()):
		return false, true
	case h.Picked:
		return true, true
	case h.Bound:
		return false, false // bind() picks from the range too, where it is told no port
	case f.server || h.Owner.Source == timeline.SourceAccept || h.Owner.Source == timeline.SourceListener:
		return false, true
	case h.Client && !f.mixed && h.Remote.Port() < servicePorts:
		// Its beginning was not seen, but no client has such a port. Another one
		// may be ephemeral whatever this host's range says: other systems have
		// others, and NAT takes 1024 and up.
		return true, true
	}
	return false, false
}

func (f *conflict) Describe(x *Engine, v *Verdict) {
	ports := x.portRange(f.key.Netns)
	ephemeral, sure := f.ephemeral(ports)
	call := "bind"
	if f.listen {
		call = "listen"
	}
	v.Severity, v.Confidence = Error, Certain
	v.Subject = Subject{"port", f.local.String()}
	v.Process = process(f.owner)
	v.Story = fmt.Sprintf("%s cannot %s to %s (EADDRINUSE): ", f.owner.Name(), call, f.local)
	if f.listen {
		v.Story = fmt.Sprintf("%s cannot listen on %s (EADDRINUSE): ", f.owner.Name(), f.local)
	}
	pid, comm := Fact{Key: "holder_pid"}, Fact{Key: "holder_comm"}
	state, local, remote := Fact{Key: "holder_state"}, Fact{Key: "holder_local"}, Fact{Key: "holder_remote"}
	if f.known {
		v.Story += f.describeHolder(ephemeral)
		h := &f.holder
		state.Value, local.Value = timeline.StateName(h.State), h.Local.String()
		if h.State == event.StateListen {
			remote.Note = "a listener has none"
		} else {
			remote.Value = destination(h.Remote)
			v.Confidence = Likely // something else may be bound there too
		}
		switch {
		case h.Owner.Known():
			pid.Value, comm.Value = int64(h.Owner.PID), h.Owner.Comm
		case mini(h.State):
			pid.Note = "no process holds a socket in " + timeline.StateName(h.State)
		default:
			pid.Note = "not known"
		}
		comm.Note = pid.Note
		v.Fix = f.fix(ports, ephemeral)
	} else {
		note := "no socket on this port was known, and the sockets of this network namespace were not listed"
		v.Story += "the holder is not known"
		if f.listed {
			note = "no list of sockets shows one on this port"
			v.Story += ": no list of sockets shows it, so it may be bound without listening or being connected"
		}
		for _, p := range []*Fact{&pid, &comm, &state, &local, &remote} {
			p.Note = note
		}
		v.Fix = []string{
			fmt.Sprintf("`ss -tnp --bound-inactive 'sport = :%d'` shows sockets that are bound and nothing else (Linux 6.8 and iproute2 6.8 or later); on older kernels nothing does: look for programs that are configured for this port", f.local.Port()),
		}
	}
	eph := Fact{Key: "ephemeral", Note: "it is not known which end of the connection is the client"}
	switch {
	case sure:
		eph = Fact{Key: "ephemeral", Value: ephemeral}
	case !f.known:
		eph.Note = "the holder is not known"
	case f.holder.Bound:
		eph.Note = "it had a port before connect(): the program may have chosen it by bind()"
	}
	instead := Fact{Key: "instead", Note: "not seen"}
	switch {
	case f.own:
		v.Severity = Info
	case f.known && f.holder.State == event.StateListen && f.holder.Owner.Known() && f.holder.Owner.Comm == f.owner.Comm && v.Count == 1 && !f.got && !f.instead.IsValid():
		// The same program serves the port already, and tried once: to start it in
		// earnest it would try again.
		v.Severity = Info
		v.Story += "; a test of the configuration (nginx -t) looks the same"
	case f.got:
		v.Severity = Warning
		v.Story += "; a later attempt succeeded"
		instead = Fact{Key: "instead", Value: f.local.String()}
	case f.instead.IsValid():
		v.Severity = Warning
		v.Story += "; it then listened on " + f.instead.String()
		instead = Fact{Key: "instead", Value: f.instead.String()}
	case f.from.IsValid():
		v.Severity = Info
		v.Story += "; it then connected from " + f.from.String()
		instead = Fact{Key: "instead", Value: f.from.String()}
	}
	rangeFact, _, _ := ports.facts()
	v.Evidence = Evidence{
		{Key: "port", Value: int64(f.local.Port())},
		{Key: "wanted", Value: f.local.String()},
		{Key: "call", Value: call},
		pid, comm, state, local, remote, eph, rangeFact,
		{Key: "holders", Value: int64(f.holders)},
		instead,
	}
}

// mini reports whether a socket in this state may have no process any more.
func mini(s event.State) bool {
	switch s {
	case event.StateTimeWait, event.StateFinWait1, event.StateFinWait2, event.StateClosing, event.StateLastAck:
		return true
	}
	return false
}

func (f *conflict) describeHolder(ephemeral bool) string {
	h := &f.holder
	who := h.Owner.Name()
	if !h.Owner.Known() {
		who = "an unknown process"
	}
	ends := fmt.Sprintf("%s to %s, %s", h.Local, destination(h.Remote), timeline.StateName(h.State))
	switch {
	case h.State == event.StateListen && f.own:
		return fmt.Sprintf("the process itself listens on %s already", h.Local)
	case h.State == event.StateListen:
		return fmt.Sprintf("%s listens on %s", who, h.Local)
	case ephemeral && h.Owner.Known():
		return fmt.Sprintf("a client connection of %s got the port as its ephemeral one (%s)", who, ends)
	case ephemeral:
		return fmt.Sprintf("a client connection got the port as its ephemeral one (%s)", ends)
	case h.Owner.Known():
		return fmt.Sprintf("a connection of %s holds the port (%s)", who, ends)
	}
	return fmt.Sprintf("a connection holds the port (%s)", ends)
}

func (f *conflict) fix(ports portRange, ephemeral bool) []string {
	h := &f.holder
	switch {
	case f.own:
		return []string{"bind once: a socket bound to [::] takes IPv4 too unless IPV6_V6ONLY is set on it"}
	case ephemeral:
		return []string{
			fmt.Sprintf("set net.ipv4.ip_local_reserved_ports=%d (add it to what is there): connect() does not hand this port out then", f.local.Port()),
			fmt.Sprintf("or choose a port for the service outside of net.ipv4.ip_local_port_range (%s)", ports),
			"the port is free again once that connection is closed, and 60 s of TIME_WAIT are over if it was closed here first",
		}
	case h.State == event.StateListen && h.Owner.Known() && h.Owner.Comm == f.owner.Comm:
		return []string{
			fmt.Sprintf("an instance runs already: %s; stop it, or wait until it has ended, before the next one is started", h.Owner.Name()),
			"if both are meant to share the port: SO_REUSEPORT on the listeners of both",
		}
	case h.State == event.StateListen:
		who := "the other service"
		if h.Owner.Known() {
			who = h.Owner.Name()
		}
		return []string{fmt.Sprintf("%s has the port: move one of the two to another port, or to an address of its own", who)}
	case h.Bound:
		who := "the client"
		if h.Owner.Known() {
			who = h.Owner.Name()
		}
		fix := []string{fmt.Sprintf("if %s binds to this port before it connects: have it take another one, or move the service", who)}
		if !ports.known || ports.holds(f.local.Port()) {
			fix = append(fix, fmt.Sprintf("if it binds to any port (0): reserve this one (net.ipv4.ip_local_reserved_ports=%d, added to what is there)", f.local.Port()))
		}
		return fix
	case f.server || ports.known && !ports.holds(f.local.Port()):
		return []string{
			"set SO_REUSEADDR before bind(): a listener then may have a port whose earlier connections are in TIME_WAIT or still open, if these had SO_REUSEADDR too (connections inherit it from their listener)",
			"without it, the port is free once these are gone: 60 s for TIME_WAIT",
		}
	}
	return []string{
		fmt.Sprintf("if it is a client's connection: reserve the port (net.ipv4.ip_local_reserved_ports=%d, added to what is there)", f.local.Port()),
		"if it is one of an earlier instance of the service: set SO_REUSEADDR before bind()",
	}
}
