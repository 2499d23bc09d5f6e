package host

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Capability is a Linux capability by its number in
// include/uapi/linux/capability.h.
type Capability uint

// The capabilities that matter to a tracer.
const (
	CapDACReadSearch Capability = unix.CAP_DAC_READ_SEARCH
	CapNetAdmin      Capability = unix.CAP_NET_ADMIN
	CapSysPtrace     Capability = unix.CAP_SYS_PTRACE
	CapSysAdmin      Capability = unix.CAP_SYS_ADMIN
	CapSyslog        Capability = unix.CAP_SYSLOG
	CapPerfmon       Capability = unix.CAP_PERFMON
	CapBPF           Capability = unix.CAP_BPF
)

func (c Capability) String() string {
	switch c {
	case CapDACReadSearch:
		return "CAP_DAC_READ_SEARCH"
	case CapNetAdmin:
		return "CAP_NET_ADMIN"
	case CapSysPtrace:
		return "CAP_SYS_PTRACE"
	case CapSysAdmin:
		return "CAP_SYS_ADMIN"
	case CapSyslog:
		return "CAP_SYSLOG"
	case CapPerfmon:
		return "CAP_PERFMON"
	case CapBPF:
		return "CAP_BPF"
	}
	return fmt.Sprintf("capability %d", uint(c))
}

// Privileges say what this kernel and this process's rights allow.
type Privileges struct {
	Kernel     string // uname -r
	Machine    string // uname -m
	UID        int    // effective
	Effective  uint64 // capabilities, bit n for capability n
	BTF        bool   // /sys/kernel/btf/vmlinux can be read
	BTFError   string // why not
	Lockdown   string // none, integrity, confidentiality; "" where the kernel has no lockdown
	Tracefs    string // where it is mounted, "" nowhere
	Unpriv     string // kernel.unprivileged_bpf_disabled: 0, 1, 2; "" unknown
	BPFStats   bool   // kernel.bpf_stats_enabled is on for everybody
	InitialPID bool   // in the initial pid namespace: process ids agree with the kernel's
}

// initialPIDNS is PROC_PID_INIT_INO of include/linux/proc_ns.h.
const initialPIDNS = "pid:[4026531836]"

// ReadPrivileges looks at the running kernel and the calling process. What
// cannot be found out stays at its zero value.
func ReadPrivileges() (Privileges, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return Privileges{}, fmt.Errorf("asking for the kernel's release: %w", err)
	}
	p := Privileges{
		Kernel:  unix.ByteSliceToString(uts.Release[:]),
		Machine: unix.ByteSliceToString(uts.Machine[:]),
		UID:     os.Geteuid(),
	}
	var err error
	if p.Effective, err = effective(); err != nil {
		return p, err
	}
	if f, err := os.Open("/sys/kernel/btf/vmlinux"); err == nil {
		p.BTF = true
		f.Close()
	} else {
		p.BTFError = err.Error()
	}
	if b, err := os.ReadFile("/sys/kernel/security/lockdown"); err == nil {
		p.Lockdown = chosen(string(b))
	}
	for _, dir := range []string{"/sys/kernel/tracing", "/sys/kernel/debug/tracing"} {
		if _, err := os.Stat(dir + "/events"); err == nil {
			p.Tracefs = dir
			break
		}
	}
	p.Unpriv, _ = ReadSysctl("kernel.unprivileged_bpf_disabled")
	stats, _ := ReadSysctl("kernel.bpf_stats_enabled")
	p.BPFStats = stats == "1"
	ns, _ := os.Readlink("/proc/self/ns/pid")
	p.InitialPID = ns == initialPIDNS
	return p, nil
}

// Has reports whether the process has a capability. CAP_SYS_ADMIN counts as
// CAP_BPF and CAP_PERFMON, which were carved out of it.
func (p Privileges) Has(c Capability) bool {
	has := func(c Capability) bool { return p.Effective&(1<<c) != 0 }
	return has(c) || (c == CapBPF || c == CapPerfmon) && has(CapSysAdmin)
}

// Problem is something that keeps tcptrace from working, or from working
// fully, and what to do about it.
type Problem struct {
	What  string `json:"what"`
	Hint  string `json:"hint"`
	Fatal bool   `json:"fatal"` // nothing can be traced
}

// Problems lists what is missing, the fatal first.
func (p Privileges) Problems() []Problem {
	var fatal, partial []Problem
	if p.Before(5, 8) {
		fatal = append(fatal, Problem{
			What: fmt.Sprintf("kernel %s is too old: the BPF ring buffer came with 5.8", p.Kernel),
			Hint: "use a kernel of 5.8 or later; 5.10 is the oldest that is tested", Fatal: true,
		})
	}
	if !p.BTF {
		fatal = append(fatal, Problem{
			What: "the kernel's type information (BTF) cannot be read: " + p.BTFError,
			Hint: "use a kernel built with CONFIG_DEBUG_INFO_BTF=y (Debian 11, Ubuntu 20.10 and RHEL 8 have it), and mount sysfs", Fatal: true,
		})
	}
	var missing []string
	for _, c := range []Capability{CapBPF, CapPerfmon} {
		if !p.Has(c) {
			missing = append(missing, c.String())
		}
	}
	if missing != nil {
		hint := "run it with sudo"
		if p.UID == 0 {
			hint = "root is not enough here: the container or service was denied them; grant " + strings.Join(missing, " and ")
		}
		fatal = append(fatal, Problem{
			What: "loading BPF programs needs " + strings.Join(missing, " and "), Hint: hint, Fatal: true,
		})
	}
	if p.Lockdown == "confidentiality" {
		fatal = append(fatal, Problem{
			What: "kernel lockdown is at confidentiality: BPF programs may not read kernel memory",
			Hint: "boot with lockdown=integrity or without lockdown", Fatal: true,
		})
	}
	for _, need := range []struct {
		c    Capability
		what string
	}{
		{CapSysAdmin, "other network namespaces cannot be entered: their sysctls, counters and older sockets stay unknown"},
		{CapSysPtrace, "the open files of other users' processes cannot be read: the owners of older sockets stay unknown"},
		{CapDACReadSearch, "cgroup names are looked up in /proc only: those of processes that have ended stay unknown"},
	} {
		if !p.Has(need.c) {
			partial = append(partial, Problem{What: need.what, Hint: "grant " + need.c.String()})
		}
	}
	if !p.InitialPID {
		partial = append(partial, Problem{
			What: "this process is in a pid namespace of its own: process ids are the host's, and the owners of older sockets stay unknown",
			Hint: "run it on the host, or in a container with the host's pid namespace (docker run --pid=host)",
		})
	}
	return append(fatal, partial...)
}

// Before reports whether the kernel is known to be older than a version.
func (p Privileges) Before(major, minor int) bool {
	a, b, ok := Release(p.Kernel)
	return ok && (a < major || a == major && b < minor)
}

// Release parses the major and minor number at the start of a kernel release.
func Release(release string) (major, minor int, ok bool) {
	a, rest, _ := strings.Cut(release, ".")
	digits := len(rest)
	for i, c := range rest {
		if c < '0' || c > '9' {
			digits = i
			break
		}
	}
	major, err1 := strconv.Atoi(a)
	minor, err2 := strconv.Atoi(rest[:digits])
	return major, minor, err1 == nil && err2 == nil
}

// effective reads the process's effective capabilities.
func effective() (uint64, error) {
	f, err := os.Open("/proc/thread-self/status")
	if err != nil {
		return 0, fmt.Errorf("reading the own capabilities: %w", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if hex, ok := strings.CutPrefix(lines.Text(), "CapEff:"); ok {
			caps, err := strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
			if err != nil {
				return 0, fmt.Errorf("reading the own capabilities: %w", err)
			}
			return caps, nil
		}
	}
	return 0, fmt.Errorf("reading the own capabilities: no CapEff in /proc/thread-self/status")
}

// chosen picks the bracketed word of "none [integrity] confidentiality".
func chosen(s string) string {
	_, s, ok := strings.Cut(s, "[")
	if !ok {
		return ""
	}
	s, _, _ = strings.Cut(s, "]")
	return s
}
