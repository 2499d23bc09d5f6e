package recorder

import (
	"math"
	"sync"

	"github.com/tcptrace/tcptrace/internal/dump"
)

// item is something for the writer to do: a frame to write, or something else.
type item struct {
	frame *dump.Frame
	do    func() error
	holds int // bytes that do keeps
}

func (i item) size() int {
	if i.frame == nil {
		return i.holds
	}
	return cap(i.frame.Raw)
}

// queue is what stands between the run and the disk. What it holds, and what
// the writer is busy with, is bounded in bytes. push never waits.
type queue struct {
	mu     sync.Mutex
	items  []item
	bytes  int
	limit  int
	closed bool
	wake   chan struct{}
}

func newQueue(limit int) *queue { return &queue{limit: limit, wake: make(chan struct{}, 1)} }

// push reports whether there was room, which there always is for what is no
// frame.
func (q *queue) push(i item) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := i.size()
	if i.frame != nil && q.bytes > 0 && q.bytes+n > q.limit {
		return false
	}
	q.bytes += n
	q.items = append(q.items, i)
	q.signal()
	return true
}

// half reports whether half of the room or more is taken.
func (q *queue) half() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.bytes >= q.limit/2
}

// lift has everything that still comes find room: it is the last.
func (q *queue) lift() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.limit = math.MaxInt
}

// close lets the writer end once it has taken what there is.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.signal()
}

func (q *queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// pop takes the first item, whose room is given back with done.
func (q *queue) pop() (i item, ok, closed bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.items) == 0 {
		return item{}, false, q.closed
	}
	i = q.items[0]
	q.items[0] = item{}
	q.items = q.items[1:]
	return i, true, false
}

func (q *queue) done(i item) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.bytes -= i.size()
}
