package host

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/lab"
)

// newNamespace makes a network namespace that lives as long as the test.
func newNamespace(t *testing.T) *lab.Namespace {
	t.Helper()
	ns, err := lab.NewNamespace()
	if err != nil {
		t.Fatalf("making a network namespace (this test needs root): %v", err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

func TestNamespaces(t *testing.T) {
	ns := newNamespace(t)
	self, err := SelfNetns()
	if err != nil {
		t.Fatal(err)
	}
	list, err := Namespaces()
	if err != nil {
		t.Fatal(err)
	}
	if len(list) < 2 || list[0].Inode != self.Inode {
		t.Errorf("Namespaces() = %v, want the own one (%d) first", list, self.Inode)
	}
	i := slices.IndexFunc(list, func(n Netns) bool { return n.Inode == ns.Inode() })
	if i < 0 {
		t.Fatalf("Namespaces() = %v, lacks %d, which only a thread of this process is in", list, ns.Inode())
	}
	found, err := FindNetns(ns.Inode())
	if err != nil || found.Inode != ns.Inode() {
		t.Errorf("FindNetns(%d) = %v, %v", ns.Inode(), found, err)
	}
	if _, err := FindNetns(1); !errors.Is(err, ErrNoNetns) {
		t.Errorf("FindNetns(1) = %v, want ErrNoNetns", err)
	}
}

func TestResolveNetns(t *testing.T) {
	ns := newNamespace(t)
	name := fmt.Sprintf("tcptrace-test-%d", os.Getpid())
	if err := os.MkdirAll("/run/netns", 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join("/run/netns", name)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(ns.Path(), path, "", unix.MS_BIND, ""); err != nil {
		t.Fatalf("naming the namespace: %v", err)
	}
	defer func() {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
		os.Remove(path)
	}()
	for _, spec := range []string{name, path, ns.Path(), strconv.Itoa(int(ns.Inode()))} {
		got, err := ResolveNetns(spec)
		if err != nil || got.Inode != ns.Inode() || got.Name != name {
			t.Errorf("ResolveNetns(%q) = %+v, %v; want inode %d named %q", spec, got, err, ns.Inode(), name)
		}
	}
	for _, spec := range []string{"", "no-such-name", "1", "/etc/hostname", "/proc/self/ns/mnt", "/no/such/file"} {
		if got, err := ResolveNetns(spec); err == nil {
			t.Errorf("ResolveNetns(%q) = %+v, want an error", spec, got)
		}
	}
	mounted := false
	for _, m := range nsMounts() {
		mounted = mounted || m == path
	}
	if !mounted {
		t.Errorf("nsMounts() = %q, lacks %s", nsMounts(), path)
	}
}

// A goroutine that moved to another namespace may have the process's first
// thread, whose namespace /proc/self shows. A process of this test's begins
// so: its init runs on the first thread.
func TestSelfNetnsWhileAnotherThreadMoved(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), movedEnv+"=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	self, err := SelfNetns()
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("%d moved\n", self.Inode); string(out) != want {
		t.Errorf("a process whose first thread moved found %q, want %q", out, want)
	}
}

const movedEnv = "TCPTRACE_TEST_MOVED"

func init() {
	if os.Getenv(movedEnv) == "" {
		return
	}
	runtime.LockOSThread()
	fail := func(err error) {
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	fail(unix.Unshare(unix.CLONE_NEWNET))
	found := make(chan Netns)
	go func() {
		ns, err := SelfNetns()
		fail(err)
		found <- ns
	}()
	self := <-found
	leader, err := os.Stat("/proc/self/ns/net")
	fail(err)
	how := "stayed"
	if uint32(leader.Sys().(*syscall.Stat_t).Ino) != self.Inode {
		how = "moved"
	}
	fmt.Println(self.Inode, how)
	os.Exit(0)
}

func TestUnescapeMount(t *testing.T) {
	for in, want := range map[string]string{
		"/run/netns/blue":    "/run/netns/blue",
		`/a\040b`:            "/a b",
		`/back\134slash\011`: "/back\\slash\t",
		`/short\04`:          `/short\04`,
		`/no\999`:            `/no\999`,
	} {
		if got := unescapeMount(in); got != want {
			t.Errorf("unescapeMount(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestEnterReturns(t *testing.T) {
	ns := newNamespace(t)
	target, err := ResolveNetns(ns.Path())
	if err != nil {
		t.Fatal(err)
	}
	self, err := SelfNetns()
	if err != nil {
		t.Fatal(err)
	}
	want := errors.New("from inside")
	for range 50 {
		err := Enter(target, func() error {
			inode, ok := netnsLink("/proc/thread-self/ns/net")
			if !ok || inode != ns.Inode() {
				t.Errorf("inside, the thread is in %d, want %d", inode, ns.Inode())
			}
			return want
		})
		if err != want {
			t.Fatalf("Enter = %v, want the function's error", err)
		}
	}
	// No thread may be left behind inside, other than the lab's own one.
	left := 0
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		if inode, ok := netnsLink("/proc/self/task/" + task.Name() + "/ns/net"); ok && inode == ns.Inode() {
			left++
		}
	}
	if left != 1 {
		t.Errorf("%d threads are in namespace %d, want only its keeper", left, ns.Inode())
	}
	// A path that came to mean another namespace is noticed.
	if err := Enter(Netns{Inode: self.Inode, Path: ns.Path()}, func() error { return nil }); !errors.Is(err, ErrNoNetns) {
		t.Errorf("entering by a stale path: %v, want ErrNoNetns", err)
	}
	if err := Enter(Netns{Inode: 1, Path: "/proc/4194305/ns/net"}, func() error { return nil }); !errors.Is(err, ErrNoNetns) {
		t.Errorf("entering a namespace that ended: %v, want ErrNoNetns", err)
	}
}

// TestEnterOwn checks that the own namespace can be read without CAP_SYS_ADMIN,
// in a process of this test's that has no capabilities.
func TestEnterOwn(t *testing.T) {
	const env = "TCPTRACE_TEST_OWN"
	if os.Getenv(env) == "" {
		cmd := exec.Command("setpriv", "--inh-caps=-all", "--bounding-set=-all", os.Args[0], "-test.run=^TestEnterOwn$")
		cmd.Env = append(os.Environ(), env+"=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v:\n%s", err, out)
		}
		return
	}
	p, err := ReadPrivileges()
	if err != nil || p.Has(CapSysAdmin) {
		t.Fatalf("privileges %x, %v", p.Effective, err)
	}
	self, err := SelfNetns()
	if err != nil {
		t.Fatal(err)
	}
	if facts, err := ReadSysctls(self); err != nil || !facts.Known {
		t.Errorf("ReadSysctls = %+v, %v", facts, err)
	}
	if c, err := ReadCounters(self); err != nil || len(c.Value) == 0 {
		t.Errorf("ReadCounters = %v, %v", c, err)
	}
}

func TestReadSysctls(t *testing.T) {
	ns := newNamespace(t)
	for name, value := range map[string]string{
		"net.core.somaxconn":             "77",
		"net.ipv4.tcp_abort_on_overflow": "1",
		"net.ipv4.tcp_synack_retries":    "3",
		"net.ipv4.ip_local_port_range":   "20000 20100",
		"net.ipv4.tcp_keepalive_time":    "123",
	} {
		if err := ns.Sysctl(name, value); err != nil {
			t.Fatal(err)
		}
	}
	target, err := FindNetns(ns.Inode())
	if err != nil {
		t.Fatal(err)
	}
	got, err := ReadSysctls(target)
	if err != nil {
		t.Fatal(err)
	}
	s := got.Sysctls
	if !got.Known || got.Inode != ns.Inode() || s.Somaxconn != 77 || s.AbortOnOverflow != 1 || s.SYNACKRetries != 3 ||
		s.PortRangeLow != 20000 || s.PortRangeHigh != 20100 || s.KeepaliveTime != 123 {
		t.Errorf("ReadSysctls = %+v", got)
	}
	// The settings that were left alone are those of a new namespace, and
	// none of them is 0 by default.
	if s.SYNRetries == 0 || s.SYNCookies == 0 || s.MaxSYNBacklog == 0 || s.Retries2 == 0 || s.KeepaliveInterval == 0 ||
		s.KeepaliveProbes == 0 || s.FinTimeout == 0 || s.TWReuse == 0 || s.MaxTWBuckets == 0 {
		t.Errorf("a setting was not read: %+v", s)
	}
	self, err := SelfNetns()
	if err != nil {
		t.Fatal(err)
	}
	if own, err := ReadSysctls(self); err != nil || own.Sysctls.Somaxconn == 77 {
		t.Errorf("the own namespace's settings = %+v, %v: those of the other one leaked", own, err)
	}
	if gone, err := ReadSysctls(Netns{Inode: 1, Path: "/no/such"}); err == nil || gone.Known || gone.Inode != 1 {
		t.Errorf("ReadSysctls of no namespace = %+v, %v", gone, err)
	}
}

func TestReadCounters(t *testing.T) {
	ns := newNamespace(t)
	target, err := FindNetns(ns.Inode())
	if err != nil {
		t.Fatal(err)
	}
	before, err := ReadCounters(target)
	if err != nil {
		t.Fatal(err)
	}
	const refused = 3
	err = ns.Do(func() error {
		for range refused {
			if c, err := net.DialTimeout("tcp4", "127.0.0.1:9", time.Second); err == nil {
				c.Close()
				return errors.New("somebody listens on port 9 of a new namespace")
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	after, err := ReadCounters(target)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"Tcp.OutRsts", "Tcp.AttemptFails", "Tcp.ActiveOpens"} {
		if d := after.Value[name] - before.Value[name]; d != refused {
			t.Errorf("%s rose by %d, want %d", name, d, refused)
		}
	}
	for _, name := range []string{"TcpExt.ListenOverflows", "TcpExt.ListenDrops", "Tcp.EstabResets", "Tcp.PassiveOpens"} {
		if v, ok := after.Value[name]; !ok || v != 0 {
			t.Errorf("%s = %d, %v; want 0, known", name, v, ok)
		}
	}
	self, err := SelfNetns()
	if err != nil {
		t.Fatal(err)
	}
	own, err := ReadCounters(self)
	if err != nil {
		t.Fatal(err)
	}
	if before.Cookie != after.Cookie || before.Cookie == own.Cookie && own.Cookie != 0 {
		t.Errorf("cookies %d and %d of one namespace, %d of another", before.Cookie, after.Cookie, own.Cookie)
	}
}

func TestParseCounters(t *testing.T) {
	for _, c := range []struct {
		in string
		ok bool
	}{
		{"", true},
		{"Tcp: A B\nTcp: 1 -1\n", true},
		{"Tcp: A B\n", false},
		{"Tcp: A B\nTcp: 1\n", false},
		{"Tcp: A\nUdp: 1\n", false},
		{"\n\n", false},
	} {
		got := Counters{Value: make(map[string]uint64)}
		if err := got.parse(strings.NewReader(c.in)); (err == nil) != c.ok {
			t.Errorf("parsing %q: %v", c.in, err)
		}
		if c.ok && c.in != "" && (len(got.Value) != 1 || got.Value["Tcp.A"] != 1) {
			t.Errorf("parsing %q: %v", c.in, got.Value)
		}
	}
}

func TestReadProcess(t *testing.T) {
	self, err := ReadProcess(uint32(os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if self.Exe != exe || self.Comm == "" || self.Cgroup == "" {
		t.Errorf("ReadProcess(self) = %+v, want exe %s", self, exe)
	}
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if p, err := ReadProcess(uint32(cmd.Process.Pid)); err == nil {
		t.Errorf("ReadProcess of one that ended = %+v", p)
	}
}

func TestCgroupPath(t *testing.T) {
	for _, c := range []struct{ name, file, want string }{
		{"unified", "0::/system.slice/nginx.service\n", "/system.slice/nginx.service"},
		{"v1", "9:name=systemd:/system.slice/a.service\n4:memory:/m\n", "/system.slice/a.service"},
		{"hybrid in the root", "4:cpu,memory:/api/1\n1:name=systemd:/\n0::/\n", "/api/1"},
		{"root", "0::/\n", "/"},
		{"a container on a hybrid host", "4:memory:/docker/" + strings.Repeat("3f", 32) + "\n0::/system.slice/containerd.service\n", "/docker/" + strings.Repeat("3f", 32)},
		{"colons", "0::/a:b:c\n", "/a:b:c"},
		{"nothing", "", ""},
		{"garbage", "::\nx\n:\n", ""},
	} {
		if got := cgroupPath(c.file); got != c.want {
			t.Errorf("%s: cgroupPath = %q, want %q", c.name, got, c.want)
		}
	}
}

func TestCgroups(t *testing.T) {
	c, err := OpenCgroups()
	if err != nil {
		t.Fatalf("this test needs a cgroup v2 mount: %v", err)
	}
	defer c.Close()
	id := func(path string) uint64 {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		return st.Ino // the id of a cgroup is its directory's inode number
	}
	if got := c.Path(id(c.Root())); got != "/" {
		t.Errorf("the root's path = %q", got)
	}
	dir := filepath.Join(c.Root(), fmt.Sprintf("tcptrace-test-%d", os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatalf("making a cgroup (this test needs root): %v", err)
	}
	number := id(dir)
	if got, want := c.Path(number), "/"+filepath.Base(dir); got != want {
		t.Errorf("Path(%d) = %q, want %q", number, got, want)
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if got := c.Path(number); got != "" {
		t.Errorf("Path of a removed cgroup = %q", got)
	}
}

// inodeOf returns the socket inode of a connection or listener.
func inodeOf(t *testing.T, s syscall.Conn) uint64 {
	t.Helper()
	raw, err := s.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if cerr := raw.Control(func(fd uintptr) { err = unix.Fstat(int(fd), &st) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	return st.Ino
}

func TestSocketOwners(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	file, err := l.(*net.TCPListener).File() // a second descriptor of the same socket
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	// A child that inherits the listener, as worker processes do.
	child := exec.Command("sleep", "60")
	child.ExtraFiles = []*os.File{file}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		child.Process.Kill()
		child.Wait()
	}()
	unshared, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer unshared.Close()

	owners, err := SocketOwners()
	if err != nil {
		t.Fatal(err)
	}
	self, err := ReadProcess(uint32(os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	inode := inodeOf(t, l.(*net.TCPListener))
	holders := owners.HoldersOf(inode, 10)
	pids := []uint32{uint32(os.Getpid()), uint32(child.Process.Pid)}
	slices.Sort(pids)
	if len(holders) != 2 || holders[0].PID != pids[0] || holders[1].PID != pids[1] || holders[0].Holders != 2 {
		t.Errorf("HoldersOf(shared) = %+v, want %v", holders, pids)
	}
	if got := owners.HoldersOf(inode, 1); len(got) != 1 || got[0] != holders[0] {
		t.Errorf("HoldersOf(shared, 1) = %+v", got)
	}
	want := Owner{PID: self.PID, Comm: self.Comm, Holders: 1}
	if got, ok := owners.Owner(inodeOf(t, unshared.(*net.TCPListener))); !ok || got != want {
		t.Errorf("Owner = %+v, %v; want %+v", got, ok, want)
	}
	if got, ok := owners.Owner(0); ok {
		t.Errorf("Owner(0) = %+v", got)
	}
}

func TestSocketInode(t *testing.T) {
	for in, want := range map[string]uint64{
		"socket:[1]": 1, "socket:[4026531840]": 4026531840, "socket:[18446744073709551609]": 18446744073709551609,
	} {
		if got, ok := socketInode([]byte(in)); !ok || got != want {
			t.Errorf("socketInode(%q) = %d, %v", in, got, ok)
		}
	}
	for _, in := range []string{"", "socket:[", "socket:[]", "socket:[x]", "pipe:[1]", "/socket:[1]", "socket:[99999999999999999999]", "socket:[1"} {
		if got, ok := socketInode([]byte(in)); ok {
			t.Errorf("socketInode(%q) = %d", in, got)
		}
	}
}

func BenchmarkSocketOwners(b *testing.B) {
	for b.Loop() {
		if _, err := SocketOwners(); err != nil {
			b.Fatal(err)
		}
	}
}

func TestClock(t *testing.T) {
	before := time.Now()
	wall := time.Unix(0, Now()+ClockOffset())
	after := time.Now()
	if wall.Before(before.Add(-time.Millisecond)) || wall.After(after.Add(time.Millisecond)) {
		t.Errorf("CLOCK_BOOTTIME plus the offset is %v, want between %v and %v", wall, before, after)
	}
	if a, b := Now(), Now(); b < a || a <= 0 {
		t.Errorf("Now() went from %d to %d", a, b)
	}
}

func TestUsage(t *testing.T) {
	before, rss, err := Usage()
	if err != nil {
		t.Fatal(err)
	}
	if rss < 1<<20 || rss > 4<<30 {
		t.Errorf("resident memory = %d bytes", rss)
	}
	x := 0
	for start := time.Now(); time.Since(start) < 30*time.Millisecond; {
		x++
	}
	after, _, err := Usage()
	if err != nil {
		t.Fatal(err)
	}
	if d := after - before; d <= 0 || d > 10*time.Second {
		t.Errorf("30 ms of work (%d rounds) cost %v of processor time", x, d)
	}
}

func TestPrivileges(t *testing.T) {
	p, err := ReadPrivileges()
	if err != nil {
		t.Fatal(err)
	}
	if p.Kernel == "" || p.Machine == "" || p.UID != os.Geteuid() {
		t.Errorf("ReadPrivileges = %+v", p)
	}
	if major, minor, ok := Release(p.Kernel); !ok || major < 5 {
		t.Errorf("Release(%q) = %d, %d, %v", p.Kernel, major, minor, ok)
	}
	for _, bad := range []string{"", "6", "x.y", "6."} {
		if _, _, ok := Release(bad); ok {
			t.Errorf("Release(%q) is ok", bad)
		}
	}
}

func TestProblems(t *testing.T) {
	all := Privileges{Kernel: "6.12.107+deb13-cloud-amd64", Effective: ^uint64(0), BTF: true, InitialPID: true}
	if got := all.Problems(); len(got) != 0 {
		t.Errorf("with everything: %+v", got)
	}
	fatal := func(change func(*Privileges)) int {
		p := all
		change(&p)
		n := 0
		for i, problem := range p.Problems() {
			if problem.What == "" || problem.Hint == "" {
				t.Errorf("a problem without text: %+v", problem)
			}
			if problem.Fatal {
				n++
				if i >= n {
					t.Errorf("fatal problems do not come first: %+v", p.Problems())
				}
			}
		}
		return n
	}
	for _, c := range []struct {
		name   string
		fatal  int
		change func(*Privileges)
	}{
		{"no rights", 1, func(p *Privileges) { p.Effective = 0; p.UID = 1000 }},
		{"root without rights", 1, func(p *Privileges) { p.Effective = 0 }},
		{"only CAP_SYS_ADMIN", 0, func(p *Privileges) { p.Effective = 1 << CapSysAdmin }},
		{"only CAP_BPF and CAP_PERFMON", 0, func(p *Privileges) { p.Effective = 1<<CapBPF | 1<<CapPerfmon }},
		{"no BTF", 1, func(p *Privileges) { p.BTF = false }},
		{"5.7", 1, func(p *Privileges) { p.Kernel = "5.7.19" }},
		{"4.19", 1, func(p *Privileges) { p.Kernel = "4.19.0-27-amd64" }},
		{"5.8", 0, func(p *Privileges) { p.Kernel = "5.8.0" }},
		{"locked", 1, func(p *Privileges) { p.Lockdown = "confidentiality" }},
		{"integrity", 0, func(p *Privileges) { p.Lockdown = "integrity" }},
		{"all of them", 4, func(p *Privileges) { *p = Privileges{Kernel: "4.4.0", Lockdown: "confidentiality"} }},
	} {
		if got := fatal(c.change); got != c.fatal {
			t.Errorf("%s: %d fatal problems, want %d", c.name, got, c.fatal)
		}
	}
	if got := chosen("none [integrity] confidentiality\n"); got != "integrity" {
		t.Errorf("chosen = %q", got)
	}
	if got := chosen(""); got != "" {
		t.Errorf("chosen of nothing = %q", got)
	}
}
