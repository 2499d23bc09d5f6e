package filter

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/tcptrace/tcptrace/tracer/event"
)

// Flags are the values as the user gave them, by flag. Each may hold several
// alternatives separated by commas.
type Flags struct {
	Port, LocalPort, RemotePort, Addr, PID, Comm, Netns, Cgroup, Code, State []string
}

// Environment is what parsing needs to know of the world outside.
type Environment struct {
	// Codes are the verdicts that exist; nil skips the check.
	Codes []string
	// Netns finds a namespace by path, inode number or name; nil accepts
	// inode numbers only, as when a dump of another machine is read.
	Netns func(spec string) (uint32, error)
}

// Error says which value of which flag is wrong.
type Error struct {
	Flag    string // without dashes
	Value   string // one alternative
	Problem string
	Hint    string // how it is written, or what was perhaps meant
	Err     error  // of the system, nil if it is only written wrongly
}

func (e *Error) Error() string {
	return fmt.Sprintf("--%s %s: %s", e.Flag, strconv.Quote(e.Value), e.Problem)
}

func (e *Error) Unwrap() error { return e.Err }

// Parse reads all filters. The error is an [*Error].
func Parse(flags Flags, env Environment) (Filter, error) {
	var f Filter
	p := parser{env: env}
	f.Ports = each(&p, "port", flags.Port, p.port)
	f.LocalPorts = each(&p, "lport", flags.LocalPort, p.port)
	f.RemotePorts = each(&p, "rport", flags.RemotePort, p.port)
	f.Addrs = each(&p, "addr", flags.Addr, p.addr)
	f.PIDs = each(&p, "pid", flags.PID, p.pid)
	f.Comms = each(&p, "comm", flags.Comm, p.comm)
	f.Netns = each(&p, "netns", flags.Netns, p.netns)
	f.Cgroups = each(&p, "cgroup", flags.Cgroup, p.cgroup)
	f.Codes = each(&p, "code", flags.Code, p.code)
	f.States = each(&p, "state", flags.State, p.state)
	if p.err != nil {
		return Filter{}, p.err
	}
	return f, nil
}

type parser struct {
	env   Environment
	err   *Error // the first
	cause error  // of the system, behind the problem of the value at hand
}

// each parses the alternatives of one flag, leaving out repeated ones. parse
// returns a problem and a hint, or "" twice.
func each[T comparable](p *parser, flag string, values []string, parse func(string) (T, string, string)) []T {
	var list []T
	for _, value := range values {
		for v := range strings.SplitSeq(value, ",") {
			if p.err != nil {
				return nil
			}
			if v = strings.TrimSpace(v); v == "" {
				p.err = &Error{Flag: flag, Value: value, Problem: "an empty value", Hint: "separate values with single commas"}
				return nil
			}
			t, problem, hint := parse(v)
			if problem != "" {
				p.err = &Error{Flag: flag, Value: v, Problem: problem, Hint: hint, Err: p.cause}
				return nil
			}
			if !slices.Contains(list, t) {
				list = append(list, t)
			}
		}
	}
	return list
}

func (p *parser) port(v string) (uint16, string, string) {
	n, err := strconv.ParseUint(v, 10, 16)
	if err != nil || n == 0 {
		return 0, "not a port", "a port is a number from 1 to 65535; give several as 80,443"
	}
	return uint16(n), "", ""
}

func (p *parser) addr(v string) (netip.Prefix, string, string) {
	const hint = "give an address (192.0.2.7, 2001:db8::7) or a network (192.0.2.0/24, 2001:db8::/32)"
	if ap, err := netip.ParseAddrPort(v); err == nil {
		return netip.Prefix{}, "an address with a port",
			fmt.Sprintf("give them apart: --addr %s --port %d", ap.Addr(), ap.Port())
	}
	bare := strings.TrimSuffix(strings.TrimPrefix(v, "["), "]")
	if a, err := netip.ParseAddr(bare); err == nil {
		if a.Zone() != "" {
			return netip.Prefix{}, "an address with a zone", "leave out %" + a.Zone()
		}
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), "", ""
	}
	n, err := netip.ParsePrefix(v)
	if err != nil {
		return netip.Prefix{}, "not an address or network", hint
	}
	if n.Addr().Is4In6() {
		if n.Bits() < 96 {
			return netip.Prefix{}, "a network wider than the IPv4-mapped addresses", hint
		}
		n = netip.PrefixFrom(n.Addr().Unmap(), n.Bits()-96)
	}
	return n.Masked(), "", ""
}

func (p *parser) pid(v string) (uint32, string, string) {
	n, err := strconv.ParseUint(v, 10, 31)
	if err != nil || n == 0 {
		return 0, "not a process id", "for a process name use --comm"
	}
	return uint32(n), "", ""
}

// commLen is TASK_COMM_LEN less the closing NUL.
const commLen = 15

func (p *parser) comm(v string) (string, string, string) {
	if len(v) > commLen {
		v = v[:commLen] // as the kernel does
	}
	return v, "", ""
}

func (p *parser) netns(v string) (uint32, string, string) {
	if p.env.Netns == nil {
		n, err := strconv.ParseUint(v, 10, 32)
		if err != nil || n == 0 {
			return 0, "not an inode number", "namespaces in a dump go by their inode numbers"
		}
		return uint32(n), "", ""
	}
	inode, err := p.env.Netns(v)
	if err != nil {
		p.cause = err
		return 0, err.Error(), "give a name that `ip netns` lists, a path such as /proc/PID/ns/net, or an inode number (readlink /proc/PID/ns/net)"
	}
	return inode, "", ""
}

func (p *parser) cgroup(v string) (string, string, string) {
	for _, root := range []string{"/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup"} {
		if rest, ok := strings.CutPrefix(v, root); ok && (rest == "" || rest[0] == '/') {
			v = rest
			break
		}
	}
	if v = "/" + strings.Trim(v, "/"); strings.Contains(v, "//") {
		return "", "not a cgroup path", "a path as in /proc/PID/cgroup, for example /system.slice/nginx.service"
	}
	return v, "", ""
}

func (p *parser) code(v string) (string, string, string) {
	if p.env.Codes == nil || slices.Contains(p.env.Codes, v) {
		return v, "", ""
	}
	hint := "`tcptrace explain` lists the codes"
	if near := Nearest(v, p.env.Codes); near != "" {
		hint = "did you mean " + near + "? " + hint
	}
	return "", "no such verdict", hint
}

// states have the names of RFC 9293, which ss(8) shortens in places.
var states = []struct {
	name  string
	state event.State
}{
	{"established", event.StateEstablished},
	{"estab", event.StateEstablished},
	{"syn-sent", event.StateSynSent},
	{"syn-recv", event.StateSynRecv},
	{"syn-received", event.StateSynRecv},
	{"fin-wait-1", event.StateFinWait1},
	{"fin-wait-2", event.StateFinWait2},
	{"time-wait", event.StateTimeWait},
	{"close", event.StateClose},
	{"closed", event.StateClose},
	{"close-wait", event.StateCloseWait},
	{"last-ack", event.StateLastAck},
	{"listen", event.StateListen},
	{"closing", event.StateClosing},
}

func (p *parser) state(v string) (event.State, string, string) {
	plain := func(s string) string {
		return strings.NewReplacer("-", "", "_", "").Replace(strings.ToLower(s))
	}
	names := make([]string, len(states))
	for i, s := range states {
		if plain(s.name) == plain(v) {
			return s.state, "", ""
		}
		names[i] = s.name
	}
	hint := "states are established, syn-sent, syn-recv, fin-wait-1, fin-wait-2, time-wait, close, close-wait, last-ack, listen and closing"
	if near := Nearest(v, names); near != "" {
		hint = "did you mean " + near + "?"
	}
	return 0, "no such state", hint
}

// Nearest returns the word of a list that a mistyped one was probably meant
// to be, or "": at most a third of its letters may be wrong. A longer word
// that begins with it counts as near.
func Nearest(typed string, words []string) string {
	if len(typed) < 2 || len(typed) > 64 {
		return "" // any other letter would be as near
	}
	best, least := "", 1+max(1, len(typed)/3)
	for _, w := range words {
		d := distance(strings.ToLower(typed), w)
		if len(typed) >= 3 && strings.HasPrefix(w, strings.ToLower(typed)) {
			d = 1
		}
		if d < least {
			best, least = w, d
		}
	}
	return best
}

// distance counts the single-byte insertions, deletions, replacements and swaps
// of neighbours between two words.
func distance(a, b string) int {
	rows := [3][]int{}
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		row, above, above2 := rows[i%3], rows[(i+2)%3], rows[(i+1)%3]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			d := above[j-1]
			if a[i-1] != b[j-1] {
				d++
			}
			row[j] = min(d, row[j-1]+1, above[j]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], above2[j-2]+1)
			}
		}
	}
	return rows[len(a)%3][len(b)]
}
