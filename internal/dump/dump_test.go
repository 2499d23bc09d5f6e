package dump

import (
	"bytes"
	"fmt"
	"io"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tcptrace/tcptrace/tracer/event"
)

// tape is a feed that writes down what it is told.
type tape struct{ lines []string }

func (t *tape) say(format string, args ...any) {
	t.lines = append(t.lines, fmt.Sprintf(format, args...))
}

func (t *tape) Clock(offset int64)           { t.say("clock %d", offset) }
func (t *tape) Namespace(ns event.Namespace) { t.say("namespace %+v", ns) }
func (t *tape) Process(p event.Process)      { t.say("process %+v", p) }
func (t *tape) Event(e *event.Event)         { t.say("event %s", show(e)) }
func (t *tape) BeginSnapshot(netns uint32, now int64) {
	t.say("begin %d %d", netns, now)
}
func (t *tape) Snapshot(e *event.Event, pid uint32, comm string) {
	t.say("snapshot %s %d %q", show(e), pid, comm)
}
func (t *tape) EndSnapshot(netns uint32, now int64) { t.say("end %d %d", netns, now) }
func (t *tape) Lost(at int64, l event.Lost)         { t.say("lost %d %+v", at, l) }
func (t *tape) Advance(now int64)                   { t.say("advance %d", now) }
func (t *tape) Audit(a Audit)                       { t.say("audit %+v", a) }

func show(e *event.Event) string {
	v := *e
	inv := v.Inventory
	v.Inventory = nil
	if inv == nil {
		return fmt.Sprintf("%+v", v)
	}
	return fmt.Sprintf("%+v %+v", v, *inv)
}

// play tells a feed a short run with something of everything.
func play(f Feed) {
	client := netip.MustParseAddrPort("10.0.0.1:40000")
	server := netip.MustParseAddrPort("[2001:db8::1]:443")
	f.Clock(1_700_000_000_000_000_000)
	f.Namespace(event.Namespace{Inode: 4026531840, Name: "caf\xe9", Known: true, Sysctls: event.Sysctls{Somaxconn: 4096, TWReuse: 2, PortRangeHigh: 60999}})
	f.Process(event.Process{PID: 7, Comm: "a\x1bb", Cgroup: "/x", Exe: "/bin/a"})
	f.BeginSnapshot(4026531840, 90)
	f.Snapshot(&event.Event{
		Time: 91, Sock: 5, Kind: event.KindSnapshot, New: event.StateListen, Netns: 4026531840, Local: server,
		Listener: event.Listener{ID: 5, QueueLen: 3, QueueLimit: 128, Somaxconn: 4096, Backlog: 1<<32 - 1, AbortOnOverflow: true, SYNCookies: 1},
		Inventory: &event.Inventory{
			Inode: 1 << 40, UID: 1000, Idle: -1, SentIdle: 5 * time.Second, Left: -1, SendWindow: 1 << 30, Probes: 3, Minisocket: true,
		},
	}, 7, "listener\xff")
	f.Snapshot(&event.Event{Time: 92, Sock: 6, Kind: event.KindSnapshot, New: event.StateEstablished, Inventory: &event.Inventory{Idle: time.Minute}}, 0, "")
	f.EndSnapshot(4026531840, 93)
	f.Audit(Audit{At: 94, Since: time.Second, Lines: []AuditLine{{Counter: "OutRsts", Kernel: 3, Explained: 2, Note: "n"}}, Notes: []string{"x"}})
	for i := range int64(50) {
		e := event.Event{
			Time: 100 - i%3, Sock: uint64(1000 - i%7), Kind: event.KindState, Old: event.StateSynSent, New: event.StateEstablished,
			Flags: event.FlagProcess | event.FlagKeepalive, Netns: 4026531840 + uint32(i%2), Local: client, Remote: server,
			PID: uint32(i % 5), Comm: event.Comm{'n', byte('a' + i%3)}, Cgroup: uint64(i % 4),
			Traffic: event.Traffic{BytesSent: uint64(i) << 40, SRTT: uint32(1000 - i), Unread: uint32(i % 2)},
		}
		switch i % 10 {
		case 3:
			e = event.Event{
				Time: 50, Kind: event.KindSegmentDropped, Reason: 70, Where: "nf_hook_slow", TCPFlags: 2, Out: true, Count: uint32(i), Remote: client,
				Err: 111, Attempt: 4,
			}
		case 7:
			e = event.Event{Time: 1 << 62, Sock: 1<<64 - 1, Kind: event.KindSYNDropped, Listener: event.Listener{ID: uint64(i % 3), QueueLen: uint32(i), Attempt: 2, SYNACKRetries: 5}}
		}
		f.Event(&e)
	}
	f.Lost(1000, event.Lost{Where: "ring", Count: 1 << 50})
	f.Advance(2000)
	f.Advance(-5)
}

// written makes a dump of a run. cut closes the frame after each record.
func written(t testing.TB, run func(Feed), flush bool) []byte {
	t.Helper()
	var frames []*Frame
	e := NewEncoder(func(f *Frame) { frames = append(frames, f) })
	if flush {
		run(&flushing{e})
	} else {
		run(e)
	}
	e.Flush()
	out, err := Assemble(Header{Tool: "test", Host: "h"}, frames, &End{Reason: EndDone, At: 2000})
	require.NoError(t, err)
	return out
}

// flushing closes the frame after each event, but not within a snapshot's
// frame.
type flushing struct{ *Encoder }

func (f *flushing) Event(e *event.Event) { f.Encoder.Event(e); f.Flush() }
func (f *flushing) Snapshot(e *event.Event, pid uint32, comm string) {
	f.Encoder.Snapshot(e, pid, comm)
	f.Flush()
}

func read(t testing.TB, b []byte) (*tape, *Reader) {
	t.Helper()
	r, err := NewReader(bytes.NewReader(b))
	require.NoError(t, err)
	var got tape
	for err == nil {
		err = r.Next(&got)
	}
	require.ErrorIs(t, err, io.EOF)
	return &got, r
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	var want tape
	play(&want)
	for _, flush := range []bool{false, true} {
		got, r := read(t, written(t, play, flush))
		require.Equal(t, want.lines, got.lines)
		damages, more := r.Damages()
		require.Empty(t, damages)
		require.Zero(t, more)
		require.Equal(t, EndDone, r.End().Reason)
		require.Equal(t, "h", r.Header().Host)
	}
}
