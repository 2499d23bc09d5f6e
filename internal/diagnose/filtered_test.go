package diagnose_test

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tcptrace/tcptrace/internal/diagnose"
	"github.com/tcptrace/tcptrace/internal/timeline"
	"github.com/tcptrace/tcptrace/internal/timeline/timelinetest"
)

// TestFilteredPlateau: where some clients are not asked for, how many a process
// holds is not known, and no limit can be read from it. A filter that names the
// listener leaves nobody out.
func TestFilteredPlateau(t *testing.T) {
	steps := parse(t, scripts(t)["a-plateau.txt"])
	client := netip.MustParseAddr("10.0.0.2")
	for _, c := range []struct {
		name    string
		asked   func(netns uint32, local, remote netip.AddrPort) bool
		plateau any
	}{
		{"all", nil, int64(20)},
		{"a listener", func(_ uint32, local, _ netip.AddrPort) bool { return local.Port() == 8080 }, int64(20)},
		{"a client", func(_ uint32, _, remote netip.AddrPort) bool { return remote.Addr() == client }, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWitness(t, fullCapabilities(), diagnose.Options{Asked: c.asked})
			w.observe(timeline.Options{Capabilities: fullCapabilities()})
			w.run(steps)
			found := false
			for _, v := range w.last() {
				if v.Code == "immediate-close" {
					found = true
					assert.Equal(t, c.plateau, v.Evidence.Get("plateau"), v.Story)
				}
			}
			assert.True(t, found, "immediate-close")
		})
	}
}

// TestFilteredFirstAccept: where some clients are not asked for, the first accept()
// that is seen need not be the listener's first, and that it began late is no cause.
func TestFilteredFirstAccept(t *testing.T) {
	steps := parse(t, `
0s      listen  L 0.0.0.0:8080 LISTEN backlog=511 qlim=511 somax=4096 by=app[7]
0s      state   L 0.0.0.0:8080 CLOSE>LISTEN qlim=511 somax=4096 by=app[7]
0.5s    state z 10.0.0.9:8080 10.0.0.1:40000 SYN_RECV>EST
0.5004s accept z 10.0.0.9:8080 10.0.0.1:40000 EST by=app[7]
1s      state a 10.0.0.9:8080 10.0.0.2:40000 SYN_RECV>EST
3.2s    accept a 10.0.0.9:8080 10.0.0.2:40000 EST by=app[7]
9s      advance
`)
	client := netip.MustParseAddr("10.0.0.2")
	steps = slices.DeleteFunc(steps, func(s timelinetest.Step) bool { // as the gate before the engine does
		return s.Event != nil && s.Event.Remote.IsValid() && s.Event.Remote.Addr() != client
	})
	w := newWitness(t, fullCapabilities(), diagnose.Options{
		Asked: func(_ uint32, _, remote netip.AddrPort) bool { return remote.Addr() == client },
	})
	w.observe(timeline.Options{Capabilities: fullCapabilities()})
	w.run(steps)
	last := w.last()
	require.Len(t, last, 1)
	assert.Contains(t, last[0].Story, "app[7] accepts late")
	assert.Nil(t, last[0].Evidence.Get("first_accept_ms"))
}
