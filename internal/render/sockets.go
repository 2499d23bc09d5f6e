package render

import (
	"fmt"
	"io"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/tcptrace/tcptrace/internal/container"
	"github.com/tcptrace/tcptrace/internal/sockets"
	"github.com/tcptrace/tcptrace/internal/timeline"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// Sockets writes what exists now. Namespace comes before anything of that
// namespace, Report once, last but for Flush.
type Sockets interface {
	Namespace(event.Namespace)
	// Socket writes one socket.
	Socket(*sockets.Socket) error
	Report(*Inventory) error
	Flush() error
}

// Inventory is what exists at one moment.
type Inventory struct {
	Time Stamp
	*sockets.Report
	// Counters are the namespaces' own; nil where they are not asked for.
	Counters []SocketCounters
	// Problems say in sentences what is missing, and why.
	Problems []string
}

// SocketCounters are the kernel's counters of a namespace since it began.
type SocketCounters struct {
	Netns    uint32
	Counters []sockets.Counter
}

// socketOwner is a process as JSON has it, nil if none is known.
func socketOwner(o sockets.Owner, h sockets.Hold) *Process {
	if o.PID == 0 {
		return nil
	}
	p := &Process{PID: o.PID, Comm: o.Comm, Source: "snapshot", Cgroup: o.Cgroup}
	if h == sockets.HoldQueue {
		p.Source = "listener"
	}
	if c, ok := container.Parse(o.Cgroup); ok {
		p.Container = &c
	}
	return p
}

// SocketsJSON writes one object a line.
type SocketsJSON struct {
	*JSON
	clock Clock
	name  map[uint32]string
}

// NewSocketsJSON returns a renderer that writes JSON lines to w.
func NewSocketsJSON(w io.Writer, clock Clock) *SocketsJSON {
	return &SocketsJSON{JSON: NewJSON(w), clock: clock, name: make(map[uint32]string)}
}

// Namespace keeps a namespace's name.
func (j *SocketsJSON) Namespace(ns event.Namespace) { j.name[ns.Inode] = ns.Name }

// head is what all lines begin with.
type socketsHead struct {
	Type      string `json:"type"`
	Time      Stamp  `json:"time"`
	Netns     uint32 `json:"netns"`
	NetnsName string `json:"netns_name"`
}

func (j *SocketsJSON) head(kind string, at Stamp, netns uint32) socketsHead {
	return socketsHead{kind, at, netns, j.name[netns]}
}

// seconds shows a time to the millisecond, nil if it is not known.
func seconds(d time.Duration, known bool) *float64 {
	if !known || d < 0 {
		return nil
	}
	s := math.Round(d.Seconds()*1e3) / 1e3
	return &s
}

func optional[T any](v T, known bool) *T {
	if !known {
		return nil
	}
	return &v
}

func stateCounts(s sockets.States) map[string]uint64 {
	m := make(map[string]uint64)
	for i, n := range s {
		if n > 0 {
			m[sockets.StateName(event.State(i))] += n
		}
	}
	return m
}

// Socket writes one socket.
func (j *SocketsJSON) Socket(s *sockets.Socket) error {
	silent, reset, reaped := s.ReapedAfter()
	return j.line(struct {
		socketsHead
		State       string   `json:"state"`
		Local       string   `json:"local"`
		Remote      string   `json:"remote"`
		Role        string   `json:"role"`
		Listener    string   `json:"listener"`
		HeldBy      string   `json:"held_by"`
		Process     *Process `json:"process"`
		Holders     int      `json:"holders"`
		UID         *uint32  `json:"uid"`
		Inode       uint64   `json:"inode"`
		RecvQ       *uint32  `json:"recv_q"`
		SendQ       *uint32  `json:"send_q"`
		Idle        *float64 `json:"idle_s"`
		SentIdle    *float64 `json:"sent_idle_s"`
		Left        *float64 `json:"left_s"`
		Keepalive   *bool    `json:"keepalive"`
		ReapedAfter *float64 `json:"reaped_after_s"`
		ReapedRST   *float64 `json:"reaped_after_rst_s"`
		Probes      *uint8   `json:"probes_unanswered"`
		Backoff     *uint8   `json:"rto_in_a_row"`
		SendWindow  *uint32  `json:"send_window"`
		RecvWindow  *uint32  `json:"receive_window"`
		Sent        *uint64  `json:"bytes_sent"`
		Received    *uint64  `json:"bytes_received"`
		Retransmits *uint32  `json:"retransmits"`
		SRTT        *uint32  `json:"srtt_us"`
	}{
		j.head("socket", j.clock.Stamp(s.Time), s.Netns), sockets.StateName(s.State), Addr(s.Local), Addr(s.Remote),
		s.Role.String(), Addr(s.Listener), s.Hold.String(), socketOwner(s.Owner, s.Hold), s.Owner.Holders,
		optional(s.UID, s.Inode != 0), s.Inode,
		optional(s.Traffic.Unread, s.Full), optional(s.Traffic.Unacked, s.Full),
		seconds(s.Idle, true), seconds(s.Sent, true), seconds(s.Left, true),
		optional(s.Keepalive, s.Full), seconds(silent, reaped), seconds(reset, reaped),
		optional(s.Probes, s.Full), optional(s.Backoff, s.Full), optional(s.SendWindow, s.Full), optional(s.ReceiveWindow, s.Full),
		optional(s.Traffic.BytesSent, s.Full), optional(s.Traffic.BytesReceived, s.Full),
		optional(s.Traffic.Retransmits, s.Full), optional(s.Traffic.SRTT, s.Full && s.Traffic.SRTT != 0),
	})
}

func (j *SocketsJSON) listener(s *sockets.Socket, at Stamp) error {
	q := s.Queue
	by := sockets.LimitedBy(q)
	return j.line(struct {
		socketsHead
		Local     string   `json:"local"`
		Process   *Process `json:"process"`
		Holders   int      `json:"holders"`
		UID       *uint32  `json:"uid"`
		Inode     uint64   `json:"inode"`
		QueueLen  uint32   `json:"queue_len"`
		Limit     uint32   `json:"backlog_limit"`
		Argument  *uint32  `json:"backlog_argument"` // never known from a snapshot
		Somaxconn uint32   `json:"somaxconn"`
		LimitedBy *string  `json:"limited_by"`
		Full      bool     `json:"queue_full"`
		SYNQueue  uint32   `json:"syn_queue_len"`
		Abort     bool     `json:"abort_on_overflow"`
		Cookies   uint8    `json:"syncookies"`
		Notes     []string `json:"notes"`
	}{
		j.head("listener", at, s.Netns), Addr(s.Local), socketOwner(s.Owner, s.Hold), s.Owner.Holders,
		optional(s.UID, s.Inode != 0), s.Inode, q.QueueLen, q.QueueLimit, nil, q.Somaxconn, optional(by, by != ""),
		sockets.Full(q), q.SYNQueueLen, q.AbortOnOverflow, q.SYNCookies, list(sockets.ListenerNotes(s)),
	})
}

// jsonAddress is a remote address and how many sockets go there.
type jsonAddress struct {
	Address string `json:"address"`
	Count   uint64 `json:"count"`
}

// remote shows a group's far end: an address with its port, or without.
func remote(a netip.AddrPort) string {
	if a.IsValid() && a.Port() == 0 {
		return a.Addr().Unmap().String()
	}
	return Addr(a)
}

func (j *SocketsJSON) group(g *sockets.Group, at Stamp) error {
	by := g.By
	var owner *Process
	if len(g.Owners) == 1 && !g.OwnersMore {
		owner = socketOwner(g.Owners[0], g.Hold)
	}
	addresses := make([]jsonAddress, len(g.Addresses))
	for i, a := range g.Addresses {
		addresses[i] = jsonAddress{a.Addr.String(), a.Count}
	}
	keepalive := g.Keepalive()
	known := g.ReapKnown()
	idle, left := g.IdleKnown > 0, g.LeftKnown > 0
	held := map[string]uint64{}
	for h, n := range g.Holds {
		if n > 0 {
			held[sockets.Hold(h).String()] = n
		}
	}
	kind := g.Role.String()
	return j.line(struct {
		socketsHead
		Count     uint64            `json:"count"`
		State     *string           `json:"state"`
		States    map[string]uint64 `json:"states"`
		HeldBy    map[string]uint64 `json:"held_by"`
		Process   *Process          `json:"process"`
		Processes int               `json:"processes"`
		More      bool              `json:"processes_at_least"`
		Role      *string           `json:"role"`
		Local     string            `json:"local"`
		Remote    string            `json:"remote"`
		Addresses int               `json:"addresses"`
		AtLeast   bool              `json:"addresses_at_least"`
		Top       []jsonAddress     `json:"top_addresses"`
		Oldest    *float64          `json:"idle_oldest_s"`
		Newest    *float64          `json:"idle_newest_s"`
		LeftMin   *float64          `json:"left_shortest_s"`
		LeftMax   *float64          `json:"left_longest_s"`
		RecvQ     uint64            `json:"recv_q"`
		SendQ     uint64            `json:"send_q"`
		Keepalive *string           `json:"keepalive"`
		On        uint64            `json:"keepalive_on"`
		Off       uint64            `json:"keepalive_off"`
		Reaped    *float64          `json:"reaped_after_s"`
		ReapedRST *float64          `json:"reaped_after_rst_s"`
		NextReap  *float64          `json:"next_reap_s"`
		Further   bool              `json:"further"`
		Trouble   bool              `json:"trouble"`
		Notes     []string          `json:"notes"`
	}{
		j.head("sockets", at, g.Netns), g.Count,
		optional(sockets.StateName(g.State), g.State != 0), stateCounts(g.States), held,
		owner, len(g.Owners), g.OwnersMore, optional(kind, by&(sockets.ByService|sockets.ByPeer) != 0 && !g.Further),
		Addr(g.Local), remote(g.Remote), g.AddressCount, g.AddressesMore, addresses,
		seconds(g.IdleOldest, idle), seconds(g.IdleNewest, idle), seconds(g.LeftShortest, left), seconds(g.LeftLongest, left),
		g.RecvQ, g.SendQ, optional(keepalive, keepalive != ""), g.KeepaliveOn, g.KeepaliveOff,
		seconds(g.ReapedSilent, known), seconds(g.ReapedReset, known), seconds(g.NextReap, known),
		g.Further, g.Trouble, list(g.Notes),
	})
}

func (j *SocketsJSON) portRange(p *sockets.PortUse, at Stamp) error {
	return j.line(struct {
		socketsHead
		Local   string            `json:"local"`
		Remote  string            `json:"remote"`
		Range   [2]int            `json:"range"`
		Ports   int               `json:"ports"`
		InUse   int               `json:"in_use"`
		Share   float64           `json:"share"`
		States  map[string]uint64 `json:"states"`
		TWReuse int               `json:"tw_reuse"`
	}{
		j.head("port-range", at, p.Netns), p.Local.String(), Addr(p.Remote), [2]int{p.Low, p.High}, p.Ports(), p.InUse,
		math.Round(p.Share()*1e6) / 1e6, stateCounts(p.States), p.TWReuse,
	})
}

// Report writes the listeners, the groups, the use of ports, the counters and
// a line with totals.
func (j *SocketsJSON) Report(r *Inventory) error {
	for i := range r.Listeners {
		if err := j.listener(&r.Listeners[i], r.Time); err != nil {
			return err
		}
	}
	for _, g := range r.Groups {
		if err := j.group(g, r.Time); err != nil {
			return err
		}
	}
	for _, p := range r.Ports {
		if err := j.portRange(p, r.Time); err != nil {
			return err
		}
	}
	for _, c := range r.Counters {
		var d Details
		for _, n := range c.Counters {
			d = append(d, timeline.Detail{Key: n.Name, Value: n.Value})
			if n.Of > 0 {
				d = append(d, timeline.Detail{Key: n.OfName, Value: n.Of})
			}
		}
		if err := j.line(struct {
			socketsHead
			Counters Details `json:"counters"`
		}{j.head("counters", r.Time, c.Netns), d}); err != nil {
			return err
		}
	}
	return j.line(struct {
		Type             string            `json:"type"`
		Time             Stamp             `json:"time"`
		Sockets          uint64            `json:"sockets"`
		States           map[string]uint64 `json:"states"`
		Namespaces       int               `json:"namespaces"`
		ListenersLeftOut uint64            `json:"listeners_left_out"`
		Ungrouped        uint64            `json:"ungrouped"`
		PortsLeftOut     uint64            `json:"port_range_left_out"`
		Problems         []string          `json:"problems"`
	}{
		"total", r.Time, r.Sockets, stateCounts(r.States), r.Namespaces,
		r.ListenersLeftOut, r.Ungrouped, r.PortsLeftOut, list(r.Problems),
	})
}

// SocketsText writes for people.
type SocketsText struct {
	*Text
	top    int
	only   string // the namespace that all is in, if it is not the own one
	listed bool
}

// NewSocketsText returns a renderer that writes text to w, at most top lines
// of a kind, 0 for all.
func NewSocketsText(w io.Writer, o TextOptions, top int) *SocketsText {
	if top <= 0 {
		top = math.MaxInt
	}
	return &SocketsText{Text: NewText(w, o), top: top}
}

// Only says that all will be of one namespace, which is told once then.
func (t *SocketsText) Only(ns event.Namespace) {
	t.Namespace(ns)
	t.only = t.netns(ns.Inode)
	t.o.Netns = ns.Inode
}

// column of a table. One with nothing in it is left out.
type column struct {
	title string
	right bool
	flex  bool // takes the room that is left, and wraps
	keep  bool // also where it is empty
	spare int  // where room is short, the highest is left out first; 0 never
}

type row struct {
	trouble bool
	remark  bool     // worth a look
	cells   []string // safe; in the flexible one, "\n" is the best place to break
	notes   []string // safe
}

const (
	gap      = 2
	flexLow  = 24 // columns below which others give way
	noteText = "      "
)

// table writes rows under their titles and returns which columns there was
// room and reason for.
func (t *SocketsText) table(cols []column, rows []row) (shown []bool) {
	width := make([]int, len(cols))
	filled := make([]bool, len(cols))
	flex := 0
	for i, c := range cols {
		if c.flex {
			flex = i
		}
		width[i], filled[i] = columns(c.title), c.keep
		for _, r := range rows {
			width[i] = max(width[i], columns(strings.ReplaceAll(r.cells[i], "\n", " ")))
			filled[i] = filled[i] || r.cells[i] != "" && r.cells[i] != "0"
		}
	}
	filled[flex] = true
	room := func() int {
		left := t.o.Width - gap
		for i := range cols {
			if filled[i] && i != flex {
				left -= width[i] + gap
			}
		}
		return left
	}
	for spare := 9; spare > 0 && room() < min(flexLow, width[flex]); spare-- {
		for i, c := range cols {
			filled[i] = filled[i] && c.spare != spare
		}
	}
	width[flex] = min(width[flex], max(room(), 16))

	line := func(mark string, cells []string, style string) {
		wrapped := wrapParts(cells[flex], width[flex])
		for n, part := range wrapped {
			var b strings.Builder
			b.WriteString(Pad(mark, gap))
			mark = ""
			for i, c := range cols {
				if !filled[i] {
					continue
				}
				cell := ""
				switch {
				case i == flex:
					cell = part
				case n == 0:
					cell = cells[i]
				}
				if c.right {
					b.WriteString(padLeft(cell, width[i]))
				} else {
					b.WriteString(Pad(cell, width[i]))
				}
				b.WriteString(strings.Repeat(" ", gap))
			}
			t.print(t.style(style, strings.TrimRight(b.String(), " ")) + "\n")
		}
	}
	titles := make([]string, len(cols))
	for i, c := range cols {
		titles[i] = c.title
	}
	line("", titles, dim)
	for _, r := range rows {
		mark, style := "", plain
		switch {
		case r.trouble:
			mark, style = "!", bold
		case r.remark:
			style = yellow
		}
		line(mark, r.cells, style)
		for _, n := range r.notes {
			t.para(noteText, plain, n, map[bool]string{true: yellow, false: dim}[r.trouble])
		}
	}
	return filled
}

// wrapParts is Wrap that breaks a line at "\n" rather than at a blank.
func wrapParts(s string, width int) []string {
	var lines []string
	line := ""
	for part := range strings.SplitSeq(s, "\n") {
		if line != "" && columns(line)+1+columns(part) <= width {
			line += " " + part
			continue
		}
		if line != "" {
			lines = append(lines, Wrap(line, width)...)
		}
		line = part
	}
	return append(lines, Wrap(line, width)...)
}

// further says how much of a list is not shown.
func (t *SocketsText) further(shown, all int, what string) {
	if all > shown {
		t.para("  ", plain, fmt.Sprintf("and %s more %s (--top 0 shows all)", Thousands(uint64(all-shown)), what), dim)
	}
}

func (t *SocketsText) title(text, rest string) {
	t.print("\n")
	if rest == "" {
		t.print(t.style(bold, text) + "\n")
		return
	}
	t.para(text+"  ", bold, rest, dim)
}

// byStates lists states with their counts, the most frequent first.
func byStates(s sockets.States) string {
	var parts []string
	for range s {
		best := 0
		for i, n := range s {
			if n > s[best] {
				best = i
			}
		}
		if s[best] == 0 {
			break
		}
		parts = append(parts, Thousands(s[best])+" "+sockets.StateName(event.State(best)))
		s[best] = 0
	}
	return strings.Join(parts, ", ")
}

// who names a process.
func (t *SocketsText) who(o sockets.Owner) string {
	var in *container.Container
	if c, ok := container.Parse(o.Cgroup); ok {
		in = &c
	}
	text := person(o.PID, o.Comm, in)
	if o.Holders > 1 {
		text += fmt.Sprintf(" +%d", o.Holders-1)
	}
	return text
}

// inNetns appends a namespace that is not the own.
func (t *SocketsText) inNetns(text string, netns uint32) string {
	if ns := t.netns(netns); ns != "" {
		return strings.TrimPrefix(text+"\n"+ns, "\n")
	}
	return text
}

const socketLine = "%-11s %7s %7s %-24s %-24s %-9s %-6s %s"

// Socket writes one line. Lines are as long as they must be.
func (t *SocketsText) Socket(s *sockets.Socket) error {
	if !t.listed {
		t.listed = true
		t.print(t.style(dim, fmt.Sprintf(socketLine, "STATE", "RECV-Q", "SEND-Q", "LOCAL", "REMOTE", "IDLE", "REAPED", "PROCESS")) + "\n")
	}
	recv, send, idle, reaped, who := "", "", "", "", t.holder(s.Hold, s.Owner, s.State)
	switch {
	case s.Role == sockets.RoleListener:
		recv, send = strconv.Itoa(int(s.Queue.QueueLen)), strconv.Itoa(int(s.Queue.QueueLimit))
	case s.Full:
		recv, send = strconv.Itoa(int(s.Traffic.Unread)), strconv.Itoa(int(s.Traffic.Unacked))
	}
	if s.Idle >= 0 {
		idle = sockets.Age(s.Idle)
	} else if s.Left >= 0 {
		idle = sockets.Age(s.Left) + " left"
	}
	if silent, _, ok := s.ReapedAfter(); ok {
		reaped = sockets.Age(silent)
	} else if s.Full && !s.Keepalive && sockets.Watched(s.State) {
		reaped = "never"
	}
	remote := Addr(s.Remote)
	if remote == "" {
		remote = "*"
	}
	t.print(strings.TrimRight(fmt.Sprintf(socketLine, sockets.StateName(s.State), recv, send, Addr(s.Local), remote, idle, reaped,
		strings.ReplaceAll(t.inNetns(who, s.Netns), "\n", " ")), " ") + "\n")
	return t.result()
}

// holder tells who has a socket.
func (t *SocketsText) holder(h sockets.Hold, o sockets.Owner, st event.State) string {
	who := t.who(o)
	switch h {
	case sockets.HoldProcess:
		return who
	case sockets.HoldQueue:
		if who == "" {
			return "in the accept queue"
		}
		return "accept queue of " + who
	case sockets.HoldRequest:
		return "half-open"
	case sockets.HoldKernel:
		if st == event.StateTimeWait {
			return ""
		}
		return "orphan"
	}
	return "process unknown"
}

func (t *SocketsText) listeners(r *Inventory) {
	shown := r.Listeners[:min(len(r.Listeners), t.top)]
	if len(shown) == 0 {
		return
	}
	t.title("listeners", "")
	var rows []row
	for i := range shown {
		s := &shown[i]
		q := s.Queue
		by := map[string]string{"somaxconn": "somaxconn", "backlog argument": "backlog"}[sockets.LimitedBy(q)]
		if by == "" {
			by = "?"
		}
		notes := sockets.ListenerNotes(s)
		syn := ""
		if q.SYNQueueLen > 0 {
			syn = Thousands(uint64(q.SYNQueueLen))
		}
		rows = append(rows, row{
			trouble: len(notes) > 0, notes: notes,
			cells: []string{
				Thousands(uint64(q.QueueLen)), Thousands(uint64(q.QueueLimit)), by, syn, Addr(s.Local),
				t.inNetns(t.holder(s.Hold, s.Owner, s.State), s.Netns),
			},
		})
	}
	t.table([]column{
		{title: "QUEUE", right: true, keep: true}, {title: "LIMIT", right: true}, {title: "SET BY", spare: 1}, {title: "SYN", right: true},
		{title: "ADDRESS"}, {title: "PROCESS", flex: true},
	}, rows)
	t.further(len(shown), len(r.Listeners), "listeners")
}

// span shows the least and the most of some times.
func span(newest, oldest time.Duration) string {
	a, b := sockets.Age(newest), sockets.Age(oldest)
	if a == b {
		return a
	}
	return a + "-" + b
}

// size shows bytes in at most six characters, "" for none.
func size(n uint64) string {
	switch {
	case n == 0:
		return ""
	case n < 10_000:
		return strconv.FormatUint(n, 10)
	case n < 10_000_000:
		return strconv.FormatUint(n/1000, 10) + "k"
	case n < 10_000_000_000:
		return strconv.FormatUint(n/1_000_000, 10) + "M"
	}
	return strconv.FormatUint(n/1_000_000_000, 10) + "G"
}

// about says what the sockets of a group have in common but their state.
func (t *SocketsText) about(g *sockets.Group) string {
	if g.Further {
		return t.inNetns("in further groups", g.Netns)
	}
	var parts []string
	add := func(s string) {
		if s != "" {
			parts = append(parts, s)
		}
	}
	switch {
	case g.By&sockets.ByProcess != 0:
		var o sockets.Owner
		if len(g.Owners) > 0 {
			o = g.Owners[0]
		}
		add(t.holder(g.Hold, o, g.State))
	default:
		for i, o := range g.Owners {
			if i == 2 {
				more := fmt.Sprintf("%d more", len(g.Owners)-2)
				if g.OwnersMore {
					more = "many more"
				}
				add("and " + more)
				break
			}
			add(t.who(o))
		}
	}
	from := ""
	switch {
	case g.Remote.IsValid():
		from = remote(g.Remote)
	case g.AddressCount == 1 && !g.AddressesMore:
		from = g.Addresses[0].Addr.String()
	case g.AddressCount > 1 || g.AddressesMore:
		more := ""
		if g.AddressesMore {
			more = "more than "
		}
		from = fmt.Sprintf("%s%s addresses", more, Thousands(uint64(g.AddressCount)))
		if a := g.Addresses; len(a) > 0 && a[0].Count > 1 {
			from += fmt.Sprintf(" (%s: %s)", a[0].Addr, Thousands(a[0].Count))
		}
	}
	switch g.Role {
	case sockets.RoleServer:
		add(Addr(g.Local))
		add("<- " + from)
	case sockets.RoleClient:
		add("-> " + from)
	default:
		if from != "" {
			add("<-> " + from)
		}
	}
	if g.By&sockets.ByState == 0 {
		add("(" + byStates(g.States) + ")")
	}
	return t.inNetns(strings.Join(parts, "\n"), g.Netns)
}

func (t *SocketsText) groups(r *Inventory) {
	shown := r.Groups[:min(len(r.Groups), t.top)]
	if len(shown) == 0 {
		return
	}
	t.title("sockets", "")
	var rows []row
	for _, g := range shown {
		state, idle, keepalive := "", "", g.Keepalive()
		if g.By&sockets.ByState != 0 {
			state = sockets.StateName(g.State)
		}
		switch {
		case g.IdleKnown > 0:
			idle = span(g.IdleNewest, g.IdleOldest)
		case g.LeftKnown > 0:
			idle = span(g.LeftShortest, g.LeftLongest) + " left"
		}
		if keepalive == "on" && g.ReapKnown() {
			keepalive = sockets.Age(g.ReapedSilent)
		} else if keepalive == "off" {
			keepalive = "never"
		}
		rows = append(rows, row{trouble: g.Trouble, remark: g.Closing(), notes: g.Notes, cells: []string{
			Thousands(g.Count), state, t.about(g), idle, keepalive, size(g.RecvQ), size(g.SendQ),
		}})
	}
	seen := t.table([]column{
		{title: "COUNT", right: true}, {title: "STATE"}, {title: "PROCESS AND PEER", flex: true}, {title: "IDLE", spare: 1},
		{title: "REAPED", spare: 4}, {title: "RECV-Q", right: true, spare: 2}, {title: "SEND-Q", right: true, spare: 3},
	}, rows)
	t.further(len(shown), len(r.Groups), "groups")
	var legend []string
	if seen[3] {
		legend = append(legend, "IDLE: since the last segment received.")
	}
	if seen[4] {
		legend = append(legend, "REAPED: silence that keepalive ends.")
	}
	if legend != nil {
		t.para("  ", plain, strings.Join(legend, " "), dim)
	}
}

// minShare is how much of the range makes a destination worth a line.
const minShare = 0.1

func (t *SocketsText) portRanges(r *Inventory) {
	if len(r.Ports) == 0 {
		return
	}
	var rows []row
	all := 0
	for _, p := range r.Ports {
		if p.Share() < minShare {
			continue
		}
		if all++; all > t.top {
			continue
		}
		rows = append(rows, row{trouble: p.Share() >= 0.5, cells: []string{
			strconv.FormatFloat(100*p.Share(), 'f', 0, 64) + "%", Thousands(uint64(p.InUse)), Thousands(uint64(p.Ports())),
			t.inNetns(fmt.Sprintf("%s -> %s\n(%s)", p.Local, Addr(p.Remote), byStates(p.States)), p.Netns),
		}})
	}
	if len(rows) == 0 {
		most := r.Ports[0]
		t.title("ports", fmt.Sprintf("at most %s of %s in use towards one destination", Thousands(uint64(most.InUse)), Thousands(uint64(most.Ports()))))
		return
	}
	t.title("ports", "towards one destination, of net.ipv4.ip_local_port_range")
	t.table([]column{
		{title: "USED", right: true}, {title: "PORTS", right: true}, {title: "OF", right: true}, {title: "DESTINATION", flex: true},
	}, rows)
	t.further(len(rows), all, "destinations")
}

func (t *SocketsText) counters(r *Inventory) {
	for _, c := range r.Counters {
		if len(c.Counters) == 0 {
			continue
		}
		if ns := t.netns(c.Netns); ns != "" {
			// Elsewhere, in short: only what healthy hosts have not.
			var items []string
			for _, n := range c.Counters {
				if !n.Common {
					items = append(items, n.Name+" "+Thousands(n.Value))
				}
			}
			if len(items) > 0 {
				t.title("kernel counters", "of "+ns+", since it began")
				t.pack(4, items, plain)
			}
			continue
		}
		t.title("kernel counters", "since this network namespace began, other than 0")
		var rows []row
		for _, n := range c.Counters {
			text := n.Meaning
			if n.Of > 0 {
				text += fmt.Sprintf(" (%.2g%% of %s)", 100*float64(n.Value)/float64(n.Of), n.OfName)
			}
			rows = append(rows, row{cells: []string{Thousands(n.Value), n.Name, text}})
		}
		t.table([]column{{title: "COUNT", right: true}, {title: "COUNTER"}, {title: "", flex: true}}, rows)
	}
}

// Report writes the overview.
func (t *SocketsText) Report(r *Inventory) error {
	if t.listed {
		t.print("\n")
	}
	local := time.Unix(0, int64(r.Time)).In(t.o.Location)
	text := fmt.Sprintf("%s TCP sockets", Thousands(r.Sockets))
	if r.Sockets == 1 {
		text = "1 TCP socket"
	}
	if r.Namespaces != 1 {
		text += fmt.Sprintf(" in %d network namespaces", r.Namespaces)
	} else if t.only != "" {
		text += " in " + t.only
	}
	if s := byStates(r.States); s != "" {
		text += ": " + s
	}
	t.para(local.Format("15:04:05")+" ", bold, text, plain)
	for _, p := range r.Problems {
		t.para("not known: ", yellow, Safe(p), dim)
	}
	t.listeners(r)
	if !t.listed {
		t.groups(r)
	}
	t.portRanges(r)
	t.counters(r)
	return t.result()
}
