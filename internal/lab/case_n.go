package lab

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"github.com/tcptrace/tcptrace/internal/lab/peer"
)

// Case N: stalls, by a receiver that does not read and by a server that
// accepts late.
var stallCases = []Case{
	{
		ID:    "N",
		Title: "the receiver stops reading",
		Story: "A server keeps its connections and reads nothing. The window shuts, and what the client goes on to " +
			"write stays in its send queue.",
		Run: run(func(ctx context.Context, env *Env, t *Truth) error { return notRead(ctx, env, t, env.Hold) }),
	},
	{
		ID:       "N-sender",
		Title:    "the receiver, on another host, stops reading",
		Story:    "A client sends to another host, which acknowledges and opens its window no more.",
		NeedsTUN: true,
		Run:      run(windowShutThere),
	},
	{
		ID:       "N-receiver",
		Title:    "a process does not read what another host sends",
		Story:    "Clients on another host send as much as the window allows; the server on this one reads nothing.",
		NeedsTUN: true,
		Run:      run(notReadFromThere),
	},
	{
		ID:    "N-killed",
		Title: "the window never opens again",
		Story: "As case N-sender, but the other host stops answering altogether, and the kernel gives up " +
			"(tcp_retries2 is 3).",
		NeedsTUN: true,
		Run:      run(windowShutForGood),
	},
	{
		ID:    "N-healthy",
		Title: "a receiver that is slow, and reads",
		Story: "A server reads what its clients send a little late, again and again: the window shuts and opens.",
		Run:   run(readLate),
	},
	{
		ID:       "N-unread-healthy",
		Title:    "data that nobody has read yet",
		Story:    "Clients on another host send a little and wait; the server lets it lie. The window stays open.",
		NeedsTUN: true,
		Run:      run(littleUnread),
	},
	{
		ID:    "N-accept",
		Title: "accept() comes late",
		Story: "Clients connect to a server that is too busy to accept them at once; the accept queue has room.",
		Run:   run(func(ctx context.Context, env *Env, t *Truth) error { return acceptedLate(ctx, env, t, true) }),
	},
	{
		ID:    "N-hung",
		Title: "accept() never comes",
		Story: "Clients connect to a server that has stopped accepting, wait for a while and give up.",
		Run:   run(neverAccepted),
	},
	{
		ID:    "N-accept-healthy",
		Title: "accept() in time",
		Story: "The same clients, and a server that accepts at once.",
		Run:   run(func(ctx context.Context, env *Env, t *Truth) error { return acceptedLate(ctx, env, t, false) }),
	},
}

const (
	sinkPort    = 8091
	smallBuffer = 16 << 10               // SO_RCVBUF of a receiver that is soon full
	muchData    = 4 << 20                // more than socket buffers take
	quietWrite  = 300 * time.Millisecond // a connection that takes nothing for so long is stuck
	stalls      = 3                      // connections that a case of this kind makes
)

// sink starts a server that reads nothing until told, and a client with
// connections to it.
func sink(ctx context.Context, env *Env, t *Truth) (*runningServer, *Process, []connected, error) {
	srv, err := env.serve(ctx, "log-sink", serverSpec{
		Addr: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), sinkPort), Backlog: 511, Accept: true,
		OnData: readAndIgnore, Deaf: true, ReceiveBuffer: smallBuffer,
	})
	if err != nil {
		return nil, nil, nil, err
	}
	client, err := env.start(env.NS, "log-shipper")
	if err != nil {
		return nil, nil, nil, err
	}
	conns, err := env.open(ctx, client, connectArgs{To: srv.Addr, N: stalls})
	if err != nil {
		return nil, nil, nil, err
	}
	t.Listener, t.Server, t.Client = srv.Addr, srv.party(), client.party()
	t.Known["Tcp.ActiveOpens"] = stalls
	t.Known["Tcp.PassiveOpens"] = stalls
	t.Known["Tcp.OutRsts"] = 0
	return srv, client, conns, nil
}

// fill has the client write until its connections are stuck.
func fill(ctx context.Context, client *Process, conns []connected) (int, error) {
	var results []poured
	if err := client.call(ctx, "pour", pourArgs{FDs: descriptors(conns), Most: muchData, Quiet: quietWrite}, &results); err != nil {
		return 0, err
	}
	total := 0
	for _, r := range results {
		total += r.Wrote
	}
	return total, checkPoured(client, results, true)
}

// drain has the server read, and both ends close in an orderly way.
func drain(ctx context.Context, env *Env, srv *runningServer, client *Process, conns []connected) error {
	if err := srv.call(ctx, "reading", readingArgs{Server: srv.id, On: true}, nil); err != nil {
		return err
	}
	if err := client.call(ctx, "close", closeArgs{FDs: descriptors(conns)}, nil); err != nil {
		return err
	}
	return env.untilServed(ctx, srv, "the server has read everything and closed", func(st serverStats) bool {
		return st.Closed == len(conns) && st.Resets == 0
	})
}

func notRead(ctx context.Context, env *Env, t *Truth, hold time.Duration) error {
	srv, client, conns, err := sink(ctx, env, t)
	if err != nil {
		return err
	}
	n, err := fill(ctx, client, conns)
	if err != nil {
		return err
	}
	env.Logf("%s[%d] could write %d bytes on %d connections; %s[%d] reads nothing", client.Comm, client.PID, n, len(conns), srv.Comm, srv.PID)
	for _, c := range conns {
		t.Victims = append(t.Victims, Victim{Client: c.Local, Server: srv.Addr})
	}
	t.Expect = []Expectation{{Code: "zero-window", Process: srv.party(), Count: len(conns)}}
	if err := sleep(ctx, hold); err != nil {
		return err
	}
	t.AtLeast["TcpExt.TCPToZeroWindowAdv"] = uint64(len(conns))
	return drain(ctx, env, srv, client, conns)
}

// readLate has the window shut and open a few times.
func readLate(ctx context.Context, env *Env, t *Truth) error {
	srv, client, conns, err := sink(ctx, env, t)
	if err != nil {
		return err
	}
	const rounds = 4
	for range rounds {
		if _, err := fill(ctx, client, conns); err != nil {
			return err
		}
		if err := srv.call(ctx, "reading", readingArgs{Server: srv.id, On: true}, nil); err != nil {
			return err
		}
		err := env.until(ctx, "the window is open", func() (bool, error) {
			var results []poured
			err := client.call(ctx, "pour", pourArgs{FDs: descriptors(conns), Most: smallBuffer, Quiet: quietWrite}, &results)
			return checkPoured(client, results, false) == nil, err
		})
		if err != nil {
			return err
		}
		if err := srv.call(ctx, "reading", readingArgs{Server: srv.id, On: false}, nil); err != nil {
			return err
		}
	}
	t.AtLeast["TcpExt.TCPToZeroWindowAdv"] = 1
	return drain(ctx, env, srv, client, conns)
}

// checkPoured is an error unless all connections got stuck (stuck false: none
// did).
func checkPoured(p *Process, results []poured, stuck bool) error {
	for _, r := range results {
		if r.Errno != 0 {
			return fmt.Errorf("%s[%d]: writing: %w", p.Comm, p.PID, r.Errno)
		}
		if r.Stuck != stuck {
			return fmt.Errorf("%s[%d]: after %d bytes a connection is stuck: %t, want %t", p.Comm, p.PID, r.Wrote, r.Stuck, stuck)
		}
	}
	return nil
}

// shutWindow has a client connect to a scripted host, which takes little and
// then shuts its window. It returns the scripted ends, which acknowledge no
// more by themselves.
func shutWindow(ctx context.Context, env *Env, t *Truth) (*Process, []connected, []*peer.Conn, error) {
	net, err := env.network()
	if err != nil {
		return nil, nil, nil, err
	}
	const window = 8 << 10
	to := netip.AddrPortFrom(scriptedAddr(0, false), sinkPort)
	arrivals := make(chan *peer.Conn, stalls)
	failed := make(chan error, stalls)
	net.Listen(to, func(c *peer.Conn) {
		c.SetWindow(window)
		if err := c.Send(peer.SYN|peer.ACK, nil); err != nil {
			failed <- err
			return
		}
		c.SetWindow(0) // with the first byte that it acknowledges
		arrivals <- c
	})
	client, err := env.start(env.NS, "log-shipper")
	if err != nil {
		return nil, nil, nil, err
	}
	conns, err := env.open(ctx, client, connectArgs{To: to, N: stalls})
	if err != nil {
		return nil, nil, nil, err
	}
	pouring := client.begin("pour", pourArgs{FDs: descriptors(conns), Most: muchData, Quiet: quietWrite})
	var far []*peer.Conn
	for range conns {
		select {
		case c := <-arrivals:
			far = append(far, c)
		case err := <-failed:
			return nil, nil, nil, err
		case <-ctx.Done():
			return nil, nil, nil, fmt.Errorf("waiting for the client's connections: %w", ctx.Err())
		}
	}
	t.Client = client.party()
	t.Known["Tcp.ActiveOpens"] = stalls
	t.Known["Tcp.OutRsts"] = 0
	for _, c := range far {
		t.Victims = append(t.Victims, Victim{Client: c.Remote, Server: to})
		c.Answer()
	}
	var results []poured
	if err := pouring.result(ctx, &results); err != nil {
		return nil, nil, nil, err
	}
	// It is probed once all that it let through is acknowledged.
	for _, c := range far {
		if _, err := c.ExpectProbe(ctx); err != nil {
			return nil, nil, nil, err
		}
		if err := c.Send(peer.ACK, nil); err != nil {
			return nil, nil, nil, err
		}
	}
	return client, conns, far, checkPoured(client, results, true)
}

// windowShutThere has scripted hosts answer each probe of their shut window.
func windowShutThere(ctx context.Context, env *Env, t *Truth) error {
	ctx, cancel := context.WithTimeout(ctx, env.Patience+env.Hold)
	defer cancel()
	client, conns, far, err := shutWindow(ctx, env, t)
	if err != nil {
		return err
	}
	env.Logf("the window is shut on all %d connections of %s[%d]", len(conns), client.Comm, client.PID)
	t.Expect = []Expectation{{Code: "zero-window", Process: client.party(), Count: len(conns)}}
	hold, cancelHold := context.WithTimeout(ctx, env.Hold)
	defer cancelHold()
	errs := make(chan error, len(far))
	for _, c := range far {
		go func() {
			for {
				if _, err := c.Expect(hold, peer.ACK); err != nil {
					if hold.Err() != nil {
						err = nil // the time is up
					}
					errs <- err
					return
				}
				if err := c.Send(peer.ACK, nil); err != nil {
					errs <- err
					return
				}
			}
		}()
	}
	for range far {
		if err := <-errs; err != nil {
			return err
		}
	}
	t.AtLeast["TcpExt.TCPWinProbe"] = uint64(len(conns))
	return nil
}

func windowShutForGood(ctx context.Context, env *Env, t *Truth) error {
	ctx, cancel := context.WithTimeout(ctx, env.Patience)
	defer cancel()
	if err := env.NS.Sysctl("net.ipv4.tcp_retries2", strconv.Itoa(3)); err != nil {
		return err
	}
	client, conns, far, err := shutWindow(ctx, env, t)
	if err != nil {
		return err
	}
	for _, c := range far {
		c.Forget()
	}
	env.Logf("the window is shut on all %d connections of %s[%d], and the other host is gone", len(conns), client.Comm, client.PID)
	if err := env.untilCounter(ctx, "TcpExt.TCPAbortOnTimeout", uint64(len(conns))); err != nil {
		return err
	}
	t.Expect = []Expectation{{Code: "zero-window", Process: client.party(), Count: len(conns)}}
	t.Known["TcpExt.TCPAbortOnTimeout"] = uint64(len(conns))
	t.AtLeast["TcpExt.TCPWinProbe"] = uint64(len(conns))
	return client.call(ctx, "close", closeArgs{FDs: descriptors(conns)}, nil)
}

// scriptedSenders has clients on a scripted host connect to a server that reads
// nothing. They acknowledge what comes.
func scriptedSenders(ctx context.Context, env *Env, t *Truth, buffer int) (*runningServer, []*peer.Conn, error) {
	net, err := env.network()
	if err != nil {
		return nil, nil, err
	}
	srv, err := env.serve(ctx, "log-sink", serverSpec{
		Addr: netip.AddrPortFrom(netip.IPv4Unspecified(), sinkPort), Backlog: 511, Accept: true,
		OnData: readAndIgnore, Deaf: true, ReceiveBuffer: buffer,
	})
	if err != nil {
		return nil, nil, err
	}
	conns := make([]*peer.Conn, stalls)
	for i := range conns {
		conns[i] = net.Conn(netip.AddrPortFrom(scriptedAddr(0, false), uint16(20000+i)), netip.AddrPortFrom(hostPrefix4.Addr(), sinkPort))
		if err := conns[i].Open(ctx); err != nil {
			return nil, nil, err
		}
	}
	t.Listener, t.Server = srv.Addr, srv.party()
	t.Known["Tcp.PassiveOpens"] = stalls
	t.Known["Tcp.OutRsts"] = 0
	return srv, conns, nil
}

// finishSenders has the server read what there is, and all close.
func finishSenders(ctx context.Context, env *Env, srv *runningServer, conns []*peer.Conn) error {
	if err := srv.call(ctx, "reading", readingArgs{Server: srv.id, On: true}, nil); err != nil {
		return err
	}
	if err := finishAll(ctx, conns); err != nil {
		return err
	}
	return env.untilServed(ctx, srv, "the server has read everything and closed", func(st serverStats) bool {
		return st.Closed == len(conns) && st.Resets == 0
	})
}

func notReadFromThere(ctx context.Context, env *Env, t *Truth) error {
	ctx, cancel := context.WithTimeout(ctx, env.Patience+env.Hold)
	defer cancel()
	srv, conns, err := scriptedSenders(ctx, env, t, smallBuffer)
	if err != nil {
		return err
	}
	for _, c := range conns {
		t.Victims = append(t.Victims, Victim{Client: c.Local, Server: c.Remote})
		if err := sendUntilShut(ctx, c); err != nil {
			return err
		}
	}
	env.Logf("the window of %s[%d] is shut on %d connections", srv.Comm, srv.PID, len(conns))
	t.Expect = []Expectation{{Code: "zero-window", Process: srv.party(), Count: len(conns)}}
	// A sender probes: that the window is still shut is what it is answered
	// (but once in tcp_invalid_ratelimit, 500 ms, at most).
	for begun := time.Now(); time.Since(begun) < env.Hold; {
		if err := sleep(ctx, time.Second); err != nil {
			return err
		}
		for _, c := range conns {
			s, err := probe(ctx, c)
			if err != nil {
				return err
			}
			if s.Window != 0 {
				return fmt.Errorf("the window of %s is open by %d bytes, though nobody reads", c.Remote, s.Window)
			}
		}
	}
	t.AtLeast["TcpExt.TCPToZeroWindowAdv"] = uint64(len(conns))
	return finishSenders(ctx, env, srv, conns)
}

// probe sends a probe of the window, as Linux does: no data, one byte before
// what comes next. It returns the answer.
func probe(ctx context.Context, c *peer.Conn) (peer.Segment, error) {
	s := c.Make(peer.ACK, nil)
	s.Seq--
	if err := c.Transmit(s); err != nil {
		return s, err
	}
	return c.ExpectAcked(ctx)
}

// sendUntilShut sends as much as the window allows, until it is shut.
func sendUntilShut(ctx context.Context, c *peer.Conn) error {
	const segment = 1024
	s, err := probe(ctx, c) // what the window is now
	if err != nil {
		return err
	}
	for s.Window > 0 {
		if err := c.Send(peer.PSH|peer.ACK, make([]byte, min(int(s.Window), segment))); err != nil {
			return err
		}
		if s, err = c.ExpectAcked(ctx); err != nil {
			return err
		}
	}
	return nil
}

func littleUnread(ctx context.Context, env *Env, t *Truth) error {
	ctx, cancel := context.WithTimeout(ctx, env.Patience+env.Hold)
	defer cancel()
	srv, conns, err := scriptedSenders(ctx, env, t, 0)
	if err != nil {
		return err
	}
	for _, c := range conns {
		for range 8 {
			if err := c.Send(peer.PSH|peer.ACK, make([]byte, 1024)); err != nil {
				return err
			}
			if _, err := c.ExpectAcked(ctx); err != nil {
				return err
			}
		}
	}
	if err := sleep(ctx, env.Hold); err != nil {
		return err
	}
	return finishSenders(ctx, env, srv, conns)
}

const waiters = 12

// acceptedLate has clients wait in the accept queue (late), or not.
func acceptedLate(ctx context.Context, env *Env, t *Truth, late bool) error {
	srv, client, conns, err := waiting(ctx, env, t, !late)
	if err != nil {
		return err
	}
	if late {
		env.Logf("%d connections wait for accept()", len(conns))
		if err := sleep(ctx, env.LateAfter); err != nil {
			return err
		}
		if err := env.acceptAll(ctx, srv, len(conns)); err != nil {
			return err
		}
		for _, c := range conns {
			t.Victims = append(t.Victims, Victim{Client: c.Local, Server: srv.Addr})
		}
		t.Expect = []Expectation{{Code: "slow-accept", Listener: srv.Addr, Process: srv.party(), Count: len(conns)}}
	}
	if err := env.talk(ctx, client, exchangeArgs{FDs: descriptors(conns), Write: "hello", Read: 5}); err != nil {
		return err
	}
	if err := client.call(ctx, "close", closeArgs{FDs: descriptors(conns)}, nil); err != nil {
		return err
	}
	t.Known["Tcp.OutRsts"] = 0
	return env.untilServed(ctx, srv, "the server has closed", func(st serverStats) bool {
		return st.Closed == len(conns)
	})
}

// waiting has clients connect to a server that accepts or does not.
func waiting(ctx context.Context, env *Env, t *Truth, accept bool) (*runningServer, *Process, []connected, error) {
	srv, err := env.serve(ctx, "app-server", serverSpec{
		Addr: netip.MustParseAddrPort("127.0.0.1:8092"), Backlog: 511, Accept: accept, OnData: echoData,
	})
	if err != nil {
		return nil, nil, nil, err
	}
	client, err := env.start(env.NS, "app-client")
	if err != nil {
		return nil, nil, nil, err
	}
	conns, err := env.open(ctx, client, connectArgs{To: srv.Addr, N: waiters})
	if err != nil {
		return nil, nil, nil, err
	}
	t.Listener, t.Server, t.Client, t.Backlog = srv.Addr, srv.party(), client.party(), 511
	t.Known["Tcp.ActiveOpens"] = waiters
	t.Known["Tcp.PassiveOpens"] = waiters
	return srv, client, conns, nil
}

func neverAccepted(ctx context.Context, env *Env, t *Truth) error {
	srv, client, conns, err := waiting(ctx, env, t, false)
	if err != nil {
		return err
	}
	env.Logf("%d connections wait for accept(), in vain", len(conns))
	if err := sleep(ctx, env.LateAfter+env.Hold); err != nil {
		return err
	}
	if err := client.call(ctx, "close", closeArgs{FDs: descriptors(conns), Reset: true}, nil); err != nil {
		return err
	}
	n := uint64(len(conns))
	if err := env.untilCounter(ctx, "Tcp.EstabResets", 2*n); err != nil {
		return err
	}
	env.Logf("%s[%d] has given up and reset them", client.Comm, client.PID)
	for _, c := range conns {
		t.Victims = append(t.Victims, Victim{Client: c.Local, Server: srv.Addr})
	}
	t.Expect = []Expectation{{Code: "slow-accept", Listener: srv.Addr, Process: srv.party(), Count: len(conns)}}
	t.Allow = []string{"reset-sent", "reset-received"}
	t.Known["Tcp.OutRsts"] = n
	t.Known["Tcp.EstabResets"] = 2 * n // both ends
	return nil
}
