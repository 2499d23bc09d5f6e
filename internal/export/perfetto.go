package export

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"

	"github.com/tcptrace/tcptrace/internal/render"
	"github.com/tcptrace/tcptrace/internal/timeline"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// Bounds on what is kept of the states that connections went through until they
// are shown.
const (
	maxStates  = 32      // of one connection; a life has at most eight or so
	maxTracks  = 1 << 20 // connections; the tracker has no more
	maxWaiting = 65536   // that were closed and not shown yet
)

// Perfetto writes a trace in the Trace Event Format, which ui.perfetto.dev and
// chrome://tracing open: a process for each owner, in it a track for each
// connection with its states as slices and its timeline as instants; and a
// process for the verdicts.
//
// What is written is an array whose closing bracket the readers do not need, so
// a trace that is cut off anywhere between two lines opens too.
type Perfetto struct {
	out  *bufio.Writer
	err  error // the first
	line []byte
	open bool // the array has begun

	host    string
	clock   *render.Clock // nil: not known yet
	nextPID int
	nextTID int
	owners  map[owner]int // process ids in the trace
	verdict int           // the process of the verdicts, 0: none yet
	spaces  spaces
	finals  finals

	tracks map[string]*track
	// closed are connections in CLOSE, in a ring: the oldest that was not shown
	// is forgotten. Filters leave out many.
	closed []string
	next   int
}

type owner struct {
	pid  uint32
	comm string
}

// track is which states a connection went through.
type track struct {
	states []span // at least one
}

type span struct {
	at    int64 // CLOCK_BOOTTIME, ns
	state event.State
}

// NewPerfetto returns a sink that writes a trace to w.
func NewPerfetto(w io.Writer) *Perfetto {
	return &Perfetto{
		out: bufio.NewWriterSize(w, 64<<10), owners: make(map[owner]int), spaces: make(spaces), finals: newFinals(),
		tracks: make(map[string]*track), closed: make([]string, 0, maxWaiting),
	}
}

// traceEvent is one event of the format, with the members that are used here.
type traceEvent struct {
	Name  string `json:"name"`
	Phase string `json:"ph"`
	Cat   string `json:"cat,omitempty"`
	TS    *int64 `json:"ts,omitempty"`  // µs
	Dur   *int64 `json:"dur,omitempty"` // µs
	PID   int    `json:"pid"`
	TID   int    `json:"tid"`
	Scope string `json:"s,omitempty"`
	Color string `json:"cname,omitempty"` // chrome://tracing only
	Args  any    `json:"args,omitempty"`
}

func (p *Perfetto) fail(err error) error {
	if p.err == nil {
		p.err = fmt.Errorf("writing the trace: %w", err)
	}
	return p.err
}

func (p *Perfetto) emit(e *traceEvent) {
	if p.err != nil {
		return
	}
	sep := ",\n"
	if !p.open {
		p.open, sep = true, "[\n"
	}
	line, err := appendObject(append(p.line[:0], sep...), e)
	p.line = line
	if err == nil {
		_, err = p.out.Write(line)
	}
	if err != nil {
		p.fail(err)
	}
}

func (p *Perfetto) meta(what string, pid, tid int, args any) {
	p.emit(&traceEvent{Name: what, Phase: "M", PID: pid, TID: tid, Args: args})
}

type (
	nameArg struct {
		Name string `json:"name"`
	}
	labelArg struct {
		Labels string `json:"labels"`
	}
	sortArg struct {
		Index int `json:"sort_index"`
	}
)

// Capabilities does nothing: timelines have reasons by name.
func (p *Perfetto) Capabilities(event.Capabilities) {}

// Start begins a run, with processes of its own.
func (p *Perfetto) Start(s *render.Start) error {
	p.cut()
	p.host, p.clock, p.verdict = render.Safe(s.Host), nil, 0
	clear(p.owners)
	clear(p.spaces)
	clear(p.tracks)
	p.closed, p.next = p.closed[:0], 0
	return p.err
}

// Namespace keeps a namespace's name.
func (p *Perfetto) Namespace(ns event.Namespace) { p.spaces.learn(ns) }

// Event does nothing: timelines come with their connections.
func (p *Perfetto) Event(*render.Event) error { return p.err }

// Raw notes the state that a connection is in.
func (p *Perfetto) Raw(e *event.Event, at render.Stamp, conn string) {
	if at != 0 && e.Time != 0 {
		p.clock = &render.Clock{Offset: int64(at) - e.Time}
	}
	if conn == "" || p.err != nil {
		return
	}
	state := e.New
	switch {
	case e.Kind == event.KindState && e.New == event.StateClose && e.Has(event.FlagTimeWaitFW2):
		state = event.StateFinWait2
	case e.Kind == event.KindState, e.Kind == event.KindSnapshot && e.New != event.StateTimeWait:
	case e.Kind == event.KindSYNACKRetrans && p.tracks[conn] == nil:
		state = event.StateNewSynRecv
	default:
		return
	}
	t := p.tracks[conn]
	if t == nil {
		if len(p.tracks) >= maxTracks {
			return
		}
		t = &track{make([]span, 0, 4)}
		p.tracks[conn] = t
	}
	t.add(e.Time, state)
	if state == event.StateClose {
		p.leave(conn)
	}
}

// add keeps the states in the order of time, which is not that of arrival.
func (t *track) add(at int64, s event.State) {
	if n := len(t.states); n == maxStates {
		t.states[n-1] = span{max(at, t.states[n-1].at), s}
		return
	}
	i := len(t.states)
	for i > 0 && t.states[i-1].at > at {
		i--
	}
	if i > 0 && t.states[i-1].state == s {
		return
	}
	t.states = slices.Insert(t.states, i, span{at, s})
}

// leave lets go of a connection that was closed long ago and never shown.
func (p *Perfetto) leave(conn string) {
	if len(p.closed) < cap(p.closed) {
		p.closed = append(p.closed, conn)
		return
	}
	delete(p.tracks, p.closed[p.next])
	p.closed[p.next] = conn
	p.next = (p.next + 1) % len(p.closed)
}

// process returns the process of an owner in the trace.
func (p *Perfetto) process(c *render.Connection) int {
	o := owner{c.Process.PID, render.Safe(c.Process.Comm)}
	if id, ok := p.owners[o]; ok {
		return id
	}
	if len(p.owners) >= maxNames {
		clear(p.owners)
	}
	p.nextPID++
	id := p.nextPID
	p.owners[o] = id
	name := "process unknown"
	if o.pid != 0 {
		name = o.comm + "[" + strconv.FormatUint(uint64(o.pid), 10) + "]"
	}
	p.meta("process_name", id, 0, nameArg{p.at(name)})
	if x := c.Process.Container; x != nil {
		p.meta("process_labels", id, 0, labelArg{render.Safe(x.String())})
	}
	return id
}

// at names the host beside what is on it.
func (p *Perfetto) at(name string) string {
	if p.host == "" {
		return name
	}
	return name + " on " + p.host
}

type connectionArgs struct {
	Conn          string   `json:"conn"`
	Host          string   `json:"host"`
	Role          string   `json:"role"`
	Story         string   `json:"story"`
	Verdicts      []string `json:"verdicts"`
	ClosedBy      string   `json:"closed_by"`
	State         string   `json:"state"`
	Listener      string   `json:"listener,omitempty"`
	Netns         uint32   `json:"netns"`
	NetnsName     string   `json:"netns_name,omitempty"`
	BytesSent     uint64   `json:"bytes_sent"`
	BytesReceived uint64   `json:"bytes_received"`
	Retransmits   uint32   `json:"retransmits"`
	SRTT          uint32   `json:"srtt_us,omitempty"`
	Incomplete    bool     `json:"incomplete"`
	Peer          string   `json:"peer,omitempty"`
}

type entryArgs struct {
	Text   string         `json:"text"`
	Detail render.Details `json:"detail"`
}

// Connection writes a connection's track: what is nested in time is nested in
// the trace, so the whole comes first.
func (p *Perfetto) Connection(c *render.Connection) error {
	if p.err != nil {
		return p.err
	}
	t := p.tracks[c.ID]
	delete(p.tracks, c.ID)
	clock, known := p.wall(c)
	if !known || len(c.Timeline) == 0 && t == nil {
		return nil // there is no moment to put it at
	}
	pid := p.process(c)
	p.nextTID++
	tid := p.nextTID
	name := render.Addr(c.Local) + " > " + render.Addr(c.Remote)
	if c.Role == "server" {
		name = render.Addr(c.Local) + " < " + render.Addr(c.Remote)
	}
	p.meta("thread_name", pid, tid, nameArg{name})
	// Perfetto sorts by number of thread, chrome://tracing by this.
	p.meta("thread_sort_index", pid, tid, sortArg{tid})

	var begin, end int64
	if n := len(c.Timeline); n > 0 {
		begin, end = c.Timeline[0].At, c.Timeline[n-1].At
	}
	var spans []span
	if t != nil {
		spans = t.states
		begin = min(cmp.Or(begin, spans[0].at), spans[0].at)
		end = max(end, spans[len(spans)-1].at)
	}
	if c.Closed == 0 && c.State != timeline.StateName(event.StateClose) {
		end = max(end, int64(c.Time)-clock.Offset) // as far as it is known
	}

	color := ""
	if !c.Well {
		color = "terrible"
	}
	p.slice("connection", render.Safe(c.Story), color, clock, begin, end, pid, tid, connectionArgs{
		Conn: c.ID, Host: p.host, Role: c.Role, Story: render.Safe(c.Story), Verdicts: safe(c.Verdicts), ClosedBy: c.ClosedBy, State: c.State,
		Listener: render.Addr(c.Listener), Netns: c.Netns, NetnsName: p.spaces[c.Netns],
		BytesSent: c.Traffic.BytesSent, BytesReceived: c.Traffic.BytesReceived, Retransmits: c.Traffic.Retransmits,
		SRTT: c.Traffic.SRTT, Incomplete: c.Incomplete, Peer: peerID(c),
	})
	i := 0
	entries := func(until int64) {
		for ; i < len(c.Timeline) && c.Timeline[i].At < until; i++ {
			e := &c.Timeline[i]
			ts := micros(clock, e.At)
			p.emit(&traceEvent{
				Name: render.Safe(e.Event), Phase: "i", Cat: "timeline", TS: &ts, PID: pid, TID: tid, Scope: "t",
				Args: entryArgs{render.Safe(e.Text), e.Detail},
			})
		}
	}
	for k, s := range spans {
		entries(s.at)
		until := end
		if k+1 < len(spans) {
			until = spans[k+1].at
		}
		if s.state != event.StateClose && s.state != event.StateUnknown {
			p.slice("state", stateName(s.state), "", clock, s.at, until, pid, tid, nil)
		}
	}
	entries(1<<63 - 1)
	return p.err
}

func peerID(c *render.Connection) string {
	if c.Peer == nil {
		return ""
	}
	return c.Peer.ID
}

// wall is how to show the times of a connection's timeline.
func (p *Perfetto) wall(c *render.Connection) (render.Clock, bool) {
	switch {
	case p.clock != nil:
		return *p.clock, true
	case c.Opened != 0 && len(c.Timeline) > 0:
		return render.Clock{Offset: int64(c.Opened) - c.Timeline[0].At}, true
	}
	return render.Clock{}, false
}

// micros gives whole microseconds since 1970. Readers keep times in doubles,
// which hold such numbers exactly; with fractions slices would no longer nest.
func micros(clock render.Clock, at int64) int64 {
	ns := at + clock.Offset
	if ns < 0 {
		return 0
	}
	return ns / 1e3
}

func (p *Perfetto) slice(cat, name, color string, clock render.Clock, from, until int64, pid, tid int, args any) {
	ts := micros(clock, from)
	dur := max(micros(clock, until)-ts, 0)
	p.emit(&traceEvent{Name: name, Phase: "X", Cat: cat, TS: &ts, Dur: &dur, PID: pid, TID: tid, Color: color, Args: args})
}

// Verdict keeps a verdict until its last word.
func (p *Perfetto) Verdict(v *render.Verdict) error {
	if p.finals.take(v) {
		p.writeVerdict(v)
	}
	return p.err
}

type verdictArgs struct {
	Code       string         `json:"code"`
	Severity   string         `json:"severity"`
	Confidence string         `json:"confidence"`
	Subject    string         `json:"subject"`
	Process    string         `json:"process,omitempty"`
	Count      uint64         `json:"count"`
	First      render.Stamp   `json:"first"`
	Last       render.Stamp   `json:"last"`
	Examples   []string       `json:"examples"`
	Evidence   json.Marshaler `json:"evidence"`
	Fix        []string       `json:"fix"`
}

// writeVerdict gives each verdict a track of its own, since they overlap.
func (p *Perfetto) writeVerdict(v *render.Verdict) {
	if v.First == 0 || p.err != nil {
		return
	}
	if p.verdict == 0 {
		p.nextPID++
		p.verdict = p.nextPID
		p.meta("process_name", p.verdict, 0, nameArg{p.at("verdicts")})
		p.meta("process_sort_index", p.verdict, 0, sortArg{-1}) // above the rest
	}
	p.nextTID++
	tid := p.nextTID
	subject := render.Safe(v.Subject.Name)
	p.meta("thread_name", p.verdict, tid, nameArg{v.Code + " " + subject})
	p.meta("thread_sort_index", p.verdict, tid, sortArg{tid})
	args := verdictArgs{
		Code: v.Code, Severity: string(v.Severity), Confidence: string(v.Confidence), Subject: v.Subject.Kind + " " + subject,
		Count: v.Count, First: v.First, Last: v.Last, Examples: safe(v.Examples), Evidence: v.Evidence, Fix: safe(v.Fix),
	}
	if x := v.Process; x != nil {
		args.Process = fmt.Sprintf("%s[%d]", render.Safe(x.Comm), x.PID)
	}
	color := map[string]string{"error": "terrible", "warning": "bad"}[args.Severity]
	p.slice("verdict", render.Safe(v.Story), color, render.Clock{}, int64(v.First), int64(max(v.First, v.Last)), p.verdict, tid, args)
}

type lostArgs struct {
	Where string `json:"where"`
	Count uint64 `json:"count"`
}

// Lost marks the moment at which events were found to be missing, across all
// tracks.
func (p *Perfetto) Lost(l *render.Lost) error {
	if l.Time != 0 {
		ts := micros(render.Clock{}, int64(l.Time))
		p.emit(&traceEvent{Name: "events lost", Phase: "i", Cat: "lost", TS: &ts, Scope: "g", Args: lostArgs{render.Safe(l.Where), l.Count}})
	}
	return p.err
}

// Summary writes the last word on each verdict.
func (p *Perfetto) Summary(s *render.Summary) error {
	for _, v := range p.finals.end(s.Final) {
		p.writeVerdict(v)
	}
	return p.err
}

// cut ends a run that had no end.
func (p *Perfetto) cut() {
	for _, v := range p.finals.end(nil) {
		p.writeVerdict(v)
	}
}

// Flush hands on what is buffered.
func (p *Perfetto) Flush() error {
	if p.err != nil {
		return p.err
	}
	if err := p.out.Flush(); err != nil {
		return p.fail(err)
	}
	return nil
}

// Close ends the array.
func (p *Perfetto) Close() error {
	p.cut()
	if p.err != nil {
		return p.err
	}
	end := "\n]\n"
	if !p.open {
		end = "[]\n"
	}
	if _, err := p.out.WriteString(end); err != nil {
		return p.fail(err)
	}
	return p.Flush()
}
