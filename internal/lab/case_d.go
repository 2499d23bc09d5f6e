package lab

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"github.com/tcptrace/tcptrace/internal/lab/peer"
	"golang.org/x/sys/unix"
)

// Case D: the same overflow, but tcp_abort_on_overflow is 0, and nobody is
// told: the final ACK is dropped, or the SYN.
var silentOverflowCases = []Case{
	{
		ID:    "D",
		Title: "the first request times out",
		Story: "Clients on another host connect at the same time to a server that is slow to accept. The " +
			"server's kernel drops the final ACKs, and the requests that follow, until there is room.",
		NeedsTUN: true,
		Prepare:  prepareWire,
		Run:      run(droppedRealClients),
	},
	{
		ID:       "D-peers",
		Title:    "the same, with one client a host",
		Story:    "As case D, with each client at an address of its own; packets under full control.",
		NeedsTUN: true,
		Run: run(func(ctx context.Context, env *Env, t *Truth) error {
			return overflowPeers(ctx, env, t, overflowSpec{listen: netip.IPv4Unspecified()})
		}),
	},
	{
		ID:    "D-syn",
		Title: "the SYN is dropped at a full accept queue",
		Story: "Clients on this host connect to a server that does not accept. Once its queue is full, SYNs are " +
			"dropped; they are sent again after a second, when there is room.",
		Run: run(func(ctx context.Context, env *Env, t *Truth) error {
			return droppedSYNs(ctx, env, t, queue{env.Backlog, env.Backlog, env.Backlog})
		}),
	},
	{
		ID:    "D-zero",
		Title: "a backlog of 0",
		Story: "As case D-syn, at a listener whose backlog is 0: its queue has room for one connection.",
		Run: run(func(ctx context.Context, env *Env, t *Truth) error {
			// One only: a second SYN at the same time would be answered with a
			// cookie, since no connection may be half open either, and its client
			// would be lost for ever once its ACK met the full queue.
			if err := droppedSYNs(ctx, env, t, queue{argument: 0, limit: 0, late: 1}); err != nil {
				return err
			}
			// Up to 5.10, even the first SYN is answered with a cookie.
			t.Allow = append(t.Allow, "syn-queue-overflow")
			return nil
		}),
	},
	{
		ID:    "D-clamped",
		Title: "a backlog that somaxconn cuts short",
		Story: "As case D-syn, at a listener that asked for a backlog of 100000 and got net.core.somaxconn.",
		Run: run(func(ctx context.Context, env *Env, t *Truth) error {
			if err := env.NS.Sysctl("net.core.somaxconn", strconv.Itoa(env.Backlog)); err != nil {
				return err
			}
			if err := droppedSYNs(ctx, env, t, queue{100_000, env.Backlog, env.Backlog}); err != nil {
				return err
			}
			t.Expect = append(t.Expect, Expectation{Code: "backlog-clamped", Listener: t.Listener, Process: t.Server, Count: 1})
			return nil
		}),
	},
	{
		ID:    "D-timeout",
		Title: "connect times out at a queue that stays full",
		Story: "As case D-syn, but the server accepts only after the clients gave up (tcp_syn_retries is 1).",
		Run:   run(timeoutAtFullQueue),
	},
	{
		ID:    "D-healthy",
		Title: "the same burst at a queue that holds it",
		Story: "As many clients as in case D-syn connect at once to a server that accepts, with room for them all.",
		Run:   run(burstAccepted),
	},
}

// afterDroppedACKs is the sequel of an overflow with tcp_abort_on_overflow 0:
// the victims believe that they are connected and send their requests, which
// are dropped too; the server sends SYN-ACK again after a second, and serves
// them once it has room.
func afterDroppedACKs(ctx context.Context, env *Env, t *Truth, srv *lateAcceptor, entered, victims []*peer.Conn) error {
	requests := make([]peer.Segment, len(victims))
	for i, c := range victims {
		requests[i] = c.Make(peer.PSH|peer.ACK, []byte("hello"))
		if err := c.Transmit(requests[i]); err != nil {
			return err
		}
	}
	env.Logf("the %d victims send their requests to no avail", len(victims))
	if err := srv.begin(ctx); err != nil {
		return err
	}
	if err := echoWithAll(ctx, entered); err != nil {
		return err
	}
	for i, c := range victims {
		if _, err := c.Expect(ctx, peer.SYN|peer.ACK); err != nil {
			return err
		}
		if err := c.Send(peer.ACK, nil); err != nil {
			return err
		}
		if err := c.Transmit(requests[i]); err != nil {
			return err
		}
	}
	for _, c := range victims {
		c.Answer()
		if _, err := c.Expect(ctx, peer.PSH); err != nil {
			return err
		}
	}
	env.Logf("%d SYN-ACKs are sent again, and the victims served", len(victims))
	n := uint64(len(victims))
	t.Known["TcpExt.ListenOverflows"] = 2 * n // the ACK and the request of each
	t.Known["TcpExt.ListenDrops"] = 2 * n
	t.Known["Tcp.OutRsts"] = 0
	t.Known["Tcp.PassiveOpens"] = uint64(len(entered)) + n
	t.AtLeast["TcpExt.TCPSynRetrans"] = n
	t.Allow = append(t.Allow, "final-ack-lost", "half-open")
	return nil
}

// droppedRealClients is the same with real clients on a host of their own.
func droppedRealClients(ctx context.Context, env *Env, t *Truth) error {
	wire, ok := env.stage.(*gatedWire)
	if !ok {
		return fmt.Errorf("the case has not been prepared")
	}
	if err := env.NS.Sysctl("net.ipv4.tcp_abort_on_overflow", "0"); err != nil {
		return err
	}
	srv, err := env.serve(ctx, "rpc-server", serverSpec{
		Addr: netip.AddrPortFrom(netip.IPv4Unspecified(), webPort), Backlog: env.Backlog, OnData: echoData,
	})
	if err != nil {
		return err
	}
	client, err := env.start(env.client, "rpc-client")
	if err != nil {
		return err
	}
	to := netip.AddrPortFrom(hostPrefix4.Addr(), webPort)
	punctual, late, err := burst(ctx, env, wire, client, to)
	if err != nil {
		return err
	}
	victims := late[1:]
	for _, c := range victims {
		t.Victims = append(t.Victims, Victim{Client: c.Local, Server: to})
	}
	all := append(punctual[:len(punctual):len(punctual)], late...)
	begun := time.Now()
	request := client.begin("exchange", exchangeArgs{FDs: descriptors(all), Write: "hello", Read: 5, Within: env.Patience})
	n := uint64(len(victims))
	if err := env.untilCounter(ctx, "TcpExt.TCPSynRetrans", n); err != nil {
		return err
	}
	env.Logf("%s[%d]'s kernel drops their requests and sends its SYN-ACKs again", srv.Comm, srv.PID)
	if err := srv.accepting(ctx, true); err != nil {
		return err
	}
	var results []exchanged
	if err := request.result(ctx, &results); err != nil {
		return err
	}
	for i, r := range results {
		if err := mustErrno(fmt.Sprintf("the request from %s", all[i].Local), r.Errno, 0); err != nil {
			return err
		}
	}
	env.Logf("%s[%d] has its answers after %s", client.Comm, client.PID, time.Since(begun).Round(time.Millisecond))
	t.Listener, t.Server, t.Client, t.Backlog = srv.Addr, srv.party(), client.party(), env.Backlog
	t.Expect = []Expectation{{
		Code: "accept-queue-overflow", Listener: srv.Addr, Process: srv.party(), Count: len(victims),
	}}
	t.Allow = []string{"slow-accept", "final-ack-lost", "half-open", "retransmission-timeout"}
	t.Known["Tcp.PassiveOpens"] = uint64(len(all))
	t.Known["Tcp.OutRsts"] = 0
	t.AtLeast["TcpExt.ListenOverflows"] = 2 * n // each ACK and request, the latter again and again
	t.AtLeast["TcpExt.TCPSynRetrans"] = n
	t.AtLeast["Tcp.RetransSegs"] = 2 * n // SYN-ACKs and requests
	return nil
}

// synTimeout is how long the kernel waits before it sends a first SYN again.
const synTimeout = time.Second

// queue is an accept queue and what is to come to it.
type queue struct {
	argument int // listen()'s backlog
	limit    int // what the kernel makes of it; one more connection fits
	late     int // clients that find the queue full
}

// droppedSYNs fills a listener's accept queue from this host, has more clients
// connect, and lets the server accept once their SYNs were dropped.
func droppedSYNs(ctx context.Context, env *Env, t *Truth, q queue) error {
	srv, err := env.serve(ctx, "rpc-server", serverSpec{
		Addr: netip.MustParseAddrPort("127.0.0.1:8083"), Backlog: q.argument, OnData: echoData,
	})
	if err != nil {
		return err
	}
	client, err := env.start(env.NS, "rpc-client")
	if err != nil {
		return err
	}
	room := q.limit + 1
	if _, err := env.open(ctx, client, connectArgs{To: srv.Addr, N: room}); err != nil {
		return err
	}
	env.Logf("connections fill the accept queue of %s (%d); nobody accepts", srv.Addr, room)
	begun := time.Now()
	rest := client.begin("connect", connectArgs{To: srv.Addr, N: q.late, Within: env.Patience})
	n := uint64(q.late)
	if err := env.untilCounter(ctx, "TcpExt.ListenOverflows", n); err != nil {
		return err
	}
	if err := srv.accepting(ctx, true); err != nil {
		return err
	}
	err = env.untilServed(ctx, srv, "the queue is empty", func(st serverStats) bool { return st.Accepted >= room })
	if err != nil {
		return err
	}
	inTime := time.Since(begun) < synTimeout
	var late []connected
	if err := rest.result(ctx, &late); err != nil {
		return err
	}
	for _, c := range late {
		if err := mustErrno(fmt.Sprintf("connecting to %s", srv.Addr), c.Errno, 0); err != nil {
			return err
		}
		t.Victims = append(t.Victims, Victim{Client: c.Local, Server: srv.Addr})
	}
	env.Logf("%d more connect, in %s", len(late), late[0].Took.Round(time.Millisecond))
	if err := env.acceptAll(ctx, srv, room+len(late)); err != nil {
		return err
	}
	t.Listener, t.Server, t.Client, t.Backlog = srv.Addr, srv.party(), client.party(), q.argument
	t.Expect = []Expectation{{
		Code: "accept-queue-overflow", Listener: srv.Addr, Process: srv.party(), Count: len(late),
	}}
	t.Allow = []string{"slow-accept"}
	t.Known["Tcp.PassiveOpens"] = uint64(room) + n
	t.Known["Tcp.ActiveOpens"] = uint64(room) + n
	t.Known["Tcp.OutRsts"] = 0
	t.AtLeast["TcpExt.TCPSynRetrans"] = n
	t.AtLeast["TcpExt.ListenOverflows"] = n
	// If no SYN came twice to the full queue, and the second ones could not
	// fill it again.
	if inTime && q.late <= q.limit+1 {
		t.Known["TcpExt.ListenOverflows"] = n
		t.Known["TcpExt.ListenDrops"] = n
		t.Known["TcpExt.TCPSynRetrans"] = n
	}
	return nil
}

// timeoutAtFullQueue has clients give up at a queue that stays full.
func timeoutAtFullQueue(ctx context.Context, env *Env, t *Truth) error {
	if err := env.NS.Sysctl("net.ipv4.tcp_syn_retries", "1"); err != nil {
		return err
	}
	srv, err := env.serve(ctx, "stuck-server", serverSpec{
		Addr: netip.MustParseAddrPort("127.0.0.1:8083"), Backlog: env.Backlog, OnData: echoData,
	})
	if err != nil {
		return err
	}
	client, err := env.start(env.NS, "rpc-client")
	if err != nil {
		return err
	}
	if _, err := env.open(ctx, client, connectArgs{To: srv.Addr, N: env.Backlog + 1}); err != nil {
		return err
	}
	if t.Victims, err = env.fail(ctx, client, srv.Addr, failures, unix.ETIMEDOUT); err != nil {
		return err
	}
	if err := env.acceptAll(ctx, srv, env.Backlog+1); err != nil {
		return err
	}
	t.Listener, t.Server, t.Client, t.Backlog = srv.Addr, srv.party(), client.party(), env.Backlog
	t.Expect = []Expectation{
		{Code: "accept-queue-overflow", Listener: srv.Addr, Process: srv.party(), Count: failures},
		{Code: "connect-timeout", Listener: srv.Addr, Process: client.party(), Count: failures},
	}
	t.Allow = []string{"slow-accept"}
	// The SYN and its retransmissions; how many a kernel makes varies, see
	// neverAnswered.
	t.AtLeast["TcpExt.ListenOverflows"] = 2 * failures
	t.AtLeast["TcpExt.ListenDrops"] = 2 * failures
	t.AtLeast["TcpExt.TCPSynRetrans"] = failures
	t.Known["Tcp.AttemptFails"] = failures
	t.Known["Tcp.OutRsts"] = 0
	return nil
}

// burstAccepted is the healthy twin: the server keeps up.
func burstAccepted(ctx context.Context, env *Env, t *Truth) error {
	n := 2*env.Backlog + 1
	srv, err := env.serve(ctx, "rpc-server", serverSpec{
		Addr: netip.MustParseAddrPort("127.0.0.1:8083"), Backlog: n, Accept: true, OnData: echoData,
	})
	if err != nil {
		return err
	}
	client, err := env.start(env.NS, "rpc-client")
	if err != nil {
		return err
	}
	conns, err := env.open(ctx, client, connectArgs{To: srv.Addr, N: n})
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
		return st.Closed == n
	}); err != nil {
		return err
	}
	t.Listener, t.Server, t.Client, t.Backlog = srv.Addr, srv.party(), client.party(), n
	t.Known["Tcp.PassiveOpens"] = uint64(n)
	t.Known["Tcp.ActiveOpens"] = uint64(n)
	return nil
}
