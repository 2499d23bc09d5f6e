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
/* Number of arguments of inet_csk_accept: its return value comes after them. */
const volatile __u32 accept_nargs = 4;
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
