/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* Segments that this host drops before TCP makes use of them. */
#ifndef TCPTRACE_DROP_H
#define TCPTRACE_DROP_H

/* Whether a received packet goes on to another host: not ours to explain.
 * Before routing nobody knows.
 */
static __always_inline bool forwarded(struct sk_buff *skb)
{
	void *dst = (void *)(RD_raw(skb, _skb_refdst) & ~1UL);

	if (!dst)
		return false;
	if (RD_raw(skb, protocol) == bpf_htons(ETH_P_IP))
		return RD_raw((struct rtable *)dst, rt_type) != RTN_LOCAL;
	return !(RD_raw((struct rt6_info *)dst, rt6i_flags) & RTF_LOCAL);
}

static __always_inline bool is_tcp(struct sk_buff *skb)
{
	unsigned char *ip = RD_raw(skb, head) + RD_raw(skb, network_header);
	__be16 proto = RD_raw(skb, protocol);
	__u8 next = 0;

	/* iphdr.protocol, ipv6hdr.nexthdr */
	if (proto == bpf_htons(ETH_P_IP))
		bpf_probe_read_kernel(&next, 1, ip + 9);
	else if (proto == bpf_htons(ETH_P_IPV6))
		bpf_probe_read_kernel(&next, 1, ip + 6);
	return next == IPPROTO_TCP;
}

static __always_inline void swap_ends(struct tcptrace_event *e)
{
	__u8 addr[16];
	__u16 port = e->local_port;

	__builtin_memcpy(addr, e->local, 16);
	__builtin_memcpy(e->local, e->remote, 16);
	__builtin_memcpy(e->remote, addr, 16);
	e->local_port = e->remote_port;
	e->remote_port = port;
}

static __always_inline int on_drop(struct sk_buff *skb, __u64 location, __u32 reason, struct sock *rx)
{
	struct sock *sk = RD_raw(skb, sk);
	struct tcptrace_event *e;
	__u8 tcp_flags = 0, state = 0;
	bool out;
	__u32 netns;

	if (!is_tcp(skb))
		return 0;
	/* a packet that came from outside has the interface's number */
	out = !RD_raw(skb, skb_iif) && sk;
	if (!out && forwarded(skb))
		return 0;
	if (!sk)
		sk = rx;
	netns = sk ? netns_raw(&sk->__sk_common) : netns_of_skb_raw(skb);
	if (reason == drop_paws && sk)
		count(netns, AUDIT_PAWS_ESTAB);
	if (!netns_passes(netns))
		return 0;
	e = begin(KIND_DROPPED);
	if (!e)
		return 0;
	e->netns = netns;
	e->reason = reason;
	if (!fill_from_skb_raw(e, skb, &tcp_flags)) {
		bpf_ringbuf_discard(e, BPF_RB_NO_WAKEUP);
		count_lost(LOST_UNREADABLE);
		return 0;
	}
	if (out)
		swap_ends(e);
	if (sk) {
		state = RD_raw(sk, __sk_common.skc_state);
		/* a listener's is not the connection's */
		if (state != TCP_LISTEN && have_cookie)
			e->sock = identity_raw(&sk->__sk_common);
		else if (state != TCP_LISTEN && state != TCP_TIME_WAIT && state != TCP_NEW_SYN_RECV)
			e->sock = (__u64)sk;
	}
	e->old_state = e->new_state = state <= TCP_NEW_SYN_RECV ? state : 0;
	e->d.location = location;
	e->d.tcp_flags = tcp_flags;
	e->d.out = out;
	commit_folding(e, 0, tcp_flags, out);
	return 0;
}

static __always_inline bool wanted(__u32 reason)
{
	return reason < 256 && drop_wanted[reason / 64 & 3] & 1ULL << (reason & 63);
}

#endif
