/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* The listen-overflow paths. The tests are those of the kernel itself, made at
 * the same place and in the same order (tcp_conn_request, tcp_v4_syn_recv_sock).
 */
#ifndef TCPTRACE_OVERFLOW_H
#define TCPTRACE_OVERFLOW_H

static __always_inline bool syn_queue_full(struct sock *sk, __u32 limit)
{
	struct inet_connection_sock *icsk = (void *)sk;
	__u32 len = RD_raw(icsk, icsk_accept_queue.qlen.counter);

	return syn_queue_full_at_limit ? len >= limit : len > limit;
}

static __always_inline void emit_syn(__u8 kind, __u16 flags, __u32 netns, struct sock *sk, struct sk_buff *skb)
{
	struct tcptrace_event *e;
	__u8 tcp_flags;

	if (!netns_passes(netns))
		return;
	e = begin(kind);
	if (!e)
		return;
	e->netns = netns;
	e->old_state = e->new_state = TCP_LISTEN;
	e->flags = flags;
	fill_listener(e, sk);
	if (!fill_from_skb_raw(e, skb, &tcp_flags)) {
		bpf_ringbuf_discard(e, BPF_RB_NO_WAKEUP);
		count_lost(LOST_UNREADABLE);
		return;
	}
	if (kind == KIND_SYN_QUEUE_FULL)
		commit_folding(e, e->l.listener, 0, 0);
	else
		commit(e);
}

/* tcp_conn_request: every SYN at a listener passes here; nearly all leave by
 * the first test.
 */
static __always_inline int on_conn_request(struct sock *sk, struct sk_buff *skb)
{
	struct net *net;
	__u32 netns;
	__u32 limit = RD_raw(sk, sk_max_ack_backlog);
	bool queue_full = syn_queue_full(sk, limit), full = RD_raw(sk, sk_ack_backlog) > limit;
	int cookies;

	net = RD_raw(sk, __sk_common.skc_net.net);
	cookies = READ_SIZED(net, ipv4.sysctl_tcp_syncookies);
	if (!queue_full && !full && cookies != 2)
		return 0;
	netns = RD_raw(net, ns.inum);
	/* tcp_syn_flood_action() */
	if (cookies == 2 || queue_full)
		count(netns, cookies ? AUDIT_REQQ_FULL_COOKIES : AUDIT_REQQ_FULL_DROP);
	if (!queue_full && !full)
		return 0;
	if (queue_full && !cookies) {
		count(netns, AUDIT_LISTEN_DROPS);
		emit_syn(KIND_SYN_QUEUE_FULL, 0, netns, sk, skb);
		return 0;
	}
	if (full) {
		count(netns, AUDIT_LISTEN_OVERFLOWS);
		count(netns, AUDIT_LISTEN_DROPS);
		emit_syn(KIND_SYN_DROPPED, 0, netns, sk, skb);
		return 0;
	}
	emit_syn(KIND_SYN_QUEUE_FULL, FLAG_COOKIE, netns, sk, skb);
	return 0;
}

static __always_inline void fill_request(struct tcptrace_event *e, struct request_sock *req, bool typed)
{
	e->sock = identity(req, typed);
	e->old_state = e->new_state = TCP_NEW_SYN_RECV;
	fill_addrs_raw(e, &req->__req_common);
}

/* tcp_v{4,6}_syn_recv_sock: entered for every final ACK. req_unhash is missing
 * where the request came out of a SYN cookie (and for Fast Open, whose segment
 * is a SYN).
 */
static __always_inline int on_syn_recv_sock(struct sock *sk, struct sk_buff *skb,
					    struct request_sock *req, void *req_unhash, bool typed)
{
	struct tcptrace_event *e;
	__u32 netns;

	if (!accept_queue_full(sk))
		return 0;
	netns = netns_raw(&sk->__sk_common);
	count(netns, AUDIT_LISTEN_OVERFLOWS);
	count(netns, AUDIT_LISTEN_DROPS);
	if (!netns_passes(netns))
		return 0;
	e = begin(KIND_ACK_OVERFLOW);
	if (!e)
		return 0;
	e->netns = netns;
	fill_request(e, req, typed);
	fill_listener(e, sk);
	if (!req_unhash)
		e->flags |= FLAG_COOKIE; /* and then never a RST */
	else if (e->l.abort_on_overflow)
		e->flags |= FLAG_RST;
	commit(e);
	return 0;
}

/* tracepoint-only: the listener that a segment was sent to. */
static __always_inline struct listener_ref *find_listener(const struct tcptrace_event *e)
{
	struct listener_key k = {};
	struct listener_ref *ref;
	__u32 *a = (void *)k.addr;

	listener_key_of(&k, e->netns, e->local, e->local_port);
	ref = bpf_map_lookup_elem(&listeners, &k);
	if (!ref && !a[0] && !a[1] && a[2] == 0xffff0000) {
		a[3] = 0; /* 0.0.0.0 */
		ref = bpf_map_lookup_elem(&listeners, &k);
	}
	if (!ref) {
		__builtin_memset(k.addr, 0, sizeof(k.addr)); /* :: */
		ref = bpf_map_lookup_elem(&listeners, &k);
	}
	return ref && ref->sk ? ref : NULL;
}

/* Received, IP, a SYN. Of other protocols the flags are read from a place that
 * may be anything; the listener must exist all the same.
 */
static __always_inline bool is_received_syn(struct sk_buff *skb)
{
	__u8 flags = 0;

	if (!skb->skb_iif)
		return false;
	if (skb->protocol != bpf_htons(ETH_P_IP) && skb->protocol != bpf_htons(ETH_P_IPV6))
		return false;
	bpf_probe_read_kernel(&flags, 1, skb->head + skb->transport_header +
			      __builtin_offsetof(struct tcphdr_wire, flags));
	return (flags & (TCPF_SYN | TCPF_ACK | TCPF_RST)) == TCPF_SYN;
}

static __always_inline bool with_cookies(struct sock *sk)
{
	struct net *net = RD_raw(sk, __sk_common.skc_net.net);

	return READ_SIZED(net, ipv4.sysctl_tcp_syncookies);
}

/* tracepoint-only: tcp_conn_request consumes every SYN, dropped or not. The
 * listener counts its drops in sk_drops; a full queue and a drop that is not
 * told yet say that this SYN was dropped.
 */
static __always_inline int on_consumed(struct sk_buff *skb)
{
	struct tcptrace_event at = {};
	struct listener_ref *ref;
	__u8 tcp_flags = 0;
	struct sock *sk;
	__u32 len, limit, drops, requests, before, kind;
	struct inet_connection_sock *icsk;
	bool dropped, full, syn_full;

	if (!fill_from_skb_btf(&at, skb, &tcp_flags))
		return 0;
	at.netns = netns_of_skb_btf(skb);
	ref = find_listener(&at);
	if (!ref)
		return 0;
	sk = (void *)ref->sk;
	if (RD_raw(sk, __sk_common.skc_state) != TCP_LISTEN)
		return 0;
	len = RD_raw(sk, sk_ack_backlog);
	limit = RD_raw(sk, sk_max_ack_backlog);
	/* This SYN's own request may be what filled the queue. */
	icsk = (void *)sk;
	requests = RD_raw(icsk, icsk_accept_queue.qlen.counter);
	before = ref->requests;
	ref->requests = requests;
	syn_full = syn_queue_full(sk, limit) && !(requests == before + 1 && requests == limit + !syn_queue_full_at_limit);
	if (len < limit && !syn_full)
		return 0;
	/* full, or the next one will be: keep up with the count */
	drops = RD_raw(sk, sk_drops.counter);
	dropped = (__s32)(drops - ref->drops) > 0;
	full = len > limit;
	/* each SYN takes one: another CPU may be a drop ahead */
	if (dropped && (full || syn_full))
		__sync_fetch_and_add(&ref->drops, 1);
	else
		ref->drops = drops;
	if (full ? !dropped : !syn_full)
		return 0;
	/* With cookies no SYN is dropped for want of a request: it met a full
	 * accept queue that is not full any more.
	 */
	if (dropped && !full && with_cookies(sk))
		full = true;
	if (dropped) {
		count(at.netns, AUDIT_LISTEN_DROPS);
		if (full)
			count(at.netns, AUDIT_LISTEN_OVERFLOWS);
	}
	kind = full ? KIND_SYN_DROPPED : KIND_SYN_QUEUE_FULL;
	emit_syn(kind, FLAG_INFERRED | (dropped ? 0 : FLAG_COOKIE) | (ref->shared ? FLAG_AMBIGUOUS : 0),
		 at.netns, sk, skb);
	return 0;
}

/* tracepoint-only, since 6.18: the kernel names the drop and its listener. An
 * ACK behind a SYN cookie is dropped by another name, "no socket": with a
 * listener and a full queue that is the same (cookie_v4_check).
 */
static __always_inline int on_dropped(struct sk_buff *skb, struct sock *sk, bool cookie)
{
	struct listener_ref *ref;
	struct tcptrace_event *e;
	__u8 tcp_flags = 0;
	__u32 netns;

	if (!sk || RD_raw(sk, __sk_common.skc_state) != TCP_LISTEN)
		return 0;
	if (cookie && !accept_queue_full(sk))
		return 0;
	netns = netns_raw(&sk->__sk_common);
	count(netns, AUDIT_LISTEN_OVERFLOWS);
	count(netns, AUDIT_LISTEN_DROPS);
	if (!netns_passes(netns))
		return 0;
	e = begin(KIND_ACK_OVERFLOW);
	if (!e)
		return 0;
	e->netns = netns;
	e->old_state = e->new_state = TCP_NEW_SYN_RECV;
	fill_listener(e, sk);
	if (!fill_from_skb_raw(e, skb, &tcp_flags)) {
		bpf_ringbuf_discard(e, BPF_RB_NO_WAKEUP);
		count_lost(LOST_UNREADABLE);
		return 0;
	}
	if (cookie)
		e->flags |= FLAG_COOKIE | FLAG_INFERRED;
	else if (e->l.abort_on_overflow)
		e->flags |= FLAG_RST;
	ref = find_listener(e);
	if (ref && ref->sk == (__u64)sk) /* these drops are told already */
		ref->drops = RD_raw(sk, sk_drops.counter);
	commit(e);
	return 0;
}

/* SYN cookies. The functions that make them have no socket, those that check
 * them not even a segment: the caller leaves a note.
 */
static __always_inline int on_cookie_made(struct sk_buff *skb)
{
	count(netns_of_skb_raw(skb), AUDIT_COOKIES_SENT);
	return 0;
}

static __always_inline int on_cookie_came(struct sock *sk)
{
	struct notes *n = notes();

	if (n)
		n->cookie_netns = netns_raw(&sk->__sk_common);
	return 0;
}

static __always_inline int on_cookie_checked(bool good)
{
	struct notes *n = notes();

	if (n)
		count(n->cookie_netns, good ? AUDIT_COOKIES_RECV : AUDIT_COOKIES_FAILED);
	return 0;
}

#endif
