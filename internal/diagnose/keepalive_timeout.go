package diagnose

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/tcptrace/tcptrace/internal/timeline"
)

const codeKeepaliveTimeout = "keepalive-timeout"

var docKeepaliveTimeout = Doc{
	Code:     codeKeepaliveTimeout,
	Severity: Warning,
	Summary:  "keepalive probes went unanswered, and the kernel ended the connection",
	Meaning: `Nothing had been received for the time that keepalive waits, the kernel asked the peer whether it is still there, as often as the socket allows, and nobody answered. It ended the connection: the application gets ETIMEDOUT at its next call, and a RST goes to the peer, in case it lives after all.

The peer, or the way to it, was gone without a word: power, cable, a crash, a NAT entry or firewall state that was forgotten. Nothing that had been sent was outstanding (that would be retransmission-timeout). A peer that answers a probe with RST is another end: it has lost the connection, see half-open.

Keepalive did its work here. It is a warning because a connection of a living application ended, and because the peer may still believe in its side of it.`,
	Counts: "connections",
	Evidence: []DocKey{
		{"probes", "count", "that went unanswered, the most"},
		{"idle_s", "s", "from the last segment received to the end, the longest"},
		{"errno", "", "ETIMEDOUT, or what an ICMP message said, such as EHOSTUNREACH"},
		{"timers", "", "the socket's keepalive timers: idle time, probes and interval"},
		{"peer_state", "", "of the other end, where it is on this host"},
	},
	Fix: []string{
		"look at the peer and the way to it: did the host go down, does a NAT or firewall forget idle connections sooner than keepalive asks?",
		"against forgetful middleboxes, probe more often than they forget: TCP_KEEPIDLE and TCP_KEEPINTVL of the socket, or net.ipv4.tcp_keepalive_time",
	},
	Counters: []string{"TcpExt.TCPKeepAlive", "TcpExt.TCPAbortOnTimeout", "Tcp.EstabResets"},
	Source:   []string{"net/ipv4/tcp_timer.c: tcp_keepalive_timer()"},
}

// silence reports whether err is what the kernel leaves when it gives up on a
// peer that does not answer: ETIMEDOUT, or what the last ICMP message about it
// said.
func silence(err uint16) bool {
	const errnoNoNetwork, errnoNetUnreach, errnoHostDown, errnoHostUnreach = 64, 101, 112, 113
	switch err {
	case errnoTimedOut, errnoNoNetwork, errnoNetUnreach, errnoHostDown, errnoHostUnreach:
		return true
	}
	return false
}

type keepaliveTimeout struct {
	found groups[Key, *unanswered]
}

func newKeepaliveTimeout() *keepaliveTimeout {
	return &keepaliveTimeout{groups[Key, *unanswered]{max: 4096}}
}

func (*keepaliveTimeout) Code() string { return codeKeepaliveTimeout }
func (*keepaliveTimeout) Doc() Doc     { return docKeepaliveTimeout }

type unanswered struct {
	at      netip.AddrPort
	kind    string
	owner   timeline.Owner
	probes  int
	atLeast bool // probes
	idle    time.Duration
	how     string // idle is known; "" it is not
	timers  string
	errno   uint16
	peer    string
}

// keepaliveEnd returns with which entry the kernel ended c because probes went
// unanswered, nil if it did not.
func keepaliveEnd(c *timeline.Conn) *timeline.Entry {
	closed := c.Find(timeline.EntryClosed)
	if closed == nil || closed.ByProcess() || !silence(closed.Err()) {
		return nil
	}
	if strings.HasSuffix(c.ResetReason(), "KEEPALIVE_TIMEOUT") {
		return closed
	}
	// With data outstanding, other timers run: retransmission, or the probe
	// of a shut window.
	on, known := c.Keepalive()
	if !on || !known || c.Traffic().Unacked > 0 || closed.Backoff() > 0 || closed.Probes() == 0 {
		return nil
	}
	return closed
}

func (r *keepaliveTimeout) Ended(x *Engine, c *timeline.Conn) {
	closed := keepaliveEnd(c)
	if closed == nil {
		return
	}
	key := Key{Netns: c.Netns(), PID: c.Owner().PID}
	var kind string
	key.Addr, kind = place(c)
	p := r.found.make(key)
	if *p == nil {
		*p = &unanswered{at: key.Addr, kind: kind, owner: c.Owner()}
	}
	f := *p
	f.errno = closed.Err()
	n, atLeast := closed.Probes(), false
	var last *timeline.Entry // the newest probe
	for i := range c.Len() {
		if e := c.At(i); e.Kind == timeline.EntryKeepaliveProbe {
			last = e
		}
	}
	if n == 0 && last != nil {
		// The kernel told no number at the end.
		n, atLeast = last.Probes(), true
	}
	f.atLeast = n > f.probes && atLeast || n <= f.probes && f.atLeast
	f.probes = max(f.probes, n)

	idle, interval, count, timers := time.Duration(0), time.Duration(0), uint32(0), false
	if x.tracker != nil && c.SnapshotAt() != 0 { // else they need not be the socket's own
		idle, interval, count, timers = x.tracker.KeepaliveTimers(c)
	}
	if timers {
		f.timers = fmt.Sprintf("%s idle, then %d probes every %s", timeline.Duration(idle), count, timeline.Duration(interval))
	}
	var d time.Duration
	how := ""
	since, known := c.SilentSince()
	switch {
	case timers && n == int(count):
		d, how = idle+time.Duration(n)*interval, "exact"
	case timers && n > 0 && last != nil && last.Until() < closed.At:
		// The first of them was sent after that time, the others at its interval.
		d, how = time.Duration(closed.At-last.Until())+idle+time.Duration(n-1)*interval, "exact"
	case timers && n > 0:
		d, how = idle+time.Duration(n-1)*interval, "at least: until the last probe"
	case known && since < closed.At:
		d, how = time.Duration(closed.At-since), "at most: since the newest snapshot's last segment"
	case last != nil && n > 0:
		// The gap from the last probe to the end is that between probes.
		d, how = time.Duration(n)*time.Duration(max(0, closed.At-last.Until())), "at least: since the first unanswered probe"
	}
	if how != "" && d > f.idle {
		f.idle, f.how = d, how
	}
	f.peer = ""
	if p := c.Peer(); p != nil {
		f.peer = timeline.StateName(p.State())
	}
	x.Report(r, key, f, closed.At, 1, c)
}

func (f *unanswered) Describe(x *Engine, v *Verdict) {
	v.Severity, v.Confidence = Warning, Certain
	v.Subject = Subject{f.kind, destination(f.at)}
	v.Process = process(f.owner)
	whose := "connections"
	if v.Count == 1 {
		whose = "a connection"
	}
	if f.owner.Known() {
		whose += " of " + f.owner.Name()
	}
	probes := Fact{Key: "probes", Value: int64(f.probes)}
	asked := fmt.Sprintf("%d keepalive probes", f.probes)
	switch {
	case f.probes == 0:
		probes = Fact{Key: "probes", Note: "not seen"}
		asked = "keepalive probes"
	case f.probes == 1:
		asked = "a keepalive probe"
	}
	if f.atLeast {
		probes.Note = "at least"
	}
	idle := Fact{Key: "idle_s", Note: "when the last segment was received was not seen"}
	after := ""
	if f.how != "" {
		idle = Fact{Key: "idle_s", Value: seconds(f.idle)}
		after = fmt.Sprintf(" after %s of silence", timeline.Duration(f.idle))
		if f.how != "exact" {
			idle.Note = f.how
			bound, _, _ := strings.Cut(f.how, ":")
			after = fmt.Sprintf(" after %s %s of silence", bound, timeline.Duration(f.idle))
		}
	}
	v.Story = fmt.Sprintf("the kernel ended %s%s: the peer did not answer %s", whose, after, asked)
	timers := Fact{Key: "timers", Value: f.timers}
	if f.timers == "" {
		timers = Fact{Key: "timers", Note: "the socket's own timers were not seen"}
	}
	peer := Fact{Key: "peer_state", Value: f.peer}
	if f.peer == "" {
		peer = Fact{Key: "peer_state", Note: "nothing is known of the other end"}
	}
	v.Evidence = Evidence{
		probes,
		idle,
		{Key: "errno", Value: timeline.Errno(f.errno)},
		timers,
		peer,
	}
	v.Fix = docKeepaliveTimeout.Fix
}
