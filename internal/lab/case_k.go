package lab

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/tcptrace/tcptrace/internal/lab/peer"
	"golang.org/x/sys/unix"
)

// Case K: connects that fail, for each of the reasons that a host can tell
// apart.
var connectFailureCases = []Case{
	{
		ID:    "K",
		Title: "connection refused",
		Story: "A client connects to a port of this host where nobody listens; each SYN is answered by RST.",
		Run:   run(refusedHere),
	},
	{
		ID:       "K-peer",
		Title:    "connection refused by another host",
		Story:    "A client connects to another host, which answers each SYN by RST.",
		NeedsTUN: true,
		Run:      run(refusedThere),
	},
	{
		ID:       "K-timeout",
		Title:    "connect timed out",
		Story:    "A client connects to another host, which never answers (tcp_syn_retries is 1).",
		NeedsTUN: true,
		Run:      run(neverAnswered),
	},
	{
		ID:    "K-healthy",
		Title: "connects that succeed",
		Story: "A client connects to an open port, exchanges a message and closes, a few times.",
		Run:   run(connectsSucceed),
	},
}

// failures is how many connects a case of this kind makes.
const failures = 3

// fail makes connects that must fail with errno, and returns the addresses that
// they came from.
func (e *Env) fail(ctx context.Context, p *Process, to netip.AddrPort, n int, errno unix.Errno) ([]Victim, error) {
	var conns []connected
	if err := p.call(ctx, "connect", connectArgs{To: to, N: n, Within: e.Patience}, &conns); err != nil {
		return nil, err
	}
	var victims []Victim
	for _, c := range conns {
		if err := mustErrno(fmt.Sprintf("connecting to %s", to), c.Errno, errno); err != nil {
			return nil, err
		}
		victims = append(victims, Victim{Client: c.Local, Server: to})
	}
	e.Logf("%s[%d]: %d connects to %s: %s", p.Comm, p.PID, n, to, errno)
	return victims, nil
}

func refusedHere(ctx context.Context, env *Env, t *Truth) error {
	client, err := env.start(env.NS, "lost-client")
	if err != nil {
		return err
	}
	to := netip.MustParseAddrPort("127.0.0.1:8082")
	if t.Victims, err = env.fail(ctx, client, to, failures, unix.ECONNREFUSED); err != nil {
		return err
	}
	t.Listener, t.Client = to, client.party()
	t.Expect = []Expectation{{Code: "connect-refused", Listener: to, Process: client.party(), Count: failures}}
	t.Allow = []string{"port-closed"}
	t.Known["Tcp.ActiveOpens"] = failures
	t.Known["Tcp.AttemptFails"] = failures
	t.Known["Tcp.OutRsts"] = failures
	return nil
}

func refusedThere(ctx context.Context, env *Env, t *Truth) error {
	net, err := env.network()
	if err != nil {
		return err
	}
	to := netip.AddrPortFrom(scriptedAddr(0, false), 8082)
	refusals := make(chan error, failures)
	net.Listen(to, func(c *peer.Conn) { refusals <- c.Send(peer.RST|peer.ACK, nil) })
	client, err := env.start(env.NS, "lost-client")
	if err != nil {
		return err
	}
	if t.Victims, err = env.fail(ctx, client, to, failures, unix.ECONNREFUSED); err != nil {
		return err
	}
	for range failures {
		if err := <-refusals; err != nil {
			return err
		}
	}
	t.Listener, t.Client = to, client.party()
	t.Expect = []Expectation{{Code: "connect-refused", Listener: to, Process: client.party(), Count: failures}}
	t.Known["Tcp.ActiveOpens"] = failures
	t.Known["Tcp.AttemptFails"] = failures
	t.Known["Tcp.OutRsts"] = 0
	return nil
}

func neverAnswered(ctx context.Context, env *Env, t *Truth) error {
	if err := env.NS.Sysctl("net.ipv4.tcp_syn_retries", "1"); err != nil {
		return err
	}
	net, err := env.network()
	if err != nil {
		return err
	}
	client, err := env.start(env.NS, "lost-client")
	if err != nil {
		return err
	}
	to := netip.AddrPortFrom(scriptedAddr(0, false), 8082)
	if t.Victims, err = env.fail(ctx, client, to, failures, unix.ETIMEDOUT); err != nil {
		return err
	}
	// The first SYN of each, and its retransmissions: one, but two on kernels
	// that know net.ipv4.tcp_syn_linear_timeouts (6.5).
	syns := net.Unscripted()
	if syns < 2*failures {
		return fmt.Errorf("%d SYNs reached the host that never answers, fewer than %d", syns, 2*failures)
	}
	t.Listener, t.Client = to, client.party()
	t.Expect = []Expectation{{Code: "connect-timeout", Listener: to, Process: client.party(), Count: failures}}
	t.Known["Tcp.ActiveOpens"] = failures
	t.Known["Tcp.AttemptFails"] = failures
	t.Known["TcpExt.TCPSynRetrans"] = syns - failures
	t.Known["TcpExt.TCPAbortOnTimeout"] = failures
	return nil
}

func connectsSucceed(ctx context.Context, env *Env, t *Truth) error {
	srv, err := env.serve(ctx, "echo-server", serverSpec{
		Addr: netip.MustParseAddrPort("127.0.0.1:8082"), Backlog: 511, Accept: true, OnData: echoData,
	})
	if err != nil {
		return err
	}
	client, err := env.start(env.NS, "found-client")
	if err != nil {
		return err
	}
	conns, err := env.open(ctx, client, connectArgs{To: srv.Addr, N: failures})
	if err != nil {
		return err
	}
	if err := env.talk(ctx, client, exchangeArgs{FDs: descriptors(conns), Write: "hello", Read: 5}); err != nil {
		return err
	}
	if err := client.call(ctx, "close", closeArgs{FDs: descriptors(conns)}, nil); err != nil {
		return err
	}
	if err := env.untilServed(ctx, srv, "the server has closed", func(st serverStats) bool {
		return st.Closed == failures
	}); err != nil {
		return err
	}
	t.Listener, t.Server, t.Client = srv.Addr, srv.party(), client.party()
	t.Known["Tcp.ActiveOpens"] = failures
	t.Known["Tcp.PassiveOpens"] = failures
	return nil
}
