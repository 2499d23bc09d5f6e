/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* System calls of the owner: listen, accept, shutdown. connect() and close()
 * show as state changes, in the same context.
 */
#ifndef TCPTRACE_PROCESS_H
#define TCPTRACE_PROCESS_H

/* The TCP socket behind a file descriptor of the current process. A socket's
 * file points back at it, which is how a file that is no socket is told.
 */
static __always_inline struct sock *sock_of_fd(__u32 fd)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct files_struct *files = RD_raw(task, files);
	struct fdtable *fdt = RD_raw(files, fdt);
	struct file **fds, *file = NULL;
	struct socket *sock;
	struct sock *sk;
	__u16 proto;

	if (fd >= RD_raw(fdt, max_fds))
		return NULL;
	fds = RD_raw(fdt, fd);
	bpf_probe_read_kernel(&file, sizeof(file), fds + fd);
	if (!file)
		return NULL;
	sock = RD_raw(file, private_data);
	if (!sock || RD_raw(sock, file) != file)
		return NULL;
	sk = RD_raw(sock, sk);
	if (!sk)
		return NULL;
	proto = RD_raw(sk, sk_protocol);
	if (proto == IPPROTO_MPTCP) { /* Go's listeners, since 1.24 */
		struct mptcp_sock *msk = (void *)sk;

		if (!bpf_core_field_exists(msk->first))
			return NULL;
		sk = RD_raw(msk, first);
		if (!sk)
			return NULL;
		proto = RD_raw(sk, sk_protocol);
	}
	if (proto != IPPROTO_TCP)
		return NULL;
	proto = RD_raw(sk, __sk_common.skc_family);
	return proto == AF_INET || proto == AF_INET6 ? sk : NULL;
}

static __always_inline int on_listen_return(__u32 fd, __u32 backlog)
{
	struct sock *sk = sock_of_fd(fd);
	struct tcptrace_event *e;
	__u32 netns;

	if (!sk || RD_raw(sk, __sk_common.skc_state) != TCP_LISTEN)
		return 0;
	netns = netns_raw(&sk->__sk_common);
	if (!netns_passes(netns))
		return 0;
	e = begin(KIND_LISTEN);
	if (!e)
		return 0;
	e->netns = netns;
	e->sock = e->l.listener = identity_raw(&sk->__sk_common);
	e->old_state = e->new_state = TCP_LISTEN;
	fill_addrs_raw(e, &sk->__sk_common);
	fill_listener(e, sk);
	e->l.backlog = backlog;
	fill_process(e);
	commit(e);
	return 0;
}

static __always_inline int on_listen_enter(__u32 fd, __u32 backlog)
{
	__u64 thread = bpf_get_current_pid_tgid();
	struct listen_args a = { .fd = fd, .backlog = backlog };

	if (bpf_map_update_elem(&listening, &thread, &a, BPF_ANY))
		count_lost(LOST_MAP_FULL);
	return 0;
}

static __always_inline int on_listen_exit(long ret)
{
	__u64 thread = bpf_get_current_pid_tgid();
	struct listen_args *p = bpf_map_lookup_elem(&listening, &thread), a;

	if (!p)
		return 0;
	a = *p;
	bpf_map_delete_elem(&listening, &thread);
	return ret ? 0 : on_listen_return(a.fd, a.backlog);
}

static __always_inline int on_accept(struct sock *sk)
{
	struct tcptrace_event *e;
	__u32 netns;

	if (!sk || RD_raw(sk, sk_protocol) != IPPROTO_TCP)
		return 0;
	netns = netns_raw(&sk->__sk_common);
	if (!netns_passes(netns))
		return 0;
	e = begin(KIND_ACCEPT);
	if (!e)
		return 0;
	e->netns = netns;
	e->sock = identity_raw(&sk->__sk_common);
	e->old_state = e->new_state = RD_raw(sk, __sk_common.skc_state);
	e->flags = flags_raw(sk);
	fill_addrs_raw(e, &sk->__sk_common);
	if (!e->local_port) {
		struct inet_sock *inet = (void *)sk;

		e->local_port = bpf_ntohs(RD_raw(inet, inet_sport));
	}
	fill_traffic_raw(e, (void *)sk);
	fill_process(e);
	commit(e);
	return 0;
}

/* The same for pointers that the verifier knows. */
static __always_inline int on_accept_btf(struct sock *sk)
{
	struct tcptrace_event *e;
	struct tcp_sock *tp;
	__u32 netns;

	if (!sk || sk->sk_protocol != IPPROTO_TCP)
		return 0;
	netns = sk->__sk_common.skc_net.net->ns.inum;
	if (!netns_passes(netns))
		return 0;
	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return 0;
	e = begin(KIND_ACCEPT);
	if (!e)
		return 0;
	e->netns = netns;
	e->sock = identity_btf(sk);
	e->old_state = e->new_state = sk->__sk_common.skc_state;
	e->flags = flags_btf(sk);
	fill_addrs_btf(e, &sk->__sk_common);
	if (!e->local_port)
		e->local_port = bpf_ntohs(tp->inet_conn.icsk_inet.inet_sport);
	fill_traffic_btf(e, tp);
	fill_process(e);
	commit(e);
	return 0;
}

static __always_inline int on_shutdown(struct sock *sk, __u32 how)
{
	struct tcptrace_event *e;
	__u32 netns;

	netns = netns_raw(&sk->__sk_common);
	if (!netns_passes(netns))
		return 0;
	e = begin(KIND_SHUTDOWN);
	if (!e)
		return 0;
	e->netns = netns;
	e->sock = identity_raw(&sk->__sk_common);
	e->old_state = e->new_state = RD_raw(sk, __sk_common.skc_state);
	e->flags = flags_raw(sk);
	e->reason = how;
	fill_addrs_raw(e, &sk->__sk_common);
	fill_traffic_raw(e, (void *)sk);
	fill_process(e);
	commit(e);
	return 0;
}

#endif
