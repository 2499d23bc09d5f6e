package probe

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tcptrace/tcptrace/tracer/event"
)

func attachMode() string { return os.Getenv("TCPTRACE_ATTACH") }

func TestOpen(t *testing.T) {
	start := time.Now()
	p, err := Open(Options{Attach: attachMode()})
	if err != nil {
		t.Fatalf("%+v", err)
	}
	defer p.Close()
	t.Logf("attached in %v", time.Since(start))
	for _, h := range p.Capabilities().Hooks {
		t.Logf("%-26s %-10s %s", h.Name, h.Via, h.Why)
	}
	for _, u := range p.Capabilities().Unknowable {
		t.Log("unknowable:", u)
	}
	require.NoError(t, p.Snapshot(func(e *event.Event) {
		t.Log(fmt.Sprintf("%x %v %v %v %+v %+v", e.Sock, e.New, e.Local, e.Remote, e.Listener, *e.Inventory))
	}))
}
