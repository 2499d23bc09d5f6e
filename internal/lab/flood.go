package lab

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/tcptrace/tcptrace/internal/lab/peer"
)

// Flood is a SYN flood from random addresses of the whole internet, inside a
// namespace: a listener, and a device from which forged SYNs come in. Nothing
// leaves the namespace. It is used by one goroutine.
type Flood struct {
	Listener netip.AddrPort // where the SYNs go
	Server   Party

	env  *Env
	net  *peer.Network
	from *peer.Conn // writes the segments
	rand *rand.Rand
	to   netip.AddrPort
	sent uint64
	// answered says that each SYN gets an answer, by which the sender paces
	// itself: a device's queue is short.
	answered bool
}

// NewFlood starts a server in env with env.Backlog and makes everything ready.
// With cookies, net.ipv4.tcp_syncookies is 1, else 0. It needs /dev/net/tun.
func NewFlood(ctx context.Context, env *Env, cookies bool) (*Flood, error) {
	var t Truth
	srv, network, err := flood(ctx, env, &t, boolSysctl(cookies), true)
	if err != nil {
		return nil, fmt.Errorf("preparing a SYN flood: %w", err)
	}
	if err := env.NS.Do(routeAll); err != nil {
		return nil, fmt.Errorf("preparing a SYN flood: %w", err)
	}
	f := &Flood{
		Listener: srv.Addr, Server: srv.party(), env: env, net: network,
		// The same addresses each time: what fails can be repeated.
		rand:     rand.New(rand.NewPCG(1, 2)),
		to:       netip.AddrPortFrom(hostPrefix4.Addr(), srv.Addr.Port()),
		answered: cookies,
	}
	f.from = scriptedClient(network, 0, false, srv.Addr)
	return f, nil
}

// routeAll sends everything that goes anywhere to the scripted hosts.
func routeAll() error {
	link, err := netlink.LinkByName("lab0")
	if err != nil {
		return fmt.Errorf("finding the TUN device: %w", err)
	}
	all := &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: all}); err != nil {
		return fmt.Errorf("adding a default route: %w", err)
	}
	return nil
}

// Send sends n SYNs as fast as they are taken.
func (f *Flood) Send(ctx context.Context, n int) error {
	const ahead = 200 // SYNs without an answer; a TUN device queues 500 packets
	for range n {
		s := peer.Segment{
			Src:    netip.AddrPortFrom(f.forged(), uint16(1024+f.rand.IntN(64000))),
			Dst:    f.to,
			Seq:    f.rand.Uint32(),
			Flags:  peer.SYN,
			Window: 65535,
			MSS:    1460,
		}
		if err := f.from.Transmit(s); err != nil {
			return fmt.Errorf("flooding: %w", err)
		}
		f.sent++
		if f.sent%64 != 0 {
			continue
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("flooding: %w", err)
		}
		// What is not answered in time was lost: a flood goes on.
		for begun := time.Now(); f.answered && f.sent > f.net.Unscripted()+ahead; {
			if time.Since(begun) > 20*time.Millisecond {
				break
			}
			time.Sleep(100 * time.Microsecond)
		}
	}
	return nil
}

// Sent returns how many SYNs were sent so far.
func (f *Flood) Sent() uint64 { return f.sent }

// Counters returns how the flood's namespace counted since the given account.
func (f *Flood) Counters(before Counters) (Counters, error) {
	now, err := f.env.NS.Counters()
	if err != nil {
		return nil, err
	}
	if before == nil {
		return now, nil
	}
	return now.Since(before), nil
}

// Settle waits until the kernel has counted at least n more of the SYNs as
// answered with a cookie, or dropped.
func (f *Flood) Settle(ctx context.Context, before Counters, n uint64) error {
	name := "TcpExt.TCPReqQFullDrop"
	if f.answered {
		name = "TcpExt.TCPReqQFullDoCookies"
	}
	return f.env.until(ctx, fmt.Sprintf("%s has grown by %d", name, n), func() (bool, error) {
		c, err := f.Counters(before)
		return err == nil && c[name] >= n, err
	})
}

// forged is an address that some host of the internet could have.
func (f *Flood) forged() netip.Addr {
	for {
		v := f.rand.Uint32()
		a := netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
		if a.IsGlobalUnicast() && v>>24 != 0 && v>>24 < 224 && a != hostPrefix4.Addr() {
			return a
		}
	}
}
