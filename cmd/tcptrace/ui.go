package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/term"

	"github.com/tcptrace/tcptrace/internal/filter"
	"github.com/tcptrace/tcptrace/internal/outfile"
	"github.com/tcptrace/tcptrace/internal/render"
	"github.com/tcptrace/tcptrace/tracer"
)

// Exit statuses.
const (
	exitOK        = 0
	exitFailed    = 1
	exitUsage     = 2
	exitVerdict   = 3 // a verdict was found that was to be a failure
	exitForbidden = 4 // not permitted or not supported here
)

// exitStatus ends tcptrace with a status and without a word: that of a command
// that was run.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// failure is an error with what to do about it and the exit status.
type failure struct {
	err    error
	hint   string
	status int
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// usage is a mistake on the command line.
func usage(hint, format string, args ...any) error {
	return &failure{fmt.Errorf(format, args...), hint, exitUsage}
}

// ui is what every command has: where output goes and how.
type ui struct {
	out, err io.Writer
	logLevel string
	output   string // text or json
	log      *zap.Logger
}

// run executes a command line and returns the exit status.
func run(ctx context.Context, args []string, out, errOut io.Writer) int {
	// A closed pipe is an error of the write, not the end of the program. The
	// signal is caught, not ignored, since children would inherit that.
	pipe := make(chan os.Signal, 1)
	signal.Notify(pipe, syscall.SIGPIPE)
	defer signal.Stop(pipe)

	u := &ui{out: out, err: errOut, log: zap.NewNop()}
	root := newRoot(u)
	root.SetArgs(args)
	root.SetOut(out)
	root.SetErr(errOut)
	err := root.ExecuteContext(ctx)
	return u.finish(err)
}

// finish reports an error and chooses the exit status.
func (u *ui) finish(err error) int {
	if err == nil {
		return exitOK
	}
	var ended exitStatus
	if errors.As(err, &ended) {
		return int(ended)
	}
	var f *failure
	var bad *filter.Error
	var refused *outfile.Error
	status, hint := exitFailed, ""
	switch {
	case errors.As(err, &f):
		status, hint = f.status, f.hint
	case errors.Is(err, syscall.EPIPE):
		// Whoever read the output has seen enough, as with other tools.
		return exitOK
	case errors.As(err, &bad):
		status, hint = exitUsage, bad.Hint
	case errors.As(err, &refused) && refused.Hint != "":
		hint = refused.Hint
	case errors.Is(err, tracer.ErrNotPermitted):
		status, hint = exitForbidden, "run it with sudo; `tcptrace doctor` tells what is missing"
	case errors.Is(err, tracer.ErrNotSupported):
		status, hint = exitForbidden, "`tcptrace doctor` tells what this kernel allows"
	case errors.Is(err, syscall.ENOSPC):
		hint = "the disk that the output goes to is full"
	}
	u.complain("error", err.Error())
	if hint != "" {
		u.complain("hint", hint)
	}
	return status
}

// complain writes a line to stderr. Nobody can be told if that fails.
func (u *ui) complain(what, text string) {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	for i, l := range lines {
		lines[i] = render.Safe(strings.ReplaceAll(l, "\t", " "))
	}
	fmt.Fprintf(u.err, "%s: %s\n", what, strings.Join(lines, "\n       "))
}

// say writes a line of the command's own to where it does not disturb: stdout
// for people, stderr beside JSON lines.
func (u *ui) say(format string, args ...any) {
	w := u.out
	if u.output == "json" {
		w = u.err
	}
	for _, line := range render.Wrap(render.Safe(fmt.Sprintf(format, args...)), u.width()) {
		fmt.Fprintln(w, line)
	}
}

// terminal is the file descriptor of stdout if it is a terminal.
func (u *ui) terminal() (int, bool) {
	f, ok := u.out.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return 0, false
	}
	return int(f.Fd()), true
}

// width is that of the terminal, 80 if there is none.
func (u *ui) width() int {
	if fd, ok := u.terminal(); ok {
		if w, _, err := term.GetSize(fd); err == nil && w > 0 {
			return w
		}
	}
	return 80
}

// color follows no-color.org.
func (u *ui) color() bool {
	_, ok := u.terminal()
	return ok && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

// renderer makes the one that --output asks for. own is the host's namespace.
func (u *ui) renderer(own uint32) render.Renderer {
	if u.output == "json" {
		return render.NewJSON(u.out)
	}
	return render.NewText(u.out, render.TextOptions{Width: u.width(), Color: u.color(), Location: time.Local, Netns: own, Fold: true})
}

// outputFlag adds -o to a command.
func (u *ui) outputFlag(cmd *cobra.Command) {
	cmd.Flags().VarP(newChoice(&u.output, "text", "text", "json"), "output", "o", "`FORMAT` of the output: text or json")
	complete(cmd, "output", "text", "json")
}

// complete offers fixed words for a flag to the shell.
func complete(cmd *cobra.Command, flag string, words ...string) {
	// It fails only for a flag that does not exist.
	_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
}

// choice is a flag that takes one of several words.
type choice struct {
	value *string
	words []string
}

func newChoice(value *string, def string, words ...string) *choice {
	*value = def
	return &choice{value, words}
}

func (c *choice) String() string { return *c.value }
func (c *choice) Type() string   { return "word" }
func (c *choice) Set(s string) error {
	for _, w := range c.words {
		if s == w {
			*c.value = s
			return nil
		}
	}
	if near := filter.Nearest(s, c.words); near != "" {
		return fmt.Errorf("did you mean %s?", near)
	}
	return fmt.Errorf("it is one of %s", strings.Join(c.words, ", "))
}

// flagError turns a mistake in a flag into one with a hint.
func flagError(cmd *cobra.Command, err error) error {
	hint := fmt.Sprintf("`%s --help` lists the flags", cmd.CommandPath())
	var unknown *pflag.NotExistError
	var invalid *pflag.InvalidValueError
	var missing *pflag.ValueRequiredError
	switch {
	case errors.As(err, &unknown):
		var names []string
		cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
		cmd.InheritedFlags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
		if near := filter.Nearest(unknown.GetSpecifiedName(), names); near != "" {
			hint = fmt.Sprintf("did you mean --%s? %s", near, hint)
		}
		if len(unknown.GetSpecifiedShortnames()) > 0 {
			return usage(hint, "unknown flag -%s", unknown.GetSpecifiedName())
		}
		return usage(hint, "unknown flag --%s", unknown.GetSpecifiedName())
	case errors.As(err, &invalid):
		if invalid.GetFlag().Value.Type() == "duration" {
			return usage("a duration is written 50ms, 30s or 5m", "--%s %q: not a duration", invalid.GetFlag().Name, invalid.GetValue())
		}
		if invalid.GetFlag().Value.Type() == "uint64" {
			return usage("a number is written 1, 20 or 300", "--%s %q: not a whole number from 0 up", invalid.GetFlag().Name, invalid.GetValue())
		}
		return usage(hint, "--%s %q: %w", invalid.GetFlag().Name, invalid.GetValue(), invalid.Unwrap())
	case errors.As(err, &missing):
		return usage(hint, "--%s needs a value", missing.GetSpecifiedName())
	}
	return usage(hint, "%w", err)
}

// atMost allows up to n arguments.
func atMost(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) <= n {
			return nil
		}
		return usage(fmt.Sprintf("`%s --help` tells how it is used", cmd.CommandPath()),
			"too many arguments: %q", args[n])
	}
}

// startLog makes the log of diagnostics, which goes to stderr.
func (u *ui) startLog() error {
	if u.logLevel == "off" {
		return nil
	}
	level, err := zapcore.ParseLevel(u.logLevel)
	if err != nil {
		return err
	}
	enc := zap.NewDevelopmentEncoderConfig()
	enc.EncodeTime = zapcore.TimeEncoderOfLayout("15:04:05.000")
	u.log = zap.New(zapcore.NewCore(zapcore.NewConsoleEncoder(enc), zapcore.Lock(zapcore.AddSync(u.err)), level))
	return nil
}

// interruptible returns a context that SIGINT and SIGTERM end, and SIGHUP (the
// terminal has gone) unless that was to be ignored, as under nohup. A second
// one kills, as if nobody had listened.
func interruptible(ctx context.Context) (context.Context, context.CancelFunc) {
	ends := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) {
		ends = append(ends, syscall.SIGHUP)
	}
	ctx, stop := signal.NotifyContext(ctx, ends...)
	context.AfterFunc(ctx, stop)
	return ctx, stop
}
