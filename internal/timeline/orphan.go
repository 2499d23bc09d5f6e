package timeline

import "hash/fnv"

// orphans remembers who closed the connections that went on without a process
// in FIN_WAIT2, or else who held them, and when that was: data that comes much
// later is answered by their minisockets, which know nobody. It forgets on
// collision, which makes it cheap and bounded; the hash has no seed, so that a
// replay forgets the same.
type orphans []orphan

type orphan struct {
	at      int64
	process *process
	netns   uint32
	tuple   [36]byte
	source  Source
	role    Role
}

const (
	orphanSlots = 8192
	orphanAge   = int64(120e9) // minisockets live for tcp_fin_timeout, 60 s
)

func (o orphans) slot(c *Conn) (*orphan, [36]byte) {
	var t [36]byte
	copy(t[:], c.local[:])
	copy(t[16:], c.remote[:])
	t[32], t[33], t[34], t[35] = byte(c.lport), byte(c.lport>>8), byte(c.rport), byte(c.rport>>8)
	h := fnv.New64a()
	h.Write(t[:])
	return &o[(h.Sum64()^uint64(c.netns))%orphanSlots], t
}

// add remembers c, which has ended.
func (o *orphans) add(c *Conn) {
	p, source := c.closer(), SourceClose
	if p == nil {
		p, source = c.process, c.source()
	}
	if p == nil {
		return
	}
	if *o == nil {
		*o = make(orphans, orphanSlots)
	}
	s, t := o.slot(c)
	*s = orphan{at: c.last, process: p, netns: c.netns, tuple: t, source: source, role: c.Role()}
}

// find returns what is remembered of the connection with the addresses of c,
// nil if nothing is.
func (o orphans) find(c *Conn) *orphan {
	if o == nil {
		return nil
	}
	s, t := o.slot(c)
	if s.process == nil || s.netns != c.netns || s.tuple != t || c.last < s.at || c.last-s.at > orphanAge {
		return nil
	}
	return s
}
