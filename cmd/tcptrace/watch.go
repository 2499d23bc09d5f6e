package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/diagnose"
	"github.com/tcptrace/tcptrace/internal/dump"
	"github.com/tcptrace/tcptrace/internal/filter"
	"github.com/tcptrace/tcptrace/internal/host"
	"github.com/tcptrace/tcptrace/internal/pipeline"
	"github.com/tcptrace/tcptrace/internal/render"
	"github.com/tcptrace/tcptrace/tracer"
)

// watching is what watch, demo and run have in common.
type watching struct {
	attach    string
	show      string
	all       bool
	duration  time.Duration
	count     uint64
	readyFile string
	rules     diagnose.Options
	filter    filter.Filter
	out       render.Renderer // nil: what --output asks for
	scope     pipeline.Scope  // nil: all processes

	record pipeline.Recorder // nil: nothing is recorded
	header dump.Header       // what a dump says of how it was asked for
}

func newWatch(u *ui) *cobra.Command {
	var w watching
	var d dumping
	cmd := &cobra.Command{
		Use:   "watch",
		Short: "Verdicts and timelines of connections, as they happen",
		Long: `Watch the connections of this host, and show for those that went wrong the
cause, the evidence, the timeline and what to do. SIGINT (Ctrl-C) and SIGTERM
end it with a summary, in which the kernel's own counters are held against
what was seen. Of many connections that are alike the text shows a few and counts
the others; --show verdicts leaves connections out, -o json has each one. A
verdict that holds for more is mentioned again once it has grown by half, or
after a minute. Filters of different kinds must all hold; values of one kind,
repeated or separated by commas, are alternatives.`,
		Example: `  sudo tcptrace watch                          everything that goes wrong
  sudo tcptrace watch --show verdicts          the causes only
  sudo tcptrace watch --comm nginx --all       all connections of nginx
  sudo tcptrace watch --addr 10.0.0.0/8 --rport 5432,6379
  sudo tcptrace watch -o json --duration 1m > trace.jsonl
  sudo tcptrace watch --record trace.tcpt      and keep all events for tcptrace report`,
		Args: atMost(0),
	}
	u.outputFlag(cmd)
	flags := cmd.Flags()
	flags.StringVar(&w.show, "show", "verdicts,connections", "`KINDS`: verdicts, connections, events")
	flags.BoolVar(&w.all, "all", false, "also show connections that went well")
	flags.DurationVar(&w.duration, "duration", 0, "end after this `TIME`, such as 30s or 5m")
	flags.Uint64Var(&w.count, "count", 0, "end after showing `N` verdicts, connections and events")
	flags.StringVar(&w.readyFile, "ready-file", "", "create the file `PATH` once all hooks are attached")
	flags.StringVar(&d.path, "record", "", "also write all events to a dump, `FILE`")
	d.flags(cmd)
	w.attachFlag(cmd)
	w.ruleFlags(cmd)
	filters := filterFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		show, err := parseShow(w.show)
		if err != nil {
			return err
		}
		show.All = w.all
		if w.duration < 0 {
			return usage("a duration is written 30s, 5m or 2h", "--duration %v is negative", w.duration)
		}
		if err := w.checkRules(); err != nil {
			return err
		}
		if err := d.checkBeside(cmd); err != nil {
			return err
		}
		if w.filter, err = parseFilter(filters); err != nil {
			return err
		}
		if err := clearReady(w.readyFile); err != nil {
			return err
		}
		ctx, stop := interruptible(cmd.Context())
		defer stop()
		ready := func() error { return writeReady(w.readyFile) }
		if d.path != "" {
			w.header = dumpHeader(cmd, &w)
			return u.watchAndRecord(ctx, w, d, show, ready)
		}
		_, err = u.watch(ctx, w, show, ready)
		return err
	}
	return cmd
}

func (w *watching) attachFlag(cmd *cobra.Command) {
	ways := []string{"auto", "fentry", "kprobe", "tracepoint"}
	cmd.Flags().Var(newChoice(&w.attach, "auto", ways...), "attach", "`WAY` to attach: auto, fentry, kprobe or tracepoint")
	complete(cmd, "attach", ways...)
}

// threshold is one of the rules' thresholds, as a flag. What speaks for its
// default stands in the verdict's page of `tcptrace explain`.
type threshold struct {
	name  string
	value *time.Duration
	def   time.Duration
	help  string
}

func (w *watching) thresholds() []threshold {
	r := &w.rules
	return []threshold{
		{"interval", &r.Interval, time.Second, "repeat a growing verdict at most once in this `TIME`"},
		{"immediate", &r.Immediate, 50 * time.Millisecond, "a close within this `TIME` of accept() is immediate"},
		{"close-wait", &r.CloseWait, time.Minute, "CLOSE_WAIT for longer than this `TIME` is a leak"},
		{"fin-wait", &r.FinWait, time.Minute, "FIN_WAIT for longer than this `TIME` is stuck"},
		{"idle", &r.Idle, 2 * time.Hour, "silence for this `TIME` without keepalive is suspect"},
		{"slow-accept", &r.SlowAccept, 200 * time.Millisecond, "in the accept queue for longer than this `TIME` is slow"},
		{"zero-window", &r.ZeroWindow, 5 * time.Second, "a window shut for longer than this `TIME` is a stall"},
		{"backoff", &r.Backoff, 15 * time.Second, "tell of data unacknowledged for longer than this `TIME`"},
	}
}

const shareFlag = "time-wait-share"

func (w *watching) ruleFlags(cmd *cobra.Command) {
	for _, t := range w.thresholds() {
		cmd.Flags().DurationVar(t.value, t.name, t.def, t.help)
	}
	cmd.Flags().Float64Var(&w.rules.TimeWait, shareFlag, 0.5, "TIME_WAIT in more than a share `N` of ports is a pile-up")
}

func (w *watching) checkRules() error {
	for _, t := range w.thresholds() {
		if *t.value <= 0 {
			return usage("a duration is written 50ms, 1s or 2m", "--%s %v is not more than 0", t.name, *t.value)
		}
	}
	if s := w.rules.TimeWait; !isShare(s) {
		return usage("a share is between 0 and 1, such as 0.5", "--%s %v is out of range", shareFlag, s)
	}
	return nil
}

// isShare is false of what is no number, too.
func isShare(v float64) bool { return v > 0 && v <= 1 }

func parseShow(s string) (pipeline.Show, error) {
	var show pipeline.Show
	kinds := []string{"verdicts", "connections", "events"}
	for k := range strings.SplitSeq(s, ",") {
		switch strings.TrimSpace(k) {
		case "verdicts":
			show.Verdicts = true
		case "connections":
			show.Connections = true
		case "events":
			show.Events = true
		default:
			hint := "kinds are verdicts, connections and events, separated by commas"
			if near := filter.Nearest(strings.TrimSpace(k), kinds); near != "" {
				hint = fmt.Sprintf("did you mean %s? %s", near, hint)
			}
			return show, usage(hint, "--show %q: no such kind", k)
		}
	}
	return show, nil
}

// permitted explains what keeps the tracer from working, before it tries.
func permitted() error {
	p, err := host.ReadPrivileges()
	if err != nil {
		return err
	}
	for _, problem := range p.Problems() {
		if problem.Fatal {
			return &failure{errors.New(problem.What), problem.Hint, exitForbidden}
		}
	}
	return nil
}

// watch attaches, runs the pipeline until the context ends, and sums up.
func (u *ui) watch(ctx context.Context, w watching, show pipeline.Show, ready func() error) (*render.Summary, error) {
	if err := permitted(); err != nil {
		return nil, err
	}
	self, err := host.SelfNetns()
	if err != nil {
		return nil, err
	}
	name, err := os.Hostname()
	if err != nil {
		name = "unknown"
	}
	t, err := tracer.Open(ctx, tracer.Options{Attach: w.attach, Filter: kernelFilter(w.filter), Log: u.log})
	if err != nil {
		if ctx.Err() != nil {
			return nil, nil // interrupted before anything began
		}
		return nil, err
	}
	defer t.Close()
	out := w.out
	if out == nil {
		out = u.renderer(self.Inode)
	}
	return pipeline.Run(ctx, pipeline.Config{
		Options: pipeline.Options{
			Out: out, Show: show, Filter: w.filter, Count: w.count, Diagnose: w.rules,
		},
		Tracer: t, Scope: w.scope, Version: versionName(), Host: name, Duration: w.duration, Ready: ready, Log: u.log,
		Record: w.record, Header: w.header,
	})
}

// clearReady removes what an earlier run left behind, so that nobody takes it
// for this one's, and finds out early if the file cannot be written.
func clearReady(path string) error {
	if path == "" {
		return nil
	}
	const hint = "--ready-file needs a path where a file can be created"
	if err := unix.Access(filepath.Dir(path), unix.W_OK); err != nil {
		return &failure{fmt.Errorf("the ready file %s cannot be created: %w", path, err), hint, exitFailed}
	}
	old, err := os.ReadFile(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return &failure{fmt.Errorf("the ready file cannot be created: %w", err), hint, exitFailed}
	}
	if _, err := strconv.ParseUint(string(bytes.TrimSpace(old)), 10, 32); err != nil && len(old) > 0 {
		return &failure{fmt.Errorf("the ready file %s exists, and tcptrace did not write it", path), "remove it, or name another one", exitFailed}
	}
	if err := os.Remove(path); err != nil {
		return &failure{fmt.Errorf("removing the ready file of an earlier run: %w", err), hint, exitFailed}
	}
	return nil
}

// writeReady creates the file, with the process id, in one step.
func writeReady(path string) error {
	if path == "" {
		return nil
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".tcptrace-ready-*")
	if err != nil {
		return fmt.Errorf("creating the ready file: %w", err)
	}
	_, err = fmt.Fprintln(f, os.Getpid())
	err = errors.Join(err, f.Chmod(0o644), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("creating the ready file: %w", err)
	}
	return nil
}
