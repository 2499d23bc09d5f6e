package lab

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/tcptrace/tcptrace/internal/lab/peer"
)

// Case L: segments refused for their timestamps (PAWS, RFC 7323).
var timestampCases = []Case{
	{
		ID:    "L",
		Title: "data with an old timestamp",
		Story: "On established connections, clients' segments arrive with timestamps older than those before, as when " +
			"a middlebox rewrites them: the kernel drops them and repeats its last ACK.",
		NeedsTUN: true,
		Run:      run(oldTimestamps),
	},
	{
		ID:    "L-nat",
		Title: "two hosts behind one address",
		Story: "A host behind NAT connects from an address and port that another has just used, whose clock was ahead: " +
			"the socket in TIME_WAIT refuses its SYN.",
		NeedsTUN: true,
		Run: run(func(ctx context.Context, env *Env, t *Truth) error {
			return sameAddressAgain(ctx, env, t, clockBefore-90_000)
		}),
	},
	{
		ID:       "L-request",
		Title:    "a final ACK with an old timestamp",
		Story:    "The ACK that completes the handshake has an older timestamp than the SYN, and is dropped.",
		NeedsTUN: true,
		Run:      run(oldFinalACK),
	},
	{
		ID:       "L-healthy",
		Title:    "an address and port that are used again in order",
		Story:    "As case L-nat, but the clock of the second host is ahead: its SYN takes the place of TIME_WAIT.",
		NeedsTUN: true,
		Run: run(func(ctx context.Context, env *Env, t *Truth) error {
			return sameAddressAgain(ctx, env, t, clockBefore+90_000)
		}),
	},
}

const clockBefore = 1_000_000 // timestamps of the first clients, in their own ticks

// stamped starts a server and makes scripted clients with timestamps, not open
// yet.
func stamped(ctx context.Context, env *Env, t *Truth, do onData) (*peer.Network, *runningServer, []*peer.Conn, error) {
	net, err := env.network()
	if err != nil {
		return nil, nil, nil, err
	}
	srv, err := env.serve(ctx, "web-server", serverSpec{
		Addr: netip.AddrPortFrom(netip.IPv4Unspecified(), 8089), Backlog: 511, Accept: true, OnData: do,
	})
	if err != nil {
		return nil, nil, nil, err
	}
	t.Listener, t.Server = srv.Addr, srv.party()
	conns := make([]*peer.Conn, failures)
	for i := range conns {
		conns[i] = scriptedClient(net, i, false, srv.Addr)
		conns[i].SetTimestamp(clockBefore)
	}
	return net, srv, conns, nil
}

// refusedByPAWS tells the truth of n segments that PAWS refused, by the counter that
// this kernel has for it.
func refusedByPAWS(ctx context.Context, env *Env, t *Truth, conns []*peer.Conn, counter string, n uint64) error {
	if err := env.untilCounter(ctx, counter, n); err != nil {
		return err
	}
	env.Logf("%d segments were refused for their timestamps", n)
	t.Victims = victimsOf(conns)
	t.Expect = []Expectation{{Code: "paws-rejected", Listener: t.Listener, Process: t.Server, Count: int(n)}}
	t.Known[counter] = n
	t.Known["Tcp.OutRsts"] = 0
	return nil
}

func oldTimestamps(ctx context.Context, env *Env, t *Truth) error {
	ctx, cancel := context.WithTimeout(ctx, env.Patience)
	defer cancel()
	_, _, conns, err := stamped(ctx, env, t, echoData)
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
	const copies = 3 // fewer may as well be what was retransmitted meanwhile
	var late []peer.Segment
	for _, c := range conns {
		// Of these alone: an ACK that the host sends by itself meanwhile, to an echo
		// that comes again, is in order.
		s := c.Make(peer.PSH|peer.ACK, []byte("and more"))
		s.Timestamps.Value = clockBefore - 500
		for range copies {
			if err := c.Transmit(s); err != nil {
				return err
			}
		}
		late = append(late, s)
	}
	if err := refusedByPAWS(ctx, env, t, conns, "TcpExt.PAWSEstab", copies*failures); err != nil {
		return err
	}
	// With a timestamp in order, the same is taken.
	for i, c := range conns {
		late[i].Timestamps.Value = clockBefore + 1
		c.SetTimestamp(clockBefore + 1)
		if err := c.Transmit(late[i]); err != nil {
			return err
		}
	}
	for _, c := range conns {
		if _, err := c.Expect(ctx, peer.PSH); err != nil {
			return err
		}
	}
	t.Known["Tcp.PassiveOpens"] = failures
	return finishAll(ctx, conns)
}

// sameAddressAgain has the server close connections first, and other hosts
// connect from the same addresses and ports, whose clock shows the given time.
func sameAddressAgain(ctx context.Context, env *Env, t *Truth, clock uint32) error {
	ctx, cancel := context.WithTimeout(ctx, env.Patience)
	defer cancel()
	net, srv, conns, err := stamped(ctx, env, t, answerClose)
	if err != nil {
		return err
	}
	for _, c := range conns {
		if err := requestAndClose(ctx, c); err != nil {
			return err
		}
	}
	env.Logf("%s[%d] has closed %d connections: TIME_WAIT", srv.Comm, srv.PID, len(conns))
	again := make([]*peer.Conn, len(conns))
	for i, c := range conns {
		c.Forget()
		again[i] = net.Conn(c.Local, c.Remote)
		again[i].SetTimestamp(clock)
		if clock > clockBefore {
			if err := requestAndClose(ctx, again[i]); err != nil {
				return fmt.Errorf("using %s again: %w", c.Local, err)
			}
			continue
		}
		if err := again[i].Send(peer.SYN, nil); err != nil {
			return err
		}
		if _, err := again[i].Expect(ctx, peer.ACK); err != nil { // of the old connection
			return err
		}
	}
	t.Known["Tcp.PassiveOpens"] = failures
	if clock > clockBefore {
		t.Known["Tcp.PassiveOpens"] = 2 * failures
		return nil
	}
	counter := "TcpExt.PAWSTimewait" // from 6.13 on
	if _, ok := env.before[env.NS.inode][counter]; !ok {
		counter = "TcpExt.PAWSEstab"
	}
	return refusedByPAWS(ctx, env, t, again, counter, failures)
}

// requestAndClose opens a connection, has its request answered, and sees the
// server close it first.
func requestAndClose(ctx context.Context, c *peer.Conn) error {
	if err := c.Open(ctx); err != nil {
		return err
	}
	c.Answer()
	if err := c.Send(peer.PSH|peer.ACK, []byte("GET / HTTP/1.0\r\n\r\n")); err != nil {
		return err
	}
	if _, err := c.Expect(ctx, peer.FIN); err != nil {
		return err
	}
	if err := c.Send(peer.FIN|peer.ACK, nil); err != nil {
		return err
	}
	_, err := c.ExpectAcked(ctx)
	return err
}

func oldFinalACK(ctx context.Context, env *Env, t *Truth) error {
	ctx, cancel := context.WithTimeout(ctx, env.Patience)
	defer cancel()
	_, _, conns, err := stamped(ctx, env, t, echoData)
	if err != nil {
		return err
	}
	answers := make([]peer.Segment, len(conns))
	for i, c := range conns {
		if err := c.Send(peer.SYN, nil); err != nil {
			return err
		}
		if answers[i], err = c.Expect(ctx, peer.SYN|peer.ACK); err != nil {
			return err
		}
		c.SetTimestamp(clockBefore - 500)
		if err := c.Send(peer.ACK, nil); err != nil {
			return err
		}
	}
	if err := refusedByPAWS(ctx, env, t, conns, "TcpExt.PAWSEstab", failures); err != nil {
		return err
	}
	for i, c := range conns {
		c.SetTimestamp(clockBefore + 1)
		s := c.Make(peer.PSH|peer.ACK, []byte("hello"))
		// The kernel's ACK to the refused segment may carry a later timestamp
		// than its SYN-ACK; from 6.14 on it would refuse that one's echo.
		s.Timestamps.Echo = answers[i].Timestamps.Value
		if err := c.Transmit(s); err != nil {
			return err
		}
	}
	for _, c := range conns {
		if _, err := c.Expect(ctx, peer.PSH); err != nil {
			return err
		}
		if err := c.Send(peer.ACK, nil); err != nil {
			return err
		}
	}
	t.Known["Tcp.PassiveOpens"] = failures
	// On a slow machine the SYN-ACK may be sent again meanwhile.
	t.Allow = []string{"final-ack-lost"}
	return finishAll(ctx, conns)
}
