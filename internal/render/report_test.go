package render

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/stretchr/testify/require"

	"github.com/tcptrace/tcptrace/internal/diagnose"
)

func spool(t *testing.T) *os.File {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "spool")
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

// report writes a report of several hosts that all saw the same.
func report(t *testing.T, o ReportOptions, hosts int) []byte {
	t.Helper()
	var b bytes.Buffer
	if o.Rest {
		o.Spool = spool(t)
	}
	o.Several = hosts > 1
	r := NewReport(&b, o)
	for i := range hosts {
		r.Run(1, false)
		script(t, r)
		r.now.start.Host = fmt.Sprintf("web%d", i+1)
		var problems []string
		if i == 0 {
			problems = []string{"trace.tcpt was cut off: " + hostile}
		}
		r.Whole(at(-time.Second), problems, []string{"a note " + hostile})
	}
	require.NoError(t, r.Close())
	return b.Bytes()
}

func TestReport(t *testing.T) {
	for _, c := range []struct {
		name  string
		o     ReportOptions
		hosts int
	}{
		{"report-80.golden", ReportOptions{Causes: true}, 1},
		{"report-120-color.golden", ReportOptions{Causes: true, TextOptions: TextOptions{Width: 120, Color: true}}, 1},
		{"report-hosts.golden", ReportOptions{Causes: true, Rest: true, TextOptions: TextOptions{Location: time.FixedZone("CET", 3600)}}, 2},
		{"report-conns.golden", ReportOptions{Rest: true}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := report(t, c.o, c.hosts)
			golden(t, c.name, got)
			if c.o.Color {
				return
			}
			for line := range strings.Lines(string(got)) {
				i := strings.IndexFunc(strings.TrimSuffix(line, "\n"), func(c rune) bool { return !unicode.IsGraphic(c) })
				require.Negative(t, i, "%q", line)
			}
		})
	}
}

// TestReportRanks: the worst comes first, and what is over is kept beside what
// began anew under the same name.
func TestReportRanks(t *testing.T) {
	list := []*Verdict{
		{Verdict: &diagnose.Verdict{Code: "e", Severity: diagnose.Info, Confidence: diagnose.Certain, Count: 1000}},
		{Verdict: &diagnose.Verdict{Code: "c", Severity: diagnose.Error, Confidence: diagnose.Likely, Count: 1000}},
		{Verdict: &diagnose.Verdict{Code: "b", Severity: diagnose.Error, Confidence: diagnose.Certain, Count: 1}},
		{Verdict: &diagnose.Verdict{Code: "a", Severity: diagnose.Error, Confidence: diagnose.Certain, Count: 3}, Phase: diagnose.PhaseFinal},
		{Verdict: &diagnose.Verdict{Code: "a", Severity: diagnose.Error, Confidence: diagnose.Certain, Count: 2}},
		{Verdict: &diagnose.Verdict{Code: "d", Severity: diagnose.Warning, Confidence: diagnose.Certain, Count: 1}},
	}
	var b bytes.Buffer
	r := NewReport(&b, ReportOptions{Causes: true})
	r.Run(0, false)
	require.NoError(t, r.Start(&Start{Host: "h"}))
	for _, v := range list {
		require.NoError(t, r.Verdict(v))
	}
	require.NoError(t, r.Close())
	var order []string
	for _, c := range r.causes {
		order = append(order, fmt.Sprint(c.Code, c.Count))
	}
	require.Equal(t, []string{"a3", "a2", "b1", "c1000", "d1", "e1000"}, order)
}

// TestReportOfNothing: that no cause was found is said only of what was looked
// at.
func TestReportOfNothing(t *testing.T) {
	for _, c := range []struct {
		filtered bool
		problems []string
		want     string
	}{
		{false, nil, "No cause for trouble was found."},
		{true, nil, "No cause for trouble was found in what the filters let through."},
		{false, []string{"cut off"}, "No cause for trouble was found in what is there, which is not all: see above."},
		{true, []string{"cut off"}, "No cause for trouble was found in what is there and the filters let through. Not all is there: see above."},
	} {
		var b bytes.Buffer
		r := NewReport(&b, ReportOptions{Causes: true, TextOptions: TextOptions{Width: 200}})
		r.Run(0, c.filtered)
		require.NoError(t, r.Start(&Start{Host: "h"}))
		r.Whole(0, c.problems, nil)
		require.NoError(t, r.Close())
		require.Contains(t, b.String(), c.want)
	}
}

// TestReportIsBounded: a recording with endless causes does not take endless
// memory.
func TestReportIsBounded(t *testing.T) {
	var b bytes.Buffer
	r := NewReport(&b, ReportOptions{Causes: true})
	r.Run(0, false)
	require.NoError(t, r.Start(&Start{Host: "h"}))
	for range maxCauses + 5 {
		require.NoError(t, r.Verdict(&Verdict{Verdict: &diagnose.Verdict{Severity: diagnose.Error}, Phase: diagnose.PhaseFinal}))
	}
	require.Len(t, r.causes, maxCauses)
	require.NoError(t, r.Close())
	require.Contains(t, b.String(), "5 more causes are left out")
}
