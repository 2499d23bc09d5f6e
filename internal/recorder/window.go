package recorder

import (
	"bytes"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/tcptrace/tcptrace/internal/dump"
	"github.com/tcptrace/tcptrace/internal/outfile"
)

// Window is what a flight recorder keeps, and when it writes it.
type Window struct {
	// Last is how far back it reaches at least, while there is room.
	Last time.Duration
	// After is how long what follows a trigger is waited for.
	After time.Duration
	// Interval is how long after a trigger further ones make no file.
	Interval time.Duration
	// MaxMemory bounds it in bytes; at least [MinSize].
	MaxMemory int64
	// Spool is a directory in which it is kept instead, in files without a name,
	// bounded by Options.MaxSize; "": in memory.
	Spool string
}

// segments is how many a window has: it forgets one at a time.
const segments = 8

// window keeps the frames of the last minutes. But for long, it belongs to the
// writer's goroutine.
type window struct {
	r      *Recorder
	o      *Options
	dir    *directory // of the files
	spool  *directory // nil: memory
	base   string
	header dump.Header

	list    []*segment
	held    int64
	scratch []byte
	wrote   int  // files
	spilled bool // it was told that the spool takes no more
	busy    atomic.Bool
	long    atomic.Bool // the newest segment has grown long
	spent   atomic.Bool // all files that may be written were
}

// segment begins with all that is needed to understand it.
type segment struct {
	first    int64  // CLOCK_BOOTTIME, ns
	before   uint64 // events of the run before it
	preamble []byte
	frames   []sealed
	bytes    int64
	file     *os.File // of the spool
	end      int64    // of the file
}

// sealed is a frame as it stands in a dump, but for its number.
type sealed struct {
	b    []byte // nil: in the spool
	at   int64
	size int
	next uint64 // events of the run up to its end
}

func (w *window) open() error {
	if w.o.Window.Spool == "" {
		return nil
	}
	var err error
	w.spool, err = openDirectory(w.o.Window.Spool)
	if err != nil {
		return err
	}
	f, err := w.spool.anonymous()
	if err != nil {
		w.spool.close()
		return &outfile.Error{Path: w.o.Window.Spool, Err: err, Hint: "--spool needs a directory in which files can be made"}
	}
	f.Close()
	return nil
}

func (w *window) close() {
	for _, s := range w.list {
		s.close()
	}
	w.list = nil
	if w.spool != nil {
		w.spool.close()
	}
	w.dir.close()
}

func (s *segment) close() {
	if s.file != nil {
		s.file.Close() // it has no name: its space is free now
		s.file, s.end = nil, 0
	}
}

// limit bounds what is held, in bytes.
func (w *window) limit() int64 {
	if w.spool != nil {
		return w.o.MaxSize
	}
	return w.o.Window.MaxMemory
}

func (w *window) begin(h dump.Header, preamble *dump.Frame) {
	w.header = h
	w.segment(preamble, h.StartedBoot, h.StartedBoot)
}

// segment begins another one, and forgets those that ended before cutoff.
func (w *window) segment(preamble *dump.Frame, first, cutoff int64) {
	s := &segment{first: first, before: preamble.Before, preamble: preamble.Append(nil, 0, 0)}
	s.bytes = int64(len(s.preamble))
	w.held += s.bytes
	w.list = append(w.list, s)
	for len(w.list) > 1 && w.list[1].first <= cutoff {
		w.forget()
	}
	w.bound(first)
}

// forget lets the oldest segment go.
func (w *window) forget() {
	s := w.list[0]
	w.held -= s.bytes
	s.close()
	w.list[0] = nil
	w.list = w.list[1:]
}

// hollow lets all frames of a segment go, where it is the only one: a reader
// is told that they are missing.
func (w *window) hollow(s *segment) {
	w.held -= s.bytes
	s.frames, s.bytes = nil, int64(len(s.preamble))
	w.held += s.bytes
	s.close()
}

func (w *window) frame(f *dump.Frame) {
	w.scratch = f.Append(w.scratch[:0], 0, 0)
	s := w.list[len(w.list)-1]
	one := sealed{size: len(w.scratch), next: f.Before + uint64(f.Events)}
	if w.spool == nil {
		one.b = bytes.Clone(w.scratch)
	} else if err := w.spill(s, &one); err != nil {
		if !w.spilled {
			w.spilled = true
			w.r.report(fmt.Errorf("the window has a hole: %w", err))
		}
		return
	}
	s.frames = append(s.frames, one)
	s.bytes += int64(one.size)
	w.held += int64(one.size)
	w.bound(f.Last)
}

// spill writes the frame in scratch to the spool.
func (w *window) spill(s *segment, one *sealed) error {
	if s.file == nil {
		f, err := w.spool.anonymous()
		if err != nil {
			return err
		}
		s.file = f
	}
	for {
		err := w.o.room(int(s.file.Fd()), w.o.Window.Spool, one.size)
		if err == nil {
			break
		}
		if len(w.list) == 1 {
			return err
		}
		w.shorten()
	}
	if _, err := s.file.WriteAt(w.scratch, s.end); err != nil {
		return fmt.Errorf("writing to the spool: %w", err)
	}
	one.at = s.end
	s.end += int64(one.size)
	return nil
}

// shorten makes room before its time: it lets the oldest segment go, or of the
// only one what it holds.
func (w *window) shorten() {
	if len(w.list) > 1 {
		w.forget()
	} else {
		w.hollow(w.list[0])
	}
	w.r.mu.Lock()
	was := w.r.stats.Short
	w.r.stats.Short = true
	w.r.mu.Unlock()
	if !was {
		w.r.tell("the window of %v does not fit into %s, and is shorter", w.o.Window.Last, sizeText(w.limit()))
	}
}

// bound keeps the window within its bounds.
func (w *window) bound(now int64) {
	limit := w.limit()
	for w.held > limit && (len(w.list) > 1 || len(w.list[0].frames) > 0) {
		w.shorten()
	}
	if newest := w.list[len(w.list)-1]; newest.bytes > limit/segments {
		w.long.Store(true)
	}
	w.r.mu.Lock()
	w.r.stats.Held, w.r.stats.Span = w.held, time.Duration(max(now-w.list[0].first, 0))
	w.r.mu.Unlock()
}

// dumped is a file to be written.
type dumped struct {
	trigger string
	at      int64 // when it came, CLOCK_BOOTTIME
	offset  int64 // of the wall clock
	end     dump.End
	before  uint64
}

// write writes the window to a file of its own. Only its last one's error ends
// anything: the window is still there for the next trigger.
func (w *window) write(d dumped) error {
	if w.spent.Load() {
		w.r.refuse(d.trigger)
		return nil
	}
	first := w.list[0]
	h := w.header
	h.Run, h.Part = newRun(), 0
	h.StartedBoot, h.Started = first.first, first.first+d.offset
	h.Window = &dump.Window{Trigger: d.trigger, At: d.at + d.offset, Asked: w.o.Window.Last, Dropped: first.before}
	out, err := w.create(&h)
	if err != nil {
		return err
	}
	err = w.fill(out, h)
	if err != nil {
		err = out.fail(err, d.end.At, d.before)
	} else {
		err = out.end(d.end, d.before)
	}
	if out.seq == 0 {
		// Not even the header.
		_ = w.dir.remove(out.made)
		return err
	}
	if w.wrote++; w.wrote == w.o.MaxFiles {
		w.spent.Store(true)
	}
	w.r.opened(out.name)
	w.r.wrote(out.size)
	if err == nil {
		w.r.tell("%s: wrote the last %v to %s", d.trigger, round(d.end.At-first.first), out.name)
	}
	return err
}

// create makes a file that is named by time and trigger.
func (w *window) create(h *dump.Header) (*output, error) {
	at := time.Unix(0, h.Window.At).UTC().Format("20060102T150405Z")
	var err error
	for i := range planted {
		name := fmt.Sprintf("%s.%s.%s", stem(w.base), at, h.Window.Trigger)
		if i > 0 {
			name += fmt.Sprintf("-%d", i+1)
		}
		var f *file
		if f, err = w.dir.create(name+dump.Extension, false); err == nil {
			return newOutput(w.o, f.f, f), nil
		}
		if !exists(err) {
			break
		}
	}
	return nil, err
}

func (w *window) fill(out *output, h dump.Header) error {
	if err := out.begin(h, nil); err != nil {
		return err
	}
	for _, s := range w.list {
		out.before = max(out.before, s.before)
		if err := out.sealed(s.preamble); err != nil {
			return err
		}
		for _, one := range s.frames {
			b := one.b
			if b == nil {
				if cap(w.scratch) < one.size {
					w.scratch = make([]byte, one.size)
				}
				b = w.scratch[:one.size]
				if _, err := s.file.ReadAt(b, one.at); err != nil {
					return fmt.Errorf("reading the spool: %w", err)
				}
			}
			if err := out.sealed(b); err != nil {
				return err
			}
			out.before = one.next
		}
	}
	return nil
}

// sealed writes a frame that was made before.
func (out *output) sealed(b []byte) error {
	if err := dump.Renumber(b, out.run, out.seq); err != nil {
		return fmt.Errorf("writing %s: %w", out.name, err)
	}
	if err := out.write(b, true); err != nil {
		return err
	}
	out.seq++
	return nil
}

func round(ns int64) time.Duration {
	d := time.Duration(max(ns, 0))
	if d > 10*time.Second {
		return d.Round(time.Second)
	}
	return d.Round(100 * time.Millisecond)
}
