package programtest

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tcptrace/tcptrace/internal/diagnose"
	"github.com/tcptrace/tcptrace/internal/filter"
	"github.com/tcptrace/tcptrace/internal/kerneltest/watchtest"
	"github.com/tcptrace/tcptrace/internal/lab"
	"github.com/tcptrace/tcptrace/internal/render"
)

var (
	healthyFor   = flag.Duration("healthy", 75*time.Second, "how long the healthy mix runs")
	healthyOnly  = flag.String("healthy-only", "", "parts of the healthy mix, separated by commas; default all")
	healthyShort = flag.Bool("healthy-short", false, "run the healthy mix with short thresholds")
)

// traffic is one part of the healthy mix.
type traffic struct {
	name string

	// run has programs do their work until p.lasts() is over, and ends them in
	// order.
	run func(p *place)

	// remarks are verdicts that are true though nothing is wrong, each with
	// why. They must be information, but for those that may be warnings: data
	// is lost, which the program takes into account.
	remarks  map[string]string
	warnings []string
}

// TestMain lets all parts of the mix run at the same time.
func TestMain(m *testing.M) {
	lab.Main()
	flag.Parse()
	if err := flag.Set("test.parallel", "32"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// healthy are the parts of the mix.
func healthy() []traffic {
	return []traffic{
		{name: "nginx", run: webLoad},
		{name: "nginx-reload", run: webReload, remarks: map[string]string{
			"reset-sent":     "requests reach keep-alive connections that a worker closes as it ends",
			"reset-received": "and ab is told so",
		}, warnings: []string{"reset-sent"}},
		{name: "haproxy", run: proxied, remarks: map[string]string{
			"backlog-clamped": "haproxy asks for a queue as long as its maxconn",
			"reset-sent":      "haproxy ends its checks by RST, on purpose (SO_LINGER 0)",
			"reset-received":  "and redis and nginx receive these",
		}},
		{name: "http-patterns", run: patterns, remarks: map[string]string{
			"reset-sent":     "the server closes an idle connection as a request is on its way",
			"reset-received": "and the client sends it again",
		}, warnings: []string{"reset-sent"}},
		{name: "http-timeouts", run: impatient, remarks: map[string]string{
			"reset-sent":     "the answer comes after the client has closed",
			"reset-received": "and the server is told so",
		}},
		{name: "reuseport-restart", run: restarts, remarks: map[string]string{
			"reset-received": "a final ACK that meets the old listener in the instant in which it closes is answered by RST",
		}, warnings: []string{"reset-received"}},
		{name: "tls", run: encrypted, remarks: map[string]string{
			"reset-sent":     "a close_notify reaches a connection that is closed, and ab closes handshakes that it does not need",
			"reset-received": "which nobody waits for",
		}, warnings: []string{"reset-sent"}},
		{name: "redis", run: cached},
		{name: "postgresql", run: database},
		{name: "iperf3", run: bulk, remarks: map[string]string{
			"backlog-clamped": "iperf3 asks for the longest queue there is",
			"reset-sent":      "iperf3 closes what it measures by while data still comes",
			"reset-received":  "and the sender is told so",
		}, warnings: []string{"reset-sent"}},
	}
}

// TestHealthy runs programs that all do their work, each kind in a namespace of
// its own, and watches all of them at once: nothing may be found wrong.
func TestHealthy(t *testing.T) {
	kinds := healthy()
	if *healthyOnly != "" {
		only := strings.Split(*healthyOnly, ",")
		kinds = slices.DeleteFunc(kinds, func(k traffic) bool { return !slices.Contains(only, k.name) })
	}
	ends := time.Now().Add(*healthyFor)
	places := make(map[string]*place)
	var only filter.Filter
	for _, k := range kinds {
		p := newPlace(t)
		p.ends = ends
		places[k.name] = p
		only.Netns = append(only.Netns, p.ns.Inode())
	}
	w := watchtest.Watch(t, only, healthyOptions())
	t.Run("traffic", func(t *testing.T) {
		for _, k := range kinds {
			t.Run(k.name, func(t *testing.T) {
				t.Parallel()
				k.run(places[k.name].inPart(t))
			})
		}
	})
	w.End(t)
	w.CheckLost(t)
	assert.Zero(t, w.Summary.Lost, "lost events")
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) { k.judge(t, w, places[k.name].ns.Inode()) })
	}
}

// healthyOptions are the defaults, or thresholds that the traffic comes nearer
// to.
func healthyOptions() diagnose.Options {
	if !*healthyShort {
		return diagnose.Options{}
	}
	return diagnose.Options{
		CloseWait: 5 * time.Second,
		FinWait:   10 * time.Second,
		Backoff:   3 * time.Second,
	}
}

// judge fails the test for each verdict about the traffic that is not a remark.
func (k traffic) judge(t *testing.T, w *watchtest.Watcher, netns uint32) {
	checkCounters(t, w, netns)
	var said []*render.Verdict
	for _, v := range append(slices.Clone(w.Verdicts()), w.Summary.Final...) {
		if v.Netns == netns {
			said = append(said, v)
		}
	}
	told := make(map[string]bool)
	for _, v := range said {
		line := fmt.Sprintf("%s %s (%s) %s: %s", v.Severity, v.Code, v.Confidence, v.Subject.Name, v.Story)
		if told[line] {
			continue
		}
		told[line] = true
		final := slices.Contains(w.Summary.Final, v)
		why, ok := k.remarks[v.Code]
		if v.Code == codeBusy {
			why, ok = "there is more to do here than the processors can", true
		}
		switch {
		case ok && (v.Severity == diagnose.Info || v.Severity == diagnose.Warning && (v.Code == codeBusy || slices.Contains(k.warnings, v.Code))):
			if final {
				t.Logf("x%d %s\n    as it should be: %s", v.Count, line, why)
			}
			continue
		case ok:
			t.Errorf("x%d not information: %s", v.Count, line)
		default:
			t.Errorf("x%d not true of healthy traffic: %s", v.Count, line)
		}
		for _, e := range v.Evidence {
			t.Logf("    %s: %v %s", e.Key, e.Value, e.Note)
		}
		ends := make(map[netip.AddrPort]bool) // and the other ends of the examples
		for _, c := range w.Connections {
			if slices.Contains(v.Examples, c.ID) {
				ends[c.Remote] = true
			}
		}
		w.Tell(t, func(c *render.Connection) bool {
			return c.Netns == netns && (slices.Contains(v.Examples, c.ID) || ends[c.Local])
		})
	}
	// The kernel runs no program now and then, and does not always say so: the
	// connection's end comes from the next look at all sockets then.
	const unseen = 1000 // one in so many
	conns, wrong, incomplete := 0, 0, 0
	odd := func(c *render.Connection) bool {
		if c.Netns != netns || c.Incomplete || c.Well || slices.ContainsFunc(c.Verdicts, k.isRemark) {
			return false
		}
		// Some resets that were remarked on are not worth a verdict.
		return len(c.Verdicts) > 0 || !k.isRemark("reset-received") || !strings.Contains(c.Story, "reset by the peer")
	}
	for _, c := range w.Connections {
		if c.Netns == netns {
			conns++
			if c.Incomplete {
				incomplete++
			}
		}
		if odd(c) {
			wrong++
		}
	}
	t.Logf("%d connections, %d incomplete", conns, incomplete)
	assert.LessOrEqual(t, incomplete, 5+conns/unseen, "incomplete connections")
	require.Positive(t, conns, "nothing was seen")
	if wrong > 0 {
		t.Errorf("%d of %d connections went wrong", wrong, conns)
		w.Tell(t, odd)
	}
}

// checkCounters holds what was seen against the kernel's counters. Segments are
// retransmitted by timers, in softirqs, of which the kernel may show a few to
// nobody.
func checkCounters(t *testing.T, w *watchtest.Watcher, netns uint32) {
	for _, a := range w.Summary.Audit {
		if a.Netns != netns {
			continue
		}
		slack := 0.0
		if !watchtest.Full(w.Caps) {
			slack = 5 + float64(a.Kernel)/20
		}
		if a.Exact || slices.Contains(ownCounters, a.Counter) && a.Counter != "AttemptFails" {
			assert.InDelta(t, a.Kernel, a.Explained, slack, "%s: %s", a.Counter, a.Note)
		}
	}
}

func (k traffic) isRemark(code string) bool {
	_, ok := k.remarks[code]
	return ok || code == codeBusy
}

// lasts reports whether there is time for another round of a healthy part.
func (p *place) lasts() bool {
	// So that the processors are left to others, too.
	time.Sleep(400 * time.Millisecond)
	return !p.Failed() && time.Now().Before(p.ends)
}

// seconds is for how long a program is to work that is told so at its start.
func (p *place) seconds() time.Duration {
	return max(time.Second, time.Until(p.ends)).Round(time.Second)
}

// orderly ends a program that ends in order when it is told to.
func (p *place) orderly(g *program) {
	p.Helper()
	p.signal(g.pid, syscall.SIGTERM)
	g.wait()
}
