package diagnose

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/tcptrace/tcptrace/internal/timeline"
)

// Bytes writes an amount of data for people, such as "1.2 MB".
func Bytes(n uint64) string {
	for _, u := range []struct {
		size uint64
		name string
	}{{1e12, "TB"}, {1e9, "GB"}, {1e6, "MB"}, {1e3, "kB"}} {
		if n >= u.size {
			if n < 10*u.size {
				return strings.TrimSuffix(fmt.Sprintf("%.1f", float64(n)/float64(u.size)), ".0") + " " + u.name
			}
			return fmt.Sprintf("%d %s", (n+u.size/2)/u.size, u.name)
		}
	}
	if n == 1 {
		return "1 byte"
	}
	return fmt.Sprintf("%d bytes", n)
}

// times writes how often something was done again.
func times(n int) string {
	switch n {
	case 1:
		return "once"
	case 2:
		return "twice"
	}
	return fmt.Sprintf("%d times", n)
}

// milliseconds with microseconds behind the point, for evidence.
func milliseconds(d time.Duration) float64 {
	return float64(d.Round(time.Microsecond)) / float64(time.Millisecond)
}

func seconds(d time.Duration) int64 { return int64(d / time.Second) }

// process names the owner in a verdict, nil if it is not known.
func process(o timeline.Owner) *Process {
	if !o.Known() {
		return nil
	}
	return &Process{PID: o.PID, Comm: o.Comm, Cgroup: o.Cgroup, Container: o.Container()}
}

// destination names where a client's connections go.
func destination(a netip.AddrPort) string {
	if !a.IsValid() {
		return "unknown address"
	}
	return a.String()
}

// place is what groups the connections of one end: the listening address of a
// server, the destination of a client.
func place(c *timeline.Conn) (a netip.AddrPort, what string) {
	if c.Role() == timeline.RoleServer {
		if l := c.Listener(); l != nil {
			return l.Addr, "listener"
		}
		return c.Local(), "listener"
	}
	return c.Remote(), "peer"
}

// addresses is a set of client addresses, bounded: under a flood it says "at
// least".
type addresses struct {
	m    map[netip.Addr]struct{}
	more bool
}

const maxAddresses = 1024

func (s *addresses) add(a netip.Addr) {
	if _, ok := s.m[a]; ok || !a.IsValid() {
		return
	}
	if len(s.m) >= maxAddresses {
		s.more = true
		return
	}
	if s.m == nil {
		s.m = make(map[netip.Addr]struct{})
	}
	s.m[a] = struct{}{}
}

func (s *addresses) fact(key string) Fact {
	f := Fact{Key: key, Value: int64(len(s.m))}
	if s.more {
		f.Note = "at least"
	}
	return f
}
