package lab

import (
	"context"
	"fmt"
	"net/netip"
)

// Case A: the server that hangs up at once, because it holds as many
// connections as its framework lets it.
var immediateCloseCases = []Case{
	{
		ID:    "A",
		Title: "the server that hangs up at once",
		Story: "A relay holds as many connections as its framework allows; it accepts every further one " +
			"and closes it at once, having read nothing. A sender reconnects for ever.",
		Run: run(func(ctx context.Context, env *Env, t *Truth) error {
			return immediateClose(ctx, env, t, "")
		}),
	},
	{
		ID:    "A-refusal",
		Title: "the server that refuses with a line, then hangs up",
		Story: "As case A, but the server writes why before it closes, as redis does at maxclients.",
		Run: run(func(ctx context.Context, env *Env, t *Truth) error {
			return immediateClose(ctx, env, t, "-ERR max number of clients reached\r\n")
		}),
	},
	{
		ID:    "A-burst",
		Title: "the server at its limit, met by a burst of connections",
		Story: "As case A-refusal, but nothing is held before: a client opens all its connections at once, " +
			"and the server keeps the first and refuses the others within the same few milliseconds.",
		Run: run(refusedBurst),
	},
	{
		ID:    "A-healthy",
		Title: "short requests that the server answers and closes",
		Story: "The same traffic as case A, but the server reads each request and answers it before it " +
			"closes first, as HTTP/1.0 does; long-lived connections exchange messages meanwhile.",
		Run: run(shortRequests),
	},
}

var relayAddr = netip.MustParseAddrPort("127.0.0.1:8080")

func immediateClose(ctx context.Context, env *Env, t *Truth, refusal string) error {
	srv, err := env.serve(ctx, "relay-server", serverSpec{
		Addr: relayAddr, Backlog: 511, Accept: true, Limit: env.Limit, Refusal: refusal, OnData: echoData,
	})
	if err != nil {
		return err
	}
	keeper, err := env.start(env.NS, "relay-sender")
	if err != nil {
		return err
	}
	held, err := env.open(ctx, keeper, connectArgs{To: srv.Addr, N: env.Limit})
	if err != nil {
		return err
	}
	if err := env.talk(ctx, keeper, exchangeArgs{FDs: descriptors(held), Write: "hello", Read: 5}); err != nil {
		return err
	}
	env.Logf("%s[%d] holds %d connections and uses them", keeper.Comm, keeper.PID, len(held))

	reconnecter, err := env.start(env.NS, "relay-retry")
	if err != nil {
		return err
	}
	var tries []looped
	err = reconnecter.call(ctx, "loop", loopArgs{To: srv.Addr, N: env.Reconnects, Interval: env.Interval, Within: env.Patience}, &tries)
	if err != nil {
		return err
	}
	for _, try := range tries {
		if try.Errno != 0 || !try.EOF || try.Got != len(refusal) {
			return fmt.Errorf("connection from %s was to be closed after %d bytes: got %d bytes, errno %d",
				try.Local, len(refusal), try.Got, try.Errno)
		}
		t.Victims = append(t.Victims, Victim{Client: try.Local, Server: srv.Addr})
	}
	env.Logf("%s[%d] connected %d times, each connection ended by the server", reconnecter.Comm, reconnecter.PID, len(tries))

	st, err := srv.stats(ctx)
	if err != nil {
		return err
	}
	if st.HungUp != len(tries) || st.Held != env.Limit || st.Peak != env.Limit {
		return fmt.Errorf("the server hung up on %d of %d and holds %d (most: %d) of %d connections",
			st.HungUp, len(tries), st.Held, st.Peak, env.Limit)
	}
	t.Listener, t.Server, t.Client = srv.Addr, srv.party(), reconnecter.party()
	t.Plateau = st.Peak
	t.Expect = []Expectation{
		{Code: "immediate-close", Listener: srv.Addr, Process: srv.party(), Count: st.HungUp},
		{Code: "reconnect-loop", Listener: srv.Addr, Process: reconnecter.party(), Count: len(tries)},
	}
	t.Known["Tcp.PassiveOpens"] = uint64(env.Limit + len(tries))
	t.Known["Tcp.ActiveOpens"] = uint64(env.Limit + len(tries))
	return nil
}

func refusedBurst(ctx context.Context, env *Env, t *Truth) error {
	const refusal = "-ERR max number of clients reached\r\n"
	srv, err := env.serve(ctx, "relay-server", serverSpec{
		Addr: relayAddr, Backlog: 511, Accept: true, Limit: env.Limit, Refusal: refusal, OnData: echoData,
	})
	if err != nil {
		return err
	}
	crowd, err := env.start(env.NS, "relay-crowd")
	if err != nil {
		return err
	}
	conns, err := env.open(ctx, crowd, connectArgs{To: srv.Addr, N: env.Limit + env.Reconnects})
	if err != nil {
		return err
	}
	env.Logf("%s[%d] opened %d connections at once", crowd.Comm, crowd.PID, len(conns))
	// accept() takes them in the order of their handshakes.
	held, refused := conns[:env.Limit], conns[env.Limit:]
	err = env.talk(ctx, crowd, exchangeArgs{FDs: descriptors(refused), Read: -1, Close: true})
	if err != nil {
		return err
	}
	if err := env.talk(ctx, crowd, exchangeArgs{FDs: descriptors(held), Write: "hello", Read: 5}); err != nil {
		return err
	}
	env.Logf("%d of them were ended by the server", len(refused))
	st, err := srv.stats(ctx)
	if err != nil {
		return err
	}
	if st.HungUp != len(refused) || st.Held != env.Limit || st.Peak != env.Limit {
		return fmt.Errorf("the server hung up on %d of %d and holds %d (most: %d) of %d connections",
			st.HungUp, len(refused), st.Held, st.Peak, env.Limit)
	}
	for _, c := range refused {
		t.Victims = append(t.Victims, Victim{Client: c.Local, Server: srv.Addr})
	}
	t.Listener, t.Server, t.Client = srv.Addr, srv.party(), crowd.party()
	t.Plateau = st.Peak
	t.Expect = []Expectation{
		{Code: "immediate-close", Listener: srv.Addr, Process: srv.party(), Count: st.HungUp},
	}
	// To the client it is one, where the server gets to them all at once: on a
	// busy machine they wait for accept() longer than a reconnect-loop's live.
	t.Allow = []string{"reconnect-loop"}
	t.Known["Tcp.PassiveOpens"] = uint64(len(conns))
	t.Known["Tcp.ActiveOpens"] = uint64(len(conns))
	return nil
}

func shortRequests(ctx context.Context, env *Env, t *Truth) error {
	srv, err := env.serve(ctx, "http-server", serverSpec{
		Addr: relayAddr, Backlog: 511, Accept: true, OnData: answerClose,
	})
	if err != nil {
		return err
	}
	echo, err := env.serve(ctx, "echo-server", serverSpec{
		Addr: netip.AddrPortFrom(relayAddr.Addr(), 7), Backlog: 511, Accept: true, OnData: echoData,
	})
	if err != nil {
		return err
	}
	keeper, err := env.start(env.NS, "echo-client")
	if err != nil {
		return err
	}
	held, err := env.open(ctx, keeper, connectArgs{To: echo.Addr, N: env.Limit})
	if err != nil {
		return err
	}
	client, err := env.start(env.NS, "http-client")
	if err != nil {
		return err
	}
	var requests []looped
	err = client.call(ctx, "loop", loopArgs{
		To: srv.Addr, N: env.Reconnects, Interval: env.Interval, Write: "GET / HTTP/1.0\r\n\r\n", Within: env.Patience,
	}, &requests)
	if err != nil {
		return err
	}
	for _, r := range requests {
		if r.Errno != 0 || !r.EOF || r.Got != len(answer) {
			return fmt.Errorf("request from %s was to be answered by %d bytes: got %d bytes, errno %d",
				r.Local, len(answer), r.Got, r.Errno)
		}
	}
	if err := env.talk(ctx, keeper, exchangeArgs{FDs: descriptors(held), Write: "hello", Read: 5}); err != nil {
		return err
	}
	if err := keeper.call(ctx, "close", closeArgs{FDs: descriptors(held)}, nil); err != nil {
		return err
	}
	if err := env.untilServed(ctx, echo, "the echo server has closed", func(st serverStats) bool {
		return st.Closed == env.Limit
	}); err != nil {
		return err
	}
	t.Listener, t.Server, t.Client = srv.Addr, srv.party(), client.party()
	t.Known["Tcp.PassiveOpens"] = uint64(env.Limit + len(requests))
	t.Known["Tcp.ActiveOpens"] = uint64(env.Limit + len(requests))
	return nil
}
