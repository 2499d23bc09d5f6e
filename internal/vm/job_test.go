package vm

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/internal/vm/frame"
)

// fakeMachine puts a script in the emulator's place. It runs body with the
// number of the start in $n, the console as descriptor 3 and the frames as 4.
func fakeMachine(t *testing.T, body string) Job {
	t.Helper()
	dir := t.TempDir()
	count := filepath.Join(dir, "count")
	script := "#!/bin/sh\necho x >>" + count + "\nn=$(wc -l <" + count + ")\n" +
		"frame() { printf '%s %s %s\\n%s\\n' \"$1\" \"$2\" \"${#3}\" \"$3\" >&4; }\n" +
		"hello() { printf 'tcptrace-vm 1\\n' >&4; frame ready 0 6.6.6; }\n" +
		"finish() { frame exit 0 '{\"code\":0}'; frame end 0 ''; }\n" + body + "\n"
	for name, text := range map[string]string{emulator: script, "init": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	t.Setenv("TMPDIR", dir)
	return Job{
		Kernel: Kernel{Name: "6.6"}, Init: filepath.Join(dir, "init"), BootTimeout: 20 * time.Second,
		Commands: []frame.Command{{Path: "/x", Timeout: 20 * time.Second}},
	}
}

func TestRunReturnsWhatTheMachineSent(t *testing.T) {
	j := fakeMachine(t, "hello; echo booting >&3; frame start 0 ''; frame stdout 0 'some text'; frame exit 0 '{\"code\":3}'; frame end 0 ''")
	var console bytes.Buffer
	var text string
	j.Console = &console
	j.Observe = func(attempt int, f frame.Frame) {
		if f.Kind == frame.Stdout {
			text += string(f.Payload)
		}
	}
	r, err := j.Run(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if r.Release != "6.6.6" || len(r.Statuses) != 1 || r.Statuses[0].Code != 3 || r.Attempts != 1 || len(r.Crashes) != 0 {
		t.Errorf("%+v", r)
	}
	if text != "some text" || console.String() != "booting\n" {
		t.Errorf("output %q, console %q", text, console.String())
	}
}

func TestRunReturnsTheKernelsWarnings(t *testing.T) {
	j := fakeMachine(t, `hello
printf '[    6.1] ------------[ cut here ]------------\r\n[    6.2] trace type BPF program\r\n[    6.3] WARNING: CPU: 0 PID: 245 at kernel/bpf/verifier.c:10493 x\r\n' >&3
printf '[    7.1] ------------[ cut here ]------------\n[    7.2] WARNING: net/core/dev.c:1 at y\n[    7.3] a program prints WARNING: z\n' >&3
seq -f '[    8.1] filler %05.f' 1 20000 >&3
finish`)
	r, err := j.Run(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"[    6.3] WARNING: CPU: 0 PID: 245 at kernel/bpf/verifier.c:10493 x ([    6.2] trace type BPF program)",
		"[    7.2] WARNING: net/core/dev.c:1 at y",
	}
	if !slices.Equal(r.Warnings, want) {
		t.Errorf("%q, want %q", r.Warnings, want)
	}
}

func TestRunStartsAgainAfterACrash(t *testing.T) {
	j := fakeMachine(t, "hello; [ $n -gt 1 ] && { finish; exit; }; frame stdout 0 half; echo '[ 1.0] Kernel panic - not syncing: Fatal exception' >&3")
	var attempts []int
	j.Observe = func(attempt int, f frame.Frame) {
		if f.Kind == frame.Ready {
			attempts = append(attempts, attempt)
		}
	}
	r, err := j.Run(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(attempts, []int{1, 2}) || r.Attempts != 2 || len(r.Crashes) != 1 || !strings.Contains(r.Crashes[0], "Fatal exception") {
		t.Errorf("attempts %v, %+v", attempts, r)
	}
}

func TestRunStartsAgainWhenTheEmulatorCrashes(t *testing.T) {
	r, err := fakeMachine(t, "[ $n -gt 1 ] && { hello; finish; exit; }; echo 'code gen failed' >&2; kill -SEGV $$").Run(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if r.Attempts != 2 || len(r.Crashes) != 1 || !strings.Contains(r.Crashes[0], "code gen failed") {
		t.Errorf("%+v", r)
	}
}

func TestRunGivesUpAfterThreeCrashes(t *testing.T) {
	r, err := fakeMachine(t, "hello; echo 'Oops: 0000 [#1] SMP' >&3").Run(context.Background())
	if !errors.Is(err, ErrCrashed) || r.Attempts != maxAttempts || len(r.Crashes) != maxAttempts {
		t.Errorf("%v, %+v", err, r)
	}
}

// Only a crash starts a machine again; all else fails at once.
func TestRunDoesNotRepeatOtherFailures(t *testing.T) {
	for name, c := range map[string]struct{ body, want string }{
		"stops early":        {"hello; echo 'watchdog: BUG: soft lockup - CPU#0 stuck for 22s!' >&3", "stopped before"},
		"stops in a frame":   {"hello; printf 'stdout 0 100\\nshort' >&4", "stopped before"},
		"sends rubbish":      {"hello; echo rubbish >&4", "malformed"},
		"unknown command":    {"hello; frame exit 7 '{\"code\":0}'", "no command 7"},
		"ends too early":     {"hello; frame end 0 ''", "0 of 1 commands"},
		"emulator refuses":   {"echo 'no such kernel' >&2; exit 1", "no such kernel"},
		"no status":          {"hello; frame exit 0 '}'", "malformed"},
		"status given twice": {"hello; frame exit 0 '{}'; frame exit 0 '{}'; frame end 0 ''", "out of turn"},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := fakeMachine(t, c.body).Run(context.Background())
			if err == nil || !strings.Contains(err.Error(), c.want) || errors.Is(err, ErrCrashed) {
				t.Errorf("%v, want %q in it", err, c.want)
			}
			if r.Attempts != 1 {
				t.Errorf("%d attempts", r.Attempts)
			}
		})
	}
}

func TestRunEndsAMachineThatDoesNotAnswer(t *testing.T) {
	j := fakeMachine(t, "exec sleep 60")
	j.BootTimeout = 50 * time.Millisecond
	began := time.Now()
	_, err := j.Run(context.Background())
	if err == nil || !strings.Contains(err.Error(), "did not answer") {
		t.Errorf("%v", err)
	}
	if waited := time.Since(began); waited > 20*time.Second {
		t.Errorf("it took %v", waited)
	}
}

func TestRunEndsWhenToldTo(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	j := fakeMachine(t, "hello; exec sleep 60")
	j.Observe = func(int, frame.Frame) { cancel() }
	if _, err := j.Run(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want %v", err, context.Canceled)
	}
}

func TestCrashSignature(t *testing.T) {
	for console, want := range map[string]string{
		"ok\r\n[    0.4] Kernel panic - not syncing: x\r\nmore": "[    0.4] Kernel panic - not syncing: x",
		"BUG: unable to handle page fault for address: 0":       "BUG: unable to handle page fault for address: 0",
		"Oops: general protection fault, 0000 [#1]":             "Oops: general protection fault, 0000 [#1]",
		"rcu: INFO: rcu_preempt self-detected stall on CPU":     "",
		"watchdog: BUG: soft lockup - CPU#0 stuck for 22s":      "",
		"WARNING: CPU: 0 PID: 1 at x":                           "",
		"":                                                      "",
	} {
		if got := crashSignature([]byte(console)); got != want {
			t.Errorf("%q: %q, want %q", console, got, want)
		}
	}
}

func TestHostLabel(t *testing.T) {
	for name, want := range map[string]string{
		"6.1": "6-1", "/tmp/A_b.deb": "a-b-deb", "sid/linux": "linux", strings.Repeat("x", 80): strings.Repeat("x", 40),
	} {
		if got := hostLabel(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

func TestAnAnswerAboutKVMHoldsForAnHourOfThisBoot(t *testing.T) {
	file := filepath.Join(t.TempDir(), "kvm.json")
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	if _, ok := readAnswer(file, "b", now); ok {
		t.Error("an answer was read where there is none")
	}
	if err := writeAnswer(file, kvmAnswer{Works: true, Boot: "b", Time: now}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		boot string
		now  time.Time
		want bool
	}{
		{"b", now, true},
		{"b", now.Add(59 * time.Minute), true},
		{"b", now.Add(61 * time.Minute), false},
		{"b", now.Add(-time.Minute), false},
		{"other", now, false},
	} {
		if a, ok := readAnswer(file, c.boot, c.now); ok != c.want || ok && !a.Works {
			t.Errorf("boot %s at %v: %+v, %v, want %v", c.boot, c.now, a, ok, c.want)
		}
	}
	if err := os.WriteFile(file, []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, ok := readAnswer(file, "b", now); ok {
		t.Error("a torn answer was read")
	}
}
