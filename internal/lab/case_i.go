package lab

import (
	"context"
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/tcptrace/tcptrace/internal/lab/peer"
)

// Case I: the ghost connection. A peer is gone without FIN, and this end has
// to find out.
var ghostCases = []Case{
	{
		ID:    "I",
		Title: "a ghost that nobody notices",
		Story: "Clients log in and vanish without FIN, as when their host loses power. Nothing is sent and keepalive " +
			"is off: the server holds the connections for ever.",
		NeedsTUN: true,
		Silence:  true,
		Run:      run(ghostUnnoticed),
	},
	{
		ID:    "I-keepalive",
		Title: "keepalive finds the ghost",
		Story: "As case I with SO_KEEPALIVE and timers of seconds: probes go unanswered, and the kernel ends the " +
			"connections.",
		NeedsTUN: true,
		Run:      run(ghostProbed),
	},
	{
		ID:    "I-data",
		Title: "data finds the ghost",
		Story: "The server sends to clients that have vanished; its kernel sends the data again and again, and gives " +
			"up (tcp_retries2 is 3).",
		NeedsTUN: true,
		Run: run(func(ctx context.Context, env *Env, t *Truth) error {
			if err := env.NS.Sysctl("net.ipv4.tcp_retries2", "3"); err != nil {
				return err
			}
			return ghostAnswered(ctx, env, t, 0)
		}),
	},
	{
		ID:       "I-user-timeout",
		Title:    "data finds the ghost, with TCP_USER_TIMEOUT",
		Story:    "As case I-data, but the socket itself sets how long data may go unacknowledged: 2 s.",
		NeedsTUN: true,
		Run: run(func(ctx context.Context, env *Env, t *Truth) error {
			return ghostAnswered(ctx, env, t, 2*time.Second)
		}),
	},
	{
		ID:       "I-backoff",
		Title:    "a peer that is away for a while",
		Story:    "Clients do not acknowledge the server's answers for seconds, then they are back and all goes on.",
		NeedsTUN: true,
		Run:      run(awayForAWhile),
	},
	{
		ID:       "I-reset",
		Title:    "the ghost's host is up again",
		Story:    "Clients' hosts have started again and know of no connection: they answer the keepalive probes with RST.",
		NeedsTUN: true,
		Run:      run(probeAnsweredByReset),
	},
	{
		ID:    "I-disagree",
		Title: "the two ends disagree",
		Story: "The way between a server and its clients is cut. The server's keepalive ends its side; the clients send " +
			"nothing and believe in their connections.",
		NeedsTUN: true,
		Prepare:  prepareCut,
		Run:      run(endsDisagree),
	},
	{
		ID:    "I-back",
		Title: "a peer comes back to a connection that is gone",
		Story: "The server's keepalive has ended the connections of clients that were away; they come back, go on " +
			"sending, and are answered with RST.",
		NeedsTUN: true,
		Silence:  true,
		Run:      run(backTooLate),
	},
	{
		ID:    "I-stray",
		Title: "peers believe in connections that this host never had",
		Story: "Clients send on connections that the server's host lost when it was started again, and are answered " +
			"with RST.",
		NeedsTUN: true,
		Silence:  true,
		Run:      run(strangers),
	},
	{
		ID:    "I-healthy",
		Title: "idle connections that are in order",
		Story: "Connections with keepalive on say nothing for long; others, with keepalive off, now and then say " +
			"something.",
		NeedsTUN: true,
		Silence:  true,
		Run:      run(idleInOrder),
	},
	{
		ID:    "I-keepalive-healthy",
		Title: "keepalive probes that are answered",
		Story: "As case I-keepalive, but the clients live: their kernels answer each probe, and the connections work on.",
		Run:   run(probesAnswered),
	},
	{
		ID:       "I-loss",
		Title:    "a short loss",
		Story:    "The first copies of the server's answers get lost; the next are acknowledged. Nothing to report.",
		NeedsTUN: true,
		Run:      run(shortLoss),
	},
}

var ghostAddr = netip.AddrPortFrom(netip.IPv4Unspecified(), 8087)

// login starts a server for scripted clients that have exchanged a message with
// it. Its listener's options are those of o, FDs aside.
func login(ctx context.Context, env *Env, t *Truth, o optionArgs) (*runningServer, []*peer.Conn, error) {
	net, err := env.network()
	if err != nil {
		return nil, nil, err
	}
	srv, err := env.serve(ctx, "login-server", serverSpec{Addr: ghostAddr, Backlog: 511, Accept: true, OnData: echoData})
	if err != nil {
		return nil, nil, err
	}
	o.FDs = []int{srv.id}
	if err := srv.call(ctx, "option", o, nil); err != nil {
		return nil, nil, err
	}
	conns := make([]*peer.Conn, failures)
	for i := range conns {
		conns[i] = scriptedClient(net, i, false, srv.Addr)
		if err := conns[i].Open(ctx); err != nil {
			return nil, nil, err
		}
	}
	if err := echoWithAll(ctx, conns); err != nil {
		return nil, nil, err
	}
	t.Listener, t.Server = srv.Addr, srv.party()
	t.Known["Tcp.PassiveOpens"] = failures
	return srv, conns, nil
}

func vanish(env *Env, conns []*peer.Conn) {
	for _, c := range conns {
		c.Forget()
	}
	env.Logf("%d clients vanish without a word", len(conns))
}

func ghostUnnoticed(ctx context.Context, env *Env, t *Truth) error {
	ctx, cancel := context.WithTimeout(ctx, env.Patience)
	defer cancel()
	srv, conns, err := login(ctx, env, t, optionArgs{})
	if err != nil {
		return err
	}
	vanish(env, conns)
	if err := sleep(ctx, env.Silence); err != nil {
		return err
	}
	t.Victims = victimsOf(conns)
	t.Expect = []Expectation{{Code: "half-open", Listener: srv.Addr, Process: srv.party(), Count: len(conns)}}
	t.Known["Tcp.EstabResets"] = 0
	t.Known["TcpExt.TCPKeepAlive"] = 0
	return nil
}

// probedToDeath waits until the server's keepalive has ended all connections of
// login.
func probedToDeath(ctx context.Context, env *Env, t *Truth, srv *runningServer) error {
	const n = failures
	if err := env.untilCounter(ctx, "TcpExt.TCPAbortOnTimeout", n); err != nil {
		return err
	}
	env.Logf("%s[%d]'s kernel has given them up", srv.Comm, srv.PID)
	t.Expect = append(t.Expect, Expectation{
		Code: "keepalive-timeout", Listener: srv.Addr, Process: srv.party(), Count: n,
	})
	t.Known["TcpExt.TCPKeepAlive"] = quickProbes * n
	t.Known["TcpExt.TCPAbortOnTimeout"] = n
	t.Known["Tcp.EstabResets"] = n
	t.Known["Tcp.OutRsts"] = n // the kernel tells the peer, in case it lives
	return nil
}

func ghostProbed(ctx context.Context, env *Env, t *Truth) error {
	ctx, cancel := context.WithTimeout(ctx, env.Patience)
	defer cancel()
	srv, conns, err := login(ctx, env, t, quickKeepalive())
	if err != nil {
		return err
	}
	vanish(env, conns)
	t.Victims = victimsOf(conns)
	return probedToDeath(ctx, env, t, srv)
}

// ghostAnswered has clients ask and vanish before the answer is there.
func ghostAnswered(ctx context.Context, env *Env, t *Truth, userTimeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, env.Patience)
	defer cancel()
	srv, conns, err := login(ctx, env, t, optionArgs{UserTimeout: userTimeout})
	if err != nil {
		return err
	}
	vanish(env, conns)
	for _, c := range conns { // the last that their hosts sent
		if err := c.Send(peer.PSH|peer.ACK, []byte("and more")); err != nil {
			return err
		}
	}
	const n = failures
	if err := env.untilCounter(ctx, "TcpExt.TCPAbortOnTimeout", n); err != nil {
		return err
	}
	env.Logf("%s[%d]'s kernel has given up sending the answers", srv.Comm, srv.PID)
	t.Victims = victimsOf(conns)
	t.Expect = []Expectation{{Code: "retransmission-timeout", Listener: srv.Addr, Process: srv.party(), Count: n}}
	t.Known["TcpExt.TCPAbortOnTimeout"] = n
	t.Known["Tcp.EstabResets"] = n
	t.Known["Tcp.OutRsts"] = 0
	t.AtLeast["Tcp.RetransSegs"] = 2 * n
	t.AtLeast["TcpExt.TCPTimeouts"] = 2 * n
	return nil
}

func awayForAWhile(ctx context.Context, env *Env, t *Truth) error {
	ctx, cancel := context.WithTimeout(ctx, env.Patience)
	defer cancel()
	srv, conns, err := login(ctx, env, t, optionArgs{})
	if err != nil {
		return err
	}
	for _, c := range conns {
		c.Ignore()
		if err := c.Send(peer.PSH|peer.ACK, []byte("and more")); err != nil {
			return err
		}
	}
	env.Logf("%d clients do not acknowledge the answers", len(conns))
	for _, c := range conns {
		if _, err := c.Expect(ctx, peer.PSH); err != nil {
			return err
		}
	}
	// Each has got its answer again, and once more after so long. The copies of
	// the first lie in the inboxes of the others meanwhile.
	for _, c := range conns {
		if _, err := c.Expect(ctx, peer.PSH); err != nil {
			return err
		}
	}
	again := time.Now()
	for time.Since(again) < env.Backoff {
		for _, c := range conns {
			if _, err := c.Expect(ctx, peer.PSH); err != nil {
				return err
			}
		}
	}
	env.Logf("after %s they are back", time.Since(again).Round(time.Millisecond))
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
	const n = failures
	t.Victims = victimsOf(conns)
	t.Expect = []Expectation{{Code: "retransmission-timeout", Listener: srv.Addr, Process: srv.party(), Count: n}}
	t.Known["TcpExt.TCPAbortOnTimeout"] = 0
	t.Known["Tcp.EstabResets"] = 0
	t.Known["Tcp.OutRsts"] = 0
	t.AtLeast["Tcp.RetransSegs"] = 3 * n
	return nil
}

func probeAnsweredByReset(ctx context.Context, env *Env, t *Truth) error {
	ctx, cancel := context.WithTimeout(ctx, env.Patience)
	defer cancel()
	srv, conns, err := login(ctx, env, t, quickKeepalive())
	if err != nil {
		return err
	}
	for _, c := range conns {
		c.Ignore()
	}
	for _, c := range conns {
		if _, err := c.ExpectProbe(ctx); err != nil {
			return err
		}
		if err := c.Send(peer.RST, nil); err != nil {
			return err
		}
	}
	const n = failures
	if err := env.untilCounter(ctx, "Tcp.EstabResets", n); err != nil {
		return err
	}
	env.Logf("%d clients answered %s[%d]'s keepalive probes with RST", n, srv.Comm, srv.PID)
	t.Victims = victimsOf(conns)
	t.Expect = []Expectation{
		{Code: "half-open", Listener: srv.Addr, Process: srv.party(), Count: n},
		{Code: "reset-received", Listener: srv.Addr, Process: srv.party(), Count: n},
	}
	t.Known["Tcp.EstabResets"] = n
	t.Known["Tcp.OutRsts"] = 0
	t.Known["TcpExt.TCPAbortOnTimeout"] = 0
	t.AtLeast["TcpExt.TCPKeepAlive"] = n
	return nil
}

// prepareCut joins two hosts by a wire that can be cut.
func prepareCut(_ context.Context, env *Env) error {
	cut := new(atomic.Bool)
	_, err := env.twoHosts(func(bool, peer.Segment) peer.Action {
		if cut.Load() {
			return peer.Drop
		}
		return peer.Pass
	})
	env.stage = cut
	return err
}

func endsDisagree(ctx context.Context, env *Env, t *Truth) error {
	ctx, cancel := context.WithTimeout(ctx, env.Patience)
	defer cancel()
	cut, ok := env.stage.(*atomic.Bool)
	if !ok {
		return fmt.Errorf("the case has not been prepared")
	}
	srv, err := env.serve(ctx, "login-server", serverSpec{Addr: ghostAddr, Backlog: 511, Accept: true, OnData: echoData})
	if err != nil {
		return err
	}
	if err := srv.call(ctx, "option", quickKeepalive(srv.id), nil); err != nil {
		return err
	}
	client, err := env.start(env.client, "login-client")
	if err != nil {
		return err
	}
	to := netip.AddrPortFrom(hostPrefix4.Addr(), ghostAddr.Port())
	conns, err := env.open(ctx, client, connectArgs{To: to, N: failures})
	if err != nil {
		return err
	}
	if err := env.talk(ctx, client, exchangeArgs{FDs: descriptors(conns), Write: "hello", Read: 5}); err != nil {
		return err
	}
	// The clients' ACKs may be delayed, by 0.2 s at most; what is not acknowledged
	// would be retransmitted instead of probed for.
	if err := sleep(ctx, 500*time.Millisecond); err != nil {
		return err
	}
	cut.Store(true)
	env.Logf("the way between %s[%d] and %s[%d] is cut", srv.Comm, srv.PID, client.Comm, client.PID)
	if err := probedToDeath(ctx, env, t, srv); err != nil {
		return err
	}
	// On a slow machine there may have been probes before the cut, and answers.
	t.AtLeast["TcpExt.TCPKeepAlive"] = t.Known["TcpExt.TCPKeepAlive"]
	delete(t.Known, "TcpExt.TCPKeepAlive")
	// Not to be taken for an end that is still on its way.
	if err := sleep(ctx, env.Silence); err != nil {
		return err
	}
	if err := env.untilState(ctx, client, descriptors(conns), stateEstablished, "the clients believe in their connections"); err != nil {
		return err
	}
	for _, c := range conns {
		t.Victims = append(t.Victims, Victim{Client: c.Local, Server: to})
	}
	t.Listener, t.Server, t.Client = srv.Addr, srv.party(), client.party()
	t.Expect = append(t.Expect, Expectation{Code: "half-open", Listener: to, Process: client.party(), Count: len(conns)})
	t.Known["Tcp.PassiveOpens"] = failures
	return nil
}

func backTooLate(ctx context.Context, env *Env, t *Truth) error {
	ctx, cancel := context.WithTimeout(ctx, env.Patience)
	defer cancel()
	srv, conns, err := login(ctx, env, t, quickKeepalive())
	if err != nil {
		return err
	}
	vanish(env, conns)
	if err := probedToDeath(ctx, env, t, srv); err != nil {
		return err
	}
	if err := sleep(ctx, env.Silence); err != nil {
		return err
	}
	if err := sendToNobody(ctx, conns); err != nil {
		return err
	}
	env.Logf("they are back, send, and are answered with RST")
	t.Victims = victimsOf(conns)
	t.Expect = append(t.Expect, Expectation{Code: "half-open", Listener: srv.Addr, Process: srv.party(), Count: len(conns)})
	t.Known["Tcp.OutRsts"] = 2 * failures
	return nil
}

// sendToNobody sends on connections that the other end does not have, and
// waits for its RSTs.
func sendToNobody(ctx context.Context, conns []*peer.Conn) error {
	for _, c := range conns {
		c.Return()
		c.Ignore()
		if err := c.Send(peer.PSH|peer.ACK, []byte("are you still there?")); err != nil {
			return err
		}
	}
	for _, c := range conns {
		if _, err := c.Expect(ctx, peer.RST); err != nil {
			return err
		}
	}
	return nil
}

func strangers(ctx context.Context, env *Env, t *Truth) error {
	ctx, cancel := context.WithTimeout(ctx, env.Patience)
	defer cancel()
	net, err := env.network()
	if err != nil {
		return err
	}
	srv, err := env.serve(ctx, "login-server", serverSpec{Addr: ghostAddr, Backlog: 511, Accept: true, OnData: echoData})
	if err != nil {
		return err
	}
	// Whoever looks on from now on knows all connections that ended since.
	if err := sleep(ctx, env.Silence); err != nil {
		return err
	}
	conns := make([]*peer.Conn, failures)
	for i := range conns {
		conns[i] = scriptedClient(net, i, false, srv.Addr)
	}
	if err := sendToNobody(ctx, conns); err != nil {
		return err
	}
	env.Logf("%d clients send on connections that nobody here knows", len(conns))
	t.Victims = victimsOf(conns)
	t.Listener, t.Server = srv.Addr, srv.party()
	t.Expect = []Expectation{{Code: "half-open", Listener: srv.Addr, Process: srv.party(), Count: len(conns)}}
	t.Known["Tcp.OutRsts"] = failures
	t.Known["Tcp.PassiveOpens"] = 0
	return nil
}

// idleInOrder has as many connections that say nothing and have keepalive on, with
// the kernel's own timers, as ones that have it off and talk.
func idleInOrder(ctx context.Context, env *Env, t *Truth) error {
	ctx, cancel := context.WithTimeout(ctx, env.Patience)
	defer cancel()
	srv, silent, err := login(ctx, env, t, optionArgs{KeepAlive: true})
	if err != nil {
		return err
	}
	chat, err := env.serve(ctx, "chat-server", serverSpec{
		Addr: netip.AddrPortFrom(netip.IPv4Unspecified(), 8088), Backlog: 511, Accept: true, OnData: echoData,
	})
	if err != nil {
		return err
	}
	talking := make([]*peer.Conn, failures)
	for i := range talking {
		talking[i] = silent[i].Sibling(chat.Addr.Port())
		if err := talking[i].Open(ctx); err != nil {
			return err
		}
	}
	const pauses = 8
	for range pauses {
		if err := echoWithAll(ctx, talking); err != nil {
			return err
		}
		if err := sleep(ctx, env.Silence/pauses); err != nil {
			return err
		}
	}
	if err := echoWithAll(ctx, silent); err != nil {
		return err
	}
	for _, conns := range [][]*peer.Conn{silent, talking} {
		if err := finishAll(ctx, conns); err != nil {
			return err
		}
	}
	t.Listener, t.Server = srv.Addr, srv.party()
	t.Known["Tcp.PassiveOpens"] = 2 * failures
	return nil
}

func probesAnswered(ctx context.Context, env *Env, t *Truth) error {
	ctx, cancel := context.WithTimeout(ctx, env.Patience)
	defer cancel()
	srv, err := env.serve(ctx, "login-server", serverSpec{
		Addr: netip.MustParseAddrPort("127.0.0.1:8087"), Backlog: 511, Accept: true, OnData: echoData,
	})
	if err != nil {
		return err
	}
	if err := srv.call(ctx, "option", quickKeepalive(srv.id), nil); err != nil {
		return err
	}
	client, err := env.start(env.NS, "login-client")
	if err != nil {
		return err
	}
	conns, err := env.open(ctx, client, connectArgs{To: srv.Addr, N: failures})
	if err != nil {
		return err
	}
	hello := exchangeArgs{FDs: descriptors(conns), Write: "hello", Read: 5}
	if err := env.talk(ctx, client, hello); err != nil {
		return err
	}
	const probes = (quickProbes + 2) * failures // more than may go unanswered
	if err := env.untilCounter(ctx, "TcpExt.TCPKeepAlive", probes); err != nil {
		return err
	}
	env.Logf("%d probes were answered", probes)
	if err := env.talk(ctx, client, hello); err != nil {
		return err
	}
	t.Listener, t.Server, t.Client = srv.Addr, srv.party(), client.party()
	t.Known["Tcp.PassiveOpens"] = failures
	t.AtLeast["TcpExt.TCPKeepAlive"] = probes
	return nil
}

func shortLoss(ctx context.Context, env *Env, t *Truth) error {
	ctx, cancel := context.WithTimeout(ctx, env.Patience)
	defer cancel()
	srv, conns, err := login(ctx, env, t, optionArgs{})
	if err != nil {
		return err
	}
	for _, c := range conns {
		c.Ignore()
		if err := c.Send(peer.PSH|peer.ACK, []byte("and more")); err != nil {
			return err
		}
	}
	for range 2 {
		for _, c := range conns {
			if _, err := c.Expect(ctx, peer.PSH); err != nil {
				return err
			}
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
	t.Listener, t.Server = srv.Addr, srv.party()
	t.Known["Tcp.EstabResets"] = 0
	t.Known["TcpExt.TCPAbortOnTimeout"] = 0
	t.AtLeast["Tcp.RetransSegs"] = failures
	return nil
}
