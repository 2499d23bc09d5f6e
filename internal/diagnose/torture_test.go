package diagnose_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/internal/diagnose"
	"github.com/tcptrace/tcptrace/internal/timeline"
	"github.com/tcptrace/tcptrace/internal/timeline/timelinetest"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// The scripts of testdata have the shape of what kernels tell. Here they are
// mixed, and spoilt in all the ways in which events can be on their way from a
// kernel or in a file: whatever comes out must be borne out by what went in.

// -torture 100000 is for a night.
var seeds = flag.Uint64("torture", 1000, "how many random mixtures TestTorture plays")

// corpus returns the scripts of this package and of the timeline's.
func corpus(t testing.TB) []timelinetest.Script {
	t.Helper()
	out, err := timelinetest.Load("testdata", "../timeline/testdata")
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// capabilities are those of any kernel and way of attaching.
func capabilities(r *rand.Rand) event.Capabilities {
	caps := fullCapabilities()
	if r.IntN(3) == 0 {
		caps.Identity = event.IdentityAddress
	}
	has := func(b *bool) { *b = *b && r.IntN(5) > 0 }
	has(&caps.HasAccept)
	has(&caps.HasSYNDrops)
	has(&caps.HasACKDrops)
	has(&caps.HasAllRSTSent)
	has(&caps.HasListenArg)
	has(&caps.HasRSTReason)
	if !caps.HasRSTReason {
		caps.RSTReasons = nil
	}
	return caps
}

// thresholds are the defaults, or so low that everything is judged.
func thresholds(r *rand.Rand) diagnose.Options {
	var o diagnose.Options
	if r.IntN(2) == 0 {
		o = diagnose.Options{Immediate: 10 * time.Second, CloseWait: time.Millisecond, Idle: time.Millisecond, FinWait: time.Millisecond,
			SlowAccept: time.Microsecond, ZeroWindow: time.Microsecond, Backoff: time.Microsecond, TimeWait: 0.0001}
	}
	if r.IntN(3) == 0 {
		o.MaxVerdicts = 3
	}
	return o
}

// bounds are the defaults, or so small that they are always reached.
func bounds(r *rand.Rand) timeline.Options {
	if r.IntN(2) == 0 {
		return timeline.Options{}
	}
	return timeline.Options{MaxConnections: 1 + r.IntN(30), MaxRequests: 1 + r.IntN(8), MaxListeners: 1 + r.IntN(3), MaxNamespaces: 1 + r.IntN(3), MaxProcesses: 1 + r.IntN(4)}
}

// torture plays one mixture, and returns everything that came out as JSON.
func torture(t *testing.T, seed uint64, scripts []timelinetest.Script, most int) (out string, codes map[string]int) {
	r := rand.New(rand.NewPCG(seed, 3))
	names, faults, steps := timelinetest.Mix(r, scripts, most)
	caps := capabilities(r)
	w := newWitness(t, caps, thresholds(r))
	o := bounds(r)
	o.Capabilities = caps
	w.observe(o)
	if r.IntN(4) > 0 {
		w.tracker.Namespace(knownNamespace)
	}
	w.run(steps)
	if s := w.tracker.Stats(); o.MaxConnections != 0 && (s.Live > o.MaxConnections || s.Requests > o.MaxRequests || s.Listeners > o.MaxListeners) {
		t.Errorf("beyond the bounds %+v: %+v", o, s)
	}
	codes = make(map[string]int)
	for _, v := range w.verdicts {
		codes[v.Code]++
	}
	if t.Failed() {
		t.Logf("seed %d: %v, %+v", seed, names, faults)
	}
	b, err := json.Marshal(w.verdicts)
	if err != nil {
		t.Errorf("seed %d: %v", seed, err)
	}
	return string(b), codes
}

var knownNamespace = event.Namespace{Inode: timelinetest.Netns, Known: true, Sysctls: event.Sysctls{
	Somaxconn: 4096, SYNRetries: 6, SYNACKRetries: 5, SYNCookies: 1, Retries2: 15, KeepaliveTime: 7200, KeepaliveInterval: 75, KeepaliveProbes: 9,
	FinTimeout: 60, PortRangeLow: 40000, PortRangeHigh: 40019, TWReuse: 2, MaxTWBuckets: 24}}

// TestTorture: nothing panics, no bound is passed, the same events give the
// same verdicts byte for byte, and each verdict has had the events it needs.
func TestTorture(t *testing.T) {
	scripts := corpus(t)
	codes := make(map[string]int)
	for seed := range *seeds {
		a, found := torture(t, seed, scripts, 400)
		if seed%5 == 0 {
			if b, _ := torture(t, seed, scripts, 400); a != b {
				t.Errorf("seed %d: the same events gave something else", seed)
			}
		}
		for code, n := range found {
			codes[code] += n
		}
		if t.Failed() {
			t.FailNow()
		}
	}
	t.Log(codes)
	for _, d := range diagnose.Catalogue() {
		if codes[d.Code] == 0 {
			t.Errorf("%s never came out: nothing was tested of it", d.Code)
		}
	}
}

// FuzzTorture lets the fuzzer choose among mixtures.
func FuzzTorture(f *testing.F) {
	scripts := corpus(f)
	f.Add(uint64(1), uint16(100))
	f.Fuzz(func(t *testing.T, seed uint64, most uint16) {
		torture(t, seed, scripts, 1+int(most%500))
	})
}

// final returns the codes that came out, for each network namespace.
func final(w *witness) map[uint32][]string {
	out := make(map[uint32][]string)
	for _, v := range w.verdicts {
		if !slices.Contains(out[v.Netns], v.Code) {
			out[v.Netns] = append(out[v.Netns], v.Code)
		}
	}
	for _, codes := range out {
		slices.Sort(codes)
	}
	return out
}

// capsOf are what a script says that the kernel shows.
func capsOf(script string) event.Capabilities {
	caps := fullCapabilities()
	if strings.Contains(script, "# identity: address") {
		caps.Identity = event.IdentityAddress
	}
	if strings.Contains(script, "# no reasons") {
		caps.RSTReasons, caps.HasRSTReason = nil, false
	}
	caps.HasAccept = !strings.Contains(script, "# no accept")
	caps.HasACKDrops = !strings.Contains(script, "# no ack drops")
	caps.HasAllRSTSent = !strings.Contains(script, "# no rsts")
	caps.HasRequestAborts = !strings.Contains(script, "# no aborts")
	caps.HasMemory = !strings.Contains(script, "# no memory")
	if strings.Contains(script, "# no drop reasons") {
		caps.DropReasons, caps.HasDropReasons = nil, false
	}
	return caps
}

// alone plays steps as the script's own test does.
func alone(t *testing.T, caps event.Capabilities, steps []timelinetest.Step) *witness {
	w := newWitness(t, caps, diagnose.Options{})
	w.observe(timeline.Options{Capabilities: caps})
	for i := range 8 {
		ns := knownNamespace
		ns.Inode += uint32(i)
		w.tracker.Namespace(ns)
	}
	w.run(steps)
	return w
}

// TestApart mixes cases that have nothing to do with each other: what is said
// about each is what is said about it alone.
func TestApart(t *testing.T) {
	var scripts []timelinetest.Script
	for _, s := range corpus(t) {
		if strings.Contains(s.Text, "\n# no ") || strings.Contains(s.Text, "# identity") || strings.Contains(s.Text, "lost") {
			continue // about other capabilities than the rest, or about all namespaces
		}
		scripts = append(scripts, s)
	}
	describe := func(w *witness, netns uint32) []string {
		var out []string
		for _, v := range w.last() {
			if v.Netns == netns {
				out = append(out, fmt.Sprintf("%s %s %s x%d", v.Code, v.Severity, v.Confidence, v.Count))
			}
		}
		slices.Sort(out)
		return out
	}
	for seed := range uint64(100) {
		r := rand.New(rand.NewPCG(seed, 4))
		var names []string
		var parts [][]timelinetest.Step
		end := int64(0)
		for n := range 2 + r.IntN(4) {
			s := scripts[r.IntN(len(scripts))]
			parts = append(parts, timelinetest.Elsewhere(s.Steps, n))
			names = append(names, s.Name)
			for _, step := range s.Steps {
				end = max(end, step.Time)
			}
		}
		// Some rules wait before they judge: let each have the same time.
		until := []timelinetest.Step{{Time: end, Do: timelinetest.DoAdvance}}
		w := alone(t, fullCapabilities(), timelinetest.Merge(append(slices.Clone(parts), until)...))
		for n, part := range parts {
			netns := timelinetest.Netns + uint32(n)
			want := describe(alone(t, fullCapabilities(), timelinetest.Merge(part, until)), netns)
			if got := describe(w, netns); !slices.Equal(got, want) {
				t.Errorf("seed %d, %v: of %s: %q, alone: %q", seed, names, names[n], got, want)
			}
		}
	}
}

// last returns each verdict as it was handed out last.
func (w *witness) last() []*diagnose.Verdict {
	type key struct {
		code string
		key  diagnose.Key
	}
	last := make(map[key]*diagnose.Verdict)
	for _, v := range w.verdicts {
		last[key{v.Code, v.Key}] = v
	}
	var out []*diagnose.Verdict
	for _, v := range w.verdicts {
		if last[key{v.Code, v.Key}] == v {
			out = append(out, v)
		}
	}
	return out
}

// TestRemoved takes away, from each case and from mixtures of them, the events
// that a verdict needs, kind by kind: it may not be given any more.
func TestRemoved(t *testing.T) {
	scripts := corpus(t)
	tested := make(map[string]bool)
	for _, s := range scripts {
		caps := capsOf(s.Text)
		given := final(alone(t, caps, s.Steps))
		for code, r := range necessary {
			if !slices.ContainsFunc(slices.Collect(maps.Values(given)), func(codes []string) bool { return slices.Contains(codes, code) }) {
				continue
			}
			tested[code] = true
			for _, n := range r.needs {
				k := &knowledge{caps}
				rest := slices.DeleteFunc(slices.Clone(s.Steps), func(s timelinetest.Step) bool { return s.Event != nil && n.is(k, s.Event) })
				for _, v := range alone(t, caps, rest).verdicts {
					if v.Code == code {
						t.Errorf("%s without %s: still %s: %s", s.Name, n.what, code, v.Story)
					}
				}
			}
		}
	}
	for _, d := range diagnose.Catalogue() {
		if !tested[d.Code] {
			t.Errorf("%s: no script gives it", d.Code)
		}
	}
}

// TestAnnouncedLoss drops events at random and tells that they were lost: no
// cause may come out that the whole story does not have, least of all one that
// rests on something not having been seen.
func TestAnnouncedLoss(t *testing.T) {
	scripts := corpus(t)
	for i, s := range scripts {
		caps := capsOf(s.Text)
		var want []string
		for _, codes := range final(alone(t, caps, s.Steps)) {
			want = append(want, codes...)
		}
		want = orInstead(want)
		if s.Name == "h-source-port.txt" || s.Name == "n-accept-gave-up.txt" {
			want = append(want, mayBecome[s.Name]...) // it rests on what was seen
		}
		rounds := 30
		if len(s.Steps) > 300 {
			rounds = 6
		}
		for seed := range uint64(rounds) {
			r := rand.New(rand.NewPCG(seed, uint64(i)))
			f := timelinetest.Faults{Lost: 10 + r.IntN(500), Announce: true}
			w := alone(t, caps, f.Apply(r, s.Steps))
			for _, v := range w.verdicts {
				if !slices.Contains(want, v.Code) {
					t.Errorf("%s (seed %d, %d of 1000 lost): %s: %s", s.Name, seed, f.Lost, v.Code, v.Story)
					break
				}
			}
		}
	}
}

// orInstead adds what is told in place of these codes when less is known: the
// resets of an immediate-close, where the number of connections held is not.
func orInstead(codes []string) []string {
	if slices.Contains(codes, "immediate-close") {
		codes = append(codes, "reset-sent")
	}
	return codes
}

// TestLooks takes snapshots in the middle of each case, as the host was then:
// they add no cause.
func TestLooks(t *testing.T) {
	for i, s := range corpus(t) {
		if s.Name == "b-half-closed.txt" || s.Name == "i-disagree-lost.txt" {
			continue // the data it moves is in its own snapshots only; one would tell what was lost
		}
		if s.Name == "j-lost.txt" {
			continue // one tells that it still waits
		}
		caps := capsOf(s.Text)
		var want []string
		for _, codes := range final(alone(t, caps, s.Steps)) {
			want = append(want, codes...)
		}
		rounds := 10
		if len(s.Steps) > 300 {
			rounds = 3
		}
		for seed := range uint64(rounds) {
			r := rand.New(rand.NewPCG(seed, uint64(i)))
			w := alone(t, caps, timelinetest.Faults{Look: 1 + r.IntN(3), Owners: r.IntN(2) == 0}.Apply(r, s.Steps))
			for _, v := range w.verdicts {
				if !slices.Contains(want, v.Code) {
					t.Errorf("%s (seed %d): %s: %s", s.Name, seed, v.Code, v.Story)
					break
				}
			}
		}
	}
}

// TestAddresses tells each case as a kernel does that has no socket cookies,
// with addresses that are used again at once: the verdicts stay.
func TestAddresses(t *testing.T) {
	for _, s := range corpus(t) {
		caps := capsOf(s.Text)
		if caps.Identity == event.IdentityAddress || s.Name == "cookie-not-joined.txt" {
			continue // needs the one or the other
		}
		want := final(alone(t, caps, s.Steps))
		caps.Identity = event.IdentityAddress
		got := final(alone(t, caps, timelinetest.Addresses(s.Steps)))
		if !maps.EqualFunc(got, want, slices.Equal[[]string]) {
			t.Errorf("%s: %v by addresses, %v by cookies", s.Name, got, want)
		}
	}
}
