package probe

import (
	"net/netip"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tcptrace/tcptrace/tracer/event"
)

// TestSharedNumbers holds the public constants against the C header, of which
// the generated code is the Go form.
func TestSharedNumbers(t *testing.T) {
	kinds := map[bpfTcptraceKind]event.Kind{
		bpfTcptraceKindKIND_NONE:            event.KindNone,
		bpfTcptraceKindKIND_STATE:           event.KindState,
		bpfTcptraceKindKIND_LISTEN:          event.KindListen,
		bpfTcptraceKindKIND_ACCEPT:          event.KindAccept,
		bpfTcptraceKindKIND_SHUTDOWN:        event.KindShutdown,
		bpfTcptraceKindKIND_SYN_DROPPED:     event.KindSYNDropped,
		bpfTcptraceKindKIND_SYN_QUEUE_FULL:  event.KindSYNQueueFull,
		bpfTcptraceKindKIND_ACK_OVERFLOW:    event.KindACKOverflow,
		bpfTcptraceKindKIND_SYNACK_RETRANS:  event.KindSYNACKRetrans,
		bpfTcptraceKindKIND_RETRANSMIT:      event.KindRetransmit,
		bpfTcptraceKindKIND_RTO:             event.KindRTO,
		bpfTcptraceKindKIND_RST_SENT:        event.KindRSTSent,
		bpfTcptraceKindKIND_RST_RECEIVED:    event.KindRSTReceived,
		bpfTcptraceKindKIND_REQUEST_ABORTED: event.KindRequestAborted,
		bpfTcptraceKindKIND_SNAPSHOT:        event.KindSnapshot,

		bpfTcptraceKindKIND_BIND_FAILED: event.KindBindFailed,
		bpfTcptraceKindKIND_PROBE:       event.KindProbe,
		bpfTcptraceKindKIND_DROPPED:     event.KindSegmentDropped,
		bpfTcptraceKindKIND_MEMORY:      event.KindMemory,
		bpfTcptraceKindKIND_TW_OVERFLOW: event.KindTimeWaitOverflow,
	}
	require.Len(t, kinds, int(event.KindTimeWaitOverflow)+1)
	for c, g := range kinds {
		assert.EqualValues(t, c, g)
	}
	for c, g := range map[bpfTcptraceFlag]event.Flags{
		bpfTcptraceFlagFLAG_DEAD:          event.FlagDead,
		bpfTcptraceFlagFLAG_DONE:          event.FlagDone,
		bpfTcptraceFlagFLAG_KEEPALIVE:     event.FlagKeepalive,
		bpfTcptraceFlagFLAG_LINGER:        event.FlagLinger,
		bpfTcptraceFlagFLAG_SHUT_RD:       event.FlagShutRD,
		bpfTcptraceFlagFLAG_SHUT_WR:       event.FlagShutWR,
		bpfTcptraceFlagFLAG_RST:           event.FlagRST,
		bpfTcptraceFlagFLAG_COOKIE:        event.FlagCookie,
		bpfTcptraceFlagFLAG_TIME_WAIT:     event.FlagTimeWait,
		bpfTcptraceFlagFLAG_TIME_WAIT_FW2: event.FlagTimeWaitFW2,
		bpfTcptraceFlagFLAG_AMBIGUOUS:     event.FlagAmbiguous,
		bpfTcptraceFlagFLAG_NO_SOCKET:     event.FlagNoSocket,
		bpfTcptraceFlagFLAG_LINGER_ZERO:   event.FlagLingerZero,
		bpfTcptraceFlagFLAG_INFERRED:      event.FlagInferred,
		bpfTcptraceFlagFLAG_PROCESS:       event.FlagProcess,
		bpfTcptraceFlagFLAG_ACKED:         event.FlagACKed,
	} {
		assert.EqualValues(t, c, g)
	}
	assert.EqualValues(t, bpfTcptraceFlagFLAG_EXITING, event.FlagExiting) // shares its bit
	assert.Equal(t, 128, eventSize)
	assert.Equal(t, 184, socketSize)
	assert.Len(t, auditNames, int(bpfTcptraceAuditAUDIT_COUNTERS))
}

func record(r *bpfTcptraceEvent) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(r)), eventSize)
}

func TestDecode(t *testing.T) {
	r := bpfTcptraceEvent{
		Time: 7, Sock: 42, Netns: 4026531840, Pid: 812, Kind: uint8(event.KindState),
		OldState: uint8(event.StateSynRecv), NewState: uint8(event.StateEstablished),
		Local:     netip.MustParseAddr("::ffff:127.0.0.1").As16(),
		Remote:    netip.MustParseAddr("2001:db8::1").As16(),
		LocalPort: 8080, RemotePort: 51234, Err: 104,
		Flags: uint16(event.FlagProcess | event.FlagKeepalive),
		T:     bpfTcptraceTraffic{BytesSent: 1, BytesReceived: 2, SrttUs: 3, Retransmits: 4, Unread: 5, Unacked: 6},
	}
	copy(r.Comm[:], "nginx")
	var e event.Event
	_, err := decode(record(&r), &e)
	require.NoError(t, err)
	assert.Equal(t, event.Event{
		Time: 7, Sock: 42, Netns: 4026531840, PID: 812, Kind: event.KindState,
		Old: event.StateSynRecv, New: event.StateEstablished,
		Local:  netip.MustParseAddrPort("127.0.0.1:8080"), // IPv4-mapped is shown as IPv4
		Remote: netip.MustParseAddrPort("[2001:db8::1]:51234"),
		Err:    104, Flags: event.FlagProcess | event.FlagKeepalive,
		Comm:    event.Comm{'n', 'g', 'i', 'n', 'x'},
		Traffic: event.Traffic{BytesSent: 1, BytesReceived: 2, SRTT: 3, Retransmits: 4, Unread: 5, Unacked: 6},
	}, e)
}

func TestDecodeListener(t *testing.T) {
	r := bpfTcptraceEvent{Kind: uint8(event.KindSYNDropped), OldState: uint8(event.StateListen), NewState: uint8(event.StateListen), RemotePort: 9}
	*(*bpfTcptraceListener)(unsafe.Pointer(&r.T)) = bpfTcptraceListener{
		Listener: 1, QueueLen: 2, QueueLimit: 3, SynQueueLen: 4, Somaxconn: 5, Backlog: 6, AbortOnOverflow: 1, Syncookies: 2, Attempt: 7, SynackRetries: 8,
	}
	var e event.Event
	_, err := decode(record(&r), &e)
	require.NoError(t, err)
	assert.Equal(t, event.Listener{
		ID: 1, QueueLen: 2, QueueLimit: 3, SYNQueueLen: 4, Somaxconn: 5, Backlog: 6, AbortOnOverflow: true, SYNCookies: 2, Attempt: 7, SYNACKRetries: 8,
	}, e.Listener)
	assert.Zero(t, e.Traffic, "a listener has no traffic")
	assert.EqualValues(t, 9, e.Remote.Port(), "the client whose SYN was dropped")
}

func FuzzDecode(f *testing.F) {
	f.Add(record(&bpfTcptraceEvent{Kind: uint8(event.KindState)}))
	f.Add(make([]byte, socketSize))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		var e event.Event
		if _, err := decode(b, &e); err == nil {
			assert.NotEqual(t, event.KindNone, e.Kind)
			assert.True(t, e.Kind.Known())
			assert.LessOrEqual(t, e.New, event.StateNewSynRecv)
		} else {
			assert.ErrorIs(t, err, ErrBadRecord)
		}
		hz := uint32(250)
		if err := decodeSocket(b, &hz, &e); err == nil {
			assert.NotNil(t, e.Inventory)
		}
	})
}

func TestCIDR(t *testing.T) {
	for _, c := range []struct {
		prefix   string
		inside   []string
		outside  []string
		describe string
	}{
		{"127.0.0.0/8", []string{"127.0.0.1", "127.255.255.255"}, []string{"128.0.0.1", "::1", "::7f00:1"}, "IPv4"},
		{"10.1.2.3/32", []string{"10.1.2.3"}, []string{"10.1.2.2"}, "one address"},
		{"10.1.2.128/25", []string{"10.1.2.200"}, []string{"10.1.2.100"}, "odd length"},
		{"0.0.0.0/0", []string{"1.2.3.4"}, []string{"2001:db8::1"}, "all of IPv4"},
		{"2001:db8::/33", []string{"2001:db8::1"}, []string{"2001:db8:8000::1", "1.2.3.4"}, "IPv6"},
		{"::/0", []string{"::1", "1.2.3.4"}, nil, "everything"},
	} {
		m := cidr(netip.MustParsePrefix(c.prefix))
		match := func(s string) bool {
			a := netip.MustParseAddr(s).As16()
			for i := range 4 {
				w := uint32(a[4*i]) | uint32(a[4*i+1])<<8 | uint32(a[4*i+2])<<16 | uint32(a[4*i+3])<<24
				if (w^m.Addr[i])&m.Mask[i] != 0 {
					return false
				}
			}
			return true
		}
		for _, s := range c.inside {
			assert.True(t, match(s), "%s: %s in %s", c.describe, s, c.prefix)
		}
		for _, s := range c.outside {
			assert.False(t, match(s), "%s: %s not in %s", c.describe, s, c.prefix)
		}
	}
}

func TestVersion(t *testing.T) {
	for s, want := range map[string][2]int{
		"6.12.107+deb13-cloud-amd64": {6, 12}, "5.10.0-32": {5, 10}, "6.1-rc1": {6, 1}, "7": {0, 0}, "": {0, 0},
	} {
		major, minor := version(s)
		assert.Equal(t, want, [2]int{major, minor}, s)
	}
}
