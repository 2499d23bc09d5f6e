package diagnose

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/tcptrace/tcptrace/internal/timeline"
	"github.com/tcptrace/tcptrace/tracer/event"
)

const codeCloseWaitLeak = "close-wait-leak"

var docCloseWaitLeak = Doc{
	Code:     codeCloseWaitLeak,
	Severity: Warning,
	Summary:  "a process holds sockets in CLOSE_WAIT: the peer closed, the process has not called close()",
	Meaning: `CLOSE_WAIT means that the peer's FIN has arrived, which read() tells as end of file, and that this process has not closed its end. The kernel waits for that without limit. A connection that stays there longer than --close-wait (60 s), with no data moving, was forgotten: typically by a pool that no longer looks at connections to an address it has dropped.

CLOSE_WAIT is a result and not a cause. No sysctl closes these sockets: only the process can, or its end. Keepalive reaps them only where it is on and the peer is gone.

Sockets that were in CLOSE_WAIT before tracing began count too; their age is then known as "at least".`,
	Counts: "connections found forgotten so far",
	Evidence: []DocKey{
		{"count", "connections", "now forgotten in CLOSE_WAIT; once all are closed, the most that were at a time"},
		{"peak", "connections", "the most that were forgotten at a time"},
		{"gone", "", "whether none is left here: all are closed, by the process or by its end, or count as another process's, as found out since; the other facts are then the last before that"},
		{"remote", "", "where they go; without a port where this host is the server"},
		{"service", "", "the listening address where this host is the server, else the remote one; null where it is not known or not one"},
		{"oldest_s", "s", "age of the oldest, at least"},
		{"newest_s", "s", "age of the newest, at least"},
		{"age", "", "exact where every FIN was seen, else at least"},
		{"growth_per_min", "connections/min", "of those present, how many came in a minute, over the last 10"},
		{"keepalive", "", "SO_KEEPALIVE: on, off, mixed or unknown"},
		{"reaped_after_s", "s", "when keepalive gives one up whose peer is silent; null if never or not known"},
		{"reaped_after_rst_s", "s", "when keepalive ends one whose peer answers by RST; null if never or not known"},
		{"process_total", "connections", "of the process, to all remotes"},
		{"process_remotes", "count", "remotes concerned"},
		{"typical_group", "connections", "median of the numbers to each remote"},
	},
	Fix: []string{
		"close the connection when read() returns 0 (end of file), in every path of the process, also for connections that a pool no longer hands out",
		"restarting the process frees the sockets, until it happens again",
		"SO_KEEPALIVE in the process lets the kernel notice peers that are gone; it hides the leak and does not fix it",
	},
	Source: []string{"net/ipv4/tcp_input.c: tcp_fin()", "net/ipv4/tcp_timer.c: tcp_keepalive_timer()"},
}

const (
	closeWaitGroups   = 4096             // process and remote; the rest of a process is one group
	closeWaitRecent   = 10 * time.Minute // for the growth
	closeWaitPatience = 5 * time.Second  // for a snapshot to confirm, and to name the process
)

// closeWaitLeak walks the connections in CLOSE_WAIT now and then, and builds
// its groups anew each time: most connections pass through that state in an
// instant, and following each would cost more.
type closeWaitLeak struct {
	next  int64
	found map[Key]*leak
}

func newCloseWaitLeak() *closeWaitLeak { return &closeWaitLeak{found: make(map[Key]*leak)} }

func (*closeWaitLeak) Code() string { return codeCloseWaitLeak }
func (*closeWaitLeak) Doc() Doc     { return docCloseWaitLeak }

// leak is what one process forgot towards one remote.
type leak struct {
	key          Key
	owner        timeline.Owner
	remote       string
	service      netip.AddrPort // the server's address, without an IP address where there are several
	role         timeline.Role
	services     bool  // more than one, or not known which end serves
	at           int64 // of this count
	count        int
	oldest       int64 // since when
	newest       int64
	exact        bool
	sure         bool // a snapshot showed each of them idle since
	recent       int  // came within closeWaitRecent
	on, off      int  // keepalive
	dead         time.Duration
	reset        time.Duration
	timers       bool
	timersDiffer bool

	total, remotes, typical int // of the process

	moved bool // some went to another group when their process became known

	most    int           // at a time
	longest time.Duration // of one

	fresh    uint64 // not counted before
	examples []*timeline.Conn
}

func (r *closeWaitLeak) Tick(x *Engine, now int64, t *timeline.Tracker) {
	if now < r.next {
		return
	}
	pause := min(max(x.o.CloseWait/10, 100*time.Millisecond), 5*time.Second)
	r.next = math.MaxInt64
	if now < math.MaxInt64-int64(pause) {
		r.next = now + int64(pause)
	}

	groups := make(map[Key]*leak)
	var order []*leak
	for c := range x.conns(t) {
		if c.State() != event.StateCloseWait || c.Phase() != timeline.PhaseSocket {
			continue
		}
		since, exact, sure, due := r.judge(x, now, t, c)
		if !due {
			continue
		}
		l := r.group(groups, &order, c, now)
		l.add(t, c, since, exact, sure)
		if !tagged(r, c) {
			x.tag(r, c, Warning)
			l.fresh++
			if len(l.examples) < maxExamples {
				l.examples = append(l.examples, c)
			}
		}
	}
	// Who were counted before, but not there, are not closed.
	type end struct {
		netns  uint32
		remote netip.Addr
	}
	moved := make(map[end]bool)
	for _, l := range order {
		before := 0
		if old := r.found[l.key]; old != nil {
			before = old.count
		}
		if l.count-int(l.fresh) > before {
			moved[end{l.key.Netns, l.key.Addr.Addr()}] = true
		}
	}
	for k, old := range r.found {
		l := groups[k]
		if l == nil { // none left: the last count stays, at 0
			if old.count == 0 {
				continue
			}
			l = old
			l.moved = moved[end{k.Netns, k.Addr.Addr()}]
			l.count = 0 // the rest stays as it was
			groups[k] = l
		}
	}
	r.settle(x, groups, order)
	for _, l := range order {
		l.most, l.longest = l.count, time.Duration(l.at-l.oldest)
		if old := r.found[l.key]; old != nil {
			l.most, l.longest = max(l.most, old.most), max(l.longest, old.longest)
		}
		if l.fresh > 0 {
			x.Report(r, l.key, l, now, l.fresh, l.examples...)
			l.fresh, l.examples = 0, nil
		}
	}
	if len(groups) > closeWaitGroups {
		for k, l := range groups {
			if l.count == 0 {
				delete(groups, k)
			}
		}
	}
	r.found = groups
}

// judge reports whether c is due, and since when it waits.
func (r *closeWaitLeak) judge(x *Engine, now int64, t *timeline.Tracker, c *timeline.Conn) (since int64, exact, sure, due bool) {
	since, exact = c.CloseWaitSince()
	if since == 0 && !exact {
		return 0, false, false, false
	}
	alive := false
	if p := c.Progress(); p != 0 && p > since { // half closed, but alive
		since, exact, alive = p, false, true
	}
	idle := now - since
	if idle < int64(x.o.CloseWait) {
		return 0, false, false, false
	}
	// Until accept() no process can close it: another cause. (Where neither
	// connect() nor accept() was seen, a snapshot shows who holds it.)
	if c.Role() != timeline.RoleClient && !c.Accepted() {
		return 0, false, false, false
	}
	// Data may still flow from here to a peer that only shut down sending.
	// A snapshot tells; without one, after a while, it is likely not so.
	looked := t.SnapshotAt(c.Netns())
	sure = looked > since
	if alive && looked-since < int64(x.o.CloseWait) && !tagged(r, c) {
		// Nobody has looked since whether it still is.
		x.sockets.add(c.Netns(), now)
		return 0, false, false, false
	}
	if sure && c.Last() < looked && !tagged(r, c) {
		return 0, false, false, false // it was not there any more
	}
	if t.LostAt() > since && looked <= t.LostAt() && !tagged(r, c) {
		// Its end may be among what was lost: only a snapshot tells.
		x.sockets.add(c.Netns(), now)
		return 0, false, false, false
	}
	if !sure || !c.Owner().Known() {
		x.sockets.add(c.Netns(), now)
		if idle < int64(x.o.CloseWait)+int64(closeWaitPatience) && !tagged(r, c) {
			return 0, false, false, false
		}
	}
	return since, exact, sure, true
}

func (r *closeWaitLeak) group(groups map[Key]*leak, order *[]*leak, c *timeline.Conn, now int64) *leak {
	o := c.Owner()
	k := Key{Netns: c.Netns(), PID: o.PID, Addr: c.Remote()}
	if c.Role() == timeline.RoleServer {
		k.Addr = netip.AddrPortFrom(k.Addr.Addr(), 0)
	}
	if groups[k] == nil && len(groups) >= closeWaitGroups {
		k.Addr, k.What = netip.AddrPort{}, "others"
	}
	l := groups[k]
	if l == nil {
		l = &leak{key: k, owner: o, at: now, oldest: math.MaxInt64, newest: math.MinInt64, exact: true, sure: true}
		switch {
		case k.What != "":
			l.remote = "many others"
		case k.Addr.Port() == 0:
			l.remote = k.Addr.Addr().String()
		default:
			l.remote = k.Addr.String()
		}
		groups[k] = l
		*order = append(*order, l)
	}
	return l
}

// serves takes note of which service c belongs to.
func (l *leak) serves(c *timeline.Conn) {
	a, _ := place(c)
	switch {
	case c.Role() == timeline.RoleUnknown || l.count > 0 && (l.role != c.Role() || l.service.Port() != a.Port()):
		l.services = true
	case l.count > 0 && l.service != a:
		a = netip.AddrPortFrom(netip.Addr{}, a.Port())
	}
	l.service, l.role = a, c.Role()
}

func (l *leak) add(t *timeline.Tracker, c *timeline.Conn, since int64, exact, sure bool) {
	l.serves(c)
	l.count++
	l.oldest, l.newest = min(l.oldest, since), max(l.newest, since)
	l.exact, l.sure = l.exact && exact, l.sure && sure
	if l.at-since < int64(closeWaitRecent) {
		l.recent++
	}
	on, known := c.Keepalive()
	switch {
	case !known:
		return
	case !on:
		l.off++
		return
	}
	l.on++
	idle, interval, probes, ok := t.KeepaliveTimers(c)
	if !ok {
		return
	}
	dead := idle + interval*time.Duration(probes)
	l.timersDiffer = l.timersDiffer || l.timers && (dead != l.dead || idle != l.reset)
	l.dead, l.reset, l.timers = max(l.dead, dead), max(l.reset, idle), true
}

// settle counts what each process has in all and lets the verdicts that
// changed know.
func (r *closeWaitLeak) settle(x *Engine, groups map[Key]*leak, order []*leak) {
	type processKey struct{ netns, pid uint32 }
	sizes := make(map[processKey][]int)
	for _, l := range order {
		k := processKey{l.key.Netns, l.key.PID}
		sizes[k] = append(sizes[k], l.count)
	}
	for _, s := range sizes {
		slices.Sort(s)
	}
	for k, l := range groups {
		s := sizes[processKey{k.Netns, k.PID}]
		old := r.found[k]
		if l.count == 0 {
			if v := x.kept[liveKey{ruleIndex(r), k}]; v != nil {
				v.finding, v.dirty = l, true
			}
			continue
		}
		l.total, l.remotes, l.typical = 0, len(s), 0
		for _, n := range s {
			l.total += n
		}
		if len(s) > 0 {
			l.typical = s[len(s)/2]
		}
		if v := x.kept[liveKey{ruleIndex(r), k}]; v != nil {
			v.finding = l
			if old == nil || old.count != l.count {
				v.dirty = true
			}
		}
	}
}

func (l *leak) Describe(x *Engine, v *Verdict) {
	v.Severity, v.Confidence = Warning, Likely
	if l.sure {
		v.Confidence = Certain
	}
	v.Subject = Subject{"process", l.owner.Name()}
	v.Process = process(l.owner)
	oldest, newest := time.Duration(l.at-l.oldest), time.Duration(l.at-l.newest)
	age, atLeast := "exact", ""
	if !l.exact {
		age, atLeast = "at least", "at least "
	}
	noun, since := "sockets", "the oldest for "
	if l.count == 1 {
		noun, since = "socket", "for "
	}
	who := l.owner.Name()
	if !l.owner.Known() {
		who = "their process"
	}
	where := "to " + l.remote
	service := Fact{Key: "service", Note: "several"}
	switch {
	case l.services && l.role == timeline.RoleUnknown:
		service.Note = "which end is the server is not known"
	case l.services || l.key.What != "" && l.role != timeline.RoleServer:
	case l.service.Addr().IsValid():
		service = Fact{Key: "service", Value: l.service.String()}
	default:
		service = Fact{Key: "service", Value: fmt.Sprintf("port %d", l.service.Port())}
	}
	if l.role == timeline.RoleServer && service.Value != nil {
		where = fmt.Sprintf("of %s to %s", service.Value, l.remote)
	}
	v.Story = fmt.Sprintf("%d %s %s in CLOSE_WAIT, %s%s%s: the peer closed, %s has not called close()",
		l.count, noun, where, since, atLeast, timeline.Duration(oldest), who)
	if l.count == 0 {
		left := "they are closed now, by the process or by its end"
		if l.moved {
			left = "those that are not closed count as another process's now, as found out since"
		}
		noun = "sockets"
		if l.most == 1 {
			noun = "socket"
		}
		v.Story = fmt.Sprintf("%s held up to %d %s %s in CLOSE_WAIT, for up to %s; %s",
			who, l.most, noun, where, timeline.Duration(l.longest), left)
	}
	count := Fact{Key: "count", Value: int64(l.count)}
	if l.count == 0 {
		count = Fact{Key: "count", Value: int64(l.most), Note: "the most at a time: none is left"}
	}
	keepalive := "mixed"
	switch {
	case l.on == 0 && l.off == 0:
		keepalive = "unknown"
	case l.on == 0:
		keepalive = "off"
	case l.off == 0:
		keepalive = "on"
	}
	reaped := Fact{Key: "reaped_after_s"}
	reapedRST := Fact{Key: "reaped_after_rst_s"}
	switch {
	case l.on == 0 && l.off > 0:
		reaped.Note = "never: keepalive is off"
		reapedRST.Note = reaped.Note
	case l.on == 0 || !l.timers:
		reaped.Note = "the timers are not known"
		reapedRST.Note = reaped.Note
	default:
		reaped.Value, reapedRST.Value = seconds(l.dead), seconds(l.reset)
		if l.off > 0 {
			reaped.Note = "only those with keepalive on, the others never"
		} else if l.timersDiffer {
			reaped.Note = "the longest: timers differ"
		}
	}
	window := min(max(time.Duration(l.at-l.oldest), time.Minute), closeWaitRecent)
	growth := math.Round(float64(l.recent)/window.Minutes()*10) / 10
	v.Evidence = Evidence{
		count,
		{Key: "peak", Value: int64(max(l.most, l.count))},
		{Key: "gone", Value: l.count == 0},
		{Key: "remote", Value: l.remote},
		service,
		{Key: "oldest_s", Value: seconds(oldest)},
		{Key: "newest_s", Value: seconds(newest)},
		{Key: "age", Value: age},
		{Key: "growth_per_min", Value: growth},
		{Key: "keepalive", Value: keepalive},
		reaped,
		reapedRST,
		{Key: "process_total", Value: int64(l.total)},
		{Key: "process_remotes", Value: int64(l.remotes)},
		{Key: "typical_group", Value: int64(l.typical)},
	}
	v.Fix = docCloseWaitLeak.Fix
	if keepalive == "on" {
		v.Fix = v.Fix[:2]
	}
}
