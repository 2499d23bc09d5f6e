package kerneltest

import (
	"bufio"
	"context"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/diagnose"
	"github.com/tcptrace/tcptrace/internal/filter"
	"github.com/tcptrace/tcptrace/internal/kerneltest/watchtest"
	"github.com/tcptrace/tcptrace/internal/lab"
	"github.com/tcptrace/tcptrace/internal/render"
)

const (
	// floodWork is how much more processor time a SYN of a flood may take with
	// tracing than without: the flood itself is built by the same process, so
	// the time without is that of the sender, the kernel and nobody else.
	floodWork = 4.0
	// floodWorkVM is the same in the emulator, where a flood is hardly faster
	// than what is told singly: there each SYN costs an event.
	floodWorkVM = 20
	// floodHeap is by how much the heap may grow while a flood goes on, once it
	// has begun: nothing is kept for each SYN.
	floodHeap = 4 << 20
	// floodMaps is the same for the memory of the BPF maps.
	floodMaps = 1 << 20
)

// TestFlood floods a listener with SYNs from random addresses, with SYN cookies
// and without, and a closed port, while other things go wrong elsewhere:
// tcptrace's memory and work stay bounded, one verdict grows, and the others
// come out.
func TestFlood(t *testing.T) {
	t.Run("cookies", func(t *testing.T) { flood(t, lab.FloodCookies, "syn-queue-overflow", "cookies_sent") })
	t.Run("dropped", func(t *testing.T) { flood(t, lab.FloodDropped, "syn-queue-overflow", "syn_dropped") })
	t.Run("refused", func(t *testing.T) { flood(t, lab.FloodRefused, "port-closed", "count") })
}

// bystander is a case that happens while the flood goes on.
type bystander struct {
	lab.Case
	env   *lab.Env
	truth *lab.Truth
	err   error
}

func newBystander(t *testing.T, id string) *bystander {
	c, err := lab.Find(id)
	require.NoError(t, err)
	env, err := lab.NewEnv(lab.Options{Patience: watchtest.Patience()})
	require.NoError(t, err, "these tests need root")
	t.Cleanup(func() { _ = env.Close() })
	return &bystander{Case: c, env: env}
}

// flood expects one verdict with this code, whose evidence counts the SYNs
// under key.
func flood(t *testing.T, kind lab.FloodKind, code, key string) {
	ctx, cancel := context.WithTimeout(context.Background(), 4*watchtest.Patience())
	defer cancel()
	half := 50_000
	if watchtest.InVM() {
		half = 20_000
	}
	env, err := lab.NewEnv(lab.Options{Patience: watchtest.Patience(), Backlog: 64})
	require.NoError(t, err, "these tests need root")
	t.Cleanup(func() { _ = env.Close() })
	f, err := lab.NewFlood(ctx, env, kind)
	require.NoError(t, err)
	others := []*bystander{newBystander(t, "K"), newBystander(t, "M-unread")}

	// Without tracing: the queue fills, then what a SYN takes.
	require.NoError(t, f.Send(ctx, 1000))
	without := work(t, ctx, f, half)

	var spaces filter.Filter // nothing of what else goes on on this machine
	for _, e := range []*lab.Env{env, others[0].env, others[1].env} {
		spaces.Netns = append(spaces.Netns, e.NS.Inode())
	}
	w := watchtest.Watch(t, spaces, diagnose.Options{})
	before, err := f.Counters(nil)
	require.NoError(t, err)
	sent := f.Sent()
	begun := time.Now()
	// The first half is for what is made once.
	require.NoError(t, f.Send(ctx, half))
	was := memory(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, o := range others {
			if o.truth, o.err = o.Run(ctx, o.env); o.err != nil {
				return
			}
		}
	}()
	with := work(t, ctx, f, half)
	is := memory(t)
	<-done
	sent = f.Sent() - sent
	require.NoError(t, f.Settle(ctx, before, sent*8/10), "the kernel took in the flood")
	time.Sleep(3 * time.Second) // for what is counted only, and for held verdicts
	lasted := time.Since(begun)
	counters, err := f.Counters(before)
	require.NoError(t, err)
	w.End(t)
	missed := w.CheckLost(t)

	t.Logf("%d SYNs: %.1f us of work each without tracing, %.1f us with; %d events; heap %d to %d kB, maps %d to %d kB, RSS %d MB",
		sent, 1e6*without, 1e6*with, w.Summary.Events, was.heap>>10, is.heap>>10, was.maps>>10, is.maps>>10, is.rss>>20)
	limit := floodWork
	if watchtest.InVM() {
		limit = floodWorkVM
	}
	assert.Less(t, with, limit*without, "work of a SYN, seconds")
	assert.Less(t, is.heap, was.heap+floodHeap, "heap")
	assert.Less(t, is.maps, was.maps+floodMaps, "BPF maps")
	assert.Zero(t, w.Summary.Evicted, "connections let go")
	if !watchtest.InVM() { // there, the flood may not be faster than what is told singly
		assert.Less(t, w.Summary.Events, sent/2, "events told singly")
	}

	in := map[uint32]bool{env.NS.Inode(): true}
	final := w.Final(in)
	for _, v := range final {
		t.Logf("%s %s (%s) x%d %s: %s %v", v.Severity, v.Code, v.Confidence, v.Count, v.Subject.Name, v.Story, v.Evidence)
	}
	if why := unknowable(w.Caps, "", code, missed); why != "" {
		t.Logf("%s can't be known here: %s", code, why)
		assert.Empty(t, final)
		return
	}
	require.Len(t, final, 1, "one verdict")
	v := final[0]
	assert.Equal(t, code, v.Code)
	evidence(t, v)
	if f.Server.PID != 0 && assert.NotNil(t, v.Process) {
		assert.Equal(t, uint32(f.Server.PID), v.Process.PID)
		assert.Equal(t, "flood with forged sources", v.Evidence.Get("looks_like"))
	}
	name := kind.Counter()
	kernel := counters[name]
	least, most := float64(kernel)-float64(missed), float64(kernel)
	if kind != lab.FloodRefused && !watchtest.Full(w.Caps) {
		// Concluded after the fact, from a queue in which a place gets free now
		// and then, and is taken.
		least, most = 0.95*least, 1.01*most
	}
	assert.LessOrEqual(t, float64(v.Count), most, name)
	assert.GreaterOrEqual(t, float64(v.Count), least, name)
	if n, ok := v.Evidence.Get(key).(int64); assert.True(t, ok, key) {
		assert.Equal(t, v.Count, uint64(n), key)
	}
	told := 0
	for _, x := range w.Verdicts() {
		if in[x.Netns] {
			told++
		}
	}
	assert.Greater(t, told, 1, "the verdict grows")
	assert.LessOrEqual(t, told, int(lasted/time.Second)+4, "it is told once a second at most")
	if missed == 0 { // what the kernel skipped is missing there, too
		w.CheckAudit(t, in)
	}

	for _, o := range others {
		require.NoError(t, o.err, o.ID)
		got := w.Final(map[uint32]bool{o.env.NS.Inode(): true})
		for _, want := range o.truth.Expect {
			if why := unknowable(w.Caps, o.ID, want.Code, missed); why != "" {
				t.Logf("%s: %s can't be known here: %s", o.ID, want.Code, why)
				continue
			}
			if !has(got, want) {
				t.Errorf("%s: %s x%d did not come out of the flood", o.ID, want.Code, want.Count)
				for _, v := range got {
					t.Logf("%s x%d %s: %s", v.Code, v.Count, v.Subject.Name, v.Story)
				}
				w.Tell(t, func(c *render.Connection) bool { return c.Netns == o.env.NS.Inode() })
			}
		}
	}
}

// has says whether the verdicts hold what was expected. One code can be several
// verdicts, where causes differ.
func has(got []*render.Verdict, want lab.Expectation) bool {
	var n uint64
	for _, v := range got {
		if v.Code == want.Code && about(v, want) {
			n += v.Count
		}
	}
	return n > 0 && (want.Count == 0 || n == uint64(want.Count))
}

// work sends SYNs and returns the processor time that each took this process,
// in seconds: user space, and the kernel's work on its behalf. It is the median
// of parts, since a busy machine takes its time out of one or the other.
func work(t *testing.T, ctx context.Context, f *lab.Flood, n int) float64 {
	t.Helper()
	const parts = 20
	usage := func() time.Duration {
		var u unix.Rusage
		require.NoError(t, unix.Getrusage(unix.RUSAGE_SELF, &u))
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	each := make([]float64, parts)
	for i := range each {
		before := usage()
		require.NoError(t, f.Send(ctx, n/parts))
		each[i] = (usage() - before).Seconds() / float64(n/parts)
	}
	slices.Sort(each)
	return each[parts/2]
}

// footprint is what this process holds, bytes.
type footprint struct{ heap, maps, rss uint64 }

func memory(t *testing.T) footprint {
	t.Helper()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	f := footprint{heap: m.HeapAlloc}
	fds, err := filepath.Glob("/proc/self/fdinfo/*")
	require.NoError(t, err)
	for _, name := range fds {
		// Of maps only; other descriptors may be gone by now.
		if fields(name)["map_type"] != "" {
			f.maps += bytes(fields(name)["memlock"])
		}
	}
	f.rss = bytes(strings.TrimSuffix(fields("/proc/self/status")["VmRSS"], " kB")) << 10
	require.NotZero(t, f.maps, "the maps' memory can't be read")
	return f
}

func bytes(s string) uint64 {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// fields reads "name: value" lines; none where the file is gone.
func fields(name string) map[string]string {
	m := map[string]string{}
	f, err := os.Open(name)
	if err != nil {
		return m
	}
	defer f.Close()
	for in := bufio.NewScanner(f); in.Scan(); {
		if k, v, ok := strings.Cut(in.Text(), ":"); ok {
			m[k] = strings.TrimSpace(v)
		}
	}
	return m
}
