package host

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/tcptrace/tcptrace/tracer/event"
)

// ReadSysctls returns the namespace with its settings. On error the value
// still has inode and name, and Known is false.
//
// A setting that this kernel does not have stays 0; one that cannot be read
// or parsed is an error.
func ReadSysctls(n Netns) (event.Namespace, error) {
	ns := event.Namespace{Inode: n.Inode, Name: n.Name}
	err := Enter(n, func() error {
		s, err := readSysctls()
		if err != nil {
			return err
		}
		ns.Sysctls, ns.Known = s, true
		return nil
	})
	if err != nil {
		return ns, fmt.Errorf("reading the sysctls of network namespace %d: %w", n.Inode, err)
	}
	return ns, nil
}

// readSysctls reads the settings of the calling thread's namespace:
// /proc/sys/net is resolved by the task that opens it.
func readSysctls() (event.Sysctls, error) {
	var s event.Sysctls
	for _, f := range []struct {
		name string
		to   []*int
	}{
		{"net/core/somaxconn", []*int{&s.Somaxconn}},
		{"net/ipv4/tcp_syn_retries", []*int{&s.SYNRetries}},
		{"net/ipv4/tcp_synack_retries", []*int{&s.SYNACKRetries}},
		{"net/ipv4/tcp_syncookies", []*int{&s.SYNCookies}},
		{"net/ipv4/tcp_abort_on_overflow", []*int{&s.AbortOnOverflow}},
		{"net/ipv4/tcp_max_syn_backlog", []*int{&s.MaxSYNBacklog}},
		{"net/ipv4/tcp_retries2", []*int{&s.Retries2}},
		{"net/ipv4/tcp_keepalive_time", []*int{&s.KeepaliveTime}},
		{"net/ipv4/tcp_keepalive_intvl", []*int{&s.KeepaliveInterval}},
		{"net/ipv4/tcp_keepalive_probes", []*int{&s.KeepaliveProbes}},
		{"net/ipv4/tcp_fin_timeout", []*int{&s.FinTimeout}},
		{"net/ipv4/tcp_tw_reuse", []*int{&s.TWReuse}},
		{"net/ipv4/tcp_max_tw_buckets", []*int{&s.MaxTWBuckets}},
		{"net/ipv4/ip_local_port_range", []*int{&s.PortRangeLow, &s.PortRangeHigh}},
	} {
		b, err := os.ReadFile("/proc/sys/" + f.name)
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return event.Sysctls{}, err
		}
		fields := strings.Fields(string(b))
		if len(fields) != len(f.to) {
			return event.Sysctls{}, fmt.Errorf("/proc/sys/%s holds %d values, not %d", f.name, len(fields), len(f.to))
		}
		for i, to := range f.to {
			if *to, err = strconv.Atoi(fields[i]); err != nil {
				return event.Sysctls{}, fmt.Errorf("/proc/sys/%s: %w", f.name, err)
			}
		}
	}
	return s, nil
}

// ReadSysctl returns one setting of the whole machine, for example
// "kernel.unprivileged_bpf_disabled".
func ReadSysctl(name string) (string, error) {
	b, err := os.ReadFile("/proc/sys/" + strings.ReplaceAll(name, ".", "/"))
	if err != nil {
		return "", fmt.Errorf("reading %s: %w", name, err)
	}
	return string(bytes.TrimSpace(b)), nil
}
