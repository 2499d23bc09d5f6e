package kerneltest

import (
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/diagnose"
	"github.com/tcptrace/tcptrace/internal/filter"
	"github.com/tcptrace/tcptrace/internal/host"
	"github.com/tcptrace/tcptrace/internal/kerneltest/watchtest"
	"github.com/tcptrace/tcptrace/internal/lab"
	"github.com/tcptrace/tcptrace/internal/render"
)

// watchMPTCP makes a namespace with an MPTCP listener, and has it watched while
// do makes connections to it.
func watchMPTCP(t *testing.T, do func(connect func() (client, server int))) *watchtest.Watcher {
	t.Helper()
	if _, err := os.Stat("/proc/sys/net/mptcp/enabled"); err != nil {
		p, perr := host.ReadPrivileges()
		require.NoError(t, perr)
		require.True(t, p.Before(5, 11), "%v: of the kernels that are tested, only Debian's 5.10 is built without", err)
		t.Skip("this kernel has no MPTCP: ", err)
	}
	ns, err := lab.NewNamespace()
	require.NoError(t, err, "these tests need root")
	t.Cleanup(func() { ns.Close() })
	require.NoError(t, ns.Sysctl("net.mptcp.enabled", "1"))
	f := fixture{t, ns}
	socket := func() (fd int) {
		f.do("making a socket", func() (err error) {
			fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_MPTCP)
			return err
		})
		return fd
	}
	_, at := sockaddrOf("127.0.0.1:7000")
	w := watchtest.Watch(t, filter.Filter{Netns: []uint32{ns.Inode()}}, diagnose.Options{SlowAccept: slowAccept()})
	l := socket()
	defer unix.Close(l)
	require.NoError(t, unix.Bind(l, at))
	require.NoError(t, unix.Listen(l, 16))
	do(func() (client, server int) {
		client = socket()
		require.NoError(t, unix.Connect(client, at))
		server = f.accept(l)
		// Until both ends have said something, the client's would rather be plain TCP.
		for _, fd := range []int{client, server} {
			_, err := unix.Write(fd, []byte("hello"))
			require.NoError(t, err)
		}
		for _, fd := range []int{client, server} {
			f.await(fd, unix.POLLIN)
			_, err := unix.Read(fd, make([]byte, 5))
			require.NoError(t, err)
		}
		return client, server
	})
	// The kernel's workers have the last word.
	time.Sleep(watchtest.Patience() / 60)
	w.End(t)
	w.CheckLost(t)
	w.CheckAudit(t, map[uint32]bool{ns.Inode(): true})
	if t.Failed() {
		w.Tell(t, func(*render.Connection) bool { return true })
	}
	return w
}

// TestMPTCP holds the process of MPTCP connections to who had them: a kernel
// worker closes their subflows and is never named.
func TestMPTCP(t *testing.T) {
	const each = 3
	w := watchMPTCP(t, func(connect func() (client, server int)) {
		for i := range 2 * each {
			first, second := connect()
			if i < each { // either end closes first
				first, second = second, first
			}
			require.NoError(t, unix.Close(first))
			_, err := unix.Poll([]unix.PollFd{{Fd: int32(second), Events: unix.POLLIN}}, int(watchtest.Patience().Milliseconds()))
			require.NoError(t, err)
			require.NoError(t, unix.Close(second))
		}
	})
	type end struct {
		pid          int
		role, source string
	}
	ends := map[end]int{}
	for _, c := range w.Connections {
		ends[end{int(c.Process.PID), c.Role, c.Process.Source}]++
		for _, e := range c.Timeline {
			assert.NotContains(t, e.Text, "kworker")
			assert.NotContains(t, e.Text, "shutdown", "nobody called it")
		}
	}
	self := os.Getpid()
	assert.Equal(t, map[end]int{{self, "server", "accept"}: 2 * each, {self, "client", "connect"}: 2 * each}, ends)
	assert.Empty(t, w.Summary.Final, "nothing went wrong")
	if t.Failed() {
		w.Tell(t, func(*render.Connection) bool { return true })
	}
}

// TestMPTCPAborts holds what is said of connections that MPTCP aborts to what is
// known of it: that SO_LINGER 0 was set, but not that data was left unread, which
// the kernel keeps above the subflow.
func TestMPTCPAborts(t *testing.T) {
	w := watchMPTCP(t, func(connect func() (client, server int)) {
		client, server := connect()
		require.NoError(t, unix.SetsockoptLinger(client, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}))
		require.NoError(t, unix.Close(client))
		require.NoError(t, unix.Close(server))

		client, server = connect()
		_, err := unix.Write(client, []byte("never read"))
		require.NoError(t, err)
		fixture{t: t}.await(server, unix.POLLIN)
		require.NoError(t, unix.Close(server))
		require.NoError(t, unix.Close(client))
	})
	causes := map[string]any{}
	for _, v := range w.Summary.Final {
		if v.Code == "reset-sent" {
			causes[v.Subject.Kind] = v.Evidence.Get("cause")
			t.Log(v.Subject.Kind, ": ", v.Story, v.Evidence)
		}
	}
	const onPurpose = "SO_LINGER with a timeout of 0: close() resets on purpose"
	assert.Equal(t, map[string]any{"peer": onPurpose, "listener": nil}, causes)
	if t.Failed() {
		w.Tell(t, func(*render.Connection) bool { return true })
	}
}
