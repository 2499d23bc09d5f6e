package diagnose

import (
	"fmt"
	"math"
	"math/bits"
	"net/netip"
	"time"

	"github.com/tcptrace/tcptrace/internal/timeline"
	"github.com/tcptrace/tcptrace/tracer/event"
)

const codeSlowAccept = "slow-accept"

var docSlowAccept = Doc{
	Code:     codeSlowAccept,
	Severity: Warning,
	Summary:  "connections waited long in the accept queue: accept() came late",
	Meaning: `A handshake is the kernel's work and completes without the application. The connection then waits in the listener's accept queue until the application calls accept(). The client sees an open connection meanwhile, may send its request, and gets no answer: to it, the server is slow although the network is fast.

A connection counts when it waited longer than --slow-accept (200 ms). An event loop or a thread that accepts is back at accept() within milliseconds even when it is busy, and people notice 200 ms; so a longer wait means that the process was blocked, stopped, out of workers or CPU time, or not yet (or no longer) accepting. A single moment of that is nothing to be alarmed by (a pause of the scheduler or a garbage collector): it is reported as info. It becomes a warning when a wait is 5 times the limit, or when waits are too long in 3 different seconds of one minute.

The wait is measured from the end of the handshake to accept(). With TCP_DEFER_ACCEPT the kernel ends the handshake when data comes, so that waiting for the client's data does not count. Connections that came before the application's first accept() (a service that starts, socket activation) did wait, and count.

The queue had room: what does not fit any more is accept-queue-overflow, and both are told where both happened. A connection that is still in the queue counts once a snapshot of the sockets has shown it there after the limit; one that came behind such a connection and ended before it was looked at counts too, as accept() takes the oldest first. Where no snapshot came in time, connections that nobody accepted are not counted.`,
	Counts: "connections that waited too long, those included that still wait",
	Evidence: []DocKey{
		{"wait_ms_max", "ms", "longest wait; at least that where the connection still waits"},
		{"wait_ms_p50", "ms", "median (within 13%) of all connections accepted in the last one to two minutes, when a wait was last too long; null if none was accepted"},
		{"queue_len", "connections", "the most that were seen waiting at a time"},
		{"backlog_limit", "connections", "limit of the queue; null if not seen"},
		{"waiting", "connections", "still waiting, longer than the limit"},
		{"never_accepted", "connections", "ended while waiting, at least"},
		{"share_percent", "%", "of the connections accepted in the last one to two minutes, how many waited too long; null if none was accepted"},
		{"first_accept_ms", "ms", "from listen() to the first accept(); null where either was not seen"},
	},
	Fix: []string{
		"look at what the accepting thread does instead: a blocking call, a lock, a long garbage collection, an event loop kept busy (`perf trace -p PID`, a stack dump)",
		"accept in a thread or process of its own, or in more of them (SO_REUSEPORT), and hand work to a pool that can say no",
		"if the process waits for CPU time (cgroup cpu.max, /proc/PID/schedstat), give it more",
	},
	Source: []string{
		"net/ipv4/inet_connection_sock.c: inet_csk_complete_hashdance(), inet_csk_accept()",
	},
}

const (
	acceptListeners = 1024  // followed at a time
	acceptPending   = 65536 // connections not yet accepted, and not yet overdue
	acceptOverdue   = 8192  // connections that wait too long now

	acceptWindow   = int64(time.Minute)
	acceptSeconds  = 3 // different seconds of a minute with long waits: not a single moment
	acceptVeryLong = 5 // times the limit
)

// slowAccept measures the time from the end of a handshake to accept().
//
// Every server's connection stands in pending for as long as it may wait, in
// the order of the handshakes; the few that are not accepted by then go on in
// overdue until they are.
type slowAccept struct {
	found   groups[Key, *acceptQueue]
	pending []waiter
	head    int // first of pending that is not done
	overdue []*waiter
	byConn  map[*timeline.Conn]*waiter // overdue, by connection
	next    int64

	// The listener of the newest connection: most come from the same.
	lis   *timeline.Listener
	queue *acceptQueue
}

func newSlowAccept() *slowAccept {
	return &slowAccept{
		found:  groups[Key, *acceptQueue]{max: acceptListeners},
		byConn: make(map[*timeline.Conn]*waiter),
	}
}

func (*slowAccept) Code() string { return codeSlowAccept }
func (*slowAccept) Doc() Doc     { return docSlowAccept }

// waiter is a connection whose accept() has not been seen.
type waiter struct {
	c     *timeline.Conn
	q     *acceptQueue
	since int64
	n     uint64 // it was the n-th that came to its queue
	told  bool   // a snapshot found it waiting
}

// acceptQueue is one listening address.
type acceptQueue struct {
	key    Key
	name   netip.AddrPort
	lis    *timeline.Listener
	taker  timeline.Owner // who accepted last
	takers int            // different ones, up to 2
	seen   bool           // some accept(), also by a listener before lis
	late   crew           // who accepted late
	here   bool           // one of them at lis
	heir   timeline.Owner // who is to accept what waits, as far as that is known

	came        uint64 // connections so far
	firstAccept int64  // on lis; 0 unknown
	stuck       int64  // since when the first waits that a snapshot found waiting, unless one that came later was accepted since; 0 none
	past, now   waits  // of the last full minute and of this one
	minute      int64

	// As evidence.
	longest       time.Duration
	median        time.Duration // when a wait was last too long
	slow, all     uint64        // in the window, at that time
	length        uint64
	waiting       int
	never         uint64
	seconds       [acceptSeconds]int64 // the newest ones with long waits, oldest first
	severe        bool
	afterFirst    bool // some waited for long after the first accept()
	notYetStarted bool // and some mostly before it
}

func (r *slowAccept) queueOf(c *timeline.Conn) *acceptQueue {
	l := c.Listener()
	if l != nil && l == r.lis {
		return r.queue
	}
	k := listenerKey(c)
	p := r.found.make(k)
	if *p == nil {
		*p = &acceptQueue{key: k, name: k.Addr}
	}
	q := *p
	if l != nil {
		if q.lis != nil && q.lis != l && !l.Shared {
			// Another listener at the same address: who accepted there may be gone.
			q.firstAccept, q.taker, q.takers, q.heir, q.here = 0, timeline.Owner{}, 0, timeline.Owner{}, false
		}
		q.lis = l
		r.lis, r.queue = l, q
	}
	return q
}

func (r *slowAccept) Entry(x *Engine, c *timeline.Conn, e *timeline.Entry) {
	switch e.Kind {
	case timeline.EntryEstablished:
		if c.Role() != timeline.RoleServer || !x.o.Capabilities.HasAccept {
			return
		}
		q := r.queueOf(c)
		q.came++
		if !c.Accepted() { // accept() can come first
			r.push(waiter{c: c, q: q, since: e.At, n: q.came})
		}
	case timeline.EntryAccepted:
		if x.o.Capabilities.HasAccept {
			r.accepted(x, c, e)
		}
	}
}

// push makes w the newest that waits. The oldest gives way: whether it waits
// too long shows when it is accepted.
func (r *slowAccept) push(w waiter) {
	if len(r.pending)-r.head >= acceptPending {
		r.head++
	}
	if r.head > 1024 && r.head > len(r.pending)/2 {
		n := copy(r.pending, r.pending[r.head:])
		clear(r.pending[n:])
		r.pending, r.head = r.pending[:n], 0
	}
	r.pending = append(r.pending, w)
}

// expire moves those that wait too long at that time to overdue.
func (r *slowAccept) expire(x *Engine, now int64) {
	for r.head < len(r.pending) && now-r.pending[r.head].since > int64(x.o.SlowAccept) {
		w := r.pending[r.head]
		r.pending[r.head] = waiter{}
		r.head++
		if r.done(w.c) || len(r.overdue) >= acceptOverdue || r.byConn[w.c] != nil {
			continue
		}
		p := &w
		r.overdue = append(r.overdue, p)
		r.byConn[w.c] = p
	}
	if r.head == len(r.pending) {
		r.pending, r.head = r.pending[:0], 0
	}
}

// done reports whether c waits no more: its accept() was seen, or a snapshot
// found it with a process, or it ended.
func (*slowAccept) done(c *timeline.Conn) bool {
	return c.Accepted() || c.Phase() != timeline.PhaseSocket
}

func (r *slowAccept) accepted(x *Engine, c *timeline.Conn, e *timeline.Entry) {
	var since int64
	w := r.byConn[c]
	est := c.Find(timeline.EntryEstablished)
	switch {
	case est != nil:
		since = est.At
	case w != nil:
		since = w.since
	default:
		return // the end of its handshake was not seen
	}
	q := r.queueOf(c)
	q.seen = true
	if q.firstAccept == 0 {
		q.firstAccept = e.At
	}
	if o := c.Owner(); o.Source == timeline.SourceAccept && (!q.taker.Known() || o.PID != q.taker.PID) {
		q.taker = o
		q.takers = min(q.takers+1, 2)
	}
	if since >= q.stuck {
		q.stuck = 0
	}
	wait := time.Duration(max(0, e.At-since))
	slow := wait > x.o.SlowAccept
	q.record(wait, slow, e.At)
	if !slow {
		return
	}
	length := uint64(1)
	if w == nil { // time has not been told to have come so far
		for i := r.head; i < len(r.pending); i++ {
			if r.pending[i].c == c {
				w = &r.pending[i]
				break
			}
		}
	}
	if w != nil {
		length = w.q.came - w.n + 1 // accept() takes the oldest
	}
	q.tooLong(x, wait, length, since, e.At)
	if o := c.Owner(); o.Source == timeline.SourceAccept {
		q.late.add(o)
		q.here = true
	}
	n := uint64(1)
	if tagged(r, c) { // it was reported while it waited
		n = 0
		q.waiting = max(0, q.waiting-1)
	}
	x.Report(r, q.key, q, e.At, n, c)
}

// shows reports whether an accept() of c would have been seen: others of its
// listener were, or a snapshot found some waiting. There are other ways, see waits.
func (r *slowAccept) shows(c *timeline.Conn) bool {
	p := r.found.get(listenerKey(c))
	return p != nil && ((*p).seen || (*p).longest > 0)
}

// Changed hears of connections that a snapshot found in the queue.
func (r *slowAccept) Changed(x *Engine, c *timeline.Conn) {
	if c.Accepted() || c.Role() != timeline.RoleServer || !x.o.Capabilities.HasAccept || c.Phase() != timeline.PhaseSocket ||
		c.Find(timeline.EntryEstablished) != nil || r.byConn[c] != nil {
		return
	}
	// The handshake was before: since when it waits is not known. It goes to
	// overdue by way of pending, when it has waited long enough under our eyes.
	if s := c.State(); s != event.StateEstablished && s != event.StateCloseWait || c.SnapshotAt() == 0 {
		return
	}
	if c.SnapshotAt()-c.Seen() <= int64(x.o.SlowAccept) || len(r.overdue) >= acceptOverdue {
		return
	}
	q := r.queueOf(c)
	w := &waiter{c: c, q: q, since: c.Seen(), n: q.came}
	r.overdue = append(r.overdue, w)
	r.byConn[c] = w
}

func (r *slowAccept) Tick(x *Engine, now int64, t *timeline.Tracker) {
	r.lis, r.queue = nil, nil
	r.expire(x, now)
	if now < r.next || len(r.overdue) == 0 {
		return
	}
	pause := int64(min(max(x.o.SlowAccept, 100*time.Millisecond), time.Second))
	r.next = math.MaxInt64
	if now < math.MaxInt64-pause {
		r.next = now + pause
	}
	for _, w := range r.overdue {
		w.q.waiting = 0
	}
	kept := r.overdue[:0]
	var changed []*acceptQueue
	shared := sharedQueues(t)
	for _, w := range r.overdue {
		if r.done(w.c) {
			delete(r.byConn, w.c)
			if !w.c.Accepted() && w.told {
				w.q.never++
				changed = append(changed, w.q)
			}
			continue
		}
		kept = append(kept, w)
		if !r.waits(x, w, shared) {
			x.sockets.add(w.c.Netns(), now)
			continue
		}
		w.q.waiting++
		w.q.heir = w.c.Owner()
		seen := max(w.c.SnapshotAt(), w.c.Last())
		if wait := time.Duration(seen - w.since); wait > w.q.longest || !tagged(r, w.c) {
			w.q.tooLong(x, wait, 0, w.since, seen)
			changed = append(changed, w.q)
		}
		w.told = true
		if w.q.stuck == 0 || w.since < w.q.stuck {
			w.q.stuck = w.since
		}
		if !tagged(r, w.c) {
			x.Report(r, w.q.key, w.q, now, 1, w.c)
		}
	}
	clear(r.overdue[len(kept):])
	r.overdue = kept
	for _, q := range changed {
		q.length = max(q.length, uint64(q.waiting))
		x.touch(r, q.key)
	}
}

// Ended counts a connection that came and ended between two snapshots, behind
// one that a snapshot found waiting: accept() takes the oldest first, so that
// nobody took this one either.
func (r *slowAccept) Ended(x *Engine, c *timeline.Conn) {
	if c.Role() != timeline.RoleServer || c.Accepted() || c.Incomplete() || tagged(r, c) || !x.o.Capabilities.HasAccept {
		return
	}
	est := c.Find(timeline.EntryEstablished)
	if est == nil || used(c) {
		return
	}
	p := r.found.get(listenerKey(c))
	if p == nil || (*p).stuck == 0 || est.At < (*p).stuck {
		return
	}
	q, end := *p, c.Closed()
	if end == 0 {
		end = c.Last()
	}
	wait := time.Duration(end - est.At)
	if wait <= x.o.SlowAccept {
		return
	}
	q.never++
	q.tooLong(x, wait, 0, est.At, end)
	x.Report(r, q.key, q, end, 1, c)
}

// used reports whether somebody has c: wrote to it, read from it, or closed it.
func used(c *timeline.Conn) bool {
	t := c.Traffic()
	return t.BytesSent > 0 || t.BytesReceived > uint64(t.Unread) || c.Find(timeline.EntryFINSent) != nil
}

// waits reports whether w is known to be in the queue still: a snapshot after
// its time found it without a process and unused, and its listener with a queue
// that is not empty. That no accept() was seen proves nothing: io_uring and the
// kernel's own servers accept by other ways, and the sockets of the latter have no
// file, so that all of them look as if nobody had them.
//
// Of several listeners on one address (SO_REUSEPORT) any may be its: shared are
// those of which one's queue is not empty.
func (*slowAccept) waits(x *Engine, w *waiter, shared map[Key]bool) bool {
	l := w.c.Listener()
	if w.c.SnapshotAt()-w.since <= int64(x.o.SlowAccept) || l == nil || used(w.c) {
		return false
	}
	if l.Shared {
		return shared[Key{Netns: l.Netns, Addr: l.Addr}]
	}
	return l.Closed == 0 && l.QueueLen > 0
}

// sharedQueues finds the addresses of several listeners where a queue is not empty.
func sharedQueues(t *timeline.Tracker) map[Key]bool {
	m := make(map[Key]bool)
	for l := range t.Listeners() {
		if l.Shared && l.QueueLen > 0 {
			m[Key{Netns: l.Netns, Addr: l.Addr}] = true
		}
	}
	return m
}

// record takes the wait of a connection that was accepted at that time.
func (q *acceptQueue) record(wait time.Duration, slow bool, at int64) {
	q.turn(at)
	q.now.add(wait, slow)
}

// turn forgets what is more than a full minute before at.
func (q *acceptQueue) turn(at int64) {
	if m := at / acceptWindow; m > q.minute {
		if q.past = (waits{}); m == q.minute+1 {
			q.past = q.now
		}
		q.now, q.minute = waits{}, m
	}
}

// tooLong takes note of a wait that was too long, of a connection that came
// since that time, as of at.
func (q *acceptQueue) tooLong(x *Engine, wait time.Duration, length uint64, since, at int64) {
	q.longest = max(q.longest, wait)
	q.length = max(q.length, length)
	if l := q.lis; l != nil && l.LimitKnown {
		q.length = max(q.length, uint64(l.QueueLen))
	}
	q.turn(at)
	q.median = median(&q.past, &q.now)
	q.slow, q.all = q.past.slow+q.now.slow, q.past.all+q.now.all
	if q.firstAccept == 0 || at-q.firstAccept <= q.firstAccept-since { // most of the wait was before it
		q.notYetStarted = true
	} else {
		q.afterFirst = true
	}
	if s := at / int64(time.Second); s > q.seconds[acceptSeconds-1] {
		copy(q.seconds[:], q.seconds[1:])
		q.seconds[acceptSeconds-1] = s
	}
	often := q.seconds[0] != 0 && q.seconds[acceptSeconds-1]-q.seconds[0] < 60
	q.severe = q.severe || often || wait/acceptVeryLong >= x.o.SlowAccept
}

func (q *acceptQueue) Describe(x *Engine, v *Verdict) {
	v.Severity, v.Confidence = Info, Certain
	if q.severe {
		v.Severity = Warning
	}
	v.Subject = Subject{"listener", q.name.String()}
	owner, several := q.who()
	v.Process = process(owner)
	who := "the application"
	if owner.Known() {
		who = owner.Name()
	}
	accepts := "accepts"
	if several {
		who, accepts = q.late.name(), "accept"
	}
	noun := "connections"
	if v.Count == 1 {
		noun = "connection"
	}
	v.Story = fmt.Sprintf("%d %s waited for accept() for more than %s, up to %s", v.Count, noun,
		timeline.Duration(x.o.SlowAccept), timeline.Duration(q.longest))
	first := Fact{Key: "first_accept_ms", Note: "listen() or the first accept() was not seen"}
	if !x.anyPeer(q.key.Netns, q.name) {
		first.Note = "other clients, which were not asked for, may have been accepted before"
	} else if q.lis != nil && q.lis.Opened != 0 && q.firstAccept > q.lis.Opened {
		first = Fact{Key: first.Key, Value: milliseconds(time.Duration(q.firstAccept - q.lis.Opened))}
	}
	switch {
	case q.waiting > 0:
		waits, them := "wait", "them"
		if q.waiting == 1 {
			waits, them = "waits", "it"
		}
		v.Story += fmt.Sprintf(", and %d still %s: %s has not accepted %s", q.waiting, waits, who, them)
	case q.notYetStarted && !q.afterFirst && first.Value != nil && q.firstAccept-q.lis.Opened < 2*int64(q.longest):
		// Else nobody had come before, and it may have waited for somebody.
		v.Story += fmt.Sprintf(": %s began to accept %s after listen()", who,
			timeline.Duration(time.Duration(q.firstAccept-q.lis.Opened)))
	case q.never > 0 && q.never >= v.Count:
		v.Story += fmt.Sprintf(": %s never accepted them", who)
	default:
		v.Story += fmt.Sprintf(": %s %s late", who, accepts)
	}
	p50 := Fact{Key: "wait_ms_p50", Note: "none was accepted"}
	share := Fact{Key: "share_percent", Note: "none was accepted"}
	if q.all > 0 {
		p50 = Fact{Key: p50.Key, Value: milliseconds(min(q.median, q.longest))}
		share = Fact{Key: share.Key, Value: math.Round(float64(q.slow)/float64(q.all)*1000) / 10}
	}
	limit := Fact{Key: "backlog_limit", Note: "not seen"}
	if q.lis != nil && q.lis.LimitKnown {
		limit = Fact{Key: limit.Key, Value: int64(q.lis.QueueLimit)}
	}
	v.Evidence = Evidence{
		{Key: "wait_ms_max", Value: milliseconds(q.longest)},
		p50,
		{Key: "queue_len", Value: int64(max(q.length, 1))},
		limit,
		{Key: "waiting", Value: int64(q.waiting)},
		{Key: "never_accepted", Value: int64(q.never)},
		share,
		first,
	}
	v.Fix = docSlowAccept.Fix
}

// who is the process that is late; several: the newest of those that were.
//
// That is not always who opened the listener: a service manager may have (socket
// activation), a process that has handed it over since, or the master of workers.
// Of a connection that nobody has accepted it is whoever accepts here, where that is
// one process or one of another name, and else the listener's owner.
func (q *acceptQueue) who() (o timeline.Owner, several bool) {
	if o = q.late.last; o.Known() && q.here && q.waiting == 0 {
		return o, len(q.late.seen) > 1
	}
	shared := q.lis != nil && q.lis.Shared
	switch {
	case q.heir.Known() || shared:
		o = q.heir
	case q.lis != nil:
		o = q.lis.Owner()
	}
	if q.taker.Known() && !shared && (q.takers == 1 || !o.Known() || o.Comm != q.taker.Comm) {
		o = q.taker
	}
	return o, false
}

// waits is a histogram of times: 4 buckets for each power of two microseconds.
type waits struct {
	all, slow uint64
	buckets   [128]uint32
}

func (w *waits) add(d time.Duration, slow bool) {
	w.all++
	if slow {
		w.slow++
	}
	if b := &w.buckets[bucketOf(d)]; *b < math.MaxUint32 {
		*b++
	}
}

// bucketOf is 0 below 1 us, then 4 for each octave.
func bucketOf(d time.Duration) int {
	us := uint64(max(0, d/time.Microsecond))
	if us < 4 {
		return int(us)
	}
	octave := bits.Len64(us) - 1 // at least 2
	return min(octave*4-4+int(us>>(octave-2)&3), len(waits{}.buckets)-1)
}

// bucketStart is the least time that belongs to bucket i.
func bucketStart(i int) time.Duration {
	if i < 4 {
		return time.Duration(i) * time.Microsecond
	}
	octave := i/4 + 1
	return time.Duration(uint64(4+i%4)<<(octave-2)) * time.Microsecond
}

// median of both together, the middle of its bucket.
func median(a, b *waits) time.Duration {
	half := (a.all + b.all + 1) / 2
	var sum uint64
	for i := range a.buckets {
		sum += uint64(a.buckets[i]) + uint64(b.buckets[i])
		if sum >= half && half > 0 {
			if i == 0 {
				return 0
			}
			return (bucketStart(i) + bucketStart(i+1)) / 2
		}
	}
	return 0
}
