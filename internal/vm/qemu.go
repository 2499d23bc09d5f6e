package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/tcptrace/tcptrace/internal/vm/frame"
)

const emulator = "qemu-system-x86_64"

// Accelerator is how QEMU runs a machine's instructions.
type Accelerator string

// TCG translates each instruction and works everywhere; KVM needs the
// processor's and the host's help.
const (
	TCG Accelerator = "tcg"
	KVM Accelerator = "kvm"
)

// boot is one start of a machine.
type boot struct {
	kernel    Kernel
	initrd    string
	commands  int
	accel     Accelerator
	memoryMiB int
	// bootTimeout is how long init may take to answer, timeout how long the
	// machine may run in all.
	bootTimeout, timeout time.Duration
	console              io.Writer // nil: none
	observe              func(frame.Frame)
}

// bootResult is how a machine ended.
type bootResult struct {
	release  string
	statuses []frame.Status // of the commands that ended, in order
	ended    bool           // all commands have run
	crash    string         // the panic's or the emulator's own words, or ""
	err      error          // why it did not end well, other than a crash
	warnings []string       // the first ones of the kernel, with a trace each
	tail     []byte         // the console's last lines
}

// start boots a machine and waits until it is off.
func (b boot) start(ctx context.Context) bootResult {
	ctx, cancel := context.WithTimeoutCause(ctx, b.timeout,
		fmt.Errorf("the machine was still running after %v", b.timeout))
	defer cancel()
	ctx, abort := context.WithCancelCause(ctx)
	defer abort(nil)

	cpu := "max"
	if b.accel == TCG {
		// QEMU 7.2's TCG corrupts EFLAGS in cmpxchg16b: with cx16 many a boot of
		// 6.12 dies of a double fault. What needs the instruction is
		// bpf_sk_storage_get of 7.3, which tcptrace does not use.
		cpu = "max,-cx16"
	}
	cmd := exec.CommandContext(ctx, emulator,
		"-accel", string(b.accel), "-cpu", cpu, "-smp", "1", "-m", strconv.Itoa(b.memoryMiB)+"M",
		"-net", "none", "-nographic", "-monitor", "none", "-no-reboot",
		"-serial", "file:/dev/fd/3", "-serial", "file:/dev/fd/4",
		"-kernel", b.kernel.Image, "-initrd", b.initrd,
		// An oops ends the machine: what runs after it means nothing. Warnings
		// are shown, the rest of the kernel's messages is not.
		"-append", "console=ttyS0 quiet loglevel=5 panic=-1 oops=panic")
	// A machine must not outlive its runner, nor get the terminal's Ctrl-C,
	// which the runner answers.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	var emulatorSays bytes.Buffer
	cmd.Stdout, cmd.Stderr = &emulatorSays, &emulatorSays

	consoleR, consoleW, err := os.Pipe()
	if err != nil {
		return bootResult{err: fmt.Errorf("making a pipe: %w", err)}
	}
	defer consoleR.Close()
	defer consoleW.Close()
	framesR, framesW, err := os.Pipe()
	if err != nil {
		return bootResult{err: fmt.Errorf("making a pipe: %w", err)}
	}
	defer framesR.Close()
	defer framesW.Close()
	cmd.ExtraFiles = []*os.File{consoleW, framesW}

	if err := cmd.Start(); err != nil {
		return bootResult{err: hinted(fmt.Errorf("starting the emulator: %w", err), "scripts/setup test installs qemu-system-x86")}
	}
	consoleW.Close()
	framesW.Close()

	var console tail
	var warnings warnings
	var copies sync.WaitGroup
	copies.Go(func() {
		// The pipe's end is the only error there can be.
		w := io.MultiWriter(&console, &warnings)
		if b.console != nil {
			w = io.MultiWriter(w, b.console)
		}
		_, _ = io.Copy(w, consoleR)
	})
	var result bootResult
	copies.Go(func() {
		ready := time.AfterFunc(b.bootTimeout, func() {
			abort(fmt.Errorf("init did not answer within %v", b.bootTimeout))
		})
		defer ready.Stop()
		result.err = b.receive(frame.NewReader(framesR), &result, func() { ready.Stop() })
		// The emulator must be able to go on writing, or it never exits.
		_, _ = io.Copy(io.Discard, framesR)
	})
	copies.Wait()
	waitErr := cmd.Wait()
	if cause := context.Cause(ctx); cause != nil {
		result.err = cause
	}

	result.tail, result.warnings = console.bytes(), warnings.found
	if !result.ended {
		result.crash = crashSignature(result.tail)
		if result.crash == "" && emulatorCrashed(waitErr) && ctx.Err() == nil {
			result.crash = strings.TrimSpace(fmt.Sprintf("%s: %v: %s", emulator, waitErr, firstLine(emulatorSays.String())))
		}
		if waitErr != nil && ctx.Err() == nil {
			result.err = fmt.Errorf("running the emulator: %w: %s", waitErr, bytes.TrimSpace(emulatorSays.Bytes()))
		}
	}
	return result
}

// receive reads frames until the stream ends.
func (b boot) receive(r *frame.Reader, result *bootResult, ready func()) error {
	for {
		f, err := r.Next()
		switch {
		case errors.Is(err, io.EOF) && result.ended:
			return nil
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return errors.New("the machine stopped before all commands had run")
		case err != nil:
			return fmt.Errorf("reading from the machine: %w", err)
		}
		switch f.Kind {
		case frame.Start, frame.Stdout, frame.Stderr, frame.Exit:
			if f.Command >= b.commands {
				return fmt.Errorf("reading from the machine: there is no command %d", f.Command)
			}
		}
		switch f.Kind {
		case frame.Ready:
			ready()
			result.release = string(f.Payload)
		case frame.Exit:
			s, err := frame.ParseStatus(f.Payload)
			if err != nil {
				return fmt.Errorf("reading from the machine: %w", err)
			}
			if f.Command != len(result.statuses) {
				return fmt.Errorf("reading a command's status: command %d ended out of turn", f.Command)
			}
			result.statuses = append(result.statuses, s)
		case frame.End:
			if len(result.statuses) != b.commands {
				return fmt.Errorf("the machine ended after %d of %d commands", len(result.statuses), b.commands)
			}
			result.ended = true
		}
		b.observe(f)
	}
}

// panicLines are what a kernel says when it can't go on. What a kernel under a
// busy emulator says besides (soft lockups, stalls) is no crash.
var panicLines = regexp.MustCompile(`(?m)^.*(Kernel panic - not syncing|Oops: |Oops - |kernel BUG at |BUG: unable to handle|general protection fault|PANIC: double fault|Unable to mount root).*$`)

// crashSignature returns the line in which a kernel reports its own end, or "".
func crashSignature(console []byte) string {
	return string(bytes.TrimSpace(panicLines.Find(console)))
}

// warnings is a writer that finds the warnings on a console.
type warnings struct {
	line, before []byte // the line that is not over yet, and the one before it
	found        []string
}

// warningLine is how a kernel begins to tell of a WARN_ON(): what it is about
// stands on the line before, unless that is the cut.
var warningLine = regexp.MustCompile(`^(\[ *[0-9]+\.[0-9]+\] )?WARNING: `)

const (
	maxWarnings    = 8
	maxConsoleLine = 1024
)

func (w *warnings) Write(b []byte) (int, error) {
	for _, c := range b {
		if c != '\n' {
			if len(w.line) < maxConsoleLine {
				w.line = append(w.line, c)
			}
			continue
		}
		line := bytes.TrimSpace(w.line)
		if warningLine.Match(line) && len(w.found) < maxWarnings {
			said := string(line)
			if len(w.before) > 0 && !bytes.Contains(w.before, []byte("[ cut here ]")) {
				said += " (" + string(w.before) + ")"
			}
			w.found = append(w.found, said)
		}
		w.before = append(w.before[:0], line...)
		w.line = w.line[:0]
	}
	return len(b), nil
}

// emulatorCrashed reports whether the emulator was ended by a signal that
// stands for a fault of its own.
func emulatorCrashed(err error) bool {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return false
	}
	status, ok := exit.Sys().(syscall.WaitStatus)
	if !ok || !status.Signaled() {
		return false
	}
	switch status.Signal() {
	case syscall.SIGSEGV, syscall.SIGABRT, syscall.SIGBUS, syscall.SIGILL, syscall.SIGFPE, syscall.SIGTRAP:
		return true
	}
	return false
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

// tail keeps the last of what is written to it.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

const tailSize = 64 << 10 // bytes

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - tailSize; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	return len(p), nil
}

func (t *tail) bytes() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	return bytes.Clone(t.buf)
}
