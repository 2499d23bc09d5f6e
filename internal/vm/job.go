package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/tcptrace/tcptrace/internal/vm/frame"
)

// maxAttempts is how often a machine is started for one job, when the emulator
// or the guest's kernel crashes.
const maxAttempts = 3

// Job is a list of commands to run under one kernel.
type Job struct {
	Kernel   Kernel
	Commands []frame.Command
	Files    []File
	// Modules are loaded before the first command; see DefaultModules.
	Modules []string
	// Init is the path of the program built from internal/vm/init.
	Init string
	// Accelerator is TCG unless Accelerate found KVM to work.
	Accelerator Accelerator
	// MemoryMiB is the machine's memory; 0 means 2048: all cases of the lab at once take 0.9 GiB.
	MemoryMiB int
	// BootTimeout is how long the kernel may take to start init; 0 means 2 min.
	BootTimeout time.Duration
	// Console gets the kernel's messages of all attempts; nil means none.
	Console io.Writer
	// Observe gets every frame as it comes, from one goroutine at a time.
	// attempt counts from 1; a second attempt starts with the first command
	// again, and what came before it means nothing. It may be nil.
	Observe func(attempt int, f frame.Frame)
}

// Result is what came of a job whose commands all ran.
type Result struct {
	// Release is what uname -r said.
	Release string
	// Statuses has one entry for each command.
	Statuses []frame.Status
	// Crashes are the crashes of the emulator or the guest's kernel after which
	// the job was started again, in the kernel's or the emulator's own words.
	Crashes []string
	// Warnings are what the guest's kernel warned of, with a trace, in the last
	// attempt: with panic_on_warn each is the end of a machine.
	Warnings []string
	// Attempts is how often a machine was started for the job.
	Attempts int
	// Missing are modules that the kernel does not have.
	Missing []string
}

// ErrCrashed is returned when a machine crashed in every attempt.
var ErrCrashed = errors.New("the machine crashed")

// Run boots a machine, runs the commands, and waits until the machine is off.
// Commands that fail are no error of Run: they are in the result. A crash of the
// emulator or of the guest's kernel starts the job again, twice at most; nothing
// else does.
func (j Job) Run(ctx context.Context) (Result, error) {
	if j.MemoryMiB == 0 {
		j.MemoryMiB = 2048
	}
	if j.BootTimeout == 0 {
		j.BootTimeout = 2 * time.Minute
	}
	if j.Accelerator == "" {
		j.Accelerator = TCG
	}
	tree, err := readModuleTree(j.Kernel.ModuleDir)
	if err != nil {
		return Result{}, err
	}
	modules, missing, err := tree.resolve(j.Modules)
	if err != nil {
		return Result{}, err
	}
	result := Result{Missing: missing}

	initrd, err := os.CreateTemp("", "tcptrace-vm-*.cpio")
	if err != nil {
		return result, fmt.Errorf("packing the initial RAM disk: %w", err)
	}
	defer os.Remove(initrd.Name())
	defer initrd.Close()
	plan := frame.Plan{Hostname: "vm-" + hostLabel(j.Kernel.Name), Commands: j.Commands}
	if err := writeInitrd(initrd, j.Init, plan, modules, j.Files); err != nil {
		return result, err
	}
	if err := initrd.Close(); err != nil {
		return result, fmt.Errorf("packing the initial RAM disk: %w", err)
	}

	for attempt := 1; ; attempt++ {
		b := boot{
			kernel: j.Kernel, initrd: initrd.Name(), commands: len(j.Commands),
			accel: j.Accelerator, memoryMiB: j.MemoryMiB,
			bootTimeout: j.BootTimeout, timeout: j.totalTimeout(), console: j.Console,
			observe: func(f frame.Frame) {
				if j.Observe != nil {
					j.Observe(attempt, f)
				}
			},
		}
		r := b.start(ctx)
		result.Release, result.Statuses, result.Warnings, result.Attempts = r.release, r.statuses, r.warnings, attempt
		if r.ended {
			return result, nil
		}
		if r.crash == "" {
			return result, fmt.Errorf("running kernel %s: %w%s", j.Kernel.Name, r.err, lastLines(r.tail, 20))
		}
		result.Crashes = append(result.Crashes, r.crash)
		if attempt == maxAttempts {
			return result, fmt.Errorf("running kernel %s: %w %d times: %s%s", j.Kernel.Name, ErrCrashed, attempt,
				strings.Join(result.Crashes, "; "), lastLines(r.tail, 40))
		}
	}
}

// totalTimeout is the longest time that the machine may need; each command gets
// some time for its own end. Without a limit for each command there is one of a
// day, so that nothing runs for ever.
func (j Job) totalTimeout() time.Duration {
	total := j.BootTimeout + time.Minute
	for _, c := range j.Commands {
		if c.Timeout == 0 {
			return 24 * time.Hour
		}
		total += c.Timeout + 15*time.Second
	}
	return total
}

// hostLabel turns a kernel's name into part of a host name.
func hostLabel(name string) string {
	label := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, strings.ToLower(filepath.Base(name)))
	return strings.Trim(label[:min(len(label), 40)], "-")
}

// lastLines returns the last n lines, each after a newline.
func lastLines(text []byte, n int) string {
	plain := strings.TrimRight(strings.ReplaceAll(string(text), "\r", ""), "\n")
	if plain == "" {
		return ""
	}
	lines := strings.Split(plain, "\n")
	return "\n" + strings.Join(lines[max(0, len(lines)-n):], "\n")
}

func sortedKeys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }

// BuildInit builds the machine's first process into dir and returns its path.
// root is a directory inside the module.
func BuildInit(ctx context.Context, root, dir string) (string, error) {
	out := filepath.Join(dir, "init")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", out,
		"github.com/tcptrace/tcptrace/internal/vm/init")
	cmd.Dir = root
	cmd.Env = GuestBuildEnv()
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building init: %w\n%s", err, text)
	}
	return out, nil
}

// GuestBuildEnv is the environment for building programs that run in a machine:
// without C, so that they need no libraries, and for the machine's processor.
func GuestBuildEnv() []string {
	return append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
}
