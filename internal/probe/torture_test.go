package probe

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/tcptrace/tcptrace/internal/diagnose"
	"github.com/tcptrace/tcptrace/internal/timeline"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// garbage hands records of arbitrary bytes on through decoding, timeline and
// rules, as many as b holds. It returns how many were taken for events.
func garbage(t *testing.T, b []byte, identity string) int {
	t.Helper()
	caps := event.Capabilities{Identity: identity, HasAccept: true, HasSYNDrops: true, HasACKDrops: true, HasRSTReason: true,
		HasAllRSTSent: true, HasListenArg: true, RSTReasons: map[uint32]string{0: "\x1b[31m", 11: "TCP_ABORT_ON_CLOSE"}}
	verdicts := 0
	x := diagnose.New(diagnose.Options{Capabilities: caps, MaxVerdicts: 8, CloseWait: 1, Idle: 1, FinWait: 1, SlowAccept: 1, ZeroWindow: 1, Backoff: 1},
		diagnose.SinkFunc(func(v *diagnose.Verdict, p diagnose.Phase) {
			verdicts++
			assert.NotEmpty(t, v.Code)
			assert.NotContains(t, v.Story, "\x1b")
		}))
	tr := timeline.New(timeline.Options{Capabilities: caps, Observer: x, MaxConnections: 20, MaxRequests: 5, MaxListeners: 5, MaxNamespaces: 5, MaxProcesses: 5})
	taken := 0
	hz := uint32(250)
	for ; len(b) > 0; b = b[min(len(b), eventSize):] {
		var e event.Event
		if _, err := decode(b, &e); err != nil {
			continue
		}
		taken++
		if e.Kind == event.KindSnapshot {
			if err := decodeSocket(b, &hz, &e); err != nil {
				continue
			}
			tr.BeginSnapshot(e.Netns, e.Time)
			tr.Handle(&e)
			tr.EndSnapshot(e.Netns, e.Time)
		} else {
			tr.Handle(&e)
		}
		if taken%7 == 0 {
			tr.Advance(e.Time)
		}
	}
	tr.Drain(tr.Now())
	x.Finish(tr.Now(), tr)
	s := tr.Stats()
	assert.LessOrEqual(t, s.Live, 20)
	assert.LessOrEqual(t, s.Requests, 5)
	assert.LessOrEqual(t, s.Listeners, 5)
	return taken
}

// TestGarbage: no bytes that come out of a ring, or out of a file that says so,
// make anything panic or grow.
func TestGarbage(t *testing.T) {
	taken := 0
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 6))
		b := make([]byte, eventSize*300+r.IntN(eventSize))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		// Random bytes are hardly ever a kind and two states: let most be.
		for i := 0; i+eventSize <= len(b); i += eventSize {
			if r.IntN(10) == 0 {
				continue
			}
			e := bpfTcptraceEvent{Kind: uint8(r.IntN(22)), OldState: uint8(r.IntN(14)), NewState: uint8(r.IntN(14)), Netns: uint32(r.IntN(3)), Sock: uint64(r.IntN(5)),
				Time: uint64(r.Int64N(int64(time.Minute))), Flags: uint16(r.Uint32()), Reason: r.Uint32N(20), Err: uint16(r.IntN(112)), LocalPort: uint16(r.IntN(3)), RemotePort: uint16(r.IntN(3))}
			if r.IntN(30) == 0 {
				e.Time = r.Uint64()
			}
			copy(b[i:], record(&e)[:r.IntN(eventSize)])
		}
		for _, identity := range []string{event.IdentityCookie, event.IdentityAddress} {
			taken += garbage(t, b, identity)
		}
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
	assert.Greater(t, taken, 1000, "too few events to mean anything")
}

func FuzzGarbage(f *testing.F) {
	f.Add(record(&bpfTcptraceEvent{Kind: uint8(event.KindState), OldState: 3, NewState: 1, Sock: 7, Netns: 1}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) <= 100*eventSize {
			garbage(t, b, event.IdentityAddress)
		}
	})
}
