package dump

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tcptrace/tcptrace/tracer/event"
)

// later makes a payload as a later version might.
type later struct{ e *Encoder }

func (l later) numbers(v ...uint64) {
	for _, v := range v {
		l.e.uvarint(v)
	}
}

func (l later) record(tag uint64, b string) {
	l.e.uvarint(tag)
	l.e.bytes([]byte(b))
}

// plus is a layout with more fields in each group.
func plus() Layout {
	l := layout
	for _, g := range []*[]string{&l.Shape, &l.Traffic, &l.Listener, &l.Inventory, &l.Sysctls} {
		*g = append(append([]string(nil), *g...), "later_1", "later_2", "later_3")
	}
	return l
}

// headed makes a dump of a header and frames.
func headed(t *testing.T, header any, frames ...*Frame) []byte {
	t.Helper()
	raw, err := json.Marshal(header)
	require.NoError(t, err)
	f := Frame{Kind: FrameHeader, Raw: raw}
	dump := f.Append(f.Append(append([]byte(nil), signature[:]...), 5, 0), 5, 1)
	for i, f := range frames {
		dump = f.Append(dump, 5, uint32(i+2))
	}
	return dump
}

// laterDump is one as a later version might write it.
func laterDump(t *testing.T) []byte {
	t.Helper()
	var list []*Frame
	e := NewEncoder(func(f *Frame) { list = append(list, f) })
	l := later{e}
	l.numbers(tagMore, 1)
	e.bytes([]byte("a record of a kind that is not known"))
	l.numbers(tagNamespace, 9)
	e.text("blue")
	l.numbers(1)
	for i := range uint64(15 + 3) {
		l.numbers(zigzag(int64(i) - 3))
	}
	l.numbers(tagAddr, 4, 10, 0, 0, 1)
	l.numbers(tagSocket, zigzag(77), zigzag(9), 1, 80, 0, 0)
	l.numbers(tagListener, 4)
	const laterBits = 1<<7 | 1<<40 // two groups that are not known
	shape := func(has, traffic uint64) {
		l.numbers(tagShape, 200, 1, 2, 3, 4, 5, 6, 7, 1, has, traffic, 1<<60, 0, 5)
	}
	shape(hasCount|hasListener|hasInventory|laterBits, 1<<0|1<<5|1<<6|1<<8)
	for range 2 {
		l.numbers(tagEvent, zigzag(10), 0, 3)                     // shape, time, socket, count
		l.numbers(zigzag(100), zigzag(50), zigzag(-1), zigzag(7)) // traffic 0, 5, and 6, 8 of later
		l.numbers(0, 1<<0|1<<9|1<<11, zigzag(12), 1, 1<<40)       // listener, queue_len and later ones
		l.numbers(1<<0|1<<14, zigzag(31), zigzag(3))              // inventory, inode and a later one
		l.numbers(1<<0|1<<63, 4, 5)                               // a group
		l.numbers(0)                                              // another, without change
		e.events++
	}
	l.numbers(tagAudit)
	e.bytes([]byte(`{"at":3,"later":[{"x":{}}],"lines":[{"counter":"A","later":"x"}]}`))
	e.Flush()
	later := &Frame{Kind: 9, Raw: []byte("nobody knows")}
	counting := &Frame{Kind: 200, Before: 2, Events: 3, Raw: []byte("nobody knows that either")}
	end := &Frame{Kind: FrameEnd, Before: 5, Raw: []byte(`{"reason":"a later one","at":8,"summary":{"later":1},"later":{}}`)}
	return headed(t, map[string]any{
		"format": 1, "tool": "9.9", "layout": plus(), "part": 0, "later": map[string]int{"x": 1}, "capabilities": map[string]any{"has_later": true, "kernel": "k"},
	}, later, list[0], counting, end)
}

// What a later version of the format adds in the ways that docs/dump-format.md
// reserves for it is passed over.
func TestLaterWritersAreRead(t *testing.T) {
	r := replay(t, laterDump(t))
	require.NoError(t, r.opened)
	require.Empty(t, r.damaged)
	require.Equal(t, "9.9", r.Header().Tool)
	require.Equal(t, "a later one", r.End().Reason)

	var want tape
	want.Namespace(event.Namespace{Inode: 9, Name: "blue", Known: true, Sysctls: event.Sysctls{
		Somaxconn: -3, SYNRetries: -2, SYNACKRetries: -1, SYNCookies: 0, AbortOnOverflow: 1, MaxSYNBacklog: 2, Retries2: 3, KeepaliveTime: 4,
		KeepaliveInterval: 5, KeepaliveProbes: 6, FinTimeout: 7, TWReuse: 8, MaxTWBuckets: 9, PortRangeLow: 10, PortRangeHigh: 11,
	}})
	for i := range int64(2) {
		want.Event(&event.Event{
			Time: 10 * (i + 1), Sock: 77, Netns: 9, Local: netip.MustParseAddrPort("10.0.0.1:80"), Kind: 200, Old: 1, New: 2, Flags: 3, Err: 4, Attempt: 5, Reason: 6,
			TCPFlags: 7, Out: true, Count: 3, Traffic: event.Traffic{BytesSent: uint64(100 * (i + 1)), Unacked: uint32(50 * (i + 1))},
			Listener: event.Listener{ID: 4, QueueLen: uint32(12 * (i + 1))}, Inventory: &event.Inventory{Inode: uint64(31 * (i + 1))},
		})
	}
	want.Audit(Audit{At: 3, Lines: []AuditLine{{Counter: "A"}}})
	want.Lost(20, event.Lost{Where: WhereDump, Count: 3})
	require.Equal(t, want.lines, r.lines)
}

// A dump of an earlier version of the layout has fewer fields in some groups.
func TestEarlierWritersAreRead(t *testing.T) {
	less := layout
	less.Sysctls, less.Traffic, less.Inventory = less.Sysctls[:2], less.Traffic[:3], nil
	l := later{NewEncoder(nil)}
	l.numbers(tagNamespace, 9, 0, 1, zigzag(5), zigzag(6))
	dump := headed(t, Header{Format: 1, Layout: less}, &Frame{Kind: FrameRecords, Raw: l.e.buf})
	r := replay(t, dump)
	require.NoError(t, r.opened)
	require.Empty(t, r.damaged)
	var want tape
	want.Namespace(event.Namespace{Inode: 9, Known: true, Sysctls: event.Sysctls{Somaxconn: 5, SYNRetries: 6}})
	require.Equal(t, want.lines, r.lines)

	// A field that its layout does not have is damage.
	l = later{NewEncoder(nil)}
	l.numbers(tagShape, 1, 1, 2, 3, 4, 5, 6, 7, 1, 0, 1<<3)
	dump = headed(t, Header{Format: 1, Layout: less}, &Frame{Kind: FrameRecords, Raw: l.e.buf})
	require.Len(t, replay(t, dump).damaged, 1)
}

func TestWhatCannotBeRead(t *testing.T) {
	other := layout
	other.Shape = append([]string{"color"}, other.Shape[1:]...)
	fewer := layout
	fewer.Shape = fewer.Shape[:9]
	many := layout
	many.Sysctls = make([]string, 65)
	for _, c := range []struct {
		header any
		is     error
		says   string
	}{
		{map[string]any{"format": 2, "layout": "another one", "key": true}, ErrNewer, "its format is version 2, and this tcptrace reads up to version 1: a newer tcptrace wrote this dump"},
		{map[string]any{"format": 0}, ErrNotDump, "names no version"},
		{map[string]any{"format": -1}, ErrNotDump, "names no version"},
		{map[string]any{"format": "x"}, ErrNotDump, "header cannot be read"},
		{map[string]any{}, ErrNotDump, "names no version"},
		{[]int{1}, ErrNotDump, "header cannot be read"},
		{Header{Format: 1, Layout: other}, ErrNotDump, `field 0 of group shape is "color", not "kind"`},
		{Header{Format: 1, Layout: fewer}, ErrNotDump, "9 fields in group shape, fewer than 11"},
		{Header{Format: 1, Layout: many}, ErrNotDump, "65 fields in group sysctls"},
	} {
		_, err := NewReader(bytes.NewReader(headed(t, c.header)))
		require.ErrorIs(t, err, c.is)
		require.ErrorContains(t, err, c.says)
	}
	for _, b := range [][]byte{nil, []byte("\x89PNG\r\n\x1a\n and a picture"), []byte("{}\n"), make([]byte, 1<<20), []byte("\x89TCPT\r\n")} {
		_, err := NewReader(bytes.NewReader(b))
		require.ErrorIs(t, err, ErrNotDump)
	}
	// Compressed in another way.
	f := Frame{Kind: FrameRecords, Raw: make([]byte, 3)}
	b := f.Append(nil, 5, 2)
	b[5] = 7
	r := replay(t, append(headed(t, Header{Format: 1, Layout: layout}), resum(b)...))
	require.Len(t, r.damaged, 1)
	require.Contains(t, r.damaged[0].What, "compressed in a way (7)")
}
