package pipeline

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/internal/lab"
	"github.com/tcptrace/tcptrace/internal/render"
	"github.com/tcptrace/tcptrace/tracer"
)

func namespace(t *testing.T) *lab.Namespace {
	t.Helper()
	ns, err := lab.NewNamespace()
	if err != nil {
		t.Fatalf("making a network namespace (this test needs root): %v", err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

// refuse has n connections refused in a namespace.
func refuse(ns *lab.Namespace, n int) error {
	return ns.Do(func() error {
		for range n {
			if c, err := net.DialTimeout("tcp4", "127.0.0.1:9", 10*time.Second); err == nil {
				c.Close()
				return errors.New("somebody listens on port 9 of a new namespace")
			}
		}
		return nil
	})
}

// TestKernel runs on the running kernel: a namespace that exists before, with
// a listener, and one that is made while it runs. The kernel's counters must
// be explained in both.
func TestKernel(t *testing.T) {
	before := namespace(t)
	if err := refuse(before, 2); err != nil { // not counted: it was before
		t.Fatal(err)
	}
	var listener net.Listener
	err := before.Do(func() (err error) {
		listener, err = net.Listen("tcp4", "127.0.0.1:7070")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()

	tr, err := tracer.Open(context.Background(), tracer.Options{Attach: os.Getenv("TCPTRACE_ATTACH")})
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var out bytes.Buffer
	var after *lab.Namespace
	done := make(chan error, 1)
	sum, err := Run(ctx, Config{
		Options: Options{Out: render.NewJSON(&out), Show: Show{Connections: true, All: true, Verdicts: true}},
		Tracer:  tr,
		Ready: func() error {
			after = namespace(t)
			go func() {
				defer cancel()
				err := errors.Join(refuse(before, 5), refuse(after, 3))
				if err == nil {
					err = talk(before, listener)
				}
				time.Sleep(300 * time.Millisecond)
				done <- err
			}()
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for inode, want := range map[uint32]uint64{before.Inode(): 5, after.Inode(): 3} {
		for _, counter := range []string{"OutRsts", "AttemptFails"} {
			found := false
			for _, a := range sum.Audit {
				if a.Netns != inode || a.Counter != counter {
					continue
				}
				found = true
				if a.Kernel != want || a.Exact && a.Explained != want {
					t.Errorf("netns %d: %+v, want %d", inode, a, want)
				}
			}
			if !found {
				t.Errorf("netns %d: %s is not in the audit: %+v", inode, counter, sum.Audit)
			}
		}
		var lines []string
		for line := range strings.Lines(out.String()) {
			if strings.Contains(line, fmt.Sprintf(`"netns":%d,`, inode)) && strings.Contains(line, `"type":"connection"`) && strings.Contains(line, `:9"`) {
				lines = append(lines, line)
			}
		}
		if len(lines) != int(want) {
			t.Errorf("netns %d: %d connections to port 9, want %d", inode, len(lines), want)
		}
	}
	// Both ends of the conversation, the older listener's owner known.
	var server string
	for line := range strings.Lines(out.String()) {
		if strings.Contains(line, `"role":"server"`) && strings.Contains(line, `"listener":"127.0.0.1:7070"`) && strings.Contains(line, fmt.Sprintf(`"netns":%d,`, before.Inode())) {
			server = line
		}
	}
	if !strings.Contains(server, fmt.Sprintf(`"pid":%d,`, os.Getpid())) || !strings.Contains(server, `"bytes_received":4`) {
		t.Errorf("the server's end: %q, want this process (%d) and 4 bytes", server, os.Getpid())
	}
	if sum.Cost.RSSBytes == 0 || sum.Cost.BPFKnown && sum.Cost.BPFNanosPerEvent <= 0 {
		t.Errorf("cost: %+v", sum.Cost)
	}
}

// talk has one connection that goes well.
func talk(ns *lab.Namespace, l net.Listener) error {
	served := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			var b [8]byte
			_, err = c.Read(b[:])
			_, werr := c.Write([]byte("pong"))
			err = errors.Join(err, werr, c.Close())
		}
		served <- err
	}()
	err := ns.Do(func() error {
		c, err := net.DialTimeout("tcp4", l.Addr().String(), 10*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err := c.Write([]byte("ping")); err != nil {
			return err
		}
		_, err = c.Read(make([]byte, 8))
		return err
	})
	return errors.Join(err, <-served)
}
