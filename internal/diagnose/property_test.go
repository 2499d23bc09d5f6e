package diagnose_test

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tcptrace/tcptrace/internal/diagnose"
	"github.com/tcptrace/tcptrace/internal/timeline"
	"github.com/tcptrace/tcptrace/internal/timeline/timelinetest"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// witness remembers every connection, so that verdicts can be held to them.
type witness struct {
	*player
	t      *testing.T
	conns  map[string]*timeline.Conn
	proven map[string]bool // by ID and code; later events can change a story
	stream stream
}

func newWitness(t *testing.T, caps event.Capabilities, o diagnose.Options) *witness {
	w := &witness{player: &player{final: make(map[string]*diagnose.Verdict), brief: true}, t: t, conns: make(map[string]*timeline.Conn), proven: make(map[string]bool)}
	o.Capabilities = caps
	w.stream.caps = caps
	w.engine = diagnose.New(o, diagnose.SinkFunc(func(v *diagnose.Verdict, p diagnose.Phase) {
		w.verdict(v, p)
		w.check(v)
	}))
	return w
}

func (w *witness) observe(o timeline.Options) {
	o.Observer = timeline.Observers{recorder{w}, w.engine}
	w.tracker = timeline.New(o)
}

// run is the player's, with each event written down before it is told.
func (w *witness) run(steps []timelinetest.Step) {
	timelinetest.Play(written{w.tracker, &w.stream}, steps)
	w.finish()
}

type written struct {
	*timeline.Tracker
	s *stream
}

func (t written) Handle(e *event.Event) {
	t.s.events = append(t.s.events, *e)
	t.Tracker.Handle(e)
}

// recorder hears of each connection before the engine does.
type recorder struct{ *witness }

func (r recorder) Entry(c *timeline.Conn, e *timeline.Entry) { r.learn(c) }
func (r recorder) Ended(c *timeline.Conn) {
	r.learn(c)
	if s := diagnose.Story(c); s == "" || strings.ContainsAny(s, "\x1b\n") {
		r.t.Errorf("story %q", s)
	}
}

func (w *witness) learn(c *timeline.Conn) {
	id := c.ID()
	w.conns[id] = c
	for code, holds := range proof {
		if holds(c) {
			w.proven[id+code] = true
		}
	}
}

func (r recorder) Changed(c *timeline.Conn) { r.learn(c) }

func hasEntry(c *timeline.Conn, kind timeline.EntryKind, is func(e *timeline.Entry) bool) bool {
	return slices.ContainsFunc(c.Entries(), func(e timeline.Entry) bool { return e.Kind == kind && is(&e) })
}

// proof says what must have been seen of a connection that a verdict names.
var proof = map[string]func(c *timeline.Conn) bool{
	"accept-queue-overflow": func(c *timeline.Conn) bool { return c.Find(timeline.EntryRequestDropped) != nil },
	"immediate-close": func(c *timeline.Conn) bool {
		return c.Role() == timeline.RoleServer && c.Find(timeline.EntryAccepted) != nil && c.Closer() == timeline.CloserLocal
	},
	"reconnect-loop": func(c *timeline.Conn) bool {
		return c.Role() == timeline.RoleClient && c.Find(timeline.EntryEstablished) != nil && c.Closer() == timeline.CloserRemote
	},
	"close-wait-leak": func(c *timeline.Conn) bool {
		return c.Find(timeline.EntryFINReceived) != nil || c.Find(timeline.EntryState) != nil
	},
	"connect-refused": func(c *timeline.Conn) bool {
		return hasEntry(c, timeline.EntryConnectFailed, func(e *timeline.Entry) bool { return e.Err() == 111 })
	},
	"connect-timeout": func(c *timeline.Conn) bool {
		return hasEntry(c, timeline.EntryConnectFailed, func(e *timeline.Entry) bool {
			return e.Err() == 110 || e.Err() == 0 && (e.SYNRetransmissions() > 0 || c.Total(timeline.EntrySYNRetransmitted) > 0)
		})
	},
	"reset-sent": func(c *timeline.Conn) bool {
		return c.Find(timeline.EntryClosed, timeline.EntryRSTSent) != nil
	},
	"reset-received": func(c *timeline.Conn) bool {
		return c.Find(timeline.EntryRSTReceived) != nil ||
			hasEntry(c, timeline.EntryClosed, func(e *timeline.Entry) bool { return e.Err() == 104 || e.Err() == 32 })
	},
	"final-ack-lost": func(c *timeline.Conn) bool {
		return c.Find(timeline.EntrySYNACKRetransmitted) != nil && c.Find(timeline.EntryEstablished) != nil
	},
	"handshake-timeout": func(c *timeline.Conn) bool {
		return c.Find(timeline.EntrySYNACKRetransmitted) != nil && c.Find(timeline.EntryExpired) != nil
	},
}

func (w *witness) check(v *diagnose.Verdict) {
	if v.Code == "" || v.Severity == "" || v.Confidence == "" || v.Story == "" || v.Subject.Name == "" || v.Count == 0 || v.First > v.Last {
		w.t.Errorf("unfinished: %+v", v)
	}
	if strings.ContainsAny(v.Story+v.Subject.Name, "\x1b\n") {
		w.t.Errorf("unescaped: %q", v.Story)
	}
	for _, d := range diagnose.Catalogue() {
		if d.Code != v.Code {
			continue
		}
		for _, k := range d.Evidence {
			if !slices.ContainsFunc(v.Evidence, func(f diagnose.Fact) bool { return f.Key == k.Key }) {
				w.t.Errorf("%s: no evidence %q", v.Code, k.Key)
			}
		}
		for _, f := range v.Evidence {
			if !slices.ContainsFunc(d.Evidence, func(k diagnose.DocKey) bool { return k.Key == f.Key }) {
				w.t.Errorf("%s: evidence %q is not documented", v.Code, f.Key)
			}
		}
	}
	if lacks := w.stream.unproven(v); lacks != "" {
		w.t.Errorf("%s (%s) %+v: %s", v.Code, v.Story, v.Key, lacks)
	}
	if necessary[v.Code].examples && len(v.Examples) == 0 || len(v.Examples) > 5 {
		w.t.Errorf("%s: %d examples", v.Code, len(v.Examples))
	}
	for _, id := range v.Examples {
		if c := w.conns[id]; c == nil {
			w.t.Errorf("%s: example %s was never seen", v.Code, id)
		} else if proof[v.Code] != nil && !w.proven[id+v.Code] {
			w.t.Errorf("%s: nothing that proves it in %v: %s", v.Code, c.Entries(), diagnose.Story(c))
		}
	}
}

// TestRandom holds the rules to events that no kernel would produce: they
// never panic, state nothing that was not seen, and stay within their bounds.
func TestRandom(t *testing.T) {
	codes := make(map[string]int)
	for seed := range uint64(120) {
		var outputs [2]string
		for i := range outputs {
			caps := fullCapabilities()
			if seed%2 == 0 {
				caps.Identity = event.IdentityAddress
			}
			w := newWitness(t, caps, diagnose.Options{MaxVerdicts: 6, CloseWait: 1, Immediate: 1 << 40})
			w.observe(timeline.Options{Capabilities: caps, MaxConnections: 40, MaxRequests: 10})
			w.run(timelinetest.Random(seed, 600))
			outputs[i] = w.String()
			if s := w.engine.Stats(); s.Live > 6 {
				t.Errorf("%d verdicts kept", s.Live)
			}
			for _, v := range w.verdicts {
				codes[v.Code]++
			}
		}
		if outputs[0] != outputs[1] {
			t.Errorf("seed %d: the same events gave something else", seed)
		}
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
	t.Log(codes)
	if len(codes) < 6 {
		t.Errorf("too few verdicts to mean anything: %v", codes)
	}
}

// codesOf plays steps and returns the verdicts that came out.
func codesOf(t *testing.T, script string, steps []timelinetest.Step) []string {
	caps := capsOf(script)
	w := newWitness(t, caps, diagnose.Options{})
	w.observe(timeline.Options{Capabilities: caps})
	if !strings.Contains(script, "# sysctls unknown") {
		w.tracker.Namespace(knownNamespace)
	}
	w.run(steps)
	var codes []string
	for _, v := range w.verdicts {
		if !slices.Contains(codes, v.Code) {
			codes = append(codes, v.Code)
		}
	}
	slices.Sort(codes)
	return codes
}

func scripts(t *testing.T) map[string]string {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no test cases: %v", err)
	}
	out := make(map[string]string)
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		script, _, _ := strings.Cut(string(b), "\n---\n")
		out[filepath.Base(f)] = script
	}
	return out
}

func parse(t *testing.T, script string) []timelinetest.Step {
	steps, err := timelinetest.Parse(script)
	if err != nil {
		t.Fatal(err)
	}
	return steps
}

// mayBecome lists what a case may be taken for when one of its events is
// missing, and nothing tells that it is.
var mayBecome = map[string][]string{
	// Without the client's end, that it repeated its SYN cannot be known.
	"f-silent.txt": {"final-ack-lost"},
	// That bind() failed is a fact; what excuses it is that connect() came then.
	"h-source-port.txt": {"bind-conflict"},
	// Without its end the connection is still known when accept() returns it.
	"n-accept-gave-up.txt": {"slow-accept"},
}

// TestMissing leaves out each event of each case in turn: no other cause may
// come out for it.
func TestMissing(t *testing.T) {
	for name, script := range scripts(t) {
		steps := parse(t, script)
		want := orInstead(codesOf(t, script, steps))
		stride := max(1, len(steps)/60)
		for i := 0; i < len(steps); i += stride {
			if steps[i].Event == nil {
				continue
			}
			got := codesOf(t, script, slices.Delete(slices.Clone(steps), i, i+1))
			for _, code := range got {
				if !slices.Contains(want, code) && !slices.Contains(mayBecome[name], code) {
					t.Errorf("%s without event %d (%+v): %s", name, i, steps[i].Event, code)
				}
			}
		}
	}
}

// TestDoubled repeats each event: the verdicts stay.
func TestDoubled(t *testing.T) {
	for name, script := range scripts(t) {
		if name == "e-not-full.txt" {
			continue // that one SYN is one matters; no kernel tells such twice
		}
		steps := parse(t, script)
		want := codesOf(t, script, steps)
		var doubled []timelinetest.Step
		for _, s := range steps {
			doubled = append(doubled, s)
			if s.Event != nil && s.Event.Kind != event.KindSnapshot { // what a ring can tell twice
				doubled = append(doubled, s)
			}
		}
		if got := codesOf(t, script, doubled); !slices.Equal(got, want) {
			t.Errorf("%s doubled: %v, want %v", name, got, want)
		}
	}
}

// TestReordered shuffles events that are less than a millisecond apart, as
// those of two CPUs arrive: the verdicts stay.
func TestReordered(t *testing.T) {
	for name, script := range scripts(t) {
		steps := parse(t, script)
		want := codesOf(t, script, steps)
		for seed := range uint64(10) {
			r := rand.New(rand.NewPCG(seed, 2))
			shuffled := slices.Clone(steps)
			const window = 1_000_000
			for from := 0; from < len(shuffled); {
				to := from
				for to < len(shuffled) && shuffled[to].Event != nil && shuffled[to].Time-shuffled[from].Time < window && shuffled[to].Time >= shuffled[from].Time {
					to++
				}
				if to > from+1 {
					part := shuffled[from:to]
					r.Shuffle(len(part), func(i, j int) { part[i], part[j] = part[j], part[i] })
				}
				from = max(to, from+1)
			}
			if got := codesOf(t, script, shuffled); !slices.Equal(got, want) {
				t.Errorf("%s reordered (seed %d): %v, want %v", name, seed, got, want)
			}
		}
	}
}

// TestLost reports a loss in the middle of each case: causes may go, none may
// come.
func TestLost(t *testing.T) {
	for name, script := range scripts(t) {
		steps := parse(t, script)
		want := orInstead(codesOf(t, script, steps))
		for _, part := range []int{1, 2, 3} {
			i := len(steps) * part / 4
			at := steps[min(i, len(steps)-1)].Time
			lost := timelinetest.Step{Time: at, Do: timelinetest.DoLost, Lost: 1}
			for _, code := range codesOf(t, script, slices.Insert(slices.Clone(steps), i, lost)) {
				if !slices.Contains(want, code) {
					t.Errorf("%s with a loss at step %d: %s", name, i, code)
				}
			}
		}
	}
}

func FuzzRules(f *testing.F) {
	f.Add(uint64(1), uint16(300))
	f.Fuzz(func(t *testing.T, seed uint64, n uint16) {
		caps := fullCapabilities()
		w := newWitness(t, caps, diagnose.Options{MaxVerdicts: 4, CloseWait: 1, Immediate: 1 << 40})
		w.observe(timeline.Options{Capabilities: caps, MaxConnections: 40, MaxRequests: 10})
		w.run(timelinetest.Random(seed, int(n%1500)))
	})
}
