/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* The few kernel types that the programs read, reduced to the members read.
 * CO-RE finds the members in the running kernel by name, so order and size
 * mean nothing here, one source serves every kernel and both architectures.
 *
 * A member whose size changed between kernels is marked (sized): read it with
 * READ_SIZED, never by a plain load.
 */
#ifndef TCPTRACE_KERNEL_H
#define TCPTRACE_KERNEL_H

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef signed char __s8;
typedef short __s16;
typedef int __s32;
typedef long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;
typedef __u16 __sum16;
typedef _Bool bool;
#define true 1
#define false 0
#define NULL ((void *)0)

/* UAPI values; BTF keeps only those that some kernel struct uses. */
enum bpf_map_type {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_RINGBUF = 27,
};
enum { BPF_ANY = 0, BPF_NOEXIST = 1 };
enum { BPF_RB_NO_WAKEUP = 1, BPF_RB_FORCE_WAKEUP = 2 };
enum { BPF_RB_AVAIL_DATA = 0 };
enum { AF_INET = 2, AF_INET6 = 10 };
enum { IPPROTO_TCP = 6, IPPROTO_MPTCP = 262 };
enum { ETH_P_IP = 0x0800, ETH_P_IPV6 = 0x86DD };

/* include/net/tcp_states.h: numbers that user space sees too, never changed */
enum tcp_state {
	TCP_ESTABLISHED = 1,
	TCP_SYN_SENT = 2,
	TCP_SYN_RECV = 3,
	TCP_FIN_WAIT1 = 4,
	TCP_FIN_WAIT2 = 5,
	TCP_TIME_WAIT = 6,
	TCP_CLOSE = 7,
	TCP_CLOSE_WAIT = 8,
	TCP_LAST_ACK = 9,
	TCP_LISTEN = 10,
	TCP_CLOSING = 11,
	TCP_NEW_SYN_RECV = 12,
};

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

enum sock_flags { SOCK_DEAD, SOCK_DONE, SOCK_URGINLINE, SOCK_KEEPOPEN, SOCK_LINGER };
enum skb_drop_reason { SKB_DROP_REASON_NO_SOCKET = 1, SKB_DROP_REASON_TCP_LISTEN_OVERFLOW = 2 };

typedef struct { int counter; } atomic_t;
typedef struct { __s64 counter; } atomic64_t;

struct in6_addr {
	union { __u8 u6_addr8[16]; __u32 u6_addr32[4]; } in6_u;
};

struct ns_common { unsigned int inum; };
struct netns_core { int sysctl_somaxconn; };
struct netns_ipv4 {
	int sysctl_tcp_abort_on_overflow;  /* (sized) */
	int sysctl_tcp_syncookies;         /* (sized) */
	int sysctl_tcp_syn_retries;        /* (sized) */
	int sysctl_tcp_synack_retries;     /* (sized) */
	int sysctl_tcp_keepalive_time;     /* jiffies */
	int sysctl_tcp_keepalive_intvl;    /* jiffies */
	int sysctl_tcp_keepalive_probes;   /* (sized) */
};
struct net {
	struct ns_common ns;
	struct netns_core core;
	struct netns_ipv4 ipv4;
};
typedef struct { struct net *net; } possible_net_t;

struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	unsigned char skc_state;
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
	atomic64_t skc_cookie;
	unsigned long skc_flags;
};

struct kernfs_node { __u64 id; };
struct cgroup { struct kernfs_node *kn; };
struct sock_cgroup_data {
	struct cgroup *cgroup;
	__u64 val;             /* before 5.15; odd: not a pointer */
};

struct inode { unsigned long i_ino; };
struct file { void *private_data; struct inode *f_inode; };
struct socket { struct file *file; struct sock *sk; };

struct sock {
	struct sock_common __sk_common;
	struct socket *sk_socket;
	int sk_err;
	int sk_err_soft;
	__u32 sk_ack_backlog;
	__u32 sk_max_ack_backlog;
	int sk_wmem_queued;
	unsigned long sk_lingertime;
	__u16 sk_protocol;
	__u8 sk_shutdown;
	atomic_t sk_drops;
	struct sock_cgroup_data sk_cgrp_data;
};

struct inet_sock {
	struct sock sk;
	__be16 inet_sport;
};

struct request_sock_queue {
	__u8 rskq_defer_accept;
	atomic_t qlen;
};

struct inet_connection_sock {
	struct inet_sock icsk_inet;
	struct request_sock_queue icsk_accept_queue;
	__u8 icsk_retransmits;
	__u8 icsk_syn_retries;
	__u8 icsk_probes_out;
	struct { __u32 lrcvtime; } icsk_ack; /* jiffies */
};

struct tcp_sock {
	struct inet_connection_sock inet_conn;
	__u32 rcv_nxt;
	__u32 copied_seq;
	__u32 snd_una;
	__u32 write_seq;
	__u64 bytes_received;
	__u64 bytes_sent;
	__u64 bytes_retrans;
	__u32 srtt_us;        /* << 3 */
	__u32 total_retrans;
	__u32 packets_out;
	__u32 rcv_tstamp;     /* jiffies */
	__u32 lsndtime;       /* jiffies */
	__u32 snd_wnd;
	__u32 rcv_wnd;
	__u32 segs_out;
	unsigned int keepalive_time;  /* jiffies, 0: default */
	unsigned int keepalive_intvl;
	__u8 keepalive_probes;
	bool is_mptcp;        /* a subflow; where the kernel has MPTCP */
};

struct mptcp_sock {
	struct sock *first;   /* the subflow that listens, or was accepted */
};

struct request_sock {
	struct sock_common __req_common;
	__u8 num_retrans;
};

struct inet_request_sock {
	struct request_sock req;
	__u16 acked : 1;
};

struct timer_list { unsigned long expires; };

struct inet_timewait_sock {
	struct sock_common __tw_common;
	unsigned char tw_substate;
	struct timer_list tw_timer;
};

/* enough of it for a mere address */
struct tcp_timewait_sock {
	struct inet_timewait_sock tw_sk;
};

struct net_device { possible_net_t nd_net; };

struct dst_entry { struct net_device *dev; };
struct rtable { struct dst_entry dst; __u16 rt_type; };
struct rt6_info { struct dst_entry dst; __u32 rt6i_flags; };

struct tcp_skb_cb { __u16 tcp_gso_segs; };

struct sk_buff {
	struct net_device *dev;
	struct sock *sk;
	char cb[48];
	unsigned long _skb_refdst;
	int skb_iif;
	__be16 protocol;
	__u16 transport_header;
	__u16 network_header;
	unsigned char *head;
};

struct fdtable { unsigned int max_fds; struct file **fd; };
struct files_struct { struct fdtable *fdt; };
struct task_struct {
	unsigned int flags;
	struct task_struct *group_leader;
	struct files_struct *files;
	char comm[16];
};

struct trace_event_raw_sys_enter { unsigned long args[6]; };
struct trace_event_raw_sys_exit { long ret; };

struct seq_file;
struct bpf_iter_meta { struct seq_file *seq; };
struct bpf_iter__tcp {
	struct bpf_iter_meta *meta;
	struct sock_common *sk_common;
	unsigned int uid;
};

#pragma clang attribute pop

/* On the wire; no CO-RE. */
struct tcphdr_wire {
	__be16 source, dest;
	__be32 seq, ack_seq;
	__u8 doff_res;
	__u8 flags;
};
/* As bind() takes it. */
struct sockaddr_wire {
	__u16 family;
	__be16 port;
	__be32 v4;             /* IPv6: flow label */
	__u8 v6[16];
};
enum { SOCK_MIN_SNDBUF = 4608 }; /* 2 * TCP_SKB_MIN_TRUESIZE, at most */
enum { RTN_LOCAL = 2, RTF_LOCAL = 0x80000000 };
enum { EAGAIN = 11, ENOMEM = 12, EBUSY = 16, EADDRINUSE = 98, ETIMEDOUT = 110, ECONNREFUSED = 111, EHOSTUNREACH = 113 };
enum tcp_flag_bits { TCPF_FIN = 1, TCPF_SYN = 2, TCPF_RST = 4, TCPF_PSH = 8, TCPF_ACK = 16 };

/* The context of kprobes: UAPI, no CO-RE. */
#if defined(__TARGET_ARCH_x86)
struct pt_regs {
	unsigned long r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di;
	unsigned long orig_ax, ip, cs, flags, sp, ss;
};
#elif defined(__TARGET_ARCH_arm64)
struct user_pt_regs {
	__u64 regs[31];
	__u64 sp, pc, pstate;
};
struct pt_regs;
#endif

#endif
