// Package sample is what the machine runner is tested with: it checks what a
// machine promises to the tests that run in it, and misbehaves when told to.
package sample

import (
	"net"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestKernelAndAttachModeAreNamed(t *testing.T) {
	if os.Getenv("TCPTRACE_VM") == "" {
		t.Fatal("TCPTRACE_VM is not set")
	}
	modes := []string{"auto", "fentry", "kprobe", "tracepoint"}
	if mode := os.Getenv("TCPTRACE_ATTACH"); !slices.Contains(modes, mode) {
		t.Fatalf("TCPTRACE_ATTACH is %q", mode)
	}
}

func TestKernelIsTheOneAskedFor(t *testing.T) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		t.Fatal(err)
	}
	release := unix.ByteSliceToString(name.Release[:])
	asked := os.Getenv("TCPTRACE_VM")
	if asked == "" {
		t.Fatal("TCPTRACE_VM is not set")
	}
	// Suites, packages and files do not say the version.
	if series := regexp.MustCompile(`^[0-9]+\.[0-9]+$`); series.MatchString(asked) && !strings.HasPrefix(release, asked+".") {
		t.Fatalf("kernel %q runs, TCPTRACE_VM is %q", release, asked)
	}
}

func TestFileSystemsAreMounted(t *testing.T) {
	for path, magic := range map[string]int64{
		"/proc": unix.PROC_SUPER_MAGIC, "/sys": unix.SYSFS_MAGIC, "/tmp": unix.TMPFS_MAGIC, "/run": unix.TMPFS_MAGIC,
		"/sys/kernel/tracing": unix.TRACEFS_MAGIC, "/sys/kernel/debug": unix.DEBUGFS_MAGIC,
		"/sys/fs/bpf": unix.BPF_FS_MAGIC, "/sys/fs/cgroup": unix.CGROUP2_SUPER_MAGIC,
	} {
		var s unix.Statfs_t
		if err := unix.Statfs(path, &s); err != nil {
			t.Errorf("%s: %v", path, err)
		} else if s.Type != magic {
			t.Errorf("%s: file system %#x, want %#x", path, s.Type, magic)
		}
	}
	if _, err := os.Stat("/sys/kernel/btf/vmlinux"); err != nil {
		t.Error(err)
	}
}

func TestLoopbackWorksInBothFamilies(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Errorf("%s: %v", address, err)
			continue
		}
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Errorf("%s: %v", address, err)
		} else {
			c.Close()
		}
		l.Close()
	}
}

func TestNetworkModulesWork(t *testing.T) {
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "v0"}, PeerName: "v1"}); err != nil {
		t.Fatalf("veth: %v", err)
	}
	link, err := netlink.LinkByName("v0")
	if err != nil {
		t.Fatal(err)
	}
	defer netlink.LinkDel(link)
	attrs := netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT}
	if err := netlink.QdiscAdd(netlink.NewNetem(attrs, netlink.NetemQdiscAttrs{Latency: 1000})); err != nil {
		t.Errorf("netem: %v", err)
	}
	tun, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		t.Fatalf("tun: %v", err)
	}
	tun.Close()
	modules, err := os.ReadFile("/proc/modules")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []string{"nf_tables", "tcp_diag"} {
		if !strings.Contains("\n"+string(modules), "\n"+m+" ") {
			t.Errorf("%s is not loaded", m)
		}
	}
}

func TestTestdataIsBesideTheProgram(t *testing.T) {
	text, err := os.ReadFile("testdata/nested/note.txt")
	if err != nil || string(text) != "read in the machine\n" {
		t.Fatalf("%q, %v", text, err)
	}
}

func TestOrphansAreReaped(t *testing.T) {
	if os.Getenv("SAMPLE_CHILD") != "" {
		// The grandchild outlives this process and goes to the first process.
		cmd := exec.Command("/proc/self/exe", "-test.run=^$")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestOrphansAreReaped$")
	cmd.Env = append(os.Environ(), "SAMPLE_CHILD=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		stats, err := os.ReadDir("/proc")
		if err != nil {
			t.Fatal(err)
		}
		zombies := 0
		for _, e := range stats {
			text, err := os.ReadFile("/proc/" + e.Name() + "/stat")
			if err == nil && strings.Contains(string(text), ") Z ") {
				zombies++
			}
		}
		if zombies == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d zombies are left", zombies)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestMisbehave does what SAMPLE says, for the tests of the runner itself.
func TestMisbehave(t *testing.T) {
	switch os.Getenv("SAMPLE") {
	case "":
	case "fail":
		t.Run("inner", func(t *testing.T) { t.Error("failing as told\n--- PASS: forged (0.00s)") })
	case "panic":
		panic("panicking as told")
	case "exit":
		os.Exit(3)
	case "hang":
		select {}
	case "crash":
		if err := os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0); err != nil {
			t.Fatal(err)
		}
	default:
		t.Fatalf("SAMPLE is %q", os.Getenv("SAMPLE"))
	}
}
