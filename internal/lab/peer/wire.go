package peer

import (
	"errors"
	"fmt"
	"os"
	"sync"
)

// Action is what a Wire does with a segment.
type Action int

// The actions of a wire.
const (
	Pass Action = iota // forward it
	Drop               // lose it
	Hold               // keep it until Release
)

// Wire joins two devices, usually in two network namespaces: what the kernel
// sends to one comes in from the other. It forwards TCP and nothing else.
type Wire struct {
	a, b   *Device
	decide func(toB bool, s Segment) Action
	ends   sync.WaitGroup

	mu   sync.Mutex
	held []heldPacket
	errs []error
}

type heldPacket struct {
	to     *Device
	packet []byte
}

// NewWire starts forwarding between two devices, which it owns from then on.
// decide is asked about each segment, with its direction, from two goroutines.
func NewWire(a, b *Device, decide func(toB bool, s Segment) Action) *Wire {
	w := &Wire{a: a, b: b, decide: decide}
	w.ends.Go(func() { w.forward(a, b, true) })
	w.ends.Go(func() { w.forward(b, a, false) })
	return w
}

func (w *Wire) forward(from, to *Device, toB bool) {
	buf := make([]byte, maxPacket)
	for {
		packet, err := from.read(buf)
		if err != nil {
			w.failed(err)
			return
		}
		s, err := Parse(packet)
		if err != nil {
			continue
		}
		switch w.decide(toB, s) {
		case Pass:
			if err := to.write(packet); err != nil {
				w.failed(err)
				return
			}
		case Hold:
			w.mu.Lock()
			w.held = append(w.held, heldPacket{to: to, packet: append([]byte(nil), packet...)})
			w.mu.Unlock()
		case Drop:
		}
	}
}

func (w *Wire) failed(err error) {
	if errors.Is(err, os.ErrClosed) {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.errs = append(w.errs, fmt.Errorf("forwarding a packet: %w", err))
}

// Held returns how many segments are being held.
func (w *Wire) Held() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.held)
}

// Release forwards what is held, in the order of arrival.
func (w *Wire) Release() error {
	w.mu.Lock()
	held := w.held
	w.held = nil
	w.mu.Unlock()
	for _, h := range held {
		if err := h.to.write(h.packet); err != nil {
			return fmt.Errorf("releasing a packet: %w", err)
		}
	}
	return nil
}

// Close removes the devices and ends the forwarding. It returns what had ended
// it before.
func (w *Wire) Close() error {
	errs := []error{w.a.Close(), w.b.Close()}
	w.ends.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	return errors.Join(append(errs, w.errs...)...)
}
