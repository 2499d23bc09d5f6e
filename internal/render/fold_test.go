package render

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/internal/diagnose"
)

// loop is a connection of a client that is refused again and again.
func loop(i int, after time.Duration) *Connection {
	c := client()
	c.ID, c.Time = fmt.Sprintf("%016x", i), at(after)
	c.Local = netip.AddrPortFrom(c.Local.Addr(), uint16(20000+i%40000))
	c.Process.Comm, c.Verdicts = "relay", []string{"reconnect-loop"}
	return c
}

// tally is how many connections a text shows in each of the ways.
type tally struct{ full, line, counted int }

func (n tally) sum() int { return n.full + n.line + n.counted }

var countLine = regexp.MustCompile(`^\S+ conn +([\d,]+) more connections? `)

// tallyOf reads a text that was not wrapped and in which each story is "ended".
func tallyOf(t *testing.T, text string) tally {
	t.Helper()
	var n tally
	for line := range strings.Lines(text) {
		switch m := countLine.FindStringSubmatch(line); {
		case m != nil:
			i, err := strconv.Atoi(strings.ReplaceAll(m[1], ",", ""))
			if err != nil || i == 0 {
				t.Errorf("count %q: %v", line, err)
			}
			n.counted += i
		case strings.HasSuffix(line, " conn    ended\n"):
			n.full++
		case strings.Contains(line, " conn    ended ("):
			n.line++
		case strings.Contains(line, " conn "):
			t.Errorf("neither of the three: %q", line)
		}
	}
	return n
}

// TestFoldGolden shows what a reconnect loop looks like, in which another
// failure comes once, and which comes back after a pause.
func TestFoldGolden(t *testing.T) {
	var b bytes.Buffer
	r := NewText(&b, TextOptions{Fold: true, Netns: 1})
	for i := range 4000 {
		after := time.Duration(i) * time.Millisecond
		if i == 3000 {
			odd := ghost()
			odd.Time = at(after)
			r.Connection(odd)
		}
		r.Connection(loop(i, after))
	}
	r.Connection(loop(4000, time.Minute))
	r.Connection(ghost())
	if err := r.Summary(&Summary{Time: at(time.Minute), Duration: time.Minute, Connections: 4003}); err != nil {
		t.Fatal(err)
	}
	golden(t, "text-fold.golden", b.Bytes())
}

// TestFoldAddsUp: whatever comes, each connection is shown in full, as a line,
// or counted, and what is remembered is bounded.
func TestFoldAddsUp(t *testing.T) {
	for seed := range uint64(60) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		var b bytes.Buffer
		r := NewText(&b, TextOptions{Fold: true, Width: 1000})
		kinds := 1 + rnd.IntN(1+3*int(seed)) // up to many more than there is room for
		pause := time.Duration(1+rnd.IntN(2000)) * time.Millisecond
		now := time.Duration(0)
		want, peers := 0, 0
		for i := range 1 + rnd.IntN(3000) {
			switch rnd.IntN(20) {
			case 0:
				now += time.Duration(rnd.Int64N(int64(100 * pause)))
			case 1:
				now -= time.Duration(rnd.Int64N(int64(pause))) // clocks and order are not perfect
			default:
				now += time.Duration(rnd.Int64N(int64(pause)))
			}
			k := rnd.IntN(kinds)
			c := loop(i, now)
			c.Story, c.Timeline = "ended", nil
			c.Remote = netip.AddrPortFrom(c.Remote.Addr(), uint16(1+k/4))
			c.Well, c.Incomplete = k%4 == 1, k%4 == 2
			if k%4 == 3 {
				c.Role, c.Listener, c.Verdicts = "server", addr("0.0.0.0:80"), nil
			}
			want++
			switch rnd.IntN(10) {
			case 0: // the other end follows, and says nothing of its own
				c.Peer = loop(1_000_000+i, now)
				r.Connection(c)
				r.Connection(c.Peer)
				peers++
			case 1:
				r.Connection(c)
				v := overflow(diagnose.PhaseGrowing, uint64(i))
				v.Time = at(now)
				r.Verdict(v)
			default:
				r.Connection(c)
			}
			if n := len(r.folds.kinds); n > maxKinds+1 {
				t.Fatalf("seed %d: %d kinds are remembered", seed, n)
			}
		}
		if err := r.Summary(&Summary{Time: at(now)}); err != nil {
			t.Fatal(err)
		}
		if got := tallyOf(t, b.String()); got.sum() != want {
			t.Errorf("seed %d: %+v are %d of %d connections (and %d other ends)", seed, got, got.sum(), want, peers)
		}
	}
}

// TestFoldStorms bounds what storms of different sorts come to.
func TestFoldStorms(t *testing.T) {
	const n = 20_000
	for _, c := range []struct {
		name  string
		every time.Duration
		vary  func(i int, c *Connection)
		full  int // what is shown, at most
		lines int // of any sort, at most
	}{
		{"a loop for 4 s", 200 * time.Microsecond, func(int, *Connection) {}, 3, 14},
		{"a loop for 5 h", time.Second, func(int, *Connection) {}, 3 * 40, 40*10 + 400},
		{"many clients of one listener", 200 * time.Microsecond, func(i int, c *Connection) {
			c.Role, c.Listener, c.Local = "server", addr("0.0.0.0:80"), addr("10.0.0.1:80")
			c.Remote = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 999)
		}, 3, 14},
		{"a scan of many addresses", 200 * time.Microsecond, func(i int, c *Connection) {
			c.Remote = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 80)
		}, maxKinds + 3, maxKinds + 14},
		{"found, of unknown role", 200 * time.Microsecond, func(i int, c *Connection) { c.Role = "unknown" }, 3, 14},
		{"went well", 200 * time.Microsecond, func(i int, c *Connection) { c.Well, c.Verdicts = true, nil }, 20, 204},
	} {
		t.Run(c.name, func(t *testing.T) {
			var b bytes.Buffer
			r := NewText(&b, TextOptions{Fold: true, Width: 1000})
			for i := range n {
				conn := loop(i, time.Duration(i)*c.every)
				conn.Story, conn.Timeline = "ended", nil
				c.vary(i, conn)
				r.Connection(conn)
			}
			if err := r.Summary(&Summary{Time: at(n * c.every)}); err != nil {
				t.Fatal(err)
			}
			got := tallyOf(t, b.String())
			if got.sum() != n {
				t.Errorf("%+v are %d of %d", got, got.sum(), n)
			}
			if lines := strings.Count(b.String(), " conn "); got.full == 0 || got.full > c.full || lines > c.lines {
				t.Errorf("%+v in %d lines", got, lines)
			}
		})
	}
}

// TestFoldLeavesFew: as many as there is an allowance for are shown in full as
// if nothing was folded, and without Fold all are.
func TestFoldLeavesFew(t *testing.T) {
	write := func(fold bool, n int) string {
		var b bytes.Buffer
		r := NewText(&b, TextOptions{Fold: fold})
		for i := range n {
			r.Connection(loop(i, time.Duration(i)*4*time.Second))
		}
		if err := r.Flush(); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	if a, b := write(true, 50), write(false, 50); a != b {
		t.Errorf("one each 4 s is folded:\n%s", a)
	}
}

// TestFoldQuiet: what was rare for as long as a loop went on is news once it
// was quiet, and its place goes to others then without a count getting lost.
func TestFoldQuiet(t *testing.T) {
	for _, others := range []int{0, 2 * maxKinds} {
		var b bytes.Buffer
		r := NewText(&b, TextOptions{Fold: true, Width: 1000})
		n := 0
		show := func(port uint16, after time.Duration) {
			c := loop(n, after)
			c.Story, c.Timeline = "ended", nil
			c.Remote = netip.AddrPortFrom(c.Remote.Addr(), port)
			r.Connection(c)
			n++
		}
		end := time.Duration(0)
		for ; end < time.Hour; end += time.Second / 2 {
			show(80, end)
		}
		r.Flush()
		before := tallyOf(t, b.String()).full
		for i := range others {
			show(uint16(1000+i), end+15*time.Second)
		}
		show(80, end+20*time.Second)
		if err := r.Summary(&Summary{}); err != nil {
			t.Fatal(err)
		}
		got := tallyOf(t, b.String())
		if got.sum() != n {
			t.Errorf("%d others: %+v are %d of %d", others, got, got.sum(), n)
		}
		if i := strings.LastIndex(b.String(), " more connection"); others == 0 && i > strings.LastIndex(b.String(), " ended\n") {
			t.Error("a count is told after what came later is shown in full")
		}
		if others == 0 && got.full != before+1 {
			t.Errorf("after a pause: %d in full, %d before", got.full, before)
		}
	}
}
