package diagnose

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/tcptrace/tcptrace/internal/timeline"
)

const codeAbortedOnMemory = "aborted-on-memory"

var docAbortedOnMemory = Doc{
	Code:     codeAbortedOnMemory,
	Severity: Error,
	Summary:  "the kernel killed connections for want of TCP memory, or because there were too many orphans",
	Meaning: `An orphan is a socket that its process has closed while data or the FIN is not acknowledged yet. The kernel goes on for it, up to net.ipv4.tcp_max_orphans in all and as long as there is TCP memory (net.ipv4.tcp_mem, in pages). Beyond that it drops orphans: mostly by RST instead of FIN, and what was not acknowledged is lost, without any error to anybody on this host. An orphan that has sent nothing for four minutes, or that was retransmitted in vain for long, is dropped from half that number on, and from a quarter if ICMP errors came for it, too. The kernel's log has "too many orphaned sockets" or "out of memory -- consider tuning tcp_mem".

Both limits are of the whole machine, not of a network namespace or container: whoever fills them hurts all others. Many orphans mean peers that do not answer, or a process that closes very many connections with data on the way (an attack by slow or silent clients looks like this).

The reason is orphans where there were more of them than this one was allowed at that moment. Otherwise the kernel does not say which of the two it was.`,
	Counts: "connections",
	Evidence: []DocKey{
		{"reason", "", "orphans, or \"orphans or memory\" where the kernel does not say"},
		{"unacked_bytes", "bytes", "written and never acknowledged, of all of them"},
		{"state", "", "of the newest, when it was killed"},
	},
	Fix: []string{
		"compare net.ipv4.tcp_max_orphans and net.ipv4.tcp_mem with `cat /proc/net/sockstat` (orphan, mem) in the host's own network namespace: silent orphans are killed from half of tcp_max_orphans on, some from a quarter",
		"find who holds the memory or leaves the orphans: `tcptrace sockets`, `ss -tmo state fin-wait-1`",
		"raise the limit only if the machine has the memory: an orphan can hold up to 64 kB",
	},
	Counters: []string{"TcpExt.TCPAbortOnMemory", "Tcp.OutRsts"},
	Source: []string{
		"net/ipv4/tcp.c: __tcp_close(), tcp_check_oom()",
		"net/ipv4/tcp_timer.c: tcp_out_of_resources()",
	},
}

type abortedOnMemory struct {
	found groups[Key, *killed]
}

func newAbortedOnMemory() *abortedOnMemory {
	return &abortedOnMemory{groups[Key, *killed]{max: 1024}}
}

func (*abortedOnMemory) Code() string { return codeAbortedOnMemory }
func (*abortedOnMemory) Doc() Doc     { return docAbortedOnMemory }

type killed struct {
	at      netip.AddrPort
	kind    string
	owner   timeline.Owner
	orphans bool
	unacked uint64
	state   string
}

// Ended waits for all that is known of the end: the kernel's decision, and the
// RST that follows.
func (r *abortedOnMemory) Ended(x *Engine, c *timeline.Conn) {
	e := c.Find(timeline.EntryMemory)
	orphans := e != nil && e.Reason() == 1
	if e == nil {
		if !strings.HasSuffix(c.ResetReason(), "ABORT_ON_MEMORY") {
			return
		}
		if e = c.Find(timeline.EntryRSTSent); e == nil {
			return
		}
	}
	key := Key{Netns: c.Netns(), PID: c.Owner().PID}
	var kind string
	key.Addr, kind = place(c)
	if orphans {
		key.What = "orphans"
	}
	p := r.found.make(key)
	if *p == nil {
		*p = &killed{at: key.Addr, kind: kind, owner: c.Owner(), orphans: orphans}
	}
	f := *p
	if o := c.ClosedBy(); o.Known() {
		f.owner = o
	}
	f.unacked += uint64(c.Traffic().Unacked)
	f.state = ""
	if closed := c.Find(timeline.EntryClosed); closed != nil {
		f.state = timeline.StateName(closed.Old())
	}
	x.Report(r, key, f, e.At, 1, c)
}

func (f *killed) Describe(x *Engine, v *Verdict) {
	v.Severity, v.Confidence = Error, Certain
	v.Subject = Subject{f.kind, destination(f.at)}
	v.Process = process(f.owner)
	whose := "connections"
	if v.Count == 1 {
		whose = "a connection"
	}
	if f.owner.Known() {
		whose += " of " + f.owner.Name()
	}
	why, reason := "too many orphans, or no TCP memory left", "orphans or memory"
	if f.orphans {
		why, reason = "too many orphans", "orphans"
	}
	v.Which = reason
	v.Story = fmt.Sprintf("the kernel killed %s: %s", whose, why)
	state := Fact{Key: "state", Value: f.state}
	if f.state == "" {
		state = Fact{Key: "state", Note: "the end was not seen"}
	}
	v.Evidence = Evidence{
		{Key: "reason", Value: reason},
		{Key: "unacked_bytes", Value: f.unacked},
		state,
	}
	v.Fix = docAbortedOnMemory.Fix
}
