/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* Twins: programs that stand in for one that the kernel skipped.
 *
 * The kernel runs no tracing program that is running already on this CPU: one
 * that was interrupted by a softirq (tracepoints since 6.1), or (tracepoints
 * since 6.19, trampolines on preemptible kernels) was preempted, perhaps for a
 * whole time slice, in which everything that other tasks do on this CPU would
 * be missed. Keeping
 * interrupts off inside does not help: they come as they are allowed again,
 * before the kernel has taken note that the program ended.
 *
 * So the important hooks have a second program, attached to run after the
 * first. It looks whether the first has told this event, and if not, tells it.
 */
#ifndef TCPTRACE_TWIN_H
#define TCPTRACE_TWIN_H

#define TWIN_ACCEPT 0xff
#define TWIN_STATE(old, new) (((old) & 15) << 4 | ((new) & 15))

/* What the first program told last of a socket, by the socket's cookie. The
 * twin runs right after it, on the same CPU. Only what interrupts between the
 * two can take the slot, or the task's move to another CPU: then an event is
 * told twice, not lost. Fixed size, nothing to delete.
 */
#define TWIN_SLOTS 256
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, TWIN_SLOTS);
	__type(key, __u32);
	__type(value, __u64);
} told SEC(".maps");

static __always_inline __u64 *twin_slot(__u64 cookie)
{
	__u32 slot = cookie * 0x9e3779b97f4a7c15ULL >> 56; /* spreads the CPUs' ranges of cookies */

	return bpf_map_lookup_elem(&told, &slot);
}

static __always_inline void tell_twin(struct sock *sk, __u64 what)
{
	__u64 cookie, *slot;

	if (!have_twins || !sk)
		return;
	cookie = sk->__sk_common.skc_cookie.counter;
	slot = twin_slot(cookie);
	if (slot)
		*slot = cookie << 8 | what;
}

static __always_inline bool told_by_twin(struct sock *sk, __u64 what)
{
	__u64 cookie, *slot;

	if (!sk || sk->sk_protocol != IPPROTO_TCP)
		return true;
	cookie = sk->__sk_common.skc_cookie.counter;
	slot = twin_slot(cookie);
	if (!slot)
		return true;
	if (*slot == (cookie << 8 | what)) {
		*slot = 0;
		return true;
	}
	count_lost(LOST_STOOD_IN);
	return false;
}

#endif
