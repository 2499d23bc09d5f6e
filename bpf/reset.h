/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* RST sent and received. */
#ifndef TCPTRACE_RESET_H
#define TCPTRACE_RESET_H

static __always_inline bool accept_queue_full(struct sock *sk)
{
	return RD_raw(sk, sk_ack_backlog) > RD_raw(sk, sk_max_ack_backlog);
}

/* tracepoint-only mode before kfree_skb names the overflow: with
 * tcp_abort_on_overflow a listener answers a final ACK by RST, and nothing
 * else makes a listener with a full queue do so for a reason of this kind.
 */
static __always_inline void overflow_from_reset(struct sock *sk, struct sk_buff *skb, __u32 reason)
{
	struct tcptrace_event *e;
	__u8 tcp_flags = 0;
	__u32 netns;

	if (!sk || !skb || RD_raw(sk, __sk_common.skc_state) != TCP_LISTEN || !accept_queue_full(sk))
		return;
	netns = netns_raw(&sk->__sk_common);
	if (!netns_passes(netns))
		return;
	e = begin(KIND_ACK_OVERFLOW);
	if (!e)
		return;
	e->netns = netns;
	e->old_state = e->new_state = TCP_NEW_SYN_RECV;
	e->reason = reason;
	e->flags = FLAG_INFERRED | FLAG_RST;
	fill_listener(e, sk);
	if (!e->l.abort_on_overflow || !fill_from_skb_raw(e, skb, &tcp_flags) ||
	    (tcp_flags & (TCPF_SYN | TCPF_ACK | TCPF_RST)) != TCPF_ACK) {
		bpf_ringbuf_discard(e, BPF_RB_NO_WAKEUP);
		return;
	}
	count(netns, AUDIT_LISTEN_OVERFLOWS);
	count(netns, AUDIT_LISTEN_DROPS);
	commit(e);
}

/* sk may be missing, a listener, a minisocket (only sock_common is there) or a
 * full socket. skb is the segment being answered, missing where the host
 * resets by itself. All read as raw addresses: resets are rare.
 */
static __always_inline int on_send_reset(struct sock *sk, struct sk_buff *skb, __u32 reason, bool typed)
{
	struct tcptrace_event *e;
	__u8 state = 0, tcp_flags = 0;
	bool full;
	__u32 netns;

	if (infer_ack_overflow)
		overflow_from_reset(sk, skb, reason);
	if (sk) {
		state = RD_raw(sk, __sk_common.skc_state);
		netns = netns_raw(&sk->__sk_common);
	} else {
		if (!skb)
			return 0;
		netns = netns_of_skb_raw(skb);
	}
	count(netns, AUDIT_OUT_RSTS);
	if (reason == rst_on_close) {
		/* MPTCP's fastclose gives the same reason, before it closes the
		 * subflow: the kernel does not count that
		 */
		if (state == TCP_CLOSE)
			count(netns, AUDIT_ABORT_ON_CLOSE);
	} else if (reason == rst_on_data) {
		count(netns, AUDIT_ABORT_ON_DATA);
	} else if (reason == rst_on_linger) {
		count(netns, AUDIT_ABORT_ON_LINGER);
	}
	if (!netns_passes(netns))
		return 0;
	full = sk && state != TCP_LISTEN && state != TCP_TIME_WAIT && state != TCP_NEW_SYN_RECV;

	e = begin(KIND_RST_SENT);
	if (!e)
		return 0;
	e->netns = netns;
	e->old_state = state;
	e->new_state = state;
	e->reason = reason;
	if (full) {
		e->sock = identity(sk, typed);
		e->flags = flags_raw(sk);
		e->err = RD_raw(sk, sk_err);
		fill_addrs_raw(e, &sk->__sk_common);
		if (!e->local_port) {
			struct inet_sock *inet = (void *)sk;

			e->local_port = bpf_ntohs(RD_raw(inet, inet_sport));
		}
		fill_traffic_raw(e, (void *)sk);
	} else {
		e->flags = FLAG_NO_SOCKET;
		if (!skb || !fill_from_skb_raw(e, skb, &tcp_flags)) {
			bpf_ringbuf_discard(e, BPF_RB_NO_WAKEUP);
			count_lost(LOST_UNREADABLE);
			return 0;
		}
		if (state == TCP_TIME_WAIT) {
			/* the socket's cookie lives on; the address does not */
			struct inet_timewait_sock *tw = (void *)sk;

			e->sock = have_cookie ? identity_raw(&tw->__tw_common) : 0;
			e->old_state = RD_raw(tw, tw_substate);
		}
		e->attempt = tcp_flags;
		if (state == TCP_LISTEN) {
			e->sock = identity(sk, typed);
			fill_listener(e, sk);
		}
		if (!sk) { /* closed ports are scanned */
			commit_folding(e, 0, tcp_flags, 0);
			return 0;
		}
	}
	commit(e);
	return 0;
}

static __always_inline int on_receive_reset(struct sock *sk)
{
	struct tcptrace_event *e;
	struct tcp_sock *tp;
	__u32 netns = sk->__sk_common.skc_net.net->ns.inum;

	if (!netns_passes(netns))
		return 0;
	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return 0;
	e = begin(KIND_RST_RECEIVED);
	if (!e)
		return 0;
	e->sock = identity_btf(sk);
	e->netns = netns;
	e->old_state = e->new_state = sk->__sk_common.skc_state;
	e->err = sk->sk_err;
	e->flags = flags_btf(sk);
	fill_addrs_btf(e, &sk->__sk_common);
	if (!e->local_port)
		e->local_port = bpf_ntohs(tp->inet_conn.icsk_inet.inet_sport);
	fill_traffic_btf(e, tp);
	commit(e);
	return 0;
}

#endif
