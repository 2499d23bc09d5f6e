package pipeline

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unicode"

	"go.uber.org/zap"

	"github.com/tcptrace/tcptrace/internal/filter"
	"github.com/tcptrace/tcptrace/internal/host"
	"github.com/tcptrace/tcptrace/internal/render"
	"github.com/tcptrace/tcptrace/internal/timeline"
	"github.com/tcptrace/tcptrace/tracer"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// fake is a tracer that delivers what a test gives it: events before Stop,
// and what was left in the ring after it.
type fake struct {
	mu      sync.Mutex
	caps    event.Capabilities
	events  []event.Event
	left    []event.Event
	stats   tracer.Stats
	stopped bool
	err     error // of Read
}

func (f *fake) Capabilities() event.Capabilities { return f.caps }

func (f *fake) Read(batch []event.Event, timeout time.Duration) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	from := &f.events
	if f.stopped {
		from = &f.left
	}
	n := copy(batch, *from)
	*from = (*from)[n:]
	switch {
	case f.err != nil:
		return n, f.err
	case n == 0 && f.stopped:
		return 0, io.EOF
	case n == 0:
		time.Sleep(time.Millisecond)
	}
	return n, nil
}

func (f *fake) Stop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stopped = true
}

func (f *fake) Snapshot(int, func(*event.Event)) error { return nil }

func (f *fake) Folded(int64) ([]event.Event, error) { return nil, nil }

func (f *fake) Stats() (tracer.Stats, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.stats, nil
}

// self is the namespace of the test, so that its facts can be read.
func self(t testing.TB) uint32 {
	t.Helper()
	ns, err := host.SelfNetns()
	if err != nil {
		t.Fatal(err)
	}
	return ns.Inode
}

var (
	clientAddr = netip.MustParseAddr("127.0.0.1")
	serverAddr = netip.MustParseAddrPort("127.0.0.1:8080")
)

func comm(s string) (c event.Comm) {
	copy(c[:], s)
	return c
}

// refused is a connect() that was answered by RST.
func refused(netns uint32, sock uint64, port uint16, at int64) []event.Event {
	base := event.Event{
		Time: at, Sock: sock, Netns: netns, Kind: event.KindState,
		Local: netip.AddrPortFrom(clientAddr, port), Remote: serverAddr,
	}
	sent, reset, closed := base, base, base
	sent.Old, sent.New = event.StateClose, event.StateSynSent
	sent.Local = netip.AddrPortFrom(clientAddr, 0)
	sent.Flags, sent.PID, sent.Comm = event.FlagProcess, 900, comm("curl")
	reset.Kind, reset.Old, reset.New, reset.Time = event.KindRSTReceived, event.StateSynSent, event.StateSynSent, at+50_000
	closed.Old, closed.New, closed.Err, closed.Time = event.StateSynSent, event.StateClose, uint16(syscall.ECONNREFUSED), at+60_000
	return []event.Event{sent, reset, closed}
}

// watch runs a fake for as long as there is something to read, and a little
// longer, and returns the lines of its output.
func watch(t *testing.T, f *fake, change func(*Config)) ([]map[string]any, *render.Summary, error) {
	t.Helper()
	var out bytes.Buffer
	cfg := Config{
		Options: Options{Out: render.NewJSON(&out), Show: Show{Verdicts: true, Connections: true}},
		Tracer:  f, Version: "test", Host: "here", Duration: 300 * time.Millisecond,
	}
	if change != nil {
		change(&cfg)
	}
	sum, err := Run(context.Background(), cfg)
	var lines []map[string]any
	for line := range strings.Lines(out.String()) {
		var v map[string]any
		if err := json.Unmarshal([]byte(line), &v); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		lines = append(lines, v)
	}
	return lines, sum, err
}

// of picks the lines of a type.
func of(lines []map[string]any, kind string) []map[string]any {
	var out []map[string]any
	for _, l := range lines {
		if l["type"] == kind {
			out = append(out, l)
		}
	}
	return out
}

func TestRun(t *testing.T) {
	netns, now := self(t), host.Now()
	f := &fake{
		caps:   event.Capabilities{Kernel: "6.18", Attach: "fentry", Identity: event.IdentityCookie},
		events: refused(netns, 1, 40001, now),
		left:   refused(netns, 2, 40002, now+1_000_000), // still in the ring at the end
	}
	ready := 0
	lines, sum, err := watch(t, f, func(c *Config) {
		c.Ready = func() error { ready++; return nil }
	})
	if err != nil {
		t.Fatal(err)
	}
	if ready != 1 || !f.stopped {
		t.Errorf("Ready was called %d times, stopped is %v", ready, f.stopped)
	}
	if lines[0]["type"] != "start" || lines[len(lines)-1]["type"] != "summary" {
		t.Errorf("the output begins with %v and ends with %v", lines[0]["type"], lines[len(lines)-1]["type"])
	}
	conns := of(lines, "connection")
	if len(conns) != 2 {
		t.Fatalf("%d connections, want 2: %v", len(conns), lines)
	}
	for i, c := range conns {
		process := c["process"].(map[string]any)
		if c["role"] != "client" || c["remote"] != "127.0.0.1:8080" || process["comm"] != "curl" || process["source"] != "connect" {
			t.Errorf("connection %d: %v", i, c)
		}
		when, err := time.Parse(time.RFC3339Nano, c["opened"].(string))
		if err != nil || time.Since(when) > time.Minute || time.Since(when) < 0 {
			t.Errorf("connection %d opened at %v: %v", i, c["opened"], err)
		}
	}
	if sum.Connections != 2 || sum.Events != 6 || sum.Lost != 0 || sum.Duration < 300*time.Millisecond {
		t.Errorf("summary: %+v", sum)
	}
	if sum.Verdicts["connect-refused"] != 2 {
		t.Errorf("verdicts %v, want connect-refused twice", sum.Verdicts)
	}
	if v := of(lines, "verdict"); len(v) < 2 || v[0]["code"] != "connect-refused" {
		t.Errorf("verdict lines: %v", v)
	}
}

func TestShow(t *testing.T) {
	netns := self(t)
	for _, c := range []struct {
		name                          string
		change                        func(*Config)
		events, connections, verdicts int
	}{
		{"connections", func(c *Config) { c.Show = Show{Connections: true} }, 0, 2, 0},
		{"events", func(c *Config) { c.Show = Show{Events: true} }, 6, 0, 0},
		{"nothing", func(c *Config) { c.Show = Show{} }, 0, 0, 0},
		{"count", func(c *Config) { c.Show = Show{Events: true}; c.Count = 3 }, 3, 0, 0},
		{"local port", func(c *Config) { c.Show = Show{Connections: true}; c.Filter.LocalPorts = []uint16{40002} }, 0, 1, 0},
		{"other port", func(c *Config) { c.Filter.Ports = []uint16{80} }, 0, 0, 0},
		{"other namespace", func(c *Config) { c.Filter.Netns = []uint32{1} }, 0, 0, 0},
		{"process", func(c *Config) { c.Show = Show{Connections: true}; c.Filter.PIDs = []uint32{900} }, 0, 2, 0},
		{"other process", func(c *Config) { c.Filter.Comms = []string{"wget"} }, 0, 0, 0},
		{"state", func(c *Config) { c.Show = Show{Connections: true}; c.Filter.States = []event.State{event.StateClose} }, 0, 2, 0},
		{"other state", func(c *Config) { c.Show = Show{Connections: true}; c.Filter.States = []event.State{event.StateListen} }, 0, 0, 0},
		{"code", func(c *Config) { c.Show = Show{Connections: true}; c.Filter.Codes = []string{"connect-refused"} }, 0, 2, 0},
		{"other code", func(c *Config) { c.Filter.Codes = []string{"reset-sent"} }, 0, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := &fake{events: append(refused(netns, 1, 40001, host.Now()), refused(netns, 2, 40002, host.Now())...)}
			lines, _, err := watch(t, f, c.change)
			if err != nil {
				t.Fatal(err)
			}
			if n := len(of(lines, "event")); n != c.events {
				t.Errorf("%d events, want %d", n, c.events)
			}
			if n := len(of(lines, "connection")); n != c.connections {
				t.Errorf("%d connections, want %d", n, c.connections)
			}
			if n := len(of(lines, "verdict")); n != c.verdicts {
				t.Errorf("%d verdicts, want %d: %v", n, c.verdicts, lines)
			}
		})
	}
}

func TestLost(t *testing.T) {
	f := &fake{events: refused(self(t), 1, 40001, host.Now())}
	f.stats.Lost = map[string]uint64{"ring": 7, "map": 0, "missed tp_state": 2}
	lines, sum, err := watch(t, f, nil)
	if err != nil {
		t.Fatal(err)
	}
	lost := of(lines, "lost")
	if len(lost) != 2 || lost[0]["where"] != "missed tp_state" || lost[1]["count"] != 7.0 || sum.Lost != 9 {
		t.Errorf("lost lines %v, in all %d", lost, sum.Lost)
	}
}

// blocked is a writer that takes only so many bytes.
type blocked struct {
	room int
	err  error
}

func (b *blocked) Write(p []byte) (int, error) {
	if b.room -= len(p); b.room < 0 {
		return 0, b.err
	}
	return len(p), nil
}

func TestOutputEnds(t *testing.T) {
	netns := self(t)
	for _, want := range []error{syscall.EPIPE, syscall.ENOSPC} {
		for _, room := range []int{0, 500} {
			f := &fake{events: refused(netns, 1, 40001, host.Now())}
			begin := time.Now()
			_, _, err := watch(t, f, func(c *Config) {
				c.Out = render.NewJSON(&blocked{room, want})
				c.Duration = time.Minute
			})
			if !errors.Is(err, want) {
				t.Errorf("with room for %d bytes: %v, want %v", room, err, want)
			}
			if err != nil && strings.Count(err.Error(), want.Error()) != 1 {
				t.Errorf("with room for %d bytes it is said more than once: %v", room, err)
			}
			if !f.stopped {
				t.Error("the tracer was not stopped")
			}
			if d := time.Since(begin); d > 20*time.Second {
				t.Errorf("it took %v to notice", d)
			}
		}
	}
}

func TestErrors(t *testing.T) {
	want := errors.New("no")
	lines, _, err := watch(t, &fake{err: want}, nil)
	if !errors.Is(err, want) {
		t.Errorf("a tracer that fails: %v", err)
	}
	if len(lines) == 0 || lines[len(lines)-1]["type"] != "summary" {
		t.Errorf("a tracer that fails: no summary in %v", lines)
	}
	f := &fake{}
	_, _, err = watch(t, f, func(c *Config) { c.Ready = func() error { return want } })
	if !errors.Is(err, want) || !f.stopped {
		t.Errorf("Ready fails: %v, stopped is %v", err, f.stopped)
	}
}

func TestContextEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	f := &fake{left: refused(self(t), 1, 40001, host.Now())}
	var out bytes.Buffer
	sum, err := Run(ctx, Config{
		Options: Options{Out: render.NewText(&out, render.TextOptions{})}, Tracer: f,
		Ready: func() error { cancel(); return nil },
	})
	if err != nil || sum == nil || sum.Connections != 1 {
		t.Errorf("Run = %+v, %v: what was in the ring at the end was not drained", sum, err)
	}
	if !strings.Contains(out.String(), "summary") {
		t.Errorf("no summary in %q", out.String())
	}
}

// endless is a tracer that always has a full batch.
type endless struct{ fake }

func (*endless) Read(batch []event.Event, _ time.Duration) (int, error) { return len(batch), nil }

// TestMeanwhileEnds: events that come faster than they are handled keep nobody
// from looking at the clock and at signals.
func TestMeanwhileEnds(t *testing.T) {
	l := &live{Config: Config{Tracer: &endless{}, Log: zap.NewNop()}, spaces: make(map[uint32]*space)}
	l.m = NewMachine(Options{Out: render.NewText(io.Discard, render.TextOptions{})})
	l.in = l.m
	l.last.Netns = 0
	done := make(chan struct{})
	go func() {
		l.meanwhile(0)
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Fatal("meanwhile goes on for ever")
	}
}

// TestSettingsChange: settings are those of now, not those of when tracing
// began.
func TestSettingsChange(t *testing.T) {
	l := &live{Config: Config{Tracer: &fake{}, Log: zap.NewNop()}, spaces: make(map[uint32]*space)}
	x := new(namespaces)
	l.m = NewMachine(Options{Out: x})
	l.in = l.m
	x.Renderer = render.NewText(io.Discard, render.TextOptions{})
	ns, err := host.SelfNetns()
	if err != nil {
		t.Fatal(err)
	}
	l.learn(ns)
	if !l.spaces[ns.Inode].known {
		t.Fatal("the settings of the own namespace cannot be read")
	}
	now := l.spaces[ns.Inode].facts
	l.relearn([]uint32{ns.Inode, 1})
	if len(x.told) != 1 {
		t.Errorf("nothing has changed, and was told %d times", len(x.told))
	}
	l.spaces[ns.Inode].facts.Sysctls.PortRangeLow-- // as it was before
	l.relearn([]uint32{ns.Inode})
	if len(x.told) != 2 || x.told[1] != now || l.spaces[ns.Inode].facts != now {
		t.Errorf("a change was not told: %+v", x.told)
	}
}

// namespaces notes what is told of them.
type namespaces struct {
	render.Renderer
	told []event.Namespace
}

func (n *namespaces) Namespace(ns event.Namespace) { n.told = append(n.told, ns) }

// TestMachineReplays: the same input gives the same output.
func TestMachineReplays(t *testing.T) {
	replay := func() string {
		var out bytes.Buffer
		m := NewMachine(Options{
			Out: render.NewJSON(&out), Show: Show{Verdicts: true, Connections: true, Events: true, All: true},
			Timeline: timeline.Options{Key: [16]byte{1}},
		})
		m.Clock(1_000_000)
		m.Namespace(event.Namespace{Inode: 5, Name: "blue"})
		for i := range 300 {
			for _, e := range refused(5, uint64(i+1), uint16(40000+i), int64(i+1)*10_000_000) {
				m.Process(event.Process{PID: e.PID, Comm: e.Comm.String(), Cgroup: "/x"})
				m.Event(&e)
			}
			m.Advance(int64(i+1) * 10_000_000)
		}
		if _, err := m.Finish(10_000_000_000, render.Summary{}); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	a, b := replay(), replay()
	if a != b {
		t.Error("the same events gave different output")
	}
	if n := strings.Count(a, `"type":"connection"`); n != 300 {
		t.Errorf("%d connections, want 300", n)
	}
}

func TestFilterOfCgroup(t *testing.T) {
	var out bytes.Buffer
	m := NewMachine(Options{
		Out: render.NewJSON(&out), Show: Show{Connections: true, Verdicts: true},
		Filter: filter.Filter{Cgroups: []string{"/system.slice"}},
	})
	for i, cgroup := range []string{"/system.slice/a.service", "/user.slice"} {
		for _, e := range refused(5, uint64(i+1), uint16(40000+i), 1_000_000_000) {
			if e.PID != 0 {
				e.PID += uint32(i)
				m.Process(event.Process{PID: e.PID, Comm: e.Comm.String(), Cgroup: cgroup})
			}
			m.Event(&e)
		}
	}
	sum, err := m.Finish(5_000_000_000, render.Summary{})
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(out.String(), `"type":"connection"`); n != 1 || sum.Verdicts["connect-refused"] != 1 {
		t.Errorf("%d connections of the cgroup, want 1; verdicts %v\n%s", n, sum.Verdicts, out.String())
	}
}

// TestRandom feeds what no kernel would send: nothing may panic, and nothing
// unescaped may come out.
func TestRandom(t *testing.T) {
	hostile := comm("\x1b[31m\u202e\n\xff")
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 7))
		var text, lines bytes.Buffer
		for _, out := range []render.Renderer{render.NewText(&text, render.TextOptions{}), render.NewJSON(&lines)} {
			m := NewMachine(Options{
				Out: out, Show: Show{Verdicts: true, Connections: true, Events: true, All: true},
				Timeline: timeline.Options{MaxConnections: 50, MaxRequests: 20},
			})
			now := int64(1_000_000_000)
			for range 2000 {
				now += r.Int64N(50_000_000)
				end := func() netip.AddrPort {
					return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(r.IntN(2))}), uint16(79+r.IntN(4)))
				}
				e := event.Event{
					Time: now - r.Int64N(20_000_000), Sock: uint64(r.IntN(8)), Netns: uint32(r.IntN(3)), Kind: event.Kind(r.IntN(16)),
					Old: event.State(r.IntN(13)), New: event.State(r.IntN(13)), Flags: event.Flags(r.Uint32()),
					Local: end(), Remote: end(), PID: r.Uint32N(3), Comm: hostile, Err: uint16(r.IntN(130)), Attempt: uint8(r.IntN(8)), Reason: r.Uint32N(20),
					Listener: event.Listener{ID: uint64(r.IntN(3)), QueueLen: r.Uint32N(20), QueueLimit: r.Uint32N(20)},
				}
				switch r.IntN(50) {
				case 0:
					m.Lost(now, event.Lost{Where: "ring", Count: 1})
				case 1:
					m.Process(event.Process{PID: e.PID, Comm: hostile.String(), Cgroup: "/\x1b"})
				case 2:
					m.BeginSnapshot(e.Netns, now)
					e.Kind, e.Inventory = event.KindSnapshot, &event.Inventory{Inode: 1}
					m.Snapshot(&e, e.PID, hostile.String())
					m.EndSnapshot(e.Netns, now)
				case 3:
					m.Advance(now)
				default:
					m.Event(&e)
				}
			}
			if _, err := m.Finish(now, render.Summary{}); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
		}
		for _, out := range []string{text.String(), lines.String()} {
			if out == "" {
				t.Fatalf("seed %d: no output", seed)
			}
			for line := range strings.Lines(out) {
				for _, c := range strings.TrimSuffix(line, "\n") {
					if !unicode.IsGraphic(c) {
						t.Fatalf("seed %d: %U in %q", seed, c, line)
					}
				}
			}
		}
		for line := range strings.Lines(lines.String()) {
			if !json.Valid([]byte(line)) {
				t.Fatalf("seed %d: not JSON: %s", seed, line)
			}
		}
	}
}

// BenchmarkMachine measures the way of short connections through timeline and
// rules: ten state changes and an accept() for both ends, as on loopback.
func BenchmarkMachine(b *testing.B) {
	life := short(5)
	m := NewMachine(Options{Out: render.NewJSON(io.Discard), Show: Show{Verdicts: true, Connections: true}, Timeline: timeline.Options{
		Capabilities: event.Capabilities{Identity: event.IdentityCookie},
	}})
	l := live{Config: Config{Options: m.o}, m: m, spaces: map[uint32]*space{5: {known: true}}, procs: map[uint32]seen{}, paths: map[uint64]string{}}
	b.ReportAllocs()
	now := int64(1_000_000_000)
	events := 0
	cpu, _, err := host.Usage()
	if err != nil {
		b.Fatal(err)
	}
	batch := make([]event.Event, len(life))
	for i := 0; b.Loop(); i++ {
		now += 20_000
		copy(batch, life)
		for j := range batch {
			e := &batch[j]
			e.Time += now
			e.Sock += uint64(i) * 4
			port := uint16(32768 + i%28000)
			if e.Local.Port() == 1 {
				e.Local = netip.AddrPortFrom(clientAddr, port)
			}
			if e.Remote.Port() == 1 {
				e.Remote = netip.AddrPortFrom(clientAddr, port)
			}
		}
		l.handle(batch)
		events += len(batch)
		if i%100 == 0 {
			m.Advance(now)
		}
	}
	used, _, err := host.Usage()
	if err != nil {
		b.Fatal(err)
	}
	// Processor time, garbage collection included: the machine may be shared.
	b.ReportMetric(float64(events)/(used-cpu).Seconds(), "events/cpu-s")
	if s := m.tracker.Stats(); s.Evicted != 0 || s.Live > 16 {
		b.Errorf("connections did not end: %+v", s)
	}
}

// short is a connection that goes well, at both ends. Port 1 stands for the
// client's, socket 1 and 2 for the ends.
func short(netns uint32) []event.Event {
	client, server := netip.AddrPortFrom(clientAddr, 1), serverAddr
	state := func(sock uint64, at int64, from, to event.State, flags event.Flags) event.Event {
		e := event.Event{
			Time: at, Sock: sock, Netns: netns, Kind: event.KindState, Old: from, New: to, Flags: flags,
			Local: client, Remote: server, Traffic: event.Traffic{BytesSent: 100, BytesReceived: 100, SRTT: 50},
		}
		if sock == 2 {
			e.Local, e.Remote = server, client
		}
		if flags&event.FlagProcess != 0 {
			e.PID, e.Comm = 900+uint32(sock), comm("bench")
		}
		return e
	}
	connect := state(1, 0, event.StateClose, event.StateSynSent, event.FlagProcess)
	connect.Local = netip.AddrPortFrom(clientAddr, 0)
	accept := state(2, 40_000, event.StateEstablished, event.StateEstablished, event.FlagProcess)
	accept.Kind = event.KindAccept
	shut := event.FlagShutRD | event.FlagShutWR
	return []event.Event{
		connect,
		state(1, 20_000, event.StateSynSent, event.StateEstablished, 0),
		state(2, 30_000, event.StateSynRecv, event.StateEstablished, 0),
		accept,
		state(1, 1_000_000, event.StateEstablished, event.StateFinWait1, event.FlagProcess|shut),
		state(2, 1_010_000, event.StateEstablished, event.StateCloseWait, event.FlagDone|event.FlagShutRD),
		state(1, 1_020_000, event.StateFinWait1, event.StateFinWait2, shut),
		state(2, 1_100_000, event.StateCloseWait, event.StateLastAck, event.FlagProcess|shut|event.FlagDone),
		state(1, 1_110_000, event.StateFinWait2, event.StateClose, event.FlagTimeWait|shut),
		state(2, 1_120_000, event.StateLastAck, event.StateClose, shut),
	}
}

// TestNamespaceReused checks that a filter by namespace does not go over to
// another one that was given the number of one that ended.
func TestNamespaceReused(t *testing.T) {
	netns := self(t)
	l := &live{
		Config: Config{Options: Options{Out: render.NewJSON(io.Discard)}, Tracer: &fake{}, Log: zap.NewNop()},
		spaces: make(map[uint32]*space), limit: map[uint32]bool{netns: true}, procs: make(map[uint32]seen), paths: make(map[uint64]string),
	}
	l.m = NewMachine(l.Options)
	l.in = l.m
	l.audit.tracer = l.Tracer
	ns, err := host.SelfNetns()
	if err != nil {
		t.Fatal(err)
	}
	l.audit.begin([]host.Netns{ns})
	l.learn(ns)
	l.retry()
	l.handle(refused(netns, 1, 40001, host.Now()))
	if l.m.events != 3 {
		t.Fatalf("%d events of the namespace that was asked for, want 3", l.m.events)
	}
	l.audit.spaces[netns].first.cookie++ // as if it had been another one then
	l.retry()
	l.handle(refused(netns, 2, 40002, host.Now()))
	if l.m.events != 3 {
		t.Errorf("%d events more, of another namespace", l.m.events-3)
	}
}

// TestFoundIsNoEvent checks that sockets older than the start are not shown as
// events, of which there may be as many as the host has sockets.
func TestFoundIsNoEvent(t *testing.T) {
	var b bytes.Buffer
	m := NewMachine(Options{Out: render.NewJSON(&b), Show: Show{Events: true}, Count: 1})
	netns, now := self(t), host.Now()
	m.BeginSnapshot(netns, now)
	m.Snapshot(&event.Event{
		Time: now, Sock: 7, Netns: netns, Kind: event.KindSnapshot, Old: event.StateEstablished, New: event.StateEstablished,
		Local: netip.AddrPortFrom(clientAddr, 40001), Remote: serverAddr, Inventory: &event.Inventory{Inode: 9},
	}, 900, "curl")
	m.EndSnapshot(netns, now+1)
	if err := m.o.Out.Flush(); err != nil || b.Len() > 0 || m.Done() {
		t.Errorf("%v, done is %v, shown: %s", err, m.Done(), b.String())
	}
	for _, e := range refused(netns, 8, 40002, now+10) {
		m.Event(&e)
	}
	if err := m.o.Out.Flush(); err != nil || !m.Done() {
		t.Errorf("%v, nothing shown of what happened: %s", err, b.String())
	}
}

// TestIncompleteIsNotWrong checks that a loss does not make every connection
// that lived then worth showing, but that it is told of those that are shown.
func TestIncompleteIsNotWrong(t *testing.T) {
	for _, all := range []bool{false, true} {
		var b bytes.Buffer
		m := NewMachine(Options{Out: render.NewJSON(&b), Show: Show{Connections: true, All: all}})
		now := host.Now()
		e := event.Event{Sock: 1, Netns: self(t), Kind: event.KindState, Local: netip.AddrPortFrom(clientAddr, 40001), Remote: serverAddr}
		for i, s := range []event.State{event.StateSynSent, event.StateEstablished, event.StateFinWait1, event.StateFinWait2, event.StateClose} {
			e.Old, e.New, e.Time = e.New, s, now+int64(i)*1000
			if i == 0 {
				e.Old = event.StateClose
			}
			if s == event.StateFinWait1 {
				m.Lost(e.Time, event.Lost{Where: "ring", Count: 3})
			}
			if s == event.StateClose {
				e.Flags = event.FlagTimeWait
			}
			step := e
			m.Event(&step)
		}
		if _, err := m.Finish(now+int64(time.Second), render.Summary{}); err != nil {
			t.Fatal(err)
		}
		if shown := strings.Contains(b.String(), `"incomplete":true`); shown != all {
			t.Errorf("all is %v: shown is %v: %s", all, shown, b.String())
		}
	}
}
