package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tcptrace/tcptrace/internal/vm"
	"github.com/tcptrace/tcptrace/internal/vm/frame"
)

// attachModes are the values of tcptrace's --attach that a kernel is tested
// with.
var attachModes = []string{"auto", "fentry", "kprobe", "tracepoint"}

// keptLogs is how many runs' logs are kept.
const keptLogs = 10

type testOptions struct {
	kernels, attach []string
	parallel        int
	run             string
	timeout, total  time.Duration
	memoryMiB       int
	modules         []string
	accel           string
	logs            string
	verbose         bool
	env             stringList
	files           []vm.File
}

func testCommand(ctx context.Context, args []string) error {
	var o testOptions
	f := newFlags("test", "[flags] PACKAGE...")
	kernels := f.String("kernels", strings.Join(vm.DefaultKernels, ","), "kernels to test under")
	attach := f.String("attach", strings.Join(attachModes, ","), "attach modes, given to the tests as TCPTRACE_ATTACH")
	f.IntVar(&o.parallel, "j", 2, "machines at the same time")
	f.StringVar(&o.run, "run", "", "only tests that match this `regexp`, as go test -run")
	f.DurationVar(&o.timeout, "timeout", 10*time.Minute, "longest time for one package in one attach mode")
	f.DurationVar(&o.total, "total", time.Hour, "longest time for everything")
	f.IntVar(&o.memoryMiB, "memory", 2048, "memory of a machine in MiB")
	modules := f.String("modules", strings.Join(vm.DefaultModules, ","), "kernel modules to load")
	f.StringVar(&o.accel, "accel", "auto", "auto, tcg or kvm")
	f.StringVar(&o.logs, "logs", "", "`directory` for the full output (default: one in the cache)")
	f.BoolVar(&o.verbose, "v", false, "print all output, not only results and what failed tests printed")
	f.Var(&o.env, "env", "`NAME=VALUE` for the tests; may be repeated")
	var files stringList
	f.Var(&files, "file", "`HOST:GUEST`, a file for the machine; may be repeated")
	if err := parse(f, args); err != nil {
		return err
	}
	o.kernels, o.attach, o.modules = splitList(*kernels), splitList(*attach), splitList(*modules)
	switch {
	case f.NArg() == 0:
		return usageError{errors.New("no package given")}
	case len(o.kernels) == 0:
		return usageError{errors.New("no kernel given")}
	case len(o.attach) == 0:
		return usageError{errors.New("no attach mode given")}
	case o.parallel < 1:
		return usageError{fmt.Errorf("%d machines at the same time", o.parallel)}
	case o.timeout < time.Second || o.total < time.Second:
		return usageError{fmt.Errorf("a timeout of %v is too short", min(o.timeout, o.total))}
	}
	for _, mode := range o.attach {
		if !slices.Contains(attachModes, mode) {
			return usageError{fmt.Errorf("no attach mode is named %q", mode)}
		}
	}
	for _, name := range o.kernels {
		if err := vm.CheckSpec(name); err != nil {
			return err
		}
	}
	for _, spec := range files {
		file, err := parseFile(spec)
		if err != nil {
			return err
		}
		o.files = append(o.files, file)
	}
	return runTests(ctx, o, f.Args())
}

// runTests builds everything first, so that a mistake shows before the first
// machine starts.
func runTests(ctx context.Context, o testOptions, patterns []string) error {
	began := time.Now()
	ctx, cancel := context.WithTimeoutCause(ctx, o.total, fmt.Errorf("the tests were still running after %v", o.total))
	defer cancel()
	packages, err := vm.ListTests(ctx, ".", patterns)
	if err != nil {
		return err
	}
	scratch, err := os.MkdirTemp("", "tcptrace-vm-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	if o.logs, err = logDirectory(o.logs); err != nil {
		return err
	}
	init, err := vm.BuildInit(ctx, ".", scratch)
	if err != nil {
		return err
	}
	files := o.files
	for _, p := range packages {
		built, err := p.Build(ctx, ".", scratch)
		if err != nil {
			return err
		}
		files = append(files, built...)
	}
	store, err := vm.OpenStore(os.Stdout)
	if err != nil {
		return err
	}

	// Fetching comes before testing: a kernel that can't be had fails at once,
	// but the others are tested all the same.
	out := &printer{w: os.Stdout}
	runs := make([]kernelRun, len(o.kernels))
	for i, name := range o.kernels {
		runs[i].name = name
		runs[i].kernel, runs[i].err = store.Get(ctx, name)
		if runs[i].err != nil {
			out.printf(name, "error: %v", runs[i].err)
			if hint := vm.Hint(runs[i].err); hint != "" {
				out.printf(name, "hint: %s", hint)
			}
		}
	}
	var accel vm.Accelerator
	if i := slices.IndexFunc(runs, func(r kernelRun) bool { return r.err == nil }); i >= 0 {
		if accel, err = chooseAccelerator(ctx, o.accel, runs[i].kernel, init); err != nil {
			return err
		}
	}

	slots := make(chan struct{}, o.parallel)
	var wg sync.WaitGroup
	for i := range runs {
		r := &runs[i]
		if r.err != nil {
			continue
		}
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			r.test(ctx, o, out, packages, vm.Job{Init: init, Accelerator: accel, Files: files})
		})
	}
	wg.Wait()
	return summarize(os.Stdout, o, runs, time.Since(began))
}

// step is one command of a machine: the tests of a package in one attach mode.
type step struct {
	pkg    vm.TestPackage
	attach string
	chosen bool // tests were chosen by name, which this package may not have

	log    *os.File
	tests  vm.TestLog
	status *frame.Status
}

// problem says why the step failed, or "".
func (s *step) problem() string {
	count := s.tests.Counts()
	switch {
	case s.status == nil:
		return "did not run to its end"
	case s.status.TimedOut:
		return s.status.String()
	case count.Failed > 0:
		return fmt.Sprintf("%d failed", count.Failed)
	case !s.status.OK():
		return s.status.String()
	case s.tests.Verdict() != "PASS":
		return "ended without a verdict"
	case count.Passed == 0 && !s.chosen:
		return "no test ran"
	}
	return ""
}

// kernelRun is what came of one kernel.
type kernelRun struct {
	name    string
	kernel  vm.Kernel
	err     error
	steps   []*step
	result  vm.Result
	elapsed time.Duration
}

func (r *kernelRun) test(ctx context.Context, o testOptions, out *printer, packages []vm.TestPackage, job vm.Job) {
	began := time.Now()
	defer func() { r.elapsed = time.Since(began) }()
	dir := filepath.Join(o.logs, strings.ReplaceAll(r.name, "/", "_"))
	if r.err = os.MkdirAll(dir, 0o755); r.err != nil {
		return
	}
	console, err := os.Create(filepath.Join(dir, "console.log"))
	if err != nil {
		r.err = err
		return
	}
	defer console.Close()

	job.Kernel, job.Console, job.MemoryMiB, job.Modules = r.kernel, console, o.memoryMiB, o.modules
	for _, attach := range o.attach {
		for _, p := range packages {
			// The test program's own limit comes first: it tells which test hung.
			args := []string{"-test.timeout=" + (o.timeout - o.timeout/20).String()}
			if o.run != "" {
				args = append(args, "-test.run="+o.run)
			}
			c := p.Command(args, append([]string{"TCPTRACE_ATTACH=" + attach, "TCPTRACE_VM=" + r.name}, o.env...))
			c.Timeout = o.timeout
			job.Commands = append(job.Commands, c)
			r.steps = append(r.steps, &step{pkg: p, attach: attach, chosen: o.run != ""})
		}
	}
	attempt := 0
	job.Observe = func(n int, f frame.Frame) {
		if n != attempt {
			attempt = n
			if err := r.begin(dir, out, o.verbose); err != nil {
				out.printf(r.name, "error: %v", err)
			}
		}
		r.observe(f, attempt, out)
	}
	r.result, r.err = job.Run(ctx)
	for _, s := range r.steps {
		if s.log != nil {
			r.err = errors.Join(r.err, s.log.Close())
		}
	}
	for _, crash := range r.result.Crashes {
		out.printf(r.name, "the machine crashed: %s", crash)
	}
	for _, warning := range r.result.Warnings {
		out.printf(r.name, "the kernel warned: %s", printable(warning))
	}
	if r.err != nil {
		out.printf(r.name, "error: %v", r.err)
	}
}

// begin makes the steps ready for an attempt; what an earlier one left is gone.
func (r *kernelRun) begin(dir string, out *printer, verbose bool) error {
	for _, s := range r.steps {
		if s.log != nil {
			s.log.Close()
		}
		name := fmt.Sprintf("%s-%s.log", s.attach, s.pkg.Label())
		log, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			return fmt.Errorf("writing the log: %w", err)
		}
		prefix := r.name + " " + s.attach
		*s = step{pkg: s.pkg, attach: s.attach, log: log}
		s.tests.Line = func(line string, progress bool) {
			fmt.Fprintln(log, line)
			if verbose && !progress {
				out.printf(prefix, "%s", line)
			}
		}
		s.tests.Ended = func(outcome, name string, output []string) {
			if verbose {
				return
			}
			out.printf(prefix, "--- %s: %s", outcome, name)
			if outcome != "PASS" {
				out.lines(prefix, output)
			}
		}
	}
	return nil
}

func (r *kernelRun) observe(f frame.Frame, attempt int, out *printer) {
	switch f.Kind {
	case frame.Ready:
		out.printf(r.name, "kernel %s is up, attempt %d", f.Payload, attempt)
	case frame.Log:
		out.printf(r.name, "%s", f.Payload)
	case frame.Start:
		s := r.steps[f.Command]
		out.printf(r.name+" "+s.attach, "=== %s", s.pkg.Short)
	case frame.Stdout:
		r.steps[f.Command].tests.Write(f.Payload)
	case frame.Exit:
		s := r.steps[f.Command]
		s.tests.Close()
		status, err := frame.ParseStatus(f.Payload)
		if err != nil {
			// The machine's own reader refuses it too and ends the run.
			return
		}
		s.status = &status
		prefix := r.name + " " + s.attach
		count := s.tests.Counts()
		seconds := float64(status.Millis) / 1000
		if problem := s.problem(); problem != "" {
			if name, output := s.tests.Unfinished(); s.tests.Verdict() == "" {
				out.printf(prefix, "ended during %q:", name)
				out.lines(prefix, output)
			}
			out.printf(prefix, "FAIL\t%s\t%.1fs\t%s", s.pkg.Short, seconds, problem)
			return
		}
		out.printf(prefix, "ok\t%s\t%.1fs\t%d passed, %d skipped", s.pkg.Short, seconds, count.Passed, count.Skipped)
	}
}

// summarize prints a line for each kernel and attach mode. It returns errFailed
// unless every one of them ran tests and all of those passed.
func summarize(w io.Writer, o testOptions, runs []kernelRun, elapsed time.Duration) error {
	fmt.Fprintf(w, "\n%-8s %-32s %-10s %6s %6s %7s  %s\n", "kernel", "release", "attach", "passed", "failed", "skipped", "result")
	var total vm.TestCount
	failed, retries := 0, 0
	for _, r := range runs {
		retries += max(0, r.result.Attempts-1)
		for _, attach := range o.attach {
			var count vm.TestCount
			var problems []string
			found := false
			for _, s := range r.steps {
				if s.attach != attach {
					continue
				}
				found = true
				count.Add(s.tests.Counts())
				if p := s.problem(); p != "" {
					problems = append(problems, s.pkg.Short+": "+p)
				}
			}
			if found && len(problems) == 0 && count.Passed == 0 {
				problems = append(problems, "no test of any package ran")
			}
			if !found {
				problems = append(problems, "did not run")
			}
			if r.err != nil {
				reason, _, _ := strings.Cut(r.err.Error(), "\n")
				problems = append(problems, printable(reason))
			}
			if len(r.result.Warnings) > 0 {
				problems = append(problems, "the kernel warned: "+printable(r.result.Warnings[0]))
			}
			total.Add(count)
			result := "ok"
			if len(problems) > 0 {
				result = "FAIL " + strings.Join(problems, "; ")
				failed++
			}
			fmt.Fprintf(w, "%-8s %-32s %-10s %6d %6d %7d  %s\n", r.name, r.kernel.Release, attach, count.Passed, count.Failed, count.Skipped, result)
		}
		if len(r.result.Crashes) > 0 {
			fmt.Fprintf(w, "%-8s %d crashes of the emulator or its kernel, %d retries\n", r.name, len(r.result.Crashes), r.result.Attempts-1)
		}
		if len(r.result.Missing) > 0 {
			fmt.Fprintf(w, "%-8s modules that this kernel does not have: %s\n", r.name, strings.Join(r.result.Missing, ", "))
		}
	}
	fmt.Fprintf(w, "full output: %s\n", o.logs)
	fmt.Fprintf(w, "vm: %d passed, %d failed, %d skipped; %d of %d runs failed, %d retries, %.0f s\n",
		total.Passed, total.Failed, total.Skipped, failed, len(runs)*len(o.attach), retries, elapsed.Seconds())
	if failed > 0 {
		return errFailed
	}
	return nil
}

// logDirectory makes the directory for this run's logs and removes the oldest
// ones of the default place.
func logDirectory(dir string) (string, error) {
	if dir != "" {
		return dir, os.MkdirAll(dir, 0o755)
	}
	cache, err := vm.CacheDir()
	if err != nil {
		return "", err
	}
	parent := filepath.Join(cache, "vm-logs")
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return "", fmt.Errorf("making the log directory: %w", err)
	}
	old, err := filepath.Glob(filepath.Join(parent, "2*"))
	if err != nil {
		return "", err
	}
	// Glob sorts, and the names begin with the time.
	for _, o := range old[:max(0, len(old)-keptLogs+1)] {
		if err := os.RemoveAll(o); err != nil {
			return "", fmt.Errorf("removing old logs: %w", err)
		}
	}
	return os.MkdirTemp(parent, time.Now().UTC().Format("20060102T150405-"))
}

// printer writes lines of several machines without mixing them.
type printer struct {
	mu sync.Mutex
	w  io.Writer
}

func (p *printer) printf(prefix, format string, args ...any) {
	p.lines(prefix, strings.Split(fmt.Sprintf(format, args...), "\n"))
}

func (p *printer) lines(prefix string, lines []string) {
	var b bytes.Buffer
	for _, line := range lines {
		fmt.Fprintf(&b, "[%s] %s\n", prefix, printable(line))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.w.Write(b.Bytes())
}

// printable escapes what a machine may have sent to play with the terminal.
func printable(line string) string {
	return strings.Map(func(r rune) rune {
		if r != '\t' && (r < ' ' || r >= 0x7f && r < 0xa0) {
			return '\uFFFD'
		}
		return r
	}, strings.ToValidUTF8(line, "\uFFFD"))
}
