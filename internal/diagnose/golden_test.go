package diagnose_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/internal/diagnose"
	"github.com/tcptrace/tcptrace/internal/timeline"
	"github.com/tcptrace/tcptrace/internal/timeline/timelinetest"
	"github.com/tcptrace/tcptrace/tracer/event"
)

var update = flag.Bool("update", false, "rewrite the expected part of testdata")

var reasons = map[uint32]string{1: "NO_SOCKET", 3: "TCP_RFC7323_PAWS", 8: "TCP_ABORT_ON_DATA", 10: "INVALID_SYN", 11: "TCP_ABORT_ON_CLOSE",
	13: "TCP_ABORT_ON_MEMORY", 14: "TCP_STATE", 15: "TCP_KEEPALIVE_TIMEOUT"}

var dropReasons = map[uint32]string{2: "NOT_SPECIFIED", 5: "TCP_CSUM", 8: "NETFILTER_DROP", 12: "IP_RPFILTER",
	27: "SOCKET_BACKLOG", 31: "TCP_FLAGS", 36: "TCP_RFC7323_PAWS", 37: "TCP_RFC7323_TW_PAWS", 38: "TCP_RFC7323_PAWS_ACK"}

func fullCapabilities() event.Capabilities {
	return event.Capabilities{Identity: event.IdentityCookie, HasAccept: true, HasSYNDrops: true, HasACKDrops: true,
		HasRSTReason: true, HasAllRSTSent: true, HasListenArg: true, RSTReasons: reasons,
		HasRequestAborts: true, HasBindFailures: true, HasProbes: true, HasDrops: true, HasDropReasons: true, HasMemory: true,
		HasTimeWaitOverflow: true, DropReasons: dropReasons}
}

// play runs a script through a tracker and an engine and writes down what
// comes out: verdicts as they are handed out, then each connection's codes and
// story as it ends.
type player struct {
	strings.Builder
	engine   *diagnose.Engine
	tracker  *timeline.Tracker
	verdicts []*diagnose.Verdict
	final    map[string]*diagnose.Verdict
	conns    int
	brief    bool // verdicts only
}

func newPlayer(caps event.Capabilities) *player {
	p := &player{final: make(map[string]*diagnose.Verdict)}
	p.engine = diagnose.New(diagnose.Options{Capabilities: caps}, diagnose.SinkFunc(p.verdict))
	p.tracker = timeline.New(timeline.Options{Capabilities: caps, Observer: timeline.Observers{p.engine, p}})
	return p
}

func (p *player) Entry(c *timeline.Conn, e *timeline.Entry)        {}
func (p *player) Changed(c *timeline.Conn)                         {}
func (p *player) Incident(in *timeline.Incident)                   {}
func (p *player) Namespace(ns event.Namespace)                     {}
func (p *player) Tick(now int64, t *timeline.Tracker)              {}
func (p *player) Listener(l *timeline.Listener, e *timeline.Entry) {}

func (p *player) Ended(c *timeline.Conn) {
	p.conns++
	if !p.brief {
		fmt.Fprintf(p, "%s %v %v well=%v %v\n    %s\n", c.Role(), c.Local(), c.Remote(), diagnose.Well(c), diagnose.Codes(c), diagnose.Story(c))
	}
}

func (p *player) verdict(v *diagnose.Verdict, phase diagnose.Phase) {
	p.verdicts = append(p.verdicts, v)
	name := [...]string{"new", "growing", "final"}[phase]
	fmt.Fprintf(p, "== %s %s %s %s x%d %s %s", name, v.Severity, v.Confidence, v.Code, v.Count, v.Subject.Kind, v.Subject.Name)
	if v.Process != nil {
		fmt.Fprintf(p, " %s[%d]", v.Process.Comm, v.Process.PID)
	}
	fmt.Fprintf(p, " %s..%s\n    %s\n", time.Duration(v.First-timelinetest.Start), time.Duration(v.Last-timelinetest.Start), v.Story)
	if phase != diagnose.PhaseGrowing {
		b, err := json.Marshal(v.Evidence)
		if err != nil {
			panic(err)
		}
		fmt.Fprintf(p, "    %s\n", b)
		for _, f := range v.Fix {
			fmt.Fprintf(p, "    - %s\n", f)
		}
	}
}

func (p *player) run(steps []timelinetest.Step) {
	timelinetest.Play(p.tracker, steps)
	p.finish()
}

func (p *player) finish() {
	end := p.tracker.Now()
	p.tracker.Drain(end)
	p.engine.Finish(end, p.tracker)
	if !p.brief {
		for c := range p.tracker.Conns() {
			if c.State() != event.StateEstablished {
				fmt.Fprintf(p, "alive %s %v %v %v\n    %s\n", c.Role(), c.Local(), c.Remote(), diagnose.Codes(c), diagnose.StoryAt(c, end))
			}
		}
	}
}

func runScript(t *testing.T, script string) *player {
	t.Helper()
	steps, err := timelinetest.Parse(script)
	if err != nil {
		t.Fatal(err)
	}
	caps := capsOf(script)
	p := newPlayer(caps)
	p.brief = strings.Contains(script, "# verdicts only")
	if !strings.Contains(script, "# sysctls unknown") {
		p.tracker.Namespace(knownNamespace)
	}
	p.run(steps)
	return p
}

// TestCases plays each case of testdata. A line "# silent" in the script means
// that it must give no verdict, "# verdicts: CODE..." names those it must give.
func TestCases(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no test cases: %v", err)
	}
	expect := regexp.MustCompile(`(?m)^# (silent|verdicts: (.*))$`)
	for _, f := range files {
		t.Run(filepath.Base(f), func(t *testing.T) {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			script, want, _ := strings.Cut(string(b), "\n---\n")
			p := runScript(t, script)
			got := p.String()
			if again := runScript(t, script).String(); again != got {
				t.Errorf("the same events gave something else:\n%s", again)
			}
			m := expect.FindStringSubmatch(script)
			if m == nil {
				t.Fatal("the case does not say what it is to give")
			}
			seen := make(map[string]bool)
			var codes []string
			for _, v := range p.verdicts {
				if !seen[v.Code] {
					seen[v.Code] = true
					codes = append(codes, v.Code)
				}
			}
			if s := strings.Join(codes, " "); s != m[2] {
				t.Errorf("verdicts %q, want %q", s, m[2])
			}
			if *update {
				if err := os.WriteFile(f, []byte(script+"\n---\n"+got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != want {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}
