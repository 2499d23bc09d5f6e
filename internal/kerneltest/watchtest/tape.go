package watchtest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tcptrace/tcptrace/internal/dump"
	"github.com/tcptrace/tcptrace/internal/dump/dumptest"
	"github.com/tcptrace/tcptrace/internal/host"
	"github.com/tcptrace/tcptrace/internal/pipeline"
	"github.com/tcptrace/tcptrace/internal/render"
	"github.com/tcptrace/tcptrace/internal/timeline"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// tape is a recording of a watch, and what the watch said meanwhile.
type tape struct {
	*dumptest.Memory
	options pipeline.Options
	said    bytes.Buffer // JSON lines, compressed
	packed  *zstd.Encoder
}

func newTape() *tape { return &tape{Memory: dumptest.NewMemory()} }

// record has a run recorded. Parts are short at first, so that there are some
// in every test, and then last ten seconds.
func (p *tape) record(cfg *pipeline.Config) {
	p.options = cfg.Options
	p.PartAt = func(tick int) bool { return tick == 2 || tick%10 == 0 }
	p.packed, _ = zstd.NewWriter(&p.said, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	cfg.Out = twice{cfg.Out, render.NewJSON(p.packed)}
	cfg.Record = p
}

// twice is two renderers that are told the same.
type twice [2]render.Renderer

func (r twice) each(tell func(render.Renderer) error) error {
	return errors.Join(tell(r[0]), tell(r[1]))
}

func (r twice) Start(s *render.Start) error {
	return r.each(func(o render.Renderer) error { return o.Start(s) })
}

func (r twice) Namespace(ns event.Namespace) {
	r[0].Namespace(ns)
	r[1].Namespace(ns)
}

func (r twice) Event(e *render.Event) error {
	return r.each(func(o render.Renderer) error { return o.Event(e) })
}

func (r twice) Connection(c *render.Connection) error {
	return r.each(func(o render.Renderer) error { return o.Connection(c) })
}

func (r twice) Verdict(v *render.Verdict) error {
	return r.each(func(o render.Renderer) error { return o.Verdict(v) })
}

func (r twice) Lost(l *render.Lost) error {
	return r.each(func(o render.Renderer) error { return o.Lost(l) })
}

func (r twice) Summary(s *render.Summary) error {
	return r.each(func(o render.Renderer) error { return o.Summary(s) })
}

func (r twice) Flush() error { return r.each(render.Renderer.Flush) }

// replay goes through the recording and fails the test unless it says what the
// watch said, byte for byte.
func (p *tape) replay(t *testing.T) {
	t.Helper()
	begun, _, err := host.Usage()
	require.NoError(t, err)
	require.NoError(t, p.packed.Close())
	said, err := zstd.NewReader(&p.said, zstd.WithDecoderConcurrency(1))
	require.NoError(t, err)
	defer said.Close()

	recording, events, size := p.recording(t)
	o, c := p.options, &comparison{want: bufio.NewReader(said)}
	o.Out = render.NewJSON(c)
	got, err := pipeline.Replay(context.Background(), pipeline.ReplayConfig{Options: o}, recording)
	c.end()
	if errors.Is(err, errDiffers) || c.differs {
		t.Errorf("the recording does not say what the watch said. Line %d of the watch:\n%s\nof the recording:\n%s", c.lines+1, c.wanted, c.got)
		return
	}
	require.NoError(t, err)
	assert.Empty(t, got.Problems, "what is missing of the recording")
	took, _, err := host.Usage()
	require.NoError(t, err)
	t.Logf("replayed: %d lines, the same ones; %d events in %d bytes, %d parts, %v of processor time", c.lines, events, size, p.Parts(), (took - begun).Round(time.Millisecond))
}

// recording reads it, and says of how many events it is, and of how many bytes.
func (p *tape) recording(t *testing.T) (r pipeline.Recording, events uint64, size int) {
	t.Helper()
	var parts []pipeline.Part
	for i := range p.Parts() {
		b, err := p.Bytes(i)
		require.NoError(t, err)
		size += len(b)
		for _, f := range p.Frames(i) {
			events += uint64(f.Events)
		}
		r, err := dump.NewReader(bytes.NewReader(b))
		require.NoError(t, err)
		parts = append(parts, pipeline.Part{Name: fmt.Sprintf("part %d", i+1), Reader: r})
	}
	list, twice := pipeline.Recordings(parts)
	require.Empty(t, twice)
	require.Len(t, list, 1)
	return list[0], events, size
}

// tell logs the events of some namespaces, as the kernel sent them, at most
// maxTold of them.
func (p *tape) tell(t *testing.T, netns map[uint32]bool) {
	t.Helper()
	const maxTold = 600
	recording, _, _ := p.recording(t)
	told, first := 0, int64(0)
	o := p.options
	o.Out, o.Show = render.NewJSON(io.Discard), pipeline.Show{}
	o.Raw = func(e *event.Event, _ render.Stamp, conn string) {
		if !netns[e.Netns] || e.Kind == event.KindSnapshot {
			return
		}
		if told++; told > maxTold {
			return
		}
		if first == 0 {
			first = e.Time
		}
		t.Logf("%12.3f ms %-18s %s netns %d sock %x %v->%v %s->%s flags %#x pid %d reason %d err %d attempt %d times %d queue %d/%d",
			float64(e.Time-first)/1e6, conn, e.Kind, e.Netns, e.Sock, e.Local, e.Remote, timeline.StateName(e.Old), timeline.StateName(e.New), e.Flags, e.PID, e.Reason, e.Err,
			e.Attempt, e.Times(), e.Listener.QueueLen, e.Listener.QueueLimit)
	}
	_, err := pipeline.Replay(context.Background(), pipeline.ReplayConfig{Options: o}, recording)
	require.NoError(t, err)
	if told > maxTold {
		t.Logf("%d more", told-maxTold)
	}
}

var errDiffers = errors.New("this is another line")

// comparison takes lines that should be those of want.
type comparison struct {
	want    *bufio.Reader
	rest    []byte // of a line, not yet ended
	lines   int    // that are the same
	differs bool
	wanted  []byte
	got     []byte
}

// Write takes some of the lines. Its error is errDiffers.
func (c *comparison) Write(b []byte) (int, error) {
	c.rest = append(c.rest, b...)
	rest := c.rest
	for {
		i := bytes.IndexByte(rest, '\n')
		if i < 0 {
			c.rest = c.rest[:copy(c.rest, rest)]
			return len(b), nil
		}
		want, err := c.want.ReadBytes('\n')
		if err != nil && err != io.EOF {
			return 0, fmt.Errorf("reading what the watch said: %w", err)
		}
		if !bytes.Equal(want, rest[:i+1]) {
			c.differs, c.wanted, c.got = true, want, bytes.Clone(rest[:i+1])
			return 0, errDiffers
		}
		c.lines++
		rest = rest[i+1:]
	}
}

// end is called when no more lines come.
func (c *comparison) end() {
	if c.differs {
		return
	}
	want, err := c.want.ReadBytes('\n')
	if err != io.EOF || len(want) > 0 || len(c.rest) > 0 {
		c.differs, c.wanted, c.got = true, want, c.rest
	}
}
