package render

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tcptrace/tcptrace/internal/diagnose"
	"github.com/tcptrace/tcptrace/tracer/event"
)

var update = flag.Bool("update", false, "write the golden files anew")

const boot = 1_000_000_000_000 // CLOCK_BOOTTIME of the first event, ns

var clock = Clock{Offset: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC).UnixNano() - boot}

func at(d time.Duration) Stamp { return clock.Stamp(boot + int64(d)) }

func addr(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// hostile is what a process may call itself: a terminal escape, a newline, a
// right-to-left override, an invalid byte and a backslash.
const hostile = "e\x1b[31m\n\u202e\xff\\"

func client() *Connection {
	return &Connection{
		Time: at(1300 * time.Millisecond), ID: "3f1c000000000001", Netns: 4026532000, Role: "client",
		Local: addr("127.0.0.1:51234"), Remote: addr("127.0.0.1:8080"),
		Process: Process{PID: 900, Comm: "curl", Source: "connect", Cgroup: "/user.slice"},
		Opened:  at(0), Closed: at(1200 * time.Millisecond), Duration: 1200 * time.Millisecond,
		State: "CLOSE", ClosedBy: "remote", Traffic: event.Traffic{BytesSent: 120, SRTT: 410},
		Story: "connected in 0.1 ms, then reset by the peer", Verdicts: []string{"reset-received"},
		Timeline: []Entry{
			{At: boot, Event: "syn-sent", Text: "SYN sent", Detail: Details{{Key: "pid", Value: uint64(900)}}},
			{At: boot + 100_000, Event: "established", Text: "SYN-ACK received, connected"},
			{At: boot + 1_200_000_000, Event: "rst-received", Text: "the peer reset the connection", Detail: Details{{Key: "z", Value: "1"}, {Key: "a", Value: 2.5}}},
			{At: boot + 1_200_010_000, Event: "closed", Text: ""},
		},
	}
}

func server() *Connection {
	return &Connection{
		Time: at(1300 * time.Millisecond), ID: "3f1c000000000002", Netns: 4026532000, Role: "server",
		Local: addr("127.0.0.1:8080"), Remote: addr("127.0.0.1:51234"), Listener: addr("0.0.0.0:8080"),
		Process: Process{PID: 812, Comm: "nginx", Source: "listener", Cgroup: "/system.slice/nginx.service"},
		Opened:  at(50 * time.Microsecond), Closed: at(1200 * time.Millisecond), Duration: 1_199_950 * time.Microsecond,
		State: "CLOSE", ClosedBy: "kernel",
		Story: "handshake completed, then server RST, accept queue full", Verdicts: []string{"accept-queue-overflow"},
		Timeline: []Entry{
			{At: boot + 50_000, Event: "syn-received", Text: "SYN received"},
			{At: boot + 100_000, Event: "dropped", Text: "final ACK met a full accept queue (17 of 16 waiting) and was dropped"},
			{At: boot + 1_200_000_000, Event: "rst-sent", Text: "RST sent: accept queue full"},
		},
	}
}

// joined is the server's end with the client's beside it.
func joined() *Connection {
	s := server()
	s.Peer = client()
	return s
}

func ghost() *Connection {
	return &Connection{
		Time: at(500 * time.Second), ID: "3f1c000000000003", Netns: 1, Role: "unknown",
		Local: addr("[2001:db8::1]:40000"), Remote: addr("[::ffff:192.0.2.7]:443"),
		Process: Process{Source: "unknown"}, Duration: -1, State: "ESTABLISHED", ClosedBy: "unknown",
		Story: hostile + " was here", Incomplete: true,
		Timeline: []Entry{
			{At: boot, Event: "state", Text: "found ESTABLISHED"},
			{At: boot + int64(450*time.Second), Event: "retransmitted", Text: strings.Repeat("a long word and ", 8) + hostile},
		},
	}
}

func crowded() *Connection {
	c := client()
	c.ID, c.Netns, c.Timeline, c.Well = "3f1c000000000004", 1, nil, true
	for i := range 60 {
		c.Timeline = append(c.Timeline, Entry{At: boot + int64(i)*1_000_000, Event: "retransmitted", Text: fmt.Sprintf("segment %d sent again", i)})
	}
	return c
}

func overflow(phase diagnose.Phase, count uint64) *Verdict {
	return &Verdict{
		Time: at(1300*time.Millisecond + time.Duration(count)*time.Second/10), First: at(0), Last: at(1200 * time.Millisecond), Phase: phase,
		Verdict: &diagnose.Verdict{
			Code: "accept-queue-overflow", Severity: diagnose.Error, Confidence: diagnose.Certain,
			Story:   "handshake completed, then server RST, accept queue full",
			Subject: diagnose.Subject{Kind: "listener", Name: "0.0.0.0:8080"}, Netns: 4026532000,
			Process: &diagnose.Process{PID: 812, Comm: "nginx"}, Count: count, Examples: []string{"3f1c000000000002"},
			Evidence: diagnose.Evidence{
				{Key: "backlog_limit", Value: uint64(16)},
				{Key: "backlog_argument", Value: nil, Note: "listen() was called before tcptrace started"},
				{Key: "somaxconn", Value: int64(4096)},
				{Key: "limited_by", Value: "the argument of listen()"},
				{Key: "abort_on_overflow", Value: true},
				{Key: "clients", Value: []string{"10.0.0.1", "10.0.0.2"}},
				{Key: "wait_ms", Value: 12.345678},
				{Key: "by_path", Value: diagnose.Evidence{{Key: "syn", Value: uint64(1)}, {Key: "ack", Value: uint64(2)}}},
			},
			Fix: []string{"raise the backlog argument of listen() in nginx (listen ... backlog=N), which is what limits the queue here", "accept() faster"},
		},
	}
}

func strange() *Verdict {
	return &Verdict{
		Time: at(26 * time.Hour), First: at(0), Last: at(26 * time.Hour), Phase: diagnose.PhaseNew,
		Verdict: &diagnose.Verdict{
			Code: "close-wait-leak", Severity: diagnose.Warning, Confidence: diagnose.Suspected,
			Story: hostile + " has not called close()", Subject: diagnose.Subject{Kind: "process", Name: hostile + "[7]"},
			Netns: 1, Process: &diagnose.Process{PID: 7, Comm: hostile}, Count: 123456,
			Evidence: diagnose.Evidence{{Key: "remote", Value: hostile}},
		},
		Example: ghost(),
	}
}

// script writes one of everything.
func script(t *testing.T, r Renderer) {
	t.Helper()
	r.Namespace(event.Namespace{Inode: 4026532000, Name: "blue"})
	steps := []func() error{
		func() error {
			return r.Start(&Start{
				Time: at(-time.Second), Version: "v0.1.0", Kernel: "6.18.44", Host: "web1", Attach: "tracepoint",
				Hooks: []event.Hook{
					{Name: "inet_sock_set_state", Via: "tracepoint", Gives: "state changes"},
					{Name: "tcp_conn_request", Via: "none", Gives: "SYNs dropped", Why: "no kprobes in this kernel"},
				},
				Unknowable: []string{"Which process's listen() argument was cut by somaxconn, because this kernel has no kprobes and refuses fentry."},
			})
		},
		func() error {
			return r.Event(&Event{
				Time: at(0), Event: "syn-sent", Conn: "3f1c000000000001", Netns: 4026532000,
				Local: addr("127.0.0.1:51234"), Remote: addr("127.0.0.1:8080"), Text: "SYN sent by curl[900]",
				Detail: Details{{Key: "pid", Value: uint64(900)}, {Key: "comm", Value: hostile}},
			})
		},
		func() error {
			return r.Event(&Event{Time: at(time.Millisecond), Event: "listen", Netns: 1, Local: addr("[::]:8080")})
		},
		func() error {
			v := overflow(diagnose.PhaseNew, 1)
			v.Example = joined()
			return r.Verdict(v)
		},
		func() error {
			v := overflow(diagnose.PhaseGrowing, 37)
			return r.Verdict(v)
		},
		func() error { return r.Connection(joined()) },
		func() error { return r.Connection(client()) }, // its peer was shown beside it
		func() error { return r.Connection(ghost()) },
		func() error { return r.Connection(crowded()) },
		func() error { return r.Lost(&Lost{Time: at(5 * time.Second), Where: "ring", Count: 1234}) },
		func() error { return r.Verdict(strange()) },
		func() error {
			final := overflow(diagnose.PhaseFinal, 41)
			same := strange()
			same.Phase = diagnose.PhaseFinal
			return r.Summary(&Summary{
				Time: at(27 * time.Hour), Duration: 27*time.Hour + 30*time.Second, Connections: 1234567, Events: 12345678, Lost: 1234, Evicted: 5,
				Verdicts: map[string]uint64{"close-wait-leak": 123456, "accept-queue-overflow": 41},
				Final:    []*Verdict{final, same},
				Audit: []Audit{
					{Counter: "ListenOverflows", Netns: 4026532000, Kernel: 41, Explained: 41, Exact: true},
					{Counter: "OutRsts", Netns: 4026532000, Kernel: 41, Explained: 12, Note: "resets without a socket are not seen"},
					{Counter: "EstabResets", Netns: 1, Kernel: 7, Explained: 5, Exact: true},
					{Counter: "AttemptFails", Netns: 1, Kernel: 1, Explained: 2, Exact: true},
					{Counter: "ListenDrops", Netns: 1, Exact: true},
				},
				AuditNotes: []string{"network namespace 4026532001 ended before its counters could be read"},
				Cost:       Cost{BPFNanosPerEvent: 310.4, BPFCPUPercent: 0.126, UserCPUPercent: 1.5, RSSBytes: 14_250_000, BPFKnown: true},
			})
		},
		r.Flush,
	}
	for i, step := range steps {
		if err := step(); err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("the output is not that of %s (go test -update writes it anew):\n%s", path, got)
	}
}

func text(t *testing.T, o TextOptions) []byte {
	t.Helper()
	var b bytes.Buffer
	o.Netns = 1
	script(t, NewText(&b, o))
	return b.Bytes()
}

func TestText(t *testing.T) {
	for _, c := range []struct {
		name string
		o    TextOptions
	}{
		{"text-80.golden", TextOptions{}},
		{"text-120-color.golden", TextOptions{Width: 120, Color: true}},
		{"text-50.golden", TextOptions{Width: 50, Location: time.FixedZone("CET", 3600)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := text(t, c.o)
			golden(t, c.name, got)
			if again := text(t, c.o); !bytes.Equal(got, again) {
				t.Error("the same values gave different output")
			}
		})
	}
}

var sgr = regexp.MustCompile("\x1b\\[[0-9;]*m")

// TestTextSafe checks what reaches the terminal, whatever the values hold.
func TestTextSafe(t *testing.T) {
	if got := text(t, TextOptions{}); bytes.ContainsRune(got, '\x1b') {
		t.Error("colours although they are off")
	}
	for _, width := range []int{0, 1, 50, 80, 200} {
		got := sgr.ReplaceAll(text(t, TextOptions{Width: width, Color: true}), nil)
		limit := max(width, 50)
		if width == 0 {
			limit = 80
		}
		for line := range strings.Lines(string(got)) {
			line = strings.TrimSuffix(line, "\n")
			if n := columns(line); n > limit {
				t.Errorf("width %d: a line of %d columns: %q", width, n, line)
			}
			for _, r := range line {
				if !unicode.IsGraphic(r) || r == unicode.ReplacementChar {
					t.Errorf("width %d: %U in %q", width, r, line)
				}
			}
			if line != strings.TrimRight(line, " ") {
				t.Errorf("width %d: blanks at the end of %q", width, line)
			}
		}
	}
	// Without colours the text is the same.
	if a, b := text(t, TextOptions{}), sgr.ReplaceAll(text(t, TextOptions{Color: true}), nil); !bytes.Equal(a, b) {
		t.Error("the text differs with colours")
	}
}

func TestJSON(t *testing.T) {
	var b bytes.Buffer
	script(t, NewJSON(&b))
	golden(t, "json.golden", b.Bytes())
	for _, r := range b.String() {
		if r != '\n' && !unicode.IsGraphic(r) {
			t.Errorf("%U in the output", r)
		}
	}
	var types []string
	var last map[string]any
	for line := range strings.Lines(b.String()) {
		last = nil
		if err := json.Unmarshal([]byte(line), &last); err != nil {
			t.Fatalf("%v in %s", err, line)
		}
		kind, _ := last["type"].(string)
		types = append(types, kind)
		when, _ := last["time"].(string)
		if !regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z$`).MatchString(when) {
			t.Errorf("time %q of a %s", when, kind)
		}
		for _, key := range spec[kind] {
			if _, ok := last[key]; !ok {
				t.Errorf("a %s without %q: %s", kind, key, line)
			}
		}
		if spec[kind] == nil {
			t.Errorf("type %q is not in the contract", kind)
		}
	}
	want := "start event event verdict verdict connection connection connection connection lost verdict verdict verdict summary"
	if got := strings.Join(types, " "); got != want {
		t.Errorf("lines %s, want %s", got, want)
	}
}

// spec has the members of each object as the contract names them.
var spec = map[string][]string{
	"start": {"version", "kernel", "host", "attach", "hooks", "unknowable"},
	"event": {"event", "conn", "netns", "local", "remote", "detail"},
	"connection": {"conn", "netns", "role", "local", "remote", "listener", "process", "opened", "closed", "duration_ms", "state",
		"closed_by", "bytes_sent", "bytes_received", "retransmits", "srtt_us", "story", "verdicts", "incomplete", "timeline"},
	"verdict": {"code", "severity", "confidence", "story", "subject", "netns", "process", "count", "first", "last", "examples", "evidence", "fix"},
	"lost":    {"where", "count"},
	"summary": {"connections", "events", "lost", "verdicts", "audit", "cost"},
}

// TestEmptySummary is about the quiet end: nothing is null and nothing missing.
func TestEmptySummary(t *testing.T) {
	var j, x bytes.Buffer
	if err := NewJSON(&j).Summary(&Summary{Time: at(0)}); err != nil {
		t.Fatal(err)
	}
	js := NewJSON(&j)
	if err := errors.Join(js.Summary(&Summary{Time: at(0)}), js.Flush()); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(j.String(), "null") {
		t.Errorf("null in %s", j.String())
	}
	if err := NewText(&x, TextOptions{}).Summary(&Summary{Time: at(0), Duration: 2 * time.Second}); err != nil {
		t.Fatal(err)
	}
	golden(t, "text-quiet.golden", x.Bytes())
}

type full struct{ err error }

func (f full) Write([]byte) (int, error) { return 0, f.err }

// TestWriteErrors: a closed pipe and a full disk come out as what they are.
// TestNotCompared: where no counter was read, none is said to have stayed.
func TestNotCompared(t *testing.T) {
	for note, want := range map[string]string{
		NotCompared:                     "counters  not compared\n    why\n",
		"another could not be compared": "counters  none of those that are audited moved\n    another could not be compared\n    why\n",
	} {
		var b bytes.Buffer
		x := NewText(&b, TextOptions{})
		if err := x.Summary(&Summary{AuditNotes: []string{note, "why"}}); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q, want %q", b.String(), want)
		}
	}
}

func TestWriteErrors(t *testing.T) {
	for _, want := range []error{syscall.EPIPE, syscall.ENOSPC} {
		for _, r := range []Renderer{NewJSON(full{want}), NewText(full{want}, TextOptions{})} {
			if err := r.Lost(&Lost{Time: at(0), Where: "ring", Count: 1}); err != nil {
				t.Errorf("%T: an error before anything was written: %v", r, err)
			}
			for range 2 {
				if err := r.Flush(); !errors.Is(err, want) {
					t.Errorf("%T: Flush = %v, want %v", r, err, want)
				}
			}
			if err := r.Summary(&Summary{Time: at(0)}); !errors.Is(errors.Join(err, r.Flush()), want) {
				t.Errorf("%T: Summary = %v, want %v", r, err, want)
			}
		}
	}
}

func TestSafe(t *testing.T) {
	for in, want := range map[string]string{
		"nginx":        "nginx",
		`say "hi"`:     `say "hi"`,
		`a\b`:          `a\b`,
		"Ünïcode 日本":   "Ünïcode 日本",
		"\x1b]0;x\x07": `\x1b]0;x\a`,
		"a\nb\tc":      `a\nb\tc`,
		"\u009b31m":    `\u009b31m`,
		"\x7f":         `\x7f`,
		"a\u202eb":     `a\u202eb`,
		"\u200b\ufeff": `\u200b\ufeff`,
		"\xff\xfe":     `\xff\xfe`,
		"\"\\\"":       `"\"`,
		"":             "",
	} {
		if got := Safe(in); got != want {
			t.Errorf("Safe(%q) = %s, want %s", in, got, want)
		}
	}
}

func TestShort(t *testing.T) {
	for in, want := range map[string]string{"": "", "abcd": "abcd", "abcde": "abcd…", "abcä": "abc…", "ääää": "ää…", "\x01\x02": `\x01\x02`, "\x80\x80\x80\x80\x80": "…"} {
		if got := Short(in, 4); got != want {
			t.Errorf("Short(%q, 4) = %s, want %s", in, got, want)
		}
	}
}

func FuzzSafe(f *testing.F) {
	f.Add(hostile)
	f.Add("\U000e0001\U0001f600\u0300")
	f.Fuzz(func(t *testing.T, s string) {
		for _, r := range Safe(s) {
			if !unicode.IsGraphic(r) {
				t.Errorf("Safe(%q) holds %U", s, r)
			}
		}
		b, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		var direct, escaped string
		if err := json.Unmarshal(b, &direct); err != nil {
			t.Fatal(err)
		}
		safe := SafeJSON(b)
		for _, r := range string(safe) {
			if !unicode.IsGraphic(r) {
				t.Errorf("SafeJSON(%q) holds %U", b, r)
			}
		}
		if err := json.Unmarshal(safe, &escaped); err != nil || escaped != direct {
			t.Errorf("SafeJSON(%q) = %q: %v", b, safe, err)
		}
		for _, width := range []int{1, 10, 33} {
			lines := Wrap(Safe(s), width)
			if len(lines) == 0 {
				t.Fatal("no line")
			}
			for _, l := range lines {
				if columns(l) > max(width, 10) {
					t.Errorf("Wrap(%q, %d) has %q", s, width, l)
				}
			}
			strip := func(s string) string { return strings.Join(strings.Fields(s), "") }
			if strip(strings.Join(lines, "")) != strip(Safe(s)) {
				t.Errorf("Wrap(%q, %d) = %q loses something", s, width, lines)
			}
		}
	})
}

func TestNumbers(t *testing.T) {
	for n, want := range map[uint64]string{0: "0", 999: "999", 1000: "1,000", 1234567: "1,234,567"} {
		if got := Thousands(n); got != want {
			t.Errorf("Thousands(%d) = %s", n, got)
		}
	}
	for d, want := range map[time.Duration]string{
		1500: "2µs", 20 * time.Millisecond: "20 ms", time.Second: "1 s", 1550 * time.Millisecond: "1.6 s",
		61 * time.Second: "1 min 1 s", 25*time.Hour + time.Minute: "25 h 1 min",
	} {
		if got := roughly(d); got != want {
			t.Errorf("roughly(%d) = %s, want %s", d, got, want)
		}
	}
	for in, want := range map[string]string{"[::ffff:10.0.0.1]:80": "10.0.0.1:80", "[::1]:80": "[::1]:80"} {
		if got := Addr(addr(in)); got != want {
			t.Errorf("Addr(%s) = %s", in, got)
		}
	}
}

// TestGrowth checks that a verdict is only mentioned again when it holds for
// more, that two about one subject are told apart, and that nothing is kept of
// those that had their last word.
func TestGrowth(t *testing.T) {
	var b bytes.Buffer
	r := NewText(&b, TextOptions{Width: 200})
	verdict := func(which string, phase diagnose.Phase, count uint64, dropped int64) *Verdict {
		v := overflow(phase, count)
		v.Key, v.Which = diagnose.Key{What: which}, which
		v.Evidence = diagnose.Evidence{{Key: "dropped", Value: dropped}}
		return v
	}
	said := func(v *Verdict) string {
		t.Helper()
		b.Reset()
		if err := errors.Join(r.Verdict(v), r.Flush()); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	said(verdict("one", diagnose.PhaseNew, 5, 5))
	said(verdict("two", diagnose.PhaseNew, 1, 1))
	if got := said(verdict("one", diagnose.PhaseGrowing, 5, 9)); got != "" {
		t.Errorf("more evidence for as many: %q", got)
	}
	if got := said(verdict("two", diagnose.PhaseGrowing, 4, 4)); !strings.Contains(got, "(two)") || !strings.Contains(got, "now 4 (+3 in the last 300 ms)") {
		t.Errorf("growth of the other: %q", got)
	}
	b.Reset()
	if err := r.Summary(&Summary{Final: []*Verdict{verdict("one", diagnose.PhaseFinal, 5, 9)}}); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(b.String(), "dropped=9") {
		t.Errorf("the last word has the old evidence: %s", b.String())
	}
	said(verdict("one", diagnose.PhaseFinal, 5, 9))
	said(verdict("two", diagnose.PhaseFinal, 4, 4))
	if len(r.told) != 0 {
		t.Errorf("%d verdicts kept after their last word", len(r.told))
	}
}

// TestSteadyGrowth checks that a verdict that holds for a few more each second
// is told of when it has grown by half, or after a minute, and that no count is
// lost by it; and that without Fold, each growth is told.
func TestSteadyGrowth(t *testing.T) {
	for _, fold := range []bool{true, false} {
		var b bytes.Buffer
		r := NewText(&b, TextOptions{Width: 200, Fold: fold})
		v := overflow(diagnose.PhaseNew, 1)
		var told []string
		for i := range 180 {
			b.Reset()
			require.NoError(t, errors.Join(r.Verdict(v), r.Flush()))
			if _, now, ok := strings.Cut(b.String(), ": now "); ok {
				told = append(told, strings.TrimSpace(now))
			}
			v = overflow(diagnose.PhaseGrowing, uint64(3+2*i))
			v.Time = at(time.Duration(i) * time.Second)
		}
		if !fold {
			assert.Len(t, told, 179)
			continue
		}
		assert.Equal(t, []string{
			"3", "5 (+2 in the last 1 s)", "9 (+4 in the last 2 s)", "15 (+6 in the last 3 s)", "23 (+8 in the last 4 s)",
			"35 (+12 in the last 6 s)", "53 (+18 in the last 9 s)", "81 (+28 in the last 14 s)", "123 (+42 in the last 21 s)",
			"185 (+62 in the last 31 s)", "279 (+94 in the last 47 s)",
		}, told)
		b.Reset()
		v.Phase = diagnose.PhaseFinal
		require.NoError(t, errors.Join(r.Verdict(v), r.Flush()))
		assert.Contains(t, b.String(), "now 361 (+82 in the last 41 s)")
	}
}

// TestGraver checks that what becomes graver is told at once, however little it grew.
func TestGraver(t *testing.T) {
	var b bytes.Buffer
	r := NewText(&b, TextOptions{Width: 200, Fold: true})
	v := overflow(diagnose.PhaseNew, 100)
	v.Severity = diagnose.Info
	require.NoError(t, r.Verdict(v))
	for _, severity := range []diagnose.Severity{diagnose.Info, diagnose.Error} {
		b.Reset()
		v := overflow(diagnose.PhaseGrowing, 101)
		v.Severity = severity
		require.NoError(t, errors.Join(r.Verdict(v), r.Flush()))
		assert.Equal(t, severity == diagnose.Error, strings.Contains(b.String(), "now 101"))
	}
}

// TestCost checks that time is put to events only where it was spent on them.
func TestCost(t *testing.T) {
	for _, c := range []struct {
		cost Cost
		want string
	}{
		{Cost{BPFKnown: true, BPFNanosPerEvent: 310, BPFCPUPercent: 1}, "310 ns of kernel time an event, 1.00% of a processor in the kernel, 0.00% in user space"},
		{Cost{BPFKnown: true, BPFNanosPerEvent: 4_068_794, BPFCPUPercent: 1, Filtered: true}, "cost  1.00% of a processor in the kernel"},
		{Cost{BPFKnown: true, BPFCPUPercent: 1}, "cost  1.00% of a processor in the kernel"},
		{Cost{}, "cost  kernel time not measured"},
	} {
		var b bytes.Buffer
		if err := NewText(&b, TextOptions{Width: 200}).Summary(&Summary{Cost: c.cost}); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(b.String(), c.want) {
			t.Errorf("%+v: no %q in %s", c.cost, c.want, b.String())
		}
	}
}

// TestDrawnOnce checks that a timeline is not drawn again at once, from
// whichever end, but is when it has changed or is far above.
func TestDrawnOnce(t *testing.T) {
	var b bytes.Buffer
	r := NewText(&b, TextOptions{})
	drawn := func(c *Connection) bool {
		t.Helper()
		b.Reset()
		v := overflow(diagnose.PhaseNew, 1)
		v.Example = c
		if err := errors.Join(r.Verdict(v), r.Flush()); err != nil {
			t.Fatal(err)
		}
		if above := strings.Contains(b.String(), "timeline above"); above == strings.Contains(b.String(), " ms  ") {
			t.Fatalf("neither drawn nor referred to, or both: %s", b.String())
		}
		return strings.Contains(b.String(), " ms  ")
	}
	other := client()
	other.Peer = server()
	later := joined()
	later.Peer.Timeline[1].Text += " (x2)"
	for i, step := range []struct {
		c    *Connection
		want bool
	}{
		{joined(), true}, {joined(), false}, {other, false}, {client(), true}, {later, true}, {later, false}, {crowded(), true}, {server(), true},
		{joined(), true},
	} {
		if got := drawn(step.c); got != step.want {
			t.Errorf("step %d: drawn is %v", i, got)
		}
	}
}
