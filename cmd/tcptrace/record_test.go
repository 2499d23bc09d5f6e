package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tcptrace/tcptrace/internal/diagnose"
	"github.com/tcptrace/tcptrace/internal/recorder"
	"github.com/tcptrace/tcptrace/internal/render"
)

func TestSizes(t *testing.T) {
	for in, want := range map[string]int64{"0": 0, "1": 1, "100MiB": 100 << 20, "1G": 1e9, "2 GiB": 2 << 30, "1.5k": 1500} {
		var s size
		require.NoError(t, s.Set(in), in)
		require.Equal(t, want, s.bytes, in)
	}
	for _, in := range []string{"", "x", "-1", "1 furlong", "9EiB", "99999999999999999999", "auto"} {
		var s size
		require.Error(t, s.Set(in), in)
	}
	s := size{auto: true}
	require.NoError(t, s.Set("auto"))
	require.Equal(t, "auto", s.String())
	require.NoError(t, s.Set("256MiB"))
	require.Equal(t, "256MiB", s.String())
}

func TestNamesForTheShell(t *testing.T) {
	for in, want := range map[string]string{
		"/var/log/a-1.0001.tcpt": "/var/log/a-1.0001.tcpt", "a b.tcpt": "'a b.tcpt'", "it's": `'it'\''s'`, "-o": "'./-o'", "$(x)": "'$(x)'",
	} {
		require.Equal(t, want, quoted(in))
	}
}

func TestWhatTriggers(t *testing.T) {
	verdict := func(code string, s diagnose.Severity) *render.Verdict {
		return &render.Verdict{Verdict: &diagnose.Verdict{Code: code, Severity: s}}
	}
	bad, odd, fine := verdict("reset-sent", diagnose.Error), verdict("half-open", diagnose.Warning), verdict("port-closed", diagnose.Info)
	for _, c := range []struct {
		words []string
		want  [3]bool
	}{
		{nil, [3]bool{}},
		{[]string{"any"}, [3]bool{true, true, true}},
		{[]string{"warning"}, [3]bool{true, true, false}},
		{[]string{"error"}, [3]bool{true, false, false}},
		{[]string{"port-closed", "half-open"}, [3]bool{false, true, true}},
	} {
		require.Equal(t, c.want, [3]bool{triggers(c.words, bad), triggers(c.words, odd), triggers(c.words, fine)}, c.words)
	}
}

// tallied is a run with these last words.
func tallied(final ...diagnose.Verdict) *tally {
	t := newTally()
	s := &render.Summary{Verdicts: make(map[string]uint64), Duration: 3700 * time.Millisecond}
	for _, v := range final {
		s.Verdicts[v.Code] += v.Count
		s.Final = append(s.Final, &render.Verdict{Verdict: &v})
	}
	_ = t.Summary(s)
	return t
}

func TestCausesComeAsInAReport(t *testing.T) {
	require.Equal(t, "no causes found", tallied().causes(false))
	sums := tallied(
		diagnose.Verdict{Code: "a", Severity: diagnose.Info, Confidence: diagnose.Certain, Count: 9000},
		diagnose.Verdict{Code: "b", Severity: diagnose.Error, Confidence: diagnose.Certain, Count: 1},
		diagnose.Verdict{Code: "c", Severity: diagnose.Error, Confidence: diagnose.Likely, Count: 20},
		diagnose.Verdict{Code: "d", Severity: diagnose.Error, Confidence: diagnose.Certain, Count: 2},
		diagnose.Verdict{Code: "e", Severity: diagnose.Info, Confidence: diagnose.Certain, Count: 7},
		diagnose.Verdict{Code: "e", Severity: diagnose.Warning, Confidence: diagnose.Likely, Count: 1},
	)
	require.Equal(t, "causes: d 2, b 1, c 20, e 8 (1 warning, 7 info), a 9,000", sums.causes(false))
	require.Equal(t, "causes of all that was seen, which is more than what was written: d 2, b 1, c 20, e 8 (1 warning, 7 info), a 9,000", sums.causes(true))
	sums.summary.Verdicts["e"] = 10
	require.Contains(t, sums.causes(false), "e 10 (1 warning, 7 info, 2 more)")

	// While one grew it was worse than in the end.
	once := newTally()
	require.NoError(t, once.Verdict(&render.Verdict{Verdict: &diagnose.Verdict{Code: "a", Severity: diagnose.Error}}))
	final := tallied(diagnose.Verdict{Code: "a", Count: 1, Severity: diagnose.Info}, diagnose.Verdict{Code: "b", Count: 1, Severity: diagnose.Warning})
	require.NoError(t, once.Summary(final.summary))
	require.Equal(t, "causes: b 1, a 1", once.causes(false))

	lossy := tallied()
	require.NoError(t, lossy.Lost(&render.Lost{Count: 3}))
	require.Equal(t, "no causes found; some may be missing, since events were lost", lossy.causes(false))

	some := tallied()
	some.filtered = true
	require.Equal(t, "no causes found in what the filters let through", some.causes(false))
}

func TestClosingWords(t *testing.T) {
	var r recording
	sums := tallied(diagnose.Verdict{Code: "a", Count: 1, Severity: diagnose.Error})
	files := []string{"x y.tcpt"}
	require.Equal(t, []string{
		"2,000 events in 3.7s, none lost; 20 KiB, 10.0 bytes an event",
		"causes: a 1",
		"look at it with: tcptrace report 'x y.tcpt'",
	}, r.closing(recorder.Stats{Events: 2000, Written: 2000, Bytes: 20000, Files: files}, sums, false))

	// A full disk.
	require.Equal(t, []string{
		"14,497 events in 3.7s: 0 are in the file, 14,497 could not be written; 467 KiB",
		"causes of all that was seen, which is more than what was written: a 1",
	}, r.closing(recorder.Stats{Events: 14497, Failed: 14497, Bytes: 467 << 10, Files: files}, sums, false)[:2])

	// A slow one.
	lines := r.closing(recorder.Stats{Events: 2000, Written: 1000, Dropped: 1000, Bytes: 20000, Files: []string{"a", "b"}}, sums, false)
	require.Equal(t, "2,000 events in 3.7s: 1,000 are in the files, 1,000 left out because the disk was too slow; 20 KiB, 20.0 bytes an event", lines[0])
	require.Contains(t, lines[1], "more than what was written")

	// A flight recorder's files are about a part of the time.
	flight := recording{last: time.Second}
	lines = flight.closing(recorder.Stats{Events: 5, Files: files}, sums, true)
	require.Equal(t, "5 events in 3.7s, none lost", lines[0])
	require.Contains(t, lines[1], "more than what was written")
	flight.last = time.Minute
	require.Equal(t, "causes: a 1", flight.closing(recorder.Stats{Events: 5}, sums, true)[1])

	// A pipe.
	pipe := recording{dumping: dumping{path: "-"}}
	require.Contains(t, pipe.closing(recorder.Stats{Events: 3, Written: 1, Failed: 2, Files: []string{"/dev/stdout"}}, sums, false)[0], "1 were written, 2 could not be written")
}
