// Package filter holds what the user wants to see: values of one kind are
// alternatives (OR), different kinds must all hold (AND), and no value at all
// lets everything through.
//
// What the kernel side can evaluate (ports, addresses, namespaces) is in
// exported fields; the same is applied again in user space, so a filter means
// the same live and from a dump.
package filter

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/tcptrace/tcptrace/tracer/event"
)

// Filter is what the user asked for. The zero value matches everything.
type Filter struct {
	Ports       []uint16       // either end
	LocalPorts  []uint16       //
	RemotePorts []uint16       //
	Addrs       []netip.Prefix // either end; masked, IPv4-mapped ones unmapped
	PIDs        []uint32       // in the initial pid namespace
	Comms       []string       // as the kernel keeps them, up to 15 bytes
	Netns       []uint32       // inode numbers
	Cgroups     []string       // paths below the hierarchy's root; those beneath match too
	Codes       []string       // verdict codes
	States      []event.State  //
}

// Conn is what a filter looks at in a connection or a listener. What is
// unknown stays at its zero value; a kind of filter that asks for it does not
// match, except for addresses and ports (see [Filter.MatchTuple]).
type Conn struct {
	Netns         uint32
	Local, Remote netip.AddrPort
	PID           uint32
	Comm          string
	Cgroup        string
	State         event.State
	Codes         []string // verdicts about it
}

// Empty reports whether the filter lets everything through.
func (f *Filter) Empty() bool {
	return len(f.Ports)+len(f.LocalPorts)+len(f.RemotePorts)+len(f.Addrs)+len(f.PIDs)+len(f.Comms)+
		len(f.Netns)+len(f.Cgroups)+len(f.Codes)+len(f.States) == 0
}

// MatchConn reports whether all kinds of filter hold for a connection.
func (f *Filter) MatchConn(c *Conn) bool {
	return f.MatchTuple(c.Netns, c.Local, c.Remote) &&
		f.MatchProcess(c.PID, c.Comm, c.Cgroup) &&
		f.MatchState(c.State) &&
		f.MatchCodes(c.Codes)
}

// MatchTuple reports whether namespace, addresses and ports may be meant. An
// end that is not known (yet) might be any: a listener's peer, the local port
// before connect() has chosen one, and a listener's unspecified address.
func (f *Filter) MatchTuple(netns uint32, local, remote netip.AddrPort) bool {
	if len(f.Netns) > 0 && !slices.Contains(f.Netns, netns) {
		return false
	}
	if len(f.LocalPorts) > 0 && !port(f.LocalPorts, local) {
		return false
	}
	if len(f.RemotePorts) > 0 && !port(f.RemotePorts, remote) {
		return false
	}
	if len(f.Ports) > 0 && !port(f.Ports, local) {
		// A listener has no peer that could match in its place.
		if !remote.IsValid() || !port(f.Ports, remote) {
			return false
		}
	}
	if len(f.Addrs) > 0 && !f.addr(local) && !f.addr(remote) {
		return false
	}
	return true
}

// MatchBound is the same for what has an end here and no other, a listener or a
// bind() that failed: one that is not there is not the one that was asked for.
// MatchTuple lets it through, since connections that are meant may come of it.
func (f *Filter) MatchBound(netns uint32, local netip.AddrPort) bool {
	return len(f.RemotePorts) == 0 && (len(f.Addrs) == 0 || f.addr(local)) && f.MatchTuple(netns, local, netip.AddrPort{})
}

// Vague reports whether a connection only may be meant because its local port
// is not known yet: connect() has not chosen one.
func (f *Filter) Vague(local, remote netip.AddrPort) bool {
	if local.Port() != 0 {
		return false
	}
	return len(f.LocalPorts) > 0 || len(f.Ports) > 0 && !(remote.IsValid() && slices.Contains(f.Ports, remote.Port()))
}

// Tuples reports whether addresses or ports are looked at.
func (f *Filter) Tuples() bool {
	return len(f.Ports)+len(f.LocalPorts)+len(f.RemotePorts)+len(f.Addrs) > 0
}

func port(list []uint16, end netip.AddrPort) bool {
	return end.Port() == 0 || slices.Contains(list, end.Port())
}

func (f *Filter) addr(end netip.AddrPort) bool {
	a := end.Addr().Unmap().WithZone("")
	if !a.IsValid() || a.IsUnspecified() {
		return true
	}
	for _, p := range f.Addrs {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// MatchProcess reports whether the owner is meant. An unknown owner (0 and
// empty strings) only matches where no process is asked for.
func (f *Filter) MatchProcess(pid uint32, comm, cgroup string) bool {
	if len(f.PIDs) > 0 && !slices.Contains(f.PIDs, pid) {
		return false
	}
	if len(f.Comms) > 0 && !slices.Contains(f.Comms, comm) {
		return false
	}
	return len(f.Cgroups) == 0 || slices.ContainsFunc(f.Cgroups, func(dir string) bool {
		return cgroup == dir || cgroup != "" && strings.HasPrefix(cgroup, strings.TrimSuffix(dir, "/")+"/")
	})
}

// MatchState reports whether a socket in this state is meant.
func (f *Filter) MatchState(s event.State) bool {
	return len(f.States) == 0 || slices.Contains(f.States, s)
}

// MatchCode reports whether a verdict of this code is meant.
func (f *Filter) MatchCode(code string) bool {
	return len(f.Codes) == 0 || slices.Contains(f.Codes, code)
}

// MatchCodes reports whether a connection with these verdicts is meant.
func (f *Filter) MatchCodes(codes []string) bool {
	return len(f.Codes) == 0 || slices.ContainsFunc(codes, f.MatchCode)
}
