package pipeline

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"github.com/tcptrace/tcptrace/internal/dump"
	"github.com/tcptrace/tcptrace/internal/host"
	"github.com/tcptrace/tcptrace/internal/render"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// listing is a tracer whose snapshots have these lines.
type listing struct {
	fake
	lines []event.Event
}

func (l *listing) Snapshot(_ int, fn func(*event.Event)) error {
	for _, e := range l.lines {
		e.Time = host.Now()
		fn(&e)
	}
	return nil
}

// TestAPartKnowsWhoseOlderConnectionsAre: it is read alone, and they began in
// the part before.
func TestAPartKnowsWhoseOlderConnectionsAre(t *testing.T) {
	ns, err := host.SelfNetns()
	require.NoError(t, err)
	now := host.Now()
	lines := make([]event.Event, 0, 4)
	line := func(sock uint64, state event.State, local, remote netip.AddrPort) {
		lines = append(lines, event.Event{
			Sock: sock, Netns: ns.Inode, Kind: event.KindSnapshot, New: state, Local: local, Remote: remote,
			Inventory: &event.Inventory{Inode: sock, Idle: -1, SentIdle: -1, Left: -1},
		})
	}
	client, other := netip.AddrPortFrom(clientAddr, 40001), netip.AddrPortFrom(clientAddr, 40002)
	at := netip.AddrPortFrom(netip.IPv4Unspecified(), serverAddr.Port())
	line(3, event.StateListen, at, netip.AddrPort{})
	line(1, event.StateEstablished, client, serverAddr)
	line(2, event.StateEstablished, serverAddr, client)
	line(4, event.StateEstablished, serverAddr, other)
	lines[3].Inventory.Inode = 0 // nobody has accepted it

	f := &listing{lines: lines}
	var shown bytes.Buffer
	o := Options{Show: Show{Verdicts: true, Connections: true, All: true, Open: true}}
	w := o
	w.Out = render.NewJSON(&shown)
	mem := newMemory()
	h := dump.Header{Tool: "v", Host: "h", Started: 1e18, StartedBoot: now}
	require.NoError(t, mem.Begin(h))
	l := &live{Config: Config{Options: w, Tracer: f, Log: zap.NewNop(), Record: mem}}
	l.m = NewMachine(w)
	l.in = both{l.m, mem}
	require.NoError(t, w.Out.Start(start(&h)))
	l.in.Clock(1e18 - now)

	do := func(sock uint64, kind event.Kind, from, to event.State, local, remote netip.AddrPort, who string) {
		now++
		e := event.Event{Time: now, Sock: sock, Netns: ns.Inode, Kind: kind, Old: from, New: to, Local: local, Remote: remote}
		if who != "" {
			e.Flags, e.PID, e.Comm = event.FlagProcess, uint32(900+len(who)), comm(who)
		}
		l.in.Event(&e)
	}
	do(3, event.KindState, event.StateClose, event.StateListen, at, netip.AddrPort{}, "nginx")
	do(1, event.KindState, event.StateClose, event.StateSynSent, netip.AddrPortFrom(clientAddr, 0), serverAddr, "curl")
	do(1, event.KindState, event.StateSynSent, event.StateEstablished, client, serverAddr, "")
	do(2, event.KindState, event.StateSynRecv, event.StateEstablished, serverAddr, client, "")
	do(2, event.KindAccept, event.StateEstablished, event.StateEstablished, serverAddr, client, "worker")
	do(4, event.KindState, event.StateSynRecv, event.StateEstablished, serverAddr, other, "")
	mem.Rotate()
	l.look([]host.Netns{ns}, false, true)
	end := host.Now()
	require.NoError(t, mem.End(endOf(end, render.Summary{Duration: time.Second}, nil)))
	_, err = l.m.Finish(end, render.Summary{Duration: time.Second})
	require.NoError(t, err)

	whole, _ := replayed(t, o, 0, mem.part(t, 0), mem.part(t, 1))
	require.Equal(t, shown.String(), whole)
	owners := func(out string) map[string]string {
		found := make(map[string]string)
		for line := range strings.Lines(out) {
			var c struct {
				Type, Local, Remote string
				Process             struct {
					PID          uint32
					Comm, Source string
				}
			}
			require.NoError(t, json.Unmarshal([]byte(line), &c))
			if c.Type == "connection" {
				found[c.Local+" "+c.Remote] = fmt.Sprint(c.Process.Comm, c.Process.PID, c.Process.Source)
			}
		}
		return found
	}
	require.Equal(t, map[string]string{
		client.String() + " " + serverAddr.String(): "curl904connect",
		serverAddr.String() + " " + client.String(): "worker906accept",
		serverAddr.String() + " " + other.String():  "nginx905listener",
	}, owners(whole))
	alone, _ := replayed(t, o, 0, mem.part(t, 1))
	require.Equal(t, map[string]string{
		client.String() + " " + serverAddr.String(): "curl904snapshot",
		serverAddr.String() + " " + client.String(): "worker906snapshot",
		serverAddr.String() + " " + other.String():  "nginx905listener",
	}, owners(alone))

	// An address of memory is used again.
	l.caps.Identity = event.IdentityAddress
	e := lines[1]
	e.Local = other
	require.Zero(t, l.known(&e, nil))
}

// windowOf makes a window of some parts of a recording.
func windowOf(t *testing.T, mem *memory, from, to int, trigger string, end dump.End) Part {
	t.Helper()
	h := mem.Header(0)
	h.Run, h.Key = trigger, [16]byte{7}
	h.Window = &dump.Window{Trigger: trigger, At: 1e18, Dropped: mem.Frames(from)[0].Before}
	h.StartedBoot = 1 + int64(from)*int64(time.Second)
	h.Started = 1e18 + h.StartedBoot
	var frames []*dump.Frame
	for part := from; part < to; part++ {
		frames = append(frames, mem.Frames(part)...)
	}
	b, err := dump.Assemble(h, frames, &end)
	require.NoError(t, err)
	return mem.reader(t, from, b)
}

// TestWhatOverlapsWithoutAnEventCountsOnce: where nothing but losses and
// snapshots come, no event tells what was told before.
func TestWhatOverlapsWithoutAnEventCountsOnce(t *testing.T) {
	mem, o, _ := run(t, 3, func(tape *taped, m *memory, i int) {
		m.Rotate()
		if i < 2 {
			return
		}
		for s := int64(5); s < 9; s++ {
			at := s * int64(time.Second)
			tape.Lost(at, event.Lost{Where: "ring", Count: 7})
			tape.BeginSnapshot(1, at)
			tape.EndSnapshot(1, at)
			tape.Advance(at)
			m.Flush()
			m.Rotate()
		}
	})
	n := mem.Parts()
	require.Equal(t, 8, n)
	ended := dump.End{Reason: dump.EndWindow}
	one, want := replayed(t, o, 0, windowOf(t, mem, 0, n, "a", ended))
	require.EqualValues(t, 4*7, want.Summary.Lost)
	for _, parts := range [][]Part{
		{windowOf(t, mem, 0, n, "a", ended), windowOf(t, mem, 1, n, "b", ended), windowOf(t, mem, 2, n, "c", ended)},
		{windowOf(t, mem, 0, 5, "a", ended), windowOf(t, mem, 2, 6, "b", ended), windowOf(t, mem, 3, n, "c", ended)},
	} {
		out, got := replayed(t, o, 0, parts...)
		require.Empty(t, got.Problems)
		require.Equal(t, want.Summary.Lost, got.Summary.Lost)
		require.Equal(t, want.Summary.Events, got.Summary.Events)
		require.Equal(t, strings.Count(one, `"type":"lost"`), strings.Count(out, `"type":"lost"`))
	}

	// What comes hours later without an event between is no overlap, though the
	// frames' numbers began anew.
	quiet := newMemory()
	require.NoError(t, quiet.Begin(dump.Header{Tool: "v", Host: "h", Started: 1e18, StartedBoot: 1}))
	for i := range 40_000 {
		if i == 2 || i == 39_000 {
			quiet.Rotate()
		}
		if i == 1 || i == 39_001 {
			quiet.Lost(int64(i)*int64(time.Second), event.Lost{Where: "ring", Count: 7})
		}
		quiet.Advance(int64(i) * int64(time.Second))
		quiet.Flush()
	}
	_, got := replayed(t, Options{}, 0, windowOf(t, quiet, 0, 1, "a", ended), windowOf(t, quiet, 2, 3, "b", ended))
	require.EqualValues(t, 14, got.Summary.Lost)
}

// TestWhatChangedStaysChanged: a window begins with what was known when its first
// segment began, and another window may have told what has changed since.
func TestWhatChangedStaysChanged(t *testing.T) {
	for _, rotated := range []int{2, 4} { // before events that both have, or none
		mem, o, _ := run(t, 9, func(tape *taped, m *memory, i int) {
			if i == 1 {
				tape.Process(event.Process{PID: 902, Comm: "bench", Cgroup: "/old"})
			}
			if i == rotated {
				m.Rotate()
			}
			if i == 4 {
				tape.Process(event.Process{PID: 902, Comm: "bench", Cgroup: "/new"})
				m.Flush()
			}
		})
		window := func(trigger string, frames []*dump.Frame) Part {
			h := mem.Header(0)
			h.Run, h.Key = trigger, [16]byte{7}
			h.Window = &dump.Window{Trigger: trigger, At: 1e18}
			b, err := dump.Assemble(h, frames, &dump.End{Reason: dump.EndWindow})
			require.NoError(t, err)
			return mem.reader(t, 0, b)
		}
		first, second := mem.Frames(0), mem.Frames(1)
		all := slices.Concat(first, second)
		until := len(first) + 2 + 4 - rotated // the preamble, connections, and what changed
		want, _ := replayed(t, o, 0, window("a", all))
		require.Contains(t, want, `"cgroup":"/new"`)
		for n := until; n <= len(all); n++ {
			got, all := replayed(t, o, 0, window("a", all[:n]), window("b", second))
			require.Empty(t, all.Problems)
			require.Equal(t, want, got, "segment from %d on, first window of %d frames", rotated, n)
		}
	}
}

// TestTheEndIsOfTheWindowThatReachesFurthest, whichever comes last.
func TestTheEndIsOfTheWindowThatReachesFurthest(t *testing.T) {
	mem, o, _ := run(t, 6, func(_ *taped, m *memory, i int) { m.Rotate() })
	last := endOf(9*int64(time.Second), render.Summary{Duration: time.Second, Cost: render.Cost{RSSBytes: 77}}, nil)
	_, got := replayed(t, o, 0,
		windowOf(t, mem, 0, mem.Parts(), "exit", last),
		windowOf(t, mem, 0, 3, "signal", dump.End{Reason: dump.EndWindow, At: 4 * int64(time.Second)}))
	require.EqualValues(t, 77, got.Summary.Cost.RSSBytes)
	require.Equal(t, render.Stamp(1e18+9*int64(time.Second)), got.Summary.Time)
	require.EqualValues(t, 60, got.Summary.Events)
	require.Zero(t, got.Summary.Lost)
}

// TestPartsThatWereReadTakeNoMemory: there can be thousands.
func TestPartsThatWereReadTakeNoMemory(t *testing.T) {
	const parts = 100
	r := rand.New(rand.NewPCG(1, 2))
	mem, o, _ := run(t, parts, func(tape *taped, m *memory, i int) {
		for pid := range uint32(4) {
			path := make([]byte, 4000) // not to be compressed
			for i := range path {
				path[i] = byte(r.Uint32())
			}
			tape.Process(event.Process{PID: pid + 1, Comm: "x", Cgroup: string(path)})
		}
		if i < parts-1 {
			m.Rotate()
		}
	})
	var files [][]byte
	for i := range mem.Parts() {
		files = append(files, mem.bytes(t, i))
	}
	held := func() uint64 {
		runtime.GC()
		var s runtime.MemStats
		runtime.ReadMemStats(&s)
		return s.HeapAlloc
	}
	before := held()
	var list []Part
	for i, b := range files {
		list = append(list, mem.reader(t, i, b))
	}
	const most = parts * (32 << 10) // of 256 KiB and more that each takes while it is read
	require.Less(t, held(), before+most, "before they are read")
	o.Out = render.NewJSON(io.Discard)
	recs, twice := Recordings(list)
	require.Empty(t, twice)
	got, err := Replay(t.Context(), ReplayConfig{Options: o}, recs[0])
	require.NoError(t, err)
	require.Empty(t, got.Problems)
	require.Less(t, held(), before+most, "after they were read")
	runtime.KeepAlive(recs)
}
