package lab

import (
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// The verbs of a client. A connection is named by its descriptor in the
// client's process.

type connectArgs struct {
	To        netip.AddrPort
	From      netip.Addr // the local address, if it matters
	N         int
	KeepAlive bool
	Within    time.Duration // how long to wait for all the outcomes together
}

type connected struct {
	FD    int
	Local netip.AddrPort
	// Errno is connect's outcome: 0, or for example ECONNREFUSED; EINPROGRESS
	// when there was none within the time.
	Errno unix.Errno
	Took  time.Duration
}

// connect starts N connects, then waits for their outcomes. Those that failed
// are closed (FD -1).
func (p *participant) connect(args connectArgs) (any, error) {
	conns := make([]connected, args.N)
	begun := make([]time.Time, args.N)
	for i := range conns {
		begun[i] = time.Now()
		fd, err := startConnect(args.To, args.From, args.KeepAlive)
		if fd < 0 {
			return nil, err
		}
		conns[i] = connected{FD: fd, Local: localAddr(fd), Errno: errnoOf(err), Took: time.Since(begun[i])}
	}
	deadline := time.Now().Add(args.Within)
	for i := range conns {
		c := &conns[i]
		if c.Errno == 0 {
			c.Errno = errnoOf(finishConnect(c.FD, deadline))
			c.Took = time.Since(begun[i])
		}
		if c.Errno != 0 && c.Errno != unix.EINPROGRESS {
			unix.Close(c.FD)
			c.FD = -1
		}
	}
	return conns, nil
}

type exchangeArgs struct {
	FDs      []int
	Write    string
	Read     int  // bytes to wait for; -1 until the peer's FIN
	HalfShut bool // shut down the sending side after Write
	Close    bool // close each as soon as it was read from
	Within   time.Duration
}

type exchanged struct {
	Got   int
	EOF   bool
	Errno unix.Errno // what ended it early; EINPROGRESS when time did
}

// exchange writes on every connection, then reads from every one.
func (p *participant) exchange(args exchangeArgs) (any, error) {
	results := make([]exchanged, len(args.FDs))
	deadline := time.Now().Add(args.Within)
	for i, fd := range args.FDs {
		err := writeAll(fd, []byte(args.Write), deadline)
		if err == nil && args.HalfShut {
			err = unix.Shutdown(fd, unix.SHUT_WR)
		}
		results[i].Errno = errnoOf(err)
	}
	for i, fd := range args.FDs {
		r := &results[i]
		if r.Errno != 0 || args.Read == 0 {
			continue
		}
		var err error
		r.Got, r.EOF, err = readAtLeast(fd, args.Read, deadline)
		r.Errno = errnoOf(err)
		if args.Close {
			if err := unix.Close(fd); err != nil {
				return nil, fmt.Errorf("closing: %w", err)
			}
		}
	}
	return results, nil
}

type closeArgs struct {
	FDs   []int
	Reset bool // by RST (SO_LINGER with a time of zero)
}

func (p *participant) close(args closeArgs) (any, error) {
	for _, fd := range args.FDs {
		how := unix.Close
		if args.Reset {
			how = closeWithReset
		}
		if err := how(fd); err != nil {
			return nil, fmt.Errorf("closing: %w", err)
		}
	}
	return nil, nil
}

type loopArgs struct {
	To       netip.AddrPort
	N        int
	Interval time.Duration // between the beginnings of two connections
	Write    string        // sent after connecting
	Within   time.Duration // for one connection
}

type looped struct {
	Local    netip.AddrPort
	Errno    unix.Errno
	Got      int
	EOF      bool
	Lifetime time.Duration // from connect() until the peer's FIN was seen
}

// loop opens N connections one after the other, and on each writes, reads
// until the peer ends it, and closes.
func (p *participant) loop(args loopArgs) (any, error) {
	results := make([]looped, 0, args.N)
	for i := range args.N {
		begun := time.Now()
		deadline := begun.Add(args.Within)
		fd, err := startConnect(args.To, netip.Addr{}, false)
		if fd < 0 {
			return nil, err
		}
		if err == nil {
			err = finishConnect(fd, deadline)
		}
		r := looped{Local: localAddr(fd)}
		if err == nil {
			err = writeAll(fd, []byte(args.Write), deadline)
		}
		if err == nil {
			r.Got, r.EOF, err = readAtLeast(fd, -1, deadline)
		}
		r.Errno, r.Lifetime = errnoOf(err), time.Since(begun)
		results = append(results, r)
		if err := unix.Close(fd); err != nil {
			return nil, fmt.Errorf("closing: %w", err)
		}
		if i < args.N-1 {
			time.Sleep(args.Interval - time.Since(begun))
		}
	}
	return results, nil
}

type shortArgs struct {
	To     netip.AddrPort
	From   netip.Addr // bound to, with port 0, before connecting; invalid: not bound
	N      int
	Write  string // sent after connecting; as much is read before closing
	Shut   bool   // shutdown() first, and close() after the peer's FIN
	Within time.Duration
}

type shortLived struct {
	Local  netip.AddrPort
	Errno  unix.Errno // of the first call that failed
	Failed string     // which that was: bind, connect, exchange or shutdown
}

// short opens N connections one after the other, exchanges a message with an
// echo server on each and closes first. Failures are results, not errors.
func (p *participant) short(args shortArgs) (any, error) {
	results := make([]shortLived, args.N)
	for i := range results {
		fd, err := tcpSocket(args.To.Addr())
		if err != nil {
			return nil, err
		}
		results[i] = shortOne(fd, args)
		if err := unix.Close(fd); err != nil {
			return nil, fmt.Errorf("closing: %w", err)
		}
	}
	return results, nil
}

func shortOne(fd int, args shortArgs) shortLived {
	failed := func(doing string, err error) shortLived {
		return shortLived{Local: localAddr(fd), Errno: errnoOf(err), Failed: doing}
	}
	deadline := time.Now().Add(args.Within)
	if args.From.IsValid() {
		if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(args.From, 0))); err != nil {
			return failed("bind", err)
		}
	}
	err := unix.Connect(fd, sockaddr(args.To))
	if err == unix.EINPROGRESS {
		err = finishConnect(fd, deadline)
	}
	if err != nil {
		return failed("connect", err)
	}
	if err := writeAll(fd, []byte(args.Write), deadline); err != nil {
		return failed("exchange", err)
	}
	if _, _, err := readAtLeast(fd, len(args.Write), deadline); err != nil {
		return failed("exchange", err)
	}
	if args.Shut {
		if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil {
			return failed("shutdown", err)
		}
		if _, _, err := readAtLeast(fd, -1, deadline); err != nil {
			return failed("exchange", err)
		}
	}
	return shortLived{Local: localAddr(fd)}
}

// tcpState is a TCP state as the kernel numbers it.
type tcpState uint8

const (
	stateEstablished tcpState = 1
	stateCloseWait   tcpState = 8
)

// states returns the kernel's state of each connection.
func (p *participant) states(fds []int) (any, error) {
	states := make([]tcpState, len(fds))
	for i, fd := range fds {
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			return nil, fmt.Errorf("asking for a connection's state: %w", err)
		}
		states[i] = tcpState(info.State)
	}
	return states, nil
}
