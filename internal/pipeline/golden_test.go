package pipeline

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tcptrace/tcptrace/internal/diagnose"
	"github.com/tcptrace/tcptrace/internal/dump"
	"github.com/tcptrace/tcptrace/internal/dump/dumptest"
	"github.com/tcptrace/tcptrace/internal/filter"
	"github.com/tcptrace/tcptrace/internal/lab"
	"github.com/tcptrace/tcptrace/internal/render"
	"github.com/tcptrace/tcptrace/tracer"
	"github.com/tcptrace/tcptrace/tracer/event"
)

var (
	update = flag.Bool("update", false, "rewrite what the golden dumps are expected to say")
	record = flag.String("record-golden", "", "`VERSION` of the format, such as v1: record the golden dumps of this version anew, from real traffic; needs root, half a minute")
)

func TestMain(m *testing.M) {
	lab.Main()
	flag.Parse()
	os.Exit(m.Run())
}

// goldenDir holds for each released version of the format dumps of real traffic
// (NAME.tcpt), and beside each what a report says of it (NAME.jsonl).
const goldenDir = "testdata"

// goldenCases are the cases of the lab that are recorded, with thresholds other
// than the default.
var goldenCases = []struct {
	id    string
	rules map[string]string
}{
	{id: "A"}, // closed at once by the server
	{id: "B", rules: map[string]string{"close-wait": "2s"}}, // known from snapshots, concluded by time
	{id: "C"},            // a listener's queue
	{id: "G"},            // a failed call, TIME_WAIT
	{id: "M-unread"},     // RST
	{id: "C-ipv6"},       // IPv6
	{id: "echo-healthy"}, // nothing is wrong
}

// goldenRules are the thresholds of a recording.
func goldenRules(rules map[string]string) (o diagnose.Options, err error) {
	if s, ok := rules["close-wait"]; ok {
		o.CloseWait, err = time.ParseDuration(s)
	}
	return o, err
}

// TestGoldenDumps replays dumps that earlier versions wrote of real traffic.
// The whole output is compared, so that whatever a change does to what is said
// of old dumps is seen where the change is reviewed: -update writes it.
func TestGoldenDumps(t *testing.T) {
	if *record != "" {
		recordGolden(t, filepath.Join(goldenDir, *record))
	}
	dumps, err := filepath.Glob(filepath.Join(goldenDir, "v*", "*"+dump.Extension))
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(dumps), len(goldenCases))
	for _, name := range dumps {
		t.Run(filepath.Base(filepath.Dir(name))+"/"+filepath.Base(name), func(t *testing.T) {
			b, err := os.ReadFile(name)
			require.NoError(t, err)
			r, err := dump.NewReader(bytes.NewReader(b))
			require.NoError(t, err)
			rules, err := goldenRules(r.Header().Rules)
			require.NoError(t, err)
			o := Options{Show: Show{Verdicts: true, Connections: true, Events: true, All: true}, Diagnose: rules}
			got, what := replayed(t, o, 0, Part{Name: name, Reader: r})
			assert.Empty(t, what.Problems)
			expected := strings.TrimSuffix(name, dump.Extension) + ".jsonl"
			if *update || *record != "" {
				require.NoError(t, os.WriteFile(expected, []byte(got), 0o644))
			}
			want, err := os.ReadFile(expected)
			require.NoError(t, err)
			if got == string(want) {
				return
			}
			g, w := strings.SplitAfter(got, "\n"), strings.SplitAfter(string(want), "\n")
			for i := range max(len(g), len(w)) {
				is, was := "", ""
				if i < len(g) {
					is = g[i]
				}
				if i < len(w) {
					was = w[i]
				}
				if is != was {
					t.Fatalf("%s:%d: if this is meant, run with -update and look at the difference\nwas: %sis:  %s", expected, i+1, was, is)
				}
			}
		})
	}
}

// recordGolden records the golden dumps. What says on which machine that was is
// replaced.
func recordGolden(t *testing.T, dir string) {
	require.NoError(t, os.MkdirAll(dir, 0o755))
	for _, c := range goldenCases {
		rules, err := goldenRules(c.rules)
		require.NoError(t, err)
		mem := &neutral{Memory: dumptest.NewMemory(), run: "golden " + c.id, rules: c.rules}
		truth, err := recordCase(c.id, rules, mem)
		require.NoError(t, err, c.id)
		b, err := mem.Bytes(0)
		require.NoError(t, err)
		said, _ := replayed(t, Options{Show: Show{Verdicts: true}, Diagnose: rules}, 0, (&memory{mem.Memory}).part(t, 0))
		for _, want := range truth.Expect {
			require.Contains(t, said, `"code":"`+want.Code+`"`, "what the dump of case %s says", c.id)
		}
		require.Less(t, len(b), 100_000, "size of the dump of case %s", c.id)
		require.NoError(t, os.WriteFile(filepath.Join(dir, strings.ToLower(c.id)+dump.Extension), b, 0o644))
	}
}

// recordCase plays a case on the running kernel and records it.
func recordCase(id string, rules diagnose.Options, rec Recorder) (*lab.Truth, error) {
	c, err := lab.Find(id)
	if err != nil {
		return nil, err
	}
	env, err := lab.NewEnv(lab.Options{Limit: 4, Reconnects: 20, Pool: 4, Backlog: 4, CloseWait: 2*rules.CloseWait + time.Second})
	if err != nil {
		return nil, err
	}
	defer env.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if c.Prepare != nil {
		if err := c.Prepare(ctx, env); err != nil {
			return nil, err
		}
	}
	var f filter.Filter
	for _, ns := range env.Namespaces() {
		f.Netns = append(f.Netns, ns.Inode())
	}
	tr, err := tracer.Open(ctx, tracer.Options{Attach: os.Getenv("TCPTRACE_ATTACH"), Filter: tracer.KernelFilter{Netns: f.Netns}})
	if err != nil {
		return nil, err
	}
	defer tr.Close()
	watching, stop := context.WithCancel(ctx)
	defer stop()
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() {
		_, err := Run(watching, Config{
			Options: Options{Out: render.NewJSON(&bytes.Buffer{}), Filter: f, Diagnose: rules},
			Tracer:  tr, Version: "golden", Host: "golden", Record: rec,
			Ready: func() error { close(ready); return nil },
		})
		done <- err
	}()
	select {
	case <-ready:
	case err := <-done:
		return nil, cmp.Or(err, errors.New("the run ended at once"))
	}
	truth, err := c.Run(ctx, env)
	if err != nil {
		return nil, err
	}
	time.Sleep(1500 * time.Millisecond) // for what is looked at once a second
	stop()
	return truth, <-done
}

// neutral leaves out of a recording what is the machine's.
type neutral struct {
	*dumptest.Memory
	run   string
	rules map[string]string
}

func (n *neutral) Begin(h dump.Header) error {
	h.Run, h.BootID, h.Command, h.Rules = n.run, "", []string{"tcptrace", "record", "-o", "golden" + dump.Extension}, n.rules
	var major, minor, patch int
	if _, err := fmt.Sscanf(h.Kernel, "%d.%d.%d", &major, &minor, &patch); err != nil {
		return fmt.Errorf("reading the kernel's release %s: %w", h.Kernel, err)
	}
	h.Kernel = fmt.Sprintf("%d.%d.%d", major, minor, patch)
	h.Capabilities.Kernel = h.Kernel
	return n.Memory.Begin(h)
}

func (n *neutral) Process(p event.Process) {
	p.Exe, p.Cgroup = "/usr/bin/"+p.Comm, "/golden.slice/"+p.Comm+".service"
	n.Memory.Process(p)
}

func (n *neutral) Namespace(ns event.Namespace) {
	if ns.Name != "" {
		ns.Name = "golden"
	}
	n.Memory.Namespace(ns)
}
