package lab

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Options scale a case. Zero values mean the defaults given here.
type Options struct {
	// Logf tells what is happening, one line a call. Default: nobody is told.
	Logf func(format string, args ...any)

	// Patience is how long a case waits for something that is sure to come,
	// before it fails (60 s). Machines without hardware virtualisation need
	// much of it; others lose nothing.
	Patience time.Duration

	Limit      int           // A: connections that the server holds at most (16)
	Reconnects int           // A: connections refused beyond that (57)
	Interval   time.Duration // A: between two of them (5 ms)

	Pool      int           // B: connections to each backend instance (36)
	CloseWait time.Duration // B: how long they stay in CLOSE_WAIT before Run returns (0)

	Backlog int // C, D, E: the listener's backlog argument, at least 2 (16)

	Hold      time.Duration // J, N: how long what is stuck stays so, at least (3 s)
	LateAfter time.Duration // N-accept: how late the server accepts (1 s)

	Silence time.Duration // I: how long peers say nothing, at least (3 s)
	Backoff time.Duration // I-backoff: how long data goes unacknowledged, at least (3 s)
}

// Env is where a case happens: its namespaces and processes. It is used for
// one case, once, and not concurrently.
type Env struct {
	Options
	NS *Namespace // where the traffic is; the servers' side if there are two

	client    *Namespace // the clients' side, see twoHosts
	processes []*Process
	closers   []func() error
	stage     any                 // what Prepare leaves to Run
	before    map[uint32]Counters // at the beginning of Run
}

// NewEnv makes the surroundings for one case. The caller closes them.
func NewEnv(o Options) (*Env, error) {
	if o.Logf == nil {
		o.Logf = func(string, ...any) {}
	}
	o.Patience = cmp.Or(o.Patience, time.Minute)
	o.Limit = cmp.Or(o.Limit, 16)
	o.Reconnects = cmp.Or(o.Reconnects, 57)
	o.Interval = cmp.Or(o.Interval, 5*time.Millisecond)
	o.Pool = cmp.Or(o.Pool, 36)
	o.Backlog = cmp.Or(o.Backlog, 16)
	o.Silence = cmp.Or(o.Silence, 3*time.Second)
	o.Backoff = cmp.Or(o.Backoff, 3*time.Second)
	o.Hold = cmp.Or(o.Hold, 3*time.Second)
	o.LateAfter = cmp.Or(o.LateAfter, time.Second)
	if o.Limit < 1 || o.Reconnects < 1 || o.Pool < 1 || o.Backlog < 2 {
		return nil, fmt.Errorf("a case needs at least 1 connection of each kind and a backlog of 2: %d, %d, %d, %d",
			o.Limit, o.Reconnects, o.Pool, o.Backlog)
	}
	ns, err := NewNamespace()
	if err != nil {
		return nil, err
	}
	return &Env{Options: o, NS: ns}, nil
}

// Namespaces returns all the namespaces of the case, NS first. They are known
// once Prepare has returned.
func (e *Env) Namespaces() []*Namespace {
	if e.client == nil {
		return []*Namespace{e.NS}
	}
	return []*Namespace{e.NS, e.client}
}

// Close ends the processes of the case, with whatever they left standing, and
// lets go of the namespaces.
func (e *Env) Close() error {
	e.stop()
	var errs []error
	for i := len(e.closers) - 1; i >= 0; i-- {
		errs = append(errs, e.closers[i]())
	}
	for _, n := range e.Namespaces() {
		errs = append(errs, n.Close())
	}
	return errors.Join(errs...)
}

// stop ends the processes, the last one started (a client, as a rule) first.
func (e *Env) stop() {
	for i := len(e.processes) - 1; i >= 0; i-- {
		e.processes[i].Stop()
	}
}

// onClose has fn called by Close, after the processes have ended.
func (e *Env) onClose(fn func() error) { e.closers = append(e.closers, fn) }

// start starts a participant that lives until Close.
func (e *Env) start(in *Namespace, comm string) (*Process, error) {
	// Far more than a case takes: this is for a starter that hangs.
	p, err := in.Start(comm, 10*e.Patience)
	if err != nil {
		return nil, err
	}
	e.processes = append(e.processes, p)
	return p, nil
}

func (p *Process) party() Party { return Party{PID: p.PID, Comm: p.Comm} }

func (e *Env) counters() (map[uint32]Counters, error) {
	all := make(map[uint32]Counters)
	for _, n := range e.Namespaces() {
		c, err := n.Counters()
		if err != nil {
			return nil, err
		}
		all[n.inode] = c
	}
	return all, nil
}

// until waits for a condition that is sure to come.
func (e *Env) until(ctx context.Context, what string, holds func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, e.Patience)
	defer cancel()
	pause := time.Millisecond
	for {
		ok, err := holds()
		if err != nil {
			return fmt.Errorf("waiting until %s: %w", what, err)
		}
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting until %s: %w", what, ctx.Err())
		case <-time.After(pause):
			pause = min(2*pause, 50*time.Millisecond)
		}
	}
}

// untilCounter waits until a counter of NS has grown by at least n since the
// beginning of Run.
func (e *Env) untilCounter(ctx context.Context, name string, n uint64) error {
	return e.until(ctx, fmt.Sprintf("%s has grown by %d", name, n), func() (bool, error) {
		now, err := e.NS.Counters()
		return err == nil && now[name]-e.before[e.NS.inode][name] >= n, err
	})
}

// hostSysctl sets a sysctl of the whole machine, and returns what puts it back;
// so does Close, at the latest. Only a case with a HostSetting may do this.
func (e *Env) hostSysctl(name, value string) (restore func() error, err error) {
	path := filepath.Join("/proc/sys", strings.ReplaceAll(name, ".", "/"))
	old, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	set := func(value []byte) error {
		if err := os.WriteFile(path, value, 0o644); err != nil {
			return fmt.Errorf("setting %s: %w", name, err)
		}
		return nil
	}
	if err := set([]byte(value)); err != nil {
		return nil, err
	}
	e.Logf("%s is %s for a moment, for the whole machine", name, value)
	restore = sync.OnceValue(func() error { return set(bytes.TrimSpace(old)) })
	e.onClose(restore)
	return restore, nil
}

// sleep waits for d.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// runningServer is a server in a participant.
type runningServer struct {
	*Process
	id   int
	Addr netip.AddrPort
}

// serve starts a participant with one server.
func (e *Env) serve(ctx context.Context, comm string, spec serverSpec) (*runningServer, error) {
	p, err := e.start(e.NS, comm)
	if err != nil {
		return nil, err
	}
	var s served
	if err := p.call(ctx, "serve", spec, &s); err != nil {
		return nil, err
	}
	e.Logf("%s[%d] listens on %s, backlog %d", comm, p.PID, s.Addr, spec.Backlog)
	return &runningServer{Process: p, id: s.Server, Addr: s.Addr}, nil
}

func (s *runningServer) stats(ctx context.Context) (serverStats, error) {
	var st serverStats
	err := s.call(ctx, "serving", s.id, &st)
	return st, err
}

func (s *runningServer) accepting(ctx context.Context, on bool) error {
	return s.call(ctx, "accepting", acceptingArgs{Server: s.id, On: on}, nil)
}

// acceptAll has the server accept, and waits until it has accepted n
// connections in all.
func (e *Env) acceptAll(ctx context.Context, s *runningServer, n int) error {
	if err := s.accepting(ctx, true); err != nil {
		return err
	}
	return e.untilServed(ctx, s, "the server has accepted all", func(st serverStats) bool {
		return st.Accepted == n
	})
}

// untilServed waits until the server's statistics fulfil a condition.
func (e *Env) untilServed(ctx context.Context, s *runningServer, what string, holds func(serverStats) bool) error {
	return e.until(ctx, what, func() (bool, error) {
		st, err := s.stats(ctx)
		return err == nil && holds(st), err
	})
}

// open opens n connections, all of which must succeed.
func (e *Env) open(ctx context.Context, p *Process, args connectArgs) ([]connected, error) {
	if args.Within == 0 {
		args.Within = e.Patience
	}
	var conns []connected
	if err := p.call(ctx, "connect", args, &conns); err != nil {
		return nil, err
	}
	for _, c := range conns {
		if c.Errno != 0 {
			return nil, fmt.Errorf("%s[%d]: connecting to %s: %w", p.Comm, p.PID, args.To, c.Errno)
		}
	}
	return conns, nil
}

// descriptors returns the connections' names for further calls.
func descriptors(conns []connected) []int {
	fds := make([]int, len(conns))
	for i, c := range conns {
		fds[i] = c.FD
	}
	return fds
}

// talk writes on every connection and reads the given number of bytes (-1:
// until the peer's FIN) from every one, all of which must succeed.
func (e *Env) talk(ctx context.Context, p *Process, args exchangeArgs) error {
	if args.Within == 0 {
		args.Within = e.Patience
	}
	var results []exchanged
	if err := p.call(ctx, "exchange", args, &results); err != nil {
		return err
	}
	for _, r := range results {
		if r.Errno != 0 {
			return fmt.Errorf("%s[%d]: exchanging data: %w", p.Comm, p.PID, r.Errno)
		}
	}
	return nil
}

// untilState waits until the kernel has all of a process's connections in
// one state.
func (e *Env) untilState(ctx context.Context, p *Process, fds []int, state tcpState, what string) error {
	return e.until(ctx, what, func() (bool, error) {
		var states []tcpState
		if err := p.call(ctx, "states", fds, &states); err != nil {
			return false, err
		}
		for _, s := range states {
			if s != state {
				return false, nil
			}
		}
		return true, nil
	})
}

// mustErrno is an error unless errno is the one that the case turns on.
func mustErrno(doing string, errno, want unix.Errno) error {
	if errno == want {
		return nil
	}
	if errno == 0 {
		return fmt.Errorf("%s succeeded instead of failing with %w", doing, want)
	}
	return fmt.Errorf("%s: %w instead of %w", doing, errno, want)
}
