package lab

import (
	"context"
	"errors"
	"net/netip"

	"github.com/tcptrace/tcptrace/internal/lab/peer"
)

// Case F: the third packet of the handshake is lost.
var finalACKCases = []Case{
	{
		ID:       "F",
		Title:    "the final ACK is lost once",
		Story:    "The server's SYN-ACK goes unanswered and is sent again after a second; the client answers that one.",
		NeedsTUN: true,
		Run:      run(finalACKLost),
	},
	{
		ID:       "F-timeout",
		Title:    "the final ACK never comes",
		Story:    "The server's SYN-ACKs go unanswered to the end (tcp_synack_retries is 1).",
		NeedsTUN: true,
		Run:      run(finalACKNever),
	},
	{
		ID:       "F-healthy",
		Title:    "the first data carries the final ACK",
		Story:    "The client's bare ACK is lost, but its request follows at once and completes the handshake.",
		NeedsTUN: true,
		Run:      run(dataCarriesACK),
	},
}

// halfOpen has scripted clients begin handshakes with an echo server, and
// returns once each has got its SYN-ACK.
func halfOpen(ctx context.Context, env *Env, t *Truth) ([]*peer.Conn, error) {
	net, err := env.network()
	if err != nil {
		return nil, err
	}
	srv, err := env.serve(ctx, "echo-server", serverSpec{
		Addr: netip.AddrPortFrom(netip.IPv4Unspecified(), 8085), Backlog: 511, Accept: true, OnData: echoData,
	})
	if err != nil {
		return nil, err
	}
	t.Listener, t.Server, t.Backlog = srv.Addr, srv.party(), 511
	conns, err := knock(net, 0, failures, srv.Addr)
	if err != nil {
		return nil, err
	}
	for _, c := range conns {
		if _, err := c.Expect(ctx, peer.SYN|peer.ACK); err != nil {
			return nil, err
		}
	}
	return conns, nil
}

func victimsOf(conns []*peer.Conn) []Victim {
	var victims []Victim
	for _, c := range conns {
		victims = append(victims, Victim{Client: c.Local, Server: c.Remote})
	}
	return victims
}

func finalACKLost(ctx context.Context, env *Env, t *Truth) error {
	ctx, cancel := context.WithTimeout(ctx, env.Patience)
	defer cancel()
	conns, err := halfOpen(ctx, env, t)
	if err != nil {
		return err
	}
	env.Logf("%d clients do not answer the SYN-ACK", len(conns))
	for _, c := range conns {
		if _, err := c.Expect(ctx, peer.SYN|peer.ACK); err != nil {
			return err
		}
		if err := c.Send(peer.ACK, nil); err != nil {
			return err
		}
	}
	env.Logf("they answer when it comes again")
	if err := echoWithAll(ctx, conns); err != nil {
		return err
	}
	t.Victims = victimsOf(conns)
	t.Expect = []Expectation{{Code: "final-ack-lost", Listener: t.Listener, Process: t.Server, Count: len(conns)}}
	t.Known["Tcp.PassiveOpens"] = uint64(len(conns))
	t.Known["Tcp.OutRsts"] = 0
	t.AtLeast["TcpExt.TCPSynRetrans"] = uint64(len(conns))
	t.AtLeast["TcpExt.TCPTimeouts"] = uint64(len(conns))
	return nil
}

func finalACKNever(ctx context.Context, env *Env, t *Truth) error {
	ctx, cancel := context.WithTimeout(ctx, env.Patience)
	defer cancel()
	if err := env.NS.Sysctl("net.ipv4.tcp_synack_retries", "1"); err != nil {
		return err
	}
	conns, err := halfOpen(ctx, env, t)
	if err != nil {
		return err
	}
	// The timer runs out twice: once to send SYN-ACK again, once to give up.
	n := uint64(len(conns))
	if err := env.untilCounter(ctx, "TcpExt.TCPTimeouts", 2*n); err != nil {
		return err
	}
	for _, c := range conns {
		if _, err := c.Expect(ctx, peer.SYN|peer.ACK); err != nil {
			return err
		}
	}
	env.Logf("%d clients never answered; the server has given up", len(conns))
	t.Victims = victimsOf(conns)
	t.Expect = []Expectation{{Code: "handshake-timeout", Listener: t.Listener, Process: t.Server, Count: len(conns)}}
	t.Known["Tcp.PassiveOpens"] = 0
	t.Known["TcpExt.TCPTimeouts"] = 2 * n
	t.Known["TcpExt.TCPSynRetrans"] = n
	return nil
}

func dataCarriesACK(ctx context.Context, env *Env, t *Truth) error {
	ctx, cancel := context.WithTimeout(ctx, env.Patience)
	defer cancel()
	conns, err := halfOpen(ctx, env, t)
	if err != nil {
		return err
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

// finishAll closes scripted connections in an orderly way, all at the same
// time.
func finishAll(ctx context.Context, conns []*peer.Conn) error {
	ended := make(chan error, len(conns))
	for _, c := range conns {
		go func() { ended <- c.Finish(ctx) }()
	}
	var failed error
	for range conns {
		failed = errors.Join(failed, <-ended)
	}
	return failed
}
