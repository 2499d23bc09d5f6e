// Command init is the first process of a test machine (package vm). It prepares
// what the tests need, runs the plan's commands one after the other, sends what
// they print to the host in frames, and powers the machine off.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/vm/frame"
)

// runnerArg makes the process the runner rather than the first process.
const runnerArg = "tcptrace-vm-runner"

func main() {
	if len(os.Args) > 1 && os.Args[1] == runnerArg {
		if err := run(); err != nil {
			fmt.Fprintf(os.Stderr, "vm-init: %v\n", err)
			os.Exit(1)
		}
		return
	}
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "error: this is the first process of a test machine")
		fmt.Fprintln(os.Stderr, "hint: go run ./scripts/vm run --kernel 6.1 -- BINARY")
		os.Exit(2)
	}
	if err := firstProcess(); err != nil {
		fmt.Fprintf(os.Stderr, "vm-init: %v\n", err)
	}
	unix.Sync()
	// Returning from the first process would be a kernel panic, which the host
	// takes for a fault of the emulator; so there is nothing after this.
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		fmt.Fprintf(os.Stderr, "vm-init: powering off: %v\n", err)
	}
	select {}
}

// firstProcess starts the runner as a child and reaps every process that is
// left to it until the runner is gone. Two processes, because a runner that
// waits for its own commands cannot also wait for whatever dies.
func firstProcess() error {
	if err := mountAll(); err != nil {
		return err
	}
	self, err := os.StartProcess("/init", []string{"/init", runnerArg}, &os.ProcAttr{
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
		Env:   environment,
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return fmt.Errorf("starting the runner: %w", err)
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("waiting for processes: %w", err)
		case pid == self.Pid && status.ExitStatus() != 0:
			return fmt.Errorf("the runner ended with status %#x", uint32(status))
		case pid == self.Pid:
			return nil
		}
	}
}

// environment is what every command gets before its own variables.
var environment = []string{
	"PATH=" + frame.ProgramDir + ":/usr/sbin:/usr/bin:/sbin:/bin",
	"HOME=/root",
	"TMPDIR=/tmp",
	"TERM=dumb",
	"LANG=C.UTF-8",
}

type mountPoint struct {
	source, target, fstype, data string
	// optional mounts are of file systems that a kernel may lack.
	optional bool
}

var mountPoints = []mountPoint{
	{"proc", "/proc", "proc", "", false},
	{"sysfs", "/sys", "sysfs", "", false},
	{"devtmpfs", "/dev", "devtmpfs", "", false},
	{"devpts", "/dev/pts", "devpts", "", true},
	{"tmpfs", "/dev/shm", "tmpfs", "mode=1777", false},
	{"tmpfs", "/tmp", "tmpfs", "mode=1777", false},
	{"tmpfs", "/run", "tmpfs", "mode=755", false},
	{"tracefs", "/sys/kernel/tracing", "tracefs", "", true},
	{"debugfs", "/sys/kernel/debug", "debugfs", "", true},
	{"bpf", "/sys/fs/bpf", "bpf", "mode=700", false},
	{"cgroup2", "/sys/fs/cgroup", "cgroup2", "", false},
}

func mountAll() error {
	for _, m := range mountPoints {
		if err := os.MkdirAll(m.target, 0o755); err != nil && !m.optional {
			return fmt.Errorf("making %s: %w", m.target, err)
		}
		if err := unix.Mount(m.source, m.target, m.fstype, 0, m.data); err != nil {
			if !m.optional {
				return fmt.Errorf("mounting %s: %w", m.target, err)
			}
			fmt.Fprintf(os.Stderr, "vm-init: mounting %s: %v\n", m.target, err)
		}
	}
	for _, dir := range []string{"/root", "/run/netns", "/var/tmp"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("making %s: %w", dir, err)
		}
	}
	for link, target := range map[string]string{
		"/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0",
		"/dev/stdout": "/proc/self/fd/1", "/dev/stderr": "/proc/self/fd/2",
		"/var/run": "/run",
	} {
		if err := os.Symlink(target, link); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("linking %s: %w", link, err)
		}
	}
	return nil
}

func run() error {
	port, err := openPort()
	if err != nil {
		return err
	}
	w, err := frame.NewWriter(port)
	if err != nil {
		return err
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return fmt.Errorf("asking for the kernel's release: %w", err)
	}
	if err := w.Send(frame.Ready, 0, []byte(unix.ByteSliceToString(name.Release[:]))); err != nil {
		return err
	}
	logf := func(format string, args ...any) {
		// A port that is gone cannot be told about.
		_ = w.Send(frame.Log, 0, fmt.Appendf(nil, format, args...))
	}

	text, err := os.ReadFile(frame.PlanPath)
	if err != nil {
		return fmt.Errorf("reading the plan: %w", err)
	}
	var plan frame.Plan
	if err := json.Unmarshal(text, &plan); err != nil {
		return fmt.Errorf("reading the plan: %w", err)
	}
	if err := prepare(plan, logf); err != nil {
		logf("%v", err)
		return err
	}
	for i, c := range plan.Commands {
		if err := w.Send(frame.Start, i, nil); err != nil {
			return err
		}
		if err := w.SendStatus(i, runCommand(w, i, c)); err != nil {
			return err
		}
	}
	if err := w.Send(frame.End, 0, nil); err != nil {
		return err
	}
	return drain(port)
}

// openPort opens the second serial port so that bytes pass unchanged.
func openPort() (*os.File, error) {
	// Without O_NONBLOCK, or the runtime would poll a port that others share.
	fd, err := unix.Open(frame.OutputPort, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", frame.OutputPort, err)
	}
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, fmt.Errorf("reading the settings of %s: %w", frame.OutputPort, err)
	}
	t.Iflag, t.Oflag, t.Lflag = 0, 0, 0
	t.Cflag = unix.CS8 | unix.CREAD | unix.CLOCAL | unix.B115200
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, t); err != nil {
		return nil, fmt.Errorf("setting up %s: %w", frame.OutputPort, err)
	}
	return os.NewFile(uintptr(fd), frame.OutputPort), nil
}

// drain waits until the port has sent what it was given.
func drain(port *os.File) error {
	// TCSBRK with an argument other than 0 is tcdrain(3).
	if err := unix.IoctlSetInt(int(port.Fd()), unix.TCSBRK, 1); err != nil {
		return fmt.Errorf("draining %s: %w", frame.OutputPort, err)
	}
	return nil
}

func prepare(plan frame.Plan, logf func(string, ...any)) error {
	if err := unix.Sethostname([]byte(plan.Hostname)); err != nil {
		return fmt.Errorf("setting the host name: %w", err)
	}
	limit := unix.Rlimit{Cur: 1 << 18, Max: 1 << 18}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("raising the limit of open files: %w", err)
	}
	for _, m := range plan.Modules {
		if err := loadModule(filepath.Join(frame.ModuleDir, m)); err != nil {
			return err
		}
	}
	if err := loopbackUp(); err != nil {
		return err
	}
	logf("%d modules loaded", len(plan.Modules))
	return nil
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("loading a module: %w", err)
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("loading %s: %w", filepath.Base(path), err)
	}
	return nil
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("bringing lo up: %w", err)
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("bringing lo up: %w", err)
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
		return fmt.Errorf("bringing lo up: %w", err)
	}
	return nil
}

// graceAfterQuit is how long a command that timed out may take to print its
// goroutines.
const graceAfterQuit = 5 * time.Second

func runCommand(w *frame.Writer, index int, c frame.Command) frame.Status {
	began := time.Now()
	cmd := exec.Command(c.Path, c.Args...)
	cmd.Dir = c.Dir
	cmd.Env = append(append([]string{}, environment...), c.Env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	done := func(s frame.Status) frame.Status {
		s.Millis = time.Since(began).Milliseconds()
		return s
	}

	var copies sync.WaitGroup
	var pipes []*os.File
	attach := func(kind frame.Kind) (*os.File, error) {
		r, wr, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		pipes = append(pipes, wr)
		copies.Go(func() {
			defer r.Close()
			forward(w, kind, index, r)
		})
		return wr, nil
	}
	var err error
	if cmd.Stdout, err = attach(frame.Stdout); err != nil {
		return done(frame.Status{Code: -1, Error: err.Error()})
	}
	if c.Merge {
		cmd.Stderr = cmd.Stdout
	} else if cmd.Stderr, err = attach(frame.Stderr); err != nil {
		return done(frame.Status{Code: -1, Error: err.Error()})
	}
	err = cmd.Start()
	for _, p := range pipes {
		p.Close()
	}
	if err != nil {
		return done(frame.Status{Code: -1, Error: err.Error()})
	}

	waited := make(chan error, 1)
	go func() { waited <- cmd.Wait() }()
	var expired <-chan time.Time
	if c.Timeout > 0 {
		timer := time.NewTimer(c.Timeout)
		defer timer.Stop()
		expired = timer.C
	}
	timedOut := false
	select {
	case err = <-waited:
	case <-expired:
		timedOut = true
		_ = unix.Kill(-cmd.Process.Pid, unix.SIGQUIT)
		select {
		case err = <-waited:
		case <-time.After(graceAfterQuit):
			_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
			err = <-waited
		}
	}
	// What the command left behind must not hold the pipes open, nor disturb
	// the next command.
	_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
	wait := make(chan struct{})
	go func() { copies.Wait(); close(wait) }()
	select {
	case <-wait:
	case <-time.After(graceAfterQuit):
		// A daemon in a session of its own keeps the pipe; its words are not
		// the command's.
	}
	return done(statusOf(err, timedOut))
}

func statusOf(err error, timedOut bool) frame.Status {
	s := frame.Status{TimedOut: timedOut}
	var exit *exec.ExitError
	switch {
	case err == nil:
	case errors.As(err, &exit):
		s.Code = exit.ExitCode()
		if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			s.Signal = ws.Signal().String()
		}
	default:
		s.Code, s.Error = -1, err.Error()
	}
	return s
}

func forward(w *frame.Writer, kind frame.Kind, index int, r io.Reader) {
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 && w.Send(kind, index, buf[:n]) != nil {
			return
		}
		if err != nil {
			return
		}
	}
}
