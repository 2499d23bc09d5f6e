package lab

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/tcptrace/tcptrace/internal/lab/peer"
)

// Case E: more half-open connections than the listener may have.
var halfOpenCases = []Case{
	{
		ID:    "E",
		Title: "SYN queue overflow, SYNs dropped",
		Story: "Many hosts send a SYN and never answer the SYN-ACK. Half-open connections reach the backlog; " +
			"with tcp_syncookies 0, further SYNs are dropped.",
		NeedsTUN: true,
		Run:      run(floodDropped),
	},
	{
		ID:       "E-cookies",
		Title:    "SYN queue overflow, cookies sent",
		Story:    "As case E with tcp_syncookies 1: further SYNs are answered with cookies, and honest clients get in.",
		NeedsTUN: true,
		Run:      run(floodCookies),
	},
	{
		ID:       "E-full",
		Title:    "the accept queue is full behind a SYN cookie",
		Story:    "As case E-cookies, but nobody accepts: clients that answer a cookie find the accept queue full.",
		NeedsTUN: true,
		Run:      run(cookieAtFullQueue),
	},
	{
		ID:       "E-healthy",
		Title:    "a burst of handshakes that all complete",
		Story:    "As many hosts as the backlog allows have half-open connections at once; then all complete.",
		NeedsTUN: true,
		Run:      run(burstCompletes),
	},
	{
		ID:       "E-always",
		Title:    "SYN cookies for everybody",
		Story:    "tcp_syncookies is 2: every SYN is answered with a cookie, though nothing is full.",
		NeedsTUN: true,
		Run:      run(cookiesAlways),
	},
	{
		ID:       "E-scan-closed",
		Title:    "a scan of closed ports",
		Story:    "One host sends a SYN to many ports where nobody listens, and is refused at each.",
		NeedsTUN: true,
		Run:      run(scanClosed),
	},
	{
		ID:       "E-scan-silent",
		Title:    "a scan that never answers",
		Story:    "One host sends a SYN to several open ports and ignores each SYN-ACK (tcp_synack_retries is 1).",
		NeedsTUN: true,
		Run:      run(scanSilent),
	},
	{
		ID:       "E-scan-healthy",
		Title:    "one host that uses several services",
		Story:    "One host opens a connection to each of several ports, exchanges a message and closes.",
		NeedsTUN: true,
		Run:      run(manyServices),
	},
	{
		ID:       "E-scan",
		Title:    "a scan that answers SYN-ACK with RST",
		Story:    "One host sends a SYN to several open ports and answers each SYN-ACK with RST.",
		NeedsTUN: true,
		Run:      run(scan),
	},
}

// flood sets the stage for case E: scripted clients of a server with
// env.Backlog.
func flood(ctx context.Context, env *Env, t *Truth, cookies string, accept bool) (*runningServer, *peer.Network, error) {
	if err := env.NS.Sysctl("net.ipv4.tcp_syncookies", cookies); err != nil {
		return nil, nil, err
	}
	net, err := env.network()
	if err != nil {
		return nil, nil, err
	}
	srv, err := env.serve(ctx, "login-server", serverSpec{
		Addr: netip.AddrPortFrom(netip.IPv4Unspecified(), 8084), Backlog: env.Backlog, Accept: accept, OnData: echoData,
	})
	if err != nil {
		return nil, nil, err
	}
	t.Listener, t.Server, t.Backlog = srv.Addr, srv.party(), env.Backlog
	return srv, net, nil
}

// knock sends SYNs from n hosts, the first of which is the given one.
func knock(net *peer.Network, first, n int, server netip.AddrPort) ([]*peer.Conn, error) {
	conns := make([]*peer.Conn, n)
	for i := range conns {
		conns[i] = scriptedClient(net, first+i, false, server)
		if err := conns[i].Send(peer.SYN, nil); err != nil {
			return nil, err
		}
	}
	return conns, nil
}

func floodDropped(ctx context.Context, env *Env, t *Truth) error {
	srv, net, err := flood(ctx, env, t, "0", true)
	if err != nil {
		return err
	}
	n := 4 * env.Backlog
	conns, err := knock(net, 0, n, srv.Addr)
	if err != nil {
		return err
	}
	// Which is the last to get in differs between kernels (kernel-facts).
	var answered int
	err = env.until(ctx, "each SYN was answered or dropped", func() (bool, error) {
		t.Victims, answered = nil, 0
		for _, c := range conns {
			if len(c.Received()) > 0 {
				answered++
			} else {
				t.Victims = append(t.Victims, Victim{Client: c.Local, Server: c.Remote})
			}
		}
		now, err := env.NS.Counters()
		dropped := now["TcpExt.TCPReqQFullDrop"] - env.before[env.NS.inode]["TcpExt.TCPReqQFullDrop"]
		return err == nil && answered+int(dropped) == n, err
	})
	if err != nil {
		return err
	}
	if answered < env.Backlog || answered > env.Backlog+1 {
		return fmt.Errorf("%d SYNs were answered at a backlog of %d", answered, env.Backlog)
	}
	env.Logf("of SYNs from %d hosts, %d were answered", n, answered)
	t.Allow = []string{"handshake-timeout"} // of those that wait, in the end
	t.Expect = []Expectation{{
		Code: "syn-queue-overflow", Listener: srv.Addr, Process: srv.party(), Count: len(t.Victims),
	}}
	t.Known["TcpExt.TCPReqQFullDrop"] = uint64(len(t.Victims))
	t.Known["TcpExt.ListenDrops"] = uint64(len(t.Victims))
	t.Known["TcpExt.ListenOverflows"] = 0
	return nil
}

func floodCookies(ctx context.Context, env *Env, t *Truth) error {
	ctx, cancel := context.WithTimeout(ctx, env.Patience)
	defer cancel()
	srv, net, err := flood(ctx, env, t, "1", true)
	if err != nil {
		return err
	}
	if _, err := knock(net, 0, 2*env.Backlog, srv.Addr); err != nil {
		return err
	}
	honest, err := knock(net, 2*env.Backlog, env.Backlog, srv.Addr)
	if err != nil {
		return err
	}
	for _, c := range honest {
		if _, err := c.Expect(ctx, peer.SYN|peer.ACK); err != nil {
			return err
		}
		if err := c.Send(peer.ACK, nil); err != nil {
			return err
		}
	}
	if err := echoWithAll(ctx, honest); err != nil {
		return err
	}
	env.Logf("%d clients got in by a cookie", len(honest))
	t.Expect = []Expectation{{Code: "syn-queue-overflow", Listener: srv.Addr, Process: srv.party()}}
	t.Allow = []string{"handshake-timeout"} // of those that wait, in the end
	n := uint64(env.Backlog)
	t.Known["TcpExt.SyncookiesRecv"] = n
	t.Known["TcpExt.ListenOverflows"] = 0
	t.Known["Tcp.PassiveOpens"] = n
	t.AtLeast["TcpExt.SyncookiesSent"] = 2*n - 1
	return nil
}

func cookieAtFullQueue(ctx context.Context, env *Env, t *Truth) error {
	ctx, cancel := context.WithTimeout(ctx, env.Patience)
	defer cancel()
	srv, net, err := flood(ctx, env, t, "1", false)
	if err != nil {
		return err
	}
	for i := range env.Backlog {
		if err := scriptedClient(net, i, false, srv.Addr).Open(ctx); err != nil {
			return err
		}
	}
	// Half-open ones up to the limit, which is the backlog or one more.
	if _, err := knock(net, env.Backlog, env.Backlog+1, srv.Addr); err != nil {
		return err
	}
	late, err := knock(net, 3*env.Backlog, env.Backlog, srv.Addr)
	if err != nil {
		return err
	}
	for _, c := range late {
		if _, err := c.Expect(ctx, peer.SYN|peer.ACK); err != nil {
			return err
		}
	}
	for _, c := range late {
		if err := c.Send(peer.ACK, nil); err != nil {
			return err
		}
	}
	victims := late[1:]
	for _, c := range victims {
		t.Victims = append(t.Victims, Victim{Client: c.Local, Server: c.Remote})
	}
	n := uint64(len(victims))
	if err := env.untilCounter(ctx, "TcpExt.ListenOverflows", n); err != nil {
		return err
	}
	env.Logf("%d clients answered a cookie and found the accept queue full", len(victims))
	if err := env.acceptAll(ctx, srv, env.Backlog+1); err != nil {
		return err
	}
	t.Expect = []Expectation{
		{Code: "syn-queue-overflow", Listener: srv.Addr, Process: srv.party()},
		{Code: "accept-queue-overflow", Listener: srv.Addr, Process: srv.party(), Count: len(victims)},
	}
	// No SYN-ACK will be sent again: the victims stay half open for good.
	t.Allow = []string{"slow-accept", "half-open", "handshake-timeout"}
	t.Known["TcpExt.ListenOverflows"] = n
	t.Known["Tcp.PassiveOpens"] = uint64(env.Backlog) + 1
	t.AtLeast["TcpExt.SyncookiesSent"] = uint64(len(late))
	return nil
}

func burstCompletes(ctx context.Context, env *Env, t *Truth) error {
	ctx, cancel := context.WithTimeout(ctx, env.Patience)
	defer cancel()
	srv, net, err := flood(ctx, env, t, "1", true)
	if err != nil {
		return err
	}
	conns, err := knock(net, 0, env.Backlog, srv.Addr)
	if err != nil {
		return err
	}
	for _, c := range conns {
		if _, err := c.Expect(ctx, peer.SYN|peer.ACK); err != nil {
			return err
		}
	}
	for _, c := range conns {
		if err := c.Send(peer.ACK, nil); err != nil {
			return err
		}
	}
	if err := echoWithAll(ctx, conns); err != nil {
		return err
	}
	if err := finishAll(ctx, conns); err != nil {
		return err
	}
	t.Known["Tcp.PassiveOpens"] = uint64(len(conns))
	return nil
}

func cookiesAlways(ctx context.Context, env *Env, t *Truth) error {
	ctx, cancel := context.WithTimeout(ctx, env.Patience)
	defer cancel()
	srv, net, err := flood(ctx, env, t, "2", true)
	if err != nil {
		return err
	}
	conns, err := knock(net, 0, 4, srv.Addr)
	if err != nil {
		return err
	}
	for _, c := range conns {
		if _, err := c.Expect(ctx, peer.SYN|peer.ACK); err != nil {
			return err
		}
		if err := c.Send(peer.ACK, nil); err != nil {
			return err
		}
	}
	if err := echoWithAll(ctx, conns); err != nil {
		return err
	}
	if err := finishAll(ctx, conns); err != nil {
		return err
	}
	n := uint64(len(conns))
	t.Known["TcpExt.SyncookiesSent"] = n
	t.Known["TcpExt.SyncookiesRecv"] = n
	t.Known["Tcp.PassiveOpens"] = n
	return nil
}

// servicePorts is how many listeners a scan of open ports meets.
const servicePorts = 5

// services starts a listener on each of several ports, and gives one scripted
// host a connection to each, not begun.
func services(ctx context.Context, env *Env) ([]*peer.Conn, error) {
	net, err := env.network()
	if err != nil {
		return nil, err
	}
	conns := make([]*peer.Conn, servicePorts)
	for i := range conns {
		srv, err := env.serve(ctx, fmt.Sprintf("service-%d", i), serverSpec{
			Addr: netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(8100+i)), Backlog: 511, Accept: true, OnData: echoData,
		})
		if err != nil {
			return nil, err
		}
		conns[i] = net.Conn(netip.AddrPortFrom(scriptedAddr(0, false), uint16(20000+i)), netip.AddrPortFrom(hostPrefix4.Addr(), srv.Addr.Port()))
	}
	return conns, nil
}

func scan(ctx context.Context, env *Env, t *Truth) error {
	ctx, cancel := context.WithTimeout(ctx, env.Patience)
	defer cancel()
	conns, err := services(ctx, env)
	if err != nil {
		return err
	}
	for _, c := range conns {
		if err := giveUp(ctx, c); err != nil {
			return err
		}
	}
	if err := env.untilCounter(ctx, "TcpExt.EmbryonicRsts", servicePorts); err != nil {
		return err
	}
	t.Expect = []Expectation{{Code: "syn-scan", Count: servicePorts}}
	t.Known["TcpExt.EmbryonicRsts"] = servicePorts
	t.Known["Tcp.AttemptFails"] = servicePorts
	t.Known["Tcp.PassiveOpens"] = 0
	return nil
}

func scanClosed(ctx context.Context, env *Env, t *Truth) error {
	ctx, cancel := context.WithTimeout(ctx, env.Patience)
	defer cancel()
	net, err := env.network()
	if err != nil {
		return err
	}
	const ports = 20
	for i := range uint16(ports) {
		c := net.Conn(netip.AddrPortFrom(scriptedAddr(0, false), 20000), netip.AddrPortFrom(hostPrefix4.Addr(), 8100+i))
		if err := c.Send(peer.SYN, nil); err != nil {
			return err
		}
		if _, err := c.Expect(ctx, peer.RST); err != nil {
			return err
		}
	}
	env.Logf("one host was refused at %d ports", ports)
	t.Expect = []Expectation{{Code: "syn-scan", Count: ports}}
	t.Known["Tcp.OutRsts"] = ports
	t.Known["Tcp.PassiveOpens"] = 0
	return nil
}

func scanSilent(ctx context.Context, env *Env, t *Truth) error {
	ctx, cancel := context.WithTimeout(ctx, env.Patience)
	defer cancel()
	if err := env.NS.Sysctl("net.ipv4.tcp_synack_retries", "1"); err != nil {
		return err
	}
	conns, err := services(ctx, env)
	if err != nil {
		return err
	}
	for _, c := range conns {
		if err := c.Send(peer.SYN, nil); err != nil {
			return err
		}
	}
	// The second is the retransmission.
	for range 2 {
		for _, c := range conns {
			if _, err := c.Expect(ctx, peer.SYN|peer.ACK); err != nil {
				return err
			}
		}
	}
	if err := env.untilCounter(ctx, "TcpExt.TCPTimeouts", servicePorts); err != nil {
		return err
	}
	env.Logf("one host ignored the SYN-ACKs of %d ports", servicePorts)
	t.Expect = []Expectation{{Code: "syn-scan", Count: servicePorts}}
	t.Allow = []string{"handshake-timeout"} // true of each port by itself
	t.Known["Tcp.PassiveOpens"] = 0
	t.AtLeast["TcpExt.TCPSynRetrans"] = servicePorts
	return nil
}

func manyServices(ctx context.Context, env *Env, t *Truth) error {
	ctx, cancel := context.WithTimeout(ctx, env.Patience)
	defer cancel()
	conns, err := services(ctx, env)
	if err != nil {
		return err
	}
	for _, c := range conns {
		if err := c.Open(ctx); err != nil {
			return err
		}
	}
	if err := echoWithAll(ctx, conns); err != nil {
		return err
	}
	if err := finishAll(ctx, conns); err != nil {
		return err
	}
	t.Known["Tcp.PassiveOpens"] = servicePorts
	return nil
}

// giveUp begins a handshake and answers the SYN-ACK with RST.
func giveUp(ctx context.Context, c *peer.Conn) error {
	if err := c.Send(peer.SYN, nil); err != nil {
		return err
	}
	if _, err := c.Expect(ctx, peer.SYN|peer.ACK); err != nil {
		return err
	}
	return c.Send(peer.RST, nil)
}
