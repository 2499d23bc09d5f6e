package lab

import (
	"context"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Case H: a service cannot bind to its port.
var bindConflictCases = []Case{
	{
		ID:    "H",
		Title: "the service's port is taken by a client connection",
		Story: "A service binds to its fixed port 9001, which some client connection got as its ephemeral port, " +
			"since it lies in net.ipv4.ip_local_port_range. It is started again, and fails again.",
		Prepare: prepareRange(ephemeralPorts, "2"),
		Run:     run(takenByClient),
	},
	{
		ID:    "H-listener",
		Title: "the service's port is taken by another service",
		Story: "Another service listens on the port already.",
		Run:   run(takenByListener),
	},
	{
		ID:    "H-listen",
		Title: "listen() finds the port taken",
		Story: "Two services bind to the port with SO_REUSEADDR, which the kernel allows; the second one that " +
			"listens fails.",
		Run: run(takenAtListen),
	},
	{
		ID:    "H-timewait",
		Title: "a restart without SO_REUSEADDR",
		Story: "A service that does not set SO_REUSEADDR is restarted; the connections that it closed are in " +
			"TIME_WAIT on its port, and keep it for a minute.",
		Run: run(takenByTimeWait),
	},
	{
		ID:    "H-bound",
		Title: "the service's port is taken by a socket that does nothing",
		Story: "A process has bound a socket to the port, and neither listens nor connects: no list of sockets shows it.",
		Run:   run(takenByBound),
	},
	{
		ID:    "H-healthy",
		Title: "services that get their ports",
		Story: "The same traffic as case H, with the port in net.ipv4.ip_local_reserved_ports; a restart with " +
			"SO_REUSEADDR over TIME_WAITs, two processes with SO_REUSEPORT, and a bind to any port.",
		Prepare: func(ctx context.Context, env *Env) error {
			if err := env.NS.Sysctl("net.ipv4.ip_local_reserved_ports", fmt.Sprint(servicePort)); err != nil {
				return err
			}
			return prepareRange(ephemeralPorts, "2")(ctx, env)
		},
		Run: run(bindsSucceed),
	},
}

const (
	ephemeralPorts = "9000 9007"
	ephemerals     = 8 // how many these are
	servicePort    = 9001
)

var serviceAddr = netip.AddrPortFrom(netip.IPv4Unspecified(), servicePort)

// tryBind has a process of its own bind and listen, as a service does when it
// starts.
func (e *Env) tryBind(ctx context.Context, comm string, args bindArgs) (*Process, bound, error) {
	p, err := e.start(e.NS, comm)
	if err != nil {
		return nil, bound{}, err
	}
	var b bound
	return p, b, p.call(ctx, "bind", args, &b)
}

// mustNotBind starts the service n times, each of which must fail with
// EADDRINUSE, and returns the last process.
func (e *Env) mustNotBind(ctx context.Context, n int, args bindArgs) (Party, error) {
	var last Party
	for range n {
		p, b, err := e.tryBind(ctx, "api-server", args)
		if err != nil {
			return Party{}, err
		}
		if err := mustErrno(fmt.Sprintf("binding to %s", args.Addr), b.Errno, unix.EADDRINUSE); err != nil {
			return Party{}, err
		}
		e.Logf("%s[%d]: %s() on %s: %s", p.Comm, p.PID, b.Failed, args.Addr, b.Errno)
		last = p.party()
		p.Stop()
	}
	return last, nil
}

// mustBind is for the services that start.
func (e *Env) mustBind(ctx context.Context, comm string, args bindArgs) (*Process, bound, error) {
	p, b, err := e.tryBind(ctx, comm, args)
	if err == nil && b.Errno != 0 {
		err = fmt.Errorf("%s[%d]: %s() on %s: %w", p.Comm, p.PID, b.Failed, args.Addr, b.Errno)
	}
	return p, b, err
}

func takenByClient(ctx context.Context, env *Env, t *Truth) error {
	db, err := env.serve(ctx, "database", echoAt("127.0.0.1:5432"))
	if err != nil {
		return err
	}
	client, err := env.start(env.NS, "pool-client")
	if err != nil {
		return err
	}
	conns, err := env.open(ctx, client, connectArgs{To: db.Addr, N: ephemerals})
	if err != nil {
		return err
	}
	if err := env.talk(ctx, client, exchangeArgs{FDs: descriptors(conns), Write: "hello", Read: 5}); err != nil {
		return err
	}
	holder, err := connectionFrom(conns, servicePort)
	if err != nil {
		return err
	}
	env.Logf("%s[%d] has a connection from %s to %s", client.Comm, client.PID, holder, db.Addr)
	const starts = 2
	failed, err := env.mustNotBind(ctx, starts, bindArgs{Addr: serviceAddr, ReuseAddr: true, Listen: true})
	if err != nil {
		return err
	}
	t.Listener, t.Server, t.Client = serviceAddr, failed, client.party()
	t.Expect = []Expectation{{
		Code: "bind-conflict", Listener: serviceAddr, Process: failed, Count: starts,
		Facts: map[string]any{
			"port": servicePort, "holder_pid": client.PID, "holder_comm": client.Comm, "holder_state": "ESTABLISHED",
			"holder_remote": db.Addr, "ephemeral": true,
		},
	}}
	t.Known["Tcp.ActiveOpens"] = ephemerals
	t.Known["Tcp.PassiveOpens"] = ephemerals
	return nil
}

// connectionFrom finds the connection with this local port.
func connectionFrom(conns []connected, port uint16) (netip.AddrPort, error) {
	for _, c := range conns {
		if c.Local.Port() == port {
			return c.Local, nil
		}
	}
	return netip.AddrPort{}, fmt.Errorf("no connection got port %d", port)
}

func takenByListener(ctx context.Context, env *Env, t *Truth) error {
	other, err := env.serve(ctx, "old-server", echoAt("127.0.0.1:9001"))
	if err != nil {
		return err
	}
	failed, err := env.mustNotBind(ctx, 1, bindArgs{Addr: serviceAddr, ReuseAddr: true, Listen: true})
	if err != nil {
		return err
	}
	t.Listener, t.Server, t.Client = serviceAddr, failed, other.party()
	t.Expect = []Expectation{{
		Code: "bind-conflict", Listener: serviceAddr, Process: failed, Count: 1,
		Facts: map[string]any{"holder_pid": other.PID, "holder_comm": other.Comm, "holder_state": "LISTEN", "holder_remote": nil, "ephemeral": false},
	}}
	t.Known["Tcp.ActiveOpens"] = 0
	t.Known["Tcp.PassiveOpens"] = 0
	return nil
}

func takenAtListen(ctx context.Context, env *Env, t *Truth) error {
	args := bindArgs{Addr: serviceAddr, ReuseAddr: true}
	other, first, err := env.mustBind(ctx, "old-server", args)
	if err != nil {
		return err
	}
	failed, second, err := env.mustBind(ctx, "api-server", args)
	if err != nil {
		return err
	}
	var errno unix.Errno
	if err := other.call(ctx, "listen", first.FD, &errno); err != nil {
		return err
	}
	if errno != 0 {
		return fmt.Errorf("%s[%d]: listening on %s: %w", other.Comm, other.PID, serviceAddr, errno)
	}
	if err := failed.call(ctx, "listen", second.FD, &errno); err != nil {
		return err
	}
	if err := mustErrno(fmt.Sprintf("listening on %s", serviceAddr), errno, unix.EADDRINUSE); err != nil {
		return err
	}
	env.Logf("%s[%d]: listen() on %s: %s", failed.Comm, failed.PID, serviceAddr, errno)
	t.Listener, t.Server, t.Client = serviceAddr, failed.party(), other.party()
	t.Expect = []Expectation{{
		Code: "bind-conflict", Listener: serviceAddr, Process: failed.party(), Count: 1,
		Facts: map[string]any{
			"call": "listen", "holder_pid": other.PID, "holder_comm": other.Comm, "holder_state": "LISTEN", "ephemeral": false,
		},
	}}
	t.Known["Tcp.ActiveOpens"] = 0
	return nil
}

// serveAndRetire leaves TIME_WAITs on a service's port: it answers a few
// requests, closing first, and ends.
func (e *Env) serveAndRetire(ctx context.Context, spec serverSpec) (clients *Process, err error) {
	spec.Addr, spec.Backlog, spec.Accept, spec.OnData = serviceAddr, 511, true, answerClose
	srv, err := e.serve(ctx, "api-server", spec)
	if err != nil {
		return nil, err
	}
	client, err := e.start(e.NS, "http-client")
	if err != nil {
		return nil, err
	}
	to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), servicePort)
	conns, err := e.open(ctx, client, connectArgs{To: to, N: failures})
	if err != nil {
		return nil, err
	}
	if err := e.talk(ctx, client, exchangeArgs{FDs: descriptors(conns), Write: "GET / HTTP/1.0\r\n\r\n", Read: -1}); err != nil {
		return nil, err
	}
	if err := client.call(ctx, "close", closeArgs{FDs: descriptors(conns)}, nil); err != nil {
		return nil, err
	}
	if err := e.untilTimeWait(ctx, srv, failures, failures); err != nil {
		return nil, err
	}
	if err := srv.call(ctx, "retire", srv.id, nil); err != nil {
		return nil, err
	}
	srv.Stop()
	e.Logf("%s[%d] has ended; %d of its connections are in TIME_WAIT", srv.Comm, srv.PID, failures)
	return client, nil
}

func takenByTimeWait(ctx context.Context, env *Env, t *Truth) error {
	client, err := env.serveAndRetire(ctx, serverSpec{NoReuseAddr: true})
	if err != nil {
		return err
	}
	failed, err := env.mustNotBind(ctx, 1, bindArgs{Addr: serviceAddr, Listen: true})
	if err != nil {
		return err
	}
	t.Listener, t.Server, t.Client = serviceAddr, failed, client.party()
	t.Expect = []Expectation{{
		Code: "bind-conflict", Listener: serviceAddr, Process: failed, Count: 1,
		Facts: map[string]any{"holder_pid": nil, "holder_state": "TIME_WAIT", "ephemeral": false},
	}}
	t.Known["Tcp.ActiveOpens"] = failures
	t.Known["Tcp.PassiveOpens"] = failures
	return nil
}

func takenByBound(ctx context.Context, env *Env, t *Truth) error {
	holder, _, err := env.mustBind(ctx, "idle-holder", bindArgs{Addr: serviceAddr})
	if err != nil {
		return err
	}
	failed, err := env.mustNotBind(ctx, 1, bindArgs{Addr: serviceAddr, ReuseAddr: true, Listen: true})
	if err != nil {
		return err
	}
	t.Listener, t.Server, t.Client = serviceAddr, failed, holder.party()
	t.Expect = []Expectation{{
		Code: "bind-conflict", Listener: serviceAddr, Process: failed, Count: 1,
		Facts: map[string]any{"holder_pid": nil, "holder_state": nil, "ephemeral": nil},
	}}
	t.Known["Tcp.ActiveOpens"] = 0
	return nil
}

func bindsSucceed(ctx context.Context, env *Env, t *Truth) error {
	db, err := env.serve(ctx, "database", echoAt("127.0.0.1:5432"))
	if err != nil {
		return err
	}
	client, err := env.start(env.NS, "pool-client")
	if err != nil {
		return err
	}
	const free = ephemerals - 1 - failures // some are for serveAndRetire
	conns, err := env.open(ctx, client, connectArgs{To: db.Addr, N: free})
	if err != nil {
		return err
	}
	if err := env.talk(ctx, client, exchangeArgs{FDs: descriptors(conns), Write: "hello", Read: 5}); err != nil {
		return err
	}
	if _, err := env.serveAndRetire(ctx, serverSpec{}); err != nil {
		return err
	}
	p, _, err := env.mustBind(ctx, "api-server", bindArgs{Addr: serviceAddr, ReuseAddr: true, Listen: true})
	if err != nil {
		return err
	}
	for range 2 {
		shared := netip.AddrPortFrom(netip.IPv4Unspecified(), 9100)
		if _, _, err := env.mustBind(ctx, "worker", bindArgs{Addr: shared, ReusePort: true, Listen: true}); err != nil {
			return err
		}
	}
	_, b, err := env.mustBind(ctx, "any-port", bindArgs{Addr: netip.AddrPortFrom(netip.IPv4Unspecified(), 0), Listen: true})
	if err != nil {
		return err
	}
	env.Logf("%s[%d] listens on %s, another on %s", p.Comm, p.PID, serviceAddr, b.Addr)
	t.Known["Tcp.ActiveOpens"] = free + failures
	t.Known["Tcp.PassiveOpens"] = free + failures
	return nil
}
