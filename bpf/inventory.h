/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* The sockets that exist now, of the namespace that opened the iterator. */
#ifndef TCPTRACE_INVENTORY_H
#define TCPTRACE_INVENTORY_H

/* Filled by one iteration at a time: user space serialises them. A line is too
 * big for the stack beside what the fill functions need.
 */
static struct tcptrace_socket line;

/* The cgroup that a socket is accounted to: that of the process that made it,
 * or its listener, which may be gone. 0: none, or not to be had.
 */
static __always_inline __u64 cgroup_of(struct sock *sk)
{
	struct cgroup *cg;
	struct kernfs_node *kn;

	if (bpf_core_field_exists(sk->sk_cgrp_data.cgroup)) {
		cg = RD_raw(sk, sk_cgrp_data.cgroup);
	} else if (bpf_core_field_exists(sk->sk_cgrp_data.val)) {
		cg = (void *)RD_raw(sk, sk_cgrp_data.val);
		if ((__u64)cg & 1)
			return 0;
	} else {
		return 0;
	}
	kn = cg ? RD_raw(cg, kn) : NULL;
	return kn ? RD_raw(kn, id) : 0;
}

static __always_inline int on_inventory(struct bpf_iter__tcp *ctx)
{
	struct sock_common *c = ctx->sk_common;
	struct tcptrace_event *e = &line.ev;
	struct inet_timewait_sock *tw;
	struct socket *sock;
	struct tcp_sock *tp;
	struct sock *sk;
	struct net *net;
	__u32 data;

	if (!c)
		return 0;
	__builtin_memset(&line, 0, sizeof(line));
	e->time = bpf_ktime_get_boot_ns();
	e->kind = KIND_SNAPSHOT;
	e->sock = identity_btf(c);
	e->netns = c->skc_net.net->ns.inum;
	e->old_state = e->new_state = c->skc_state;
	line.uid = ctx->uid;
	fill_addrs_btf(e, c);

	tp = bpf_skc_to_tcp_sock(c);
	if (!tp) {
		/* Half-open requests and minisockets: nothing but addresses.
		 * A minisocket's state is in tw_substate.
		 */
		tw = (void *)bpf_skc_to_tcp_timewait_sock(c);
		if (tw) {
			e->old_state = e->new_state = tw->tw_substate;
			line.minisocket = 1;
			line.left = tw->tw_timer.expires - bpf_jiffies64();
		}
		goto out;
	}
	sk = (struct sock *)tp;
	e->flags = flags_btf(sk);
	e->err = sk->sk_err;
	if (!e->local_port)
		e->local_port = bpf_ntohs(tp->inet_conn.icsk_inet.inet_sport);
	sock = sk->sk_socket;
	if (sock) {
		struct file *file = RD_raw(sock, file);

		if (file) {
			struct inode *inode = RD_raw(file, f_inode);

			line.inode = RD_raw(inode, i_ino);
		}
	}
	e->cgroup = cgroup_of(sk);
	if (e->new_state == TCP_LISTEN) {
		fill_listener(e, sk);
		remember_listener(e, sk);
		goto out;
	}
	fill_traffic_btf(e, tp);
	net = sk->__sk_common.skc_net.net;
	line.netns_keepalive_time = RD_raw(net, ipv4.sysctl_tcp_keepalive_time);
	line.keepalive_time = tp->keepalive_time ?: line.netns_keepalive_time;
	line.keepalive_intvl = tp->keepalive_intvl ?: (__u32)RD_raw(net, ipv4.sysctl_tcp_keepalive_intvl);
	line.keepalive_probes = tp->keepalive_probes ?: (__u32)READ_SIZED(net, ipv4.sysctl_tcp_keepalive_probes);
	/* the last acknowledgement or the last data, as keepalive counts */
	line.idle = (__u32)bpf_jiffies64() - tp->rcv_tstamp;
	data = (__u32)bpf_jiffies64() - tp->inet_conn.icsk_ack.lrcvtime;
	if (data < line.idle)
		line.idle = data;
	line.sent_idle = (__u32)bpf_jiffies64() - tp->lsndtime;
	line.snd_wnd = tp->snd_wnd;
	line.rcv_wnd = tp->rcv_wnd;
	line.probes_out = tp->inet_conn.icsk_probes_out;
	line.retransmits = tp->inet_conn.icsk_retransmits;
out:
	bpf_seq_write(ctx->meta->seq, &line, sizeof(line));
	return 0;
}

#endif
