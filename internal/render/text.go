package render

import (
	"bufio"
	"cmp"
	"fmt"
	"hash/fnv"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tcptrace/tcptrace/internal/container"
	"github.com/tcptrace/tcptrace/internal/diagnose"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// TextOptions fit the text to where it is shown.
type TextOptions struct {
	Width    int            // columns, 80 if 0; less than 50 counts as 50
	Color    bool           // use ANSI colours
	Location *time.Location // of the times shown, UTC if nil
	Netns    uint32         // the own namespace, which needs no mention
	Fold     bool           // show few of many connections that are alike, and count the others
}

// Text writes for people.
type Text struct {
	o    TextOptions
	out  *bufio.Writer
	err  error
	day  string            // the date of the last line
	name map[uint32]string // of namespaces

	// shown holds connections that were shown in full beside their peer, the
	// newest last, so that the other end does not repeat them.
	shown []string
	// drawn are the newest timelines on the screen, which need not be drawn
	// again: a verdict's example is often the next connection shown.
	drawn [4]string
	next  int // of drawn, to be overwritten
	// told is what was said last of a verdict that may still grow.
	told map[verdictKey]told
	// folds counts connections that are alike.
	folds folding
}

// NewText returns a renderer that writes text to w.
func NewText(w io.Writer, o TextOptions) *Text {
	if o.Width == 0 {
		o.Width = 80
	}
	o.Width = max(o.Width, 50)
	if o.Location == nil {
		o.Location = time.UTC
	}
	return &Text{
		o: o, out: bufio.NewWriterSize(w, 64<<10),
		name: make(map[uint32]string), told: make(map[verdictKey]told),
	}
}

// Styles, as ANSI SGR parameters.
const (
	plain  = ""
	bold   = "1"
	dim    = "2"
	red    = "1;31"
	yellow = "1;33"
	green  = "32"
	cyan   = "36"
)

func (t *Text) style(sgr, s string) string {
	if !t.o.Color || sgr == plain || s == "" {
		return s
	}
	return "\x1b[" + sgr + "m" + s + "\x1b[0m"
}

func (t *Text) print(s string) {
	if t.err == nil {
		_, t.err = t.out.WriteString(s)
	}
}

func (t *Text) result() error {
	if t.err != nil {
		return fmt.Errorf("writing the output: %w", t.err)
	}
	return nil
}

// Flush hands on what is buffered.
func (t *Text) Flush() error {
	if t.err == nil {
		t.err = t.out.Flush()
	}
	return t.result()
}

// Namespace keeps a namespace's name.
func (t *Text) Namespace(ns event.Namespace) {
	if ns.Name != "" {
		t.name[ns.Inode] = ns.Name
	}
}

// netns mentions a namespace, "" for the own one.
func (t *Text) netns(inode uint32) string {
	if inode == t.o.Netns || inode == 0 {
		return ""
	}
	if name := t.name[inode]; name != "" {
		return "netns " + Safe(name)
	}
	return fmt.Sprintf("netns %d", inode)
}

// The columns of a line that begins with a time: the time, a tag, the text.
const (
	timeWidth = len("15:04:05.000")
	tagWidth  = len("warning")
	textStart = timeWidth + 1 + tagWidth + 1
)

// head writes a line that begins with a time, its text wrapped beneath
// itself. text must be safe.
func (t *Text) head(at Stamp, tag, style, text string) {
	local := time.Unix(0, int64(at)).In(t.o.Location)
	if day := local.Format("2006-01-02"); day != t.day {
		if t.day != "" {
			t.print(t.style(dim, "--- "+day+" ---") + "\n")
		}
		t.day = day
	}
	for i, line := range Wrap(text, t.o.Width-textStart) {
		if i == 0 {
			t.print(local.Format("15:04:05.000") + " " + t.style(style, Pad(tag, tagWidth)) + " ")
		} else {
			t.print(strings.Repeat(" ", textStart))
		}
		t.print(t.style(bold, line) + "\n")
	}
}

// para writes a paragraph with a hanging indent: first stands before its
// first line, and as many blanks before the others.
func (t *Text) para(first, firstStyle, text, style string) {
	indent := columns(first)
	for i, line := range Wrap(text, t.o.Width-indent) {
		if i == 0 {
			t.print(t.style(firstStyle, first))
		} else {
			t.print(strings.Repeat(" ", indent))
		}
		t.print(t.style(style, line) + "\n")
	}
}

// pack writes items side by side, breaking lines between items only where
// that is possible.
func (t *Text) pack(indent int, items []string, style string) {
	room := t.o.Width - indent
	var line string
	flush := func() {
		if line != "" {
			t.print(strings.Repeat(" ", indent) + t.style(style, line) + "\n")
			line = ""
		}
	}
	for _, item := range items {
		if line != "" && columns(line)+2+columns(item) > room {
			flush()
		}
		if columns(item) > room {
			for _, part := range Wrap(item, room) {
				t.print(strings.Repeat(" ", indent) + t.style(style, part) + "\n")
			}
			continue
		}
		if line != "" {
			line += "  "
		}
		line += item
	}
	flush()
}

// Start writes what is watching and what it cannot know.
func (t *Text) Start(s *Start) error {
	attached := 0
	for _, h := range s.Hooks {
		if h.Via != "" && h.Via != "none" {
			attached++
		}
	}
	local := time.Unix(0, int64(s.Time)).In(t.o.Location)
	t.day = local.Format("2006-01-02")
	t.para("tcptrace ", bold, fmt.Sprintf("%s on %s, Linux %s, %s; %d of %d hooks attached (%s)",
		Safe(s.Version), Safe(s.Host), Safe(s.Kernel), local.Format("2006-01-02 15:04:05 MST"), attached, len(s.Hooks), Safe(s.Attach)), plain)
	for _, u := range s.Unknowable {
		t.para("not known here: ", dim, Safe(u), dim)
	}
	t.print("\n")
	return t.result()
}

// Event writes one line.
func (t *Text) Event(e *Event) error {
	t.counted(e.Time)
	text := e.Text
	if text == "" {
		text = e.Event
	}
	where := Addr(e.Local)
	if e.Remote.IsValid() {
		where += " " + Addr(e.Remote)
	}
	if ns := t.netns(e.Netns); ns != "" {
		where += " " + ns
	}
	t.head(e.Time, "event", dim, where+": "+Safe(text))
	return t.result()
}

// person names a process and the container that it is in, if any; "" if there
// is no process.
func person(pid uint32, comm string, in *container.Container) string {
	name := Safe(comm)
	if pid != 0 {
		name = fmt.Sprintf("%s[%d]", name, pid)
	}
	if name != "" && in != nil {
		name += " in " + Safe(in.String())
	}
	return name
}

// route shows the addresses from the client to the server.
func route(c *Connection) string {
	local, remote := Addr(c.Local), Addr(c.Remote)
	switch {
	case remote == "":
		return local
	case c.Role == "client":
		return local + " -> " + remote
	case c.Role == "server":
		return remote + " -> " + local
	}
	return local + " <-> " + remote
}

// Connection writes the story of a connection and its timeline.
func (t *Text) Connection(c *Connection) error {
	if slices.Contains(t.shown, c.ID) {
		return t.result()
	}
	style := red
	if c.Well {
		style = green
	}
	switch t.fold(c) {
	case inFull:
		t.head(c.Time, "conn", style, Safe(c.Story))
		t.connection(c)
	case asLine:
		t.head(c.Time, "conn", style, Safe(c.Story)+" ("+route(c)+")")
	}
	if p := c.Peer; p != nil && p.Closed != 0 {
		if len(t.shown) == 256 {
			t.shown = t.shown[1:]
		}
		t.shown = append(t.shown, p.ID)
	}
	return t.result()
}

// connection writes who has a connection, what was found, and its timeline.
func (t *Text) connection(c *Connection) {
	facts := []string{route(c)}
	switch p := person(c.Process.PID, c.Process.Comm, c.Process.Container); {
	case c.Role == "unknown" && p == "":
		facts = append(facts, "role and process unknown")
	case c.Role == "unknown":
		facts = append(facts, p)
	case p == "":
		facts = append(facts, c.Role+", process unknown")
	default:
		facts = append(facts, c.Role+" "+p)
	}
	if ns := t.netns(c.Netns); ns != "" {
		facts = append(facts, ns)
	}
	if len(c.Verdicts) > 0 {
		facts = append(facts, Safe(strings.Join(c.Verdicts, ",")))
	}
	if c.Incomplete {
		facts = append(facts, "incomplete")
	}
	if !t.draws(c) {
		facts = append(facts, "timeline above")
		t.pack(2, facts, plain)
	} else {
		t.pack(2, facts, plain)
		t.timeline(c)
	}
	t.print("\n")
}

// draws reports whether the timeline of c is to be drawn: not where the same,
// of this end or the other, was drawn just before. It takes note of it.
func (t *Text) draws(c *Connection) bool {
	if len(c.Timeline) == 0 {
		return true // there is nothing to refer to
	}
	key := c.version()
	if p := c.Peer; p != nil {
		one, other := key, p.version()
		key = min(one, other) + max(one, other)
	}
	if slices.Contains(t.drawn[:], key) {
		return false
	}
	t.drawn[t.next] = key
	t.next = (t.next + 1) % len(t.drawn)
	return true
}

// version names a connection and the state of its timeline.
func (c *Connection) version() string {
	h := fnv.New64a()
	for _, e := range c.Timeline {
		fmt.Fprintln(h, e.At, e.Event, e.Text)
	}
	return fmt.Sprintf("%s %x ", c.ID, h.Sum64())
}

// maxEntries bounds a timeline on the screen; the middle is left out.
const maxEntries = 40

// sinceFirst is the time from the first entry to the i-th.
func sinceFirst(entries []Entry, i int) time.Duration {
	return time.Duration(entries[i].At - entries[0].At)
}

// line is an entry of one of the two ends.
type line struct {
	Entry
	peer bool
}

// timeline writes the entries of a connection; of both ends, side by side,
// where the other is known too.
func (t *Text) timeline(c *Connection) {
	var lines []line
	for _, e := range c.Timeline {
		lines = append(lines, line{Entry: e})
	}
	both := c.Peer != nil && len(c.Peer.Timeline) > 0
	if both {
		for _, e := range c.Peer.Timeline {
			lines = append(lines, line{Entry: e, peer: true})
		}
		// Clocks are the same; at the same instant, the client goes first.
		slices.SortStableFunc(lines, func(a, b line) int {
			switch {
			case a.At != b.At:
				return cmpInt64(a.At, b.At)
			case a.peer == b.peer:
				return 0
			case a.peer == (c.Role == "server"):
				return -1
			}
			return 1
		})
	}
	if len(lines) == 0 {
		return
	}
	first := lines[0].At
	unit, suffix := time.Millisecond, " ms"
	if lines[len(lines)-1].At-first >= int64(100*time.Second) {
		unit, suffix = time.Second, " s"
	}
	when := func(l line) string {
		return strconv.FormatFloat(float64(l.At-first)/float64(unit), 'f', 3, 64) + suffix
	}
	width := 0
	for _, l := range lines {
		width = max(width, len(when(l)))
	}
	const indent = 4
	room := t.o.Width - indent - width - 2
	left, right := c, c.Peer
	if both && c.Role == "server" {
		left, right = right, left
	}
	column := (room - 3) / 2
	side := both && column >= 24
	blank := strings.Repeat(" ", indent+width+2)
	if side {
		a, b := Wrap(end(left), column), Wrap(end(right), column)
		t.columns(blank, a, b, column, bold)
	}
	for i, l := range lines {
		if len(lines) > maxEntries {
			if n := len(lines) - maxEntries; i == maxEntries/2 {
				t.print(blank + t.style(dim, fmt.Sprintf("... %d more ...", n)) + "\n")
			}
			if i >= maxEntries/2 && i < len(lines)-maxEntries/2 {
				continue
			}
		}
		text := l.Text
		if text == "" {
			text = l.Event
		}
		text = Safe(text)
		start := strings.Repeat(" ", indent) + padLeft(when(l), width) + "  "
		switch {
		case side && l.peer == (left == c):
			t.columns(start, nil, Wrap(text, column), column, plain)
		case side:
			t.columns(start, Wrap(text, column), nil, column, plain)
		case both:
			who := c
			if l.peer {
				who = c.Peer
			}
			t.para(start, dim, who.Role+": "+text, plain)
		default:
			t.para(start, dim, text, plain)
		}
	}
}

// columns writes two texts side by side.
func (t *Text) columns(start string, left, right []string, width int, style string) {
	for i := range max(len(left), len(right), 1) {
		if i == 0 {
			t.print(t.style(dim, start))
		} else {
			t.print(strings.Repeat(" ", columns(start)))
		}
		var a, b string
		if i < len(left) {
			a = left[i]
		}
		if i < len(right) {
			b = right[i]
		}
		s := t.style(style, a) + strings.Repeat(" ", max(0, width-columns(a))) + t.style(dim, " |")
		if b != "" {
			s += " " + t.style(style, b)
		}
		t.print(s + "\n")
	}
}

// end names one end of a conversation.
func end(c *Connection) string {
	s := c.Role + " " + Addr(c.Local)
	if p := person(c.Process.PID, c.Process.Comm, c.Process.Container); p != "" {
		s += " " + p
	}
	return s
}

func cmpInt64(a, b int64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

func severityStyle(s diagnose.Severity) string {
	switch s {
	case diagnose.Error:
		return red
	case diagnose.Warning:
		return yellow
	}
	return cyan
}

// about says what a verdict is about.
func (t *Text) about(v *Verdict) string {
	s := v.Subject.Kind + " " + Safe(v.Subject.Name)
	if v.Process != nil {
		// The name of a process as subject has it already.
		p := person(v.Process.PID, v.Process.Comm, nil)
		if p != "" && !strings.Contains(s, p) {
			s += " " + p
		}
		if in := v.Process.Container; p != "" && in != nil {
			s += " in " + Safe(in.String())
		}
	}
	if ns := t.netns(v.Netns); ns != "" {
		s += ", " + ns
	}
	return s
}

// verdictKey tells verdicts apart.
type verdictKey struct {
	code string
	key  diagnose.Key
}

// told is what a verdict said when it was shown in full, and its count when
// anything of it was shown last.
type told struct {
	full     string
	severity diagnose.Severity
	count    uint64
	at       Stamp
}

// steady is how long a verdict that grows by less than half of itself goes
// without a word where [TextOptions.Fold] is set: a health check that is
// refused twice a second is no news each second.
const steady = time.Minute

// news is true if a verdict that holds for more is to be told of again.
func (t *Text) news(v *Verdict, was told) bool {
	return !t.o.Fold || v.Phase == diagnose.PhaseFinal || v.Severity != was.severity || v.Count < was.count ||
		v.Count-was.count >= (was.count+1)/2 || v.Time-was.at >= Stamp(steady)
}

// said is what Verdict shows of v, in short.
func said(v *Verdict) string {
	items := append(facts(v.Evidence), v.Story, Thousands(v.Count))
	return strings.Join(items, "\x00")
}

// Verdict writes a verdict in full when it is new, and a line when it holds for
// more. More evidence for as many goes without a word until the summary.
func (t *Text) Verdict(v *Verdict) error {
	t.counted(v.Time)
	style := severityStyle(v.Severity)
	key := verdictKey{v.Code, v.Key}
	if v.Phase != diagnose.PhaseNew {
		was := t.told[key]
		if v.Phase == diagnose.PhaseFinal {
			delete(t.told, key)
		}
		if v.Count == was.count || !t.news(v, was) {
			return t.result()
		}
		if v.Phase != diagnose.PhaseFinal {
			t.told[key] = told{was.full, v.Severity, v.Count, v.Time}
		}
		grew := ""
		if passed := time.Duration(v.Time - was.at); was.at != 0 && passed > 0 && v.Count >= was.count {
			grew = fmt.Sprintf(" (+%s in the last %s)", Thousands(v.Count-was.count), roughly(passed))
		}
		code := Safe(v.Code)
		if v.Which != "" {
			code += " (" + Safe(v.Which) + ")"
		}
		t.head(v.Time, string(v.Severity), style, fmt.Sprintf("%s, %s: now %s%s", code, t.about(v), Thousands(v.Count), grew))
		return t.result()
	}
	t.head(v.Time, string(v.Severity), style, Safe(v.Story))
	t.pack(2, []string{Safe(v.Code), t.about(v), Thousands(v.Count) + " so far, " + string(v.Confidence)}, plain)
	t.evidence(v.Evidence)
	if v.Example != nil {
		if t.draws(v.Example) {
			t.para("  example ", dim, route(v.Example), plain)
			t.timeline(v.Example)
		} else {
			t.para("  example ", dim, route(v.Example)+"  timeline above", plain)
		}
	}
	for _, f := range v.Fix {
		t.para("  fix: ", green, Safe(f), plain)
	}
	t.print("\n")
	t.told[key] = told{said(v), v.Severity, v.Count, v.Time}
	return t.result()
}

func (t *Text) evidence(e diagnose.Evidence) {
	t.pack(2, facts(e), dim)
}

func facts(e diagnose.Evidence) []string {
	items := make([]string, 0, len(e)+2)
	for _, f := range e {
		items = append(items, fact(f))
	}
	return items
}

// fact shows one piece of evidence as key=value.
func fact(f diagnose.Fact) string {
	s := Safe(f.Key) + "="
	switch {
	case f.Value != nil:
		s += value(f.Value)
	case f.Note != "":
		s += "-" // the note says why
	default:
		s += "unknown"
	}
	if f.Note != "" {
		s += " (" + Safe(f.Note) + ")"
	}
	return s
}

func value(v any) string {
	switch v := v.(type) {
	case string:
		if v == "" || strings.ContainsAny(v, " =,()") {
			return `"` + Safe(v) + `"`
		}
		return Safe(v)
	case float64:
		return strconv.FormatFloat(math.Round(v*1e3)/1e3, 'f', -1, 64)
	case []string:
		safe := make([]string, len(v))
		for i, s := range v {
			safe[i] = Safe(s)
		}
		return strings.Join(safe, ",")
	case diagnose.Evidence:
		items := make([]string, len(v))
		for i, f := range v {
			items[i] = fact(f)
		}
		return "{" + strings.Join(items, " ") + "}"
	}
	return Safe(fmt.Sprint(v))
}

// Lost writes a line about lost events.
func (t *Text) Lost(l *Lost) error {
	t.counted(l.Time)
	t.head(l.Time, "lost", yellow, fmt.Sprintf("%s events (%s): what they touched is marked incomplete", Thousands(l.Count), Safe(l.Where)))
	return t.result()
}

// Summary writes the totals, the last word on each verdict, the counter audit
// and the cost.
func (t *Text) Summary(s *Summary) error {
	for _, a := range t.folds.kinds {
		t.count(a)
	}
	lost := "none lost"
	if s.Lost > 0 {
		lost = Thousands(s.Lost) + " lost"
	}
	connections := "connections"
	if s.Connections == 1 {
		connections = "connection"
	}
	t.head(s.Time, "summary", bold, fmt.Sprintf("%s: %s %s, %s events, %s", roughly(s.Duration), Thousands(s.Connections), connections, Thousands(s.Events), lost))
	if s.Evicted > 0 {
		t.para("  ", plain, Thousands(s.Evicted)+" connections were dropped to stay within the memory bounds", yellow)
	}
	t.print("\n")
	t.verdicts(s.Final)
	t.audit(s)
	t.cost(s.Cost)
	return t.Flush()
}

func (t *Text) verdicts(final []*Verdict) {
	if len(final) == 0 {
		t.print("  " + t.style(bold, "verdicts") + "  none\n")
		return
	}
	t.print("  " + t.style(bold, "verdicts") + "\n")
	codes, counts := 0, 0
	for _, v := range final {
		codes = max(codes, columns(Safe(v.Code)))
		counts = max(counts, len(Thousands(v.Count)))
	}
	// The worst first; those of one severity in the order in which they came.
	final = slices.Clone(final)
	slices.SortStableFunc(final, func(a, b *Verdict) int { return cmp.Compare(a.Severity.Rank(), b.Severity.Rank()) })
	for _, v := range final {
		style := severityStyle(v.Severity)
		start := "    " + padLeft(Thousands(v.Count), counts) + "  " + t.style(style, Pad(string(v.Severity), tagWidth)) + "  "
		indent := 4 + counts + 2 + tagWidth + 2
		about := t.about(v)
		if room := t.o.Width - indent - codes - 2; columns(about) <= room {
			t.print(start + t.style(bold, Pad(Safe(v.Code), codes)) + "  " + about + "\n")
		} else {
			t.print(start + t.style(bold, Safe(v.Code)) + "\n")
			t.para(strings.Repeat(" ", indent), plain, about, plain)
		}
		if was, ok := t.told[verdictKey{v.Code, v.Key}]; !ok || was.full != said(v) {
			// What was shown in full told of less.
			t.para(strings.Repeat(" ", 6), plain, Safe(v.Story), plain)
			t.pack(6, facts(v.Evidence), dim)
		}
	}
}

// NotCompared is a note of Summary.AuditNotes: that nothing moved in the audit
// means nothing then.
const NotCompared = "the counters of no network namespace could be compared"

// audit shows where the counters and what was seen differ, a row each, and of
// the rest only what was explained.
func (t *Text) audit(s *Summary) {
	var moved []Audit
	name := 0
	for _, a := range s.Audit {
		if a.Kernel != 0 || a.Explained != 0 {
			moved = append(moved, a)
			if a.Unexplained()+a.Excess() > 0 {
				name = max(name, columns(Safe(a.Counter)))
			}
		}
	}
	notes := s.AuditNotes
	switch {
	case len(moved) == 0 && slices.Contains(notes, NotCompared):
		t.print("  " + t.style(bold, "counters") + "  not compared\n")
		notes = slices.DeleteFunc(slices.Clone(notes), func(n string) bool { return n == NotCompared })
	case len(moved) == 0:
		t.print("  " + t.style(bold, "counters") + "  none of those that are audited moved\n")
	case name == 0:
		t.print("  " + t.style(bold, "counters") + "  every increment of the kernel's own is explained\n")
	default:
		t.print("  " + t.style(bold, Pad("counters", name+4)) + padLeft("kernel", 10) + padLeft("explained", 12) + "\n")
	}
	for len(moved) > 0 {
		netns := moved[0].Netns
		n := slices.IndexFunc(moved, func(a Audit) bool { return a.Netns != netns })
		if n < 0 {
			n = len(moved)
		}
		t.auditOf(netns, moved[:n], name)
		moved = moved[n:]
	}
	for _, n := range notes {
		t.para("    ", plain, Safe(n), dim)
	}
}

// auditOf shows the counters of one namespace.
func (t *Text) auditOf(netns uint32, counters []Audit, name int) {
	label := fmt.Sprintf("netns %d", netns)
	if n := t.name[netns]; n != "" {
		label += " (" + Safe(n) + ")"
	} else if netns == t.o.Netns {
		label += " (own)"
	}
	t.print("    " + label + "\n")
	var agreed []string
	for _, a := range counters {
		var remark string
		switch {
		case a.Unexplained() > 0:
			remark = Thousands(a.Unexplained()) + " not explained"
		case a.Excess() > 0:
			remark = Thousands(a.Excess()) + " more seen than counted"
		default:
			agreed = append(agreed, Safe(a.Counter)+" "+Thousands(a.Kernel))
			continue
		}
		row := "      " + Pad(Safe(a.Counter), name) + padLeft(Thousands(a.Kernel), 10) + padLeft(Thousands(a.Explained), 12)
		if columns(row)+2+columns(remark) <= t.o.Width {
			t.print(row + "  " + t.style(yellow, remark) + "\n")
		} else {
			t.print(row + "\n")
			t.para("        ", plain, remark, yellow)
		}
		if !a.Exact && a.Note != "" {
			t.para("        ", plain, "not exact in this attach mode: "+Safe(a.Note), dim)
		}
	}
	if len(agreed) > 0 {
		t.para("      ", plain, "explained: "+strings.Join(agreed, ", "), plain)
	}
}

func (t *Text) cost(c Cost) {
	kernel := "kernel time not measured"
	if c.BPFKnown {
		kernel = Percent(c.BPFCPUPercent) + " of a processor in the kernel"
		if c.BPFNanosPerEvent > 0 && !c.Filtered {
			kernel = fmt.Sprintf("%.0f ns of kernel time an event, %s", c.BPFNanosPerEvent, kernel)
		}
	}
	t.para("  cost  ", bold, fmt.Sprintf("%s, %s in user space, %.1f MB of memory", kernel, Percent(c.UserCPUPercent), float64(c.RSSBytes)/1e6), plain)
}

// Percent shows a share of a processor to two decimals.
func Percent(p float64) string { return strconv.FormatFloat(p, 'f', 2, 64) + "%" }

// Thousands groups digits for people.
func Thousands(n uint64) string {
	s := strconv.FormatUint(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// roughly shows a duration to two or three digits.
func roughly(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return d.Round(time.Microsecond).String()
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < time.Minute:
		s := strconv.FormatFloat(d.Seconds(), 'f', 1, 64)
		return strings.TrimSuffix(s, ".0") + " s"
	case d < time.Hour:
		return fmt.Sprintf("%d min %d s", int(d.Minutes()), int(d.Seconds())%60)
	}
	return fmt.Sprintf("%d h %d min", int(d.Hours()), int(d.Minutes())%60)
}
