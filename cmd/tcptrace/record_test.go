package main

import (
	"testing"

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

func TestClosingWords(t *testing.T) {
	tally := &tally{worst: map[string]diagnose.Severity{"a": diagnose.Info, "b": diagnose.Error, "c": diagnose.Error}}
	tally.summary = &render.Summary{Verdicts: map[string]uint64{"a": 9000, "b": 1, "c": 2}}
	require.Equal(t, "causes: c 2, b 1, a 9,000", tally.causes())
	var r recording
	lines := r.closing(recorder.Stats{Events: 2000, Bytes: 20000, Dropped: 1000, Files: []string{"x y.tcpt"}}, tally, false, 0)
	require.Contains(t, lines[0], "20.0 bytes an event")
	require.Contains(t, lines[0], "1,000 of them left out because the disk was too slow")
	require.NotContains(t, lines[0], "none lost")
	require.Equal(t, "look at it with: tcptrace report 'x y.tcpt'", lines[len(lines)-1])
}
