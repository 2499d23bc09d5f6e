package pipeline

import (
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tcptrace/tcptrace/internal/host"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// pids is a scope of some process ids.
type pids map[uint32]bool

func (pids) Tick() {}

func (p pids) Event(e *event.Event) bool    { return p[e.PID] }
func (p pids) Process(q event.Process) bool { return p[q.PID] }

// TestScope has two processes refused, of which the run is about one.
func TestScope(t *testing.T) {
	ns, now := self(t), host.Now()
	var events []event.Event
	for i, pid := range []uint32{900, 901, 900, 902, 901} {
		for _, e := range refused(ns, uint64(i+1), uint16(40000+i), now+int64(i)*1_000_000) {
			if e.PID != 0 {
				e.PID = pid
			}
			events = append(events, e)
		}
	}
	for _, c := range []struct {
		name  string
		scope pids
		want  map[float64]int // connections by process
	}{
		{"one", pids{901: true}, map[float64]int{901: 2}},
		{"two", pids{900: true, 902: true}, map[float64]int{900: 2, 902: 1}},
		{"none", pids{}, map[float64]int{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			lines, sum, err := watch(t, &fake{events: append([]event.Event(nil), events...)}, func(cfg *Config) { cfg.Scope = c.scope })
			require.NoError(t, err)
			conns, verdicts := map[float64]int{}, map[float64]bool{}
			all := 0
			for _, l := range lines {
				switch p, _ := l["process"].(map[string]any); l["type"] {
				case "connection":
					conns[p["pid"].(float64)]++
					all++
				case "verdict":
					verdicts[p["pid"].(float64)] = true
				}
			}
			assert.Equal(t, c.want, conns)
			assert.Equal(t, len(c.want), len(verdicts))
			for pid := range verdicts {
				assert.Contains(t, c.want, pid)
			}
			assert.Equal(t, uint64(all), sum.Connections)
			assert.Equal(t, uint64(all), sum.Verdicts["connect-refused"])
			assert.Equal(t, uint64(len(events)), sum.Events, "what was seen is of the whole machine")
		})
	}
}

// TestScopeUnknownOwner checks that a connection of nobody is not ours.
func TestScopeUnknownOwner(t *testing.T) {
	events := refused(self(t), 1, 40000, host.Now())
	for i := range events {
		events[i].Flags &^= event.FlagProcess
		events[i].PID, events[i].Comm = 0, event.Comm{}
	}
	lines, sum, err := watch(t, &fake{events: events}, func(cfg *Config) { cfg.Scope = pids{0: true} })
	require.NoError(t, err)
	for _, l := range lines {
		assert.NotContains(t, []string{"connection", "verdict"}, l["type"])
	}
	assert.Zero(t, sum.Connections)
	assert.Empty(t, sum.Verdicts)
}

// TestMembers checks what is remembered of processes, and how many.
func TestMembers(t *testing.T) {
	m := newMembers()
	a, b := member{1, "a"}, member{1, "b"}
	assert.False(t, m.has(a))
	m.tell(a, true)
	assert.True(t, m.has(a))
	assert.False(t, m.has(b), "another program in the same process was not told of")
	m.tell(a, false)
	assert.False(t, m.has(a), "its number is somebody else's now")

	m.tell(a, true)
	m.tell(b, true)
	for i := range 5 * maxMembers {
		m.tell(member{uint32(i), "x" + strconv.Itoa(i)}, true)
		if i%1000 == 0 {
			require.True(t, m.has(a), "whoever is asked for is kept")
		}
	}
	assert.False(t, m.has(b))
	assert.LessOrEqual(t, len(m.young)+len(m.old), 2*maxMembers)
}

// ticking is a scope that counts how often it is told of the time.
type ticking struct {
	pids
	n int
}

func (s *ticking) Tick() { s.n++ }

// TestScopeTicks checks that a scope hears of the time where no process does
// anything: it may have ended ones to forget.
func TestScopeTicks(t *testing.T) {
	s := new(ticking)
	_, _, err := watch(t, &fake{}, func(cfg *Config) { cfg.Scope, cfg.Duration = s, 1500*time.Millisecond })
	require.NoError(t, err)
	assert.Positive(t, s.n)
}
