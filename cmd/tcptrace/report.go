package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tcptrace/tcptrace/internal/dump"
	"github.com/tcptrace/tcptrace/internal/outfile"
	"github.com/tcptrace/tcptrace/internal/pipeline"
	"github.com/tcptrace/tcptrace/internal/render"
	"github.com/tcptrace/tcptrace/internal/webreport"
)

// reporting is what report was asked for.
type reporting struct {
	replaying
	files []string
	show  string
	all   bool
	conns []string
	html  string
	force bool
}

func newReport(u *ui) *cobra.Command {
	var r reporting
	cmd := &cobra.Command{
		Use:   "report [flags] FILE...",
		Short: "What a dump tells: causes, the worst first, and timelines",
		Long: `Go through dumps that tcptrace record or watch --record wrote, and tell the
causes of what went wrong, the worst first, with their evidence, an example and
what to do. Several files are several parts of a recording, or recordings of
several hosts; - is stdin. Diagnosis is the same as live: with -o json the lines
are those that watch would have printed. Thresholds and filters are those of the
recording unless they are given here.`,
		Example: `  tcptrace report trace.tcpt                        causes, the worst first
  tcptrace report trace.tcpt --conn 3f1c5b0a9d2e4f68  one connection's timeline
  tcptrace report trace.tcpt --since 03:10 --until 03:20 --port 8080
  tcptrace report web1.tcpt web2.tcpt --html report.html
  ssh web1 cat trace.tcpt | tcptrace report -`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usage("name a dump: tcptrace report trace.tcpt; or pipe one into: tcptrace report -", "there is no file to report on")
			}
			return nil
		},
	}
	u.outputFlag(cmd)
	flags := cmd.Flags()
	flags.StringVar(&r.show, "show", "", "`KINDS`: verdicts, connections, events; timelines are shown where a filter is given")
	flags.BoolVar(&r.all, "all", false, "also show connections that went well")
	flags.StringSliceVar(&r.conns, "conn", nil, "show the timeline of the connection with this `ID`, or of which this is the beginning")
	flags.StringVar(&r.html, "html", "", "write one page to `FILE` that any browser opens, without a network")
	flags.BoolVar(&r.force, "force", false, "replace the file of --html if it exists")
	r.flags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		r.files = args
		if err := r.check(); err != nil {
			return err
		}
		ctx, stop := interruptible(cmd.Context())
		defer stop()
		return u.report(ctx, r)
	}
	return cmd
}

func (r *reporting) check() error {
	if err := checkFiles(r.files); err != nil {
		return err
	}
	for i, id := range r.conns {
		id = strings.ToLower(strings.TrimSpace(id))
		if len(id) < 4 || len(id) > 16 || strings.Trim(id, "0123456789abcdef") != "" {
			return usage("it is an ID of 16 hex digits as in \"conn\" or below a cause, or at least its first 4", "--conn %q: no ID of a connection", id)
		}
		r.conns[i] = id
	}
	if r.html != "" && r.cmd.Flags().Changed("output") {
		return usage("run it twice", "--html and --output do not go together")
	}
	if r.force && r.html == "" {
		return usage("name a file for it with --html", "--force needs --html")
	}
	return r.checkRules()
}

// shown is what is to be shown: in text, timelines are asked for by naming
// which.
func (r *reporting) shown(text bool) (pipeline.Show, error) {
	s := r.show
	if s == "" {
		s = "verdicts,connections"
		switch {
		case len(r.conns) > 0:
			s = "connections"
		case text && r.html == "" && !r.all && !r.narrowed():
			s = "verdicts"
		}
	}
	show, err := parseShow(s)
	show.All = r.all || r.html != "" || len(r.conns) > 0
	show.Open = r.html != "" || len(r.conns) > 0
	return show, err
}

func (r *reporting) narrowed() bool {
	f := r.filters
	n := 0
	for _, l := range [][]string{f.Port, f.LocalPort, f.RemotePort, f.Addr, f.PID, f.Comm, f.Netns, f.Cgroup, f.Code, f.State} {
		n += len(l)
	}
	return n > 0 || r.since != "" || r.until != ""
}

func (u *ui) report(ctx context.Context, r reporting) error {
	show, err := r.shown(u.output != "json")
	if err != nil {
		return err
	}
	through, done := u.progress(r.files)
	defer done()
	skipped := false
	r.skip = func(err error) {
		skipped = true
		u.finish(err) // what it says; the status comes at the end
	}
	list, closeAll, err := r.open(r.files, through, r.skip)
	defer closeAll()
	if err != nil {
		return err
	}
	if err := u.reportOn(ctx, &r, list, show, done); err != nil || !skipped {
		return err
	}
	return exitStatus(exitFailed)
}

// reportOn goes through what was opened.
func (u *ui) reportOn(ctx context.Context, r *reporting, list []pipeline.Recording, show pipeline.Show, done func()) error {
	if r.html != "" {
		return u.reportHTML(ctx, r, list, show, done)
	}
	if u.output == "json" {
		out := r.only(render.NewJSON(u.out))
		return r.replayAll(ctx, list, func(_ *dump.Header, cfg *pipeline.ReplayConfig) {
			cfg.Out, cfg.Show = out, show
		}, func(_ *pipeline.ReplayConfig, got *pipeline.Replayed) error {
			for _, p := range got.Problems {
				u.complain("warning", p)
			}
			return nil
		})
	}

	o := render.ReportOptions{
		TextOptions: render.TextOptions{Width: u.width(), Color: u.color(), Location: time.Local},
		Causes:      show.Verdicts, Rest: show.Connections || show.Events, Several: len(list) > 1,
	}
	if o.Rest {
		spool, err := newSpool()
		if err != nil {
			return err
		}
		defer spool.Close()
		o.Spool = spool
	}
	rep := render.NewReport(u.out, o)
	out := r.only(rep)
	err := r.replayAll(ctx, list, func(h *dump.Header, cfg *pipeline.ReplayConfig) {
		rep.Run(h.Netns, !cfg.Filter.Empty())
		cfg.Out, cfg.Show = out, show
	}, func(_ *pipeline.ReplayConfig, got *pipeline.Replayed) error {
		rep.Whole(got.Began, got.Problems, got.Notes)
		return nil
	})
	done()
	if err != nil {
		return err
	}
	return rep.Close()
}

// newSpool makes a file that is gone when it is closed.
func newSpool() (*os.File, error) {
	f, err := os.CreateTemp("", "tcptrace-report-*")
	if err != nil {
		return nil, &failure{fmt.Errorf("keeping connections until the causes are written: %w", err), "TMPDIR names a directory with room for temporary files", exitFailed}
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// only lets through the connections that were named, if any were.
func (r *reporting) only(out render.Renderer) render.Renderer {
	if len(r.conns) == 0 {
		return out
	}
	return &onlyConns{Renderer: out, ids: r.conns}
}

type onlyConns struct {
	render.Renderer
	ids []string
}

func (o *onlyConns) wanted(id string) bool {
	return slices.ContainsFunc(o.ids, func(want string) bool { return strings.HasPrefix(id, want) })
}

// Connection passes those on that were named.
func (o *onlyConns) Connection(c *render.Connection) error {
	if o.wanted(c.ID) {
		return o.Renderer.Connection(c)
	}
	return nil
}

// Event passes on those of the connections that were named.
func (o *onlyConns) Event(e *render.Event) error {
	if o.wanted(e.Conn) {
		return o.Renderer.Event(e)
	}
	return nil
}

// reportHTML writes the page.
func (u *ui) reportHTML(ctx context.Context, r *reporting, list []pipeline.Recording, show pipeline.Show, done func()) error {
	if err := checkOutput(r.html, "--html", r.files); err != nil {
		return err
	}
	file, err := outfile.Create(r.html, r.force)
	if err != nil {
		return err
	}
	defer file.Abort()
	page := webreport.New(webreport.Options{})
	out := r.only(page)
	var problems []string
	err = r.replayAll(ctx, list, func(_ *dump.Header, cfg *pipeline.ReplayConfig) {
		cfg.Out, cfg.Show, cfg.Raw = out, show, page.Raw
	}, func(cfg *pipeline.ReplayConfig, got *pipeline.Replayed) error {
		problems = append(problems, got.Problems...)
		if !cfg.Filter.Empty() {
			got.Notes = append(got.Notes, "filters leave out a part of what was recorded")
		}
		page.Problems(append(got.Notes, got.Problems...))
		return nil
	})
	done()
	if err != nil {
		return err
	}
	if err := page.Write(file); err != nil {
		return err
	}
	if err := file.Commit(); err != nil {
		return err
	}
	for _, p := range problems {
		u.complain("warning", p)
	}
	u.say("wrote %s: open it in a browser, or send it to colleagues", r.html)
	return nil
}
