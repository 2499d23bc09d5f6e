package diagnose

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/tcptrace/tcptrace/internal/timeline"
	"github.com/tcptrace/tcptrace/tracer/event"
)

const codeAcceptQueueOverflow = "accept-queue-overflow"

var docAcceptQueueOverflow = Doc{
	Code:     codeAcceptQueueOverflow,
	Severity: Error,
	Summary:  "a handshake ended, or a SYN was dropped, because the listener's accept queue was full",
	Meaning: `A connection whose handshake is complete waits in the listener's accept queue until the application calls accept(). The queue holds min(listen()'s backlog, net.core.somaxconn) + 1 connections. When it is full, the kernel drops new SYNs (the client tries again after 1 s, 2 s, 4 s, ...) and refuses final ACKs.

What the client sees of a refused final ACK depends on net.ipv4.tcp_abort_on_overflow. With 1 it gets "connection reset by peer" on a connection that it believed to be open. With 0, the default, it sees nothing: it sends its request into a connection that does not exist at the server, and waits.

The queue is the symptom. It fills because accept() is called too late or too seldom: an application that is starting, blocked, out of threads, or short of CPU.`,
	Counts: "connections concerned; the evidence counts their SYNs and final ACKs",
	Evidence: []DocKey{
		{"backlog_limit", "connections", "limit of the queue when it overflowed; it holds one more"},
		{"backlog_argument", "connections", "what the application passed to listen(); null if that was before tracing began"},
		{"somaxconn", "connections", "net.core.somaxconn of the listener's network namespace"},
		{"limited_by", "", "which of the two set the limit"},
		{"queue_len", "connections", "the most that were waiting"},
		{"abort_on_overflow", "", "whether net.ipv4.tcp_abort_on_overflow is set: refused final ACKs are answered by RST"},
		{"syn_dropped", "count", "SYNs dropped"},
		{"ack_dropped", "count", "final ACKs (or data in their place) dropped without an answer"},
		{"rst_sent", "count", "final ACKs answered by RST"},
		{"clients", "count", "different client addresses"},
		{"accept_wait_ms_max", "ms", "longest wait for accept() seen since the first overflow; null if no accept() was seen"},
	},
	Fix: []string{
		"find out why accept() is late (start-up, a blocked or overloaded accept loop, no free worker): a longer queue only delays the same end",
		"raise the backlog in the application: nginx `listen ... backlog=`, Tomcat acceptCount, the second argument of Java's ServerSocket, redis tcp-backlog; Go takes net.core.somaxconn",
		"raise net.core.somaxconn where it cuts the backlog, then restart the application: a limit is set when listen() is called",
	},
	Counters: []string{"TcpExt.ListenOverflows", "TcpExt.ListenDrops"},
	Source: []string{
		"net/ipv4/tcp_input.c: tcp_conn_request()",
		"net/ipv4/tcp_ipv4.c: tcp_v4_syn_recv_sock()",
		"net/ipv4/tcp_minisocks.c: tcp_check_req()",
		"include/net/sock.h: sk_acceptq_is_full()",
	},
}

// acceptQueueOverflow follows what met a full accept queue, for each listener.
type acceptQueueOverflow struct {
	found groups[Key, *overflow]
}

func newAcceptQueueOverflow() *acceptQueueOverflow {
	return &acceptQueueOverflow{groups[Key, *overflow]{max: 4096}}
}

func (*acceptQueueOverflow) Code() string { return codeAcceptQueueOverflow }
func (*acceptQueueOverflow) Doc() Doc     { return docAcceptQueueOverflow }

type overflow struct {
	name                netip.AddrPort
	lis                 *timeline.Listener
	facts               event.Listener
	backlog             int64 // argument of listen() as it was then
	known               bool  // and whether it was seen
	queueLen            uint32
	syn, ack, rst, sure uint64
	clients             addresses
	doors               doors
	wait                time.Duration
	waited              bool
}

func overflowKey(c *timeline.Conn) Key {
	k := Key{Netns: c.Netns(), Addr: c.Local()}
	if l := c.Listener(); l != nil && l.Exact {
		k.Addr = l.Addr
	}
	return k
}

func (r *acceptQueueOverflow) Entry(x *Engine, c *timeline.Conn, e *timeline.Entry) {
	switch e.Kind {
	case timeline.EntryAccepted:
		if len(r.found.m) == 0 {
			return
		}
		if p := r.found.get(overflowKey(c)); p != nil {
			if est := c.Find(timeline.EntryEstablished); est != nil {
				(*p).waited = true
				(*p).wait = max((*p).wait, e.Since(est))
			}
		}
		return
	case timeline.EntryRequestDropped:
	default:
		return
	}
	k := overflowKey(c)
	p := r.found.make(k)
	if *p == nil {
		*p = &overflow{name: k.Addr}
	}
	o := *p
	if l := c.Listener(); l != nil {
		o.lis = l
		o.backlog, o.known = l.Backlog, l.BacklogKnown
		o.doors.add(l)
	}
	o.facts = c.Facts()
	o.queueLen = max(o.queueLen, o.facts.QueueLen)
	switch {
	case e.AnsweredRST():
		o.rst++
	case e.DroppedACK():
		o.ack++
	default:
		o.syn++
	}
	if !e.Inferred() {
		o.sure++
	}
	o.clients.add(c.Remote().Addr())
	n := uint64(1)
	if tagged(r, c) { // the same connection again
		n = 0
	}
	x.Report(r, k, o, e.Until(), n, c)
	if peer := c.Peer(); peer != nil {
		x.tag(r, peer, Error)
	}
}

// Ended makes the client's end on this host part of it, too.
func (r *acceptQueueOverflow) Ended(x *Engine, c *timeline.Conn) {
	if peer := c.Peer(); peer != nil && tagged(r, peer) && c.Role() == timeline.RoleClient {
		x.tag(r, c, Error)
	}
}

func (o *overflow) Describe(x *Engine, v *Verdict) {
	v.Severity = Error
	v.Confidence = Certain
	if o.sure == 0 {
		v.Confidence = Likely
	}
	v.Subject = Subject{"listener", o.name.String()}
	switch {
	case o.rst > 0:
		v.Story = "handshake completed, then server RST, accept queue full"
	case o.ack > 0 && o.syn > 0:
		v.Story = "handshakes completed at the client only (final ACK dropped), and SYNs dropped, accept queue full"
	case o.ack > 0:
		v.Story = "handshake completed at the client only, final ACK dropped, accept queue full"
	default:
		v.Story = "SYN dropped, accept queue full"
	}
	argument := Fact{Key: "backlog_argument", Note: "listen() was not seen: most likely it was called before tracing began"}
	if !x.o.Capabilities.HasListenArg {
		argument.Note = "this kernel's hooks do not show listen()'s argument"
	}
	if !o.known && o.lis != nil && o.lis.BacklogKnown && o.lis.QueueLimit == o.facts.QueueLimit { // it was told late
		o.backlog, o.known = o.lis.Backlog, true
	}
	if o.known {
		argument.Value, argument.Note = o.backlog, ""
	}
	if o.lis != nil {
		v.Process = process(o.lis.Owner())
	}
	limit := Fact{Key: "backlog_limit", Value: int64(o.facts.QueueLimit)}
	if names := o.doors.share(v, &limit); names != "" {
		v.Story += ": listeners of " + names
	}
	by := limitedBy(o)
	wait := Fact{Key: "accept_wait_ms_max", Note: "no accept() seen since"}
	if o.waited {
		wait = Fact{Key: wait.Key, Value: milliseconds(o.wait)}
	}
	v.Evidence = Evidence{
		limit,
		argument,
		{Key: "somaxconn", Value: int64(o.facts.Somaxconn)},
		by,
		{Key: "queue_len", Value: int64(o.queueLen)},
		{Key: "abort_on_overflow", Value: o.facts.AbortOnOverflow},
		{Key: "syn_dropped", Value: int64(o.syn)},
		{Key: "ack_dropped", Value: int64(o.ack)},
		{Key: "rst_sent", Value: int64(o.rst)},
		o.clients.fact("clients"),
		wait,
	}
	v.Fix = []string{docAcceptQueueOverflow.Fix[0]}
	switch by.Value {
	case limitedBySomaxconn:
		if o.facts.Somaxconn > o.facts.QueueLimit {
			v.Fix = append(v.Fix, fmt.Sprintf("net.core.somaxconn was %d when listen() was called and is %d now: restart the application", o.facts.QueueLimit, o.facts.Somaxconn))
			break
		}
		v.Fix = append(v.Fix, fmt.Sprintf("net.core.somaxconn (%d) caps this queue: raise it in the listener's network namespace, then restart the application", o.facts.Somaxconn))
	case limitedByArgument:
		v.Fix = append(v.Fix, docAcceptQueueOverflow.Fix[1])
		if n := o.facts.Somaxconn; n != 0 && n < o.facts.QueueLimit {
			v.Fix = append(v.Fix, fmt.Sprintf("net.core.somaxconn is %d now, and would cut the queue to that at a restart: raise it before", n))
		}
	default:
		v.Fix = append(v.Fix, docAcceptQueueOverflow.Fix[1:]...)
	}
	if o.rst > 0 {
		v.Fix = append(v.Fix, "net.ipv4.tcp_abort_on_overflow=1 turns each overflow into a reset; with 0 the client gets another chance")
	}
}

const (
	limitedByArgument  = "backlog argument"
	limitedBySomaxconn = "somaxconn"
)

// limitedBy compares the limit with what it was made of: min(argument,
// somaxconn), as they were when listen() was called.
func limitedBy(o *overflow) Fact {
	f := Fact{Key: "limited_by"}
	limit, somaxconn := o.facts.QueueLimit, o.facts.Somaxconn
	switch {
	case o.known && uint32(o.backlog) > limit:
		f.Value = limitedBySomaxconn
		if somaxconn != limit && somaxconn != 0 {
			f.Note = fmt.Sprintf("it was %d when listen() was called", limit)
		}
	case o.known && limit == somaxconn:
		f.Value = limitedBySomaxconn
		f.Note = "listen() asked for just as much: raise both"
	case o.known:
		f.Value = limitedByArgument
	case somaxconn != 0 && limit == somaxconn:
		f.Value = limitedBySomaxconn
		f.Note = "the argument is not known, but a larger one would not count"
	case limit > somaxconn && somaxconn != 0:
		f.Value = "unknown"
		f.Note = "net.core.somaxconn was lowered since listen()"
	case somaxconn != 0:
		f.Value = limitedByArgument
		f.Note = "unless net.core.somaxconn was raised since listen()"
	default:
		f.Value = "unknown"
	}
	return f
}
