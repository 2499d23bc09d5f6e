package peer

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Device is a TUN device: what the kernel routes to it can be read, and what
// is written comes in from the network.
type Device struct {
	file *os.File
}

// maxPacket is more than any packet on the device can have (its MTU is 1500).
const maxPacket = 65535

// OpenDevice makes a TUN device in the calling thread's network namespace and
// gives it addresses; every other address of their prefixes is behind it. It
// is gone after Close.
func OpenDevice(name string, addrs ...netip.Prefix) (*Device, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil, fmt.Errorf("opening /dev/net/tun: %w (is the kernel module tun loaded?)", err)
	}
	if err != nil {
		return nil, fmt.Errorf("opening /dev/net/tun: %w", err)
	}
	fail := func(doing string, err error) (*Device, error) {
		unix.Close(fd)
		return nil, fmt.Errorf("%s %s: %w", doing, name, err)
	}
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return fail("naming the TUN device", err)
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		return fail("making the TUN device", err)
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fail("finding the TUN device", err)
	}
	for _, p := range addrs {
		addr := &netlink.Addr{IPNet: &net.IPNet{
			IP:   p.Addr().AsSlice(),
			Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()),
		}}
		if p.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD // usable at once
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return fail(fmt.Sprintf("giving address %s to", p), err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fail("bringing up", err)
	}
	// Only now: a TUN descriptor without a device cannot be polled.
	return &Device{file: os.NewFile(uintptr(fd), name)}, nil
}

// read returns the next packet that the kernel sends. It returns an error that
// is os.ErrClosed after Close.
func (d *Device) read(buf []byte) ([]byte, error) {
	n, err := d.file.Read(buf)
	if err != nil {
		return nil, err
	}
	return buf[:n], nil
}

// write has the kernel receive a packet.
func (d *Device) write(packet []byte) error {
	_, err := d.file.Write(packet)
	return err
}

// Close removes the device.
func (d *Device) Close() error { return d.file.Close() }
