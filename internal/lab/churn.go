package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// churnWorkers is how many clients connect at the same time, and how many
// threads serve them: enough to keep two cores busy.
const churnWorkers = 2

// perAddress is how many connections are made to one loopback address before
// the next is taken, so that the ports in TIME_WAIT never run out.
const perAddress = 10_000

// ChurnResult tells what Churn did.
type ChurnResult struct {
	Connections int
	Elapsed     time.Duration
	Listener    netip.AddrPort
}

// Churn makes n short connections over the namespace's loopback, as fast as it
// can: connect, bytes each way (1 to 65536), close, first by the client. Both
// ends are blocking sockets in this process. Healthy traffic, made for
// measuring what tracing it costs.
func Churn(ctx context.Context, ns *Namespace, n, bytes int) (ChurnResult, error) {
	if bytes < 1 || bytes > 1<<16 {
		return ChurnResult{}, fmt.Errorf("churning: %d bytes each way are not 1 to 65536", bytes)
	}
	listener, at, err := churnListener(ns)
	if err != nil {
		return ChurnResult{}, fmt.Errorf("churning: %w", err)
	}
	c := churn{n: int64(n), bytes: bytes, listener: listener, port: at.Port(), failed: make(chan struct{})}
	var servers, clients sync.WaitGroup
	begun := time.Now()
	for range churnWorkers {
		servers.Go(func() { c.note(ns.Do(c.serve)) })
		clients.Go(func() { c.note(ns.Do(func() error { return c.connect(ctx) })) })
	}
	clients.Wait()
	elapsed := time.Since(begun)
	// Ends the accept() of each server.
	err = unix.Shutdown(listener, unix.SHUT_RDWR)
	servers.Wait()
	err = errors.Join(c.err, ctx.Err(), err, unix.Close(listener))
	if err != nil {
		return ChurnResult{}, fmt.Errorf("churning: %w", err)
	}
	return ChurnResult{Connections: n, Elapsed: elapsed, Listener: at}, nil
}

// churnListener makes a blocking listener on all the namespace's addresses.
func churnListener(ns *Namespace) (fd int, at netip.AddrPort, err error) {
	err = ns.Do(func() error {
		fd, at, err = listenTCP(netip.AddrPortFrom(netip.IPv4Unspecified(), 0), 4096)
		if err != nil {
			return err
		}
		return unix.SetNonblock(fd, false)
	})
	return fd, at, err
}

type churn struct {
	n        int64
	bytes    int
	listener int
	port     uint16
	begun    atomic.Int64 // connections begun

	mu     sync.Mutex
	err    error
	failed chan struct{} // closed with the first error
}

func (c *churn) note(err error) {
	if err == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		close(c.failed)
	}
	c.err = errors.Join(c.err, err)
}

// serve accepts, reads, answers and reads the client's FIN, until the listener
// is shut down.
func (c *churn) serve() error {
	buf := make([]byte, c.bytes)
	for {
		fd, _, err := unix.Accept4(c.listener, unix.SOCK_CLOEXEC)
		switch err {
		case nil:
		case unix.EINTR:
			continue
		case unix.EINVAL: // shut down
			return nil
		default:
			return fmt.Errorf("accepting: %w", err)
		}
		err = echoOnce(fd, buf)
		if cerr := unix.Close(fd); err == nil {
			err = cerr
		}
		if err != nil {
			return err
		}
	}
}

func echoOnce(fd int, buf []byte) error {
	if err := readBlocking(fd, buf); err != nil {
		return err
	}
	if err := writeBlocking(fd, buf); err != nil {
		return err
	}
	// The client's FIN, so that it is the client's end that waits.
	if n, err := unix.Read(fd, buf[:1]); n != 0 || err != nil {
		return fmt.Errorf("reading the client's FIN: %d bytes, error %v", n, err)
	}
	return nil
}

func (c *churn) connect(ctx context.Context) error {
	buf := make([]byte, c.bytes)
	for {
		i := c.begun.Add(1) - 1
		if i >= c.n {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil // Churn reports it
		case <-c.failed:
			return nil
		default:
		}
		to := netip.AddrPortFrom(loopbackAddr(int(i/perAddress)), c.port)
		if err := c.connectOnce(to, buf); err != nil {
			return fmt.Errorf("connection %d to %s: %w", i, to, err)
		}
	}
}

func (c *churn) connectOnce(to netip.AddrPort, buf []byte) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	err = unix.Connect(fd, sockaddr(to))
	if err == nil {
		err = writeBlocking(fd, buf)
	}
	if err == nil {
		err = readBlocking(fd, buf)
	}
	if cerr := unix.Close(fd); err == nil {
		err = cerr
	}
	return err
}

// loopbackAddr is the i-th address of 127.0.0.0/8 after 127.0.0.0.
func loopbackAddr(i int) netip.Addr {
	i++
	return netip.AddrFrom4([4]byte{127, byte(i >> 16), byte(i >> 8), byte(i)})
}

func readBlocking(fd int, buf []byte) error {
	for len(buf) > 0 {
		n, err := unix.Read(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("reading: %w", err)
		}
		if n == 0 {
			return errors.New("reading: the peer has closed")
		}
		buf = buf[n:]
	}
	return nil
}

func writeBlocking(fd int, buf []byte) error {
	for len(buf) > 0 {
		n, err := unix.Write(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("writing: %w", err)
		}
		buf = buf[n:]
	}
	return nil
}
