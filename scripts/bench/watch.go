package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/lab"
)

// watcher is a `tcptrace watch` in a process of its own, as users run it.
type watcher struct {
	cmd     *exec.Cmd
	out     bytes.Buffer
	started time.Duration // until all hooks were attached and older sockets known
}

// summary is what bench needs of the closing line.
type summary struct {
	Type        string
	Connections uint64
	Events      uint64
	Lost        uint64
	Cost        struct {
		UserCPUPercent float64 `json:"user_cpu_percent"`
		RSSBytes       uint64  `json:"rss_bytes"`
	}
}

// build compiles the program once.
func (b *bench) build() error {
	if b.binary != "" {
		return nil
	}
	dir, err := os.MkdirTemp("", "tcptrace-bench")
	if err != nil {
		return err
	}
	b.cleanup = append(b.cleanup, func() { os.RemoveAll(dir) })
	bin := filepath.Join(dir, "tcptrace")
	cmd := exec.CommandContext(b.ctx, "go", "build", "-o", bin, "./cmd/tcptrace")
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("building tcptrace: %w", err)
	}
	b.binary = bin
	return nil
}

func (b *bench) watch(args ...string) (*watcher, error) {
	if err := b.build(); err != nil {
		return nil, err
	}
	ready := filepath.Join(filepath.Dir(b.binary), "ready")
	os.Remove(ready)
	w := &watcher{}
	w.cmd = exec.CommandContext(b.ctx, b.binary, append([]string{"watch", "-o", "json", "--attach", b.attach, "--ready-file", ready}, args...)...)
	w.cmd.Stdout = &w.out
	w.cmd.Stderr = os.Stderr
	begun := time.Now()
	if err := w.cmd.Start(); err != nil {
		return nil, err
	}
	for {
		if _, err := os.Stat(ready); err == nil {
			break
		}
		if time.Since(begun) > time.Minute {
			_ = w.cmd.Process.Kill()
			_ = w.cmd.Wait()
			return nil, errors.New("watch was not ready within a minute")
		}
		time.Sleep(time.Millisecond)
	}
	w.started = time.Since(begun)
	return w, nil
}

// rss returns the resident memory in bytes.
func (w *watcher) rss() (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", w.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for _, line := range strings.Split(string(b), "\n") {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "VmRSS:" {
			kb, err := strconv.ParseUint(f[1], 10, 64)
			return kb << 10, err
		}
	}
	return 0, errors.New("no VmRSS")
}

// end stops the watch and returns its summary.
func (w *watcher) end() (summary, error) {
	var s summary
	if err := w.cmd.Process.Signal(unix.SIGTERM); err != nil {
		return s, err
	}
	if err := w.cmd.Wait(); err != nil {
		return s, fmt.Errorf("watch: %w", err)
	}
	sc := bufio.NewScanner(&w.out)
	sc.Buffer(nil, 64<<20)
	for sc.Scan() {
		if bytes.Contains(sc.Bytes(), []byte(`"type":"summary"`)) {
			if err := json.Unmarshal(sc.Bytes(), &s); err != nil {
				return s, fmt.Errorf("reading the summary: %w", err)
			}
		}
	}
	if s.Type == "" {
		return s, errors.New("watch gave no summary")
	}
	return s, sc.Err()
}

// start measures how long it takes until all hooks are attached.
func (b *bench) start() error {
	var took []float64
	var rss uint64
	for range b.rounds {
		w, err := b.watch("--show", "verdicts")
		if err != nil {
			return err
		}
		if rss, err = w.rss(); err != nil {
			return err
		}
		took = append(took, w.started.Seconds())
		if _, err := w.end(); err != nil {
			return err
		}
	}
	fmt.Printf("start: %.0f%% of the 0.5 s allowed until ready; resident memory %.0f%% of the 60 MB allowed\n",
		100*mid(took)/0.5, 100*float64(rss)/60e6)
	return nil
}

// rate makes connections as fast as both processors can, with and without a
// watch beside.
func (b *bench) rate() error {
	ns, err := lab.NewNamespace()
	if err != nil {
		return err
	}
	defer ns.Close()
	n := 3 * b.connections
	var alone, traced []float64
	var s summary
	for range b.rounds {
		r, err := lab.Churn(b.ctx, ns, n, 100)
		if err != nil {
			return err
		}
		alone = append(alone, float64(n)/r.Elapsed.Seconds())
		w, err := b.watch("--show", "verdicts")
		if err != nil {
			return err
		}
		if r, err = lab.Churn(b.ctx, ns, n, 100); err != nil {
			return err
		}
		traced = append(traced, float64(n)/r.Elapsed.Seconds())
		one, err := w.end()
		if err != nil {
			return err
		}
		s.Lost += one.Lost
		s.Events += one.Events
		s.Connections += one.Connections
	}
	fmt.Printf("rate: %d connections a stretch on both processors; with watch beside %.2f of the rate without\n", n, mid(traced)/mid(alone))
	fmt.Printf("  events %d, connections %d, lost %d (limit 0)\n", s.Events, s.Connections, s.Lost)
	if s.Lost > 0 {
		return fmt.Errorf("%d events were lost", s.Lost)
	}
	return nil
}

// live holds many connections open at a time.
func (b *bench) live() error {
	ns, err := lab.NewNamespace()
	if err != nil {
		return err
	}
	defer ns.Close()
	w, err := b.watch("--show", "verdicts")
	if err != nil {
		return err
	}
	before, err := w.rss()
	if err != nil {
		return err
	}
	held, err := lab.HoldConnections(b.ctx, ns, 100_000)
	if err != nil {
		return err
	}
	time.Sleep(3 * time.Second)
	rss, err := w.rss()
	held.Close()
	s, eerr := w.end()
	if err := errors.Join(err, eerr); err != nil {
		return err
	}
	fmt.Printf("live: %d connections, both ends: %d tracked; resident memory %.0f%% of the 100 MB allowed (%.0f%% before), lost %d\n",
		held.Connections, 2*held.Connections, float64(rss)/1e6, float64(before)/1e6, s.Lost)
	return nil
}
