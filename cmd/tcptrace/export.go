package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/dump"
	"github.com/tcptrace/tcptrace/internal/export"
	"github.com/tcptrace/tcptrace/internal/outfile"
	"github.com/tcptrace/tcptrace/internal/pipeline"
)

// exporting is what the command line of export asks for.
type exporting struct {
	replaying
	files  []string
	format string
	out    string // "" and "-": stdout
	force  bool
}

func newExport(u *ui) *cobra.Command {
	var x exporting
	cmd := &cobra.Command{
		Use:   "export [flags] FILE...",
		Short: "Turn dumps into data for other tools",
		Long: `Turn dumps into data for other tools: JSON lines, tables in Parquet files for
DuckDB, pandas and the like, or a trace for ui.perfetto.dev. Several files are
several parts of a recording, or recordings of several hosts, and become one
export; - is stdin. Thresholds and filters are those of the recording unless
they are given here. docs/export.md lists the columns.`,
		Example: `  tcptrace export trace.tcpt | jq 'select(.type == "verdict")'
  tcptrace export web1.tcpt web2.tcpt --format parquet -o tables
  tcptrace export trace.tcpt --format perfetto --rport 5432 -o trace.json`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usage("name a dump: tcptrace export trace.tcpt; or pipe one into: tcptrace export -", "there is no file to export")
			}
			return nil
		},
	}
	formats := []string{"json", "parquet", "perfetto"}
	flags := cmd.Flags()
	flags.Var(newChoice(&x.format, "json", formats...), "format", "`FORMAT`: json, parquet or perfetto")
	complete(cmd, "format", formats...)
	flags.StringVarP(&x.out, "output", "o", "", "write to `FILE`, with parquet a directory; - is stdout")
	flags.BoolVar(&x.force, "force", false, "replace files that exist")
	x.flags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		x.files = args
		if err := x.check(); err != nil {
			return err
		}
		ctx, stop := interruptible(cmd.Context())
		defer stop()
		return u.export(ctx, &x)
	}
	return cmd
}

func (x *exporting) check() error {
	if err := checkFiles(x.files); err != nil {
		return err
	}
	if x.format == "parquet" && x.stdout() {
		return usage("name a directory for them: -o DIR", "parquet is three files, which stdout cannot take")
	}
	if x.force && x.stdout() {
		return usage("name a file with -o", "--force needs -o")
	}
	return x.checkRules()
}

func (x *exporting) stdout() bool { return x.out == "" || x.out == "-" }

// export reads the dumps and writes what was asked for. What goes to files is
// written as a whole or not at all.
func (u *ui) export(ctx context.Context, x *exporting) error {
	through, done := u.progress(x.files)
	defer done()
	list, closeAll, err := x.open(x.files, through, nil)
	defer closeAll()
	if err != nil {
		return err
	}
	sink, out, err := u.sink(x)
	if err != nil {
		return err
	}
	defer out.abort()
	var problems []string
	err = x.replayAll(ctx, list, func(h *dump.Header, cfg *pipeline.ReplayConfig) {
		sink.Capabilities(h.Capabilities)
		cfg.Out = sink
		cfg.Show = pipeline.Show{Verdicts: true, Connections: true, All: true}
		if x.format == "json" {
			cfg.Show.Events = true // and raw ones it does not write
		} else {
			cfg.Show.Open, cfg.Raw = true, sink.Raw
		}
	}, func(_ *pipeline.ReplayConfig, got *pipeline.Replayed) error {
		problems = append(problems, got.Problems...)
		return nil
	})
	if err != nil && out.named() {
		done()
		if errors.Is(err, context.Canceled) {
			return &failure{errors.New("interrupted"), "nothing was written to " + x.out, exitFailed}
		}
		return err
	}
	// What went to stdout is to be read as far as it goes.
	if cerr := sink.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = out.commit()
	}
	done()
	for _, p := range problems {
		u.complain("warning", p)
	}
	if errors.Is(err, context.Canceled) {
		return &failure{errors.New("interrupted"), "what was written is not the whole", exitFailed}
	}
	return err
}

// tables are the files of a Parquet export, in the order of [export.NewParquet].
var tables = [...]string{"events.parquet", "connections.parquet", "verdicts.parquet"}

// sink makes the sink and the files that it writes to.
func (u *ui) sink(x *exporting) (_ export.Sink, _ *outputs, err error) {
	out := new(outputs)
	defer func() {
		if err != nil {
			out.abort()
		}
	}()
	if x.format == "parquet" {
		if err := out.directory(x.out); err != nil {
			return nil, nil, err
		}
		var w [len(tables)]io.Writer
		for i, name := range tables {
			if w[i], err = out.create(filepath.Join(x.out, name), x); err != nil {
				return nil, nil, err
			}
		}
		return export.NewParquet(w[0], w[1], w[2]), out, nil
	}
	w := u.out
	if !x.stdout() {
		if w, err = out.create(x.out, x); err != nil {
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

func (o *outputs) create(path string, x *exporting) (io.Writer, error) {
	if err := checkOutput(path, "-o", x.files); err != nil {
		return nil, err
	}
	f, err := outfile.Create(path, x.force)
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
