package export

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"

	"github.com/tcptrace/tcptrace/internal/diagnose"
	"github.com/tcptrace/tcptrace/internal/render"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// Sink is a form in which a run, or several one after the other, is exported.
// It belongs to one goroutine.
type Sink interface {
	render.Renderer
	// Capabilities tells what the kernel of the run that begins could show, and
	// the names of its reasons. It is called before Start or right after it, and
	// holds until the next call.
	Capabilities(event.Capabilities)
	// Raw takes an event as the kernel gave it, with its wall-clock time and the
	// ID of the connection that it belongs to, "" if none. Lines of socket
	// snapshots may be among them. It keeps nothing of e. What goes wrong is
	// returned by the next method that returns an error.
	Raw(e *event.Event, at render.Stamp, conn string)
	// Close completes what was written; also where a run has no end. It closes
	// nothing beneath.
	Close() error
}

// jsonSink is render.JSON with what the others need.
type jsonSink struct{ *render.JSON }

// NewJSON returns a sink that writes JSON lines to w, those of `watch -o json`.
func NewJSON(w io.Writer) Sink { return jsonSink{render.NewJSON(w)} }

func (jsonSink) Capabilities(event.Capabilities)        {}
func (jsonSink) Raw(*event.Event, render.Stamp, string) {}
func (j jsonSink) Close() error                         { return j.Flush() }

// maxNames bounds what is remembered of names that nobody takes back. Beyond
// it they are learned anew.
const maxNames = 65536

// spaces are the names of network namespaces.
type spaces map[uint32]string

// Bounds of spaces: as many as a timeline knows, and the bytes of a name, which
// a dump can have 4096 of.
const (
	maxSpaces    = 4096
	maxSpaceName = 400
)

func (s spaces) learn(ns event.Namespace) {
	if ns.Name == "" {
		return
	}
	if len(s) >= maxSpaces {
		clear(s)
	}
	s[ns.Inode] = render.Short(ns.Name, maxSpaceName)
}

// finals finds the last word on each verdict. Where a run was cut off before
// the last word, the latest is.
type finals struct {
	growing map[finalKey]*render.Verdict
}

type finalKey struct {
	code string
	key  diagnose.Key
}

func newFinals() finals { return finals{make(map[finalKey]*render.Verdict)} }

// take returns whether v is a last word. What is not is kept; the engine bounds
// how many there can be.
func (f finals) take(v *render.Verdict) bool {
	k := finalKey{v.Code, v.Key}
	if v.Phase == diagnose.PhaseFinal {
		delete(f.growing, k)
		return true
	}
	f.growing[k] = v
	return false
}

// end returns the last words of a run, with those that nobody said.
func (f finals) end(said []*render.Verdict) []*render.Verdict {
	for _, v := range said {
		delete(f.growing, finalKey{v.Code, v.Key})
	}
	rest := make([]*render.Verdict, 0, len(f.growing))
	for _, v := range f.growing {
		rest = append(rest, v)
	}
	clear(f.growing)
	slices.SortFunc(rest, func(a, b *render.Verdict) int {
		return cmp.Or(cmp.Compare(a.First, b.First), cmp.Compare(a.Code, b.Code), cmp.Compare(a.Story, b.Story),
			cmp.Compare(a.Subject.Name, b.Subject.Name))
	})
	return append(slices.Clone(said), rest...)
}

// object encodes a value as JSON that is safe to print.
func object(v any) (string, error) {
	b, err := appendObject(nil, v)
	return string(b), err
}

func appendObject(out []byte, v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return out, fmt.Errorf("encoding JSON: %w", err)
	}
	return append(out, render.SafeJSON(b)...), nil
}

func safe(list []string) []string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = render.Safe(s)
	}
	return out
}
