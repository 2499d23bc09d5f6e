package render

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tcptrace/tcptrace/internal/diagnose"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// Command is how a command that was traced ended.
type Command struct {
	Time     Stamp
	Args     []string
	Status   int           // the exit status, 128 and the number for a signal
	Ended    string        // the same in words
	Duration time.Duration // of the command itself
	Follow   string        // how its processes are known
	Caveat   string        // what that can miss
	Running  []uint32      // descendants that live on
	Left     string        // a cgroup that had to stay, since processes are in others beneath it; "" none
	Failing  []string      // codes because of which tcptrace exits with a status of its own
}

// Command writes how the command ended; the summary follows.
func (j *JSON) Command(c *Command) error {
	return j.line(struct {
		Type       string   `json:"type"`
		Time       Stamp    `json:"time"`
		Args       []string `json:"args"`
		Status     int      `json:"exit_status"`
		DurationMS float64  `json:"duration_ms"`
		Follow     string   `json:"follow"`
		Caveat     string   `json:"caveat"`
		Running    []uint32 `json:"still_running"`
	}{"command", c.Time, list(c.Args), c.Status, millis(c.Duration), c.Follow, c.Caveat, list(c.Running)})
}

// Command writes how the command ended; the summary follows.
func (t *Text) Command(c *Command) error {
	t.head(c.Time, "command", bold, fmt.Sprintf("%s after %s: %s", Safe(c.Ended), roughly(c.Duration), commandLine(c.Args)))
	t.running(2, c)
	t.followed(c)
	t.print("\n")
	return t.result()
}

// commandLine shows a command so that a reader can tell its arguments apart.
func commandLine(args []string) string {
	quoted := make([]string, len(args))
	for i, a := range args {
		quoted[i] = Safe(a)
		if a == "" || strings.ContainsAny(a, " \t\n'\"\\$`&|;<>()*?[]#~") {
			quoted[i] = Safe(strconv.Quote(a))
		}
	}
	const most = 200
	line := []rune(strings.Join(quoted, " "))
	if len(line) > most {
		return string(line[:most]) + "..."
	}
	return string(line)
}

// followed tells how the processes were known.
func (t *Text) followed(c *Command) {
	t.para("  followed  ", dim, "by "+Safe(c.Follow)+"; "+Safe(c.Caveat), dim)
}

// running tells of descendants that live on.
func (t *Text) running(indent int, c *Command) {
	const most = 10
	if len(c.Running) == 0 {
		return
	}
	pids := make([]string, 0, most)
	for _, pid := range c.Running[:min(most, len(c.Running))] {
		pids = append(pids, strconv.FormatUint(uint64(pid), 10))
	}
	noun, text := "process ", strings.Join(pids, ", ")
	if len(c.Running) > 1 {
		noun = "processes "
	}
	if n := len(c.Running) - most; n > 0 {
		text += fmt.Sprintf(" and %d more", n)
	}
	t.para(strings.Repeat(" ", indent)+"still running  ", dim, noun+text+": left alone, and followed no more", plain)
}

// Brief keeps what is said of a command until it has ended, and then writes it
// in short: a [Renderer] that writes nothing by itself.
type Brief struct {
	t       *Text
	summary *Summary
	start   *Start
	lost    []*Lost
	seen    map[string]diagnose.Severity
}

// NewBrief returns a renderer that will write to w.
func NewBrief(w io.Writer, o TextOptions) *Brief {
	return &Brief{t: NewText(w, o), seen: make(map[string]diagnose.Severity)}
}

// Start keeps what cannot be known here.
func (b *Brief) Start(s *Start) error { b.start = s; return nil }

// Namespace keeps a namespace's name.
func (b *Brief) Namespace(ns event.Namespace) { b.t.Namespace(ns) }

// Event does nothing.
func (b *Brief) Event(*Event) error { return nil }

// Connection does nothing.
func (b *Brief) Connection(*Connection) error { return nil }

// Verdict notes the code and the severity.
func (b *Brief) Verdict(v *Verdict) error {
	if s, ok := b.seen[v.Code]; !ok || v.Severity.Rank() < s.Rank() {
		b.seen[v.Code] = v.Severity
	}
	return nil
}

// Lost keeps where events were lost.
func (b *Brief) Lost(l *Lost) error {
	// They come at most once a second for each cause.
	for _, have := range b.lost {
		if have.Where == l.Where {
			have.Count += l.Count
			return nil
		}
	}
	b.lost = append(b.lost, &Lost{Time: l.Time, Where: l.Where, Count: l.Count})
	return nil
}

// LostEvents is how many events were lost.
func (b *Brief) LostEvents() uint64 {
	n := uint64(0)
	for _, l := range b.lost {
		n += l.Count
	}
	return n
}

// Summary keeps the last word.
func (b *Brief) Summary(s *Summary) error {
	b.summary = s
	for _, v := range s.Final {
		if err := b.Verdict(v); err != nil {
			return err
		}
	}
	return nil
}

// Flush does nothing.
func (b *Brief) Flush() error { return nil }

// Codes lists the verdicts that were said and are at least as severe, in
// alphabetical order.
func (b *Brief) Codes(least diagnose.Severity) []string {
	var codes []string
	for code, s := range b.seen {
		if s.Rank() <= least.Rank() {
			codes = append(codes, code)
		}
	}
	slices.Sort(codes)
	return codes
}

// Write writes everything.
func (b *Brief) Write(c *Command) error {
	t := b.t
	s := b.summary
	if s == nil {
		s = &Summary{}
	}
	verdicts := "no verdict"
	switch n := len(s.Final); {
	case n == 1:
		verdicts = "1 verdict"
	case n > 1:
		verdicts = strconv.Itoa(n) + " verdicts"
	}
	conns := Thousands(s.Connections) + " connections"
	if s.Connections == 1 {
		conns = "1 connection"
	}
	lost := "no events lost"
	if s.Lost > 0 {
		lost = Thousands(s.Lost) + " events lost"
	}
	t.para("tcptrace: ", bold, fmt.Sprintf("%s after %s; %s, %s, %s", Safe(c.Ended), roughly(c.Duration), conns, verdicts, lost), plain)
	for _, v := range sorted(s.Final) {
		b.verdict(v)
	}
	b.early(s)
	if len(s.Final) > 0 {
		t.print("\n")
	}
	b.losses(s)
	t.running(2, c)
	if c.Left != "" {
		t.para("  left  ", dim, "cgroup "+Safe(c.Left)+": processes are in what the command made beneath it", plain)
	}
	t.followed(c)
	if b.start != nil && len(b.start.Unknowable) > 0 {
		t.para("  not known  ", dim, fmt.Sprintf("%d things, with this kernel or these privileges: see `tcptrace doctor`", len(b.start.Unknowable)), dim)
	}
	t.cost(s.Cost)
	if len(c.Failing) > 0 {
		t.para("  failed  ", red, "exit status 3 because of "+Safe(strings.Join(c.Failing, ", ")), bold)
	}
	return t.Flush()
}

// sorted puts the worst first and keeps the order otherwise.
func sorted(list []*Verdict) []*Verdict {
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(a, b *Verdict) int { return cmp.Compare(a.Severity.Rank(), b.Severity.Rank()) })
	return list
}

func (b *Brief) verdict(v *Verdict) {
	t := b.t
	t.print("\n")
	t.para("  "+Pad(string(v.Severity), tagWidth)+" ", severityStyle(v.Severity), Safe(v.Story), bold)
	t.pack(4, []string{Safe(v.Code), t.about(v), Thousands(v.Count) + ", " + string(v.Confidence)}, plain)
	t.pack(4, facts(v.Evidence), dim)
	if len(v.Fix) > 0 {
		t.para("    fix: ", green, Safe(v.Fix[0]), plain)
		if n := len(v.Fix) - 1; n > 0 {
			t.para("    ", plain, fmt.Sprintf("`tcptrace explain %s` tells more", Safe(v.Code)), dim)
		}
	}
}

// early names verdicts that had their last word before the end, since there
// were more than are kept.
func (b *Brief) early(s *Summary) {
	var items []string
	for _, code := range b.Codes(diagnose.Info) {
		if !slices.ContainsFunc(s.Final, func(v *Verdict) bool { return v.Code == code }) {
			items = append(items, fmt.Sprintf("%s (%s)", Safe(code), Thousands(s.Verdicts[code])))
		}
	}
	if len(items) > 0 {
		b.t.print("\n")
		b.t.para("  earlier  ", yellow, strings.Join(items, ", "), plain)
	}
}

// losses says where events were lost: a verdict may be missing.
func (b *Brief) losses(s *Summary) {
	if s.Lost == 0 && s.Evicted == 0 {
		return
	}
	items := make([]string, 0, len(b.lost)+1)
	for _, l := range b.lost {
		items = append(items, fmt.Sprintf("%s (%s)", Thousands(l.Count), Safe(l.Where)))
	}
	if s.Evicted > 0 {
		items = append(items, Thousands(s.Evicted)+" connections dropped to stay within the memory bounds")
	}
	b.t.para("  lost  ", yellow, strings.Join(items, ", ")+": what they would have told of is not known", yellow)
}

// Tee writes to a renderer and to another one beside it. What goes wrong with
// that one is kept: the first goes on.
type Tee struct {
	Main, Side Renderer
	err        error
}

// SideErr is the first error of the renderer beside.
func (t *Tee) SideErr() error { return t.err }

func (t *Tee) each(fn func(Renderer) error) error {
	if t.err == nil {
		t.err = fn(t.Side)
	}
	return fn(t.Main)
}

// Start writes to both.
func (t *Tee) Start(s *Start) error {
	return t.each(func(r Renderer) error { return r.Start(s) })
}

// Namespace tells both.
func (t *Tee) Namespace(ns event.Namespace) {
	t.Side.Namespace(ns)
	t.Main.Namespace(ns)
}

// Event writes to both.
func (t *Tee) Event(e *Event) error {
	return t.each(func(r Renderer) error { return r.Event(e) })
}

// Connection writes to both.
func (t *Tee) Connection(c *Connection) error {
	return t.each(func(r Renderer) error { return r.Connection(c) })
}

// Verdict writes to both.
func (t *Tee) Verdict(v *Verdict) error {
	return t.each(func(r Renderer) error { return r.Verdict(v) })
}

// Lost writes to both.
func (t *Tee) Lost(l *Lost) error {
	return t.each(func(r Renderer) error { return r.Lost(l) })
}

// Summary writes to both.
func (t *Tee) Summary(s *Summary) error {
	return t.each(func(r Renderer) error { return r.Summary(s) })
}

// Flush flushes both.
func (t *Tee) Flush() error { return t.each(Renderer.Flush) }
