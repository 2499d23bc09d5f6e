package webreport

import (
	"cmp"
	"encoding/binary"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tcptrace/tcptrace/internal/render"
)

const (
	maxEntries = 96 // of one end's timeline; the middle is left out
	maxString  = 400
	maxBytes   = 256 << 20 // of all connections, roughly
	maxPinned  = 16384     // connections that verdicts name
)

// key names one end of a connection: IDs are unique within a run.
type key struct {
	run int
	id  string
}

// Flags of an end, also in the page's data.
const (
	flagWell       = 1 << iota // nothing that its user would call an error
	flagWrong                  // it is known to have gone wrong
	flagIncomplete             // part of its timeline is missing
	flagOpened                 // its beginning was seen
	flagShortened              // entries were left out of the timeline here
	flagHidden                 // not a row of the table: only the other end of one
)

// end is a connection as it is kept: strings are numbers of the dictionary.
type end struct {
	key
	at      int64 // wall-clock time of its first entry, ns
	seq     uint64
	netns   uint32
	flags   uint8
	pinned  bool
	role    uint32
	local   uint32
	remote  uint32
	listen  uint32
	owner   uint32
	source  uint32
	cgroup  uint32
	state   uint32
	by      uint32
	story   uint32
	codes   uint32
	shape   uint32 // what happened, in the dictionary of shapes
	peer    string
	took    int64 // ns from opened to closed, <0 unknown
	closed  int64 // wall-clock time, 0: not seen
	sent    uint64
	recv    uint64
	retrans uint32
	srtt    uint32
	when    []byte // uvarint microseconds from each entry to the next
	size    int
}

// dict numbers strings in the order in which they come.
type dict struct {
	index map[string]uint32
	list  []string
	bytes int
}

func newDict() *dict { return &dict{index: make(map[string]uint32)} }

func (d *dict) number(s string) uint32 {
	if n, ok := d.index[s]; ok {
		return n
	}
	n := uint32(len(d.list))
	s = strings.Clone(s)
	d.index[s] = n
	d.list = append(d.list, s)
	d.bytes += len(s) + 48
	return n
}

// clean makes a string safe to show, and short.
func clean(s string) string { return render.Short(s, maxString) }

// store keeps connections within bounds: those that went wrong before those
// that did not, and of each kind every n-th, so that what is kept spreads over
// the whole time.
type store struct {
	most    int
	bytes   int
	byKey   map[key]*end
	ends    []*end // in order of arrival
	rows    int    // of ends, those that are not hidden
	words   *dict  // what is shown
	entries *dict  // "event\x00text" of timeline entries
	shapes  *dict  // sequences of numbers of entries, as uvarints
	pinned  map[key]struct{}
	npinned int
	well    sample
	wrong   sample
}

// sample takes every stride-th of what comes.
type sample struct {
	seen   uint64 // numbers what comes
	told   uint64 // connections; one can turn out to be of the other kind
	stride uint64 // 0: none any more
	kept   int
}

func newStore(most int) *store {
	return &store{
		most: most, byKey: make(map[key]*end), pinned: make(map[key]struct{}),
		words: newDict(), entries: newDict(), shapes: newDict(),
		well: sample{stride: 1}, wrong: sample{stride: 1},
	}
}

// pin asks to keep a connection that a verdict names.
func (s *store) pin(k key) {
	if len(s.pinned) < maxPinned {
		s.pinned[k] = struct{}{}
	}
	if e := s.byKey[k]; e != nil {
		s.setPinned(e)
	}
}

func (s *store) setPinned(e *end) {
	if _, ok := s.pinned[e.key]; ok && !e.pinned && e.flags&flagHidden == 0 && s.npinned < s.most/2 {
		e.pinned = true
		s.npinned++
	}
}

// isWrong reports whether a connection is known to have gone wrong: of one that
// is merely incomplete that is not known.
func isWrong(c *render.Connection) bool {
	return !c.Well && (!c.Incomplete || len(c.Verdicts) > 0)
}

func (s *store) sample(flags uint8) *sample {
	if flags&flagWrong != 0 {
		return &s.wrong
	}
	return &s.well
}

// add keeps a connection, or not. offset is from the times of its entries to
// wall-clock time.
func (s *store) add(run int, c *render.Connection, offset int64) {
	k := key{run, c.ID}
	have := s.byKey[k]
	if have != nil && have.flags&flagHidden == 0 {
		// Told of again: as the example of a verdict first, say.
		m := s.sample(have.flags)
		m.kept--
		m.told--
		s.fill(have, c, offset)
		m = s.sample(have.flags)
		m.kept++
		m.told++
		s.addPeer(have, c, offset)
		return
	}
	var flags uint8
	if isWrong(c) {
		flags = flagWrong
	}
	m := s.sample(flags)
	seq := m.seen
	m.seen++
	m.told++
	_, pinned := s.pinned[k]
	if !pinned && (m.stride == 0 || seq%m.stride != 0) {
		return
	}
	if have == nil {
		have = &end{key: key{run, strings.Clone(c.ID)}}
		s.byKey[have.key] = have
		s.ends = append(s.ends, have)
	}
	have.seq = seq
	s.fill(have, c, offset)
	s.rows++
	m.kept++
	s.setPinned(have)
	s.addPeer(have, c, offset)
	if s.rows > s.most || s.bytes+s.words.bytes+s.entries.bytes+s.shapes.bytes > maxBytes {
		s.thin()
	}
}

// addPeer keeps the other end for the timeline, until it comes by itself.
func (s *store) addPeer(e *end, c *render.Connection, offset int64) {
	if c.Peer == nil {
		return
	}
	k := key{e.run, c.Peer.ID}
	e.peer = strings.Clone(c.Peer.ID)
	p := s.byKey[k]
	switch {
	case p == nil:
		p = &end{key: key{e.run, e.peer}}
		s.byKey[p.key] = p
		s.ends = append(s.ends, p)
	case p.flags&flagHidden == 0:
		return
	}
	s.fill(p, c.Peer, offset)
	p.flags |= flagHidden
	p.peer = e.id
}

// fill writes what is known of c to e.
func (s *store) fill(e *end, c *render.Connection, offset int64) {
	e.netns = c.Netns
	e.flags = 0
	set := func(f uint8, on bool) {
		if on {
			e.flags |= f
		}
	}
	set(flagWell, c.Well)
	set(flagWrong, isWrong(c))
	set(flagIncomplete, c.Incomplete)
	set(flagOpened, c.Opened != 0)
	word := func(s2 string) uint32 { return s.words.number(clean(s2)) }
	e.role, e.state, e.by = word(c.Role), word(c.State), word(c.ClosedBy)
	e.local, e.remote, e.listen = word(render.Addr(c.Local)), word(render.Addr(c.Remote)), word(render.Addr(c.Listener))
	in := ""
	if c.Process.Container != nil {
		in = c.Process.Container.String()
	}
	e.owner = word(person(c.Process.PID, c.Process.Comm, in))
	e.source, e.cgroup = word(c.Process.Source), word(c.Process.Cgroup)
	e.story, e.codes = word(c.Story), word(strings.Join(c.Verdicts, ","))
	e.took = -1
	if c.Duration >= 0 {
		e.took = int64(c.Duration)
	}
	e.closed = int64(c.Closed)
	e.sent, e.recv = c.Traffic.BytesSent, c.Traffic.BytesReceived
	e.retrans, e.srtt = c.Traffic.Retransmits, c.Traffic.SRTT

	list := c.Timeline
	if len(list) > maxEntries {
		set(flagShortened, true)
		list = slices.Concat(list[:maxEntries/2], list[len(list)-maxEntries/2:])
	}
	e.at = int64(c.Time)
	if len(list) > 0 {
		e.at = list[0].At + offset
	}
	shape := make([]byte, 0, 2*len(list))
	when := make([]byte, 0, 2*len(list))
	last := int64(0)
	for i, x := range list {
		shape = binary.AppendUvarint(shape, uint64(s.entries.number(clean(x.Event)+"\x00"+clean(x.Text))))
		if i == 0 {
			last = x.At
			continue
		}
		step := max(0, (x.At-last)/int64(time.Microsecond))
		when = binary.AppendUvarint(when, uint64(step))
		last += step * int64(time.Microsecond)
	}
	e.shape = s.shapes.number(string(shape))
	s.bytes -= e.size
	e.when = slices.Clip(when)
	e.size = 320 + len(e.when) + len(e.id)
	s.bytes += e.size
}

// thin makes room: half of the healthy connections go, or when none is left to
// go, half of the others. What verdicts name stays.
func (s *store) thin() {
	low := s.most * 7 / 8
	over := func() bool {
		return s.bytes+s.words.bytes+s.entries.bytes+s.shapes.bytes > maxBytes*3/4
	}
	for s.well.kept > 0 && s.well.stride != 0 && (s.rows > low || over()) {
		s.well.stride *= 2
		if s.well.kept < s.most/16+2 {
			s.well.stride = 0
		}
		s.sweep()
	}
	for s.rows > s.most || over() {
		if s.wrong.stride == 0 {
			return
		}
		s.wrong.stride *= 2
		if s.wrong.stride > 1<<40 {
			s.wrong.stride = 0
		}
		s.sweep()
	}
}

// sweep removes what the samples do not hold any more, and the strings that
// nothing else uses.
func (s *store) sweep() {
	s.rows, s.well.kept, s.wrong.kept = 0, 0, 0
	wanted := make(map[key]bool)
	stays := func(e *end) bool {
		m := s.sample(e.flags)
		return e.pinned || m.stride != 0 && e.seq%m.stride == 0
	}
	for _, e := range s.ends {
		if e.flags&flagHidden == 0 && stays(e) && e.peer != "" {
			wanted[key{e.run, e.peer}] = true
		}
	}
	kept := make([]*end, 0, len(s.ends))
	for _, e := range s.ends {
		row := e.flags&flagHidden == 0
		switch {
		case row && stays(e):
			s.rows++
			s.sample(e.flags).kept++
		case wanted[e.key]:
			if row {
				e.flags |= flagHidden
			}
		default:
			delete(s.byKey, e.key)
			s.bytes -= e.size
			continue
		}
		kept = append(kept, e)
	}
	s.ends = kept
	s.collect()
}

// collect renumbers all strings in use.
func (s *store) collect() {
	words, entries, shapes := newDict(), newDict(), newDict()
	for _, e := range s.ends {
		for _, n := range []*uint32{&e.role, &e.local, &e.remote, &e.listen, &e.owner, &e.source, &e.cgroup, &e.state, &e.by, &e.story, &e.codes} {
			*n = words.number(s.words.list[*n])
		}
		old := s.shapes.list[e.shape]
		shape := make([]byte, 0, len(old))
		for _, n := range uvarints(old) {
			shape = binary.AppendUvarint(shape, uint64(entries.number(s.entries.list[n])))
		}
		e.shape = shapes.number(string(shape))
	}
	s.words, s.entries, s.shapes = words, entries, shapes
}

func uvarints(s string) []uint64 {
	b := []byte(s)
	out := make([]uint64, 0, len(b))
	for len(b) > 0 {
		n, size := binary.Uvarint(b)
		if size <= 0 {
			return out
		}
		out, b = append(out, n), b[size:]
	}
	return out
}

// leftOut is how many connections are not in the table, of those that went
// wrong and of the others.
func (s *store) leftOut() (wrong, well uint64) {
	return s.wrong.told - min(s.wrong.told, uint64(s.wrong.kept)), s.well.told - min(s.well.told, uint64(s.well.kept))
}

// inOrder lists the ends by the time at which they began.
func (s *store) inOrder() []*end {
	ends := slices.Clone(s.ends)
	slices.SortStableFunc(ends, func(a, b *end) int {
		return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.run, b.run), cmp.Compare(a.id, b.id))
	})
	return ends
}

// person names a process and the container it is in, "" if it is not known.
func person(pid uint32, comm, in string) string {
	name := render.Safe(comm)
	if pid != 0 {
		name += "[" + strconv.FormatUint(uint64(pid), 10) + "]"
	}
	if name != "" && in != "" {
		name += " in " + render.Safe(in)
	}
	return name
}
