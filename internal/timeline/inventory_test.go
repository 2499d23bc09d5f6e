package timeline_test

import (
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/internal/timeline"
	"github.com/tcptrace/tcptrace/internal/timeline/timelinetest"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// TestOrphanSince: since when a minisocket is there is what was seen; what is
// concluded from the time that it has left is marked, and never before a
// snapshot that did not show it.
func TestOrphanSince(t *testing.T) {
	const closed = `
1s state s 10.0.0.1:80 10.0.0.7:4000 SYN_RECV>EST
1s accept s 10.0.0.1:80 10.0.0.7:4000 EST by=inetd[1]
2s state s 10.0.0.1:80 10.0.0.7:4000 EST>FIN_WAIT1 close by=worker[9]
3s state s 10.0.0.1:80 10.0.0.7:4000 FIN_WAIT1>FIN_WAIT2 close dead
3s state s 10.0.0.1:80 10.0.0.7:4000 FIN_WAIT2>CLOSE close dead tw2
`
	const empty = "5s begin\n5s end\n"
	mini := func(at, left string) string {
		return at + " begin\n" + at + " found s 10.0.0.1:80 10.0.0.7:4000 FIN_WAIT2 mini " + left + "\n" + at + " end\n"
	}
	for _, tc := range []struct {
		name, script     string
		timeout          int // 0: not known
		since            time.Duration
		exact, concluded bool
		owner            string
	}{
		{"seen", closed + mini("10s", "left=53s"), 60, 3 * time.Second, true, false, "worker[9]"},
		{"seen, TCP_LINGER2", closed + mini("10s", "left=3s"), 60, 3 * time.Second, true, false, "worker[9]"},
		{"seen in the end only", closed + "3.1s begin\n3.1s found s 10.0.0.1:80 10.0.0.7:4000 FIN_WAIT2 mini left=9s\n3.1s end\n" + mini("10s", "left=3s"),
			60, 3 * time.Second, true, false, "worker[9]"},
		{"seen long ago", closed + mini("10s", "left=100s") + mini("2m10s", "left=1s"), 60, 3 * time.Second, true, false, "worker[9]"},
		{"concluded", mini("10s", "left=53s"), 60, 3 * time.Second, false, true, ""},
		{"concluded once", mini("10s", "left=53s") + mini("20s", "left=40s"), 60, 3 * time.Second, false, true, ""},
		{"not there before", empty + mini("10s", "left=5s"), 60, 5 * time.Second, false, true, ""},
		{"the socket stayed first", mini("10s", "left=33s"), 100, 3 * time.Second, false, true, ""},
		{"more left than there can be", mini("10s", "left=41s"), 100, 10 * time.Second, false, false, ""},
		{"nothing known", mini("10s", ""), 60, 10 * time.Second, false, false, ""},
		{"no sysctls", mini("10s", "left=5s") + mini("20s", "left=5s"), 0, 10 * time.Second, false, false, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			steps, err := timelinetest.Parse(tc.script)
			if err != nil {
				t.Fatal(err)
			}
			tr := timeline.New(timeline.Options{})
			ns := event.Namespace{Inode: timelinetest.Netns, Known: tc.timeout != 0}
			ns.Sysctls.FinTimeout = tc.timeout
			tr.Namespace(ns)
			timelinetest.Play(tr, steps)
			n := 0
			for o := range tr.Orphans(timelinetest.Netns) {
				n++
				since, owner := time.Duration(o.Since-timelinetest.Start), o.Owner.Name()
				if !o.Owner.Known() {
					owner = ""
				}
				if since != tc.since || o.Exact != tc.exact || o.Concluded != tc.concluded || owner != tc.owner ||
					tc.exact && o.Owner.Source != timeline.SourceClose {
					t.Errorf("since %v, exact %v, concluded %v, owner %q by %v", since, o.Exact, o.Concluded, owner, o.Owner.Source)
				}
			}
			if n != 1 {
				t.Errorf("%d orphans", n)
			}
		})
	}
}
