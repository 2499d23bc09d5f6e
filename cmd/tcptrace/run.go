package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/tcptrace/tcptrace/internal/diagnose"
	"github.com/tcptrace/tcptrace/internal/host"
	"github.com/tcptrace/tcptrace/internal/launch"
	"github.com/tcptrace/tcptrace/internal/pipeline"
	"github.com/tcptrace/tcptrace/internal/render"
)

// running is what run was asked to do.
type running struct {
	watching
	args   []string
	failOn []string // as given
	report string
	format string // of the report
	follow string
	quiet  bool
}

func newRun(u *ui) *cobra.Command {
	var r running
	cmd := &cobra.Command{
		Use:   "run [flags] [--] CMD...",
		Short: "Trace a command and all that it starts",
		Long: `Run a command, and trace its connections and those of every process that it
starts, servers and clients alike. The command's input and output are its own;
what tcptrace has to say comes at the end, on stderr.

The exit status is the command's own, or 3 if one of the verdicts named with
--fail-on occurred: "any" is any verdict at all, "error" and "warning" are those
of that severity or worse. A command that a signal killed gives 128 and the
signal's number, one that is not found 127, one that cannot be executed 126.
Without the privileges to trace, the command is not run: 4.`,
		Example: `  sudo tcptrace run -- make test
  sudo tcptrace run --fail-on error -- pytest tests/
  sudo tcptrace run --fail-on reset-sent,close-wait-leak -- ./integration.sh
  sudo tcptrace run -o json --report trace.jsonl -- curl http://localhost:8080/`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 || args[0] == "" {
				return usage("write it last: tcptrace run -- curl http://localhost:8080/", "there is no command to run")
			}
			return nil
		},
	}
	flags := cmd.Flags()
	// What follows the command's name is the command's.
	flags.SetInterspersed(false)
	flags.StringSliceVar(&r.failOn, "fail-on", nil, "exit with 3 if one of these `CODES` occurred; or any, error, warning")
	flags.StringVar(&r.report, "report", "", "also write all verdicts and connections to `FILE`")
	flags.VarP(newChoice(&r.format, "text", "text", "json"), "output", "o", "`FORMAT` of the report: text or json")
	flags.BoolVar(&r.all, "all", false, "the report also shows connections that went well")
	flags.BoolVarP(&r.quiet, "quiet", "q", false, "no summary where there is nothing to tell")
	flags.Var(newChoice(&r.follow, launch.FollowAuto, launch.FollowAuto, launch.FollowCgroup, launch.FollowForks), "follow",
		"`HOW` to know its descendants: auto, cgroup or forks")
	complete(cmd, "fail-on", verdictWords()...)
	complete(cmd, "output", "text", "json")
	complete(cmd, "follow", launch.FollowAuto, launch.FollowCgroup, launch.FollowForks)
	r.attachFlag(cmd)
	r.ruleFlags(cmd)
	filters := filterFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		r.args = args
		if err := r.check(cmd); err != nil {
			return err
		}
		var err error
		if r.filter, err = parseFilter(filters); err != nil {
			return err
		}
		return u.run(cmd.Context(), r)
	}
	return cmd
}

// failAny stands for every verdict in --fail-on.
const failAny = "any"

func (r *running) check(cmd *cobra.Command) error {
	if cmd.Flags().Changed("output") && r.report == "" {
		return usage("name a file for it, such as --report trace.jsonl: stdout is the command's",
			"--output %s needs --report", r.format)
	}
	if r.all && r.report == "" {
		return usage("name a file for it with --report", "--all needs --report")
	}
	if cmd.Flags().Changed("fail-on") && len(r.failOn) == 0 {
		return usage("codes are "+strings.Join(codes(), ", "), "--fail-on needs a code")
	}
	if err := checkWords("fail-on", r.failOn); err != nil {
		return err
	}
	return r.checkRules()
}

// failing returns those verdicts that occurred and were to be failures.
func (r *running) failing(b *render.Brief) []string {
	var codes []string
	for _, want := range r.failOn {
		switch want {
		case failAny:
			codes = append(codes, b.Codes(diagnose.Info)...)
		case string(diagnose.Error), string(diagnose.Warning):
			codes = append(codes, b.Codes(diagnose.Severity(want))...)
		default:
			if slices.Contains(b.Codes(diagnose.Info), want) {
				codes = append(codes, want)
			}
		}
	}
	slices.Sort(codes)
	return slices.Compact(codes)
}

// settle is how long after the end of the command the ring is still looked at:
// the kernel closes the sockets of a process as it ends, and on the loopback
// device the other end hears of it at once.
const settle = 20 * time.Millisecond

// run traces a command and ends as it did.
func (u *ui) run(ctx context.Context, r running) error {
	if _, err := launch.Find(r.args[0]); err != nil {
		return u.notRun(err)
	}
	if err := permitted(); err != nil {
		return err
	}
	self, err := host.SelfNetns()
	if err != nil {
		return err
	}
	report, err := r.openReport(self.Inode)
	if err != nil {
		return err
	}
	defer report.Close()

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	signals := launch.TakeSignals(cancel)
	defer signals.Stop()
	c, err := launch.New(launch.Options{Args: r.args, Follow: r.follow, Log: u.log})
	if err != nil {
		return u.notRun(err)
	}
	closed := false
	defer func() {
		if !closed {
			u.leave(c)
		}
	}()

	t := &tracedCommand{Command: c, args: r.args, ended: make(chan struct{})}
	brief := render.NewBrief(u.err, u.errOptions(self.Inode))
	tee := &render.Tee{Main: brief}
	r.out, r.scope = brief, c
	if report.Renderer != nil {
		tee.Side = withCommand{report.Renderer, t}
		r.out = tee
	}
	_, err = u.watch(ctx, r.watching, pipeline.Show{Verdicts: true, Connections: true, All: r.all}, func() error {
		return t.start(signals, cancel)
	})
	if sig := signals.Before(); sig != 0 {
		return exitStatus(128 + int(sig))
	}
	if c.PID() == 0 {
		if err == nil {
			err = errors.New("the command was not started")
		}
		return u.notRun(err)
	}
	// Where tracing ended early, the command goes on.
	<-t.ended
	if t.err != nil {
		return errors.Join(t.err, err)
	}
	// A report that cannot be written does not end the tracing.
	err = errors.Join(err, tee.SideErr(), report.Close())
	end := t.report()
	end.Failing = r.failing(brief)
	u.leave(c)
	closed, end.Left = true, c.Left()
	if err != nil {
		u.complain("error", err.Error())
	}
	if !r.quiet || err != nil || len(brief.Codes(diagnose.Info)) > 0 || brief.LostEvents() > 0 || t.Lost() > 0 || len(end.Running) > 0 || end.Left != "" {
		// There is nobody to tell if this fails.
		_ = brief.Write(end)
	}
	switch {
	case len(end.Failing) > 0:
		return exitStatus(exitVerdict)
	case t.status.Exit() == 0 && err != nil:
		// What was to be found may have been missed.
		return exitStatus(exitFailed)
	}
	return exitStatus(t.status.Exit())
}

// notRun is the error of a command that did not start.
func (u *ui) notRun(err error) error {
	var not *launch.Error
	if errors.As(err, &not) {
		hint := ""
		if not.Status == 126 {
			hint = "it is there, but cannot be executed"
		}
		return &failure{not, hint, not.Status}
	}
	return err
}

// leave stops following the command.
func (u *ui) leave(c *launch.Command) {
	if err := c.Close(); err != nil {
		u.complain("warning", err.Error())
	}
}

// errOptions fit text to stderr.
func (u *ui) errOptions(own uint32) render.TextOptions {
	o := render.TextOptions{Location: time.Local, Netns: own}
	f, ok := u.err.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return o
	}
	if w, _, err := term.GetSize(int(f.Fd())); err == nil && w > 0 {
		o.Width = w
	}
	o.Color = os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	return o
}

// reportFile is a report that goes to a file, or none.
type reportFile struct {
	render.Renderer
	file *os.File
	name string
}

func (r *running) openReport(own uint32) (*reportFile, error) {
	if r.report == "" {
		return &reportFile{}, nil
	}
	file, err := os.OpenFile(r.report, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, &failure{fmt.Errorf("creating the report: %w", err), "--report needs a path where a file can be created", exitFailed}
	}
	f := &reportFile{file: file, name: r.report}
	if r.format == "json" {
		f.Renderer = render.NewJSON(file)
	} else {
		f.Renderer = render.NewText(file, render.TextOptions{Location: time.Local, Netns: own})
	}
	return f, nil
}

// Close closes the file, once.
func (f *reportFile) Close() error {
	if f.file == nil {
		return nil
	}
	err := f.file.Close()
	f.file = nil
	if err != nil {
		return fmt.Errorf("writing the report %s: %w", f.name, err)
	}
	return nil
}

// tracedCommand is a command and how it went.
type tracedCommand struct {
	*launch.Command
	args  []string
	ended chan struct{} // closed once it has ended
	once  sync.Once

	// Set before ended is closed.
	status  launch.Status
	began   time.Time
	took    time.Duration
	err     error
	running []uint32
}

// start starts the command, and has the run cancelled once it has ended. The
// caller is the goroutine that reads the ring: its thread has a priority that
// the command must not inherit, so another one starts it.
func (t *tracedCommand) start(signals *launch.Signals, cancel func()) error {
	started := make(chan error)
	go func() {
		t.began = time.Now()
		sig, err := signals.Start(t.Command)
		if sig != 0 {
			err = context.Canceled
		}
		started <- err
		if err != nil {
			return
		}
		t.status, t.err = t.Wait()
		t.took = time.Since(t.began)
		signals.Ended()
		close(t.ended)
		time.Sleep(settle)
		cancel()
	}()
	return <-started
}

// report says how it went, after it has ended. What runs on is looked up once.
func (t *tracedCommand) report() *render.Command {
	t.once.Do(func() { t.running = t.Running() })
	return &render.Command{
		Time: render.Stamp(t.began.Add(t.took).UnixNano()), Args: t.args, Status: t.status.Exit(), Ended: t.status.String(),
		Duration: t.took, Follow: t.Follow(), Caveat: t.Caveat(), Running: t.running,
	}
}

// withCommand writes how the command ended before the summary.
type withCommand struct {
	render.Renderer
	t *tracedCommand
}

func (w withCommand) Summary(s *render.Summary) error {
	r, ok := w.Renderer.(interface{ Command(*render.Command) error })
	select {
	case <-w.t.ended:
		if ok {
			if err := r.Command(w.t.report()); err != nil {
				return err
			}
		}
	default: // tracing ended before it, by an error
	}
	return w.Renderer.Summary(s)
}
