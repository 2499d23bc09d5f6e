package pipeline

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tcptrace/tcptrace/internal/diagnose"
	"github.com/tcptrace/tcptrace/internal/dump"
	"github.com/tcptrace/tcptrace/internal/dump/dumptest"
	"github.com/tcptrace/tcptrace/internal/render"
	"github.com/tcptrace/tcptrace/internal/timeline"
	"github.com/tcptrace/tcptrace/internal/timeline/timelinetest"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// memory is a recording whose parts can be replayed.
type memory struct{ *dumptest.Memory }

func newMemory() *memory { return &memory{dumptest.NewMemory()} }

func (m *memory) part(t *testing.T, i int) Part { return m.reader(t, i, m.bytes(t, i)) }

func (m *memory) bytes(t *testing.T, i int) []byte {
	t.Helper()
	b, err := m.Bytes(i)
	require.NoError(t, err)
	return b
}

func (m *memory) reader(t *testing.T, i int, b []byte) Part {
	t.Helper()
	r, err := dump.NewReader(bytes.NewReader(b))
	require.NoError(t, err)
	return Part{Name: "part " + string(rune('0'+i)), Reader: r}
}

// taped lets a script's steps be told to a machine and a recorder.
type taped struct{ both }

func (t *taped) Handle(e *event.Event) {
	if e.Kind == event.KindSnapshot {
		t.Snapshot(e, uint32(e.Sock%3), "holder")
		return
	}
	t.Event(e)
}

func (t *taped) SnapshotOwner(uint64, int64, uint32, string) {}
func (t *taped) Drain(now int64)                             { t.Advance(now) }

func replayed(t *testing.T, o Options, until render.Stamp, parts ...Part) (string, *Replayed) {
	t.Helper()
	var b bytes.Buffer
	o.Out = render.NewJSON(&b)
	list, twice := Recordings(parts)
	require.Empty(t, twice)
	require.Len(t, list, 1)
	got, err := Replay(context.Background(), ReplayConfig{Options: o, Until: until}, list[0])
	require.NoError(t, err)
	return b.String(), got
}

// TestReplayIsTheSame: what was recorded gives what was shown, byte for byte,
// whatever happened and into how many parts it was divided.
func TestReplayIsTheSame(t *testing.T) {
	scripts, err := timelinetest.Load("../diagnose/testdata", "../timeline/testdata")
	require.NoError(t, err)
	for seed := range uint64(100) {
		r := rand.New(rand.NewPCG(seed, 9))
		_, _, steps := timelinetest.Mix(r, scripts, 300)
		caps := event.Capabilities{
			Identity: event.IdentityCookie, Attach: "fentry", Kernel: "6.1", HasAccept: true, HasSYNDrops: true, HasACKDrops: true, HasListenArg: true,
			HasAllRSTSent: true, HasRequestAborts: true, HasBindFailures: true, HasProbes: true, HasDrops: true, HasMemory: true, HasTimeWaitOverflow: true,
			Hooks: []event.Hook{{Name: "h", Via: "none", Gives: "g", Why: "w"}}, DropReasons: map[uint32]string{2: "NO_SOCKET"},
		}
		o := Options{
			Show:     Show{Verdicts: true, Connections: true, Events: r.IntN(2) == 0, All: r.IntN(2) == 0},
			Timeline: timeline.Options{Capabilities: caps, Key: [16]byte{byte(seed), 1}},
			Diagnose: diagnose.Options{Capabilities: caps, CloseWait: 1, Idle: 1, FinWait: 1, SlowAccept: 1, ZeroWindow: 1, Backoff: 1},
		}
		var live bytes.Buffer
		w := o
		w.Out = render.NewJSON(&live)
		m, mem := NewMachine(w), newMemory()
		h := dump.Header{Tool: "v", Host: "h", Kernel: "6.1", Started: 1e18, StartedBoot: 1, Key: o.Timeline.Key, Capabilities: caps}
		require.NoError(t, mem.Begin(h))
		require.NoError(t, w.Out.Start(start(&h)))
		tape := &taped{both: both{m, mem}}
		tape.Clock(1e18)
		for i := 0; i < len(steps); {
			n := min(len(steps)-i, 1+r.IntN(50))
			timelinetest.Play(tape, steps[i:i+n])
			i += n
			switch r.IntN(6) {
			case 0:
				mem.Flush()
			case 1:
				mem.Rotate()
			case 2:
				tape.Process(event.Process{PID: uint32(r.IntN(9)), Comm: "x", Cgroup: "/c"})
			}
		}
		s := render.Summary{Duration: time.Minute, Audit: []render.Audit{{Counter: "OutRsts", Kernel: 3}}, Cost: render.Cost{BPFKnown: true, RSSBytes: 7}}
		require.NoError(t, mem.End(endOf(m.now, s, nil)))
		_, err := m.Finish(m.now, s)
		require.NoError(t, err)
		var parts []Part
		for i := range mem.Parts() {
			parts = append(parts, mem.part(t, mem.Parts()-1-i)) // in any order
		}
		got, what := replayed(t, o, 0, parts...)
		require.True(t, live.String() == got, "seed %d:\n%s\nreplayed:\n%s", seed, live.String(), got)
		require.Empty(t, what.Problems)
	}
}

// run is a short recorded run of a server that closes at once, n times.
func run(t *testing.T, n int, between func(*taped, *memory, int)) (*memory, Options, string) {
	t.Helper()
	var live bytes.Buffer
	o := Options{Show: Show{Verdicts: true, Connections: true, All: true}}
	w := o
	w.Out = render.NewJSON(&live)
	m, mem := NewMachine(w), newMemory()
	h := dump.Header{Tool: "v", Host: "h", Started: 1e18, StartedBoot: 1}
	require.NoError(t, mem.Begin(h))
	require.NoError(t, w.Out.Start(start(&h)))
	tape := &taped{both: both{m, mem}}
	tape.Clock(1e18)
	for i := range n {
		for _, e := range short(1) {
			e.Sock += uint64(i * 100)
			e.Time += int64(i+1) * int64(time.Second)
			for _, a := range []*netip.AddrPort{&e.Local, &e.Remote} {
				if a.Port() == 1 {
					*a = netip.AddrPortFrom(a.Addr(), uint16(1000+i))
				}
			}
			tape.Event(&e)
		}
		tape.Advance(int64(i+2)*int64(time.Second) - 1)
		mem.Flush()
		if between != nil {
			between(tape, mem, i)
		}
	}
	now := int64(n+2) * int64(time.Second)
	require.NoError(t, mem.End(endOf(now, render.Summary{Duration: time.Second}, nil)))
	_, err := m.Finish(now, render.Summary{Duration: time.Second})
	require.NoError(t, err)
	return mem, o, live.String()
}

// TestNamespacesOfOneName: those that a filter means are looked through with each
// event.
func TestNamespacesOfOneName(t *testing.T) {
	m := NewMachine(Options{Out: render.NewJSON(io.Discard), Spaces: []string{"blue"}})
	for i := range uint32(3 * maxMeant) {
		m.Namespace(event.Namespace{Inode: i/2 + 1, Name: "blue"})
		m.Namespace(event.Namespace{Inode: 1 << 20, Name: "red"})
	}
	require.Len(t, m.o.Filter.Netns, maxMeant)
	require.Contains(t, m.o.Filter.Netns, uint32(1000))
	require.NotContains(t, m.o.Filter.Netns, uint32(1<<20))
}

func TestReplayOfWhatIsThere(t *testing.T) {
	mem, o, live := run(t, 9, func(_ *taped, m *memory, i int) {
		if i%3 == 2 && i < 8 {
			m.Rotate()
		}
	})
	require.Equal(t, 3, mem.Parts())
	all, _ := replayed(t, o, 0, mem.part(t, 0), mem.part(t, 1), mem.part(t, 2))
	require.Equal(t, live, all)

	_, got := replayed(t, o, 0, mem.part(t, 0), mem.part(t, 2))
	require.Len(t, got.Problems, 1)
	require.Contains(t, got.Problems[0], "part 2 of the recording is not here")
	perPart := uint64(0)
	for _, f := range mem.Frames(1) {
		perPart += uint64(f.Events)
	}
	require.Equal(t, perPart, got.Summary.Lost, "what the missing part held is told as lost")

	_, got = replayed(t, o, 0, mem.part(t, 1))
	require.Len(t, got.Problems, 2, "neither its beginning nor its end is here: %q", got.Problems)
	require.Zero(t, got.Summary.Lost)

	whole := mem.bytes(t, 2)
	_, got = replayed(t, o, 0, mem.part(t, 0), mem.part(t, 1), mem.reader(t, 2, whole[:len(whole)-200]))
	require.NotEmpty(t, got.Problems)
	require.Contains(t, got.Problems[len(got.Problems)-1], "has no end")

	list, twice := Recordings([]Part{mem.part(t, 1), mem.part(t, 0), mem.part(t, 1), mem.part(t, 0)})
	require.Len(t, list, 1)
	require.Len(t, list[0].Parts, 2)
	require.Len(t, twice, 2)
	require.ErrorIs(t, twice[0], ErrSamePart)
}

// TestReplayUntil: it is as if the recording had ended there.
func TestReplayUntil(t *testing.T) {
	short, o, _ := run(t, 4, nil)
	long, _, _ := run(t, 9, nil)
	until := render.Stamp(1e18 + 5*int64(time.Second) - 1)
	want, a := replayed(t, o, 0, short.part(t, 0))
	got, b := replayed(t, o, until, long.part(t, 0))
	line := strings.LastIndex(strings.TrimSpace(want), "\n") // the summary
	require.Equal(t, want[:line], got[:strings.LastIndex(strings.TrimSpace(got), "\n")])
	require.Equal(t, a.Summary.Events, b.Summary.Events)
	require.Equal(t, until, b.Summary.Time)
	require.EqualValues(t, 40, b.Summary.Events)
}

// TestReplaySince: what was over before is left out, and what went on is
// counted from the beginning.
func TestReplaySince(t *testing.T) {
	mem, o, _ := run(t, 9, nil)
	o.Since = render.Stamp(1e18 + 5*int64(time.Second))
	var b bytes.Buffer
	o.Out = render.NewJSON(&b)
	list, twice := Recordings([]Part{mem.part(t, 0)})
	require.Empty(t, twice)
	got, err := Replay(context.Background(), ReplayConfig{Options: o}, list[0])
	require.NoError(t, err)
	require.EqualValues(t, 18, got.Summary.Connections)
	require.Equal(t, 10, bytes.Count(b.Bytes(), []byte(`"type":"connection"`)), b.String())
}

// TestRaw: each event is told once, with its connection.
func TestRaw(t *testing.T) {
	mem, o, live := run(t, 3, nil)
	conns := make(map[string]int)
	o.Raw = func(e *event.Event, at render.Stamp, conn string) {
		require.EqualValues(t, int64(1e18)+e.Time, at)
		conns[conn]++
	}
	got, what := replayed(t, o, 0, mem.part(t, 0))
	require.Equal(t, live, got)
	total := 0
	for id, n := range conns {
		require.Contains(t, live, id)
		total += n
	}
	require.EqualValues(t, what.Summary.Events, total)
	require.Len(t, conns, 6)
}

// TestRawOfAnotherLife: where sockets are known by their address in memory, a line
// of a snapshot that the next life overtook is not that one's.
func TestRawOfAnotherLife(t *testing.T) {
	var conns []string
	m := NewMachine(Options{
		Out:      render.NewJSON(io.Discard),
		Timeline: timeline.Options{Capabilities: event.Capabilities{Identity: event.IdentityAddress}},
		Raw:      func(_ *event.Event, _ render.Stamp, conn string) { conns = append(conns, conn) },
	})
	at := func(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
	m.BeginSnapshot(1, 1)
	m.Event(&event.Event{Time: 3, Sock: 7, Netns: 1, Kind: event.KindState, Old: event.StateSynRecv, New: event.StateEstablished,
		Local: at("10.0.0.9:80"), Remote: at("10.0.0.3:6000")})
	m.Snapshot(&event.Event{Time: 2, Sock: 7, Netns: 1, Kind: event.KindSnapshot, Old: event.StateEstablished, New: event.StateEstablished,
		Local: at("10.0.0.1:5000"), Remote: at("10.0.0.2:80"), Inventory: &event.Inventory{}}, 9, "old")
	m.EndSnapshot(1, 4)
	require.Len(t, conns, 2)
	require.NotEmpty(t, conns[0])
	require.Empty(t, conns[1])
}

// TestReplayEnds: the context and an output that fails end it.
func TestReplayEnds(t *testing.T) {
	mem, o, _ := run(t, 9, nil)
	list, twice := Recordings([]Part{mem.part(t, 0)})
	require.Empty(t, twice)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	o.Out = render.NewJSON(io.Discard)
	_, err := Replay(ctx, ReplayConfig{Options: o}, list[0])
	require.ErrorIs(t, err, context.Canceled)

	list, twice = Recordings([]Part{mem.part(t, 0)})
	require.Empty(t, twice)
	o.Out = render.NewJSON(&blocked{err: io.ErrClosedPipe})
	_, err = Replay(context.Background(), ReplayConfig{Options: o}, list[0])
	require.Error(t, err)
}

// TestReplayOfWindows: what overlaps counts once, and what was between two
// windows is missing.
func TestReplayOfWindows(t *testing.T) {
	mem, o, _ := run(t, 9, func(_ *taped, m *memory, i int) { m.Rotate() })
	require.Equal(t, 10, mem.Parts())
	window := func(from, to int, trigger string) Part {
		return windowOf(t, mem, from, to, trigger, dump.End{Reason: dump.EndWindow, Text: "also x"})
	}
	_, got := replayed(t, o, 0, window(4, 6, "b"), window(2, 5, "signal"))
	require.Empty(t, got.Problems)
	require.EqualValues(t, 4*10, got.Summary.Events, "connections 2 to 5")
	require.Zero(t, got.Summary.Lost)
	require.Contains(t, got.Notes[0], "SIGUSR1")
	require.Contains(t, got.Notes[0], "20 events before it were not kept")

	_, got = replayed(t, o, 0, window(6, 8, "b"), window(2, 5, "signal"))
	require.EqualValues(t, 5*10, got.Summary.Events)
	require.EqualValues(t, 10, got.Summary.Lost)
}

// TestReplayOfLaterParts: what is there begins where its first part does, not
// with the run, by the wall clock of then.
func TestReplayOfLaterParts(t *testing.T) {
	const hour = int64(time.Hour)
	mem, o, _ := run(t, 9, func(tape *taped, m *memory, i int) {
		if i == 3 {
			tape.Clock(1e18 + hour) // it was set
		}
		if i%3 == 2 && i < 8 {
			m.Rotate()
		}
	})
	began := render.Stamp(1e18 + hour + 7*int64(time.Second) - 1) // 6 connections, a second each
	whole := mem.bytes(t, 2)
	header, err := dump.HeaderFrame(mem.Header(2))
	require.NoError(t, err)
	for name, c := range map[string]struct {
		flip int // a byte of the dump; 0: none
		want render.Stamp
	}{
		"sound":                     {0, began},
		"the header's copy damaged": {len(header) - 1, began},
		"its frame's header, too":   {8 + (len(header)-8)/2 + 1, began},
		"the clock is not known":    {len(header) + 52, began - render.Stamp(hour) - 1},
	} {
		b := bytes.Clone(whole)
		if c.flip > 0 {
			b[c.flip] ^= 0xff
		}
		list, twice := Recordings([]Part{mem.reader(t, 2, b)})
		require.Empty(t, twice)
		require.Equal(t, c.want, list[0].Began(), name)
		require.Equal(t, c.want, list[0].Began(), name)
	}

	all, what := replayed(t, o, 0, mem.part(t, 2))
	require.Equal(t, began, what.Began)
	require.Contains(t, all[:strings.Index(all, "\n")], `"time":"`+began.Time().Format(time.RFC3339Nano)+`"`)
	require.EqualValues(t, 30, what.Summary.Events)
	require.Equal(t, 4*time.Second+1, what.Summary.Duration)

	// Within what is there.
	o.Since = began
	_, what = replayed(t, o, began+render.Stamp(time.Second), mem.part(t, 2))
	require.Len(t, what.Problems, 1, what.Problems)
	require.Contains(t, what.Problems[0], "is part 3 of a recording")
	require.EqualValues(t, 10, what.Summary.Events)

	// Before it. Nothing is read, so nothing is said of an end.
	o.Since = began - render.Stamp(2*time.Second)
	_, what = replayed(t, o, began-1, mem.part(t, 2))
	require.Len(t, what.Problems, 2, what.Problems)
	require.Contains(t, what.Problems[1], "before the beginning of the recording, "+began.Time().Format("2006-01-02 15:04:05 UTC"))
	require.Equal(t, began, what.Summary.Time)

	// After it.
	o.Since = began + render.Stamp(hour)
	_, what = replayed(t, o, 0, mem.part(t, 2))
	require.Len(t, what.Problems, 2, what.Problems)
	require.Contains(t, what.Problems[1], "after the end of the recording")

	// A gap is no end.
	o.Since = 1e18 + render.Stamp(5*time.Second)
	_, what = replayed(t, o, o.Since+render.Stamp(time.Second), mem.part(t, 0), mem.part(t, 2))
	for _, p := range what.Problems {
		require.NotContains(t, p, "after the end")
	}
}

// TestReplayOfLaterWindows: a window's header says itself when it begins.
func TestReplayOfLaterWindows(t *testing.T) {
	mem, o, _ := run(t, 9, func(_ *taped, m *memory, i int) { m.Rotate() })
	h := mem.Header(0)
	h.Window = &dump.Window{Trigger: "exit", At: 1e18, Dropped: 40}
	h.StartedBoot = 5 * int64(time.Second)
	h.Started = 1e18 + h.StartedBoot
	b, err := dump.Assemble(h, append(mem.Frames(4), mem.Frames(5)...), &dump.End{Reason: dump.EndWindow})
	require.NoError(t, err)
	_, what := replayed(t, o, render.Stamp(h.Started-1), mem.reader(t, 4, b))
	require.EqualValues(t, h.Started, what.Began)
	require.Len(t, what.Problems, 1)
	require.Contains(t, what.Problems[0], "before the beginning of the recording")
	require.EqualValues(t, h.Started, what.Summary.Time)
	o.Since = render.Stamp(h.Started)
	_, what = replayed(t, o, render.Stamp(h.Started+int64(time.Second)-1), mem.reader(t, 4, b))
	require.Empty(t, what.Problems)
	require.EqualValues(t, 10, what.Summary.Events)
}

// TestReplayOfAFileThatFails: what could be read was shown, and the error says
// that it is the file's.
func TestReplayOfAFileThatFails(t *testing.T) {
	mem, o, _ := run(t, 9, nil)
	b := mem.bytes(t, 0)
	failing := func(o Options) (*Replayed, error) {
		r, err := dump.NewReader(io.MultiReader(bytes.NewReader(b[:len(b)/2]), iotest.ErrReader(syscall.EIO)))
		require.NoError(t, err)
		return Replay(context.Background(), ReplayConfig{Options: o}, Recording{Parts: []Part{{Name: "bad disk", Reader: r}}})
	}
	o.Out = render.NewJSON(io.Discard)
	got, err := failing(o)
	var unread *UnreadError
	require.ErrorAs(t, err, &unread)
	require.ErrorIs(t, err, syscall.EIO)
	require.NotZero(t, got.Summary.Events)
	require.Contains(t, got.Problems[len(got.Problems)-1], "bad disk: reading the dump: input/output error: what comes after it is not here")

	o.Out = render.NewJSON(&blocked{err: io.ErrClosedPipe})
	_, err = failing(o)
	require.Error(t, err)
	require.False(t, errors.As(err, &unread), "the output's")
}
