package host

import (
	"fmt"
	"io"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// MeasureBPF has the kernel keep run-time statistics of all BPF programs until
// the result is closed. Keeping them costs some 20 ns each run. It needs
// CAP_SYS_ADMIN and Linux 5.8.
func MeasureBPF() (io.Closer, error) {
	c, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		return nil, fmt.Errorf("enabling BPF run-time statistics: %w", err)
	}
	return c, nil
}
