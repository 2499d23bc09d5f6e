package diagnose_test

import (
	"runtime"
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/internal/diagnose"
	"github.com/tcptrace/tcptrace/internal/timeline"
	"github.com/tcptrace/tcptrace/internal/timeline/timelinetest"
)

// TestBounds has each verdict come out for ever new subjects, far more than any
// rule may remember: the heap stops growing.
func TestBounds(t *testing.T) {
	shortest := make(map[string]timelinetest.Script)
	for _, s := range corpus(t) {
		for _, codes := range final(alone(t, capsOf(s.Text), s.Steps)) {
			for _, code := range codes {
				if old, ok := shortest[code]; !ok || len(s.Steps) < len(old.Steps) {
					shortest[code] = s
				}
			}
		}
	}
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	for _, d := range diagnose.Catalogue() {
		s, ok := shortest[d.Code]
		if !ok {
			t.Errorf("%s: no script gives it", d.Code)
			continue
		}
		t.Run(d.Code, func(t *testing.T) {
			caps := capsOf(s.Text)
			x := diagnose.New(diagnose.Options{Capabilities: caps, MaxVerdicts: 50}, nil)
			tr := timeline.New(timeline.Options{Capabilities: caps, Observer: x, MaxConnections: 100, MaxRequests: 50, MaxListeners: 20, MaxNamespaces: 30, MaxProcesses: 20})
			span := time.Duration(0)
			for _, step := range s.Steps {
				span = max(span, time.Duration(step.Time-timelinetest.Start))
			}
			n := 0
			run := func(rounds int) {
				for range rounds {
					n++
					ns := knownNamespace
					ns.Inode += uint32(n)
					tr.Namespace(ns)
					timelinetest.Play(tr, timelinetest.Later(timelinetest.Elsewhere(s.Steps, n), time.Duration(n)*(span+time.Second)))
				}
				if s := x.Stats(); s.Live > 50 {
					t.Fatalf("%d verdicts kept", s.Live)
				}
			}
			// No rule remembers more than 8,192 subjects. Where it would take too
			// long to tell of so many, each may cost what can be afforded.
			const subjects, brief, affordable, eachMost = 4200, 6, 8_000, 16 << 10
			rounds := subjects
			if len(s.Steps) > brief {
				rounds = min(subjects, affordable/len(s.Steps))
			}
			run(2 * rounds)
			was := heap()
			run(rounds)
			most := 1.2*float64(was) + 128<<10
			if rounds < subjects {
				most = float64(was) + float64(rounds)*eachMost
			}
			if is := heap(); float64(is) > most {
				t.Errorf("%d bytes after %d rounds of %s, %d after %d", was, 2*rounds, s.Name, is, n)
			}
			if x.Stats().Verdicts[d.Code] < uint64(n)*9/10 {
				t.Errorf("%d of %d came out", x.Stats().Verdicts[d.Code], n)
			}
			runtime.KeepAlive(tr)
		})
	}
}
