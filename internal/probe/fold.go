package probe

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"unsafe"

	"github.com/cilium/ebpf"

	"github.com/tcptrace/tcptrace/tracer/event"
)

// foldedKinds are the kinds that a flood can bring (commit_folding).
var foldedKinds = []event.Kind{event.KindSYNQueueFull, event.KindRSTSent, event.KindSegmentDropped}

// makeRoomToFold puts in the keys that count what finds no room.
func (p *Probe) makeRoomToFold() error {
	for _, kind := range foldedKinds {
		if err := p.maps["folded"].Update(&bpfTcptraceFoldKey{Kind: uint8(kind)}, uint64(0), ebpf.UpdateNoExist); err != nil {
			return fmt.Errorf("preparing the counts of floods: %w", err)
		}
	}
	return nil
}

// Folded returns events, in a fixed order, for what was counted instead of
// told since it was last called: above a rate the kernel side folds events of
// a kind that comes in floods. now is their time, CLOCK_BOOTTIME in ns.
func (p *Probe) Folded(now int64) ([]event.Event, error) {
	p.inventory.Lock() // guards folded, too
	defer p.inventory.Unlock()
	type fresh struct {
		k bpfTcptraceFoldKey
		n uint64
	}
	var found []fresh
	var k bpfTcptraceFoldKey
	var n uint64
	it := p.maps["folded"].Iterate()
	for it.Next(&k, &n) {
		if told := p.folded[k]; n > told {
			found = append(found, fresh{k, n - told})
			if p.folded == nil {
				p.folded = make(map[bpfTcptraceFoldKey]uint64)
			}
			p.folded[k] = n
		}
	}
	// Keys are added meanwhile, and never deleted: what an iteration that
	// lost its place has not seen, the next one will.
	if err := it.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
		return nil, fmt.Errorf("reading the counts of floods: %w", err)
	}
	slices.SortFunc(found, func(a, b fresh) int {
		const size = int(unsafe.Sizeof(k))
		x, y := (*[size]byte)(unsafe.Pointer(&a.k)), (*[size]byte)(unsafe.Pointer(&b.k))
		return slices.Compare(x[:], y[:])
	})
	events := make([]event.Event, 0, len(found))
	for _, f := range found {
		for f.n > 0 {
			part := min(f.n, 1<<31)
			f.n -= part
			e := event.Event{
				Time: now, Kind: event.Kind(f.k.Kind), Netns: f.k.Netns, Reason: f.k.Reason, Flags: event.Flags(f.k.Flags),
				TCPFlags: f.k.TcpFlags, Out: f.k.Out != 0, Count: uint32(part),
			}
			e.Listener.ID = f.k.Listener
			if e.Kind == event.KindSYNQueueFull {
				e.Old, e.New = event.StateListen, event.StateListen
			}
			if a := netip.AddrFrom16(f.k.Local).Unmap(); f.k.LocalPort != 0 {
				e.Local = netip.AddrPortFrom(a, f.k.LocalPort)
			}
			events = append(events, e)
		}
	}
	slices.SortStableFunc(events, func(a, b event.Event) int { return cmp.Compare(a.Netns, b.Netns) })
	return events, nil
}
