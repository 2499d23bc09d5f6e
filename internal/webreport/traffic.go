package webreport

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/tcptrace/tcptrace/internal/render"
	"github.com/tcptrace/tcptrace/tracer/event"
)

const (
	maxBuckets         = 4096
	maxHosts           = 64
	maxLive            = 1 << 18 // sockets whose life is followed by identity
	maxListeners       = 1024    // followed
	maxListenersShown  = 64
	maxListenerBuckets = 512
)

// activity is what happened within one bucket of time.
type activity struct {
	events, opened, closed, wrong uint64

	// Of the ends of connections that exist: the most, and how many at the end.
	live, left uint64
	counted    bool // live and left say something
	over       bool // the run ended here: nothing is known after it
}

func mergeActivity(into *activity, later activity) {
	into.events += later.events
	into.opened += later.opened
	into.closed += later.closed
	into.wrong += later.wrong
	if later.counted {
		into.live = max(into.live, later.live)
		into.left, into.counted, into.over = later.left, true, later.over
	}
	into.over = into.over || later.over
}

// hostSeries is the activity of one host over all of its runs.
type hostSeries struct {
	name string
	grid *grid[activity]
}

// alive counts the ends of connections that exist, of one run. Those beyond
// what can be followed by identity are merely counted.
type alive struct {
	socks map[uint64]struct{}
	more  uint64
	past  []past // those that ended lately, by hash
}

// past is a socket that ended. A line of a snapshot can be told after that.
type past struct {
	sock uint64
	at   int64
}

const pastSocks = 1 << 12

func (a *alive) slot(sock uint64) *past {
	if a.past == nil {
		a.past = make([]past, pastSocks)
	}
	return &a.past[sock*0x9e3779b97f4a7c15>>52]
}

func (a *alive) count() uint64 { return uint64(len(a.socks)) + a.more }

func (a *alive) add(sock uint64) {
	if _, ok := a.socks[sock]; ok {
		return
	}
	if len(a.socks) >= maxLive {
		a.more++
		return
	}
	a.socks[sock] = struct{}{}
}

func (a *alive) remove(sock uint64) {
	if _, ok := a.socks[sock]; ok {
		delete(a.socks, sock)
	} else if a.more > 0 {
		a.more--
	}
}

// connected reports whether the handshake is over and the socket lives.
func connected(s event.State) bool {
	switch s {
	case event.StateEstablished, event.StateFinWait1, event.StateFinWait2, event.StateCloseWait, event.StateLastAck, event.StateClosing:
		return true
	}
	return false
}

// take counts an event of the kernel or a line of a snapshot.
func (s *hostSeries) take(a *alive, e *event.Event, at int64) {
	b := s.grid.at(at)
	if b == nil {
		return
	}
	switch e.Kind {
	case event.KindSnapshot:
		if !connected(e.New) || e.Inventory != nil && e.Inventory.Minisocket {
			return // what merely exists is no event
		}
		if p := a.slot(e.Sock); p.sock == e.Sock && e.Time <= p.at {
			return // it ended meanwhile
		}
		a.add(e.Sock)
	case event.KindState:
		b.events += e.Times()
		switch was, is := connected(e.Old), connected(e.New); {
		case !was && is:
			b.opened++
			a.add(e.Sock)
		case was && !is:
			b.closed++
			a.remove(e.Sock)
			*a.slot(e.Sock) = past{e.Sock, e.Time}
		case is:
			a.add(e.Sock)
		default:
			return
		}
	default:
		b.events += e.Times()
		return
	}
	b.left, b.counted = a.count(), true
	b.live = max(b.live, b.left)
}

// fill is what one bucket of time knows of an accept queue.
type fill struct {
	most    uint32 // connections that waited
	limit   uint32
	dropped uint64 // SYNs and final ACKs that met a full queue
	known   bool   // most and limit say something
}

func mergeFill(into *fill, later fill) {
	into.dropped += later.dropped
	if later.known {
		into.most = max(into.most, later.most)
		into.limit, into.known = later.limit, true
	}
}

// listener is one listening socket.
type listener struct {
	run     int
	netns   uint32
	addr    netip.AddrPort
	own     bool // addr is what it listens on, not what a client asked for
	pid     uint32
	comm    string
	order   int // of appearance
	most    uint32
	limit   uint32
	dropped uint64
	samples uint64
	grid    *grid[fill]
}

// listenerKey tells listeners apart. Where sockets are known by their address in
// memory, others can have had that: on another port, or in another namespace.
type listenerKey struct {
	run   int
	id    uint64
	life  int            // of those that had id
	netns uint32         // where id is not known
	addr  netip.AddrPort // the same
}

type listeners struct {
	all     map[listenerKey]*listener
	lives   map[listenerKey]int // the newest of those with more than one, by their first key
	ignored uint64              // samples of those beyond the bound
}

// take notes the queue of the listener that an event mentions.
func (l *listeners) take(run int, e *event.Event, at int64) {
	asListener := false
	drops := uint64(0)
	switch e.Kind {
	case event.KindListen:
		asListener = true
	case event.KindSnapshot:
		if e.New != event.StateListen {
			return
		}
		asListener = true
	case event.KindSYNDropped, event.KindACKOverflow:
		drops = e.Times()
	case event.KindSYNACKRetrans:
		if e.Listener.ID == 0 && e.Listener.QueueLimit == 0 {
			return // nothing is known of it
		}
	default:
		return
	}
	key := listenerKey{run: run, id: e.Listener.ID}
	if key.id == 0 && asListener {
		key.id = e.Sock
	}
	if key.id == 0 {
		key.netns, key.addr = e.Netns, e.Local
	}
	first := key
	key.life = l.lives[first]
	x := l.all[key]
	// Only its own port says that it is another one: others' SYNs can be given to it.
	if asListener && x != nil && x.own && (x.netns != e.Netns || x.addr.Port() != e.Local.Port()) {
		if key.life++; len(l.all) < maxListeners {
			if l.lives == nil {
				l.lives = make(map[listenerKey]int)
			}
			l.lives[first] = key.life
		}
		x = nil
	}
	if x == nil {
		if len(l.all) >= maxListeners {
			l.ignored++
			return
		}
		x = &listener{run: run, netns: e.Netns, addr: e.Local, order: len(l.all), grid: newGrid(maxListenerBuckets, mergeFill)}
		l.all[key] = x
	}
	if asListener && !x.own {
		x.addr, x.own = e.Local, true
	}
	if e.Has(event.FlagProcess) && e.Kind == event.KindListen {
		x.pid, x.comm = e.PID, e.Comm.String()
	}
	x.samples++
	x.dropped += drops
	x.most = max(x.most, e.Listener.QueueLen)
	x.limit = e.Listener.QueueLimit
	b := x.grid.at(at)
	if b == nil {
		return
	}
	b.dropped += drops
	b.most = max(b.most, e.Listener.QueueLen)
	b.limit, b.known = e.Listener.QueueLimit, true
}

// ranked lists the listeners, those in the most trouble first: by what they
// dropped, then by how full their queues were.
func (l *listeners) ranked() []*listener {
	var all []*listener
	for _, x := range l.all {
		all = append(all, x)
	}
	slices.SortFunc(all, func(a, b *listener) int {
		return cmp.Or(
			cmp.Compare(b.dropped, a.dropped),
			cmp.Compare(b.fullness(), a.fullness()),
			cmp.Compare(b.samples, a.samples),
			cmp.Compare(a.order, b.order),
		)
	})
	return all
}

func (l *listener) fullness() float64 { return float64(l.most) / float64(max(l.limit, 1)) }

// label names the process that called listen(), "" unknown.
func (l *listener) label() string { return person(l.pid, l.comm, "") }

// stop notes that nothing is known of a host's sockets after a time.
func (s *hostSeries) stop(at render.Stamp) {
	if b := s.grid.at(int64(at)); b != nil {
		b.over = true
	}
}
