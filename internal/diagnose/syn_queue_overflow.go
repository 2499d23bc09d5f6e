package diagnose

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/tcptrace/tcptrace/internal/timeline"
	"github.com/tcptrace/tcptrace/tracer/event"
)

const codeSYNQueueOverflow = "syn-queue-overflow"

// synQueuePause ends an overflow: what comes later is judged anew, since it may
// have another cause.
const synQueuePause = time.Minute

var docSYNQueueOverflow = Doc{
	Code:     codeSYNQueueOverflow,
	Severity: Warning,
	Summary:  "half-open requests reached the listener's limit: SYN cookies were sent, or SYNs dropped",
	Meaning: `A SYN makes a half-open request, which waits for the client's final ACK. A listener may have as many as its accept queue may have connections: min(listen()'s backlog, net.core.somaxconn). Beyond that the kernel answers with SYN cookies, which need no memory (net.ipv4.tcp_syncookies=1, the default), or drops the SYN (0). It is a warning while cookies are sent, since their clients get in (without window scaling and SACK where the client sends no timestamps), and an error when SYNs are dropped. With net.ipv4.tcp_syncookies=2 every SYN is answered with a cookie; that alone is no overflow and is not reported.

Three things fill the queue, and the evidence tells which it looks like. A flood with forged sources: every SYN from another address, and hardly any completes its handshake. A few sources: they are named. A burst of true clients, as after a restart: they complete. Forged sources that are drawn from one network look like that network; a burst of clients whose final ACKs get lost looks like a flood. After a pause of a minute that is judged anew.

Under a flood the source of each SYN is looked at only up to a rate (some thousand a second); the rest is counted.`,
	Counts: "SYNs that found the queue full",
	Evidence: []DocKey{
		{"queue_len", "requests", "the most that were half open"},
		{"queue_limit", "requests", "how many may be"},
		{"syncookies", "", "net.ipv4.tcp_syncookies of the listener's network namespace: 0 drop, 1 cookies when full, 2 cookies always"},
		{"cookies_sent", "count", "SYNs answered with a cookie"},
		{"syn_dropped", "count", "SYNs dropped"},
		{"top_sources", "", "addresses and networks (/24, /64) that stand out, with how many of the SYNs are surely theirs"},
		{"sources", "count", "different source addresses among the SYNs that were looked at"},
		{"completed", "count", "how many of these have completed a handshake since"},
		{"looks_like", "", "flood with forged sources, few sources, one network, burst of clients, or unknown"},
	},
	Fix: []string{
		"leave net.ipv4.tcp_syncookies at 1: with 0 every client is turned away while the queue is full",
		"against a flood: filter it before this host, or with nftables synproxy; a longer queue only fills later",
		"for true clients: raise listen()'s backlog in the application, and net.core.somaxconn where it is the smaller of the two",
	},
	Counters: []string{"TcpExt.TCPReqQFullDoCookies", "TcpExt.TCPReqQFullDrop", "TcpExt.SyncookiesSent", "TcpExt.ListenDrops"},
	Source: []string{
		"net/ipv4/tcp_input.c: tcp_conn_request(), tcp_syn_flood_action()",
		"include/net/inet_connection_sock.h: inet_csk_reqsk_queue_is_full()",
	},
}

// synQueueOverflow follows the SYNs that found a listener's queue of half-open
// requests full.
type synQueueOverflow struct {
	found groups[Key, *synFlood]
}

func newSYNQueueOverflow() *synQueueOverflow {
	return &synQueueOverflow{groups[Key, *synFlood]{max: 256}}
}

func (*synQueueOverflow) Code() string { return codeSYNQueueOverflow }
func (*synQueueOverflow) Doc() Doc     { return docSYNQueueOverflow }

type synFlood struct {
	name             netip.AddrPort
	lis              *timeline.Listener
	owner            timeline.Owner
	doors            doors
	facts            event.Listener
	queueLen         uint32
	cookies, dropped uint64
	sure             bool // not all were concluded after the fact
	last             int64
	from             sources
	completed        addresses // those of the sources that did complete a handshake since
	done             uint64    // handshakes that these completed since
}

// Incident hears of SYNs that found the queue full.
func (r *synQueueOverflow) Incident(x *Engine, in *timeline.Incident) {
	if in.Kind != timeline.IncidentSYNQueueFull {
		return
	}
	if !in.Local.IsValid() {
		return // counted where there was no room to note whose it was, nor whether a cookie was sent
	}
	single := in.Remote.IsValid() // else it stands for many, and has no facts
	cookie := in.Flags&event.FlagCookie != 0
	if single && cookie && (in.Facts.SYNCookies == 2 || in.Facts.SYNQueueLen == 0 && in.Facts.QueueLimit == 0) {
		return // always, or (up to 5.10) because none may be half open: nothing is full
	}
	if single && !cookie && in.Flags&event.FlagInferred != 0 && in.Facts.SYNCookies != 0 {
		// The kernel sends a cookie rather than drop a SYN for this: it was
		// dropped for another reason, such as an accept queue that had room again
		// when somebody looked.
		return
	}
	k := Key{Netns: in.Netns, Addr: in.Local}
	if in.Listener != nil && in.Listener.Exact {
		k.Addr = in.Listener.Addr
	}
	p := r.found.make(k)
	if *p == nil {
		*p = &synFlood{name: k.Addr}
	}
	f := *p
	if single && cookie && in.Flags&event.FlagInferred != 0 && in.Facts.SYNCookies == 0 {
		return // neither dropped nor a cookie: the queue was full a moment later
	}
	n := max(in.Count, 1)
	if in.At-f.last > int64(synQueuePause) {
		f.from, f.completed, f.done, f.queueLen = sources{}, addresses{}, 0, 0
	}
	f.last = max(f.last, in.At)
	if in.Listener != nil {
		f.lis = in.Listener
		f.doors.add(f.lis)
	}
	if o := in.Owner; o.Known() {
		f.owner = o
	}
	if single {
		f.from.add(in.Remote.Addr())
		f.facts = in.Facts
		f.queueLen = max(f.queueLen, in.Facts.SYNQueueLen)
	}
	if cookie {
		f.cookies += n
	} else {
		f.dropped += n
	}
	f.sure = f.sure || in.Flags&event.FlagInferred == 0
	x.Report(r, k, f, in.At, n)
}

// Entry looks which of the sources complete a handshake after all.
func (r *synQueueOverflow) Entry(_ *Engine, c *timeline.Conn, e *timeline.Entry) {
	if e.Kind != timeline.EntryEstablished || len(r.found.m) == 0 || c.Role() != timeline.RoleServer {
		return
	}
	p := r.found.get(overflowKey(c))
	if p == nil || *p == nil {
		return
	}
	if a := c.Remote().Addr(); (*p).from.addresses.has(a) {
		(*p).completed.add(a)
		(*p).done++
	}
}

// What an overflow looks like.
const (
	looksForged  = "flood with forged sources"
	looksFew     = "few sources"
	looksNetwork = "one network"
	looksBurst   = "burst of clients"
	looksUnknown = "unknown"
)

// look says what fits the sources. It takes a number of SYNs to say anything.
func (f *synFlood) look() string {
	const few = 16   // sources, as a burst after a restart has them
	const least = 32 // SYNs
	n := f.from.n()
	different, completed := uint64(len(f.from.addresses.m)), uint64(len(f.completed.m))
	switch {
	case n == 0:
		return looksUnknown
	case different <= few && n > different || f.from.single.share() >= 0.5 && n >= least:
		return looksFew
	case n < least:
		return looksUnknown
	case 2*completed >= different:
		return looksBurst
	case f.from.network.share() >= 0.5:
		return looksNetwork
	case 10*completed <= different && (f.from.addresses.more || 4*different >= 3*n):
		return looksForged
	}
	return looksUnknown
}

func (f *synFlood) Describe(x *Engine, v *Verdict) {
	v.Severity, v.Confidence = Warning, Certain
	if !f.sure {
		v.Confidence = Likely
	}
	v.Subject = Subject{"listener", f.name.String()}
	owner := f.owner
	if f.lis != nil && f.lis.Owner().Known() {
		owner = f.lis.Owner()
	}
	v.Process = process(owner)
	limit := Fact{Key: "queue_limit", Value: int64(f.facts.QueueLimit)}
	names := f.doors.share(v, &limit)
	switch {
	case f.dropped > 0 && f.cookies > 0:
		v.Severity = Error
		v.Story = fmt.Sprintf("SYN queue full: %s and %s", plural(f.cookies, "SYN cookie sent", "SYN cookies sent"), plural(f.dropped, "SYN dropped", "SYNs dropped"))
	case f.dropped > 0:
		v.Severity = Error
		v.Story = fmt.Sprintf("SYN queue full: %s", plural(f.dropped, "SYN dropped", "SYNs dropped"))
	default:
		v.Story = fmt.Sprintf("SYN queue full: %s", plural(f.cookies, "SYN cookie sent", "SYN cookies sent"))
	}
	if names != "" {
		v.Story += ", by listeners of " + names
	}
	looks := f.look()
	completed := uint64(len(f.completed.m))
	different := fmt.Sprintf("%d", len(f.from.addresses.m))
	if f.from.addresses.more {
		different = fmt.Sprintf("more than %d", len(f.from.addresses.m))
	}
	switch looks {
	case looksForged:
		v.Story += fmt.Sprintf("; a flood with forged sources, it seems: %s addresses, %d of which completed a handshake", different, completed)
	case looksFew:
		v.Story += "; from few sources"
		if f.from.single.share() >= 0.5 {
			v.Story += ", most from " + f.from.single.top(1)[0].key.String()
		}
	case looksNetwork:
		v.Story += fmt.Sprintf("; most from %s", f.from.network.top(1)[0].key)
	case looksBurst:
		v.Story += fmt.Sprintf("; a burst of clients, it seems: %s addresses, %d of which completed a handshake", different, completed)
	}
	v.Evidence = Evidence{
		{Key: "queue_len", Value: int64(f.queueLen)},
		limit,
		{Key: "syncookies", Value: int64(f.facts.SYNCookies)},
		{Key: "cookies_sent", Value: int64(f.cookies)},
		{Key: "syn_dropped", Value: int64(f.dropped)},
		f.from.fact("top_sources", f.cookies+f.dropped),
		f.from.addresses.fact("sources"),
		f.completed.fact("completed"),
		{Key: "looks_like", Value: looks},
	}
	if f.from.n() == 0 {
		const why = "they came too fast to look at each"
		for i := range 3 {
			v.Evidence[i].Value, v.Evidence[i].Note = nil, why
		}
	}
	v.Fix = nil
	if f.dropped > 0 && f.facts.SYNCookies == 0 {
		v.Fix = append(v.Fix, "set net.ipv4.tcp_syncookies to 1: with 0 every client is turned away while the queue is full")
	}
	switch looks {
	case looksForged:
		v.Fix = append(v.Fix, docSYNQueueOverflow.Fix[1])
	case looksFew, looksNetwork:
		if 2*f.done >= f.from.n() {
			// As load balancers and NAT do, and no client that never completes.
			v.Story += fmt.Sprintf("; they completed %d handshakes", f.done)
			v.Fix = append(v.Fix, "these sources complete their handshakes, as a load balancer or NAT with many clients behind it does: do not filter them", docSYNQueueOverflow.Fix[2])
			break
		}
		v.Fix = append(v.Fix, "look at the sources: a client that opens connections and never completes them, or hosts whose way back is blocked; filter them if they do it on purpose", docSYNQueueOverflow.Fix[2])
	case looksBurst:
		v.Fix = append(v.Fix, docSYNQueueOverflow.Fix[2])
	default:
		v.Fix = append(v.Fix, docSYNQueueOverflow.Fix[1:]...)
	}
}

// plural writes a number with what it counts.
func plural(n uint64, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
