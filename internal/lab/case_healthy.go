package lab

import (
	"context"
	"net/netip"

	"github.com/tcptrace/tcptrace/internal/lab/peer"
)

// Healthy traffic that is nobody's twin.
var healthyCases = []Case{
	{
		ID:    "echo-healthy",
		Title: "a client and a server written in Go",
		Story: "A Go client exchanges messages with a Go server on several connections at once, and closes.",
		Run:   run(goPair),
	},
	{
		ID:    "half-close-healthy",
		Title: "a client that shuts down its sending side first",
		Story: "A client sends its request and its FIN, and reads the answer after that, as rsh does.",
		Run: run(func(ctx context.Context, env *Env, t *Truth) error {
			return answered(ctx, env, t, netip.MustParseAddrPort("127.0.0.1:8087"), netip.MustParseAddr("127.0.0.1"), answerHalf)
		}),
	},
	{
		ID:    "ipv6-healthy",
		Title: "requests over IPv6",
		Story: "A client on ::1 sends requests, which the server answers before it closes.",
		Run: run(func(ctx context.Context, env *Env, t *Truth) error {
			return answered(ctx, env, t, netip.MustParseAddrPort("[::]:8087"), netip.IPv6Loopback(), answerClose)
		}),
	},
	{
		ID:    "mapped-healthy",
		Title: "IPv4 clients of an IPv6 listener",
		Story: "A client on 127.0.0.1 sends requests to a server that listens on [::].",
		Run: run(func(ctx context.Context, env *Env, t *Truth) error {
			return answered(ctx, env, t, netip.MustParseAddrPort("[::]:8087"), netip.MustParseAddr("127.0.0.1"), answerClose)
		}),
	},
	{
		ID:       "peer-healthy",
		Title:    "clients on other hosts",
		Story:    "Scripted hosts connect over IPv4 and IPv6, exchange a message and close.",
		NeedsTUN: true,
		Run:      run(scriptedClients),
	},
}

func goPair(ctx context.Context, env *Env, t *Truth) error {
	const conns, rounds = 8, 5
	p, err := env.start(env.NS, "go-server")
	if err != nil {
		return err
	}
	var s goServed
	if err := p.call(ctx, "go-serve", netip.MustParseAddrPort("127.0.0.1:8087"), &s); err != nil {
		return err
	}
	if err := p.call(ctx, "go-accept", s.Listener, nil); err != nil {
		return err
	}
	client, err := env.start(env.NS, "go-client")
	if err != nil {
		return err
	}
	if err := client.call(ctx, "go-echo", goEchoArgs{To: s.Addr, N: conns, Rounds: rounds, Within: env.Patience}, nil); err != nil {
		return err
	}
	t.Listener, t.Server, t.Client = s.Addr, p.party(), client.party()
	t.Known["Tcp.ActiveOpens"] = conns
	t.Known["Tcp.PassiveOpens"] = conns
	return nil
}

// answered has a client send requests from an address to a server, and read the
// answers to the end.
func answered(ctx context.Context, env *Env, t *Truth, at netip.AddrPort, from netip.Addr, do onData) error {
	const requests = 8
	srv, err := env.serve(ctx, "http-server", serverSpec{Addr: at, Backlog: 511, Accept: true, OnData: do})
	if err != nil {
		return err
	}
	client, err := env.start(env.NS, "http-client")
	if err != nil {
		return err
	}
	to := netip.AddrPortFrom(from, at.Port())
	conns, err := env.open(ctx, client, connectArgs{To: to, From: from, N: requests})
	if err != nil {
		return err
	}
	if err := env.talk(ctx, client, exchangeArgs{
		FDs: descriptors(conns), Write: "GET / HTTP/1.0\r\n\r\n", HalfShut: do == answerHalf, Read: -1,
	}); err != nil {
		return err
	}
	if err := client.call(ctx, "close", closeArgs{FDs: descriptors(conns)}, nil); err != nil {
		return err
	}
	if err := env.untilServed(ctx, srv, "all requests are answered", func(st serverStats) bool {
		return st.Answered == requests && st.Closed == requests
	}); err != nil {
		return err
	}
	t.Listener, t.Server, t.Client = srv.Addr, srv.party(), client.party()
	t.Known["Tcp.ActiveOpens"] = requests
	t.Known["Tcp.PassiveOpens"] = requests
	return nil
}

func scriptedClients(ctx context.Context, env *Env, t *Truth) error {
	ctx, cancel := context.WithTimeout(ctx, env.Patience)
	defer cancel()
	const each = 4
	net, err := env.network()
	if err != nil {
		return err
	}
	srv, err := env.serve(ctx, "echo-server", serverSpec{
		Addr: netip.MustParseAddrPort("[::]:8087"), Backlog: 511, Accept: true, OnData: echoData,
	})
	if err != nil {
		return err
	}
	for _, v6 := range []bool{false, true} {
		for i := range each {
			c := scriptedClient(net, i, v6, srv.Addr)
			if err := c.Open(ctx); err != nil {
				return err
			}
			if err := talkAndFinish(ctx, c); err != nil {
				return err
			}
		}
	}
	t.Listener, t.Server = srv.Addr, srv.party()
	t.Known["Tcp.PassiveOpens"] = 2 * each
	t.Known["Tcp.ActiveOpens"] = 0
	return nil
}

// talkAndFinish exchanges a message on an open connection, then closes it.
func talkAndFinish(ctx context.Context, c *peer.Conn) error {
	if err := echoWithAll(ctx, []*peer.Conn{c}); err != nil {
		return err
	}
	return finishAll(ctx, []*peer.Conn{c})
}
