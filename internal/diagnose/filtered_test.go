package diagnose_test

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/tcptrace/tcptrace/internal/diagnose"
	"github.com/tcptrace/tcptrace/internal/timeline"
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
