package kerneltest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/filter"
	"github.com/tcptrace/tcptrace/internal/kerneltest/watchtest"
	"github.com/tcptrace/tcptrace/internal/lab"
	"github.com/tcptrace/tcptrace/internal/pipeline"
	"github.com/tcptrace/tcptrace/internal/render"
	"github.com/tcptrace/tcptrace/internal/sockets"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// stock keeps what `tcptrace sockets` would show.
type stock struct {
	*render.Inventory
	all []sockets.Socket
}

func (s *stock) Namespace(event.Namespace)        {}
func (s *stock) Socket(one *sockets.Socket) error { s.all = append(s.all, *one); return nil }
func (s *stock) Report(r *render.Inventory) error { s.Inventory = r; return nil }
func (s *stock) Flush() error                     { return nil }
func (s *stock) listener(port uint16) (found []sockets.Socket) {
	for _, l := range s.Listeners {
		if l.Local.Port() == port {
			found = append(found, l)
		}
	}
	return found
}

// group returns the only group with a state whose service has a port.
func (s *stock) group(t *testing.T, st event.State, role sockets.Role, port uint16) *sockets.Group {
	t.Helper()
	var found *sockets.Group
	for _, g := range s.Groups {
		at := g.Remote
		if role == sockets.RoleServer {
			at = g.Local
		}
		if g.State == st && g.Role == role && at.Port() == port {
			require.Nil(t, found, "two groups of %s %s %d", role, sockets.StateName(st), port)
			found = g
		}
	}
	if found == nil {
		for _, g := range s.Groups {
			t.Logf("group: %d %s %s %s %s", g.Count, sockets.StateName(g.State), g.Role, g.Local, g.Remote)
		}
		require.FailNow(t, "no group", "%s %s %d", role, sockets.StateName(st), port)
	}
	return found
}

func takeStock(t *testing.T, o sockets.Options) *stock {
	t.Helper()
	s := &stock{}
	require.NoError(t, pipeline.TakeStock(context.Background(), pipeline.StockConfig{Options: o, Out: s, All: true}), "these tests need root")
	require.NotNil(t, s.Inventory)
	assert.Empty(t, s.Problems)
	return s
}

// fixture opens sockets and closes them with the test.
type fixture struct {
	t  *testing.T
	ns *lab.Namespace
}

func (f fixture) do(what string, fn func() error) {
	f.t.Helper()
	if err := f.ns.Do(fn); err != nil {
		require.FailNow(f.t, what, "%v", err)
	}
}

func (f fixture) socket(family int) (fd int) {
	f.t.Helper()
	f.do("making a socket", func() (err error) {
		fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		return err
	})
	return fd
}

func sockaddrOf(at string) (int, unix.Sockaddr) {
	a := netip.MustParseAddrPort(at)
	if a.Addr().Is4() {
		return unix.AF_INET, &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return unix.AF_INET6, &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

func (f fixture) listen(at string, backlog int, options ...func(fd int) error) int {
	f.t.Helper()
	family, sa := sockaddrOf(at)
	fd := f.socket(family)
	f.t.Cleanup(func() { unix.Close(fd) })
	for _, o := range options {
		require.NoError(f.t, o(fd))
	}
	require.NoError(f.t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
	if family == unix.AF_INET6 {
		require.NoError(f.t, unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0))
	}
	require.NoError(f.t, unix.Bind(fd, sa))
	require.NoError(f.t, unix.Listen(fd, backlog))
	return fd
}

// connect begins to connect; the caller closes the socket.
func (f fixture) connect(to string) int {
	f.t.Helper()
	family, sa := sockaddrOf(to)
	fd := f.socket(family)
	if err := unix.Connect(fd, sa); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		require.NoError(f.t, err, "connecting to %s", to)
	}
	return fd
}

// kept is connect for a socket that is closed at the end only.
func (f fixture) kept(to string) int {
	fd := f.connect(to)
	f.t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func (f fixture) await(fd int, events int16) {
	f.t.Helper()
	for deadline := time.Now().Add(watchtest.Patience()); time.Now().Before(deadline); {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: events}}, 100)
		if n > 0 {
			return
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			require.NoError(f.t, err)
		}
	}
	require.FailNow(f.t, "a socket was not ready in time")
}

func (f fixture) accept(fd int) int {
	f.t.Helper()
	f.await(fd, unix.POLLIN)
	conn, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
	require.NoError(f.t, err)
	return conn
}

// TestSockets makes sockets of many kinds and holds the overview against what
// was made, and against /proc/net/tcp.
func TestSockets(t *testing.T) {
	ns, err := lab.NewNamespace()
	require.NoError(t, err, "these tests need root")
	t.Cleanup(func() { ns.Close() })
	f := fixture{t, ns}
	require.NoError(t, ns.Sysctl("net.ipv4.ip_local_port_range", "40000 40999"))
	require.NoError(t, ns.Sysctl("net.ipv4.tcp_abort_on_overflow", "0"))
	require.NoError(t, ns.Sysctl("net.core.somaxconn", "64"))

	// A half full queue, a full one with a client that cannot get in, one whose
	// limit is somaxconn's, one with a half-open request.
	f.listen("127.0.0.1:8081", 8)
	for range 4 {
		f.await(f.kept("127.0.0.1:8081"), unix.POLLOUT)
	}
	f.listen("127.0.0.1:8082", 2)
	for range 3 {
		f.await(f.kept("127.0.0.1:8082"), unix.POLLOUT)
	}
	f.kept("127.0.0.1:8082")
	f.listen("0.0.0.0:8083", 100_000)
	f.listen("127.0.0.1:8084", 16, func(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 60) })
	f.await(f.kept("127.0.0.1:8084"), unix.POLLOUT)

	// Forgotten in CLOSE_WAIT with data unread, from IPv4-mapped clients; their
	// ends are orphans in FIN_WAIT2. IPv6 with keepalive of its own.
	dual := f.listen("[::]:8443", 16)
	for range 5 {
		c := f.connect("127.0.0.1:8443")
		s := f.accept(dual)
		t.Cleanup(func() { unix.Close(s) })
		_, err := unix.Write(c, []byte("never read"))
		require.NoError(t, err)
		require.NoError(t, unix.Close(c))
	}
	for range 2 {
		c := f.kept("[::1]:8443")
		s := f.accept(dual)
		t.Cleanup(func() { unix.Close(s) })
		for option, value := range map[int]int{unix.TCP_KEEPIDLE: 100, unix.TCP_KEEPINTVL: 10, unix.TCP_KEEPCNT: 3} {
			require.NoError(t, unix.SetsockoptInt(c, unix.IPPROTO_TCP, option, value))
		}
		require.NoError(t, unix.SetsockoptInt(c, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1))
	}

	// TIME_WAIT at the client.
	server := f.listen("127.0.0.1:9000", 16)
	const waiting = 50
	for range waiting {
		c := f.connect("127.0.0.1:9000")
		s := f.accept(server)
		require.NoError(t, unix.Close(c))
		f.await(s, unix.POLLIN)
		require.NoError(t, unix.Close(s))
	}

	// A receiver that does not read.
	c := f.kept("127.0.0.1:9000")
	deaf := f.accept(server)
	t.Cleanup(func() { unix.Close(deaf) })
	buf := make([]byte, 1<<16)
	for deadline := time.Now().Add(watchtest.Patience()); ; {
		if _, err := unix.Write(c, buf); errors.Is(err, unix.EAGAIN) {
			// Not full before the peer's window is shut.
			if n, err := unix.Poll([]unix.PollFd{{Fd: int32(c), Events: unix.POLLOUT}}, 500); n == 0 && err == nil {
				break
			}
		} else if err != nil {
			require.NoError(t, err)
		}
		require.True(t, time.Now().Before(deadline), "the window stayed open")
	}

	var s *stock
	only := sockets.Options{Filter: filter.Filter{Netns: []uint32{ns.Inode()}}}
	// The last FIN may still be under way.
	for deadline := time.Now().Add(watchtest.Patience()); ; time.Sleep(100 * time.Millisecond) {
		s = takeStock(t, only)
		if s.States[event.StateTimeWait] == waiting && s.States[event.StateCloseWait] == 5 && s.States[event.StateFinWait2] == 5 || time.Now().After(deadline) {
			break
		}
	}
	self := uint32(os.Getpid())

	t.Run("listeners", func(t *testing.T) {
		for _, c := range []struct {
			port              uint16
			queue, limit, syn uint32
			by                string
			full              bool
		}{
			{8081, 4, 8, 0, "backlog argument", false},
			{8082, 3, 2, 0, "backlog argument", true},
			{8083, 0, 64, 0, "somaxconn", false},
			{8084, 0, 16, 1, "backlog argument", false},
			{8443, 0, 16, 0, "backlog argument", false},
			{9000, 0, 16, 0, "backlog argument", false},
		} {
			found := s.listener(c.port)
			require.Len(t, found, 1, "%d", c.port)
			l := found[0]
			assert.Equal(t, [3]uint32{c.queue, c.limit, c.syn}, [3]uint32{l.Queue.QueueLen, l.Queue.QueueLimit, l.Queue.SYNQueueLen}, "%d", c.port)
			assert.EqualValues(t, 64, l.Queue.Somaxconn, "%d", c.port)
			assert.Equal(t, c.by, sockets.LimitedBy(l.Queue), "%d", c.port)
			assert.Equal(t, c.full, sockets.Full(l.Queue), "%d", c.port)
			assert.Equal(t, self, l.Owner.PID, "%d", c.port)
			assert.Equal(t, sockets.HoldProcess, l.Hold, "%d", c.port)
		}
		assert.Len(t, s.Listeners, 6)
		assert.EqualValues(t, 8082, s.Listeners[0].Local.Port(), "the full one comes first")
	})

	t.Run("groups", func(t *testing.T) {
		queued := s.group(t, event.StateEstablished, sockets.RoleServer, 8081)
		assert.EqualValues(t, 4, queued.Count)
		assert.Equal(t, sockets.HoldQueue, queued.Hold)
		assert.Equal(t, self, queued.PID, "the listener's")

		trying := s.group(t, event.StateSynSent, sockets.RoleClient, 8082)
		assert.EqualValues(t, 1, trying.Count)
		assert.False(t, trying.Trouble)

		half := s.group(t, event.StateSynRecv, sockets.RoleServer, 8084)
		assert.EqualValues(t, 1, half.Count)
		assert.Equal(t, sockets.HoldRequest, half.Hold)

		forgotten := s.group(t, event.StateCloseWait, sockets.RoleServer, 8443)
		assert.EqualValues(t, 5, forgotten.Count)
		assert.Equal(t, "[::]:8443", forgotten.Local.String())
		assert.Equal(t, []sockets.Address{{Addr: netip.MustParseAddr("127.0.0.1"), Count: 5}}, forgotten.Addresses, "IPv4-mapped is told as IPv4")
		assert.EqualValues(t, 5*len("never read"), forgotten.RecvQ, "without the FIN")
		assert.Equal(t, "off", forgotten.Keepalive())
		assert.Equal(t, self, forgotten.PID)

		gone := s.group(t, event.StateFinWait2, sockets.RoleClient, 8443)
		assert.EqualValues(t, 5, gone.Count)
		assert.Equal(t, sockets.HoldKernel, gone.Hold)
		assert.EqualValues(t, 5, gone.LeftKnown)
		assert.LessOrEqual(t, gone.LeftLongest, 60*time.Second)
		assert.Positive(t, gone.LeftLongest)

		six := s.group(t, event.StateEstablished, sockets.RoleClient, 8443)
		assert.EqualValues(t, 2, six.Count)
		assert.Equal(t, "[::1]:8443", six.Remote.String())
		assert.Equal(t, "on", six.Keepalive())
		require.True(t, six.ReapKnown())
		assert.InDelta(t, 130, six.ReapedSilent.Seconds(), 1)
		assert.InDelta(t, 100, six.ReapedReset.Seconds(), 1)
		assert.Less(t, six.IdleOldest, watchtest.Patience())

		tw := s.group(t, event.StateTimeWait, sockets.RoleClient, 9000)
		assert.EqualValues(t, waiting, tw.Count)
		assert.LessOrEqual(t, tw.LeftLongest, 61*time.Second)

		sender := s.group(t, event.StateEstablished, sockets.RoleClient, 9000)
		assert.True(t, sender.Trouble)
		assert.Contains(t, strings.Join(sender.Notes, ";"), "the peer keeps its receive window shut")
		assert.Positive(t, sender.SendQ)
		receiver := s.group(t, event.StateEstablished, sockets.RoleServer, 9000)
		assert.Positive(t, receiver.RecvQ)
	})

	t.Run("ports", func(t *testing.T) {
		require.NotEmpty(t, s.Ports)
		p := s.Ports[0]
		assert.Equal(t, "127.0.0.1:9000", p.Remote.String())
		assert.Equal(t, waiting+1, p.InUse)
		assert.Equal(t, 1000, p.Ports())
		assert.EqualValues(t, waiting, p.States[event.StateTimeWait])
		assert.EqualValues(t, 1, p.States[event.StateEstablished])
		assert.InDelta(t, 0.051, p.Share(), 1e-9)
	})

	t.Run("counters", func(t *testing.T) {
		require.Len(t, s.Counters, 1)
		found := map[string]uint64{}
		for _, c := range s.Counters[0].Counters {
			found[c.Name] = c.Value
		}
		assert.Positive(t, found["ListenOverflows"], "a SYN met a full queue: %v", found)
	})

	t.Run("filters", func(t *testing.T) {
		for name, c := range map[string]struct {
			f    filter.Filter
			want uint64
		}{
			"state":   {filter.Filter{States: []event.State{event.StateCloseWait}}, 5},
			"pid":     {filter.Filter{PIDs: []uint32{self}, States: []event.State{event.StateListen}}, 6},
			"nobody":  {filter.Filter{PIDs: []uint32{self + 1}}, 0},
			"lport":   {filter.Filter{LocalPorts: []uint16{8443}}, 1 + 5 + 2},
			"address": {filter.Filter{Addrs: []netip.Prefix{netip.MustParsePrefix("::1/128")}, Ports: []uint16{8443}}, 1 + 4},
		} {
			c.f.Netns = []uint32{ns.Inode()}
			got := takeStock(t, sockets.Options{Filter: c.f})
			assert.Equal(t, c.want, got.Sockets, name)
			assert.Empty(t, got.Counters, "%s: counters are of the whole namespace", name)
		}
	})

	t.Run("all namespaces", func(t *testing.T) {
		got := takeStock(t, sockets.Options{})
		assert.GreaterOrEqual(t, got.Namespaces, 2)
		n := 0
		for _, l := range got.listener(8443) {
			if l.Netns == ns.Inode() {
				n++
			}
		}
		assert.Equal(t, 1, n)
	})

	t.Run("as /proc/net/tcp", func(t *testing.T) {
		var want map[string]string
		for try := 0; ; try++ {
			var again map[string]string
			f.do("reading /proc/net/tcp", func() (err error) {
				if want, err = procSockets(); err != nil {
					return err
				}
				s = takeStock(t, only)
				again, err = procSockets()
				return err
			})
			// Timers run meanwhile.
			if fmt.Sprint(want) == fmt.Sprint(again) || try == 20 {
				break
			}
		}
		got := map[string]string{}
		for _, one := range s.all {
			got[fmt.Sprintf("%s %s", one.Local, one.Remote)] = fmt.Sprintf("%s recv %d send %d inode %d",
				sockets.StateName(one.State), one.Traffic.Unread, one.Traffic.Unacked, one.Inode)
			if one.Role == sockets.RoleListener {
				delete(got, fmt.Sprintf("%s %s", one.Local, one.Remote))
				got[one.Local.String()] = fmt.Sprintf("LISTEN queue %d inode %d", one.Queue.QueueLen, one.Inode)
			}
		}
		assert.Equal(t, want, got)
	})
}

// procSockets reads the sockets of the calling thread's namespace as the
// kernel's own files show them.
func procSockets() (map[string]string, error) {
	all := map[string]string{}
	for _, name := range []string{"tcp", "tcp6"} {
		file, err := os.Open("/proc/thread-self/net/" + name)
		if err != nil {
			return nil, err
		}
		lines := bufio.NewScanner(file)
		lines.Scan() // titles
		for lines.Scan() {
			f := strings.Fields(lines.Text())
			if len(f) < 10 {
				continue
			}
			local, remote := procAddr(f[1]), procAddr(f[2])
			st, _ := strconv.ParseUint(f[3], 16, 8)
			send, recv, _ := strings.Cut(f[4], ":")
			sendQ, _ := strconv.ParseUint(send, 16, 32)
			recvQ, _ := strconv.ParseUint(recv, 16, 32)
			if event.State(st) == event.StateCloseWait && recvQ > 0 {
				recvQ-- // the FIN
			}
			switch event.State(st) {
			case event.StateListen:
				all[local.String()] = fmt.Sprintf("LISTEN queue %d inode %s", recvQ, f[9])
				continue
			case event.StateSynSent:
				sendQ-- // the SYN
			}
			all[fmt.Sprintf("%s %s", local, remote)] = fmt.Sprintf("%s recv %d send %d inode %s", sockets.StateName(event.State(st)), recvQ, sendQ, f[9])
		}
		err = errors.Join(lines.Err(), file.Close())
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}

// procAddr parses 0100007F:1F90: words in the machine's byte order.
func procAddr(s string) netip.AddrPort {
	hexAddr, hexPort, _ := strings.Cut(s, ":")
	port, _ := strconv.ParseUint(hexPort, 16, 16)
	raw := make([]byte, 0, 16)
	for ; len(hexAddr) >= 8; hexAddr = hexAddr[8:] {
		w, _ := strconv.ParseUint(hexAddr[:8], 16, 32)
		raw = append(raw, byte(w), byte(w>>8), byte(w>>16), byte(w>>24))
	}
	a, _ := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(a.Unmap(), uint16(port))
}
