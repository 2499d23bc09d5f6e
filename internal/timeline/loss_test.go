package timeline

import (
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/tracer/event"
)

// TestALossMarksAllThatLives: whatever came and went since the one before.
func TestALossMarksAllThatLives(t *testing.T) {
	var kinds []event.Kind
	for k := event.KindState; k.Known(); k++ {
		kinds = append(kinds, k, event.KindState)
	}
	for seed := range uint64(20) {
		o := tight
		o.Grace = time.Duration(1 + seed*2_000_000) // some, or thousands wait for it to pass
		o.MaxConnections *= 1 + 4*int(seed%2)
		tr := New(o)
		f := &torrent{r: rand.New(rand.NewPCG(seed, 6)), now: int64(time.Hour), extreme: seed%3 == 0}
		var e event.Event
		ended := 0
		for i := range 30_000 {
			f.next(&e, kinds[f.r.IntN(len(kinds))])
			tr.Handle(&e)
			if f.r.IntN(20) == 0 {
				tr.Advance(f.now)
			}
			if f.r.IntN(1+i%1000) != 0 {
				continue
			}
			tr.Lost(f.now, event.Lost{Count: 1})
			for c := range tr.Conns() {
				if !c.Incomplete() {
					t.Fatalf("seed %d: after %d events, one that lives is not marked", seed, i)
				}
			}
			for _, x := range tr.ended[tr.endedAt:] {
				ended++
				if !x.c.Incomplete() {
					t.Fatalf("seed %d: after %d events, one that ended is not marked", seed, i)
				}
			}
		}
		if ended == 0 {
			t.Errorf("seed %d: none that ended was there", seed)
		}
		// What comes later is whole.
		local, remote := netip.MustParseAddrPort("10.9.9.9:9"), netip.MustParseAddrPort("10.9.9.8:9")
		e = event.Event{Time: f.now, Sock: 1 << 60, Netns: 1, Kind: event.KindState, Old: event.StateClose, New: event.StateSynSent, Local: local, Remote: remote}
		tr.Handle(&e)
		if tr.Conn(1 << 60).Incomplete() {
			t.Errorf("seed %d: one that came after the loss is marked", seed)
		}
	}
}

// TestManyLosses: a dump can have one after each event, while very much lives.
func TestManyLosses(t *testing.T) {
	const n = 30_000
	tr := New(Options{})
	local, remote := netip.MustParseAddrPort("10.9.9.9:9"), netip.MustParseAddrPort("10.9.9.8:9")
	e := event.Event{Time: 1, Netns: 1, Kind: event.KindState, Old: event.StateClose, New: event.StateSynSent, Local: local, Remote: netip.AddrPortFrom(remote.Addr(), 0)}
	for i := range uint64(n) {
		e.Sock = i + 1
		tr.Handle(&e)
	}
	began := time.Now()
	for i := range uint64(n) {
		e.Sock = n + i + 1
		tr.Handle(&e)
		tr.Lost(1, event.Lost{Count: 1})
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("%v for %d losses", took, n)
	}
}
