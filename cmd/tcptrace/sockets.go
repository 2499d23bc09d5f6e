package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/tcptrace/tcptrace/internal/filter"
	"github.com/tcptrace/tcptrace/internal/host"
	"github.com/tcptrace/tcptrace/internal/render"
	"github.com/tcptrace/tcptrace/internal/sockets"
	"github.com/tcptrace/tcptrace/tracer"
	"github.com/tcptrace/tcptrace/tracer/event"
)

func newSockets(u *ui) *cobra.Command {
	var by string
	var all bool
	var top uint64
	cmd := &cobra.Command{
		Use:   "sockets",
		Short: "What exists now: listeners, sockets in groups, use of local ports",
		Long: `Look once at the TCP sockets of all network namespaces, and show what is most
troubling first: listeners with their queues; sockets by state, process and
peer; how much of the local ports is in use towards each destination; and the
kernel's counters that mean trouble (left out where sockets are filtered).
Nothing is traced.

A listener's QUEUE holds connections that wait for accept(); it takes one more
than LIMIT. SET BY tells what made the limit: the backlog argument of listen()
or net.core.somaxconn (which may have changed since). SYN is half-open requests.

IDLE is the time since the last segment was received, the newest and the oldest
of a group: the kernel does not keep how long a socket has been in a state.
REAPED is the silence after which SO_KEEPALIVE ends a connection, "never" where
it is off. A client's peer is where it connected to, a server's is its listener
with the addresses that came in there.`,
		Example: `  sudo tcptrace sockets                        one screen
  sudo tcptrace sockets --state close-wait     who forgets to close
  sudo tcptrace sockets --lport 443 --by peer  who is connected
  sudo tcptrace sockets --all --comm nginx     every socket, as ss does
  sudo tcptrace sockets -o json --all`,
		Args: atMost(0),
	}
	u.outputFlag(cmd)
	flags := cmd.Flags()
	flags.StringVar(&by, "by", "state,process,service", "group by `WHAT`: state, process, service, peer, or several of them")
	flags.BoolVar(&all, "all", false, "list every socket")
	flags.Uint64Var(&top, "top", 12, "at most `N` lines of a kind as text, 0 for all")
	complete(cmd, "by", sockets.DimensionNames()...)
	filters := filterFlags(cmd)
	// Nothing has happened to a socket that is merely looked at.
	_ = flags.MarkHidden("code")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if len(filters.Code) > 0 {
			return usage("`tcptrace watch --code` waits for verdicts", "--code: sockets that are merely looked at have no verdicts")
		}
		d, err := sockets.ParseDimensions(by)
		if err != nil {
			hint := "sockets are grouped by " + strings.Join(sockets.DimensionNames(), ", ") + ", or several with commas between"
			if near := filter.Nearest(by, sockets.DimensionNames()); near != "" {
				hint = fmt.Sprintf("did you mean %s? %s", near, hint)
			}
			return usage(hint, "--by %q: %w", by, err)
		}
		f, err := parseFilter(filters)
		if err != nil {
			return err
		}
		return u.sockets(cmd.Context(), sockets.Options{By: d, Filter: f}, all, int(min(top, 1<<30)))
	}
	return cmd
}

// sockets looks once and shows what it saw.
func (u *ui) sockets(ctx context.Context, o sockets.Options, all bool, top int) error {
	if err := permitted(); err != nil {
		return err
	}
	self, err := host.SelfNetns()
	if err != nil {
		return err
	}
	inv, err := tracer.OpenInventory(ctx, u.log)
	if err != nil {
		return err
	}
	defer inv.Close()
	clock := render.Clock{Offset: host.ClockOffset()}
	var out render.Sockets
	if u.output == "json" {
		out = render.NewSocketsJSON(u.out, clock)
	} else {
		text := render.NewSocketsText(u.out, render.TextOptions{Width: u.width(), Color: u.color(), Location: time.Local, Netns: self.Inode}, top)
		if want := o.Filter.Netns; len(want) == 1 {
			only := event.Namespace{Inode: want[0]}
			if ns, err := host.FindNetns(want[0]); err == nil {
				only.Name = ns.Name
			}
			text.Only(only)
		}
		out = text
	}
	l := look{
		self: self.Inode, inv: inv, survey: sockets.New(o), filter: &o.Filter,
		processes: make(map[uint32]event.Process), log: u.log,
	}
	if all {
		l.each = out.Socket
	}
	if err := l.run(out); err != nil {
		return err
	}
	err = out.Report(&render.Inventory{
		Time: clock.Stamp(l.at), Report: l.survey.Report(), Counters: l.counters, Problems: l.problems,
	})
	return errors.Join(err, out.Flush())
}

// look is one look at all sockets.
type look struct {
	self   uint32
	inv    *tracer.Inventory
	survey *sockets.Survey
	filter *filter.Filter
	each   func(*sockets.Socket) error // nil: none
	log    *zap.Logger

	owners    *host.Owners // nil: unknown
	processes map[uint32]event.Process
	cgroups   *host.Cgroups // nil: unknown
	paths     map[uint64]string

	at       int64
	counters []render.SocketCounters
	problems []string
}

// run looks at one namespace after the other. What cannot be looked at becomes
// a problem that is told; an error means that nothing can be.
func (l *look) run(out render.Sockets) error {
	spaces, err := host.Namespaces()
	if err != nil {
		return err
	}
	if want := l.filter.Netns; len(want) > 0 {
		spaces = slices.DeleteFunc(spaces, func(ns host.Netns) bool { return !slices.Contains(want, ns.Inode) })
	}
	if p, err := host.ReadPrivileges(); err != nil || !p.InitialPID {
		l.problems = append(l.problems, "the processes that hold the sockets: this is not the host's pid namespace")
	} else if l.owners, err = host.SocketOwners(); err != nil {
		l.problems = append(l.problems, fmt.Sprintf("the processes that hold the sockets: %v", err))
	} else if !p.Has(host.CapSysPtrace) {
		l.problems = append(l.problems, "the processes of other users, for want of CAP_SYS_PTRACE")
	}
	if c, err := host.OpenCgroups(); err == nil {
		l.cgroups, l.paths = c, make(map[uint64]string)
		defer c.Close()
	}
	l.at = host.Now()
	for _, ns := range spaces {
		if err := l.namespace(ns, out); err != nil {
			return err
		}
	}
	return nil
}

func (l *look) namespace(ns host.Netns, out render.Sockets) error {
	file, err := ns.Open()
	if errors.Is(err, host.ErrNoNetns) {
		return nil // it has ended meanwhile
	}
	if err != nil {
		l.problem(ns, err)
		return nil
	}
	defer file.Close()
	facts, err := host.ReadSysctls(ns)
	if err != nil {
		// Without them a client is harder to tell from a server.
		l.log.Debug("reading sysctls", zap.Error(err))
	}
	out.Namespace(facts)
	l.survey.Namespace(facts)
	if l.whole() {
		if c, err := host.ReadCounters(ns); err == nil {
			if t := sockets.Troubles(c.Value); len(t) > 0 {
				l.counters = append(l.counters, render.SocketCounters{Netns: ns.Inode, Counters: t})
			}
		} else {
			l.log.Debug("reading counters", zap.Error(err))
		}
	}
	fd := int(file.Fd())
	if ns.Inode == l.self {
		fd = -1 // no need to enter it, which takes CAP_SYS_ADMIN
	}
	var failed error
	err = l.inv.Snapshot(fd, func(e *event.Event) {
		s, shown := l.survey.Add(e, l.owner(e))
		if shown && l.each != nil && failed == nil {
			failed = l.each(&s)
		}
	})
	switch {
	case failed != nil:
		return failed
	case errors.Is(err, tracer.ErrNotSupported):
		return err
	case err != nil:
		l.problem(ns, err)
	}
	return nil
}

// whole reports whether all sockets of a namespace are asked for: what the
// kernel counts is not by port or process.
func (l *look) whole() bool {
	f := *l.filter
	f.Netns = nil
	return f.Empty()
}

func (l *look) problem(ns host.Netns, err error) {
	name := ns.Name
	if name == "" {
		name = fmt.Sprint(ns.Inode)
	}
	l.problems = append(l.problems, fmt.Sprintf("the sockets of network namespace %s: %v", name, err))
}

// owner finds the process that holds a socket; of a socket that none holds,
// only the cgroup is known.
func (l *look) owner(e *event.Event) sockets.Owner {
	var o host.Owner
	if l.owners != nil && e.Inventory != nil && e.Inventory.Inode != 0 {
		o, _ = l.owners.Owner(e.Inventory.Inode)
	}
	if o.PID == 0 {
		return sockets.Owner{Cgroup: l.path(e.Cgroup)}
	}
	p, ok := l.processes[o.PID]
	if !ok {
		var err error
		if p, err = host.ReadProcess(o.PID); err != nil {
			p = event.Process{PID: o.PID} // it has ended
		}
		l.processes[o.PID] = p
	}
	if p.Cgroup == "" {
		p.Cgroup = l.path(e.Cgroup)
	}
	return sockets.Owner{PID: o.PID, Comm: o.Comm, Cgroup: p.Cgroup, Holders: o.Holders}
}

// path names a cgroup, "" if it is not known.
func (l *look) path(id uint64) string {
	if id == 0 || l.cgroups == nil {
		return ""
	}
	path, ok := l.paths[id]
	if !ok {
		path = l.cgroups.Path(id)
		l.paths[id] = path
	}
	return path
}
