package host

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Now returns CLOCK_BOOTTIME in nanoseconds, the clock of events.
func Now() int64 {
	var ts unix.Timespec
	// It cannot fail with a clock that every supported kernel has.
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts)
	return ts.Nano()
}

// ClockOffset returns the nanoseconds to add to CLOCK_BOOTTIME for the wall
// clock (since 1970, UTC). It changes whenever somebody sets the clock, so
// read it again now and then.
func ClockOffset() int64 {
	var offset int64
	window := int64(1<<63 - 1)
	// The closest pair of several: the process can be preempted in between.
	for range 5 {
		var before, wall, after unix.Timespec
		_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &before)
		_ = unix.ClockGettime(unix.CLOCK_REALTIME, &wall)
		_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &after)
		if w := after.Nano() - before.Nano(); w < window {
			window = w
			offset = wall.Nano() - before.Nano() - w/2
		}
	}
	return offset
}

// BootID names this boot of the host, "" if it cannot be read: two moments of
// CLOCK_BOOTTIME can only be compared within one.
func BootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// Usage returns the processor time that this process has used so far, and
// its resident memory in bytes.
func Usage() (cpu time.Duration, rss uint64, err error) {
	var ru unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &ru); err != nil {
		return 0, 0, fmt.Errorf("reading the own processor time: %w", err)
	}
	cpu = time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, 0, fmt.Errorf("reading the own memory: %w", err)
	}
	fields := bytes.Fields(b)
	if len(fields) < 2 {
		return 0, 0, fmt.Errorf("reading the own memory: /proc/self/statm has %d fields", len(fields))
	}
	pages, err := strconv.ParseUint(string(fields[1]), 10, 64)
	if err != nil {
		return 0, 0, fmt.Errorf("reading the own memory: %w", err)
	}
	return cpu, pages * uint64(os.Getpagesize()), nil
}
