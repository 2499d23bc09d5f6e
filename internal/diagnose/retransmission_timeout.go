package diagnose

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/tcptrace/tcptrace/internal/timeline"
	"github.com/tcptrace/tcptrace/tracer/event"
)

const codeRetransmissionTimeout = "retransmission-timeout"

var docRetransmissionTimeout = Doc{
	Code:     codeRetransmissionTimeout,
	Severity: Error,
	Summary:  "data went unacknowledged until the kernel gave up, or for long",
	Meaning: `The kernel sends unacknowledged data again after about 0.2 s, then after twice as long each time, up to 120 s (net.ipv4.tcp_rto_max_ms, since Linux 6.15). It gives up after net.ipv4.tcp_retries2 rounds (15: between 13 and 30 minutes), or when the socket's own TCP_USER_TIMEOUT has passed, and the application gets ETIMEDOUT, or what the last ICMP message said (EHOSTUNREACH, ENETUNREACH). Which of the two limits it was, the kernel does not say; only where it gave up long before tcp_retries2 allows, after fewer rounds, it must have been the other, unless that setting was lowered meanwhile. What had not been acknowledged may or may not have reached the peer.

While the kernel still tries, it is a warning, once data has been unacknowledged for longer than --backoff (15 s: that is after six or seven attempts; losses that matter to nobody are over after one or two). It is an error when the kernel gives up while a process holds the socket. Where all had closed already it stays a warning: clients that vanish in the middle of an answer are daily life of a server on the internet, and nobody waits for what they did not take.

The peer, or the way to it, was gone without a word. Not this: SYNs that are never answered (connect-timeout), a peer that keeps its window shut (zero-window), keepalive without data outstanding (keepalive-timeout), a lone FIN that is not acknowledged (fin-wait-stuck), a request that is dropped because the accept queue of a listener on this host is full (accept-queue-overflow).`,
	Counts: "connections",
	Evidence: []DocKey{
		{"retransmits", "count", "how often data was sent again in a row, the most; by the kernel's count also what was not seen"},
		{"unacked_bytes", "bytes", "written and not acknowledged, the most"},
		{"waited_ms", "ms", "from the first retransmission to the end, or to the newest one, the longest"},
		{"gave_up", "count", "connections that the kernel has given up; the rest lived when last seen"},
		{"errno", "", "ETIMEDOUT, or what an ICMP message said; null while the kernel tries"},
		{"limit", "", "null: the kernel does not say; the note tells which it can have been"},
		{"orphan", "", "the process had closed already: nobody was told"},
	},
	Fix: []string{
		"look at the peer and the way to it: the host, its firewall, the routes, and whether only large segments get lost (path MTU)",
		"if the application must notice sooner, set TCP_USER_TIMEOUT on its sockets, or a timeout of its own",
	},
	Counters: []string{"TcpExt.TCPTimeouts", "Tcp.RetransSegs", "TcpExt.TCPAbortOnTimeout"},
	Source:   []string{"net/ipv4/tcp_timer.c: tcp_retransmit_timer(), tcp_write_timeout(), retransmits_timed_out()"},
}

// retransmissionTimeout follows runs of retransmissions without progress.
type retransmissionTimeout struct {
	found groups[Key, *silentPeers]
	runs  groups[*timeline.Conn, backoffRun]
}

// backoffRun is a run of retransmissions in which nothing was acknowledged.
type backoffRun struct {
	begun   int64  // of the first retransmission
	last    int64  // the newest
	sent    uint64 // bytes sent in all, as long as there was no progress
	unacked uint32
	n       int  // retransmissions
	backoff int  // the kernel's number of the newest, 0 not known
	whole   bool // the first that was seen was the first
	told    bool
}

// timerPause is longer than any between two retransmissions or two probes in a
// row (TCP_RTO_MAX is 120 s): where more passed, the machine slept, or events were
// lost.
const timerPause = 150 * time.Second

func newRetransmissionTimeout() *retransmissionTimeout {
	return &retransmissionTimeout{
		found: groups[Key, *silentPeers]{max: 4096},
		runs:  groups[*timeline.Conn, backoffRun]{max: 4096},
	}
}

func (*retransmissionTimeout) Code() string { return codeRetransmissionTimeout }
func (*retransmissionTimeout) Doc() Doc     { return docRetransmissionTimeout }

type silentPeers struct {
	at          netip.AddrPort
	kind        string
	owner       timeline.Owner
	retransmits int
	unacked     uint32
	waited      time.Duration
	waitKnown   bool
	waitPart    bool // it began before that was seen
	gaveUp      int64
	errno       uint16
	user        bool // tcp_retries2, as last known, allows far more
	retries2    int
	orphan      bool
	heard       bool // of one that was given up, a process held the socket
}

// Entry looks at each retransmission: at that moment the data is surely not
// acknowledged.
func (r *retransmissionTimeout) Entry(x *Engine, c *timeline.Conn, e *timeline.Entry) {
	if e.Kind != timeline.EntryRetransmitted && e.Kind != timeline.EntryRTO {
		return
	}
	t := c.Traffic()
	if t.Unacked == 0 { // a FIN alone
		return
	}
	// A peer that shuts its window on data that is on its way answers each
	// retransmission: zero-window.
	if shut, _ := c.Window(); shut {
		return
	}
	if atFullQueue(c) {
		return
	}
	at := c.Last()
	run := r.runs.make(c)
	again := e.Kind == timeline.EntryRetransmitted
	// Whatever is acknowledged makes room for new data to be sent, or leaves
	// less of it unacknowledged, and has the kernel count anew.
	if run.begun == 0 || t.BytesSent > run.sent || t.Unacked < run.unacked ||
		again && e.Backoff() < run.backoff || at-run.last > int64(timerPause) {
		*run = backoffRun{begun: at, told: run.told, whole: e.Backoff() <= 1}
	}
	run.last, run.sent, run.unacked = at, t.BytesSent, t.Unacked
	if again {
		run.n++
		run.backoff = e.Backoff()
	}
	if at-run.begun < int64(x.o.Backoff) || e.Backoff() == 0 {
		return
	}
	f, key := r.finding(c)
	f.take(max(run.n, e.Backoff()), t.Unacked, time.Duration(at-run.begun), run)
	var n uint64
	if !run.told {
		run.told, n = true, 1
	}
	x.Report(r, key, f, at, n, c)
}

// atFullQueue reports whether the other end is a request on this host that a full
// accept queue keeps from becoming a socket: what comes for it is dropped there.
func atFullQueue(c *timeline.Conn) bool {
	p := c.Peer()
	return p != nil && p.Phase() < timeline.PhaseSocket &&
		(p.QueueWasFull() || p.Find(timeline.EntryRequestDropped) != nil)
}

// Ended tells of those that the kernel gave up.
func (r *retransmissionTimeout) Ended(x *Engine, c *timeline.Conn) {
	closed := retransmissionEnd(c)
	run := r.runs.get(c)
	r.runs.drop(c)
	if closed == nil || atFullQueue(c) {
		return
	}
	f, key := r.finding(c)
	n := uint64(1)
	retransmits := closed.Backoff() // at least
	var waited time.Duration
	if run != nil && (run.begun == 0 || run.begun > closed.At) {
		run = nil
	}
	if run != nil {
		waited = time.Duration(closed.At - run.begun)
		retransmits = max(retransmits, run.n)
		if run.told {
			n = 0
		}
	}
	f.take(retransmits, c.Traffic().Unacked, waited, run)
	f.gaveUp++
	f.errno = closed.Err()
	f.orphan = c.Orphan()
	f.heard = f.heard || !f.orphan
	if s := x.netns[c.Netns()]; s.Known {
		f.retries2 = s.Sysctls.Retries2
		f.user = run != nil && run.whole && !f.orphan && closed.Err() == errnoTimedOut &&
			closed.Backoff() < f.retries2 && waited < leastPatience(f.retries2)/2
	}
	x.Report(r, key, f, closed.At, n, c)
}

// retransmissionEnd returns with which entry the kernel gave c up because data
// was not acknowledged, nil if it did not.
func retransmissionEnd(c *timeline.Conn) *timeline.Entry {
	closed := c.Find(timeline.EntryClosed)
	if closed == nil || closed.ByProcess() || !silence(closed.Err()) || c.Traffic().Unacked == 0 {
		return nil
	}
	switch closed.Old() {
	case event.StateEstablished, event.StateCloseWait, event.StateFinWait1, event.StateClosing, event.StateLastAck:
	default:
		return nil
	}
	// Where it is the probes of a shut window that went unanswered, the
	// retransmission timer did not run.
	if closed.Backoff() == 0 {
		return nil
	}
	return closed
}

// leastPatience is how long net.ipv4.tcp_retries2 has the kernel try at least,
// as it computes it itself (tcp_model_timeout), for the smallest first timeout
// of 200 ms.
func leastPatience(retries2 int) time.Duration {
	const first, most = 200 * time.Millisecond, 120 * time.Second
	const doubling = 9 // ilog2(most/first)
	if retries2 <= doubling {
		return (2<<max(retries2, 0) - 1) * first
	}
	return (2<<doubling-1)*first + time.Duration(min(retries2, 255)-doubling)*most
}

func (r *retransmissionTimeout) finding(c *timeline.Conn) (*silentPeers, Key) {
	key := Key{Netns: c.Netns(), PID: c.Owner().PID}
	var kind string
	key.Addr, kind = place(c)
	p := r.found.make(key)
	if *p == nil {
		*p = &silentPeers{at: key.Addr, kind: kind, owner: c.Owner()}
	}
	return *p, key
}

// take takes one connection in; run is nil where it was not seen.
func (f *silentPeers) take(retransmits int, unacked uint32, waited time.Duration, run *backoffRun) {
	f.retransmits = max(f.retransmits, retransmits)
	f.unacked = max(f.unacked, unacked)
	if run == nil {
		return
	}
	if waited >= f.waited {
		f.waited, f.waitPart = waited, !run.whole
	}
	f.waitKnown = true
}

func (f *silentPeers) Describe(x *Engine, v *Verdict) {
	v.Severity, v.Confidence = Warning, Likely
	if f.gaveUp > 0 {
		v.Confidence = Certain
		if f.heard {
			v.Severity = Error
		}
	}
	v.Subject = Subject{f.kind, destination(f.at)}
	v.Process = process(f.owner)
	whose := ""
	if f.owner.Known() {
		whose = " of " + f.owner.Name()
	}
	if v.Count > 1 {
		whose += fmt.Sprintf(", on the worst of %d connections,", v.Count)
	}
	waited := Fact{Key: "waited_ms", Value: int64(f.waited / time.Millisecond)}
	how := fmt.Sprintf("sent again %s in %s", times(f.retransmits), timeline.Duration(f.waited))
	switch {
	case f.waitKnown && f.waitPart:
		waited.Note = "at least: it began before that was seen"
		how = fmt.Sprintf("sent again %s in at least %s", times(f.retransmits), timeline.Duration(f.waited))
	case !f.waitKnown:
		waited = Fact{Key: "waited_ms", Note: "the retransmissions were not seen"}
		how = fmt.Sprintf("sent again at least %s", times(f.retransmits))
	}
	errno := Fact{Key: "errno", Note: "the kernel had not given up when last seen"}
	limit := Fact{Key: "limit", Note: "the kernel had not given up when last seen"}
	if f.gaveUp > 0 {
		errno = Fact{Key: "errno", Value: timeline.Errno(f.errno)}
		v.Story = fmt.Sprintf("%s%s went unacknowledged, %s, and the kernel gave up (%s)",
			Bytes(uint64(f.unacked)), whose, how, timeline.Errno(f.errno))
		if f.orphan {
			v.Story += ", with the socket closed already"
		}
		limit.Note = "tcp_retries2 or the socket's TCP_USER_TIMEOUT: the kernel does not say"
		switch {
		case f.orphan:
			limit.Note = "net.ipv4.tcp_orphan_retries (0 means 8), since the process had closed, or the socket's TCP_USER_TIMEOUT: the kernel does not say"
		case f.user:
			limit.Note = fmt.Sprintf("the socket's TCP_USER_TIMEOUT, unless tcp_retries2 was lowered since tracing began: %d then, which is at least %s",
				f.retries2, timeline.Duration(leastPatience(f.retries2)))
		}
	} else {
		v.Story = fmt.Sprintf("%s%s went unacknowledged, %s: the peer or the way to it is gone, or was for so long",
			Bytes(uint64(f.unacked)), whose, how)
	}
	v.Evidence = Evidence{
		{Key: "retransmits", Value: int64(f.retransmits)},
		{Key: "unacked_bytes", Value: int64(f.unacked)},
		waited,
		{Key: "gave_up", Value: f.gaveUp},
		errno,
		limit,
		{Key: "orphan", Value: f.orphan},
	}
	v.Fix = docRetransmissionTimeout.Fix
}
