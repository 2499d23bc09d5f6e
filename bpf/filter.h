/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* Filters that need no process. They drop only what surely does not match:
 * an address or port that is not known yet passes, user space has the last word.
 */
#ifndef TCPTRACE_FILTER_H
#define TCPTRACE_FILTER_H

static __always_inline bool port_in(const volatile __u16 *set, __u32 n, __u16 port)
{
	for (int i = 0; i < FILTER_MAX; i++) {
		if (i >= n)
			break;
		if (set[i] == port)
			return true;
	}
	return false;
}

static __always_inline bool addr_in(const __u32 *a)
{
	for (int i = 0; i < FILTER_MAX; i++) {
		if (i >= filter_addr_n)
			break;
		if (((a[0] ^ filter_addr[i].addr[0]) & filter_addr[i].mask[0]) == 0 &&
		    ((a[1] ^ filter_addr[i].addr[1]) & filter_addr[i].mask[1]) == 0 &&
		    ((a[2] ^ filter_addr[i].addr[2]) & filter_addr[i].mask[2]) == 0 &&
		    ((a[3] ^ filter_addr[i].addr[3]) & filter_addr[i].mask[3]) == 0)
			return true;
	}
	return false;
}

static __always_inline bool unspecified(const __u32 *a)
{
	return (a[0] | a[1]) == 0 && a[3] == 0 && (a[2] == 0 || a[2] == 0xffff0000);
}

/* netns_passes is asked before anything is reserved: it is the cheap one. */
static __always_inline bool netns_passes(__u32 netns)
{
	if (!filter_netns_n)
		return true;
	for (int i = 0; i < FILTER_MAX; i++) {
		if (i >= filter_netns_n)
			break;
		if (filter_netns[i] == netns)
			return true;
	}
	return false;
}

static __always_inline bool event_passes(const struct tcptrace_event *e)
{
	if (filter_port_n && e->local_port &&
	    !port_in(filter_port, filter_port_n, e->local_port) &&
	    !port_in(filter_port, filter_port_n, e->remote_port))
		return false;
	if (filter_lport_n && e->local_port && !port_in(filter_lport, filter_lport_n, e->local_port))
		return false;
	/* a listener has no remote end, yet it explains connections that have one */
	if (filter_rport_n && e->remote_port && !port_in(filter_rport, filter_rport_n, e->remote_port))
		return false;
	if (filter_addr_n && !unspecified((const __u32 *)e->local) &&
	    !addr_in((const __u32 *)e->local) &&
	    !unspecified((const __u32 *)e->remote) &&
	    !addr_in((const __u32 *)e->remote))
		return false;
	return true;
}

#endif
