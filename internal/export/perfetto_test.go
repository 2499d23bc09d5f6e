package export_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/tcptrace/tcptrace/internal/export"
	"github.com/tcptrace/tcptrace/internal/export/sample"
)

type event struct {
	Name  string
	Ph    string
	Cat   string
	TS    *json.Number
	Dur   *json.Number
	PID   *int
	TID   *int
	S     string
	Args  map[string]any
	CName string
}

type place struct{ pid, tid int }

// checkTrace is strict about what a reader may be lenient about, and returns the
// events by phase.
func checkTrace(t *testing.T, data []byte) map[string][]event {
	t.Helper()
	require.True(t, utf8.Valid(data))
	for _, r := range string(data) {
		require.True(t, r == '\n' || unicode.IsGraphic(r), "%U is not safe on a terminal", r)
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	dec.DisallowUnknownFields()
	var events []event
	require.NoError(t, dec.Decode(&events))
	_, err := dec.Token()
	require.ErrorIs(t, err, io.EOF, "there is something behind the array")

	number := func(n *json.Number) int64 {
		require.NotNil(t, n)
		v, err := n.Int64()
		require.NoError(t, err, "not whole microseconds")
		require.GreaterOrEqual(t, v, int64(0))
		require.Less(t, v, int64(1)<<53, "no double holds it exactly")
		return v
	}
	byPhase := map[string][]event{}
	processes, threads := map[int]string{}, map[place]string{}
	used := map[place]bool{}
	last := map[place]int64{}
	stack := map[place][]int64{} // ends of the slices that are open
	for i, e := range events {
		require.NotEmpty(t, e.Name, "event %d", i)
		byPhase[e.Ph] = append(byPhase[e.Ph], e)
		require.NotNil(t, e.PID)
		require.NotNil(t, e.TID)
		at := place{*e.PID, *e.TID}
		if e.Ph == "M" {
			require.Nil(t, e.TS)
			switch e.Name {
			case "process_name":
				require.NotContains(t, processes, at.pid, "a process is named twice")
				processes[at.pid] = e.Args["name"].(string)
			case "thread_name":
				require.NotContains(t, threads, at, "a track is named twice")
				threads[at] = e.Args["name"].(string)
			case "process_labels", "process_sort_index", "thread_sort_index":
			default:
				t.Fatalf("metadata %q is no part of the format", e.Name)
			}
			continue
		}
		ts := number(e.TS)
		if e.Ph == "i" && e.S == "g" {
			continue // on no track
		}
		used[at] = true
		require.GreaterOrEqual(t, ts, last[at], "event %d: back in time on its track", i)
		last[at] = ts
		for n := len(stack[at]); n > 0 && stack[at][n-1] <= ts; n-- {
			stack[at] = stack[at][:n-1]
		}
		switch e.Ph {
		case "X":
			end := ts + number(e.Dur)
			if n := len(stack[at]); n > 0 {
				require.LessOrEqual(t, end, stack[at][n-1], "event %d overlaps another slice without being within it", i)
			}
			stack[at] = append(stack[at], end)
		case "i":
			require.Equal(t, "t", e.S)
		default:
			t.Fatalf("event %d: phase %q", i, e.Ph)
		}
	}
	for at := range used {
		require.NotEmpty(t, threads[at], "a track without a name: %v", at)
		require.NotEmpty(t, processes[at.pid], "a process without a name: %v", at)
	}
	return byPhase
}

func TestPerfetto(t *testing.T) {
	const n = 300
	var b bytes.Buffer
	sink := export.NewPerfetto(&b)
	require.NoError(t, sample.Feed(sink, n, false))
	require.NoError(t, sink.Close())
	trace := checkTrace(t, b.Bytes())

	count := map[string]int{}
	tracks := map[string]int{}
	for _, e := range trace["X"] {
		count[e.Cat]++
		if e.Cat == "state" {
			tracks[e.Name]++
		}
		if e.Cat == "connection" && len(e.Args["verdicts"].([]any)) > 0 {
			require.Equal(t, "reset: "+sample.HostileSafe, e.Name)
			require.Equal(t, "terrible", e.CName)
		}
	}
	require.Equal(t, 2*n, count["connection"])
	require.Equal(t, 2*sample.Verdicts, count["verdict"])
	require.Equal(t, 2*n, tracks["SYN_SENT"])
	require.Equal(t, 2*n, tracks["FIN_WAIT1"])
	require.NotContains(t, tracks, "CLOSE")
	entries := 0
	lost := 0
	for _, e := range trace["i"] {
		if e.Cat == "timeline" {
			entries++
		}
		if e.Cat == "lost" {
			lost++
			require.Equal(t, json.Number("12"), e.Args["count"])
		}
	}
	require.Equal(t, 2*(3*n-n/sample.ResetEvery), entries)
	require.Equal(t, 2, lost)

	// The first connection, to the microsecond.
	c := trace["X"][0]
	require.Equal(t, sample.Conn(0, 0), c.Args["conn"])
	require.Equal(t, fmt.Sprint(sample.Began.UnixMicro()+1000), c.TS.String())
	require.Equal(t, "400", c.Dur.String())
	names := map[string]int{}
	for _, e := range trace["M"] {
		if e.Name == "process_name" {
			names[e.Args["name"].(string)]++
		}
	}
	require.Equal(t, map[string]int{
		"verdicts on web-1": 1, "verdicts on db-1": 1,
		"curl[1000] on web-1": 1, "curl[1001] on web-1": 1, "curl[1002] on web-1": 1, sample.HostileSafe + "[666] on web-1": 1,
		"curl[1000] on db-1": 1, "curl[1001] on db-1": 1, "curl[1002] on db-1": 1, sample.HostileSafe + "[666] on db-1": 1,
	}, names)
}

func TestPerfettoOfARunThatIsCutOff(t *testing.T) {
	var whole, cut bytes.Buffer
	for b, isCut := range map[*bytes.Buffer]bool{&whole: false, &cut: true} {
		sink := export.NewPerfetto(b)
		require.NoError(t, sample.Feed(sink, 20, isCut))
		require.NoError(t, sink.Close())
		trace := checkTrace(t, b.Bytes())
		verdicts := 0
		for _, e := range trace["X"] {
			if e.Cat == "verdict" {
				verdicts++
			}
		}
		require.Equal(t, 2*sample.Verdicts, verdicts, "cut off: %v", isCut)
	}
	require.Less(t, cut.Len(), whole.Len()+200)

	// Each prefix that ends with a line is whole but for the bracket.
	text := whole.String()
	for i, c := range text {
		if c == '\n' && i > 2 {
			checkTrace(t, []byte(strings.TrimSuffix(strings.TrimSuffix(text[:i], "]"), ",")+"]"))
			if i > 20000 {
				break
			}
		}
	}
}

func TestPerfettoOfNothing(t *testing.T) {
	var b bytes.Buffer
	sink := export.NewPerfetto(&b)
	require.NoError(t, sink.Close())
	checkTrace(t, b.Bytes())
}

var errFull = errors.New("no space left")

// full takes some bytes, and no more.
type full struct{ left int }

func (f *full) Write(p []byte) (int, error) {
	if f.left < len(p) {
		return 0, errFull
	}
	f.left -= len(p)
	return len(p), nil
}

func TestAFullDiskIsTold(t *testing.T) {
	for name, open := range map[string]func() export.Sink{
		"json":                func() export.Sink { return export.NewJSON(&full{1000}) },
		"perfetto":            func() export.Sink { return export.NewPerfetto(&full{1000}) },
		"parquet":             func() export.Sink { return export.NewParquet(&full{1000}, io.Discard, io.Discard) },
		"parquet connections": func() export.Sink { return export.NewParquet(io.Discard, &full{1000}, io.Discard) },
		"parquet verdicts":    func() export.Sink { return export.NewParquet(io.Discard, io.Discard, &full{10}) },
	} {
		t.Run(name, func(t *testing.T) {
			sink := open()
			err := sample.Feed(sink, 2000, false)
			if err == nil {
				err = sink.Close()
			}
			require.ErrorIs(t, err, errFull)
			require.ErrorIs(t, sink.Close(), errFull, "it must not be forgotten")
		})
	}
}
