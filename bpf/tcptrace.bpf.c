/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* The programs: one short stub for each way to attach, the work is in the
 * headers. internal/probe/hooks.go says which are used when.
 *
 * Naming: tp_* on tracepoints (BTF-typed), fe_* fentry, fx_* fexit, kp_*
 * kprobe, kr_* kretprobe, sys_* on system call tracepoints.
 */
#define __VMLINUX_H__ /* bpf_tracing.h: kernel's names for registers */
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_tracing.h>

#include "event.h"
#include "config.h"
#include "maps.h"
#include "filter.h"
#include "fill.h"
#include "emit.h"
#include "state.h"
#include "reset.h"
#include "overflow.h"
#include "request.h"
#include "retransmit.h"
#include "drop.h"
#include "process.h"
#include "inventory.h"
#include "twin.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Keeps the types that Go needs in the object's BTF. */
struct exported {
	enum tcptrace_kind kind;
	enum tcptrace_flag flag;
	enum tcptrace_lost lost;
	enum tcptrace_audit audit;
	struct tcptrace_socket socket;
	struct tcptrace_drop drop;
	struct tcptrace_fold_key fold_key;
};
struct exported *exported __attribute__((unused));

typedef unsigned long long args_t;

/* For `make bench`: empty_programs leaves nothing but the hooks. */
#define RUN(work) return empty_programs ? 0 : (work)

/* tracepoints */

SEC("tp_btf/inet_sock_set_state")
int tp_state(args_t *ctx)
{
	if (empty_programs)
		return 0;
	on_state((void *)ctx[0], ctx[1], ctx[2]);
	tell_twin((void *)ctx[0], TWIN_STATE(ctx[1], ctx[2]));
	return 0;
}

SEC("tp_btf/inet_sock_set_state")
int tp_state_twin(args_t *ctx)
{
	if (empty_programs || told_by_twin((void *)ctx[0], TWIN_STATE(ctx[1], ctx[2])))
		return 0;
	return on_state((void *)ctx[0], ctx[1], ctx[2]);
}

SEC("tp_btf/tcp_send_reset")
int tp_send_reset(args_t *ctx)
{
	__u32 reason = 0;

	if (have_rst_reason)
		reason = ctx[2];
	RUN(on_send_reset((void *)ctx[0], (void *)ctx[1], reason, true));
}

SEC("tp_btf/tcp_receive_reset")
int tp_receive_reset(args_t *ctx)
{
	RUN(on_receive_reset((void *)ctx[0]));
}

SEC("tp_btf/tcp_retransmit_synack")
int tp_retransmit_synack(args_t *ctx)
{
	RUN(on_retransmit_synack((void *)ctx[0], (void *)ctx[1]));
}

SEC("tp_btf/tcp_retransmit_skb")
int tp_retransmit(args_t *ctx)
{
	RUN(on_retransmit((void *)ctx[0], (void *)ctx[1], 0));
}

/* since 6.18 the tracepoint also tells of retransmissions that failed */
SEC("tp_btf/tcp_retransmit_skb")
int tp_retransmit_err(args_t *ctx)
{
	RUN(on_retransmit((void *)ctx[0], (void *)ctx[1], (int)ctx[2]));
}

SEC("tp_btf/consume_skb")
int tp_consume_skb(args_t *ctx)
{
	/* once for every packet that is done with */
	if (empty_programs || !is_received_syn((void *)ctx[0]))
		return 0;
	RUN(on_consumed((void *)ctx[0]));
}

SEC("tp_btf/kfree_skb")
int tp_kfree_skb(args_t *ctx)
{
	__u32 reason = ctx[2];
	bool cookie = false;

	/* once for every packet that is dropped */
	if (empty_programs || !ctx[3])
		return 0;
	if (reason == bpf_core_enum_value(enum skb_drop_reason, SKB_DROP_REASON_NO_SOCKET))
		cookie = true;
	else if (reason != bpf_core_enum_value(enum skb_drop_reason, SKB_DROP_REASON_TCP_LISTEN_OVERFLOW))
		return 0;
	RUN(on_dropped((void *)ctx[0], (void *)ctx[3], cookie));
}

/* once for every packet that is dropped */

SEC("tp_btf/kfree_skb")
int tp_drop(args_t *ctx)
{
	if (empty_programs || !wanted(ctx[2]))
		return 0;
	return on_drop((void *)ctx[0], ctx[1], ctx[2], NULL);
}

/* with the socket that it was for */
SEC("tp_btf/kfree_skb")
int tp_drop_rx(args_t *ctx)
{
	if (empty_programs || !wanted(ctx[2]))
		return 0;
	return on_drop((void *)ctx[0], ctx[1], ctx[2], (void *)ctx[3]);
}

/* without a reason: netfilter is known by its place */
SEC("tp_btf/kfree_skb")
int tp_drop_place(args_t *ctx)
{
	if (empty_programs || ctx[1] < nf_hook_start || ctx[1] >= nf_hook_end)
		return 0;
	return on_drop((void *)ctx[0], ctx[1], 0, NULL);
}

/* SYN cookies */

SEC("fentry/cookie_v4_init_sequence")
int fe_cookie_v4(args_t *ctx)
{
	RUN(on_cookie_made((void *)ctx[0]));
}

SEC("kprobe/cookie_v4_init_sequence")
int kp_cookie_v4(struct pt_regs *ctx)
{
	RUN(on_cookie_made((void *)PT_REGS_PARM1(ctx)));
}

SEC("fentry/cookie_v6_init_sequence")
int fe_cookie_v6(args_t *ctx)
{
	RUN(on_cookie_made((void *)ctx[0]));
}

SEC("kprobe/cookie_v6_init_sequence")
int kp_cookie_v6(struct pt_regs *ctx)
{
	RUN(on_cookie_made((void *)PT_REGS_PARM1(ctx)));
}

SEC("fentry/cookie_v4_check")
int fe_cookie_v4_check(args_t *ctx)
{
	RUN(on_cookie_came((void *)ctx[0]));
}

SEC("kprobe/cookie_v4_check")
int kp_cookie_v4_check(struct pt_regs *ctx)
{
	RUN(on_cookie_came((void *)PT_REGS_PARM1(ctx)));
}

SEC("fentry/cookie_v6_check")
int fe_cookie_v6_check(args_t *ctx)
{
	RUN(on_cookie_came((void *)ctx[0]));
}

SEC("kprobe/cookie_v6_check")
int kp_cookie_v6_check(struct pt_regs *ctx)
{
	RUN(on_cookie_came((void *)PT_REGS_PARM1(ctx)));
}

/* What __cookie_v{4,6}_check returned: three arguments up to 6.1, then two. Each
 * load is kept an instruction of its own, or the compiler makes one of both with
 * an offset that is not constant, which the verifier refuses.
 */
static __always_inline int cookie_check_result(args_t *ctx)
{
	__u64 result;

	if (cookie_check_nargs == 2) {
		result = ctx[2];
		barrier_var(result);
	} else {
		result = ctx[3];
		barrier_var(result);
	}
	return result;
}

SEC("fexit/__cookie_v4_check")
int fx_cookie_v4_checked(args_t *ctx)
{
	RUN(on_cookie_checked(cookie_check_result(ctx)));
}

SEC("kretprobe/__cookie_v4_check")
int kr_cookie_v4_checked(struct pt_regs *ctx)
{
	RUN(on_cookie_checked((int)PT_REGS_RC(ctx)));
}

SEC("fexit/__cookie_v6_check")
int fx_cookie_v6_checked(args_t *ctx)
{
	RUN(on_cookie_checked(cookie_check_result(ctx)));
}

SEC("kretprobe/__cookie_v6_check")
int kr_cookie_v6_checked(struct pt_regs *ctx)
{
	RUN(on_cookie_checked((int)PT_REGS_RC(ctx)));
}

/* listen overflow */

SEC("fentry/tcp_conn_request")
int fe_conn_request(args_t *ctx)
{
	RUN(on_conn_request((void *)ctx[2], (void *)ctx[3]));
}

SEC("kprobe/tcp_conn_request")
int kp_conn_request(struct pt_regs *ctx)
{
	RUN(on_conn_request((void *)PT_REGS_PARM3(ctx), (void *)PT_REGS_PARM4(ctx)));
}

SEC("fentry/tcp_v4_syn_recv_sock")
int fe_v4_syn_recv_sock(args_t *ctx)
{
	RUN(on_syn_recv_sock((void *)ctx[0], (void *)ctx[1], (void *)ctx[2], (void *)ctx[4], true));
}

SEC("kprobe/tcp_v4_syn_recv_sock")
int kp_v4_syn_recv_sock(struct pt_regs *ctx)
{
	RUN(on_syn_recv_sock((void *)PT_REGS_PARM1(ctx), (void *)PT_REGS_PARM2(ctx),
				(void *)PT_REGS_PARM3(ctx), (void *)PT_REGS_PARM5(ctx), false));
}

/* IPv4 on an IPv6 listener goes on into the IPv4 function: counted there */
static __always_inline bool is_v4(struct sk_buff *skb)
{
	return RD_raw(skb, protocol) == bpf_htons(ETH_P_IP);
}

SEC("fentry/tcp_v6_syn_recv_sock")
int fe_v6_syn_recv_sock(args_t *ctx)
{
	RUN(is_v4((void *)ctx[1]) ? 0 :
	    on_syn_recv_sock((void *)ctx[0], (void *)ctx[1], (void *)ctx[2], (void *)ctx[4], true));
}

SEC("kprobe/tcp_v6_syn_recv_sock")
int kp_v6_syn_recv_sock(struct pt_regs *ctx)
{
	RUN(is_v4((void *)PT_REGS_PARM2(ctx)) ? 0 :
	    on_syn_recv_sock((void *)PT_REGS_PARM1(ctx), (void *)PT_REGS_PARM2(ctx),
			     (void *)PT_REGS_PARM3(ctx), (void *)PT_REGS_PARM5(ctx), false));
}

/* half-open requests */

SEC("fentry/tcp_check_req")
int fe_check_req(args_t *ctx)
{
	RUN(on_check_req((void *)ctx[0], (void *)ctx[1], (void *)ctx[2]));
}

SEC("kprobe/tcp_check_req")
int kp_check_req(struct pt_regs *ctx)
{
	RUN(on_check_req((void *)PT_REGS_PARM1(ctx), (void *)PT_REGS_PARM2(ctx), (void *)PT_REGS_PARM3(ctx)));
}

SEC("fentry/inet_csk_reqsk_queue_drop")
int fe_reqsk_drop(args_t *ctx)
{
	RUN(on_reqsk_drop((void *)ctx[0], (void *)ctx[1], true));
}

SEC("kprobe/inet_csk_reqsk_queue_drop")
int kp_reqsk_drop(struct pt_regs *ctx)
{
	RUN(on_reqsk_drop((void *)PT_REGS_PARM1(ctx), (void *)PT_REGS_PARM2(ctx), false));
}

/* resets before tcp_send_reset has a reason: the tracepoint then misses those
 * without a full socket, the functions do not
 */

static __always_inline int on_v_send_reset(struct sock *sk, struct sk_buff *skb, bool typed)
{
	struct tcphdr_wire th = {};

	bpf_probe_read_kernel(&th, sizeof(th), RD_raw(skb, head) + RD_raw(skb, transport_header));
	if (th.flags & TCPF_RST) /* never answered */
		return 0;
	return on_send_reset(sk, skb, 0, typed);
}

SEC("fentry/tcp_v4_send_reset")
int fe_v4_send_reset(args_t *ctx)
{
	RUN(on_v_send_reset((void *)ctx[0], (void *)ctx[1], true));
}

SEC("kprobe/tcp_v4_send_reset")
int kp_v4_send_reset(struct pt_regs *ctx)
{
	RUN(on_v_send_reset((void *)PT_REGS_PARM1(ctx), (void *)PT_REGS_PARM2(ctx), false));
}

SEC("fentry/tcp_v6_send_reset")
int fe_v6_send_reset(args_t *ctx)
{
	RUN(on_v_send_reset((void *)ctx[0], (void *)ctx[1], true));
}

SEC("kprobe/tcp_v6_send_reset")
int kp_v6_send_reset(struct pt_regs *ctx)
{
	RUN(on_v_send_reset((void *)PT_REGS_PARM1(ctx), (void *)PT_REGS_PARM2(ctx), false));
}

SEC("fentry/tcp_send_active_reset")
int fe_active_reset(args_t *ctx)
{
	RUN(on_send_reset((void *)ctx[0], NULL, 0, true));
}

SEC("kprobe/tcp_send_active_reset")
int kp_active_reset(struct pt_regs *ctx)
{
	RUN(on_send_reset((void *)PT_REGS_PARM1(ctx), NULL, 0, false));
}

/* timers */

SEC("fentry/tcp_retransmit_timer")
int fe_rto(args_t *ctx)
{
	RUN(on_rto((void *)ctx[0], true));
}

SEC("kprobe/tcp_retransmit_timer")
int kp_rto(struct pt_regs *ctx)
{
	RUN(on_rto((void *)PT_REGS_PARM1(ctx), false));
}

SEC("fentry/tcp_syn_ack_timeout")
int fe_synack_timeout(args_t *ctx)
{
	RUN(on_synack_timeout((void *)ctx[0]));
}

SEC("kprobe/tcp_syn_ack_timeout")
int kp_synack_timeout(struct pt_regs *ctx)
{
	RUN(on_synack_timeout((void *)PT_REGS_PARM1(ctx)));
}

SEC("fentry/tcp_xmit_probe_skb")
int fe_probe(args_t *ctx)
{
	RUN(on_probe((void *)ctx[0], true));
}

SEC("kprobe/tcp_xmit_probe_skb")
int kp_probe(struct pt_regs *ctx)
{
	RUN(on_probe((void *)PT_REGS_PARM1(ctx), false));
}

/* limits */

SEC("fexit/tcp_check_oom")
int fx_check_oom(args_t *ctx)
{
	RUN(on_memory((void *)ctx[0], (__u8)ctx[2], true));
}

SEC("kprobe/tcp_check_oom")
int kp_check_oom(struct pt_regs *ctx)
{
	RUN(note_sock((void *)PT_REGS_PARM1(ctx)));
}

SEC("kretprobe/tcp_check_oom")
int kr_check_oom(struct pt_regs *ctx)
{
	struct sock *sk = empty_programs ? NULL : noted_sock();

	return sk ? on_memory(sk, (__u8)PT_REGS_RC(ctx), false) : 0;
}

SEC("fexit/inet_twsk_alloc")
int fx_twsk_alloc(args_t *ctx)
{
	RUN(ctx[3] ? 0 : on_no_timewait((void *)ctx[0], true));
}

SEC("kprobe/inet_twsk_alloc")
int kp_twsk_alloc(struct pt_regs *ctx)
{
	RUN(note_sock((void *)PT_REGS_PARM1(ctx)));
}

SEC("kretprobe/inet_twsk_alloc")
int kr_twsk_alloc(struct pt_regs *ctx)
{
	struct sock *sk = empty_programs ? NULL : noted_sock();

	return sk && !PT_REGS_RC(ctx) ? on_no_timewait(sk, false) : 0;
}

SEC("fexit/tcp_twsk_unique")
int fx_twsk_unique(args_t *ctx)
{
	RUN((int)ctx[3] ? on_recycled((void *)ctx[0]) : 0);
}

SEC("kprobe/tcp_twsk_unique")
int kp_twsk_unique(struct pt_regs *ctx)
{
	RUN(note_sock((void *)PT_REGS_PARM1(ctx)));
}

SEC("kretprobe/tcp_twsk_unique")
int kr_twsk_unique(struct pt_regs *ctx)
{
	struct sock *sk = empty_programs ? NULL : noted_sock();

	return sk && (int)PT_REGS_RC(ctx) ? on_recycled(sk) : 0;
}

SEC("fentry/tcp_time_wait")
int fe_time_wait(args_t *ctx)
{
	RUN(on_time_wait(ctx[0], ctx[1]));
}

SEC("kprobe/tcp_time_wait")
int kp_time_wait(struct pt_regs *ctx)
{
	RUN(on_time_wait(PT_REGS_PARM1(ctx), PT_REGS_PARM2(ctx)));
}

/* system calls of the owner */

static __always_inline int accepted(struct sock *sk)
{
	on_accept_btf(sk);
	tell_twin(sk, TWIN_ACCEPT);
	return 0;
}

/* the return value comes after the arguments, two since 6.10 */
SEC("fexit/inet_csk_accept")
int fx_accept(args_t *ctx)
{
	if (empty_programs)
		return 0;
	if (accept_nargs == 2)
		return accepted((void *)ctx[2]);
	return accepted((void *)ctx[4]);
}

static __always_inline int accepted_twin(struct sock *sk)
{
	return told_by_twin(sk, TWIN_ACCEPT) ? 0 : on_accept_btf(sk);
}

SEC("fexit/inet_csk_accept")
int fx_accept_twin(args_t *ctx)
{
	if (empty_programs)
		return 0;
	if (accept_nargs == 2)
		return accepted_twin((void *)ctx[2]);
	return accepted_twin((void *)ctx[4]);
}

SEC("kretprobe/inet_csk_accept")
int kr_accept(struct pt_regs *ctx)
{
	RUN(on_accept((void *)PT_REGS_RC(ctx)));
}

SEC("tracepoint/syscalls/sys_exit_accept")
int sys_exit_accept(struct trace_event_raw_sys_exit *ctx)
{
	RUN(ctx->ret < 0 ? 0 : on_accept(tcp_of(sock_of_fd(ctx->ret, true))));
}

SEC("tracepoint/syscalls/sys_exit_accept4")
int sys_exit_accept4(struct trace_event_raw_sys_exit *ctx)
{
	RUN(ctx->ret < 0 ? 0 : on_accept(tcp_of(sock_of_fd(ctx->ret, true))));
}

SEC("fexit/__sys_listen")
int fx_listen(args_t *ctx)
{
	RUN((int)ctx[2] ? 0 : on_listen_return(ctx[0], ctx[1]));
}

SEC("kprobe/__sys_listen")
int kp_listen(struct pt_regs *ctx)
{
	RUN(on_listen_enter(PT_REGS_PARM1(ctx), PT_REGS_PARM2(ctx)));
}

SEC("kretprobe/__sys_listen")
int kr_listen(struct pt_regs *ctx)
{
	RUN(on_listen_exit((int)PT_REGS_RC(ctx)));
}

SEC("tracepoint/syscalls/sys_enter_listen")
int sys_enter_listen(struct trace_event_raw_sys_enter *ctx)
{
	RUN(on_listen_enter(ctx->args[0], ctx->args[1]));
}

SEC("tracepoint/syscalls/sys_exit_listen")
int sys_exit_listen(struct trace_event_raw_sys_exit *ctx)
{
	RUN(on_listen_exit(ctx->ret));
}

SEC("fexit/inet_csk_get_port")
int fx_get_port(args_t *ctx)
{
	RUN((int)ctx[2] ? on_bind_failed((void *)ctx[0], ctx[1]) : 0);
}

SEC("kprobe/inet_csk_get_port")
int kp_get_port(struct pt_regs *ctx)
{
	RUN(on_get_port_enter((void *)PT_REGS_PARM1(ctx), PT_REGS_PARM2(ctx)));
}

SEC("kretprobe/inet_csk_get_port")
int kr_get_port(struct pt_regs *ctx)
{
	RUN(on_get_port_exit((int)PT_REGS_RC(ctx)));
}

SEC("tracepoint/syscalls/sys_enter_bind")
int sys_enter_bind(struct trace_event_raw_sys_enter *ctx)
{
	RUN(on_bind_enter(ctx->args[0], (void *)ctx->args[1]));
}

SEC("tracepoint/syscalls/sys_exit_bind")
int sys_exit_bind(struct trace_event_raw_sys_exit *ctx)
{
	RUN(on_bind_exit(ctx->ret));
}

SEC("fentry/tcp_shutdown")
int fe_shutdown(args_t *ctx)
{
	/* the kernel counts RCV as 1, SEND as 2 */
	RUN(on_shutdown((void *)ctx[0], (__u32)ctx[1] - 1));
}

SEC("kprobe/tcp_shutdown")
int kp_shutdown(struct pt_regs *ctx)
{
	RUN(on_shutdown((void *)PT_REGS_PARM1(ctx), (__u32)PT_REGS_PARM2(ctx) - 1));
}

SEC("tracepoint/syscalls/sys_enter_shutdown")
int sys_enter_shutdown(struct trace_event_raw_sys_enter *ctx)
{
	RUN(on_shutdown(tcp_of(sock_of_fd(ctx->args[0], false)), ctx->args[1]));
}

/* what exists now */

SEC("iter/tcp")
int iter_tcp(struct bpf_iter__tcp *ctx)
{
	return on_inventory(ctx);
}
