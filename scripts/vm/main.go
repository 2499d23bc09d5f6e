// Command vm runs programs and tests under other kernels, in QEMU:
//
//	go run ./scripts/vm run --kernel 6.1 -- ./program arguments
//	go run ./scripts/vm test --kernels 5.10,7.3 --attach kprobe ./internal/probe
//	go run ./scripts/vm fetch sid
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/tcptrace/tcptrace/internal/vm"
)

// Exit statuses, as tcptrace itself has them.
const (
	exitFailed = 1
	exitUsage  = 2
)

// errFailed says that something failed of which the user has been told.
var errFailed = errors.New("failed")

type usageError struct{ error }

type command struct {
	summary string
	run     func(ctx context.Context, args []string) error
}

var commands = map[string]command{
	"run":   {"run one static program under a kernel", runCommand},
	"test":  {"run packages' tests under kernels", testCommand},
	"fetch": {"fetch kernels into the cache", fetchCommand},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(dispatch(ctx, os.Args[1:]))
}

func dispatch(ctx context.Context, args []string) int {
	if len(args) == 0 {
		return report(usageError{errors.New("no command given")})
	}
	c, ok := commands[args[0]]
	if !ok {
		return report(usageError{fmt.Errorf("no command is named %q", args[0])})
	}
	err := c.run(ctx, args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	return report(err)
}

func report(err error) int {
	if err == nil {
		return 0
	}
	var status exitStatus
	if errors.As(err, &status) {
		return int(status)
	}
	if errors.Is(err, errFailed) {
		return exitFailed
	}
	fmt.Fprintf(os.Stderr, "error: %v\n", err)
	var usage usageError
	if errors.As(err, &usage) {
		fmt.Fprintln(os.Stderr, "hint: vm run --kernel NAME -- BINARY ARGS... | vm test PACKAGE... | vm fetch NAME...; -h after a command tells more")
		return exitUsage
	}
	if hint := vm.Hint(err); hint != "" {
		fmt.Fprintf(os.Stderr, "hint: %s\n", strings.ReplaceAll(hint, "\n", "\n      "))
	}
	return exitFailed
}

// exitStatus is the exit status of the program that was run.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// parse reads flags and turns what is wrong with them into a usage error.
func parse(f *flag.FlagSet, args []string) error {
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return usageError{err}
	}
	return nil
}

func newFlags(name, arguments string) *flag.FlagSet {
	f := flag.NewFlagSet(name, flag.ContinueOnError)
	f.Usage = func() {
		fmt.Fprintf(f.Output(), "usage: vm %s %s\n", name, arguments)
		f.PrintDefaults()
		fmt.Fprintf(f.Output(), "kernels:\n  %s\n", strings.ReplaceAll(vm.SpecHelp, "\n", "\n  "))
	}
	return f
}

func splitList(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' })
}
