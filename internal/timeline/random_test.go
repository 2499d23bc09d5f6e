package timeline_test

import (
	"testing"

	"github.com/tcptrace/tcptrace/internal/timeline"
	"github.com/tcptrace/tcptrace/internal/timeline/timelinetest"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// checker holds what a tracker says to what must always be true.
type checker struct {
	printer
	t     *testing.T
	tr    *timeline.Tracker
	max   int
	ended map[*timeline.Conn]bool
}

func (k *checker) Entry(c *timeline.Conn, e *timeline.Entry) {
	if k.ended[c] {
		k.t.Errorf("an entry for a connection that was delivered")
	}
	if e.Count == 0 || c.Len() == 0 || c.Len() > 100 {
		k.t.Errorf("count %d, %d entries", e.Count, c.Len())
	}
	for i := 1; i < c.Len(); i++ {
		if c.At(i).At < c.At(i-1).At {
			k.t.Errorf("entries out of order")
		}
	}
	if c.Peer() == c {
		k.t.Errorf("a connection is its own peer")
	}
}

func (k *checker) Ended(c *timeline.Conn) {
	if k.ended[c] {
		k.t.Errorf("delivered twice")
	}
	k.ended[c] = true
	if c.Phase() != timeline.PhaseEnded {
		k.t.Errorf("delivered in phase %d", c.Phase())
	}
	if o := c.Owner(); o.Source > timeline.SourceListener && o == (timeline.Owner{}) {
		k.t.Errorf("an owner without a process")
	}
	k.printer.Ended(c)
}

func (k *checker) Tick(now int64, tr *timeline.Tracker) {
	s := tr.Stats()
	n := 0
	for c := range tr.Conns() {
		n++
		if c.Phase() == timeline.PhaseEnded || k.ended[c] {
			k.t.Errorf("an ended connection among the living")
		}
	}
	if n != s.Live || n > k.max {
		k.t.Errorf("%d connections walked, %d counted, at most %d allowed", n, s.Live, k.max)
	}
	for l := range tr.Listeners() {
		if l.Closed != 0 {
			k.t.Errorf("a closed listener among the open")
		}
	}
}

func playRandom(t *testing.T, seed uint64, n int, identity string) string {
	k := &checker{t: t, max: 12, ended: make(map[*timeline.Conn]bool)}
	tr := timeline.New(timeline.Options{Observer: k, MaxConnections: k.max, MaxRequests: 4, MaxListeners: 4, MaxNamespaces: 2, MaxProcesses: 2,
		Capabilities: event.Capabilities{Identity: identity, RSTReasons: reasons}})
	timelinetest.Play(tr, timelinetest.Random(seed, n))
	tr.Drain(tr.Now())
	s := tr.Stats()
	if got := uint64(len(k.ended) + s.Live); got != s.Connections {
		t.Errorf("%d connections created, %d delivered or alive", s.Connections, got)
	}
	return k.String()
}

func TestRandom(t *testing.T) {
	for seed := range uint64(150) {
		for _, identity := range []string{event.IdentityCookie, event.IdentityAddress} {
			a := playRandom(t, seed, 400, identity)
			if b := playRandom(t, seed, 400, identity); a != b {
				t.Errorf("seed %d: the same events gave something else", seed)
			}
			if t.Failed() {
				t.Fatalf("seed %d, %s", seed, identity)
			}
		}
	}
}

func FuzzTracker(f *testing.F) {
	f.Add(uint64(1), uint16(100))
	f.Fuzz(func(t *testing.T, seed uint64, n uint16) {
		playRandom(t, seed, int(n%1000), event.IdentityAddress)
	})
}
