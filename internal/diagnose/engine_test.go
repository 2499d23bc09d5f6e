package diagnose_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/internal/diagnose"
	"github.com/tcptrace/tcptrace/internal/timeline"
	"github.com/tcptrace/tcptrace/tracer/event"
)

func TestBytes(t *testing.T) {
	for n, want := range map[uint64]string{0: "0 bytes", 1: "1 byte", 999: "999 bytes", 1000: "1 kB", 40_000: "40 kB", 1_200_000: "1.2 MB", 3_000_000_000: "3 GB"} {
		if got := diagnose.Bytes(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}

func TestCatalogue(t *testing.T) {
	seen := make(map[string]bool)
	for _, d := range diagnose.Catalogue() {
		if seen[d.Code] || d.Code == "" || d.Severity == "" || d.Summary == "" || d.Meaning == "" || d.Counts == "" || len(d.Evidence) == 0 || len(d.Fix) == 0 || len(d.Source) == 0 {
			t.Errorf("%q is not described in full, or twice", d.Code)
		}
		seen[d.Code] = true
	}
	for _, code := range []string{"accept-queue-overflow", "backlog-clamped", "connect-refused", "connect-timeout", "immediate-close", "reconnect-loop",
		"close-wait-leak", "reset-sent", "reset-received", "final-ack-lost", "handshake-timeout"} {
		if !seen[code] {
			t.Errorf("%s is not described", code)
		}
	}
}

// TestGrowth: at once when it first holds, then at most once an interval, and
// a last time, with the count so far.
func TestGrowth(t *testing.T) {
	var got []string
	x := diagnose.New(diagnose.Options{Interval: 10 * time.Second, MaxVerdicts: 2}, diagnose.SinkFunc(func(v *diagnose.Verdict, p diagnose.Phase) {
		got = append(got, fmt.Sprintf("%d %s x%d", p, v.Subject.Name, v.Count))
	}))
	tr := timeline.New(timeline.Options{Observer: x})
	p := &player{engine: x, tracker: tr, brief: true}
	p.run(parse(t, `
repeat 30 1s
1s state c$i 10.0.0.1:0 10.0.0.9:81 CLOSE>SYN_SENT
1s state c$i 10.0.0.1:4$i 10.0.0.9:81 SYN_SENT>CLOSE err=111
done
40s state d 10.0.0.1:0 10.0.0.9:82 CLOSE>SYN_SENT
40s state d 10.0.0.1:50000 10.0.0.9:82 SYN_SENT>CLOSE err=111
41s state e 10.0.0.1:0 10.0.0.9:83 CLOSE>SYN_SENT
41s state e 10.0.0.1:50001 10.0.0.9:83 SYN_SENT>CLOSE err=111
`))
	want := []string{"0 10.0.0.9:81 x1", "1 10.0.0.9:81 x10", "1 10.0.0.9:81 x20", "1 10.0.0.9:81 x30",
		"0 10.0.0.9:82 x1", "2 10.0.0.9:82 x1", "0 10.0.0.9:83 x1", "2 10.0.0.9:81 x30", "2 10.0.0.9:83 x1"}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	s := x.Stats()
	if s.Evicted != 1 || s.Verdicts["connect-refused"] != 32 {
		t.Errorf("%+v", s)
	}
}

// TestCountsOfNobody: beyond the room that the kernel side has for the counts of
// a flood, it is not known whose SYN or segment it was, nor what became of it.
// Nothing is said of it: least of all that SYNs were dropped.
func TestCountsOfNobody(t *testing.T) {
	x := diagnose.New(diagnose.Options{}, diagnose.SinkFunc(func(v *diagnose.Verdict, _ diagnose.Phase) {
		t.Errorf("%s: %s", v.Code, v.Story)
	}))
	tr := timeline.New(timeline.Options{Observer: x})
	for i, kind := range []event.Kind{event.KindSYNQueueFull, event.KindSegmentDropped, event.KindRSTSent} {
		tr.Handle(&event.Event{Time: int64(i+1) * int64(time.Second), Kind: kind, Count: 5000})
	}
	tr.Advance(int64(10 * time.Second))
	tr.Drain(int64(time.Minute))
	x.Finish(int64(time.Minute), tr)
}
