package pipeline

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/dump"
	"github.com/tcptrace/tcptrace/internal/host"
	"github.com/tcptrace/tcptrace/internal/render"
	"github.com/tcptrace/tcptrace/internal/timeline"
	"github.com/tcptrace/tcptrace/tracer"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// Tracer is what a live run reads: a [tracer.Tracer].
type Tracer interface {
	Capabilities() event.Capabilities
	Read(batch []event.Event, timeout time.Duration) (int, error)
	Stop()
	Snapshot(netns int, fn func(*event.Event)) error
	Folded(now int64) ([]event.Event, error)
	Stats() (tracer.Stats, error)
}

var _ Tracer = (*tracer.Tracer)(nil)

// Recorder keeps what a run learns. Its methods are called from one goroutine
// and must not wait for a disk.
type Recorder interface {
	dump.Feed
	// Begin is called before anything else, with the header but for what is the
	// recorder's: which run and part it is, and whether it is redacted.
	Begin(h dump.Header) error
	// Tick is called about once a second. All sockets are looked at soon after
	// it asked for a snapshot; its error ends the run.
	Tick(now int64) (snapshot bool, err error)
	// End is called once, as the last.
	End(e dump.End) error
}

// Config of [Run].
type Config struct {
	Options
	Tracer   Tracer
	Version  string
	Host     string
	Duration time.Duration // 0: until the context ends
	Scope    Scope         // the processes that the run is about; nil: all
	// Ready is called once everything that happens from now on will be seen,
	// and older sockets are known. Its error ends the run. May be nil.
	Ready func() error
	Log   *zap.Logger // may be nil
	// Record keeps what the run learns; may be nil. Header is what of the dump's
	// header only the caller knows.
	Record Recorder
	Header dump.Header
	// LookShare is how much of one processor looking at all sockets may take on
	// average, 0.02 if 0.
	LookShare float64
}

const (
	// delay bounds how late events are read when few come, together with pause.
	delay = 80 * time.Millisecond
	// pause lets events gather when the ring was found nearly empty: the
	// kernel would say at once that there is one more to read.
	pause = 10 * time.Millisecond
	// settle is how long an event may take into the ring.
	settle = 10 * time.Millisecond
	// batchSize is how many events are read at a time.
	batchSize = 4096
	// housekeeping is how often losses, the clock and wanted snapshots are
	// looked at.
	housekeeping = time.Second
	// resync bounds how often all sockets are looked at again after losses.
	resync = 10 * time.Second
	// retries bounds how often a namespace is looked for that cannot be found,
	// until it is forgotten: its number may be used again.
	retries = 3
	// forgetAfter is how long after that it is not looked for again.
	forgetAfter = 10 * time.Second
	// costly is how long a search may take without a pause after it.
	costly = 100 * time.Millisecond
	// lookShare is the default of Config.LookShare.
	lookShare = 0.02
	// walks is how many times as long as it takes to look for owners, or costly
	// as it is, for a namespace in vain, is waited until the next time.
	walks = 50
	// wholeEvery is how often namespaces are looked at in which no sockets are
	// known to be.
	wholeEvery = time.Minute
	// linesBetween is how many sockets of a snapshot are taken at a time before
	// the ring is looked at.
	linesBetween = 512
	// maxSpaces bounds the namespaces that are remembered.
	maxSpaces = 65536
)

// live is a run on the running kernel.
type live struct {
	Config
	m       *Machine
	in      dump.Feed // the machine, and the recorder if there is one
	caps    event.Capabilities
	audit   auditor
	audited int64 // when the recorder was last told of the counters
	cost    *costs
	spaces  map[uint32]*space
	pending []uint32 // namespaces seen for the first time, to be looked through
	cgroups *host.Cgroups
	paths   map[uint64]string // of cgroups
	procs   map[uint32]seen
	lost    map[string]uint64
	synced  int64           // when sockets were last looked at again after losses
	round   int64           // when all sockets were last looked at
	whole   int64           // when in all namespaces, also those where nothing is known to be
	took    time.Duration   // processor time that this took
	walked  int64           // when owners were last looked for
	walk    time.Duration   // how long that took
	sought  int64           // when a namespace was last looked for in vain
	search  time.Duration   // how long that took
	aside   []event.Event   // buffer of meanwhile
	again   bool            // they are to be looked at again
	last    event.Event     // of the newest namespace and process, for the fast path
	self    uint32          // the own namespace, which does not end
	owners  bool            // /proc shows the kernel's process ids
	blind   bool            // sockets cannot be listed here
	limit   map[uint32]bool // nil: all namespaces are meant; false: no more
	skip    bool            // events of the newest namespace are not meant
	tuples  bool            // the filter looks at addresses or ports
	vague   vague           // what may turn out not to be meant
}

type space struct {
	ns      host.Netns
	known   bool
	missing bool            // it was not found; else, if not known, it cannot be entered
	tries   int             // how often it was looked for in vain
	tried   int64           // when last
	facts   event.Namespace // as the machine was told
	cookie  uint64          // tells it from others of the number, 0 unknown
}

// seen is what was learned of a process, and of which.
type seen struct {
	comm   event.Comm
	cgroup uint64
}

// Run traces until the context ends, the duration has passed, or as much was
// shown as was asked for; then it stops the tracer, drains what it still
// holds, and shows the summary. The error is the renderer's, the tracer's or
// Ready's; the summary is not nil even then, unless nothing began.
func Run(ctx context.Context, cfg Config) (*render.Summary, error) {
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	if cfg.LookShare <= 0 {
		cfg.LookShare = lookShare
	}
	defer hurry(cfg.Log)()
	l := &live{
		Config: cfg, caps: cfg.Tracer.Capabilities(),
		spaces: make(map[uint32]*space), paths: make(map[uint64]string),
		procs: make(map[uint32]seen), lost: make(map[string]uint64), tuples: cfg.Filter.Tuples(),
	}
	if len(cfg.Filter.Netns) > 0 {
		l.limit = make(map[uint32]bool)
		for _, inode := range cfg.Filter.Netns {
			l.limit[inode] = true
		}
	}
	o := cfg.Options
	o.Timeline.Capabilities, o.Diagnose.Capabilities = l.caps, l.caps
	if _, err := rand.Read(o.Timeline.Key[:]); err != nil {
		return nil, fmt.Errorf("making a key for connection names: %w", err)
	}
	o.Scoped = cfg.Scope != nil
	l.m = NewMachine(o)
	l.in = l.m
	if l.Record != nil {
		l.in = both{l.m, l.Record}
	}
	l.audit.tracer = cfg.Tracer
	l.cost = newCosts(cfg.Tracer, cfg.Log)
	defer l.cost.close()
	if c, err := host.OpenCgroups(); err == nil {
		l.cgroups = c
		defer c.Close()
	}
	if p, err := host.ReadPrivileges(); err == nil {
		l.owners = p.InitialPID
	}

	err := l.begin(o.Timeline.Key)
	began := host.Now()
	if err == nil {
		err = l.loop(ctx, began)
	}
	return l.finish(began, err)
}

// hurry lets the calling goroutine read the ring in time on a machine whose
// processors are all taken: the kernel does not wait for it. It needs little.
// The returned function undoes it.
func hurry(log *zap.Logger) func() {
	const nice = -10
	runtime.LockOSThread()
	before, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	if err == nil {
		err = unix.Setpriority(unix.PRIO_PROCESS, 0, nice)
	}
	if err != nil {
		log.Debug("raising the reader's priority", zap.Error(err))
		return runtime.UnlockOSThread
	}
	return func() {
		// The system call gives 20 minus the nice value.
		if err := unix.Setpriority(unix.PRIO_PROCESS, 0, 20-before); err == nil {
			runtime.UnlockOSThread()
		}
	}
}

// begin shows the start, takes the audit's first readings, and learns what
// exists already.
func (l *live) begin(key [16]byte) error {
	offset, now := host.ClockOffset(), host.Now()
	h := l.Header
	h.Tool, h.Kernel, h.Host, h.BootID = l.Version, l.caps.Kernel, l.Host, host.BootID()
	if self, err := host.SelfNetns(); err == nil {
		h.Netns, l.self = self.Inode, self.Inode
	}
	h.Started, h.StartedBoot, h.Key, h.Capabilities = now+offset, now, key, l.caps
	if l.Record != nil {
		if err := l.Record.Begin(h); err != nil {
			return err
		}
	}
	if err := l.Out.Start(start(&h)); err != nil {
		return err
	}
	l.in.Clock(offset)
	l.audited = now
	spaces, err := host.Namespaces()
	if err != nil {
		l.Log.Warn("listing network namespaces", zap.Error(err))
	}
	if l.limit != nil {
		spaces = slices.DeleteFunc(spaces, func(ns host.Netns) bool { return !l.limit[ns.Inode] })
	}
	l.audit.begin(spaces)
	for _, ns := range spaces {
		l.learn(ns)
	}
	l.look(spaces, true, false)
	if err := l.flush(); err != nil {
		return err
	}
	if l.Ready != nil {
		return l.Ready()
	}
	return nil
}

// learn tells the machine of a namespace.
func (l *live) learn(ns host.Netns) {
	facts, err := host.ReadSysctls(ns)
	switch {
	case errors.Is(err, host.ErrNoNetns):
		l.Log.Debug("a network namespace ended", zap.Error(err))
	case err != nil:
		l.Log.Warn("a network namespace's settings stay unknown", zap.Error(err))
	}
	s := &space{ns: ns, known: err == nil, facts: facts}
	if errors.Is(err, host.ErrNoNetns) {
		s.missing, s.tries, s.tried = true, 1, host.Now()
		l.audit.miss(ns.Inode)
	}
	if s.known {
		s.cookie, _ = host.Cookie(ns)
	}
	l.spaces[ns.Inode] = s
	l.in.Namespace(facts)
}

// recheck looks, as a process appears, whether its namespace is still the one
// that was learned of: of many that end soon, one gets the number of the other,
// and what happened in them is not to be joined. It reports whether events of the
// number are still meant.
func (l *live) recheck(inode, pid uint32) bool {
	s := l.spaces[inode]
	if s == nil || !s.known || inode == l.self {
		return true
	}
	ns := s.ns
	c, err := host.Cookie(ns)
	if err != nil && l.owners {
		// By which it was entered has ended. This process may be a way, too.
		ns.Path = fmt.Sprintf("/proc/%d/ns/net", pid)
		c, err = host.Cookie(ns)
		if err == nil && c == s.cookie && c != 0 {
			s.ns = ns
			return true
		}
	} else if err == nil && c == s.cookie {
		return true
	}
	l.in.Namespace(event.Namespace{Inode: inode})
	if err != nil {
		s.known, s.missing, s.tries = false, true, 0 // retry looks for it
		return true
	}
	if l.audit.add(ns); l.limit != nil && l.audit.reused(inode) {
		l.disown(inode)
		return false
	}
	l.learn(ns)
	l.pending = append(l.pending, inode)
	return true
}

// relearn tells the machine of settings that have changed.
func (l *live) relearn(inodes []uint32) {
	for _, inode := range inodes {
		s := l.spaces[inode]
		if s == nil || !s.known {
			continue
		}
		// One that has ended meanwhile is another's concern (retry).
		if facts, err := host.ReadSysctls(s.ns); err == nil && facts != s.facts {
			s.facts = facts
			l.in.Namespace(facts)
		}
		l.meanwhile(0)
	}
}

// errTooSoon says that a namespace was not looked for yet.
var errTooSoon = errors.New("another one was looked for a moment ago")

// resting reports whether all threads were looked at so recently that the next
// search has to wait, where there are so many that it costs the ring's reader.
func (l *live) resting(now int64) bool {
	return l.search > costly && now-l.sought < walks*int64(l.search)
}

// inVain takes note of a search that looked at all threads, which ends now.
func (l *live) inVain(began int64) {
	l.sought = host.Now()
	l.search = time.Duration(l.sought - began)
}

// meet is called with the first event of a namespace.
func (l *live) meet(inode uint32) {
	if inode == 0 || l.limit != nil && !l.limit[inode] {
		return
	}
	if len(l.spaces) >= maxSpaces {
		clear(l.spaces)
	}
	began := host.Now()
	s := &space{ns: host.Netns{Inode: inode}, missing: true}
	var ns host.Netns
	err := errTooSoon
	if !l.resting(began) {
		ns, err = host.FindNetns(inode)
	}
	if err != nil {
		// It may be too young to be found, or gone already.
		l.Log.Debug("a network namespace was not found", zap.Uint32("inode", inode), zap.Error(err))
		if err != errTooSoon {
			l.inVain(began)
			s.tries, s.tried = 1, l.sought
		}
		l.spaces[inode] = s
		l.audit.miss(inode)
		l.in.Namespace(event.Namespace{Inode: inode})
		return
	}
	same := l.audit.add(ns)
	if l.limit != nil && l.audit.reused(inode) {
		l.disown(inode)
		return
	}
	if !same {
		l.in.Namespace(event.Namespace{Inode: inode}) // no more is known of one before it
	}
	l.learn(ns)
	l.pending = append(l.pending, inode)
}

// disown is called when a namespace that was asked for has ended and its
// number belongs to another one: that one was not asked for.
func (l *live) disown(inode uint32) {
	l.Log.Warn("a network namespace that was asked for has ended; its number is another's now, which is not shown", zap.Uint32("inode", inode))
	l.limit[inode] = false
	delete(l.spaces, inode)
	l.last.Netns = 0
}

// retry looks again for namespaces that were not found, and forgets those
// that cannot be entered any more: their numbers may be used again, and if
// they do live on, they are met again.
func (l *live) retry() {
	now, wanted := host.Now(), false
	for inode, s := range l.spaces {
		if l.limit[inode] && s.known {
			// The same name can lead to another one in no time.
			if l.audit.add(s.ns); l.audit.reused(inode) {
				l.disown(inode)
				continue
			}
		}
		if s.known && !enterable(s.ns) || !s.known && !s.missing && ended(s.ns) {
			delete(l.spaces, inode)
			l.last.Netns = 0
			continue
		}
		if s.missing && s.tries >= retries {
			if now-s.tried >= int64(forgetAfter) {
				delete(l.spaces, inode)
				l.last.Netns = 0
			}
			continue
		}
		wanted = wanted || s.missing
	}
	if !wanted || l.resting(now) {
		return
	}
	// One look at every thread is enough for all.
	list, err := host.Namespaces()
	if err != nil {
		l.Log.Debug("looking for network namespaces", zap.Error(err))
		return
	}
	l.inVain(now)
	found := make(map[uint32]host.Netns, len(list))
	for _, ns := range list {
		found[ns.Inode] = ns
	}
	for inode, s := range l.spaces {
		if !s.missing || s.tries >= retries {
			continue
		}
		ns, ok := found[inode]
		if !ok {
			s.tries++
			s.tried = l.sought
			continue
		}
		if l.audit.add(ns); l.limit != nil && l.audit.reused(inode) {
			l.disown(inode)
			continue
		}
		l.learn(ns)
		l.pending = append(l.pending, inode)
	}
	slices.Sort(l.pending)
}

// snapshot looks at all sockets of some namespaces. There can be very many:
// what happens meanwhile is taken from the ring as it comes, which otherwise
// would run over. Where a recorder's file begins with it, it repeats whose the
// sockets are, of which what follows in the file does not tell.
func (l *live) snapshot(spaces []host.Netns, withOwners, repeat bool) {
	if len(spaces) == 0 || l.blind {
		return
	}
	var owners *host.Owners
	if withOwners {
		owners = l.findOwners()
	}
	told := make(map[uint32]bool)
	var listeners map[uint64]*timeline.Listener
	if repeat {
		listeners = make(map[uint64]*timeline.Listener)
		for lis := range l.m.tracker.Listeners() {
			listeners[lis.ID] = lis
		}
	}
	lines := 0
	self, _ := host.SelfNetns()
	for _, ns := range spaces {
		file, err := ns.Open()
		if err != nil {
			l.Log.Debug("opening a network namespace", zap.Error(err))
			continue
		}
		l.in.BeginSnapshot(ns.Inode, host.Now())
		fd := int(file.Fd())
		if ns.Inode == self.Inode {
			fd = -1 // to enter even the own one takes CAP_SYS_ADMIN
		}
		err = l.Tracer.Snapshot(fd, func(e *event.Event) {
			if l.tuples && !l.Filter.MatchTuple(e.Netns, e.Local, e.Remote) {
				return
			}
			var owner host.Owner
			if owners != nil && e.Inventory != nil && e.Inventory.Inode != 0 {
				owner, _ = owners.Owner(e.Inventory.Inode)
			}
			if owner.PID != 0 && !told[owner.PID] {
				told[owner.PID] = true
				if p, err := host.ReadProcess(owner.PID); err == nil {
					l.in.Process(p)
					if l.Scope != nil {
						l.m.Member(p.PID, p.Comm, l.Scope.Process(p))
					}
				}
			}
			if repeat && owner.PID == 0 {
				owner = l.known(e, listeners)
			}
			l.in.Snapshot(e, owner.PID, owner.Comm)
			if lines++; lines%linesBetween == 0 {
				l.meanwhile(0)
			}
		})
		file.Close()
		if errors.Is(err, tracer.ErrNotSupported) {
			l.Log.Warn("older sockets stay unknown", zap.Error(err))
			l.blind = true
			return
		}
		if err != nil {
			// Without the end of the round nothing is concluded from it.
			l.Log.Warn("listing the sockets of a network namespace", zap.Uint32("inode", ns.Inode), zap.Error(err))
			continue
		}
		l.in.EndSnapshot(ns.Inode, host.Now())
	}
}

// known is who is known to hold a socket of a snapshot. It is nobody where that
// is only concluded: a line says it as if /proc had.
func (l *live) known(e *event.Event, listeners map[uint64]*timeline.Listener) (owner host.Owner) {
	reused := l.caps.Identity == event.IdentityAddress
	var o timeline.Owner
	if e.New == event.StateListen {
		lis := listeners[e.Sock]
		if lis == nil || lis.Closed != 0 || reused && (lis.Netns != e.Netns || lis.Addr != e.Local) {
			return owner
		}
		o = lis.Owner()
	} else {
		c := l.m.tracker.Conn(e.Sock)
		if c == nil || c.Phase() != timeline.PhaseSocket || e.Inventory != nil && e.Inventory.Minisocket ||
			reused && (c.Netns() != e.Netns || c.Local() != e.Local || c.Remote() != e.Remote || c.Closed() != 0) {
			return owner
		}
		if o = c.Owner(); o.Source < timeline.SourceSnapshot {
			return owner // who listens or closed it: perhaps nobody has accepted it
		}
	}
	owner.PID, owner.Comm = o.PID, o.Comm
	return owner
}

// findOwners walks the descriptors of all processes, which can take a second,
// while the ring is read on. Not too often: then nil.
func (l *live) findOwners() *host.Owners {
	now := host.Now()
	if !l.owners || l.walked != 0 && now-l.walked < walks*int64(l.walk) {
		return nil
	}
	type result struct {
		owners *host.Owners
		err    error
	}
	done := make(chan result, 1)
	go func() {
		o, err := host.SocketOwners()
		done <- result{o, err}
	}()
	for {
		select {
		case r := <-done:
			if r.err != nil {
				l.Log.Warn("finding the owners of sockets", zap.Error(r.err))
			}
			l.walked = host.Now()
			l.walk = time.Duration(l.walked - now)
			return r.owners
		default:
			l.meanwhile(pause)
		}
	}
}

// meanwhile handles what is in the ring, in the middle of something else: no
// more than a ring holds, or it would never end where events come faster than
// they can be handled.
func (l *live) meanwhile(wait time.Duration) {
	if l.aside == nil {
		l.aside = make([]event.Event, batchSize)
	}
	const most = 16 // batches; a ring holds some 61,000 events
	for range most {
		n, err := l.Tracer.Read(l.aside, wait)
		if err != nil {
			return // the loop will meet it too
		}
		l.handle(l.aside[:n])
		if n < len(l.aside) {
			return
		}
	}
}

// loop reads events until it is time to stop.
func (l *live) loop(ctx context.Context, began int64) error {
	batch := make([]event.Event, batchSize)
	next := began + int64(housekeeping)
	for {
		n, err := l.Tracer.Read(batch, delay)
		if err != nil {
			return fmt.Errorf("reading events: %w", err)
		}
		now := host.Now()
		l.handle(batch[:n])
		if n < len(batch) {
			l.in.Advance(now - int64(settle)) // the ring is empty
		}
		if now >= next {
			next = now + int64(housekeeping)
			if err := l.keep(now); err != nil {
				return err
			}
		}
		if err := l.flush(); err != nil {
			return err
		}
		if l.m.Done() || l.Duration > 0 && now-began >= int64(l.Duration) || ctx.Err() != nil {
			return nil
		}
		if n > 0 && n < len(batch)/2 {
			time.Sleep(pause)
		}
	}
}

// flush hands on what was written, and returns the renderer's first error.
func (l *live) flush() error {
	if l.m.Err() == nil {
		l.m.fail(l.Out.Flush())
	}
	return l.m.Err()
}

// handle hands events over, but for those that are not meant.
func (l *live) handle(batch []event.Event) {
	last := &l.last
	for i := range batch {
		e := &batch[i]
		if e.Netns != last.Netns {
			if l.spaces[e.Netns] == nil {
				l.meet(e.Netns)
			}
			last.Netns = e.Netns
			l.skip = l.limit != nil && e.Netns != 0 && !l.limit[e.Netns]
		}
		if l.skip {
			continue
		}
		if l.tuples {
			if !l.Filter.MatchTuple(e.Netns, e.Local, e.Remote) {
				continue
			}
			if l.Filter.Vague(e.Local, e.Remote) && e.Sock != 0 {
				l.vague.hold(e)
				continue
			}
			// Where sockets are known by their memory it may be another one's.
			if was := l.vague.release(e.Sock); was != nil && was.Netns == e.Netns && was.Remote == e.Remote {
				l.take(was)
			}
		}
		l.take(e)
	}
}

// take hands an event over, after what it takes to judge it.
func (l *live) take(e *event.Event) {
	last := &l.last
	if e.Flags&event.FlagProcess != 0 && (e.PID != last.PID || e.Comm != last.Comm || e.Cgroup != last.Cgroup) {
		now := seen{e.Comm, e.Cgroup}
		if l.procs[e.PID] != now && !l.recheck(e.Netns, e.PID) {
			return
		}
		last.PID, last.Comm, last.Cgroup = e.PID, e.Comm, e.Cgroup
		if l.Scope != nil {
			l.m.Member(e.PID, e.Comm.String(), l.Scope.Event(e))
		}
		if l.procs[e.PID] != now {
			if len(l.procs) >= maxPIDs {
				clear(l.procs)
			}
			l.procs[e.PID] = now
			l.in.Process(event.Process{PID: e.PID, Comm: e.Comm.String(), Cgroup: l.cgroupOf(e)})
		}
	}
	l.in.Event(e)
}

// cgroupOf names the cgroup of a process that may have ended already.
func (l *live) cgroupOf(e *event.Event) string {
	path, ok := l.paths[e.Cgroup]
	if !ok && l.cgroups != nil {
		path = l.cgroups.Path(e.Cgroup)
		if len(l.paths) >= maxPIDs {
			clear(l.paths)
		}
		l.paths[e.Cgroup] = path
	}
	if path == "" || path == "/" || l.cgroups.Hybrid() {
		// cgroup v1 has its own tree, which may name a container, or the id
		// cannot be looked up.
		if p, err := host.ReadProcess(e.PID); err == nil && p.Comm == e.Comm.String() && p.Cgroup != "" {
			return p.Cgroup
		}
	}
	return path
}

// keep does what is due once a second. The error is the recorder's.
func (l *live) keep(now int64) error {
	l.in.Clock(host.ClockOffset())
	l.losses(now)
	l.cost.tick(now, l.m.events)
	l.retry()
	if l.Scope != nil {
		l.Scope.Tick()
	}

	l.unfold(now)

	var want []uint32
	// A round costs a share of one processor that stays the same however many
	// sockets there are.
	snapshot, err := l.recorded(now)
	if err != nil {
		return err
	}
	all := snapshot || now-l.round >= max(int64(l.m.SnapshotEvery()), int64(float64(l.took)/l.LookShare))
	lost := l.again && now-l.synced >= int64(resync)
	if lost {
		l.again, l.synced = false, now
		all = true
	}
	if all && !lost && now-l.whole < int64(wholeEvery) {
		want = l.m.Inhabited()
	} else if all {
		l.whole = now
		for inode := range l.spaces {
			want = append(want, inode)
		}
		slices.Sort(want)
		l.relearn(want)
	}
	pending := l.pending
	l.pending = nil
	wanted := l.m.SnapshotWanted()
	l.relearn(wanted) // what is about to be judged is judged by the settings of now
	if all {
		// Owners come with events; those of older sockets are known, and for
		// what is about to be judged they are looked for below.
		withOwners := lost || len(pending) > 0
		l.look(l.reachable(append(want, pending...)), withOwners, snapshot)
		if !withOwners {
			l.snapshot(l.reachable(wanted), true, false)
		}
		return nil
	}
	l.snapshot(l.reachable(append(pending, wanted...)), true, false)
	return nil
}

// reachable are those of these namespaces that can be entered, each once.
func (l *live) reachable(inodes []uint32) []host.Netns {
	slices.Sort(inodes)
	var spaces []host.Netns
	for _, inode := range slices.Compact(inodes) {
		if s := l.spaces[inode]; s != nil && s.known {
			spaces = append(spaces, s.ns)
		}
	}
	return spaces
}

// auditEvery is how often a recording is told of the counters.
const auditEvery = time.Minute

// recorded gives the recorder its turn, and reports whether it wants a look at
// all sockets.
func (l *live) recorded(now int64) (snapshot bool, err error) {
	if l.Record == nil {
		return false, nil
	}
	if now-l.audited >= int64(auditEvery) {
		began := l.audited
		l.audited = now
		lines, notes := l.audit.compare(l.caps, fewAttempts)
		l.Record.Audit(auditOf(now, time.Duration(now-began), lines, notes))
	}
	return l.Record.Tick(now)
}

// look looks at all sockets.
func (l *live) look(spaces []host.Netns, withOwners, repeat bool) {
	l.round = host.Now()
	before, _, err := host.Usage()
	l.snapshot(spaces, withOwners, repeat)
	// To look for owners takes far longer than to look at sockets, is seldom done
	// and has a pause of its own.
	if withOwners {
		return
	}
	// What it takes on a busy machine is mostly to wait for its turn, which costs
	// nobody anything.
	l.took = time.Duration(host.Now() - l.round)
	if after, _, err2 := host.Usage(); err == nil && err2 == nil {
		l.took = min(l.took, after-before)
	}
}

// unfold hands over what the kernel side counted instead of telling it.
func (l *live) unfold(now int64) {
	events, err := l.Tracer.Folded(now)
	if err != nil {
		l.Log.Warn("reading the counts of a flood", zap.Error(err))
		return
	}
	l.handle(events)
}

// losses tells of events that were lost since it was last called.
func (l *live) losses(now int64) {
	stats, err := l.Tracer.Stats()
	if err != nil {
		l.Log.Warn("reading the tracer's counters", zap.Error(err))
		return
	}
	causes := make([]string, 0, len(stats.Lost))
	for where := range stats.Lost {
		causes = append(causes, where)
	}
	slices.Sort(causes)
	for _, where := range causes {
		if n := stats.Lost[where]; n > l.lost[where] {
			l.in.Lost(now, event.Lost{Where: where, Count: n - l.lost[where]})
			l.lost[where] = n
			l.again = true
		}
	}
}

// finish detaches, drains and sums up. err is what ended the run, nil if it
// was time.
func (l *live) finish(began int64, err error) (*render.Summary, error) {
	var s render.Summary
	// The audit compares what was counted while the hooks were there, in each
	// namespace that there still is.
	if err == nil {
		l.search = 0 // the last look for those that were not found waits for nothing
		l.retry()
		s.Audit, s.AuditNotes = l.audit.compare(l.caps, attempts)
	}
	l.Tracer.Stop()
	batch := make([]event.Event, batchSize)
	for err == nil {
		n, rerr := l.Tracer.Read(batch, delay)
		l.handle(batch[:n])
		if errors.Is(rerr, io.EOF) {
			break
		}
		if rerr != nil {
			err = fmt.Errorf("draining events: %w", rerr)
		}
	}
	now := host.Now()
	l.unfold(now)
	l.losses(now)
	s.Duration = time.Duration(now - began)
	s.Cost = l.cost.end(now, l.m.events)
	s.Cost.Filtered = l.m.narrow
	if l.Record != nil {
		err = errors.Join(err, l.Record.End(endOf(now, s, err)))
	}
	if err != nil {
		if l.m.Err() != nil {
			return &s, err // nothing can be shown any more
		}
	}
	sum, ferr := l.m.Finish(now, s)
	return sum, errors.Join(err, ferr)
}
