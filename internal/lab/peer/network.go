package peer

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Network is all the hosts behind one device. Segments to an address and port
// that nobody scripts vanish, as on a path that drops them.
type Network struct {
	dev  *Device
	done chan struct{}

	mu    sync.Mutex
	conns map[tuple]*Conn
	doors map[netip.AddrPort]func(*Conn)
	err   error // why the reading ended, if not by Close

	unscripted atomic.Uint64
}

type tuple struct{ local, remote netip.AddrPort }

// NewNetwork starts reading from the device, which it owns from then on.
func NewNetwork(dev *Device) *Network {
	n := &Network{
		dev:   dev,
		done:  make(chan struct{}),
		conns: make(map[tuple]*Conn),
		doors: make(map[netip.AddrPort]func(*Conn)),
	}
	go n.read()
	return n
}

func (n *Network) read() {
	defer close(n.done)
	buf := make([]byte, maxPacket)
	for {
		packet, err := n.dev.read(buf)
		if err != nil {
			if !errors.Is(err, os.ErrClosed) {
				n.mu.Lock()
				n.err = fmt.Errorf("reading from the TUN device: %w", err)
				n.mu.Unlock()
			}
			return
		}
		s, err := Parse(packet)
		if err != nil {
			continue // IPv6 has a lot to say on any device
		}
		n.deliver(s)
	}
}

func (n *Network) deliver(s Segment) {
	key := tuple{local: s.Dst, remote: s.Src}
	n.mu.Lock()
	c := n.conns[key]
	var door func(*Conn)
	if c == nil {
		if door = n.doors[s.Dst]; door != nil && s.Flags == SYN {
			c = n.add(key)
		}
	}
	n.mu.Unlock()
	if c == nil {
		n.unscripted.Add(1)
		return
	}
	c.receive(s)
	if door != nil {
		door(c)
	}
}

// add makes a connection's script. The caller holds mu.
func (n *Network) add(key tuple) *Conn {
	c := &Conn{Local: key.local, Remote: key.remote, network: n, arrived: make(chan struct{}, 1)}
	// Any initial sequence number will do; one that differs between
	// connections makes a mix-up visible.
	c.sendNext = 1_000_000 + uint32(len(n.conns))*100_000
	n.conns[key] = c
	return c
}

// Conn makes a connection from a scripted address and port to a real one.
// Nothing is sent yet.
func (n *Network) Conn(local, remote netip.AddrPort) *Conn {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.add(tuple{local: local, remote: remote})
}

// Sibling makes another connection from the same scripted address, to another
// port of the same real host. Nothing is sent yet.
func (c *Conn) Sibling(port uint16) *Conn {
	return c.network.Conn(c.Local, netip.AddrPortFrom(c.Remote.Addr(), port))
}

// Listen has fn called for each new SYN to the scripted address and port,
// with a connection that has received it. fn runs on the goroutine that reads
// the device: it may send, but must not wait.
func (n *Network) Listen(local netip.AddrPort, fn func(*Conn)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.doors[local] = fn
}

// Unscripted returns how many segments vanished.
func (n *Network) Unscripted() uint64 { return n.unscripted.Load() }

// Close removes the device and ends the reading. It returns what had ended the
// reading before.
func (n *Network) Close() error {
	err := n.dev.Close()
	<-n.done
	n.mu.Lock()
	defer n.mu.Unlock()
	return errors.Join(n.err, err)
}

// Conn is one end of a connection, at the scripted peer. Sequence numbers are
// kept, everything else is the script's business. Its methods may be called
// from any goroutine.
type Conn struct {
	Local, Remote netip.AddrPort // Local is the scripted one

	network *Network
	arrived chan struct{} // has an element when inbox may be non-empty

	mu       sync.Mutex
	inbox    []Segment
	sendNext uint32
	recvNext uint32
	acked    uint32      // what the other end has acknowledged last
	synced   bool        // recvNext is known
	window   uint16      // advertised; 65535 if never set
	narrowed bool        // window was set
	stamps   *Timestamps // sent with each segment if set
	answer   bool        // acknowledge by itself what arrives in order
}

// receive keeps account of a segment and puts it into the inbox.
func (c *Conn) receive(s Segment) {
	c.mu.Lock()
	switch {
	case s.Has(SYN) && !c.synced:
		c.recvNext, c.synced = s.Seq+1, true
	case c.synced && s.Seq == c.recvNext:
		c.recvNext += s.Len()
	}
	if s.Has(ACK) {
		c.acked = s.Ack
	}
	if s.Timestamps != nil && c.stamps != nil {
		c.stamps.Echo = s.Timestamps.Value
	}
	c.inbox = append(c.inbox, s)
	answer := c.answer && s.Len() > 0 && !s.Has(RST)
	c.mu.Unlock()
	select {
	case c.arrived <- struct{}{}:
	default:
	}
	if answer {
		// A device that cannot be written to shows at the script's next send.
		_ = c.Send(ACK, nil)
	}
}

// Answer has the connection acknowledge by itself whatever arrives from now on,
// as a live host does.
func (c *Conn) Answer() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answer = true
}

// Ignore ends what Answer began.
func (c *Conn) Ignore() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answer = false
}

// SetWindow sets the window that later segments advertise, in bytes.
func (c *Conn) SetWindow(bytes uint16) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.window, c.narrowed = bytes, true
}

// SetTimestamp puts the timestamps option into later segments, with this
// value. It takes effect only if it is there from the SYN on.
func (c *Conn) SetTimestamp(value uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stamps == nil {
		c.stamps = &Timestamps{}
	}
	c.stamps.Value = value
}

// Make builds a segment with these control bits at the connection's current
// sequence numbers, and advances them.
func (c *Conn) Make(f Flags, payload []byte) Segment {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := Segment{Src: c.Local, Dst: c.Remote, Seq: c.sendNext, Flags: f, Window: 65535, Payload: payload}
	if c.narrowed {
		s.Window = c.window
	}
	if f&ACK != 0 {
		s.Ack = c.recvNext
	}
	if f&SYN != 0 {
		s.MSS = 1460
	}
	if c.stamps != nil {
		stamps := *c.stamps
		s.Timestamps = &stamps
	}
	c.sendNext += s.Len()
	return s
}

// Transmit sends a segment as it is: one that Make has built, perhaps not for
// the first time, or that the script has altered.
func (c *Conn) Transmit(s Segment) error { return c.network.send(s) }

// Send makes a segment and transmits it.
func (c *Conn) Send(f Flags, payload []byte) error { return c.Transmit(c.Make(f, payload)) }

func (n *Network) send(s Segment) error {
	packet, err := s.Marshal()
	if err != nil {
		return err
	}
	if err := n.dev.write(packet); err != nil {
		return fmt.Errorf("sending %s: %w", s, err)
	}
	return nil
}

// Expect waits for a segment with all these control bits and takes it, with
// those that arrived before it, out of the inbox.
func (c *Conn) Expect(ctx context.Context, f Flags) (Segment, error) {
	return c.expect(ctx, f.String(), func(s Segment) bool { return s.Has(f) })
}

// ExpectAcked is Expect for a segment that acknowledges all that was sent. On a
// slow machine others can come before it, a second copy of the SYN-ACK for one.
func (c *Conn) ExpectAcked(ctx context.Context) (Segment, error) {
	return c.expect(ctx, "the ACK of all", func(s Segment) bool {
		return s.Has(ACK) && !s.Has(SYN) && s.Ack == c.sendNext
	})
}

// ExpectProbe is Expect for a probe as Linux sends it, of keepalive or of a shut
// window: no data, one byte before what comes next.
func (c *Conn) ExpectProbe(ctx context.Context) (Segment, error) {
	return c.expect(ctx, "a probe", func(s Segment) bool {
		return s.Flags == ACK && s.Len() == 0 && s.Seq == c.recvNext-1
	})
}

// expect waits for a segment that matches, which is asked with mu held.
func (c *Conn) expect(ctx context.Context, what string, matches func(Segment) bool) (Segment, error) {
	for {
		c.mu.Lock()
		i := slices.IndexFunc(c.inbox, matches)
		if i >= 0 {
			s := c.inbox[i]
			c.inbox = slices.Delete(c.inbox, 0, i+1)
			c.mu.Unlock()
			return s, nil
		}
		c.mu.Unlock()
		select {
		case <-c.arrived:
		case <-c.network.done:
			return Segment{}, fmt.Errorf("%s: waiting for %s from %s: the device is closed", c.Local, what, c.Remote)
		case <-ctx.Done():
			return Segment{}, fmt.Errorf("%s: waiting for %s from %s: %w", c.Local, what, c.Remote, ctx.Err())
		}
	}
}

// Received returns the segments that have arrived and were not taken by
// Expect.
func (c *Conn) Received() []Segment {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.inbox)
}

// Forget has later segments of this connection vanish, as if its host had
// been switched off.
func (c *Conn) Forget() {
	c.network.mu.Lock()
	defer c.network.mu.Unlock()
	delete(c.network.conns, tuple{local: c.Local, remote: c.Remote})
}

// Return takes back Forget: later segments arrive again.
func (c *Conn) Return() {
	c.network.mu.Lock()
	defer c.network.mu.Unlock()
	c.network.conns[tuple{local: c.Local, remote: c.Remote}] = c
}

// Open does the peer's part of a handshake that it begins: SYN, then waits for
// SYN-ACK, then ACK.
func (c *Conn) Open(ctx context.Context) error {
	if err := c.Send(SYN, nil); err != nil {
		return err
	}
	if _, err := c.Expect(ctx, SYN|ACK); err != nil {
		return err
	}
	return c.Send(ACK, nil)
}

// finRetry is how long Finish waits for a FIN to be acknowledged.
const finRetry = time.Second

// Finish closes the connection in an orderly way and waits until the other end
// has closed too. As any host does, it sends its FIN again until that is
// acknowledged: 6.1 drops one that meets a shut window (TCPZeroWindowDrop).
func (c *Conn) Finish(ctx context.Context) error {
	c.Answer()
	fin := c.Make(FIN|ACK, nil)
	for {
		if err := c.Transmit(fin); err != nil {
			return err
		}
		wait, cancel := context.WithTimeout(ctx, finRetry)
		_, err := c.Expect(wait, FIN)
		cancel()
		if err == nil || ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
		if c.received(fin) {
			_, err := c.Expect(ctx, FIN)
			return err
		}
	}
}

// received is true if the other end has acknowledged all of a segment.
func (c *Conn) received(s Segment) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return int32(c.acked-(s.Seq+s.Len())) >= 0
}
