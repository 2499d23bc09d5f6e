package sockets

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tcptrace/tcptrace/internal/filter"
	"github.com/tcptrace/tcptrace/tracer/event"
)

func addr(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

var (
	web    = Owner{PID: 812, Comm: "nginx", Cgroup: "/system.slice/nginx.service", Holders: 2}
	worker = Owner{PID: 900, Comm: "worker", Holders: 1}
)

const ns = 7

func space(v *Survey) {
	v.Namespace(event.Namespace{Inode: ns, Known: true, Sysctls: event.Sysctls{PortRangeLow: 32768, PortRangeHigh: 60999, TWReuse: 2}})
}

func listener(at string, queue, limit uint32) *event.Event {
	return &event.Event{
		Kind: event.KindSnapshot, Netns: ns, New: event.StateListen, Local: addr(at),
		Listener:  event.Listener{QueueLen: queue, QueueLimit: limit, Somaxconn: 4096},
		Inventory: &event.Inventory{Inode: 1, Idle: -1, SentIdle: -1, Left: -1},
	}
}

func full(st event.State, local, remote string, idle time.Duration, change ...func(*event.Event)) *event.Event {
	e := &event.Event{
		Kind: event.KindSnapshot, Netns: ns, New: st, Local: addr(local), Remote: addr(remote),
		Inventory: &event.Inventory{
			Inode: 2, Idle: idle, SentIdle: idle, Left: -1, KeepaliveTime: 2 * time.Hour, KeepaliveInterval: 75 * time.Second, KeepaliveProbes: 9,
			SendWindow: 65536, ReceiveWindow: 65536,
		},
	}
	for _, c := range change {
		c(e)
	}
	return e
}

func mini(st event.State, local, remote string, left time.Duration) *event.Event {
	return &event.Event{
		Kind: event.KindSnapshot, Netns: ns, New: st, Local: addr(local), Remote: addr(remote),
		Inventory: &event.Inventory{Minisocket: true, Left: left, Idle: -1, SentIdle: -1},
	}
}

func request(local, remote string) *event.Event {
	return &event.Event{
		Kind: event.KindSnapshot, Netns: ns, New: event.StateNewSynRecv, Local: addr(local), Remote: addr(remote),
		Inventory: &event.Inventory{Idle: -1, SentIdle: -1, Left: -1},
	}
}

func keepalive(e *event.Event) { e.Flags |= event.FlagKeepalive }
func dead(e *event.Event)      { e.Flags |= event.FlagDead; e.Inventory.Inode = 0 }
func unheld(e *event.Event)    { e.Inventory.Inode = 0 }

func TestRolesAndHolders(t *testing.T) {
	v := New(Options{})
	space(v)
	for _, at := range []string{"0.0.0.0:80", "[::]:443", "127.0.0.1:443", "[::]:40000", "0.0.0.0:40000"} {
		v.Add(listener(at, 0, 128), web)
	}
	for _, c := range []struct {
		name     string
		e        *event.Event
		owner    Owner
		role     Role
		listener string
		hold     Hold
		pid      uint32
	}{
		{"server", full(event.StateEstablished, "10.0.0.1:80", "10.0.0.9:50000", 0), web, RoleServer, "0.0.0.0:80", HoldProcess, 812},
		{"not IPv6 of an IPv4 listener", full(event.StateEstablished, "[2001:db8::1]:80", "[2001:db8::2]:50000", 0), web, RoleServer, "", HoldProcess, 812},
		{"IPv4 by an IPv6 listener", full(event.StateEstablished, "10.0.0.1:443", "10.0.0.9:50000", 0), web, RoleServer, "[::]:443", HoldProcess, 812},
		{"exact listener", full(event.StateEstablished, "127.0.0.1:443", "127.0.0.1:50000", 0), web, RoleServer, "127.0.0.1:443", HoldProcess, 812},
		{"listener in the range", full(event.StateEstablished, "10.0.0.1:40000", "10.0.0.9:50000", 0), web, RoleServer, "0.0.0.0:40000", HoldProcess, 812},
		{"client", full(event.StateEstablished, "10.0.0.1:50000", "10.0.0.5:5432", 0), worker, RoleClient, "", HoldProcess, 900},
		{"server without listener", full(event.StateCloseWait, "10.0.0.1:9000", "10.0.0.9:50000", 0), web, RoleServer, "", HoldProcess, 812},
		{"neither", full(event.StateEstablished, "10.0.0.1:50000", "10.0.0.5:50001", 0), worker, RoleUnknown, "", HoldProcess, 900},
		{"connecting", full(event.StateSynSent, "10.0.0.1:50000", "10.0.0.5:50001", time.Hour), worker, RoleClient, "", HoldProcess, 900},
		{"accept queue", full(event.StateEstablished, "10.0.0.1:80", "10.0.0.9:50001", 0, unheld), Owner{}, RoleServer, "0.0.0.0:80", HoldQueue, 812},
		{"orphan", full(event.StateFinWait2, "10.0.0.1:50000", "10.0.0.5:5432", 0, dead), Owner{}, RoleClient, "", HoldKernel, 0},
		{"orphan of a server", full(event.StateFinWait1, "10.0.0.1:80", "10.0.0.9:50002", 0, dead), Owner{}, RoleServer, "0.0.0.0:80", HoldKernel, 0},
		{"minisocket", mini(event.StateTimeWait, "10.0.0.1:50000", "10.0.0.5:5432", time.Second), Owner{}, RoleClient, "", HoldKernel, 0},
		{"half-open", request("10.0.0.1:80", "10.0.0.9:50003"), Owner{}, RoleServer, "0.0.0.0:80", HoldRequest, 0},
		{"nobody found", full(event.StateEstablished, "10.0.0.1:50000", "10.0.0.5:5432", 0), Owner{}, RoleClient, "", HoldUnknown, 0},
	} {
		s, shown := v.Add(c.e, c.owner)
		assert.True(t, shown, c.name)
		assert.Equal(t, c.role, s.Role, c.name)
		assert.Equal(t, c.hold, s.Hold, c.name)
		assert.Equal(t, c.pid, s.Owner.PID, c.name)
		got := ""
		if s.Listener.IsValid() {
			got = s.Listener.String()
		}
		assert.Equal(t, c.listener, got, c.name)
		assert.NotEqual(t, event.StateNewSynRecv, s.State, c.name)
		if c.name == "connecting" {
			assert.Negative(t, s.Idle, "nothing was received")
		}
	}
}

func TestReapedAfter(t *testing.T) {
	v := New(Options{})
	space(v)
	on, _ := v.Add(full(event.StateEstablished, "10.0.0.1:50000", "10.0.0.5:5432", 0, keepalive), worker)
	silent, reset, ok := on.ReapedAfter()
	assert.True(t, ok)
	assert.Equal(t, 7875*time.Second, silent, "the defaults: 7200 s and 9 probes 75 s apart")
	assert.Equal(t, 7200*time.Second, reset)
	off, _ := v.Add(full(event.StateEstablished, "10.0.0.1:50000", "10.0.0.5:5432", 0), worker)
	_, _, ok = off.ReapedAfter()
	assert.False(t, ok)
	unknown, _ := v.Add(full(event.StateEstablished, "10.0.0.1:50000", "10.0.0.5:5432", 0, keepalive,
		func(e *event.Event) { e.Inventory.KeepaliveTime = 0 }), worker)
	_, _, ok = unknown.ReapedAfter()
	assert.False(t, ok, "a kernel whose ticks are not known")
}

func TestLimitedBy(t *testing.T) {
	for _, c := range []struct {
		limit, somaxconn uint32
		want             string
	}{{16, 4096, "backlog argument"}, {4096, 4096, "somaxconn"}, {4096, 128, ""}, {128, 0, ""}, {0, 4096, "backlog argument"}} {
		assert.Equal(t, c.want, LimitedBy(event.Listener{QueueLimit: c.limit, Somaxconn: c.somaxconn}), "%v", c)
	}
	assert.False(t, Full(event.Listener{QueueLen: 16, QueueLimit: 16}), "a queue takes one more than its limit")
	assert.True(t, Full(event.Listener{QueueLen: 17, QueueLimit: 16}))
	assert.True(t, Full(event.Listener{QueueLen: 1}))
	notes := func(l event.Listener, o Options) []string {
		v := New(o)
		s := v.classify(&event.Event{New: event.StateListen, Listener: l}, Owner{})
		return ListenerNotes(&s)
	}
	old := Options{SYNFullAtLimit: true}
	assert.Empty(t, notes(event.Listener{QueueLimit: 128, QueueLen: 100, SYNQueueLen: 128}, Options{}), "there is room for one more")
	assert.Len(t, notes(event.Listener{QueueLimit: 128, QueueLen: 129, SYNQueueLen: 129}, Options{}), 2)
	assert.Len(t, notes(event.Listener{QueueLimit: 128, SYNQueueLen: 128}, old), 1)
	assert.Empty(t, notes(event.Listener{QueueLimit: 128, SYNQueueLen: 127}, old))
	assert.Len(t, notes(event.Listener{SYNQueueLen: 1}, Options{}), 1, "a backlog of 0 takes one")
}

func TestGroups(t *testing.T) {
	v := New(Options{})
	space(v)
	v.Add(listener("0.0.0.0:80", 3, 128), web)
	v.Add(listener("0.0.0.0:81", 129, 128), web)
	for i := range 5 {
		idle := time.Duration(i+1) * 40 * time.Second // 40 s to 200 s
		v.Add(full(event.StateCloseWait, "10.0.0.1:80", fmt.Sprintf("10.0.0.%d:50000", 2+i%2), idle, func(e *event.Event) { e.Traffic.Unread = 10 }), web)
	}
	for i := range 3 {
		v.Add(full(event.StateEstablished, fmt.Sprintf("10.0.0.1:4000%d", i), "10.0.0.5:5432", time.Duration(i)*time.Hour, keepalive), worker)
	}
	for i := range 20 {
		v.Add(mini(event.StateTimeWait, fmt.Sprintf("10.0.0.1:41%03d", i), "10.0.0.5:5432", time.Duration(i)*time.Second), Owner{})
	}
	r := v.Report()
	assert.EqualValues(t, 30, r.Sockets)
	assert.EqualValues(t, 2, r.States[event.StateListen])
	require.Len(t, r.Listeners, 2)
	assert.Equal(t, addr("0.0.0.0:81"), r.Listeners[0].Local, "the full one comes first")

	require.Len(t, r.Groups, 3)
	cw := r.Groups[0]
	assert.True(t, cw.Trouble)
	assert.Equal(t, Key{Netns: ns, State: event.StateCloseWait, Hold: HoldProcess, PID: 812, Role: RoleServer, Local: addr("0.0.0.0:80")}, cw.Key)
	assert.EqualValues(t, 5, cw.Count)
	assert.Equal(t, 40*time.Second, cw.IdleNewest)
	assert.Equal(t, 200*time.Second, cw.IdleOldest)
	assert.EqualValues(t, 50, cw.RecvQ)
	assert.Equal(t, "off", cw.Keepalive())
	assert.Equal(t, []Address{{netip.MustParseAddr("10.0.0.2"), 3}, {netip.MustParseAddr("10.0.0.3"), 2}}, cw.Addresses)
	assert.Equal(t, []string{
		"4 of 5: the peer has closed, this process has not, for at least 80s to 3m20s; keepalive is off: the kernel never frees them",
		"received data is not read, for at least 40s to 3m20s",
	}, cw.Notes)

	tw := r.Groups[1]
	assert.Equal(t, Key{Netns: ns, State: event.StateTimeWait, Hold: HoldKernel, Role: RoleClient, Remote: addr("10.0.0.5:5432")}, tw.Key)
	assert.Zero(t, tw.IdleKnown)
	assert.Equal(t, 19*time.Second, tw.LeftLongest)
	assert.Empty(t, tw.Notes)
	assert.Equal(t, "", tw.Keepalive())

	db := r.Groups[2]
	assert.Equal(t, "on", db.Keepalive())
	assert.True(t, db.ReapKnown())
	assert.Equal(t, 675*time.Second, db.NextReap, "7875 s less 2 h")
	assert.False(t, db.Trouble, "keepalive watches it")
	assert.Empty(t, db.Notes)

	require.Len(t, r.Ports, 1)
	p := r.Ports[0]
	assert.Equal(t, 23, p.InUse)
	assert.EqualValues(t, 20, p.States[event.StateTimeWait])
	assert.Equal(t, 28232, p.Ports())
	assert.InDelta(t, 23.0/28232, p.Share(), 1e-9)
}

func TestNotes(t *testing.T) {
	for _, c := range []struct {
		name    string
		e       *event.Event
		owner   Owner
		trouble bool
		want    string // "" nothing at all
	}{
		{"fine", full(event.StateEstablished, "10.0.0.1:40000", "10.0.0.5:5432", time.Hour), worker, false, ""},
		{"fresh CLOSE_WAIT", full(event.StateCloseWait, "10.0.0.1:40000", "10.0.0.5:5432", time.Second), worker, false, ""},
		{"CLOSE_WAIT", full(event.StateCloseWait, "10.0.0.1:40000", "10.0.0.5:5432", time.Hour), worker, true, "keepalive is off: the kernel never frees them"},
		{"CLOSE_WAIT with keepalive", full(event.StateCloseWait, "10.0.0.1:40000", "10.0.0.5:5432", time.Hour, keepalive), worker, true, "keepalive frees them 2h11m after the last segment if the peer is gone"},
		{"CLOSE_WAIT in the queue", full(event.StateCloseWait, "10.0.0.1:80", "10.0.0.5:50000", time.Hour, unheld), Owner{}, true, "nobody has accepted"},
		{"FIN_WAIT2", full(event.StateFinWait2, "10.0.0.1:40000", "10.0.0.5:5432", time.Hour), worker, true, "this process has ended sending, the peer has not closed, for at least 1h"},
		{"orphan", full(event.StateFinWait1, "10.0.0.1:40000", "10.0.0.5:5432", 90*time.Second, dead), Owner{}, true, "the FIN sent is not acknowledged, for at least 90s"},
		{"FIN_WAIT2 minisocket", mini(event.StateFinWait2, "10.0.0.1:40000", "10.0.0.5:5432", time.Second), Owner{}, false, ""},
		{"silent", full(event.StateEstablished, "10.0.0.1:40000", "10.0.0.5:5432", 3*time.Hour), worker, false, "without keepalive: nobody would notice"},
		{"silent with keepalive", full(event.StateEstablished, "10.0.0.1:40000", "10.0.0.5:5432", 3*time.Hour, keepalive), worker, false, ""},
		{"unread", full(event.StateEstablished, "10.0.0.1:40000", "10.0.0.5:5432", 6*time.Second, func(e *event.Event) { e.Traffic.Unread = 1 }), worker, true, "received data is not read, for at least 6s"},
		{"unread just now", full(event.StateEstablished, "10.0.0.1:40000", "10.0.0.5:5432", 0, func(e *event.Event) { e.Traffic.Unread = 1 }), worker, false, ""},
		{"unacknowledged", full(event.StateEstablished, "10.0.0.1:40000", "10.0.0.5:5432", 20*time.Second, func(e *event.Event) { e.Traffic.Unacked = 1 }), worker, true, "nothing was heard of the peer for at least 20s"},
		{"peer's window", full(event.StateEstablished, "10.0.0.1:40000", "10.0.0.5:5432", 0, func(e *event.Event) { e.Traffic.Unacked, e.Inventory.SendWindow = 1, 0 }), worker, true, "the peer keeps its receive window shut"},
		{"own window", full(event.StateEstablished, "10.0.0.1:40000", "10.0.0.5:5432", 0, func(e *event.Event) { e.Traffic.Unread, e.Inventory.ReceiveWindow = 1, 0 }), worker, true, "and the receive window is shut"},
		{"connecting", full(event.StateSynSent, "10.0.0.1:40000", "10.0.0.5:5432", 0, func(e *event.Event) { e.Traffic.Unacked, e.Inventory.SendWindow = 1, 0 }), worker, false, ""},
	} {
		v := New(Options{})
		space(v)
		v.Add(listener("0.0.0.0:80", 0, 1), web)
		v.Add(c.e, c.owner)
		g := v.Report().Groups
		require.Len(t, g, 1, c.name)
		assert.Equal(t, c.trouble, g[0].Trouble, c.name)
		if c.want == "" {
			assert.Empty(t, g[0].Notes, c.name)
			continue
		}
		require.Len(t, g[0].Notes, 1, c.name)
		assert.Contains(t, g[0].Notes[0], c.want, c.name)
	}
}

// TestClosingFirst puts states that should not last before those that may.
func TestClosingFirst(t *testing.T) {
	v := New(Options{})
	space(v)
	for i := range 9 {
		v.Add(full(event.StateEstablished, fmt.Sprintf("10.0.0.1:4000%d", i), "10.0.0.5:5432", 0), worker)
	}
	v.Add(mini(event.StateTimeWait, "10.0.0.1:40010", "10.0.0.5:5432", 0), Owner{})
	v.Add(mini(event.StateFinWait2, "10.0.0.1:40011", "10.0.0.5:5432", 0), Owner{})
	v.Add(full(event.StateCloseWait, "10.0.0.1:40012", "10.0.0.5:5432", 0), worker)
	var got []string
	for _, g := range v.Report().Groups {
		assert.False(t, g.Trouble)
		got = append(got, StateName(g.State))
	}
	assert.Equal(t, []string{"FIN_WAIT2", "CLOSE_WAIT", "ESTABLISHED", "TIME_WAIT"}, got)
}

func TestDimensions(t *testing.T) {
	for _, c := range []struct {
		by     string
		groups int
	}{
		{"state", 3}, {"process", 3}, {"service", 2}, {"peer", 4}, {"state,process,service", 4}, {"state, peer", 6},
	} {
		by, err := ParseDimensions(c.by)
		require.NoError(t, err)
		v := New(Options{By: by})
		space(v)
		v.Add(listener("0.0.0.0:80", 0, 128), web)
		for i := range 3 {
			remote := fmt.Sprintf("10.0.0.%d:50000", i)
			v.Add(full(event.StateEstablished, "10.0.0.1:80", remote, 0), web)
			if i < 2 {
				v.Add(full(event.StateCloseWait, "10.0.0.1:80", remote, 0), web)
			}
		}
		v.Add(full(event.StateEstablished, "10.0.0.1:40000", "10.0.0.5:5432", 0), worker)
		if c.by == "process" || c.by == "state" || c.by == "state,process,service" {
			v.Add(mini(event.StateTimeWait, "10.0.0.1:40001", "10.0.0.5:5432", 0), Owner{})
		}
		r := v.Report()
		assert.Len(t, r.Groups, c.groups, c.by)
		var n uint64
		for _, g := range r.Groups {
			n += g.Count
		}
		assert.Equal(t, r.Sockets-1, n, c.by)
	}
	for _, bad := range []string{"", "port", "state,", "State"} {
		_, err := ParseDimensions(bad)
		assert.Error(t, err, bad)
	}
}

func TestFilter(t *testing.T) {
	for _, c := range []struct {
		name                      string
		f                         filter.Filter
		sockets, listeners, ports int
	}{
		{"everything", filter.Filter{}, 5, 1, 1},
		{"process", filter.Filter{PIDs: []uint32{900}}, 1, 0, 1},
		{"name", filter.Filter{Comms: []string{"nginx"}}, 3, 1, 0},
		{"port", filter.Filter{Ports: []uint16{80}}, 3, 1, 0},
		{"state", filter.Filter{States: []event.State{event.StateSynRecv}}, 1, 0, 0},
		{"address", filter.Filter{Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.0.5/32")}}, 3, 1, 1},
		{"remote port", filter.Filter{RemotePorts: []uint16{5432}}, 2, 0, 1},
		{"cgroup", filter.Filter{Cgroups: []string{"/system.slice"}}, 3, 1, 0},
		{"namespace", filter.Filter{Netns: []uint32{8}}, 0, 0, 0},
	} {
		v := New(Options{Filter: c.f})
		space(v)
		v.Add(listener("0.0.0.0:80", 0, 128), web)
		v.Add(full(event.StateEstablished, "10.0.0.1:80", "10.0.0.9:50000", 0, unheld), Owner{}) // in the queue: its listener's
		v.Add(request("10.0.0.1:80", "10.0.0.9:50003"), Owner{Cgroup: "/system.slice/nginx.service"})
		v.Add(full(event.StateEstablished, "10.0.0.1:40000", "10.0.0.5:5432", 0), worker)
		v.Add(mini(event.StateTimeWait, "10.0.0.1:40001", "10.0.0.5:5432", 0), Owner{})
		r := v.Report()
		if c.name == "name" {
			c.sockets = 2 // of a request nothing but the cgroup is known
		}
		assert.EqualValues(t, c.sockets, r.Sockets, c.name)
		assert.Len(t, r.Listeners, c.listeners, c.name)
		require.Len(t, r.Ports, c.ports, c.name)
		if c.ports > 0 {
			assert.Equal(t, 2, r.Ports[0].InUse, "%s: hidden sockets take ports too", c.name)
		}
	}
}

// TestBounds floods every bound: memory stays, and nothing gets lost silently.
func TestBounds(t *testing.T) {
	v := New(Options{By: ByPeer})
	space(v)
	var n uint64
	for i := range maxGroups + 5000 {
		n++
		remote := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 443)
		e := full(event.StateEstablished, "192.0.2.1:40000", "10.0.0.5:5432", 0)
		e.Remote = remote
		v.Add(e, worker)
	}
	r := v.Report()
	assert.LessOrEqual(t, len(r.Groups), maxGroups+1)
	assert.EqualValues(t, 5000, r.Ungrouped)
	assert.EqualValues(t, 5000, r.PortsLeftOut)
	last := r.Groups[len(r.Groups)-1]
	assert.True(t, last.Further)
	assert.EqualValues(t, 5000, last.Count)
	var sum uint64
	for _, g := range r.Groups {
		sum += g.Count
	}
	assert.Equal(t, n, sum)

	v = New(Options{By: ByState})
	space(v)
	for i := range maxAddresses + 1000 {
		e := full(event.StateEstablished, "192.0.2.1:40000", "10.0.0.5:5432", 0)
		e.Remote = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 443)
		v.Add(e, worker)
	}
	r = v.Report()
	require.Len(t, r.Groups, 1)
	assert.True(t, r.Groups[0].AddressesMore)
	assert.Equal(t, maxAddresses, r.Groups[0].AddressCount)
	assert.Len(t, r.Groups[0].Addresses, addressMax)
}

// TestAnything feeds sockets that no kernel would show, in any order: nothing
// panics, every socket is counted once, and the same input gives the same
// report.
func TestAnything(t *testing.T) {
	for seed := range uint64(300) {
		build := func() *Report {
			rnd := rand.New(rand.NewPCG(seed, 1))
			v := New(Options{By: Dimensions(rnd.IntN(16))})
			if rnd.IntN(4) > 0 {
				space(v)
			}
			shown := uint64(0)
			for range rnd.IntN(200) {
				e := &event.Event{
					Netns: uint32(7 + rnd.IntN(2)), New: event.State(rnd.IntN(16)), Flags: event.Flags(rnd.Uint32()),
					Traffic:  event.Traffic{Unread: rnd.Uint32(), Unacked: rnd.Uint32()},
					Listener: event.Listener{QueueLen: rnd.Uint32(), QueueLimit: rnd.Uint32(), SYNQueueLen: rnd.Uint32()},
				}
				if rnd.IntN(8) > 0 {
					e.Local = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(rnd.IntN(3))}), uint16(rnd.IntN(3)*20000))
				}
				if rnd.IntN(8) > 0 {
					e.Remote = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(rnd.IntN(3))}), uint16(rnd.IntN(3)*20000))
				}
				if rnd.IntN(8) > 0 {
					e.Inventory = &event.Inventory{
						Inode: uint64(rnd.IntN(2)), Idle: time.Duration(rnd.Int64()) - 1<<62, Left: time.Duration(rnd.Int64()) - 1<<62,
						Minisocket: rnd.IntN(2) == 0, KeepaliveTime: time.Duration(rnd.Int64()), KeepaliveInterval: time.Duration(rnd.Int64()), KeepaliveProbes: rnd.Uint32(),
					}
				}
				if _, ok := v.Add(e, Owner{PID: uint32(rnd.IntN(12)), Comm: "x"}); ok {
					shown++
				}
			}
			r := v.Report()
			n := uint64(len(r.Listeners)) + r.ListenersLeftOut
			for _, g := range r.Groups {
				n += g.Count
			}
			require.Equal(t, shown, r.Sockets)
			require.Equal(t, shown, n)
			return r
		}
		require.True(t, reflect.DeepEqual(build(), build()), "seed %d", seed)
	}
}

func TestTroubles(t *testing.T) {
	got := Troubles(map[string]uint64{"TcpExt.ListenOverflows": 37, "Tcp.RetransSegs": 5, "Tcp.OutSegs": 1000, "Tcp.ActiveOpens": 9, "Tcp.OutRsts": 0})
	require.Len(t, got, 2)
	assert.Equal(t, "ListenOverflows", got[0].Name)
	assert.False(t, got[0].Common)
	assert.Equal(t, "RetransSegs", got[1].Name)
	assert.EqualValues(t, 1000, got[1].Of)
	assert.Equal(t, "OutSegs", got[1].OfName)
	assert.Empty(t, Troubles(nil))
	seen := map[string]bool{}
	for _, c := range troubles {
		assert.False(t, seen[c.key], c.key)
		seen[c.key] = true
		assert.True(t, strings.HasPrefix(c.key, "Tcp.") || strings.HasPrefix(c.key, "TcpExt."), c.key)
	}
}

func TestAge(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-1: "0s", 0: "0s", 900 * time.Millisecond: "0s", 41 * time.Second: "41s", 119 * time.Second: "119s", 3 * time.Minute: "3m",
		200 * time.Second: "3m20s", 25 * time.Minute: "25m", 7875 * time.Second: "2h11m", 30 * time.Hour: "30h", 50 * time.Hour: "2d2h", 400 * 24 * time.Hour: "400d",
	} {
		assert.Equal(t, want, Age(d), "%d", d)
	}
}
