package pipeline

import (
	"io"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tcptrace/tcptrace/internal/diagnose"
	"github.com/tcptrace/tcptrace/internal/filter"
	"github.com/tcptrace/tcptrace/internal/render"
)

// TestVerdictOfSeveral: a verdict of several processes is of each of them, as after
// a restart: with a filter for the process, it was told no more.
func TestVerdictOfSeveral(t *testing.T) {
	m := NewMachine(Options{Out: render.NewJSON(io.Discard), Filter: filter.Filter{Comms: []string{"nginx"}}})
	v := &diagnose.Verdict{Code: "accept-queue-overflow", Among: []*diagnose.Process{{PID: 7, Comm: "nginx"}, {PID: 9, Comm: "app"}}}
	require.True(t, m.asked(v))
	v.Among = v.Among[1:]
	require.False(t, m.asked(v))
}
