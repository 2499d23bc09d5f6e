package dump

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/tcptrace/tcptrace/tracer/event"
)

// Pseudonyms gives each address another one of its family, by a key: always
// the same, and never the same to two. Who has not the key can't tell which
// address it was. Loopback, unspecified and multicast addresses are nobody's,
// and stay; so does the limited broadcast address. It belongs to one goroutine.
type Pseudonyms struct {
	six   cipher.Block
	four  cipher.Block
	known map[netip.Addr]netip.Addr
}

// MinRedactKey is how long a key must at least be, in bytes.
const MinRedactKey = 16

// maxPseudonyms bounds the addresses that are remembered; to work one out
// again takes about a microsecond.
const maxPseudonyms = 1 << 16

// NewPseudonyms returns the pseudonyms of a key of at least [MinRedactKey]
// bytes.
func NewPseudonyms(key []byte) (*Pseudonyms, error) {
	if len(key) < MinRedactKey {
		return nil, fmt.Errorf("a key of %d bytes is too short: it takes %d", len(key), MinRedactKey)
	}
	p := &Pseudonyms{known: make(map[netip.Addr]netip.Addr)}
	for _, c := range []struct {
		block *cipher.Block
		use   string
	}{{&p.six, "tcptrace redact ipv6"}, {&p.four, "tcptrace redact ipv4"}} {
		k, err := hkdf.Key(sha256.New, key, nil, c.use, 16)
		if err != nil {
			return nil, fmt.Errorf("deriving a key: %w", err)
		}
		if *c.block, err = aes.NewCipher(k); err != nil {
			return nil, fmt.Errorf("deriving a key: %w", err)
		}
	}
	return p, nil
}

// Addr returns an address's pseudonym.
func (p *Pseudonyms) Addr(a netip.Addr) netip.Addr {
	if open(a) {
		return a
	}
	if out, ok := p.known[a]; ok {
		return out
	}
	var out netip.Addr
	switch {
	case a.Is4():
		out = p.addr4(a)
	case a.Is4In6():
		out = netip.AddrFrom16(p.addr4(a.Unmap()).As16())
	default:
		// What would be one of the addresses that stay is encrypted again until
		// it is not: so no two become one.
		b := a.As16()
		for {
			p.six.Encrypt(b[:], b[:])
			if out = netip.AddrFrom16(b); !open(out) && !out.Is4In6() {
				break
			}
		}
		out = out.WithZone(a.Zone())
	}
	if len(p.known) >= maxPseudonyms {
		clear(p.known)
	}
	p.known[a] = out
	return out
}

// addr4 is a Feistel network over the two halves of an address, repeated until
// the result is none of those that stay.
func (p *Pseudonyms) addr4(a netip.Addr) netip.Addr {
	b := a.As4()
	l, r := binary.BigEndian.Uint16(b[:]), binary.BigEndian.Uint16(b[2:])
	for {
		// With halves as short as these, few rounds could be told from chance.
		const rounds = 12
		var block [aes.BlockSize]byte
		for i := range rounds {
			clear(block[:])
			block[0] = byte(i)
			binary.BigEndian.PutUint16(block[2:], r)
			p.four.Encrypt(block[:], block[:])
			l, r = r, l^binary.BigEndian.Uint16(block[:])
		}
		binary.BigEndian.PutUint16(b[:], l)
		binary.BigEndian.PutUint16(b[2:], r)
		if out := netip.AddrFrom4(b); !open(out) {
			return out
		}
	}
}

// open reports whether an address has no pseudonym.
func open(a netip.Addr) bool {
	if !a.IsValid() {
		return true
	}
	u := a.Unmap()
	return u.IsLoopback() || u.IsUnspecified() || u.IsMulticast() || u == broadcast
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

func (p *Pseudonyms) addrPort(a netip.AddrPort) netip.AddrPort {
	if !a.IsValid() {
		return a
	}
	return netip.AddrPortFrom(p.Addr(a.Addr()), a.Port())
}

// redacted is a feed before which addresses are replaced.
type redacted struct {
	Feed
	p *Pseudonyms
	e event.Event
}

// Redact returns a feed that hands everything on with pseudonyms in place of
// addresses.
func Redact(to Feed, p *Pseudonyms) Feed { return &redacted{Feed: to, p: p} }

func (r *redacted) hide(e *event.Event) *event.Event {
	r.e = *e
	r.e.Local, r.e.Remote = r.p.addrPort(e.Local), r.p.addrPort(e.Remote)
	return &r.e
}

// Event is [Feed].
func (r *redacted) Event(e *event.Event) { r.Feed.Event(r.hide(e)) }

// Snapshot is [Feed].
func (r *redacted) Snapshot(e *event.Event, pid uint32, comm string) {
	r.Feed.Snapshot(r.hide(e), pid, comm)
}
