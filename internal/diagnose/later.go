package diagnose

import (
	"math"
	"time"

	"github.com/tcptrace/tcptrace/internal/timeline"
)

// later keeps connections that a rule does not judge yet, for a while.
type later struct {
	list []postponed // in the order in which they came
	next int64
}

type postponed struct {
	c     *timeline.Conn
	until int64
}

const (
	laterKept  = 4096
	laterPause = int64(100 * time.Millisecond)
)

// put postpones c until that time. It reports false when there is no room.
func (l *later) put(c *timeline.Conn, until int64) bool {
	if len(l.list) >= laterKept {
		return false
	}
	l.list = append(l.list, postponed{c, until})
	return true
}

// take hands over those whose time has come, and those that may be judged now.
func (l *later) take(now int64, may func(*timeline.Conn) bool, judge func(*timeline.Conn)) {
	if len(l.list) == 0 || now < l.next {
		return
	}
	l.next = now + min(laterPause, math.MaxInt64-now)
	keep := l.list[:0]
	for _, p := range l.list {
		if now < p.until && !may(p.c) {
			keep = append(keep, p)
			continue
		}
		judge(p.c)
	}
	clear(l.list[len(keep):])
	l.list = keep
}

// rest hands over all.
func (l *later) rest(judge func(*timeline.Conn)) {
	for _, p := range l.list {
		judge(p.c)
	}
	l.list = nil
}
