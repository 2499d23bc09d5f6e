package webreport

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"math/rand/v2"
	"net/netip"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tcptrace/tcptrace/internal/diagnose"
	"github.com/tcptrace/tcptrace/internal/dump"
	"github.com/tcptrace/tcptrace/internal/dump/dumptest"
	"github.com/tcptrace/tcptrace/internal/pipeline"
	"github.com/tcptrace/tcptrace/internal/render"
	"github.com/tcptrace/tcptrace/tracer/event"
)

func write(t *testing.T, r *Report) []byte {
	t.Helper()
	var b bytes.Buffer
	require.NoError(t, r.Write(&b))
	return b.Bytes()
}

var dataElement = regexp.MustCompile(`(?s)<script type="application/gzip" id="data">([^<]*)</script>`)

// unpack reads the data of a page as its scripts do.
func unpack(t *testing.T, page []byte) *data {
	t.Helper()
	m := dataElement.FindSubmatch(page)
	require.NotNil(t, m, "the page holds its data")
	packed, err := base64.StdEncoding.DecodeString(string(m[1]))
	require.NoError(t, err)
	z, err := gzip.NewReader(bytes.NewReader(packed))
	require.NoError(t, err)
	b, err := io.ReadAll(z)
	require.NoError(t, err)
	var d data
	require.NoError(t, json.Unmarshal(b, &d))
	return &d
}

func rows(d *data) (n int) {
	for _, f := range d.Conns.Flags {
		if f&flagHidden == 0 {
			n++
		}
	}
	return n
}

func TestSameInputSameBytes(t *testing.T) {
	page := func() []byte {
		r := New(Options{})
		traffic{host: "web-1", n: 500, spans: time.Minute, comm: "nginx"}.play(r)
		traffic{host: "web-2", n: 300, spans: time.Minute, comm: "haproxy"}.play(r)
		return write(t, r)
	}
	first := page()
	for range 3 {
		assert.True(t, bytes.Equal(first, page()), "the same calls give the same bytes")
	}
}

func TestNothingSeen(t *testing.T) {
	page := write(t, New(Options{}))
	assert.Contains(t, string(page), "nothing that tcptrace can name went wrong.<")
	r := New(Options{})
	require.NoError(t, r.Start(&render.Start{Host: "h"}))
	r.Problems([]string{"filters leave out a part of what was recorded"})
	assert.NotContains(t, string(write(t, r)), "went wrong.<", "what was not looked at may have gone wrong")
	assert.Zero(t, rows(unpack(t, page)))
}

func TestSeveralRuns(t *testing.T) {
	r := New(Options{})
	traffic{host: "web-1", n: 200, spans: time.Minute, comm: "nginx"}.play(r)
	traffic{host: "web-2", n: 300, spans: time.Minute, comm: "haproxy"}.play(r)
	traffic{host: "web-1", n: 100, spans: time.Minute, comm: "nginx", shift: int64(time.Hour)}.play(r)
	r.Problems([]string{"web1.tcpt was cut off"})
	page := write(t, r)
	d := unpack(t, page)
	require.Len(t, d.Hosts, 2)
	require.Len(t, d.Runs, 3)
	assert.Equal(t, []int{0, 1, 0}, []int{d.Runs[0].Host, d.Runs[1].Host, d.Runs[2].Host})
	assert.Equal(t, 600, rows(d))
	sum := func(l []uint64) (n uint64) {
		for _, v := range l {
			n += v
		}
		return n
	}
	assert.EqualValues(t, 300, sum(d.Hosts[0].Opened))
	assert.EqualValues(t, 300, sum(d.Hosts[1].Closed))
	// Within each run all that was opened was closed; between them nothing is
	// known.
	live := d.Hosts[0].Live
	assert.Contains(t, []int64{0, 1}, live[len(live)/120])
	assert.EqualValues(t, -1, live[len(live)/2])
	assert.Contains(t, string(page), "web-1: web1.tcpt was cut off")
	assert.Contains(t, string(page), "web-1, web-2")
}

// The same ID in two runs is two connections.
func TestRunsApart(t *testing.T) {
	r := New(Options{})
	for _, host := range []string{"a", "b"} {
		require.NoError(t, r.Start(&render.Start{Host: host, Time: stamp(bootAt)}))
		require.NoError(t, r.Connection(&render.Connection{ID: "0011", Time: stamp(bootAt), Duration: -1, Well: true}))
		require.NoError(t, r.Summary(&render.Summary{Time: stamp(bootAt + second), Connections: 1}))
	}
	assert.Equal(t, 2, rows(unpack(t, write(t, r))))
}

// What came from the network and from processes cannot end an element, become
// an attribute, or change how its surroundings read.
func TestHostileNames(t *testing.T) {
	r := New(Options{Title: hostile})
	bad := `"'><script>alert(1)</script><!--` + "\u202e\x00\x1b\xff"
	v := &diagnose.Verdict{
		Code: bad, Severity: diagnose.Severity(bad), Confidence: diagnose.Confidence(bad), Story: bad,
		Subject: diagnose.Subject{Kind: bad, Name: bad}, Process: &diagnose.Process{PID: 1, Comm: bad}, Which: bad,
		Count: 3, Examples: []string{bad}, Fix: []string{bad},
		Evidence: diagnose.Evidence{{Key: bad, Value: bad, Note: bad}, {Key: "x", Value: []string{bad}}, {Key: "y", Value: diagnose.Evidence{{Key: bad, Value: bad}}}},
	}
	require.NoError(t, r.Start(&render.Start{Host: bad, Kernel: bad, Version: bad, Attach: bad, Hooks: []event.Hook{{Name: bad, Gives: bad, Why: bad}}, Unknowable: []string{bad}, Time: stamp(bootAt)}))
	r.Namespace(event.Namespace{Inode: 1, Name: bad})
	require.NoError(t, r.Connection(&render.Connection{
		ID: bad, Netns: 1, Role: bad, Process: render.Process{PID: 1, Comm: bad, Source: bad, Cgroup: bad}, State: bad, ClosedBy: bad, Story: bad, Verdicts: []string{bad},
		Timeline: []render.Entry{{At: 1, Event: bad, Text: bad}}, Duration: -1,
	}))
	require.NoError(t, r.Lost(&render.Lost{Where: bad, Count: 1}))
	r.Raw(&event.Event{Time: bootAt, Kind: event.KindListen, Flags: event.FlagProcess, PID: 1, Comm: comm(bad)}, stamp(bootAt), bad)
	r.Problems([]string{bad})
	require.NoError(t, r.Summary(&render.Summary{
		Time: stamp(bootAt), Lost: 1, Final: []*render.Verdict{{Phase: diagnose.PhaseFinal, Verdict: v, First: stamp(bootAt), Last: stamp(bootAt)}},
		Audit: []render.Audit{{Counter: bad, Netns: 1, Kernel: 1, Note: bad}}, AuditNotes: []string{bad},
	}))
	page := write(t, r)
	assert.NotContains(t, string(page), "<script>alert")
	assert.NotContains(t, string(page), "<img src=x")
	assert.NotContains(t, string(page), "\u202e")
	for _, c := range []byte{0, 0x1b, 0xff} {
		assert.NotContains(t, string(page), string([]byte{c}))
	}
	// The page's own elements, and no more.
	assert.Equal(t, 3, strings.Count(string(page), "<script"))
	assert.Equal(t, 3, strings.Count(string(page), "</script>"))
	assert.Contains(t, string(page), "&lt;script&gt;alert(1)&lt;/script&gt;")
	d := unpack(t, page)
	for _, w := range d.Words {
		assert.NotContains(t, w, "\x1b")
		assert.NotContains(t, w, "\u202e")
	}
}

// Healthy connections make room for those that went wrong, and the page says
// what is missing.
func TestTableIsBounded(t *testing.T) {
	const most = 500
	conn := func(i int, well bool) *render.Connection {
		c := &render.Connection{ID: fmt.Sprintf("%016x", i), Time: stamp(bootAt + int64(i)*millis), Opened: stamp(bootAt + int64(i)*millis), Well: well, Duration: -1,
			Remote: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 1), Story: fmt.Sprint("story ", i),
			Timeline: []render.Entry{{At: bootAt + int64(i)*millis, Event: "established", Text: fmt.Sprint("text ", i)}}}
		if !well {
			c.Verdicts = []string{"reset-sent"}
		}
		c.Peer = &render.Connection{ID: fmt.Sprintf("p%015x", i), Story: fmt.Sprint("peer ", i), Timeline: c.Timeline, Duration: -1}
		return c
	}
	r := New(Options{MaxConnections: most})
	require.NoError(t, r.Start(&render.Start{Host: "h", Time: stamp(bootAt)}))
	for i := range 20_000 {
		require.NoError(t, r.Connection(conn(i, true)))
		require.LessOrEqual(t, r.conns.rows, most)
	}
	wrong, well := r.conns.leftOut()
	assert.Zero(t, wrong)
	assert.EqualValues(t, 20_000-r.conns.rows, well)
	assert.GreaterOrEqual(t, r.conns.rows, most/2)
	// They spread over the whole time.
	d := unpack(t, write(t, r))
	assert.Less(t, d.Conns.At[0], micros(stamp(bootAt+2000*millis)))
	last := int64(0)
	for _, at := range d.Conns.At {
		last += at
	}
	assert.Greater(t, last, micros(stamp(bootAt+18_000*millis)))

	for i := range 400 {
		require.NoError(t, r.Connection(conn(100_000+i, false)))
	}
	wrong, _ = r.conns.leftOut()
	assert.Zero(t, wrong, "all that went wrong are kept, as long as they fit")
	assert.Equal(t, 400, r.conns.wrong.kept)

	// A verdict's example stays whatever comes.
	pinned := conn(100_100, false)
	v := &diagnose.Verdict{Code: "reset-sent", Severity: diagnose.Error, Examples: []string{pinned.ID}, Count: 1}
	require.NoError(t, r.Verdict(&render.Verdict{Verdict: v, Phase: diagnose.PhaseNew, Example: pinned}))
	for i := range 20_000 {
		require.NoError(t, r.Connection(conn(200_000+i, false)))
		require.LessOrEqual(t, r.conns.rows, most)
	}
	require.NotNil(t, r.conns.byKey[key{0, pinned.ID}])
	assert.Less(t, len(r.conns.ends), 2*most+1)
	assert.Less(t, len(r.conns.words.list), 8*most)
	assert.Less(t, len(r.conns.entries.list), 8*most)
	require.NoError(t, r.Summary(&render.Summary{Time: stamp(bootAt + 400*second), Connections: 60_400}))
	page := string(write(t, r))
	assert.Contains(t, page, "20,000 healthy or incomplete ones (all), and ")
	assert.Contains(t, page, "that went wrong (one in ")
	assert.Contains(t, page, fmt.Sprintf(`data-id="%s"`, pinned.ID))
	left, _ := r.conns.leftOut()
	assert.EqualValues(t, 20_400-r.conns.wrong.kept, left)
}

// The end of a connection that comes by itself after it was known as the other
// end of one is one connection, and so is one that is told of twice.
func TestToldTwice(t *testing.T) {
	r := New(Options{})
	a := &render.Connection{ID: "a", Role: "client", Well: true, Duration: -1, Timeline: []render.Entry{{At: 1, Event: "syn-sent"}}}
	b := &render.Connection{ID: "b", Role: "server", Well: true, Duration: -1, Timeline: []render.Entry{{At: 2, Event: "established"}}}
	one, two := *a, *b
	one.Peer, two.Peer = b, a
	require.NoError(t, r.Connection(&one))
	require.Equal(t, 1, rows(unpack(t, write(t, r))))
	require.NoError(t, r.Connection(&two))
	worse := two
	worse.Well, worse.Verdicts = false, []string{"reset-sent"}
	require.NoError(t, r.Connection(&worse))
	d := unpack(t, write(t, r))
	assert.Equal(t, 2, rows(d))
	assert.Equal(t, []int{1, 0}, d.Conns.Peer)
	assert.Equal(t, [2]uint64{0, 0}, d.LeftOut)
	assert.Equal(t, 1, r.conns.wrong.kept)
	assert.Equal(t, 1, r.conns.well.kept)
}

func TestLongTimelineIsCut(t *testing.T) {
	r := New(Options{})
	c := &render.Connection{ID: "a", Duration: -1, Well: true}
	for i := range 1000 {
		c.Timeline = append(c.Timeline, render.Entry{At: int64(i) * millis, Event: "state", Text: strings.Repeat("é", 5000)})
	}
	require.NoError(t, r.Connection(c))
	d := unpack(t, write(t, r))
	assert.Len(t, d.Shapes[0], maxEntries)
	assert.Len(t, d.Conns.Steps, maxEntries-1)
	assert.NotZero(t, d.Conns.Flags[0]&flagShortened)
	for _, w := range d.Words {
		assert.LessOrEqual(t, len(w), maxString+len("…"))
	}
}

func TestManyVerdicts(t *testing.T) {
	r := New(Options{})
	for i := range 3 * maxVerdicts {
		v := &diagnose.Verdict{Code: "reset-sent", Severity: diagnose.Warning, Count: uint64(i)}
		if i == 7 {
			v.Severity = diagnose.Error
		}
		require.NoError(t, r.Verdict(&render.Verdict{Verdict: v, Phase: diagnose.PhaseFinal}))
		require.LessOrEqual(t, len(r.done)+len(r.growing), maxVerdicts)
	}
	page := string(write(t, r))
	assert.Contains(t, page, "less harmful verdicts are left out")
	all := r.ranked()
	assert.Equal(t, diagnose.Error, all[0].Severity, "the worst stays, however small")
	assert.EqualValues(t, 3*maxVerdicts-1, all[1].Count)
}

func TestGrid(t *testing.T) {
	type cell struct{ n int }
	sum := func(a *cell, b cell) { a.n += b.n }
	rnd := rand.New(rand.NewPCG(3, 4))
	for range 200 {
		g := newGrid(1+rnd.IntN(64), sum)
		span := int64(1) << rnd.IntN(62)
		total := 0
		times := map[int64]int{}
		for range 300 {
			at := 1 + rnd.Int64N(span)
			if b := g.at(at); b != nil {
				b.n++
				total++
				times[at]++
			}
			require.LessOrEqual(t, len(g.cells), g.max)
		}
		n := 0
		for i, c := range g.cells {
			want := 0
			for at, k := range times {
				if at/g.width == g.first+int64(i) {
					want += k
				}
			}
			require.Equal(t, want, c.n, "what is in a bucket")
			n += c.n
		}
		require.Equal(t, total, n)
	}
	g := newGrid(16, sum)
	assert.Nil(t, g.at(0))
	assert.Nil(t, g.at(-5))
	assert.Nil(t, g.at(math.MaxInt64))
}

// Counts and queues take bounded memory, whatever is told.
func TestEventsAreBounded(t *testing.T) {
	r := New(Options{})
	require.NoError(t, r.Start(&render.Start{Host: "h"}))
	rnd := rand.New(rand.NewPCG(5, 6))
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	kinds := []event.Kind{event.KindState, event.KindListen, event.KindSYNDropped, event.KindACKOverflow, event.KindSYNACKRetrans, event.KindSnapshot, event.KindRetransmit, 99}
	for range 400_000 {
		e := event.Event{
			Time: rnd.Int64(), Sock: rnd.Uint64(), Kind: kinds[rnd.IntN(len(kinds))], Old: event.State(rnd.IntN(14)), New: event.State(rnd.IntN(14)),
			Netns: rnd.Uint32(), Listener: event.Listener{ID: rnd.Uint64(), QueueLen: rnd.Uint32(), QueueLimit: rnd.Uint32()},
		}
		r.Raw(&e, render.Stamp(rnd.Int64()), "")
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	assert.Less(t, int64(after.HeapAlloc)-int64(before.HeapAlloc), int64(96<<20))
	assert.LessOrEqual(t, len(r.listens.all), maxListeners)
	page := write(t, r)
	assert.Less(t, len(page), 4<<20)
	assert.Len(t, unpack(t, page).Listeners, maxListenersShown)
	assert.Contains(t, string(page), "observations of further listeners are not shown")
}

// A listener is one, whether an event names the address that it listens on or
// the one that a client asked for; and its queue is held against the limit.
func TestQueues(t *testing.T) {
	r := New(Options{})
	traffic{host: "web-1", n: 600, spans: time.Minute, comm: "nginx"}.play(r)
	d := unpack(t, write(t, r))
	require.Len(t, d.Listeners, 1)
	l := d.Listeners[0]
	assert.Equal(t, "0.0.0.0:8080", l.Name)
	assert.Equal(t, "nginx[812]", l.Process)
	assert.EqualValues(t, 129, l.Most)
	assert.EqualValues(t, 128, l.Limit)
	assert.NotZero(t, l.Drops)
	most, drops := int64(0), uint64(0)
	for i, v := range l.Len {
		most, drops = max(most, v), drops+l.Dropped[i]
	}
	assert.EqualValues(t, 129, most)
	assert.Equal(t, l.Drops, drops)
}

// Without the kernel's events, connections tell when they opened and closed.
func TestWithoutRaw(t *testing.T) {
	r := New(Options{})
	require.NoError(t, r.Connection(&render.Connection{ID: "a", Opened: stamp(bootAt), Closed: stamp(bootAt + second), Duration: time.Second, Well: true, Timeline: []render.Entry{{At: bootAt, Event: "syn-sent"}}}))
	d := unpack(t, write(t, r))
	assert.False(t, d.Raw)
	assert.EqualValues(t, 1, d.Hosts[0].Opened[0])
	assert.EqualValues(t, 1, d.Hosts[0].Closed[len(d.Hosts[0].Closed)-1])
	assert.Equal(t, micros(stamp(bootAt)), d.Conns.At[0])
}

// The worst first: severity, then confidence, then count.
func TestRanking(t *testing.T) {
	r := New(Options{})
	for _, v := range []diagnose.Verdict{
		{Story: "5", Severity: diagnose.Info, Confidence: diagnose.Certain, Count: 1000},
		{Story: "3", Severity: diagnose.Error, Confidence: diagnose.Suspected, Count: 500},
		{Story: "2", Severity: diagnose.Error, Confidence: diagnose.Certain, Count: 5},
		{Story: "4", Severity: diagnose.Warning, Confidence: diagnose.Certain, Count: 900},
		{Story: "1", Severity: diagnose.Error, Confidence: diagnose.Certain, Count: 6},
	} {
		v.Code = "code-" + v.Story
		require.NoError(t, r.Verdict(&render.Verdict{Verdict: &v, Phase: diagnose.PhaseGrowing}))
	}
	var got []string
	for _, v := range r.ranked() {
		got = append(got, v.Story)
	}
	assert.Equal(t, []string{"1", "2", "3", "4", "5"}, got)
}

// The page names nobody whom it could ask, and its policy forbids to.
func TestSelfContained(t *testing.T) {
	r := New(Options{})
	traffic{host: "web-1", n: 10, spans: time.Second, comm: "nginx"}.play(r)
	page := string(write(t, r))
	assert.Contains(t, page, `content="default-src 'none'; script-src 'sha256-`)
	assert.NotContains(t, page, "unsafe")
	assert.NotRegexp(t, `(?i)<(link|img|iframe|object|embed|form[^>]+action)\b|\bsrc=|@import|url\(`, dataElement.ReplaceAllString(page, ""))
	assert.NotRegexp(t, `(?i)\son[a-z]+=`, regexp.MustCompile(`(?s)<(script|style).*?</(script|style)>`).ReplaceAllString(page, ""), "inline handlers")
	require.NoError(t, fs.WalkDir(assets, "assets", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !strings.HasSuffix(path, ".js") {
			return err
		}
		text, err := assets.ReadFile(path)
		assert.NotRegexp(t, `innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|\bfetch\(|XMLHttpRequest|import\(`, string(text), path)
		return err
	}))
}

type failing struct{}

var errFull = errors.New("no space left")

func (failing) Write([]byte) (int, error) { return 0, errFull }

func TestWriteFails(t *testing.T) {
	r := New(Options{})
	traffic{host: "web-1", n: 5000, spans: time.Second, comm: "nginx"}.play(r)
	require.ErrorIs(t, r.Write(failing{}), errFull)
}

// TestLaterParts: a page of the later parts of a recording begins where they do,
// not days before.
func TestLaterParts(t *testing.T) {
	m := dumptest.NewMemory()
	began := time.Date(2026, 11, 20, 12, 10, 0, 0, time.UTC)
	require.NoError(t, m.Begin(dump.Header{Host: "h", Started: began.UnixNano(), StartedBoot: 1}))
	at := int64(48*time.Hour) + 1
	m.Advance(at)
	m.Rotate()
	m.Event(&event.Event{Time: at + int64(time.Minute), Sock: 1, Kind: event.KindState, Old: event.StateClose, New: event.StateSynSent})
	m.Advance(at + int64(time.Hour))
	b, err := m.Bytes(1)
	require.NoError(t, err)
	for name, until := range map[string]render.Stamp{"all": 0, "nothing": render.Stamp(began.UnixNano())} {
		d, err := dump.NewReader(bytes.NewReader(b))
		require.NoError(t, err)
		r := New(Options{})
		_, err = pipeline.Replay(t.Context(), pipeline.ReplayConfig{Options: pipeline.Options{Out: r, Raw: r.Raw}, Until: until},
			pipeline.Recording{Parts: []pipeline.Part{{Name: "part 2", Reader: d}}})
		require.NoError(t, err)
		page := write(t, r)
		assert.Contains(t, string(page), `<p class="when"><time datetime="2026-11-22T12:10:`, name)
		first := unpack(t, page).From
		assert.Equal(t, began.Add(48*time.Hour).UnixMicro(), first, name)
	}
}

// TestLateLine: a line of a snapshot that was read before the end of its socket and
// is told after it brings nothing back to life.
func TestLateLine(t *testing.T) {
	s := &hostSeries{grid: newGrid(maxBuckets, mergeActivity)}
	a := &alive{socks: make(map[uint64]struct{})}
	s.take(a, &event.Event{Time: 1, Sock: 7, Kind: event.KindState, Old: event.StateSynRecv, New: event.StateEstablished}, 1)
	s.take(a, &event.Event{Time: 3, Sock: 7, Kind: event.KindState, Old: event.StateEstablished, New: event.StateClose}, 3)
	s.take(a, &event.Event{Time: 2, Sock: 7, Kind: event.KindSnapshot, Old: event.StateEstablished, New: event.StateEstablished}, 2)
	require.Zero(t, a.count())
	s.take(a, &event.Event{Time: 4, Sock: 7, Kind: event.KindSnapshot, Old: event.StateEstablished, New: event.StateEstablished}, 4)
	require.EqualValues(t, 1, a.count()) // another one in its memory
}

// TestListenersInOneMemory: where sockets are known by their address in memory, one
// listener's queue is not another's that had it before.
func TestListenersInOneMemory(t *testing.T) {
	l := &listeners{all: make(map[listenerKey]*listener)}
	for i, port := range []uint16{80, 8080} {
		e := event.Event{Time: int64(i + 1), Sock: 7, Netns: 1, Kind: event.KindListen, Flags: event.FlagProcess, PID: uint32(port),
			Local: netip.AddrPortFrom(netip.IPv4Unspecified(), port)}
		e.Listener.ID = 7
		l.take(0, &e, e.Time)
		e.Kind, e.Sock, e.Local = event.KindACKOverflow, 9, netip.AddrPortFrom(netip.MustParseAddr("10.0.0.9"), port)
		l.take(0, &e, e.Time)
	}
	require.Len(t, l.all, 2)
	for _, x := range l.all {
		require.EqualValues(t, x.pid, x.addr.Port())
		require.EqualValues(t, 1, x.dropped)
	}
}

// TestListenerOfOtherPorts: a listener to which TPROXY gives the SYNs of many ports
// is one.
func TestListenerOfOtherPorts(t *testing.T) {
	l := &listeners{all: make(map[listenerKey]*listener)}
	e := event.Event{Time: 1, Sock: 7, Netns: 1, Kind: event.KindListen, Flags: event.FlagProcess, PID: 7,
		Local: netip.AddrPortFrom(netip.IPv4Unspecified(), 15006)}
	e.Listener.ID = 7
	l.take(0, &e, e.Time)
	for port := range uint16(5) {
		e.Kind, e.Sock, e.Local = event.KindSYNDropped, 0, netip.AddrPortFrom(netip.MustParseAddr("10.0.0.9"), 8080+port)
		l.take(0, &e, e.Time)
	}
	require.Len(t, l.all, 1)
	for _, x := range l.all {
		require.EqualValues(t, 15006, x.addr.Port())
		require.EqualValues(t, 5, x.dropped)
	}
}
