package webreport

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tcptrace/tcptrace/internal/diagnose"
	"github.com/tcptrace/tcptrace/internal/render"
)

//go:embed assets
var assets embed.FS

// scripts are put together to one, in this order.
var scripts = []string{"base.js", "data.js", "axis.js", "queues.js", "ladder.js", "table.js", "main.js"}

// asset returns a file that is embedded.
func asset(name string) (string, error) {
	b, err := assets.ReadFile("assets/" + name)
	if err != nil {
		return "", fmt.Errorf("reading an embedded file: %w", err)
	}
	return string(b), nil
}

// inline is a script or style with the hash by which the page's policy allows
// it.
type inline struct{ text, hash string }

func newInline(text string) inline {
	sum := sha256.Sum256([]byte(text))
	return inline{text, "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"}
}

// Write writes the page. Nothing may be added to the report afterwards.
func (r *Report) Write(w io.Writer) error {
	r.run() // there is always one
	var style, library, program strings.Builder
	for _, part := range []struct {
		into  *strings.Builder
		files []string
	}{
		{&style, []string{"uplot/uPlot.min.css", "style.css"}},
		{&library, []string{"uplot/uPlot.iife.min.js"}},
		{&program, scripts},
	} {
		for _, name := range part.files {
			text, err := asset(name)
			if err != nil {
				return err
			}
			part.into.WriteString(text)
			part.into.WriteByte('\n')
		}
	}
	page, err := asset("page.html")
	if err != nil {
		return err
	}
	license, err := asset("uplot/LICENSE")
	if err != nil {
		return err
	}
	shown, err := template.New("page").Parse(page)
	if err != nil {
		return fmt.Errorf("parsing the page's template: %w", err)
	}
	css, lib := newInline(style.String()), newInline(library.String())
	app := newInline("(function () {\n'use strict';\n" + program.String() + "})();\n")

	var body bytes.Buffer
	if err := shown.Execute(&body, r.content(license)); err != nil {
		return fmt.Errorf("laying out the page: %w", err)
	}
	out := bufio.NewWriterSize(w, 64<<10)
	fmt.Fprintf(out, `<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src %s %s; style-src %s; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>%s</title>
<style>%s</style>
</head>
<body>
`, lib.hash, app.hash, css.hash, template.HTMLEscapeString(clean(r.o.Title)), css.text)
	_, _ = out.Write(body.Bytes()) // errors of a bufio.Writer stay: Flush has them
	_, _ = out.WriteString(`<script type="application/gzip" id="data">`)
	if err := r.gather().pack(out); err != nil {
		return err
	}
	fmt.Fprintf(out, "</script>\n<script>%s</script>\n<script>%s</script>\n</body>\n</html>\n", lib.text, app.text)
	if err := out.Flush(); err != nil {
		return fmt.Errorf("writing the page: %w", err)
	}
	return nil
}

// content is what the template shows. All strings in it are safe.
type content struct {
	Title    string
	Hosts    string
	From, To instant
	Span     string

	Errors, Warnings, Infos int
	Causes                  []cause
	CausesLeftOut           string

	Events, Connections, Lost string
	LostAny                   bool
	Partial                   bool   // not all that happened was looked at
	Wrong                     string // of the connections that are here
	Notices                   []string
	Runs                      []runContent
	License                   string
}

// instant is a time for people and for scripts.
type instant struct {
	Machine string // RFC 3339
	Text    string // UTC
}

func newInstant(s render.Stamp) instant {
	if s <= 0 {
		return instant{}
	}
	t := s.Time()
	return instant{t.Format(time.RFC3339Nano), t.Format("2006-01-02 15:04:05.000") + " UTC"}
}

type cause struct {
	ID         string // of the element
	Rank       int
	Open       bool
	Code       string
	Severity   string
	Confidence string
	Story      string
	Kind, Name string
	Process    string
	Netns      string
	Host       string // where there are several
	Count      string
	Counts     string // what is counted
	First      instant
	Last       instant
	Once       bool
	Evidence   []fact
	Fix        []string
	Examples   []example
	Summary    string // of the code
}

type example struct {
	ID, Run string
	Here    bool // it is in the table
}

type fact struct{ Key, Value, Note, Meaning string }

type runContent struct {
	Host, Kernel, Attach, Version string
	From, To                      instant
	Span                          string
	Events, Connections, Lost     string
	Hooks                         string
	Unattached                    []fact
	Unknowable                    []string
	Where                         []fact // events lost
	Audit                         []auditRow
	Agreed                        []auditRow
	AuditNotes                    []string
	Cost                          []fact
	Cut                           bool // no audit, no cost
}

type auditRow struct{ Counter, Netns, Kernel, Explained, Remark string }

func (r *Report) content(license string) *content {
	c := &content{Title: clean(r.o.Title), License: license}
	var names []string
	for _, h := range r.hosts {
		names = append(names, h.name)
	}
	c.Hosts = strings.Join(names, ", ")
	var first, last render.Stamp
	var events, connections, lost, evicted uint64
	incomplete := 0
	for _, run := range r.runs {
		if run.first != 0 && (first == 0 || run.first < first) {
			first = run.first
		}
		last = max(last, run.last)
		if s := run.summary; s != nil {
			events += s.Events
			connections += s.Connections
			lost += s.Lost
			evicted += s.Evicted
		}
		c.Runs = append(c.Runs, run.content())
	}
	wrong, rows := 0, 0
	for _, e := range r.conns.ends {
		if e.flags&flagHidden != 0 {
			continue
		}
		rows++
		if e.flags&flagWrong != 0 {
			wrong++
		}
		if e.flags&flagIncomplete != 0 {
			incomplete++
		}
	}
	c.From, c.To = newInstant(first), newInstant(last)
	if last > first {
		c.Span = roughly(time.Duration(last - first))
	}
	c.Events, c.Connections, c.Lost, c.LostAny = render.Thousands(events), render.Thousands(connections), render.Thousands(lost), lost > 0
	c.Wrong = render.Thousands(r.conns.wrong.told)

	for _, run := range r.runs {
		for _, p := range run.missing {
			if len(r.runs) > 1 {
				p = run.host.name + ": " + p
			}
			c.Notices = append(c.Notices, p)
		}
	}
	c.Partial = c.LostAny || len(c.Notices) > 0
	if lost > 0 {
		c.Notices = append(c.Notices, render.Thousands(lost)+" events were lost before tcptrace could read them. What they touched is marked incomplete; counts can be too low.")
	}
	if evicted > 0 {
		c.Notices = append(c.Notices, render.Thousands(evicted)+" connections were let go while they lived, to stay within the memory bounds.")
	}
	if incomplete > 0 {
		c.Notices = append(c.Notices, fmt.Sprintf("%s of the %s connections listed here are incomplete: part of their timeline was not seen.", render.Thousands(uint64(incomplete)), render.Thousands(uint64(rows))))
	}
	if w, ok := r.conns.leftOut(); w+ok > 0 {
		s := "Connections left out of this page to keep it small: "
		if ok > 0 {
			s += render.Thousands(ok) + " healthy or incomplete ones" + every(r.conns.well.stride)
		}
		if w > 0 && ok > 0 {
			s += ", and "
		}
		if w > 0 {
			s += render.Thousands(w) + " that went wrong" + every(r.conns.wrong.stride)
		}
		c.Notices = append(c.Notices, s+". Causes and counts include them.")
	}
	if uint64(rows) < connections {
		if w, ok := r.conns.leftOut(); w+ok == 0 {
			c.Notices = append(c.Notices, fmt.Sprintf("%s connections ended, of which %s are listed: this page was made without the others.", render.Thousands(connections), render.Thousands(uint64(rows))))
		}
	}
	if n := len(r.listens.all); n > maxListenersShown {
		c.Notices = append(c.Notices, fmt.Sprintf("Of %s listeners the %d in the most trouble are shown.", render.Thousands(uint64(n)), maxListenersShown))
	}
	if r.listens.ignored > 0 {
		c.Notices = append(c.Notices, render.Thousands(r.listens.ignored)+" observations of further listeners are not shown.")
	}
	if r.more > 0 {
		c.Notices = append(c.Notices, render.Thousands(r.more)+" further runs were counted as part of the last one.")
	}

	if r.lessHarmful > 0 {
		c.CausesLeftOut = render.Thousands(r.lessHarmful)
	}
	docs := make(map[string]diagnose.Doc)
	for _, d := range diagnose.Catalogue() {
		docs[d.Code] = d
	}
	for i, v := range r.ranked() {
		switch v.Severity.Rank() {
		case 0:
			c.Errors++
		case 1:
			c.Warnings++
		default:
			c.Infos++
		}
		c.Causes = append(c.Causes, r.cause(i, v, docs[v.Code]))
	}
	return c
}

func every(stride uint64) string {
	switch stride {
	case 0:
		return " (all)"
	case 1:
		return ""
	case 2:
		return " (every 2nd is kept)"
	}
	return fmt.Sprintf(" (one in %s is kept)", render.Thousands(stride))
}

func (r *Report) cause(i int, v *verdict, doc diagnose.Doc) cause {
	run := r.runs[v.run]
	x := cause{
		ID: "cause-" + strconv.Itoa(i), Rank: i + 1, Open: i < 1,
		Code: clean(v.Code), Severity: clean(string(v.Severity)), Confidence: clean(string(v.Confidence)), Story: clean(v.Story),
		Process: v.process(), Netns: run.netns(v.Netns), Count: render.Thousands(v.Count), Counts: doc.Counts,
		First: newInstant(v.First), Last: newInstant(v.Last), Once: v.First == v.Last, Summary: doc.Summary,
	}
	x.Kind, x.Name = v.about()
	if len(r.hosts) > 1 {
		x.Host = run.host.name
	}
	keys := make(map[string]diagnose.DocKey)
	for _, k := range doc.Evidence {
		keys[k.Key] = k
	}
	for _, f := range v.Evidence {
		x.Evidence = append(x.Evidence, fact{clean(f.Key), value(f, keys[f.Key].Unit), clean(f.Note), keys[f.Key].Text})
	}
	for _, f := range v.Fix {
		x.Fix = append(x.Fix, render.Safe(f))
	}
	for _, id := range v.Examples {
		e := r.conns.byKey[key{v.run, id}]
		x.Examples = append(x.Examples, example{clean(id), strconv.Itoa(v.run), e != nil && e.flags&flagHidden == 0})
	}
	return x
}

// value shows a piece of evidence with its unit.
func value(f diagnose.Fact, unit string) string {
	if f.Value == nil {
		if f.Note != "" {
			return "–" // the note says why
		}
		return "unknown"
	}
	s := plain(f.Value)
	switch unit {
	case "", "count":
		return s
	}
	switch f.Value.(type) {
	case int64, uint64, float64:
		return s + " " + unit
	}
	return s
}

func plain(v any) string {
	switch v := v.(type) {
	case string:
		return clean(v)
	case bool:
		if v {
			return "yes"
		}
		return "no"
	case int64:
		return strconv.FormatInt(v, 10)
	case uint64:
		return strconv.FormatUint(v, 10)
	case float64:
		return strconv.FormatFloat(math.Round(v*1e3)/1e3, 'f', -1, 64)
	case []string:
		safe := make([]string, len(v))
		for i, s := range v {
			safe[i] = clean(s)
		}
		return strings.Join(safe, ", ")
	case diagnose.Evidence:
		items := make([]string, len(v))
		for i, f := range v {
			items[i] = clean(f.Key) + " " + value(f, "")
			if f.Note != "" {
				items[i] += " (" + clean(f.Note) + ")"
			}
		}
		return strings.Join(items, ", ")
	}
	return clean(fmt.Sprint(v))
}

func (r *run) content() runContent {
	s := &r.start
	c := runContent{
		Host: r.host.name, Kernel: clean(s.Kernel), Attach: clean(s.Attach), Version: clean(s.Version),
		From: newInstant(r.first), To: newInstant(r.last), Span: roughly(r.duration()),
	}
	attached := 0
	for _, h := range s.Hooks {
		if h.Via != "" && h.Via != "none" {
			attached++
			continue
		}
		c.Unattached = append(c.Unattached, fact{Key: clean(h.Name), Value: clean(h.Gives), Note: clean(h.Why)})
	}
	if len(s.Hooks) > 0 {
		c.Hooks = fmt.Sprintf("%d of %d", attached, len(s.Hooks))
	}
	for _, u := range s.Unknowable {
		c.Unknowable = append(c.Unknowable, clean(u))
	}
	for _, l := range r.lost {
		c.Where = append(c.Where, fact{Key: clean(l.Where), Value: render.Thousands(l.Count)})
	}
	sum := r.summary
	if sum == nil {
		c.Cut = true
		return c
	}
	c.Events, c.Connections, c.Lost = render.Thousands(sum.Events), render.Thousands(sum.Connections), render.Thousands(sum.Lost)
	c.Cut = len(sum.Audit) == 0 && sum.Cost == render.Cost{}
	for _, n := range sum.AuditNotes {
		c.AuditNotes = append(c.AuditNotes, clean(n))
	}
	for _, a := range sum.Audit {
		row := auditRow{Counter: clean(a.Counter), Netns: r.netns(a.Netns), Kernel: render.Thousands(a.Kernel), Explained: render.Thousands(a.Explained)}
		if row.Netns == "" {
			row.Netns = strconv.FormatUint(uint64(a.Netns), 10)
		}
		switch {
		case a.Unexplained() > 0:
			row.Remark = render.Thousands(a.Unexplained()) + " not explained"
		case a.Excess() > 0:
			row.Remark = render.Thousands(a.Excess()) + " more seen than counted"
		case a.Kernel == 0:
			continue
		default:
			c.Agreed = append(c.Agreed, row)
			continue
		}
		if !a.Exact && a.Note != "" {
			row.Remark += "; not exact in this attach mode: " + clean(a.Note)
		}
		c.Audit = append(c.Audit, row)
	}
	c.Audit = slices.Concat(c.Audit, c.Agreed)
	if k := sum.Cost; k != (render.Cost{}) {
		kernel := "not measured"
		if k.BPFKnown {
			kernel = render.Percent(k.BPFCPUPercent) + " of a processor"
			if k.BPFNanosPerEvent > 0 && !k.Filtered {
				kernel += fmt.Sprintf(", %.0f ns an event", k.BPFNanosPerEvent)
			}
		}
		c.Cost = []fact{
			{Key: "in the kernel", Value: kernel},
			{Key: "in user space", Value: render.Percent(k.UserCPUPercent) + " of a processor"},
			{Key: "memory", Value: fmt.Sprintf("%.1f MB", float64(k.RSSBytes)/1e6)},
		}
	}
	return c
}

// roughly shows a duration to two or three digits.
func roughly(d time.Duration) string {
	switch {
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < time.Minute:
		return strings.TrimSuffix(strconv.FormatFloat(d.Seconds(), 'f', 1, 64), ".0") + " s"
	case d < time.Hour:
		return fmt.Sprintf("%d min %d s", int(d.Minutes()), int(d.Seconds())%60)
	}
	return fmt.Sprintf("%d h %d min", int(d.Hours()), int(d.Minutes())%60)
}
