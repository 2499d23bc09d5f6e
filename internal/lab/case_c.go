package lab

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"

	"github.com/tcptrace/tcptrace/internal/lab/peer"
	"golang.org/x/sys/unix"
)

// Case C: connections reset after a complete handshake, because the accept
// queue was full when the final ACK came and tcp_abort_on_overflow is 1.
var resetOnOverflowCases = []Case{
	{
		ID:    "C",
		Title: "connection reset after a complete handshake",
		Story: "Clients on another host connect at the same time to a server that is slow to accept. Their " +
			"handshakes end at a full accept queue and, tcp_abort_on_overflow being 1, they are reset.",
		NeedsTUN: true,
		Prepare:  prepareWire,
		Run: run(func(ctx context.Context, env *Env, t *Truth) error {
			return overflowRealClients(ctx, env, t, true)
		}),
	},
	{
		ID:    "C-peers",
		Title: "the same, with one client a host",
		Story: "As case C, with each client at an address of its own; packets under full control.",

		NeedsTUN: true,
		Run: run(func(ctx context.Context, env *Env, t *Truth) error {
			return overflowPeers(ctx, env, t, overflowSpec{abort: true, listen: netip.IPv4Unspecified()})
		}),
	},
	{
		ID:       "C-go",
		Title:    "the same, with a server written in Go",
		Story:    "As case C-peers. Go's listeners are MPTCP sockets and take net.core.somaxconn for a backlog.",
		NeedsTUN: true,
		Run: run(func(ctx context.Context, env *Env, t *Truth) error {
			return overflowPeers(ctx, env, t, overflowSpec{abort: true, listen: netip.IPv4Unspecified(), goServer: true})
		}),
	},
	{
		ID:       "C-ipv6",
		Title:    "the same over IPv6",
		Story:    "As case C-peers, over IPv6.",
		NeedsTUN: true,
		Run: run(func(ctx context.Context, env *Env, t *Truth) error {
			return overflowPeers(ctx, env, t, overflowSpec{abort: true, listen: netip.IPv6Unspecified(), v6: true})
		}),
	},
	{
		ID:       "C-mapped",
		Title:    "the same, IPv4 clients of an IPv6 listener",
		Story:    "As case C-peers, with IPv4 clients of a server that listens on [::].",
		NeedsTUN: true,
		Run: run(func(ctx context.Context, env *Env, t *Truth) error {
			return overflowPeers(ctx, env, t, overflowSpec{abort: true, listen: netip.IPv6Unspecified()})
		}),
	},
	{
		ID:    "C-healthy",
		Title: "the same burst at a backlog that holds it",
		Story: "The same traffic as case C, at a listener whose accept queue has room for it.",

		NeedsTUN: true,
		Prepare:  prepareWire,
		Run: run(func(ctx context.Context, env *Env, t *Truth) error {
			return overflowRealClients(ctx, env, t, false)
		}),
	},
}

const webPort = 8081

// overflowSpec is a variant of the overflow at the final ACK.
type overflowSpec struct {
	abort    bool       // tcp_abort_on_overflow
	listen   netip.Addr // where the server listens
	v6       bool       // the clients' family
	goServer bool
}

// A burst of clients for a listener with backlog b is twice b: the first half
// completes its handshakes and leaves the accept queue one short of full (it
// holds b+1), so that the SYNs of the other half still get in. As many as b
// may be half open. Of their final ACKs, one finds room and b-1 do not.

// overflowPeers brings about the overflow with scripted clients.
func overflowPeers(ctx context.Context, env *Env, t *Truth, spec overflowSpec) error {
	ctx, cancel := context.WithTimeout(ctx, env.Patience)
	defer cancel()
	if err := env.NS.Sysctl("net.ipv4.tcp_abort_on_overflow", boolSysctl(spec.abort)); err != nil {
		return err
	}
	net, err := env.network()
	if err != nil {
		return err
	}
	srv, err := startLateAcceptor(ctx, env, spec)
	if err != nil {
		return err
	}
	clients := make([]*peer.Conn, 2*env.Backlog)
	for i := range clients {
		clients[i] = scriptedClient(net, i, spec.v6, srv.addr)
	}
	punctual, late := clients[:env.Backlog], clients[env.Backlog:]
	for _, c := range punctual {
		if err := c.Open(ctx); err != nil {
			return err
		}
	}
	env.Logf("%d connections fill the accept queue of %s but for one place; nobody accepts", len(punctual), srv.addr)
	for _, c := range late {
		if err := c.Send(peer.SYN, nil); err != nil {
			return err
		}
	}
	for _, c := range late {
		if _, err := c.Expect(ctx, peer.SYN|peer.ACK); err != nil {
			return err
		}
	}
	for _, c := range late {
		if err := c.Send(peer.ACK, nil); err != nil {
			return err
		}
	}
	env.Logf("%d more end their handshakes at once", len(late))
	t.Listener, t.Server, t.Backlog = srv.addr, srv.party(), env.Backlog
	victims := late[1:]
	for _, c := range victims {
		t.Victims = append(t.Victims, Victim{Client: c.Local, Server: c.Remote})
	}
	t.Expect = []Expectation{{
		Code: "accept-queue-overflow", Listener: srv.addr, Process: srv.party(), Count: len(victims),
	}}
	t.Allow = []string{"slow-accept"}
	entered := append(punctual[:len(punctual):len(punctual)], late[0])
	if spec.abort {
		return afterResets(ctx, env, t, srv, entered, victims)
	}
	return afterDroppedACKs(ctx, env, t, srv, entered, victims)
}

// afterResets sees each victim get its RST, and lets the server accept the rest.
func afterResets(ctx context.Context, env *Env, t *Truth, srv *lateAcceptor, entered, victims []*peer.Conn) error {
	for _, c := range victims {
		if _, err := c.Expect(ctx, peer.RST); err != nil {
			return err
		}
	}
	env.Logf("%d of them get RST", len(victims))
	if err := srv.begin(ctx); err != nil {
		return err
	}
	if err := echoWithAll(ctx, entered); err != nil {
		return err
	}
	n := uint64(len(victims))
	t.Known["TcpExt.ListenOverflows"] = n
	t.Known["TcpExt.ListenDrops"] = n
	t.Known["TcpExt.EmbryonicRsts"] = n
	t.Known["Tcp.OutRsts"] = n
	t.Known["Tcp.PassiveOpens"] = uint64(len(entered))
	return nil
}

// echoWithAll sends a message on each connection and waits for its echo. From
// then on the connections acknowledge what comes.
func echoWithAll(ctx context.Context, conns []*peer.Conn) error {
	for _, c := range conns {
		c.Answer()
		if err := c.Send(peer.PSH|peer.ACK, []byte("hello")); err != nil {
			return err
		}
	}
	for _, c := range conns {
		if s, err := c.Expect(ctx, peer.PSH); err != nil {
			return err
		} else if s.Has(peer.RST) {
			return fmt.Errorf("%s was reset instead of served", c.Local)
		}
	}
	return nil
}

// scriptedClient is the i-th scripted host's connection to a server, not begun.
func scriptedClient(net *peer.Network, i int, v6 bool, server netip.AddrPort) *peer.Conn {
	here := hostPrefix4.Addr()
	if v6 {
		here = hostPrefix6.Addr()
	}
	return net.Conn(netip.AddrPortFrom(scriptedAddr(i, v6), uint16(20000+i)), netip.AddrPortFrom(here, server.Port()))
}

// lateAcceptor is an echo server that accepts nothing until told to.
type lateAcceptor struct {
	*Process
	addr  netip.AddrPort
	begin func(ctx context.Context) error
}

func startLateAcceptor(ctx context.Context, env *Env, spec overflowSpec) (*lateAcceptor, error) {
	at := netip.AddrPortFrom(spec.listen, webPort)
	if !spec.goServer {
		srv, err := env.serve(ctx, "web-server", serverSpec{Addr: at, Backlog: env.Backlog, OnData: echoData})
		if err != nil {
			return nil, err
		}
		return &lateAcceptor{Process: srv.Process, addr: srv.Addr, begin: func(ctx context.Context) error {
			return srv.accepting(ctx, true)
		}}, nil
	}
	if err := env.NS.Sysctl("net.core.somaxconn", strconv.Itoa(env.Backlog)); err != nil {
		return nil, err
	}
	p, err := env.start(env.NS, "go-server")
	if err != nil {
		return nil, err
	}
	var s goServed
	if err := p.call(ctx, "go-serve", at, &s); err != nil {
		return nil, err
	}
	env.Logf("%s[%d] listens on %s by net.Listen, somaxconn %d", p.Comm, p.PID, s.Addr, env.Backlog)
	return &lateAcceptor{Process: p, addr: s.Addr, begin: func(ctx context.Context) error {
		return p.call(ctx, "go-accept", s.Listener, nil)
	}}, nil
}

func boolSysctl(on bool) string {
	if on {
		return "1"
	}
	return "0"
}

// prepareWire sets up two hosts between which final ACKs can be held back.
func prepareWire(_ context.Context, env *Env) error {
	w := newGatedWire()
	wire, err := env.twoHosts(w.decide)
	if err != nil {
		return err
	}
	w.Wire = wire
	env.stage = w
	return nil
}

// overflowRealClients brings about the overflow with real clients on a host of
// their own, whose final ACKs the wire between the hosts holds back a moment.
// With full false, the queue has room for all of them.
func overflowRealClients(ctx context.Context, env *Env, t *Truth, full bool) error {
	wire, ok := env.stage.(*gatedWire)
	if !ok {
		return fmt.Errorf("the case has not been prepared")
	}
	if err := env.NS.Sysctl("net.ipv4.tcp_abort_on_overflow", "1"); err != nil {
		return err
	}
	backlog := env.Backlog
	if !full {
		backlog *= 4
	}
	srv, err := env.serve(ctx, "web-server", serverSpec{
		Addr: netip.AddrPortFrom(netip.IPv4Unspecified(), webPort), Backlog: backlog, OnData: echoData,
	})
	if err != nil {
		return err
	}
	client, err := env.start(env.client, "load-client")
	if err != nil {
		return err
	}
	to := netip.AddrPortFrom(hostPrefix4.Addr(), webPort)
	punctual, late, err := burst(ctx, env, wire, client, to)
	if err != nil {
		return err
	}
	var victims, entered []connected
	if full {
		victims, entered = late[1:], append(punctual[:len(punctual):len(punctual)], late[0])
		if err := untilReset(ctx, env, client, victims); err != nil {
			return err
		}
		env.Logf("%s[%d]: %d connections reset by peer", client.Comm, client.PID, len(victims))
	} else {
		entered = append(punctual[:len(punctual):len(punctual)], late...)
	}
	if err := srv.accepting(ctx, true); err != nil {
		return err
	}
	if err := env.talk(ctx, client, exchangeArgs{FDs: descriptors(entered), Write: "hello", Read: 5}); err != nil {
		return err
	}
	t.Listener, t.Server, t.Client, t.Backlog = srv.Addr, srv.party(), client.party(), backlog
	t.Known["Tcp.ActiveOpens"] = uint64(len(punctual) + len(late))
	t.Known["Tcp.PassiveOpens"] = uint64(len(entered))
	if !full {
		if err := client.call(ctx, "close", closeArgs{FDs: descriptors(entered)}, nil); err != nil {
			return err
		}
		return env.untilServed(ctx, srv, "the server has closed", func(st serverStats) bool {
			return st.Closed == len(entered)
		})
	}
	for _, c := range victims {
		t.Victims = append(t.Victims, Victim{Client: c.Local, Server: to})
	}
	t.Expect = []Expectation{{
		Code: "accept-queue-overflow", Listener: srv.Addr, Process: srv.party(), Count: len(victims),
	}}
	// The clients' host sees established connections reset by their peer.
	t.Allow = []string{"slow-accept", "reset-received"}
	n := uint64(len(victims))
	t.Known["TcpExt.ListenOverflows"] = n
	t.Known["TcpExt.ListenDrops"] = n
	t.Known["TcpExt.EmbryonicRsts"] = n
	t.Known["Tcp.OutRsts"] = n
	t.Known["Tcp.EstabResets"] = n
	return nil
}

// burst connects twice env.Backlog times, and has the final ACKs of the second
// half arrive all at once, in the order of the connections.
func burst(ctx context.Context, env *Env, wire *gatedWire, client *Process, to netip.AddrPort) (punctual, late []connected, err error) {
	if punctual, err = env.open(ctx, client, connectArgs{To: to, N: env.Backlog}); err != nil {
		return nil, nil, err
	}
	// Their final ACKs have to be past the gate.
	if err := env.untilCounter(ctx, "Tcp.PassiveOpens", uint64(len(punctual))); err != nil {
		return nil, nil, err
	}
	wire.shut()
	if late, err = env.open(ctx, client, connectArgs{To: to, N: env.Backlog}); err != nil {
		return nil, nil, err
	}
	err = env.until(ctx, "the final ACKs are on the wire", func() (bool, error) {
		return wire.Held() == len(late), nil
	})
	if err != nil {
		return nil, nil, err
	}
	env.Logf("%s[%d] has %d connections to %s, the handshakes of %d of which end at the same moment",
		client.Comm, client.PID, len(punctual)+len(late), to, len(late))
	return punctual, late, wire.open()
}

// untilReset has the client read on each connection, which must be reset.
func untilReset(ctx context.Context, env *Env, client *Process, conns []connected) error {
	var results []exchanged
	args := exchangeArgs{FDs: descriptors(conns), Read: 1, Within: env.Patience}
	if err := client.call(ctx, "exchange", args, &results); err != nil {
		return err
	}
	for i, r := range results {
		if err := mustErrno(fmt.Sprintf("reading on the connection from %s", conns[i].Local), r.Errno, unix.ECONNRESET); err != nil {
			return err
		}
	}
	return client.call(ctx, "close", closeArgs{FDs: descriptors(conns)}, nil)
}
