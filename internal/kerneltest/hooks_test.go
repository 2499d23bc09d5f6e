package kerneltest

import (
	"context"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tcptrace/tcptrace/internal/kerneltest/watchtest"
	"github.com/tcptrace/tcptrace/tracer"
)

// TestHooks holds each attach mode to the hooks that it must get on the kernels
// of the matrix: a hook that quietly attaches to nothing would make the other
// tests weaker, not fail.
func TestHooks(t *testing.T) {
	tr, err := tracer.Open(context.Background(), tracer.Options{Attach: watchtest.Attach()})
	require.NoError(t, err)
	defer tr.Close()
	caps := tr.Capabilities()
	for _, h := range caps.Hooks {
		t.Logf("%-24s %-10s %s", h.Name, h.Via, h.Why)
	}
	if !watchtest.InVM() {
		return // a kernel that the matrix does not have
	}
	attached := map[string]bool{}
	for _, h := range caps.Hooks {
		assert.NotContains(t, h.Why, "load program:", "%s: the verifier refuses a program; that another way was found is no excuse", h.Name)
		attached[h.Name] = h.Via != "none"
	}
	switch watchtest.Attach() {
	case "auto", "kprobe":
		for name, ok := range attached {
			assert.True(t, ok, name)
		}
	case "fentry":
		for name, ok := range attached {
			// 6.1.192 has it with seven arguments, the trampoline takes six.
			assert.True(t, ok || name == "tcp_syn_recv_sock", name)
		}
	default:
		for _, name := range []string{"inet_sock_set_state", "inet_csk_accept", "listen", "shutdown", "tcp_conn_request",
			"inet_csk_get_port", "kfree_skb", "tcp_send_reset", "tcp_receive_reset", "tcp_retransmit_synack", "tcp_retransmit_skb"} {
			assert.True(t, attached[name], name)
		}
	}
}
