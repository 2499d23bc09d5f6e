package timeline

import (
	"math"
	"time"
)

// slack is how far apart two CPUs may see one moment.
const slack = int64(time.Millisecond)

func (c *Conn) lifetime() (from, to int64) {
	to = math.MaxInt64
	if c.Phase() == PhaseEnded {
		to = c.last
	}
	return c.Seen(), to
}

// overlaps reports whether both lived at some time.
func overlaps(a, b *Conn) bool {
	af, at := a.lifetime()
	bf, bt := b.lifetime()
	return af-slack <= bt && bf-slack <= at
}

// maxSteps bounds how many connections are looked at for the other end of one.
const maxSteps = 256

// link finds the other end of c on this host: the reversed addresses in the
// same namespace or, where there is just one candidate, in another.
func (t *Tracker) link(c *Conn) {
	if c.flags&flagIndexed == 0 || c.peer != nil && c.peer.Phase() != PhaseEnded ||
		c.lport == c.rport && c.local == c.remote {
		return
	}
	var here, there *Conn
	others := 0
	loopback := c.Local().Addr().IsLoopback() || c.Remote().Addr().IsLoopback()
	// One tuple's connections are few, unless somebody has made them up.
	steps := 0
	for d := t.byTuple.first(c.local, c.remote, c.lport, c.rport); d != nil && steps < maxSteps; d = d.nextTuple {
		steps++
		if d == c || d.lport != c.rport || d.rport != c.lport || d.local != c.remote || d.remote != c.local {
			continue
		}
		if d.peer != nil && d.peer.Phase() != PhaseEnded || !overlaps(c, d) || d.Role() != RoleUnknown && d.Role() == c.Role() {
			continue
		}
		if d.netns == c.netns {
			if here == nil || d.Seen() > here.Seen() {
				here = d
			}
			continue
		}
		if loopback { // never leaves its namespace, and all of them have it
			continue
		}
		there = d
		others++
	}
	switch {
	case here != nil:
		c.peer, here.peer = here, c
	case others == 1:
		c.peer, there.peer = there, c
	}
}
