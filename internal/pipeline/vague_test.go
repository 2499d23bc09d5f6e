package pipeline

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tcptrace/tcptrace/internal/filter"
	"github.com/tcptrace/tcptrace/internal/render"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// TestPortFilterIsAboutWholeConnections: what the kernel side cannot know of a
// connect(), because its local port is not chosen yet, is told once the port is
// known, and never where the connection is not meant.
func TestPortFilterIsAboutWholeConnections(t *testing.T) {
	netns := self(t)
	var events []event.Event
	attempt := func(sock uint64, port uint16, local uint16) {
		e := event.Event{
			Time: int64(sock), Sock: sock, Kind: event.KindState, Old: event.StateClose, New: event.StateSynSent, Netns: netns,
			Local: netip.AddrPortFrom(clientAddr, 0), Remote: netip.AddrPortFrom(clientAddr, port), Flags: event.FlagProcess, PID: 9, Comm: comm("c"),
		}
		events = append(events, e)
		if local != 0 {
			e.Old, e.New, e.Time, e.Flags = event.StateSynSent, event.StateEstablished, e.Time+1000, 0
			e.Local = netip.AddrPortFrom(clientAddr, local)
			events = append(events, e)
		}
	}
	fails := func(sock uint64) {
		e := events[len(events)-1]
		e.Old, e.New, e.Err = event.StateSynSent, event.StateClose, 99
		events = append(events, e)
	}
	attempt(1, 80, 0)     // another port: the kernel tells no more of it
	attempt(2, 80, 41000) // its local port is the one
	attempt(3, 80, 0)     // fails for want of a port: not to this one
	fails(3)
	attempt(4, 41000, 0) // fails: to this one
	fails(4)
	f := &fake{events: events}
	var seen []uint64
	_, sum, err := watch(t, f, func(c *Config) {
		c.Filter = filter.Filter{Ports: []uint16{41000}}
		c.Raw = func(e *event.Event, _ render.Stamp, _ string) { seen = append(seen, e.Sock) }
		c.Duration = 100 * time.Millisecond
	})
	require.NoError(t, err)
	require.Equal(t, []uint64{2, 2, 4, 4}, seen)
	require.EqualValues(t, 4, sum.Events)
	require.EqualValues(t, 2, sum.Connections)
}

func TestVagueIsBounded(t *testing.T) {
	var v vague
	for i := range uint64(5 * maxVague) {
		v.hold(&event.Event{Sock: i + 1, New: event.StateSynSent})
	}
	require.LessOrEqual(t, len(v.young)+len(v.old), 2*maxVague)
	require.NotNil(t, v.release(5*maxVague))
	require.Nil(t, v.release(1))
}

// TestVagueIsOfOneLife: what was held back of a socket says nothing of the next
// one in its memory, where sockets are known by that.
func TestVagueIsOfOneLife(t *testing.T) {
	netns := self(t)
	out := event.Event{
		Time: 1, Sock: 1, Kind: event.KindState, Old: event.StateClose, New: event.StateSynSent, Netns: netns,
		Local: netip.AddrPortFrom(clientAddr, 0), Remote: netip.AddrPortFrom(clientAddr, 5432), Flags: event.FlagProcess, PID: 9, Comm: comm("c"),
	}
	in := event.Event{ // the kernel tells no more of the other one
		Time: 2, Sock: 1, Kind: event.KindState, Old: event.StateSynRecv, New: event.StateEstablished, Netns: netns,
		Local: netip.AddrPortFrom(clientAddr, 8080), Remote: netip.AddrPortFrom(clientAddr, 41000),
	}
	var seen []event.State
	_, sum, err := watch(t, &fake{events: []event.Event{out, in}}, func(c *Config) {
		c.Filter = filter.Filter{Ports: []uint16{8080}}
		c.Raw = func(e *event.Event, _ render.Stamp, _ string) { seen = append(seen, e.Old) }
		c.Duration = 100 * time.Millisecond
	})
	require.NoError(t, err)
	require.Equal(t, []event.State{event.StateSynRecv}, seen)
	require.EqualValues(t, 1, sum.Connections)
}
