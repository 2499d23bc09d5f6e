/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* Retransmissions and the timer behind them. */
#ifndef TCPTRACE_RETRANSMIT_H
#define TCPTRACE_RETRANSMIT_H

static __always_inline int on_retransmit(struct sock *sk, __u8 kind, bool typed)
{
	struct tcp_sock *tp = (void *)sk;
	struct tcptrace_event *e;
	__u32 netns = netns_raw(&sk->__sk_common);

	if (!netns_passes(netns))
		return 0;
	if (kind == KIND_RTO && !RD_raw(tp, packets_out))
		return 0;
	e = begin(kind);
	if (!e)
		return 0;
	e->sock = identity(sk, typed);
	e->netns = netns;
	e->old_state = e->new_state = RD_raw(sk, __sk_common.skc_state);
	e->attempt = RD_raw(tp, inet_conn.icsk_retransmits);
	e->flags = flags_raw(sk);
	fill_addrs_raw(e, &sk->__sk_common);
	fill_traffic_raw(e, tp);
	commit(e);
	return 0;
}

#endif
