package host

import (
	"os"
	"strconv"
	"strings"

	"github.com/tcptrace/tcptrace/internal/container"
)

// machineMade reports whether a namespace's name was made up by a container
// runtime: it identifies nothing that a person has seen.
func (n Netns) machineMade() bool {
	return strings.Contains(n.Path, "/docker/netns/") || strings.HasPrefix(n.Name, "cni-") || strings.HasPrefix(n.Name, "netns-")
}

// nameByContainer names a namespace after the container, or the Kubernetes pod,
// that a process in it belongs to, unless it has a better name. link is the
// path of that process's namespace below /proc. It reports whether there is
// nothing more to look for.
func (n *Netns) nameByContainer(link string) bool {
	if n.Name != "" && !n.machineMade() {
		return true
	}
	pid, _, _ := strings.Cut(strings.TrimPrefix(link, "/proc/"), "/")
	if _, err := strconv.ParseUint(pid, 10, 32); err != nil {
		return false
	}
	b, err := os.ReadFile("/proc/" + pid + "/cgroup")
	if err != nil {
		return false // ended meanwhile
	}
	c, ok := container.Parse(cgroupPath(string(b)))
	switch {
	case !ok:
		return false
	case c.Pod != "":
		// The containers of a pod share its namespace.
		n.Name = "pod " + c.Pod[:8]
	default:
		n.Name = c.String()
	}
	return true
}
