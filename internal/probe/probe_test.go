package probe

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/tracer/event"
)

// open attaches, or fails the test: these need root and a kernel with BTF.
func open(t *testing.T, o Options) *Probe {
	t.Helper()
	o.Attach = os.Getenv("TCPTRACE_ATTACH")
	p, err := Open(o)
	require.NoError(t, err)
	t.Cleanup(func() { p.Close() })
	return p
}

// drain stops the probe and returns what it saw.
func drain(t *testing.T, p *Probe) []event.Event {
	t.Helper()
	p.Stop()
	var all []event.Event
	batch := make([]event.Event, 64)
	for {
		n, err := p.Read(batch, time.Second)
		all = append(all, batch[:n]...)
		if err != nil {
			require.ErrorContains(t, err, "EOF")
			return all
		}
	}
}

// connect makes one connection over loopback and closes both ends, the client
// first. It returns the ends' addresses.
func connect(t *testing.T) (client, server netip.AddrPort) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	c, err := net.Dial("tcp4", l.Addr().String())
	require.NoError(t, err)
	s, err := l.Accept()
	require.NoError(t, err)
	client, server = netip.MustParseAddrPort(c.LocalAddr().String()), netip.MustParseAddrPort(c.RemoteAddr().String())
	_, err = c.Write([]byte("hello"))
	require.NoError(t, err)
	_, err = s.Read(make([]byte, 8))
	require.NoError(t, err)
	require.NoError(t, c.Close())
	_, err = s.Read(make([]byte, 8))
	require.Error(t, err, "end of stream")
	require.NoError(t, s.Close())
	return client, server
}

// TestConnection sees one connection from both ends, in order.
func TestConnection(t *testing.T) {
	p := open(t, Options{})
	caps := p.Capabilities()
	client, server := connect(t)
	time.Sleep(50 * time.Millisecond) // the last ACK travels in softirq

	var c, s []event.Event
	for _, e := range drain(t, p) {
		switch {
		case e.Remote == server && (e.Local == client || e.New == event.StateSynSent):
			c = append(c, e)
		case e.Local == server && e.Remote == client:
			s = append(s, e)
		}
	}
	path := func(es []event.Event) (states []event.State) {
		for _, e := range es {
			if e.Kind == event.KindState {
				states = append(states, e.New)
			}
		}
		return
	}
	assert.Equal(t, []event.State{event.StateSynSent, event.StateEstablished, event.StateFinWait1, event.StateFinWait2, event.StateClose}, path(c))
	assert.Equal(t, []event.State{event.StateEstablished, event.StateCloseWait, event.StateLastAck, event.StateClose}, path(s))

	me := uint32(os.Getpid())
	for _, e := range append(slices.Clone(c), s...) {
		assert.NotZero(t, e.Sock)
		if e.Kind == event.KindState && (e.New == event.StateSynSent || e.New == event.StateFinWait1 || e.New == event.StateLastAck) {
			assert.True(t, e.Has(event.FlagProcess), "%v is made by a system call", e.New)
			assert.Equal(t, me, e.PID)
		}
		if e.New == event.StateEstablished && e.Kind == event.KindState {
			assert.False(t, e.Has(event.FlagProcess), "the handshake completes in softirq")
		}
	}
	last := c[len(c)-1]
	assert.True(t, last.Flags&(event.FlagTimeWait|event.FlagTimeWaitFW2) != 0, "the active closer enters TIME_WAIT")
	assert.EqualValues(t, 5, last.Traffic.BytesSent)
	assert.EqualValues(t, 5, s[len(s)-1].Traffic.BytesReceived, "without the FIN")
	assert.Zero(t, s[len(s)-1].Traffic.Unread)
	for _, e := range c {
		assert.Equal(t, c[0].Sock, e.Sock, "one socket, one identity")
	}
	if caps.HasAccept {
		i := slices.IndexFunc(s, func(e event.Event) bool { return e.Kind == event.KindAccept })
		require.GreaterOrEqual(t, i, 0, "accept() was seen")
		assert.Equal(t, me, s[i].PID)
		assert.Equal(t, s[0].Sock, s[i].Sock)
	}
}

// TestRawBacklog sees the argument of listen(), also where it was clamped.
func TestRawBacklog(t *testing.T) {
	p := open(t, Options{})
	require.True(t, p.Capabilities().HasListenArg)
	l, err := net.Listen("tcp4", "127.0.0.1:0") // MPTCP where the kernel has it
	require.NoError(t, err)
	defer l.Close()
	at := netip.MustParseAddrPort(l.Addr().String())
	var state, call *event.Event
	for _, e := range drain(t, p) {
		if e.Local != at {
			continue
		}
		if e.Kind == event.KindState && e.New == event.StateListen {
			state = &e
		}
		if e.Kind == event.KindListen {
			call = &e
		}
	}
	require.NotNil(t, state, "CLOSE to LISTEN")
	require.NotNil(t, call, "listen()")
	assert.Equal(t, state.Sock, call.Sock)
	assert.Equal(t, call.Listener.QueueLimit, min(call.Listener.Backlog, call.Listener.Somaxconn))
	assert.NotZero(t, call.Listener.Somaxconn)
	assert.Equal(t, uint32(os.Getpid()), call.PID)
}

// TestKernelFilter lets pass what matches, and only that.
func TestKernelFilter(t *testing.T) {
	port := uint16(0)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	port = netip.MustParseAddrPort(l.Addr().String()).Port()

	p := open(t, Options{Filter: Filter{Ports: []uint16{port}, Addrs: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}})
	connect(t) // another port
	c, err := net.Dial("tcp4", l.Addr().String())
	require.NoError(t, err)
	c.Close()
	time.Sleep(50 * time.Millisecond)
	matched := 0
	for _, e := range drain(t, p) {
		switch {
		case e.Local.Port() == port || e.Remote.Port() == port:
			matched++
		case e.Local.Port() == 0: // not known yet: must pass
		default:
			t.Errorf("passed the filter: %v %v", e.Local, e.Remote)
		}
	}
	assert.NotZero(t, matched)

	none := open(t, Options{Filter: Filter{Netns: []uint32{1}}})
	connect(t)
	assert.Empty(t, drain(t, none), "no namespace has this number")
}

// TestSnapshot lists sockets that are older than the probe.
func TestSnapshot(t *testing.T) {
	l, err := net.Listen("tcp6", "[::1]:0")
	require.NoError(t, err)
	defer l.Close()
	at := netip.MustParseAddrPort(l.Addr().String())
	c, err := net.Dial("tcp6", l.Addr().String())
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, c.(*net.TCPConn).SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 77 * time.Second, Interval: 11 * time.Second, Count: 5}))

	p := open(t, Options{})
	var listener, client *event.Event
	require.NoError(t, p.Snapshot(func(e *event.Event) {
		kept, inventory := *e, *e.Inventory // both are used again
		kept.Inventory = &inventory
		switch {
		case e.Local == at && e.New == event.StateListen:
			listener = &kept
		case e.Remote == at:
			client = &kept
		}
	}))
	require.NotNil(t, listener)
	require.NotNil(t, client)
	assert.NotZero(t, listener.Listener.QueueLimit)
	assert.EqualValues(t, 1, listener.Listener.QueueLen, "nobody has accepted yet")
	assert.Equal(t, event.StateEstablished, client.New)
	assert.True(t, client.Has(event.FlagKeepalive))
	assert.Equal(t, 77*time.Second, client.Inventory.KeepaliveTime)
	assert.Equal(t, 11*time.Second, client.Inventory.KeepaliveInterval)
	assert.EqualValues(t, 5, client.Inventory.KeepaliveProbes)
	assert.NotZero(t, client.Inventory.Inode)
	assert.GreaterOrEqual(t, client.Inventory.Idle, time.Duration(0))
	assert.Less(t, client.Inventory.Idle, time.Minute)
}

// TestRingFull counts what the ring has no room for.
func TestRingFull(t *testing.T) {
	p := open(t, Options{RingSize: 4096})
	for range 10 {
		connect(t)
	}
	s, err := p.Stats()
	require.NoError(t, err)
	got := len(drain(t, p))
	assert.LessOrEqual(t, got, 4096/(eventSize+8))
	assert.NotZero(t, s.Lost["ring"])
	assert.Greater(t, uint64(got)+s.Lost["ring"], uint64(80), "every event is delivered or counted")
}

// TestForcedAttach keeps to the way that was asked for.
func TestForcedAttach(t *testing.T) {
	for _, way := range []string{viaFentry, viaKprobe, viaTracepoint} {
		p, err := Open(Options{Attach: way})
		if err != nil {
			require.True(t, errors.Is(err, ErrNotSupported) || errors.Is(err, ErrNotPermitted), "%v", err)
			continue
		}
		for _, h := range p.Capabilities().Hooks {
			assert.Contains(t, []string{way, viaTracepoint, viaNone}, h.Via, h.Name)
		}
		p.Close()
	}
	_, err := Open(Options{Attach: "magic"})
	assert.Error(t, err)
}

// TestKprobesAreAsked: how often the kernel passed a kprobe by is known where it
// tells.
func TestKprobesAreAsked(t *testing.T) {
	p := open(t, Options{})
	_, err := p.Stats()
	require.NoError(t, err)
	tells := countsUnhit(p.caps.Kernel)
	kprobes := 0
	for i := range p.progs {
		l := &p.progs[i]
		if l.kprobe == nil {
			continue
		}
		kprobes++
		info, err := l.kprobe.Info()
		require.NoError(t, err, l.name)
		require.NotNil(t, info.PerfEvent().Kprobe(), l.name)
		assert.Equal(t, l.unhit, info.PerfEvent().Kprobe().Missed, l.name)
	}
	if tells && os.Getenv("TCPTRACE_ATTACH") == "kprobe" {
		assert.Greater(t, kprobes, 10)
	}
	byKprobe := slices.ContainsFunc(p.caps.Hooks, func(h event.Hook) bool { return h.Via == viaKprobe })
	assert.Equal(t, byKprobe && !tells, slices.Contains(p.caps.Unknowable, uncounted), "what is not counted is said")
	p.Stop()
	_, err = p.Stats()
	require.NoError(t, err)
}

// TestSYNDropTwoFamilies sees dropped SYNs where IPv4 and IPv6 have a listener
// each on one port, as nginx has by default.
func TestSYNDropTwoFamilies(t *testing.T) {
	p := open(t, Options{})
	require.True(t, p.Capabilities().HasSYNDrops)
	listen := func(family int, sa unix.Sockaddr) int {
		fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		require.NoError(t, err)
		t.Cleanup(func() { unix.Close(fd) })
		if family == unix.AF_INET6 {
			require.NoError(t, unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1))
		}
		require.NoError(t, unix.Bind(fd, sa))
		require.NoError(t, unix.Listen(fd, 1))
		return fd
	}
	fd := listen(unix.AF_INET, &unix.SockaddrInet4{})
	sa, err := unix.Getsockname(fd)
	require.NoError(t, err)
	port := sa.(*unix.SockaddrInet4).Port
	listen(unix.AF_INET6, &unix.SockaddrInet6{Port: port})
	for range 5 { // two fill the queue
		c, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		require.NoError(t, err)
		t.Cleanup(func() { unix.Close(c) })
		err = unix.Connect(c, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}})
		require.ErrorIs(t, err, unix.EINPROGRESS)
	}
	time.Sleep(50 * time.Millisecond)
	dropped := make(map[netip.AddrPort]bool) // by client: each tries again after a second
	for _, e := range drain(t, p) {
		if e.Kind == event.KindSYNDropped && e.Local.Port() == uint16(port) {
			dropped[e.Remote] = true
			assert.Equal(t, "127.0.0.1", e.Local.Addr().String())
			assert.EqualValues(t, 1, e.Listener.QueueLimit)
			assert.EqualValues(t, 2, e.Listener.QueueLen)
			assert.NotZero(t, e.Listener.ID)
		}
	}
	assert.Len(t, dropped, 3)
}

// TestOpenInventory loads nothing but the iterator, which lists the same
// sockets, minisockets with the time that they have left.
func TestOpenInventory(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	at := netip.MustParseAddrPort(l.Addr().String())
	// One that lives tells the kernel's tick rate, wherever it is in the list.
	alive, err := net.Dial("tcp4", l.Addr().String())
	require.NoError(t, err)
	defer alive.Close()
	const ended = 20
	for range 1 + ended {
		s, err := l.Accept()
		require.NoError(t, err)
		if s.RemoteAddr().String() == alive.LocalAddr().String() {
			defer s.Close()
		} else {
			s.Close()
		}
		c, err := net.Dial("tcp4", l.Addr().String())
		require.NoError(t, err)
		c.Close() // first: TIME_WAIT is here
	}
	p, err := OpenInventory(nil)
	require.NoError(t, err, "these tests need root")
	assert.Empty(t, p.progs, "no hook")
	assert.Empty(t, p.maps)
	listeners, waiting := 0, 0
	// The last FIN may still be under way.
	for deadline := time.Now().Add(time.Minute); waiting < ended && time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		listeners, waiting = 0, 0
		require.NoError(t, p.Snapshot(func(e *event.Event) {
			switch {
			case e.New == event.StateListen && e.Local == at:
				listeners++
			case e.New == event.StateTimeWait && e.Remote == at:
				waiting++
				assert.True(t, e.Inventory.Minisocket)
				assert.Positive(t, e.Inventory.Left)
				assert.LessOrEqual(t, e.Inventory.Left, 61*time.Second)
			}
		}))
	}
	assert.Equal(t, 1, listeners)
	assert.Equal(t, ended, waiting)
	require.NoError(t, p.Close())
}
