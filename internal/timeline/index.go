package timeline

import (
	"encoding/binary"
	"hash/maphash"
	"net/netip"
)

// The two indexes chain through the connections themselves: a Go map would
// cost another 30 bytes for each connection. They are never walked, so their
// order shows nowhere.

const minBuckets = 256

// sockIndex finds the newest connection of a socket identity.
type sockIndex struct {
	buckets []*Conn
	n       int
}

func sockHash(sock uint64) uint64 { return (sock * 0x9e3779b97f4a7c15) >> 16 }

func (x *sockIndex) slot(sock uint64) **Conn {
	return &x.buckets[sockHash(sock)&uint64(len(x.buckets)-1)]
}

func (x *sockIndex) find(sock uint64) *Conn {
	if x.n == 0 || sock == 0 {
		return nil
	}
	for c := *x.slot(sock); c != nil; c = c.nextSock {
		if c.sock == sock {
			return c
		}
	}
	return nil
}

func (x *sockIndex) insert(c *Conn) {
	if c.sock == 0 {
		return
	}
	if x.n >= len(x.buckets) {
		old := x.buckets
		x.buckets = make([]*Conn, max(minBuckets, 2*len(old)))
		for _, d := range old {
			for d != nil {
				next := d.nextSock
				s := x.slot(d.sock)
				d.nextSock, *s = *s, d
				d = next
			}
		}
	}
	s := x.slot(c.sock)
	c.nextSock, *s = *s, c
	x.n++
}

// remove takes c out if it is in.
func (x *sockIndex) remove(c *Conn) {
	if x.n == 0 || c.sock == 0 {
		return
	}
	for s := x.slot(c.sock); *s != nil; s = &(*s).nextSock {
		if *s == c {
			*s, c.nextSock = c.nextSock, nil
			x.n--
			return
		}
	}
}

// tupleIndex finds connections by their addresses; both ends of one
// conversation are in the same bucket. The hash is seeded, since remote hosts
// choose what goes in.
type tupleIndex struct {
	seed    maphash.Seed
	buckets []*Conn
	n       int
}

func (x *tupleIndex) hash(a, b *[16]byte, ap, bp uint16) uint64 {
	var k [36]byte
	if string(a[:]) > string(b[:]) || *a == *b && ap > bp {
		a, b, ap, bp = b, a, bp, ap
	}
	copy(k[:], a[:])
	copy(k[16:], b[:])
	binary.LittleEndian.PutUint16(k[32:], ap)
	binary.LittleEndian.PutUint16(k[34:], bp)
	return maphash.Bytes(x.seed, k[:])
}

func (x *tupleIndex) slot(c *Conn) **Conn {
	return &x.buckets[x.hash(&c.local, &c.remote, c.lport, c.rport)&uint64(len(x.buckets)-1)]
}

// first returns the chain in which both ends of this conversation are, among
// others; follow nextTuple.
func (x *tupleIndex) first(local, remote [16]byte, lport, rport uint16) *Conn {
	if x.n == 0 {
		return nil
	}
	return x.buckets[x.hash(&local, &remote, lport, rport)&uint64(len(x.buckets)-1)]
}

func (x *tupleIndex) insert(c *Conn) {
	if c.flags&flagIndexed != 0 || c.lport == 0 || c.rport == 0 {
		return
	}
	if x.n >= len(x.buckets) {
		old := x.buckets
		x.buckets = make([]*Conn, max(minBuckets, 2*len(old)))
		for _, d := range old {
			for d != nil {
				next := d.nextTuple
				s := x.slot(d)
				d.nextTuple, *s = *s, d
				d = next
			}
		}
	}
	s := x.slot(c)
	c.nextTuple, *s = *s, c
	c.flags |= flagIndexed
	x.n++
}

func (x *tupleIndex) remove(c *Conn) {
	if c.flags&flagIndexed == 0 {
		return
	}
	for s := x.slot(c); *s != nil; s = &(*s).nextTuple {
		if *s == c {
			*s, c.nextTuple = c.nextTuple, nil
			c.flags &^= flagIndexed
			x.n--
			return
		}
	}
}

// list is a list of connections, least recently active first.
type list struct {
	oldest, newest *Conn
	// lost is the newest that was there at the newest loss and did nothing since,
	// nil if there is none: it and all that are older are marked.
	lost *Conn
	n    int
}

func (l *list) push(c *Conn) {
	c.older, c.newer = l.newest, nil
	if l.newest != nil {
		l.newest.newer = c
	} else {
		l.oldest = c
	}
	l.newest = c
	l.n++
}

func (l *list) remove(c *Conn) {
	if c == l.lost {
		l.lost = c.older
	}
	if c.older != nil {
		c.older.newer = c.newer
	} else {
		l.oldest = c.newer
	}
	if c.newer != nil {
		c.newer.older = c.older
	} else {
		l.newest = c.older
	}
	c.older, c.newer = nil, nil
	l.n--
}

func (l *list) touch(c *Conn) {
	if l.newest != c {
		l.remove(c)
		l.push(c)
	}
}

// pack stores an address the way Conn keeps it: IPv4 as IPv4-mapped.
func pack(a netip.AddrPort) ([16]byte, uint16) {
	if !a.Addr().IsValid() {
		return [16]byte{}, a.Port()
	}
	return a.Addr().As16(), a.Port()
}
