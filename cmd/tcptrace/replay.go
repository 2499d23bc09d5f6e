package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/tcptrace/tcptrace/internal/diagnose"
	"github.com/tcptrace/tcptrace/internal/dump"
	"github.com/tcptrace/tcptrace/internal/filter"
	"github.com/tcptrace/tcptrace/internal/pipeline"
	"github.com/tcptrace/tcptrace/internal/render"
)

// replaying is what report and export have in common: dumps, and which part of
// what they tell is wanted.
type replaying struct {
	watching   // the rules; the filter is made for each recording
	cmd        *cobra.Command
	filters    *filter.Flags
	unfiltered bool
	since      string
	until      string
	// skip, if not nil, is told of recordings that cannot be gone through, or not
	// to their end, unless none can: the others are gone through.
	skip func(error)
}

func (r *replaying) flags(cmd *cobra.Command) {
	r.cmd = cmd
	r.filters = filterFlags(cmd)
	flags := cmd.Flags()
	flags.BoolVar(&r.unfiltered, "unfiltered", false, "also what a filter of the recording left to be left out")
	flags.StringVar(&r.since, "since", "", "leave out what was over before `TIME`, such as 03:10, +5m or RFC 3339")
	flags.StringVar(&r.until, "until", "", "stop at `TIME`, as if the recording had ended there")
	r.ruleFlags(cmd)
}

// checkFiles reports a mistake in which files are named.
func checkFiles(files []string) error {
	stdin := 0
	for _, name := range files {
		if name == "-" {
			stdin++
		}
	}
	if stdin > 1 {
		return usage("stdin can be read once", "- is named twice")
	}
	return nil
}

// checkOutput reports that a file to write, which a flag names, is one of those
// to read: --force is not meant for it.
func checkOutput(path, flag string, files []string) error {
	there, err := os.Lstat(path)
	if err != nil {
		return nil // it is not there, or making it tells more
	}
	for _, name := range files {
		if name == "-" {
			name = "/dev/stdin"
		}
		if in, err := os.Stat(name); err == nil && os.SameFile(in, there) {
			return usage("name another file with "+flag, "%s is the dump that is to be read", path)
		}
	}
	return nil
}

// input is an open dump.
type input struct {
	file *os.File
	pipeline.Part
}

// open opens dumps and puts the parts of recordings together. close is not nil.
// Where skip is not nil, it is told of files that are no dumps, or parts that are
// there already, unless none is a dump.
func (r *replaying) open(files []string, through func(io.Reader) io.Reader, skip func(error)) (list []pipeline.Recording, close func(), err error) {
	var inputs []input
	close = func() {
		for _, in := range inputs {
			in.file.Close()
		}
	}
	var parts []pipeline.Part
	var bad []error
	for _, name := range files {
		in, err := openDump(name, through)
		if err != nil {
			bad = append(bad, err)
			continue
		}
		inputs = append(inputs, in)
		parts = append(parts, in.Part)
	}
	list, twice := pipeline.Recordings(parts)
	for _, err := range twice {
		bad = append(bad, &failure{err, "name each file once", exitUsage})
	}
	if len(bad) > 0 && (skip == nil || len(parts) == 0) {
		return nil, close, bad[0]
	}
	for _, err := range bad {
		skip(err)
	}
	return list, close, nil
}

// openDump opens one; "-" is stdin.
func openDump(name string, through func(io.Reader) io.Reader) (input, error) {
	in := input{file: os.Stdin}
	in.Name = "stdin"
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return in, err
		}
		if st, err := f.Stat(); err == nil && st.IsDir() {
			f.Close()
			return in, &failure{fmt.Errorf("%s is a directory", name), "name the files in it: " + filepath.Join(name, "*"+dump.Extension), exitUsage}
		}
		in.file, in.Name = f, name
	} else if term.IsTerminal(int(os.Stdin.Fd())) {
		return in, usage("a dump is binary: pipe one in, or name a file", "stdin is a terminal")
	}
	var err error
	in.Reader, err = dump.NewReader(through(in.file))
	if err == nil {
		return in, nil
	}
	if name != "-" {
		in.file.Close()
	}
	err = fmt.Errorf("%s: %w", in.Name, err)
	switch {
	case errors.Is(err, dump.ErrNewer):
		return in, &failure{err, "read it with the tcptrace that wrote it, or a newer one", exitFailed}
	case errors.Is(err, dump.ErrNotDump):
		return in, &failure{err, "`tcptrace record -o FILE` writes dumps", exitFailed}
	}
	return in, err
}

// headerError is what in a dump's header this version cannot go by.
type headerError struct {
	err  error
	hint string // what leads past it
}

func (e *headerError) Error() string { return e.err.Error() }

// config is how a recording is gone through again: with its own thresholds and
// filters but for those that were given. What of them this version passes over
// is told in a remark. A [*headerError] is about this recording, others are about
// the command line.
func (r *replaying) config(rec *pipeline.Recording) (cfg pipeline.ReplayConfig, remark string, err error) {
	h := rec.Header()
	if cfg.Diagnose, err = r.thresholdsOf(h); err != nil {
		return cfg, "", err
	}
	env := filter.Environment{
		Codes: codes(),
		// The names are those of the host that was recorded, and told in the dump.
		Netns: func(spec string) (uint32, error) {
			if inode, err := strconv.ParseUint(spec, 10, 32); err == nil {
				return uint32(inode), nil
			}
			cfg.Spaces = append(cfg.Spaces, strings.TrimPrefix(filepath.Base(spec), "/"))
			return 0, nil
		},
	}
	if cfg.Filter, err = filter.Parse(*r.filters, env); err != nil {
		return cfg, "", err
	}
	if !r.unfiltered {
		flags := *r.filters
		if remark, err = recorded(&flags, h, env.Codes); err == nil {
			cfg.Spaces = nil
			cfg.Filter, err = filter.Parse(flags, env)
		}
		if err != nil {
			return cfg, "", &headerError{fmt.Errorf("the filters in the dump's header: %w", err), "--unfiltered passes them over"}
		}
	}
	began := rec.Began()
	if cfg.Since, err = when(r.since, "since", began); err != nil {
		return cfg, "", err
	}
	if cfg.Until, err = when(r.until, "until", began); err != nil {
		return cfg, "", err
	}
	if cfg.Since != 0 && cfg.Until != 0 && cfg.Until < cfg.Since {
		return cfg, "", usage("--since comes first", "--until %s is before --since %s", r.until, r.since)
	}
	return cfg, remark, nil
}

// thresholdsOf are the recording's own but for those that were given.
func (r *replaying) thresholdsOf(h *dump.Header) (diagnose.Options, error) {
	w := r.watching
	for _, t := range w.thresholds() {
		said, ok := h.Rules[t.name]
		if !ok || r.cmd.Flags().Changed(t.name) {
			continue
		}
		d, err := time.ParseDuration(said)
		if err != nil || d <= 0 {
			return w.rules, badThreshold(t.name, said)
		}
		*t.value = d
	}
	if said, ok := h.Rules[shareFlag]; ok && !r.cmd.Flags().Changed(shareFlag) {
		v, err := strconv.ParseFloat(said, 64)
		if err != nil || !isShare(v) {
			return w.rules, badThreshold(shareFlag, said)
		}
		w.rules.TimeWait = v
	}
	return w.rules, nil
}

func badThreshold(flag, said string) error {
	return &headerError{fmt.Errorf("the dump's header has %q for --%s", said, flag), "give --" + flag + " here to replace it"}
}

// maxValues bounds the values of a filter in a header: all are looked through
// with each event.
const maxValues = 1024

// recorded adds the recording's own filters, of the kinds that were not given.
// It leaves out verdicts other than these, of another version, and remarks on
// the first.
func recorded(f *filter.Flags, h *dump.Header, codes []string) (remark string, err error) {
	own := len(f.Code) > 0
	for flag, to := range map[string]*[]string{
		"port": &f.Port, "lport": &f.LocalPort, "rport": &f.RemotePort, "addr": &f.Addr, "pid": &f.PID, "comm": &f.Comm,
		"netns": &f.Netns, "cgroup": &f.Cgroup, "code": &f.Code, "state": &f.State,
	} {
		if len(*to) > 0 {
			continue
		}
		*to = slices.Clone(h.Filter[flag])
		n := len(*to)
		for _, v := range *to {
			n += strings.Count(v, ",")
		}
		if n > maxValues {
			return "", fmt.Errorf("--%s has %d values, more than %d", flag, n, maxValues)
		}
	}
	if own {
		return "", nil
	}
	var known []string
	for code := range strings.SplitSeq(strings.Join(f.Code, ","), ",") {
		if code = strings.TrimSpace(code); slices.Contains(codes, code) {
			known = append(known, code)
		} else if code != "" && remark == "" {
			remark = fmt.Sprintf("the recording's own filter --code %s is passed over: this tcptrace knows no such verdict", code)
		}
	}
	f.Code = known
	return remark, nil
}

// when reads a time. One without a date is that of the first day on which what
// there is of the recording, which began then, had it.
func when(s, flag string, start render.Stamp) (render.Stamp, error) {
	if s == "" {
		return 0, nil
	}
	began := start.Time().Local()
	if after, ok := strings.CutPrefix(s, "+"); ok {
		if d, err := time.ParseDuration(after); err == nil && d >= 0 {
			return render.Stamp(began.Add(d).UnixNano()), nil
		}
	}
	if t, err := time.Parse(time.RFC3339Nano, s); err == nil {
		return render.Stamp(t.UnixNano()), nil
	}
	for _, layout := range []string{"2006-01-02 15:04:05", "2006-01-02 15:04", "2006-01-02T15:04:05", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return render.Stamp(t.UnixNano()), nil
		}
	}
	for _, day := range []struct {
		layout string
		unit   time.Duration // which may have begun before
	}{{"15:04:05", time.Second}, {"15:04", time.Minute}} {
		t, err := time.ParseInLocation(day.layout, s, time.Local)
		if err != nil {
			continue
		}
		at := time.Date(began.Year(), began.Month(), began.Day(), t.Hour(), t.Minute(), t.Second(), t.Nanosecond(), time.Local)
		if at.Before(began.Truncate(day.unit)) {
			at = at.AddDate(0, 0, 1)
		}
		return render.Stamp(at.UnixNano()), nil
	}
	return 0, usage("write 03:10, 03:10:20, 2026-11-22 03:10, RFC 3339 with its zone, or +5m for 5 minutes after the beginning", "--%s %q: no time", flag, s)
}

// progress shows how far files were read, on a terminal, when it takes more
// than a second. through is what they are read through.
func (u *ui) progress(files []string) (through func(io.Reader) io.Reader, done func()) {
	same := func(r io.Reader) io.Reader { return r }
	f, ok := u.err.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return same, func() {}
	}
	total := int64(0)
	for _, name := range files {
		st, err := os.Stat(name)
		if err != nil || !st.Mode().IsRegular() {
			total = -1 // a spinner
			break
		}
		total += st.Size()
	}
	began := time.Now()
	var bar *progressbar.ProgressBar
	read := int64(0)
	return func(r io.Reader) io.Reader {
			return readerFunc(func(p []byte) (int, error) {
				n, err := r.Read(p)
				read += int64(n)
				if bar == nil && time.Since(began) > time.Second {
					bar = progressbar.NewOptions64(total, progressbar.OptionSetWriter(f), progressbar.OptionShowBytes(true),
						progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish(), progressbar.OptionSetDescription("reading"))
				}
				if bar != nil {
					_ = bar.Set64(read) // only its own drawing can fail
				}
				return n, err
			})
		}, func() {
			if bar != nil {
				_ = bar.Finish()
				_ = bar.Clear()
			}
		}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// replayAll goes through recordings one after the other. Before each, before
// says what is shown of it; then after is told what came of it.
func (r *replaying) replayAll(ctx context.Context, list []pipeline.Recording, before func(*dump.Header, *pipeline.ReplayConfig),
	after func(*pipeline.ReplayConfig, *pipeline.Replayed) error) error {
	var bad []error
	shown := false
	for _, rec := range list {
		cfg, remark, err := r.config(&rec)
		var header *headerError
		if errors.As(err, &header) {
			bad = append(bad, &failure{fmt.Errorf("%s: %w", rec.Parts[0].Name, header.err), header.hint, exitFailed})
			if r.skip == nil {
				return bad[0]
			}
			continue
		}
		if err != nil {
			return err
		}
		before(rec.Header(), &cfg)
		got, err := pipeline.Replay(ctx, cfg, rec)
		var unread *pipeline.UnreadError
		if errors.As(err, &unread) && r.skip != nil {
			bad, err = append(bad, err), nil
		}
		if err != nil {
			return err
		}
		shown = true
		if remark != "" {
			got.Problems = append([]string{remark}, got.Problems...)
		}
		if err := after(&cfg, got); err != nil {
			return err
		}
	}
	if len(bad) > 0 && !shown {
		return bad[0]
	}
	for _, err := range bad {
		r.skip(err)
	}
	return nil
}
