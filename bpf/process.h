/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* System calls of the owner: listen, accept, shutdown. connect() and close()
 * show as state changes, in the same context.
 */
#ifndef TCPTRACE_PROCESS_H
#define TCPTRACE_PROCESS_H

/* The socket behind a file descriptor of the current process. A socket's file
 * points back at it, which is how a file that is no socket is told; a
 * descriptor that accept() returned needs no such test.
 */
static __always_inline struct sock *sock_of_fd(__u32 fd, bool surely_socket)
{
	struct file **fds, *file = NULL;
	struct files_struct *files;
	struct socket *sock;
	struct fdtable *fdt;
	__u32 max_fds;

	if (have_task_btf) {
		fdt = bpf_get_current_task_btf()->files->fdt;
		max_fds = fdt->max_fds;
		fds = fdt->fd;
	} else {
		struct task_struct *task = (void *)bpf_get_current_task();

		files = RD_raw(task, files);
		fdt = RD_raw(files, fdt);
		max_fds = RD_raw(fdt, max_fds);
		fds = RD_raw(fdt, fd);
	}
	if (fd >= max_fds)
		return NULL;
	bpf_probe_read_kernel(&file, sizeof(file), fds + fd);
	if (!file)
		return NULL;
	sock = RD_raw(file, private_data);
	if (!sock || (!surely_socket && RD_raw(sock, file) != file))
		return NULL;
	return RD_raw(sock, sk);
}

/* The TCP socket of a socket, NULL for other protocols. Go's listeners are
 * MPTCP since 1.24; what listens is their first subflow, and what they accept
 * from a client with MPTCP has one too.
 */
static __always_inline struct sock *tcp_of(struct sock *sk)
{
	__u16 family, proto;

	if (!sk)
		return NULL;
	proto = RD_raw(sk, sk_protocol);
	if (proto == IPPROTO_MPTCP) {
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
	family = RD_raw(sk, __sk_common.skc_family);
	return family == AF_INET || family == AF_INET6 ? sk : NULL;
}

static __always_inline int on_listen_return(__u32 fd, __u32 backlog)
{
	struct sock *sk = tcp_of(sock_of_fd(fd, false));
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
	e->sock = identity_raw(&sk->__sk_common);
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

/* What all ways to a failed bind() or listen() tell alike. */
static __always_inline struct tcptrace_event *begin_bind_failed(struct sock *sk)
{
	struct tcptrace_event *e;
	__u32 netns = netns_raw(&sk->__sk_common);

	if (!netns_passes(netns))
		return NULL;
	e = begin(KIND_BIND_FAILED);
	if (!e)
		return NULL;
	e->netns = netns;
	e->sock = identity_raw(&sk->__sk_common);
	e->err = EADDRINUSE;
	e->flags = flags_raw(sk);
	fill_process(e);
	return e;
}

/* inet_csk_get_port found the port taken. bind() has put the address into the
 * socket by then; listen() asks again for a port that was bound before.
 */
static __always_inline int on_bind_failed(struct sock *sk, __u16 port)
{
	struct tcptrace_event *e;

	if (RD_raw(sk, sk_protocol) != IPPROTO_TCP)
		return 0;
	e = begin_bind_failed(sk);
	if (!e)
		return 0;
	e->reason = RD_raw(sk, __sk_common.skc_state) == TCP_LISTEN;
	fill_addrs_raw(e, &sk->__sk_common);
	e->local_port = port;
	commit(e);
	return 0;
}

static __always_inline int on_get_port_enter(struct sock *sk, __u32 port)
{
	__u64 thread = bpf_get_current_pid_tgid();
	struct get_port_args a = { .sk = (__u64)sk, .port = port };

	if (bpf_map_update_elem(&getting_port, &thread, &a, BPF_ANY))
		count_lost(LOST_MAP_FULL);
	return 0;
}

static __always_inline int on_get_port_exit(int ret)
{
	__u64 thread = bpf_get_current_pid_tgid();
	struct get_port_args *p = bpf_map_lookup_elem(&getting_port, &thread), a;

	if (!p)
		return 0;
	a = *p;
	bpf_map_delete_elem(&getting_port, &thread);
	return ret ? on_bind_failed((void *)a.sk, a.port) : 0;
}

/* Without a hook in the kernel, from the system call: the address is in the
 * program's own memory.
 */
static __always_inline int on_bind_enter(__u32 fd, const void *addr)
{
	__u64 thread = bpf_get_current_pid_tgid();
	struct bind_args a = { .fd = fd };

	if (bpf_probe_read_user(&a.addr, 8, addr)) /* as much as every family has */
		return 0;
	if (a.addr.family == AF_INET6)
		bpf_probe_read_user(&a.addr, sizeof(a.addr), addr);
	else if (a.addr.family != AF_INET)
		return 0;
	if (bpf_map_update_elem(&binding, &thread, &a, BPF_ANY))
		count_lost(LOST_MAP_FULL);
	return 0;
}

static __always_inline int on_bind_exit(long ret)
{
	__u64 thread = bpf_get_current_pid_tgid();
	struct bind_args *p = bpf_map_lookup_elem(&binding, &thread), a;
	struct tcptrace_event *e;
	struct sock *sk;

	if (!p)
		return 0;
	a = *p;
	bpf_map_delete_elem(&binding, &thread);
	if (ret != -EADDRINUSE)
		return 0;
	sk = tcp_of(sock_of_fd(a.fd, false));
	if (!sk)
		return 0;
	e = begin_bind_failed(sk);
	if (!e)
		return 0;
	if (a.addr.family == AF_INET6) {
		__builtin_memcpy(e->local, a.addr.v6, 16);
	} else {
		map_v4(e->local, a.addr.v4);
		map_v4(e->remote, 0);
	}
	e->local_port = bpf_ntohs(a.addr.port);
	commit(e);
	return 0;
}

/* By mere address, so with few reads: no traffic, which the child's other
 * events tell.
 */
static __always_inline int on_accept(struct sock *sk)
{
	struct tcptrace_event *e;
	struct common c;
	struct net *net;
	__u32 netns;

	if (!sk || RD_raw(sk, sk_protocol) != IPPROTO_TCP || !read_common(&c, &sk->__sk_common))
		return 0;
	if (COMMON(&c, skc_family) != AF_INET && COMMON(&c, skc_family) != AF_INET6)
		return 0;
	net = COMMON(&c, skc_net.net);
	netns = RD_raw(net, ns.inum);
	if (!netns_passes(netns))
		return 0;
	e = begin(KIND_ACCEPT);
	if (!e)
		return 0;
	e->netns = netns;
	e->sock = have_cookie ? COMMON(&c, skc_cookie.counter) : (__u64)sk;
	e->old_state = e->new_state = COMMON(&c, skc_state);
	if (COMMON(&c, skc_family) == AF_INET6) {
		__builtin_memcpy(e->local, &COMMON(&c, skc_v6_rcv_saddr), 16);
		__builtin_memcpy(e->remote, &COMMON(&c, skc_v6_daddr), 16);
	} else {
		map_v4(e->local, COMMON(&c, skc_rcv_saddr));
		map_v4(e->remote, COMMON(&c, skc_daddr));
	}
	e->local_port = COMMON(&c, skc_num);
	e->remote_port = bpf_ntohs(COMMON(&c, skc_dport));
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

	if (!sk || (is_mptcp_raw((void *)sk) && kernel_thread()))
		return 0;
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
