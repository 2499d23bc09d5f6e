package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tcptrace/tcptrace/internal/host"
	"github.com/tcptrace/tcptrace/internal/render"
	"github.com/tcptrace/tcptrace/tracer"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// checkup is what doctor finds.
type checkup struct {
	Type         string          `json:"type"`
	Time         render.Stamp    `json:"time"`
	Version      string          `json:"version"`
	Kernel       string          `json:"kernel"`
	Machine      string          `json:"machine"`
	Works        bool            `json:"works"` // watch would work
	Problems     []host.Problem  `json:"problems"`
	Capabilities map[string]bool `json:"capabilities"`
	BTF          bool            `json:"btf"`
	Lockdown     string          `json:"lockdown"`
	Unprivileged string          `json:"unprivileged_bpf_disabled"`
	BPFStats     bool            `json:"bpf_stats_enabled"`
	Attach       string          `json:"attach"`
	AttachedMS   float64         `json:"attached_ms"`
	Identity     string          `json:"identity"`
	Hooks        []event.Hook    `json:"hooks"`
	Unknowable   []string        `json:"unknowable"`
	Netns        uint32          `json:"netns"`
	Sysctls      []sysctl        `json:"sysctls"`
}

// sysctl is a setting with what may surprise about it.
type sysctl struct {
	Name   string `json:"name"`
	Value  string `json:"value"`
	Remark string `json:"remark,omitempty"`
	Trap   bool   `json:"trap"`
}

func newDoctor(u *ui) *cobra.Command {
	var w watching
	var netns string
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "What this kernel and these privileges allow, hook by hook",
		Long: `Attach every hook, tell how and what it gives, and detach again. Tells what
cannot be known here and why, which privileges are missing, and which sysctls
are a trap. The exit status is 0 if watch would work, else 4.`,
		Args: atMost(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ns, err := host.SelfNetns()
			if netns != "" {
				if ns, err = host.ResolveNetns(netns); errors.Is(err, fs.ErrPermission) {
					return forbiddenNetns(fmt.Errorf("--netns %q: %w", netns, err))
				} else if err != nil {
					return usage("give a name that `ip netns` lists, a path such as /proc/PID/ns/net, or an inode number", "--netns %q: %w", netns, err)
				}
			}
			if err != nil {
				return err
			}
			c, err := examine(cmd.Context(), ns, w.attach, u)
			if err != nil {
				return err
			}
			if u.output == "json" {
				err = json.NewEncoder(u.out).Encode(c)
			} else {
				_, err = fmt.Fprint(u.out, c.text(u))
			}
			if err != nil {
				return err
			}
			if !c.Works {
				for _, p := range c.Problems {
					if p.Fatal {
						return &failure{errors.New(p.What), p.Hint, exitForbidden}
					}
				}
			}
			return nil
		},
	}
	u.outputFlag(cmd)
	w.attachFlag(cmd)
	cmd.Flags().StringVar(&netns, "netns", "", "whose sysctls to look at: path, inode or name of a `NETNS` (default: the own)")
	return cmd
}

// examine attaches and detaches, and looks at the settings.
func examine(ctx context.Context, ns host.Netns, attach string, u *ui) (checkup, error) {
	p, err := host.ReadPrivileges()
	if err != nil {
		return checkup{}, err
	}
	c := checkup{
		Type: "doctor", Time: render.Clock{Offset: host.ClockOffset()}.Stamp(host.Now()), Version: versionName(),
		Kernel: p.Kernel, Machine: p.Machine, Works: true, Problems: append([]host.Problem{}, p.Problems()...),
		Capabilities: make(map[string]bool), BTF: p.BTF, Lockdown: p.Lockdown, Unprivileged: p.Unpriv, BPFStats: p.BPFStats,
		Netns: ns.Inode, Hooks: []event.Hook{}, Unknowable: []string{}, Sysctls: []sysctl{},
	}
	for _, need := range needed {
		c.Capabilities[need.String()] = p.Has(need)
	}
	for _, problem := range c.Problems {
		c.Works = c.Works && !problem.Fatal
	}
	start := time.Now()
	t, err := tracer.Open(ctx, tracer.Options{Attach: attach, Log: u.log})
	switch {
	case err == nil:
		c.AttachedMS = float64(time.Since(start).Microseconds()) / 1e3
		caps := t.Capabilities()
		c.Attach, c.Identity, c.Hooks = caps.Attach, caps.Identity, append(c.Hooks, caps.Hooks...)
		c.Unknowable = append(c.Unknowable, caps.Unknowable...)
		if err := t.Close(); err != nil {
			return c, err
		}
	case c.Works:
		// Nothing that was looked at explains it.
		hint := "run it with --log-level debug to see each attempt"
		if errors.Is(err, tracer.ErrNotPermitted) {
			hint = "a security module or seccomp may forbid bpf(2); run it with sudo, outside containers"
		}
		c.Works = false
		c.Problems = append([]host.Problem{{What: err.Error(), Hint: hint, Fatal: true}}, c.Problems...)
	}
	facts, err := host.ReadSysctls(ns)
	if err != nil {
		c.Problems = append(c.Problems, host.Problem{What: err.Error(), Hint: "entering a network namespace needs CAP_SYS_ADMIN"})
	} else {
		c.Sysctls = remarks(facts.Sysctls)
	}
	return c, nil
}

// needed are the capabilities that doctor tells of.
var needed = []host.Capability{host.CapBPF, host.CapPerfmon, host.CapNetAdmin, host.CapSysAdmin, host.CapSysPtrace, host.CapDACReadSearch}

// remarks says which settings are traps, and how.
func remarks(s event.Sysctls) []sysctl {
	var list []sysctl
	add := func(name string, value any, trap bool, remark string) {
		list = append(list, sysctl{Name: name, Value: fmt.Sprint(value), Remark: remark, Trap: trap})
	}
	// when makes a remark only where it holds.
	when := func(name string, value int, holds bool, remark string) {
		if !holds {
			remark = ""
		}
		add(name, value, holds, remark)
	}
	when("net.core.somaxconn", s.Somaxconn, s.Somaxconn < 1024,
		"caps every accept queue, whatever listen() asks for; a burst of that many connections overflows it")
	when("net.ipv4.tcp_abort_on_overflow", s.AbortOnOverflow, s.AbortOnOverflow != 0,
		"clients are reset when an accept queue is full, and cannot tell it from a crash; 0 lets them try again")
	when("net.ipv4.tcp_max_syn_backlog", s.MaxSYNBacklog, s.MaxSYNBacklog < 256,
		"few half-open connections are allowed before SYN cookies or drops begin")
	switch s.SYNCookies {
	case 0:
		add("net.ipv4.tcp_syncookies", s.SYNCookies, true, "SYNs are dropped when half-open connections reach the limit")
	case 2:
		add("net.ipv4.tcp_syncookies", s.SYNCookies, true, "every SYN is answered with a cookie: for tests only, window scaling and SACK suffer")
	default:
		add("net.ipv4.tcp_syncookies", s.SYNCookies, false, "")
	}
	when("net.ipv4.tcp_syn_retries", s.SYNRetries, s.SYNRetries < 2, "a connect() gives up after one or two lost packets")
	when("net.ipv4.tcp_synack_retries", s.SYNACKRetries, s.SYNACKRetries < 2, "one or two lost packets end a handshake")
	when("net.ipv4.tcp_retries2", s.Retries2, s.Retries2 < 8, "established connections give up early: RFC 1122 wants at least 100 s, which takes 8")
	when("net.ipv4.tcp_fin_timeout", s.FinTimeout, s.FinTimeout < 10, "half-closed connections without a process are cut off early")
	when("net.ipv4.tcp_keepalive_time", s.KeepaliveTime, s.KeepaliveTime >= 7200,
		fmt.Sprintf("with SO_KEEPALIVE, a peer that vanished is noticed after %d s at the earliest; without it, never",
			s.KeepaliveTime+s.KeepaliveProbes*s.KeepaliveInterval))
	add("net.ipv4.tcp_keepalive_intvl", s.KeepaliveInterval, false, "")
	add("net.ipv4.tcp_keepalive_probes", s.KeepaliveProbes, false, "")
	when("net.ipv4.tcp_tw_reuse", s.TWReuse, s.TWReuse == 0,
		"a client whose local ports are all in TIME_WAIT towards one destination cannot connect to it")
	when("net.ipv4.tcp_max_tw_buckets", s.MaxTWBuckets, s.MaxTWBuckets < 4096,
		"beyond this many, connections skip TIME_WAIT, and late segments can hit their successors")
	ports := s.PortRangeHigh - s.PortRangeLow + 1
	narrow := ""
	if ports < 10000 {
		narrow = fmt.Sprintf("%d ports are all there is for connections to one destination", ports)
	}
	add("net.ipv4.ip_local_port_range", fmt.Sprintf("%d %d", s.PortRangeLow, s.PortRangeHigh), ports < 10000, narrow)
	return list
}

// text shows the checkup to people.
func (c checkup) text(u *ui) string {
	var b strings.Builder
	w := u.width()
	paint := func(sgr, s string) string {
		if !u.color() {
			return s
		}
		return "\x1b[" + sgr + "m" + s + "\x1b[0m"
	}
	section := func(title string) { b.WriteString("\n" + paint("1", title) + "\n") }
	hang(&b, "", fmt.Sprintf("tcptrace %s on Linux %s (%s)", c.Version, c.Kernel, c.Machine), w)

	section("privileges")
	for _, need := range needed {
		mark := paint("32", "yes")
		if !c.Capabilities[need.String()] {
			mark = paint("1;31", "no ")
		}
		b.WriteString("  " + mark + "  " + need.String() + "\n")
	}
	facts := []string{"kernel type information (BTF): " + map[bool]string{true: "present", false: "not readable"}[c.BTF]}
	if c.Lockdown != "" {
		facts = append(facts, "lockdown: "+c.Lockdown)
	}
	if c.Unprivileged != "" {
		facts = append(facts, "kernel.unprivileged_bpf_disabled: "+c.Unprivileged)
	}
	for _, f := range facts {
		hang(&b, "  ", f, w)
	}
	for _, p := range c.Problems {
		word := "  note: "
		if p.Fatal {
			word = "  problem: "
		}
		hang(&b, word, p.What, w)
		hang(&b, "    hint: ", p.Hint, w)
	}

	if len(c.Hooks) > 0 {
		section("hooks")
		name := 0
		for _, h := range c.Hooks {
			name = max(name, len(h.Name))
		}
		// Many hooks have the same reason, so reasons are told once, beneath.
		var reasons []string
		for _, h := range c.Hooks {
			mark := "   "
			if h.Why != "" {
				i := slices.Index(reasons, h.Why)
				if i < 0 {
					i = len(reasons)
					reasons = append(reasons, h.Why)
				}
				mark = fmt.Sprintf("(%d)", i+1)
			}
			hang(&b, fmt.Sprintf("  %s  %s %s  ", render.Pad(render.Safe(h.Name), name), render.Pad(render.Safe(h.Via), len("tracepoint")), mark), h.Gives, w)
		}
		for i, why := range reasons {
			hang(&b, fmt.Sprintf("  (%d) no better way: ", i+1), why, w)
		}
	}
	if len(c.Unknowable) > 0 {
		section("what cannot be known here")
		for _, s := range c.Unknowable {
			hang(&b, "  - ", s, w)
		}
	}
	if len(c.Sysctls) > 0 {
		section(fmt.Sprintf("sysctls (network namespace %d)", c.Netns))
		name, value := 0, 0
		for _, s := range c.Sysctls {
			name, value = max(name, len(s.Name)), max(value, len(s.Value))
		}
		for _, s := range c.Sysctls {
			b.WriteString("  " + render.Pad(s.Name, name) + "  " + strings.TrimRight(render.Pad(s.Value, value), " ") + "\n")
			if s.Remark != "" {
				hang(&b, "      trap: ", s.Remark, w)
			}
		}
	}
	b.WriteByte('\n')
	if c.Works {
		hang(&b, "", fmt.Sprintf("tcptrace watch works here: attached by %s in %.0f ms.", c.Attach, c.AttachedMS), w)
	} else {
		hang(&b, "", "tcptrace watch does not work here.", w)
	}
	return b.String()
}
