package lab

import (
	"fmt"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// serverSpec says how a server behaves. It runs one poll loop over its
// listener and connections, like redis or an event-driven relay.
type serverSpec struct {
	Addr    netip.AddrPort
	Backlog int  // listen()'s argument
	Accept  bool // accept from the start; else when told by "accepting"

	// Limit, if not 0, is the number of connections that the server holds at
	// most; it accepts later ones only to close them at once.
	Limit   int
	Refusal string // written before such a close

	NoReuseAddr bool // bind without SO_REUSEADDR

	ReceiveBuffer int  // SO_RCVBUF of the listener, which its connections inherit; 0: the kernel's default
	Deaf          bool // reads nothing until told by "reading"

	OnData onData
}

// onData is what a server does when a connection has something to read.
type onData string

const (
	ignoreData    onData = ""              // never read; nor notice the peer's FIN
	echoData      onData = "echo"          // write it back; close after the peer's FIN
	answerClose   onData = "answer-close"  // read the request, answer, close first (HTTP/1.0)
	closeUnread   onData = "close-unread"  // close() without having read it
	shutUnread    onData = "shut-unread"   // shutdown(SHUT_WR) and close() without having read it
	closeReset    onData = "close-reset"   // read it, then close() with SO_LINGER 0
	answerHalf    onData = "answer-half"   // read until the peer's FIN, then answer and close
	answerShut    onData = "answer-shut"   // read the request, answer, shut down sending; close after the peer's FIN
	readAndIgnore onData = "read-silently" // read, never answer; close after the peer's FIN
)

// response of a server under answerClose and answerHalf.
const answer = "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok"

// serverStats is what a server knows about itself.
type serverStats struct {
	Accepted int // accept() calls that returned a connection
	Held     int // connections open now
	Peak     int // most connections held at once
	HungUp   int // accepted and closed at once because of Limit
	Answered int // requests answered
	Closed   int // connections closed after the peer's FIN, or as OnData says
	Resets   int // connections that a read found reset
}

type server struct {
	spec serverSpec
	fd   int
	addr netip.AddrPort
	wake [2]int // a pipe that interrupts poll

	mu        sync.Mutex
	accepting bool
	reading   bool
	stopping  bool
	conns     map[int]struct{}
	stats     serverStats
	err       error // why the loop ended, if by itself
	done      chan struct{}
}

func newServer(spec serverSpec) (*server, error) {
	s := &server{spec: spec, accepting: spec.Accept, reading: !spec.Deaf, conns: make(map[int]struct{}), done: make(chan struct{})}
	if err := unix.Pipe2(s.wake[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, fmt.Errorf("making a pipe: %w", err)
	}
	var err error
	if s.fd, s.addr, err = listenWith(spec.Addr, spec.Backlog, !spec.NoReuseAddr); err != nil {
		return nil, err
	}
	if spec.ReceiveBuffer != 0 {
		if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, spec.ReceiveBuffer); err != nil {
			unix.Close(s.fd)
			return nil, fmt.Errorf("setting SO_RCVBUF: %w", err)
		}
	}
	go s.run()
	return s, nil
}

func (s *server) run() {
	defer close(s.done)
	for {
		fds := s.pollSet()
		if fds == nil {
			return
		}
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			s.fail(err)
			return
		}
		for _, p := range fds {
			if p.Revents == 0 {
				continue
			}
			var err error
			switch int(p.Fd) {
			case s.wake[0]:
				_, _ = unix.Read(s.wake[0], make([]byte, 64)) // only empties the pipe
			case s.fd:
				err = s.accept()
			default:
				err = s.readable(int(p.Fd))
			}
			if err != nil {
				s.fail(err)
				return
			}
		}
	}
}

func (s *server) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

// pollSet lists what to wait for; nil when the server has been retired.
func (s *server) pollSet() []unix.PollFd {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		return nil
	}
	fds := []unix.PollFd{{Fd: int32(s.wake[0]), Events: unix.POLLIN}}
	if s.accepting {
		fds = append(fds, unix.PollFd{Fd: int32(s.fd), Events: unix.POLLIN})
	}
	if s.spec.OnData != ignoreData && s.reading {
		for fd := range s.conns {
			fds = append(fds, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
		}
	}
	return fds
}

// accept takes one connection and hangs up at once if the limit is reached.
func (s *server) accept() error {
	fd, _, err := unix.Accept4(s.fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
	switch err {
	case nil:
	case unix.EAGAIN, unix.EINTR, unix.ECONNABORTED:
		return nil
	default:
		return fmt.Errorf("accepting: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stats.Accepted++
	if s.spec.Limit > 0 && len(s.conns) >= s.spec.Limit {
		s.stats.HungUp++
		if s.spec.Refusal != "" {
			// As redis does: one attempt, whatever comes of it.
			_, _ = unix.SendmsgN(fd, []byte(s.spec.Refusal), nil, nil, unix.MSG_NOSIGNAL)
		}
		return unix.Close(fd)
	}
	s.conns[fd] = struct{}{}
	s.stats.Peak = max(s.stats.Peak, len(s.conns))
	return nil
}

// readable acts on a connection that has data, a FIN or an error.
func (s *server) readable(fd int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.conns[fd]; !ok {
		return nil // closed by an earlier event of this round
	}
	switch s.spec.OnData {
	case shutUnread:
		if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil {
			return fmt.Errorf("shutting down sending: %w", err)
		}
		fallthrough
	case closeUnread:
		s.stats.Closed++
		return s.drop(fd)
	}
	buf := make([]byte, 4096)
	n, err := unix.Read(fd, buf)
	switch {
	case err == unix.EAGAIN || err == unix.EINTR:
		return nil
	case err != nil:
		s.stats.Resets++
		return s.drop(fd)
	case n == 0:
		if s.spec.OnData == answerHalf {
			s.stats.Answered++
			if err := writeAll(fd, []byte(answer), time.Now().Add(time.Second)); err != nil {
				return fmt.Errorf("answering: %w", err)
			}
		}
		s.stats.Closed++
		return s.drop(fd)
	}
	switch s.spec.OnData {
	case echoData:
		s.stats.Answered++
		// A peer that reset meanwhile shows at the next read.
		_ = writeAll(fd, buf[:n], time.Now().Add(time.Second))
	case answerClose:
		s.stats.Answered++
		s.stats.Closed++
		if err := writeAll(fd, []byte(answer), time.Now().Add(time.Second)); err != nil {
			return fmt.Errorf("answering: %w", err)
		}
		return s.drop(fd)
	case answerShut:
		s.stats.Answered++
		if err := writeAll(fd, []byte(answer), time.Now().Add(time.Second)); err != nil {
			return fmt.Errorf("answering: %w", err)
		}
		if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil {
			return fmt.Errorf("shutting down sending: %w", err)
		}
	case closeReset:
		s.stats.Closed++
		delete(s.conns, fd)
		return closeWithReset(fd)
	}
	return nil
}

// drop closes a connection. The caller holds mu.
func (s *server) drop(fd int) error {
	delete(s.conns, fd)
	return unix.Close(fd)
}

// nudge makes the loop look at its state again.
func (s *server) nudge() {
	// A full pipe wakes the loop as well.
	_, _ = unix.Write(s.wake[1], []byte{0})
}

// retire ends the loop and closes everything, connections first, as an
// instance that is taken out of service does.
func (s *server) retire() error {
	s.mu.Lock()
	s.stopping = true
	s.mu.Unlock()
	s.nudge()
	<-s.done
	s.mu.Lock()
	defer s.mu.Unlock()
	for fd := range s.conns {
		if err := s.drop(fd); err != nil {
			return err
		}
	}
	return unix.Close(s.fd)
}

// bindArgs say how a program binds and perhaps listens, as strictly as the
// program itself would: what fails is told, not tried otherwise.
type bindArgs struct {
	Addr      netip.AddrPort
	ReuseAddr bool
	ReusePort bool
	Listen    bool
}

type bound struct {
	FD     int // -1 where it failed
	Addr   netip.AddrPort
	Errno  unix.Errno
	Failed string // the call that failed: bind or listen
}

// bind makes a socket as told and keeps it, in no server's hands.
func (p *participant) bind(args bindArgs) (any, error) {
	fd, err := tcpSocket(args.Addr.Addr())
	if err != nil {
		return nil, err
	}
	for option, on := range map[int]bool{unix.SO_REUSEADDR: args.ReuseAddr, unix.SO_REUSEPORT: args.ReusePort} {
		if !on {
			continue
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, 1); err != nil {
			unix.Close(fd)
			return nil, fmt.Errorf("setting socket option %d: %w", option, err)
		}
	}
	failed := "bind"
	err = unix.Bind(fd, sockaddr(args.Addr))
	if err == nil && args.Listen {
		failed = "listen"
		err = unix.Listen(fd, 511)
	}
	if err != nil {
		unix.Close(fd)
		return bound{FD: -1, Addr: args.Addr, Errno: errnoOf(err), Failed: failed}, nil
	}
	return bound{FD: fd, Addr: localAddr(fd)}, nil
}

// listen makes a bound socket listen; it returns the errno.
func (p *participant) listen(fd int) (any, error) {
	return errnoOf(unix.Listen(fd, 511)), nil
}

// The verbs of a server.

type served struct {
	Server int // names the server in later calls
	Addr   netip.AddrPort
}

func (p *participant) serve(spec serverSpec) (any, error) {
	s, err := newServer(spec)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.servers[s.fd] = s
	return served{Server: s.fd, Addr: s.addr}, nil
}

func (p *participant) server(id int) (*server, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s, ok := p.servers[id]
	if !ok {
		return nil, fmt.Errorf("there is no server %d", id)
	}
	return s, nil
}

type acceptingArgs struct {
	Server int
	On     bool
}

func (p *participant) accepting(args acceptingArgs) (any, error) {
	s, err := p.server(args.Server)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.accepting = args.On
	s.mu.Unlock()
	s.nudge()
	return nil, nil
}

type readingArgs struct {
	Server int
	On     bool
}

// reading makes the server read, or stop reading, what its clients send.
func (p *participant) reading(args readingArgs) (any, error) {
	s, err := p.server(args.Server)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.reading = args.On
	s.mu.Unlock()
	s.nudge()
	return nil, nil
}

// serving returns the server's statistics.
func (p *participant) serving(id int) (any, error) {
	s, err := p.server(id)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.stats
	st.Held = len(s.conns)
	return st, s.err
}

func (p *participant) retire(id int) (any, error) {
	s, err := p.server(id)
	if err != nil {
		return nil, err
	}
	return nil, s.retire()
}
