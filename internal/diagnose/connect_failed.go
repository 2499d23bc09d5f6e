package diagnose

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/tcptrace/tcptrace/internal/timeline"
)

// Two verdicts on connect(): the SYN was answered by RST, or not at all.

const (
	codeConnectRefused = "connect-refused"
	codeConnectTimeout = "connect-timeout"

	errnoTimedOut = 110
	errnoRefused  = 111
)

var docConnectRefused = Doc{
	Code:     codeConnectRefused,
	Severity: Warning,
	Summary:  "our SYN was answered by RST: nobody listens there, or a firewall rejects",
	Meaning: `connect() failed with ECONNREFUSED. The destination is reachable and said no: nothing listens on that port and address, or a firewall answers for it. Where a rule of this host itself rejects what goes out, the SYN never left: that is said instead, local-drop names the rule's drop, and this verdict is information.

It is a warning: programs probe ports on purpose, and try one address after another.

` + docCrewMeaning,
	Counts: "connections",
	Evidence: []DocKey{
		{"answered_by", "", "RST; null where none was seen, as with an ICMP error (a firewall's REJECT); this host where its own rule rejected the SYN on its way out"},
		{"errno", "", "111"},
		{"errno_name", "", "ECONNREFUSED"},
		{"destination", "", "where to"},
		{"after_ms", "ms", "from the SYN to the RST, the longest"},
		docCrew[0], docCrew[1],
	},
	Fix: []string{
		"check that the service runs and listens on that address: `ss -ltn` there (a service bound to 127.0.0.1 refuses other addresses)",
		"check for a firewall that rejects with a TCP reset",
	},
	Counters: []string{"Tcp.AttemptFails"},
	Source:   []string{"net/ipv4/tcp_input.c: tcp_rcv_synsent_state_process(), tcp_reset()"},
}

var docConnectTimeout = Doc{
	Code:     codeConnectTimeout,
	Severity: Error,
	Summary:  "our SYN was never answered",
	Meaning: `The SYN was sent again and again (net.ipv4.tcp_syn_retries times, after 1 s, 2 s, 4 s, ...) until the kernel gave up with ETIMEDOUT, or until the application gave up before that. An application that gives up before the first retransmission is not reported: trying two addresses in parallel looks like that.

From this host it cannot be told whether the SYN or its answer was lost on the way, dropped by a firewall, or dropped by a listener whose accept queue is full. Where this host itself dropped it, or the listener is on this host too, that is known: local-drop or accept-queue-overflow names the cause then, and this verdict is information. Where segments came that acknowledge what this host never sent, which it answers by RST, the destination is up and takes the SYN for part of another connection: that is said instead. So it is where the kernel (6.12 and later) says that it refused the answer for a timestamp that this host never sent.`,
	Counts: "connections",
	Evidence: []DocKey{
		{"syn_retransmits", "count", "how often the SYN was sent again, the most"},
		{"syn_retries", "count", "how often it may be: net.ipv4.tcp_syn_retries or the socket's own TCP_SYNCNT (the kernel may send a few more, net.ipv4.tcp_syn_linear_timeouts)"},
		{"waited_ms", "ms", "from the SYN to the end, the longest"},
		{"destination", "", "where to"},
		{"gave_up", "", "who ended it: the kernel (ETIMEDOUT), the application, or both"},
		{"listener", "", "what the listener did, where it is on this host too; else null"},
		docCrew[0], docCrew[1],
	},
	Fix: []string{
		"check the way to the destination: routing, firewalls and security groups that drop silently, and that the host is up",
		"run tcptrace at the destination: a SYN that arrives at a full accept queue shows there",
	},
	Counters: []string{"TcpExt.TCPTimeouts", "TcpExt.TCPSynRetrans", "Tcp.AttemptFails"},
	Source:   []string{"net/ipv4/tcp_timer.c: tcp_write_timeout()"},
}

func connectKey(c *timeline.Conn) Key {
	return Key{Netns: c.Netns(), PID: c.Owner().PID, Addr: c.Remote()}
}

// destinationKey is connectKey for all processes of the name.
func destinationKey(x *Engine, c *timeline.Conn) Key {
	k := x.crewKey(c.Netns(), c.Owner())
	k.Addr = c.Remote()
	return k
}

type connectRefused struct {
	found groups[Key, *refusals]
}

func newConnectRefused() *connectRefused {
	return &connectRefused{groups[Key, *refusals]{max: 4096}}
}

func (*connectRefused) Code() string { return codeConnectRefused }
func (*connectRefused) Doc() Doc     { return docConnectRefused }

type refusals struct {
	to    netip.AddrPort
	here  bool // by this host itself, in the destination's name
	who   crew
	count uint64
	rsts  uint64 // of these, how many by one that was seen
	after time.Duration
	known bool // after
}

func (r *connectRefused) Entry(x *Engine, c *timeline.Conn, e *timeline.Entry) {
	if e.Kind != timeline.EntryConnectFailed || e.Err() != errnoRefused {
		return
	}
	key := destinationKey(x, c)
	here := refusedHere(c, e)
	if here {
		key.What = "here"
	}
	p := r.found.make(key)
	if *p == nil {
		*p = &refusals{to: c.Remote(), here: here}
	}
	f := *p
	f.who.add(c.Owner())
	f.count++
	if c.Find(timeline.EntryRSTReceived) != nil {
		f.rsts++
	}
	if syn := c.Find(timeline.EntrySYNSent); syn != nil {
		f.after, f.known = max(f.after, e.Since(syn)), true
	}
	x.Report(r, key, f, e.At, 1, c)
}

// refusedHere reports whether a rule of this host refused c, which ended by e: a
// rule that rejects drops the SYN on its way out, then answers in the
// destination's name (nf_send_reset, nf_send_unreach).
func refusedHere(c *timeline.Conn, e *timeline.Entry) bool {
	var syn, dropped int64
	for i := range c.Len() {
		switch x := c.At(i); {
		case x.At > e.At:
		case x.Kind == timeline.EntrySYNSent, x.Kind == timeline.EntrySYNRetransmitted:
			syn = max(syn, x.Until())
		case x.DroppedSYN() && x.Outbound():
			dropped = max(dropped, x.Until())
		}
	}
	const slack = int64(10 * time.Millisecond) // of two events that tell of one SYN
	return dropped != 0 && dropped >= syn-slack && c.Tag&(1<<codeIndex[codeLocalDrop]) != 0
}

func (f *refusals) Describe(x *Engine, v *Verdict) {
	v.Severity, v.Confidence = Warning, Certain
	v.Subject = Subject{"peer", destination(f.to)}
	v.Process = process(f.who.last)
	v.Story = fmt.Sprintf("connection refused: %s answered the SYN of %s by RST", destination(f.to), f.who.name())
	by := Fact{Key: "answered_by", Value: "RST"}
	v.Fix = docConnectRefused.Fix
	switch {
	case f.here:
		v.Which = "by this host"
		// One cause, not two warnings.
		v.Severity, v.Confidence = Info, Likely
		v.Story = fmt.Sprintf("connection to %s refused by this host itself: the SYN of %s was dropped on its way out, by a rule that rejects: see local-drop", destination(f.to), f.who.name())
		v.Fix = []string{"see the verdict about the drop: " + codeLocalDrop}
		by = Fact{Key: by.Key, Value: "this host"}
	case f.rsts == f.count:
	case f.rsts > 0:
		v.Story += fmt.Sprintf(" in %d of %d; in the others by no RST that was seen (a firewall that rejects by ICMP does so)", f.rsts, f.count)
	default:
		v.Confidence = Likely
		v.Story = fmt.Sprintf("connection to %s refused: the SYN of %s was answered, but by no RST that was seen: a firewall that rejects by ICMP does so", destination(f.to), f.who.name())
		by = Fact{Key: by.Key, Note: "no RST was seen; an ICMP error, it seems"}
	}
	after := Fact{Key: "after_ms", Note: "the SYN was sent before tracing began"}
	if f.known {
		after = Fact{Key: "after_ms", Value: milliseconds(f.after)}
	}
	v.Evidence = Evidence{
		by,
		{Key: "errno", Value: int64(errnoRefused)},
		{Key: "errno_name", Value: timeline.Errno(errnoRefused)},
		{Key: "destination", Value: destination(f.to)},
		after,
	}
	v.Evidence = append(v.Evidence, f.who.facts()...)
}

type connectTimeout struct {
	found groups[Key, *timeouts]
}

func newConnectTimeout() *connectTimeout {
	return &connectTimeout{groups[Key, *timeouts]{max: 4096}}
}

func (*connectTimeout) Code() string { return codeConnectTimeout }
func (*connectTimeout) Doc() Doc     { return docConnectTimeout }

type timeouts struct {
	to                  netip.AddrPort
	who                 crew
	retransmits         int
	retries             int
	waited              time.Duration
	kernel, application bool
	full                bool // the listener is here, and its accept queue was full
	dropped             bool // this host dropped the SYN or its answer
	answered            bool // the listener is here, and sent SYN-ACKs
	stray               bool // what came in answer belonged to another connection
	echo                bool // what came in answer echoed a timestamp that was never sent
}

// Ended waits for the listener's side of the story, where that is here too.
func (r *connectTimeout) Ended(x *Engine, c *timeline.Conn) {
	e := c.Find(timeline.EntryConnectFailed)
	if e == nil || e.NoPort() {
		return
	}
	n := max(e.SYNRetransmissions(), c.Total(timeline.EntrySYNRetransmitted))
	if e.Err() != errnoTimedOut && (e.Err() != 0 || n == 0) {
		return
	}
	// The listener's side of the story, where that is here too.
	key := destinationKey(x, c)
	full := c.Tag&(1<<codeIndex[codeAcceptQueueOverflow]) != 0
	dropped := !full && c.Tag&(1<<codeIndex[codeLocalDrop]) != 0
	answered := false
	if p := c.Peer(); p != nil && !full && !dropped {
		answered = p.Find(timeline.EntrySYNACKRetransmitted, timeline.EntryEstablished) != nil
	}
	echo := !full && !dropped && !answered && strangeEcho(c)
	stray := !full && !dropped && !answered && !echo && strayAnswers(c)
	switch {
	case full:
		key.What = "full"
	case dropped:
		key.What = "dropped"
	case answered:
		key.What = "answered"
	case echo:
		key.What = "echo"
	case stray:
		key.What = "stray"
	}
	p := r.found.make(key)
	if *p == nil {
		*p = &timeouts{to: c.Remote(), full: full, dropped: dropped, answered: answered, stray: stray, echo: echo}
	}
	f := *p
	f.who.add(c.Owner())
	f.retransmits = max(f.retransmits, n)
	f.retries = max(f.retries, e.SYNRetries())
	if syn := c.Find(timeline.EntrySYNSent); syn != nil {
		f.waited = max(f.waited, e.Since(syn))
	}
	if e.Err() == errnoTimedOut {
		f.kernel = true
	} else {
		f.application = true
	}
	x.Report(r, key, f, e.At, 1, c)
}

// strayAnswers reports whether c, which did not get through, was answered all the
// same: in SYN_SENT the kernel sends RST only to a segment that acknowledges what
// c never sent, or (see strangeEcho) echoes a timestamp that it never sent.
func strayAnswers(c *timeline.Conn) bool {
	return c.Find(timeline.EntryRSTSent) != nil
}

// strangeEcho reports whether the kernel named the latter as its reason.
func strangeEcho(c *timeline.Conn) bool {
	return strayAnswers(c) && strings.HasSuffix(c.ResetReason(), "RFC7323_PAWS")
}

func (f *timeouts) Describe(x *Engine, v *Verdict) {
	v.Severity, v.Confidence = Error, Certain
	v.Subject = Subject{"peer", destination(f.to)}
	v.Process = process(f.who.last)
	by := "kernel"
	end := "then the kernel gave up (ETIMEDOUT)"
	switch {
	case f.kernel && f.application:
		by, end = "both", "then the application or the kernel gave up"
	case f.application:
		by, end = "application", "then the application gave up"
	}
	waited := Fact{Key: "waited_ms", Value: int64(f.waited / time.Millisecond)}
	in := " in " + timeline.Duration(f.waited)
	if f.waited == 0 {
		waited = Fact{Key: "waited_ms", Note: "the SYN was sent before tracing began"}
		in = ""
	}
	v.Story = fmt.Sprintf("%s never answered %s: SYN sent again %s%s, %s",
		destination(f.to), f.who.name(), times(f.retransmits), in, end)
	v.Fix = docConnectTimeout.Fix
	other := Fact{Key: "listener", Note: "nothing of it was seen on this host"}
	switch {
	case f.full:
		v.Which = "accept queue full"
		// One cause, not two errors.
		v.Severity = Info
		v.Story += ": see accept-queue-overflow at the listener, on this host"
		v.Fix = []string{"see the verdict about the listener: " + codeAcceptQueueOverflow}
		other = Fact{Key: "listener", Value: "dropped the SYN: accept queue full"}
	case f.dropped:
		v.Which = "dropped on this host"
		// One cause, not two errors.
		v.Severity = Info
		v.Story += ": see local-drop, this host dropped the SYN or its answer"
		v.Fix = []string{"see the verdict about the drop: " + codeLocalDrop}
		other.Note += "; this host dropped the SYN or its answer"
	case f.answered:
		v.Which = "SYN-ACK lost"
		v.Story += "; the listener, on this host, did answer: its SYN-ACK got lost"
		v.Fix = []string{"look for what drops SYN-ACKs between the two, on this host: netfilter rules, reverse path filtering, routes of the namespaces"}
		other = Fact{Key: "listener", Value: "sent SYN-ACKs"}
	case f.echo:
		v.Which = "answered with strange timestamps"
		v.Story = fmt.Sprintf("%s answered %s only with timestamps that this host never sent, which it refused with RST: SYN sent again %s%s, %s",
			destination(f.to), f.who.name(), times(f.retransmits), in, end)
		v.Fix = []string{
			"look for what changes TCP timestamps on the way: a SYN proxy, a load balancer, a firewall (TcpExt.PAWSActive counts such answers)",
			"until that is mended, net.ipv4.tcp_timestamps=0 here avoids it",
		}
	case f.stray:
		v.Which = "answered for another connection"
		if !x.o.Capabilities.HasRSTReason {
			v.Confidence = Likely // it may have been for its timestamps
		}
		v.Story = fmt.Sprintf("%s answered %s only with segments of another connection, which this host answered with RST: SYN sent again %s%s, %s",
			destination(f.to), f.who.name(), times(f.retransmits), in, end)
		v.Fix = []string{
			"the host is up, and holds another connection (or TIME_WAIT) of this address and port: look there with `ss -tan`",
			"find out who else uses this address (NAT, a host that was restarted or cloned), and whether a firewall on the way drops the RSTs that would end the old connection",
		}
	}
	retries := Fact{Key: "syn_retries", Value: int64(f.retries)}
	if f.retries == 0 {
		retries = Fact{Key: "syn_retries", Note: "not seen"}
	}
	v.Evidence = Evidence{
		{Key: "syn_retransmits", Value: int64(f.retransmits)},
		retries,
		waited,
		{Key: "destination", Value: destination(f.to)},
		{Key: "gave_up", Value: by},
		other,
	}
	v.Evidence = append(v.Evidence, f.who.facts()...)
}
