package timeline_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/internal/timeline"
	"github.com/tcptrace/tcptrace/internal/timeline/timelinetest"
	"github.com/tcptrace/tcptrace/tracer/event"
)

var update = flag.Bool("update", false, "rewrite the expected part of testdata")

// printer writes down what an observer hears, for comparison.
type printer struct {
	strings.Builder
	conns []*timeline.Conn
}

func (p *printer) Entry(c *timeline.Conn, e *timeline.Entry) {}
func (p *printer) Changed(c *timeline.Conn)                  {}

func (p *printer) Incident(in *timeline.Incident) {
	fmt.Fprintf(p, "incident %d %v %v %v x%d reason=%d flags=%#x seg=%#x %s\n",
		in.Kind, time.Duration(in.At-timelinetest.Start), in.Local, in.Remote, in.Count, in.Reason, in.Flags, in.TCPFlags, in.Owner.Name())
}
func (p *printer) Namespace(ns event.Namespace)                     {}
func (p *printer) Tick(now int64, t *timeline.Tracker)              {}
func (p *printer) Listener(l *timeline.Listener, e *timeline.Entry) {}
func (p *printer) Ended(c *timeline.Conn)                           { p.conn("ended", c) }

func at(t int64) string {
	if t == 0 {
		return "-"
	}
	return time.Duration(t - timelinetest.Start).String()
}

func (p *printer) conn(what string, c *timeline.Conn) {
	fmt.Fprintf(p, "%s %s %v %v", what, c.Role(), c.Local(), c.Remote())
	if l := c.Listener(); l != nil {
		fmt.Fprintf(p, " listener %v", l.Addr)
	}
	if o := c.Owner(); o.Known() {
		fmt.Fprintf(p, " %s by %s", o.Name(), o.Source)
	}
	fmt.Fprintf(p, "\n  %s, opened %s, closed %s, by %s", timeline.StateName(c.State()), at(c.Opened()), at(c.Closed()), c.Closer())
	if c.Peer() != nil {
		p.WriteString(", peer here")
	}
	if c.Before() {
		p.WriteString(", existed before")
	}
	if c.Incomplete() {
		p.WriteString(", incomplete")
	}
	p.WriteString("\n")
	for _, e := range c.Entries() {
		fmt.Fprintf(p, "  %10s %-21s %s", at(e.At), e.Name(), e.Text(c))
		for _, d := range e.Detail(c) {
			fmt.Fprintf(p, " %s=%v", d.Key, d.Value)
		}
		p.WriteString("\n")
	}
}

func play(t *testing.T, script string, o timeline.Options) string {
	t.Helper()
	steps, err := timelinetest.Parse(script)
	if err != nil {
		t.Fatal(err)
	}
	p := &printer{}
	o.Observer = p
	tr := timeline.New(o)
	timelinetest.Play(tr, steps)
	tr.Drain(tr.Now())
	for c := range tr.Conns() {
		p.conn("lives", c)
	}
	return p.String()
}

var reasons = map[uint32]string{8: "TCP_ABORT_ON_DATA", 11: "TCP_ABORT_ON_CLOSE", 14: "TCP_STATE", 15: "TCP_KEEPALIVE_TIMEOUT"}

func options(script string) timeline.Options {
	o := timeline.Options{Capabilities: event.Capabilities{RSTReasons: reasons, Identity: event.IdentityCookie}}
	if strings.Contains(script, "# identity: address") {
		o.Capabilities.Identity = event.IdentityAddress
	}
	return o
}

func TestTimelines(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no test cases: %v", err)
	}
	for _, f := range files {
		t.Run(filepath.Base(f), func(t *testing.T) {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			script, want, _ := strings.Cut(string(b), "\n---\n")
			got := play(t, script, options(script))
			if again := play(t, script, options(script)); again != got {
				t.Errorf("the same events gave something else:\n%s", again)
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
