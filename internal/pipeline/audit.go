package pipeline

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/tcptrace/tcptrace/internal/host"
	"github.com/tcptrace/tcptrace/internal/render"
	"github.com/tcptrace/tcptrace/tracer"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// audited are the counters that are held against the kernel's own, by name
// and by where /proc/net shows them.
var audited = []struct{ name, proc string }{
	{"ListenOverflows", "TcpExt.ListenOverflows"},
	{"ListenDrops", "TcpExt.ListenDrops"},
	{"OutRsts", "Tcp.OutRsts"},
	{"EstabResets", "Tcp.EstabResets"},
	{"AttemptFails", "Tcp.AttemptFails"},
	{"EmbryonicRsts", "TcpExt.EmbryonicRsts"},
	{"ActiveOpens", "Tcp.ActiveOpens"},
	{"PassiveOpens", "Tcp.PassiveOpens"},
	{"RetransSegs", "Tcp.RetransSegs"},
	{"TCPSynRetrans", "TcpExt.TCPSynRetrans"},
	{"TCPTimeouts", "TcpExt.TCPTimeouts"},
	{"TCPReqQFullDrop", "TcpExt.TCPReqQFullDrop"},
	{"TCPReqQFullDoCookies", "TcpExt.TCPReqQFullDoCookies"},
	{"SyncookiesSent", "TcpExt.SyncookiesSent"},
	{"SyncookiesRecv", "TcpExt.SyncookiesRecv"},
	{"SyncookiesFailed", "TcpExt.SyncookiesFailed"},
	{"TCPAbortOnTimeout", "TcpExt.TCPAbortOnTimeout"},
	{"TCPAbortOnClose", "TcpExt.TCPAbortOnClose"},
	{"TCPAbortOnData", "TcpExt.TCPAbortOnData"},
	{"TCPAbortOnLinger", "TcpExt.TCPAbortOnLinger"},
	{"TCPAbortOnMemory", "TcpExt.TCPAbortOnMemory"},
	{"TCPTimeWaitOverflow", "TcpExt.TCPTimeWaitOverflow"},
	{"TWRecycled", "TcpExt.TWRecycled"},
	{"TCPKeepAlive", "TcpExt.TCPKeepAlive"},
	{"TCPWinProbe", "TcpExt.TCPWinProbe"},
	{"PAWSEstab", "TcpExt.PAWSEstab"},
}

// retransFail is the kernel's count of retransmissions that this host dropped
// on their way out, by a firewall for example. Up to 6.12 the tracepoint is passed
// over then.
const retransFail = "TcpExt.TCPRetransFail"

func auditRank(name string) int {
	for i, a := range audited {
		if a.name == name {
			return i
		}
	}
	return len(audited)
}

// reading is both sides' counters of one namespace at one moment.
type reading struct {
	cookie uint64
	kernel []uint64 // as audited
	seen   []uint64
	failed uint64 // retransmissions that failed on their way out, as the kernel counts
	steady bool   // nothing moved while they were read
}

// auditor holds the kernel's counters against what the hooks counted, over
// the same interval and for each namespace.
type auditor struct {
	tracer  Tracer
	spaces  map[uint32]*audit
	skipped int             // namespaces beyond the bound
	missed  map[uint32]bool // namespaces that had events and were not found
}

type audit struct {
	ns    host.Netns
	first reading
	zero  bool  // first is nothing, not read: it came into being while it was counted
	late  bool  // it was there before it was found, or another had its number
	err   error // why there is no first reading
}

// maxAudited bounds the namespaces that are compared, and maxNamed those that
// are named where they could not be.
const (
	maxAudited = 4096
	maxNamed   = 5
)

// attempts bounds how often counters that keep moving are read again, and
// fewAttempts the same in the middle of a run.
const (
	attempts    = 20
	fewAttempts = 3
)

// read reads both sides of several namespaces so that they agree: again while
// anything moved meanwhile, since the two sides cannot be read at once.
func (a *auditor) read(spaces []host.Netns, attempts int) (map[uint32]reading, map[uint32]error) {
	readings := make(map[uint32]reading, len(spaces))
	errs := make(map[uint32]error)
	todo := slices.Clone(spaces)
	for try := range attempts {
		if try > 0 {
			time.Sleep(time.Duration(try) * 200 * time.Microsecond)
		}
		before, err := a.tracer.Stats()
		if err != nil {
			for _, ns := range todo {
				errs[ns.Inode] = err
			}
			return readings, errs
		}
		kernels := make([][2]host.Counters, len(todo))
		for pass := range 2 {
			for i, ns := range todo {
				if errs[ns.Inode] == nil {
					kernels[i][pass], errs[ns.Inode] = host.ReadCounters(ns)
				}
			}
		}
		after, err := a.tracer.Stats()
		if err != nil {
			for _, ns := range todo {
				errs[ns.Inode] = err
			}
			return readings, errs
		}
		var again []host.Netns
		for i, ns := range todo {
			if errs[ns.Inode] != nil {
				continue
			}
			delete(errs, ns.Inode)
			r := reading{cookie: kernels[i][0].Cookie, failed: kernels[i][1].Value[retransFail], steady: true}
			for _, c := range audited {
				k, s := kernels[i][1].Value[c.proc], after.Audit[tracer.AuditKey{Netns: ns.Inode, Counter: c.name}]
				r.kernel, r.seen = append(r.kernel, k), append(r.seen, s)
				if k != kernels[i][0].Value[c.proc] || s != before.Audit[tracer.AuditKey{Netns: ns.Inode, Counter: c.name}] {
					r.steady = false
				}
			}
			readings[ns.Inode] = r
			if !r.steady {
				again = append(again, ns)
			}
		}
		if todo = again; len(todo) == 0 {
			break
		}
	}
	return readings, errs
}

// begin takes the readings to compare with, of namespaces that exist when
// tracing begins.
func (a *auditor) begin(spaces []host.Netns) {
	a.spaces = make(map[uint32]*audit, len(spaces))
	readings, errs := a.read(spaces, attempts)
	for _, ns := range spaces {
		a.spaces[ns.Inode] = &audit{ns: ns, first: readings[ns.Inode], err: errs[ns.Inode]}
	}
}

// errReused says that two namespaces had the same number one after the other,
// and that the hooks counted both as one.
var errReused = errors.New("two namespaces had this number, one after the other")

// add begins the audit of a namespace that was not known in the beginning. One
// that came into being while its events were counted began at nothing on both
// sides, and the two are still as one; of one that merely could not be seen
// before, the kernel has counted more. For one that is known it takes note of
// another way into it, and reports whether it is surely the one that it was.
func (a *auditor) add(ns host.Netns) (same bool) {
	if known := a.spaces[ns.Inode]; known != nil {
		c, err := host.ReadCounters(ns)
		known.ns = ns
		if err == nil && known.err == nil && c.Cookie != known.first.cookie {
			known.err = errReused
		}
		return err == nil && known.err == nil && c.Cookie != 0
	}
	if len(a.spaces) >= maxAudited {
		a.skipped++
		return false
	}
	readings, errs := a.read([]host.Netns{ns}, fewAttempts)
	if err := errs[ns.Inode]; err != nil {
		if errors.Is(err, host.ErrNoNetns) {
			a.miss(ns.Inode) // it has ended, and its number may be another's soon
		} else {
			a.spaces[ns.Inode] = &audit{ns: ns, err: err}
		}
		return false
	}
	delete(a.missed, ns.Inode)
	r := readings[ns.Inode]
	apart := a.apart(r)
	if apart > underWay {
		a.spaces[ns.Inode] = &audit{ns: ns, first: r, late: true}
		return
	}
	zero := make([]uint64, len(audited))
	a.spaces[ns.Inode] = &audit{ns: ns, first: reading{cookie: r.cookie, kernel: zero, seen: zero, steady: r.steady && apart == 0}, zero: true}
	return false
}

// underWay is how far the two sides may be apart where both began at nothing: a
// process may wait, for memory, between the kernel's count and ours (ActiveOpens,
// OutRsts).
const underWay = 4

// apart is by how much the kernel has counted otherwise than was seen. What moves
// while it is read may have been seen right after the kernel was asked.
func (a *auditor) apart(r reading) (n uint64) {
	inexact := inexact(a.tracer.Capabilities())
	for i, c := range audited {
		more := r.kernel[i] - min(r.kernel[i], r.seen[i])
		fewer := r.seen[i] - min(r.kernel[i], r.seen[i])
		if c.name == "RetransSegs" || c.name == "TCPSynRetrans" {
			more -= min(more, r.failed)
		}
		if inexact[c.name] != "" {
			continue
		}
		n += more
		if r.steady {
			n += fewer
		}
	}
	return n
}

// miss takes note of a namespace that had events and was not found; where there
// are very many, of most.
func (a *auditor) miss(inode uint32) {
	if a.spaces[inode] != nil || len(a.missed) >= maxAudited {
		return
	}
	if a.missed == nil {
		a.missed = make(map[uint32]bool)
	}
	a.missed[inode] = true
}

// reused reports whether a namespace was found to have had another's number.
func (a *auditor) reused(inode uint32) bool {
	s := a.spaces[inode]
	return s != nil && errors.Is(s.err, errReused)
}

// compare holds the counters as they are now against the first readings. It
// out namespaces where nothing was counted on either side, and tells of those
// that could not be compared.
func (a *auditor) compare(caps event.Capabilities, attempts int) (lines []render.Audit, notes []string) {
	// The process by which a namespace was entered may not be the last in it.
	ways := make(map[uint32]host.Netns)
	if now, err := host.Namespaces(); err == nil {
		for _, ns := range now {
			ways[ns.Inode] = ns
		}
	}
	var spaces []host.Netns
	for inode, s := range a.spaces {
		if s.err != nil {
			continue
		}
		if ns, ok := ways[inode]; ok {
			s.ns.Path = ns.Path
		}
		spaces = append(spaces, s.ns)
	}
	slices.SortFunc(spaces, func(x, y host.Netns) int { return cmp.Compare(x.Inode, y.Inode) })
	last, errs := a.read(spaces, attempts)
	inexact := inexact(caps)
	compared := 0
	var gone []string
	for _, ns := range spaces {
		s := a.spaces[ns.Inode]
		r, ok := last[ns.Inode]
		if !ok || errs[ns.Inode] != nil || r.cookie != s.first.cookie {
			gone = append(gone, spaceName(ns))
			continue
		}
		compared++
		if s.late {
			notes = append(notes, fmt.Sprintf("network namespace %s is compared from when it was found: it was there before, or another had its number", spaceName(ns)))
		}
		for i, c := range audited {
			line := render.Audit{
				Counter: c.name, Netns: ns.Inode,
				Kernel: r.kernel[i] - min(r.kernel[i], s.first.kernel[i]), Explained: r.seen[i] - min(r.seen[i], s.first.seen[i]),
			}
			failed := r.failed - min(r.failed, s.first.failed)
			switch {
			case inexact[c.name] != "":
				line.Note = inexact[c.name]
			case (c.name == "RetransSegs" || c.name == "TCPSynRetrans") && line.Kernel > line.Explained && line.Kernel-line.Explained <= failed:
				line.Note = fmt.Sprintf("%d retransmissions failed on their way out (TCPRetransFail): this kernel counts them and tells nobody", failed)
			case !r.steady || !s.first.steady && !(s.zero && line.Kernel == line.Explained):
				line.Note = "traffic did not pause while the counters were read, so they may be apart by a few"
			default:
				line.Exact = true
			}
			if line.Kernel != 0 || line.Explained != 0 {
				lines = append(lines, line)
			}
		}
	}
	for _, s := range a.spaces {
		if s.err != nil {
			notes = append(notes, fmt.Sprintf("the counters of network namespace %s could not be compared: %v", spaceName(s.ns), s.err))
		}
	}
	slices.Sort(notes)
	if len(gone) > 0 {
		notes = append(notes, "not compared, because they ended before their counters could be read: network namespaces "+fewOf(gone))
	}
	if len(a.missed) > 0 {
		var missed []string
		for _, inode := range slices.Sorted(maps.Keys(a.missed)) {
			missed = append(missed, fmt.Sprint(inode))
		}
		notes = append(notes, "not compared, because they were never found: network namespaces "+fewOf(missed))
	}
	if a.skipped > 0 {
		notes = append(notes, fmt.Sprintf("not compared, because there were more than %d: %d further network namespaces", maxAudited, a.skipped))
	}
	if compared == 0 {
		notes = slices.Insert(notes, 0, render.NotCompared)
	}
	sortAudit(lines)
	return lines, notes
}

// fewOf lists the first of several names.
func fewOf(names []string) string {
	if n := len(names); n > maxNamed {
		names = append(slices.Clone(names[:maxNamed]), fmt.Sprintf("and %d more", n-maxNamed))
	}
	return strings.Join(names, ", ")
}

// ended reports whether the way into a namespace leads nowhere any more, or to
// another one.
func ended(ns host.Netns) bool { return errors.Is(way(ns), host.ErrNoNetns) }

// enterable reports whether the way into a namespace still leads there.
func enterable(ns host.Netns) bool { return way(ns) == nil }

// way tries the way into a namespace.
func way(ns host.Netns) error {
	f, err := ns.Open()
	if err == nil {
		f.Close()
	}
	return err
}

func spaceName(ns host.Netns) string {
	if ns.Name != "" {
		return fmt.Sprintf("%d (%s)", ns.Inode, ns.Name)
	}
	return fmt.Sprint(ns.Inode)
}

// inexact says of which counters the hooks, as they are attached, cannot see
// every increment.
func inexact(caps event.Capabilities) map[string]string {
	m := make(map[string]string)
	via := make(map[string]string, len(caps.Hooks))
	for _, h := range caps.Hooks {
		via[h.Name] = h.Via
	}
	missing := func(hook string) bool { return via[hook] == "" || via[hook] == "none" }
	var overflow string
	switch {
	case !caps.HasSYNDrops && !caps.HasACKDrops:
		overflow = "drops at a full accept queue are not seen"
	case !caps.HasSYNDrops:
		overflow = "SYNs dropped at a full accept queue are not seen"
	case !caps.HasACKDrops:
		overflow = "final ACKs dropped at a full accept queue are seen only by what follows them"
	case via["tcp_conn_request"] == "tracepoint":
		overflow = "drops of SYNs are concluded from the listener's queue"
	}
	if overflow != "" {
		m["ListenOverflows"], m["ListenDrops"] = overflow, overflow
	}
	if !caps.HasAllRSTSent {
		m["OutRsts"] = "resets without a full socket (closed ports, TIME_WAIT) are not seen"
	}
	if missing("tcp_check_req") {
		m["AttemptFails"] = "half-open requests that the peer killed are not seen"
		m["EmbryonicRsts"] = m["AttemptFails"]
	}
	for hook, counters := range map[string][]string{
		"tcp_retransmit_timer": {"TCPTimeouts"},
		"tcp_syn_ack_timeout":  {"TCPTimeouts"},
		"cookie_init_sequence": {"SyncookiesSent"},
		"cookie_check":         {"SyncookiesRecv", "SyncookiesFailed"},
		"tcp_check_oom":        {"TCPAbortOnMemory"},
		"inet_twsk_alloc":      {"TCPTimeWaitOverflow"},
		"tcp_twsk_unique":      {"TWRecycled"},
		"tcp_xmit_probe_skb":   {"TCPKeepAlive", "TCPWinProbe"},
		"kfree_skb":            {"PAWSEstab"},
	} {
		if missing(hook) {
			for _, c := range counters {
				m[c] = "the hook on " + hook + " is not attached"
			}
		}
	}
	if h := via["tcp_conn_request"]; h != "fentry" && h != "kprobe" {
		m["TCPReqQFullDrop"] = "without a hook on tcp_conn_request these are not counted"
		m["TCPReqQFullDoCookies"] = m["TCPReqQFullDrop"]
	}
	if !caps.HasRSTReason {
		for _, c := range []string{"TCPAbortOnClose", "TCPAbortOnData", "TCPAbortOnLinger"} {
			m[c] = "this kernel gives no reason for a RST"
		}
	} else if missing("tcp_time_wait") {
		m["TCPAbortOnData"] = "close() with SO_LINGER 0 after a shutdown is not told for certain from entry into TIME_WAIT"
	}
	switch {
	case missing("kfree_skb"):
	case !caps.HasDropReasons:
		m["PAWSEstab"] = "this kernel gives no reason for a drop"
	case !slices.Contains(slices.Collect(maps.Values(caps.DropReasons)), "TCP_RFC7323_TW_PAWS"):
		m["PAWSEstab"] = "this kernel also counts segments for TIME_WAIT and for half-open requests, and gives no reason for dropping those"
	}
	return m
}
