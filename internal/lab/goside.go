package lab

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

// goSide is what a participant does with Go's own net package, as programs
// written in Go do. From Go 1.24 its listeners are MPTCP sockets, and
// its backlog argument is net.core.somaxconn.
type goSide struct {
	mu        sync.Mutex
	listeners []net.Listener
}

type goServed struct {
	Listener int // names the listener in later calls
	Addr     netip.AddrPort
}

// goServe listens; "go-accept" makes it accept and echo.
func (p *participant) goServe(at netip.AddrPort) (any, error) {
	l, err := net.Listen("tcp", at.String())
	if err != nil {
		return nil, err
	}
	addr, err := netip.ParseAddrPort(l.Addr().String())
	if err != nil {
		return nil, err
	}
	p.goSide.mu.Lock()
	defer p.goSide.mu.Unlock()
	p.goSide.listeners = append(p.goSide.listeners, l)
	return goServed{Listener: len(p.goSide.listeners) - 1, Addr: addr}, nil
}

// goAccept serves every connection with an echo until the process ends.
func (p *participant) goAccept(listener int) (any, error) {
	p.goSide.mu.Lock()
	defer p.goSide.mu.Unlock()
	if listener < 0 || listener >= len(p.goSide.listeners) {
		return nil, fmt.Errorf("there is no listener %d", listener)
	}
	l := p.goSide.listeners[listener]
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				// Its peer may be gone already, which is no concern here.
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	return nil, nil
}

type goEchoArgs struct {
	To     netip.AddrPort
	N      int // connections, at the same time
	Rounds int // messages on each
	Within time.Duration
}

// goEcho opens N connections with net.Dial, exchanges messages with an echo
// server on all of them and closes them. It returns their local addresses.
func (p *participant) goEcho(args goEchoArgs) (any, error) {
	locals := make([]netip.AddrPort, args.N)
	errs := make([]error, args.N)
	var wg sync.WaitGroup
	for i := range args.N {
		wg.Go(func() { locals[i], errs[i] = goEchoOne(args) })
	}
	wg.Wait()
	return locals, errors.Join(errs...)
}

func goEchoOne(args goEchoArgs) (netip.AddrPort, error) {
	c, err := net.DialTimeout("tcp", args.To.String(), args.Within)
	if err != nil {
		return netip.AddrPort{}, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(args.Within)); err != nil {
		return netip.AddrPort{}, err
	}
	message := make([]byte, 100)
	for range args.Rounds {
		if _, err := c.Write(message); err != nil {
			return netip.AddrPort{}, err
		}
		if _, err := io.ReadFull(c, message); err != nil {
			return netip.AddrPort{}, err
		}
	}
	return netip.ParseAddrPort(c.LocalAddr().String())
}
