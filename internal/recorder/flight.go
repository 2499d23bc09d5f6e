package recorder

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/tcptrace/tcptrace/internal/dump"
)

// Triggers that are no verdict's code.
const (
	TriggerSignal = "signal"
	TriggerExit   = "exit"
)

const (
	// leastSegment is how long a segment is at least: each has all sockets
	// looked at.
	leastSegment = 5 * time.Second
	// stretch is how many times After a file can wait for what follows, where
	// triggers keep coming.
	stretch = 4
)

// flight is what a flight recorder knows on the run's goroutine.
type flight struct {
	pending    *pending
	ever       bool
	last       int64             // when the trigger of the newest file came
	suppressed map[string]uint64 // triggers since then that made no file
	throttled  bool              // it was told of
	refused    bool              // it was told that triggers make no more files
}

// pending is a file that waits for what follows its trigger.
type pending struct {
	code   string
	at     int64
	until  int64
	latest int64
	more   map[string]uint64 // further triggers meanwhile
}

// Trigger has a flight recorder write its window because of a verdict, once
// what follows is in it. It belongs to the run's goroutine.
func (r *Recorder) Trigger(code string) {
	if r.air == nil || !r.begun || r.over || r.dead() {
		return
	}
	w := r.o.Window
	if r.air.spent.Load() {
		if !r.refused {
			r.refused = true
			r.refuse(code)
		}
		return
	}
	if p := r.pending; p != nil {
		// One file for both, with what follows the newer one too.
		p.more[code]++
		p.until = min(max(p.until, r.now+int64(w.After)), p.latest)
		return
	}
	if r.ever && r.now-r.last < int64(w.Interval) {
		if r.suppressed == nil {
			r.suppressed = make(map[string]uint64)
		}
		r.suppressed[code]++
		if !r.throttled {
			r.throttled = true
			r.tell("%s within %v of the trigger before: it makes no file, nor do further ones until then (--trigger-interval)", code, w.Interval)
		}
		return
	}
	r.ever, r.last, r.throttled = true, r.now, false
	r.pending = &pending{
		code: code, at: r.now, until: r.now + int64(w.After), latest: r.now + stretch*int64(w.After), more: make(map[string]uint64),
	}
	if w.After > 0 {
		r.tell("%s: the window is written in %v, with what follows until then", code, w.After)
	}
}

// refuse tells that a window is not written because --max-files are.
func (r *Recorder) refuse(trigger string) {
	most := r.o.MaxFiles
	were := fmt.Sprintf("%d files were", most)
	if most == 1 {
		were = "1 file was"
	}
	text := fmt.Sprintf("%s: nothing is written: %s, as many as --max-files %d allows", trigger, were, most)
	switch trigger {
	case TriggerSignal:
		// Somebody waits for the file.
		if r.o.Notify != nil {
			r.o.Notify(Notice{Failed: true, Text: text, Hint: "end this recording and begin another one, with a larger --max-files"})
		}
	case TriggerExit:
		r.tell("%s", text)
	default:
		r.tell("%s; nor for further triggers", text)
	}
}

// Dump has a flight recorder write its window within about a second. It can be
// called at any time from any goroutine.
func (r *Recorder) Dump() { r.signal.Store(true) }

// cutoff is how far back the window has to reach. What led to a trigger is
// kept until its file is written.
func (r *Recorder) cutoff() int64 {
	from := r.now
	if p := r.pending; p != nil {
		from = min(from, p.at)
	}
	return from - int64(r.o.Window.Last)
}

// aloft does what is due once a second.
func (r *Recorder) aloft() {
	if !r.air.busy.Load() {
		if r.signal.Swap(false) {
			r.out(TriggerSignal, r.now, nil)
		} else if p := r.pending; p != nil && r.now >= p.until {
			r.pending = nil
			r.out(p.code, p.at, p.more)
		}
	}
	if r.now-r.began >= int64(max(r.o.Window.Last/segments, leastSegment)) || r.air.long.Load() {
		r.due = true
	}
}

// out has the writer write a file.
func (r *Recorder) out(trigger string, at int64, more map[string]uint64) {
	r.air.busy.Store(true)
	d := dumped{
		trigger: trigger, at: at, offset: r.clock, before: r.total,
		end: dump.End{Reason: dump.EndWindow, Text: r.words(more), At: r.now},
	}
	r.q.push(item{do: func() error {
		defer r.air.busy.Store(false)
		if err := r.air.write(d); err != nil {
			r.report(fmt.Errorf("%s: the window was not written: %w", d.trigger, err))
		}
		return nil
	}})
}

// words tells of triggers that have no file of their own.
func (r *Recorder) words(more map[string]uint64) string {
	var parts []string
	if len(more) > 0 {
		parts = append(parts, "also triggered by "+counts(more))
	}
	if len(r.suppressed) > 0 {
		parts = append(parts, fmt.Sprintf("triggers before, within %v of another, without a file: %s", r.o.Window.Interval, counts(r.suppressed)))
		r.suppressed = nil
	}
	return strings.Join(parts, "; ")
}

func counts(of map[string]uint64) string {
	var list []string
	for _, code := range slices.Sorted(maps.Keys(of)) {
		list = append(list, fmt.Sprintf("%s (%d)", code, of[code]))
	}
	return strings.Join(list, ", ")
}

// final writes the window as tracing ends. It runs on the writer's goroutine,
// while the run's waits.
func (r *Recorder) final(e dump.End, before uint64) error {
	if r.air.spent.Load() {
		r.refuse(TriggerExit)
		return nil
	}
	d := dumped{trigger: TriggerExit, at: r.now, offset: r.clock, before: before, end: e}
	var more map[string]uint64
	if p := r.pending; p != nil {
		d.trigger, d.at, more = p.code, p.at, p.more
	}
	if text := r.words(more); text != "" {
		d.end.Text = strings.TrimPrefix(d.end.Text+"; "+text, "; ")
	}
	return r.air.write(d)
}
