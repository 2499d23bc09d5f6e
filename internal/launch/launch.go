package launch

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/host"
	"github.com/tcptrace/tcptrace/internal/probe"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// Ways to follow a command.
const (
	FollowAuto   = "auto"   // both of the others, as far as they can be had
	FollowCgroup = "cgroup" // by a cgroup of its own
	FollowForks  = "forks"  // by noting every fork()
)

// Options of [New].
type Options struct {
	Args   []string // the command and its arguments
	Follow string   // FollowAuto if empty
	Log    *zap.Logger
}

// Error is why the command could not be run, with the exit status that env(1)
// has for it: 127 if it was not found, 126 if it cannot be executed.
type Error struct {
	Status int
	Err    error
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// Find looks a command up as a shell does. The error is an [*Error].
func Find(name string) (path string, err error) {
	path, err = exec.LookPath(name)
	if errors.Is(err, exec.ErrDot) {
		err = nil // whoever has "." in PATH wants it
	}
	if err == nil {
		return path, nil
	}
	// As execvp(3): what is there and cannot be executed is no reason to stop
	// looking, but to say so in the end.
	if errors.Is(err, exec.ErrNotFound) && !strings.Contains(name, "/") {
		for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
			if _, serr := os.Stat(filepath.Join(dir, name)); serr == nil || errors.Is(serr, os.ErrPermission) {
				err = os.ErrPermission
			}
		}
	}
	return "", failed(name, err)
}

func failed(name string, err error) error {
	why := err
	var lookup *exec.Error
	if errors.As(err, &lookup) {
		why = lookup.Err
	}
	var path *os.PathError
	if errors.As(err, &path) {
		why = path.Err
	}
	status := 126
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
		status = 127
		if !strings.Contains(name, "/") {
			why = errors.New("no such command in PATH")
		}
	}
	return &Error{Status: status, Err: fmt.Errorf("running %s: %w", name, why)}
}

// Command is a command that is to be followed. Its methods may be called from
// one goroutine at a time, but for Wait and Signal, which may run beside others.
type Command struct {
	args    []string
	path    string
	log     *zap.Logger
	cgroup  *cgroup // at least one of the two
	forks   *probe.Forks
	memlock unix.Rlimit
	process *os.Process
	left    string
}

// New finds the command and prepares to follow it. Nothing runs yet. It notes
// the limits that the command shall inherit, so it is to be called before
// anything raises them. An error that is an [*Error] is about the command, any
// other about following it.
func New(o Options) (*Command, error) {
	c := &Command{args: o.Args, log: o.Log}
	if c.log == nil {
		c.log = zap.NewNop()
	}
	if len(o.Args) == 0 || o.Args[0] == "" {
		return nil, errors.New("there is no command to run")
	}
	var err error
	if c.path, err = Find(o.Args[0]); err != nil {
		return nil, err
	}
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &c.memlock); err != nil {
		return nil, fmt.Errorf("reading the limit of locked memory: %w", err)
	}
	var noCgroup, noForks error
	if o.Follow != FollowForks {
		if c.cgroup, noCgroup = newCgroup(); noCgroup != nil {
			noCgroup = fmt.Errorf("making a cgroup for the command: %w", noCgroup)
			c.log.Info("the command is followed by its forks only", zap.Error(noCgroup))
		}
	}
	if o.Follow != FollowCgroup {
		if c.forks, noForks = probe.NewForks(); noForks != nil {
			noForks = fmt.Errorf("noting the command's forks: %w", noForks)
			c.log.Info("the command is followed by its cgroup only", zap.Error(noForks))
		}
	}
	if c.cgroup == nil && c.forks == nil {
		return nil, fmt.Errorf("the command cannot be followed: %w", errors.Join(noCgroup, noForks))
	}
	return c, nil
}

// Follow names the way it is followed.
func (c *Command) Follow() string {
	switch {
	case c.forks == nil:
		return FollowCgroup
	case c.cgroup == nil:
		return FollowForks
	}
	return FollowCgroup + " and " + FollowForks
}

// Caveat says what this way of following can miss.
func (c *Command) Caveat() string {
	const service = "what a service starts for the command (docker, systemd-run)"
	if c.forks == nil {
		return "not what leaves the command's cgroup, nor " + service
	}
	if n := c.Lost(); n > 0 {
		return fmt.Sprintf("not %s, nor %d descendants, which were too many", service, n)
	}
	return "not " + service
}

// Start runs the command with this process's standard input and output, its
// environment and its other open files, as if a shell had started it. The error
// is an [*Error] or about following.
func (c *Command) Start() error {
	// Where memory of BPF maps counts against a limit (before 5.11) it was
	// raised meanwhile. The command gets what it would have had.
	var raised unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_MEMLOCK, &raised) == nil && raised != c.memlock {
		if unix.Setrlimit(unix.RLIMIT_MEMLOCK, &c.memlock) == nil {
			// The limit is for what this process does, which has its maps.
			defer func() { _ = unix.Setrlimit(unix.RLIMIT_MEMLOCK, &raised) }()
		}
	}
	if c.forks != nil {
		if err := c.forks.Arm(true); err != nil {
			return err
		}
		defer func() { _ = c.forks.Arm(false) }() // as it went before
	}
	if c.cgroup == nil {
		return c.exec(nil)
	}
	err := c.exec(&syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(c.cgroup.fd.Fd())})
	if err == nil || isExec(err) || c.forks == nil {
		return err
	}
	// The command has not run: clone3() into the cgroup was refused, as by a
	// seccomp filter.
	c.log.Info("the command could not be started in a cgroup of its own", zap.Error(err))
	if _, err := c.cgroup.remove(); err != nil {
		c.log.Warn("the command's cgroup stays", zap.Error(err))
	}
	c.cgroup = nil
	return c.exec(nil)
}

func (c *Command) exec(attr *syscall.SysProcAttr) error {
	how := &os.ProcAttr{Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}, Sys: attr}
	p, err := os.StartProcess(c.path, c.args, how)
	if errors.Is(err, unix.ENOEXEC) {
		// A script that does not say what it is for is the shell's, as with
		// execvp(3).
		const shell = "/bin/sh"
		p, err = os.StartProcess(shell, slices.Concat([]string{shell, c.path}, c.args[1:]), how)
	}
	if err != nil {
		return failed(c.args[0], err)
	}
	c.process = p
	return nil
}

// isExec reports whether execve() failed, for which a cgroup makes no
// difference. EACCES can be either's; then it fails again without.
func isExec(err error) bool {
	return slices.ContainsFunc([]error{unix.ENOENT, unix.ENOEXEC, unix.ENOTDIR, unix.E2BIG, unix.ELOOP, unix.ENAMETOOLONG, unix.EISDIR, unix.ELIBBAD, unix.ETXTBSY},
		func(e error) bool { return errors.Is(err, e) })
}

// PID is the command's process id, as numbered here; 0 before Start.
func (c *Command) PID() int {
	if c.process == nil {
		return 0
	}
	return c.process.Pid
}

// Status tells how a command ended.
type Status struct {
	Code   int            // what it exited with; of no meaning if Signal is not 0
	Signal syscall.Signal // what killed it, 0 if it exited
}

// Exit is the status as shells have it: 128 and the signal's number for a
// command that a signal killed.
func (s Status) Exit() int {
	if s.Signal != 0 {
		return 128 + int(s.Signal)
	}
	return s.Code
}

// String is the status in words.
func (s Status) String() string {
	if s.Signal != 0 {
		name := unix.SignalName(s.Signal)
		if name == "" {
			name = fmt.Sprintf("signal %d", int(s.Signal))
		}
		return "killed by " + name
	}
	return fmt.Sprintf("exit status %d", s.Code)
}

// Wait waits for the end of the command itself, not of what it left running.
func (c *Command) Wait() (Status, error) {
	state, err := c.process.Wait()
	if err != nil {
		return Status{}, fmt.Errorf("waiting for %s: %w", c.args[0], err)
	}
	ws, ok := state.Sys().(syscall.WaitStatus)
	if !ok {
		return Status{Code: state.ExitCode()}, nil
	}
	if ws.Signaled() {
		return Status{Signal: ws.Signal()}, nil
	}
	return Status{Code: ws.ExitStatus()}, nil
}

// Signal sends a signal to the command. That it has ended is no error.
func (c *Command) Signal(s os.Signal) error {
	if err := c.process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("sending %v to %s: %w", s, c.args[0], err)
	}
	return nil
}

// Event reports whether the process that did something (event.FlagProcess) is
// the command or a descendant of it.
func (c *Command) Event(e *event.Event) bool {
	if c.cgroup != nil && c.cgroup.event(e) {
		return true
	}
	return c.forks != nil && c.forks.Has(e.PID)
}

// Tick makes room for further descendants, however few of them are heard of.
func (c *Command) Tick() {
	if c.forks != nil {
		c.forks.Sweep(host.Now())
	}
}

// Lost counts descendants that could not be followed, because there were too many.
func (c *Command) Lost() uint64 {
	if c.forks == nil {
		return 0
	}
	return c.forks.Lost()
}

// Process reports the same of a process that was found in /proc, where that
// numbers processes as the kernel does.
func (c *Command) Process(p event.Process) bool {
	return c.cgroup != nil && c.cgroup.process(p) || c.forks != nil && c.forks.Has(p.PID)
}

// Running lists descendants that live: as the kernel numbers them where forks
// are noted, else as they are numbered here.
func (c *Command) Running() []uint32 {
	if c.forks == nil {
		return c.cgroup.processes()
	}
	living := c.forks.Living()
	// The kernel may have skipped the program that notes an end. Only in the
	// initial pid namespace its numbers are those of here.
	if p, err := host.ReadPrivileges(); err == nil && p.InitialPID {
		living = slices.DeleteFunc(living, func(pid uint32) bool { return errors.Is(unix.Kill(int(pid), 0), unix.ESRCH) })
	}
	return living
}

// Left is the command's cgroup if Close had to leave it, with processes that are
// in cgroups that the command made beneath it; else "".
func (c *Command) Left() string { return c.left }

// Close stops following. What still runs goes on; the command's cgroup is
// removed, and what is directly in it moved to where it would have been without.
func (c *Command) Close() error {
	var errs []error
	if c.cgroup != nil {
		var err error
		c.left, err = c.cgroup.remove()
		errs = append(errs, err)
	}
	if c.forks != nil {
		errs = append(errs, c.forks.Close())
	}
	return errors.Join(errs...)
}
