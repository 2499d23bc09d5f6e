package dump

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tcptrace/tcptrace/tracer/event"
)

var update = flag.Bool("update", false, "write the golden dumps that are not there, and what they hold")

// plainTape is a feed that writes down what it is told in a form that any
// language can make: texts as bytes, addresses in hex.
type plainTape struct{ strings.Builder }

func (p *plainTape) say(format string, args ...any) { fmt.Fprintf(p, format+"\n", args...) }

// quoted is a text in which all but printable ASCII is escaped by its bytes.
func quoted[T ~string](s T) string {
	var b strings.Builder
	b.WriteByte('"')
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c > 0x7e || c == '"' || c == '\\' {
			fmt.Fprintf(&b, `\x%02x`, c)
		} else {
			b.WriteByte(c)
		}
	}
	b.WriteByte('"')
	return b.String()
}

func plainAddr(a netip.AddrPort) string {
	if !a.Addr().IsValid() {
		return fmt.Sprintf("-:%d", a.Port())
	}
	return fmt.Sprintf("%s:%d", hex.EncodeToString(a.Addr().AsSlice()), a.Port())
}

func plainEvent(e *event.Event) string {
	var b strings.Builder
	fmt.Fprintf(&b, "time=%d sock=%d kind=%d old=%d new=%d flags=%d netns=%d local=%s remote=%s pid=%d comm=%s cgroup=%d err=%d attempt=%d reason=%d tcp_flags=%d out=%d where=%s count=%d",
		e.Time, e.Sock, e.Kind, e.Old, e.New, e.Flags, e.Netns, plainAddr(e.Local), plainAddr(e.Remote), e.PID, quoted(string(e.Comm[:])), e.Cgroup,
		e.Err, e.Attempt, e.Reason, e.TCPFlags, bit(e.Out), quoted(e.Where), e.Count)
	t := trafficNumbers(&e.Traffic)
	for i, name := range layout.Traffic {
		fmt.Fprintf(&b, " %s=%d", name, t[i])
	}
	if e.Listener != (event.Listener{}) {
		n := listenerNumbers(&e.Listener)
		fmt.Fprintf(&b, " listener=%d", e.Listener.ID)
		for i, name := range layout.Listener {
			fmt.Fprintf(&b, " %s=%d", name, n[i])
		}
	}
	if e.Inventory != nil {
		n := inventoryNumbers(e.Inventory)
		for i, name := range layout.Inventory {
			if i >= 2 && i != 4 && i < 8 {
				fmt.Fprintf(&b, " %s=%d", name, int64(n[i])) // times
				continue
			}
			fmt.Fprintf(&b, " %s=%d", name, n[i])
		}
	}
	return b.String()
}

func (p *plainTape) Clock(offset int64) { p.say("clock %d", offset) }
func (p *plainTape) Namespace(ns event.Namespace) {
	var b strings.Builder
	for i, v := range sysctlNumbers(&ns.Sysctls) {
		fmt.Fprintf(&b, " %s=%d", layout.Sysctls[i], *v)
	}
	p.say("namespace inode=%d name=%s known=%d%s", ns.Inode, quoted(ns.Name), bit(ns.Known), b.String())
}
func (p *plainTape) Process(v event.Process) {
	p.say("process pid=%d comm=%s cgroup=%s exe=%s", v.PID, quoted(v.Comm), quoted(v.Cgroup), quoted(v.Exe))
}
func (p *plainTape) Event(e *event.Event) { p.say("event %s", plainEvent(e)) }
func (p *plainTape) BeginSnapshot(netns uint32, now int64) {
	p.say("begin netns=%d time=%d", netns, now)
}
func (p *plainTape) EndSnapshot(netns uint32, now int64) { p.say("end netns=%d time=%d", netns, now) }
func (p *plainTape) Advance(now int64)                   { p.say("advance %d", now) }
func (p *plainTape) Snapshot(e *event.Event, pid uint32, comm string) {
	p.say("snapshot %s owner=%d owner_comm=%s", plainEvent(e), pid, quoted(comm))
}
func (p *plainTape) Lost(at int64, l event.Lost) {
	p.say("lost time=%d where=%s count=%d", at, quoted(l.Where), l.Count)
}
func (p *plainTape) Audit(a Audit) {
	p.say("audit at=%d since=%d", a.At, int64(a.Since))
	for _, l := range a.Lines {
		p.say("  counter=%s netns=%d kernel=%d explained=%d exact=%d note=%s", quoted(l.Counter), l.Netns, l.Kernel, l.Explained, bit(l.Exact), quoted(l.Note))
	}
	for _, n := range a.Notes {
		p.say("  note %s", quoted(n))
	}
}

// plain is all that a dump holds.
func plain(t *testing.T, dump []byte) string {
	t.Helper()
	r, err := NewReader(bytes.NewReader(dump))
	require.NoError(t, err)
	var p plainTape
	h := r.Header()
	p.say("header format=%d tool=%s run=%s part=%d host=%s started=%d started_boot=%d key=%x", h.Format, quoted(h.Tool), quoted(h.Run), h.Part, quoted(h.Host), h.Started, h.StartedBoot, h.Key)
	for err == nil {
		err = r.Next(&p)
	}
	require.ErrorIs(t, err, io.EOF)
	if e := r.End(); e != nil {
		p.say("the end reason=%s text=%s at=%d", quoted(e.Reason), quoted(e.Text), e.At)
		if e.Summary != nil {
			p.say("summary duration=%d", int64(e.Summary.Duration))
			p.Audit(e.Summary.Audit)
		}
	} else {
		p.say("cut off")
	}
	damages, _ := r.Damages()
	for _, d := range damages {
		p.say("damage offset=%d bytes=%d events=%d", d.Offset, d.Bytes, d.Events)
	}
	return p.String()
}

// goldens makes the golden dumps of this version.
func goldens(t *testing.T) map[string][]byte {
	h := Header{
		Tool: "golden", Run: "0123456789abcdef", Host: "hö<st", Kernel: "6.12.0", BootID: "3f1c", Started: 1_700_000_000_000_000_000, StartedBoot: 90,
		Command: []string{"tcptrace", "record", "-o", "x\"y"}, Key: [16]byte{1, 2, 3, 255}, Rules: map[string]string{"--close-wait": "1m"},
		Filter: map[string][]string{"port": {"80", "443"}},
		Capabilities: event.Capabilities{
			Kernel: "6.12.0", Attach: "fentry", Identity: event.IdentityCookie, Hooks: []event.Hook{{Name: "tcp_close", Via: "fentry", Gives: "closes"}},
			HasAccept: true, RSTReasons: map[uint32]string{11: "TCP_ABORT_ON_CLOSE"},
		},
	}
	end := &End{Reason: EndDone, Text: "by SIGINT", At: 1 << 40, Summary: &Summary{
		Duration: time.Minute, Audit: Audit{At: 5, Since: time.Minute, Lines: []AuditLine{{Counter: "OutRsts", Netns: 1, Kernel: 1<<64 - 1, Explained: 7, Exact: true, Note: "é"}}, Notes: []string{"n"}},
	}}
	encoded := func(run func(*Encoder)) (list []*Frame) {
		e := NewEncoder(func(f *Frame) { list = append(list, f) })
		run(e)
		e.Flush()
		return list
	}
	made := func(h Header, list []*Frame, end *End) []byte {
		b, err := Assemble(h, list, end)
		require.NoError(t, err)
		return b
	}
	out := make(map[string][]byte)
	out["everything"] = made(h, encoded(func(e *Encoder) {
		play(e)
		e.Flush()
		randomRun(e, rand.New(rand.NewPCG(8, 8)), 600)
		e.Flush()
		short(e)
	}), end)
	out["churn"] = made(h, encoded(func(e *Encoder) { churn(e, 20) }), &End{Reason: EndDone, At: 1 << 50})
	list := encoded(func(e *Encoder) { play(e); short(e) })
	whole := made(h, list, end)
	out["cut"] = whole[:len(whole)-len(whole)/3]
	at := frames(t, whole)
	piece := func(i int) []byte { return whole[at[i].from:at[i].to] }
	flip := func(b []byte, i int) []byte {
		b = bytes.Clone(b)
		b[i] ^= 0x10
		return b
	}
	other, err := Assemble(Header{Run: "another"}, encoded(func(e *Encoder) { short(e) }), nil)
	require.NoError(t, err)
	out["damaged"] = slices.Concat(
		flip(whole[:8], 3), flip(piece(0), 70), piece(1), piece(2), // the first header, but not the second
		flip(piece(3), frameHeaderSize),                                 // a payload
		piece(4), []byte("junk \xd5Fr\x96 between"), piece(5), piece(5), // twice
		piece(6)[:len(piece(6))-2],         // two bytes are missing
		flip(piece(7), 9), other, piece(9)) // a header, another recording, a frame is missing
	var parts []*Frame
	encoded(func(e *Encoder) {
		play(e)
		parts = append(parts, e.Preamble())
		e.sink = func(f *Frame) { parts = append(parts, f) }
		short(e)
	})
	h.Part, h.Redacted, h.Window = 3, true, &Window{Trigger: "accept-queue-overflow", At: 1_700_000_000_000_000_000, Asked: time.Minute, Dropped: 5}
	out["part"] = made(h, parts, &End{Reason: EndWindow, At: 200})
	out["later"] = laterDump(t)
	return out
}

// Dumps of each version of the format that was ever released are read for ever,
// and hold what they held. -update adds those that are not there; it never
// writes one anew.
func TestGolden(t *testing.T) {
	if *update {
		dir := filepath.Join("testdata", fmt.Sprintf("v%d", Format))
		require.NoError(t, os.MkdirAll(dir, 0o755))
		for name, dump := range goldens(t) {
			path := filepath.Join(dir, name+".tcpt")
			f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
			if errors.Is(err, os.ErrExist) {
				continue
			}
			require.NoError(t, err)
			_, err = f.Write(dump)
			require.NoError(t, errors.Join(err, f.Close()))
			require.NoError(t, os.WriteFile(filepath.Join(dir, name+".tape"), []byte(plain(t, dump)), 0o644))
		}
	}
	for _, path := range goldenDumps(t) {
		t.Run(path, func(t *testing.T) {
			dump, err := os.ReadFile(path)
			require.NoError(t, err)
			want, err := os.ReadFile(strings.TrimSuffix(path, ".tcpt") + ".tape")
			require.NoError(t, err)
			require.Equal(t, strings.Split(string(want), "\n"), strings.Split(plain(t, dump), "\n"))
		})
	}
}

func goldenDumps(t *testing.T) []string {
	t.Helper()
	list, err := filepath.Glob("testdata/v*/*.tcpt")
	require.NoError(t, err)
	for _, must := range []string{"everything", "churn", "cut", "damaged", "part", "later"} {
		require.Contains(t, list, "testdata/v1/"+must+".tcpt")
	}
	return list
}

// testdata/reader.py is written from docs/dump-format.md alone: the document
// says all that it takes, also of damage.
func TestTheDocumentIsEnough(t *testing.T) {
	other := func(t *testing.T, path string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		c := exec.CommandContext(ctx, "python3", "testdata/reader.py", path)
		var problems bytes.Buffer
		c.Stderr = &problems
		got, err := c.Output()
		require.NoError(t, err, "%s\nscripts/setup test installs python3", &problems)
		return string(got)
	}
	for _, path := range goldenDumps(t) {
		t.Run(path, func(t *testing.T) {
			want, err := os.ReadFile(strings.TrimSuffix(path, ".tcpt") + ".tape")
			require.NoError(t, err)
			require.Equal(t, strings.Split(string(want), "\n"), strings.Split(other(t, path), "\n"))
		})
	}
	whole, _ := shortDump(t)
	at := frames(t, whole)
	path := filepath.Join(t.TempDir(), "x.tcpt")
	for seed := range uint64(25) {
		r := rand.New(rand.NewPCG(seed, 1))
		dump := bytes.Clone(whole[:at[0].to]) // one header stays as it is
		for _, f := range at[1:] {
			b := bytes.Clone(whole[f.from:f.to])
			switch r.IntN(8) {
			case 0:
				b[r.IntN(len(b))] ^= 1 << r.IntN(8)
			case 1:
				b = b[:r.IntN(len(b))]
			case 2:
				b = append(b, b...)
			case 3:
				b = nil
			case 4:
				b = slices.Insert(b, r.IntN(len(b)), frameMagic[:]...)
			}
			dump = append(dump, b...)
		}
		require.NoError(t, os.WriteFile(path, dump, 0o600))
		require.Equal(t, strings.Split(plain(t, dump), "\n"), strings.Split(other(t, path), "\n"), seed)
	}
}
