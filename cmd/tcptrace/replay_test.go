package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"

	"github.com/tcptrace/tcptrace/internal/dump"
	"github.com/tcptrace/tcptrace/internal/dump/dumptest"
	"github.com/tcptrace/tcptrace/internal/pipeline"
	"github.com/tcptrace/tcptrace/internal/render"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// refusals writes a recording of connections that are refused, one in the middle
// of each hour, with a part for every hour. It returns the parts' names.
func refusals(t *testing.T, dir string, h dump.Header, hours int) (names []string) {
	t.Helper()
	m := dumptest.NewMemory()
	h.Run, h.Kernel, h.Key = h.Host, "6.1", [16]byte{1, h.Host[len(h.Host)-1]}
	require.NoError(t, m.Begin(h))
	local, remote := netip.MustParseAddrPort("192.0.2.1:40000"), netip.MustParseAddrPort("192.0.2.2:80")
	for i := range hours {
		if i > 0 {
			m.Rotate()
		}
		at := h.StartedBoot + int64(i)*int64(time.Hour)
		m.Advance(at + 1)
		e := event.Event{Time: at + int64(30*time.Minute), Sock: uint64(i + 1), Kind: event.KindState, Old: event.StateClose, New: event.StateSynSent, Local: local, Remote: remote}
		m.Event(&e)
		e = event.Event{Time: e.Time + 1000, Sock: e.Sock, Kind: event.KindState, Old: event.StateSynSent, New: event.StateClose, Err: 111, Local: local, Remote: remote}
		m.Event(&e)
		m.Advance(at + int64(time.Hour))
	}
	require.NoError(t, m.End(dump.End{Reason: dump.EndDone, At: h.StartedBoot + int64(hours)*int64(time.Hour)}))
	for i := range m.Parts() {
		b, err := m.Bytes(i)
		require.NoError(t, err)
		name := filepath.Join(dir, fmt.Sprintf("%s.%04d%s", h.Host, i+1, dump.Extension))
		require.NoError(t, os.WriteFile(name, b, 0o600))
		names = append(names, name)
	}
	return names
}

// tcptrace runs a command line.
func tcptrace(args ...string) (status int, out, errOut string) {
	var o, e bytes.Buffer
	status = run(context.Background(), args, &o, &e)
	return status, o.String(), e.String()
}

// TestTimesOfLaterParts: without the first parts of a rotated recording, times
// of day and +5m are of what is there.
func TestTimesOfLaterParts(t *testing.T) {
	began := time.Date(2026, 11, 20, 12, 10, 0, 0, time.Local)
	names := refusals(t, t.TempDir(), dump.Header{Host: "web1", Started: began.UnixNano(), StartedBoot: int64(time.Hour)}, 30)
	last := names[24:26] // from 12:10 to 14:10 of the day after
	for _, c := range []struct{ since, until string }{
		{"12:35", "12:55"},
		{"+20m", "+45m"},
		{"2026-11-21 12:35", "2026-11-21 12:55"},
	} {
		status, out, errOut := tcptrace(append([]string{"report", "-o", "json", "--since", c.since, "--until", c.until}, last...)...)
		require.Zero(t, status, errOut)
		require.Equal(t, 1, strings.Count(out, `"type":"connection"`), "%v: %s", c, out)
		require.NotContains(t, errOut, "asked", c)
		require.Contains(t, strings.SplitN(out, "\n", 2)[0], began.AddDate(0, 0, 1).UTC().Format("2006-01-02T15:04:05"))
	}
	_, out, _ := tcptrace(append([]string{"report", "--since", "2026-11-20 12:35", "--until", "2026-11-20 12:55"}, last...)...)
	out = strings.Join(strings.Fields(out), " ")
	require.Contains(t, out, "before the beginning of the recording, "+began.AddDate(0, 0, 1).UTC().Format("2006-01-02 15:04:05 UTC"))
	require.NotContains(t, out, "the end of the recording")
	require.NotContains(t, out, "1970")

	// The whole has its own beginning.
	_, out, _ = tcptrace(append([]string{"report", "-o", "json", "--since", "12:35", "--until", "12:55"}, names...)...)
	require.Equal(t, 1, strings.Count(out, `"type":"connection"`), out)
	require.Contains(t, strings.SplitN(out, "\n", 2)[0], began.UTC().Format("2006-01-02T15:04:05"))
}

// TestTimesOfDay: one without a date is not before the beginning, but for the
// minute or the second in which that was.
func TestTimesOfDay(t *testing.T) {
	began := time.Date(2026, 3, 14, 3, 10, 40, 700_000_000, time.Local)
	for s, want := range map[string]time.Time{
		"03:10":    time.Date(2026, 3, 14, 3, 10, 0, 0, time.Local),
		"03:10:40": time.Date(2026, 3, 14, 3, 10, 40, 0, time.Local),
		"03:11":    time.Date(2026, 3, 14, 3, 11, 0, 0, time.Local),
		"03:10:39": time.Date(2026, 3, 15, 3, 10, 39, 0, time.Local),
		"03:10:00": time.Date(2026, 3, 15, 3, 10, 0, 0, time.Local),
		"03:09":    time.Date(2026, 3, 15, 3, 9, 0, 0, time.Local),
	} {
		at, err := when(s, "since", render.Stamp(began.UnixNano()))
		require.NoError(t, err)
		require.True(t, want.Equal(at.Time()), "%s is %v", s, at.Time())
	}
}

// TestOneRecordingFails: it keeps nobody from the others.
func TestOneRecordingFails(t *testing.T) {
	dir := t.TempDir()
	write := func(host string, h dump.Header) string {
		h.Host, h.Started, h.StartedBoot = host, 1e18, int64(time.Hour)
		return refusals(t, dir, h, 1)[0]
	}
	good := write("web1", dump.Header{})
	for i, c := range []struct {
		h            dump.Header
		says, remedy string
	}{
		{dump.Header{Rules: map[string]string{"idle": "0s"}}, `the dump's header has "0s" for --idle`, "--idle=5m"},
		{dump.Header{Rules: map[string]string{"time-wait-share": "7"}}, `the dump's header has "7" for --time-wait-share`, "--time-wait-share=0.5"},
		{dump.Header{Filter: map[string][]string{"port": {"http"}}}, `the filters in the dump's header: --port "http"`, "--unfiltered"},
		{dump.Header{Filter: map[string][]string{"pid": {"1", strings.Repeat("1,", maxValues) + "1"}}}, `the filters in the dump's header: --pid has 1026 values, more than 1024`, "--unfiltered"},
	} {
		bad := write(fmt.Sprintf("bad%d", i), c.h)
		for _, args := range [][]string{{"-o", "json"}, {"--show", "connections"}, {"--html", filepath.Join(dir, fmt.Sprintf("%d.html", i))}} {
			args = append([]string{"report"}, args...)
			status, out, errOut := tcptrace(append(args, bad, good)...)
			require.Equal(t, exitFailed, status, errOut)
			require.Contains(t, errOut, "error: "+bad+": "+c.says)
			require.Contains(t, errOut, "hint: ")
			if args[1] != "--html" {
				require.Contains(t, out, "192.0.2.2")
			}
		}
		require.FileExists(t, filepath.Join(dir, fmt.Sprintf("%d.html", i)))

		status, out, errOut := tcptrace("report", bad)
		require.Equal(t, exitFailed, status)
		require.Empty(t, out, "nothing to report on")
		require.Equal(t, 1, strings.Count(errOut, "error: "), errOut)
		status, out, errOut = tcptrace("report", "-o", "json", c.remedy, bad)
		require.Zero(t, status, errOut)
		require.Contains(t, out, "192.0.2.2")
	}

	// What was given here is wrong for all.
	status, out, _ := tcptrace("report", "--code", "no-such-verdict", good)
	require.Equal(t, exitUsage, status)
	require.Empty(t, out)
}

// TestOnePartIsThereTwice: it counts once, and keeps nobody from the others.
func TestOnePartIsThereTwice(t *testing.T) {
	dir := t.TempDir()
	names := refusals(t, dir, dump.Header{Host: "web1", Started: 1e18, StartedBoot: 1}, 2)
	other := refusals(t, dir, dump.Header{Host: "web2", Started: 1e18, StartedBoot: 1}, 1)[0]
	b, err := os.ReadFile(names[0])
	require.NoError(t, err)
	copied := filepath.Join(dir, "copied")
	require.NoError(t, os.WriteFile(copied, b, 0o600))

	_, want, _ := tcptrace("report", "-o", "json", names[0], names[1], other)
	status, out, errOut := tcptrace("report", "-o", "json", names[0], copied, names[1], other, names[1])
	require.Equal(t, exitFailed, status)
	require.Equal(t, want, out)
	require.Equal(t, 2, strings.Count(errOut, "error: "), errOut)
	require.Contains(t, errOut, "error: "+copied+" is the same part of a recording as "+names[0])
	require.Contains(t, errOut, "error: "+names[1]+" is the same part of a recording as "+names[1])
	require.Contains(t, errOut, "hint: name each file once")

	status, out, errOut = tcptrace("export", names[0], copied)
	require.Equal(t, exitUsage, status, errOut)
	require.Empty(t, out)
}

// TestOneFileCannotBeRead: on a failing disk what could be read is shown, and the
// others are.
func TestOneFileCannotBeRead(t *testing.T) {
	dir := t.TempDir()
	bad := refusals(t, dir, dump.Header{Host: "web1", Started: 1e18, StartedBoot: 1}, 1)[0]
	good := refusals(t, dir, dump.Header{Host: "web2", Started: 1e18, StartedBoot: 1}, 1)[0]
	st, err := os.Stat(bad)
	require.NoError(t, err)
	files := 0
	through := func(r io.Reader) io.Reader {
		if files++; files > 1 {
			return r
		}
		return io.MultiReader(io.LimitReader(r, st.Size()-1), iotest.ErrReader(syscall.EIO))
	}
	var out, errOut bytes.Buffer
	u := &ui{out: &out, err: &errOut, output: "json"}
	var r reporting
	r.flags(&cobra.Command{})
	list, closeAll, err := r.open([]string{bad, good}, through, nil)
	require.NoError(t, err)
	defer closeAll()
	var told []error
	r.skip = func(err error) { told = append(told, err) }
	require.NoError(t, u.reportOn(context.Background(), &r, list, pipeline.Show{Connections: true, All: true}, func() {}))
	require.Len(t, told, 1)
	require.ErrorIs(t, told[0], syscall.EIO)
	require.Contains(t, told[0].Error(), bad+": reading the dump")
	require.Equal(t, 2, strings.Count(out.String(), `"type":"connection"`), out.String())
	require.Contains(t, errOut.String(), "warning: "+bad+": ")
}

// TestCodesOfAnotherVersion: a verdict that this version does not know is left
// out of the recording's filter.
func TestCodesOfAnotherVersion(t *testing.T) {
	for _, c := range []struct {
		codes []string
		shown int
	}{
		{[]string{"of-the-future"}, 1},
		{[]string{"of-the-future, connect-refused"}, 1},
		{[]string{"half-open", "of-the-future"}, 0},
	} {
		h := dump.Header{Host: "web1", Started: 1e18, StartedBoot: 1, Filter: map[string][]string{"code": c.codes}}
		name := refusals(t, t.TempDir(), h, 1)[0]
		status, out, errOut := tcptrace("report", "-o", "json", name)
		require.Zero(t, status, errOut)
		require.Contains(t, errOut, "warning: the recording's own filter --code of-the-future is passed over")
		require.Equal(t, c.shown, strings.Count(out, `"type":"connection"`), out)
		_, _, errOut = tcptrace("report", "-o", "json", "--code", "half-open", name)
		require.Empty(t, errOut)
		_, _, errOut = tcptrace("report", "-o", "json", "--unfiltered", name)
		require.Empty(t, errOut)
	}
}

// TestTheDumpIsNotReplaced: --force is not meant for what is read.
func TestTheDumpIsNotReplaced(t *testing.T) {
	dir := t.TempDir()
	names := refusals(t, dir, dump.Header{Host: "web1", Started: 1e18, StartedBoot: 1}, 2)
	linked := filepath.Join(dir, "linked")
	require.NoError(t, os.Link(names[1], linked))
	want, err := os.ReadFile(linked)
	require.NoError(t, err)
	for _, to := range []string{names[1], linked} {
		for _, args := range [][]string{{"report", "--html"}, {"export", "-o"}, {"export", "--format", "perfetto", "-o"}} {
			status, _, errOut := tcptrace(append(args, to, "--force", names[0], names[1])...)
			require.Equal(t, exitUsage, status)
			require.Contains(t, errOut, to+" is the dump that is to be read")
			require.Contains(t, errOut, "another file with "+args[len(args)-1])
			got, err := os.ReadFile(names[1])
			require.NoError(t, err)
			require.Equal(t, want, got)
		}
	}
	page := filepath.Join(dir, "page.html")
	for range 2 {
		status, _, errOut := tcptrace("report", "--html", page, "--force", names[0], names[1])
		require.Zero(t, status, errOut)
	}
}
