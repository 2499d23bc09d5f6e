package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Namespace is a network namespace of its own, with loopback up. Its methods
// may be called from any goroutine, also concurrently, until Close.
type Namespace struct {
	file  *os.File
	inode uint32

	// work is served by one thread that stays in the namespace. Processes are
	// started from it because the parent death signal is tied to the thread
	// that forked: it must live as long as they do.
	work      chan func()
	closeOnce sync.Once
}

// NewNamespace makes a network namespace and brings its loopback device up.
func NewNamespace() (*Namespace, error) {
	n := &Namespace{work: make(chan func())}
	ready := make(chan error)
	go n.keep(ready)
	if err := <-ready; err != nil {
		return nil, err
	}
	return n, nil
}

// keep makes the namespace on a thread of its own and serves work there.
func (n *Namespace) keep(ready chan<- error) {
	// Never unlocked: a thread whose namespace was changed must not go back to
	// the scheduler, and ends with this goroutine.
	runtime.LockOSThread()
	if err := n.enterNew(); err != nil {
		ready <- err
		return
	}
	ready <- nil
	for fn := range n.work {
		fn()
	}
}

func (n *Namespace) enterNew() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("making a network namespace: %w", err)
	}
	file, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return fmt.Errorf("opening the new network namespace: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		file.Close()
		return fmt.Errorf("identifying the new network namespace: %w", err)
	}
	if err := loopbackUp(); err != nil {
		file.Close()
		return err
	}
	n.file, n.inode = file, uint32(st.Ino)
	return nil
}

// loopbackUp sets IFF_UP on lo in the calling thread's namespace.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("bringing lo up: %w", err)
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("bringing lo up: %w", err)
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, ifr); err != nil {
		return fmt.Errorf("reading the flags of lo: %w", err)
	}
	ifr.SetUint16(ifr.Uint16() | unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		return fmt.Errorf("bringing lo up: %w", err)
	}
	return nil
}

// Inode is the number by which the kernel and tcptrace name the namespace.
func (n *Namespace) Inode() uint32 { return n.inode }

// Path names the namespace for setns(2) in any process that sees this one's
// /proc, until Close.
func (n *Namespace) Path() string {
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.file.Fd())
}

// Do runs fn on a thread inside the namespace and returns its error. Sockets
// that fn opens stay in the namespace after it. Goroutines that fn starts do
// not run inside.
func (n *Namespace) Do(fn func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked, see keep
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			result <- fmt.Errorf("entering network namespace %d: %w", n.inode, err)
			return
		}
		result <- fn()
	}()
	return <-result
}

// Sysctl sets a sysctl below net in the namespace, for example
// ("net.ipv4.tcp_abort_on_overflow", "1").
func (n *Namespace) Sysctl(name, value string) error {
	path, err := sysctlPath(name)
	if err != nil {
		return err
	}
	return n.Do(func() error {
		if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
			return fmt.Errorf("setting %s to %s: %w", name, value, err)
		}
		return nil
	})
}

// ReadSysctl returns the value of a sysctl below net in the namespace.
func (n *Namespace) ReadSysctl(name string) (string, error) {
	path, err := sysctlPath(name)
	if err != nil {
		return "", err
	}
	var value string
	err = n.Do(func() error {
		b, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("reading %s: %w", name, err)
		}
		value = strings.TrimSpace(string(b))
		return nil
	})
	return value, err
}

// sysctlPath maps a sysctl's name to its file. Only names below net belong to
// a network namespace; any other would change the whole machine.
func sysctlPath(name string) (string, error) {
	if !strings.HasPrefix(name, "net.") || strings.Contains(name, "/") {
		return "", fmt.Errorf("sysctl %q is not one of a network namespace", name)
	}
	return filepath.Join("/proc/sys", strings.ReplaceAll(name, ".", "/")), nil
}

// Close lets go of the namespace. The kernel frees it once the last process
// and socket in it are gone. Processes that were started in it are killed.
func (n *Namespace) Close() error {
	var err error
	n.closeOnce.Do(func() {
		close(n.work)
		err = n.file.Close()
	})
	return err
}
