package lab

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"github.com/tcptrace/tcptrace/internal/lab/peer"
)

// Case J: ends that closed and wait for the other one.
var finWaitCases = []Case{
	{
		ID:    "J",
		Title: "FIN_WAIT2: the client never closes",
		Story: "A server answers, shuts down sending and waits for the end of the client, which was told so by FIN " +
			"and never closes: FIN_WAIT2 at the server, CLOSE_WAIT at the client, both on this host.",
		Run: run(neverClosedHere),
	},
	{
		ID:       "J-remote",
		Title:    "FIN_WAIT2: a client elsewhere never closes",
		Story:    "As case J, with clients on another host: they acknowledge the FIN and never send their own.",
		NeedsTUN: true,
		Run: run(func(ctx context.Context, env *Env, t *Truth) error {
			return neverClosedThere(ctx, env, t, answerShut)
		}),
	},
	{
		ID:    "J-orphans",
		Title: "FIN_WAIT2 without a process",
		Story: "A server answers and calls close(). The clients, on another host, acknowledge the FIN and never send " +
			"their own: the kernel keeps the ends for tcp_fin_timeout.",
		NeedsTUN: true,
		Run: run(func(ctx context.Context, env *Env, t *Truth) error {
			return neverClosedThere(ctx, env, t, answerClose)
		}),
	},
	{
		ID:    "J-unacked",
		Title: "FIN_WAIT1: nobody acknowledges the FIN",
		Story: "A server answers and calls close(), but its clients' host is gone: answer and FIN are sent again " +
			"until the kernel gives up (tcp_orphan_retries is 4).",
		NeedsTUN: true,
		Run:      run(neverAcknowledged),
	},
	{
		ID:    "J-healthy",
		Title: "a half-closed connection on which the answer still comes",
		Story: "A client sends its request and its FIN; the server, on another host, sends a long answer little by " +
			"little and closes.",
		NeedsTUN: true,
		Run:      run(slowAnswer),
	},
	{
		ID:       "J-orphans-healthy",
		Title:    "clients that close a little later",
		Story:    "As case J-orphans, but the clients close half a second after the server.",
		NeedsTUN: true,
		Run:      run(closedLater),
	},
}

// stuck is how many connections a case of this kind makes.
const stuck = 8

const anyRequest = "GET / HTTP/1.0\r\n\r\n"

func neverClosedHere(ctx context.Context, env *Env, t *Truth) error {
	srv, err := env.serve(ctx, "batch-server", serverSpec{
		Addr: netip.MustParseAddrPort("127.0.0.1:8090"), Backlog: 511, Accept: true, OnData: answerShut,
	})
	if err != nil {
		return err
	}
	client, err := env.start(env.NS, "batch-client")
	if err != nil {
		return err
	}
	conns, err := env.open(ctx, client, connectArgs{To: srv.Addr, N: stuck})
	if err != nil {
		return err
	}
	if err := env.talk(ctx, client, exchangeArgs{FDs: descriptors(conns), Write: anyRequest, Read: -1}); err != nil {
		return err
	}
	env.Logf("%s[%d] has shut down sending; %s[%d] has read the end of file and does not close", srv.Comm, srv.PID, client.Comm, client.PID)
	t.Listener, t.Server, t.Client = srv.Addr, srv.party(), client.party()
	for _, c := range conns {
		t.Victims = append(t.Victims, Victim{Client: c.Local, Server: srv.Addr})
	}
	t.Expect = []Expectation{
		{Code: "fin-wait-stuck", Process: srv.party(), Count: stuck},
		{Code: "close-wait-leak", Listener: srv.Addr, Process: client.party(), Count: stuck},
	}
	t.Allow = []string{"half-open"}
	t.Known["Tcp.ActiveOpens"] = stuck
	t.Known["Tcp.PassiveOpens"] = stuck
	t.Known["Tcp.OutRsts"] = 0
	if err := sleep(ctx, env.Hold); err != nil {
		return err
	}
	return env.untilState(ctx, client, descriptors(conns), stateCloseWait, "all of them are still in CLOSE_WAIT")
}

// scriptedRequests has clients on one scripted host connect to a server and
// send a request each. They acknowledge what comes if answer is set.
func scriptedRequests(ctx context.Context, env *Env, t *Truth, do onData, answer bool) ([]*peer.Conn, error) {
	net, err := env.network()
	if err != nil {
		return nil, err
	}
	srv, err := env.serve(ctx, "batch-server", serverSpec{
		Addr: netip.AddrPortFrom(netip.IPv4Unspecified(), 8090), Backlog: 511, Accept: true, OnData: do,
	})
	if err != nil {
		return nil, err
	}
	t.Listener, t.Server = srv.Addr, srv.party()
	conns := make([]*peer.Conn, stuck)
	for i := range conns {
		c := net.Conn(netip.AddrPortFrom(scriptedAddr(0, false), uint16(20000+i)), netip.AddrPortFrom(hostPrefix4.Addr(), srv.Addr.Port()))
		if err := c.Open(ctx); err != nil {
			return nil, err
		}
		if answer {
			c.Answer()
		}
		if err := c.Send(peer.PSH|peer.ACK, []byte(anyRequest)); err != nil {
			return nil, err
		}
		conns[i] = c
	}
	t.Known["Tcp.PassiveOpens"] = stuck
	if !answer {
		return conns, nil
	}
	for _, c := range conns {
		if _, err := c.Expect(ctx, peer.FIN); err != nil {
			return nil, err
		}
	}
	return conns, env.untilServed(ctx, srv, "all requests are answered", func(st serverStats) bool {
		return st.Answered == stuck
	})
}

func neverClosedThere(ctx context.Context, env *Env, t *Truth, do onData) error {
	ctx, cancel := context.WithTimeout(ctx, env.Patience+env.Hold)
	defer cancel()
	conns, err := scriptedRequests(ctx, env, t, do, true)
	if err != nil {
		return err
	}
	env.Logf("the FIN of %s[%d] is acknowledged on %d connections, and that is all", t.Server.Comm, t.Server.PID, len(conns))
	t.Victims = victimsOf(conns)
	t.Expect = []Expectation{{Code: "fin-wait-stuck", Process: t.Server, Count: stuck}}
	t.Known["Tcp.OutRsts"] = 0
	return sleep(ctx, env.Hold)
}

func neverAcknowledged(ctx context.Context, env *Env, t *Truth) error {
	ctx, cancel := context.WithTimeout(ctx, env.Patience)
	defer cancel()
	if err := env.NS.Sysctl("net.ipv4.tcp_orphan_retries", strconv.Itoa(4)); err != nil {
		return err
	}
	conns, err := scriptedRequests(ctx, env, t, answerClose, false)
	if err != nil {
		return err
	}
	env.Logf("%d clients are gone after their request", len(conns))
	if err := env.untilCounter(ctx, "TcpExt.TCPAbortOnTimeout", stuck); err != nil {
		return err
	}
	env.Logf("the kernel has given them up")
	t.Victims = victimsOf(conns)
	t.Expect = []Expectation{{Code: "fin-wait-stuck", Process: t.Server, Count: stuck}}
	// Their answers went unacknowledged, too.
	t.Allow = []string{"retransmission-timeout"}
	t.Known["TcpExt.TCPAbortOnTimeout"] = stuck
	t.AtLeast["TcpExt.TCPTimeouts"] = 2 * stuck
	return nil
}

// slowAnswer has a client half-close, and a scripted server that keeps it
// waiting for the end of its answer, but not for data.
func slowAnswer(ctx context.Context, env *Env, t *Truth) error {
	ctx, cancel := context.WithTimeout(ctx, env.Patience+env.Hold)
	defer cancel()
	net, err := env.network()
	if err != nil {
		return err
	}
	const conns, pause = 2, 250 * time.Millisecond
	to := netip.AddrPortFrom(scriptedAddr(0, false), 8090)
	arrivals := make(chan *peer.Conn, conns)
	failed := make(chan error, conns)
	net.Listen(to, func(c *peer.Conn) {
		if err := c.Send(peer.SYN|peer.ACK, nil); err != nil {
			failed <- err
			return
		}
		c.Answer()
		arrivals <- c
	})
	client, err := env.start(env.NS, "batch-client")
	if err != nil {
		return err
	}
	open, err := env.open(ctx, client, connectArgs{To: to, N: conns})
	if err != nil {
		return err
	}
	reading := client.begin("exchange", exchangeArgs{
		FDs: descriptors(open), Write: anyRequest, HalfShut: true, Read: -1, Within: env.Patience + env.Hold,
	})
	var far []*peer.Conn
	for range conns {
		select {
		case c := <-arrivals:
			far = append(far, c)
		case err := <-failed:
			return err
		case <-ctx.Done():
			return fmt.Errorf("waiting for the client's connections: %w", ctx.Err())
		}
	}
	for _, c := range far {
		if _, err := c.Expect(ctx, peer.FIN); err != nil {
			return err
		}
	}
	env.Logf("%s[%d] has shut down sending and reads an answer that takes %s", client.Comm, client.PID, env.Hold)
	for begun := time.Now(); time.Since(begun) < env.Hold; {
		for _, c := range far {
			if err := c.Send(peer.PSH|peer.ACK, []byte("a little more\n")); err != nil {
				return err
			}
		}
		if err := sleep(ctx, pause); err != nil {
			return err
		}
	}
	for _, c := range far {
		if err := c.Send(peer.FIN|peer.ACK, nil); err != nil {
			return err
		}
	}
	var results []exchanged
	if err := reading.result(ctx, &results); err != nil {
		return err
	}
	for _, r := range results {
		if r.Errno != 0 || !r.EOF {
			return fmt.Errorf("%s[%d]: reading the answer: %w", client.Comm, client.PID, r.Errno)
		}
	}
	t.Client = client.party()
	t.Known["Tcp.ActiveOpens"] = conns
	return client.call(ctx, "close", closeArgs{FDs: descriptors(open)}, nil)
}

func closedLater(ctx context.Context, env *Env, t *Truth) error {
	ctx, cancel := context.WithTimeout(ctx, env.Patience)
	defer cancel()
	conns, err := scriptedRequests(ctx, env, t, answerClose, true)
	if err != nil {
		return err
	}
	if err := sleep(ctx, 500*time.Millisecond); err != nil {
		return err
	}
	for _, c := range conns {
		if err := c.Send(peer.FIN|peer.ACK, nil); err != nil {
			return err
		}
		if _, err := c.ExpectAcked(ctx); err != nil {
			return err
		}
	}
	return nil
}
