package render

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"

	"github.com/tcptrace/tcptrace/internal/diagnose"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// JSON writes one object a line.
type JSON struct {
	out *bufio.Writer
	buf bytes.Buffer
	enc *json.Encoder
}

// NewJSON returns a renderer that writes JSON lines to w.
func NewJSON(w io.Writer) *JSON {
	j := &JSON{out: bufio.NewWriterSize(w, 64<<10)}
	j.enc = json.NewEncoder(&j.buf)
	j.enc.SetEscapeHTML(false)
	return j
}

func (j *JSON) line(v any) error {
	j.buf.Reset()
	if err := j.enc.Encode(v); err != nil {
		return fmt.Errorf("encoding a line: %w", err)
	}
	if _, err := j.out.Write(SafeJSON(j.buf.Bytes())); err != nil {
		return fmt.Errorf("writing the output: %w", err)
	}
	return nil
}

// Flush hands on what is buffered.
func (j *JSON) Flush() error {
	if err := j.out.Flush(); err != nil {
		return fmt.Errorf("writing the output: %w", err)
	}
	return nil
}

// Start writes the first line.
func (j *JSON) Start(s *Start) error {
	return j.line(struct {
		Type       string       `json:"type"`
		Time       Stamp        `json:"time"`
		Version    string       `json:"version"`
		Kernel     string       `json:"kernel"`
		Host       string       `json:"host"`
		Attach     string       `json:"attach"`
		Hooks      []event.Hook `json:"hooks"`
		Unknowable []string     `json:"unknowable"`
	}{"start", s.Time, s.Version, s.Kernel, s.Host, s.Attach, list(s.Hooks), list(s.Unknowable)})
}

// Namespace does nothing: programs go by inode numbers.
func (j *JSON) Namespace(event.Namespace) {}

// Event writes one event.
func (j *JSON) Event(e *Event) error {
	return j.line(struct {
		Type   string  `json:"type"`
		Time   Stamp   `json:"time"`
		Event  string  `json:"event"`
		Conn   string  `json:"conn"`
		Netns  uint32  `json:"netns"`
		Local  string  `json:"local"`
		Remote string  `json:"remote"`
		Text   string  `json:"text"`
		Detail Details `json:"detail"`
	}{"event", e.Time, e.Event, e.Conn, e.Netns, Addr(e.Local), Addr(e.Remote), e.Text, e.Detail})
}

type jsonEntry struct {
	AtMS   float64 `json:"at_ms"`
	Event  string  `json:"event"`
	Text   string  `json:"text"`
	Detail Details `json:"detail"`
}

// Connection writes one connection.
func (j *JSON) Connection(c *Connection) error {
	type connection struct {
		Type          string      `json:"type"`
		Time          Stamp       `json:"time"`
		Conn          string      `json:"conn"`
		Netns         uint32      `json:"netns"`
		Role          string      `json:"role"`
		Local         string      `json:"local"`
		Remote        string      `json:"remote"`
		Listener      string      `json:"listener"`
		Process       Process     `json:"process"`
		Opened        Stamp       `json:"opened"`
		Closed        Stamp       `json:"closed"`
		DurationMS    *float64    `json:"duration_ms"`
		State         string      `json:"state"`
		ClosedBy      string      `json:"closed_by"`
		BytesSent     uint64      `json:"bytes_sent"`
		BytesReceived uint64      `json:"bytes_received"`
		Retransmits   uint32      `json:"retransmits"`
		SRTT          uint32      `json:"srtt_us"`
		Story         string      `json:"story"`
		Verdicts      []string    `json:"verdicts"`
		Incomplete    bool        `json:"incomplete"`
		Peer          string      `json:"peer,omitempty"`
		Timeline      []jsonEntry `json:"timeline"`
	}
	v := connection{
		Type: "connection", Time: c.Time, Conn: c.ID, Netns: c.Netns, Role: c.Role,
		Local: Addr(c.Local), Remote: Addr(c.Remote), Listener: Addr(c.Listener), Process: c.Process,
		Opened: c.Opened, Closed: c.Closed, State: c.State, ClosedBy: c.ClosedBy,
		BytesSent: c.Traffic.BytesSent, BytesReceived: c.Traffic.BytesReceived,
		Retransmits: c.Traffic.Retransmits, SRTT: c.Traffic.SRTT,
		Story: c.Story, Verdicts: list(c.Verdicts), Incomplete: c.Incomplete,
		Timeline: make([]jsonEntry, len(c.Timeline)),
	}
	if c.Duration >= 0 {
		ms := millis(c.Duration)
		v.DurationMS = &ms
	}
	if c.Peer != nil {
		v.Peer = c.Peer.ID
	}
	for i, e := range c.Timeline {
		v.Timeline[i] = jsonEntry{millis(sinceFirst(c.Timeline, i)), e.Event, e.Text, e.Detail}
	}
	return j.line(v)
}

// Verdict writes a verdict as it stands.
func (j *JSON) Verdict(v *Verdict) error {
	return j.line(struct {
		Type       string              `json:"type"`
		Time       Stamp               `json:"time"`
		Code       string              `json:"code"`
		Severity   diagnose.Severity   `json:"severity"`
		Confidence diagnose.Confidence `json:"confidence"`
		Story      string              `json:"story"`
		Subject    diagnose.Subject    `json:"subject"`
		Netns      uint32              `json:"netns"`
		Process    *diagnose.Process   `json:"process"`
		Count      uint64              `json:"count"`
		First      Stamp               `json:"first"`
		Last       Stamp               `json:"last"`
		Examples   []string            `json:"examples"`
		Evidence   diagnose.Evidence   `json:"evidence"`
		Fix        []string            `json:"fix"`
	}{
		"verdict", v.Time, v.Code, v.Severity, v.Confidence, v.Story, v.Subject, v.Netns, v.Process,
		v.Count, v.First, v.Last, list(v.Examples), v.Evidence, list(v.Fix),
	})
}

// Lost writes a report of lost events.
func (j *JSON) Lost(l *Lost) error {
	return j.line(struct {
		Type  string `json:"type"`
		Time  Stamp  `json:"time"`
		Where string `json:"where"`
		Count uint64 `json:"count"`
	}{"lost", l.Time, l.Where, l.Count})
}

// Summary writes the last word on each verdict and then the last line.
func (j *JSON) Summary(s *Summary) error {
	for _, v := range s.Final {
		if err := j.Verdict(v); err != nil {
			return err
		}
	}
	verdicts := s.Verdicts
	if verdicts == nil {
		verdicts = map[string]uint64{}
	}
	return j.line(struct {
		Type        string            `json:"type"`
		Time        Stamp             `json:"time"`
		DurationMS  float64           `json:"duration_ms"`
		Connections uint64            `json:"connections"`
		Events      uint64            `json:"events"`
		Lost        uint64            `json:"lost"`
		Evicted     uint64            `json:"evicted"`
		Verdicts    map[string]uint64 `json:"verdicts"`
		Audit       []Audit           `json:"audit"`
		AuditNotes  []string          `json:"audit_notes"`
		Cost        Cost              `json:"cost"`
	}{
		"summary", s.Time, millis(s.Duration), s.Connections, s.Events, s.Lost, s.Evicted,
		verdicts, list(s.Audit), list(s.AuditNotes), s.Cost,
	})
}

// list makes an empty list of nil: programs should not have to tell them
// apart.
func list[T any](l []T) []T {
	if l == nil {
		return []T{}
	}
	return l
}
