package recorder

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/dump"
	"github.com/tcptrace/tcptrace/tracer/event"
)

const (
	second = int64(time.Second)
	epoch  = 1_700_000_000_000_000_000
)

// notices collects what a user is told.
type notices struct {
	mu   sync.Mutex
	list []string
}

func (n *notices) notify(one Notice) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.list = append(n.list, strings.TrimSpace(one.Text+"\n"+one.Hint))
}

func (n *notices) all() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return strings.Join(n.list, "\n")
}

func header() dump.Header {
	return dump.Header{Host: "h", Command: []string{"tcptrace", "record", "--addr", "10.0.0.1"}, Started: epoch, StartedBoot: 1,
		Filter: map[string][]string{"addr": {"10.0.0.1"}, "port": {"80"}}}
}

// run is a run that is recorded.
type run struct {
	t   testing.TB
	r   *Recorder
	now int64
	n   uint64 // events so far
	// asked counts snapshots that were asked for
	asked int
	err   error // of Tick
}

func begin(t testing.TB, o Options) *run {
	t.Helper()
	if o.free == nil {
		o.free = func(int) (uint64, uint64, error) { return 1 << 40, 1 << 40, nil }
	}
	r, err := Open(o)
	require.NoError(t, err)
	require.NoError(t, r.Begin(header()))
	s := &run{t: t, r: r, now: second}
	r.Clock(epoch - 1)
	r.Namespace(event.Namespace{Inode: 1, Name: "one", Known: true})
	r.Process(event.Process{PID: 7, Comm: "seven"})
	return s
}

// events tells of so many, which cannot be compressed well.
func (s *run) events(n int) {
	for range n {
		s.n++
		x := s.n * 0x9e3779b97f4a7c15
		s.r.Event(&event.Event{
			Time: s.now, Sock: x, Kind: event.KindState, Old: event.StateSynSent, New: event.StateEstablished, Netns: 1,
			Local:   netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(x >> 8), byte(x >> 16), byte(x >> 24)}), uint16(x>>32)),
			Remote:  netip.MustParseAddrPort("192.0.2.99:443"),
			Traffic: event.Traffic{BytesSent: s.n},
		})
	}
}

// tick lets a second pass.
func (s *run) tick() {
	s.now += second
	s.r.Advance(s.now)
	want, err := s.r.Tick(s.now)
	if err != nil {
		s.err = err
	}
	if want {
		s.asked++
		s.r.BeginSnapshot(1, s.now)
		s.r.Snapshot(&event.Event{Time: s.now, Sock: 3, Kind: event.KindSnapshot, New: event.StateListen, Netns: 1, Inventory: &event.Inventory{}}, 7, "seven")
		s.r.EndSnapshot(1, s.now)
	}
}

// settle waits until all is written that was told.
func (s *run) settle() {
	done := make(chan struct{})
	s.r.q.push(item{do: func() error { close(done); return nil }})
	for began := time.Now(); s.r.Err() == nil; {
		select {
		case <-done:
			return
		case <-time.After(10 * time.Millisecond):
			require.Less(s.t, time.Since(began), 2*time.Minute, "the writer hangs")
		}
	}
}

func (s *run) end() error {
	return s.r.End(dump.End{Reason: dump.EndDone, At: s.now, Summary: &dump.Summary{Duration: 5}})
}

// contents is what a reader finds in a dump.
type contents struct {
	header    dump.Header
	end       *dump.End
	damages   []dump.Damage
	events    []uint64 // BytesSent, which counts them
	times     []int64
	lost      uint64
	places    map[string]uint64 // the same by where
	spaces    int
	processes int
	rounds    int
	names     []string // of namespaces
	notes     []string // of audits
	text      strings.Builder
}

func (c *contents) Clock(int64)                           {}
func (c *contents) Process(event.Process)                 { c.processes++ }
func (c *contents) BeginSnapshot(uint32, int64)           {}
func (c *contents) Snapshot(*event.Event, uint32, string) {}
func (c *contents) EndSnapshot(uint32, int64)             { c.rounds++ }
func (c *contents) Advance(int64)                         {}
func (c *contents) Audit(a dump.Audit)                    { c.notes = append(c.notes, a.Notes...) }
func (c *contents) Namespace(ns event.Namespace) {
	c.spaces++
	c.names = append(c.names, ns.Name)
}
func (c *contents) Lost(_ int64, l event.Lost) {
	c.lost += l.Count
	c.places[l.Where] += l.Count
}
func (c *contents) Event(e *event.Event) {
	c.events = append(c.events, e.Traffic.BytesSent)
	c.times = append(c.times, e.Time)
	fmt.Fprintln(&c.text, e.Local, e.Remote)
}

func read(t testing.TB, path string) *contents {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	return readBytes(t, b)
}

func readBytes(t testing.TB, b []byte) *contents {
	t.Helper()
	r, err := dump.NewReader(bytes.NewReader(b))
	require.NoError(t, err)
	c := &contents{places: make(map[string]uint64)}
	for err == nil {
		err = r.Next(c)
	}
	require.ErrorIs(t, err, io.EOF)
	c.header, c.end = *r.Header(), r.End()
	c.damages, _ = r.Damages()
	return c
}

// whole requires that events come one after the other.
func whole(t testing.TB, events []uint64) {
	t.Helper()
	for i, n := range events {
		require.Equal(t, events[0]+uint64(i), n)
	}
}

func TestARecordingIsReadAsItWasTold(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.tcpt")
	s := begin(t, Options{Path: path})
	for range 3 {
		s.events(1000)
		s.tick()
	}
	// It can be read while it grows.
	s.settle()
	c := read(t, path)
	require.Len(t, c.events, 3000)
	require.Nil(t, c.end)
	require.Empty(t, c.damages)

	s.events(10)
	require.NoError(t, s.end())
	c = read(t, path)
	require.Len(t, c.events, 3010)
	whole(t, c.events)
	require.Zero(t, c.lost)
	require.Equal(t, dump.EndDone, c.end.Reason)
	require.EqualValues(t, 5, c.end.Summary.Duration)
	require.Len(t, c.header.Run, 16)
	require.Equal(t, header().Command, c.header.Command)
	st, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o600), st.Mode())
	require.Equal(t, st.Size(), s.r.Stats().Bytes)
	require.Equal(t, []string{path}, s.r.Stats().Files)
}

func TestStdoutIsADumpToo(t *testing.T) {
	in, out, err := os.Pipe()
	require.NoError(t, err)
	got := make(chan []byte)
	go func() { b, _ := io.ReadAll(in); got <- b }()
	s := begin(t, Options{Path: "-", Out: out})
	s.events(100)
	s.tick()
	require.NoError(t, s.end())
	require.NoError(t, out.Close(), "whoever opened it closes it")
	c := readBytes(t, <-got)
	require.Len(t, c.events, 100)
	require.Equal(t, dump.EndDone, c.end.Reason)
}

func TestAPipeWithoutAReaderEndsIt(t *testing.T) {
	in, out, err := os.Pipe()
	require.NoError(t, err)
	defer out.Close()
	s := begin(t, Options{Path: "-", Out: out})
	in.Close()
	s.events(100)
	s.tick()
	s.settle()
	s.tick()
	require.ErrorIs(t, s.err, syscall.EPIPE)
	require.NoError(t, s.end(), "it is told once")
}

func TestNothingIsReplacedUnlessForced(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.tcpt")
	require.NoError(t, os.WriteFile(path, []byte("precious"), 0o644))
	_, err := Open(Options{Path: path})
	require.ErrorIs(t, err, fs.ErrExist)
	require.Contains(t, Hint(err), "--force")
	_, err = Open(Options{Path: dir + "/"})
	require.ErrorContains(t, err, "directory")
	_, err = Open(Options{Path: filepath.Join(dir, "no", "a.tcpt")})
	require.Contains(t, Hint(err), "mkdir")
	_, err = Open(Options{Path: filepath.Join(dir, "a.tcpt", "b")})
	require.ErrorContains(t, err, "no directory")

	s := begin(t, Options{Path: path, Force: true})
	require.NoError(t, s.end())
	st, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o600), st.Mode(), "not that of the file it replaced")
	require.Equal(t, dump.EndDone, read(t, path).end.Reason)

	// A row of files does not mix with another.
	row := filepath.Join(dir, "r.tcpt")
	require.NoError(t, os.WriteFile(filepath.Join(dir, "r.0007.tcpt"), nil, 0o644))
	_, err = Open(Options{Path: row, MaxSize: MinSize})
	require.ErrorIs(t, err, fs.ErrExist)
	r, err := Open(Options{Path: row, MaxSize: MinSize, Force: true})
	require.NoError(t, err)
	r.Close()
}

func TestOpenMakesNothing(t *testing.T) {
	dir := t.TempDir()
	r, err := Open(Options{Path: filepath.Join(dir, "a.tcpt")})
	require.NoError(t, err)
	r.Close()
	names, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, names)
}

// sticky is a directory in which everybody can write.
func sticky(t testing.TB) string {
	dir := filepath.Join(t.TempDir(), "tmp")
	require.NoError(t, os.Mkdir(dir, 0o777))
	require.NoError(t, os.Chmod(dir, 0o777|fs.ModeSticky))
	return dir
}

func TestNoLinkIsFollowed(t *testing.T) {
	dir := sticky(t)
	victim := filepath.Join(t.TempDir(), "victim")
	require.NoError(t, os.WriteFile(victim, []byte("precious"), 0o600))
	path := filepath.Join(dir, "a.tcpt")
	require.NoError(t, os.Symlink(victim, path))
	for _, force := range []bool{false, true} {
		_, err := Open(Options{Path: path, Force: force})
		require.ErrorContains(t, err, "symbolic link")
	}
	// Also where it came after the look.
	require.NoError(t, os.Remove(path))
	r, err := Open(Options{Path: path})
	require.NoError(t, err)
	require.NoError(t, os.Symlink(victim, path))
	require.Error(t, r.Begin(header()))
	// And to nowhere: nothing is made there.
	nowhere := filepath.Join(dir, "b.tcpt")
	require.NoError(t, os.Symlink(filepath.Join(dir, "target"), nowhere))
	_, err = Open(Options{Path: nowhere, Force: true})
	require.ErrorContains(t, err, "symbolic link")
	require.NoFileExists(t, filepath.Join(dir, "target"))
	b, err := os.ReadFile(victim)
	require.NoError(t, err)
	require.Equal(t, "precious", string(b))
}

func TestPartsPassOverWhatWasPlanted(t *testing.T) {
	dir := sticky(t)
	victim := filepath.Join(t.TempDir(), "victim")
	require.NoError(t, os.WriteFile(victim, []byte("precious"), 0o600))
	s := begin(t, Options{Path: filepath.Join(dir, "a.tcpt"), MaxAge: time.Second, MaxFiles: 2})
	require.NoError(t, os.Symlink(victim, filepath.Join(dir, "a.0002.tcpt")))
	require.NoError(t, os.Mkdir(filepath.Join(dir, "a.0003.tcpt"), 0o755))
	for range 3 {
		s.events(10)
		s.tick()
		s.settle()
	}
	// The oldest that is there has been exchanged: what is there now stays.
	files := s.r.Stats().Files
	require.Len(t, files, 2)
	require.Equal(t, filepath.Join(dir, "a.0005.tcpt"), files[0])
	require.NoError(t, os.Remove(files[0]))
	require.NoError(t, os.Symlink(victim, files[0]))
	s.tick()
	require.NoError(t, s.end())
	target, err := os.Readlink(files[0])
	require.NoError(t, err)
	require.Equal(t, victim, target)
	b, err := os.ReadFile(victim)
	require.NoError(t, err)
	require.Equal(t, "precious", string(b))
}

func TestRotationBySize(t *testing.T) {
	dir := t.TempDir()
	s := begin(t, Options{Path: filepath.Join(dir, "a.tcpt"), MaxSize: MinSize})
	for range 20 {
		s.events(20_000)
		s.tick()
	}
	require.NoError(t, s.end())
	files := s.r.Stats().Files
	require.Greater(t, len(files), 3)
	require.Less(t, s.asked, len(files), "all sockets are not looked at for each of many parts")
	var all []uint64
	var sum int64
	for i, f := range files {
		require.Equal(t, filepath.Join(dir, fmt.Sprintf("a.%04d.tcpt", i+1)), f)
		st, err := os.Stat(f)
		require.NoError(t, err)
		require.LessOrEqual(t, st.Size(), int64(MinSize+MinSize/20), f)
		require.True(t, i == len(files)-1 || st.Size() > MinSize/3, "%s has %d bytes", f, st.Size())
		sum += st.Size()
		c := read(t, f)
		require.Equal(t, i, c.header.Part)
		require.Empty(t, c.damages)
		require.Zero(t, c.lost)
		require.Positive(t, c.spaces, "each part stands alone")
		require.Positive(t, c.processes)
		want := dump.EndRotated
		if i == len(files)-1 {
			want = dump.EndDone
		}
		require.Equal(t, want, c.end.Reason)
		require.Equal(t, read(t, files[0]).header.Run, c.header.Run)
		all = append(all, c.events...)
	}
	require.Len(t, all, int(s.n))
	whole(t, all)
	require.Equal(t, sum, s.r.Stats().Bytes)
}

func TestRotationByAgeKeepsTheNewest(t *testing.T) {
	dir := t.TempDir()
	s := begin(t, Options{Path: filepath.Join(dir, "a.tcpt"), MaxAge: 10 * time.Second, MaxFiles: 3})
	for range 75 {
		s.events(5)
		s.tick()
	}
	require.NoError(t, s.end())
	require.Equal(t, 7, s.asked, "each part has all sockets looked at")
	var names []string
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	require.Equal(t, []string{"a.0006.tcpt", "a.0007.tcpt", "a.0008.tcpt"}, names)
	require.Equal(t, 5, s.r.Stats().Removed)
	c := read(t, filepath.Join(dir, "a.0006.tcpt"))
	require.Equal(t, 5, c.header.Part)
	require.Len(t, c.events, 50)
	require.Equal(t, uint64(251), c.events[0])
	require.Equal(t, 1, c.rounds)
	require.Zero(t, c.lost, "what was before the first part at hand was never part of it")
}

func TestTheFloorOfFreeSpaceEndsIt(t *testing.T) {
	for _, optional := range []bool{false, true} {
		dir := t.TempDir()
		path := filepath.Join(dir, "a.tcpt")
		var left atomic.Uint64
		left.Store(1 << 30)
		var said notices
		s := begin(t, Options{Path: path, MinFree: 1 << 20, Optional: optional, Notify: said.notify,
			free: func(int) (uint64, uint64, error) { return left.Load(), 1 << 40, nil }})
		s.events(100)
		s.tick()
		s.settle()
		left.Store(1<<20 + 10)
		s.events(100)
		s.tick()
		s.settle()
		s.events(100)
		s.tick()
		require.NoError(t, s.end())
		var space *SpaceError
		if optional {
			require.NoError(t, s.err)
			require.ErrorAs(t, s.r.Err(), &space)
			require.Equal(t, 1, strings.Count(said.all(), "are to be left"), "it is told once: %s", said.all())
			require.Contains(t, said.all(), "lower --min-free")
		} else {
			require.ErrorAs(t, s.err, &space)
			require.Contains(t, Hint(s.err), "--min-free")
		}
		c := read(t, path)
		require.Len(t, c.events, 100)
		require.Equal(t, dump.EndSpace, c.end.Reason)
		require.Regexp(t, `^writing .*a.tcpt: the next [0-9.]+ KiB do not fit: 1.0 MiB are left on its file system, and 1.0 MiB are to be left; until then \d+ events could not be written$`, c.end.Text)
		stats := s.r.Stats()
		require.EqualValues(t, 300, stats.Events)
		require.EqualValues(t, 100, stats.Written)
		require.EqualValues(t, 200, stats.Failed)
		require.GreaterOrEqual(t, c.lost, uint64(100), "a reader is told of those that were known of")
		require.LessOrEqual(t, c.lost, uint64(200))
		require.Contains(t, c.end.Text, fmt.Sprintf("until then %d events", c.lost))
		require.Nil(t, c.end.Summary)
		require.Empty(t, c.damages)
	}
}

func TestTooLittleSpaceFromTheBeginning(t *testing.T) {
	dir := t.TempDir()
	r, err := Open(Options{Path: filepath.Join(dir, "a.tcpt"), MinFree: -1,
		free: func(int) (uint64, uint64, error) { return 40 << 20, 1 << 30, nil }})
	require.NoError(t, err)
	err = r.Begin(header())
	var space *SpaceError
	require.ErrorAs(t, err, &space)
	require.EqualValues(t, (1<<30)/20, space.Min, "5% of a small file system")
	require.NoError(t, r.End(dump.End{}), "as a run that did not begin ends it")
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, entries, "no empty dump is left behind")
}

// TestAFullDisk fills a small file system: it needs root.
func TestAFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test mounts a file system, for which it needs root")
	}
	dir := t.TempDir()
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=512k"))
	defer unix.Unmount(dir, unix.MNT_DETACH)
	path := filepath.Join(dir, "a.tcpt")
	s := begin(t, Options{Path: path, free: free})
	for range 50 {
		s.events(5000)
		s.tick()
		s.settle()
	}
	require.ErrorIs(t, s.err, syscall.ENOSPC)
	require.Contains(t, Hint(s.err), "--min-free")
	require.NoError(t, s.end())
	c := read(t, path)
	require.Empty(t, c.damages, "no half frame is left behind")
	require.NotEmpty(t, c.events)
	whole(t, c.events)
	require.Equal(t, dump.EndError, c.end.Reason)
	require.Contains(t, c.end.Text, "no space left on device")
	stats := s.r.Stats()
	require.EqualValues(t, s.n, stats.Events)
	require.EqualValues(t, len(c.events), stats.Written)
	require.EqualValues(t, s.n-uint64(len(c.events)), stats.Failed)
	require.Contains(t, c.end.Text, "could not be written")
	require.Positive(t, c.lost)
	require.LessOrEqual(t, c.lost, stats.Failed)
}

func TestADiskThatHangsHoldsNobodyUp(t *testing.T) {
	// A pipe that nobody reads.
	in, out, err := os.Pipe()
	require.NoError(t, err)
	defer in.Close()
	var said notices
	s := begin(t, Options{Path: "-", Out: out, queue: 1 << 20, Notify: said.notify})
	// Whoever waited for it would do so for ever: nobody reads yet.
	for range 20 {
		s.events(20_000) // the queue holds one second, or two
		s.tick()
	}
	dropped := s.r.Stats().Dropped
	require.Greater(t, dropped, uint64(200_000))
	require.Equal(t, 1, strings.Count(said.all(), "too slow"))
	s.r.q.mu.Lock()
	require.Less(t, s.r.q.bytes, 2<<20)
	s.r.q.mu.Unlock()

	// The disk comes back.
	got := make(chan []byte)
	go func() { b, _ := io.ReadAll(in); got <- b }()
	s.settle()
	s.tick()
	s.events(10)
	s.tick()
	require.NoError(t, s.end())
	require.NoError(t, out.Close())
	c := readBytes(t, <-got)
	require.Equal(t, dropped, s.r.Stats().Dropped)
	require.Equal(t, dropped, c.lost, "a reader is told how many are missing")
	require.Equal(t, s.n, uint64(len(c.events))+c.lost)
	require.EqualValues(t, len(c.events), s.r.Stats().Written)
	require.Zero(t, s.r.Stats().Failed)
	require.GreaterOrEqual(t, c.spaces, 2, "what was told in frames that are missing is told again")
	require.Equal(t, dump.EndDone, c.end.Reason)
}

// TestLossesInFramesThatFindNoRoomAreToldAgain, once there is room, or at the
// end.
func TestLossesInFramesThatFindNoRoomAreToldAgain(t *testing.T) {
	for _, atOnce := range []bool{false, true} {
		s := begin(t, Options{Path: filepath.Join(t.TempDir(), "a.tcpt"), queue: 1 << 20})
		block := make(chan struct{})
		s.r.q.push(item{do: func() error { <-block; return nil }})
		told := make(map[string]uint64)
		for i := range 10 {
			s.events(20_000)
			for _, l := range []event.Lost{{Where: "ring", Count: 1000}, {Where: "missed x", Count: uint64(i)}} {
				s.r.Lost(s.now, l)
				told[l.Where] += l.Count
			}
			s.tick()
		}
		require.NotZero(t, s.r.Stats().Dropped)
		if atOnce {
			s.r.q.push(item{do: func() error { return nil }, holds: 1 << 20}) // not even for a small one
			go func() {
				for closed := false; !closed; time.Sleep(time.Millisecond) {
					s.r.q.mu.Lock()
					closed = s.r.q.closed
					s.r.q.mu.Unlock()
				}
				close(block)
			}()
		} else {
			close(block)
			s.settle()
			s.tick()
			s.tick()
		}
		require.NoError(t, s.end())
		c := read(t, s.r.Stats().Files[0])
		told[dump.WhereDump] = s.r.Stats().Dropped
		require.Equal(t, told, c.places)
		require.Equal(t, s.n, uint64(len(c.events))+c.places[dump.WhereDump])
	}
}

// TestKilled kills a recording with SIGKILL and reads what is there.
func TestKilled(t *testing.T) {
	if path := os.Getenv("RECORDER_TEST_VICTIM"); path != "" {
		s := begin(t, Options{Path: path})
		for {
			s.events(100)
			time.Sleep(10 * time.Millisecond)
			if s.n%1000 == 0 {
				s.tick()
				s.settle() // or a slow machine would have it in the queue
				fmt.Println(s.n)
			}
		}
	}
	path := filepath.Join(t.TempDir(), "a.tcpt")
	cmd := exec.Command(os.Args[0], "-test.run=^TestKilled$")
	cmd.Env = append(os.Environ(), "RECORDER_TEST_VICTIM="+path)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	var lines []string
	buf := make([]byte, 64)
	for len(lines) < 20 {
		n, err := out.Read(buf)
		require.NoError(t, err)
		lines = append(lines, strings.Fields(string(buf[:n]))...)
	}
	require.NoError(t, cmd.Process.Kill())
	_ = cmd.Wait()
	told, err := strconv.Atoi(lines[len(lines)-1])
	require.NoError(t, err)
	c := read(t, path)
	require.Nil(t, c.end, "it does not pretend to be whole")
	require.GreaterOrEqual(t, len(c.events), told-1000, "no more than the last second is lost")
	whole(t, c.events)
}

func TestARedactedRecordingNamesNobody(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.tcpt")
	p, err := dump.NewPseudonyms([]byte("0123456789abcdef"))
	require.NoError(t, err)
	s := begin(t, Options{Path: path, Pseudonyms: p})
	s.events(100)
	s.tick()
	require.NoError(t, s.end())
	c := read(t, path)
	require.Len(t, c.events, 100)
	require.True(t, c.header.Redacted)
	require.Empty(t, c.header.Command)
	require.Equal(t, map[string][]string{"port": {"80"}}, c.header.Filter)
	require.NotContains(t, c.text.String(), "192.0.2.99")
	require.Contains(t, c.text.String(), p.Addr(netip.MustParseAddr("192.0.2.99")).String()+":443")
}

func TestARedactedRecordingHasNoAddressInANameOrANote(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "10.0.0.1")
	require.NoError(t, os.Mkdir(dir, 0o755))
	path := filepath.Join(dir, "a.tcpt")
	p, err := dump.NewPseudonyms([]byte("0123456789abcdef"))
	require.NoError(t, err)
	var left atomic.Uint64
	left.Store(1 << 30)
	s := begin(t, Options{Path: path, Pseudonyms: p, MinFree: 1, free: func(int) (uint64, uint64, error) { return left.Load(), 1 << 40, nil }})
	s.r.Namespace(event.Namespace{Inode: 2, Name: "pod-10-0-0-1"})
	audit := dump.Audit{Notes: []string{"network namespace 10.0.0.1 could not be compared"}}
	s.r.Audit(audit)
	require.Equal(t, "network namespace 10.0.0.1 could not be compared", audit.Notes[0], "what is shown live stays")
	s.tick()
	s.settle()
	require.NoError(t, s.r.End(dump.End{Reason: dump.EndError, Text: "setting 10.0.0.1 failed", Summary: &dump.Summary{Audit: audit}}))
	c := read(t, path)
	fake := p.Addr(netip.MustParseAddr("10.0.0.1")).String()
	require.Equal(t, []string{"one", "pod-" + strings.ReplaceAll(fake, ".", "-")}, c.names)
	require.Equal(t, []string{"network namespace " + fake + " could not be compared"}, c.notes)
	require.Equal(t, c.notes, c.end.Summary.Audit.Notes)
	require.Equal(t, "setting "+fake+" failed", c.end.Text)

	// Nor the directory, where it fails.
	s = begin(t, Options{Path: path, Force: true, Pseudonyms: p, MinFree: 1, free: func(int) (uint64, uint64, error) { return left.Load(), 1 << 40, nil }})
	s.settle()
	left.Store(0)
	s.events(1)
	s.tick()
	s.settle()
	require.ErrorContains(t, s.end(), dir, "who records is told")
	text := read(t, path).end.Text
	require.Regexp(t, "^writing a.tcpt: ", text)
	require.NotContains(t, text, "10.0.0.1")
}

func TestHiding(t *testing.T) {
	p, err := dump.NewPseudonyms([]byte("0123456789abcdef"))
	require.NoError(t, err)
	four := p.Addr(netip.MustParseAddr("10.1.2.3")).String()
	dashed := strings.ReplaceAll(four, ".", "-")
	six := p.Addr(netip.MustParseAddr("2001:db8::1")).String()
	for in, want := range map[string]string{
		"":                                      "",
		"blue":                                  "blue",
		"127.0.0.1":                             "127.0.0.1", // nobody's
		"10.1.2.3":                              four,
		"web-10.1.2.3-a":                        "web-" + four + "-a",
		"10.1.2.3/24, 10.1.2.3":                 four + "/24, " + four,
		"ip-10-1-2-3":                           "ip-" + dashed,
		"10_1_2_3":                              strings.ReplaceAll(four, ".", "_"),
		"1-10.1.2.3":                            "1-" + four,
		"7.10.1.2.3":                            "7." + four,
		"10.1.2.3-10.1.2.3":                     four + "-" + four,
		"10.1.2.3.10.1.2.3":                     four + "." + four,
		"10.1.2":                                "10.1.2",
		"10.1.2.300":                            "10.1.2.300",
		"10.1-2.3":                              "10.1-2.3",
		"cni-6f1c2a9e-1234-5678-9012-345678":    "cni-6f1c2a9e-1234-5678-9012-345678",
		"2001:db8::1":                           six,
		"open /run/netns/2001:db8::1: not here": "open /run/netns/" + six + ": not here",
		"ns:2001:db8::1":                        "ns:" + six,
		"::1":                                   "::1",
		"12:34:56":                              "12:34:56",
		"a::b::c":                               "a::b::c",
	} {
		require.Equal(t, want, hide(p, in), in)
	}
}

// flightRun begins a flight recorder.
func flightRun(t testing.TB, dir string, o Options, w Window) (*run, *notices) {
	said := &notices{}
	o.Path, o.Notify, o.Window = filepath.Join(dir, "f.tcpt"), said.notify, &w
	return begin(t, o), said
}

func dumps(t testing.TB, dir string) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(dir, "*.tcpt"))
	require.NoError(t, err)
	return list
}

func both(t *testing.T, test func(t *testing.T, dir string, o Options, w Window)) {
	t.Run("memory", func(t *testing.T) { test(t, t.TempDir(), Options{}, Window{MaxMemory: 64 << 20}) })
	t.Run("spool", func(t *testing.T) {
		test(t, t.TempDir(), Options{MaxSize: 64 << 20}, Window{Spool: t.TempDir()})
	})
}

func TestAWindowIsWhatHappenedLast(t *testing.T) {
	both(t, func(t *testing.T, dir string, o Options, w Window) {
		w.Last = 80 * time.Second
		s, _ := flightRun(t, dir, o, w)
		for range 300 {
			s.events(10)
			s.tick()
		}
		require.Empty(t, dumps(t, dir), "nothing is written before there is a reason")
		if w.Spool != "" {
			entries, err := os.ReadDir(w.Spool)
			require.NoError(t, err)
			require.Empty(t, entries, "the spool has no names")
		}
		require.InDelta(t, 300/10, s.asked, 3, "a segment is an eighth of the window")
		s.r.Dump()
		s.tick()
		s.settle()
		files := dumps(t, dir)
		require.Len(t, files, 1)
		require.Regexp(t, `/f\.20231114T221\d{3}Z\.signal\.tcpt$`, files[0])
		c := read(t, files[0])
		require.Empty(t, c.damages)
		require.Zero(t, c.lost)
		whole(t, c.events)
		require.Equal(t, s.n, c.events[len(c.events)-1])
		require.GreaterOrEqual(t, len(c.events), 800)
		require.LessOrEqual(t, len(c.events), 910)
		require.Equal(t, "signal", c.header.Window.Trigger)
		require.Equal(t, 80*time.Second, c.header.Window.Asked)
		require.Equal(t, s.n-uint64(len(c.events)), c.header.Window.Dropped)
		require.Equal(t, c.header.StartedBoot+epoch-1, c.header.Started)
		require.LessOrEqual(t, c.header.StartedBoot, c.times[0])
		require.Equal(t, epoch-1+s.now, c.header.Window.At)
		require.Positive(t, c.spaces)
		require.Positive(t, c.rounds)
		require.Equal(t, dump.EndWindow, c.end.Reason)

		s.events(1)
		require.NoError(t, s.end())
		files = dumps(t, dir)
		require.Len(t, files, 2)
		last := read(t, files[0])
		if last.header.Window.Trigger != "exit" {
			last = read(t, files[1])
		}
		require.Equal(t, "exit", last.header.Window.Trigger)
		require.NotEqual(t, c.header.Run, last.header.Run, "each is a recording of its own")
		require.Equal(t, dump.EndDone, last.end.Reason)
		require.NotNil(t, last.end.Summary)
		st, err := os.Stat(files[1])
		require.NoError(t, err)
		require.Equal(t, fs.FileMode(0o600), st.Mode())
	})
}

func TestATriggerKeepsWhatLedToItAndWhatFollows(t *testing.T) {
	both(t, func(t *testing.T, dir string, o Options, w Window) {
		w.Last, w.After, w.Interval = 40*time.Second, 30*time.Second, time.Minute
		s, said := flightRun(t, dir, o, w)
		for range 100 {
			s.events(1)
			s.tick()
		}
		s.r.Trigger("reset-sent")
		at := s.now
		for range 29 {
			s.events(1)
			s.tick()
		}
		s.settle()
		require.Empty(t, dumps(t, dir))
		require.Contains(t, said.all(), "reset-sent")
		s.tick()
		s.settle()
		files := dumps(t, dir)
		require.Len(t, files, 1)
		require.Contains(t, files[0], ".reset-sent.tcpt")
		c := read(t, files[0])
		require.LessOrEqual(t, c.times[0], at-40*second, "the window before the trigger")
		require.GreaterOrEqual(t, c.times[0], at-47*second)
		require.GreaterOrEqual(t, c.times[len(c.times)-1], at+28*second, "and what follows")
		require.Equal(t, epoch-1+at, c.header.Window.At)
		require.NoError(t, s.end())
	})
}

func TestAStormOfTriggersIsThrottled(t *testing.T) {
	dir := t.TempDir()
	s, said := flightRun(t, dir, Options{MaxFiles: 3}, Window{Last: 10 * time.Second, After: 5 * time.Second, Interval: time.Minute, MaxMemory: 8 << 20})
	for range 300 {
		s.events(1)
		for range 10 {
			s.r.Trigger("connect-refused")
		}
		s.r.Trigger("reset-sent")
		s.tick()
		s.settle()
	}
	files := dumps(t, dir)
	require.Len(t, files, 3)
	require.Equal(t, 1, strings.Count(said.all(), "--max-files"), said.all())
	require.Contains(t, said.all(), "--trigger-interval")
	first, second := read(t, files[0]), read(t, files[1])
	require.Contains(t, first.end.Text, "also triggered by connect-refused")
	require.Contains(t, second.end.Text, "without a file: connect-refused (")
	// Triggers that keep coming put the end off, but not for ever.
	require.LessOrEqual(t, first.end.At-(first.header.Window.At-(epoch-1)), 4*5*int64(time.Second)+int64(time.Second))
	require.GreaterOrEqual(t, second.header.Window.At-first.header.Window.At, int64(time.Minute))
	require.NoError(t, s.end())
	require.Len(t, dumps(t, dir), 3, "those of the beginning tell most")
	require.Equal(t, files, dumps(t, dir))
	require.Equal(t, 3, len(s.r.Stats().Files))
	require.Contains(t, said.all(), "exit: nothing is written: 3 files were, as many as --max-files 3 allows")
}

func TestNoWindowIsRefusedSilently(t *testing.T) {
	dir := t.TempDir()
	s, said := flightRun(t, dir, Options{MaxFiles: 1}, Window{Last: 10 * time.Second, After: 5 * time.Second, MaxMemory: 8 << 20})
	usr1 := func() {
		s.events(1)
		s.r.Dump()
		s.tick()
		s.settle()
	}
	usr1()
	require.Len(t, dumps(t, dir), 1)
	require.NotContains(t, said.all(), "nothing is written")
	for i := range 3 {
		usr1()
		require.Equal(t, i+1, strings.Count(said.all(), "signal: nothing is written: 1 file was, as many as --max-files 1 allows\n"), said.all())
	}
	for range 3 {
		s.r.Trigger("reset-sent")
		s.tick()
	}
	require.Equal(t, 1, strings.Count(said.all(), "reset-sent"), said.all())
	require.Contains(t, said.all(), "nor for further triggers")
	require.NoError(t, s.end())
	require.Equal(t, 1, strings.Count(said.all(), "exit: nothing is written"))
	require.Len(t, dumps(t, dir), 1)
}

func TestATriggerThatWaitsIsWrittenAtTheEnd(t *testing.T) {
	dir := t.TempDir()
	s, _ := flightRun(t, dir, Options{}, Window{Last: 10 * time.Second, After: time.Minute, MaxMemory: 8 << 20})
	s.events(5)
	s.tick()
	s.r.Trigger("reset-sent")
	s.tick()
	require.NoError(t, s.end())
	files := dumps(t, dir)
	require.Len(t, files, 1, "one file for both")
	c := read(t, files[0])
	require.Equal(t, "reset-sent", c.header.Window.Trigger)
	require.NotNil(t, c.end.Summary)
}

func TestAWindowKeepsWithinItsBound(t *testing.T) {
	test := func(t *testing.T, o Options, w Window) {
		dir := t.TempDir()
		w.Last = 10 * time.Minute
		s, said := flightRun(t, dir, o, w)
		for range 40 {
			s.events(20_000)
			s.tick()
			s.settle()
			require.LessOrEqual(t, s.r.Stats().Held, int64(4<<20))
		}
		require.Equal(t, 1, strings.Count(said.all(), "does not fit"), said.all())
		require.Greater(t, s.r.Stats().Held, int64(2<<20))
		require.NoError(t, s.end())
		c := read(t, dumps(t, dir)[0])
		require.NotEmpty(t, c.events)
		whole(t, c.events)
		require.Zero(t, c.lost)
		require.Equal(t, s.n, c.events[len(c.events)-1])
		require.Equal(t, s.n-uint64(len(c.events)), c.header.Window.Dropped)
		require.Less(t, c.header.Window.At-c.header.Started, int64(time.Minute), "it is shorter than was asked for")
	}
	t.Run("memory", func(t *testing.T) { test(t, Options{}, Window{MaxMemory: 4 << 20}) })
	t.Run("spool", func(t *testing.T) { test(t, Options{MaxSize: 4 << 20}, Window{Spool: t.TempDir()}) })
}

func TestAWindowThatOneSecondOverflowsHasAHole(t *testing.T) {
	dir := t.TempDir()
	s, said := flightRun(t, dir, Options{}, Window{Last: time.Minute, MaxMemory: MinSize})
	s.r.BeginSnapshot(1, s.now) // in which no segment begins
	s.events(300_000)
	s.r.EndSnapshot(1, s.now)
	s.settle()
	require.LessOrEqual(t, s.r.Stats().Held, int64(MinSize))
	s.tick()
	s.events(5)
	require.NoError(t, s.end())
	c := read(t, dumps(t, dir)[0])
	require.Equal(t, s.n, uint64(len(c.events))+c.lost+c.header.Window.Dropped)
	require.Equal(t, s.n, c.events[len(c.events)-1])
	require.Equal(t, 1, strings.Count(said.all(), "does not fit"))
}

func TestTheSpoolLeavesSpace(t *testing.T) {
	dir, spool := t.TempDir(), t.TempDir()
	var left atomic.Uint64
	left.Store(1 << 30)
	s, said := flightRun(t, dir, Options{MaxSize: 64 << 20, MinFree: 1 << 20, free: func(fd int) (uint64, uint64, error) {
		return left.Load(), 1 << 40, nil
	}}, Window{Last: time.Minute, Spool: spool})
	for range 30 {
		s.events(100)
		s.tick()
	}
	s.settle()
	left.Store(0)
	s.events(100)
	s.tick()
	s.events(100)
	s.tick()
	s.settle()
	require.NoError(t, s.err, "the run goes on")
	require.Contains(t, said.all(), "the window has a hole")
	// A trigger finds no room for its file; the next does.
	s.r.Dump()
	s.tick()
	s.settle()
	require.Contains(t, said.all(), "the window was not written")
	require.Empty(t, dumps(t, dir))
	left.Store(1 << 30)
	s.events(100)
	s.r.Dump()
	s.tick()
	s.settle()
	require.Len(t, dumps(t, dir), 1)
	c := read(t, dumps(t, dir)[0])
	require.Equal(t, s.n, c.events[len(c.events)-1])
	require.Equal(t, s.n, uint64(len(c.events))+c.lost+c.header.Window.Dropped)
	require.NoError(t, s.end())
}

func TestNamesOfWindowsArePassedOverToo(t *testing.T) {
	dir := sticky(t)
	victim := filepath.Join(t.TempDir(), "victim")
	require.NoError(t, os.WriteFile(victim, []byte("precious"), 0o600))
	s, _ := flightRun(t, dir, Options{}, Window{Last: time.Minute, MaxMemory: 8 << 20})
	for at := range 5 {
		name := time.Unix(0, epoch+s.now+int64(at)*second).UTC().Format("f.20060102T150405Z.signal.tcpt")
		require.NoError(t, os.Symlink(victim, filepath.Join(dir, name)))
	}
	s.r.Dump()
	s.tick()
	s.settle()
	require.Len(t, s.r.Stats().Files, 1)
	require.Contains(t, s.r.Stats().Files[0], ".signal-2.tcpt")
	b, err := os.ReadFile(victim)
	require.NoError(t, err)
	require.Equal(t, "precious", string(b))
	require.NoError(t, s.end())
}

func TestQueue(t *testing.T) {
	q := newQueue(100)
	frame := func(n int) item { return item{frame: &dump.Frame{Raw: make([]byte, n)}} }
	require.True(t, q.push(frame(200)), "one is always taken")
	require.False(t, q.push(frame(1)))
	require.True(t, q.push(item{do: func() error { return nil }}))
	i, ok, _ := q.pop()
	require.True(t, ok)
	require.False(t, q.push(frame(1)), "the writer still has it")
	q.done(i)
	require.True(t, q.push(frame(100)))
	require.False(t, q.push(frame(1)))
	q.close()
	for _, want := range []bool{true, true, false} {
		_, ok, closed := q.pop()
		require.Equal(t, want, ok)
		require.Equal(t, !want, closed)
	}
}

func TestHint(t *testing.T) {
	require.Empty(t, Hint(errors.New("x")))
	require.NotEmpty(t, Hint(fmt.Errorf("x: %w", syscall.EDQUOT)))
	require.True(t, slices.Contains(strings.Fields(Hint(&SpaceError{})), "--min-free"))
}

// TestABlockedDiskKeepsNoPartsWaiting: each part that waits to be begun repeats
// what was told of all processes.
func TestABlockedDiskKeepsNoPartsWaiting(t *testing.T) {
	var blocked atomic.Bool
	release := make(chan struct{})
	free := func(int) (uint64, uint64, error) {
		if blocked.Load() {
			<-release
		}
		return 1 << 40, 1 << 40, nil
	}
	const limit = 4 << 20
	s := begin(t, Options{Path: filepath.Join(t.TempDir(), "a.tcpt"), MaxAge: time.Second, MinFree: 1, free: free, queue: limit})
	for i := range 2000 {
		s.r.Process(event.Process{PID: uint32(i + 100), Comm: "java", Cgroup: strings.Repeat("x", 200)})
	}
	s.settle()
	blocked.Store(true)
	for range 100 {
		s.tick()
	}
	s.r.q.mu.Lock()
	held, parts := s.r.q.bytes, 0
	for _, i := range s.r.q.items {
		if i.do != nil {
			parts++
		}
	}
	s.r.q.mu.Unlock()
	require.Less(t, held, limit)
	require.Less(t, parts, 10)
	blocked.Store(false)
	close(release)
	require.NoError(t, s.end())
}

func TestATriggerAfterTheEndPromisesNothing(t *testing.T) {
	both(t, func(t *testing.T, dir string, o Options, w Window) {
		w.After = 30 * time.Second
		s, said := flightRun(t, dir, o, w)
		s.events(10)
		s.tick()
		require.NoError(t, s.end())
		was := said.all()
		s.r.Trigger("reset-sent")
		require.Equal(t, was, said.all())
	})
}

// TestForceLosesNothingForNothing: what is there goes when there is something
// in its place, and not before.
func TestForceLosesNothingForNothing(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.tcpt")
	require.NoError(t, os.WriteFile(path, []byte("precious"), 0o600))
	r, err := Open(Options{Path: path, Force: true, MinFree: 1 << 62})
	require.NoError(t, err)
	require.Error(t, r.Begin(header()))
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "precious", string(b))

	s := begin(t, Options{Path: path, Force: true})
	s.events(10)
	require.NoError(t, s.end())
	require.Len(t, read(t, path).events, 10)
	names, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, names, 1, "nothing else is left behind")
}
