package render

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tcptrace/tcptrace/internal/diagnose"
	"github.com/tcptrace/tcptrace/tracer/event"
)

func ended() *Command {
	return &Command{
		Time: at(2 * time.Second), Args: []string{"sh", "-c", "exit 7", hostile}, Status: 7, Ended: "exit status 7",
		Duration: 1500 * time.Millisecond, Follow: "cgroup and forks", Caveat: "not what a service starts",
		Running: []uint32{101, 102, 103, 104, 105, 106, 107, 108, 109, 110, 111, 112},
		Left:    "/sys/fs/cgroup/tcptrace-run-1",
		Failing: []string{"accept-queue-overflow"},
	}
}

// TestBrief shows everything that a run can have to tell.
func TestBrief(t *testing.T) {
	var out bytes.Buffer
	b := NewBrief(&out, TextOptions{Netns: 1})
	b.Namespace(event.Namespace{Inode: 4026532000, Name: "blue"})
	require.NoError(t, b.Start(&Start{Unknowable: []string{"one", "two"}}))
	require.NoError(t, b.Verdict(overflow(diagnose.PhaseNew, 1)))
	require.NoError(t, b.Lost(&Lost{Where: "ring", Count: 1200}))
	require.NoError(t, b.Lost(&Lost{Where: "ring", Count: 34}))
	require.NoError(t, b.Lost(&Lost{Where: "map", Count: 5}))
	early := strange()
	early.Verdict.Code = "reset-sent"
	require.NoError(t, b.Verdict(early))
	require.NoError(t, b.Summary(&Summary{
		Connections: 1234, Lost: 1239, Evicted: 7, Verdicts: map[string]uint64{"accept-queue-overflow": 37, "close-wait-leak": 123456, "reset-sent": 9},
		Final: []*Verdict{strange(), overflow(diagnose.PhaseFinal, 37)},
	}))
	require.NoError(t, b.Flush())
	assert.Empty(t, out.String(), "nothing is written while the command runs")
	assert.Equal(t, uint64(1239), b.LostEvents())
	assert.Equal(t, []string{"accept-queue-overflow"}, b.Codes(diagnose.Error))
	assert.Equal(t, []string{"accept-queue-overflow", "close-wait-leak", "reset-sent"}, b.Codes(diagnose.Warning))

	require.NoError(t, b.Write(ended()))
	golden(t, "brief.golden", out.Bytes())
	for line := range strings.Lines(out.String()) {
		assert.LessOrEqual(t, columns(strings.TrimSuffix(line, "\n")), 80, line)
	}
	assert.NotContains(t, out.String(), "\x1b")
}

// TestBriefNothing is of a command of which there is nothing to tell, and of
// one whose tracing ended before a summary.
func TestBriefNothing(t *testing.T) {
	for _, s := range []*Summary{{Connections: 1}, nil} {
		var out bytes.Buffer
		b := NewBrief(&out, TextOptions{})
		if s != nil {
			require.NoError(t, b.Summary(s))
		}
		require.NoError(t, b.Write(&Command{Ended: "killed by SIGINT", Follow: "forks"}))
		assert.Contains(t, out.String(), "tcptrace: killed by SIGINT after 0s; ")
		assert.Contains(t, out.String(), "no verdict, no events lost")
		assert.Empty(t, b.Codes(diagnose.Info))
	}
}

func TestCommandLine(t *testing.T) {
	var out bytes.Buffer
	j := NewJSON(&out)
	require.NoError(t, j.Command(ended()))
	require.NoError(t, j.Flush())
	assert.Contains(t, out.String(), `{"type":"command",`)
	assert.Contains(t, out.String(), `"exit_status":7,"duration_ms":1500,"follow":"cgroup and forks"`)
	assert.NotContains(t, out.String(), "\x1b")

	assert.Equal(t, `sh -c "exit 7" ""`, commandLine([]string{"sh", "-c", "exit 7", ""}))
	assert.NotContains(t, commandLine([]string{hostile, "a " + hostile}), "\x1b")
	long := commandLine([]string{strings.Repeat("é", 1000)})
	assert.Equal(t, 203, len([]rune(long)))
}

// failing is a renderer that has no room after some lines.
type failing struct {
	Brief
	left int
}

func (f *failing) Verdict(*Verdict) error {
	if f.left--; f.left < 0 {
		return errors.New("no room")
	}
	return nil
}

// TestTee checks that one that fails does not keep the other from going on.
func TestTee(t *testing.T) {
	main, side := NewBrief(&bytes.Buffer{}, TextOptions{}), &failing{Brief: *NewBrief(&bytes.Buffer{}, TextOptions{}), left: 1}
	tee := &Tee{Main: main, Side: side}
	require.NoError(t, tee.Verdict(overflow(diagnose.PhaseNew, 1)))
	require.NoError(t, tee.SideErr())
	for range 3 {
		require.NoError(t, tee.Verdict(strange()))
	}
	require.EqualError(t, tee.SideErr(), "no room")
	assert.Equal(t, -1, side.left, "it is not asked again")
	assert.Equal(t, []string{"accept-queue-overflow", "close-wait-leak"}, main.Codes(diagnose.Warning))
}
