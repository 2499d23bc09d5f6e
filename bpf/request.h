/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* Half-open requests: SYN-ACK retransmissions and violent ends. */
#ifndef TCPTRACE_REQUEST_H
#define TCPTRACE_REQUEST_H

static __always_inline int on_retransmit_synack(struct sock *sk, struct request_sock *req)
{
	struct inet_connection_sock *icsk = (void *)sk;
	struct inet_request_sock *ireq = (void *)req;
	struct tcptrace_event *e;
	__u32 netns = netns_raw(&sk->__sk_common);
	bool acked;

	count(netns, AUDIT_RETRANS_SEGS);
	count(netns, AUDIT_SYN_RETRANS);
	if (!netns_passes(netns))
		return 0;
	/* With TCP_DEFER_ACCEPT an acknowledged request waits for data, else
	 * the bit is only set where the final ACK met a full accept queue
	 * (tcp_check_req).
	 */
	acked = BPF_CORE_READ_BITFIELD_PROBED(ireq, acked) &&
		!RD_raw(icsk, icsk_accept_queue.rskq_defer_accept);

	if (acked && infer_ack_overflow) {
		e = begin(KIND_ACK_OVERFLOW);
		if (e) {
			e->netns = netns;
			fill_request(e, req, true);
			e->flags = FLAG_INFERRED;
			fill_listener(e, sk);
			commit(e);
		}
	}
	e = begin(KIND_SYNACK_RETRANS);
	if (!e)
		return 0;
	e->netns = netns;
	fill_request(e, req, true);
	fill_listener(e, sk);
	e->l.attempt = RD_raw(req, num_retrans) + 1; /* counted after the tracepoint */
	if (acked)
		e->flags |= FLAG_ACKED;
	commit(e);
	return 0;
}

/* tcp_check_req sees the segment, inet_csk_reqsk_queue_drop the end of the
 * request: together they tell a request killed by RST or SYN from others.
 */
static __always_inline int on_check_req(struct sock *sk, struct sk_buff *skb, struct request_sock *req)
{
	struct tcphdr_wire th = {};
	struct notes *n;

	bpf_probe_read_kernel(&th, sizeof(th), RD_raw(skb, head) + RD_raw(skb, transport_header));
	/* or by RST of our own, with tcp_abort_on_overflow */
	if (!(th.flags & (TCPF_RST | TCPF_SYN)) && !accept_queue_full(sk))
		return 0;
	n = notes();
	if (n) {
		n->killed_request = (__u64)req;
		n->killer_flags = th.flags;
	}
	return 0;
}

static __always_inline int on_reqsk_drop(struct sock *sk, struct request_sock *req, bool typed)
{
	struct tcptrace_event *e;
	struct notes *n = notes();
	__u32 netns, killer;

	if (!n || n->killed_request != (__u64)req)
		return 0;
	killer = n->killer_flags;
	n->killed_request = 0;
	netns = netns_raw(&sk->__sk_common);
	count(netns, AUDIT_EMBRYONIC_RSTS);
	if (!(killer & (TCPF_RST | TCPF_SYN)))
		return 0; /* told as an overflow */
	count(netns, AUDIT_ATTEMPT_FAILS);
	if (!netns_passes(netns))
		return 0;
	e = begin(KIND_REQUEST_ABORTED);
	if (!e)
		return 0;
	e->netns = netns;
	fill_request(e, req, typed);
	e->reason = killer;
	fill_listener(e, sk);
	commit(e);
	return 0;
}

#endif
