package pipeline

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"go.uber.org/zap"

	"github.com/tcptrace/tcptrace/internal/filter"
	"github.com/tcptrace/tcptrace/internal/host"
	"github.com/tcptrace/tcptrace/internal/render"
	"github.com/tcptrace/tcptrace/internal/sockets"
	"github.com/tcptrace/tcptrace/tracer"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// StockConfig is what TakeStock needs.
type StockConfig struct {
	sockets.Options
	Out render.Sockets
	All bool // write each socket, too
	Log *zap.Logger
}

// TakeStock looks once at the TCP sockets that exist in all network
// namespaces that can be seen, and writes what it saw. What cannot be looked
// at is told; the error says that nothing can be, and wraps
// tracer.ErrNotPermitted or tracer.ErrNotSupported, or is the output's.
func TakeStock(ctx context.Context, cfg StockConfig) error {
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	self, err := host.SelfNetns()
	if err != nil {
		return err
	}
	inv, err := tracer.OpenInventory(ctx, cfg.Log)
	if err != nil {
		return err
	}
	defer inv.Close()
	running, err := host.ReadPrivileges()
	if err != nil {
		return err
	}
	cfg.SYNFullAtLimit = running.Before(5, 11)
	l := look{
		self: self.Inode, inv: inv, survey: sockets.New(cfg.Options), filter: &cfg.Filter,
		processes: make(map[uint32]event.Process), log: cfg.Log,
	}
	if cfg.All {
		l.each = cfg.Out.Socket
	}
	if err := l.run(ctx, cfg.Out); err != nil {
		return err
	}
	err = cfg.Out.Report(&render.Inventory{
		Time: render.Clock{Offset: host.ClockOffset()}.Stamp(l.at), Report: l.survey.Report(), Counters: l.counters, Problems: l.problems,
	})
	return errors.Join(err, cfg.Out.Flush())
}

// look is one look at all sockets.
type look struct {
	self   uint32
	enters bool // namespaces can be entered, which takes CAP_SYS_ADMIN
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
func (l *look) run(ctx context.Context, out render.Sockets) error {
	spaces, err := host.Namespaces()
	if err != nil {
		return err
	}
	if want := l.filter.Netns; len(want) > 0 {
		spaces = slices.DeleteFunc(spaces, func(ns host.Netns) bool { return !slices.Contains(want, ns.Inode) })
		for _, inode := range want {
			if !slices.ContainsFunc(spaces, func(ns host.Netns) bool { return ns.Inode == inode }) {
				l.problem(host.Netns{Inode: inode}, host.ErrNoNetns)
			}
		}
	}
	p, err := host.ReadPrivileges()
	l.enters = p.Has(host.CapSysAdmin)
	if err != nil || !p.InitialPID {
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
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := l.namespace(ns, out); err != nil {
			return err
		}
	}
	return nil
}

func (l *look) namespace(ns host.Netns, out render.Sockets) error {
	file, err := ns.Open()
	if errors.Is(err, host.ErrNoNetns) && len(l.filter.Netns) == 0 {
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
	if ns.Inode == l.self && !l.enters {
		fd = -1
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
