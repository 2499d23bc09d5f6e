/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
#ifndef TCPTRACE_MAPS_H
#define TCPTRACE_MAPS_H

/* Hash maps are allocated in advance, all of it (3 MiB): before 6.1 the kernel
 * warns, with a trace in its log, of a tracing program whose map is not, and
 * with panic_on_warn that is the machine's end (kernel/bpf/verifier.c:
 * check_map_prog_compatibility()).
 */

/* The stream to user space. One ring for all CPUs: what happens to one socket
 * is ordered by its lock, and so is its order here. User space sets the size.
 */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 23);
	__type(value, struct tcptrace_event);
} events SEC(".maps");

/* Lost events by cause (enum tcptrace_lost). Written by emit() and friends,
 * read by user space, never reset.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, LOST_CAUSES);
	__type(key, __u32);
	__type(value, __u64);
} lost SEC(".maps");

/* Our own count of what the kernel's counters count, by namespace. Inserted at
 * a namespace's first counted event, never deleted: inode numbers are reused,
 * and user space works with differences.
 */
struct audit_counts {
	__u64 count[AUDIT_COUNTERS];
};
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, struct audit_counts);
} audit SEC(".maps");

/* What one hook leaves for the next on the same CPU. Each note names its
 * socket, so a note that was overwritten meanwhile is not taken for ours.
 */
struct notes {
	__u64 time_wait_sock;   /* tcp_time_wait -> inet_sock_set_state */
	__u32 time_wait_state;
	__u32 killer_flags;     /* tcp_check_req -> inet_csk_reqsk_queue_drop */
	__u64 killed_request;
	__u64 entered_sock;     /* entry -> exit of a short function */
	__u64 cookie_netns;     /* cookie_v{4,6}_check -> __cookie_v{4,6}_check */
};
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct notes);
} scratch SEC(".maps");

/* Arguments of a listen() under way, by thread, where entry and exit are
 * separate hooks. Inserted at entry, deleted at exit; an entry whose exit was
 * missed is overwritten by the thread's next listen(), or pushed out (LRU).
 */
struct listen_args {
	__u32 fd;
	__u32 backlog;
};
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, struct listen_args);
} listening SEC(".maps");

/* The same for inet_csk_get_port(). */
struct get_port_args {
	__u64 sk;
	__u32 port;
	__u32 _pad;
};
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, struct get_port_args);
} getting_port SEC(".maps");

/* The same for bind(), with what was wanted. */
struct bind_args {
	__u32 fd;
	struct sockaddr_wire addr;
};
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, struct bind_args);
} binding SEC(".maps");

/* How many events of a kind this CPU has told in the present window. */
struct rate {
	__u64 window;
	__u64 told;
};
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 32); /* by kind */
	__type(key, __u32);
	__type(value, struct rate);
} rates SEC(".maps");

/* What was counted instead of told. Never deleted: user space works with
 * differences. Full: counted under a key without address and port, for which
 * user space makes room in advance.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct tcptrace_fold_key);
	__type(value, __u64);
} folded SEC(".maps");

/* Listeners by local address, for modes in which a dropped SYN does not tell
 * its listener. Inserted at CLOSE -> LISTEN and by the inventory, deleted at
 * LISTEN -> CLOSE; full: counted, and drops at further listeners stay unknown.
 */
struct listener_key {
	__u32 netns;
	__u16 port;
	__u16 _pad;
	__u8 addr[16];
};
struct listener_ref {
	__u64 sk;      /* kernel address, only ever read through bpf_probe_read_kernel; 0 unknown */
	__u32 drops;   /* sk_drops when last looked at */
	__u32 shared;  /* another listener had the address at the same time (SO_REUSEPORT) */
	__u32 requests;/* half-open when last looked at */
	__u32 _pad;
};
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, struct listener_key);
	__type(value, struct listener_ref);
} listeners SEC(".maps");

#endif
