package diagnose

import (
	"fmt"

	"github.com/tcptrace/tcptrace/internal/timeline"
)

const codeBacklogClamped = "backlog-clamped"

var docBacklogClamped = Doc{
	Code:     codeBacklogClamped,
	Severity: Info,
	Summary:  "listen() asked for a longer accept queue than net.core.somaxconn allows",
	Meaning: `The kernel takes min(listen()'s backlog, net.core.somaxconn) without telling the application. That is harmless until the queue overflows; then raising the backlog in the application's configuration changes nothing.

A negative backlog means "as long as allowed" and is not reported.`,
	Counts: "calls of listen()",
	Evidence: []DocKey{
		{"backlog_argument", "connections", "what the application passed to listen()"},
		{"somaxconn", "connections", "net.core.somaxconn of the network namespace at that moment"},
	},
	Fix:    []string{"raise net.core.somaxconn to what the application asks for, in its network namespace, then restart it"},
	Source: []string{"net/socket.c: __sys_listen()"},
}

type backlogClamped struct{}

func (backlogClamped) Code() string { return codeBacklogClamped }
func (backlogClamped) Doc() Doc     { return docBacklogClamped }

type clamp struct {
	l                   *timeline.Listener
	argument, somaxconn int64
}

func (r backlogClamped) Listener(x *Engine, l *timeline.Listener, e *timeline.Entry) {
	if e.Kind != timeline.EntryListen || !l.BacklogKnown || l.Somaxconn == 0 || l.Backlog <= int64(l.Somaxconn) {
		return
	}
	k := Key{Netns: l.Netns, Addr: l.Addr, PID: l.Owner().PID}
	x.Report(r, k, &clamp{l, l.Backlog, int64(l.Somaxconn)}, e.At, 1)
}

func (f *clamp) Describe(x *Engine, v *Verdict) {
	v.Severity, v.Confidence = Info, Certain
	v.Subject = Subject{"listener", f.l.Addr.String()}
	v.Process = process(f.l.Owner())
	v.Story = fmt.Sprintf("listen() asked for a queue of %d, net.core.somaxconn allows %d", f.argument, f.somaxconn)
	v.Evidence = Evidence{
		{Key: "backlog_argument", Value: f.argument},
		{Key: "somaxconn", Value: f.somaxconn},
	}
	v.Fix = docBacklogClamped.Fix
}
