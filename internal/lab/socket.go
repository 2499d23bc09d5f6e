package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// Sockets here are bare file descriptors, because the cases turn on what the
// net package decides by itself: the backlog, keepalive, when to close.

// tcpSocket makes a non-blocking plain TCP socket for addr's family.
func tcpSocket(addr netip.Addr) (int, error) {
	family := unix.AF_INET
	if !addr.Is4() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return -1, fmt.Errorf("making a socket: %w", err)
	}
	return fd, nil
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// addrPort converts a socket address; IPv4-mapped ones become IPv4, as
// tcptrace shows them.
func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// listenTCP makes a listening socket with exactly this backlog argument.
// Port 0 picks a free one; the address in use is returned.
func listenTCP(at netip.AddrPort, backlog int) (int, netip.AddrPort, error) {
	return listenWith(at, backlog, true)
}

// listenWith is listenTCP with or without SO_REUSEADDR, which the socket's
// connections inherit.
func listenWith(at netip.AddrPort, backlog int, reuseAddr bool) (int, netip.AddrPort, error) {
	fd, err := tcpSocket(at.Addr())
	if err != nil {
		return -1, netip.AddrPort{}, err
	}
	fail := func(doing string, err error) (int, netip.AddrPort, error) {
		unix.Close(fd)
		return -1, netip.AddrPort{}, fmt.Errorf("%s %s: %w", doing, at, err)
	}
	if reuseAddr {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return fail("setting SO_REUSEADDR for", err)
		}
	}
	if !at.Addr().Is4() {
		// Dual stack whatever net.ipv6.bindv6only says: a case with
		// IPv4-mapped clients depends on it.
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0); err != nil {
			return fail("clearing IPV6_V6ONLY for", err)
		}
	}
	if err := unix.Bind(fd, sockaddr(at)); err != nil {
		return fail("binding to", err)
	}
	if err := unix.Listen(fd, backlog); err != nil {
		return fail("listening on", err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return fail("asking for the address of the listener on", err)
	}
	return fd, addrPort(sa), nil
}

// localAddr is the address of this end, zero if the socket has none.
func localAddr(fd int) netip.AddrPort {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return netip.AddrPort{}
	}
	return addrPort(sa)
}

// errWaited is returned when an operation's own deadline passed, as opposed
// to the kernel reporting ETIMEDOUT for the connection.
var errWaited = errors.New("waited long enough")

// await polls one descriptor for events until deadline. Errors and hang-ups
// count as ready: the next call on the socket reports them.
func await(fd int, events int16, deadline time.Time) error {
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return errWaited
		}
		pfd := []unix.PollFd{{Fd: int32(fd), Events: events}}
		n, err := unix.Poll(pfd, int(left.Milliseconds())+1)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("polling: %w", err)
		}
		if n > 0 {
			return nil
		}
	}
}

// startConnect begins a connect and returns the socket. An error that
// connect(2) reported at once is returned with the socket open.
func startConnect(to netip.AddrPort, from netip.Addr, keepalive bool) (int, error) {
	fd, err := tcpSocket(to.Addr())
	if err != nil {
		return -1, err
	}
	if keepalive {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1); err != nil {
			unix.Close(fd)
			return -1, fmt.Errorf("setting SO_KEEPALIVE: %w", err)
		}
	}
	if from.IsValid() {
		if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(from, 0))); err != nil {
			unix.Close(fd)
			return -1, fmt.Errorf("binding to %s: %w", from, err)
		}
	}
	err = unix.Connect(fd, sockaddr(to))
	if err == unix.EINPROGRESS {
		err = nil
	}
	return fd, err
}

// finishConnect waits for the outcome of a connect that startConnect began.
func finishConnect(fd int, deadline time.Time) error {
	if err := await(fd, unix.POLLOUT, deadline); err != nil {
		return err
	}
	errno, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return fmt.Errorf("reading SO_ERROR: %w", err)
	}
	if errno != 0 {
		return unix.Errno(errno)
	}
	return nil
}

// writeAll writes b before deadline.
func writeAll(fd int, b []byte, deadline time.Time) error {
	for len(b) > 0 {
		n, err := unix.SendmsgN(fd, b, nil, nil, unix.MSG_NOSIGNAL)
		switch err {
		case nil:
			b = b[n:]
		case unix.EINTR:
		case unix.EAGAIN:
			if err := await(fd, unix.POLLOUT, deadline); err != nil {
				return err
			}
		default:
			return err
		}
	}
	return nil
}

// readAtLeast reads until it has want bytes (want < 0: until the peer's FIN)
// or deadline. It returns how many bytes came and whether the FIN did.
func readAtLeast(fd, want int, deadline time.Time) (got int, eof bool, err error) {
	buf := make([]byte, 4096)
	for want < 0 || got < want {
		n, err := unix.Read(fd, buf)
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			if err := await(fd, unix.POLLIN, deadline); err != nil {
				return got, false, err
			}
		case err != nil:
			return got, false, err
		case n == 0:
			return got, true, nil
		default:
			got += n
		}
	}
	return got, false, nil
}

// closeWithReset closes the socket by RST (SO_LINGER with a time of zero).
func closeWithReset(fd int) error {
	err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	if cerr := unix.Close(fd); err == nil {
		err = cerr
	}
	return err
}

// errnoOf returns the errno in err, 0 for nil and EINPROGRESS when only the
// operation's own deadline passed.
func errnoOf(err error) unix.Errno {
	var errno unix.Errno
	switch {
	case err == nil:
		return 0
	case errors.As(err, &errno):
		return errno
	case errors.Is(err, errWaited):
		return unix.EINPROGRESS
	}
	return unix.EIO
}
