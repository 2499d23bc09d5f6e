package timelinetest

import (
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/tcptrace/tcptrace/tracer/event"
)

// Random makes a script of n steps that no kernel would produce, over so few
// sockets, addresses and namespaces that they collide all the time.
func Random(seed uint64, n int) []Step {
	r := rand.New(rand.NewPCG(seed, 1))
	now := Start
	addr := func() netip.AddrPort {
		switch r.IntN(12) {
		case 0:
			return netip.AddrPort{}
		case 1:
			return netip.AddrPortFrom(netip.IPv6Unspecified(), 80)
		case 2:
			return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, 1}), 0)
		}
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(1 + r.IntN(2))}), uint16(79+r.IntN(3)))
	}
	var steps []Step
	for range n {
		now += r.Int64N(int64(2 * time.Second))
		if r.IntN(4) > 0 {
			now -= r.Int64N(int64(time.Second))
		}
		at := now
		netns := uint32(r.IntN(3))
		sock := uint64(r.IntN(6))
		switch r.IntN(40) {
		case 0:
			steps = append(steps, Step{Time: at, Do: DoAdvance})
		case 1:
			steps = append(steps, Step{Time: at, Do: DoBegin, Netns: netns})
		case 2:
			steps = append(steps, Step{Time: at, Do: DoEnd, Netns: netns})
		case 3:
			steps = append(steps, Step{Time: at, Do: DoLost, Lost: uint64(r.IntN(2))})
		case 4:
			steps = append(steps, Step{Time: at, Do: DoOwner, Sock: sock, PID: uint32(sock), Comm: "x\x1b[31m"})
		case 5:
			steps = append(steps, Step{Time: at, Do: DoDrain})
		}
		e := &event.Event{
			Time: at, Sock: sock, Netns: netns, Kind: event.Kind(r.IntN(21)),
			Old: event.State(r.IntN(14)), New: event.State(r.IntN(14)),
			Local: addr(), Remote: addr(), PID: uint32(r.IntN(4)),
			Err: uint16([]int{0, 0, 32, 104, 110, 111, 65535}[r.IntN(7)]), Attempt: uint8(r.IntN(256)), Reason: r.Uint32N(20),
		}
		if r.IntN(2) == 0 {
			e.Flags = event.Flags(r.Uint32())
		}
		if r.IntN(3) == 0 {
			e.TCPFlags, e.Out, e.Count = uint8(r.IntN(32)), r.IntN(2) == 0, r.Uint32N(3)
			e.Where = []string{"", "nf_hook_slow", "x\x1b\n"}[r.IntN(3)]
		}
		if r.IntN(2) == 0 { // a likely transition
			t := [][2]event.State{{7, 2}, {2, 1}, {3, 1}, {1, 4}, {1, 8}, {4, 5}, {5, 7}, {8, 9}, {9, 7}, {1, 7}, {2, 7}, {7, 10}, {10, 7}}[r.IntN(13)]
			e.Kind, e.Old, e.New = event.KindState, t[0], t[1]
		}
		e.Traffic = event.Traffic{BytesSent: uint64(r.IntN(3)), BytesReceived: uint64(r.IntN(3)), Unread: r.Uint32N(3), Unacked: r.Uint32N(2), SRTT: r.Uint32()}
		e.Listener = event.Listener{ID: uint64(r.IntN(6)), QueueLen: r.Uint32N(4), QueueLimit: r.Uint32N(4), Somaxconn: r.Uint32N(4),
			Backlog: r.Uint32(), Attempt: uint8(r.IntN(256)), AbortOnOverflow: r.IntN(2) == 0}
		if r.IntN(3) > 0 {
			e.Inventory = &event.Inventory{Inode: uint64(r.IntN(2)), Idle: time.Duration(r.Int64N(int64(time.Hour))) - time.Minute,
				KeepaliveTime: time.Duration(r.IntN(1000)) * time.Second,
				SentIdle:      time.Duration(r.Int64N(int64(time.Hour))) - time.Minute, Left: time.Duration(r.Int64N(int64(time.Minute))) - time.Second,
				SendWindow: r.Uint32N(2), ReceiveWindow: r.Uint32N(2), Probes: uint8(r.IntN(3)), Retransmits: uint8(r.IntN(3)), Minisocket: r.IntN(4) == 0}
		}
		steps = append(steps, Step{Event: e, Time: at})
		if r.IntN(20) == 0 { // doubled
			steps = append(steps, Step{Event: e, Time: at})
		}
	}
	return steps
}
