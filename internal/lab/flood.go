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

// FloodKind says what a flood meets.
type FloodKind int

// The kinds of floods.
const (
	FloodCookies FloodKind = iota // a listener with net.ipv4.tcp_syncookies 1
	FloodDropped                  // a listener with net.ipv4.tcp_syncookies 0
	FloodRefused                  // a port where nobody listens
)

// Counter is the kernel's counter that grows by one with each SYN that meets
// that.
func (k FloodKind) Counter() string {
	return [...]string{"TcpExt.TCPReqQFullDoCookies", "TcpExt.TCPReqQFullDrop", "Tcp.OutRsts"}[k]
}

// Flood is a SYN flood from random addresses of the whole internet, inside a
// namespace: a listener, and a device from which forged SYNs come in. Nothing
// leaves the namespace. It is used by one goroutine.
type Flood struct {
	Kind   FloodKind
	To     netip.AddrPort // where the SYNs go
	Server Party          // who listens there; zero where nobody does

	env  *Env
	net  *peer.Network
	from *peer.Conn // writes the segments
	rand *rand.Rand
	sent uint64
}

// NewFlood starts a server in env with env.Backlog and makes everything ready.
// It needs /dev/net/tun.
func NewFlood(ctx context.Context, env *Env, kind FloodKind) (*Flood, error) {
	var t Truth
	srv, network, err := flood(ctx, env, &t, boolSysctl(kind == FloodCookies), true)
	if err != nil {
		return nil, fmt.Errorf("preparing a SYN flood: %w", err)
	}
	if err := env.NS.Do(routeAll); err != nil {
		return nil, fmt.Errorf("preparing a SYN flood: %w", err)
	}
	f := &Flood{
		Kind: kind, env: env, net: network,
		// The same addresses each time: what fails can be repeated.
		rand: rand.New(rand.NewPCG(1, 2)),
	}
	port := srv.Addr.Port()
	if kind == FloodRefused {
		port++
	} else {
		f.Server = srv.party()
	}
	f.To = netip.AddrPortFrom(hostPrefix4.Addr(), port)
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
	// Each SYN but a dropped one is answered: the sender paces itself by that.
	for range n {
		s := peer.Segment{
			Src:    netip.AddrPortFrom(f.forged(), uint16(1024+f.rand.IntN(64000))),
			Dst:    f.To,
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
		for begun := time.Now(); f.Kind != FloodDropped && f.sent > f.net.Unscripted()+ahead; {
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

// Settle waits until the kernel has counted at least n more of the SYNs.
func (f *Flood) Settle(ctx context.Context, before Counters, n uint64) error {
	name := f.Kind.Counter()
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
