package lab

import (
	"net/netip"
	"sync"

	"github.com/tcptrace/tcptrace/internal/lab/peer"
)

// gatedWire is a wire that can hold back the final ACKs of handshakes on their
// way to the server.
type gatedWire struct {
	*peer.Wire

	mu      sync.Mutex
	closed  bool
	waiting map[netip.AddrPort]bool // clients whose final ACK has come while the gate was shut
}

func newGatedWire() *gatedWire { return &gatedWire{waiting: make(map[netip.AddrPort]bool)} }

// decide holds one bare ACK of each connection that begins while the gate is
// shut, and loses further ones (a slow machine's SYN-ACK may be sent again).
func (g *gatedWire) decide(toServer bool, s peer.Segment) peer.Action {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !toServer || !g.closed || s.Flags != peer.ACK || len(s.Payload) > 0 {
		return peer.Pass
	}
	if g.waiting[s.Src] {
		return peer.Drop
	}
	g.waiting[s.Src] = true
	return peer.Hold
}

func (g *gatedWire) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
}

// open lets what was held go, and later segments pass.
func (g *gatedWire) open() error {
	err := g.Release()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = false
	return err
}
