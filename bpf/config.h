/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* What user space decides before loading. Read-only data: the verifier sees
 * constants and drops the branches that this kernel cannot run.
 */
#ifndef TCPTRACE_CONFIG_H
#define TCPTRACE_CONFIG_H

#define FILTER_MAX 16

/* bpf_get_socket_cookie exists for tracing programs (Linux 5.12). */
const volatile bool have_cookie = true;
/* bpf_get_current_task_btf exists (Linux 5.11). */
const volatile bool have_task_btf = true;
/* The important programs have twins, see twin.h. */
const volatile bool have_twins = false;
/* tcp_send_reset carries a reason (Linux 6.10). */
const volatile bool have_rst_reason = false;
/* The request queue is full at qlen >= limit (5.10), later at qlen > limit. */
const volatile bool syn_queue_full_at_limit = false;
/* A hook on tcp_time_wait tells who lives on as a minisocket. */
const volatile bool have_time_wait_hook = false;
/* No hook sees the final ACK at a full accept queue; conclude it from resets
 * and SYN-ACK retransmissions.
 */
const volatile bool infer_ack_overflow = false;
/* The kernel's names of resets and drops have numbers of their own on each
 * kernel; none: a number that does not occur.
 */
const volatile __u32 rst_on_close = ~0U;
const volatile __u32 rst_on_data = ~0U;
const volatile __u32 rst_on_linger = ~0U;
const volatile __u32 drop_paws = ~0U;
/* Which of enum skb_drop_reason are told, a bit each. */
const volatile __u64 drop_wanted[4] = {};
/* Where a kernel without reasons drops for netfilter: nf_hook_slow. */
const volatile __u64 nf_hook_start = 0;
const volatile __u64 nf_hook_end = 0;
/* Number of arguments of inet_csk_accept: its return value comes after them. */
const volatile __u32 accept_nargs = 4;
/* The same of __cookie_v{4,6}_check. */
const volatile __u32 cookie_check_nargs = 2;
/* Wake the reader when so much waits in the ring, bytes. */
const volatile __u32 wakeup_bytes = 1 << 20;
/* Programs return at once: the yardstick of `make bench`. */
const volatile bool empty_programs = false;

/* Filters: OR within a kind, AND between kinds; 0 entries: no filter. */
struct cidr {
	__u32 addr[4];
	__u32 mask[4];
};
const volatile __u32 filter_netns_n = 0;
const volatile __u32 filter_port_n = 0;
const volatile __u32 filter_lport_n = 0;
const volatile __u32 filter_rport_n = 0;
const volatile __u32 filter_addr_n = 0;
const volatile __u32 filter_netns[FILTER_MAX] = {};
const volatile __u16 filter_port[FILTER_MAX] = {};
const volatile __u16 filter_lport[FILTER_MAX] = {};
const volatile __u16 filter_rport[FILTER_MAX] = {};
const volatile struct cidr filter_addr[FILTER_MAX] = {};

#endif
