package lab

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	Main()
	// For participants under the race detector: by default each waits a second
	// before it ends, and a race that it finds is told to nobody.
	os.Setenv("GORACE", "atexit_sleep_ms=0 halt_on_error=1")
	os.Exit(m.Run())
}

// newEnv makes surroundings for a test. Without the privileges that needs, the
// test fails.
func newEnv(t *testing.T) *Env {
	t.Helper()
	env, err := NewEnv(Options{Logf: t.Logf})
	if err != nil {
		t.Fatalf("%v (these tests need root)", err)
	}
	t.Cleanup(func() {
		if err := env.Close(); err != nil {
			t.Error(err)
		}
	})
	return env
}

// faults are the counters that stay zero on healthy traffic.
var faults = []string{
	"TcpExt.ListenOverflows", "TcpExt.ListenDrops", "TcpExt.EmbryonicRsts",
	"TcpExt.TCPAbortOnData", "TcpExt.TCPAbortOnClose", "TcpExt.TCPAbortOnMemory",
	"TcpExt.TCPAbortOnTimeout", "TcpExt.TCPAbortOnLinger", "TcpExt.TCPAbortFailed",
	"TcpExt.TCPReqQFullDoCookies", "TcpExt.TCPReqQFullDrop", "TcpExt.SyncookiesSent",
	"TcpExt.TCPTimeouts", "TcpExt.TCPSynRetrans", "TcpExt.PAWSEstab",
	"Tcp.OutRsts", "Tcp.EstabResets", "Tcp.AttemptFails",
}

// timed are those that timers count: of what a case leaves standing, and where a
// process that stands for a host or for the way to one has an ACK wait.
var timed = []string{"TcpExt.TCPTimeouts", "TcpExt.TCPSynRetrans"}

// stop ends the participants and returns by how much the counters of all
// namespaces together grew since the beginning of Run.
func stop(t *testing.T, env *Env) Counters {
	t.Helper()
	env.stop()
	after, err := env.counters()
	if err != nil {
		t.Fatal(err)
	}
	grew := make(Counters)
	for inode, now := range after {
		for name, v := range now.Since(env.before[inode]) {
			grew[name] += v
		}
	}
	return grew
}

// overtaken reports whether RSTs beyond those that were expected can be of
// connections that ended well. With more than one CPU, loopback delivers an ACK
// after the FIN that was sent later, when the peer is in TIME_WAIT already: the
// peer sends its own ACK again, to a socket that is gone, and the listener
// answers that with RST (seen on 6.18, on a busy machine, when many connections
// end at once). No connection is reset, and there is one RST for each at most.
func overtaken(grew Counters, want uint64) bool {
	return grew["Tcp.OutRsts"] >= want && grew["Tcp.OutRsts"]-want <= grew["Tcp.ActiveOpens"]
}

// TestCases runs every case and holds what its participants know against what
// the kernel counted.
func TestCases(t *testing.T) {
	for _, c := range Cases() {
		// What changes the machine is for machines that are thrown away.
		if c.HostSetting != "" && os.Getenv("TCPTRACE_VM") == "" {
			t.Logf("case %s changes %s: only in a virtual machine", c.ID, c.HostSetting)
			continue
		}
		t.Run(c.ID, func(t *testing.T) {
			env := newEnv(t)
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
			defer cancel()
			if c.Prepare != nil {
				if err := c.Prepare(ctx, env); err != nil {
					t.Fatal(err)
				}
			}
			truth, err := c.Run(ctx, env)
			if err != nil {
				t.Fatal(err)
			}
			for name, want := range truth.Known {
				if got := truth.Grew(name); got != want {
					t.Errorf("%s grew by %d, the participants know of %d", name, got, want)
				}
			}
			for name, least := range truth.AtLeast {
				if got := truth.Grew(name); got < least {
					t.Errorf("%s grew by %d, the participants know of %d", name, got, least)
				}
			}
			if len(truth.Known) == 0 {
				t.Error("the case holds nothing against the kernel's counters")
			}
			// Nothing goes wrong any more once the case has been told.
			grew := stop(t, env)
			for _, name := range faults {
				want := truth.Grew(name)
				if grew[name] != want && !slices.Contains(timed, name) && !(name == "Tcp.OutRsts" && overtaken(grew, want)) {
					t.Errorf("at the end %s had grown by %d, to %d", name, grew[name]-want, grew[name])
				}
			}
			if c.Healthy() {
				for _, name := range faults {
					if c.NeedsTUN && slices.Contains(timed, name) {
						continue
					}
					if grew[name] != 0 && !(name == "Tcp.OutRsts" && overtaken(grew, 0)) {
						t.Errorf("healthy traffic made %s grow by %d", name, grew[name])
					}
				}
				// On a slow machine, two segments in flight may be probed for
				// loss before the other end had a chance to run.
				again, probes := grew["Tcp.RetransSegs"], grew["TcpExt.TCPLossProbes"]
				if c.NeedsTUN {
					probes += grew["TcpExt.TCPTimeouts"]
				}
				if again > probes {
					t.Errorf("healthy traffic had %d retransmissions, %d of them loss probes", again, probes)
				}
				if len(truth.Expect) != 0 || len(truth.Victims) != 0 {
					t.Errorf("a healthy twin has victims %v and expects %v", truth.Victims, truth.Expect)
				}
			}
			if t.Failed() {
				for inode, counters := range truth.Counters {
					for name, v := range counters {
						if v != 0 {
							t.Logf("%d %s %d", inode, name, v)
						}
					}
				}
			}
		})
	}
}

func TestFind(t *testing.T) {
	seen := make(map[string]bool)
	for _, c := range Cases() {
		if seen[c.ID] {
			t.Errorf("there are two cases %s", c.ID)
		}
		seen[c.ID] = true
		if c.Title == "" || c.Story == "" {
			t.Errorf("case %s does not say what it is", c.ID)
		}
		got, err := Find(strings.ToLower(c.ID))
		if err != nil || got.ID != c.ID {
			t.Errorf("Find(%q) = %q, %v", strings.ToLower(c.ID), got.ID, err)
		}
	}
	if c, err := Find("m"); err != nil || c.ID != "M-unread" {
		t.Errorf("Find(m) = %q, %v", c.ID, err)
	}
	if _, err := Find("no such case"); err == nil {
		t.Error("a case that does not exist was found")
	}
}

// TestChurn checks that its traffic is what it claims to be.
func TestChurn(t *testing.T) {
	const n = 2000
	env := newEnv(t)
	before, err := env.NS.Counters()
	if err != nil {
		t.Fatal(err)
	}
	got, err := Churn(context.Background(), env.NS, n, 100)
	if err != nil {
		t.Fatal(err)
	}
	after, err := env.NS.Counters()
	if err != nil {
		t.Fatal(err)
	}
	grew := after.Since(before)
	if grew["Tcp.ActiveOpens"] != n || grew["Tcp.PassiveOpens"] != n || got.Connections != n {
		t.Errorf("%d connections are %d active and %d passive opens", got.Connections, grew["Tcp.ActiveOpens"], grew["Tcp.PassiveOpens"])
	}
	for _, name := range faults {
		if grew[name] != 0 {
			t.Errorf("%s grew by %d", name, grew[name])
		}
	}
	t.Logf("%d connections in %s", got.Connections, got.Elapsed)
}

func TestHoldConnections(t *testing.T) {
	const n = 500
	env := newEnv(t)
	held, err := HoldConnections(context.Background(), env.NS, n)
	if err != nil {
		t.Fatal(err)
	}
	now, err := env.NS.Counters()
	if err != nil {
		t.Fatal(err)
	}
	if now["Tcp.CurrEstab"] != 2*n {
		t.Errorf("%d sockets are established, not %d", now["Tcp.CurrEstab"], 2*n)
	}
	if held.Connections != n || len(held.Holders) != len(held.processes) {
		t.Errorf("%d connections are held by %v", held.Connections, held.Holders)
	}
	held.Close()
	if now, err = env.NS.Counters(); err != nil {
		t.Fatal(err)
	}
	if now["Tcp.CurrEstab"] != 0 {
		t.Errorf("%d sockets are established after the end", now["Tcp.CurrEstab"])
	}
}

// TestNamespace checks that what is done in one namespace stays in it.
func TestNamespace(t *testing.T) {
	a, b := newEnv(t).NS, newEnv(t).NS
	if a.Inode() == b.Inode() || a.Inode() == 0 {
		t.Fatalf("two namespaces are numbered %d and %d", a.Inode(), b.Inode())
	}
	const name = "net.ipv4.tcp_syn_retries"
	if err := a.Sysctl(name, "3"); err != nil {
		t.Fatal(err)
	}
	if err := b.Sysctl(name, "4"); err != nil {
		t.Fatal(err)
	}
	for ns, want := range map[*Namespace]string{a: "3", b: "4"} {
		if got, err := ns.ReadSysctl(name); err != nil || got != want {
			t.Errorf("%s is %q, %v; set to %q", name, got, err, want)
		}
		var st unix.Stat_t
		if err := unix.Stat(ns.Path(), &st); err != nil || uint32(st.Ino) != ns.Inode() {
			t.Errorf("%s has inode %d, %v; not %d", ns.Path(), st.Ino, err, ns.Inode())
		}
	}
	if err := a.Sysctl("kernel.panic", "1"); err == nil {
		t.Error("a sysctl of the whole machine was accepted")
	}
	if err := a.Sysctl("net.no_such_thing", "1"); err == nil {
		t.Error("a sysctl that does not exist was accepted")
	}
}

// TestProcess checks what others rely on to name the owner of a socket.
func TestProcess(t *testing.T) {
	env := newEnv(t)
	p, err := env.start(env.NS, "fifteen-letters")
	if err != nil {
		t.Fatal(err)
	}
	// The answer shows that it has taken its name.
	if err := p.call(context.Background(), "states", []int{}, nil); err != nil {
		t.Fatal(err)
	}
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/comm", p.PID))
	if err != nil || len(threads) == 0 {
		t.Fatalf("threads %v, error %v", threads, err)
	}
	for _, path := range threads {
		comm, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.TrimSpace(string(comm)); got != p.Comm {
			t.Errorf("a thread is named %q, not %q", got, p.Comm)
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d/ns/net", p.PID), &st); err != nil || uint32(st.Ino) != env.NS.Inode() {
		t.Errorf("it runs in network namespace %d, %v; not %d", st.Ino, err, env.NS.Inode())
	}
	if err := p.call(context.Background(), "no such verb", nil, nil); err == nil {
		t.Error("an unknown verb was carried out")
	}
	p.Stop()
	if err := p.call(context.Background(), "states", []int{}, nil); err == nil {
		t.Error("a process that has ended answers")
	}
	if _, err := env.NS.Start("sixteen-letters-", time.Minute); err == nil {
		t.Error("a name longer than the kernel keeps was accepted")
	}
}

// TestProcessLimit checks that a process that nobody stops ends by itself.
func TestProcessLimit(t *testing.T) {
	env := newEnv(t)
	p, err := env.NS.Start("forgotten", 50*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Stop()
	select {
	case <-p.gone:
	case <-time.After(env.Patience):
		t.Error("it is still there")
	}
}

// TestProcessDiesWithStarter checks that nothing outlives the process that
// started it, however that ends: here, by its namespace's thread ending.
func TestProcessDiesWithStarter(t *testing.T) {
	ns, err := NewNamespace()
	if err != nil {
		t.Fatalf("%v (these tests need root)", err)
	}
	p, err := ns.Start("orphan", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Stop()
	if err := ns.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.gone:
	case <-time.After(time.Minute):
		t.Error("it outlived its starter")
	}
}

func TestCounters(t *testing.T) {
	path := filepath.Join(t.TempDir(), "snmp")
	text := "Tcp: MaxConn OutRsts CurrEstab\nTcp: -1 18446744073709551615 7\nUdp: NoPorts\nUdp: 3\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c := make(Counters)
	if err := c.readFile(path); err != nil {
		t.Fatal(err)
	}
	want := Counters{"Tcp.OutRsts": 1<<64 - 1, "Tcp.CurrEstab": 7, "Udp.NoPorts": 3}
	if !maps.Equal(c, want) {
		t.Errorf("read %v, not %v", c, want)
	}
	if got, want := c.Since(Counters{"Tcp.OutRsts": 1<<64 - 3}), (Counters{"Tcp.OutRsts": 2, "Udp.NoPorts": 3}); !maps.Equal(got, want) {
		t.Errorf("grew %v, not %v", got, want)
	}
	if err := os.WriteFile(path, []byte("Tcp: OutRsts\nTcp: 1 2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.readFile(path); err == nil {
		t.Error("names and values that do not match were read")
	}
}
