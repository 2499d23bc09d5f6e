package export

import (
	"fmt"
	"net/netip"

	"github.com/tcptrace/tcptrace/internal/container"
	"github.com/tcptrace/tcptrace/internal/render"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// The columns of the tables. docs/export.md says what each means; the test in
// readback holds the two together. A column is added at the end of its group,
// and none is renamed: people have queries.

type eventRow struct {
	Host       string  `parquet:"host,dict"`
	Run        int32   `parquet:"run,dict"`
	Seq        int64   `parquet:"seq,delta"`
	Time       *int64  `parquet:"time,timestamp(nanosecond:utc),optional"`
	TimeNS     *int64  `parquet:"time_ns,optional"`
	BootTimeNS int64   `parquet:"boottime_ns,delta"`
	Kind       string  `parquet:"kind,dict"`
	KindNumber uint32  `parquet:"kind_number,uint(8),dict"`
	OldState   string  `parquet:"old_state,dict"`
	NewState   string  `parquet:"new_state,dict"`
	Conn       *string `parquet:"conn,dict,optional"`
	Sock       *uint64 `parquet:"sock,optional"`
	Netns      uint32  `parquet:"netns,dict"`
	LocalAddr  *string `parquet:"local_addr,dict,optional"`
	LocalPort  *uint32 `parquet:"local_port,uint(16),optional"`
	RemoteAddr *string `parquet:"remote_addr,dict,optional"`
	RemotePort *uint32 `parquet:"remote_port,uint(16),optional"`

	PID      *uint32 `parquet:"pid,dict,optional"`
	Comm     *string `parquet:"comm,dict,optional"`
	CgroupID *uint64 `parquet:"cgroup_id,dict,optional"`

	Flags      []string `parquet:"flags,list" parquet-element:",dict"`
	FlagsRaw   uint32   `parquet:"flags_raw,uint(16),dict"`
	Err        uint32   `parquet:"err,uint(16),dict"`
	ErrName    *string  `parquet:"err_name,dict,optional"`
	Attempt    uint32   `parquet:"attempt,uint(8),dict"`
	Reason     uint32   `parquet:"reason,dict"`
	ReasonName *string  `parquet:"reason_name,dict,optional"`

	TCPFlags    *string `parquet:"tcp_flags,dict,optional"`
	TCPFlagsRaw *uint32 `parquet:"tcp_flags_raw,uint(8),dict,optional"`
	Direction   *string `parquet:"direction,dict,optional"`
	Function    *string `parquet:"kernel_function,dict,optional"`
	Times       uint64  `parquet:"times"`

	BytesSent     *uint64 `parquet:"bytes_sent,optional"`
	BytesReceived *uint64 `parquet:"bytes_received,optional"`
	SRTT          *uint32 `parquet:"srtt_us,optional"`
	Retransmits   *uint32 `parquet:"retransmits,optional"`
	Unread        *uint32 `parquet:"unread,optional"`
	Unacked       *uint32 `parquet:"unacked,optional"`

	ListenerID      *uint64 `parquet:"listener_id,dict,optional"`
	QueueLen        *uint32 `parquet:"queue_len,optional"`
	QueueLimit      *uint32 `parquet:"queue_limit,optional"`
	SYNQueueLen     *uint32 `parquet:"syn_queue_len,optional"`
	Somaxconn       *uint32 `parquet:"somaxconn,optional"`
	Backlog         *int32  `parquet:"backlog,optional"`
	AbortOnOverflow *bool   `parquet:"abort_on_overflow,optional"`
	SYNCookies      *uint32 `parquet:"syncookies,uint(8),optional"`
	SYNACKAttempt   *uint32 `parquet:"syn_ack_attempt,uint(8),optional"`
	SYNACKRetries   *uint32 `parquet:"syn_ack_retries,uint(8),optional"`
}

type connectionRow struct {
	Host      string  `parquet:"host,dict"`
	Run       int32   `parquet:"run,dict"`
	Conn      string  `parquet:"conn"`
	Peer      *string `parquet:"peer,optional"`
	Time      *int64  `parquet:"time,timestamp(nanosecond:utc),optional"`
	Netns     uint32  `parquet:"netns,dict"`
	NetnsName *string `parquet:"netns_name,dict,optional"`
	Role      string  `parquet:"role,dict"`

	LocalAddr    *string `parquet:"local_addr,dict,optional"`
	LocalPort    *uint32 `parquet:"local_port,uint(16),optional"`
	RemoteAddr   *string `parquet:"remote_addr,dict,optional"`
	RemotePort   *uint32 `parquet:"remote_port,uint(16),optional"`
	ListenerAddr *string `parquet:"listener_addr,dict,optional"`
	ListenerPort *uint32 `parquet:"listener_port,uint(16),optional"`

	PID              *uint32 `parquet:"pid,dict,optional"`
	Comm             *string `parquet:"comm,dict,optional"`
	OwnerSource      string  `parquet:"owner_source,dict"`
	Cgroup           *string `parquet:"cgroup,dict,optional"`
	Container        *string `parquet:"container,dict,optional"`
	ContainerRuntime *string `parquet:"container_runtime,dict,optional"`
	Pod              *string `parquet:"pod,dict,optional"`

	Opened     *int64   `parquet:"opened,timestamp(nanosecond:utc),optional"`
	Closed     *int64   `parquet:"closed,timestamp(nanosecond:utc),optional"`
	DurationMS *float64 `parquet:"duration_ms,optional"`
	State      string   `parquet:"state,dict"`
	ClosedBy   string   `parquet:"closed_by,dict"`

	BytesSent     uint64  `parquet:"bytes_sent"`
	BytesReceived uint64  `parquet:"bytes_received"`
	Retransmits   uint32  `parquet:"retransmits"`
	SRTT          *uint32 `parquet:"srtt_us,optional"`
	Unread        uint32  `parquet:"unread"`
	Unacked       uint32  `parquet:"unacked"`

	Story      string     `parquet:"story"`
	Verdicts   []string   `parquet:"verdicts,list" parquet-element:",dict"`
	Incomplete bool       `parquet:"incomplete"`
	WentWell   bool       `parquet:"went_well"`
	Timeline   []entryRow `parquet:"timeline,list"`
}

type entryRow struct {
	AtMS   float64 `parquet:"at_ms"`
	At     *int64  `parquet:"at,timestamp(nanosecond:utc),optional"`
	Event  string  `parquet:"event,dict"`
	Text   string  `parquet:"text"`
	Detail string  `parquet:"detail,json"`
}

type verdictRow struct {
	Host       string `parquet:"host,dict"`
	Run        int32  `parquet:"run,dict"`
	Time       *int64 `parquet:"time,timestamp(nanosecond:utc),optional"`
	Code       string `parquet:"code,dict"`
	Severity   string `parquet:"severity,dict"`
	Confidence string `parquet:"confidence,dict"`
	Story      string `parquet:"story"`

	SubjectKind string  `parquet:"subject_kind,dict"`
	SubjectName string  `parquet:"subject_name"`
	Netns       uint32  `parquet:"netns,dict"`
	NetnsName   *string `parquet:"netns_name,dict,optional"`

	PID              *uint32 `parquet:"pid,optional"`
	Comm             *string `parquet:"comm,dict,optional"`
	Cgroup           *string `parquet:"cgroup,dict,optional"`
	Container        *string `parquet:"container,dict,optional"`
	ContainerRuntime *string `parquet:"container_runtime,dict,optional"`
	Pod              *string `parquet:"pod,dict,optional"`

	Count    uint64   `parquet:"count"`
	First    *int64   `parquet:"first,timestamp(nanosecond:utc),optional"`
	Last     *int64   `parquet:"last,timestamp(nanosecond:utc),optional"`
	Examples []string `parquet:"examples,list"`
	Evidence string   `parquet:"evidence,json"`
	Fix      []string `parquet:"fix,list"`
}

// text is a column that is null where there is nothing to say.
func text(s string) *string {
	if s == "" {
		return nil
	}
	s = render.Safe(s)
	return &s
}

// number is a column that is null where 0 means that nothing is known.
func number[T comparable](n T) *T {
	var zero T
	if n == zero {
		return nil
	}
	return &n
}

func stamp(s render.Stamp) *int64 { return number(int64(s)) }

func address(a netip.AddrPort) (addr *string, port *uint32) {
	if !a.IsValid() {
		return nil, nil
	}
	s, p := a.Addr().Unmap().String(), uint32(a.Port())
	return &s, &p
}

func containerColumns(c *container.Container) (id, runtime, pod *string) {
	if c == nil {
		return nil, nil, nil
	}
	return text(c.ID), text(c.Runtime), text(c.Pod)
}

// fill makes a row of an event, to which the row refers from then on.
func (r *eventRow) fill(e *event.Event, at render.Stamp, conn string, c *event.Capabilities) {
	r.Time, r.BootTimeNS = stamp(at), e.Time
	r.TimeNS = r.Time // some readers cut the other off at the microsecond
	r.Kind, r.KindNumber = e.Kind.String(), uint32(e.Kind)
	r.OldState, r.NewState = stateName(e.Old), stateName(e.New)
	r.Netns = e.Netns
	r.Conn = number(conn)
	// Where it is no cookie it is an address in the kernel, which is nobody's
	// business.
	cookies := c.Identity == event.IdentityCookie
	r.Sock = nil
	if cookies {
		r.Sock = number(e.Sock)
	}
	r.LocalAddr, r.LocalPort = address(e.Local)
	r.RemoteAddr, r.RemotePort = nil, nil
	if a := e.Remote; a.Port() != 0 || !a.Addr().IsUnspecified() { // as a listener has it that closes
		r.RemoteAddr, r.RemotePort = address(a)
	}

	r.PID, r.Comm, r.CgroupID = nil, nil, nil
	if e.Has(event.FlagProcess) {
		comm := render.Safe(e.Comm.String())
		r.PID, r.Comm, r.CgroupID = &e.PID, &comm, number(e.Cgroup)
	}

	r.Flags, r.FlagsRaw = appendFlags(r.Flags[:0], e), uint32(e.Flags)
	r.Err, r.ErrName = uint32(e.Err), nil
	if e.Err != 0 {
		r.ErrName = number(errnoName(e.Err))
	}
	r.Attempt, r.Reason, r.ReasonName = uint32(e.Attempt), e.Reason, number(reasonName(e, c))

	r.TCPFlags, r.TCPFlagsRaw, r.Direction, r.Function = nil, nil, nil, nil
	switch {
	case e.Kind == event.KindSegmentDropped:
		direction := "in"
		if e.Out {
			direction = "out"
		}
		r.Direction, r.Function = &direction, text(e.Where)
		fallthrough
	case e.Kind == event.KindRSTSent && e.Has(event.FlagNoSocket):
		flags := uint32(e.TCPFlags)
		names := tcpFlags(e.TCPFlags)
		r.TCPFlags, r.TCPFlagsRaw = &names, &flags
	}
	r.Times = e.Times()

	r.BytesSent, r.BytesReceived, r.SRTT, r.Retransmits, r.Unread, r.Unacked = nil, nil, nil, nil, nil, nil
	r.ListenerID, r.QueueLen, r.QueueLimit, r.SYNQueueLen, r.Somaxconn = nil, nil, nil, nil, nil
	r.Backlog, r.AbortOnOverflow, r.SYNCookies, r.SYNACKAttempt, r.SYNACKRetries = nil, nil, nil, nil, nil
	switch t, l := &e.Traffic, &e.Listener; {
	case !e.HasListener():
		// A request, a minisocket or nothing at all has none.
		if *t != (event.Traffic{}) || fullSocket(e) {
			r.BytesSent, r.BytesReceived, r.SRTT = &t.BytesSent, &t.BytesReceived, number(t.SRTT)
			r.Retransmits, r.Unread, r.Unacked = &t.Retransmits, &t.Unread, &t.Unacked
		}
	case *l != (event.Listener{}):
		if cookies {
			r.ListenerID = number(l.ID)
		}
		r.QueueLen, r.QueueLimit, r.SYNQueueLen, r.Somaxconn = &l.QueueLen, &l.QueueLimit, &l.SYNQueueLen, &l.Somaxconn
		cookies, retries := uint32(l.SYNCookies), uint32(l.SYNACKRetries)
		r.AbortOnOverflow, r.SYNCookies, r.SYNACKRetries = &l.AbortOnOverflow, &cookies, &retries
		if e.Kind == event.KindListen {
			backlog := int32(l.Backlog)
			r.Backlog = &backlog
		}
		if e.Kind == event.KindSYNACKRetrans {
			attempt := uint32(l.Attempt)
			r.SYNACKAttempt = &attempt
		}
	}
}

// fullSocket reports whether the traffic of an event was read, though all of
// it is 0.
func fullSocket(e *event.Event) bool {
	if e.Sock == 0 || e.Has(event.FlagNoSocket) {
		return false
	}
	switch e.Kind {
	case event.KindState, event.KindRetransmit, event.KindRTO, event.KindRSTReceived, event.KindProbe:
		return true
	case event.KindRSTSent:
		return e.New != event.StateTimeWait
	}
	return false
}

// newConnectionRow makes a row. clock turns the times of the timeline into
// wall-clock times; nil: they are not known.
func newConnectionRow(c *render.Connection, clock *render.Clock) (connectionRow, error) {
	r := connectionRow{
		Conn: c.ID, Time: stamp(c.Time), Netns: c.Netns, Role: c.Role,
		PID: number(c.Process.PID), Comm: text(c.Process.Comm), OwnerSource: c.Process.Source, Cgroup: text(c.Process.Cgroup),
		Opened: stamp(c.Opened), Closed: stamp(c.Closed), State: c.State, ClosedBy: c.ClosedBy,
		BytesSent: c.Traffic.BytesSent, BytesReceived: c.Traffic.BytesReceived, Retransmits: c.Traffic.Retransmits,
		SRTT: number(c.Traffic.SRTT), Unread: c.Traffic.Unread, Unacked: c.Traffic.Unacked,
		Story: render.Safe(c.Story), Verdicts: safe(c.Verdicts), Incomplete: c.Incomplete, WentWell: c.Well,
		Timeline: make([]entryRow, len(c.Timeline)),
	}
	if c.Peer != nil {
		r.Peer = text(c.Peer.ID)
	}
	r.LocalAddr, r.LocalPort = address(c.Local)
	r.RemoteAddr, r.RemotePort = address(c.Remote)
	r.ListenerAddr, r.ListenerPort = address(c.Listener)
	r.Container, r.ContainerRuntime, r.Pod = containerColumns(c.Process.Container)
	if c.Duration >= 0 {
		ms := float64(c.Duration) / 1e6
		r.DurationMS = &ms
	}
	for i, e := range c.Timeline {
		detail, err := object(e.Detail)
		if err != nil {
			return r, fmt.Errorf("writing a timeline: %w", err)
		}
		r.Timeline[i] = entryRow{
			AtMS: float64(e.At-c.Timeline[0].At) / 1e6, Event: e.Event, Text: render.Safe(e.Text), Detail: detail,
		}
		if clock != nil {
			r.Timeline[i].At = stamp(clock.Stamp(e.At))
		}
	}
	return r, nil
}

func newVerdictRow(v *render.Verdict) (verdictRow, error) {
	r := verdictRow{
		Time: stamp(v.Time), Code: v.Code, Severity: string(v.Severity), Confidence: string(v.Confidence), Story: render.Safe(v.Story),
		SubjectKind: v.Subject.Kind, SubjectName: render.Safe(v.Subject.Name), Netns: v.Netns,
		Count: v.Count, First: stamp(v.First), Last: stamp(v.Last), Examples: safe(v.Examples), Fix: safe(v.Fix),
	}
	if p := v.Process; p != nil {
		r.PID, r.Comm, r.Cgroup = number(p.PID), text(p.Comm), text(p.Cgroup)
		r.Container, r.ContainerRuntime, r.Pod = containerColumns(p.Container)
	}
	evidence, err := object(v.Evidence)
	if err != nil {
		return r, fmt.Errorf("writing evidence: %w", err)
	}
	r.Evidence = evidence
	return r, nil
}
