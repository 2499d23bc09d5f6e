package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tcptrace/tcptrace/internal/filter"
	"github.com/tcptrace/tcptrace/internal/lab"
	"github.com/tcptrace/tcptrace/internal/pipeline"
	"github.com/tcptrace/tcptrace/internal/render"
)

// How long things last in a demo: nobody wants to wait a minute for a leak.
const (
	demoCloseWait = 2 * time.Second
	demoHold      = 4 * time.Second // how long a leak is left standing
	demoStuck     = 2 * time.Second // in FIN_WAIT, or with the window shut
	demoAccept    = 500 * time.Millisecond
	demoIdle      = 2 * time.Second // of silence, where a case turns on it
	demoBackoff   = 2 * time.Second
	demoSettle    = 1500 * time.Millisecond // for the last verdicts after the last packet
)

func newDemo(u *ui) *cobra.Command {
	var w watching
	var show string
	var hostSettings bool
	cmd := &cobra.Command{
		Use:   "demo [CASE]",
		Short: "Reproduce a case in a throwaway network namespace, and watch it",
		Long: `Reproduce a case with real sockets in a network namespace of its own, which is
thrown away afterwards, and show what watch says about it. Nothing outside that
namespace is touched. Without CASE, lists the cases; those that end in -healthy
are the same traffic with nothing wrong in it, and give no verdict.

Some limits of the kernel are the whole machine's. A case that changes one (it
says so) runs only with --host-settings: other programs' connections can suffer
meanwhile. The setting is put back at the end.`,
		Example: `  sudo tcptrace demo C
  sudo tcptrace demo C-healthy`,
		Args: atMost(1),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return caseNames(), cobra.ShellCompDirectiveNoFileComp
		},
	}
	u.outputFlag(cmd)
	cmd.Flags().StringVar(&show, "show", "verdicts", "`KINDS`: verdicts, connections, events")
	cmd.Flags().BoolVar(&hostSettings, "host-settings", false, "run a case that changes a setting of the whole machine for a moment")
	w.attachFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		kinds, err := parseShow(show)
		if err != nil {
			return err
		}
		if len(args) == 0 {
			return u.listCases()
		}
		c, err := lab.Find(args[0])
		if err != nil {
			hint := "`tcptrace demo` lists the cases"
			if near := filter.Nearest(args[0], caseNames()); near != "" {
				hint = fmt.Sprintf("did you mean %s? %s", near, hint)
			}
			return usage(hint, "no such case: %q", args[0])
		}
		if c.HostSetting != "" && !hostSettings {
			return usage("run it on a machine of which nobody needs anything else, with --host-settings",
				"case %s changes %s of the whole machine while it runs", c.ID, c.HostSetting)
		}
		ctx, stop := interruptible(cmd.Context())
		defer stop()
		return u.demo(ctx, c, w, kinds)
	}
	return cmd
}

func caseNames() []string {
	var names []string
	for _, c := range lab.Cases() {
		names = append(names, c.ID)
	}
	return names
}

func (u *ui) listCases() error {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	width := 0
	for _, c := range lab.Cases() {
		width = max(width, len(c.ID))
	}
	for _, c := range lab.Cases() {
		if u.output == "json" {
			if err := enc.Encode(map[string]any{"type": "case", "case": c.ID, "title": c.Title, "story": c.Story, "healthy": c.Healthy()}); err != nil {
				return err
			}
			continue
		}
		hang(&b, render.Pad(c.ID, width)+"  ", c.Title, u.width())
	}
	_, err := fmt.Fprint(u.out, b.String())
	return err
}

// demo brings a case about while a watch of its namespaces looks on.
func (u *ui) demo(ctx context.Context, c lab.Case, w watching, show pipeline.Show) error {
	if err := permitted(); err != nil {
		return err
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil && c.NeedsTUN {
		return &failure{fmt.Errorf("case %s needs /dev/net/tun: %w", c.ID, err), "load the module (modprobe tun), or give the container the device", exitForbidden}
	}
	u.say("case %s: %s", c.ID, c.Title)
	u.say("%s", c.Story)
	u.say("")

	env, err := lab.NewEnv(lab.Options{
		CloseWait: demoHold,
		Hold:      2 * demoHold, // where only snapshots tell, it takes two of them
		Logf:      func(format string, args ...any) { u.complain("demo", fmt.Sprintf(format, args...)) },
	})
	if err != nil {
		return surroundings(fmt.Errorf("making the surroundings of case %s: %w", c.ID, err))
	}
	defer env.Close()
	if c.Prepare != nil {
		if err := c.Prepare(ctx, env); err != nil {
			return surroundings(fmt.Errorf("preparing case %s: %w", c.ID, err))
		}
	}
	for _, ns := range env.Namespaces() {
		w.filter.Netns = append(w.filter.Netns, ns.Inode())
	}
	w.rules.CloseWait = demoCloseWait
	w.rules.FinWait, w.rules.ZeroWindow = demoStuck, demoStuck
	w.rules.SlowAccept = demoAccept // the cases' own processes may have to wait for their turn
	w.rules.Backoff = demoBackoff
	if c.Silence {
		w.rules.Idle, w.rules.Aftermath = demoIdle, demoIdle
	}

	// The case begins once everything that happens will be seen, and the
	// watch ends a while after it.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		truth *lab.Truth
		err   error
	}
	happened := make(chan result, 1)
	ready := func() error {
		go func() {
			truth, err := c.Run(ctx, env)
			if err == nil {
				select {
				case <-ctx.Done():
				case <-time.After(demoSettle):
				}
			}
			happened <- result{truth, err}
			cancel()
		}()
		return nil
	}
	summary, err := u.watch(ctx, w, show, ready)
	cancel()
	if err != nil {
		return err
	}
	if summary == nil {
		return nil // interrupted before it began
	}
	r := <-happened
	if errors.Is(r.err, context.Canceled) {
		return nil // interrupted
	}
	if r.err != nil {
		return fmt.Errorf("running case %s: %w", c.ID, r.err)
	}
	return u.judge(c, r.truth, summary)
}

// surroundings tells what to do where a case's surroundings may not be made: it
// takes more than tracing does.
func surroundings(err error) error {
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	return &failure{err, "run it with sudo: to make network namespaces takes CAP_SYS_ADMIN and CAP_NET_ADMIN", exitForbidden}
}

// judge holds the verdicts against what is known to have happened.
func (u *ui) judge(c lab.Case, truth *lab.Truth, summary *render.Summary) error {
	u.say("")
	var missing, wrong []string
	for _, e := range truth.Expect {
		if summary.Verdicts[e.Code] == 0 && !slices.Contains(missing, e.Code) {
			missing = append(missing, e.Code)
		}
	}
	for code := range summary.Verdicts {
		if truth.Forbids(code) {
			wrong = append(wrong, code)
		}
	}
	slices.Sort(wrong)
	switch {
	case len(wrong) > 0:
		return fmt.Errorf("case %s: %s was said, and is not true", c.ID, strings.Join(wrong, ", "))
	case len(missing) > 0:
		return &failure{
			fmt.Errorf("case %s: %s was not said", c.ID, strings.Join(missing, ", ")),
			"`tcptrace doctor` tells what cannot be seen on this kernel", exitFailed,
		}
	case c.Healthy():
		u.say("case %s: nothing was wrong, and nothing was said.", c.ID)
	default:
		u.say("case %s: what happened was named.", c.ID)
	}
	return nil
}
