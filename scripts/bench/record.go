package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/dump"
	"github.com/tcptrace/tcptrace/internal/lab"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// What issue and contract ask for.
const (
	mostBytes  = 12.0  // of a dump, an event
	mostMore   = 1.25  // processor time of watch --record against watch
	leastRate  = 1.5e6 // events a second of one processor, replayed
	mostMemory = 150e6 // bytes, of a replay of longDump events
	longDump   = 10e6  // events
	mostGrowth = 1.5   // memory for longDump events against a tenth of them: the collector lets the heap double
	settled    = 2500 * time.Millisecond
)

// cpuTime is the processor time, user and system, that a process has used.
func cpuTime(pid int) (time.Duration, error) {
	var ts unix.Timespec
	// The clock of another process is named by its id (clock_getcpuclockid(3)).
	const sched = 2
	if err := unix.ClockGettime(int32(^pid<<3|sched), &ts); err != nil {
		return 0, fmt.Errorf("reading the processor time of process %d: %w", pid, err)
	}
	return time.Duration(ts.Nano()), nil
}

// watched is one stretch of churn under a watch.
type watched struct {
	perEvent float64 // ns of processor time
	events   uint64
	bytes    float64 // of the dump, an event
}

func (b *bench) watched(ns *lab.Namespace, file string) (watched, error) {
	args := []string{"--netns", fmt.Sprint(ns.Inode())} // nothing of what else goes on here
	if file != "" {
		args = append(args, "--record", file)
	}
	w, err := b.watch(args...)
	if err != nil {
		return watched{}, err
	}
	before, err := cpuTime(w.cmd.Process.Pid)
	if err == nil {
		_, err = lab.Churn(b.ctx, ns, 3*b.connections, 100)
	}
	var after time.Duration
	if err == nil {
		time.Sleep(settled) // what is done once a second, and what is on its way to the file
		after, err = cpuTime(w.cmd.Process.Pid)
	}
	s, eerr := w.end()
	if err := errors.Join(err, eerr); err != nil {
		return watched{}, err
	}
	if s.Events == 0 || s.Lost > 0 {
		return watched{}, fmt.Errorf("%d events, %d lost", s.Events, s.Lost)
	}
	out := watched{perEvent: float64(after-before) / float64(s.Events), events: s.Events}
	if file != "" {
		st, err := os.Stat(file)
		if err != nil {
			return out, err
		}
		out.bytes = float64(st.Size()) / float64(s.Events)
	}
	return out, nil
}

// record compares watch with watch --record on the same traffic, in turn.
func (b *bench) record() error {
	if err := b.build(); err != nil {
		return err
	}
	var without, with, ratio, size []float64
	var last watched
	for i := range b.rounds + 2 { // there is much to be had from a quiet one
		var both [2]watched
		for j := range both {
			// A namespace of its own for each, without the TIME_WAIT of those before.
			ns, err := lab.NewNamespace()
			if err != nil {
				return err
			}
			file := ""
			recording := (i+j)%2 == 1
			if recording {
				file = b.dumpFile()
				os.Remove(file)
			}
			got, err := b.watched(ns, file)
			ns.Close()
			if err != nil {
				return err
			}
			if recording {
				both[1] = got
			} else {
				both[0] = got
			}
		}
		last = both[1]
		without, with = append(without, both[0].perEvent), append(with, both[1].perEvent)
		ratio, size = append(ratio, both[1].perEvent/both[0].perEvent), append(size, both[1].bytes)
	}
	// What else runs on the machine makes a stretch dearer, and never cheaper.
	r, s := least(with)/least(without), mid(size)
	fmt.Printf("record: %d events a stretch, both ends of %d connections\n", last.events, 3*b.connections)
	fmt.Printf("  dump                   %6.2f bytes an event (limit %.0f)\n", s, mostBytes)
	fmt.Printf("  processor time         %6.2f of watch without --record (limit %.2f), the cheapest of %d each; pairs %.2f to %.2f\n",
		r, mostMore, len(with), least(ratio), most(ratio))
	if s > mostBytes || r > mostMore {
		return errors.New("it is over the limit")
	}
	return nil
}

func least(v []float64) float64 { return minOf(v, 1) }
func most(v []float64) float64  { return -minOf(v, -1) }

func minOf(v []float64, sign float64) float64 {
	m := sign * v[0]
	for _, x := range v {
		m = min(m, sign*x)
	}
	return m
}

func (b *bench) dumpFile() string {
	return filepath.Join(filepath.Dir(b.binary), "churn"+dump.Extension)
}

// replay measures report on a dump of churn, and on long ones made of it.
func (b *bench) replay() error {
	if err := b.build(); err != nil {
		return err
	}
	if _, err := os.Stat(b.dumpFile()); err != nil { // record did not run
		ns, err := lab.NewNamespace()
		if err != nil {
			return err
		}
		defer ns.Close()
		if _, err := b.watched(ns, b.dumpFile()); err != nil {
			return err
		}
	}
	var rates []float64
	for range b.rounds {
		got, err := b.report(b.dumpFile())
		if err != nil {
			return err
		}
		rates = append(rates, float64(got.events)/got.cpu.Seconds())
	}
	long := filepath.Join(filepath.Dir(b.binary), "long"+dump.Extension)
	var longs [2]reported
	for i, n := range []uint64{longDump / 10, longDump} {
		if err := lengthen(b.dumpFile(), long, n); err != nil {
			return err
		}
		var err error
		if longs[i], err = b.report(long); err != nil {
			return err
		}
		if longs[i].events < n {
			return fmt.Errorf("of %d events, %d were replayed", n, longs[i].events)
		}
	}
	rate, memory := mid(rates), float64(longs[1].memory)
	growth := memory / float64(longs[0].memory)
	fmt.Printf("replay: report of the dump on one processor, with all that a process does from start to end\n")
	fmt.Printf("  events                 %6.2f times the %.1f million a second and processor asked for; of the long dump %.2f times\n",
		rate/leastRate, leastRate/1e6, float64(longs[1].events)/longs[1].cpu.Seconds()/leastRate)
	fmt.Printf("  memory                 %6.0f%% of the %.0f MB allowed for %.0f million events; %.2f of that for a tenth of them (limit %.2f)\n",
		100*memory/mostMemory, mostMemory/1e6, longDump/1e6, growth, mostGrowth)
	if rate < leastRate || memory > mostMemory || growth > mostGrowth {
		return errors.New("it is over the limit")
	}
	return nil
}

// reported is what a report took.
type reported struct {
	events uint64
	cpu    time.Duration // of the process, user and system
	memory uint64        // most of it that was resident, bytes
}

// report has the program report on a dump, with one processor.
func (b *bench) report(file string) (reported, error) {
	var out reported
	cmd := exec.CommandContext(b.ctx, b.binary, "report", "-o", "json", file)
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1")
	cmd.Stderr = os.Stderr
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return out, err
	}
	if err := cmd.Start(); err != nil {
		return out, fmt.Errorf("starting the report: %w", err)
	}
	// What the process's own usage says of its memory in the end begins with this
	// process's, which it shared when it was started.
	peak, stop := make(chan uint64), make(chan struct{})
	go func() {
		var high uint64
		for {
			select {
			case <-stop:
				peak <- high
				return
			case <-time.After(10 * time.Millisecond):
				if v, err := highWater(cmd.Process.Pid); err == nil {
					high = max(high, v)
				}
			}
		}
	}()
	var s summary
	sc := bufio.NewScanner(pipe)
	sc.Buffer(nil, 64<<20)
	for sc.Scan() {
		if bytes.Contains(sc.Bytes(), []byte(`"type":"summary"`)) {
			err = errors.Join(err, json.Unmarshal(sc.Bytes(), &s))
		}
	}
	close(stop)
	out.memory = <-peak
	if err := errors.Join(err, sc.Err(), cmd.Wait()); err != nil {
		return out, fmt.Errorf("reporting on %s: %w", filepath.Base(file), err)
	}
	out.events, out.cpu = s.Events, cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime()
	if out.events == 0 || s.Lost > 0 || out.memory == 0 {
		return out, fmt.Errorf("reporting on %s: %d events, %d lost, %d bytes of memory", filepath.Base(file), out.events, s.Lost, out.memory)
	}
	return out, nil
}

// highWater is the most memory of a process that was resident, in bytes.
func highWater(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		var kb uint64
		if _, err := fmt.Sscanf(line, "VmHWM: %d kB", &kb); err == nil {
			return kb << 10, nil
		}
	}
	return 0, errors.New("no VmHWM")
}

// lengthen makes a dump of so many events: those of another one again and
// again, as ever new connections, one stretch after the other.
func lengthen(from, to string, events uint64) error {
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	defer f.Close()
	w := bufio.NewWriter(f)
	l := &longer{}
	var seq uint32
	var run uint32
	var buf []byte
	var werr error
	write := func(f *dump.Frame) {
		buf = f.Append(buf[:0], run, seq)
		seq++
		if _, err := w.Write(buf); err != nil && werr == nil {
			werr = err
		}
	}
	var before uint64
	l.Encoder = dump.NewEncoder(func(f *dump.Frame) {
		before = f.Before + uint64(f.Events)
		write(f)
	})
	for ; l.events < events; l.round++ {
		if err := l.again(from, func(h dump.Header) error {
			if l.round > 0 {
				return nil
			}
			run, seq = dump.RunID(h.Run), 2
			begin, err := dump.HeaderFrame(h)
			if err == nil {
				_, err = w.Write(begin)
			}
			return err
		}); err != nil {
			return err
		}
		if werr != nil {
			return fmt.Errorf("writing a long dump: %w", werr)
		}
	}
	l.Flush()
	end, err := dump.EndFrame(dump.End{Reason: dump.EndDone, At: l.newest}, before)
	if err != nil {
		return err
	}
	write(end)
	return errors.Join(werr, w.Flush())
}

// longer is a feed that makes one run of many.
type longer struct {
	*dump.Encoder
	round  uint64
	events uint64
	newest int64
	shift  int64 // by how much this round is later
}

func (l *longer) again(from string, begin func(dump.Header) error) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	r, err := dump.NewReader(f)
	if err != nil {
		return err
	}
	if err := begin(*r.Header()); err != nil {
		return err
	}
	l.shift = 0
	if l.round > 0 {
		l.shift = l.newest - r.Header().StartedBoot
	}
	for err == nil {
		err = r.Next(l)
	}
	if err != io.EOF {
		return fmt.Errorf("reading %s: %w", filepath.Base(from), err)
	}
	return nil
}

func (l *longer) at(t int64) int64 {
	t += l.shift
	l.newest = max(l.newest, t)
	return t
}

// other is a port that only clients have, another one in each round.
func (l *longer) other(a netip.AddrPort) netip.AddrPort {
	const low, high = 32768, 60999 // as they come by default
	p := a.Port()
	if p < low || p > high {
		return a
	}
	return netip.AddrPortFrom(a.Addr(), uint16(low+(uint64(p-low)+101*l.round)%(high-low+1)))
}

func (l *longer) Clock(offset int64) {
	if l.round == 0 {
		l.Encoder.Clock(offset)
	}
}

func (l *longer) Event(e *event.Event) {
	const apart = 1 << 32 // cookies of rounds
	e.Time = l.at(e.Time)
	if e.Sock != 0 {
		e.Sock += l.round * apart
	}
	if e.Listener.ID != 0 {
		e.Listener.ID += l.round * apart
	}
	e.Local, e.Remote = l.other(e.Local), l.other(e.Remote)
	l.events++
	l.Encoder.Event(e)
}

func (l *longer) Advance(now int64) { l.Encoder.Advance(l.at(now)) }

func (l *longer) Lost(at int64, lost event.Lost) { l.Encoder.Lost(l.at(at), lost) }

// Sockets that were found would be others' in later rounds.
func (l *longer) BeginSnapshot(uint32, int64)           {}
func (l *longer) Snapshot(*event.Event, uint32, string) {}
func (l *longer) EndSnapshot(uint32, int64)             {}
func (l *longer) Audit(dump.Audit)                      {}
