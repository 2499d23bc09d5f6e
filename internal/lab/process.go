package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Process is a participant of a case: this executable, started again inside a
// namespace under a name of its own. It does what it is called to do over a
// pair of pipes and holds its sockets until told otherwise.
type Process struct {
	PID  int
	Comm string // as the kernel shows it, at most 15 bytes

	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stderr bytes.Buffer

	mu      sync.Mutex
	lastID  int
	waiting map[int]chan response
	gone    chan struct{} // closed once the process ended
	cause   error         // why calls fail after that
}

// request and response are the lines exchanged with a participant.
type request struct {
	ID   int             `json:"id"`
	Verb string          `json:"verb"`
	Args json.RawMessage `json:"args,omitempty"`
}

type response struct {
	ID     int             `json:"id"`
	Error  string          `json:"error,omitempty"`
	Result json.RawMessage `json:"result,omitempty"`
}

// Start starts a participant named comm in the namespace. It dies with this
// process, and after limit at the latest.
func (n *Namespace) Start(comm string, limit time.Duration) (*Process, error) {
	if comm == "" || len(comm) > 15 || comm != filepath.Base(comm) {
		return nil, fmt.Errorf("starting %q: a process name has 1 to 15 bytes and no slash", comm)
	}
	p := &Process{Comm: comm, waiting: make(map[int]chan response), gone: make(chan struct{})}
	// The kernel names a process after the path that it was started by: a link
	// gives it its name before it has its first thread, where one that renames
	// itself has threads of the old name for a while.
	dir, err := os.MkdirTemp("", "tcptrace-lab-")
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", comm, err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, comm)
	// What /proc links to works also when the file was replaced meanwhile.
	if err := os.Symlink("/proc/self/exe", path); err != nil {
		return nil, fmt.Errorf("starting %s: %w", comm, err)
	}
	p.cmd = exec.Command(path)
	p.cmd.Env = append(os.Environ(), roleVariable+"="+comm, limitVariable+"="+limit.String())
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	p.cmd.Stderr = &p.stderr
	stdin, err := p.cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", comm, err)
	}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", comm, err)
	}
	p.stdin = stdin
	started := make(chan error, 1)
	n.work <- func() { started <- p.cmd.Start() }
	if err := <-started; err != nil {
		return nil, fmt.Errorf("starting %s: %w", comm, err)
	}
	p.PID = p.cmd.Process.Pid
	go p.receive(stdout)
	return p, nil
}

// receive hands responses to their callers until the process ends.
func (p *Process) receive(stdout io.Reader) {
	lines := json.NewDecoder(stdout)
	for {
		var r response
		if err := lines.Decode(&r); err != nil {
			break
		}
		p.mu.Lock()
		ch := p.waiting[r.ID]
		delete(p.waiting, r.ID)
		p.mu.Unlock()
		if ch != nil {
			ch <- r
		}
	}
	err := p.cmd.Wait()
	p.mu.Lock()
	p.cause = fmt.Errorf("%s[%d] has ended", p.Comm, p.PID)
	if err != nil {
		p.cause = fmt.Errorf("%s[%d] has ended: %w: %s", p.Comm, p.PID, err, strings.TrimSpace(p.stderr.String()))
	}
	p.mu.Unlock()
	close(p.gone)
}

// pending is a call whose response has not been taken yet.
type pending struct {
	p    *Process
	verb string
	ch   chan response
	err  error
}

// begin sends a call without waiting for its end.
func (p *Process) begin(verb string, args any) *pending {
	call := &pending{p: p, verb: verb, ch: make(chan response, 1)}
	raw, err := json.Marshal(args)
	if err != nil {
		call.err = err
		return call
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lastID++
	line, err := json.Marshal(request{ID: p.lastID, Verb: verb, Args: raw})
	if err != nil {
		call.err = err
		return call
	}
	p.waiting[p.lastID] = call.ch
	if _, err := p.stdin.Write(append(line, '\n')); err != nil {
		call.err = err
	}
	return call
}

// result waits for the end of a call and decodes what it returned.
func (c *pending) result(ctx context.Context, result any) error {
	doing := func(err error) error {
		return fmt.Errorf("%s[%d]: %s: %w", c.p.Comm, c.p.PID, c.verb, err)
	}
	if c.err != nil {
		return doing(c.err)
	}
	select {
	case <-ctx.Done():
		return doing(ctx.Err())
	case <-c.p.gone:
		// What it said before it ended still counts.
		select {
		case r := <-c.ch:
			return decode(r, result, doing)
		default:
			return doing(c.p.cause)
		}
	case r := <-c.ch:
		return decode(r, result, doing)
	}
}

func decode(r response, result any, doing func(error) error) error {
	if r.Error != "" {
		return doing(errors.New(r.Error))
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(r.Result, result); err != nil {
		return doing(err)
	}
	return nil
}

// call does verb and waits for its result.
func (p *Process) call(ctx context.Context, verb string, args, result any) error {
	return p.begin(verb, args).result(ctx, result)
}

// Stop ends the process: it exits by itself once its input is closed, and is
// killed if it has not within two seconds. The kernel closes its sockets.
func (p *Process) Stop() {
	p.stdin.Close()
	select {
	case <-p.gone:
		return
	case <-time.After(2 * time.Second):
	}
	// An error means that it ended meanwhile, which is what is wanted.
	_ = p.cmd.Process.Kill()
	<-p.gone
}
