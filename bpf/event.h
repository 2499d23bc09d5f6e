/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* The one definition of what crosses from the kernel to Go.
 *
 * bpf2go turns these types into Go (internal/probe); named enums carry the
 * constants, since #defines and anonymous enums would be lost on the way.
 * Little-endian only.
 */
#ifndef TCPTRACE_EVENT_H
#define TCPTRACE_EVENT_H

/* What happened. Values are never reused: dumps keep them. */
enum tcptrace_kind {
	KIND_NONE = 0,
	KIND_STATE = 1,           /* inet_sock_set_state: old_state -> new_state */
	KIND_LISTEN = 2,          /* listen() succeeded: l.backlog is the raw argument */
	KIND_ACCEPT = 3,          /* accept() returned this socket */
	KIND_SHUTDOWN = 4,        /* shutdown() called: reason = how (0 RD, 1 WR, 2 RDWR) */
	KIND_SYN_DROPPED = 5,     /* SYN met a full accept queue and was dropped */
	KIND_SYN_QUEUE_FULL = 6,  /* SYN met a full request queue: cookie or drop */
	KIND_ACK_OVERFLOW = 7,    /* final ACK met a full accept queue */
	KIND_SYNACK_RETRANS = 8,  /* SYN-ACK retransmitted; sock = request */
	KIND_RETRANSMIT = 9,      /* segment retransmitted */
	KIND_RTO = 10,            /* retransmission timer expired */
	KIND_RST_SENT = 11,       /* reason = enum sk_rst_reason, 0 where the kernel has none; from a minisocket, old_state is its substate */
	KIND_RST_RECEIVED = 12,
	KIND_REQUEST_ABORTED = 13,/* half-open request killed; reason = TCP flags of the killer, 0: not by a segment */
	KIND_SNAPSHOT = 14,       /* a socket that exists now (iterator, not ring) */
	KIND_BIND_FAILED = 15,    /* EADDRINUSE: local = what was wanted; reason 0 bind(), 1 listen() */
	KIND_PROBE = 16,          /* probe of a silent peer: reason 1 keepalive, 2 zero window; attempt = sent before */
	KIND_DROPPED = 17,        /* a segment dropped by this host: reason = enum skb_drop_reason; d */
	KIND_MEMORY = 18,         /* tcp_check_oom killed the socket: reason 1 too many orphans, 0 that or out of memory */
	KIND_TW_OVERFLOW = 19,    /* no TIME_WAIT minisocket to be had: tcp_max_tw_buckets */
};

/* Bits of tcptrace_event.flags. */
enum tcptrace_flag {
	FLAG_DEAD = 1 << 0,          /* SOCK_DEAD: no process holds it (orphan) */
	FLAG_DONE = 1 << 1,          /* SOCK_DONE: FIN was received */
	FLAG_KEEPALIVE = 1 << 2,     /* SO_KEEPALIVE on */
	FLAG_LINGER = 1 << 3,        /* SO_LINGER on */
	FLAG_SHUT_RD = 1 << 4,       /* sk_shutdown & RCV_SHUTDOWN */
	FLAG_SHUT_WR = 1 << 5,       /* sk_shutdown & SEND_SHUTDOWN */
	FLAG_RST = 1 << 6,           /* ACK_OVERFLOW: answered by RST (abort_on_overflow) */
	FLAG_COOKIE = 1 << 7,        /* ACK_OVERFLOW: the ACK carried a SYN cookie; SYN_QUEUE_FULL: a cookie was sent */
	FLAG_TIME_WAIT = 1 << 8,     /* STATE to CLOSE: handed to a TIME_WAIT minisocket in state TIME_WAIT */
	FLAG_TIME_WAIT_FW2 = 1 << 9, /* the same, minisocket in state FIN_WAIT2 (orphan) */
	FLAG_AMBIGUOUS = 1 << 10,    /* the listener is one of several on this port (SO_REUSEPORT) */
	FLAG_NO_SOCKET = 1 << 11,    /* RST_SENT: no full socket; addresses from the segment answered */
	FLAG_LINGER_ZERO = 1 << 12,  /* SO_LINGER with timeout 0 */
	FLAG_INFERRED = 1 << 13,     /* SYN_DROPPED, SYN_QUEUE_FULL, ACK_OVERFLOW: concluded from the queue after the fact; STATE: so are the TIME_WAIT flags (tracepoint-only mode) */
	FLAG_PROCESS = 1 << 14,      /* pid, comm, cgroup are the process that did this, by system call */
	FLAG_ACKED = 1 << 15,        /* SYNACK_RETRANS: the final ACK had come and was dropped at a full accept queue */
	FLAG_EXITING = 1 << 15,      /* STATE with FLAG_PROCESS: the kernel closed it as the process ended */
};

/* Why an event never reached the ring; index into the lost map. */
enum tcptrace_lost {
	LOST_RING_FULL = 0,   /* bpf_ringbuf_reserve failed */
	LOST_MAP_FULL = 1,    /* a map had no room for what an event needed */
	LOST_UNREADABLE = 2,  /* kernel memory could not be read */
	LOST_STOOD_IN = 3,    /* not lost: a twin told what its program was kept from telling */
	LOST_CAUSES = 4,
};

/* Counters held against the kernel's own; index into audit values. */
enum tcptrace_audit {
	AUDIT_LISTEN_OVERFLOWS = 0,
	AUDIT_LISTEN_DROPS = 1,
	AUDIT_OUT_RSTS = 2,
	AUDIT_ESTAB_RESETS = 3,
	AUDIT_ATTEMPT_FAILS = 4,
	AUDIT_ACTIVE_OPENS = 5,
	AUDIT_PASSIVE_OPENS = 6,
	AUDIT_RETRANS_SEGS = 7,
	AUDIT_SYN_RETRANS = 8,
	AUDIT_TIMEOUTS = 9,
	AUDIT_REQQ_FULL_DROP = 10,
	AUDIT_REQQ_FULL_COOKIES = 11,
	AUDIT_COOKIES_SENT = 12,
	AUDIT_COOKIES_RECV = 13,
	AUDIT_COOKIES_FAILED = 14,
	AUDIT_EMBRYONIC_RSTS = 15,
	AUDIT_ABORT_ON_TIMEOUT = 16,
	AUDIT_ABORT_ON_CLOSE = 17,
	AUDIT_ABORT_ON_DATA = 18,
	AUDIT_ABORT_ON_LINGER = 19,
	AUDIT_ABORT_ON_MEMORY = 20,
	AUDIT_TW_OVERFLOW = 21,
	AUDIT_TW_RECYCLED = 22,
	AUDIT_KEEPALIVE = 23,
	AUDIT_WIN_PROBE = 24,
	AUDIT_PAWS_ESTAB = 25,
	AUDIT_COUNTERS = 26,
};

/* Traffic of a full socket at the moment of the event. */
struct tcptrace_traffic {
	__u64 bytes_sent;      /* payload sent, without retransmissions */
	__u64 bytes_received;  /* payload received in order */
	__u32 srtt_us;
	__u32 retransmits;     /* segments retransmitted over the whole life */
	__u32 unread;          /* bytes received that nobody has read: Recv-Q */
	__u32 unacked;         /* bytes written and not acknowledged: Send-Q */
};

/* A listener's facts at the moment of the event, of its own namespace. */
struct tcptrace_listener {
	__u64 listener;        /* identity of the listening socket */
	__u32 queue_len;       /* sk_ack_backlog: completed connections waiting for accept() */
	__u32 queue_limit;     /* sk_max_ack_backlog = min(backlog, somaxconn); full when len > limit */
	__u32 syn_queue_len;   /* half-open requests */
	__u32 somaxconn;       /* net.core.somaxconn */
	__u32 backlog;         /* LISTEN: the raw argument of listen() */
	__u8 abort_on_overflow;/* net.ipv4.tcp_abort_on_overflow */
	__u8 syncookies;       /* net.ipv4.tcp_syncookies */
	__u8 attempt;          /* SYNACK_RETRANS: how many so far, this one included */
	__u8 synack_retries;   /* the listener's own or net.ipv4.tcp_synack_retries */
};

/* A segment that was dropped. */
struct tcptrace_drop {
	__u64 location;        /* address in the kernel where that was decided */
	__u8 tcp_flags;        /* as on the wire */
	__u8 out;              /* on its way out, else on its way in */
	__u8 _pad[22];
};

struct tcptrace_event {
	__u64 time;            /* CLOCK_BOOTTIME, ns */
	__u64 sock;            /* identity: socket cookie, or the address where the kernel gives none; 0 unknown */
	__u64 cgroup;          /* cgroup v2 id, where FLAG_PROCESS */
	__u32 netns;           /* inode number */
	__u32 pid;             /* thread group, as seen from the initial namespace; where FLAG_PROCESS */
	__u8 comm[16];         /* of the thread group's leader; where FLAG_PROCESS */
	__u8 local[16];        /* IPv4 as ::ffff:a.b.c.d */
	__u8 remote[16];
	__u16 local_port;      /* host order */
	__u16 remote_port;
	__u8 kind;             /* enum tcptrace_kind */
	__u8 old_state;        /* kernel's TCP states; the current state where nothing changes */
	__u8 new_state;
	__u8 attempt;          /* RETRANSMIT, RTO: icsk_retransmits (0: not timer-driven); SYN_SENT to CLOSE: SYN retransmissions;
	                        * other states to CLOSE: icsk_probes_out; RST_SENT without socket: TCP flags of what it answers */
	__u16 err;             /* sk_err, an errno */
	__u16 flags;           /* enum tcptrace_flag */
	__u32 reason;          /* see the kind; STATE from SYN_SENT to CLOSE: how often the SYN may be sent again;
	                        * from other states to CLOSE: icsk_retransmits */
	union {
		struct tcptrace_traffic t;
		struct tcptrace_listener l;
		struct tcptrace_drop d;
	};
};
_Static_assert(sizeof(struct tcptrace_event) == 128, "the event's size is part of the format");

/* One line of the socket inventory (iter/tcp). */
struct tcptrace_socket {
	struct tcptrace_event ev;    /* kind SNAPSHOT; l for LISTEN, else t */
	__u64 inode;                 /* socket inode, 0: orphan */
	__u32 uid;
	__u32 keepalive_time;        /* jiffies; the socket's own or its namespace's default */
	__u32 keepalive_intvl;       /* jiffies */
	__u32 keepalive_probes;
	__u32 idle;                  /* jiffies since the last segment was received */
	__u32 netns_keepalive_time;  /* net.ipv4.tcp_keepalive_time in jiffies: tells user space what a jiffy is */
	__u32 sent_idle;             /* jiffies since data was last sent */
	__u32 left;                  /* TIME_WAIT, FIN_WAIT2 minisocket: jiffies until it goes */
	__u32 snd_wnd;               /* bytes: the peer's window */
	__u32 rcv_wnd;               /* bytes: ours */
	__u8 probes_out;             /* probes without an answer */
	__u8 retransmits;            /* expiries of the retransmission timer in a row */
	__u8 minisocket;             /* TIME_WAIT, FIN_WAIT2: no socket is left */
	__u8 _pad[5];
};
_Static_assert(sizeof(struct tcptrace_socket) == 184, "the inventory line's size is part of the format");

/* Events of which a flood could make millions: beyond a rate they are counted
 * by this key, and user space tells the counts as events.
 */
struct tcptrace_fold_key {
	__u64 listener;        /* identity, 0 none */
	__u32 netns;
	__u32 reason;
	__u8 local[16];
	__u16 local_port;
	__u16 flags;
	__u8 kind;
	__u8 tcp_flags;
	__u8 out;
	__u8 _pad[5];
};
_Static_assert(sizeof(struct tcptrace_fold_key) == 48, "no holes");

#endif
