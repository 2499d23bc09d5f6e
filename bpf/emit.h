/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* Events into the ring, and the counts of what did not get there. */
#ifndef TCPTRACE_EMIT_H
#define TCPTRACE_EMIT_H

static __always_inline void count_lost(__u32 cause)
{
	__u64 *n = bpf_map_lookup_elem(&lost, &cause);

	if (n)
		(*n)++;
}

static __always_inline struct tcptrace_event *begin(__u8 kind)
{
	struct tcptrace_event *e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);

	if (!e) {
		count_lost(LOST_RING_FULL);
		return NULL;
	}
	__builtin_memset(e, 0, sizeof(*e));
	e->time = bpf_ktime_get_boot_ns();
	e->kind = kind;
	return e;
}

/* The wake-up is the cost, not the work: the reader looks by itself every now
 * and then, and is woken only when the ring fills faster than that.
 */
static __always_inline void commit(struct tcptrace_event *e)
{
	if (!event_passes(e)) {
		bpf_ringbuf_discard(e, BPF_RB_NO_WAKEUP);
		return;
	}
	/* looking costs too: one event in sixteen or so does, by the clock */
	if (!(e->time & 0xf00) && bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA) >= wakeup_bytes)
		bpf_ringbuf_submit(e, BPF_RB_FORCE_WAKEUP);
	else
		bpf_ringbuf_submit(e, BPF_RB_NO_WAKEUP);
}

static __always_inline void count(__u32 netns, __u32 counter)
{
	struct audit_counts zero = {}, *a;

	a = bpf_map_lookup_elem(&audit, &netns);
	if (!a) {
		bpf_map_update_elem(&audit, &netns, &zero, BPF_NOEXIST);
		a = bpf_map_lookup_elem(&audit, &netns);
		if (!a) {
			count_lost(LOST_MAP_FULL);
			return;
		}
	}
	if (counter < AUDIT_COUNTERS)
		__sync_fetch_and_add(&a->count[counter], 1);
}

static __always_inline struct notes *notes(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&scratch, &zero);
}

#endif
