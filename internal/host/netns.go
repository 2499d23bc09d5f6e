package host

import (
	"bufio"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Netns is a network namespace and a way into it.
type Netns struct {
	Inode uint32
	// Name is what people call it: the file's name below one of the usual
	// directories, or the container that a process in it belongs to; "" for a
	// namespace that has neither.
	Name string
	// Path can be opened and handed to setns(2), for as long as the process or
	// bind mount behind it lives.
	Path string
}

// ErrNoNetns is wrapped by errors about a namespace that does not exist, or
// no longer, or that this process cannot see.
var ErrNoNetns = errors.New("no such network namespace")

// netnsDirs hold the names that ip-netns(8), Docker and CRI runtimes give.
var netnsDirs = []string{"/run/netns", "/var/run/netns", "/run/docker/netns", "/var/run/docker/netns"}

// SelfNetns returns the namespace of the calling thread. The process's would be
// that of its first thread, which [Enter] may have borrowed for a moment.
func SelfNetns() (Netns, error) {
	ns, err := statNetns("/proc/thread-self/ns/net")
	if err != nil {
		return Netns{}, fmt.Errorf("finding the own network namespace: %w", err)
	}
	return ns, nil
}

// statNetns identifies the namespace behind a path.
func statNetns(path string) (Netns, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return Netns{}, fmt.Errorf("opening %s: %w", path, err)
	}
	defer unix.Close(fd)
	inode, err := netnsOf(fd)
	if err != nil {
		return Netns{}, fmt.Errorf("%s: %w", path, err)
	}
	return Netns{Inode: inode, Path: path}, nil
}

// nsfsMagic is NSFS_MAGIC of include/uapi/linux/magic.h.
const nsfsMagic = 0x6e736673

// netnsOf returns the inode number of an open network namespace, or
// [ErrNoNetns] for any other file.
func netnsOf(fd int) (uint32, error) {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return 0, err
	}
	if fs.Type != nsfsMagic {
		return 0, fmt.Errorf("not a namespace: %w", ErrNoNetns)
	}
	kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
	if err != nil {
		return 0, fmt.Errorf("asking for the kind of namespace: %w", err)
	}
	if kind != unix.CLONE_NEWNET {
		return 0, fmt.Errorf("a namespace of another kind: %w", ErrNoNetns)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, err
	}
	return uint32(st.Ino), nil
}

// given are paths of namespaces that [ResolveNetns] was given, by inode: they may
// be all there is to know of one that only a file descriptor holds.
var given struct {
	mu    sync.Mutex
	paths map[uint32]string
}

// wayGiven returns the namespace if a path was given that still leads there.
func wayGiven(inode uint32) (Netns, bool) {
	given.mu.Lock()
	path := given.paths[inode]
	given.mu.Unlock()
	if path == "" {
		return Netns{}, false
	}
	ns, err := statNetns(path)
	return ns, err == nil && ns.Inode == inode
}

// waysGiven returns those of all namespaces that were given by path.
func waysGiven() []Netns {
	given.mu.Lock()
	inodes := slices.Collect(maps.Keys(given.paths))
	given.mu.Unlock()
	var list []Netns
	for _, inode := range inodes {
		if ns, ok := wayGiven(inode); ok {
			list = append(list, ns)
		}
	}
	return list
}

// Namespaces returns every network namespace that can be seen from here,
// sorted by inode: those with a name, those mounted anywhere, those that a
// thread is in, and those that [ResolveNetns] was given a path of. The own one
// comes first.
func Namespaces() ([]Netns, error) {
	self, err := SelfNetns()
	if err != nil {
		return nil, err
	}
	all := map[uint32]Netns{self.Inode: self}
	// A named path outlives processes, so it is preferred to a pid.
	for _, ns := range namedNetns() {
		if have, ok := all[ns.Inode]; !ok || have.Name == "" {
			all[ns.Inode] = ns
		}
	}
	named := map[uint32]bool{self.Inode: true}
	err = eachNetnsLink(true, func(inode uint32, path string) bool {
		ns, ok := all[inode]
		if !ok {
			ns = Netns{Inode: inode, Path: strings.Clone(path)}
		}
		if !named[inode] {
			named[inode] = ns.nameByContainer(path)
		}
		all[inode] = ns
		return true
	})
	if err != nil {
		return nil, err
	}
	for _, ns := range waysGiven() {
		if _, ok := all[ns.Inode]; !ok {
			all[ns.Inode] = ns
		}
	}
	list := make([]Netns, 0, len(all))
	for _, ns := range all {
		list = append(list, ns)
	}
	slices.SortFunc(list, func(a, b Netns) int {
		switch {
		case a.Inode == b.Inode:
			return 0
		case a.Inode == self.Inode:
			return -1
		case b.Inode == self.Inode:
			return 1
		case a.Inode < b.Inode:
			return -1
		}
		return 1
	})
	return list, nil
}

// FindNetns looks for a namespace by its inode number. The error wraps
// [ErrNoNetns] if nothing that can be seen from here is in it.
func FindNetns(inode uint32) (Netns, error) {
	if self, err := SelfNetns(); err == nil && self.Inode == inode {
		return self, nil
	}
	found := Netns{}
	for _, ns := range namedNetns() {
		if ns.Inode == inode && found.Inode == 0 {
			found = ns
		}
	}
	look := func(threads bool) error {
		return eachNetnsLink(threads, func(i uint32, path string) bool {
			if i != inode {
				return true
			}
			if found.Inode == 0 {
				found = Netns{Inode: i, Path: strings.Clone(path)}
			}
			return !found.nameByContainer(path)
		})
	}
	if found.Name != "" && !found.machineMade() {
		return found, nil
	}
	// Most namespaces have a process in them; threads are a hundred times as
	// many.
	if err := look(false); err != nil {
		return Netns{}, err
	}
	if found.Inode == 0 {
		if ns, ok := wayGiven(inode); ok {
			found = ns
		}
	}
	if found.Inode == 0 {
		if err := look(true); err != nil {
			return Netns{}, err
		}
	}
	if found.Inode == 0 {
		return Netns{}, fmt.Errorf("network namespace %d: %w", inode, ErrNoNetns)
	}
	return found, nil
}

// ResolveNetns finds the namespace that a person named: by a path, by an
// inode number, or by a name as ip-netns(8) and container runtimes give.
func ResolveNetns(spec string) (Netns, error) {
	switch {
	case spec == "":
		return Netns{}, fmt.Errorf("an empty name: %w", ErrNoNetns)
	case strings.Contains(spec, "/"):
		ns, err := statNetns(spec)
		if err != nil {
			return Netns{}, err
		}
		for _, named := range namedNetns() {
			if named.Inode == ns.Inode {
				ns.Name = named.Name
			}
		}
		given.mu.Lock()
		defer given.mu.Unlock()
		if given.paths == nil {
			given.paths = make(map[uint32]string)
		}
		given.paths[ns.Inode] = spec
		return ns, nil
	}
	for _, ns := range namedNetns() {
		if ns.Name == spec {
			return ns, nil
		}
	}
	if inode, err := strconv.ParseUint(spec, 10, 32); err == nil {
		return FindNetns(uint32(inode))
	}
	return Netns{}, fmt.Errorf("network namespace %q: %w", spec, ErrNoNetns)
}

// namedNetns lists the namespaces that have a file of their own. Files that
// cannot be opened, or are no namespace (a mount that went away), are left
// out.
func namedNetns() []Netns {
	var list []Netns
	seen := make(map[uint32]bool)
	add := func(path string) {
		ns, err := statNetns(path)
		if err != nil || seen[ns.Inode] {
			return
		}
		seen[ns.Inode] = true
		ns.Name = filepath.Base(path)
		list = append(list, ns)
	}
	for _, dir := range netnsDirs {
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, e := range entries {
			add(filepath.Join(dir, e.Name()))
		}
	}
	// Namespaces bind-mounted elsewhere, for example by CRI-O or systemd.
	for _, path := range nsMounts() {
		add(path)
	}
	return list
}

// nsMounts returns the mount points of network namespaces.
func nsMounts() []string {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	defer f.Close()
	var paths []string
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		// 36 35 0:4 net:[4026532281] /run/netns/blue rw shared:1 - nsfs nsfs rw
		fields := strings.Fields(lines.Text())
		if len(fields) > 4 && strings.HasPrefix(fields[3], "net:[") {
			paths = append(paths, unescapeMount(fields[4]))
		}
	}
	return paths
}

// unescapeMount undoes the octal escapes of mountinfo (\040 for a space).
func unescapeMount(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// eachNetnsLink calls fn with the namespace of each process, or of each
// thread, until fn returns false. Processes that end meanwhile, or may not be
// looked at, are left out. path is only valid during the call.
func eachNetnsLink(threads bool, fn func(inode uint32, path string) bool) error {
	pids, err := pids()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		proc := "/proc/" + strconv.FormatUint(uint64(pid), 10)
		if !threads {
			if inode, ok := netnsLink(proc + "/ns/net"); ok && !fn(inode, proc+"/ns/net") {
				return nil
			}
			continue
		}
		tasks, err := os.ReadDir(proc + "/task")
		if err != nil {
			continue
		}
		for _, t := range tasks {
			path := proc + "/task/" + t.Name() + "/ns/net"
			if inode, ok := netnsLink(path); ok && !fn(inode, path) {
				return nil
			}
		}
	}
	return nil
}

// netnsLink reads "net:[4026531840]" without opening the namespace.
func netnsLink(path string) (uint32, bool) {
	var buf [64]byte
	n, err := unix.Readlink(path, buf[:])
	if err != nil {
		return 0, false
	}
	s, ok := strings.CutPrefix(string(buf[:n]), "net:[")
	if !ok {
		return 0, false
	}
	inode, err := strconv.ParseUint(strings.TrimSuffix(s, "]"), 10, 32)
	return uint32(inode), err == nil
}

// pids lists the processes, in the order of /proc (ascending).
func pids() ([]uint32, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, fmt.Errorf("listing processes: %w", err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("listing processes: %w", err)
	}
	list := make([]uint32, 0, len(names))
	for _, name := range names {
		if pid, err := strconv.ParseUint(name, 10, 32); err == nil {
			list = append(list, uint32(pid))
		}
	}
	slices.Sort(list)
	return list, nil
}

// Open opens the namespace for setns(2). The error wraps [ErrNoNetns] when
// the path has come to mean another namespace (a reused pid) or none.
func (n Netns) Open() (*os.File, error) {
	fd, err := unix.Open(n.Path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
			err = ErrNoNetns
		}
		return nil, fmt.Errorf("opening network namespace %d: %w", n.Inode, err)
	}
	inode, err := netnsOf(fd)
	if err == nil && inode != n.Inode {
		err = ErrNoNetns
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("opening network namespace %d: %w", n.Inode, err)
	}
	return os.NewFile(uintptr(fd), n.Path), nil
}

// Enter runs fn on a thread inside the namespace and returns its error.
// Goroutines that fn starts do not run inside. It needs CAP_SYS_ADMIN, but for
// the namespace that the thread is in.
func Enter(n Netns, fn func() error) error {
	file, err := n.Open()
	if err != nil {
		return err
	}
	defer file.Close()
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		back, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			runtime.UnlockOSThread()
			result <- fmt.Errorf("opening the thread's own network namespace: %w", err)
			return
		}
		defer unix.Close(back)
		if own, err := netnsOf(back); err == nil && own == n.Inode {
			err = fn()
			runtime.UnlockOSThread()
			result <- err
			return
		}
		if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			result <- fmt.Errorf("entering network namespace %d: %w", n.Inode, err)
			return
		}
		err = fn()
		// A thread that cannot return stays locked and so ends with this
		// goroutine.
		if unix.Setns(back, unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		result <- err
	}()
	return <-result
}

// Cookie returns the number that the kernel gives to no other namespace, 0 where
// it has none (before 5.14).
func Cookie(n Netns) (c uint64, err error) {
	err = Enter(n, func() error {
		c = cookie()
		return nil
	})
	return c, err
}

// cookie returns the number that the kernel never gives to another network
// namespace, unlike the inode number, which is reused; or 0 where the kernel
// cannot tell (before 5.14). It is of the calling thread's namespace: call it
// inside [Enter].
func cookie() uint64 {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	c, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0
	}
	return c
}
