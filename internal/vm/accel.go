package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/vm/frame"
)

const (
	kvmDevice = "/dev/kvm"
	// kvmPatience is how long a machine may take to start init under KVM, where
	// it takes less than 2 s. On some hosts KVM is there and hangs.
	kvmPatience = 10 * time.Second
	// kvmMemory is how long an answer holds.
	kvmMemory = time.Hour
)

// kvmAnswer is what the last probe found.
type kvmAnswer struct {
	Works  bool      `json:"works"`
	Reason string    `json:"reason"`
	Boot   string    `json:"boot_id"`
	Time   time.Time `json:"time"`
}

// Accelerate returns KVM where a machine with the kernel starts under it, else
// TCG with the reason. The answer of a start is kept for an hour. init is a
// program made by BuildInit.
func Accelerate(ctx context.Context, k Kernel, init string) (Accelerator, string, error) {
	if err := unix.Access(kvmDevice, unix.R_OK|unix.W_OK); err != nil {
		return TCG, fmt.Sprintf("%s: %v", kvmDevice, err), nil
	}
	dir, err := CacheDir()
	if err != nil {
		return "", "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", "", fmt.Errorf("making the cache: %w", err)
	}
	file := filepath.Join(dir, "kvm.json")
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", "", fmt.Errorf("reading the boot id: %w", err)
	}
	answer, ok := readAnswer(file, string(boot), time.Now())
	if !ok {
		answer, err = probeKVM(ctx, k, init)
		if err != nil {
			return "", "", err
		}
		answer.Boot, answer.Time = string(boot), time.Now()
		if err := writeAnswer(file, answer); err != nil {
			return "", "", err
		}
	}
	if answer.Works {
		return KVM, "a machine starts under KVM", nil
	}
	return TCG, answer.Reason, nil
}

// readAnswer returns what file says, if that still holds.
func readAnswer(file, boot string, now time.Time) (kvmAnswer, bool) {
	text, err := os.ReadFile(file)
	if err != nil {
		return kvmAnswer{}, false
	}
	var a kvmAnswer
	if err := json.Unmarshal(text, &a); err != nil {
		return kvmAnswer{}, false
	}
	age := now.Sub(a.Time)
	return a, a.Boot == boot && age >= 0 && age < kvmMemory
}

func writeAnswer(file string, a kvmAnswer) error {
	text, err := json.Marshal(a)
	if err != nil {
		return fmt.Errorf("keeping what KVM does: %w", err)
	}
	tmp, err := os.CreateTemp(filepath.Dir(file), ".kvm-*")
	if err != nil {
		return fmt.Errorf("keeping what KVM does: %w", err)
	}
	_, err = tmp.Write(text)
	err = errors.Join(err, tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), file)
	}
	if err != nil {
		os.Remove(tmp.Name())
		return fmt.Errorf("keeping what KVM does: %w", err)
	}
	return nil
}

// probeKVM starts a machine with nothing to do.
func probeKVM(ctx context.Context, k Kernel, init string) (kvmAnswer, error) {
	initrd, err := os.CreateTemp("", "tcptrace-vm-*.cpio")
	if err != nil {
		return kvmAnswer{}, fmt.Errorf("packing the initial RAM disk: %w", err)
	}
	defer os.Remove(initrd.Name())
	defer initrd.Close()
	if err := writeInitrd(initrd, init, frame.Plan{Hostname: "probe"}, nil, nil); err != nil {
		return kvmAnswer{}, err
	}
	r := boot{
		kernel: k, initrd: initrd.Name(), accel: KVM, memoryMiB: 512,
		bootTimeout: kvmPatience, timeout: 2 * kvmPatience,
		observe: func(frame.Frame) {},
	}.start(ctx)
	if err := ctx.Err(); err != nil {
		return kvmAnswer{}, err
	}
	if r.ended {
		return kvmAnswer{Works: true}, nil
	}
	reason := r.crash
	if reason == "" && r.err != nil {
		reason = r.err.Error()
	}
	return kvmAnswer{Reason: "KVM is there and does not work: " + reason}, nil
}
