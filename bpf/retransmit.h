/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* Retransmissions, probes, and the timers behind them. */
#ifndef TCPTRACE_RETRANSMIT_H
#define TCPTRACE_RETRANSMIT_H

static __always_inline void emit_of(struct sock *sk, __u8 kind, __u32 netns, __u8 attempt, __u32 reason, bool typed)
{
	struct tcptrace_event *e;

	if (!netns_passes(netns))
		return;
	e = begin(kind);
	if (!e)
		return;
	e->sock = identity(sk, typed);
	e->netns = netns;
	e->old_state = e->new_state = RD_raw(sk, __sk_common.skc_state);
	e->attempt = attempt;
	e->reason = reason;
	e->flags = flags_raw(sk);
	e->err = RD_raw(sk, sk_err);
	fill_addrs_raw(e, &sk->__sk_common);
	if (!e->local_port) {
		struct inet_sock *inet = (void *)sk;

		e->local_port = bpf_ntohs(RD_raw(inet, inet_sport));
	}
	fill_traffic_raw(e, (void *)sk);
	commit(e);
}

/* err: the transmission failed. The kernel has counted it all the same, unless
 * it did not come that far.
 */
static __always_inline int on_retransmit(struct sock *sk, struct sk_buff *skb, int err)
{
	struct inet_connection_sock *icsk = (void *)sk;
	struct tcp_skb_cb *cb = (void *)skb->cb;
	__u32 netns = netns_raw(&sk->__sk_common);

	if (err == -EAGAIN || err == -ENOMEM || err == -EBUSY || err == -EHOSTUNREACH)
		return 0;
	count_n(netns, AUDIT_RETRANS_SEGS, RD_raw(cb, tcp_gso_segs));
	if (RD_raw(sk, __sk_common.skc_state) == TCP_SYN_SENT)
		count(netns, AUDIT_SYN_RETRANS);
	if (!err)
		emit_of(sk, KIND_RETRANSMIT, netns, RD_raw(icsk, icsk_retransmits), 0, true);
	return 0;
}

static __always_inline int on_rto(struct sock *sk, bool typed)
{
	struct tcp_sock *tp = (void *)sk;
	__u32 netns = netns_raw(&sk->__sk_common);
	__u8 state = RD_raw(sk, __sk_common.skc_state);

	if (!RD_raw(tp, packets_out))
		return 0;
	/* a shut window is probed instead (tcp_retransmit_timer) */
	if (RD_raw(tp, snd_wnd) || (RD_raw(sk, __sk_common.skc_flags) & (1 << SOCK_DEAD)) ||
	    state == TCP_SYN_SENT || state == TCP_SYN_RECV)
		count(netns, AUDIT_TIMEOUTS);
	emit_of(sk, KIND_RTO, netns, RD_raw(tp, inet_conn.icsk_retransmits), 0, typed);
	return 0;
}

static __always_inline int on_synack_timeout(struct request_sock *req)
{
	count(netns_raw(&req->__req_common), AUDIT_TIMEOUTS);
	return 0;
}

/* tcp_xmit_probe_skb serves two timers: that of keepalive runs only where
 * nothing waits to be sent or acknowledged.
 */
static __always_inline int on_probe(struct sock *sk, bool typed)
{
	struct tcp_sock *tp = (void *)sk;
	__u32 netns = netns_raw(&sk->__sk_common);
	bool waiting = RD_raw(tp, write_seq) != RD_raw(tp, snd_una);

	count(netns, waiting ? AUDIT_WIN_PROBE : AUDIT_KEEPALIVE);
	emit_of(sk, KIND_PROBE, netns, RD_raw(tp, inet_conn.icsk_probes_out), waiting ? 2 : 1, typed);
	return 0;
}

/* tcp_check_oom: what it answers decides whether the socket dies. */
static __always_inline int on_memory(struct sock *sk, bool killed, bool typed)
{
	__u32 netns;

	if (!killed)
		return 0;
	netns = netns_raw(&sk->__sk_common);
	count(netns, AUDIT_ABORT_ON_MEMORY);
	/* Only a socket with more than this queued dies of want of memory
	 * (tcp_out_of_memory); one with less can only be an orphan too many.
	 */
	emit_of(sk, KIND_MEMORY, netns, 0, RD_raw(sk, sk_wmem_queued) <= SOCK_MIN_SNDBUF ? 1 : 0, typed);
	return 0;
}

/* Entry and exit of a function that runs in softirq, where a kretprobe knows
 * no arguments.
 */
static __always_inline int note_sock(struct sock *sk)
{
	struct notes *n = notes();

	if (n)
		n->entered_sock = (__u64)sk;
	return 0;
}

static __always_inline struct sock *noted_sock(void)
{
	struct notes *n = notes();
	__u64 sk;

	if (!n)
		return NULL;
	sk = n->entered_sock;
	n->entered_sock = 0;
	return (void *)sk;
}

/* A TIME_WAIT minisocket gives way to a new connection with its addresses. */
static __always_inline int on_recycled(struct sock *sk)
{
	count(netns_raw(&sk->__sk_common), AUDIT_TW_RECYCLED);
	return 0;
}

static __always_inline int on_no_timewait(struct sock *sk, bool typed)
{
	__u32 netns = netns_raw(&sk->__sk_common);

	count(netns, AUDIT_TW_OVERFLOW);
	emit_of(sk, KIND_TW_OVERFLOW, netns, 0, 0, typed);
	return 0;
}

#endif
