package lab

import (
	"bufio"
	"context"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Case G: TIME_WAIT in masses and the local ports that run out. A range of a
// few ports makes a few connections enough.
var portCases = []Case{
	{
		ID:    "G",
		Title: "a short connection for each request, until the ports run out",
		Story: "A proxy opens a connection to its backend for each request and closes it first. Its TIME_WAITs " +
			"fill net.ipv4.ip_local_port_range (40 ports here), and connect() fails: cannot assign requested address.",
		Prepare: prepareRange(narrowPorts, "0"),
		Run:     run(portsRunOut),
	},
	{
		ID:    "G-reuse",
		Title: "TIME_WAIT in masses that does no harm",
		Story: "As case G, where net.ipv4.tcp_tw_reuse is 2 (the default): on loopback the kernel gives a port " +
			"in TIME_WAIT away again after a second, so that every connect() succeeds.",
		Prepare: prepareRange(narrowPorts, "2"),
		Run:     run(portsAreReused),
	},
	{
		ID:    "G-bind",
		Title: "bind() finds no free port",
		Story: "A client binds to an address before it connects. Its open connections hold every port of " +
			"net.ipv4.ip_local_port_range, and bind() fails: address already in use.",
		Prepare: prepareRange(narrowPorts, "0"),
		Run:     run(bindFindsNoPort),
	},
	{
		ID:    "G-buckets",
		Title: "more TIME_WAIT than the kernel keeps",
		Story: "A client closes first, on more connections than net.ipv4.tcp_max_tw_buckets (16 here) allows in " +
			"TIME_WAIT; the kernel destroys the rest at once.",
		Prepare: func(_ context.Context, env *Env) error {
			return env.NS.Sysctl("net.ipv4.tcp_max_tw_buckets", strconv.Itoa(timeWaitBuckets))
		},
		Run: run(bucketsOverflow),
	},
	{
		ID:    "G-healthy",
		Title: "requests that leave the ports alone",
		Story: "With the same 40 ports: a client that keeps its connection open for all its requests, one whose " +
			"server closes first, a few connections that end in TIME_WAIT here, and calls that fail for other reasons.",
		Prepare: prepareRange(narrowPorts, "0"),
		Run:     run(portsSuffice),
	},
}

const (
	// narrow is how many ports narrowPorts holds.
	narrow          = 40
	narrowPorts     = "20000 20039"
	timeWaitBuckets = 16
)

// prepareRange sets what a tracer reads when it first sees the namespace.
func prepareRange(ports, reuse string) func(context.Context, *Env) error {
	return func(_ context.Context, env *Env) error {
		if err := env.NS.Sysctl("net.ipv4.ip_local_port_range", ports); err != nil {
			return err
		}
		return env.NS.Sysctl("net.ipv4.tcp_tw_reuse", reuse)
	}
}

// proxied starts a backend and a proxy in front of it.
func proxied(ctx context.Context, env *Env, t *Truth, spec serverSpec) (*runningServer, *Process, error) {
	srv, err := env.serve(ctx, "backend", spec)
	if err != nil {
		return nil, nil, err
	}
	client, err := env.start(env.NS, "proxy")
	if err != nil {
		return nil, nil, err
	}
	t.Listener, t.Server, t.Client = srv.Addr, srv.party(), client.party()
	return srv, client, nil
}

func echoAt(addr string) serverSpec {
	return serverSpec{Addr: netip.MustParseAddrPort(addr), Backlog: 511, Accept: true, OnData: echoData}
}

// requests makes n short connections, all of which must succeed.
func (e *Env) requests(ctx context.Context, p *Process, args shortArgs) error {
	made, err := e.short(ctx, p, args)
	if err != nil {
		return err
	}
	for _, s := range made {
		if s.Errno != 0 {
			return fmt.Errorf("%s[%d]: %s: %w", p.Comm, p.PID, s.Failed, s.Errno)
		}
	}
	return nil
}

func (e *Env) short(ctx context.Context, p *Process, args shortArgs) ([]shortLived, error) {
	args.Within, args.Write = e.Patience, "request"
	var made []shortLived
	return made, p.call(ctx, "short", args, &made)
}

// mustFail makes connections that must fail in the given call.
func (e *Env) mustFail(ctx context.Context, p *Process, args shortArgs, call string, errno unix.Errno) error {
	made, err := e.short(ctx, p, args)
	if err != nil {
		return err
	}
	for _, s := range made {
		if s.Failed != "" && s.Failed != call {
			return fmt.Errorf("%s() failed instead of %s(): %w", s.Failed, call, s.Errno)
		}
		if err := mustErrno(call+"()", s.Errno, errno); err != nil {
			return err
		}
	}
	e.Logf("%s[%d]: %s() to %s failed %d times: %s", p.Comm, p.PID, call, args.To, len(made), errno)
	return nil
}

// timeWaits is how many TIME_WAIT sockets there are in NS. Orphans in
// FIN_WAIT2 are among them.
func (e *Env) timeWaits() (int, error) {
	n := -1
	err := e.NS.Do(func() error {
		f, err := os.Open("/proc/thread-self/net/sockstat")
		if err != nil {
			return err
		}
		defer f.Close()
		for lines := bufio.NewScanner(f); lines.Scan(); {
			w := strings.Fields(lines.Text())
			if len(w) == 0 || w[0] != "TCP:" {
				continue
			}
			for i := 1; i+1 < len(w); i += 2 {
				if w[i] == "tw" {
					n, err = strconv.Atoi(w[i+1])
					return err
				}
			}
		}
		return nil
	})
	if err == nil && n < 0 {
		err = fmt.Errorf("sockstat does not tell how many there are")
	}
	if err != nil {
		return 0, fmt.Errorf("counting TIME_WAIT: %w", err)
	}
	return n, nil
}

// untilTimeWait waits until both ends have closed n connections, of which so
// many are in TIME_WAIT.
func (e *Env) untilTimeWait(ctx context.Context, srv *runningServer, closed, n int) error {
	if err := e.untilServed(ctx, srv, "the server has closed", func(st serverStats) bool {
		return st.Closed == closed
	}); err != nil {
		return err
	}
	return e.until(ctx, fmt.Sprintf("%d sockets are in TIME_WAIT", n), func() (bool, error) {
		now, err := e.timeWaits()
		return err == nil && now == n, err
	})
}

func portsRunOut(ctx context.Context, env *Env, t *Truth) error {
	srv, client, err := proxied(ctx, env, t, echoAt("127.0.0.1:9000"))
	if err != nil {
		return err
	}
	if err := env.requests(ctx, client, shortArgs{To: srv.Addr, N: narrow}); err != nil {
		return err
	}
	if err := env.untilTimeWait(ctx, srv, narrow, narrow); err != nil {
		return err
	}
	env.Logf("%s[%d]: %d short connections to %s, all in TIME_WAIT now", client.Comm, client.PID, narrow, srv.Addr)
	if err := env.mustFail(ctx, client, shortArgs{To: srv.Addr, N: failures}, "connect", unix.EADDRNOTAVAIL); err != nil {
		return err
	}
	t.Expect = []Expectation{
		{
			Code: "time-wait-pileup", Listener: srv.Addr, Process: client.party(), Count: narrow,
			Facts: map[string]any{"count": narrow, "share": 1, "closer": "local", "range": "20000-20039", "tw_reuse": 0},
		},
		{
			Code: "port-exhaustion", Listener: srv.Addr, Process: client.party(), Count: failures,
			Facts: map[string]any{"in_use": narrow, "time_wait": narrow, "range": "20000-20039", "tw_reuse": 0},
		},
	}
	t.Known["Tcp.ActiveOpens"] = narrow
	t.Known["Tcp.PassiveOpens"] = narrow
	t.Known["Tcp.AttemptFails"] = 0
	t.Known["TcpExt.TCPTimeWaitOverflow"] = 0
	return nil
}

func portsAreReused(ctx context.Context, env *Env, t *Truth) error {
	srv, client, err := proxied(ctx, env, t, echoAt("127.0.0.1:9000"))
	if err != nil {
		return err
	}
	made := 0
	request := func(n int) error {
		if err := env.requests(ctx, client, shortArgs{To: srv.Addr, N: n}); err != nil {
			return err
		}
		made += n
		return env.untilServed(ctx, srv, "the server has closed", func(st serverStats) bool { return st.Closed == made })
	}
	if err := request(narrow); err != nil {
		return err
	}
	// A machine that takes more than a second for that has used some ports twice.
	if err := env.until(ctx, "most ports are in TIME_WAIT", func() (bool, error) {
		n, err := env.timeWaits()
		if err != nil || n > narrow*3/4 {
			return true, err
		}
		return false, request(narrow / 8)
	}); err != nil {
		return err
	}
	// The kernel compares whole seconds.
	if err := sleep(ctx, 2500*time.Millisecond); err != nil {
		return err
	}
	if err := request(narrow); err != nil {
		return err
	}
	t.Expect = []Expectation{{
		Code: "time-wait-pileup", Listener: srv.Addr, Process: client.party(), Facts: map[string]any{"tw_reuse": 2},
	}}
	t.Known["Tcp.ActiveOpens"] = uint64(made)
	t.Known["Tcp.PassiveOpens"] = uint64(made)
	t.AtLeast["TcpExt.TWRecycled"] = uint64(made - narrow)
	return nil
}

func bindFindsNoPort(ctx context.Context, env *Env, t *Truth) error {
	srv, client, err := proxied(ctx, env, t, echoAt("127.0.0.1:9000"))
	if err != nil {
		return err
	}
	from := netip.MustParseAddr("127.0.0.1")
	conns, err := env.open(ctx, client, connectArgs{To: srv.Addr, From: from, N: narrow})
	if err != nil {
		return err
	}
	if err := env.talk(ctx, client, exchangeArgs{FDs: descriptors(conns), Write: "hello", Read: 5}); err != nil {
		return err
	}
	if err := env.mustFail(ctx, client, shortArgs{To: srv.Addr, From: from, N: failures}, "bind", unix.EADDRINUSE); err != nil {
		return err
	}
	t.Expect = []Expectation{{
		Code: "port-exhaustion", Process: client.party(), Count: failures,
		Facts: map[string]any{"destination": nil, "in_use": narrow, "time_wait": 0, "call": "bind"},
	}}
	t.Known["Tcp.ActiveOpens"] = narrow
	t.Known["Tcp.PassiveOpens"] = narrow
	return nil
}

func bucketsOverflow(ctx context.Context, env *Env, t *Truth) error {
	const beyond = 8
	srv, client, err := proxied(ctx, env, t, echoAt("127.0.0.1:9000"))
	if err != nil {
		return err
	}
	// With shutdown() first, TIME_WAIT begins when all is said. An orphan in
	// FIN_WAIT2 needs the same kind of socket, and where there is none the
	// peer's FIN is answered by RST.
	if err := env.requests(ctx, client, shortArgs{To: srv.Addr, N: timeWaitBuckets + beyond, Shut: true}); err != nil {
		return err
	}
	if err := env.untilTimeWait(ctx, srv, timeWaitBuckets+beyond, timeWaitBuckets); err != nil {
		return err
	}
	t.Expect = []Expectation{{
		Code: "time-wait-pileup", Process: client.party(),
		Facts: map[string]any{"count": timeWaitBuckets, "limit": timeWaitBuckets, "destination": nil},
	}}
	t.Known["Tcp.ActiveOpens"] = timeWaitBuckets + beyond
	t.Known["TcpExt.TCPTimeWaitOverflow"] = beyond
	return nil
}

func portsSuffice(ctx context.Context, env *Env, t *Truth) error {
	const few, many = narrow / 4, narrow * 3 / 2
	srv, client, err := proxied(ctx, env, t, echoAt("127.0.0.1:9000"))
	if err != nil {
		return err
	}
	conns, err := env.open(ctx, client, connectArgs{To: srv.Addr, N: 1})
	if err != nil {
		return err
	}
	for range many {
		if err := env.talk(ctx, client, exchangeArgs{FDs: descriptors(conns), Write: "request", Read: len("request")}); err != nil {
			return err
		}
	}
	if err := env.requests(ctx, client, shortArgs{To: srv.Addr, N: few}); err != nil {
		return err
	}
	if err := env.untilTimeWait(ctx, srv, few, few); err != nil {
		return err
	}
	// Calls that fail as early while ports are free: no route, no such address
	// here.
	nowhere := netip.MustParseAddrPort("198.18.0.9:80")
	for _, f := range []struct {
		args  shortArgs
		call  string
		errno unix.Errno
	}{
		{shortArgs{To: nowhere, N: 1}, "connect", unix.ENETUNREACH},
		{shortArgs{To: srv.Addr, From: nowhere.Addr(), N: 1}, "bind", unix.EADDRNOTAVAIL},
	} {
		if err := env.mustFail(ctx, client, f.args, f.call, f.errno); err != nil {
			return err
		}
	}
	// A server that closes first keeps the TIME_WAITs on its own port, where
	// they take none of this range.
	web, err := env.serve(ctx, "http-server", serverSpec{
		Addr: netip.MustParseAddrPort("127.0.0.1:9080"), Backlog: 511, Accept: true, OnData: answerClose,
	})
	if err != nil {
		return err
	}
	var loops []looped
	if err := client.call(ctx, "loop", loopArgs{
		To: web.Addr, N: many, Interval: time.Millisecond, Write: "GET / HTTP/1.0\r\n\r\n", Within: env.Patience,
	}, &loops); err != nil {
		return err
	}
	for _, l := range loops {
		if l.Errno != 0 {
			return fmt.Errorf("%s[%d]: a request: %w", client.Comm, client.PID, l.Errno)
		}
	}
	// Where a client comes again from the same port, the new connection takes the
	// place of the one in TIME_WAIT.
	if err := env.until(ctx, "the TIME_WAITs of both outnumber half the ports", func() (bool, error) {
		n, err := env.timeWaits()
		return err == nil && n > narrow/2, err
	}); err != nil {
		return err
	}
	t.Known["Tcp.ActiveOpens"] = 1 + few + many
	t.Known["Tcp.PassiveOpens"] = 1 + few + many
	return nil
}
