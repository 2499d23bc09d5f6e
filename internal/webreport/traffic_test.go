package webreport

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/tcptrace/tcptrace/internal/diagnose"
	"github.com/tcptrace/tcptrace/internal/render"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// Times of the made-up traffic: it began on a fixed day, a day after the boot.
const (
	bootAt  = int64(24 * time.Hour)
	wallAt  = int64(1_760_000_000_123_456_789)
	offset  = wallAt - bootAt
	second  = int64(time.Second)
	millis  = int64(time.Millisecond)
	micro   = int64(time.Microsecond)
	lisSock = 7
)

func stamp(at int64) render.Stamp { return render.Stamp(at + offset) }

// traffic is a made-up run: clients of a server whose accept queue overflows
// for a while in the middle.
type traffic struct {
	host  string
	n     int           // connections
	spans time.Duration // over which they spread
	comm  string        // of the server
	shift int64         // ns, of the whole run
}

// play gives a run to a report, as the machine would.
func (t traffic) play(r *Report) {
	rnd := rand.New(rand.NewPCG(1, 2))
	begin := bootAt + t.shift
	_ = r.Start(&render.Start{
		Time: stamp(begin), Version: "1.0.0-test", Kernel: "6.12.0", Host: t.host, Attach: "fentry",
		Hooks:      []event.Hook{{Name: "inet_csk_accept", Via: "fentry", Gives: "accept()"}, {Name: "tcp_send_active_reset", Via: "none", Gives: "why a reset was sent", Why: "not in this kernel"}},
		Unknowable: []string{"why the kernel sent a RST: this kernel gives no reason"},
	})
	r.Namespace(event.Namespace{Inode: 4026531840, Name: "web"})
	listener := netip.MustParseAddrPort("0.0.0.0:8080")
	server := netip.MustParseAddrPort("10.0.0.1:8080")
	raw := func(e event.Event) { e.Netns = 4026531840; r.Raw(&e, stamp(e.Time), "") }
	raw(event.Event{Time: begin, Sock: lisSock, Kind: event.KindListen, New: event.StateListen, Local: listener, PID: 812, Comm: comm(t.comm), Flags: event.FlagProcess, Listener: event.Listener{ID: lisSock, QueueLimit: 128, Somaxconn: 4096, Backlog: 128}})
	_ = r.Lost(&render.Lost{Time: stamp(begin + second), Where: "ring", Count: 12})

	// The grown verdict, told while it grows.
	var overflow *diagnose.Verdict
	refused, resets := uint64(0), uint64(0)
	var examples, resetExamples []string
	var first, last int64
	for i := range t.n {
		at := begin + int64(float64(t.spans)*float64(i)/float64(t.n))
		phase := float64(i) / float64(t.n)
		client := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 1, byte(i % 200)}), uint16(20000+i%40000))
		id := fmt.Sprintf("%016x", rnd.Uint64())
		c := &render.Connection{
			ID: id, Netns: 4026531840, Role: "server", Local: server, Remote: client, Listener: listener,
			Process: render.Process{PID: 812, Comm: t.comm, Source: "accept", Cgroup: "/system.slice/web.service"},
			Opened:  stamp(at), State: "CLOSE", ClosedBy: "remote", Verdicts: []string{}, Well: true,
		}
		put := func(after int64, name, text string) {
			at += after
			c.Timeline = append(c.Timeline, render.Entry{At: at, Event: name, Text: text})
		}
		sock := uint64(1000 + i)
		who := fmt.Sprintf("%s[812]", t.comm)
		queue := uint32(rnd.IntN(20))
		switch {
		case phase > 0.5 && phase < 0.6 && i%3 != 0: // the accept queue is full
			queue = 129
			put(0, "request-dropped", "final ACK answered by RST: accept queue full (129 waiting, limit 128)")
			put(5*micro, "rst-sent", "RST sent")
			c.Story, c.ClosedBy, c.Well = "handshake completed, then server RST, accept queue full", "kernel", false
			c.Verdicts = []string{"accept-queue-overflow"}
			c.Process.Source = "listener"
			refused++
			if len(examples) < 5 {
				examples = append(examples, id)
			}
			if first == 0 {
				first = at
			}
			last = at
			raw(event.Event{Time: at, Sock: sock, Kind: event.KindACKOverflow, Flags: event.FlagRST, Local: server, Remote: client, Listener: event.Listener{ID: lisSock, QueueLen: queue, QueueLimit: 128}})
			overflow = &diagnose.Verdict{
				Code: "accept-queue-overflow", Severity: diagnose.Error, Confidence: diagnose.Certain,
				Story:   "handshake completed, then server RST, accept queue full",
				Subject: diagnose.Subject{Kind: "listener", Name: listener.String()}, Netns: 4026531840,
				Process: &diagnose.Process{PID: 812, Comm: t.comm}, Count: refused, First: first, Last: last, Examples: examples,
				Evidence: diagnose.Evidence{{Key: "backlog_limit", Value: int64(128)}, {Key: "backlog_argument", Value: int64(128)}, {Key: "somaxconn", Value: int64(4096)}, {Key: "limited_by", Value: "listen()"}, {Key: "queue_len", Value: int64(129)}, {Key: "abort_on_overflow", Value: true}, {Key: "rst_sent", Value: refused}, {Key: "clients", Value: []string{"10.0.1.7", "10.0.1.9"}}},
				Fix:      []string{"accept() faster: " + t.comm + " is behind", "raise the backlog that listen() is given (128 now); somaxconn allows 4096"},
			}
			_ = r.Verdict(&render.Verdict{Time: stamp(at), First: stamp(first), Last: stamp(last), Phase: diagnose.PhaseGrowing, Verdict: overflow, Example: c})
		case i%97 == 5: // a reset, with both ends on this host
			put(0, "established", "final ACK received: handshake completed, waiting for accept()")
			put(80*micro, "accepted", who+" called accept()")
			put(40*millis, "rst-received", "RST received")
			put(3*micro, "closed", "closed: ECONNRESET (connection reset by peer)")
			c.Story, c.Well = "connected, 1.2 kB in, reset by the peer after 40 ms", false
			c.Verdicts = []string{"reset-received"}
			c.Process.Source = "accept"
			resets++
			if len(resetExamples) < 5 {
				resetExamples = append(resetExamples, id)
			}
			peer := &render.Connection{
				ID: fmt.Sprintf("%016x", rnd.Uint64()), Netns: 4026531840, Role: "client", Local: client, Remote: server,
				Process: render.Process{PID: 900, Comm: "curl", Source: "connect"}, Opened: stamp(c.Timeline[0].At - 60*micro), Duration: -1,
				State: "CLOSE", ClosedBy: "local", Story: "connected in 0.1 ms, closed abruptly", Verdicts: []string{"reset-sent"},
			}
			t0 := c.Timeline[0].At
			peer.Timeline = []render.Entry{
				{At: t0 - 60*micro, Event: "syn-sent", Text: "curl[900] called connect(): SYN sent"},
				{At: t0 - 20*micro, Event: "established", Text: "SYN-ACK received: handshake completed"},
				{At: t0 + 40*millis, Event: "rst-sent", Text: "RST sent (TCP_ABORT_ON_CLOSE)"},
				{At: t0 + 40*millis + 4*micro, Event: "closed", Text: "curl[900] closed abruptly with 12 bytes unread"},
			}
			c.Peer = peer
		default:
			put(0, "established", "final ACK received: handshake completed, waiting for accept()")
			put(int64(50+rnd.IntN(300))*micro, "accepted", who+" called accept()")
			if i%11 == 0 {
				put(int64(200+rnd.IntN(90))*millis, "retransmitted", "segment sent again")
			}
			put(int64(1+rnd.IntN(200))*millis, "fin-received", "FIN received: the peer closed")
			put(int64(20+rnd.IntN(200))*micro, "fin-sent", who+" called close(): FIN sent")
			put(int64(20+rnd.IntN(100))*micro, "closed", "closed")
			c.Story = fmt.Sprintf("connected, %d.%d kB out, 0.3 kB in, closed by the peer", 1+i%9, i%10)
			c.Traffic = event.Traffic{BytesSent: uint64(1000 + i%9000), BytesReceived: 300, SRTT: uint32(100 + i%400)}
		}
		raw(event.Event{Time: c.Timeline[0].At, Sock: sock, Kind: event.KindState, Old: event.StateSynRecv, New: event.StateEstablished, Local: server, Remote: client})
		raw(event.Event{Time: at, Sock: sock, Kind: event.KindState, Old: event.StateEstablished, New: event.StateClose, Local: server, Remote: client})
		if i%20 == 0 {
			raw(event.Event{Time: at, Sock: lisSock, Kind: event.KindSnapshot, New: event.StateListen, Local: listener, Listener: event.Listener{ID: lisSock, QueueLen: queue, QueueLimit: 128}})
		}
		c.Time, c.Closed, c.Duration = stamp(at), stamp(at), time.Duration(at-c.Timeline[0].At)
		_ = r.Connection(c)
	}
	end := begin + int64(t.spans) + second
	s := &render.Summary{
		Time: stamp(end), Duration: t.spans + time.Second, Connections: uint64(t.n), Events: uint64(2 * t.n), Lost: 12,
		Verdicts: map[string]uint64{"accept-queue-overflow": refused},
		Audit: []render.Audit{
			{Counter: "ListenOverflows", Netns: 4026531840, Kernel: refused, Explained: refused, Exact: true},
			{Counter: "OutRsts", Netns: 4026531840, Kernel: refused + 3, Explained: refused, Note: "resets without a socket are not seen"},
		},
		Cost: render.Cost{BPFNanosPerEvent: 310, BPFCPUPercent: 0.8, UserCPUPercent: 1.4, RSSBytes: 34 << 20, BPFKnown: true},
	}
	if overflow != nil {
		s.Final = append(s.Final, &render.Verdict{Time: stamp(end), First: stamp(first), Last: stamp(last), Phase: diagnose.PhaseFinal, Verdict: overflow})
	}
	if resets > 0 {
		s.Final = append(s.Final, &render.Verdict{Time: stamp(end), First: stamp(begin + second), Last: stamp(end - second), Phase: diagnose.PhaseFinal, Verdict: &diagnose.Verdict{
			Code: "reset-received", Severity: diagnose.Warning, Confidence: diagnose.Likely, Story: "the peer reset established connections",
			Subject: diagnose.Subject{Kind: "process", Name: fmt.Sprintf("%s[812]", t.comm)}, Process: &diagnose.Process{PID: 812, Comm: t.comm}, Netns: 4026531840,
			Count: resets, First: begin + second, Last: end - second, Examples: resetExamples,
			Evidence: diagnose.Evidence{{Key: "phase", Value: "established"}, {Key: "after_ms", Value: 40.08}, {Key: "bytes_sent", Value: uint64(0)}, {Key: "bytes_received", Note: "the kernel does not tell"}},
			Fix:      []string{"look at the client: it closed with data unread"},
		}})
	}
	_ = r.Summary(s)
	_ = r.Flush()
}

func comm(s string) (c event.Comm) {
	copy(c[:15], s)
	return c
}
