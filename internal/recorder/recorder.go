package recorder

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/tcptrace/tcptrace/internal/dump"
	"github.com/tcptrace/tcptrace/internal/outfile"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// Options of a [Recorder].
type Options struct {
	// Path is the file, or what the names of several begin with; "-" is Out.
	Path string
	Out  *os.File
	// Force replaces regular files that are there.
	Force bool
	// MaxSize in bytes and MaxAge are when a part ends and another one begins, 0
	// never. MaxFiles is how many parts are kept, the newest, 0 all; at least 2.
	// Of a flight recorder MaxFiles is how many files it writes, 0 no limit, and
	// MaxSize bounds its spool.
	MaxSize  int64
	MaxAge   time.Duration
	MaxFiles int
	// MinFree is how many bytes are left on the file system, 0 none, <0
	// as it seems fit: the smaller of 256 MiB and 5% of it.
	MinFree int64
	// Pseudonyms replaces addresses; nil: none are.
	Pseudonyms *dump.Pseudonyms
	// Window makes it a flight recorder.
	Window *Window
	// Optional lets the run go on where the recording failed: Notify is told then,
	// and Err knows.
	Optional bool
	// Notify is told what a user should know at once. It is called from several
	// goroutines, that of the run too, and must not wait. May be nil.
	Notify func(Notice)

	free  func(fd int) (left, size uint64, err error)
	queue int // bytes
}

// Notice is a line for the user, not escaped.
type Notice struct {
	Failed bool // it is an error
	Text   string
	Hint   string // what can be done about it, "" nothing
}

const (
	defaultMinFree = 256 << 20
	// queueBytes bounds what waits for the disk: 30 s and more of a busy host.
	queueBytes = 64 << 20
	// MinSize is the least that MaxSize can be: a few frames.
	MinSize = 1 << 20
	// askEvery bounds how often all sockets are looked at because a part or a
	// segment begins.
	askEvery = int64(5 * time.Second)
	// maxPlaces bounds the places at which events are lost that are remembered.
	maxPlaces = 1024
	// frameRoom is what the next frame and the end take at most before they are
	// compressed.
	frameRoom = 640 << 10
)

// Recorder keeps a run. It is a pipeline.Recorder: those methods are called
// from the run's goroutine, and none but Begin and End waits for a disk.
type Recorder struct {
	o     Options
	enc   *dump.Encoder
	feed  dump.Feed
	q     *queue
	ended chan struct{} // the writer is done
	files *files        // or
	air   *window

	// Of the run's goroutine.
	begun      bool
	over       bool   // nothing is taken any more
	told       bool   // Tick has returned the error
	mute       bool   // frames go nowhere
	now, clock int64  // newest time told, and what makes it wall-clock time
	total      uint64 // events in all frames so far
	began      int64  // when the part or segment began
	part       int
	raw        int64 // bytes of frames in this part, before compression
	within     bool  // of a snapshot
	due        bool  // another part or segment is to begin
	want       bool  // a snapshot is to be asked for
	asked      int64 // when it was last
	holes      bool  // frames were dropped, and what they told is to be told again
	// Lost events that were told, by where: those in the frame at hand, and those
	// in frames that were dropped.
	losses, missed map[string]uint64
	flight

	seen   atomic.Uint64 // events told so far, also after a failure
	failed atomic.Pointer[error]
	signal atomic.Bool
	mu     sync.Mutex // guards what follows, which both goroutines know
	stats  Stats
	wpart  int   // the part being written
	wsize  int64 // its bytes so far
	wraw   int64 // the same of its frames before compression
	ratio  float64
	full   bool // it was told that frames are dropped
}

// Stats say how a recording stands.
type Stats struct {
	Events  uint64   // told so far, with those that are in no file
	Dropped uint64   // for want of room in the queue
	Written uint64   // to files, those that were removed too; not of a flight recorder
	Failed  uint64   // could not be written, since the recording failed; not of a flight recorder
	Bytes   int64    // written, to files that were removed too
	Files   []string // those that are there, in their order
	Removed int      // oldest files that were removed
	// Of a flight recorder:
	Held  int64         // bytes in the window
	Span  time.Duration // how far back it reaches
	Short bool          // it was made shorter to keep within its bound
}

// Open checks what can be known before anything is recorded: nothing is made
// yet. Refusals are of type [*outfile.Error]; [Hint] knows what to do about
// them. Either End or Close must be called.
func Open(o Options) (*Recorder, error) {
	if o.free == nil {
		o.free = free
	}
	if o.queue == 0 {
		o.queue = queueBytes
	}
	r := &Recorder{o: o, q: newQueue(o.queue), ended: make(chan struct{}), ratio: 0.5, losses: make(map[string]uint64), missed: make(map[string]uint64)}
	r.enc = dump.NewEncoder(r.sink)
	r.feed = r.enc
	if o.Pseudonyms != nil {
		r.feed = &nameless{dump.Redact(r.enc, o.Pseudonyms), o.Pseudonyms}
	}
	if o.Path == "-" {
		r.files = &files{r: r, o: &r.o}
		return r, nil
	}
	base := filepath.Base(o.Path)
	if o.Path == "" || os.IsPathSeparator(o.Path[len(o.Path)-1]) || base == "." || base == ".." {
		return nil, &outfile.Error{Path: o.Path, Err: errors.New("this is the name of a directory"), Hint: "name a file in it"}
	}
	dir, err := openDirectory(filepath.Dir(o.Path))
	if err != nil {
		return nil, err
	}
	if o.Window != nil {
		r.air = &window{r: r, o: &r.o, dir: dir, base: base}
		err = r.air.open()
	} else {
		r.files = &files{r: r, o: &r.o, dir: dir, base: base}
		err = r.files.vacant()
	}
	if err != nil {
		dir.close()
		return nil, err
	}
	return r, nil
}

// Close gives up a recording that has not begun. After End it does nothing.
func (r *Recorder) Close() {
	if r.over {
		return
	}
	r.over = true
	if r.begun {
		r.q.close()
		<-r.ended
	}
	r.release()
}

func (r *Recorder) release() {
	if r.air != nil {
		r.air.close()
	} else {
		r.files.close()
	}
}

// Begin creates the first file.
func (r *Recorder) Begin(h dump.Header) error {
	h.Run, h.Part, h.Redacted = newRun(), 0, r.o.Pseudonyms != nil
	if h.Redacted {
		h.Command = nil
		// The other filters say no address.
		if _, ok := h.Filter["addr"]; ok {
			filter := make(map[string][]string)
			for k, v := range h.Filter {
				if k != "addr" {
					filter[k] = v
				}
			}
			h.Filter = filter
		}
	}
	r.now, r.began, r.asked, r.clock = h.StartedBoot, h.StartedBoot, h.StartedBoot, h.Started-h.StartedBoot
	// The first preamble says that nothing came before.
	r.mute = true
	r.enc.Clock(r.clock)
	preamble := r.enc.Preamble()
	r.mute = false
	var err error
	if r.air != nil {
		r.air.begin(h, preamble)
	} else {
		err = r.files.begin(h, preamble)
	}
	if err != nil {
		r.Close()
		return err
	}
	r.begun = true
	go r.write()
	return nil
}

func newRun() string {
	var b [8]byte
	// It never fails (crypto/rand).
	_, _ = rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// sink takes a frame from the encoder.
func (r *Recorder) sink(f *dump.Frame) {
	if r.mute {
		return
	}
	r.total = f.Before + uint64(f.Events)
	if cap(f.Raw) > 2*len(f.Raw) {
		f.Raw = bytes.Clone(f.Raw)
	}
	r.raw += int64(len(f.Raw))
	kept := r.q.push(item{frame: f})
	if !kept {
		for where, n := range r.losses {
			r.missed[where] += n
		}
	}
	clear(r.losses)

	r.mu.Lock()
	tell := false
	if !kept {
		r.stats.Dropped += uint64(f.Events)
		r.holes = true
		r.raw -= int64(len(f.Raw))
		tell, r.full = !r.full, true
	}
	if r.files != nil && r.o.MaxSize > 0 && r.size()+int64(r.ratio*frameRoom) > r.o.MaxSize {
		r.due = true
	}
	r.mu.Unlock()
	if r.air != nil && r.air.long.Load() {
		r.due = true
	}
	if tell {
		r.tell("the disk is too slow for the recording: events are left out of it, which it says at that place")
	}
}

// size is how large the part is going to be with what is on its way, in bytes.
func (r *Recorder) size() int64 {
	size, raw := int64(0), r.raw
	if r.wpart == r.part {
		size, raw = r.wsize, raw-r.wraw
	}
	return size + int64(float64(raw)*r.ratio)
}

// advanced tells how far the writer is with a part, and with how many bytes
// before compression.
func (r *Recorder) advanced(part int, size int64, raw int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if part != r.wpart {
		r.wpart, r.wsize, r.wraw = part, size, 0
		return
	}
	if raw >= frameRoom/8 {
		r.ratio = (r.ratio + 1.1*float64(size-r.wsize)/float64(raw)) / 2
	}
	r.wsize = size
	r.wraw += int64(raw)
}

func (r *Recorder) wrote(n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stats.Bytes += n
}

// kept tells of events that are in a file.
func (r *Recorder) kept(events uint32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stats.Written += uint64(events)
}

func (r *Recorder) opened(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stats.Files = append(r.stats.Files, name)
}

func (r *Recorder) removed(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if i := slices.Index(r.stats.Files, name); i >= 0 {
		r.stats.Files = slices.Delete(r.stats.Files, i, i+1)
		r.stats.Removed++
	}
}

// Stats tells how the recording stands. It can be called at any time from any
// goroutine.
func (r *Recorder) Stats() Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.stats
	s.Events = r.seen.Load()
	if r.files != nil && r.dead() {
		s.Failed = s.Events - min(s.Events, s.Written+s.Dropped)
	}
	s.Files = slices.Clone(s.Files)
	return s
}

func (r *Recorder) tell(format string, args ...any) {
	if r.o.Notify != nil {
		r.o.Notify(Notice{Text: fmt.Sprintf(format, args...)})
	}
}

// report tells of an error.
func (r *Recorder) report(err error) {
	if r.o.Notify != nil {
		r.o.Notify(Notice{Failed: true, Text: err.Error(), Hint: Hint(err)})
	}
}

// Err is why the recording ended early, nil if it did not. It can be called at
// any time from any goroutine.
func (r *Recorder) Err() error {
	if p := r.failed.Load(); p != nil {
		return *p
	}
	return nil
}

// write is the writer's goroutine: the only one that waits for the disk.
func (r *Recorder) write() {
	defer close(r.ended)
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		i, ok, closed := r.q.pop()
		if closed {
			return
		}
		if !ok {
			select {
			case <-r.q.wake:
			case <-ticker.C:
			}
		}
		if r.failed.Load() == nil {
			if err := r.handle(i, ok); err != nil {
				r.failed.Store(&err)
				if r.o.Optional {
					r.report(fmt.Errorf("the recording has ended: %w", err))
				}
			}
		}
		r.q.done(i)
	}
}

func (r *Recorder) handle(i item, ok bool) error {
	var err error
	switch {
	case !ok:
	case i.do != nil:
		err = i.do()
	case r.air != nil:
		r.air.frame(i.frame)
	default:
		err = r.files.frame(i.frame)
	}
	if err == nil && r.files != nil && !r.files.over {
		err = r.files.sync()
	}
	return err
}

// dead reports whether nothing is recorded any more.
func (r *Recorder) dead() bool { return r.failed.Load() != nil }

// settle does what a frame that was closed made due, but not in the middle of
// a snapshot: half of one is of no use.
func (r *Recorder) settle() {
	if r.due && !r.within {
		r.turn()
	}
}

// turn begins another part or segment, but not while the writer is behind: what
// waits for it is bounded.
func (r *Recorder) turn() {
	if r.q.half() {
		return
	}
	preamble := r.enc.Preamble()
	r.due, r.began, r.want = false, r.now, true
	now, before := r.now, r.total
	if r.air != nil {
		cutoff := r.cutoff()
		r.air.long.Store(false)
		r.q.push(item{holds: len(preamble.Raw), do: func() error { r.air.segment(preamble, now, cutoff); return nil }})
		return
	}
	r.part++
	r.raw = 0
	r.q.push(item{holds: len(preamble.Raw), do: func() error {
		return r.files.next(preamble, dump.End{Reason: dump.EndRotated, At: now}, before)
	}})
}

// Tick closes the frame at hand, so that no more than about a second is lost
// when tcptrace is killed, and begins parts and segments that are due.
func (r *Recorder) Tick(now int64) (snapshot bool, err error) {
	r.now = max(r.now, now)
	if r.dead() {
		if r.o.Optional {
			return false, nil
		}
		r.told = true
		return false, r.Err()
	}
	r.within = false // one that failed has no end
	r.enc.Flush()
	if r.holes && !r.q.half() {
		r.want = true
		r.mend()
	}
	if r.air != nil {
		r.aloft()
	} else if r.o.MaxAge > 0 && r.now-r.began >= int64(r.o.MaxAge) {
		r.due = true
	}
	r.settle()
	if !r.want || r.now-r.asked < askEvery {
		return false, nil
	}
	r.want, r.asked = false, r.now
	return true, nil
}

// mend tells again what the frames told that were dropped. How many events are
// missing with them, their numbers tell.
func (r *Recorder) mend() {
	r.holes = false
	r.enc.Repeat()
	missed := r.missed
	r.missed = make(map[string]uint64)
	for _, where := range slices.Sorted(maps.Keys(missed)) {
		r.Lost(r.now, event.Lost{Where: where, Count: missed[where]})
	}
}

// End writes what is left, waits until it is written, and closes everything.
// Its error is one that Tick has not returned, nor Notify been told of because
// the recording is optional.
func (r *Recorder) End(e dump.End) error {
	if !r.begun || r.over {
		r.Close()
		return nil
	}
	r.over = true
	if p := r.o.Pseudonyms; p != nil {
		e.Text = hide(p, e.Text)
		if e.Summary != nil {
			s := *e.Summary
			s.Audit = hideNotes(p, s.Audit)
			e.Summary = &s
		}
	}
	r.now = max(r.now, e.At)
	r.q.lift()
	r.enc.Flush()
	if r.holes && !r.dead() {
		r.mend()
		r.enc.Flush()
	}
	before := r.total
	r.q.push(item{do: func() error {
		if r.air != nil {
			return r.final(e, before)
		}
		r.files.over = true
		return r.files.end(e, before)
	}})
	r.q.close()
	<-r.ended
	r.release()
	if r.told || r.o.Optional {
		return nil
	}
	return r.Err()
}

// Clock is [dump.Feed].
func (r *Recorder) Clock(offset int64) {
	r.clock = offset
	if !r.dead() {
		r.feed.Clock(offset)
	}
}

// Namespace is [dump.Feed].
func (r *Recorder) Namespace(ns event.Namespace) {
	if !r.dead() {
		r.feed.Namespace(ns)
		r.settle()
	}
}

// Process is [dump.Feed].
func (r *Recorder) Process(p event.Process) {
	if !r.dead() {
		r.feed.Process(p)
		r.settle()
	}
}

// Event is [dump.Feed].
func (r *Recorder) Event(e *event.Event) {
	r.seen.Add(1)
	if !r.dead() {
		r.feed.Event(e)
		r.settle()
	}
}

// BeginSnapshot is [dump.Feed].
func (r *Recorder) BeginSnapshot(netns uint32, now int64) {
	if !r.dead() {
		r.within = true
		r.feed.BeginSnapshot(netns, now)
	}
}

// Snapshot is [dump.Feed].
func (r *Recorder) Snapshot(e *event.Event, pid uint32, comm string) {
	if !r.dead() {
		r.feed.Snapshot(e, pid, comm)
	}
}

// EndSnapshot is [dump.Feed].
func (r *Recorder) EndSnapshot(netns uint32, now int64) {
	r.now = max(r.now, now)
	if !r.dead() {
		r.within = false
		r.feed.EndSnapshot(netns, now)
		r.settle()
	}
}

// Lost is [dump.Feed].
func (r *Recorder) Lost(at int64, l event.Lost) {
	if !r.dead() {
		if _, ok := r.losses[l.Where]; ok || len(r.losses) < maxPlaces {
			r.losses[l.Where] += l.Count
		}
		r.feed.Lost(at, l)
	}
}

// Advance is [dump.Feed].
func (r *Recorder) Advance(now int64) {
	r.now = max(r.now, now)
	if !r.dead() {
		r.feed.Advance(now)
	}
}

// Audit is [dump.Feed].
func (r *Recorder) Audit(a dump.Audit) {
	if !r.dead() {
		r.feed.Audit(a)
		r.settle()
	}
}

func exists(err error) bool { return err != nil && errors.Is(err, fs.ErrExist) }

func count(n uint64, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return humanize.Comma(int64(min(n, math.MaxInt64))) + " " + noun
}

// sizeText is a size for people.
func sizeText(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }
