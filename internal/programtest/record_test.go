package programtest

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/dump"
	"github.com/tcptrace/tcptrace/internal/kerneltest/watchtest"
	"github.com/tcptrace/tcptrace/internal/lab"
)

// recording is a `tcptrace watch --record` as users run it, about cases of the lab.
type recording struct {
	t      *testing.T
	binary string
	dir    string
	cases  []lab.Case
	envs   []*lab.Env
	cmd    *exec.Cmd
	errs   bytes.Buffer
}

// recorded starts one that sees nothing but the cases.
func recorded(t *testing.T, ids []string, args ...string) *recording {
	t.Helper()
	p := &recording{t: t, dir: t.TempDir()}
	p.binary = filepath.Join(p.dir, "tcptrace")
	build := exec.Command("go", "build", "-o", p.binary, "../../cmd/tcptrace")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	require.NoError(t, err, "building tcptrace: %s", out)

	ready := filepath.Join(p.dir, "ready")
	args = append([]string{"watch", "-o", "json", "--all", "--attach", watchtest.Attach(), "--ready-file", ready, "--record", p.dump()}, args...)
	for _, id := range ids {
		c, err := lab.Find(id)
		require.NoError(t, err)
		env, err := lab.NewEnv(lab.Options{Patience: watchtest.Patience()})
		require.NoError(t, err, "these tests need root")
		t.Cleanup(func() { _ = env.Close() })
		if c.Prepare != nil {
			require.NoError(t, c.Prepare(t.Context(), env), id)
		}
		p.cases, p.envs = append(p.cases, c), append(p.envs, env)
		for _, ns := range env.Namespaces() {
			args = append(args, "--netns", strconv.FormatUint(uint64(ns.Inode()), 10))
		}
	}
	p.cmd = exec.Command(p.binary, args...)
	stdout, err := os.Create(filepath.Join(p.dir, "said"))
	require.NoError(t, err)
	defer stdout.Close()
	p.cmd.Stdout, p.cmd.Stderr = stdout, &p.errs
	require.NoError(t, p.cmd.Start())
	t.Cleanup(func() {
		if p.cmd.ProcessState == nil {
			_ = p.cmd.Process.Kill()
			_ = p.cmd.Wait()
		}
	})
	require.Eventually(t, func() bool {
		_, err := os.Stat(ready)
		return err == nil
	}, watchtest.Patience(), 10*time.Millisecond, "watch was not ready in time")
	return p
}

func (p *recording) dump() string { return filepath.Join(p.dir, "run"+dump.Extension) }

// said is what it has said so far.
func (p *recording) said() string {
	p.t.Helper()
	b, err := os.ReadFile(filepath.Join(p.dir, "said"))
	require.NoError(p.t, err)
	return string(b)
}

// play has the cases happen.
func (p *recording) play() {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), 2*watchtest.Patience())
	defer cancel()
	for i, c := range p.cases {
		_, err := c.Run(ctx, p.envs[i])
		require.NoError(p.t, err, c.ID)
	}
}

// report runs tcptrace report on dumps and returns what it says.
func (p *recording) report(files ...string) (stdout, stderr string) {
	p.t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.Command(p.binary, append([]string{"report", "-o", "json", "--all"}, files...)...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	require.NoError(p.t, cmd.Run(), "%s", &errs)
	return out.String(), errs.String()
}

// codes are those of the verdicts in JSON lines, with their last counts.
func codes(t *testing.T, lines string) map[string]uint64 {
	t.Helper()
	counts := make(map[string]uint64)
	for line := range strings.Lines(lines) {
		var v struct {
			Type, Code string
			Count      uint64
		}
		require.NoError(t, json.Unmarshal([]byte(line), &v), line)
		if v.Type == "verdict" {
			counts[v.Code] = max(counts[v.Code], v.Count)
		}
	}
	return counts
}

// same fails the test where two texts differ, at the first line that does.
func same(t *testing.T, want, got string) {
	t.Helper()
	w, g := strings.SplitAfter(want, "\n"), strings.SplitAfter(got, "\n")
	for i := range min(len(w), len(g)) {
		require.Equal(t, w[i], g[i], "line %d", i+1)
	}
	require.Equal(t, len(w), len(g), "lines")
}

// TestRecordedIsReported: what watch said, report says of its dump, byte for
// byte, from one file and from several.
func TestRecordedIsReported(t *testing.T) {
	for name, args := range map[string][]string{"one file": nil, "several": {"--rotate", "1s"}} {
		t.Run(name, func(t *testing.T) {
			p := recorded(t, []string{"C", "A"}, args...)
			p.play()
			time.Sleep(3 * time.Second)
			require.NoError(t, p.cmd.Process.Signal(unix.SIGTERM))
			require.NoError(t, p.cmd.Wait(), "%s", &p.errs)
			files, err := filepath.Glob(filepath.Join(p.dir, "run*"+dump.Extension))
			require.NoError(t, err)
			if args == nil {
				require.Len(t, files, 1)
			} else {
				require.Greater(t, len(files), 1)
			}
			got, errs := p.report(files...)
			assert.Empty(t, errs)
			same(t, p.said(), got)
			counts := codes(t, got)
			for _, code := range []string{"accept-queue-overflow", "immediate-close", "reconnect-loop"} {
				assert.NotZero(t, counts[code], "%s: %v", code, counts)
			}
		})
	}
}

// TestRecorderKilled: a recorder that was killed leaves a dump that says all
// until about a second before.
func TestRecorderKilled(t *testing.T) {
	p := recorded(t, []string{"C"})
	p.play()
	time.Sleep(3 * time.Second)
	// What was told of by now is in the dump.
	said := p.upTo(time.Now().Add(-2 * time.Second))
	require.NoError(t, p.cmd.Process.Kill())
	require.Error(t, p.cmd.Wait())
	got, errs := p.report(p.dump())
	assert.Contains(t, errs, "cut off")
	require.NotEmpty(t, said)
	assert.True(t, strings.HasPrefix(got, said), "report says\n%s\nwatch said\n%s", got, said)
	counts := codes(t, got)
	for code, n := range codes(t, said) {
		assert.GreaterOrEqual(t, counts[code], n, code)
	}
	assert.NotZero(t, counts["accept-queue-overflow"])
	assert.Contains(t, got, `"type":"summary"`)
}

// upTo is what the program has said of what happened before a time.
func (p *recording) upTo(when time.Time) string {
	p.t.Helper()
	var said strings.Builder
	for line := range strings.Lines(p.said()) {
		var v struct{ Time time.Time }
		if json.Unmarshal([]byte(line), &v) != nil || v.Time.After(when) {
			break
		}
		said.WriteString(line)
	}
	return said.String()
}
