package probe

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

const tracefs = "/sys/kernel/tracing"

func haveKprobes() bool {
	_, err := os.Stat("/sys/bus/event_source/devices/kprobe")
	return err == nil
}

// withTracefs runs fn on a thread that sees a tracefs. Where none is mounted
// (containers, minimal systems) it is mounted for that thread alone: nothing
// on the machine changes. Without it, system call tracepoints are missed and
// reported so; that is not an error here.
func withTracefs(fn func() error) error {
	var fs unix.Statfs_t
	if unix.Statfs(tracefs, &fs) == nil && fs.Type == unix.TRACEFS_MAGIC {
		return fn()
	}
	res := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with the goroutine, and with it
		// the mount.
		runtime.LockOSThread()
		_ = mountTracefs()
		res <- fn()
	}()
	return <-res
}

func mountTracefs() error {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("leaving the mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	if err := unix.Mount("tracefs", tracefs, "tracefs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mounting tracefs: %w", err)
	}
	return nil
}

// errNOTSUPP is the kernel's internal ENOTSUPP, which leaks out where a
// trampoline can't be made.
const errNOTSUPP = unix.Errno(524)
