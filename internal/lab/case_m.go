package lab

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/tcptrace/tcptrace/internal/lab/peer"
)

// Case M: resets, each for a reason of its own.
var resetCases = []Case{
	{
		ID:    "M-unread",
		Title: "close() with unread data",
		Story: "A server closes connections whose requests it has not read; its kernel sends RST instead of FIN.",
		Run: run(func(ctx context.Context, env *Env, t *Truth) error {
			return serverResets(ctx, env, t, closeUnread, "TcpExt.TCPAbortOnClose")
		}),
	},
	{
		ID:    "M-shutdown",
		Title: "shutdown() and close() with unread data",
		Story: "A server shuts down sending before it closes, and has not read the requests either: RST follows its FIN.",
		Run:   run(shutdownUnread),
	},
	{
		ID:    "M-linger",
		Title: "close() with SO_LINGER 0",
		Story: "A server reads the request, then closes with SO_LINGER on and a time of zero, which sends RST.",
		Run: run(func(ctx context.Context, env *Env, t *Truth) error {
			return serverResets(ctx, env, t, closeReset, "TcpExt.TCPAbortOnData")
		}),
	},
	{
		ID:    "M-late-data",
		Title: "data after close()",
		Story: "A server answers and closes; the client goes on sending, and its data is answered with RST.",
		Run:   run(dataAfterClose),
	},
	{
		ID:       "M-peer",
		Title:    "reset by another host",
		Story:    "Another host accepts connections, reads the requests and answers with RST.",
		NeedsTUN: true,
		Run:      run(resetByPeer),
	},
	{
		ID:       "M-request",
		Title:    "a client gives up during the handshake",
		Story:    "Another host's client answers the server's SYN-ACK with RST: a client that went away, nothing worse.",
		NeedsTUN: true,
		Run:      run(resetDuringHandshake),
	},
	{
		ID:    "M-memory",
		Title: "too many orphans",
		Story: "A server closes connections whose clients do not acknowledge its FIN, and there may be one such orphan " +
			"at a time (net.ipv4.tcp_max_orphans is 1): the kernel kills the others.",
		NeedsTUN:    true,
		HostSetting: maxOrphans,
		Run:         run(tooManyOrphans),
	},
}

const maxOrphans = "net.ipv4.tcp_max_orphans"

var resetAddr = netip.MustParseAddrPort("127.0.0.1:8086")

// connectsAndAsks starts a server and a client whose requests are on their way.
func connectsAndAsks(ctx context.Context, env *Env, t *Truth, do onData) (*runningServer, *Process, []connected, error) {
	srv, err := env.serve(ctx, "rude-server", serverSpec{Addr: resetAddr, Backlog: 511, Accept: true, OnData: do})
	if err != nil {
		return nil, nil, nil, err
	}
	client, err := env.start(env.NS, "api-client")
	if err != nil {
		return nil, nil, nil, err
	}
	conns, err := env.open(ctx, client, connectArgs{To: srv.Addr, N: failures})
	if err != nil {
		return nil, nil, nil, err
	}
	t.Listener, t.Server, t.Client = srv.Addr, srv.party(), client.party()
	for _, c := range conns {
		t.Victims = append(t.Victims, Victim{Client: c.Local, Server: srv.Addr})
	}
	return srv, client, conns, env.talk(ctx, client, exchangeArgs{FDs: descriptors(conns), Write: "GET / HTTP/1.0\r\n\r\n"})
}

func serverResets(ctx context.Context, env *Env, t *Truth, do onData, counter string) error {
	srv, client, conns, err := connectsAndAsks(ctx, env, t, do)
	if err != nil {
		return err
	}
	if err := untilReset(ctx, env, client, conns); err != nil {
		return err
	}
	env.Logf("%s[%d]: %d connections reset by peer", client.Comm, client.PID, len(conns))
	t.Expect = []Expectation{
		{Code: "reset-sent", Listener: srv.Addr, Process: srv.party(), Count: len(conns)},
		{Code: "reset-received", Listener: srv.Addr, Process: client.party(), Count: len(conns)},
	}
	n := uint64(len(conns))
	t.Known["Tcp.OutRsts"] = n
	t.Known["Tcp.EstabResets"] = 2 * n // both ends
	t.Known[counter] = n
	return nil
}

// shutdownUnread has clients see the end of file, and the RST only in that the
// connection is gone.
func shutdownUnread(ctx context.Context, env *Env, t *Truth) error {
	srv, client, conns, err := connectsAndAsks(ctx, env, t, shutUnread)
	if err != nil {
		return err
	}
	n := uint64(len(conns))
	if err := env.untilCounter(ctx, "Tcp.EstabResets", n); err != nil {
		return err
	}
	if err := env.talk(ctx, client, exchangeArgs{FDs: descriptors(conns), Read: -1}); err != nil {
		return err
	}
	t.Expect = []Expectation{{Code: "reset-sent", Listener: srv.Addr, Process: srv.party(), Count: len(conns)}}
	t.Known["Tcp.OutRsts"] = n
	t.Known["Tcp.EstabResets"] = n // the client's end; the server's was half closed
	t.Known["TcpExt.TCPAbortOnClose"] = n
	return nil
}

func dataAfterClose(ctx context.Context, env *Env, t *Truth) error {
	srv, client, conns, err := connectsAndAsks(ctx, env, t, answerClose)
	if err != nil {
		return err
	}
	if err := env.talk(ctx, client, exchangeArgs{FDs: descriptors(conns), Read: -1}); err != nil {
		return err
	}
	env.Logf("%s[%d] has answered and closed; %s[%d] goes on sending", srv.Comm, srv.PID, client.Comm, client.PID)
	if err := env.talk(ctx, client, exchangeArgs{FDs: descriptors(conns), Write: "and another thing"}); err != nil {
		return err
	}
	n := uint64(len(conns))
	if err := env.untilCounter(ctx, "Tcp.EstabResets", n); err != nil {
		return err
	}
	t.Expect = []Expectation{
		{Code: "reset-sent", Listener: srv.Addr, Count: len(conns)},
		{Code: "reset-received", Listener: srv.Addr, Process: client.party(), Count: len(conns)},
	}
	t.Known["Tcp.OutRsts"] = n
	t.Known["Tcp.EstabResets"] = n // the client's end; the server's had been closed
	return nil
}

func resetByPeer(ctx context.Context, env *Env, t *Truth) error {
	ctx, cancel := context.WithTimeout(ctx, env.Patience)
	defer cancel()
	net, err := env.network()
	if err != nil {
		return err
	}
	to := netip.AddrPortFrom(scriptedAddr(0, false), 8086)
	type arrival struct {
		conn *peer.Conn
		err  error
	}
	arrivals := make(chan arrival, failures)
	net.Listen(to, func(c *peer.Conn) { arrivals <- arrival{c, c.Send(peer.SYN|peer.ACK, nil)} })
	client, err := env.start(env.NS, "api-client")
	if err != nil {
		return err
	}
	conns, err := env.open(ctx, client, connectArgs{To: to, N: failures})
	if err != nil {
		return err
	}
	if err := env.talk(ctx, client, exchangeArgs{FDs: descriptors(conns), Write: "GET / HTTP/1.0\r\n\r\n"}); err != nil {
		return err
	}
	for range conns {
		a := <-arrivals
		if a.err != nil {
			return a.err
		}
		if _, err := a.conn.Expect(ctx, peer.PSH); err != nil {
			return err
		}
		if err := a.conn.Send(peer.RST|peer.ACK, nil); err != nil {
			return err
		}
	}
	if err := untilReset(ctx, env, client, conns); err != nil {
		return err
	}
	for _, c := range conns {
		t.Victims = append(t.Victims, Victim{Client: c.Local, Server: to})
	}
	t.Listener, t.Client = to, client.party()
	t.Expect = []Expectation{{Code: "reset-received", Listener: to, Process: client.party(), Count: len(conns)}}
	t.Known["Tcp.ActiveOpens"] = failures
	t.Known["Tcp.EstabResets"] = failures
	t.Known["Tcp.OutRsts"] = 0
	return nil
}

func resetDuringHandshake(ctx context.Context, env *Env, t *Truth) error {
	ctx, cancel := context.WithTimeout(ctx, env.Patience)
	defer cancel()
	net, err := env.network()
	if err != nil {
		return err
	}
	srv, err := env.serve(ctx, "echo-server", serverSpec{
		Addr: netip.AddrPortFrom(netip.IPv4Unspecified(), 8086), Backlog: 511, Accept: true, OnData: echoData,
	})
	if err != nil {
		return err
	}
	for i := range failures {
		if err := giveUp(ctx, scriptedClient(net, i, false, srv.Addr)); err != nil {
			return err
		}
	}
	if err := env.untilCounter(ctx, "TcpExt.EmbryonicRsts", failures); err != nil {
		return err
	}
	t.Listener, t.Server = srv.Addr, srv.party()
	t.Known["TcpExt.EmbryonicRsts"] = failures
	t.Known["Tcp.AttemptFails"] = failures
	t.Known["Tcp.PassiveOpens"] = 0
	t.Known["Tcp.OutRsts"] = 0
	return nil
}

func tooManyOrphans(ctx context.Context, env *Env, t *Truth) error {
	ctx, cancel := context.WithTimeout(ctx, env.Patience)
	defer cancel()
	net, err := env.network()
	if err != nil {
		return err
	}
	srv, err := env.serve(ctx, "rude-server", serverSpec{
		Addr: netip.AddrPortFrom(netip.IPv4Unspecified(), 8086), Backlog: 511, Accept: true, OnData: answerClose,
	})
	if err != nil {
		return err
	}
	restore, err := env.hostSysctl(maxOrphans, "1")
	if err != nil {
		return err
	}
	// The first orphans are allowed: one, or from 5.16 on, where the kernel looks
	// at a count that is up to 0.1 s old, as many as come before that grows.
	var conns []*peer.Conn
	// Which those are that were killed, at once or when their answers were to be
	// sent again, their RSTs tell.
	killed := func() int {
		t.Victims = nil
		for _, c := range conns {
			if slices.ContainsFunc(c.Received(), func(s peer.Segment) bool { return s.Has(peer.RST) }) {
				t.Victims = append(t.Victims, Victim{Client: c.Local, Server: c.Remote})
			}
		}
		return len(t.Victims)
	}
	for i := 0; killed() < failures; i++ {
		c := scriptedClient(net, i, false, srv.Addr)
		if err := c.Open(ctx); err != nil {
			return err
		}
		conns = append(conns, c)
		if err := c.Send(peer.PSH|peer.ACK, []byte("GET / HTTP/1.0\r\n\r\n")); err != nil {
			return err
		}
		if _, err := c.Expect(ctx, peer.PSH); err != nil {
			return err
		}
		if err := sleep(ctx, 300*time.Millisecond); err != nil {
			return err
		}
	}
	if err := restore(); err != nil {
		return err
	}
	const aborted = "TcpExt.TCPAbortOnMemory"
	if err := env.until(ctx, "each that was killed has its RST", func() (bool, error) {
		now, err := env.NS.Counters()
		return err == nil && uint64(killed()) == now[aborted]-env.before[env.NS.inode][aborted], err
	}); err != nil {
		return err
	}
	n := len(t.Victims)
	env.Logf("the kernel has killed %d connections that %s[%d] had closed", n, srv.Comm, srv.PID)
	t.Listener, t.Server = srv.Addr, srv.party()
	t.Expect = []Expectation{{Code: "aborted-on-memory", Listener: srv.Addr, Process: srv.party(), Count: n}}
	t.Allow = []string{"fin-wait-stuck", "retransmission-timeout"} // of the orphans that were left
	t.Known[aborted] = uint64(n)
	t.Known["Tcp.OutRsts"] = uint64(n)
	t.Known["Tcp.PassiveOpens"] = uint64(len(conns))
	return nil
}
