package diagnose

import (
	"bytes"
	"encoding/json"

	"github.com/tcptrace/tcptrace/internal/container"
)

// Severity of a verdict.
type Severity string

const (
	Error   Severity = "error"
	Warning Severity = "warning"
	Info    Severity = "info"
)

// Rank orders severities, 0 the worst.
func (s Severity) Rank() int {
	switch s {
	case Error:
		return 0
	case Warning:
		return 1
	}
	return 2
}

// Confidence in a verdict's cause.
type Confidence string

const (
	Certain   Confidence = "certain"   // the kernel said so
	Likely    Confidence = "likely"    // the evidence fits nothing else that is usual
	Suspected Confidence = "suspected" // the evidence fits, other causes fit too
)

// Rank orders confidences, 0 the surest.
func (c Confidence) Rank() int {
	switch c {
	case Certain:
		return 0
	case Likely:
		return 1
	}
	return 2
}

// Phase of a verdict that is handed to the sink.
type Phase uint8

const (
	PhaseNew     Phase = iota // it holds for the first time
	PhaseGrowing              // it holds for more than when it was last handed out
	PhaseFinal                // the last word on it
)

// Subject is what a verdict is about. Name may hold a process name: escape it
// before it reaches a terminal.
type Subject struct {
	Kind string `json:"kind"` // listener, connection, process, peer, port or host
	Name string `json:"name"`
}

// Process is the process that a verdict names.
type Process struct {
	PID  uint32 `json:"pid"`
	Comm string `json:"comm"` // unescaped

	Cgroup    string               `json:"cgroup,omitempty"` // path, "" unknown; unescaped
	Container *container.Container `json:"container,omitempty"`
}

// Fact is one piece of evidence. Value is nil where the fact is unknown, else
// a string, bool, int64, uint64, float64, []string or a nested Evidence.
type Fact struct {
	Key   string
	Value any
	Note  string // why Value is nil, or what qualifies it; for people
}

// Evidence lists facts in the order in which people want to read them.
type Evidence []Fact

// Get returns the value of key, nil if it is unknown or missing.
func (e Evidence) Get(key string) any {
	for _, f := range e {
		if f.Key == key {
			return f.Value
		}
	}
	return nil
}

// MarshalJSON writes an object with the keys in order. Notes become a member
// of that name, if there are any.
func (e Evidence) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	notes := Evidence{}
	for i, f := range e {
		if i > 0 {
			b.WriteByte(',')
		}
		if err := member(&b, f.Key, f.Value); err != nil {
			return nil, err
		}
		if f.Note != "" {
			notes = append(notes, Fact{Key: f.Key, Value: f.Note})
		}
	}
	if len(notes) > 0 {
		b.WriteByte(',')
		if err := member(&b, "notes", notes); err != nil {
			return nil, err
		}
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

func member(b *bytes.Buffer, key string, value any) error {
	k, err := json.Marshal(key)
	if err != nil {
		return err
	}
	v, err := json.Marshal(value)
	if err != nil {
		return err
	}
	b.Write(k)
	b.WriteByte(':')
	b.Write(v)
	return nil
}

// Verdict is a cause with its evidence. What the sink is given is a copy of
// its own.
type Verdict struct {
	Code       string
	Key        Key    // tells verdicts of one code apart
	Which      string // what it has that another about the same subject has not; "" nothing
	Severity   Severity
	Confidence Confidence
	Story      string // one line
	Subject    Subject
	Netns      uint32
	Process    *Process   // nil where none is known, or several
	Among      []*Process // these, where they are several, as far as known
	Count      uint64     // connections or events so far, as the rule's Doc says
	First      int64      // CLOCK_BOOTTIME, ns
	Last       int64
	Examples   []string // connection IDs, at most 5
	Evidence   Evidence
	Fix        []string // the most useful first
}

// Sink takes verdicts.
type Sink interface {
	Verdict(v *Verdict, p Phase)
}

// SinkFunc is a function as a [Sink].
type SinkFunc func(v *Verdict, p Phase)

// Verdict calls f.
func (f SinkFunc) Verdict(v *Verdict, p Phase) { f(v, p) }

// Doc describes a verdict for people who ask what it means.
type Doc struct {
	Code     string
	Severity Severity // the default
	Summary  string   // one line
	Meaning  string   // paragraphs, separated by an empty line
	Counts   string   // what Count counts
	Evidence []DocKey
	Fix      []string
	Counters []string // SNMP counters that move with it, e.g. TcpExt.ListenOverflows
	Source   []string // kernel functions behind it, e.g. "net/ipv4/tcp_input.c: tcp_conn_request()"
}

// DocKey describes one evidence key.
type DocKey struct {
	Key  string
	Unit string // ms, s, bytes, count, ...; "" where it has none
	Text string
}
