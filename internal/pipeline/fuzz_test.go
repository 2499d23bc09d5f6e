package pipeline

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/stretchr/testify/require"

	"github.com/tcptrace/tcptrace/internal/dump"
	"github.com/tcptrace/tcptrace/internal/filter"
	"github.com/tcptrace/tcptrace/internal/render"
	"github.com/tcptrace/tcptrace/internal/timeline/timelinetest"
	"github.com/tcptrace/tcptrace/tracer/event"
)

const (
	// fuzzTime and fuzzHeap bound what a small hostile dump may cost: far more
	// than it does, so that a busy machine is no failure.
	fuzzTime = 20 * time.Second
	fuzzHeap = 256 << 20
)

// What the bytes of a fuzzed dump are.
const (
	fuzzFile    = iota // the whole file
	fuzzRecords        // records, in two frames that are sound
	fuzzHeader         // the header, before sound records
	fuzzEnd            // a preamble, and then the end, after sound records
	fuzzKinds
)

// FuzzReplay: whatever a dump holds, to replay it ends soon, keeps little, and
// shows lines that are well-formed and harmless.
func FuzzReplay(f *testing.F) {
	dumps, err := filepath.Glob(filepath.Join(goldenDir, "v*", "*"+dump.Extension))
	require.NoError(f, err)
	require.NotEmpty(f, dumps)
	var sound []*dump.Frame
	for _, name := range dumps {
		b, err := os.ReadFile(name)
		require.NoError(f, err)
		f.Add(uint8(fuzzFile), b)
		r, frames := framesOf(f, b)
		for _, fr := range frames {
			f.Add(uint8(fuzzRecords), fr.Raw)
		}
		h, err := json.Marshal(r.Header())
		require.NoError(f, err)
		f.Add(uint8(fuzzHeader), h)
		end, err := json.Marshal(r.End())
		require.NoError(f, err)
		f.Add(uint8(fuzzEnd), end)
		if len(sound) == 0 || strings.Contains(name, "c"+dump.Extension) {
			sound = frames
		}
	}
	for seed := range uint64(8) {
		for _, fr := range hostile(seed, 60) {
			f.Add(uint8(fuzzRecords), fr.Raw)
		}
	}
	f.Fuzz(func(t *testing.T, kind uint8, data []byte) {
		replayHostile(t, fuzzed(t, kind, data, sound))
	})
}

// TestReplayHostile has events whose every number is one that no kernel gives,
// clocks that jump, and snapshots of nothing.
func TestReplayHostile(t *testing.T) {
	for seed := range uint64(2 * len(extreme)) {
		b, err := dump.Assemble(dump.Header{Host: "h\x1b[2J", Started: extreme[seed%uint64(len(extreme))], Capabilities: fuzzCapabilities(seed)}, hostile(seed, 700), nil)
		require.NoError(t, err)
		require.NotZero(t, replayHostile(t, b), "connections of seed %d", seed)
	}
}

// framesOf reads a dump and makes frames of its records again, which are not
// compressed.
func framesOf(t testing.TB, b []byte) (*dump.Reader, []*dump.Frame) {
	t.Helper()
	var frames []*dump.Frame
	e := dump.NewEncoder(func(f *dump.Frame) { frames = append(frames, f) })
	r, err := dump.NewReader(bytes.NewReader(b))
	require.NoError(t, err)
	for err == nil {
		err = r.Next(e)
		e.Flush()
	}
	require.ErrorIs(t, err, io.EOF)
	return r, frames
}

// fuzzed makes a dump of the fuzzer's bytes, with checksums that are right.
func fuzzed(t testing.TB, kind uint8, data []byte, sound []*dump.Frame) []byte {
	t.Helper()
	h := dump.Header{Host: "h", Run: "r", Started: 1e18, StartedBoot: 1e12, Capabilities: fuzzCapabilities(uint64(kind) / fuzzKinds)}
	records := func(raw []byte, before uint64) *dump.Frame {
		var first [8]byte
		copy(first[:], raw)
		return &dump.Frame{Kind: dump.FrameRecords, First: int64(binary.LittleEndian.Uint64(first[:])), Before: before, Events: uint32(len(raw)), Raw: raw}
	}
	switch kind % fuzzKinds {
	case fuzzFile:
		return data
	case fuzzRecords:
		half := len(data) / 2
		out, err := dump.Assemble(h, []*dump.Frame{records(data, 0), records(data[half:], uint64(len(data)))}, &dump.End{Reason: dump.EndDone, At: 5})
		require.NoError(t, err)
		return out
	}
	begin, err := dump.HeaderFrame(h)
	require.NoError(t, err)
	run, seq := dump.RunID(h.Run), uint32(0)
	var out []byte
	add := func(f *dump.Frame) {
		out = f.Append(out, run, seq)
		seq++
	}
	if kind%fuzzKinds == fuzzHeader {
		var as dump.Header
		if json.Unmarshal(data, &as) == nil {
			run = dump.RunID(as.Run)
		}
		out = append(out, begin[:8]...) // the signature
		add(&dump.Frame{Kind: dump.FrameHeader, Raw: data})
		for _, f := range sound {
			add(f)
		}
		return out
	}
	out, seq = begin, 2
	add(&dump.Frame{Kind: dump.FramePreamble, Raw: data})
	for _, f := range sound {
		add(f)
	}
	add(&dump.Frame{Kind: dump.FrameEnd, Raw: data})
	return out
}

func fuzzCapabilities(n uint64) event.Capabilities {
	if n%2 == 0 {
		return event.Capabilities{Identity: event.IdentityAddress}
	}
	return event.Capabilities{Identity: event.IdentityCookie, HasAccept: true, HasSYNDrops: true, HasACKDrops: true, HasListenArg: true,
		HasAllRSTSent: true, HasRequestAborts: true, HasBindFailures: true, HasProbes: true, HasDrops: true, HasMemory: true, HasTimeWaitOverflow: true}
}

// replayHostile replays what may be a dump, and returns how many connections
// there were.
func replayHostile(t *testing.T, b []byte) (connections uint64) {
	t.Helper()
	began := time.Now()
	for _, text := range []bool{false, true} {
		r, err := dump.NewReader(bytes.NewReader(b))
		if err != nil {
			return 0 // refused, as it should be
		}
		out := &safe{t: t, json: !text}
		o := Options{Show: Show{Verdicts: true, Connections: true, Events: true, All: true}, Raw: func(*event.Event, render.Stamp, string) {}}
		o.Out = render.NewJSON(out)
		if text {
			o.Out = render.NewText(out, render.TextOptions{})
			o.Since, o.Spaces, o.Raw = 1, []string{"x"}, nil
			o.Filter = filter.Filter{Cgroups: []string{"/golden.slice"}}
		}
		list, twice := Recordings([]Part{{Name: "fuzzed", Reader: r}})
		require.Empty(t, twice)
		got, err := Replay(context.Background(), ReplayConfig{Options: o}, list[0])
		require.NoError(t, err)
		connections += got.Summary.Connections
		out.end()
	}
	if took := time.Since(began); took > fuzzTime {
		t.Errorf("%d bytes took %v", len(b), took)
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	if m.HeapInuse > fuzzHeap {
		runtime.GC()
		was := m.HeapInuse
		runtime.ReadMemStats(&m)
		t.Errorf("%d bytes took %d of heap, %d of it after a collection", len(b), was, m.HeapInuse)
	}
	return connections
}

// safe checks lines as they come, and keeps none.
type safe struct {
	t    *testing.T
	json bool
	rest []byte
}

func (s *safe) Write(b []byte) (int, error) {
	s.rest = append(s.rest, b...)
	rest := s.rest
	for {
		line, after, ok := bytes.Cut(rest, []byte("\n"))
		if !ok {
			s.rest = append(s.rest[:0], rest...)
			return len(b), nil
		}
		if i := bytes.IndexFunc(line, func(c rune) bool { return !unicode.IsGraphic(c) }); i >= 0 {
			s.t.Errorf("%q in %q", line[i:min(i+4, len(line))], line)
		}
		var v struct{ Type string }
		if s.json && (json.Unmarshal(line, &v) != nil || v.Type == "") {
			s.t.Errorf("no JSON of ours: %q", line)
		}
		rest = after
	}
}

func (s *safe) end() {
	if len(s.rest) > 0 {
		s.t.Errorf("the last line has no end: %q", s.rest)
	}
}

// extreme are numbers at which something may run over.
var extreme = []int64{0, 1, -1, math.MinInt64, math.MaxInt64, math.MinInt64 + 1, math.MaxInt64 - 1, 1 << 32, -1 << 32, 1e9, 1e18, -1e18, 1 << 62, -1 << 62}

// hostile makes frames of a run that no kernel gives.
func hostile(seed uint64, n int) []*dump.Frame {
	r := rand.New(rand.NewPCG(seed, 11))
	var frames []*dump.Frame
	e := dump.NewEncoder(func(f *dump.Frame) { frames = append(frames, f) })
	at := func(t int64) int64 {
		switch r.IntN(8) {
		case 0:
			return extreme[r.IntN(len(extreme))]
		case 1:
			return t + extreme[r.IntN(len(extreme))]
		}
		return t
	}
	number := func(v uint32) uint32 {
		if r.IntN(6) == 0 {
			return uint32(extreme[r.IntN(len(extreme))])
		}
		return v
	}
	text := func() string {
		return []string{"", "x", "\x1b]0;t\a", "\xff\xfe", "\u202e", strings.Repeat("long\n", 500), `"}`}[r.IntN(7)]
	}
	e.Clock(1e18)
	for _, s := range timelinetest.Random(seed, n) {
		switch r.IntN(30) {
		case 0:
			e.Clock(at(1e18))
		case 1:
			limit := int(extreme[r.IntN(len(extreme))])
			e.Namespace(event.Namespace{Inode: r.Uint32N(3), Name: text(), Known: r.IntN(2) == 0, Sysctls: event.Sysctls{
				Somaxconn: limit, SYNRetries: limit, SYNACKRetries: limit, SYNCookies: limit, MaxSYNBacklog: limit, Retries2: limit,
				KeepaliveTime: limit, KeepaliveInterval: limit, KeepaliveProbes: limit, FinTimeout: limit, TWReuse: limit, MaxTWBuckets: limit,
				PortRangeLow: limit, PortRangeHigh: int(extreme[r.IntN(len(extreme))]),
			}})
		case 2:
			e.Process(event.Process{PID: r.Uint32N(4), Comm: text(), Cgroup: text(), Exe: text()})
		case 3:
			e.Audit(dump.Audit{At: at(s.Time), Lines: []dump.AuditLine{{Counter: text(), Note: text(), Kernel: r.Uint64(), Explained: r.Uint64()}}, Notes: []string{text()}})
		case 4:
			e.Flush()
		case 5:
			e.Lost(at(s.Time), event.Lost{Where: text(), Count: r.Uint64() >> r.IntN(64)})
		}
		switch {
		case s.Event != nil && s.Event.Inventory != nil:
			ev, in := *s.Event, *s.Event.Inventory
			ev.Time, ev.Kind = at(ev.Time), event.KindSnapshot
			for _, d := range []*time.Duration{&in.KeepaliveTime, &in.KeepaliveInterval, &in.Idle, &in.SentIdle, &in.Left} {
				*d = time.Duration(at(int64(*d)))
			}
			ev.Inventory = &in
			e.Snapshot(&ev, number(r.Uint32N(3)), text())
		case s.Event != nil:
			ev := *s.Event
			ev.Time = at(ev.Time)
			ev.Count = number(ev.Count)
			ev.Traffic.BytesSent, ev.Traffic.BytesReceived = uint64(at(int64(ev.Traffic.BytesSent))), uint64(at(int64(ev.Traffic.BytesReceived)))
			ev.Traffic.SRTT, ev.Traffic.Retransmits, ev.Traffic.Unacked = number(ev.Traffic.SRTT), number(ev.Traffic.Retransmits), number(ev.Traffic.Unacked)
			ev.Listener.QueueLen, ev.Listener.QueueLimit, ev.Listener.Somaxconn = number(ev.Listener.QueueLen), number(ev.Listener.QueueLimit), number(ev.Listener.Somaxconn)
			e.Event(&ev)
		case s.Do == timelinetest.DoBegin:
			e.BeginSnapshot(s.Netns, at(s.Time))
		case s.Do == timelinetest.DoEnd:
			e.EndSnapshot(s.Netns, at(s.Time))
		default:
			e.Advance(at(s.Time))
		}
	}
	e.Flush()
	return slices.Clip(frames)
}
