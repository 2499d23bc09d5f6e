package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/tcptrace/tcptrace/internal/diagnose"
	"github.com/tcptrace/tcptrace/internal/dump"
	"github.com/tcptrace/tcptrace/internal/filter"
	"github.com/tcptrace/tcptrace/internal/pipeline"
	"github.com/tcptrace/tcptrace/internal/recorder"
	"github.com/tcptrace/tcptrace/internal/render"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// size is a flag in bytes.
type size struct {
	bytes int64 // -1: as it seems fit
	auto  bool  // it can be left to tcptrace
}

const anySize = "auto"

func (s *size) String() string {
	switch {
	case s.bytes < 0:
		return anySize
	case s.bytes == 0:
		return "0"
	}
	return strings.ReplaceAll(humanize.IBytes(uint64(s.bytes)), " ", "")
}

func (s *size) Type() string { return "size" }

func (s *size) Set(text string) error {
	if s.auto && text == anySize {
		s.bytes = -1
		return nil
	}
	n, err := humanize.ParseBytes(text)
	if err != nil || n > math.MaxInt64 {
		return errors.New("a size is written 512KiB, 100MiB or 2GiB (1M is 1000000 bytes)")
	}
	s.bytes = int64(n)
	return nil
}

// dumping is what record and watch --record have in common.
type dumping struct {
	path      string
	force     bool
	maxSize   size
	rotate    time.Duration
	maxFiles  uint64
	minFree   size
	redact    bool
	redactKey string
}

// dumpFlags are the names of the flags that flags adds.
var dumpFlags = []string{"force", "max-size", "rotate", "max-files", "min-free", "redact", "redact-key"}

func (d *dumping) flags(cmd *cobra.Command) {
	d.minFree = size{bytes: -1, auto: true}
	f := cmd.Flags()
	f.BoolVar(&d.force, "force", false, "replace a dump that is there")
	f.Var(&d.maxSize, "max-size", "begin another file when one has this `SIZE`, such as 100MiB")
	f.DurationVar(&d.rotate, "rotate", 0, "begin another file after this `TIME`")
	f.Uint64Var(&d.maxFiles, "max-files", 0, "keep the newest `N` files; 0 keeps all")
	f.Var(&d.minFree, "min-free", "end when less than this `SIZE` is free on disk; 0: never")
	f.BoolVar(&d.redact, "redact", false, "record pseudonyms in place of addresses")
	f.StringVar(&d.redactKey, "redact-key", "", "with the key in `FILE`: the same key, the same pseudonyms")
}

// check reports mistakes that the flags are together.
func (d *dumping) check(flight bool) error {
	const hintSize = "a dump of a few seconds takes more"
	if d.maxSize.bytes > 0 && d.maxSize.bytes < recorder.MinSize {
		return usage(hintSize, "--max-size %s is less than 1MiB", &d.maxSize)
	}
	if d.rotate != 0 && d.rotate < time.Second {
		return usage("a duration is written 30s, 10m or 1h", "--rotate %v is less than a second", d.rotate)
	}
	if flight {
		return nil
	}
	rotating := d.maxSize.bytes > 0 || d.rotate > 0
	switch {
	case rotating && d.path == "-":
		return usage("name a file with -o, or let the reader of the pipe cut it", "--max-size and --rotate need files: stdout is one stream")
	case d.maxFiles > 0 && !rotating:
		return usage("say when another file begins: --max-size 100MiB or --rotate 1h", "--max-files needs --max-size or --rotate")
	case d.maxFiles == 1:
		return usage("the newest file begins as empty as every other", "--max-files 1 would keep next to nothing")
	case d.maxFiles > math.MaxInt32:
		return usage("0 keeps all", "--max-files %d is too many", d.maxFiles)
	}
	return nil
}

// options are the recorder's.
func (d *dumping) options() (recorder.Options, error) {
	o := recorder.Options{
		Path: d.path, Out: os.Stdout, Force: d.force, MaxSize: d.maxSize.bytes, MaxAge: d.rotate, MaxFiles: int(d.maxFiles), MinFree: d.minFree.bytes,
	}
	if !d.redact && d.redactKey == "" {
		return o, nil
	}
	key, err := readKey(d.redactKey)
	if err != nil {
		return o, err
	}
	o.Pseudonyms, err = dump.NewPseudonyms(key)
	if err != nil {
		return o, &failure{fmt.Errorf("the key in %s: %w", d.redactKey, err), keyHint, exitFailed}
	}
	return o, nil
}

const keyHint = "make one: (umask 077; head -c 32 /dev/urandom > KEYFILE)"

// checkBeside reports mistakes where the recording is beside something else.
func (d *dumping) checkBeside(cmd *cobra.Command) error {
	if d.path == "-" {
		return usage("name a file, or use `tcptrace record -o -`", "--record -: stdout has what watch shows")
	}
	if d.path == "" {
		for _, name := range dumpFlags {
			if cmd.Flags().Changed(name) {
				return usage("name a file for it: --record trace.tcpt", "--%s needs --record", name)
			}
		}
		return nil
	}
	return d.check(false)
}

// watchAndRecord watches, and records beside it: where that fails, watching
// goes on, and the exit status tells.
func (u *ui) watchAndRecord(ctx context.Context, w watching, d dumping, show pipeline.Show, ready func() error) error {
	o, err := d.options()
	if err != nil {
		return err
	}
	p := newConsole(u, false)
	defer p.end()
	o.Notify, o.Optional = p.notify, true
	rec, err := recorder.Open(o)
	if err != nil {
		return recordFailure(err)
	}
	defer rec.Close()
	w.record = rec
	_, err = u.watch(ctx, w, show, ready)
	if rec.Err() != nil {
		// Why was told when it happened.
		s := rec.Stats()
		p.notify(recorder.Notice{Text: fmt.Sprintf("of %s, %s", plural(s.Events, "event"), strings.Join(d.whereabouts(s), ", "))})
		if err == nil {
			return exitStatus(exitFailed)
		}
	}
	return recordFailure(err)
}

// readKey reads the key for pseudonyms, or makes one that nobody will know.
func readKey(path string) ([]byte, error) {
	if path == "" {
		key := make([]byte, 32)
		_, err := rand.Read(key)
		return key, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, &failure{fmt.Errorf("reading the key: %w", err), keyHint, exitFailed}
	}
	defer f.Close()
	const most = 64 << 10
	key, err := io.ReadAll(io.LimitReader(f, most))
	if err != nil {
		return nil, &failure{fmt.Errorf("reading the key: %w", err), "", exitFailed}
	}
	// An editor may have ended the line.
	return []byte(strings.TrimRight(string(key), "\r\n")), nil
}

// recording is what record was asked to do.
type recording struct {
	watching
	dumping
	last, after, interval time.Duration
	trigger               []string
	maxMemory             size
	spool                 string
	quiet                 bool
}

func newRecord(u *ui) *cobra.Command {
	r := recording{maxMemory: size{bytes: 256 << 20}}
	cmd := &cobra.Command{
		Use:   "record -o FILE",
		Short: "Write all events to a dump, for later",
		Long: `Write what happens to the connections of this host to a dump, with all that is
needed to find the causes later: tcptrace report FILE. A dump can be read while
it is written, and up to where it ends if tcptrace was killed. SIGINT (Ctrl-C)
and SIGTERM end the recording.

With --max-size or --rotate there are several files: -o trace.tcpt gives
trace.0001.tcpt, trace.0002.tcpt and so on.

With --last or --trigger it is a flight recorder: what happened last is kept in
memory (or in --spool), and written to a file of its own on SIGUSR1, when one of
the verdicts occurs that --trigger names ("any" is any verdict at all, "error"
and "warning" are those of that severity or worse), and at the end. -o
trace.tcpt gives trace.20260314T030000Z.reset-sent.tcpt and the like;
--max-files is how many are written at most, those of SIGUSR1 too, and
--max-size bounds the spool.

--port, --lport, --rport, --addr and --netns limit what is recorded. Which
process, state or verdict an event belongs to may be known only later: --pid,
--comm, --cgroup, --state and --code leave the dump whole, limit what triggers,
and are what report shows by default.`,
		Example: `  sudo tcptrace record -o trace.tcpt --duration 10m
  sudo tcptrace record -o /var/log/tcptrace/web.tcpt --port 443 --max-size 100MiB --max-files 20
  sudo tcptrace record -o incident.tcpt --last 10m --trigger error
  sudo tcptrace record -o - --redact | ssh other 'cat > trace.tcpt'`,
		Args: atMost(0),
	}
	flags := cmd.Flags()
	flags.StringVarP(&r.path, "output", "o", "", "`FILE` to write, - for stdout")
	flags.DurationVar(&r.duration, "duration", 0, "end after this `TIME`, such as 30s or 5m")
	r.dumping.flags(cmd)
	flags.Lookup("max-files").Usage = "keep the newest `N` files; a flight recorder: write N at most"
	flags.DurationVar(&r.last, "last", 10*time.Minute, "be a flight recorder: keep the last `TIME`")
	flags.StringSliceVar(&r.trigger, "trigger", nil, "write it when one of these `CODES` occurs; or any, error, warning")
	flags.DurationVar(&r.after, "after", 30*time.Second, "wait for what follows a trigger for this `TIME`")
	flags.DurationVar(&r.interval, "trigger-interval", time.Minute, "a trigger within this `GAP` of another makes no file")
	flags.Var(&r.maxMemory, "max-memory", "keep no more of it in memory than this `SIZE`")
	flags.StringVar(&r.spool, "spool", "", "keep it in the directory `DIR`, not in memory")
	flags.BoolVarP(&r.quiet, "quiet", "q", false, "tell only of errors")
	flags.StringVar(&r.readyFile, "ready-file", "", "create the file `PATH` once all hooks are attached")
	complete(cmd, "trigger", verdictWords()...)
	r.attachFlag(cmd)
	r.ruleFlags(cmd)
	filters := filterFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		flight, err := r.check(cmd)
		if err != nil {
			return err
		}
		if r.filter, err = parseFilter(filters); err != nil {
			return err
		}
		if err := clearReady(r.readyFile); err != nil {
			return err
		}
		r.header = dumpHeader(cmd, &r.watching)
		return u.record(cmd.Context(), r, flight)
	}
	return cmd
}

// flightFlags have a meaning only for a flight recorder. The first two make
// one.
var flightFlags = []string{"last", "trigger", "after", "trigger-interval", "max-memory", "spool"}

// check reports mistakes, and whether a flight recorder is meant.
func (r *recording) check(cmd *cobra.Command) (flight bool, err error) {
	given := func(name string) bool { return cmd.Flags().Changed(name) }
	if r.path == "" {
		return false, usage("tcptrace record -o trace.tcpt", "there is no file to write to: -o is missing")
	}
	flight = given("last") || given("trigger")
	if r.duration < 0 {
		return false, usage("a duration is written 30s, 5m or 2h", "--duration %v is negative", r.duration)
	}
	if err := r.dumping.check(flight); err != nil {
		return false, err
	}
	if !flight {
		for _, name := range flightFlags {
			if given(name) {
				return false, usage("say what it is to keep: --last 10m", "--%s is for a flight recorder: it needs --last or --trigger", name)
			}
		}
		return false, r.checkRules()
	}
	switch {
	case r.path == "-":
		return false, usage("name a file with -o", "a flight recorder writes several files: stdout is one stream")
	case given("rotate"):
		return false, usage("each trigger gives a file of its own", "--rotate is not for a flight recorder")
	case r.last < time.Second:
		return false, usage("a duration is written 30s, 10m or 1h", "--last %v is less than a second", r.last)
	case r.after < 0:
		return false, usage("a duration is written 30s, 10m or 1h", "--after %v is negative", r.after)
	case r.interval < 0:
		return false, usage("a duration is written 30s, 10m or 1h", "--trigger-interval %v is negative", r.interval)
	case r.maxMemory.bytes < recorder.MinSize:
		return false, usage("256MiB is the default", "--max-memory %s is less than 1MiB", &r.maxMemory)
	case r.spool != "" && given("max-memory"):
		return false, usage("--max-size bounds what is in --spool", "--max-memory and --spool exclude each other")
	case r.spool == "" && given("max-size"):
		return false, usage("--max-memory bounds what is in memory", "--max-size of a flight recorder needs --spool")
	case given("trigger") && len(r.trigger) == 0:
		return false, usage("codes are "+strings.Join(codes(), ", "), "--trigger needs a code")
	}
	if r.spool != "" && r.maxSize.bytes == 0 {
		r.maxSize.bytes = 1 << 30
	}
	if err := checkWords("trigger", r.trigger); err != nil {
		return false, err
	}
	return true, r.checkRules()
}

// verdictWords are what can be said of verdicts that are to have consequences.
func verdictWords() []string {
	return append([]string{failAny, string(diagnose.Error), string(diagnose.Warning)}, codes()...)
}

// checkWords trims them and reports one that does not exist.
func checkWords(flag string, given []string) error {
	words := verdictWords()
	for i, code := range given {
		code = strings.TrimSpace(code)
		given[i] = code
		if slices.Contains(words, code) {
			continue
		}
		hint := "it takes any, error, warning, or codes: " + strings.Join(codes(), ", ")
		if near := filter.Nearest(code, words); near != "" {
			hint = fmt.Sprintf("did you mean %s? %s", near, hint)
		}
		return usage(hint, "--%s %q: no such verdict", flag, code)
	}
	return nil
}

// triggers reports whether a verdict is one of those that were named.
func triggers(words []string, v *render.Verdict) bool {
	for _, w := range words {
		switch w {
		case failAny, v.Code:
			return true
		case string(diagnose.Warning):
			if v.Severity != diagnose.Info {
				return true
			}
		case string(diagnose.Error):
			if v.Severity == diagnose.Error {
				return true
			}
		}
	}
	return false
}

// dumpHeader is what a dump says of how it was asked for.
func dumpHeader(cmd *cobra.Command, w *watching) dump.Header {
	h := dump.Header{Command: os.Args, Rules: make(map[string]string), Filter: make(map[string][]string)}
	for _, t := range w.thresholds() {
		h.Rules[t.name] = t.value.String()
	}
	h.Rules[shareFlag] = strconv.FormatFloat(w.rules.TimeWait, 'g', -1, 64)
	for _, name := range []string{"port", "lport", "rport", "addr", "pid", "comm", "cgroup", "code", "state"} {
		if values, err := cmd.Flags().GetStringArray(name); err == nil && len(values) > 0 {
			h.Filter[name] = values
		}
	}
	// Paths and names mean nothing elsewhere.
	for _, inode := range w.filter.Netns {
		h.Filter["netns"] = append(h.Filter["netns"], strconv.FormatUint(uint64(inode), 10))
	}
	return h
}

// record records until it is to end, and says what came of it.
func (u *ui) record(ctx context.Context, r recording, flight bool) error {
	ctx, stop := interruptible(ctx)
	defer stop()
	o, err := r.options()
	if err != nil {
		return err
	}
	if r.path == "-" && term.IsTerminal(int(os.Stdout.Fd())) {
		return usage("write it to a file with -o, or pipe it into something", "a dump is not for a terminal")
	}
	if flight {
		o.Window = &recorder.Window{Last: r.last, After: r.after, Interval: r.interval, MaxMemory: r.maxMemory.bytes, Spool: r.spool}
	}
	p := newConsole(u, r.quiet)
	o.Notify = p.notify
	rec, err := recorder.Open(o)
	if err != nil {
		return recordFailure(err)
	}
	defer rec.Close()
	sum := newTally()
	sum.filtered = !r.filter.Empty()
	r.record, r.out = rec, sum
	if flight && len(r.trigger) > 0 {
		r.out = &triggering{Renderer: sum, words: r.trigger, rec: rec}
	}
	defer onUSR1(func() {
		if flight {
			rec.Dump()
			return
		}
		p.notify(recorder.Notice{Text: "SIGUSR1 is for a flight recorder (--last): this one writes everything as it comes"})
	})()
	_, err = u.watch(ctx, r.watching, pipeline.Show{Verdicts: true}, func() error {
		p.say(r.opening(rec, flight))
		p.begin(rec, sum, flight)
		return writeReady(r.readyFile)
	})
	p.end()
	if sum.summary == nil && err == nil {
		return nil // interrupted before anything began
	}
	if !r.quiet && sum.summary != nil {
		for _, line := range r.closing(rec.Stats(), sum, flight) {
			p.say(line)
		}
	}
	return recordFailure(err)
}

// recordFailure adds what can be done about it.
func recordFailure(err error) error {
	if err == nil {
		return nil
	}
	if hint := recorder.Hint(err); hint != "" {
		return &failure{err, hint, exitFailed}
	}
	if errors.Is(err, unix.EPIPE) {
		// Of other output that would mean that somebody has seen enough.
		return &failure{err, "whoever read the recording has gone: what came after is not kept", exitFailed}
	}
	return err
}

// opening says what is being done.
func (r *recording) opening(rec *recorder.Recorder, flight bool) string {
	if !flight {
		name := "stdout"
		if files := rec.Stats().Files; r.path != "-" && len(files) > 0 {
			name = files[len(files)-1]
		}
		return fmt.Sprintf("recording to %s; Ctrl-C ends it", name)
	}
	where := "in memory"
	if r.spool != "" {
		where = "in " + r.spool
	}
	what := "SIGUSR1"
	if len(r.trigger) > 0 {
		what += ", " + strings.Join(r.trigger, ", ")
	}
	return fmt.Sprintf("keeping the last %v %s; %s or the end writes them to files; Ctrl-C ends it", r.last, where, what)
}

// closing says what came of it.
func (r *recording) closing(s recorder.Stats, t *tally, flight bool) []string {
	var lines []string
	var line strings.Builder
	fmt.Fprintf(&line, "%s in %v", plural(s.Events, "event"), t.summary.Duration.Round(100*time.Millisecond))
	partial := s.Failed > 0 || s.Dropped > 0
	if partial {
		line.WriteString(": " + strings.Join(r.whereabouts(s), ", "))
	}
	if n := t.lost.Load(); n > 0 {
		fmt.Fprintf(&line, ", %s lost before they were told", humanize.Comma(int64(n)))
	} else if !partial {
		line.WriteString(", none lost")
	}
	if !flight {
		fmt.Fprintf(&line, "; %s", humanize.IBytes(uint64(max(s.Bytes, 0))))
		// What is kept with few events is the rest of it: the header, all sockets.
		if s.Written >= 1000 {
			fmt.Fprintf(&line, ", %.1f bytes an event", float64(s.Bytes)/float64(s.Written))
		}
	}
	lines = append(lines, line.String())
	if s.Removed > 0 {
		lines = append(lines, fmt.Sprintf("%s removed, as --max-files %d asks for", plural(uint64(s.Removed), "older file"), r.maxFiles))
	}
	// A flight recorder's files are about a part of the time.
	differ := partial || s.Removed > 0 || flight && (s.Short || t.summary.Duration > r.last)
	lines = append(lines, t.causes(differ))
	names := make([]string, len(s.Files))
	for i, f := range s.Files {
		names[i] = quoted(f)
	}
	switch most := 3; {
	case r.path == "-":
	case len(names) == 0:
		lines = append(lines, "no file was written")
	case len(names) <= most:
		lines = append(lines, "look at it with: tcptrace report "+strings.Join(names, " "))
	default:
		lines = append(lines, fmt.Sprintf("%d files, from %s to %s: tcptrace report FILE...", len(names), names[0], names[len(names)-1]))
	}
	return lines
}

// whereabouts says how many of a recording's events are where.
func (d *dumping) whereabouts(s recorder.Stats) []string {
	verb := "are"
	if s.Written == 1 {
		verb = "is"
	}
	where := verb + " in the file"
	if len(s.Files) > 1 {
		where = verb + " in the files"
	}
	if s.Removed > 0 || d.path == "-" {
		// Of a pipe nobody knows what was read.
		where = "were written"
	}
	var list []string
	// Of a flight recorder each file says it.
	if s.Written > 0 || s.Failed > 0 {
		list = append(list, humanize.Comma(int64(s.Written))+" "+where)
	}
	if s.Failed > 0 {
		list = append(list, humanize.Comma(int64(s.Failed))+" could not be written")
	}
	if s.Dropped > 0 {
		list = append(list, humanize.Comma(int64(s.Dropped))+" left out because the disk was too slow")
	}
	return list
}

// quoted is a file's name as a shell takes it.
func quoted(name string) string {
	if strings.IndexFunc(name, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-+:,@", r))
	}) < 0 && !strings.HasPrefix(name, "-") {
		return name
	}
	if strings.HasPrefix(name, "-") {
		name = "./" + name
	}
	return "'" + strings.ReplaceAll(name, "'", `'\''`) + "'"
}

func plural(n uint64, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return humanize.Comma(int64(n)) + " " + noun + "s"
}

// onUSR1 calls fn on each SIGUSR1. The returned function ends that.
func onUSR1(fn func()) func() {
	ch := make(chan os.Signal, 1)
	done := make(chan struct{})
	signal.Notify(ch, unix.SIGUSR1)
	go func() {
		for {
			select {
			case <-ch:
				fn()
			case <-done:
				return
			}
		}
	}()
	return func() {
		signal.Stop(ch)
		close(done)
	}
}

// triggering has a flight recorder write when a verdict first holds, or grows.
type triggering struct {
	render.Renderer
	words []string
	rec   *recorder.Recorder
}

func (t *triggering) Verdict(v *render.Verdict) error {
	if (v.Phase != diagnose.PhaseFinal || v.Count > v.Since) && triggers(t.words, v) {
		t.rec.Trigger(v.Code)
	}
	return t.Renderer.Verdict(v)
}

// tally is a renderer that shows nothing and counts.
type tally struct {
	worst   map[string]*render.Verdict // of a code; only how bad and how sure it is
	summary *render.Summary
	lost    atomic.Uint64

	filtered bool // it is told of a part of the verdicts only
}

func newTally() *tally { return &tally{worst: make(map[string]*render.Verdict)} }

func (t *tally) Start(*render.Start) error           { return nil }
func (t *tally) Namespace(event.Namespace)           {}
func (t *tally) Event(*render.Event) error           { return nil }
func (t *tally) Connection(*render.Connection) error { return nil }
func (t *tally) Flush() error                        { return nil }

func (t *tally) Lost(l *render.Lost) error {
	t.lost.Add(l.Count)
	return nil
}

func (t *tally) Verdict(v *render.Verdict) error {
	// How many comes later, so that it does not matter here.
	one := &render.Verdict{Verdict: &diagnose.Verdict{Code: v.Code, Severity: v.Severity, Confidence: v.Confidence}}
	if have, ok := t.worst[v.Code]; !ok || render.ByHarm(one, have) < 0 {
		t.worst[v.Code] = one
	}
	return nil
}

// Summary has the last word on each verdict.
func (t *tally) Summary(s *render.Summary) error {
	t.summary = s
	for _, v := range s.Final {
		delete(t.worst, v.Code)
	}
	for _, v := range s.Final {
		if err := t.Verdict(v); err != nil {
			return err
		}
	}
	return nil
}

// causes names them in the order of a report. differ says that the files do
// not have all that they were found in.
func (t *tally) causes(differ bool) string {
	var list []*render.Verdict
	for code, n := range t.summary.Verdicts {
		v := diagnose.Verdict{Code: code, Severity: diagnose.Info}
		if worst, ok := t.worst[code]; ok {
			v = *worst.Verdict
		}
		v.Count = n
		list = append(list, &render.Verdict{Verdict: &v})
	}
	missing := ""
	if t.lost.Load() > 0 {
		missing = "; some may be missing, since events were lost"
	}
	if len(list) == 0 {
		if t.filtered {
			return "no causes found in what the filters let through" + missing
		}
		return "no causes found" + missing
	}
	slices.SortFunc(list, func(a, b *render.Verdict) int { return cmp.Or(render.ByHarm(a, b), cmp.Compare(a.Code, b.Code)) })
	words := make([]string, len(list))
	for i, v := range list {
		words[i] = fmt.Sprintf("%s %s%s", v.Code, humanize.Comma(int64(v.Count)), t.severities(v.Code, v.Count))
	}
	what := "causes: "
	if differ {
		what = "causes of all that was seen, which is more than what was written: "
	}
	return what + strings.Join(words, ", ") + missing
}

// severities says how many of a code are how bad, where they differ.
func (t *tally) severities(code string, total uint64) string {
	counts := make(map[diagnose.Severity]uint64)
	var sum uint64
	for _, v := range t.summary.Final {
		if v.Code == code {
			counts[v.Severity] += v.Count
			sum += v.Count
		}
	}
	if len(counts) < 2 {
		return ""
	}
	var list []string
	for _, s := range []diagnose.Severity{diagnose.Error, diagnose.Warning, diagnose.Info} {
		if n := counts[s]; n > 0 {
			list = append(list, fmt.Sprintf("%s %s", humanize.Comma(int64(n)), s))
		}
	}
	if total > sum {
		list = append(list, humanize.Comma(int64(total-sum))+" more") // final verdicts are bounded
	}
	return " (" + strings.Join(list, ", ") + ")"
}

// console writes to stderr what is worth it while something else goes on. Its
// goroutine is the only one that may have to wait for a terminal.
type console struct {
	u       *ui
	quiet   bool
	live    bool // stderr is a terminal that can redraw a line
	width   int
	notices chan recorder.Notice
	missed  atomic.Uint64
	stop    chan struct{}
	done    sync.WaitGroup
	drawn   bool
	mu      sync.Mutex // guards what is written
}

func newConsole(u *ui, quiet bool) *console {
	p := &console{u: u, quiet: quiet, notices: make(chan recorder.Notice, 64), stop: make(chan struct{}), width: 80}
	if f, ok := u.err.(*os.File); ok && !quiet && term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb" {
		p.live = true
		if w, _, err := term.GetSize(int(f.Fd())); err == nil && w > 0 {
			p.width = w
		}
	}
	p.done.Add(1)
	go p.tell()
	return p
}

// notify takes a notice without waiting.
func (p *console) notify(n recorder.Notice) {
	select {
	case p.notices <- n:
	default:
		p.missed.Add(1)
	}
}

// tell writes notices as they come, until the end.
func (p *console) tell() {
	defer p.done.Done()
	for {
		select {
		case n := <-p.notices:
			p.write(n)
		case <-p.stop:
			for {
				select {
				case n := <-p.notices:
					p.write(n)
				default:
					return
				}
			}
		}
	}
}

func (p *console) write(n recorder.Notice) {
	if n.Failed {
		p.clear()
		p.u.complain("error", n.Text)
		if n.Hint != "" {
			p.u.complain("hint", n.Hint)
		}
		return
	}
	p.say(n.Text)
}

// say writes a line.
func (p *console) say(text string) {
	if p.quiet {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.erase()
	for _, line := range render.Wrap(render.Safe(text), p.width) {
		fmt.Fprintln(p.u.err, line)
	}
}

func (p *console) clear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.erase()
}

func (p *console) erase() {
	if p.drawn {
		fmt.Fprint(p.u.err, "\r\x1b[K")
		p.drawn = false
	}
}

// begin draws a line once a second, on a terminal.
func (p *console) begin(rec *recorder.Recorder, t *tally, flight bool) {
	if !p.live {
		return
	}
	p.done.Add(1)
	go func() {
		defer p.done.Done()
		began := time.Now()
		ticker := time.NewTicker(time.Second)
		defer ticker.Stop()
		var was recorder.Stats
		for {
			select {
			case <-p.stop:
				return
			case <-ticker.C:
			}
			s := rec.Stats()
			line := fmt.Sprintf("%v  %s, %s/s", time.Since(began).Round(time.Second), plural(s.Events, "event"), humanize.Comma(int64(s.Events-was.Events)))
			if flight {
				line += fmt.Sprintf("  last %v: %s  %s written", s.Span.Round(time.Second), humanize.IBytes(uint64(s.Held)), plural(uint64(len(s.Files)), "file"))
			} else {
				line += "  " + humanize.IBytes(uint64(s.Bytes))
			}
			line += "  lost " + humanize.Comma(int64(t.lost.Load()+s.Dropped))
			was = s
			p.mu.Lock()
			fmt.Fprint(p.u.err, "\r\x1b[K"+line[:min(len(line), p.width-1)])
			p.drawn = true
			p.mu.Unlock()
		}
	}()
}

// end waits until all is written.
func (p *console) end() {
	close(p.stop)
	p.done.Wait()
	p.clear()
	if n := p.missed.Load(); n > 0 {
		p.say(plural(n, "more notice") + " not shown: they came faster than stderr takes them")
	}
}
