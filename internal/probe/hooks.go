package probe

import (
	"errors"
	"fmt"
	"strings"

	"github.com/cilium/ebpf/btf"

	"github.com/tcptrace/tcptrace/tracer/event"
)

// Ways to attach, best first.
const (
	viaFentry     = "fentry"
	viaKprobe     = "kprobe"
	viaTracepoint = "tracepoint"
	viaNone       = "none"
)

// A way is one manner of attaching a hook: the programs that do it together.
type way struct {
	via   string
	progs []string
	// targets are the kernel functions or tracepoints, as in /proc/kallsyms
	// or "group/name"; parallel to progs.
	targets []string
	// usable says why this kernel can't do it, before anything is tried.
	// nil: no condition but the targets' presence.
	usable func(*kernel) error
	// partial is what the hook does not see this way, "" if nothing.
	partial string
}

// A hook is one fact that tcptrace wants, and the ways to get it.
type hook struct {
	name      string
	gives     string // for people: what is known with it
	unknown   string // for people: what is not known without it
	mandatory bool
	concludes bool // also from what other hooks see or not: loaded after them
	ways      []way
}

func tp(prog, name string) way {
	return way{via: viaTracepoint, progs: []string{prog}, targets: []string{name}}
}

func fentry(prog, fn string) way {
	return way{via: viaFentry, progs: []string{prog}, targets: []string{fn}}
}

func kprobe(prog, fn string) way {
	return way{via: viaKprobe, progs: []string{prog}, targets: []string{fn}}
}

func (w way) when(cond func(*kernel) error) way { w.usable = cond; return w }
func (w way) seesOnly(what string) way          { w.partial = what; return w }
func (w way) and(o way) way {
	w.progs = append(w.progs, o.progs...)
	w.targets = append(w.targets, o.targets...)
	return w
}

// twins are the programs that have one to stand in for them where the kernel
// skips them, see bpf/twin.h.
var twins = map[string]bool{"tp_state": true, "fx_accept": true}

const twinSuffix = "_twin"

// withTwins adds the twins where they are of use: kernels that skip programs
// also have cookies, which twins need. Programs of a tracepoint run in the
// order of their attachment, those of a function in the reverse order, and a
// twin must come second.
func (w way) withTwins(k *kernel) way {
	if !k.cookies() {
		return w
	}
	var progs, targets []string
	for i, p := range w.progs {
		switch {
		case !twins[p]:
			progs, targets = append(progs, p), append(targets, w.targets[i])
		case w.via == viaTracepoint:
			progs, targets = append(progs, p, p+twinSuffix), append(targets, w.targets[i], w.targets[i])
		default:
			progs, targets = append(progs, p+twinSuffix, p), append(targets, w.targets[i], w.targets[i])
		}
	}
	w.progs, w.targets = progs, targets
	return w
}

// unseenCalls are the system calls that syscall tracepoints do not see.
const unseenCalls = " through io_uring or by 32-bit programs"

// hooks lists every hook, in the order in which they are attached. Reporting
// hooks come after those whose notes they read.
var hooks = []hook{
	{
		name: "inet_sock_set_state", mandatory: true, concludes: true,
		gives: "every TCP state change, with errors and byte counts",
		ways:  []way{tp("tp_state", "inet_sock_set_state")},
	},
	{
		name:    "tcp_time_wait",
		gives:   "which closing sockets enter TIME_WAIT",
		unknown: "TIME_WAIT entry for certain: it is concluded from the state change",
		ways:    []way{fentry("fe_time_wait", "tcp_time_wait"), kprobe("kp_time_wait", "tcp_time_wait")},
	},
	{
		name:    "inet_csk_accept",
		gives:   "accept(): by which process and when",
		unknown: "when accept() took a connection, and its process, until it closes it",
		ways: []way{
			fentry("fx_accept", "inet_csk_accept").when(acceptReturn),
			kprobe("kr_accept", "inet_csk_accept"),
			tp("sys_exit_accept4", "syscalls/sys_exit_accept4").and(tp("sys_exit_accept", "syscalls/sys_exit_accept")).
				seesOnly("accept()" + unseenCalls),
		},
	},
	{
		name:    "listen",
		gives:   "the backlog argument of listen()",
		unknown: "the backlog argument of listen(); its clamped value is known",
		ways: []way{
			fentry("fx_listen", "__sys_listen"),
			kprobe("kp_listen", "__sys_listen").and(kprobe("kr_listen", "__sys_listen")),
			tp("sys_exit_listen", "syscalls/sys_exit_listen").and(tp("sys_enter_listen", "syscalls/sys_enter_listen")).
				seesOnly("the backlog argument of listen()" + unseenCalls),
		},
	},
	{
		name:    "shutdown",
		gives:   "shutdown() calls, told from close()",
		unknown: "whether a FIN was sent by shutdown() or by close()",
		ways: []way{
			fentry("fe_shutdown", "tcp_shutdown"),
			kprobe("kp_shutdown", "tcp_shutdown"),
			tp("sys_enter_shutdown", "syscalls/sys_enter_shutdown").seesOnly("shutdown()" + unseenCalls),
		},
	},
	{
		name:    "tcp_conn_request",
		gives:   "SYNs dropped at a full accept queue, full request queues, SYN cookies",
		unknown: "SYNs dropped at a full accept queue",
		ways: []way{
			fentry("fe_conn_request", "tcp_conn_request"),
			kprobe("kp_conn_request", "tcp_conn_request"),
			tp("tp_consume_skb", "consume_skb").
				seesOnly("which of several listeners on one address (SO_REUSEPORT) dropped a SYN; that a SYN was dropped is concluded from the listener's queue and drop count"),
		},
	},
	{
		name:    "tcp_syn_recv_sock",
		gives:   "final ACKs that met a full accept queue",
		unknown: "which final ACKs met a full accept queue, unless answered by RST or followed by a SYN-ACK retransmission",
		ways: []way{
			fentry("fe_v4_syn_recv_sock", "tcp_v4_syn_recv_sock").and(fentry("fe_v6_syn_recv_sock", "tcp_v6_syn_recv_sock")),
			kprobe("kp_v4_syn_recv_sock", "tcp_v4_syn_recv_sock").and(kprobe("kp_v6_syn_recv_sock", "tcp_v6_syn_recv_sock")),
			tp("tp_kfree_skb", "kfree_skb").when(overflowReason),
		},
	},
	{
		name:    "tcp_check_req",
		gives:   "half-open requests killed by RST or SYN",
		unknown: "half-open requests that the peer killed by RST (part of AttemptFails)",
		ways: []way{
			fentry("fe_check_req", "tcp_check_req").and(fentry("fe_reqsk_drop", "inet_csk_reqsk_queue_drop")),
			kprobe("kp_check_req", "tcp_check_req").and(kprobe("kp_reqsk_drop", "inet_csk_reqsk_queue_drop")),
		},
	},
	{
		name:    "inet_csk_get_port",
		gives:   "bind() and listen() that fail because the port is taken",
		unknown: "bind() that fails because the port is taken",
		ways: []way{
			fentry("fx_get_port", "inet_csk_get_port"),
			kprobe("kp_get_port", "inet_csk_get_port").and(kprobe("kr_get_port", "inet_csk_get_port")),
			tp("sys_exit_bind", "syscalls/sys_exit_bind").and(tp("sys_enter_bind", "syscalls/sys_enter_bind")).
				seesOnly("bind()" + unseenCalls + ", and listen() that fails because the port is taken"),
		},
	},
	{
		name:    "kfree_skb",
		gives:   "segments that this host drops before TCP makes use of them, with the kernel's reason",
		unknown: "segments that this host drops (netfilter and others), and those refused by PAWS",
		ways: []way{
			tp("tp_drop_rx", "kfree_skb").when(dropPAWS),
			tp("tp_drop_rx", "kfree_skb").when(dropSocket).seesOnly(olderPAWS),
			tp("tp_drop", "kfree_skb").when(dropReason).seesOnly(olderPAWS),
			tp("tp_drop_place", "kfree_skb").when(dropPlace).
				seesOnly("why a segment is dropped (this kernel gives no reason), unless netfilter does it; PAWS among others"),
		},
	},
	{
		name:    "tcp_xmit_probe_skb",
		gives:   "keepalive and zero-window probes",
		unknown: "keepalive and zero-window probes as they are sent; the socket's own count is seen at its end and in snapshots",
		ways:    []way{fentry("fe_probe", "tcp_xmit_probe_skb"), kprobe("kp_probe", "tcp_xmit_probe_skb")},
	},
	{
		name:    "tcp_check_oom",
		gives:   "sockets killed for want of TCP memory or because of too many orphans",
		unknown: "sockets killed for want of memory, unless the kernel gives that as the reason of their RST",
		ways: []way{
			fentry("fx_check_oom", "tcp_check_oom"),
			kprobe("kp_check_oom", "tcp_check_oom").and(kprobe("kr_check_oom", "tcp_check_oom")),
		},
	},
	{
		name:    "inet_twsk_alloc",
		gives:   "TIME_WAIT cut short by tcp_max_tw_buckets",
		unknown: "TIME_WAIT cut short by tcp_max_tw_buckets",
		ways: []way{
			fentry("fx_twsk_alloc", "inet_twsk_alloc"),
			kprobe("kp_twsk_alloc", "inet_twsk_alloc").and(kprobe("kr_twsk_alloc", "inet_twsk_alloc")),
		},
	},
	{
		name:  "tcp_twsk_unique",
		gives: "ports in TIME_WAIT that connect() uses again (a counter)",
		ways: []way{
			fentry("fx_twsk_unique", "tcp_twsk_unique"),
			kprobe("kp_twsk_unique", "tcp_twsk_unique").and(kprobe("kr_twsk_unique", "tcp_twsk_unique")),
		},
	},
	{
		name:  "tcp_syn_ack_timeout",
		gives: "expiries of the SYN-ACK's timer (a counter)",
		ways:  []way{fentry("fe_synack_timeout", "tcp_syn_ack_timeout"), kprobe("kp_synack_timeout", "tcp_syn_ack_timeout")},
	},
	{
		name:  "cookie_init_sequence",
		gives: "SYN cookies sent (a counter)",
		ways: []way{
			fentry("fe_cookie_v4", "cookie_v4_init_sequence").and(fentry("fe_cookie_v6", "cookie_v6_init_sequence")),
			kprobe("kp_cookie_v4", "cookie_v4_init_sequence").and(kprobe("kp_cookie_v6", "cookie_v6_init_sequence")),
		},
	},
	{
		name:  "cookie_check",
		gives: "SYN cookies that came back, good or bad (counters)",
		ways: []way{
			fentry("fe_cookie_v4_check", "cookie_v4_check").and(fentry("fx_cookie_v4_checked", "__cookie_v4_check")).
				and(fentry("fe_cookie_v6_check", "cookie_v6_check")).and(fentry("fx_cookie_v6_checked", "__cookie_v6_check")),
			kprobe("kp_cookie_v4_check", "cookie_v4_check").and(kprobe("kr_cookie_v4_checked", "__cookie_v4_check")).
				and(kprobe("kp_cookie_v6_check", "cookie_v6_check")).and(kprobe("kr_cookie_v6_checked", "__cookie_v6_check")),
		},
	},
	{
		name: "tcp_send_reset", mandatory: true, concludes: true,
		gives:   "every RST sent, with the kernel's reason where it has one",
		unknown: "the kernel's reason for a RST it sends",
		ways: []way{
			tp("tp_send_reset", "tcp_send_reset").when(resetReason),
			fentry("fe_v4_send_reset", "tcp_v4_send_reset").and(fentry("fe_v6_send_reset", "tcp_v6_send_reset")).
				and(fentry("fe_active_reset", "tcp_send_active_reset")).
				seesOnly("why a RST is sent: this kernel gives no reason"),
			kprobe("kp_v4_send_reset", "tcp_v4_send_reset").and(kprobe("kp_v6_send_reset", "tcp_v6_send_reset")).
				and(kprobe("kp_active_reset", "tcp_send_active_reset")).
				seesOnly("why a RST is sent: this kernel gives no reason"),
			tp("tp_send_reset", "tcp_send_reset").
				seesOnly("why a RST is sent (this kernel gives no reason), and RSTs sent without a full socket: closed ports, TIME_WAIT"),
		},
	},
	{
		name: "tcp_receive_reset", mandatory: true,
		gives: "RSTs received on established connections",
		ways:  []way{tp("tp_receive_reset", "tcp_receive_reset")},
	},
	{
		name: "tcp_retransmit_synack", mandatory: true, concludes: true,
		gives: "SYN-ACK retransmissions, and whether the final ACK had come",
		ways:  []way{tp("tp_retransmit_synack", "tcp_retransmit_synack")},
	},
	{
		name:  "tcp_retransmit_skb",
		gives: "retransmitted segments",
		ways: []way{
			tp("tp_retransmit_err", "tcp_retransmit_skb").when(retransmitErr),
			tp("tp_retransmit", "tcp_retransmit_skb"),
		},
	},
	{
		name:    "tcp_retransmit_timer",
		gives:   "expiries of the retransmission timer",
		unknown: "expiries of the retransmission timer before the segment goes out again",
		ways:    []way{fentry("fe_rto", "tcp_retransmit_timer"), kprobe("kp_rto", "tcp_retransmit_timer")},
	},
}

// Conditions on kernels. They look at BTF, not at version numbers.

func acceptReturn(k *kernel) error {
	switch n := k.args("inet_csk_accept"); n {
	case 2, 4:
		return nil
	default:
		return fmt.Errorf("inet_csk_accept has %d arguments, 2 or 4 are known", n)
	}
}

func resetReason(k *kernel) error {
	if k.tpArgs("tcp_send_reset") < 3 {
		return errors.New("its tracepoint has no reason on this kernel")
	}
	return nil
}

func retransmitErr(k *kernel) error {
	if k.tpArgs("tcp_retransmit_skb") < 3 {
		return errors.New("its tracepoint does not tell of failures on this kernel")
	}
	return nil
}

// overflowReason: the kernel names the drop of a final ACK at a full accept
// queue, and its listener, since 6.18 or so. The reason's name is older than
// its use there; what came with the use is the number of arguments that
// tcp_check_req has (drop_reason).
func overflowReason(k *kernel) error {
	if k.tpArgs("kfree_skb") < 4 || k.args("tcp_check_req") < 6 {
		return errors.New("kfree_skb does not name this drop on this kernel")
	}
	if _, ok := k.enum("skb_drop_reason")["SKB_DROP_REASON_TCP_LISTEN_OVERFLOW"]; !ok {
		return errors.New("this kernel has no drop reason TCP_LISTEN_OVERFLOW")
	}
	return nil
}

// kfree_skb has a reason since 5.17, and the socket that the segment was for
// since 6.11.
func dropReason(k *kernel) error {
	if k.tpArgs("kfree_skb") < 3 || len(k.enum("skb_drop_reason")) == 0 {
		return errors.New("kfree_skb gives no reason on this kernel")
	}
	return nil
}

func dropSocket(k *kernel) error {
	if k.tpArgs("kfree_skb") < 4 {
		return errors.New("kfree_skb does not name the socket on this kernel")
	}
	return dropReason(k)
}

// dropPAWS: since 6.15 or so every segment that PAWS refuses has a reason.
func dropPAWS(k *kernel) error {
	if _, ok := k.enum("skb_drop_reason")["SKB_DROP_REASON_TCP_RFC7323_TW_PAWS"]; !ok {
		return errors.New("PAWS has no reason of its own for TIME_WAIT on this kernel")
	}
	return dropSocket(k)
}

const olderPAWS = "segments that PAWS refuses for TIME_WAIT or for half-open requests: this kernel gives no reason for these"

func dropPlace(k *kernel) error {
	if k.nfHook.start == 0 {
		return errors.New("the place of netfilter's drops (nf_hook_slow in /proc/kallsyms) can't be read")
	}
	return nil
}

// cookies says whether tracing programs can ask for a socket's cookie.
func (k *kernel) cookies() bool { return k.hasFunc("bpf_get_socket_ptr_cookie") }

// kernel is what BTF says about the running kernel.
type kernel struct {
	spec    *btf.Spec
	cache   *btf.Cache
	release string
	nfHook  symbol // where netfilter drops, looked up where kfree_skb has no reason
	// refused remembers a way that this kernel refuses as a whole.
	refused map[string]error
}

// args returns the number of parameters of a function, -1 if it is not there.
func (k *kernel) args(fn string) int {
	var f *btf.Func
	if err := k.spec.TypeByName(fn, &f); err != nil {
		return -1
	}
	p, ok := f.Type.(*btf.FuncProto)
	if !ok {
		return -1
	}
	return len(p.Params)
}

// tpArgs returns the number of arguments of a tracepoint, -1 if it is not there.
func (k *kernel) tpArgs(name string) int {
	var t *btf.Typedef
	if err := k.spec.TypeByName("btf_trace_"+name, &t); err != nil {
		return -1
	}
	ptr, ok := t.Type.(*btf.Pointer)
	if !ok {
		return -1
	}
	p, ok := ptr.Target.(*btf.FuncProto)
	if !ok {
		return -1
	}
	return len(p.Params) - 1 // the first is the probe's own data
}

// enum returns name -> value of a named enum, nil if it is not there.
func (k *kernel) enum(name string) map[string]uint64 {
	var e *btf.Enum
	if err := k.spec.TypeByName(name, &e); err != nil {
		return nil
	}
	m := make(map[string]uint64, len(e.Values))
	for _, v := range e.Values {
		m[v.Name] = v.Value
	}
	return m
}

func (k *kernel) hasFunc(fn string) bool { return k.args(fn) >= 0 }

// rstReasons returns the kernel's names of enum sk_rst_reason by number,
// without their common prefix.
func (k *kernel) rstReasons() map[uint32]string {
	m := map[uint32]string{}
	for name, v := range k.enum("sk_rst_reason") {
		if n := strings.TrimPrefix(name, "SK_RST_REASON_"); n != "MAX" {
			m[uint32(v)] = n
		}
	}
	return m
}

// dropReasons are the kernel's names of enum skb_drop_reason by number, without
// their common prefix.
func (k *kernel) dropReasons() map[uint32]string {
	m := map[uint32]string{}
	for name, v := range k.enum("skb_drop_reason") {
		if n := strings.TrimPrefix(name, "SKB_DROP_REASON_"); n != name && v < 256 && n != "MAX" {
			m[uint32(v)] = n
		}
	}
	return m
}

// toldDrops are the reasons that mean: this host dropped a segment before its
// TCP made use of it. What TCP itself sorts out in healthy traffic (old data,
// segments out of order), what is answered by RST, and congestion at a queue
// (QDISC_DROP) are none of these.
var toldDrops = []string{
	"NETFILTER_DROP", "SOCKET_FILTER", "XFRM_POLICY", "BPF_CGROUP_EGRESS", "TC_EGRESS", "TC_INGRESS", "XDP",
	"IP_RPFILTER", "IP_INNOROUTES", "IP_OUTNOROUTES", "IP_INVALID_SOURCE", "IP_LOCAL_SOURCE", "IP_LOCALNET", "IP_INVALID_DEST",
	"IP_CSUM", "IP_INHDR", "TCP_CSUM", "TCP_MINTTL",
	"TCP_MD5NOTFOUND", "TCP_MD5UNEXPECTED", "TCP_MD5FAILURE", "TCP_AONOTFOUND", "TCP_AOUNEXPECTED", "TCP_AOKEYNOTFOUND", "TCP_AOFAILURE",
	"SOCKET_RCVBUFF", "SOCKET_BACKLOG", "PROTO_MEM",
	"NEIGH_CREATEFAIL", "NEIGH_FAILED", "NEIGH_QUEUEFULL", "NEIGH_DEAD",
	"TCP_RFC7323_PAWS", "TCP_RFC7323_PAWS_ACK", "TCP_RFC7323_TW_PAWS", "TCP_RFC7323_TSECR",
}

// wantedDrops has a bit for each of toldDrops.
func (k *kernel) wantedDrops() (bits [4]uint64) {
	reasons := k.enum("skb_drop_reason")
	for _, name := range toldDrops {
		if v, ok := reasons["SKB_DROP_REASON_"+name]; ok && v < 256 {
			bits[v/64] |= 1 << (v % 64)
		}
	}
	return bits
}

// present says whether the targets of a way exist, by BTF for functions and
// BTF tracepoints. System call tracepoints are found out by attaching.
func (w way) present(k *kernel) error {
	for _, t := range w.targets {
		if strings.Contains(t, "/") {
			continue
		}
		if w.via == viaTracepoint {
			if k.tpArgs(t) < 0 {
				return fmt.Errorf("this kernel has no tracepoint %s", t)
			}
		} else if !k.hasFunc(t) {
			return fmt.Errorf("this kernel has no function %s", t)
		}
	}
	return nil
}

// allowed says whether a way may be used under --attach.
func allowed(attach, via string) bool {
	switch attach {
	case "fentry":
		return via == viaFentry || via == viaTracepoint
	case "kprobe":
		return via == viaKprobe || via == viaTracepoint
	case "tracepoint":
		return via == viaTracepoint
	}
	return true
}

// unknowable turns what is missing into sentences, in the hooks' order.
func unknowable(state []event.Hook, partial map[string]string) []string {
	var out []string
	seen := map[string]bool{}
	add := func(s string) {
		if s != "" && !seen[s] {
			seen[s] = true
			out = append(out, s)
		}
	}
	for i, h := range hooks {
		if state[i].Via == viaNone {
			add(h.unknown)
		} else {
			add(partial[h.name])
		}
	}
	return out
}
