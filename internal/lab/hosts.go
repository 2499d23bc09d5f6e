package lab

import (
	"fmt"
	"net/netip"

	"github.com/tcptrace/tcptrace/internal/lab/peer"
)

// Addresses of hosts that are not this one. They are of the ranges reserved
// for benchmarks and documentation (RFC 2544, RFC 3849): nobody else has them.
var (
	hostPrefix4 = netip.MustParsePrefix("198.18.0.1/15")
	hostPrefix6 = netip.MustParsePrefix("2001:db8::1/64")
	clientHost4 = netip.MustParsePrefix("198.18.0.2/15")
	clientHost6 = netip.MustParsePrefix("2001:db8::2/64")
)

// scriptedAddr is the address of the i-th scripted host, 0 <= i < 60000.
func scriptedAddr(i int, v6 bool) netip.Addr {
	hi, lo := byte(1+i/250), byte(1+i%250)
	if v6 {
		a := hostPrefix6.Addr().As16()
		a[14], a[15] = hi, lo
		return netip.AddrFrom16(a)
	}
	return netip.AddrFrom4([4]byte{198, 18, hi, lo})
}

// network puts scripted hosts behind a TUN device in NS. This host has the
// addresses of hostPrefix4 and hostPrefix6.
func (e *Env) network() (*peer.Network, error) {
	dev, err := openDevice(e.NS, hostPrefix4, hostPrefix6)
	if err != nil {
		return nil, err
	}
	n := peer.NewNetwork(dev)
	e.onClose(n.Close)
	return n, nil
}

// twoHosts gives the clients a namespace of their own, joined to NS by a wire
// with a TUN device at each end. The server's host has the addresses of
// hostPrefix4 and 6, the clients' those of clientHost4 and 6. It is to be
// called in Prepare.
func (e *Env) twoHosts(decide func(toServer bool, s peer.Segment) peer.Action) (*peer.Wire, error) {
	client, err := NewNamespace()
	if err != nil {
		return nil, err
	}
	e.client = client
	near, err := openDevice(client, clientHost4, clientHost6)
	if err != nil {
		return nil, err
	}
	far, err := openDevice(e.NS, hostPrefix4, hostPrefix6)
	if err != nil {
		near.Close()
		return nil, err
	}
	w := peer.NewWire(near, far, decide)
	e.onClose(w.Close)
	return w, nil
}

func openDevice(in *Namespace, addrs ...netip.Prefix) (*peer.Device, error) {
	var dev *peer.Device
	err := in.Do(func() error {
		var err error
		dev, err = peer.OpenDevice("lab0", addrs...)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("in network namespace %d: %w", in.inode, err)
	}
	return dev, nil
}
