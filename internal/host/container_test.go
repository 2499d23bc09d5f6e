package host

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// TestNamespaceNamedByContainer puts a process with a network namespace of its
// own into a cgroup such as Docker makes.
func TestNamespaceNamedByContainer(t *testing.T) {
	cgroups, err := OpenCgroups()
	if err != nil {
		t.Fatal(err)
	}
	defer cgroups.Close()
	id := strings.Repeat("0123456789abcdef", 4)
	dir := filepath.Join(cgroups.Root(), "docker")
	made := os.Mkdir(dir, 0o755)
	if made != nil && !errors.Is(made, os.ErrExist) {
		t.Fatalf("making a cgroup (this test needs root): %v", made)
	}
	if made == nil {
		defer os.Remove(dir)
	}
	leaf := filepath.Join(dir, id)
	if err := os.Mkdir(leaf, 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(leaf)

	cmd := exec.Command("sleep", "60")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait() // killed
	}()
	pid := cmd.Process.Pid
	if err := os.WriteFile(filepath.Join(leaf, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0); err != nil {
		t.Fatal(err)
	}

	inode, ok := netnsLink("/proc/" + strconv.Itoa(pid) + "/ns/net")
	if !ok {
		t.Fatal("the process has no network namespace")
	}

	const want = "docker 0123456789ab"
	got, err := FindNetns(inode)
	if err != nil {
		t.Fatal(err)
	}
	if got.Name != want {
		t.Errorf("FindNetns: name %q, want %q", got.Name, want)
	}
	list, err := Namespaces()
	if err != nil {
		t.Fatal(err)
	}
	named := 0
	for _, n := range list {
		switch {
		case n.Inode == inode:
			named++
			if n.Name != want {
				t.Errorf("Namespaces: name %q, want %q", n.Name, want)
			}
		case n.Name == want:
			t.Errorf("namespace %d has the container's name, too", n.Inode)
		}
	}
	if named != 1 {
		t.Errorf("the namespace is listed %d times", named)
	}
	q, err := ReadProcess(uint32(pid))
	if err != nil {
		t.Fatal(err)
	}
	if q.Cgroup != "/docker/"+id {
		t.Errorf("cgroup %q", q.Cgroup)
	}
}
