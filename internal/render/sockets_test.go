package render

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tcptrace/tcptrace/internal/sockets"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// takeStock shows a host on which much is wrong, with names that would do harm.
func takeStock(t *testing.T, out Sockets, each bool, by sockets.Dimensions) {
	t.Helper()
	v := sockets.New(sockets.Options{By: by})
	see := func(e event.Event, o sockets.Owner) {
		e.Kind, e.Time = event.KindSnapshot, boot
		if e.Inventory == nil {
			e.Inventory = &event.Inventory{}
		}
		if !e.Inventory.Minisocket {
			e.Inventory.Left = -1
		}
		if s, shown := v.Add(&e, o); shown && each {
			require.NoError(t, out.Socket(&s))
		}
	}
	live := func(idle time.Duration) *event.Inventory {
		return &event.Inventory{
			Inode: 77, UID: 33, Idle: idle, SentIdle: idle, KeepaliveTime: 2 * time.Hour, KeepaliveInterval: 75 * time.Second, KeepaliveProbes: 9,
			SendWindow: 65535, ReceiveWindow: 65535,
		}
	}
	enter := func(inode uint32, name string) {
		ns := event.Namespace{Inode: inode, Name: name, Known: true, Sysctls: event.Sysctls{PortRangeLow: 32768, PortRangeHigh: 60999}}
		v.Namespace(ns)
		out.Namespace(ns)
	}
	nginx := sockets.Owner{PID: 812, Comm: "nginx", Cgroup: "/system.slice/nginx.service", Holders: 3}
	evil := sockets.Owner{PID: 900, Comm: hostile, Cgroup: "/docker/" + strings.Repeat("3f1c0a9b2d4e0000", 4), Holders: 1}

	enter(1, "")
	see(event.Event{Netns: 1, New: event.StateListen, Local: addr("0.0.0.0:443"), Inventory: &event.Inventory{Inode: 5},
		Listener: event.Listener{QueueLen: 3, QueueLimit: 511, Somaxconn: 4096, SYNQueueLen: 2}}, nginx)
	see(event.Event{Netns: 1, New: event.StateListen, Local: addr("127.0.0.1:5432"), Inventory: &event.Inventory{Inode: 6},
		Listener: event.Listener{QueueLimit: 4096, Somaxconn: 128}}, sockets.Owner{})
	for i := range 300 {
		remote := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i % 100)}), uint16(40000+i))
		see(event.Event{Netns: 1, New: event.StateEstablished, Local: addr("10.0.0.1:443"), Remote: remote,
			Inventory: live(time.Duration(i) * time.Second), Flags: event.FlagKeepalive}, nginx)
	}
	for i := range 96 {
		see(event.Event{Netns: 1, New: event.StateCloseWait, Local: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), uint16(41000+i)),
			Remote: addr("10.0.0.5:5432"), Inventory: live(41*time.Second + time.Duration(i)*90*time.Second), Traffic: event.Traffic{Unread: 12}}, evil)
	}
	for i := range 16000 {
		see(event.Event{Netns: 1, New: event.StateTimeWait, Local: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), uint16(42000+i)),
			Remote: addr("[2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff]:5432"), Inventory: &event.Inventory{Minisocket: true, Left: time.Duration(i) * time.Millisecond, Idle: -1, SentIdle: -1}}, sockets.Owner{})
	}
	see(event.Event{Netns: 1, New: event.StateNewSynRecv, Local: addr("10.0.0.1:443"), Remote: addr("192.0.2.7:1024"),
		Inventory: &event.Inventory{Idle: -1, SentIdle: -1}}, sockets.Owner{})

	enter(2, "blue\x1b[2J")
	see(event.Event{Netns: 2, New: event.StateListen, Local: addr("[::]:8081"), Inventory: &event.Inventory{Inode: 9},
		Listener: event.Listener{QueueLen: 17, QueueLimit: 16, Somaxconn: 16, AbortOnOverflow: true, SYNQueueLen: 17, SYNCookies: 1}}, evil)
	orphan := live(10 * time.Minute)
	orphan.Inode = 0
	see(event.Event{Netns: 2, New: event.StateFinWait1, Local: addr("10.0.0.1:8081"), Remote: addr("192.0.2.7:40000"), Inventory: orphan, Flags: event.FlagDead,
		Traffic: event.Traffic{Unacked: 20_000_000}}, sockets.Owner{})
	queued := live(3 * time.Second)
	queued.Inode = 0
	see(event.Event{Netns: 2, New: event.StateEstablished, Local: addr("10.0.0.1:8081"), Remote: addr("192.0.2.8:40000"), Inventory: queued}, sockets.Owner{})

	require.NoError(t, out.Report(&Inventory{
		Time: at(0), Report: v.Report(),
		Counters: []SocketCounters{
			{Netns: 1, Counters: sockets.Troubles(map[string]uint64{"TcpExt.ListenOverflows": 37, "Tcp.OutRsts": 1204, "Tcp.RetransSegs": 12, "Tcp.OutSegs": 1_000_000})},
			{Netns: 2, Counters: sockets.Troubles(map[string]uint64{"TcpExt.ListenOverflows": 5, "Tcp.OutRsts": 4})},
			{Netns: 3, Counters: sockets.Troubles(map[string]uint64{"Tcp.OutRsts": 4})},
		},
		Problems: []string{"the sockets of network namespace e\x1b[31m: permission denied"},
	}))
	require.NoError(t, out.Flush())
}

func TestSocketsText(t *testing.T) {
	for _, c := range []struct {
		name string
		o    TextOptions
		top  int
		by   sockets.Dimensions
	}{
		{"sockets-80.golden", TextOptions{Netns: 1}, 12, 0},
		{"sockets-120-color.golden", TextOptions{Width: 120, Color: true, Netns: 1}, 12, 0},
		{"sockets-50.golden", TextOptions{Width: 50, Netns: 1}, 2, 0},
		{"sockets-by-process.golden", TextOptions{Netns: 1}, 12, sockets.ByProcess},
		{"sockets-by-peer.golden", TextOptions{Netns: 1}, 3, sockets.ByPeer},
	} {
		var b bytes.Buffer
		takeStock(t, NewSocketsText(&b, c.o, c.top), false, c.by)
		golden(t, c.name, b.Bytes())
		width := c.o.Width
		if width == 0 {
			width = 80
		}
		for line := range strings.Lines(b.String()) {
			line = strings.TrimSuffix(line, "\n")
			if c.o.Color {
				line = sgr.ReplaceAllString(line, "")
			}
			assert.Equal(t, strings.TrimRight(line, " "), line, "%s: blanks at the end", c.name)
			for _, r := range line {
				assert.True(t, unicode.IsGraphic(r), "%s: %q", c.name, line)
			}
			// A narrow terminal may not hold an IPv6 address.
			if width >= 80 {
				assert.LessOrEqual(t, columns(line), width, "%s: %s", c.name, line)
			}
		}
	}
}

// TestSocketsListed shows every socket, most of them left out of the file.
func TestSocketsListed(t *testing.T) {
	var b bytes.Buffer
	takeStock(t, NewSocketsText(&b, TextOptions{Netns: 1}, 1), true, 0)
	var kept strings.Builder
	seen := map[string]int{}
	for line := range strings.Lines(b.String()) {
		state, _, _ := strings.Cut(line, " ")
		if seen[state]++; seen[state] <= 3 {
			kept.WriteString(line)
		}
	}
	assert.Equal(t, 16000, seen["TIME_WAIT"])
	golden(t, "sockets-all.golden", []byte(kept.String()))
}

func TestSocketsJSON(t *testing.T) {
	var b bytes.Buffer
	takeStock(t, NewSocketsJSON(&b, clock), true, 0)
	types := map[string]int{}
	var kept bytes.Buffer
	for line := range bytes.Lines(b.Bytes()) {
		var v struct {
			Type string
			Time string
		}
		require.NoError(t, json.Unmarshal(line, &v), "%s", line)
		require.NotEmpty(t, v.Time)
		for _, r := range string(line[:len(line)-1]) {
			require.True(t, r < 0x7f && r >= 0x20 || r > 0x9f && unicode.IsGraphic(r), "%q", line)
		}
		if types[v.Type]++; v.Type != "socket" || types[v.Type] <= 4 {
			kept.Write(line)
		}
	}
	assert.Equal(t, map[string]int{"socket": 16402, "listener": 3, "sockets": 6, "port-range": 2, "counters": 3, "total": 1}, types)
	golden(t, "sockets-json.golden", kept.Bytes())
}

// TestSocketsOnly names a namespace once where all is of one.
func TestSocketsOnly(t *testing.T) {
	var b bytes.Buffer
	out := NewSocketsText(&b, TextOptions{Netns: 1}, 0)
	out.Only(event.Namespace{Inode: 9, Name: "blue"})
	v := sockets.New(sockets.Options{})
	v.Namespace(event.Namespace{Inode: 9})
	for i := range 20 {
		v.Add(&event.Event{Netns: 9, New: event.StateListen, Local: addr(fmt.Sprintf("0.0.0.0:%d", 100+i))}, sockets.Owner{PID: 5, Comm: "x"})
	}
	require.NoError(t, out.Report(&Inventory{Time: at(0), Report: v.Report()}))
	require.NoError(t, out.Flush())
	assert.Equal(t, 1, strings.Count(b.String(), "netns blue"))
	assert.Contains(t, b.String(), "0.0.0.0:119", "0 shows all")
}

// TestSocketsError tells of an output that cannot be written.
func TestSocketsError(t *testing.T) {
	for _, out := range []Sockets{NewSocketsText(brokenSocket{}, TextOptions{}, 0), NewSocketsJSON(brokenSocket{}, clock)} {
		v := sockets.New(sockets.Options{})
		_ = out.Report(&Inventory{Report: v.Report()})
		assert.ErrorIs(t, out.Flush(), errBroken)
	}
}

type brokenSocket struct{}

var errBroken = fmt.Errorf("broken")

func (brokenSocket) Write([]byte) (int, error) { return 0, errBroken }
