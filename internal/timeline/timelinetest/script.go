// Package timelinetest plays events written as text into a tracker, for the
// tests of internal/timeline and internal/diagnose.
//
// A line is
//
//	TIME KIND SOCK LOCAL REMOTE OLD>NEW KEY=VALUE... FLAG...
//
// with the time as a Go duration since the start, SOCK any name or 0, and
// everything after KIND optional where the kind can do without it. Lines
// beginning with # are comments. Besides events there are
//
//	TIME advance | drain | begin | end | lost N | owner SOCK NAME[PID]
//
// and loops, of which each round comes EVERY later; $i is the number of the
// round, from 0000:
//
//	repeat N EVERY
//	...
//	done
package timelinetest

import (
	"bufio"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/tcptrace/tcptrace/internal/timeline"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// Start is the CLOCK_BOOTTIME of time 0 in a script, ns.
const Start = int64(1000 * time.Second)

// Netns is the network namespace of events that name none.
const Netns = 4026531840

// Step is one line of a script: an event or something else to tell a tracker.
type Step struct {
	Time  int64
	Event *event.Event // nil: Do
	Do    Do

	Netns uint32 // DoBegin, DoEnd
	Sock  uint64 // DoOwner
	PID   uint32 // DoOwner
	Comm  string // DoOwner
	Lost  uint64 // DoLost
}

// Do says what a tracker is told besides events.
type Do uint8

const (
	DoAdvance Do = iota
	DoDrain
	DoBegin // a snapshot of Netns
	DoEnd
	DoLost
	DoOwner
)

// Target takes steps: a [timeline.Tracker], or what stands before one.
type Target interface {
	Handle(e *event.Event)
	Advance(now int64)
	Drain(now int64)
	BeginSnapshot(netns uint32, now int64)
	EndSnapshot(netns uint32, now int64)
	SnapshotOwner(sock uint64, at int64, pid uint32, comm string)
	Lost(at int64, l event.Lost)
}

var _ Target = (*timeline.Tracker)(nil)

func (s *Step) tell(t Target) {
	switch s.Do {
	case DoAdvance:
		t.Advance(s.Time)
	case DoDrain:
		t.Drain(s.Time)
	case DoBegin:
		t.BeginSnapshot(s.Netns, s.Time)
	case DoEnd:
		t.EndSnapshot(s.Netns, s.Time)
	case DoLost:
		t.Lost(s.Time, event.Lost{Where: "ring", Count: s.Lost})
	case DoOwner:
		t.SnapshotOwner(s.Sock, s.Time, s.PID, s.Comm)
	}
}

// Play tells the tracker each step. Time advances as the steps do, every
// 100 ms.
func Play(t Target, steps []Step) {
	const tick = int64(100 * time.Millisecond)
	next := Start + tick
	for _, s := range steps {
		if s.Event != nil {
			// Long silences end what is due, not every tick by itself.
			if s.Time >= next {
				t.Advance(s.Time - (s.Time-next)%tick)
				next = s.Time - (s.Time-next)%tick + tick
			}
			e := *s.Event
			t.Handle(&e)
			continue
		}
		s.tell(t)
	}
}

var kinds = map[string]event.Kind{
	"state":          event.KindState,
	"listen":         event.KindListen,
	"accept":         event.KindAccept,
	"shutdown":       event.KindShutdown,
	"syn-dropped":    event.KindSYNDropped,
	"syn-queue-full": event.KindSYNQueueFull,
	"ack-overflow":   event.KindACKOverflow,
	"synack-retrans": event.KindSYNACKRetrans,
	"retransmit":     event.KindRetransmit,
	"rto":            event.KindRTO,
	"rst-sent":       event.KindRSTSent,
	"rst-received":   event.KindRSTReceived,
	"aborted":        event.KindRequestAborted,
	"found":          event.KindSnapshot,

	"bind-failed":        event.KindBindFailed,
	"probe":              event.KindProbe,
	"segment-dropped":    event.KindSegmentDropped,
	"memory":             event.KindMemory,
	"time-wait-overflow": event.KindTimeWaitOverflow,
}

var states = map[string]event.State{
	"ESTABLISHED": event.StateEstablished, "EST": event.StateEstablished,
	"SYN_SENT": event.StateSynSent, "SYN_RECV": event.StateSynRecv,
	"FIN_WAIT1": event.StateFinWait1, "FIN_WAIT2": event.StateFinWait2,
	"TIME_WAIT": event.StateTimeWait, "CLOSE": event.StateClose,
	"CLOSE_WAIT": event.StateCloseWait, "LAST_ACK": event.StateLastAck,
	"LISTEN": event.StateListen, "CLOSING": event.StateClosing,
	"NEW_SYN_RECV": event.StateNewSynRecv,
}

var flags = map[string]event.Flags{
	"dead": event.FlagDead, "done": event.FlagDone, "keepalive": event.FlagKeepalive,
	"exiting": event.FlagExiting, "linger0": event.FlagLingerZero | event.FlagLinger, "shutrd": event.FlagShutRD, "shutwr": event.FlagShutWR,
	"close": event.FlagShutRD | event.FlagShutWR, "rst": event.FlagRST, "cookie": event.FlagCookie,
	"tw": event.FlagTimeWait, "tw2": event.FlagTimeWaitFW2, "ambiguous": event.FlagAmbiguous,
	"nosock": event.FlagNoSocket, "inferred": event.FlagInferred,
}

// Parse reads a script.
func Parse(text string) ([]Step, error) {
	var steps []Step
	socks := map[string]uint64{"0": 0, "-": 0}
	var body []string // of a loop
	var rounds int
	var every time.Duration
	in := bufio.NewScanner(strings.NewReader(text))
	for n := 1; in.Scan(); n++ {
		line := strings.TrimSpace(in.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		f := strings.Fields(line)
		var err error
		switch {
		case f[0] == "repeat" && len(f) == 3:
			rounds, err = strconv.Atoi(f[1])
			if err == nil {
				every, err = time.ParseDuration(f[2])
			}
			body = []string{}
		case f[0] == "done":
			for i := range rounds {
				for _, line := range body {
					s, err := parseLine(strings.Fields(strings.ReplaceAll(line, "$i", fmt.Sprintf("%04d", i))), socks)
					if err != nil {
						return nil, fmt.Errorf("before line %d: %w", n, err)
					}
					shift(&s, time.Duration(i)*every)
					steps = append(steps, s)
				}
			}
			body = nil
		case body != nil:
			body = append(body, line)
		default:
			var s Step
			s, err = parseLine(f, socks)
			steps = append(steps, s)
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
	}
	return steps, in.Err()
}

func shift(s *Step, d time.Duration) {
	s.Time += int64(d)
	if s.Event != nil {
		s.Event.Time += int64(d)
	}
}

func sockOf(name string, socks map[string]uint64) uint64 {
	id, ok := socks[name]
	if !ok {
		id = uint64(len(socks) + 100)
		socks[name] = id
	}
	return id
}

func parseProcess(s string) (pid uint32, comm string, err error) {
	i := strings.IndexByte(s, '[')
	if i < 0 || !strings.HasSuffix(s, "]") {
		return 0, "", fmt.Errorf("process %q is not NAME[PID]", s)
	}
	n, err := strconv.ParseUint(s[i+1:len(s)-1], 10, 32)
	return uint32(n), s[:i], err
}

func parseLine(f []string, socks map[string]uint64) (Step, error) {
	d, err := time.ParseDuration(f[0])
	if err != nil || len(f) < 2 {
		return Step{}, fmt.Errorf("no time and kind: %v", f)
	}
	at := Start + int64(d)
	switch f[1] {
	case "advance":
		return Step{Time: at, Do: DoAdvance}, nil
	case "drain":
		return Step{Time: at, Do: DoDrain}, nil
	case "begin":
		return Step{Time: at, Do: DoBegin, Netns: Netns}, nil
	case "end":
		return Step{Time: at, Do: DoEnd, Netns: Netns}, nil
	case "lost":
		n, err := strconv.ParseUint(f[2], 10, 64)
		if err != nil {
			return Step{}, err
		}
		return Step{Time: at, Do: DoLost, Lost: n}, nil
	case "owner":
		sock := sockOf(f[2], socks)
		pid, comm, err := parseProcess(f[3])
		if err != nil {
			return Step{}, err
		}
		return Step{Time: at, Do: DoOwner, Sock: sock, PID: pid, Comm: comm}, nil
	}
	kind, ok := kinds[f[1]]
	if !ok {
		return Step{}, fmt.Errorf("unknown kind %q", f[1])
	}
	e := &event.Event{Time: at, Kind: kind, Netns: Netns}
	if kind == event.KindSnapshot {
		e.Inventory = &event.Inventory{Inode: 1, Idle: -1, SentIdle: -1, Left: -1, SendWindow: 65535, ReceiveWindow: 65535}
	}
	addrs := 0
	for i, w := range f[2:] {
		if i == 0 {
			e.Sock = sockOf(w, socks)
			continue
		}
		if err := parseWord(e, w, &addrs, socks); err != nil {
			return Step{}, err
		}
	}
	if kind != event.KindState && e.Old == 0 {
		e.Old = e.New
	}
	return Step{Event: e, Time: at}, nil
}

func parseWord(e *event.Event, w string, addrs *int, socks map[string]uint64) error {
	if fl, ok := flags[w]; ok {
		e.Flags |= fl
		return nil
	}
	switch w {
	case "abort":
		e.Listener.AbortOnOverflow = true
		return nil
	case "out":
		e.Out = true
		return nil
	case "mini": // of a snapshot: a minisocket
		e.Inventory.Minisocket, e.Inventory.Inode = true, 0
		return nil
	}
	if s, ok := states[w]; ok {
		e.Old, e.New = s, s
		return nil
	}
	if old, new, ok := strings.Cut(w, ">"); ok {
		o, ok1 := states[old]
		n, ok2 := states[new]
		if !ok1 || !ok2 {
			return fmt.Errorf("unknown state in %q", w)
		}
		e.Old, e.New = o, n
		return nil
	}
	if key, value, ok := strings.Cut(w, "="); ok {
		return parseKey(e, key, value, socks)
	}
	a, err := netip.ParseAddrPort(w)
	if err != nil {
		return fmt.Errorf("not understood: %q", w)
	}
	if *addrs++; *addrs == 1 {
		e.Local = a
	} else {
		e.Remote = a
	}
	return nil
}

func parseKey(e *event.Event, key, value string, socks map[string]uint64) error {
	switch key {
	case "by":
		pid, comm, err := parseProcess(value)
		e.PID = pid
		copy(e.Comm[:15], comm)
		e.Flags |= event.FlagProcess
		return err
	case "lid":
		e.Listener.ID = sockOf(value, socks)
		return nil
	case "idle":
		d, err := time.ParseDuration(value)
		e.Inventory.Idle = d
		return err
	case "left":
		d, err := time.ParseDuration(value)
		e.Inventory.Left = d
		return err
	case "where":
		e.Where = value
		return nil
	case "seg": // TCP flags, such as SA
		for _, f := range value {
			i := strings.IndexRune("FSRPA", f)
			if i < 0 {
				return fmt.Errorf("unknown TCP flag in %q", value)
			}
			e.TCPFlags |= 1 << i
		}
		return nil
	case "wnd":
		n, err := strconv.ParseUint(value, 10, 32)
		e.Inventory.SendWindow = uint32(n)
		return err
	case "rwnd":
		n, err := strconv.ParseUint(value, 10, 32)
		e.Inventory.ReceiveWindow = uint32(n)
		return err
	case "probes":
		n, err := strconv.ParseUint(value, 10, 8)
		e.Inventory.Probes = uint8(n)
		return err
	case "count":
		n, err := strconv.ParseUint(value, 10, 32)
		e.Count = uint32(n)
		return err
	case "timers":
		var a, b, c int
		if _, err := fmt.Sscanf(value, "%d/%d/%d", &a, &b, &c); err != nil {
			return err
		}
		e.Inventory.KeepaliveTime = time.Duration(a) * time.Second
		e.Inventory.KeepaliveInterval = time.Duration(b) * time.Second
		e.Inventory.KeepaliveProbes = uint32(c)
		return nil
	}
	n, err := strconv.ParseInt(value, 10, 64)
	if err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	switch key {
	case "err":
		e.Err = uint16(n)
	case "attempt":
		e.Attempt = uint8(n)
		e.Listener.Attempt = uint8(n)
	case "retries": // how often it may be sent again
		e.Listener.SYNACKRetries = uint8(n)
		if e.Old == event.StateSynSent {
			e.Reason = uint32(n)
		}
	case "reason":
		e.Reason = uint32(n)
	case "sent":
		e.Traffic.BytesSent = uint64(n)
	case "recv":
		e.Traffic.BytesReceived = uint64(n)
	case "srtt":
		e.Traffic.SRTT = uint32(n)
	case "retr":
		e.Traffic.Retransmits = uint32(n)
	case "unread":
		e.Traffic.Unread = uint32(n)
	case "unacked":
		e.Traffic.Unacked = uint32(n)
	case "qlen":
		e.Listener.QueueLen = uint32(n)
	case "qlim":
		e.Listener.QueueLimit = uint32(n)
	case "synq":
		e.Listener.SYNQueueLen = uint32(n)
	case "syncookies":
		e.Listener.SYNCookies = uint8(n)
	case "somax":
		e.Listener.Somaxconn = uint32(n)
	case "backlog":
		e.Listener.Backlog = uint32(n)
	case "inode":
		e.Inventory.Inode = uint64(n)
	case "ns":
		e.Netns = uint32(n)
	default:
		return fmt.Errorf("unknown key %q", key)
	}
	return nil
}
