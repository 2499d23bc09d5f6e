package probe

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/rlimit"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// OpenInventory loads the socket iterator and nothing else: no hook is
// attached, and of the maps only those that the iterator needs are made. Of
// the Probe's methods only Snapshot and Close may be used.
func OpenInventory(log *zap.Logger) (*Probe, error) {
	if log == nil {
		log = zap.NewNop()
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		log.Debug("raising RLIMIT_MEMLOCK", zap.Error(err))
	}
	cache := btf.NewCache()
	types, err := cache.Kernel()
	if err != nil {
		return nil, fmt.Errorf("reading the kernel's type information (/sys/kernel/btf/vmlinux): %w: %w", err, ErrNotSupported)
	}
	spec, err := loadBpf()
	if err != nil {
		return nil, fmt.Errorf("reading the programs: %w", err)
	}
	k := &kernel{spec: types, cache: cache, release: release()}
	if err := configure(spec, k, Options{RingSize: defaultRing}, k.cookies()); err != nil {
		return nil, err
	}
	var load struct {
		Iterator *ebpf.Program `ebpf:"iter_tcp"`
	}
	err = spec.LoadAndAssign(&load, &ebpf.CollectionOptions{Cache: cache})
	switch {
	case errors.Is(err, unix.EPERM):
		return nil, fmt.Errorf("loading the socket iterator: %w: %w", short(err), ErrNotPermitted)
	case err != nil:
		return nil, fmt.Errorf("loading the socket iterator: %w: %w", short(err), ErrNotSupported)
	}
	return &Probe{log: log, iter: load.Iterator}, nil
}
