package dump

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"

	"github.com/tcptrace/tcptrace/tracer/event"
)

// short is a run in seven small frames, with snapshots across frames.
func short(f Feed) {
	cut := func() {
		if e, ok := f.(*Encoder); ok {
			e.Flush()
		}
	}
	one := func(i int64) {
		f.Event(&event.Event{Time: 100 + i, Sock: uint64(i % 3), Kind: event.KindState, New: event.StateEstablished, PID: uint32(i), Reason: uint32(i % 4)})
	}
	line := func(i int64) {
		f.Snapshot(&event.Event{Time: 100 + i, Sock: uint64(i), Kind: event.KindSnapshot, Inventory: &event.Inventory{Inode: uint64(i)}}, uint32(i), "own")
	}
	f.Clock(1_700_000_000_000_000_000)
	f.Process(someone)
	one(1)
	one(2)
	f.Advance(102)
	cut()
	f.BeginSnapshot(7, 103)
	line(4)
	cut()
	line(5)
	line(6)
	cut()
	one(7)
	line(8)
	f.EndSnapshot(7, 109)
	cut()
	one(10)
	one(11)
	one(12)
	cut()
	f.BeginSnapshot(8, 113)
	line(14)
	f.EndSnapshot(8, 115)
	one(16)
	cut()
	one(17)
	cut()
}

var someone = event.Process{PID: 7, Comm: "c", Cgroup: "/c", Exe: "/e"}

const shortEvents = 8

// frameAt is where a frame of a dump stands.
type frameAt struct {
	from, to int
	head     frameHeader
}

// frames finds those of a sound dump.
func frames(t testing.TB, dump []byte) (list []frameAt) {
	t.Helper()
	for at := len(signature); at < len(dump); {
		h, err := parseFrameHeader(dump[at:])
		require.NoError(t, err)
		to := at + frameHeaderSize + int(h.stored)
		list = append(list, frameAt{at, to, h})
		at = to
	}
	return list
}

// replayed is what came of a dump that may be damaged.
type replayed struct {
	*tape
	*Reader
	opened error
}

func replay(t testing.TB, dump []byte) replayed {
	t.Helper()
	r, err := NewReader(bytes.NewReader(dump))
	if err != nil {
		require.ErrorIs(t, err, ErrNotDump)
		return replayed{opened: err}
	}
	got := new(tape)
	for err == nil {
		err = r.Next(got)
	}
	require.ErrorIs(t, err, io.EOF)
	require.ErrorIs(t, r.Next(got), io.EOF, "and again")
	return replayed{got, r, nil}
}

// sound checks that nothing was handed over that was not in the run, nothing
// twice, nothing in another order, and that no snapshot ends that misses a
// line. It returns the events that were handed over and those told lost.
func sound(t testing.TB, want, got []string, about ...any) (handed, lost int) {
	t.Helper()
	at, lines, began := 0, 0, false
	for _, l := range got {
		if strings.Contains(l, "{Where:"+WhereDump) {
			var when, n int
			_, err := fmt.Sscanf(l, "lost %d {Where:"+WhereDump+" Count:%d}", &when, &n)
			require.NoError(t, err)
			require.Positive(t, when)
			lost += n
			continue
		}
		for at < len(want) && want[at] != l {
			at++
		}
		require.Less(t, at, len(want), "%v: it was told %q in vain", about, l)
		word, _, _ := strings.Cut(l, " ")
		switch word {
		case "event":
			handed++
		case "begin":
			lines, began = 0, true
		case "snapshot":
			require.True(t, began, "%v: a line without its beginning", about)
			lines++
		case "end":
			all := 0
			for i := at - 1; !strings.HasPrefix(want[i], "begin"); i-- {
				if strings.HasPrefix(want[i], "snapshot") {
					all++
				}
			}
			require.True(t, began && lines == all, "%v: %q was told of a snapshot that misses lines", about, l)
			began = false
		}
		at++
	}
	return handed, lost
}

// shortDump is that run and what a feed is told of it.
func shortDump(t testing.TB) (dump []byte, want []string) {
	t.Helper()
	var all tape
	short(&all)
	dump = written(t, short, false)
	got := replay(t, dump)
	require.NoError(t, got.opened)
	require.Equal(t, all.lines, got.lines)
	require.Empty(t, got.damaged)
	require.Len(t, frames(t, dump), 2+7+1)
	return dump, all.lines
}

// A dump that ends anywhere reads to its last whole frame, and says how much is
// missing.
func TestCutAnywhere(t *testing.T) {
	dump, want := shortDump(t)
	list := frames(t, dump)
	for n := range dump {
		whole, events, told := 0, 0, 0 // frames, and the events that their headers tell of
		for _, f := range list {
			if f.to <= n {
				whole++
				events += int(f.head.Events)
			}
			if f.from+frameHeaderSize <= n {
				told += int(f.head.Events)
			}
		}
		r := replay(t, dump[:n])
		if whole == 0 {
			require.ErrorIs(t, r.opened, ErrNotDump)
			require.Regexp(t, `it ends before its header does|the file is empty`, r.opened.Error())
			continue
		}
		require.NoError(t, r.opened, n)
		require.Nil(t, r.End(), n)
		handed, lost := sound(t, want, r.lines, n)
		require.Equal(t, events, handed, n)
		require.Equal(t, told-events, lost, n)
		last := list[whole-1].to
		if n == last {
			require.Empty(t, r.damaged, n)
			continue
		}
		require.Len(t, r.damaged, 1, n)
		d := r.damaged[0]
		require.Equal(t, Damage{Offset: int64(last), Bytes: int64(n - last), Events: uint64(lost), What: d.What}, d, n)
		require.Contains(t, d.What, "cut off", n)
		require.False(t, r.Whole(), n)
	}
}

// Each single bit that is another one is found, and costs no more than the
// frame that it is in.
func TestFlipAnywhere(t *testing.T) {
	dump, want := shortDump(t)
	list := frames(t, dump)
	for i := range dump {
		f := slices.IndexFunc(list, func(f frameAt) bool { return i < f.to })
		from, to := list[f].from, list[f].to
		hurt := int(list[f].head.Events)
		if i < len(signature) {
			from, to, hurt = 0, len(signature), 0
		}
		for bit := range 8 {
			if raced && bit != i%8 {
				continue // there is nothing to race in the other seven
			}
			dump[i] ^= 1 << bit
			r := replay(t, dump)
			dump[i] ^= 1 << bit
			require.NoError(t, r.opened)
			require.Len(t, r.damaged, 1, i)
			d := r.damaged[0]
			require.Equal(t, int64(from), d.Offset, i)
			require.Equal(t, int64(to-from), d.Bytes, i)
			require.NotEmpty(t, d.What)
			handed, lost := sound(t, want, r.lines, i, bit)
			require.Equal(t, shortEvents-hurt, handed, i)
			// The end tells how many there were; if it is hurt, none are.
			require.Equal(t, hurt, lost, i)
			require.Equal(t, f != len(list)-1, r.End() != nil, i)
			require.Equal(t, uint64(shortEvents), r.Told())
		}
	}
}

// All ways to put frames together other than they were: taken away, twice,
// swapped, with junk between, and with those of another recording.
func TestFramesAstray(t *testing.T) {
	dump, want := shortDump(t)
	list := frames(t, dump)
	piece := func(i int) []byte { return dump[list[i].from:list[i].to] }
	join := func(pieces ...[]byte) []byte { return slices.Concat(pieces...) }
	// check reads a dump that misses the frames in missing.
	check := func(t *testing.T, b []byte, damages int, missing ...int) replayed {
		t.Helper()
		r := replay(t, b)
		require.NoError(t, r.opened)
		hurt := 0
		for _, i := range missing {
			hurt += int(list[i].head.Events)
		}
		handed, lost := sound(t, want, r.lines)
		require.Equal(t, shortEvents-hurt, handed)
		require.Equal(t, hurt, lost)
		require.Len(t, r.damaged, damages, "%v", r.damaged)
		return r
	}
	end := len(list) - 1
	for i := range list {
		t.Run(fmt.Sprintf("without/%d", i), func(t *testing.T) {
			b := join(dump[:list[i].from], dump[list[i].to:])
			if i == end {
				require.Nil(t, check(t, b, 0).End())
				return
			}
			damages := 1
			if i == 0 {
				damages = 0 // the other copy is the header
			}
			check(t, b, damages, i)
		})
		t.Run(fmt.Sprintf("twice/%d", i), func(t *testing.T) {
			r := check(t, join(dump[:list[i].to], piece(i), dump[list[i].to:]), 1)
			require.Equal(t, int64(list[i].to), r.damaged[0].Offset)
			require.Equal(t, int64(len(piece(i))), r.damaged[0].Bytes)
		})
		t.Run(fmt.Sprintf("junk/%d", i), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(1, uint64(i)))
			for _, n := range []int{1, 3, 100, 70_000, 300_000} {
				junk := make([]byte, n)
				for i := range junk {
					junk[i] = byte(rnd.Uint32())
				}
				copy(junk[n/2:], frameMagic[:])
				r := check(t, join(dump[:list[i].to], junk, dump[list[i].to:]), 1)
				require.Equal(t, Damage{Offset: int64(list[i].to), Bytes: int64(n), What: r.damaged[0].What}, r.damaged[0])
			}
		})
		if i+1 < end && i >= 2 {
			t.Run(fmt.Sprintf("swapped/%d", i), func(t *testing.T) {
				b := join(dump[:list[i].from], piece(i+1), piece(i), dump[list[i+1].to:])
				check(t, b, 2, i)
			})
			t.Run(fmt.Sprintf("shorter/%d", i), func(t *testing.T) {
				// A byte is missing of the payload, so that its length leads astray.
				b := join(dump[:list[i].to-1], dump[list[i].to:])
				check(t, b, 1, i)
			})
			t.Run(fmt.Sprintf("longer/%d", i), func(t *testing.T) {
				b := join(dump[:list[i].to-1], []byte{^dump[list[i].to-1], 2}, dump[list[i].to-1:])
				check(t, b, 1, i)
			})
		}
		t.Run(fmt.Sprintf("foreign/%d", i), func(t *testing.T) {
			other, err := Assemble(Header{Tool: "test", Run: "another"}, []*Frame{
				{Kind: FrameRecords, Before: 1 << 40, Events: 1, Raw: []byte{tagAdvance, 2}},
			}, &End{Reason: EndDone, At: 1 << 50})
			require.NoError(t, err)
			r := check(t, join(dump[:list[i].to], other, dump[list[i].to:]), 1)
			require.Equal(t, int64(len(other)), r.damaged[0].Bytes)
			require.EqualValues(t, 2000, r.End().At)
		})
	}
	t.Run("headers swapped", func(t *testing.T) {
		check(t, join(dump[:8], piece(1), piece(0), dump[list[1].to:]), 1)
	})
	t.Run("no header", func(t *testing.T) {
		r := replay(t, join(dump[:8], dump[list[1].to:]))
		require.ErrorContains(t, r.opened, "both copies of its header are damaged")
	})
	t.Run("signature", func(t *testing.T) {
		for n := range len(signature) {
			check(t, dump[n+1:], 1)
			check(t, join(dump[:n], []byte("abc"), dump[n:]), 1)
		}
	})
	t.Run("two dumps", func(t *testing.T) {
		check(t, join(dump, dump), 1)
	})
}

// A frame that was never written is missed, even one without an event, where
// all that is in the file is sound.
func TestFrameNeverWritten(t *testing.T) {
	var all tape
	short(&all)
	for gone := range 7 {
		var list []*Frame
		e := NewEncoder(func(f *Frame) { list = append(list, f) })
		short(e)
		hurt := int(list[gone].Events)
		list = slices.Delete(list, gone, gone+1)
		dump, err := Assemble(Header{}, list, &End{})
		require.NoError(t, err)
		if gone == 6 {
			hurt = 0 // nothing tells of it
		}
		r := replay(t, dump)
		require.Empty(t, r.damaged)
		handed, lost := sound(t, all.lines, r.lines, gone)
		require.Equal(t, hurt, lost)
		require.Equal(t, map[bool]int{false: shortEvents - hurt, true: shortEvents - 1}[gone == 6], handed)
	}
}

func TestParts(t *testing.T) {
	var all tape
	short(&all)
	var list []*Frame
	e := NewEncoder(func(f *Frame) { list = append(list, f) })
	short(e)
	var dumps [][]byte
	for part := range 3 {
		b, err := Assemble(Header{Run: "r", Part: part, StartedBoot: 90}, list[part*2:part*2+2+part/2], &End{Reason: EndRotated})
		require.NoError(t, err)
		dumps = append(dumps, b)
	}
	play := func(t *testing.T, dumps ...[]byte) (*tape, []*Reader) {
		got := new(tape)
		var readers []*Reader
		for i, b := range dumps {
			r, err := NewReader(bytes.NewReader(b))
			require.NoError(t, err)
			for err == nil {
				if i == 0 {
					err = r.Next(got)
				} else {
					prev := readers[i-1]
					err = r.Continue(got, prev.Place(), prev.Whole() && prev.Header().Part+1 == r.Header().Part)
				}
			}
			require.ErrorIs(t, err, io.EOF)
			readers = append(readers, r)
		}
		return got, readers
	}
	t.Run("all", func(t *testing.T) {
		got, readers := play(t, dumps...)
		require.Equal(t, all.lines, got.lines)
		require.EqualValues(t, shortEvents, readers[2].Told())
	})
	t.Run("the middle one is missing", func(t *testing.T) {
		got, readers := play(t, dumps[0], dumps[2])
		handed, lost := sound(t, all.lines, got.lines)
		require.Equal(t, []int{shortEvents - 1, 1}, []int{handed, lost})
		require.Empty(t, readers[1].damaged)
	})
	t.Run("the first one is missing", func(t *testing.T) {
		got, _ := play(t, dumps[1], dumps[2])
		handed, lost := sound(t, all.lines, got.lines)
		require.Equal(t, []int{shortEvents - 2, 0}, []int{handed, lost})
	})
	t.Run("one comes again", func(t *testing.T) {
		got, readers := play(t, dumps[0], dumps[1], dumps[1], dumps[2])
		handed, lost := sound(t, all.lines, got.lines)
		require.Equal(t, []int{shortEvents, 0}, []int{handed, lost})
		require.Empty(t, readers[2].damaged, "a window may overlap another")
	})
	t.Run("the first of the middle one is damaged", func(t *testing.T) {
		at := frames(t, dumps[1])[3].to - 1
		b := bytes.Clone(dumps[1])
		b[at] ^= 4
		got, _ := play(t, dumps[0], b, dumps[2])
		handed, lost := sound(t, all.lines, got.lines)
		require.Equal(t, []int{shortEvents - 1, 1}, []int{handed, lost})
		// As the first one of all, too: its header still tells where it begins.
		got, _ = play(t, b, dumps[2])
		handed, lost = sound(t, all.lines, got.lines)
		require.Equal(t, []int{shortEvents - 3, 1}, []int{handed, lost})
	})
}

// TestFramesNeverWrittenAreToldLost: as where the disk was too slow for them.
func TestFramesNeverWrittenAreToldLost(t *testing.T) {
	var list []*Frame
	e := NewEncoder(func(f *Frame) { list = append(list, f) })
	ev := event.Event{Time: 5, Kind: event.KindState}
	for _, n := range []int{1, 41, 1} {
		for range n {
			e.Event(&ev)
		}
		e.Flush()
	}
	require.EqualValues(t, 43, e.Before())
	dump, err := Assemble(Header{}, []*Frame{list[0], list[2]}, nil)
	require.NoError(t, err)
	r := replay(t, dump)
	require.Len(t, r.lines, 3)
	require.Equal(t, "lost 5 {Where:dump Count:41}", r.lines[1])
}

// TestRepeatIsAFrameOfItsOwn: its number counts, so that nothing seems to be
// missing after it.
func TestRepeatIsAFrameOfItsOwn(t *testing.T) {
	var list []*Frame
	e := NewEncoder(func(f *Frame) { list = append(list, f) })
	e.Process(event.Process{PID: 7, Comm: "seven"})
	e.BeginSnapshot(1, 5)
	e.Repeat()
	e.EndSnapshot(1, 6)
	e.Flush()
	dump, err := Assemble(Header{}, list, &End{})
	require.NoError(t, err)
	got, r := read(t, dump)
	require.True(t, r.Whole())
	require.Equal(t, []string{"process {PID:7 Comm:seven Cgroup: Exe:}", "begin 1 5", "clock 0", "process {PID:7 Comm:seven Cgroup: Exe:}", "end 1 6"}, got.lines)
	require.Nil(t, r.buf, "what was read to its end takes no memory")
}

func TestPreamble(t *testing.T) {
	var list []*Frame
	e := NewEncoder(func(f *Frame) { list = append(list, f) })
	e.Clock(5)
	e.Namespace(event.Namespace{Inode: 3, Name: "blue", Known: true})
	e.Process(event.Process{PID: 1, Comm: "init"})
	ev := event.Event{Time: 9, Kind: event.KindState, PID: 1, Netns: 3}
	e.Event(&ev)
	first := e.Preamble()
	require.Len(t, list, 1, "what came before is in a frame")
	require.Equal(t, FramePreamble, first.Kind)
	require.EqualValues(t, 1, first.Before)
	e.Event(&ev)
	e.Flush()
	part, err := Assemble(Header{Part: 1}, []*Frame{first, list[1]}, nil)
	require.NoError(t, err)
	r := replay(t, part)
	require.Equal(t, []string{"clock 5", "namespace", "process", "event"}, words(r.lines))
	for _, follows := range []bool{true, false} {
		r, err := NewReader(bytes.NewReader(part))
		require.NoError(t, err)
		var got tape
		for err == nil {
			err = r.Continue(&got, Place{told: 1}, follows)
		}
		if follows {
			require.Equal(t, []string{"event"}, words(got.lines), "it was told before")
		} else {
			require.Equal(t, []string{"clock 5", "namespace", "process", "event"}, words(got.lines))
		}
		got.lines = nil
	}
	// If something is missing between, what the preamble repeats may be, too.
	again, err := NewReader(bytes.NewReader(part))
	require.NoError(t, err)
	var got tape
	for err == nil {
		err = again.Continue(&got, Place{}, true)
	}
	require.Equal(t, []string{"lost 9 {Where:dump Count:1}", "clock 5", "namespace", "process", "event"}, words(got.lines))
}

// words are lines without what follows the first word, but for short ones.
func words(lines []string) (out []string) {
	for _, l := range lines {
		if w, _, _ := strings.Cut(l, " "); w == "namespace" || w == "process" || w == "event" {
			l = w
		}
		out = append(out, l)
	}
	return out
}

func TestSourceFails(t *testing.T) {
	dump, _ := shortDump(t)
	broken := fmt.Errorf("the disk is on fire")
	for n := range dump {
		r, err := NewReader(io.MultiReader(bytes.NewReader(dump[:n]), iotest.ErrReader(broken)))
		if err == nil {
			for err == nil {
				err = r.Next(&nothing{})
			}
			require.Nil(t, r.End())
			require.Empty(t, r.damaged)
		}
		require.ErrorIs(t, err, broken)
		require.NotErrorIs(t, err, ErrNotDump)
	}
	got := new(tape)
	r, err := NewReader(iotest.OneByteReader(bytes.NewReader(dump)))
	require.NoError(t, err)
	for err == nil {
		err = r.Next(got)
	}
	require.ErrorIs(t, err, io.EOF)
	require.NotNil(t, r.End())
	_, err = NewReader(stuck{})
	require.ErrorIs(t, err, io.ErrNoProgress)
}

// stuck reads nothing, for ever.
type stuck struct{}

func (stuck) Read([]byte) (int, error) { return 0, nil }
