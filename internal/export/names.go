package export

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/render"
	"github.com/tcptrace/tcptrace/internal/timeline"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// stateName is the kernel's name of a state; of one that is not known it gives
// the number.
func stateName(s event.State) string {
	if n := timeline.StateName(s); n != "unknown" || s == event.StateUnknown {
		return n
	}
	return fmt.Sprintf("state %d", s)
}

// flagNames are the names of docs/events.md, by bit.
var flagNames = [16]string{
	"Dead", "Done", "Keepalive", "Linger", "ShutRD", "ShutWR", "RST", "Cookie",
	"TimeWait", "TimeWaitFW2", "Ambiguous", "NoSocket", "LingerZero", "Inferred", "Process", "",
}

// appendFlags appends the names of an event's flags.
func appendFlags(list []string, e *event.Event) []string {
	for i, name := range flagNames {
		if e.Flags&(1<<i) == 0 {
			continue
		}
		switch {
		case name != "":
		case e.Kind == event.KindSYNACKRetrans:
			name = "ACKed"
		case e.Kind == event.KindState:
			name = "Exiting"
		default:
			name = "bit 15"
		}
		list = append(list, name)
	}
	return list
}

// errnoName names a Linux errno, such as ECONNRESET. Those of TCP have the same
// numbers on all that tcptrace runs on.
func errnoName(n uint16) string {
	if name := unix.ErrnoName(unix.Errno(n)); name != "" {
		return name
	}
	return fmt.Sprintf("errno %d", n)
}

// reasonName says in a word what Event.Reason means; "" where it has no name,
// or is a count.
func reasonName(e *event.Event, c *event.Capabilities) string {
	of := func(names ...string) string {
		if e.Reason < uint32(len(names)) {
			return names[e.Reason]
		}
		return ""
	}
	switch e.Kind {
	case event.KindShutdown:
		return of("SHUT_RD", "SHUT_WR", "SHUT_RDWR")
	case event.KindBindFailed:
		return of("bind", "listen")
	case event.KindProbe:
		return of("", "keepalive", "zero-window")
	case event.KindMemory:
		return of("", "orphans")
	case event.KindRequestAborted:
		return tcpFlags(uint8(e.Reason))
	case event.KindRSTSent:
		return render.Safe(c.RSTReasons[e.Reason])
	case event.KindSegmentDropped:
		return render.Safe(c.DropReasons[e.Reason])
	}
	return ""
}

// tcpFlags names the bits of a TCP header, such as "SYN ACK".
func tcpFlags(f uint8) string {
	var names []string
	for i, name := range [...]string{"FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"} {
		if f&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, " ")
}
