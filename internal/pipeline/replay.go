package pipeline

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"time"

	"github.com/tcptrace/tcptrace/internal/dump"
	"github.com/tcptrace/tcptrace/internal/render"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// Part is a dump that is to be replayed: the whole of a recording, or one of
// the files that it was divided into.
type Part struct {
	Name   string // for people
	Reader *dump.Reader
}

// Recording is the parts of one recording, in their order.
type Recording struct {
	Parts []Part
}

// Header is that of the first part.
func (r *Recording) Header() *dump.Header { return r.Parts[0].Reader.Header() }

// Began is when what there is of the recording begins, which is later than the
// run where its first parts are not there. It is to be asked before [Replay].
func (r *Recording) Began() render.Stamp {
	_, wall := r.Parts[0].Reader.Began()
	return render.Stamp(wall)
}

// Recordings puts parts together. They come in the order of their names' first
// mention, the parts of each in their own. The windows of one flight recorder
// are parts, too, which can overlap. Of a part that is there twice, the second one
// is left out, of which an error tells that wraps [ErrSamePart].
func Recordings(parts []Part) (list []Recording, twice []error) {
	type place struct {
		of   int // the recording
		run  string
		part int
	}
	byRun, names := make(map[string]int), make(map[place]string)
	for _, p := range parts {
		h := p.Reader.Header()
		run := h.Run
		if h.Window != nil && h.Key != [16]byte{} {
			run = "window " + hex.EncodeToString(h.Key[:]) // of the same run of tcptrace
		}
		i, ok := byRun[run]
		if !ok || run == "" {
			i = len(list)
			list = append(list, Recording{})
			byRun[run] = i
		}
		at := place{i, h.Run, h.Part}
		if first, ok := names[at]; ok {
			twice = append(twice, fmt.Errorf("%s is the same part of a recording as %s: %w", p.Name, first, ErrSamePart))
			continue
		}
		names[at] = p.Name
		list[i].Parts = append(list[i].Parts, p)
	}
	for _, r := range list {
		slices.SortStableFunc(r.Parts, func(a, b Part) int {
			x, y := a.Reader.Header(), b.Reader.Header()
			return cmp.Or(cmp.Compare(x.Part, y.Part), cmp.Compare(x.StartedBoot, y.StartedBoot))
		})
	}
	return list, twice
}

// ErrSamePart is wrapped by the errors of [Recordings].
var ErrSamePart = errors.New("a part can be replayed once")

// ReplayConfig is what [Replay] needs.
type ReplayConfig struct {
	Options // Timeline.Key and all Capabilities come from the dump
	// Until is where to stop, as if the recording had ended there; 0: nowhere.
	Until render.Stamp
}

// Replayed is what became of a replay.
type Replayed struct {
	Summary  *render.Summary
	Began    render.Stamp // of what there is
	Problems []string     // what is missing of the recording, for people
	Notes    []string     // what else is to be said of it
}

// Replay goes through a recording again: what is shown is what a run with the
// same options would have shown. Damage is no error: it is told as lost events
// and in Problems. The error is the renderer's, the context's, or, as an
// [*UnreadError], the file's; what could be read until then was shown.
func Replay(ctx context.Context, cfg ReplayConfig, rec Recording) (*Replayed, error) {
	h := rec.Header()
	o := cfg.Options
	o.Timeline.Key, o.Timeline.Capabilities, o.Diagnose.Capabilities = h.Key, h.Capabilities, h.Capabilities
	r := &replay{Machine: NewMachine(o), until: math.MaxInt64, wall: cfg.Until}
	from, wall := rec.Parts[0].Reader.Began()
	out := &Replayed{Began: render.Stamp(wall)}
	r.Clock(wall - from) // where what says so cannot be read
	first := start(h)
	first.Time = out.Began
	if err := o.Out.Start(first); err != nil {
		return out, err
	}
	end, err := r.parts(ctx, rec, out)
	now, s := r.last, render.Summary{}
	switch {
	case r.stopped:
		now = min(now, r.until)
	case end != nil && end.Summary != nil:
		now, s = end.At, summaryOf(end.Summary)
	default:
		// As far as the recording got.
		s.Audit, s.AuditNotes = auditLines(r.audit), r.audit.Notes
	}
	if r.last == 0 {
		now = max(now, from) // nothing was read
	} else if cfg.Since != 0 && out.Began != 0 && !r.stopped && cfg.Since > r.clock.Stamp(now) {
		out.problem("the time from which on was asked is after the end of the recording, %s", r.clock.Stamp(now).Time().Format("2006-01-02 15:04:05 UTC"))
	}
	if cfg.Until != 0 && cfg.Until < out.Began {
		out.problem("the time until which was asked is before the beginning of the recording, %s", out.Began.Time().Format("2006-01-02 15:04:05 UTC"))
	}
	if h.Window != nil || h.Part > 0 {
		if len(s.Audit) > 0 {
			s.AuditNotes = append(slices.Clip(s.AuditNotes), "the counters are of the whole run, of which this is the later part")
		}
		s.Duration = 0
	}
	if s.Duration == 0 && now > from {
		s.Duration = time.Duration(now - from)
	}
	if r.Err() != nil {
		return out, r.Err()
	}
	var ferr error
	out.Summary, ferr = r.Finish(now, s)
	if ferr == nil && err != nil && ctx.Err() == nil {
		out.problem("%v: what comes after it is not here", err)
		err = &UnreadError{err}
	}
	return out, errors.Join(ferr, err)
}

// UnreadError is the error of [Replay] where a file of the recording could not
// be read to its end, while nothing else went wrong.
type UnreadError struct{ err error }

func (e *UnreadError) Error() string { return e.err.Error() }
func (e *UnreadError) Unwrap() error { return e.err }

// replay is the feed of a replay: the machine up to a time.
type replay struct {
	*Machine
	wall    render.Stamp
	until   int64
	last    int64 // 0: nothing was read
	stopped bool
	late    bool // the snapshot at hand
	audit   dump.Audit
}

func (r *replay) past(at int64) bool {
	if at > r.until {
		return true
	}
	r.last = max(r.last, at)
	return false
}

func (r *replay) Clock(offset int64) {
	if r.wall != 0 {
		r.until = int64(r.wall) - offset
	}
	r.Machine.Clock(offset)
}

func (r *replay) Event(e *event.Event) {
	if !r.past(e.Time) {
		r.Machine.Event(e)
	}
}

func (r *replay) Lost(at int64, l event.Lost) {
	if !r.past(at) {
		r.Machine.Lost(at, l)
	}
}

// Advance tells that all events before now were handed over, so nothing that
// is wanted comes after the first one that is late.
func (r *replay) Advance(now int64) {
	if r.past(now) {
		r.stopped = true
		now = r.until
	}
	r.Machine.Advance(now)
}

func (r *replay) BeginSnapshot(netns uint32, now int64) {
	if r.late = r.past(now); !r.late {
		r.Machine.BeginSnapshot(netns, now)
	}
}

func (r *replay) Snapshot(e *event.Event, pid uint32, comm string) {
	if !r.late {
		r.Machine.Snapshot(e, pid, comm)
	}
}

func (r *replay) EndSnapshot(netns uint32, now int64) {
	if !r.past(now) {
		r.Machine.EndSnapshot(netns, now)
	}
}

func (r *replay) Audit(a dump.Audit) {
	if !r.past(a.At) {
		r.audit = a
	}
}

// parts goes through the parts and returns the end of the one that reaches
// furthest: of windows that need not be the one that begins last.
func (r *replay) parts(ctx context.Context, rec Recording, out *Replayed) (end *dump.End, err error) {
	var place dump.Place
	number := 0
	for i, p := range rec.Parts {
		h := p.Reader.Header()
		switch {
		case h.Window != nil:
			r.window(p, i > 0, out)
		case i > 0 && h.Part == number+2:
			out.problem("part %d of the recording is not here: between %s and %s something is missing", number+2, rec.Parts[i-1].Name, p.Name)
		case i > 0 && h.Part != number+1:
			out.problem("parts %d to %d of the recording are not here: between %s and %s something is missing", number+2, h.Part, rec.Parts[i-1].Name, p.Name)
		case i == 0 && h.Part > 0:
			out.problem("%s is part %d of a recording: what was before it is not here", p.Name, h.Part+1)
		}
		follows := i > 0 && h.Window == nil && h.Part == number+1 && rec.Parts[i-1].Reader.Whole()
		number = h.Part
		for {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			if i == 0 {
				err = p.Reader.Next(r)
			} else {
				err = p.Reader.Continue(r, place, follows)
			}
			if err != nil || r.stopped || r.Done() || r.Err() != nil {
				break
			}
			r.fail(r.o.Out.Flush())
		}
		place = p.Reader.Place()
		r.damages(p, out)
		if err != nil && err != io.EOF {
			return nil, fmt.Errorf("%s: %w", p.Name, err)
		}
		if r.stopped || r.Done() || r.Err() != nil {
			r.stopped = true
			return nil, nil
		}
		last := p.Reader.End()
		if end == nil || last != nil && last.At >= end.At || last == nil && h.Window == nil {
			end = last
		}
		switch {
		case last == nil:
			out.problem("%s has no end: the recording still goes on, or it was cut off and the last second or more is missing", p.Name)
		case last.Reason == dump.EndWindow && last.Text != "":
			out.Notes = append(out.Notes, fmt.Sprintf("%s: %s", p.Name, last.Text))
		case last.Reason == dump.EndRotated && i == len(rec.Parts)-1:
			out.problem("the recording goes on after %s, in a part that is not here", p.Name)
		case last.Reason == dump.EndSpace || last.Reason == dump.EndError:
			out.problem("%s: the recording stopped: %s", p.Name, last.Text)
		}
	}
	return end, nil
}

// window says why a flight recorder wrote a part.
func (r *replay) window(p Part, again bool, out *Replayed) {
	h := p.Reader.Header()
	w := h.Window
	n := fmt.Sprintf("%s is what a flight recorder had kept", p.Name)
	switch w.Trigger {
	case "signal":
		n += " when SIGUSR1 came"
	case "exit":
		n += " when it ended"
	default:
		n += " when this verdict came: " + w.Trigger
	}
	n += ", " + render.Stamp(w.At).Time().Format("2006-01-02 15:04:05 UTC")
	if w.Dropped > 0 && !again {
		n += fmt.Sprintf("; the %d events before it were not kept any more", w.Dropped)
	}
	out.Notes = append(out.Notes, n)
}

func (r *replay) damages(p Part, out *Replayed) {
	list, more := p.Reader.Damages()
	for _, d := range list {
		out.problem("%s: %v", p.Name, d)
	}
	if more > 0 {
		out.problem("%s: %d further stretches cannot be read", p.Name, more)
	}
}

func (o *Replayed) problem(format string, args ...any) {
	o.Problems = append(o.Problems, fmt.Sprintf(format, args...))
}
