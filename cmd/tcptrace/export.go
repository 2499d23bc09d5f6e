package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/diagnose"
	"github.com/tcptrace/tcptrace/internal/dump"
	"github.com/tcptrace/tcptrace/internal/export"
	"github.com/tcptrace/tcptrace/internal/filter"
	"github.com/tcptrace/tcptrace/internal/outfile"
	"github.com/tcptrace/tcptrace/internal/pipeline"
	"github.com/tcptrace/tcptrace/internal/render"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// exporting is what the command line of export asks for.
type exporting struct {
	format       string
	out          string // "" and "-": stdout
	force        bool
	since, until moment
	filter       filter.Filter
	spaces       []string // network namespaces by name
}

func newExport(u *ui) *cobra.Command {
	var x exporting
	cmd := &cobra.Command{
		Use:   "export FILE...",
		Short: "Turn dumps into data for other tools",
		Long: `Turn dumps into data for other tools: JSON lines, tables in Parquet files for
DuckDB, pandas and the like, or a trace for ui.perfetto.dev. FILE - is stdin.
Several dumps, also of several hosts, become one export. docs/export.md lists
the columns.`,
		Example: `  tcptrace export trace.tcpt | jq 'select(.type == "verdict")'
  tcptrace export *.tcpt --format parquet -o tables
  tcptrace export trace.tcpt --format perfetto --rport 5432 -o trace.json`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usage(fmt.Sprintf("name a dump, or - for stdin; `%s --help` tells how it is used", cmd.CommandPath()), "no dump is named")
			}
			return nil
		},
	}
	formats := []string{"json", "parquet", "perfetto"}
	flags := cmd.Flags()
	flags.Var(newChoice(&x.format, "json", formats...), "format", "`FORMAT`: json, parquet or perfetto")
	complete(cmd, "format", formats...)
	flags.StringVarP(&x.out, "output", "o", "", "write to `FILE`, with parquet a directory; - is stdout")
	flags.BoolVar(&x.force, "force", false, "replace files that are there")
	momentFlags(cmd, &x.since, &x.until)
	filters := filterFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) (err error) {
		if x.filter, x.spaces, err = parseDumpFilter(filters); err != nil {
			return err
		}
		ctx, stop := interruptible(cmd.Context())
		defer stop()
		return outputFailure(u.export(ctx, x, args))
	}
	return cmd
}

// export reads the dumps and writes what was asked for, all of it or nothing.
func (u *ui) export(ctx context.Context, x exporting, paths []string) error {
	in, err := openDumps(paths)
	if err != nil {
		return err
	}
	defer in.close()
	sink, out, err := u.sink(x, in)
	if err != nil {
		return err
	}
	defer out.abort()
	for _, rec := range in.recordings {
		h := rec.Header()
		rules, err := recordedRules(h)
		if err != nil {
			return fmt.Errorf("%s: %w", rec.Parts[0].Name, err)
		}
		sink.Capabilities(h.Capabilities)
		done, err := pipeline.Replay(ctx, pipeline.ReplayConfig{
			Options: pipeline.Options{
				Out:    sink,
				Show:   pipeline.Show{Verdicts: true, Connections: true, Events: x.format == "json", All: true},
				Filter: x.filter, Spaces: x.spaces, Diagnose: rules, Since: x.since.in(h), Raw: raw(x, sink),
			},
			Until: x.until.in(h),
		}, rec)
		if done != nil {
			for _, p := range done.Problems {
				u.complain("warning", p)
			}
		}
		if errors.Is(err, context.Canceled) {
			hint := "what went to stdout is not the whole"
			if out.named() {
				hint = "nothing was written to " + x.out
			}
			return errors.Join(sink.Close(), &failure{errors.New("interrupted"), hint, exitFailed})
		}
		if err != nil {
			return err
		}
	}
	if err := sink.Close(); err != nil {
		return err
	}
	return out.commit()
}

// raw is nil where nobody asks for raw events: telling of them costs.
func raw(x exporting, sink export.Sink) func(*event.Event, render.Stamp, string) {
	if x.format == "json" {
		return nil
	}
	return sink.Raw
}

// tables are the files of a Parquet export, in the order of [export.NewParquet].
var tables = [...]string{"events.parquet", "connections.parquet", "verdicts.parquet"}

// sink makes the sink and the files that it writes to.
func (u *ui) sink(x exporting, in *dumps) (_ export.Sink, _ *outputs, err error) {
	out := new(outputs)
	defer func() {
		if err != nil {
			out.abort()
		}
	}()
	if x.format == "parquet" {
		if x.out == "" || x.out == "-" {
			return nil, nil, usage("name a directory for them: -o DIR", "parquet is three files, which stdout cannot take")
		}
		if err := out.directory(x.out); err != nil {
			return nil, nil, err
		}
		var w [len(tables)]io.Writer
		for i, name := range tables {
			if w[i], err = out.create(filepath.Join(x.out, name), x.force, in); err != nil {
				return nil, nil, err
			}
		}
		return export.NewParquet(w[0], w[1], w[2]), out, nil
	}
	w := u.out
	if x.out != "" && x.out != "-" {
		if w, err = out.create(x.out, x.force, in); err != nil {
			return nil, nil, err
		}
	}
	if x.format == "perfetto" {
		return export.NewPerfetto(w), out, nil
	}
	return export.NewJSON(w), out, nil
}

// outputs are files that are to appear together.
type outputs struct {
	files []*outfile.File
	made  string // the directory that was made for them, "" none
	done  bool
}

func (o *outputs) named() bool { return len(o.files) > 0 }

// directory makes one that only its owner can look into, if it is not there.
func (o *outputs) directory(path string) error {
	path = filepath.Clean(path)
	switch info, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
		if err := os.Mkdir(path, 0o700); err != nil {
			return &failure{fmt.Errorf("making the directory: %w", err), "create the directory above it first: mkdir -p " + filepath.Dir(path), exitFailed}
		}
		o.made = path
		return nil
	case err != nil:
		return fmt.Errorf("looking for the directory: %w", err)
	case info.Mode()&fs.ModeSymlink != 0:
		// Whoever may write beside it can have put it there.
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return fmt.Errorf("looking for the directory: %w", err)
		}
		if int(st.Uid) != os.Geteuid() {
			return &failure{fmt.Errorf("%s is a symbolic link of somebody else, and is not followed", path), "name the directory that is meant", exitFailed}
		}
	case !info.IsDir():
		return &failure{fmt.Errorf("%s is not a directory", path), "parquet is three files: name a directory for them", exitFailed}
	}
	return nil
}

func (o *outputs) create(path string, force bool, in *dumps) (io.Writer, error) {
	if in.has(path) {
		return nil, usage("name another file with -o", "%s is the dump that is to be read", path)
	}
	f, err := outfile.Create(path, force)
	if err != nil {
		return nil, err
	}
	o.files = append(o.files, f)
	return f, nil
}

func (o *outputs) commit() error {
	for _, f := range o.files {
		if err := f.Commit(); err != nil {
			return err
		}
	}
	o.done = true
	return nil
}

// abort removes what is not whole. After commit it does nothing.
func (o *outputs) abort() {
	if o.done {
		return
	}
	for _, f := range o.files {
		f.Abort()
	}
	if o.made != "" {
		_ = os.Remove(o.made) // it stays if there is something in it
	}
}

// outputFailure adds to the refusal of a file what to do about it.
func outputFailure(err error) error {
	var refused *outfile.Error
	if errors.As(err, &refused) && refused.Hint != "" {
		return &failure{err, refused.Hint, exitFailed}
	}
	return err
}

// dumps are files that are open.
type dumps struct {
	recordings []pipeline.Recording
	files      []*os.File
	readers    []*dump.Reader
}

// openDumps opens dumps and puts the parts of each recording together.
func openDumps(paths []string) (_ *dumps, err error) {
	d := new(dumps)
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	var parts []pipeline.Part
	for _, path := range paths {
		f, name := os.Stdin, "stdin"
		if path == "-" {
			for _, have := range d.files {
				if have == os.Stdin {
					return nil, usage("name - once", "stdin can be read once")
				}
			}
		} else {
			if f, err = os.Open(path); err != nil {
				return nil, fmt.Errorf("opening a dump: %w", err)
			}
			name = path
		}
		d.files = append(d.files, f)
		r, err := dump.NewReader(f)
		if err != nil {
			return nil, notADump(name, err)
		}
		d.readers = append(d.readers, r)
		parts = append(parts, pipeline.Part{Name: name, Reader: r})
	}
	if d.recordings, err = pipeline.Recordings(parts); err != nil {
		if errors.Is(err, pipeline.ErrSamePart) {
			return nil, usage("name each file once", "%w", err)
		}
		return nil, err
	}
	return d, nil
}

func notADump(name string, err error) error {
	err = fmt.Errorf("reading %s: %w", name, err)
	switch {
	case errors.Is(err, dump.ErrNewer):
		return &failure{err, "read it with the version of tcptrace that wrote it, or a newer one", exitFailed}
	case errors.Is(err, dump.ErrNotDump):
		return &failure{err, "dumps are made by `tcptrace record -o FILE`", exitFailed}
	}
	return err
}

// has reports whether a path is that of one of the files.
func (d *dumps) has(path string) bool {
	info, err := os.Lstat(path)
	if err != nil {
		return false
	}
	for _, f := range d.files {
		if have, err := f.Stat(); err == nil && os.SameFile(have, info) {
			return true
		}
	}
	return false
}

func (d *dumps) close() {
	for _, r := range d.readers {
		r.Close()
	}
	for _, f := range d.files {
		if f != os.Stdin {
			f.Close()
		}
	}
}

// recordedRules are the thresholds with which a dump was made: the same
// verdicts come of it.
func recordedRules(h *dump.Header) (diagnose.Options, error) {
	var w watching
	cmd := new(cobra.Command)
	w.ruleFlags(cmd)
	for name, value := range h.Rules {
		// A later version may have some that this one does not know.
		if cmd.Flags().Lookup(name) == nil {
			continue
		}
		if err := cmd.Flags().Set(name, value); err != nil {
			return w.rules, fmt.Errorf("reading the thresholds of the recording: %w", err)
		}
	}
	if err := w.checkRules(); err != nil {
		return w.rules, fmt.Errorf("reading the thresholds of the recording: %w", err)
	}
	return w.rules, nil
}

// parseDumpFilter reads the filters for a dump, which may be from elsewhere:
// this host's namespaces say nothing about it. Those that are given by name are
// returned beside.
func parseDumpFilter(f *filter.Flags) (filter.Filter, []string, error) {
	var spaces []string
	parsed, err := filter.Parse(*f, filter.Environment{
		Codes: codes(),
		Netns: func(spec string) (uint32, error) {
			if strings.Contains(spec, "/") {
				spec = filepath.Base(spec) // as under /run/netns
			}
			if n, err := strconv.ParseUint(spec, 10, 32); err == nil {
				return uint32(n), nil
			}
			spaces = append(spaces, spec)
			return 0, nil // of which there is none
		},
	})
	return parsed, spaces, err
}

// moment is a time that a user gave: one of a day, or one of the day of the
// recording.
type moment struct {
	text  string
	at    time.Time
	clock bool // only the time of day is meant
}

var _ pflag.Value = (*moment)(nil)

func momentFlags(cmd *cobra.Command, since, until *moment) {
	cmd.Flags().Var(since, "since", "leave out what was over before this `TIME`, such as 03:15 or 2026-03-01T03:15:00Z")
	cmd.Flags().Var(until, "until", "stop at this `TIME`, as if the recording had ended there")
}

func (m *moment) String() string { return m.text }
func (m *moment) Type() string   { return "time" }

// Set reads RFC 3339, or a date and time, or a time of day, both of this host's
// zone.
func (m *moment) Set(s string) error {
	for _, layout := range []string{"15:04", "15:04:05"} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			*m = moment{s, t, true}
			return nil
		}
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02 15:04:05", "2006-01-02T15:04:05", "2006-01-02 15:04", "2006-01-02T15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			*m = moment{s, t, false}
			return nil
		}
	}
	return errors.New("a time is written 03:15, 03:15:30, '2026-03-01 03:15' or 2026-03-01T03:15:00Z")
}

// in is the moment in a recording, 0 if none was given. A time of day is the
// first that is not before the recording's begin, to the minute.
func (m *moment) in(h *dump.Header) render.Stamp {
	if m.text == "" {
		return 0
	}
	if !m.clock {
		return render.Stamp(m.at.UnixNano())
	}
	began := time.Unix(0, h.Started).In(time.Local)
	t := time.Date(began.Year(), began.Month(), began.Day(), m.at.Hour(), m.at.Minute(), m.at.Second(), 0, time.Local)
	if t.Before(began.Truncate(time.Minute)) {
		t = time.Date(began.Year(), began.Month(), began.Day()+1, m.at.Hour(), m.at.Minute(), m.at.Second(), 0, time.Local)
	}
	return render.Stamp(t.UnixNano())
}
