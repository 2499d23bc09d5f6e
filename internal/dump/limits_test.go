package dump

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"hash/maphash"
	"io"
	"math"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/s2"
	"github.com/stretchr/testify/require"

	"github.com/tcptrace/tcptrace/tracer/event"
)

// sum is a feed that keeps a checksum of what it is told, for long runs.
type sum struct {
	tape
	total uint64
	n     int
}

var seed = maphash.MakeSeed()

// line is all that is told of an event, to be compared.
type line struct {
	event.Event
	inventory event.Inventory
	pid       uint32
	comm      string
}

func (s *sum) add(h uint64) {
	s.n++
	s.total = s.total*31 + h
}

func (s *sum) fold() {
	for _, l := range s.lines {
		s.add(maphash.String(seed, l))
	}
	s.lines = s.lines[:0]
}

func (s *sum) Event(e *event.Event) { s.Snapshot(e, 0, "") }

func (s *sum) Snapshot(e *event.Event, pid uint32, comm string) {
	s.fold()
	l := line{Event: *e, pid: pid, comm: comm}
	if e.Inventory != nil {
		l.inventory, l.Event.Inventory = *e.Inventory, nil
		s.n++
	}
	s.add(maphash.Comparable(seed, l))
}

// through plays a run through an encoder, the bytes and a reader, and checks
// that it is the same afterwards. It returns the dump.
func through(t *testing.T, run func(Feed)) []byte {
	t.Helper()
	var want, got sum
	run(&want)
	want.fold()
	dump := written(t, run, false)
	require.NoError(t, readAll(dump, &got, func(r *Reader) {
		require.Empty(t, r.damaged)
		require.NotNil(t, r.End())
	}))
	got.fold()
	require.Equal(t, want.n, got.n)
	require.Equal(t, want.total, got.total)
	return dump
}

// readAll reads a dump to its end.
func readAll(dump []byte, f Feed, after func(*Reader)) error {
	r, err := NewReader(bytes.NewReader(dump))
	if err != nil {
		return err
	}
	for err == nil {
		err = r.Next(f)
	}
	if !errors.Is(err, io.EOF) {
		return err
	}
	if after != nil {
		after(r)
	}
	return nil
}

// Whatever an encoder is told, its frames are such as a reader takes: more of
// each thing that is defined than a frame may define.
func TestMoreThanAFrameDefines(t *testing.T) {
	const n = maxDefined + 5000
	for name, one := range map[string]func(Feed, int){
		"sockets":   func(f Feed, i int) { f.Event(&event.Event{Sock: uint64(i)}) },
		"no socket": func(f Feed, i int) { f.Event(&event.Event{Local: addrPort(i)}) },
		"addresses": func(f Feed, i int) { f.Event(&event.Event{Local: addrPort(2 * i), Remote: addrPort(2*i + 1)}) },
		"processes": func(f Feed, i int) { f.Event(&event.Event{PID: uint32(i + 1)}) },
		"one pid":   func(f Feed, i int) { f.Event(&event.Event{PID: 1, Cgroup: uint64(i)}) },
		"shapes":    func(f Feed, i int) { f.Event(&event.Event{Reason: uint32(i)}) },
		"texts":     func(f Feed, i int) { f.Event(&event.Event{Where: fmt.Sprint(i)}) },
		"listeners": func(f Feed, i int) { f.Event(&event.Event{Listener: event.Listener{ID: uint64(i + 1)}}) },
		"owners": func(f Feed, i int) {
			if i == 0 {
				f.BeginSnapshot(1, 1)
			}
			f.Snapshot(&event.Event{Sock: uint64(i % 10), Where: fmt.Sprint(i)}, 1, fmt.Sprint("o", i))
		},
		"all": func(f Feed, i int) {
			f.Event(&event.Event{
				Sock: uint64(i), Local: addrPort(2 * i), Remote: addrPort(2*i + 1), PID: uint32(i + 1), Reason: uint32(i),
				Where: fmt.Sprint(i), Listener: event.Listener{ID: uint64(i + 1)},
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			through(t, func(f Feed) {
				for i := range n {
					one(f, i)
				}
			})
		})
	}
}

func addrPort(i int) netip.AddrPort {
	a := [4]byte{10}
	binary.BigEndian.PutUint32(a[:], uint32(i)|10<<24)
	return netip.AddrPortFrom(netip.AddrFrom4(a), uint16(i))
}

// Definitions that just fit are taken; one more is refused before it is kept.
func TestDecoderBoundsDefinitions(t *testing.T) {
	header := Header{Layout: layout}
	for tag, rest := range map[byte][]byte{
		tagShape: make([]byte, 11), tagAddr: {4, 1, 2, 3, 4}, tagSocket: make([]byte, 6), tagProcess: make([]byte, 18),
		tagString: {1, 'x'}, tagListener: {1},
	} {
		one := append([]byte{tag}, rest...)
		_, err := newDecoder(&header).payload(new(Frame), bytes.Repeat(one, maxDefined))
		require.NoError(t, err)
		_, err = newDecoder(&header).payload(new(Frame), bytes.Repeat(one, maxDefined+1))
		require.ErrorIs(t, err, errTooMany)
	}
}

func TestRandomRuns(t *testing.T) {
	for seed := range uint64(30) {
		through(t, func(f Feed) { randomRun(f, rand.New(rand.NewPCG(seed, 7)), 3000) })
	}
}

// randomRun tells a feed of anything, with numbers that are often small or at
// an end of their range.
func randomRun(f Feed, r *rand.Rand, n int) {
	number := func() uint64 {
		switch r.IntN(5) {
		case 0:
			return 0
		case 1:
			return uint64(r.IntN(20))
		case 2:
			return math.MaxUint64 - uint64(r.IntN(3))
		case 3:
			return 1<<63 - 1 + uint64(r.IntN(3))
		}
		return r.Uint64() >> r.IntN(64)
	}
	text := func() string {
		b := make([]byte, r.IntN(20))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return string(b)
	}
	endpoint := func() netip.AddrPort {
		var b [16]byte
		b[15] = byte(r.IntN(5))
		switch r.IntN(4) {
		case 0:
			return netip.AddrPort{}
		case 1:
			return netip.AddrPortFrom(netip.AddrFrom16(b), uint16(number()))
		case 2:
			b[10], b[11] = 0xff, 0xff
			return netip.AddrPortFrom(netip.AddrFrom16(b), 1)
		}
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[12:])), uint16(number()))
	}
	one := func() *event.Event {
		e := &event.Event{
			Time: int64(number()), Sock: number(), Kind: event.Kind(number()), Old: event.State(number()), New: event.State(number()),
			Flags: event.Flags(number()), Netns: uint32(number()), Local: endpoint(), Remote: endpoint(), PID: uint32(number()), Cgroup: number(),
			Err: uint16(number()), Attempt: uint8(number()), Reason: uint32(number()), TCPFlags: uint8(number()), Out: r.IntN(2) == 0,
			Count: uint32(number()),
		}
		copy(e.Comm[:], text())
		if r.IntN(3) == 0 {
			e.Where = text()
		}
		if r.IntN(3) != 0 {
			e.Traffic = event.Traffic{BytesSent: number(), BytesReceived: number(), SRTT: uint32(number()), Retransmits: uint32(number()), Unread: uint32(number()), Unacked: uint32(number())}
		}
		if r.IntN(3) == 0 {
			e.Listener = event.Listener{
				ID: uint64(r.IntN(4)), QueueLen: uint32(number()), QueueLimit: uint32(number()), SYNQueueLen: uint32(number()), Somaxconn: uint32(number()), Backlog: uint32(number()),
				AbortOnOverflow: r.IntN(2) == 0, SYNCookies: uint8(number()), Attempt: uint8(number()), SYNACKRetries: uint8(number()),
			}
		}
		if r.IntN(3) == 0 {
			e.Inventory = &event.Inventory{
				Inode: number(), UID: uint32(number()), KeepaliveTime: time.Duration(number()), KeepaliveInterval: time.Duration(number()), KeepaliveProbes: uint32(number()),
				Idle: time.Duration(number()), SentIdle: time.Duration(number()), Left: time.Duration(number()), SendWindow: uint32(number()), ReceiveWindow: uint32(number()),
				Probes: uint8(number()), Retransmits: uint8(number()), Minisocket: r.IntN(2) == 0,
			}
		}
		return e
	}
	f.BeginSnapshot(uint32(number()), int64(number()))
	for range n {
		switch r.IntN(14) {
		case 0:
			f.Clock(int64(number()))
		case 1:
			ns := event.Namespace{Inode: uint32(number()), Name: text(), Known: r.IntN(2) == 0}
			for _, v := range sysctlNumbers(&ns.Sysctls) {
				*v = int(number())
			}
			f.Namespace(ns)
		case 2:
			f.Process(event.Process{PID: uint32(number()), Comm: text(), Cgroup: text(), Exe: text()})
		case 3:
			f.BeginSnapshot(uint32(number()), int64(number()))
		case 4:
			// Without a process, a line has no owner either.
			if pid := uint32(number()); pid != 0 {
				f.Snapshot(one(), pid, text())
			} else {
				f.Snapshot(one(), 0, "")
			}
		case 5:
			f.EndSnapshot(uint32(number()), int64(number()))
		case 6:
			f.Lost(int64(number()), event.Lost{Where: text(), Count: number()})
		case 7:
			f.Advance(int64(number()))
		case 8:
			a := Audit{At: int64(number()), Since: time.Duration(number())}
			for range r.IntN(4) {
				a.Lines = append(a.Lines, AuditLine{Counter: "Oüt", Netns: uint32(number()), Kernel: number(), Explained: number(), Exact: r.IntN(2) == 0, Note: "<&\"\\{["})
			}
			f.Audit(a)
		default:
			f.Event(one())
		}
	}
}

// What is told in giant texts and lists is cut off, and never makes a frame
// that a reader refuses.
func TestGiants(t *testing.T) {
	giant := strings.Repeat("x", 3<<20)
	var lines []AuditLine
	for i := range 40_000 {
		lines = append(lines, AuditLine{Counter: "TCPAbortOnTimeout", Netns: uint32(i), Kernel: 1 << 60})
	}
	notes := make([]string, 1<<18)
	got := new(tape)
	dump := written(t, func(f Feed) {
		for range 8 {
			f.Process(event.Process{PID: 1, Comm: giant, Cgroup: giant, Exe: giant})
			f.Namespace(event.Namespace{Inode: 1, Name: giant})
			f.Lost(1, event.Lost{Where: giant, Count: 1})
			f.Event(&event.Event{Where: giant})
			f.BeginSnapshot(1, 1)
			f.Snapshot(&event.Event{Where: giant + "y"}, 1, giant)
			f.EndSnapshot(1, 1)
			f.Audit(Audit{Lines: lines})
			f.Audit(Audit{Lines: lines[:1], Notes: notes})
			f.Audit(Audit{Notes: []string{giant}})
		}
		for range 100_000 {
			f.Advance(1)
			f.Lost(1, event.Lost{Where: giant[:100], Count: 1})
		}
	}, false)
	require.NoError(t, readAll(dump, got, func(r *Reader) { require.Empty(t, r.damaged) }))
	count := map[string]int{}
	for _, l := range got.lines {
		word, _, _ := strings.Cut(l, " ")
		count[word]++
		require.Less(t, len(l), 2<<20)
	}
	require.Equal(t, map[string]int{"process": 8, "namespace": 8, "lost": 100_008, "event": 8, "begin": 8, "snapshot": 8, "end": 8, "audit": 16, "advance": 100_000}, count)
	require.Equal(t, 1, strings.Count(strings.Join(got.lines, ""), leftOut)/16, "said once in each")

	// An audit that nearly fills its room is kept whole.
	b, err := encodeJSON(Audit{Lines: lines[:10_000]})
	require.NoError(t, err)
	require.Greater(t, len(b), maxJSON*9/10)
	through(t, func(f Feed) {
		for range 5 {
			f.Audit(Audit{Lines: lines[:10_000]})
		}
	})

	// So are the ends and headers.
	end, err := EndFrame(End{Reason: EndDone, Text: giant, Summary: &Summary{
		Audit: Audit{Lines: lines, Notes: notes}, Cost: Cost{BPFNanosPerEvent: math.NaN(), BPFCPUPercent: math.Inf(1), UserCPUPercent: 3},
	}}, 0)
	require.NoError(t, err)
	require.LessOrEqual(t, len(end.Raw), maxJSON)
	dump, err = Assemble(Header{Command: []string{"tcptrace", giant, giant}}, nil, &End{Reason: EndDone, Text: giant, Summary: &Summary{
		Audit: Audit{Lines: lines}, Cost: Cost{BPFNanosPerEvent: math.NaN()},
	}})
	require.NoError(t, err)
	require.NoError(t, readAll(dump, got, func(r *Reader) {
		require.NotNil(t, r.End())
		require.Less(t, len(r.End().Text), maxText+10)
		require.Zero(t, r.End().Summary.Cost.BPFNanosPerEvent)
		require.Equal(t, []string{leftOut}, r.End().Summary.Audit.Notes)
		require.Len(t, r.Header().Command, 2)
	}))
	_, err = HeaderFrame(Header{Host: giant})
	require.ErrorIs(t, err, errJSON)
}

// A preamble of very many processes fits a frame; what is left out was told
// long ago and has done nothing since.
func TestPreambleOfManyProcesses(t *testing.T) {
	for long, n := range map[int]uint32{0: 80_000, 300: 20_000, 60_000: 3_000} {
		e := NewEncoder(func(*Frame) {})
		cgroup := strings.Repeat("c", long)
		for i := range n {
			e.Process(event.Process{PID: i, Comm: fmt.Sprint(i), Cgroup: cgroup})
			e.Namespace(event.Namespace{Inode: i, Name: fmt.Sprint(i)})
			if i%10 == 0 {
				// One that was told in the beginning and still does something.
				e.Event(&event.Event{PID: 7, Sock: uint64(i), Netns: 7})
				e.Event(&event.Event{PID: 8, Sock: 9, Netns: 8})
				e.Flush()
			}
		}
		f := e.Preamble()
		require.LessOrEqual(t, len(f.Raw), maxRaw)
		dump, err := Assemble(Header{Part: 1}, []*Frame{f}, nil)
		require.NoError(t, err)
		var got tape
		require.NoError(t, readAll(dump, &got, func(r *Reader) { require.Empty(t, r.damaged) }))
		all := strings.Join(got.lines, "\n")
		for _, must := range []string{"process {PID:7 Comm:7", "process {PID:8 Comm:8", fmt.Sprintf("process {PID:%d ", n-1), "namespace {Inode:7 ", fmt.Sprintf("namespace {Inode:%d ", n-1)} {
			require.Contains(t, all, must)
		}
		require.Equal(t, long == 0, strings.Contains(all, "process {PID:100 "))
		if long < 1000 {
			require.Greater(t, strings.Count(all, "process "), 3000)
		}
		require.Less(t, e.known.size+e.spaces.size, 2<<20)
	}
}

// within runs what a hostile dump may cost, in bytes kept and given out.
func within(t testing.TB, most uint64, f func()) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	require.Less(t, after.TotalAlloc-before.TotalAlloc, most)
}

func TestHostileFramesTakeLittleMemory(t *testing.T) {
	frame := func(kind Kind, raw []byte, stored []byte, size uint32) []byte {
		f := Frame{Kind: kind, Raw: raw}
		b := f.Append(nil, RunID(""), 2)
		if stored != nil {
			b = append(b[:frameHeaderSize], stored...)
			b[5] = compressionSnappy
			binary.LittleEndian.PutUint32(b[16:], size)
			binary.LittleEndian.PutUint32(b[20:], uint32(len(stored)))
		}
		return resum(b)
	}
	head, err := HeaderFrame(Header{})
	require.NoError(t, err)
	bomb := func(size int) []byte { return s2.EncodeSnappy(nil, make([]byte, size)) }
	deep := func(n int) []byte { return []byte(strings.Repeat(`{"a":[`, n)) }
	long := func(s, one, e string, n int) []byte {
		return []byte(s + strings.Repeat(one+",", n) + one + e)
	}
	for name, b := range map[string][]byte{
		"snappy: 128 MiB":            frame(FrameRecords, nil, bomb(128 << 20)[:maxRaw], maxRaw),
		"snappy: says 2^32 - 1":      frame(FrameRecords, nil, append([]byte{0xff, 0xff, 0xff, 0xff, 0x0f}, bomb(maxRaw)...), maxRaw),
		"snappy: more than it says":  frame(FrameRecords, nil, append([]byte{0x80, 0x80, 0x04}, bomb(maxRaw)[4:]...), 1<<16),
		"snappy: less than it says":  frame(FrameRecords, nil, bomb(maxRaw)[:1000], maxRaw),
		"snappy: no length":          frame(FrameRecords, nil, []byte{0xff, 0xff}, maxRaw),
		"end: objects":               frame(FrameEnd, long(`{"summary":{"audit":{"lines":[`, "{}", "]}}}", 1<<20), nil, 0),
		"end: deep":                  frame(FrameEnd, deep(200_000), nil, 0),
		"end: texts":                 frame(FrameEnd, long(`{"summary":{"audit":{"notes":[`, `""`, "]}}}", 1<<20), nil, 0),
		"audit: objects":             frame(FrameRecords, record(tagAudit, long(`{"lines":[`, "{}", "]}", 300_000)), nil, 0),
		"audit: the same key":        frame(FrameRecords, record(tagAudit, long(`{"a":1`, `"lines":[{},{}]`, "}", 60_000)), nil, 0),
		"a length beyond everything": frame(FrameRecords, []byte{tagString, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1}, nil, 0),
		"4 MiB of definitions":       frame(FrameRecords, bytes.Repeat([]byte{tagSocket, 0, 0, 0, 0, 0, 0}, 600_000), nil, 0),
		"4 MiB of texts":             frame(FrameRecords, bytes.Repeat([]byte{tagString, 0}, 2<<20), nil, 0),
		"4 MiB of shapes":            frame(FrameRecords, bytes.Repeat(append([]byte{tagShape}, make([]byte, 11)...), 300_000), nil, 0),
	} {
		t.Run(name, func(t *testing.T) {
			dump := append(bytes.Clone(head), b...)
			// Some 4 MiB for the payload as it is and unpacked, and definitions.
			within(t, 60<<20, func() {
				require.NoError(t, readAll(dump, &nothing{}, func(r *Reader) { require.Len(t, r.damaged, 1, "%v", r.damaged) }))
			})
		})
	}
	for name, raw := range map[string][]byte{
		"hooks":   long(`{"format":1,"capabilities":{"hooks":[`, "{}", "]}}", 1_000_000),
		"reasons": long(`{"format":1,"capabilities":{"rst_reasons":{`, `"1":""`, "}}}", 600_000),
		"deep":    deep(200_000),
		"command": long(`{"format":1,"command":[`, `""`, "]}", 1_300_000),
	} {
		t.Run("header: "+name, func(t *testing.T) {
			f := Frame{Kind: FrameHeader, Raw: raw}
			dump := f.Append(append([]byte(nil), signature[:]...), 0, 0)
			within(t, 40<<20, func() {
				require.ErrorIs(t, readAll(dump, &nothing{}, nil), ErrNotDump)
			})
		})
	}
}

// What a header has for people is repeated for each connection that it is about.
func TestHeaderWithLongNames(t *testing.T) {
	long := strings.Repeat("ä", 10_000)
	hook := event.Hook{Name: long, Via: long, Gives: long, Why: long}
	reasons := map[uint32]string{}
	for i := range uint32(3000) {
		reasons[i*1000] = "A"
	}
	reasons[2] = "A" + long
	dump, err := Assemble(Header{
		Tool: long, Host: long, Kernel: long, BootID: long, Window: &Window{Trigger: long},
		Capabilities: event.Capabilities{
			Kernel: long, Attach: long, Identity: long, Hooks: slices.Repeat([]event.Hook{hook, {Name: "h"}}, 10),
			Unknowable: append([]string{long}, slices.Repeat([]string{"u"}, 1000)...), RSTReasons: map[uint32]string{1: "B"}, DropReasons: reasons,
		},
	}, nil, nil)
	require.NoError(t, err)
	require.NoError(t, readAll(dump, &nothing{}, func(r *Reader) {
		word, name, sentence := strings.Repeat("ä", 128)+"…", strings.Repeat("ä", 64)+"…", strings.Repeat("ä", 512)+"…"
		h := r.Header()
		c := &h.Capabilities
		for _, s := range []string{h.Tool, h.Host, h.Kernel, h.BootID, h.Window.Trigger, c.Kernel, c.Attach, c.Identity} {
			require.Equal(t, word, s)
		}
		require.Len(t, c.Hooks, 20)
		require.Equal(t, event.Hook{Name: name, Via: name, Gives: sentence, Why: sentence}, c.Hooks[18])
		require.Equal(t, event.Hook{Name: "h"}, c.Hooks[19])
		require.Len(t, c.Unknowable, maxHooks)
		require.Equal(t, []string{sentence, "u"}, c.Unknowable[:2])
		require.Equal(t, map[uint32]string{1: "B"}, c.RSTReasons)
		require.Len(t, c.DropReasons, maxReasons)
		require.Equal(t, "A"+strings.Repeat("ä", 63)+"…", c.DropReasons[2], "in the middle of a character")
		require.Contains(t, c.DropReasons, uint32(1022_000))
		require.NotContains(t, c.DropReasons, uint32(1023_000))
	}))
}

// Each living connection can keep where a segment of it was dropped.
func TestLongFunctions(t *testing.T) {
	long, most := strings.Repeat("w", maxText), strings.Repeat("f", maxSymbol)
	dump := written(t, func(f Feed) {
		f.Event(&event.Event{Kind: event.KindSegmentDropped, Where: long})
		f.Event(&event.Event{Kind: event.KindSegmentDropped, Where: most})
		f.Lost(1, event.Lost{Where: long, Count: 1})
	}, false)
	got := new(tape)
	require.NoError(t, readAll(dump, got, func(r *Reader) { require.Empty(t, r.damaged) }))
	all := strings.Join(got.lines, "\n")
	require.Contains(t, all, "Where:"+long[:maxSymbol]+"… ")
	require.Contains(t, all, "Where:"+most+" ")
}

// record is one with bytes, length first.
func record(tag byte, b []byte) []byte {
	return append(binary.AppendUvarint([]byte{tag}, uint64(len(b))), b...)
}

// resum gives a frame that was changed checksums that are right.
func resum(b []byte) []byte {
	le := binary.LittleEndian
	le.PutUint32(b[28:], crc32.Checksum(b[frameHeaderSize:], castagnoli))
	le.PutUint32(b[48:], crc32.Checksum(b[:48], castagnoli))
	return b
}

// A file of nothing but broken frames is read in a time that grows with its
// length, and no more is remembered of it than the bound.
func TestFileOfHoles(t *testing.T) {
	head, err := HeaderFrame(Header{})
	require.NoError(t, err)
	good := (&Frame{Kind: FrameRecords, Raw: []byte{tagAdvance, 0}}).Append(nil, RunID(""), 2)
	t.Run("headers that claim what is not theirs", func(t *testing.T) {
		h := bytes.Clone(good)
		binary.LittleEndian.PutUint32(h[16:], maxRaw)
		binary.LittleEndian.PutUint32(h[20:], maxRaw)
		binary.LittleEndian.PutUint32(h[48:], crc32.Checksum(h[:48], castagnoli))
		dump := append(bytes.Clone(head), bytes.Repeat(h[:frameHeaderSize], 16<<20/frameHeaderSize)...)
		began := time.Now()
		within(t, 64<<20, func() { require.NoError(t, readAll(dump, &nothing{}, nil)) })
		require.Less(t, time.Since(began), 20*time.Second)
	})
	t.Run("many", func(t *testing.T) {
		dump := bytes.Clone(head)
		for i := range 3000 {
			binary.LittleEndian.PutUint32(good[8:], uint32(i+2))
			dump = append(append(dump, resum(good)...), "junk"...)
		}
		n := new(tape)
		require.NoError(t, readAll(dump, n, func(r *Reader) {
			list, more := r.Damages()
			require.Len(t, list, maxDamages)
			require.EqualValues(t, 3000-maxDamages, more)
		}))
		require.Len(t, n.lines, 3000)
	})
}

// Frames whose checksums are right and whose contents are not cost what they
// hold, and say how much.
func TestPayloadsThatLie(t *testing.T) {
	ev := event.Event{Time: 5, Kind: event.KindState, Sock: 1}
	for name, change := range map[string]func(f *Frame){
		"fewer events than said": func(f *Frame) { f.Events += 3 },
		"more events than said":  func(f *Frame) { f.Events -= 2 },
		"no events said":         func(f *Frame) { f.Events = 0 },
		"cut":                    func(f *Frame) { f.Raw = f.Raw[:len(f.Raw)-3] },
		"more":                   func(f *Frame) { f.Raw = append(f.Raw, 15) },
		"a long number":          func(f *Frame) { f.Raw = append(f.Raw, bytes.Repeat([]byte{0xff}, 11)...) },
		"an event of no shape":   func(f *Frame) { f.Raw = append(f.Raw, 99, 1, 1) },
	} {
		t.Run(name, func(t *testing.T) {
			var list []*Frame
			e := NewEncoder(func(f *Frame) { list = append(list, f) })
			for range 2 {
				for range 10 {
					e.Event(&ev)
				}
				e.Flush()
			}
			whole := list[0].Events
			change(list[0])
			list[1].Before = uint64(list[0].Events)
			dump, err := Assemble(Header{}, list, &End{})
			require.NoError(t, err)
			var got tape
			var r *Reader
			require.NoError(t, readAll(dump, &got, func(x *Reader) { r = x }))
			require.Len(t, r.damaged, 1)
			handed, lost := 0, 0
			for _, l := range got.lines {
				var n int
				if _, err := fmt.Sscanf(l, "lost 5 {Where:dump Count:%d}", &n); err == nil {
					lost += n
				} else {
					require.True(t, strings.HasPrefix(l, "event"), l)
					handed++
				}
			}
			require.EqualValues(t, uint64(lost), r.damaged[0].Events)
			require.EqualValues(t, list[0].Events+list[1].Events, handed+lost)
			require.LessOrEqual(t, handed, int(whole)+10)
		})
	}
}
