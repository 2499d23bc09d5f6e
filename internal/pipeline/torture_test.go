package pipeline

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"strings"
	"testing"
	"unicode"

	"github.com/tcptrace/tcptrace/internal/diagnose"
	"github.com/tcptrace/tcptrace/internal/render"
	"github.com/tcptrace/tcptrace/internal/timeline"
	"github.com/tcptrace/tcptrace/internal/timeline/timelinetest"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// target lets a script's steps be told to a machine.
type target struct {
	m *Machine
	// name is what processes are called, "" as in the script.
	name string
}

func (t target) Handle(e *event.Event) {
	if t.name != "" && e.Has(event.FlagProcess) {
		e.Comm = event.Comm{}
		copy(e.Comm[:], t.name)
	}
	if e.Kind == event.KindSnapshot {
		t.m.Snapshot(e, 0, "")
		return
	}
	t.m.Event(e)
}

func (t target) SnapshotOwner(sock uint64, at int64, pid uint32, comm string) {
	t.m.tracker.SnapshotOwner(sock, at, pid, comm+t.name)
}

func (t target) Advance(now int64)                     { t.m.Advance(now) }
func (t target) Drain(now int64)                       { t.m.tracker.Drain(now) }
func (t target) BeginSnapshot(netns uint32, now int64) { t.m.BeginSnapshot(netns, now) }
func (t target) EndSnapshot(netns uint32, now int64)   { t.m.EndSnapshot(netns, now) }
func (t target) Lost(at int64, l event.Lost)           { t.m.Lost(at, l) }

// tortured plays a random mixture of the scripts of all cases, spoilt, and
// returns what a user would see of it.
func tortured(t *testing.T, seed uint64, scripts []timelinetest.Script, out func(*bytes.Buffer) render.Renderer) string {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 8))
	_, _, steps := timelinetest.Mix(r, scripts, 200)
	caps := event.Capabilities{Identity: event.IdentityCookie, HasAccept: true, HasSYNDrops: true, HasACKDrops: true, HasListenArg: true,
		HasAllRSTSent: true, HasRequestAborts: true, HasBindFailures: true, HasProbes: true, HasDrops: true, HasMemory: true, HasTimeWaitOverflow: true}
	if r.IntN(3) == 0 {
		caps.Identity = event.IdentityAddress
	}
	var b bytes.Buffer
	m := NewMachine(Options{
		Out: out(&b), Show: Show{Verdicts: true, Connections: true, Events: r.IntN(2) == 0, All: r.IntN(2) == 0},
		Timeline: timeline.Options{Capabilities: caps, MaxConnections: 1 + r.IntN(200), MaxRequests: 1 + r.IntN(50), MaxListeners: 1 + r.IntN(10)},
		Diagnose: diagnose.Options{Capabilities: caps, MaxVerdicts: 1 + r.IntN(20), CloseWait: 1, Idle: 1, FinWait: 1, SlowAccept: 1, ZeroWindow: 1, Backoff: 1},
	})
	to := target{m: m}
	if r.IntN(2) == 0 {
		to.name = "\x1b]0;x\a\u202e\n"
	}
	timelinetest.Play(to, steps)
	if _, err := m.Finish(m.now, render.Summary{}); err != nil {
		t.Fatalf("seed %d: %v", seed, err)
	}
	return b.String()
}

// TestTorture: whatever comes in, the output is the same for the same events,
// byte for byte, well-formed, and harmless to a terminal.
func TestTorture(t *testing.T) {
	scripts, err := timelinetest.Load("../diagnose/testdata", "../timeline/testdata")
	if err != nil {
		t.Fatal(err)
	}
	asJSON := func(b *bytes.Buffer) render.Renderer { return render.NewJSON(b) }
	asText := func(b *bytes.Buffer) render.Renderer { return render.NewText(b, render.TextOptions{}) }
	for seed := range uint64(150) {
		lines := tortured(t, seed, scripts, asJSON)
		text := tortured(t, seed, scripts, asText)
		if tortured(t, seed, scripts, asJSON) != lines || tortured(t, seed, scripts, asText) != text {
			t.Errorf("seed %d: the same events gave something else", seed)
		}
		for line := range strings.Lines(lines) {
			var v struct{ Type string } // its time is null where an event came without
			if err := json.Unmarshal([]byte(line), &v); err != nil || v.Type == "" {
				t.Errorf("seed %d: %v: %s", seed, err, line)
			}
		}
		for line := range strings.Lines(lines + text) {
			if i := strings.IndexFunc(strings.TrimSuffix(line, "\n"), func(c rune) bool { return !unicode.IsGraphic(c) }); i >= 0 {
				t.Errorf("seed %d: %q in %q", seed, line[i:i+1], line)
			}
		}
		if t.Failed() {
			t.FailNow()
		}
	}
}
