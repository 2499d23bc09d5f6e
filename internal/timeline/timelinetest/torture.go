package timelinetest

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/tcptrace/tcptrace/tracer/event"
)

// Script is a file that holds one.
type Script struct {
	Name  string // the file's
	Text  string // above the --- line
	Steps []Step
}

// Load reads the scripts in some directories, by directory and name.
func Load(dirs ...string) ([]Script, error) {
	var out []Script
	for _, dir := range dirs {
		files, err := filepath.Glob(filepath.Join(dir, "*.txt"))
		if err != nil || len(files) == 0 {
			return nil, fmt.Errorf("finding scripts in %s: %d found, error %v", dir, len(files), err)
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				return nil, err
			}
			text, _, _ := strings.Cut(string(b), "\n---\n")
			steps, err := Parse(text)
			if err != nil {
				return nil, fmt.Errorf("reading %s: %w", f, err)
			}
			out = append(out, Script{filepath.Base(f), text, steps})
		}
	}
	return out, nil
}

// Mix makes one story of up to four scripts, of each up to most steps in a row,
// at the same or other times and places, and has faults spoil it.
func Mix(r *rand.Rand, scripts []Script, most int) (names []string, f Faults, steps []Step) {
	var parts [][]Step
	for i := range 1 + r.IntN(4) {
		s := scripts[r.IntN(len(scripts))]
		part := s.Steps
		if len(part) > most {
			from := r.IntN(len(part) - most)
			part = part[from : from+most]
		}
		if r.IntN(2) == 0 {
			part = Later(part, time.Duration(r.Int64N(int64(20*time.Second))))
		}
		if r.IntN(2) == 0 {
			part = Elsewhere(part, i)
		}
		names = append(names, s.Name)
		parts = append(parts, part)
	}
	f = RandomFaults(r)
	return names, f, f.Apply(r, Merge(parts...))
}

// copied returns steps that share nothing with the given ones.
func copied(steps []Step) []Step {
	out := slices.Clone(steps)
	for i := range out {
		if e := out[i].Event; e != nil {
			c := *e
			if c.Inventory != nil {
				inv := *c.Inventory
				c.Inventory = &inv
			}
			out[i].Event = &c
		}
	}
	return out
}

// Elsewhere returns the steps as they would be in the n-th other network
// namespace, by other sockets and between other addresses: nothing joins them
// to the given ones but the names of processes.
func Elsewhere(steps []Step, n int) []Step {
	out := copied(steps)
	sock := func(id uint64) uint64 {
		if id == 0 {
			return 0
		}
		return id + uint64(n)<<32
	}
	for i := range out {
		s := &out[i]
		s.Sock = sock(s.Sock)
		s.Netns += uint32(n)
		if e := s.Event; e != nil {
			e.Netns += uint32(n)
			e.Sock = sock(e.Sock)
			e.Listener.ID = sock(e.Listener.ID)
			e.Local, e.Remote = otherAddress(e.Local, n), otherAddress(e.Remote, n)
		}
	}
	return out
}

func otherAddress(a netip.AddrPort, n int) netip.AddrPort {
	addr := a.Addr()
	switch {
	case !addr.IsValid() || addr.IsUnspecified():
	case addr.Is4():
		b := addr.As4()
		b[1] += byte(n)
		addr = netip.AddrFrom4(b)
	default:
		b := addr.As16()
		b[7] += byte(n)
		addr = netip.AddrFrom16(b)
	}
	return netip.AddrPortFrom(addr, a.Port())
}

// Later returns the steps as they would happen d later.
func Later(steps []Step, d time.Duration) []Step {
	out := copied(steps)
	for i := range out {
		shift(&out[i], d)
	}
	return out
}

// Merge returns the steps of several scripts in one, each script's in its own
// order.
func Merge(scripts ...[]Step) []Step {
	type at struct {
		arrives int64
		s       Step
	}
	var all []at
	for _, steps := range scripts {
		arrives := int64(math.MinInt64)
		for _, s := range steps {
			arrives = max(arrives, s.Time)
			all = append(all, at{arrives, s})
		}
	}
	slices.SortStableFunc(all, func(a, b at) int {
		switch {
		case a.arrives < b.arrives:
			return -1
		case a.arrives > b.arrives:
			return 1
		}
		return 0
	})
	out := make([]Step, len(all))
	for i := range all {
		out[i] = all[i].s
	}
	return out
}

// Faults say what becomes of steps on their way. Shares are of 1,000 events.
type Faults struct {
	Lost     int           // never arrive
	Announce bool          // and what is lost is told at that moment
	Doubled  int           // arrive twice
	Late     time.Duration // arrive up to so much later, each
	Equal    time.Duration // clocks show multiples of this only
	Back     int           // have a time up to 2 s before theirs
	JumpBack bool          // at some moment the clock goes back, for good
	Extreme  int           // have fields at their limits
	Garbage  int           // come with an event that no kernel would produce
	Reuse    int           // sockets have one of so many identities, 0: as they are
	Fold     int           // namespaces have one of so many numbers, 0: as they are
	Look     int           // snapshots in between
	Owners   bool          // which name the owners
}

// RandomFaults are none of some and more of others.
func RandomFaults(r *rand.Rand) Faults {
	some := func(n int) int {
		if r.IntN(3) > 0 {
			return 0
		}
		return 1 + r.IntN(n)
	}
	f := Faults{
		Lost: some(400), Announce: r.IntN(2) == 0, Doubled: some(300), Back: some(200), Extreme: some(100), Garbage: some(300),
		Reuse: some(12), Fold: some(3), Look: some(4), JumpBack: r.IntN(8) == 0, Owners: r.IntN(2) == 0,
	}
	if r.IntN(3) == 0 {
		f.Late = []time.Duration{100 * time.Microsecond, 5 * time.Millisecond, 200 * time.Millisecond, 3 * time.Second}[r.IntN(4)]
	}
	if r.IntN(4) == 0 {
		f.Equal = []time.Duration{time.Millisecond, 100 * time.Millisecond, 10 * time.Second}[r.IntN(3)]
	}
	return f
}

// Apply returns what arrives of steps.
func (f Faults) Apply(r *rand.Rand, steps []Step) []Step {
	of := func(share int) bool { return share > 0 && r.IntN(1000) < share }
	for range f.Look {
		at := 0
		if len(steps) > 0 {
			at = r.IntN(len(steps) + 1)
		}
		steps = slices.Insert(slices.Clone(steps), at, Look(steps[:at], f.Owners)...)
	}
	var garbage []Step
	if f.Garbage > 0 {
		garbage = Random(r.Uint64(), len(steps)*f.Garbage/1000+1)
	}
	var out []Step
	back := int64(0)
	jump := -1
	if f.JumpBack && len(steps) > 0 {
		jump = r.IntN(len(steps))
	}
	for i, s := range copied(steps) {
		if i == jump {
			back = r.Int64N(int64(30 * time.Second))
		}
		s.Time -= back
		e := s.Event
		if e == nil {
			if f.Fold > 0 {
				s.Netns = Netns + (s.Netns-Netns)%uint32(f.Fold)
			}
			out = append(out, s)
			continue
		}
		e.Time -= back
		if of(f.Back) {
			e.Time -= r.Int64N(int64(2 * time.Second))
		}
		if f.Equal > 0 {
			e.Time -= e.Time % int64(f.Equal)
		}
		if f.Reuse > 0 && e.Sock != 0 {
			e.Sock = 1 + e.Sock%uint64(f.Reuse)
		}
		if f.Fold > 0 {
			e.Netns = Netns + (e.Netns-Netns)%uint32(f.Fold)
		}
		if of(f.Extreme) {
			extreme(r, e)
		}
		s.Time = e.Time
		switch {
		case of(f.Lost):
			if f.Announce {
				out = append(out, Step{Time: s.Time, Do: DoLost, Lost: 1})
			}
		case of(f.Doubled):
			out = append(out, s, s)
		default:
			out = append(out, s)
		}
		if of(f.Garbage) && len(garbage) > 0 {
			g := garbage[0]
			garbage = garbage[1:]
			g.Time = s.Time
			if g.Event != nil {
				g.Event.Time = s.Time
				if r.IntN(2) == 0 { // about what is there
					g.Event.Sock, g.Event.Netns, g.Event.Local, g.Event.Remote = e.Sock, e.Netns, e.Local, e.Remote
				}
			}
			out = append(out, g)
		}
	}
	if f.Late > 0 {
		out = Delayed(r, out, f.Late)
	}
	return out
}

// Delayed returns the steps in an order in which each event arrives up to d
// after its time. Other steps keep their place.
func Delayed(r *rand.Rand, steps []Step, d time.Duration) []Step {
	parts := make([][]Step, 0, 2)
	var events []Step
	flush := func() {
		type at struct {
			arrives int64
			s       Step
		}
		late := make([]at, len(events))
		for i, s := range events {
			late[i] = at{s.Time + r.Int64N(int64(d)), s}
		}
		slices.SortStableFunc(late, func(a, b at) int {
			switch {
			case a.arrives < b.arrives:
				return -1
			case a.arrives > b.arrives:
				return 1
			}
			return 0
		})
		part := make([]Step, len(late))
		for i := range late {
			part[i] = late[i].s
		}
		parts = append(parts, part)
		events = nil
	}
	for _, s := range steps {
		if s.Event != nil {
			events = append(events, s)
			continue
		}
		flush()
		parts = append(parts, []Step{s})
	}
	flush()
	return slices.Concat(parts...)
}

// extreme puts some fields of e to their limits.
func extreme(r *rand.Rand, e *event.Event) {
	for range 1 + r.IntN(3) {
		switch r.IntN(12) {
		case 0:
			e.Time = []int64{0, 1, -1, math.MaxInt64, math.MaxInt64 - 1, math.MaxInt64 - int64(time.Hour), math.MinInt64, math.MinInt64 + 1}[r.IntN(8)]
		case 1:
			e.Local = netip.AddrPortFrom(e.Local.Addr(), 0)
		case 2:
			e.Remote = netip.AddrPortFrom(e.Remote.Addr(), 0)
		case 3:
			e.Local, e.Remote = netip.AddrPort{}, netip.AddrPort{}
		case 4:
			e.Traffic = event.Traffic{BytesSent: math.MaxUint64, BytesReceived: math.MaxUint64, SRTT: math.MaxUint32,
				Retransmits: math.MaxUint32, Unread: math.MaxUint32, Unacked: math.MaxUint32}
		case 5:
			e.Listener.QueueLen, e.Listener.QueueLimit = math.MaxUint32, math.MaxUint32
			e.Listener.SYNQueueLen, e.Listener.Somaxconn, e.Listener.Backlog = math.MaxUint32, math.MaxUint32, math.MaxUint32
			e.Listener.Attempt, e.Listener.SYNACKRetries = math.MaxUint8, math.MaxUint8
		case 6:
			e.Attempt, e.Reason, e.Err = math.MaxUint8, math.MaxUint32, math.MaxUint16
		case 7:
			e.Flags = math.MaxUint16
		case 8:
			e.Netns = 0
		case 9:
			e.Sock = 0
		case 10:
			inv := &event.Inventory{Inode: math.MaxUint64, UID: math.MaxUint32, KeepaliveTime: math.MaxInt64,
				KeepaliveInterval: math.MaxInt64, KeepaliveProbes: math.MaxUint32, Idle: math.MaxInt64,
				SentIdle: math.MaxInt64, Left: math.MaxInt64, SendWindow: math.MaxUint32, ReceiveWindow: math.MaxUint32,
				Probes: math.MaxUint8, Retransmits: math.MaxUint8, Minisocket: r.IntN(2) == 0}
			if r.IntN(2) == 0 {
				inv.Idle, inv.KeepaliveTime, inv.KeepaliveInterval = math.MinInt64, math.MinInt64, math.MinInt64
				inv.SentIdle, inv.Left, inv.SendWindow, inv.ReceiveWindow = math.MinInt64, math.MinInt64, 0, 0
			}
			e.Inventory = inv
		case 11:
			e.Count, e.TCPFlags, e.Where = math.MaxUint32, math.MaxUint8, "\x1b[31m\n"+strings.Repeat("x", 300)
		}
	}
}

// Look returns the snapshots that would be taken after steps of a host that did
// what they tell, with the sockets' owners if they are to be named.
func Look(steps []Step, owners bool) []Step {
	type sock struct {
		last event.Event
		pid  uint32
		comm string
	}
	bySock := make(map[uint64]*sock)
	var order []uint64
	var spaces []uint32
	now := Start
	for _, s := range steps {
		now = max(now, s.Time)
		if s.Event == nil {
			if o := bySock[s.Sock]; o != nil && s.Do == DoOwner {
				o.pid, o.comm = s.PID, s.Comm
			}
			continue
		}
		e := *s.Event
		if !slices.Contains(spaces, e.Netns) {
			spaces = append(spaces, e.Netns)
		}
		o := bySock[e.Sock]
		switch e.Kind {
		case event.KindState, event.KindSnapshot, event.KindAccept:
		default:
			continue
		}
		if e.Sock == 0 || e.New == event.StateNewSynRecv {
			continue
		}
		if o == nil {
			o = &sock{}
			bySock[e.Sock] = o
			order = append(order, e.Sock)
		}
		if e.Has(event.FlagProcess) {
			o.pid, o.comm = e.PID, e.Comm.String()
		}
		if e.Kind != event.KindAccept || o.last.Kind == event.KindNone {
			o.last = e
		}
	}
	var out []Step
	at := now
	for _, ns := range spaces {
		at++
		out = append(out, Step{Time: at, Do: DoBegin, Netns: ns})
		for _, id := range order {
			o := bySock[id]
			e := o.last
			if e.Netns != ns || e.New == event.StateClose || e.New == event.StateUnknown {
				continue
			}
			at++
			inv := &event.Inventory{Inode: 1, Idle: -1, SentIdle: -1, Left: -1, SendWindow: 65535, ReceiveWindow: 65535}
			if e.Inventory != nil {
				*inv = *e.Inventory
				// Windows may have opened since: events do not tell.
				inv.SendWindow, inv.ReceiveWindow, inv.Probes = 65535, 65535, 0
				if inv.Idle >= 0 {
					inv.Idle += time.Duration(at - e.Time)
				}
			}
			if e.Has(event.FlagDead) {
				inv.Inode = 0
			}
			e.Time, e.Kind, e.Old, e.Flags, e.Inventory = at, event.KindSnapshot, e.New, e.Flags&^event.FlagProcess, inv
			e.PID, e.Comm, e.Cgroup = 0, event.Comm{}, 0
			out = append(out, Step{Time: at, Event: &e})
		}
		at++
		out = append(out, Step{Time: at, Do: DoEnd, Netns: ns})
		if owners {
			for _, id := range order {
				if o := bySock[id]; o.last.Netns == ns && o.pid != 0 {
					out = append(out, Step{Time: at, Do: DoOwner, Sock: id, PID: o.pid, Comm: o.comm})
				}
			}
		}
	}
	return out
}

// Addresses returns the steps as a kernel tells them that gives tracers no
// cookie: a socket's identity is its address in memory, which the next socket
// gets as soon as it is free, and a request's is not that of its child.
func Addresses(steps []Step) []Step {
	out := copied(steps)
	type key struct {
		sock    uint64
		request bool
	}
	of := make(map[key]uint64)
	var free []uint64
	next := uint64(0xffff888100000000)
	address := func(k key) uint64 {
		if k.sock == 0 {
			return 0
		}
		a, ok := of[k]
		if !ok {
			if n := len(free); n > 0 {
				a, free = free[n-1], free[:n-1]
			} else {
				next += 4096
				a = next
			}
			of[k] = a
		}
		return a
	}
	release := func(k key) {
		if a, ok := of[k]; ok {
			free = append(free, a)
			delete(of, k)
		}
	}
	// The last mention of a socket is when it can be freed at the earliest.
	last := make(map[key]int)
	keyOf := func(e *event.Event) key {
		switch e.Kind {
		case event.KindACKOverflow, event.KindSYNACKRetrans, event.KindRequestAborted:
			return key{e.Sock, true}
		}
		return key{e.Sock, false}
	}
	for i := range out {
		if e := out[i].Event; e != nil {
			last[keyOf(e)] = i
			last[key{e.Listener.ID, false}] = i
		} else if out[i].Do == DoOwner {
			last[key{out[i].Sock, false}] = i
		}
	}
	closed := make(map[key]bool)
	for i := range out {
		s := &out[i]
		e := s.Event
		if e == nil {
			if s.Do == DoOwner {
				s.Sock = address(key{s.Sock, false})
			}
			continue
		}
		k := keyOf(e)
		id := e.Listener.ID
		e.Sock = address(k)
		e.Listener.ID = address(key{id, false})
		// (A request that is merely forgotten holds its address until then.)
		closed[k] = closed[k] || e.Kind == event.KindState && e.New == event.StateClose ||
			e.Kind == event.KindRequestAborted || e.Kind == event.KindACKOverflow && e.Has(event.FlagRST)
		if last[k] == i && closed[k] {
			release(k)
		}
	}
	return out
}
