package diagnose

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/tcptrace/tcptrace/internal/timeline"
)

const codeReconnectLoop = "reconnect-loop"

var docReconnectLoop = Doc{
	Code:     codeReconnectLoop,
	Severity: Error,
	Summary:  "a client process connects to one destination again and again, and the peer ends each connection at once",
	Meaning: `Seen from the client of a server that hangs up: at least 10 connections within 10 s, each ended by the peer's FIN or RST within 100 ms of the handshake, without a request being answered: either nothing was exchanged, or the request got no answer.

Where the peer spoke a few words before it was asked anything, these may be a refusal, such as that of a server at its limit, or all that the service is there for (the agent of a load balancer, the time of day). Where the server is on this host too, it counts if that was found to close immediately. Of a server elsewhere it is information, and only where at least 10 such connections came within a second, as of a client that tries again at once: few services are asked so often.

A request that was answered before the peer closed is ordinary (HTTP with "Connection: close") and not counted, unless the server is on this host too and was found to close immediately. A burst counts as well; where most connections were opened before those before them had ended, the verdict says "opened" and not "reconnected".

` + docCrewMeaning,
	Counts: "connections",
	Evidence: []DocKey{
		{"count", "connections", "so far"},
		{"window_ms", "ms", "from the first connect() to the end of the last of them, since the loop last paused"},
		{"lifetime_ms", "ms", "the longest that one of them lived"},
		{"destination", "", "where to"},
		{"bytes_sent", "bytes", "the most that was sent on one of them"},
		{"bytes_received", "bytes", "the most that was received on one of them"},
		{"ended_by", "", "FIN, RST or both"},
		docCrew[0], docCrew[1],
	},
	Fix: []string{
		"look at the server: it accepts and hangs up, often for a connection limit of its own; run tcptrace there",
		"let the client wait longer after each failure (exponential backoff), and take the server out of rotation",
	},
	Source: []string{"net/ipv4/tcp_input.c: tcp_fin(), tcp_reset()"},
}

const (
	loopLeast    = 10
	loopWindow   = 10 * time.Second
	loopLifetime = 100 * time.Millisecond
	loopRefusal  = 256         // bytes: a longer greeting is no refusal
	loopRefused  = time.Second // so many in this are hardly a service's daily work
	loopDoubts   = 8
	loopWords    = 64 // doubts where nothing was asked: all, as a rule, until the server is found out
)

type reconnectLoop struct {
	hangups *immediateClose
	found   groups[Key, *loop]
}

func newReconnectLoop(hangups *immediateClose) *reconnectLoop {
	return &reconnectLoop{hangups, groups[Key, *loop]{max: 4096}}
}

func (*reconnectLoop) Code() string { return codeReconnectLoop }
func (*reconnectLoop) Doc() Doc     { return docReconnectLoop }

// loop is what the processes of one name did towards one destination.
type loop struct {
	to      netip.AddrPort
	who     crew
	refused bool // by words that may be no refusal

	good   uint64         // connections that went otherwise, so far
	doubts []doubtful     // of these, the newest that may not have
	recent []reconnection // the last loopLeast that were ended at once
	run    uint64         // how many in a row without a pause
	began  int64          // when the first of these was opened
	last   int64          // when the last of them ended
	among  uint64         // of the run, opened before the one told before had ended
	unsaid uint64

	count          uint64
	lifetime       time.Duration
	sent, received uint64
	fin, rst       bool
}

// doubtful is a connection that was closed at once by a server that had said
// something.
type doubtful struct {
	c        *timeline.Conn
	at       int64
	fin      bool
	lifetime time.Duration
}

type reconnection struct {
	at   int64
	good uint64 // loop.good at that time
}

func (r *reconnectLoop) Ended(x *Engine, c *timeline.Conn) {
	if c.Role() != timeline.RoleClient || c.Evicted() {
		return
	}
	k := x.crewKey(c.Netns(), c.Owner())
	k.Addr = c.Remote()
	p := r.found.get(k)
	if p != nil {
		r.reconsider(x, *p)
	}
	end, lifetime, answer := r.endedAtOnce(x, c)
	if answer == refused { // apart from what is sure
		k.What = "refused"
		p = r.found.get(k)
	}
	if p == nil && answer == answered && c.Peer() == nil || answer == otherwise && p == nil {
		return
	}
	p = r.found.make(k)
	if *p == nil {
		*p = &loop{to: c.Remote(), refused: answer == refused}
	}
	l := *p
	if answer == answered || answer == otherwise {
		l.good++
		if answer == answered && c.Peer() != nil {
			l.doubt(c, end, lifetime)
		}
		return
	}
	l.add(c, end.At, end.Kind == timeline.EntryFINReceived, lifetime)
	oldest := l.recent[0]
	if len(l.recent) < loopLeast || l.last-oldest.at > l.window() || l.good-oldest.good > loopLeast {
		return
	}
	n := l.unsaid
	l.unsaid = 0
	l.count += n
	x.Report(r, k, l, l.last, n, c)
}

// window is the time in which loopLeast make a loop.
func (l *loop) window() int64 {
	if l.refused {
		return int64(loopRefused)
	}
	return int64(loopWindow)
}

// add counts a connection that was ended at once.
func (l *loop) add(c *timeline.Conn, at int64, fin bool, lifetime time.Duration) {
	if at-l.last > l.window() || l.run == 0 {
		l.run, l.began, l.among, l.unsaid = 0, c.Seen(), 0, 0
		l.recent = l.recent[:0]
	}
	if l.run > 0 && c.Seen() < l.last {
		l.among++
	}
	l.run++
	l.unsaid++
	l.began, l.last = min(l.began, c.Seen()), max(l.last, at)
	if len(l.recent) >= loopLeast {
		l.recent = l.recent[:copy(l.recent, l.recent[1:])]
	}
	l.recent = append(l.recent, reconnection{at, l.good})
	if l.run == 1 {
		l.lifetime, l.sent, l.received, l.fin, l.rst = 0, 0, 0, false, false
	}
	t := c.Traffic()
	l.who.add(c.Owner())
	l.lifetime = max(l.lifetime, lifetime)
	l.sent, l.received = max(l.sent, t.BytesSent), max(l.received, t.BytesReceived)
	l.fin = l.fin || fin
	l.rst = l.rst || !fin
}

// doubt remembers a connection whose few words may turn out to be no answer:
// the server, on this host, is found to close immediately only after some.
func (l *loop) doubt(c *timeline.Conn, end *timeline.Entry, lifetime time.Duration) {
	most := loopDoubts
	if c.Traffic().BytesSent == 0 {
		most = loopWords
	}
	if len(l.doubts) >= most {
		l.doubts = l.doubts[:copy(l.doubts, l.doubts[1:])]
	}
	l.doubts = append(l.doubts, doubtful{c, end.At, end.Kind == timeline.EntryFINReceived, lifetime})
}

// reconsider counts those of the doubtful whose server was found out since.
func (r *reconnectLoop) reconsider(x *Engine, l *loop) {
	keep := l.doubts[:0]
	for _, d := range l.doubts {
		if !r.hangups.mark(x, d.c.Peer()) {
			keep = append(keep, d)
			continue
		}
		l.good--
		l.add(d.c, d.at, d.fin, d.lifetime)
	}
	clear(l.doubts[len(keep):])
	l.doubts = keep
}

// ending is how a connection ended, from its client's point of view.
type ending uint8

const (
	otherwise ending = iota
	atOnce           // by the peer, right after the handshake, with no request answered
	refused          // the same, but there were a few words, which may be a refusal
	answered         // the same, but there was an answer, or what looks like one
)

// endedAtOnce tells how c ended; with the entry that ended it and the time from
// the handshake to that, unless otherwise.
func (r *reconnectLoop) endedAtOnce(x *Engine, c *timeline.Conn) (end *timeline.Entry, lifetime time.Duration, how ending) {
	est := c.Find(timeline.EntryEstablished)
	end = c.Find(timeline.EntryFINReceived, timeline.EntryRSTReceived)
	if est == nil || end == nil || c.Closer() != timeline.CloserRemote {
		return nil, 0, otherwise
	}
	lifetime = end.Since(est)
	if lifetime > loopLifetime || lifetime < 0 {
		return nil, 0, otherwise
	}
	p := c.Peer()
	if p != nil && p.Tag&(1<<codeIndex[codeAcceptQueueOverflow]) != 0 {
		return nil, 0, otherwise // that is the cause, and has a verdict of its own
	}
	t := c.Traffic()
	switch {
	case t.BytesReceived == 0 || r.hangups.mark(x, p):
		return end, lifetime, atOnce
	case p == nil && t.BytesSent == 0 && t.BytesReceived <= loopRefusal:
		return end, lifetime, refused
	}
	return end, lifetime, answered
}

// since is when the loop began.
func (l *loop) since() int64 { return l.began }

func (l *loop) Describe(x *Engine, v *Verdict) {
	window := time.Duration(l.last - l.began)
	v.Severity, v.Confidence = Error, Certain
	said := "nothing exchanged"
	switch {
	case l.sent > 0 && l.received > 0:
		v.Confidence = Likely
		said = fmt.Sprintf("at most %s sent and %s received", Bytes(l.sent), Bytes(l.received))
	case l.received > 0:
		v.Confidence = Likely
		said = fmt.Sprintf("at most %s received, nothing sent", Bytes(l.received))
	case l.sent > 0:
		v.Confidence = Likely
		said = fmt.Sprintf("at most %s sent, no answer", Bytes(l.sent))
	}
	how, by := "closed", "FIN"
	switch {
	case l.rst && l.fin:
		how, by = "closed or reset", "both"
	case l.rst:
		how, by = "reset", "RST"
	}
	v.Subject = Subject{"peer", destination(l.to)}
	v.Process = process(l.who.last)
	did := fmt.Sprintf("reconnected %d times", l.run)
	if 2*l.among > l.run { // it did not wait for the one to end
		did = fmt.Sprintf("opened %d connections", l.run)
	}
	v.Story = fmt.Sprintf("%s %s in %s to %s, each %s by the peer within %s, %s",
		l.who.name(), did, timeline.Duration(window), destination(l.to), how, timeline.Duration(l.lifetime), said)
	v.Fix = docReconnectLoop.Fix
	if l.refused {
		v.Severity, v.Confidence, v.Which = Info, Suspected, "refused"
		v.Story += ": refused, unless a few words are all that the service is for"
		v.Fix = []string{"see what the server says before it closes (`nc HOST PORT`): a refusal names its reason, such as a limit of connections", docReconnectLoop.Fix[1]}
	}
	v.Evidence = Evidence{
		{Key: "count", Value: int64(l.count)},
		{Key: "window_ms", Value: milliseconds(window)},
		{Key: "lifetime_ms", Value: milliseconds(l.lifetime)},
		{Key: "destination", Value: destination(l.to)},
		{Key: "bytes_sent", Value: int64(l.sent)},
		{Key: "bytes_received", Value: int64(l.received)},
		{Key: "ended_by", Value: by},
	}
	v.Evidence = append(v.Evidence, l.who.facts()...)
}
