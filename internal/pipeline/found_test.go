package pipeline

import (
	"context"
	"errors"
	"io"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/filter"
	"github.com/tcptrace/tcptrace/internal/host"
	"github.com/tcptrace/tcptrace/internal/lab"
	"github.com/tcptrace/tcptrace/internal/render"
	"github.com/tcptrace/tcptrace/internal/sockets"
	"github.com/tcptrace/tcptrace/tracer"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// alive is a live run of a fake, as far as namespaces go.
func alive(tr Tracer) *live {
	l := &live{
		Config: Config{Options: Options{Out: render.NewJSON(io.Discard)}, Tracer: tr, Log: zap.NewNop()},
		spaces: make(map[uint32]*space), procs: make(map[uint32]seen), paths: make(map[uint64]string),
	}
	l.m = NewMachine(l.Options)
	l.in = l.m
	l.audit.tracer = tr
	l.audit.begin(nil)
	return l
}

// TestVanishedNumber checks that a namespace that ended before it was found
// does not make tcptrace blind to the next one with its number, is told, and is
// not looked for with every event.
func TestVanishedNumber(t *testing.T) {
	l := alive(&fake{})
	const gone = 1 // no namespace has it
	l.handle(refused(gone, 1, 40001, host.Now()))
	for range retries {
		if s := l.spaces[gone]; s == nil || !s.missing {
			t.Fatalf("%+v, which was not found", s)
		}
		l.search = 0
		l.retry()
	}
	tries := l.spaces[gone].tries
	l.handle(refused(gone, 2, 40002, host.Now()))
	l.retry()
	if tries != retries || l.spaces[gone].tries != tries {
		t.Errorf("looked for %d times and then %d times, want %d", tries, l.spaces[gone].tries, retries)
	}
	if _, notes := l.audit.compare(l.caps, fewAttempts); !strings.Contains(strings.Join(notes, "\n"), "never found: network namespaces 1") {
		t.Errorf("not told: %q", notes)
	}
	// Long after, its number may be another's.
	l.spaces[gone].tried -= int64(forgetAfter)
	l.retry()
	if l.spaces[gone] != nil || l.last.Netns == gone {
		t.Fatal("it is not forgotten")
	}

	ns := namespace(t)
	l.spaces[ns.Inode()] = &space{ns: host.Netns{Inode: ns.Inode()}, missing: true, tries: retries, tried: host.Now() - int64(forgetAfter)}
	l.last.Netns = ns.Inode()
	l.retry()
	l.handle(refused(ns.Inode(), 3, 40003, host.Now()))
	if s := l.spaces[ns.Inode()]; s == nil || !s.known || !slices.Contains(l.pending, ns.Inode()) {
		t.Errorf("%+v, pending %v: not met again", s, l.pending)
	}
	if l.audit.spaces[ns.Inode()] == nil || l.audit.missed[ns.Inode()] {
		t.Error("not audited")
	}
}

// TestEndsWhileItIsMet: between finding a namespace and reading its settings it
// can end; that is no reason to take its number for known.
func TestEndsWhileItIsMet(t *testing.T) {
	l := alive(&fake{})
	l.learn(host.Netns{Inode: 1, Path: "/no/such/path"})
	for range retries {
		l.search = 0
		l.retry()
	}
	if s := l.spaces[1]; s == nil || s.tries < retries || !l.audit.missed[1] {
		t.Fatalf("%+v: not looked for again", s)
	}
	l.spaces[1].tried -= int64(forgetAfter)
	l.retry()
	if l.spaces[1] != nil {
		t.Error("it is not forgotten")
	}
}

// TestCostlySearch: where there are very many threads, namespaces that are not
// found are looked for together, and seldom.
func TestCostlySearch(t *testing.T) {
	l := alive(&fake{})
	l.sought, l.search = host.Now(), 10*time.Second
	l.handle(refused(1, 1, 40001, host.Now()))
	l.retry()
	if s := l.spaces[1]; s == nil || !s.missing || s.tries != 0 {
		t.Fatalf("%+v, want one that was not looked for yet", s)
	}
	l.search = 0
	l.retry()
	if s := l.spaces[1]; s.tries != 1 {
		t.Errorf("looked for %d times once it is time, want once", s.tries)
	}
}

// TestFoundAtTheEnd: a namespace that had to wait for its search is looked for
// before the counters are compared for the last time.
func TestFoundAtTheEnd(t *testing.T) {
	ns := namespace(t)
	l := alive(&fake{})
	l.cost = newCosts(l.Tracer, l.Log)
	defer l.cost.close()
	began := host.Now()
	l.sought, l.search = began, time.Hour
	l.handle(refused(ns.Inode(), 1, 40001, began))
	if s := l.spaces[ns.Inode()]; s == nil || !s.missing {
		t.Fatalf("%+v, want one that was not looked for yet", s)
	}
	sum, err := l.finish(began, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !l.spaces[ns.Inode()].known || slices.ContainsFunc(sum.AuditNotes, func(n string) bool { return strings.Contains(n, "not found") }) {
		t.Errorf("not looked for: %q", sum.AuditNotes)
	}
}

// TestAuditOfOlder checks that a namespace that was merely not visible in the
// beginning is not taken for a new one, all of whose counts were seen.
func TestAuditOfOlder(t *testing.T) {
	for _, c := range []struct {
		seen         uint64 // of the 4 before it is found
		late         bool
		kernel, want uint64 // after 2 more, which are seen
	}{
		{seen: 4, kernel: 6, want: 6},
		{seen: 0, late: true, kernel: 2, want: 2},
		{seen: 9, late: true, kernel: 2, want: 2}, // another one had its number
	} {
		ns := namespace(t)
		if err := refuse(ns, 4); err != nil {
			t.Fatal(err)
		}
		counted := func(n uint64) tracer.Stats {
			seen := make(map[tracer.AuditKey]uint64)
			for _, counter := range []string{"OutRsts", "AttemptFails", "ActiveOpens"} {
				seen[tracer.AuditKey{Netns: ns.Inode(), Counter: counter}] = n
			}
			return tracer.Stats{Audit: seen}
		}
		f := &fake{caps: allSeen(), stats: counted(c.seen)}
		a := auditor{tracer: f}
		a.begin(nil)
		a.add(host.Netns{Inode: ns.Inode(), Path: ns.Path()})
		if err := refuse(ns, 2); err != nil {
			t.Fatal(err)
		}
		f.stats = counted(c.seen + 2)
		lines, notes := a.compare(f.caps, attempts)
		if late := strings.Contains(strings.Join(notes, "\n"), "compared from when it was found"); late != c.late {
			t.Errorf("seen %d: told is %v: %q", c.seen, late, notes)
		}
		i := slices.IndexFunc(lines, func(l render.Audit) bool { return l.Counter == "ActiveOpens" })
		if i < 0 || lines[i].Kernel != c.kernel || lines[i].Explained != c.want || !lines[i].Exact {
			t.Errorf("seen %d: %+v, want %d and %d, exact", c.seen, lines, c.kernel, c.want)
		}
	}
}

// allSeen are capabilities by which every counter is exact.
func allSeen() event.Capabilities {
	caps := event.Capabilities{HasSYNDrops: true, HasACKDrops: true, HasAllRSTSent: true, HasRSTReason: true}
	for _, h := range []string{"tcp_check_req", "tcp_conn_request", "tcp_time_wait"} {
		caps.Hooks = append(caps.Hooks, event.Hook{Name: h, Via: "fentry"})
	}
	return caps
}

// entered notes by which descriptor sockets were looked at.
type entered struct {
	fake
	fds []int
}

func (e *entered) Snapshot(fd int, _ func(*event.Event)) error {
	e.fds = append(e.fds, fd)
	return nil
}

// TestSnapshotOfOwn: to look at the own namespace takes no CAP_SYS_ADMIN.
func TestSnapshotOfOwn(t *testing.T) {
	tr := new(entered)
	l := alive(tr)
	own, err := host.SelfNetns()
	if err != nil {
		t.Fatal(err)
	}
	other, err := host.FindNetns(namespace(t).Inode())
	if err != nil {
		t.Fatal(err)
	}
	l.snapshot([]host.Netns{own, other}, false, false)
	if len(tr.fds) != 2 || tr.fds[0] != -1 || tr.fds[1] < 0 {
		t.Errorf("descriptors %v, want -1 for the own one only", tr.fds)
	}
}

// TestNothingCompared: that no counter moved is not said where none was read.
func TestNothingCompared(t *testing.T) {
	a := auditor{tracer: &fake{}}
	a.begin(nil)
	if _, notes := a.compare(event.Capabilities{}, fewAttempts); !slices.Contains(notes, render.NotCompared) {
		t.Errorf("notes %q", notes)
	}
	own, err := host.SelfNetns()
	if err != nil {
		t.Fatal(err)
	}
	a.begin([]host.Netns{own})
	if _, notes := a.compare(event.Capabilities{}, fewAttempts); len(notes) > 0 {
		t.Errorf("notes %q", notes)
	}
}

// inventory is what TakeStock writes.
type inventory struct {
	render.Sockets
	report *render.Inventory
	spaces []uint32
}

func (i *inventory) Namespace(ns event.Namespace) { i.spaces = append(i.spaces, ns.Inode) }
func (i *inventory) Report(r *render.Inventory) error {
	i.report = r
	return nil
}
func (i *inventory) Flush() error { return nil }

// TestStockOfHeld looks at a namespace that only a descriptor holds, by its path,
// and asks for one that is not there.
func TestStockOfHeld(t *testing.T) {
	path, inode := held(t)
	out := new(inventory)
	take := func(netns ...uint32) {
		t.Helper()
		*out = inventory{}
		err := TakeStock(context.Background(), StockConfig{Options: sockets.Options{Filter: filter.Filter{Netns: netns}}, Out: out})
		if err != nil {
			t.Fatal(err)
		}
	}
	take(inode)
	if len(out.spaces) != 0 || len(out.report.Problems) == 0 || !strings.Contains(strings.Join(out.report.Problems, "\n"), "no such network namespace") {
		t.Errorf("a namespace that is in no list: %v, problems %q", out.spaces, out.report.Problems)
	}
	if _, err := host.ResolveNetns(path); err != nil {
		t.Fatal(err)
	}
	take(inode)
	if !slices.Equal(out.spaces, []uint32{inode}) || strings.Contains(strings.Join(out.report.Problems, "\n"), "no such network namespace") {
		t.Errorf("given by its path: %v, problems %q", out.spaces, out.report.Problems)
	}
}

// held makes a namespace that only a descriptor of this process holds.
func held(t *testing.T) (path string, inode uint32) {
	t.Helper()
	ns, err := lab.NewNamespace()
	if err != nil {
		t.Fatalf("making a network namespace (this test needs root): %v", err)
	}
	fd, err := unix.Open(ns.Path(), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := ns.Close(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, err := host.FindNetns(ns.Inode()); errors.Is(err, host.ErrNoNetns) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the thread that made the namespace does not end")
		}
	}
	return "/proc/self/fd/" + strconv.Itoa(fd), ns.Inode()
}
