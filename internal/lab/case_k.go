package lab

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/google/nftables/expr"
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
		ID:    "K-port-closed",
		Title: "SYNs for a port where nobody listens",
		Story: "Several other hosts send SYNs to a port of this host where nobody listens; each is answered by RST.",

		NeedsTUN: true,
		Run:      run(knockedAtClosedPort),
	},
	{
		ID:       "K-port-closed-address",
		Title:    "a service that listens on another address",
		Story:    "Other hosts send SYNs to a port whose service listens on 127.0.0.1 only.",
		NeedsTUN: true,
		Run:      run(knockedAtOtherAddress),
	},
	{
		ID:    "K-port-closed-restart",
		Title: "connects while a server restarts",
		Story: "A server ends, clients connect and are refused, and another server begins to listen on the same port.",
		Run:   run(refusedWhileRestarting),
	},
	{
		ID:       "K-port-closed-healthy",
		Title:    "the same SYNs for a port with a listener",
		Story:    "As case K-port-closed, but there is a server.",
		NeedsTUN: true,
		Run:      run(knockedAtOpenPort),
	},
	{
		ID:    "K-local-drop",
		Title: "the firewall of this host drops the SYN",
		Story: "A client connects to a server on the same host; a rule of nftables drops the SYNs as they come in.",
		Run:   run(droppedAtInput),
	},
	{
		ID:       "K-local-drop-out",
		Title:    "the firewall of this host drops the SYN on its way out",
		Story:    "A client connects to another host; a rule of nftables on the client's own host drops the SYNs.",
		NeedsTUN: true,
		Run:      run(droppedAtOutput),
	},
	{
		ID:    "K-local-drop-data",
		Title: "a firewall rule that comes after the connection",
		Story: "Client and server are connected when a rule of nftables begins to drop what the client sends; it is " +
			"retransmitted, and arrives once the rule is gone.",
		Run: run(droppedLater),
	},
	{
		ID:       "K-local-drop-noise",
		Title:    "a firewall that keeps the internet out",
		Story:    "Many other hosts send SYNs to ports that a rule of nftables closes: what firewalls are for.",
		NeedsTUN: true,
		Run:      run(droppedNoise),
	},
	{
		ID:    "K-local-drop-route",
		Title: "SYNs from where no route leads back",
		Story: "Another host sends SYNs from an address to which this host has no route; reverse path filtering " +
			"(net.ipv4.conf.all.rp_filter) drops them.",
		NeedsTUN: true,
		Run:      run(droppedByRoute),
	},
	{
		ID:    "K-local-drop-healthy",
		Title: "a firewall that lets the traffic through",
		Story: "As case K-local-drop, but the firewall drops everything except the server's port.",
		Run:   run(firewallAccepts),
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
	t.Expect = []Expectation{
		{Code: "connect-refused", Listener: to, Process: client.party(), Count: failures},
		{Code: "port-closed", Listener: to, Count: failures},
	}
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

// callers is how many other hosts a case of this kind has.
const callers = 4

// refused has other hosts send SYNs, two each, and sees each get its RST.
func refused(ctx context.Context, net *peer.Network, to netip.AddrPort) error {
	for i := range 2 * callers {
		c := net.Conn(netip.AddrPortFrom(scriptedAddr(i%callers, false), uint16(20000+i)), to)
		if err := c.Send(peer.SYN, nil); err != nil {
			return err
		}
		if _, err := c.Expect(ctx, peer.RST); err != nil {
			return err
		}
	}
	return nil
}

func knockedAtClosedPort(ctx context.Context, env *Env, t *Truth) error {
	ctx, cancel := context.WithTimeout(ctx, env.Patience)
	defer cancel()
	net, err := env.network()
	if err != nil {
		return err
	}
	to := netip.AddrPortFrom(hostPrefix4.Addr(), 8083)
	if err := refused(ctx, net, to); err != nil {
		return err
	}
	env.Logf("%d hosts were refused at %s", callers, to)
	t.Listener = to
	t.Expect = []Expectation{{Code: "port-closed", Listener: to, Count: 2 * callers}}
	t.Known["Tcp.OutRsts"] = 2 * callers
	t.Known["Tcp.PassiveOpens"] = 0
	return nil
}

func knockedAtOtherAddress(ctx context.Context, env *Env, t *Truth) error {
	ctx, cancel := context.WithTimeout(ctx, env.Patience)
	defer cancel()
	net, err := env.network()
	if err != nil {
		return err
	}
	srv, err := env.serve(ctx, "shy-server", serverSpec{
		Addr: netip.MustParseAddrPort("127.0.0.1:8083"), Backlog: 511, Accept: true, OnData: echoData,
	})
	if err != nil {
		return err
	}
	to := netip.AddrPortFrom(hostPrefix4.Addr(), srv.Addr.Port())
	if err := refused(ctx, net, to); err != nil {
		return err
	}
	env.Logf("%d hosts were refused at %s, the server listens on %s", callers, to, srv.Addr)
	t.Listener, t.Server = srv.Addr, srv.party()
	t.Expect = []Expectation{{Code: "port-closed", Listener: to, Process: srv.party(), Count: 2 * callers}}
	t.Known["Tcp.OutRsts"] = 2 * callers
	t.Known["Tcp.PassiveOpens"] = 0
	return nil
}

func refusedWhileRestarting(ctx context.Context, env *Env, t *Truth) error {
	spec := serverSpec{Addr: netip.MustParseAddrPort("127.0.0.1:8082"), Backlog: 511, Accept: true, OnData: echoData}
	srv, err := env.serve(ctx, "old-server", spec)
	if err != nil {
		return err
	}
	client, err := env.start(env.NS, "lost-client")
	if err != nil {
		return err
	}
	if err := srv.call(ctx, "retire", srv.id, nil); err != nil {
		return err
	}
	if t.Victims, err = env.fail(ctx, client, srv.Addr, failures, unix.ECONNREFUSED); err != nil {
		return err
	}
	next, err := env.serve(ctx, "new-server", spec)
	if err != nil {
		return err
	}
	conns, err := env.open(ctx, client, connectArgs{To: srv.Addr, N: 1})
	if err != nil {
		return err
	}
	if err := env.talk(ctx, client, exchangeArgs{FDs: descriptors(conns), Write: "hello", Read: 5}); err != nil {
		return err
	}
	t.Listener, t.Server, t.Client = srv.Addr, next.party(), client.party()
	t.Expect = []Expectation{
		{Code: "connect-refused", Listener: srv.Addr, Process: client.party(), Count: failures},
		{Code: "port-closed", Listener: srv.Addr, Process: srv.party(), Count: failures},
	}
	t.Known["Tcp.ActiveOpens"] = failures + 1
	t.Known["Tcp.AttemptFails"] = failures
	t.Known["Tcp.OutRsts"] = failures
	return nil
}

func knockedAtOpenPort(ctx context.Context, env *Env, t *Truth) error {
	ctx, cancel := context.WithTimeout(ctx, env.Patience)
	defer cancel()
	net, err := env.network()
	if err != nil {
		return err
	}
	srv, err := env.serve(ctx, "open-server", serverSpec{
		Addr: netip.AddrPortFrom(netip.IPv4Unspecified(), 8083), Backlog: 511, Accept: true, OnData: echoData,
	})
	if err != nil {
		return err
	}
	conns := make([]*peer.Conn, 2*callers)
	for i := range conns {
		conns[i] = net.Conn(netip.AddrPortFrom(scriptedAddr(i%callers, false), uint16(20000+i)),
			netip.AddrPortFrom(hostPrefix4.Addr(), srv.Addr.Port()))
		if err := conns[i].Open(ctx); err != nil {
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
	t.Known["Tcp.PassiveOpens"] = 2 * callers
	t.Known["Tcp.OutRsts"] = 0
	return nil
}

// dropped is what a firewall's rules counted, as a verdict must.
func dropped(f *firewall, e Expectation) (Expectation, error) {
	n, err := f.matched()
	e.Code, e.Count = "local-drop", int(n)
	return e, err
}

func droppedAtInput(ctx context.Context, env *Env, t *Truth) error {
	if err := env.NS.Sysctl("net.ipv4.tcp_syn_retries", "1"); err != nil {
		return err
	}
	srv, err := env.serve(ctx, "walled-server", serverSpec{
		Addr: netip.MustParseAddrPort("127.0.0.1:8082"), Backlog: 511, Accept: true, OnData: echoData,
	})
	if err != nil {
		return err
	}
	fw, err := env.NS.newFirewall(hookInput, false)
	if err != nil {
		return err
	}
	if err := fw.add(destinationPort, srv.Addr.Port(), expr.VerdictDrop); err != nil {
		return err
	}
	client, err := env.start(env.NS, "walled-client")
	if err != nil {
		return err
	}
	if t.Victims, err = env.fail(ctx, client, srv.Addr, failures, unix.ETIMEDOUT); err != nil {
		return err
	}
	t.Listener, t.Server, t.Client = srv.Addr, srv.party(), client.party()
	drop, err := dropped(fw, Expectation{Listener: srv.Addr, Process: client.party()})
	if err != nil {
		return err
	}
	env.Logf("the firewall dropped %d SYNs at its input", drop.Count)
	if drop.Count < 2*failures {
		return fmt.Errorf("the firewall dropped %d SYNs, fewer than %d", drop.Count, 2*failures)
	}
	t.Expect = []Expectation{
		drop,
		{Code: "connect-timeout", Listener: srv.Addr, Process: client.party(), Count: failures},
	}
	t.Known["Tcp.ActiveOpens"] = failures
	t.Known["Tcp.AttemptFails"] = failures
	t.Known["TcpExt.TCPSynRetrans"] = uint64(drop.Count - failures)
	t.Known["Tcp.PassiveOpens"] = 0
	return nil
}

func droppedAtOutput(ctx context.Context, env *Env, t *Truth) error {
	if err := env.NS.Sysctl("net.ipv4.tcp_syn_retries", "1"); err != nil {
		return err
	}
	net, err := env.network()
	if err != nil {
		return err
	}
	to := netip.AddrPortFrom(scriptedAddr(0, false), 8082)
	fw, err := env.NS.newFirewall(hookOutput, false)
	if err != nil {
		return err
	}
	if err := fw.add(destinationPort, to.Port(), expr.VerdictDrop); err != nil {
		return err
	}
	client, err := env.start(env.NS, "walled-client")
	if err != nil {
		return err
	}
	if t.Victims, err = env.fail(ctx, client, to, failures, unix.ETIMEDOUT); err != nil {
		return err
	}
	if n := net.Unscripted(); n != 0 {
		return fmt.Errorf("%d segments got past the firewall", n)
	}
	t.Listener, t.Client = to, client.party()
	drop, err := dropped(fw, Expectation{Listener: to, Process: client.party()})
	if err != nil {
		return err
	}
	env.Logf("the firewall dropped %d SYNs at its output", drop.Count)
	if drop.Count < 2*failures {
		return fmt.Errorf("the firewall dropped %d SYNs, fewer than %d", drop.Count, 2*failures)
	}
	t.Expect = []Expectation{
		drop,
		{Code: "connect-timeout", Listener: to, Process: client.party(), Count: failures},
	}
	t.Known["Tcp.ActiveOpens"] = failures
	t.Known["Tcp.AttemptFails"] = failures
	return nil
}

func droppedLater(ctx context.Context, env *Env, t *Truth) error {
	srv, err := env.serve(ctx, "echo-server", serverSpec{
		Addr: netip.MustParseAddrPort("127.0.0.1:8082"), Backlog: 511, Accept: true, OnData: echoData,
	})
	if err != nil {
		return err
	}
	client, err := env.start(env.NS, "cut-client")
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
	fw, err := env.NS.newFirewall(hookOutput, false)
	if err != nil {
		return err
	}
	if err := fw.add(destinationPort, srv.Addr.Port(), expr.VerdictDrop); err != nil {
		return err
	}
	env.Logf("a rule of the firewall cuts %d connections", len(conns))
	if err := env.talk(ctx, client, exchangeArgs{FDs: descriptors(conns), Write: "again"}); err != nil {
		return err
	}
	if err := env.until(ctx, "the firewall has dropped data and its retransmissions", func() (bool, error) {
		n, err := fw.matched()
		return n >= 2*failures, err
	}); err != nil {
		return err
	}
	// No count is expected: what the rule drops between a look at its counter
	// and its end is told by nobody.
	if err := fw.open(); err != nil {
		return err
	}
	if err := env.talk(ctx, client, exchangeArgs{FDs: descriptors(conns), Read: 5}); err != nil {
		return err
	}
	t.Listener, t.Server, t.Client = srv.Addr, srv.party(), client.party()
	t.Expect = []Expectation{{Code: "local-drop", Listener: srv.Addr, Process: client.party()}}
	t.Known["Tcp.ActiveOpens"] = failures
	t.Known["Tcp.PassiveOpens"] = failures
	t.Known["Tcp.OutRsts"] = 0
	return nil
}

func droppedNoise(ctx context.Context, env *Env, t *Truth) error {
	net, err := env.network()
	if err != nil {
		return err
	}
	fw, err := env.NS.newFirewall(hookInput, false)
	if err != nil {
		return err
	}
	const hosts = 40
	ports := []uint16{22, 23, 445, 3389}
	for _, p := range ports {
		if err := fw.add(destinationPort, p, expr.VerdictDrop); err != nil {
			return err
		}
	}
	for i := range hosts {
		c := net.Conn(netip.AddrPortFrom(scriptedAddr(i, false), uint16(20000+i)),
			netip.AddrPortFrom(hostPrefix4.Addr(), ports[i%len(ports)]))
		if err := c.Send(peer.SYN, nil); err != nil {
			return err
		}
	}
	if err := env.until(ctx, "the firewall has dropped all SYNs", func() (bool, error) {
		n, err := fw.matched()
		return n == hosts, err
	}); err != nil {
		return err
	}
	env.Logf("the firewall dropped SYNs of %d hosts", hosts)
	drop, err := dropped(fw, Expectation{})
	if err != nil {
		return err
	}
	t.Expect = []Expectation{drop}
	t.Known["Tcp.InSegs"] = 0
	t.Known["Tcp.OutRsts"] = 0
	return nil
}

func droppedByRoute(ctx context.Context, env *Env, t *Truth) error {
	net, err := env.network()
	if err != nil {
		return err
	}
	if err := env.NS.Sysctl("net.ipv4.conf.all.rp_filter", "1"); err != nil {
		return err
	}
	// TEST-NET-3 (RFC 5737): routed nowhere in this namespace.
	from := netip.MustParseAddr("203.0.113.7")
	to := netip.AddrPortFrom(hostPrefix4.Addr(), 8082)
	for i := range uint16(callers) {
		if err := net.Conn(netip.AddrPortFrom(from, 20000+i), to).Send(peer.SYN, nil); err != nil {
			return err
		}
	}
	if err := env.untilCounter(ctx, "TcpExt.IPReversePathFilter", callers); err != nil {
		return err
	}
	env.Logf("%d SYNs from %s were dropped by reverse path filtering", callers, from)
	t.Listener = to
	t.Expect = []Expectation{{Code: "local-drop", Count: callers}}
	t.Known["TcpExt.IPReversePathFilter"] = callers
	t.Known["Tcp.InSegs"] = 0
	return nil
}

func firewallAccepts(ctx context.Context, env *Env, t *Truth) error {
	fw, err := env.NS.newFirewall(hookInput, true)
	if err != nil {
		return err
	}
	// On loopback both directions come in.
	for _, w := range []where{sourcePort, destinationPort} {
		if err := fw.add(w, 8082, expr.VerdictAccept); err != nil {
			return err
		}
	}
	if err := connectsSucceed(ctx, env, t); err != nil {
		return err
	}
	n, err := fw.matched()
	if err == nil && n < 8*failures {
		err = fmt.Errorf("only %d segments passed the firewall", n)
	}
	return err
}
