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

static __always_inline void count_n(__u32 netns, __u32 counter, __s64 n)
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
		__sync_fetch_and_add(&a->count[counter], n);
}

static __always_inline void count(__u32 netns, __u32 counter)
{
	count_n(netns, counter, 1);
}

/* Floods: each CPU tells so many events of a kind in each window, the rest is
 * counted. Well above what a host in trouble has, well below what costs.
 */
#define FOLD_WINDOW_SHIFT 27 /* 134 ms */
#define FOLD_BURST 256

static __always_inline bool within_rate(const struct tcptrace_event *e)
{
	__u32 kind = e->kind;
	struct rate *r = bpf_map_lookup_elem(&rates, &kind);

	if (!r)
		return true;
	if (r->window != e->time >> FOLD_WINDOW_SHIFT) {
		r->window = e->time >> FOLD_WINDOW_SHIFT;
		r->told = 0;
	}
	return r->told++ < FOLD_BURST;
}

static __always_inline void fold(const struct tcptrace_event *e, __u64 listener, __u8 tcp_flags, __u8 out)
{
	struct tcptrace_fold_key k = {};
	__u64 one = 1, *n;

	k.listener = listener;
	k.netns = e->netns;
	k.reason = e->reason;
	k.flags = e->flags;
	k.kind = e->kind;
	k.tcp_flags = tcp_flags;
	k.out = out;
	k.local_port = e->local_port;
	__builtin_memcpy(k.local, e->local, sizeof(k.local));
	n = bpf_map_lookup_elem(&folded, &k);
	if (!n && !bpf_map_update_elem(&folded, &k, &one, BPF_NOEXIST))
		return;
	if (!n)
		n = bpf_map_lookup_elem(&folded, &k);
	if (!n) { /* full */
		__builtin_memset(&k, 0, sizeof(k));
		k.kind = e->kind;
		n = bpf_map_lookup_elem(&folded, &k);
	}
	if (n)
		__sync_fetch_and_add(n, 1);
	else
		count_lost(LOST_MAP_FULL);
}

/* commit for events that come in floods. */
static __always_inline void commit_folding(struct tcptrace_event *e, __u64 listener, __u8 tcp_flags, __u8 out)
{
	if (within_rate(e)) {
		commit(e);
		return;
	}
	if (event_passes(e))
		fold(e, listener, tcp_flags, out);
	bpf_ringbuf_discard(e, BPF_RB_NO_WAKEUP);
}

static __always_inline struct notes *notes(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&scratch, &zero);
}

#endif
