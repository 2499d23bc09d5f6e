package lab

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// Held is a number of idle connections over loopback, kept open by processes
// of their own. Both ends of a connection are in the same one.
type Held struct {
	Connections int
	Holders     []Party

	processes []*Process
}

// holdLimit is how long the holders live at most.
const holdLimit = time.Hour

// HoldConnections opens n connections in the namespace and keeps them: 2n
// established sockets. As many processes hold them as the limit of open files
// makes necessary.
func HoldConnections(ctx context.Context, ns *Namespace, n int) (*Held, error) {
	each, err := holdEach()
	if err != nil {
		return nil, err
	}
	h := &Held{}
	for h.Connections < n {
		part := min(each, n-h.Connections)
		if err := h.add(ctx, ns, part); err != nil {
			h.Close()
			return nil, fmt.Errorf("holding %d connections: %w", n, err)
		}
		h.Connections += part
	}
	return h, nil
}

// holdEach is how many connections one process can hold.
func holdEach() (int, error) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("reading the limit of open files: %w", err)
	}
	const others = 64 // descriptors for anything else
	// A Go program starts with the soft limit raised to the hard one.
	each := (min(limit.Max, 1<<20) - min(limit.Max, others)) / 2
	if each == 0 {
		return 0, fmt.Errorf("a limit of %d open files leaves none for connections", limit.Max)
	}
	return int(each), nil
}

func (h *Held) add(ctx context.Context, ns *Namespace, n int) error {
	p, err := ns.Start("conn-holder", holdLimit)
	if err != nil {
		return err
	}
	h.processes = append(h.processes, p)
	h.Holders = append(h.Holders, p.party())
	return p.call(ctx, "hold", n, nil)
}

// Close closes all the connections, by ending their holders.
func (h *Held) Close() {
	for _, p := range h.processes {
		p.Stop()
	}
}

// hold opens n connections from this process to itself.
func (p *participant) hold(n int) (any, error) {
	listener, at, err := listenTCP(netip.AddrPortFrom(netip.IPv4Unspecified(), 0), 4096)
	if err != nil {
		return nil, err
	}
	for i := range n {
		to := netip.AddrPortFrom(loopbackAddr(i/perAddress), at.Port())
		client, err := startConnect(to, netip.Addr{}, false)
		if err != nil {
			return nil, err
		}
		deadline := time.Now().Add(time.Minute)
		if err := finishConnect(client, deadline); err != nil {
			return nil, err
		}
		if err := await(listener, unix.POLLIN, deadline); err != nil {
			return nil, err
		}
		if _, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC); err != nil {
			return nil, fmt.Errorf("accepting: %w", err)
		}
	}
	return nil, nil
}
