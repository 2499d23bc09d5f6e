package pipeline

import "github.com/tcptrace/tcptrace/tracer/event"

// vague holds back the first event of a connect() whose local port is not
// chosen yet, where the filter is about ports: whether it is meant shows with
// the next event, which only comes if it is. What is never asked for again is
// forgotten, the oldest first.
type vague struct {
	young, old map[uint64]event.Event // by socket
}

// maxVague bounds each of the two generations.
const maxVague = 16384

// hold keeps an event back. The second one of a socket in a row is its end,
// without ever having had a port: neither was meant.
func (v *vague) hold(e *event.Event) {
	if v.release(e.Sock) != nil && e.New != event.StateSynSent {
		return
	}
	if v.young == nil || len(v.young) >= maxVague {
		v.young, v.old = make(map[uint64]event.Event), v.young
	}
	held := *e
	held.Inventory = nil
	v.young[e.Sock] = held
}

// release returns what was held of a socket, nil if nothing was.
func (v *vague) release(sock uint64) *event.Event {
	for _, m := range []map[uint64]event.Event{v.young, v.old} {
		if e, ok := m[sock]; ok {
			delete(m, sock)
			return &e
		}
	}
	return nil
}
