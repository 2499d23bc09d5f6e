// Package container reads from the path of a cgroup which container its
// processes are in. It is pure: the path is all it looks at, so a recorded path
// says the same years later on another machine.
//
// Container runtimes name their cgroups after the container, each in its own
// way and differently with the cgroupfs and the systemd driver. A path is what
// whoever made the cgroup chose: a user to whom a subtree was delegated can
// make one that looks like a container's.
package container

import (
	"strconv"
	"strings"
)

// Container is what a cgroup path tells of a container.
type Container struct {
	// Runtime is docker, containerd, cri-o, podman, nerdctl, lxc or
	// systemd-nspawn; "" where the path is a container's but does not say whose.
	Runtime string `json:"runtime,omitempty"`
	// ID is the runtime's name for it: 64 hex digits, or with lxc and
	// systemd-nspawn the name that its administrator gave. It is as unsafe for a
	// terminal as the path.
	ID string `json:"id"`
	// Pod is the uid of the Kubernetes pod, "" if there is none.
	Pod string `json:"pod,omitempty"`
}

// short is how many digits of an ID people use.
const short = 12

// String names the container for people, unescaped: "docker 3f1c0a9b2d4e".
func (c Container) String() string {
	name := c.Runtime
	if name == "" {
		name = "container"
	}
	id := c.ID
	if isID(id) {
		id = id[:short]
	}
	return name + " " + id
}

// Parse finds the container that a cgroup belongs to: the innermost, where one
// runs in another. The path is one of /proc/PID/cgroup or one below the mount
// point of the hierarchy.
func Parse(path string) (Container, bool) {
	var found Container
	var pod string
	parts := strings.Split(path, "/")
	for i, part := range parts {
		parent := ""
		if i > 0 {
			parent = parts[i-1]
		}
		if uid := podOf(part); uid != "" {
			// A cluster in a container: what is outside is not of this pod.
			pod, found = uid, Container{}
		}
		if c, ok := one(part, parent); ok {
			c.Pod = pod
			found = c
		}
	}
	return found, found.ID != ""
}

// prefixes stand before the ID in the names of the systemd units, and of some
// cgroups without systemd.
var prefixes = []struct{ prefix, runtime string }{
	{"docker-", "docker"},
	{"cri-containerd-", "containerd"},
	{"crio-", "cri-o"},
	{"libpod-payload-", "podman"},
	{"libpod-", "podman"},
	{"nerdctl-", "nerdctl"},
}

// one reads one component of a path, below another.
func one(part, parent string) (Container, bool) {
	// containerd with a path for systemd and a driver for cgroupfs:
	// kubepods-besteffort-pod<uid>.slice:cri-containerd:<id>
	if f := strings.Split(part, ":"); len(f) == 3 && isID(f[2]) {
		return Container{Runtime: runtimeOf(f[1] + "-"), ID: f[2]}, true
	}
	if isID(part) {
		// The cgroupfs driver: the parent says whose it is, or nobody does.
		switch parent {
		case "docker":
			return Container{Runtime: "docker", ID: part}, true
		case "libpod_parent":
			return Container{Runtime: "podman", ID: part}, true
		}
		return Container{ID: part}, true
	}
	name := strings.TrimSuffix(part, ".scope")
	if i := len(name) - idLen; i > 0 && isID(name[i:]) {
		// What is not known has another meaning: crio-conmon-<id> is the
		// monitor, outside of the container; libpod_pod_<id> a pod's slice.
		if runtime := runtimeOf(name[:i]); runtime != "" {
			return Container{Runtime: runtime, ID: name[i:]}, true
		}
		return Container{}, false
	}
	switch {
	case parent == "lxc" || parent == "lxc.payload":
		return named("lxc", part)
	case strings.HasPrefix(part, "lxc.payload."):
		return named("lxc", strings.TrimPrefix(part, "lxc.payload."))
	case parent == "machine.slice" && strings.HasPrefix(part, "systemd-nspawn@") && strings.HasSuffix(part, ".service"):
		return named("systemd-nspawn", unescape(strings.TrimSuffix(strings.TrimPrefix(part, "systemd-nspawn@"), ".service")))
	case parent == "machine.slice" && strings.HasPrefix(part, "machine-") && name != part:
		machine := unescape(strings.TrimPrefix(name, "machine-"))
		if strings.HasPrefix(machine, "qemu-") || strings.HasPrefix(machine, "lxc-") {
			return Container{}, false // libvirt's: a virtual machine
		}
		return named("systemd-nspawn", machine)
	}
	return Container{}, false
}

func named(runtime, name string) (Container, bool) {
	return Container{Runtime: runtime, ID: name}, name != ""
}

func runtimeOf(prefix string) string {
	for _, p := range prefixes {
		if p.prefix == prefix {
			return p.runtime
		}
	}
	return ""
}

// idLen is the length of the IDs that OCI runtimes make, a SHA-256 in hex.
const idLen = 64

func isID(s string) bool { return len(s) == idLen && isHex(s) }

func isHex(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return s != ""
}

// podOf returns the uid in pod<uid>, or with the systemd driver in
// kubepods-burstable-pod<uid>.slice, where the dashes of the uid are
// underscores since a dash separates slices.
func podOf(part string) string {
	part, _, _ = strings.Cut(part, ":")
	uid, slice := strings.CutSuffix(part, ".slice")
	if slice {
		i := strings.LastIndex(uid, "-pod")
		if i < 0 || !strings.Contains(uid[:i], "kubepods") {
			return ""
		}
		uid = strings.ReplaceAll(uid[i+len("-pod"):], "_", "-")
	} else {
		var ok bool
		if uid, ok = strings.CutPrefix(uid, "pod"); !ok {
			return ""
		}
	}
	// Pods from files have an MD5 for a uid, all others a UUID.
	if len(uid) == 32 && isHex(uid) {
		return uid
	}
	f := strings.Split(uid, "-")
	if len(f) != 5 {
		return ""
	}
	for i, n := range []int{8, 4, 4, 4, 12} {
		if len(f[i]) != n || !isHex(f[i]) {
			return ""
		}
	}
	return uid
}

// unescape undoes systemd's escaping in unit names (\x2d for a dash).
func unescape(s string) string {
	if !strings.Contains(s, `\x`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && s[i+1] == 'x' {
			if n, err := strconv.ParseUint(s[i+2:i+4], 16, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
