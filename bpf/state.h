/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* State changes: the backbone of every timeline. */
#ifndef TCPTRACE_STATE_H
#define TCPTRACE_STATE_H

static __always_inline void listener_key_of(struct listener_key *k, __u32 netns, const __u8 *addr, __u16 port)
{
	const __u32 *from = (const __u32 *)addr;
	__u32 *to = (__u32 *)k->addr;

	k->netns = netns;
	k->port = port;
	k->_pad = 0;
	/* 0.0.0.0 and :: are two listeners where the second is IPV6_V6ONLY */
	to[0] = from[0];
	to[1] = from[1];
	to[2] = from[2];
	to[3] = from[3];
}

static __always_inline void remember_listener(const struct tcptrace_event *e, struct sock *sk)
{
	struct listener_ref *old, ref = {};
	struct listener_key k = {};

	listener_key_of(&k, e->netns, e->local, e->local_port);
	old = bpf_map_lookup_elem(&listeners, &k);
	if (old && old->sk == (__u64)sk)
		return;
	ref.sk = (__u64)sk;
	ref.shared = old && (old->sk || old->shared);
	ref.drops = RD_raw(sk, sk_drops.counter);
	if (bpf_map_update_elem(&listeners, &k, &ref, BPF_ANY))
		count_lost(LOST_MAP_FULL);
}

/* Of listeners that share an address only one is known; when that one closes,
 * the address waits for the next inventory to name another.
 */
static __always_inline void forget_listener(const struct tcptrace_event *e, struct sock *sk)
{
	struct listener_key k = {};
	struct listener_ref *old;

	listener_key_of(&k, e->netns, e->local, e->local_port);
	old = bpf_map_lookup_elem(&listeners, &k);
	if (!old || old->sk != (__u64)sk)
		return;
	if (old->shared)
		old->sk = 0;
	else
		bpf_map_delete_elem(&listeners, &k);
}

/* What the hook on tcp_time_wait noted of a socket that goes to CLOSE. It is
 * taken whether the event is told or not: a note that stays is the next socket's
 * in this memory, which is the next one made on this CPU.
 */
static __always_inline __u16 noted_time_wait(struct sock *sk)
{
	struct notes *n = notes();

	if (!n || n->time_wait_sock != (__u64)sk)
		return 0;
	n->time_wait_sock = 0;
	return n->time_wait_state == TCP_TIME_WAIT ? FLAG_TIME_WAIT : FLAG_TIME_WAIT_FW2;
}

/* Whether a socket that goes to CLOSE lives on as a minisocket, where no hook on
 * tcp_time_wait tells. It follows from the ways out of these
 * states: errors, resets of unread data and linger 0 are told apart, the rest
 * went through tcp_time_wait().
 */
static __always_inline __u16 time_wait_flag(const struct tcptrace_event *e)
{
	if (e->old_state != TCP_FIN_WAIT2 && e->old_state != TCP_CLOSING)
		return 0;
	if (e->err || e->t.unread || (e->flags & FLAG_LINGER_ZERO))
		return 0;
	if (e->flags & FLAG_DONE)
		return FLAG_TIME_WAIT | FLAG_INFERRED;
	/* or data came after close(): then a RST follows at once */
	return e->flags & FLAG_DEAD ? FLAG_TIME_WAIT_FW2 | FLAG_INFERRED : 0;
}

/* Transitions made by a system call of the socket's own process. All others
 * happen in softirq or in a timer, where the current task is a bystander.
 */
static __always_inline bool by_process(__u8 old, __u8 new, int err)
{
	switch (new) {
	case TCP_SYN_SENT:
	case TCP_LISTEN:
	case TCP_FIN_WAIT1:
	case TCP_LAST_ACK:
		return true;
	case TCP_CLOSE:
		if (old == TCP_LISTEN)
			return true;
		return !err && (old == TCP_ESTABLISHED || old == TCP_CLOSE_WAIT || old == TCP_SYN_SENT);
	}
	return false;
}

/* What a state change means to the kernel's own counters. */
static __always_inline void count_state(struct sock *sk, struct tcp_sock *tp, __u32 netns, int old, int new, int err)
{
	if (new == TCP_SYN_SENT) {
		count(netns, AUDIT_ACTIVE_OPENS);
		return;
	}
	if (new != TCP_CLOSE)
		return;
	switch (old) {
	case TCP_ESTABLISHED:
	case TCP_CLOSE_WAIT:
		count(netns, AUDIT_ESTAB_RESETS);
		break;
	case TCP_SYN_SENT:
		/* failed before a SYN was sent: no opening after all */
		if (!err && !tp->segs_out)
			count_n(netns, AUDIT_ACTIVE_OPENS, -1);
		/* fall through */
	case TCP_SYN_RECV:
		if (err)
			count(netns, AUDIT_ATTEMPT_FAILS);
		break;
	}
	/* A timeout ends in the ICMP error that came before it, if there was one.
	 * Only of a connection that is not yet open is that the end by itself.
	 */
	if (err == ETIMEDOUT ||
	    (err && err == sk->sk_err_soft && old != TCP_SYN_SENT && old != TCP_SYN_RECV))
		count(netns, AUDIT_ABORT_ON_TIMEOUT);
}

/* close() with SO_LINGER 0 counts as an abort on data, like data after close():
 * __tcp_close() has shut both directions before it disconnects, which nothing
 * else that disconnects has. (From the states after a shutdown there are
 * ordinary ways out too: told apart by the hook on tcp_time_wait.)
 */
static __always_inline bool linger_zero_close(const struct tcptrace_event *e)
{
	const __u16 mask = FLAG_SHUT_RD | FLAG_SHUT_WR | FLAG_LINGER_ZERO;

	if (e->new_state != TCP_CLOSE || e->err || (e->flags & mask) != mask || e->t.unread)
		return false;
	switch (e->old_state) {
	case TCP_ESTABLISHED:
	case TCP_CLOSE_WAIT:
	case TCP_SYN_SENT:
	case TCP_SYN_RECV:
	case TCP_FIN_WAIT1:
		return true;
	case TCP_FIN_WAIT2:
		return !(e->flags & (FLAG_TIME_WAIT | FLAG_TIME_WAIT_FW2));
	}
	return false;
}

static __always_inline int on_state(struct sock *sk, int old, int new)
{
	struct tcptrace_event *e;
	struct tcp_sock *tp;
	__u16 time_wait = 0;
	__u32 netns;
	int err;

	/* MPTCP's own sockets come by here too; its subflows are TCP */
	if (sk->sk_protocol != IPPROTO_TCP || old == new)
		return 0;
	if (new == TCP_SYN_RECV && old == TCP_LISTEN) {
		/* A child is born. Its addresses are the listener's until it
		 * is established (before 6.18), so that is reported instead;
		 * but its cookie must exist before accept() asks for it.
		 */
		if (have_cookie)
			bpf_get_socket_cookie(sk);
		count(sk->__sk_common.skc_net.net->ns.inum, AUDIT_PASSIVE_OPENS);
		return 0;
	}
	netns = sk->__sk_common.skc_net.net->ns.inum;
	err = sk->sk_err;
	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return 0;
	count_state(sk, tp, netns, old, new, err);
	if (have_time_wait_hook && new == TCP_CLOSE)
		time_wait = noted_time_wait(sk);
	if (!netns_passes(netns))
		return 0;

	e = begin(KIND_STATE);
	if (!e)
		return 0;
	e->sock = identity_btf(sk);
	e->netns = netns;
	e->old_state = old;
	e->new_state = new;
	e->err = err;
	e->flags = flags_btf(sk);
	fill_addrs_btf(e, &sk->__sk_common);
	/* skc_num is gone at CLOSE for ports that the kernel chose */
	if (!e->local_port)
		e->local_port = bpf_ntohs(tp->inet_conn.icsk_inet.inet_sport);
	if (new == TCP_LISTEN || old == TCP_LISTEN) {
		fill_listener(e, sk);
		if (new == TCP_LISTEN)
			remember_listener(e, sk);
		else
			forget_listener(e, sk);
	} else {
		fill_traffic_btf(e, tp);
		if (new == TCP_CLOSE) {
			e->flags |= have_time_wait_hook ? time_wait : time_wait_flag(e);
			if (old == TCP_SYN_SENT) {
				struct net *net = sk->__sk_common.skc_net.net;

				/* an ICMP error that came while connect() held the socket */
				if (!err && sk->sk_err_soft == ECONNREFUSED)
					e->err = ECONNREFUSED;
				e->attempt = tp->inet_conn.icsk_retransmits;
				e->reason = tp->inet_conn.icsk_syn_retries ?: (__u8)READ_SIZED(net, ipv4.sysctl_tcp_syn_retries);
			} else {
				e->attempt = tp->inet_conn.icsk_probes_out;
				e->reason = tp->inet_conn.icsk_retransmits;
			}
			if (linger_zero_close(e))
				count(netns, AUDIT_ABORT_ON_DATA);
		}
	}
	if (by_process(old, new, err) && !(is_mptcp_btf(tp) && kernel_thread())) {
		fill_process(e);
		if (exiting())
			e->flags |= FLAG_EXITING;
	}
	commit(e);
	return 0;
}

static __always_inline int on_time_wait(__u64 sk, __u32 state)
{
	struct notes *n = notes();

	if (n) {
		n->time_wait_sock = sk;
		n->time_wait_state = state;
	}
	return 0;
}

#endif
