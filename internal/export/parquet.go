package export

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/parquet-go/parquet-go"

	"github.com/tcptrace/tcptrace/internal/render"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// Rows that are gathered before they are encoded, and before they are written
// as a row group: they are what bounds the memory.
const (
	eventBatch       = 512
	connectionBatch  = 64
	eventGroup       = 64 << 10
	connectionGroup  = 8 << 10
	pageBytes        = 64 << 10
	parquetRunsKey   = "tcptrace.runs"
	parquetFormatKey = "tcptrace.export"
	parquetFormat    = "1"
)

// Parquet writes three tables.
type Parquet struct {
	events      *parquet.GenericWriter[eventRow]
	connections *parquet.GenericWriter[connectionRow]
	verdicts    *parquet.GenericWriter[verdictRow]
	err         error // the first

	caps   event.Capabilities
	host   string
	seq    int64
	runs   []run
	spaces spaces
	finals finals
	clock  *render.Clock // nil: not known yet

	eventRows []eventRow
	kept      []event.Event // what eventRows refer to
	connRows  []connectionRow
}

// run is what the files say of where their rows come from.
type run struct {
	Run         int32             `json:"run"`
	Host        string            `json:"host"`
	Start       render.Stamp      `json:"start"`
	Version     string            `json:"version"`
	Kernel      string            `json:"kernel"`
	Attach      string            `json:"attach"`
	Unknowable  []string          `json:"unknowable"`
	Whole       bool              `json:"whole"` // it has an end
	End         render.Stamp      `json:"end"`
	Events      uint64            `json:"events"`
	Connections uint64            `json:"connections"`
	Lost        map[string]uint64 `json:"lost"`
	Evicted     uint64            `json:"evicted"`
}

// NewParquet returns a sink that writes a table to each of the writers.
func NewParquet(events, connections, verdicts io.Writer) *Parquet {
	options := func(rows int64) []parquet.WriterOption {
		return []parquet.WriterOption{
			parquet.Compression(&parquet.Zstd),
			parquet.MaxRowsPerRowGroup(rows),
			parquet.PageBufferSize(pageBytes),
			parquet.CreatedBy("tcptrace", parquetFormat, ""),
			parquet.KeyValueMetadata(parquetFormatKey, parquetFormat),
		}
	}
	return &Parquet{
		events:      parquet.NewGenericWriter[eventRow](events, options(eventGroup)...),
		connections: parquet.NewGenericWriter[connectionRow](connections, options(connectionGroup)...),
		verdicts:    parquet.NewGenericWriter[verdictRow](verdicts, options(connectionGroup)...),
		spaces:      make(spaces), finals: newFinals(),
		eventRows: make([]eventRow, 0, eventBatch), kept: make([]event.Event, eventBatch),
		connRows: make([]connectionRow, 0, connectionBatch),
	}
}

func (p *Parquet) fail(err error) error {
	if p.err == nil {
		p.err = err
	}
	return p.err
}

// Capabilities keeps the names of reasons.
func (p *Parquet) Capabilities(c event.Capabilities) { p.caps = c }

// Start begins a run.
func (p *Parquet) Start(s *render.Start) error {
	p.cut()
	p.host = render.Safe(s.Host)
	p.seq = 0
	p.clock = nil
	clear(p.spaces)
	p.runs = append(p.runs, run{
		Run: int32(len(p.runs)), Host: p.host, Start: s.Time, Version: render.Safe(s.Version), Kernel: render.Safe(s.Kernel),
		Attach: render.Safe(s.Attach), Unknowable: safe(s.Unknowable), Lost: map[string]uint64{},
	})
	return p.err
}

// run is the number of the run at hand.
func (p *Parquet) run() int32 { return int32(max(len(p.runs)-1, 0)) }

// Namespace keeps a namespace's name.
func (p *Parquet) Namespace(ns event.Namespace) { p.spaces.learn(ns) }

// Event does nothing: raw events are written.
func (p *Parquet) Event(*render.Event) error { return p.err }

// Raw writes an event, unless it is a line of a snapshot.
func (p *Parquet) Raw(e *event.Event, at render.Stamp, conn string) {
	if at != 0 && e.Time != 0 {
		p.clock = &render.Clock{Offset: int64(at) - e.Time}
	}
	if e.Kind == event.KindSnapshot || p.err != nil {
		return
	}
	i := len(p.eventRows)
	p.kept[i] = *e
	p.eventRows = p.eventRows[:i+1]
	r := &p.eventRows[i]
	r.Host, r.Run, r.Seq = p.host, p.run(), p.seq
	p.seq++
	r.fill(&p.kept[i], at, conn, &p.caps)
	if len(p.eventRows) == eventBatch {
		p.writeEvents()
	}
}

func (p *Parquet) writeEvents() {
	if _, err := p.events.Write(p.eventRows); err != nil {
		p.fail(fmt.Errorf("writing the table of events: %w", err))
	}
	p.eventRows = p.eventRows[:0]
}

// Connection writes a connection.
func (p *Parquet) Connection(c *render.Connection) error {
	if p.err != nil {
		return p.err
	}
	clock := p.clock
	if clock == nil && c.Opened != 0 && len(c.Timeline) > 0 {
		// It was opened when its first entry says.
		clock = &render.Clock{Offset: int64(c.Opened) - c.Timeline[0].At}
	}
	r, err := newConnectionRow(c, clock)
	if err != nil {
		return p.fail(err)
	}
	r.Host, r.Run, r.NetnsName = p.host, p.run(), number(p.spaces[c.Netns])
	p.connRows = append(p.connRows, r)
	if len(p.connRows) == connectionBatch {
		p.writeConnections()
	}
	return p.err
}

func (p *Parquet) writeConnections() {
	if _, err := p.connections.Write(p.connRows); err != nil {
		p.fail(fmt.Errorf("writing the table of connections: %w", err))
	}
	clear(p.connRows)
	p.connRows = p.connRows[:0]
}

// Verdict writes a verdict that is the last word.
func (p *Parquet) Verdict(v *render.Verdict) error {
	if p.finals.take(v) {
		p.writeVerdict(v)
	}
	return p.err
}

func (p *Parquet) writeVerdict(v *render.Verdict) {
	if p.err != nil {
		return
	}
	r, err := newVerdictRow(v)
	if err == nil {
		r.Host, r.Run, r.NetnsName = p.host, p.run(), number(p.spaces[v.Netns])
		_, err = p.verdicts.Write([]verdictRow{r})
	}
	if err != nil {
		p.fail(fmt.Errorf("writing the table of verdicts: %w", err))
	}
}

// Lost is told in the files' own description.
func (p *Parquet) Lost(l *render.Lost) error {
	if n := len(p.runs); n > 0 {
		where := render.Safe(l.Where)
		lost := p.runs[n-1].Lost
		if _, known := lost[where]; known || len(lost) < 1024 {
			lost[where] += l.Count
		}
	}
	return p.err
}

// Summary ends a run.
func (p *Parquet) Summary(s *render.Summary) error {
	for _, v := range p.finals.end(s.Final) {
		p.writeVerdict(v)
	}
	if n := len(p.runs); n > 0 {
		r := &p.runs[n-1]
		r.Whole, r.End, r.Events, r.Connections, r.Evicted = true, s.Time, s.Events, s.Connections, s.Evicted
	}
	return p.err
}

// cut ends a run that had no end.
func (p *Parquet) cut() {
	for _, v := range p.finals.end(nil) {
		p.writeVerdict(v)
	}
}

// Flush writes nothing: a row group needs many rows.
func (p *Parquet) Flush() error { return p.err }

// Close writes what is left and the files' own descriptions.
func (p *Parquet) Close() error {
	p.cut()
	if p.err != nil {
		return p.err
	}
	p.writeEvents()
	p.writeConnections()
	runs, err := json.Marshal(p.runs)
	if err != nil {
		return p.fail(fmt.Errorf("describing the runs: %w", err))
	}
	for name, w := range map[string]interface {
		SetKeyValueMetadata(key, value string)
		Close() error
	}{"events": p.events, "connections": p.connections, "verdicts": p.verdicts} {
		w.SetKeyValueMetadata(parquetRunsKey, string(runs))
		if err := w.Close(); err != nil {
			p.fail(fmt.Errorf("completing the table of %s: %w", name, err))
		}
	}
	return p.err
}
