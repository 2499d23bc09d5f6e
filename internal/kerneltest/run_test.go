package kerneltest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/diagnose"
	"github.com/tcptrace/tcptrace/internal/filter"
	"github.com/tcptrace/tcptrace/internal/host"
	"github.com/tcptrace/tcptrace/internal/kerneltest/watchtest"
	"github.com/tcptrace/tcptrace/internal/launch"
	"github.com/tcptrace/tcptrace/internal/render"
)

// The commands that these tests run are this test program, started again: a
// test machine has nothing else.
const (
	runRole = "TCPTRACE_RUN_TEST" // what the process is to be
	runArg  = "TCPTRACE_RUN_ARG"
	runFile = "TCPTRACE_RUN_FILE" // where it writes who it is
	runExit = "TCPTRACE_RUN_EXIT" // how the command ends
)

// runMain turns this process into what a test started it as.
func runMain() {
	role := os.Getenv(runRole)
	do := map[string]func() error{
		"server": runServer, "middle": runMiddle, "client": runClient, "refused": runRefused, "daemon": runDaemon, "sleep": runSleep, "end": runEnd,
	}[role]
	if do == nil {
		return
	}
	// Nobody is left over if the test ends badly.
	time.AfterFunc(5*time.Minute, func() { os.Exit(99) })
	if err := do(); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", role, err)
		os.Exit(98)
	}
	os.Exit(0)
}

// again starts this program as something else.
func again(role, arg string, attr *syscall.SysProcAttr) (*exec.Cmd, error) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), runRole+"="+role, runArg+"="+arg)
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = os.Stdout, os.Stderr, attr
	return cmd, cmd.Start()
}

// people are the processes that took part, by what they are.
type people map[string]int

func note(who string, pid int) error {
	return os.WriteFile(os.Getenv(runFile)+"."+who, []byte(strconv.Itoa(pid)), 0o600)
}

// runServer accepts one connection, of a client that it has started by way of a
// process that ends at once, and closes it with data unread.
func runServer() error {
	if err := note("server", os.Getpid()); err != nil {
		return err
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	middle, err := again("middle", l.Addr().String(), nil)
	if err != nil {
		return err
	}
	c, err := l.Accept()
	if err != nil {
		return err
	}
	if err := middle.Wait(); err != nil {
		return err
	}
	// Without reading it.
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return err
	}
	var unread int
	for unread == 0 && err == nil {
		time.Sleep(time.Millisecond)
		err = raw.Control(func(fd uintptr) { unread, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	}
	if err := errors.Join(err, c.Close()); err != nil {
		return err
	}
	time.Sleep(50 * time.Millisecond) // the client sees the end, too
	return runEnd()
}

// runMiddle starts the client in a pid namespace of its own, where it is number
// 1, and leaves it alone.
func runMiddle() error {
	client, err := again("client", os.Getenv(runArg), &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID})
	if err != nil {
		return err
	}
	return note("client", client.Process.Pid)
}

func runClient() error {
	c, err := net.Dial("tcp4", os.Getenv(runArg))
	if err != nil {
		return err
	}
	if _, err := c.Write(make([]byte, 1000)); err != nil {
		return err
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		return fmt.Errorf("the end of the connection: %v", err)
	}
	return c.Close()
}

// runRefused tries a port where nobody listens, until it is told to end.
func runRefused() error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(io.Discard, os.Stdin)
	}()
	for {
		if c, err := net.Dial("tcp4", "127.0.0.1:1"); err == nil {
			return errors.Join(errors.New("somebody listens on port 1"), c.Close())
		}
		select {
		case <-done:
			return nil
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// runDaemon leaves a process behind.
func runDaemon() error {
	d, err := again("sleep", "", &syscall.SysProcAttr{Setsid: true})
	if err != nil {
		return err
	}
	return note("daemon", d.Process.Pid)
}

func runSleep() error { time.Sleep(4 * time.Minute); return nil }

// runEnd ends as it is told to: by a status or by a signal.
func runEnd() error {
	how := os.Getenv(runExit)
	if n, err := strconv.Atoi(how); err == nil {
		os.Exit(n)
	}
	sig := unix.SignalNum(how)
	if sig == 0 {
		return fmt.Errorf("no such end: %q", how)
	}
	// Go's own handler would print its goroutines instead.
	unix.Kill(os.Getpid(), sig)
	time.Sleep(time.Minute)
	return errors.New("the signal did not end it")
}

// prepare makes a command of this program and returns where its processes write
// who they are.
func prepare(t *testing.T, role, follow, end string) (*launch.Command, string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "who")
	for k, v := range map[string]string{runRole: role, runFile: file, runExit: end} {
		t.Setenv(k, v)
	}
	c, err := launch.New(launch.Options{Args: []string{"/proc/self/exe"}, Follow: follow})
	require.NoError(t, err, "this test needs root, and to write to a cgroup of version 2")
	return c, file
}

func who(t *testing.T, file string, names ...string) people {
	t.Helper()
	p := people{}
	for _, name := range names {
		b, err := os.ReadFile(file + "." + name)
		require.NoError(t, err)
		p[name], err = strconv.Atoi(string(b))
		require.NoError(t, err)
	}
	return p
}

// finish waits for the command and for its end to be seen.
func finish(t *testing.T, c *launch.Command) launch.Status {
	t.Helper()
	status, err := c.Wait()
	require.NoError(t, err)
	time.Sleep(20 * time.Millisecond)
	return status
}

// ours are the cgroups that belong to a command.
func ours(t *testing.T) []string {
	t.Helper()
	cgroups, err := host.OpenCgroups()
	require.NoError(t, err)
	defer cgroups.Close()
	var found []string
	err = filepath.WalkDir(cgroups.Root(), func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.HasPrefix(d.Name(), "tcptrace-run-") {
			found = append(found, path)
		}
		return nil
	})
	require.NoError(t, err)
	return found
}

// TestRun traces a command whose server and short-lived grandchild talk to each
// other, beside a process with connections of its own that is no part of it.
func TestRun(t *testing.T) {
	for _, follow := range []string{launch.FollowAuto, launch.FollowCgroup, launch.FollowForks} {
		t.Run(follow, func(t *testing.T) {
			before := ours(t)
			outsider := exec.Command("/proc/self/exe")
			outsider.Env = append(os.Environ(), runRole+"=refused")
			quit, err := outsider.StdinPipe()
			require.NoError(t, err)
			require.NoError(t, outsider.Start())

			c, file := prepare(t, "server", follow, "7")
			w := watchtest.WatchScope(t, c, filter.Filter{}, diagnose.Options{SlowAccept: slowAccept()})
			require.NoError(t, c.Start())
			status := finish(t, c)
			w.End(t)
			assert.Equal(t, launch.Status{Code: 7}, status)
			// The client ends when it gets to it.
			assert.Eventually(t, func() bool { return len(c.Running()) == 0 }, watchtest.Patience(), 10*time.Millisecond, "nobody is left")
			require.NoError(t, c.Close())
			assert.ElementsMatch(t, before, ours(t), "the command's cgroup is gone")
			require.NoError(t, quit.Close())
			require.NoError(t, outsider.Wait())

			w.CheckLost(t)
			p := who(t, file, "server", "client")
			type end struct {
				pid          int
				role, source string
			}
			ends := map[end]int{}
			for _, conn := range w.Connections {
				ends[end{int(conn.Process.PID), conn.Role, conn.Process.Source}]++
				assert.Equal(t, "exe", conn.Process.Comm, "the name outlives the process")
				if follow != launch.FollowForks {
					assert.Contains(t, conn.Process.Cgroup, "/tcptrace-run-")
				}
			}
			source := "accept"
			if !w.Caps.HasAccept {
				source = "close"
			}
			assert.Equal(t, map[end]int{{p["server"], "server", source}: 1, {p["client"], "client", "connect"}: 1}, ends)
			assert.Equal(t, uint64(2), w.Summary.Connections)
			codes := map[string]int{}
			for _, v := range w.Summary.Final {
				if assert.NotNil(t, v.Process, v.Code) {
					codes[v.Code] = int(v.Process.PID)
				}
			}
			assert.Equal(t, p["server"], codes["reset-sent"])
			delete(codes, "reset-sent")
			// What the other end makes of it, where a rule tells it apart.
			if pid, ok := codes["reset-received"]; ok {
				assert.Equal(t, p["client"], pid)
				delete(codes, "reset-received")
			}
			assert.Empty(t, codes, "nothing else went wrong, and nothing of outsiders is told")
			if t.Failed() {
				w.Tell(t, func(*render.Connection) bool { return true })
			}
		})
	}
}

// TestRunLeavesDaemons has a command leave a process behind: it goes on, where
// it would have been without tcptrace.
func TestRunLeavesDaemons(t *testing.T) {
	for _, follow := range []string{launch.FollowAuto, launch.FollowCgroup, launch.FollowForks} {
		t.Run(follow, func(t *testing.T) {
			before := ours(t)
			c, file := prepare(t, "daemon", follow, "0")
			require.NoError(t, c.Start())
			assert.Equal(t, 0, finish(t, c).Exit())
			pid := who(t, file, "daemon")["daemon"]
			defer func() { assert.NoError(t, unix.Kill(pid, unix.SIGKILL)) }()
			assert.Equal(t, []uint32{uint32(pid)}, c.Running())
			require.NoError(t, c.Close())
			assert.ElementsMatch(t, before, ours(t))
			for _, p := range []int{pid, os.Getpid()} {
				b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", p))
				require.NoError(t, err, "the daemon runs")
				assert.NotContains(t, string(b), "tcptrace-run")
			}
		})
	}
}

// TestRunEnds checks that a command's end is told as it was.
func TestRunEnds(t *testing.T) {
	for _, end := range []struct {
		how  string
		want int
	}{
		{"0", 0}, {"1", 1}, {"3", 3}, {"4", 4}, {"126", 126}, {"127", 127}, {"255", 255},
		{"SIGINT", 130}, {"SIGKILL", 137}, {"SIGTERM", 143},
	} {
		for _, follow := range []string{launch.FollowCgroup, launch.FollowForks} {
			t.Run(end.how+" "+follow, func(t *testing.T) {
				c, _ := prepare(t, "end", follow, end.how)
				require.NoError(t, c.Start())
				assert.Equal(t, end.want, finish(t, c).Exit())
				require.NoError(t, c.Close())
			})
		}
	}
}

// TestRunNot checks what is said of a command that cannot be run.
func TestRunNot(t *testing.T) {
	dir := t.TempDir()
	plain := filepath.Join(dir, "plain")
	require.NoError(t, os.WriteFile(plain, []byte("x"), 0o644))
	orphan := filepath.Join(dir, "orphan")
	require.NoError(t, os.WriteFile(orphan, []byte("#!/no/such/interpreter\n"), 0o755))
	before := ours(t)
	for _, c := range []struct {
		name, path string
		want       int
	}{
		{"not in PATH", "no-such-command", 127},
		{"not there", filepath.Join(dir, "no"), 127},
		{"not executable", plain, 126},
		{"a directory", dir, 126},
		{"its interpreter is not there", orphan, 127},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmd, err := launch.New(launch.Options{Args: []string{c.path}})
			if err == nil {
				err = cmd.Start()
				require.NoError(t, cmd.Close())
			}
			var not *launch.Error
			require.ErrorAs(t, err, &not)
			assert.Equal(t, c.want, not.Status)
		})
	}
	assert.ElementsMatch(t, before, ours(t))
}

// TestRunInherits checks that a command gets what it would have got without
// tcptrace: its limits, its priority and its signals.
func TestRunInherits(t *testing.T) {
	look := func(pid int) map[string]string {
		facts := map[string]string{}
		for _, f := range []string{"status", "limits"} {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, f))
			require.NoError(t, err)
			for line := range strings.Lines(string(b)) {
				for _, key := range []string{"SigIgn", "SigBlk", "NoNewPrivs", "Umask", "Max locked memory", "Max open files", "CapEff"} {
					if strings.HasPrefix(line, key) {
						facts[key] = line
					}
				}
			}
		}
		nice, err := unix.Getpriority(unix.PRIO_PROCESS, pid)
		require.NoError(t, err)
		facts["nice"] = strconv.Itoa(20 - nice)
		return facts
	}
	t.Setenv(runRole, "sleep")
	plain, err := os.StartProcess("/proc/self/exe", []string{"plain"}, &os.ProcAttr{})
	require.NoError(t, err)
	defer func() {
		assert.NoError(t, plain.Kill())
		_, err := plain.Wait()
		assert.NoError(t, err)
	}()
	c, _ := prepare(t, "sleep", launch.FollowAuto, "0")
	w := watchtest.WatchScope(t, c, filter.Filter{}, diagnose.Options{})
	require.NoError(t, c.Start())
	// A Go program blocks signals for moments while it starts.
	assert.EventuallyWithT(t, func(t *assert.CollectT) {
		assert.Equal(t, look(plain.Pid), look(c.PID()))
	}, watchtest.Patience(), 50*time.Millisecond)
	require.NoError(t, c.Signal(unix.SIGKILL))
	assert.Equal(t, 137, finish(t, c).Exit())
	w.End(t)
	require.NoError(t, c.Close())
}
