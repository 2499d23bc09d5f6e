package webreport

import (
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/tcptrace/tcptrace/internal/diagnose"
	"github.com/tcptrace/tcptrace/internal/render"
)

// data is what the page's scripts unpack: see assets/data.js. Times are
// microseconds; columns named in delta hold differences from row to row.
// Strings are numbers of the list Words.
type data struct {
	Words     []string       `json:"words"`
	Runs      []dataRun      `json:"runs"`
	Hosts     []dataHost     `json:"hosts"`
	Listeners []dataListener `json:"listeners"`
	Verdicts  []dataVerdict  `json:"verdicts"`
	Severity  map[string]int `json:"severity"` // of codes: 0 error, 1 warning, 2 info
	Entries   [][2]uint32    `json:"entries"`  // event, text
	Shapes    [][]uint64     `json:"shapes"`   // numbers of Entries
	Conns     dataConns      `json:"conns"`
	LeftOut   [2]uint64      `json:"left_out"` // connections: wrong, well
	Strides   [2]uint64      `json:"strides"`
	From      int64          `json:"from"`
	To        int64          `json:"to"`
	Raw       bool           `json:"raw"` // counts are of the kernel's events
}

type dataRun struct {
	Host  int               `json:"host"`
	From  int64             `json:"from"`
	To    int64             `json:"to"`
	Netns map[uint32]string `json:"netns"` // names
}

// dataHost is a time series; Live is -1 where nothing is known.
type dataHost struct {
	Name   string   `json:"name"`
	First  int64    `json:"first"` // time of the first bucket
	Width  float64  `json:"width"`
	Events []uint64 `json:"events"`
	Opened []uint64 `json:"opened"`
	Closed []uint64 `json:"closed"`
	Wrong  []uint64 `json:"wrong"`
	Live   []int64  `json:"live"`
}

// dataListener is how full an accept queue was; Len is -1 where nothing was
// heard of it.
type dataListener struct {
	Run     int      `json:"run"`
	Host    int      `json:"host"`
	Netns   uint32   `json:"netns"`
	Name    string   `json:"name"`
	Process string   `json:"process"`
	Most    uint32   `json:"most"`
	Limit   uint32   `json:"limit"`
	Drops   uint64   `json:"drops"`
	Samples uint64   `json:"samples"`
	First   int64    `json:"first"`
	Width   float64  `json:"width"`
	Len     []int64  `json:"len"`
	Limits  []int64  `json:"limits"`
	Dropped []uint64 `json:"dropped"`
}

type dataVerdict struct {
	Host     int      `json:"host"`
	Code     string   `json:"code"`
	Severity int      `json:"severity"`
	About    string   `json:"about"`
	Count    uint64   `json:"count"`
	First    int64    `json:"first"`
	Last     int64    `json:"last"`
	Examples []string `json:"examples"`
	Run      int      `json:"run"`
}

// dataConns are the columns of the connections, in the order of At.
type dataConns struct {
	ID      []string `json:"id"`
	Run     []int    `json:"run"`
	At      []int64  `json:"at"` // delta
	Flags   []uint16 `json:"flags"`
	Netns   []uint32 `json:"netns"`
	Role    []uint32 `json:"role"`
	Local   []uint32 `json:"local"`
	Remote  []uint32 `json:"remote"`
	Listen  []uint32 `json:"listen"`
	Owner   []uint32 `json:"owner"`
	Source  []uint32 `json:"source"`
	Cgroup  []uint32 `json:"cgroup"`
	State   []uint32 `json:"state"`
	By      []uint32 `json:"by"`
	Story   []uint32 `json:"story"`
	Codes   []uint32 `json:"codes"` // separated by commas
	Took    []int64  `json:"took"`  // -1 unknown
	Sent    []uint64 `json:"sent"`
	Recv    []uint64 `json:"recv"`
	Retrans []uint32 `json:"retrans"`
	SRTT    []uint32 `json:"srtt"`
	Shape   []uint32 `json:"shape"`
	Steps   []uint64 `json:"steps"` // from entry to entry, of all connections in a row
	Peer    []int    `json:"peer"`  // row, -1 none
}

// gather lays out the data of the page.
func (r *Report) gather() *data {
	s := r.conns
	s.collect() // numbers in the order of use, and none that is not used
	d := &data{Raw: r.raw, Severity: severities()}
	d.Words = list(s.words.list)
	hosts := map[*hostSeries]int{}
	for i, h := range r.hosts {
		hosts[h] = i
		d.Hosts = append(d.Hosts, h.data())
	}
	for _, run := range r.runs {
		d.Runs = append(d.Runs, dataRun{Host: hosts[run.host], From: micros(run.first), To: micros(run.last), Netns: run.names})
		if run.first != 0 && (d.From == 0 || micros(run.first) < d.From) {
			d.From = micros(run.first)
		}
		d.To = max(d.To, micros(run.last))
	}
	words := newDict()
	for _, w := range s.words.list {
		words.number(w)
	}
	for _, e := range s.entries.list {
		name, text := split(e)
		d.Entries = append(d.Entries, [2]uint32{words.number(name), words.number(text)})
	}
	d.Words = list(words.list)
	for _, x := range s.shapes.list {
		d.Shapes = append(d.Shapes, uvarints(x))
	}
	for i, l := range r.listens.ranked() {
		if i == maxListenersShown {
			break
		}
		d.Listeners = append(d.Listeners, l.data(hosts[r.runs[l.run].host]))
	}
	for _, v := range r.ranked() {
		kind, name := v.about()
		examples := []string{}
		for _, id := range v.Examples {
			examples = append(examples, clean(id))
		}
		d.Verdicts = append(d.Verdicts, dataVerdict{
			Host: hosts[r.runs[v.run].host], Run: v.run, Code: clean(v.Code), Severity: v.Severity.Rank(), About: kind + " " + name,
			Count: v.Count, First: micros(v.First), Last: micros(v.Last), Examples: examples,
		})
	}
	d.Conns = s.columns()
	d.LeftOut[0], d.LeftOut[1] = s.leftOut()
	d.Strides = [2]uint64{s.wrong.stride, s.well.stride}
	return d
}

func (h *hostSeries) data() dataHost {
	g := h.grid
	d := dataHost{Name: h.name, First: g.first * g.width / 1e3, Width: float64(g.width) / 1e3}
	live := int64(-1)
	for _, b := range g.cells {
		d.Events = append(d.Events, b.events)
		d.Opened = append(d.Opened, b.opened)
		d.Closed = append(d.Closed, b.closed)
		d.Wrong = append(d.Wrong, b.wrong)
		most := live
		if b.counted {
			most, live = max(live, int64(b.live)), int64(b.left)
		}
		d.Live = append(d.Live, most)
		if b.over {
			live = -1
		}
	}
	return d
}

func (l *listener) data(host int) dataListener {
	g := l.grid
	d := dataListener{
		Run: l.run, Host: host, Netns: l.netns, Name: clean(render.Addr(l.addr)), Process: l.label(), Most: l.most, Limit: l.limit, Drops: l.dropped, Samples: l.samples,
		First: g.first * g.width / 1e3, Width: float64(g.width) / 1e3,
	}
	for _, b := range g.cells {
		most, limit := int64(-1), int64(-1)
		if b.known {
			most, limit = int64(b.most), int64(b.limit)
		}
		d.Len, d.Limits, d.Dropped = append(d.Len, most), append(d.Limits, limit), append(d.Dropped, b.dropped)
	}
	return d
}

// columns turns the ends into columns: first the rows of the table, then what
// only serves as the other end of one.
func (s *store) columns() dataConns {
	var c dataConns
	row := make(map[key]int, len(s.ends))
	ends := s.inOrder()
	for i, e := range ends {
		row[e.key] = i
	}
	last := int64(0)
	for _, e := range ends {
		c.ID = append(c.ID, clean(e.id))
		c.Run = append(c.Run, e.run)
		at := e.at / 1e3
		c.At = append(c.At, at-last)
		last = at
		c.Flags = append(c.Flags, uint16(e.flags))
		c.Netns = append(c.Netns, e.netns)
		c.Role = append(c.Role, e.role)
		c.Local = append(c.Local, e.local)
		c.Remote = append(c.Remote, e.remote)
		c.Listen = append(c.Listen, e.listen)
		c.Owner = append(c.Owner, e.owner)
		c.Source = append(c.Source, e.source)
		c.Cgroup = append(c.Cgroup, e.cgroup)
		c.State = append(c.State, e.state)
		c.By = append(c.By, e.by)
		c.Story = append(c.Story, e.story)
		c.Codes = append(c.Codes, e.codes)
		took := int64(-1)
		if e.took >= 0 {
			took = e.took / 1e3
		}
		c.Took = append(c.Took, took)
		c.Sent = append(c.Sent, e.sent)
		c.Recv = append(c.Recv, e.recv)
		c.Retrans = append(c.Retrans, e.retrans)
		c.SRTT = append(c.SRTT, e.srtt)
		c.Shape = append(c.Shape, e.shape)
		c.Steps = append(c.Steps, uvarints(string(e.when))...)
		peer := -1
		if i, ok := row[key{e.run, e.peer}]; ok && e.peer != "" {
			peer = i
		}
		c.Peer = append(c.Peer, peer)
	}
	return c
}

// pack writes the data as base64 of gzip of JSON. The alphabet of base64 has
// nothing that could end the element around it.
func (d *data) pack(w io.Writer) error {
	b := base64.NewEncoder(base64.StdEncoding, w)
	z, err := gzip.NewWriterLevel(b, 6)
	if err != nil {
		return fmt.Errorf("compressing the data of the page: %w", err)
	}
	if err := json.NewEncoder(z).Encode(d); err != nil {
		return fmt.Errorf("encoding the data of the page: %w", err)
	}
	if err := z.Close(); err != nil {
		return fmt.Errorf("compressing the data of the page: %w", err)
	}
	if err := b.Close(); err != nil {
		return fmt.Errorf("writing the data of the page: %w", err)
	}
	return nil
}

// split takes an entry of the dictionary of entries apart.
func split(entry string) (name, text string) {
	name, text, _ = strings.Cut(entry, "\x00")
	return name, text
}

// severities are the default severities of all codes.
func severities() map[string]int {
	m := make(map[string]int)
	for _, doc := range diagnose.Catalogue() {
		m[doc.Code] = doc.Severity.Rank()
	}
	return m
}

func micros(s render.Stamp) int64 { return int64(s) / 1e3 }

// list makes an empty list of nil.
func list[T any](l []T) []T {
	if l == nil {
		return []T{}
	}
	return l
}
