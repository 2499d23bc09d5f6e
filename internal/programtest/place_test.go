package programtest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tcptrace/tcptrace/internal/diagnose"
	"github.com/tcptrace/tcptrace/internal/filter"
	"github.com/tcptrace/tcptrace/internal/kerneltest/watchtest"
	"github.com/tcptrace/tcptrace/internal/lab"
	"github.com/tcptrace/tcptrace/internal/render"
)

// patience is how long something that is sure to come may take.
const patience = time.Minute

// place is a network namespace in which programs run.
type place struct {
	*testing.T
	ns    *lab.Namespace
	netns map[uint32]bool
	dir   string // for configuration and whatever the programs write
	w     *watchtest.Watcher
	ends  time.Time // of its part of the healthy mix

	// work is served by one thread that stays in the namespace as long as the
	// test runs: the parent death signal is tied to the thread that forked.
	work chan func()
}

// newPlace makes one that lasts as long as the test. Parts of the test may
// borrow it, see inPart.
func newPlace(t *testing.T) *place {
	t.Helper()
	ns, err := lab.NewNamespace()
	if err != nil {
		t.Fatalf("%v (these tests need root)", err)
	}
	p := &place{T: t, ns: ns, netns: map[uint32]bool{ns.Inode(): true}, dir: t.TempDir(), work: make(chan func())}
	served := make(chan error, 1)
	go func() {
		served <- ns.Do(func() error {
			for fn := range p.work {
				fn()
			}
			return nil
		})
	}()
	t.Cleanup(func() { // after the programs, which are started later
		close(p.work)
		assert.NoError(t, <-served)
		assert.NoError(t, ns.Close())
	})
	return p
}

// inPart returns the place for a part of its test, with a directory of its own.
func (p *place) inPart(t *testing.T) *place {
	part := *p
	part.T, part.dir = t, t.TempDir()
	return &part
}

// watch begins to trace the namespace.
func (p *place) watch(d diagnose.Options) {
	p.Helper()
	p.w = watchtest.Watch(p.T, filter.Filter{Netns: []uint32{p.ns.Inode()}}, d)
}

// program is one that was started.
type program struct {
	p     *place
	name  string
	pid   int
	stdin io.WriteCloser
	ended chan struct{}
	// status is valid once ended is closed: -1 if a signal ended it.
	status int
	heard  chan struct{} // closed once nobody holds its output open

	mu     sync.Mutex
	output strings.Builder // stdout and stderr
}

// find returns the path of a program. Without it there is no test.
func find(t *testing.T, name string) string {
	t.Helper()
	for _, name := range []string{name, "/usr/sbin/" + name, "/sbin/" + name} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Fatalf("%s is not installed (hint: scripts/setup test installs what the tests need)", name)
	return ""
}

// start starts a program, which is killed with all of its process group when
// the test ends.
func (p *place) start(name string, args ...string) *program {
	p.Helper()
	return p.startAs(nil, name, args...)
}

// startAs is start as somebody else, nil for as who runs the tests.
func (p *place) startAs(who *syscall.Credential, name string, args ...string) *program {
	p.Helper()
	g := &program{p: p, name: name, ended: make(chan struct{}), heard: make(chan struct{})}
	cmd := exec.Command(find(p.T, name), args...)
	cmd.Dir = p.dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "PYTHONDONTWRITEBYTECODE=1", "http_proxy=")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL, Credential: who}
	stdin, err := cmd.StdinPipe()
	require.NoError(p, err)
	g.stdin = stdin
	// A pipe of our own: processes that the program leaves behind may hold it
	// open, and must not hold up the end.
	reader, writer, err := os.Pipe()
	require.NoError(p, err)
	cmd.Stdout, cmd.Stderr = writer, writer
	started := make(chan error, 1)
	p.work <- func() { started <- cmd.Start() }
	err = <-started
	writer.Close()
	require.NoError(p, err, "starting %s", name)
	g.pid = cmd.Process.Pid
	go g.listen(reader)
	go func() {
		_ = cmd.Wait() // mostly, what counts is what it printed
		g.status = cmd.ProcessState.ExitCode()
		close(g.ended)
	}()
	p.Cleanup(func() {
		_ = syscall.Kill(-g.pid, syscall.SIGKILL) // it may have ended
		<-g.ended
		if p.Failed() {
			p.Logf("%s[%d]:\n%s", g.name, g.pid, g.said())
		}
	})
	return g
}

// listen keeps what the program prints.
func (g *program) listen(r *os.File) {
	defer close(g.heard)
	defer r.Close()
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadString('\n')
		g.mu.Lock()
		g.output.WriteString(line)
		g.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (g *program) said() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.output.String()
}

// until waits for something that is sure to come.
func (p *place) until(what string, holds func() bool) {
	p.Helper()
	for end := time.Now().Add(patience); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			p.Fatalf("waited %s in vain: %s", patience, what)
		}
	}
}

// says waits until the program has printed the text.
func (g *program) says(text string) {
	g.p.Helper()
	g.p.until(fmt.Sprintf("%s says %q", g.name, text), func() bool {
		select {
		case <-g.ended:
			g.wait()
			if !strings.Contains(g.said(), text) {
				g.p.Fatalf("%s[%d] ended without saying %q", g.name, g.pid, text)
			}
			return true
		default:
			return strings.Contains(g.said(), text)
		}
	})
}

// tell writes a line to the program's input.
func (g *program) tell(line string) {
	g.p.Helper()
	_, err := io.WriteString(g.stdin, line+"\n")
	require.NoError(g.p, err, "telling %s[%d]", g.name, g.pid)
}

// wait waits for the program to end by itself, and for the rest of its output.
func (g *program) wait() {
	g.p.Helper()
	g.waitFor(0)
}

// waitFor is wait for a program that is to run so long.
func (g *program) waitFor(d time.Duration) {
	g.p.Helper()
	select {
	case <-g.ended:
	case <-time.After(d + patience):
		g.p.Fatalf("%s[%d] did not end", g.name, g.pid)
	}
	select {
	case <-g.heard:
	case <-time.After(time.Second): // its children have it too
	}
}

// succeeds waits for the program to end by itself, with status 0.
func (g *program) succeeds() {
	g.p.Helper()
	g.wait()
	require.Zero(g.p, g.status, "exit status of %s[%d]:\n%s", g.name, g.pid, g.said())
}

// run runs a program that must succeed, and returns what it printed.
func (p *place) run(name string, args ...string) string {
	p.Helper()
	g := p.start(name, args...)
	g.succeeds()
	return g.said()
}

// signal signals one process and waits for what follows from a stop.
func (p *place) signal(pid int, s syscall.Signal) {
	p.Helper()
	require.NoError(p, syscall.Kill(pid, s), "signalling %d", pid)
	if s == syscall.SIGSTOP {
		p.until(fmt.Sprintf("process %d has stopped", pid), func() bool { return status(pid, 0) == "T" })
	}
}

// status returns a field of /proc/PID/stat, counted from the state, which is
// 0; "" if there is no such process.
func status(pid, field int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	rest := string(b)[strings.LastIndex(string(b), ")")+1:]
	return strings.Fields(rest)[field]
}

// children returns the processes that the program has forked.
func (g *program) children() []int {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	require.NoError(g.p, err)
	var pids []int
	for _, path := range stats {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err == nil && status(pid, 1) == strconv.Itoa(g.pid) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// comm is the process's name as the kernel has it.
func (g *program) comm() string {
	g.p.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", g.pid))
	require.NoError(g.p, err)
	return strings.TrimSpace(string(b))
}

// listens waits until somebody listens on the port, without connecting to it.
func (p *place) listens(port int) {
	p.Helper()
	p.until(fmt.Sprintf("somebody listens on port %d", port), func() bool { return p.queue(port) >= 0 })
}

// queue returns how many connections wait for accept() on the port, -1 if
// nobody listens.
func (p *place) queue(port int) (waiting int) {
	p.Helper()
	waiting = -1
	suffix := fmt.Sprintf(":%04X", port)
	err := p.ns.Do(func() error {
		b, err := os.ReadFile("/proc/thread-self/net/tcp")
		if err != nil {
			return err
		}
		b6, err := os.ReadFile("/proc/thread-self/net/tcp6") // not there without IPv6
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for line := range strings.Lines(string(b) + string(b6)) {
			// Number, local and remote address, state, tx_queue:rx_queue.
			f := strings.Fields(line)
			if len(f) < 5 || !strings.HasSuffix(f[1], suffix) || f[3] != "0A" {
				continue
			}
			_, rx, _ := strings.Cut(f[4], ":")
			n, err := strconv.ParseInt(rx, 16, 32)
			if err != nil {
				return err
			}
			waiting = max(waiting, int(n))
		}
		return nil
	})
	require.NoError(p, err)
	return waiting
}

// counter returns one of the kernel's counters, such as
// "TcpExt.ListenOverflows".
func (p *place) counter(name string) uint64 {
	p.Helper()
	c, err := p.ns.Counters()
	require.NoError(p, err)
	return c[name]
}

// python starts one of the scripts in testdata.
func (p *place) python(script string, args ...string) *program {
	p.Helper()
	_, here, _, _ := runtime.Caller(0)
	path := filepath.Join(filepath.Dir(here), "testdata", script)
	return p.start("python3", append([]string{path}, args...)...)
}

// ab runs ab with the arguments and checks that all of the n requests were
// answered.
func (p *place) ab(n int, args ...string) {
	p.Helper()
	p.abAt("http://"+nginxAddr+"/", n, args...)
}

func (p *place) abAt(url string, n int, args ...string) {
	p.Helper()
	g := p.start("ab", append(append([]string{"-q", "-n", strconv.Itoa(n)}, args...), url)...)
	p.abEnds(g, n)
}

func (p *place) abEnds(g *program, n int) {
	p.Helper()
	g.says("Complete requests:")
	g.wait()
	out := strings.Join(strings.Fields(g.said()), " ")
	require.Contains(p, out, fmt.Sprintf("Complete requests: %d ", n))
	require.Contains(p, out, "Failed requests: 0 ")
	require.NotContains(p, out, "Non-2xx")
}

// end ends the watch, checks what must always hold, and returns the last word
// on each verdict.
func (p *place) end() []*render.Verdict {
	p.Helper()
	p.w.End(p.T)
	p.w.CheckLost(p.T)
	p.w.CheckAudit(p.T, p.netns)
	assert.Zero(p, p.w.Summary.Lost, "lost events")
	final := p.w.Final(p.netns)
	for _, v := range final {
		p.Logf("%s %s (%s) x%d %s: %s", v.Severity, v.Code, v.Confidence, v.Count, v.Subject.Name, v.Story)
	}
	return final
}

// codeBusy is true where the machine has more to do than it can, whoever's fault
// that is: servers come to accept() late then.
const codeBusy = "slow-accept"

// ownCounters are explained in full where nothing goes wrong, whatever the hooks.
var ownCounters = []string{"ListenOverflows", "ListenDrops", "OutRsts", "EstabResets", "AttemptFails"}

// silent ends the watch, which must have nothing to say.
func (p *place) silent() {
	p.Helper()
	p.end()
	for _, v := range append(p.w.Verdicts(), p.w.Final(p.netns)...) {
		if v.Code != codeBusy {
			p.Errorf("%s is not true of healthy traffic: %s", v.Code, v.Story)
		}
	}
	wrong := 0
	odd := func(c *render.Connection) bool {
		return c.Incomplete || !c.Well && !slices.Equal(c.Verdicts, []string{codeBusy})
	}
	for _, c := range p.w.Connections {
		if odd(c) {
			wrong++
		}
	}
	if wrong > 0 {
		p.Errorf("%d of %d connections went wrong, or are incomplete", wrong, len(p.w.Connections))
		p.w.Tell(p.T, odd)
	}
	// What happened is all known, also where the hooks show it by halves.
	for _, a := range p.w.Summary.Audit {
		if p.netns[a.Netns] && slices.Contains(ownCounters, a.Counter) {
			assert.Equal(p, a.Kernel, a.Explained, "%s: %s", a.Counter, a.Note)
		}
	}
}

// only returns the verdict with this code about this process, the only one of
// its kind.
func only(p *place, all []*render.Verdict, code string, pid int) *render.Verdict {
	p.Helper()
	var found []*render.Verdict
	for _, v := range all {
		if v.Code == code && v.Process != nil && v.Process.PID == uint32(pid) {
			found = append(found, v)
		}
	}
	require.Len(p, found, 1, "%s about process %d", code, pid)
	return found[0]
}

// forbid fails the test for each verdict of another code than these.
func (p *place) forbid(all []*render.Verdict, but ...string) {
	p.Helper()
	for _, v := range all {
		if v.Code != codeBusy && !slices.Contains(but, v.Code) {
			p.Errorf("%s is not true here: %s", v.Code, v.Story)
			p.w.Tell(p.T, func(c *render.Connection) bool { return slices.Contains(c.Verdicts, v.Code) })
		}
	}
}
