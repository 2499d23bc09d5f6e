package kerneltest

import (
	"net/netip"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/diagnose"
	"github.com/tcptrace/tcptrace/internal/filter"
	"github.com/tcptrace/tcptrace/internal/kerneltest/watchtest"
	"github.com/tcptrace/tcptrace/internal/lab"
)

// TestAuditUnreachable has a connection time out whose way is lost: it ends in the
// error of that, and the kernel counts a timeout all the same.
func TestAuditUnreachable(t *testing.T) {
	ns, err := lab.NewNamespace()
	require.NoError(t, err, "these tests need root")
	t.Cleanup(func() { ns.Close() })
	f := fixture{t, ns}
	w := watchtest.Watch(t, filter.Filter{Netns: []uint32{ns.Inode()}}, diagnose.Options{})
	l := f.listen("[::1]:7000", 16)
	c := f.kept("[::1]:7000")
	s := f.accept(l)
	t.Cleanup(func() { unix.Close(s) })
	require.NoError(t, unix.SetsockoptInt(c, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 1000))

	// Without its address the loopback device is no way to anywhere.
	var request struct { // struct in6_ifreq
		addr   [16]byte
		prefix uint32
		device uint32
	}
	request.addr, request.prefix, request.device = netip.IPv6Loopback().As16(), 128, 1
	d := f.socket(unix.AF_INET6)
	defer unix.Close(d)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(d), unix.SIOCDIFADDR, uintptr(unsafe.Pointer(&request)))
	require.Zero(t, errno)
	_, err = unix.Write(c, []byte("hello"))
	require.NoError(t, err)
	f.await(c, unix.POLLERR)
	_, err = unix.Read(c, make([]byte, 1))
	require.ErrorIs(t, err, unix.ENETUNREACH)
	w.End(t)
	w.CheckLost(t)
	for _, a := range w.Summary.Audit {
		if a.Counter == "TCPAbortOnTimeout" {
			assert.Equal(t, [2]uint64{1, 1}, [2]uint64{a.Kernel, a.Explained})
			return
		}
	}
	assert.Fail(t, "TCPAbortOnTimeout did not grow")
}
