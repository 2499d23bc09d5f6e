package diagnose

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/tcptrace/tcptrace/internal/timeline"
)

const codePortClosed = "port-closed"

const (
	// portHold is how long a refused SYN waits for the source to turn out to
	// scan, and for a listener to turn up.
	portHold = 2 * time.Second
	// portRestart is how long after its listener closed a port is one that
	// was open a moment ago: what a restart takes at most, as a rule.
	portRestart = time.Minute
	// portsOwn is how many ports of a namespace get a verdict of their own.
	portsOwn = 128
)

var docPortClosed = Doc{
	Code:     codePortClosed,
	Severity: Info,
	Summary:  "SYNs arrived for a port where nobody listens",
	Meaning: `This host answered SYNs by RST because no socket listens on that port and address. It is the other side of connect-refused. From the internet it is noise; from clients of a service it means that the service is not running, is starting, or listens elsewhere.

The evidence says what is known of the port: that a listener was closed less than a minute before (a restart), that one was opened soon after, and that a process listens on the port at another address (a service bound to 127.0.0.1 refuses everybody else).

SYNs of a source that scans are left out, see syn-scan, unless the port's listener was closed less than a minute before, or has been asked for without a minute's pause since. A SYN is kept for two seconds to see whether its source does. The first 128 ports of a network namespace have verdicts of their own, and those that somebody was seen to listen on; others share one.

It rests on RSTs that were sent without a socket; where the hooks do not show them (see doctor), it is not known. A firewall that rejects with RST is not seen here.`,
	Counts: "SYNs",
	Evidence: []DocKey{
		{"port", "", "local port; null where the verdict is about many"},
		{"count", "count", "SYNs answered by RST"},
		{"clients", "count", "different client addresses"},
		{"top_clients", "", "addresses and networks that stand out, with how many of the SYNs are surely theirs"},
		{"listens_on", "", "where a socket listens on the same port, at an address that these SYNs were not for"},
		{"closed_before_ms", "ms", "how long before a refused SYN the port's listener was closed, the latest time; null if there was none in the minute before"},
		{"opened_after_ms", "ms", "how long after a refused SYN a socket began to listen, the latest time; null if none did"},
	},
	Fix: []string{
		"for a service that should be there: start it, and see where it listens (`ss -ltn`)",
		"nothing, for probes from the internet; drop them in a firewall if the answers are a burden",
	},
	Counters: []string{"Tcp.OutRsts"},
	Source:   []string{"net/ipv4/tcp_ipv4.c: tcp_v4_rcv() (no_tcp_socket), tcp_v4_send_reset()"},
}

// portClosed follows refused SYNs by local port.
type portClosed struct {
	ports *portListeners
	scans *synScan
	held  []refusal // in the order of arrival
	found groups[Key, *closedPort]
	own   groups[uint32, int] // ports with a verdict of their own
}

func newPortClosed(ports *portListeners, scans *synScan) *portClosed {
	return &portClosed{
		ports: ports,
		scans: scans,
		found: groups[Key, *closedPort]{max: 1024},
		own:   groups[uint32, int]{max: 1024},
	}
}

func (*portClosed) Code() string { return codePortClosed }
func (*portClosed) Doc() Doc     { return docPortClosed }

// portListeners keeps account of who listens on which port, and did until a
// moment ago.
type portListeners struct {
	ports groups[closedKey, *portUsers]
}

func newPortListeners() *portListeners {
	return &portListeners{groups[closedKey, *portUsers]{max: 4096}}
}

type closedKey struct {
	netns uint32
	port  uint16
}

// portUsers are the listeners of one port, of whatever address.
type portUsers struct {
	open   []*timeline.Listener
	closed []*timeline.Listener // the last ones
	missed int64                // when one of these was last asked for
}

// note hears of a listener that was opened, found or closed.
func (s *portListeners) note(l *timeline.Listener) {
	const most = 8
	p := s.ports.make(closedKey{l.Netns, l.Addr.Port()})
	if *p == nil {
		*p = &portUsers{}
	}
	u := *p
	u.open = slices.DeleteFunc(u.open, func(o *timeline.Listener) bool { return o == l || o.Closed != 0 })
	switch {
	case l.Closed == 0 && len(u.open) < most:
		u.open = append(u.open, l)
	case l.Closed != 0:
		if len(u.closed) >= most {
			u.closed = slices.Delete(u.closed, 0, 1)
		}
		u.closed = append(u.closed, l)
	}
}

// of returns the listeners of a port, nil if none was ever seen.
func (s *portListeners) of(netns uint32, port uint16) *portUsers {
	if p := s.ports.get(closedKey{netns, port}); p != nil {
		return *p
	}
	return nil
}

// before returns the last listener that served local and was closed by then,
// nil if there was none.
func (u *portUsers) before(local netip.AddrPort, at int64) *timeline.Listener {
	var last *timeline.Listener
	for _, l := range u.closed {
		if serves(l, local) && l.Closed <= at && (last == nil || l.Closed >= last.Closed) {
			last = l
		}
	}
	return last
}

// restarting reports whether local was served until a moment before, or has been
// asked for ever since by those who miss its listener. One that seems to be open
// was, until its end was missed.
func (s *portListeners) restarting(netns uint32, local netip.AddrPort, at int64) bool {
	u := s.of(netns, local.Port())
	if u == nil {
		return false
	}
	l := u.before(local, at)
	if l != nil && at-max(l.Closed, u.missed) <= int64(portRestart) {
		u.missed = max(u.missed, at)
		return true
	}
	return slices.ContainsFunc(u.open, func(l *timeline.Listener) bool { return serves(l, local) && l.Opened <= at })
}

// refusal is a refused SYN, or several.
type refusal struct {
	at            int64
	netns         uint32
	local, remote netip.AddrPort
	n             uint64
}

type closedPort struct {
	at     netip.AddrPort // invalid: of many ports
	count  uint64
	from   sources
	closed *timeline.Listener // the latest that was closed before a SYN came
	before time.Duration      // how long before the first of these
	opened *timeline.Listener // the latest that was opened after a SYN
	after  time.Duration      // how long after the first of these
	other  *timeline.Listener // at another address
}

// Listener keeps account of who listens.
func (r *portClosed) Listener(_ *Engine, l *timeline.Listener, _ *timeline.Entry) { r.ports.note(l) }

// Incident hears of SYNs that were refused.
func (r *portClosed) Incident(x *Engine, in *timeline.Incident) {
	if in.Kind != timeline.IncidentRefused || !in.Local.IsValid() {
		return
	}
	const most = 8192
	if len(r.held) >= most {
		r.decide(x, r.held[0])
		r.held = slices.Delete(r.held, 0, 1)
	}
	r.held = append(r.held, refusal{in.At, in.Netns, in.Local, in.Remote, max(in.Count, 1)})
}

// Tick decides on those that have waited.
func (r *portClosed) Tick(x *Engine, now int64, _ *timeline.Tracker) {
	n := 0
	for n < len(r.held) && now-r.held[n].at >= int64(portHold) {
		r.decide(x, r.held[n])
		n++
	}
	r.held = slices.Delete(r.held, 0, n)
}

// Finish decides on the rest.
func (r *portClosed) Finish(x *Engine) {
	for _, h := range r.held {
		r.decide(x, h)
	}
	r.held = nil
}

func (r *portClosed) decide(x *Engine, h refusal) {
	scan := r.scans.around(h.netns, h.at)
	if h.remote.IsValid() {
		scan = r.scans.scanning(h.netns, h.remote.Addr(), h.at)
	}
	if scan && !r.ports.restarting(h.netns, h.local, h.at) {
		return
	}
	k := Key{Netns: h.netns, Addr: h.local}
	p := r.found.get(k)
	if p == nil {
		// A port that was listened on is somebody's, not one of thousands that
		// the internet tries.
		if own := r.own.make(h.netns); *own < portsOwn || r.ports.of(h.netns, h.local.Port()) != nil {
			*own++
		} else {
			k = Key{Netns: h.netns, What: "many"}
		}
		p = r.found.make(k)
	}
	if *p == nil {
		*p = &closedPort{at: k.Addr}
	}
	f := *p
	f.count += h.n
	if h.remote.IsValid() {
		f.from.add(h.remote.Addr())
	}
	if k.Addr.IsValid() {
		r.look(f, h)
	}
	x.Report(r, k, f, h.at, h.n)
}

// look finds what is known of the port.
func (r *portClosed) look(f *closedPort, h refusal) {
	u := r.ports.of(h.netns, h.local.Port())
	if u == nil {
		return
	}
	l := u.before(h.local, h.at)
	if f.closed != nil && f.closed != l || f.opened != nil && h.at-f.opened.Opened > int64(portHold) {
		f.closed, f.opened = nil, nil // it listened again since: that was another time
	}
	if l != nil && f.closed == nil && h.at-l.Closed <= int64(portRestart) {
		f.closed, f.before = l, time.Duration(h.at-l.Closed)
		f.opened = nil
	}
	f.other = nil
	for _, l := range u.open {
		switch {
		case !serves(l, h.local):
			f.other = l
		case f.opened != l && l.Opened > h.at:
			f.opened, f.after = l, time.Duration(l.Opened-h.at)
		}
	}
}

// serves reports whether a SYN to that address would be a listener's.
func serves(l *timeline.Listener, local netip.AddrPort) bool {
	a := l.Addr.Addr()
	return a == local.Addr() || a.IsUnspecified() && (a.Is6() || local.Addr().Is4())
}

func (f *closedPort) Describe(x *Engine, v *Verdict) {
	v.Severity, v.Confidence = Info, Certain
	v.Fix = docPortClosed.Fix
	port := Fact{Key: "port", Note: "many"}
	if f.at.IsValid() {
		port = Fact{Key: "port", Value: int64(f.at.Port())}
		v.Subject = Subject{"port", f.at.String()}
		v.Story = fmt.Sprintf("%s for %s, where nobody listens: answered by RST", plural(f.count, "SYN", "SYNs"), f.at)
	} else {
		v.Subject = Subject{"host", "further ports"}
		v.Story = fmt.Sprintf("%s for further ports where nobody listens: answered by RST", plural(f.count, "SYN", "SYNs"))
	}
	other := Fact{Key: "listens_on", Note: "no listener at another address was seen"}
	before := Fact{Key: "closed_before_ms", Note: "no listener was closed in the minute before"}
	after := Fact{Key: "opened_after_ms", Note: "none opened since"}
	if l := f.other; l != nil {
		other = Fact{Key: other.Key, Value: l.Addr.String()}
		v.Process = process(l.Owner())
		v.Story += fmt.Sprintf("; %s listens on that port, but at %s only", l.Owner().Name(), l.Addr)
		v.Fix = []string{fmt.Sprintf("have it listen on an address that its clients use: %s serves only SYNs to that one", l.Addr)}
	}
	if l := f.closed; l != nil {
		before = Fact{Key: before.Key, Value: milliseconds(f.before)}
		v.Process = process(l.Owner())
		v.Story += fmt.Sprintf("; %s closed its listener %s before", l.Owner().Name(), timeline.Duration(f.before))
		v.Fix = []string{
			"keep the port open over a restart: socket activation (systemd), SO_REUSEPORT with the new process started first, or a reload instead of a restart",
			"if the process was not to end, find out why it did",
		}
	}
	if l := f.opened; l != nil {
		after = Fact{Key: after.Key, Value: milliseconds(f.after)}
		v.Story += fmt.Sprintf("; %s began to listen %s after", l.Owner().Name(), timeline.Duration(f.after))
		if f.closed == nil {
			v.Process = process(l.Owner())
			v.Fix = []string{"nothing, if clients try again: the service was starting; else have them wait for it"}
		}
	}
	v.Evidence = Evidence{
		port,
		{Key: "count", Value: int64(f.count)},
		f.from.addresses.fact("clients"),
		f.from.fact("top_clients", f.count),
		other,
		before,
		after,
	}
	if f.from.n() < f.count && f.from.n() > 0 {
		v.Evidence[2].Note = "at least"
	}
	if f.from.n() == 0 {
		v.Evidence[2] = Fact{Key: "clients", Note: "they came too fast to look at each one's source"}
	}
}
