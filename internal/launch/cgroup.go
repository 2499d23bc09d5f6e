package launch

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/host"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// cgroup is a cgroup of version 2 for one command. It belongs to one goroutine.
type cgroup struct {
	dir    string // as it is mounted
	path   string // below the root of the hierarchy
	parent string // the directory above
	fd     *os.File
	ids    map[uint64]bool // whether a cgroup is this one or beneath it
}

// newCgroup makes a cgroup beneath that of the calling process. It changes
// nothing else: no controller is switched on, so no limit becomes another.
func newCgroup() (*cgroup, error) {
	hierarchy, err := host.OpenCgroups()
	if err != nil {
		return nil, err
	}
	root := hierarchy.Root()
	if err := hierarchy.Close(); err != nil {
		return nil, fmt.Errorf("closing the cgroup hierarchy: %w", err)
	}
	own, err := unified("self")
	if err != nil {
		return nil, err
	}
	parent := filepath.Join(root, own)
	dir, err := os.MkdirTemp(parent, "tcptrace-run-")
	if err != nil {
		return nil, fmt.Errorf("making a cgroup: %w", err)
	}
	c := &cgroup{dir: dir, path: filepath.Join("/", own, filepath.Base(dir)), parent: parent, ids: make(map[uint64]bool)}
	if err := c.open(); err != nil {
		return nil, errors.Join(err, os.Remove(dir))
	}
	return c, nil
}

// unified is the path of a process, by its name below /proc, in the unified
// hierarchy.
func unified(process string) (string, error) {
	b, err := os.ReadFile("/proc/" + process + "/cgroup")
	if err != nil {
		return "", fmt.Errorf("finding the cgroup of a process: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		path, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::")
		switch {
		case !ok:
		case strings.HasPrefix(path, "/.."):
			return "", errors.New("finding the cgroup of a process: it is outside of what is mounted here")
		default:
			return path, nil
		}
	}
	return "", fmt.Errorf("finding the cgroup of a process: %w", os.ErrNotExist)
}

// open checks that processes can be put into the cgroup.
func (c *cgroup) open() error {
	// A threaded cgroup can hold no process of its own; the root has no type.
	if b, err := os.ReadFile(filepath.Join(c.dir, "cgroup.type")); err == nil && !strings.HasPrefix(string(b), "domain\n") {
		return fmt.Errorf("the new cgroup is of type %q, which holds no processes", strings.TrimSpace(string(b)))
	}
	for _, dir := range []string{c.dir, c.parent} {
		if err := unix.Access(filepath.Join(dir, "cgroup.procs"), unix.W_OK); err != nil {
			return fmt.Errorf("moving processes into %s: %w", dir, err)
		}
	}
	fd, err := os.OpenFile(c.dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return fmt.Errorf("opening the new cgroup: %w", err)
	}
	c.fd = fd
	return c.learn()
}

// learn notes the cgroups that are beneath, which the command may make.
func (c *cgroup) learn() error {
	return filepath.WalkDir(c.dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, os.ErrNotExist):
			return nil // removed meanwhile
		case err != nil:
			return err
		case !d.IsDir():
			return nil
		}
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			return nil
		}
		c.ids[st.Ino] = true // the number of the inode is the id
		return nil
	})
}

// maxIDs bounds the cgroups that are remembered.
const maxIDs = 65536

// event reports whether the process of an event is in the cgroup or beneath. An
// id is never given twice while the machine runs.
func (c *cgroup) event(e *event.Event) bool {
	in, known := c.ids[e.Cgroup]
	if known || e.Cgroup == 0 {
		return in
	}
	if len(c.ids) >= maxIDs {
		clear(c.ids)
	}
	if c.learn() != nil || !c.ids[e.Cgroup] {
		c.ids[e.Cgroup] = false
	}
	return c.ids[e.Cgroup]
}

// process reports the same of a process found in /proc.
func (c *cgroup) process(p event.Process) bool {
	path, err := unified(strconv.FormatUint(uint64(p.PID), 10))
	return err == nil && (path == c.path || strings.HasPrefix(path, c.path+"/"))
}

// dirs lists the cgroup and those beneath it, the deepest first.
func (c *cgroup) dirs() []string {
	var dirs []string
	// What cannot be read is gone.
	_ = filepath.WalkDir(c.dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	slices.Reverse(dirs)
	return dirs
}

// processes lists who is in the cgroup, as numbered here.
func (c *cgroup) processes() []uint32 {
	var pids []uint32
	for _, dir := range c.dirs() {
		pids = append(pids, procs(dir)...)
	}
	slices.Sort(pids)
	return slices.Compact(pids)
}

func procs(dir string) []uint32 {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return nil
	}
	var pids []uint32
	for line := range strings.Lines(string(b)) {
		if pid, err := strconv.ParseUint(strings.TrimSpace(line), 10, 32); err == nil && pid != 0 {
			pids = append(pids, uint32(pid))
		}
	}
	return pids
}

// remove moves what still runs to where it would have been without tcptrace,
// and removes the cgroup. What the command put into a cgroup of its own beneath
// belongs there: then the tree is left, and named. A process that ends needs a
// moment to leave.
func (c *cgroup) remove() (left string, err error) {
	if c.fd != nil {
		c.fd.Close()
		c.fd = nil
	}
	for range 50 {
		for _, pid := range procs(c.dir) {
			// An error is of a process that has ended, or shows below.
			_ = os.WriteFile(filepath.Join(c.parent, "cgroup.procs"), strconv.AppendUint(nil, uint64(pid), 10), 0)
		}
		if left = ""; c.inhabited() {
			left = c.dir
		} else {
			for _, dir := range c.dirs() {
				err = os.Remove(dir)
			}
			if err == nil || errors.Is(err, os.ErrNotExist) {
				return "", nil
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	if left != "" {
		return left, nil
	}
	return "", fmt.Errorf("removing the command's cgroup: %w", err)
}

// inhabited reports whether a process is in a cgroup beneath.
func (c *cgroup) inhabited() bool {
	return slices.ContainsFunc(c.dirs(), func(dir string) bool {
		b, err := os.ReadFile(filepath.Join(dir, "cgroup.events"))
		return err == nil && dir != c.dir && strings.Contains(string(b), "populated 1")
	})
}
