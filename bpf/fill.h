/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* Filling an event from kernel objects.
 *
 * Two sets of the same functions: *_btf take pointers that the verifier knows
 * (tp_btf, fentry, iterators) and read them directly, *_raw take mere
 * addresses (kprobes, pointers found on the way) and read through
 * bpf_probe_read_kernel, several times slower.
 */
#ifndef TCPTRACE_FILL_H
#define TCPTRACE_FILL_H

#define RD_btf(p, f) ((p)->f)
#define RD_raw(p, f)                                              \
	({                                                        \
		typeof((p)->f) _v;                                \
		bpf_core_read(&_v, sizeof(_v), &(p)->f);          \
		_v;                                               \
	})
/* For members whose size differs between kernels; little-endian. */
#define READ_SIZED(p, f)                                          \
	({                                                        \
		__u64 _v = 0;                                     \
		bpf_core_read(&_v, bpf_core_field_size((p)->f) & 7, &(p)->f); \
		_v;                                               \
	})

static __always_inline void map_v4(__u8 *to, __be32 addr)
{
	__u32 *w = (__u32 *)to;

	w[0] = 0;
	w[1] = 0;
	w[2] = 0xffff0000; /* ::ffff:0:0/96 */
	w[3] = addr;
}

static __always_inline void copy_v6(__u8 *to, struct in6_addr *a)
{
	bpf_core_read(to, 16, a);
}

static __always_inline __u64 identity_raw(struct sock_common *c)
{
	if (have_cookie)
		return RD_raw(c, skc_cookie.counter);
	return (__u64)c;
}

/* Only the kernel's helper makes a cookie where there is none yet, and it
 * takes only pointers that the verifier knows.
 */
#define identity_btf(c)                                                           \
	({                                                                        \
		__u64 _id = (__u64)(c);                                           \
		if (have_cookie) {                                                \
			_id = ((struct sock_common *)(c))->skc_cookie.counter;    \
			if (!_id)                                                 \
				_id = bpf_get_socket_cookie((void *)(c));         \
		}                                                                 \
		_id;                                                              \
	})

/* For functions that serve both: typed is a constant of the caller. */
#define identity(c, typed) ((typed) ? identity_btf(c) : identity_raw((void *)(c)))

#define DEFINE_FILL(K)                                                                     \
static __always_inline __u32 netns_##K(struct sock_common *c)                        \
{                                                                                          \
	struct net *net = RD_##K(c, skc_net.net);                                          \
	return RD_##K(net, ns.inum);                                                       \
}                                                                                          \
                                                                                           \
static __always_inline void fill_addrs_##K(struct tcptrace_event *e, struct sock_common *c) \
{                                                                                          \
	if (RD_##K(c, skc_family) == AF_INET6) {                                           \
		copy_v6(e->local, &c->skc_v6_rcv_saddr);                                   \
		copy_v6(e->remote, &c->skc_v6_daddr);                                      \
	} else {                                                                           \
		map_v4(e->local, RD_##K(c, skc_rcv_saddr));                                \
		map_v4(e->remote, RD_##K(c, skc_daddr));                                   \
	}                                                                                  \
	e->local_port = RD_##K(c, skc_num);                                                \
	e->remote_port = bpf_ntohs(RD_##K(c, skc_dport));                                  \
}                                                                                          \
                                                                                           \
static __always_inline __u16 flags_##K(struct sock *sk)                              \
{                                                                                          \
	unsigned long f = RD_##K(sk, __sk_common.skc_flags);                               \
	__u16 flags = RD_##K(sk, sk_shutdown) << 4; /* RCV, SEND */                        \
                                                                                           \
	flags &= FLAG_SHUT_RD | FLAG_SHUT_WR;                                              \
	if (f & (1 << SOCK_DEAD))                                                          \
		flags |= FLAG_DEAD;                                                        \
	if (f & (1 << SOCK_DONE))                                                          \
		flags |= FLAG_DONE;                                                        \
	if (f & (1 << SOCK_KEEPOPEN))                                                      \
		flags |= FLAG_KEEPALIVE;                                                   \
	if (f & (1 << SOCK_LINGER)) {                                                      \
		flags |= FLAG_LINGER;                                                      \
		if (!RD_##K(sk, sk_lingertime))                                            \
			flags |= FLAG_LINGER_ZERO;                                         \
	}                                                                                  \
	return flags;                                                                      \
}                                                                                          \
                                                                                           \
/* Traffic of a full socket. FIN and SYN take a sequence number each; what is              \
 * reported is payload.                                                                    \
 */                                                                                        \
static __always_inline void fill_traffic_##K(struct tcptrace_event *e, struct tcp_sock *tp) \
{                                                                                          \
	__u64 sent = RD_##K(tp, bytes_sent) - RD_##K(tp, bytes_retrans);                   \
	__u64 received = RD_##K(tp, bytes_received);                                       \
	__u32 unread = RD_##K(tp, rcv_nxt) - RD_##K(tp, copied_seq);                       \
	__u32 unacked = RD_##K(tp, write_seq) - RD_##K(tp, snd_una);                       \
	__u8 st = e->old_state;                                                            \
                                                                                           \
	if (e->flags & FLAG_DONE) { /* the peer's FIN */                                   \
		received -= received > 0;                                                  \
		unread -= (__s32)unread > 0;                                               \
	}                                                                                  \
	if (st == TCP_SYN_SENT || st == TCP_SYN_RECV)                                      \
		unread = 0;                                                                \
	if (st == TCP_SYN_SENT || st == TCP_SYN_RECV || st == TCP_FIN_WAIT1 ||             \
	    st == TCP_LAST_ACK || st == TCP_CLOSING)                                       \
		unacked -= (__s32)unacked > 0; /* our SYN or FIN */                        \
	e->t.bytes_sent = sent;                                                            \
	e->t.bytes_received = received;                                                    \
	e->t.srtt_us = RD_##K(tp, srtt_us) >> 3;                                           \
	e->t.retransmits = RD_##K(tp, total_retrans);                                      \
	e->t.unread = (__s32)unread > 0 ? unread : 0;                                      \
	e->t.unacked = (__s32)unacked > 0 ? unacked : 0;                                   \
}                                                                                          \
                                                                                           \
static __always_inline bool is_mptcp_##K(struct tcp_sock *tp)                              \
{                                                                                          \
	return bpf_core_field_exists(tp->is_mptcp) && RD_##K(tp, is_mptcp);                \
}

DEFINE_FILL(btf)
DEFINE_FILL(raw)

/* What sock_common says, in one read instead of ten. */
struct common {
	__u8 bytes[192];
};
#define COMMON(buf, f)                                                                     \
	(*(typeof(((struct sock_common *)0)->f) *)((buf)->bytes +                          \
		bpf_core_field_offset(((struct sock_common *)0)->f)))

static __always_inline bool read_common(struct common *to, struct sock_common *c)
{
	__u32 size = bpf_core_type_size(struct sock_common);

	if (size > sizeof(to->bytes))
		size = sizeof(to->bytes);
	return !bpf_probe_read_kernel(to->bytes, size, c);
}

/* Which listener, and its facts; rare, so one way of reading serves all. */
static __always_inline void fill_listener(struct tcptrace_event *e, struct sock *sk)
{
	struct inet_connection_sock *icsk = (void *)sk;
	struct net *net = RD_raw(sk, __sk_common.skc_net.net);

	e->l.listener = identity_raw(&sk->__sk_common);
	e->l.queue_len = RD_raw(sk, sk_ack_backlog);
	e->l.queue_limit = RD_raw(sk, sk_max_ack_backlog);
	e->l.syn_queue_len = RD_raw(icsk, icsk_accept_queue.qlen.counter);
	e->l.somaxconn = RD_raw(net, core.sysctl_somaxconn);
	e->l.abort_on_overflow = READ_SIZED(net, ipv4.sysctl_tcp_abort_on_overflow);
	e->l.syncookies = READ_SIZED(net, ipv4.sysctl_tcp_syncookies);
	e->l.synack_retries = RD_raw(icsk, icsk_syn_retries) ?: (__u8)READ_SIZED(net, ipv4.sysctl_tcp_synack_retries);
}

/* The process that made the system call we are in. The name is the thread
 * group's, as in ss and ps, not that of a worker thread.
 */
static __always_inline void fill_process(struct tcptrace_event *e)
{
	struct task_struct *leader, *task;

	e->pid = bpf_get_current_pid_tgid() >> 32;
	e->cgroup = bpf_get_current_cgroup_id();
	if (have_task_btf) {
		__u64 *to = (void *)e->comm, *from;

		leader = bpf_get_current_task_btf()->group_leader;
		from = (void *)leader->comm;
		to[0] = from[0];
		to[1] = from[1];
	} else {
		task = (void *)bpf_get_current_task();
		leader = RD_raw(task, group_leader);
		bpf_core_read(&e->comm, sizeof(e->comm), &leader->comm);
	}
	e->flags |= FLAG_PROCESS;
}

static __always_inline unsigned int task_flags(void)
{
	if (have_task_btf)
		return bpf_get_current_task_btf()->flags;
	return RD_raw((struct task_struct *)bpf_get_current_task(), flags);
}

/* Whether the current task is on its way out, killed or by itself: the kernel
 * closes its files then, by the same path as close().
 */
static __always_inline bool exiting(void)
{
	return task_flags() & 0x4; /* PF_EXITING */
}

/* MPTCP has a kernel worker shut down and close its subflows when the peer has
 * its say, not as the process calls. What other kernel threads do with sockets
 * they do with their own (nfsd).
 */
static __always_inline bool kernel_thread(void)
{
	return task_flags() & 0x200000; /* PF_KTHREAD */
}

/* Addresses of a received segment, turned round: local is this host. */
#define DEFINE_FILL_SKB(K)                                                                 \
static __always_inline bool fill_from_skb_##K(struct tcptrace_event *e, struct sk_buff *skb, __u8 *tcp_flags) \
{                                                                                          \
	unsigned char *head = RD_##K(skb, head);                                           \
	unsigned char *ip = head + RD_##K(skb, network_header);                            \
	__be16 proto = RD_##K(skb, protocol);                                              \
	__u32 transport = RD_##K(skb, transport_header);                                   \
	struct tcphdr_wire th = {};                                                        \
	__u8 ihl = 0;                                                                      \
                                                                                           \
	if (transport <= RD_##K(skb, network_header) || transport == 0xffff) { /* IP has not looked yet */ \
		bpf_probe_read_kernel(&ihl, 1, ip);                                        \
		transport = RD_##K(skb, network_header) +                                  \
			(proto == bpf_htons(ETH_P_IP) ? (ihl & 15) * 4 : 40);              \
	}                                                                                  \
	if (bpf_probe_read_kernel(&th, sizeof(th), head + transport))                      \
		return false;                                                              \
	if (proto == bpf_htons(ETH_P_IP)) {                                                \
		__be32 a[2] = {};                                                          \
                                                                                           \
		/* struct iphdr: saddr at 12, daddr at 16 */                               \
		if (bpf_probe_read_kernel(a, sizeof(a), ip + 12))                          \
			return false;                                                      \
		map_v4(e->remote, a[0]);                                                   \
		map_v4(e->local, a[1]);                                                    \
	} else if (proto == bpf_htons(ETH_P_IPV6)) {                                       \
		/* struct ipv6hdr: saddr at 8, daddr at 24 */                              \
		if (bpf_probe_read_kernel(e->remote, 16, ip + 8) ||                        \
		    bpf_probe_read_kernel(e->local, 16, ip + 24))                          \
			return false;                                                      \
	} else {                                                                           \
		return false;                                                              \
	}                                                                                  \
	e->remote_port = bpf_ntohs(th.source);                                             \
	e->local_port = bpf_ntohs(th.dest);                                                \
	*tcp_flags = th.flags;                                                             \
	return true;                                                                       \
}

DEFINE_FILL_SKB(btf)
DEFINE_FILL_SKB(raw)

/* The namespace of a received segment. tcp_v4_rcv() takes the device away
 * before a socket gets the segment; its route still has it.
 */
#define DEFINE_NETNS_OF_SKB(K)                                                             \
static __always_inline __u32 netns_of_skb_##K(struct sk_buff *skb)                         \
{                                                                                          \
	struct net_device *dev = RD_##K(skb, dev);                                         \
	struct dst_entry *dst;                                                             \
	struct net *net;                                                                   \
                                                                                           \
	if (!dev) {                                                                        \
		dst = (void *)(RD_##K(skb, _skb_refdst) & ~1UL); /* bit 0: not counted */  \
		if (!dst)                                                                  \
			return 0;                                                          \
		dev = RD_raw(dst, dev);                                                    \
	}                                                                                  \
	net = RD_raw(dev, nd_net.net);                                                     \
	return RD_raw(net, ns.inum);                                                       \
}

DEFINE_NETNS_OF_SKB(btf)
DEFINE_NETNS_OF_SKB(raw)

#endif
