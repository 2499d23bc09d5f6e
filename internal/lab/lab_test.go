package lab

import (
	"context"
	"os"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	Main()
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
	"Tcp.OutRsts", "Tcp.EstabResets", "Tcp.AttemptFails", "Tcp.RetransSegs",
}

// TestCases runs every case and holds what its participants know against what
// the kernel counted.
func TestCases(t *testing.T) {
	for _, c := range Cases() {
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
			if c.Healthy() {
				for _, name := range faults {
					if got := truth.Grew(name); got != 0 {
						t.Errorf("healthy traffic made %s grow by %d", name, got)
					}
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
