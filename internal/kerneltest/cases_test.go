package kerneltest

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tcptrace/tcptrace/internal/diagnose"
	"github.com/tcptrace/tcptrace/internal/filter"
	"github.com/tcptrace/tcptrace/internal/kerneltest/watchtest"
	"github.com/tcptrace/tcptrace/internal/lab"
	"github.com/tcptrace/tcptrace/internal/render"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// together is how many cases happen at the same time: they mostly wait.
const together = 6

// played is one case as it happened.
type played struct {
	lab.Case
	env   *lab.Env
	truth *lab.Truth
	err   error
	netns map[uint32]bool
}

// TestCases plays all cases, several at a time and each in namespaces of its
// own, under one watch, and holds what it says of each namespace against the
// participants' and the kernel's own account.
func TestCases(t *testing.T) {
	play(t, func(c lab.Case) bool { return !c.Silence && c.HostSetting == "" }, thresholds())
}

// TestSilentCases does the same with the cases that turn on long silence. They
// are by themselves: with this threshold, whatever other cases leave standing
// is silent for long.
func TestSilentCases(t *testing.T) {
	o := thresholds()
	o.Idle, o.Aftermath = silence(), silence()
	play(t, func(c lab.Case) bool { return c.Silence }, o)
}

// TestHostCases does the same with the cases that change the whole machine, one
// after the other, where nobody else is on it. Elsewhere it sees no more than
// that there is such a setting.
func TestHostCases(t *testing.T) {
	for _, c := range lab.Cases() {
		if c.HostSetting == "" {
			continue
		}
		if watchtest.InVM() {
			play(t, func(other lab.Case) bool { return other.ID == c.ID }, thresholds())
			continue
		}
		_, err := os.Stat("/proc/sys/" + strings.ReplaceAll(c.HostSetting, ".", "/"))
		assert.NoError(t, err, "the setting that case %s changes", c.ID)
	}
}

// thresholds of the rules, so that nobody need wait for the defaults.
func thresholds() diagnose.Options {
	o := diagnose.Options{CloseWait: closeWait(), FinWait: stuck(), ZeroWindow: stuck(), SlowAccept: slowAccept(), Backoff: stuck()}
	if watchtest.InVM() {
		o.Immediate = 250 * time.Millisecond
	}
	return o
}

// stuck is the threshold for ends in FIN_WAIT, for shut windows and for data that
// is not acknowledged. Healthy cases have windows shut for a second, and clients
// that close half a second late: the rest is for a busy machine.
func stuck() time.Duration {
	if watchtest.InVM() {
		return 4 * time.Second
	}
	return 2 * time.Second
}

// closeWait is the threshold for leaks, likewise. On a busy machine a client
// that closes in its turn may need some seconds for it.
func closeWait() time.Duration {
	if watchtest.InVM() {
		return 4 * time.Second
	}
	return 2 * time.Second
}

// slowAccept is longer than the default: a process of a busy machine may well
// wait for its turn so long.
func slowAccept() time.Duration {
	if watchtest.InVM() {
		return 4 * time.Second
	}
	return 1500 * time.Millisecond
}

// silence is the threshold for it.
func silence() time.Duration {
	if watchtest.InVM() {
		return 6 * time.Second
	}
	return 2 * time.Second
}

// play plays the cases that pick wants, under one watch with these thresholds.
func play(t *testing.T, pick func(lab.Case) bool, o diagnose.Options) {
	var all []*played
	only := os.Getenv("TCPTRACE_CASES") // for work on a case: IDs, separated by commas
	for _, c := range lab.Cases() {
		if !pick(c) || only != "" && !slices.Contains(strings.Split(only, ","), c.ID) {
			continue
		}
		env, err := lab.NewEnv(lab.Options{
			Patience:  watchtest.Patience(),
			CloseWait: closeWait() + 3*time.Second,
			Hold:      stuck() + 3*time.Second,
			Backoff:   2*stuck() + time.Second, // each wait is as long as all before it
			LateAfter: 2 * slowAccept(),
			Silence:   silence() * 3 / 2,
			Logf:      func(f string, a ...any) { t.Log(c.ID + ": " + fmt.Sprintf(f, a...)) },
		})
		if err != nil {
			t.Fatalf("%s: %v (these tests need root)", c.ID, err)
		}
		p := &played{Case: c, env: env}
		t.Cleanup(func() { _ = env.Close() })
		all = append(all, p)
	}
	each(all, func(ctx context.Context, p *played) error {
		if p.Prepare == nil {
			return nil
		}
		return p.Prepare(ctx, p.env)
	})
	for _, p := range all {
		require.NoError(t, p.err, p.ID)
		p.netns = map[uint32]bool{}
		for _, ns := range p.env.Namespaces() {
			p.netns[uint32(ns.Inode())] = true
		}
	}

	if len(all) == 0 {
		return // TCPTRACE_CASES names none of these
	}
	w := watchtest.WatchRecorded(t, filter.Filter{}, o)
	if !w.Caps.HasProbes || watchtest.InVM() {
		// A shut window shows in snapshots only (at the receiver always), and on
		// a busy machine these are far between.
		for _, p := range all {
			p.env.Hold = 18*time.Second + stuck()
		}
	}
	each(all, func(ctx context.Context, p *played) (err error) {
		p.truth, err = p.Run(ctx, p.env)
		return err
	})
	for _, p := range all {
		require.NoError(t, p.err, p.ID)
	}
	// A handshake is given up on some time after its last SYN-ACK; leaks are
	// looked for once a second.
	time.Sleep(6 * time.Second)
	w.End(t)

	missed := w.CheckLost(t)
	for _, p := range all {
		t.Run(p.ID, func(t *testing.T) { judge(t, w, p, missed) })
	}
}

// each runs f for all cases, some at a time.
func each(all []*played, f func(context.Context, *played) error) {
	slots := make(chan struct{}, together)
	var wg sync.WaitGroup
	for _, p := range all {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			ctx, cancel := context.WithTimeout(context.Background(), 2*watchtest.Patience())
			defer cancel()
			p.err = f(ctx, p)
		})
	}
	wg.Wait()
}

// judge compares. Counts may be off by what the kernel missed.
func judge(t *testing.T, w *watchtest.Watcher, p *played, missed uint64) {
	defer func() {
		if t.Failed() {
			w.Tell(t, func(c *render.Connection) bool { return p.netns[c.Netns] })
			w.TellEvents(t, p.netns)
		}
	}()
	hidden := w.Hidden(p.netns)
	missed += hidden
	got := w.Final(p.netns)
	for _, v := range got {
		t.Logf("%s %s (%s) x%d %s: %s", v.Severity, v.Code, v.Confidence, v.Count, v.Subject.Name, v.Story)
	}
	got = slices.DeleteFunc(got, func(v *render.Verdict) bool { return p.truth.Forbids(v.Code) && late(p, v) })
	for _, v := range got {
		// Where nothing tells why the kernel sent RST, that it did may be said.
		unexplained := p.ID == "M-memory" && v.Code == "reset-sent" && v.Evidence.Get("cause") == nil &&
			unknowable(w.Caps, p.ID, "aborted-on-memory", missed) != ""
		if p.truth.Forbids(v.Code) && !unexplained {
			t.Errorf("%s is not true of this case: %s", v.Code, v.Story)
		}
	}
	for _, want := range p.truth.Expect {
		if !exists(want.Code) {
			continue // a verdict of a later version
		}
		why := unknowable(w.Caps, p.ID, want.Code, missed)
		if why == "" && hidden > 0 && slices.Contains(byTimer, want.Code) {
			why = fmt.Sprintf("the kernel's counters have %d expiries of timers that no program was told of", hidden)
		}
		if why != "" && !slices.ContainsFunc(got, func(v *render.Verdict) bool { return v.Code == want.Code }) {
			t.Logf("%s can't be known here: %s", want.Code, why)
			continue
		}
		// One code can be several verdicts, where causes differ.
		var count uint64
		for _, v := range got {
			if v.Code != want.Code || !about(v, want) {
				continue
			}
			count += v.Count
			if want.Process.PID != 0 && assert.NotNil(t, v.Process, "process of %s", want.Code) {
				assert.Equal(t, uint32(want.Process.PID), v.Process.PID, "process of %s", want.Code)
				assert.Equal(t, want.Process.Comm, v.Process.Comm, "process of %s", want.Code)
			}
			evidence(t, v)
			for key, fact := range want.Facts {
				if missed == 0 {
					assert.Equal(t, fmt.Sprint(fact), fmt.Sprint(v.Evidence.Get(key)), "%s of %s", key, want.Code)
				}
			}
		}
		if why != "" {
			continue // what is said is true, and may be less than all
		}
		if count == 0 && want.Count > 0 && uint64(want.Count) <= missed {
			t.Logf("%s: all %d may be among the %d events that were missed", want.Code, want.Count, missed)
			continue
		}
		if count == 0 {
			t.Errorf("no %s about %v by %s[%d]", want.Code, want.Listener, want.Process.Comm, want.Process.PID)
			continue
		}
		if want.Count > 0 {
			least := float64(want.Count) - float64(missed)
			if want.Code == "immediate-close" || want.Code == "reconnect-loop" {
				least *= 0.7 // on a busy machine, some are not at once
			}
			assert.LessOrEqual(t, count, uint64(want.Count), "count of %s", want.Code)
			assert.GreaterOrEqual(t, float64(count), least, "count of %s", want.Code)
		}
	}
	if p.Healthy() {
		assert.Empty(t, got, "healthy traffic gives no verdict")
	}
	w.CheckAudit(t, p.netns)
}

// late says whether a verdict is true because the machine was slow: a scripted
// host and a wire are processes, and where one takes a second to pass an ACK on,
// the kernel sends its SYN-ACK again, and counts that.
func late(p *played, v *render.Verdict) bool {
	return v.Code == "final-ack-lost" && p.NeedsTUN && v.Count <= p.truth.Grew("TcpExt.TCPSynRetrans")
}

// about says whether a verdict speaks of what was expected.
func about(v *render.Verdict, want lab.Expectation) bool {
	if !want.Listener.IsValid() {
		return true
	}
	if want.Process.PID != 0 && v.Process != nil && v.Process.PID != uint32(want.Process.PID) {
		return false
	}
	name := want.Listener.String()
	if strings.Contains(v.Subject.Name, name) {
		return true
	}
	for _, f := range v.Evidence {
		if s, ok := f.Value.(string); ok && strings.Contains(s, name) {
			return true
		}
		if l, ok := f.Value.([]string); ok && slices.ContainsFunc(l, func(s string) bool { return strings.Contains(s, name) }) {
			return true
		}
	}
	// A listener on all addresses is shown as it was bound.
	if a, err := netip.ParseAddrPort(v.Subject.Name); err == nil {
		return a.Addr().IsUnspecified() && a.Port() == want.Listener.Port()
	}
	return false
}

// promised are the evidence keys that spec.md names.
var promised = map[string][]string{
	"accept-queue-overflow":  {"backlog_limit", "backlog_argument", "somaxconn", "limited_by", "queue_len", "abort_on_overflow", "syn_dropped", "ack_dropped", "rst_sent", "clients"},
	"backlog-clamped":        {"backlog_argument", "somaxconn"},
	"final-ack-lost":         {"retransmits"},
	"handshake-timeout":      {"retransmits", "synack_retries"},
	"connect-refused":        {"errno"},
	"connect-timeout":        {"syn_retransmits", "syn_retries", "waited_ms"},
	"port-exhaustion":        {"destination", "range", "in_use", "time_wait", "tw_reuse"},
	"time-wait-pileup":       {"count", "destination", "closer", "range", "rate"},
	"bind-conflict":          {"port", "holder_pid", "holder_comm", "holder_state", "holder_remote", "ephemeral"},
	"immediate-close":        {"count", "after_ms", "bytes_written", "live_connections", "plateau"},
	"reconnect-loop":         {"count", "window_ms", "lifetime_ms", "destination"},
	"close-wait-leak":        {"count", "remote", "oldest_s", "newest_s", "growth_per_min", "keepalive", "reaped_after_s"},
	"fin-wait-stuck":         {"state", "count", "age_s", "orphan"},
	"zero-window":            {"stalled_ms", "side", "recv_queue"},
	"slow-accept":            {"wait_ms_max", "wait_ms_p50", "queue_len"},
	"half-open":              {"side", "idle_s", "keepalive"},
	"keepalive-timeout":      {"probes", "idle_s"},
	"retransmission-timeout": {"retransmits", "unacked_bytes", "waited_ms"},
	"paws-rejected":          {"count", "phase"},
	"aborted-on-memory":      {"reason"},
	"reset-sent":             {"reason", "cause", "unread_bytes"},
	"reset-received":         {"phase", "after_ms", "bytes_sent", "bytes_received"},
	"syn-queue-overflow":     {"queue_len", "queue_limit", "syncookies", "cookies_sent", "syn_dropped", "top_sources"},
	"syn-scan":               {"source", "ports", "half_open", "refused"},
	"port-closed":            {"port", "count", "clients"},
	"local-drop":             {"reason", "hook"},
}

func evidence(t *testing.T, v *render.Verdict) {
	have := map[string]bool{}
	for _, f := range v.Evidence {
		have[f.Key] = true
	}
	for _, k := range promised[v.Code] {
		assert.True(t, have[k], "%s has no evidence %s", v.Code, k)
	}
}

func exists(code string) bool {
	return slices.ContainsFunc(diagnose.Catalogue(), func(d diagnose.Doc) bool { return d.Code == code })
}

// byTimer are the verdicts that hang on what a timer does.
var byTimer = []string{"connect-timeout", "handshake-timeout", "keepalive-timeout", "retransmission-timeout"}

// unknowable says why a verdict can't be had with these hooks. With full
// hooks everything can.
func unknowable(c event.Capabilities, id, code string, missed uint64) string {
	switch {
	case missed > 0 && (code == "handshake-timeout" || code == "final-ack-lost" || code == "immediate-close" ||
		code == "half-open" || id == "E-scan-silent" || id == "A-refusal" && code == "reconnect-loop"):
		return "it is concluded from what does not come, or hangs on one event, and events were missed"
	case code == "local-drop" && !c.HasDrops:
		return "dropped segments are not seen"
	case id == "K-local-drop-route" && !c.HasDropReasons:
		return "without the kernel's reasons only netfilter's drops are told"
	case code == "paws-rejected" && !c.HasDropReasons:
		return "this kernel names no reason for a dropped segment"
	case code == "paws-rejected" && id != "L" && !slices.Contains(slices.Collect(maps.Values(c.DropReasons)), "TCP_RFC7323_TW_PAWS"):
		return "this kernel names no reason for what a minisocket or a request refuses"
	case watchtest.Full(c):
	case code == "half-open" && (id == "I-back" || id == "I-stray") && !c.HasAllRSTSent:
		return "an RST without a socket is not seen"
	case code == "aborted-on-memory" && !c.HasMemory && !c.HasRSTReason:
		return "neither the kernel's check is seen nor the reason of its RST"
	case id == "E-scan" && !c.HasRequestAborts:
		return "a request that is killed by RST is not seen"
	case (code == "port-closed" || id == "E-scan-closed") && !c.HasAllRSTSent:
		return "an RST without a socket is not seen"
	case id == "M-late-data" && code == "reset-sent" && !c.HasAllRSTSent:
		return "a minisocket's RST is not seen"
	case id == "H-listen" && code == "bind-conflict":
		return "listen() that fails is not seen without a hook on the function"
	case id == "E-full" && code == "accept-queue-overflow" && !c.HasACKDrops:
		return "behind a SYN cookie nothing follows the dropped ACK"
	}
	return ""
}
