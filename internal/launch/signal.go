package launch

import (
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Signals takes the signals that are meant for a command while it runs. They do
// not end this process then, since its work is not done before the command's is.
type Signals struct {
	ch   chan os.Signal
	quit chan struct{}
	done sync.WaitGroup

	mu      sync.Mutex
	command *Command
	ended   bool
	before  syscall.Signal
	cancel  func()
}

// taken are the signals that end a program and that people send to one.
var taken = []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2}

// TakeSignals begins to take signals. One that comes before the command is
// started calls cancel.
func TakeSignals(cancel func()) *Signals {
	s := &Signals{ch: make(chan os.Signal, 16), quit: make(chan struct{}), cancel: cancel}
	for _, sig := range taken {
		// What nohup(1) or a shell set to be ignored stays so, and the command
		// inherits that.
		if !signal.Ignored(sig) {
			signal.Notify(s.ch, sig)
		}
	}
	s.done.Go(func() {
		for {
			select {
			case sig := <-s.ch:
				s.took(sig.(syscall.Signal))
			case <-s.quit:
				return
			}
		}
	})
	return s
}

// took passes a signal on. What is typed at a terminal goes to every process in
// its foreground, the command included: it would get that twice.
func (s *Signals) took(sig syscall.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.ended:
		// The command's own end is what it was for.
	case s.command == nil:
		if s.before == 0 {
			s.before = sig
		}
		s.cancel()
	case typed(sig) && foreground():
	default:
		// It has ended meanwhile, or has become another user's.
		_ = s.command.Signal(sig)
	}
}

func typed(sig syscall.Signal) bool {
	return sig == syscall.SIGINT || sig == syscall.SIGQUIT || sig == syscall.SIGHUP
}

// foreground reports whether this process is in the foreground of its terminal.
func foreground() bool {
	fd, err := unix.Open("/dev/tty", unix.O_RDONLY|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false // there is none
	}
	defer unix.Close(fd)
	group, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

// Start starts the command, unless a signal came before; then that is returned,
// else 0.
func (s *Signals) Start(c *Command) (syscall.Signal, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.before != 0 {
		return s.before, nil
	}
	if err := c.Start(); err != nil {
		return 0, err
	}
	s.command = c
	return 0, nil
}

// Before is the signal that came before the command was started, 0 if none did.
func (s *Signals) Before() syscall.Signal {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.before
}

// Ended tells that there is nobody to pass signals to any more.
func (s *Signals) Ended() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
}

// Stop takes no more signals: they do what they do to any program.
func (s *Signals) Stop() {
	signal.Stop(s.ch)
	close(s.quit)
	s.done.Wait()
}
