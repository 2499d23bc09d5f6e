package host

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/container"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// ReadProcess returns what /proc knows of a process. An error means that it
// has ended; a kernel thread has no Exe, and neither has a process of another
// user for those without CAP_SYS_PTRACE.
func ReadProcess(pid uint32) (event.Process, error) {
	dir := "/proc/" + strconv.FormatUint(uint64(pid), 10)
	comm, err := os.ReadFile(dir + "/comm")
	if err != nil {
		return event.Process{PID: pid}, fmt.Errorf("reading the name of process %d: %w", pid, err)
	}
	p := event.Process{PID: pid, Comm: strings.TrimSuffix(string(comm), "\n")}
	if b, err := os.ReadFile(dir + "/cgroup"); err == nil {
		p.Cgroup = cgroupPath(string(b))
	}
	if exe, err := os.Readlink(dir + "/exe"); err == nil {
		p.Exe = exe
	}
	return p, nil
}

// cgroupPath picks the path that names the workload: the one that names a
// container, where one does (on hybrid hosts a container is in cgroups of its
// own in version 1 only); else that of the unified hierarchy; or, where nothing
// but the root is there (cgroup v1 and hybrid hosts), systemd's, or else the
// memory controller's.
func cgroupPath(file string) string {
	var unified, systemd, memory string
	for line := range strings.Lines(file) {
		// hierarchy-ID:controller-list:path
		_, rest, ok := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		if !ok {
			continue
		}
		controllers, path, ok := strings.Cut(rest, ":")
		if !ok {
			continue
		}
		switch {
		case controllers == "":
			unified = path
		case controllers == "name=systemd":
			systemd = path
		default:
			for c := range strings.SplitSeq(controllers, ",") {
				if c == "memory" {
					memory = path
				}
			}
		}
	}
	for _, path := range []string{unified, systemd, memory} {
		if _, ok := container.Parse(path); ok {
			return path
		}
	}
	for _, path := range []string{unified, systemd, memory} {
		if path != "" && path != "/" {
			return path
		}
	}
	return unified
}

// Cgroups turns the cgroup ids of events into paths, also after the last
// process of a cgroup has ended. The zero value is not usable.
type Cgroups struct {
	mount  int    // the root of the unified hierarchy, open
	root   string // its path
	hybrid bool
}

// OpenCgroups finds the unified cgroup hierarchy. The error wraps
// os.ErrNotExist on hosts with cgroup v1 only.
func OpenCgroups() (*Cgroups, error) {
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var fs unix.Statfs_t
		if unix.Statfs(root, &fs) != nil || fs.Type != unix.CGROUP2_SUPER_MAGIC {
			continue
		}
		fd, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("opening the cgroup hierarchy: %w", err)
		}
		// The unified hierarchy is number 0, and a host that has any other uses
		// them for its containers.
		own, err := os.ReadFile("/proc/self/cgroup")
		hybrid := err == nil && strings.Count(string(own), "\n") > 1
		return &Cgroups{mount: fd, root: root, hybrid: hybrid}, nil
	}
	return nil, fmt.Errorf("finding the unified cgroup hierarchy: %w", os.ErrNotExist)
}

// fileidKernfs is FILEID_KERNFS of include/linux/exportfs.h: the handle is the
// 64-bit id and nothing else.
const fileidKernfs = 0xfe

// Path returns the path of a cgroup below the hierarchy's root ("/" for the
// root), or "" when there is no such cgroup any more. It needs
// CAP_DAC_READ_SEARCH.
func (c *Cgroups) Path(id uint64) string {
	var handle [8]byte
	for i := range handle {
		handle[i] = byte(id >> (8 * i)) // the kernel's own order; little-endian only
	}
	fd, err := unix.OpenByHandleAt(c.mount, unix.NewFileHandle(fileidKernfs, handle[:]), unix.O_PATH|unix.O_CLOEXEC)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	path, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return ""
	}
	path, ok := strings.CutPrefix(path, c.root)
	switch {
	case !ok || strings.HasSuffix(path, " (deleted)"):
		return ""
	case path == "":
		return "/"
	}
	return path
}

// Hybrid reports whether hierarchies of version 1 exist beside this one: they
// are more likely to name a container.
func (c *Cgroups) Hybrid() bool { return c.hybrid }

// Root is where the hierarchy is mounted.
func (c *Cgroups) Root() string { return c.root }

// Close lets go of the hierarchy.
func (c *Cgroups) Close() error { return unix.Close(c.mount) }
