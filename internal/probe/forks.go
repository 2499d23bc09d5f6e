package probe

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// maxForks bounds the descendants that are alive or ended lately. Room for all
// is allocated in advance (4 MiB), as for the maps of bpf/maps.h.
const maxForks = 1 << 16

// linger is how long a process that ended is remembered: its last events are
// still on their way then. Nanoseconds.
const linger = int64(5e9)

// Forks knows the descendants of a command by watching every fork(). The kernel
// tells of one before the new process runs, so none is missed. It belongs to one
// goroutine.
//
// Its two programs are a few instructions each and independent of the hooks:
// they are assembled here, not compiled from bpf/.
type Forks struct {
	members *ebpf.Map // process id, as the kernel has it, to when it ended (CLOCK_BOOTTIME, ns), 0 if it lives
	control *ebpf.Map // see the slots
	links   []link.Link
}

// Slots of the control map.
const (
	slotArmed = iota // not 0: a child of this process is the command
	slotLost         // descendants that the map had no room for
	slots
)

// NewForks attaches the programs. Nobody is a member until Arm was called and
// this process has started another.
func NewForks() (*Forks, error) {
	f := new(Forks)
	if err := f.attach(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (f *Forks) attach() (err error) {
	if err := rlimit.RemoveMemlock(); err != nil {
		return fmt.Errorf("raising the limit of locked memory: %w", err)
	}
	f.members, err = ebpf.NewMap(&ebpf.MapSpec{
		Name: "tt_members", Type: ebpf.Hash, KeySize: 4, ValueSize: 8, MaxEntries: maxForks,
	})
	if err != nil {
		return fmt.Errorf("making the map of descendants: %w", err)
	}
	f.control, err = ebpf.NewMap(&ebpf.MapSpec{Name: "tt_control", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: slots})
	if err != nil {
		return fmt.Errorf("making the map of descendants: %w", err)
	}
	at, err := readForkOffsets()
	if err != nil {
		return err
	}
	self, err := readForkSelf()
	if err != nil {
		return err
	}
	for _, p := range []struct {
		tracepoint string
		code       asm.Instructions
	}{
		{"sched_process_exit", f.onExit(at)},
		{"sched_process_fork", f.onFork(at, self)},
	} {
		prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
			Name: "tt_" + p.tracepoint[len("sched_process_"):], Type: ebpf.RawTracepoint, License: "Dual BSD/GPL", Instructions: p.code,
		})
		if err != nil {
			return fmt.Errorf("loading the program for %s: %w", p.tracepoint, err)
		}
		l, err := link.AttachRawTracepoint(link.RawTracepointOptions{Name: p.tracepoint, Program: prog})
		prog.Close() // the link holds it
		if err != nil {
			return fmt.Errorf("attaching to %s: %w", p.tracepoint, err)
		}
		f.links = append(f.links, l)
	}
	return nil
}

// forkOffsets are where the programs look, in bytes.
type forkOffsets struct {
	tgid, signal int32 // in task_struct
	live         int32 // in signal_struct
}

func readForkOffsets() (forkOffsets, error) {
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		return forkOffsets{}, fmt.Errorf("reading the kernel's types: %w", err)
	}
	var o forkOffsets
	for _, want := range []struct {
		in, member string
		at         *int32
	}{
		{"task_struct", "tgid", &o.tgid},
		{"task_struct", "signal", &o.signal},
		{"signal_struct", "live", &o.live},
	} {
		var s *btf.Struct
		if err := spec.TypeByName(want.in, &s); err != nil {
			return forkOffsets{}, fmt.Errorf("looking up %s: %w", want.in, err)
		}
		i := slices.IndexFunc(s.Members, func(m btf.Member) bool { return m.Name == want.member })
		if i < 0 {
			return forkOffsets{}, fmt.Errorf("looking up %s.%s: %w", want.in, want.member, os.ErrNotExist)
		}
		*want.at = int32(s.Members[i].Offset.Bytes())
	}
	return o, nil
}

// forkSelf is how a program recognises the process that it runs in as this one,
// which in a pid namespace does not know the number that the kernel has for it.
type forkSelf struct {
	dev, ino uint64 // of the pid namespace
	pid      int32  // in it
}

func readForkSelf() (forkSelf, error) {
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/ns/pid", &st); err != nil {
		return forkSelf{}, fmt.Errorf("finding the own pid namespace: %w", err)
	}
	return forkSelf{dev: st.Dev, ino: st.Ino, pid: int32(os.Getpid())}, nil
}

// Where the programs keep things on their stack.
const (
	stackPID    = -4  // u32, the process in question
	stackWord   = -8  // u32
	stackValue  = -16 // u64
	stackNsInfo = -24 // struct bpf_pidns_info: u32 pid, u32 tgid
)

func forkStack(to asm.Register, offset int32) asm.Instructions {
	return asm.Instructions{asm.Mov.Reg(to, asm.RFP), asm.Add.Imm(to, offset)}
}

// member calls a function of a map for the process in question.
func (f *Forks) member(fn asm.BuiltinFunc) asm.Instructions {
	return slices.Concat(asm.Instructions{asm.LoadMapPtr(asm.R1, f.members.FD())}, forkStack(asm.R2, stackPID), asm.Instructions{fn.Call()})
}

// slot finds a value of the control map, and leaves at out without one.
func (f *Forks) slot(n int64) asm.Instructions {
	return slices.Concat(
		asm.Instructions{asm.StoreImm(asm.RFP, stackWord, n, asm.Word), asm.LoadMapPtr(asm.R1, f.control.FD())},
		forkStack(asm.R2, stackWord),
		asm.Instructions{asm.FnMapLookupElem.Call(), asm.JEq.Imm(asm.R0, 0, "out")},
	)
}

var forkOut = asm.Instructions{asm.Mov.Imm(asm.R0, 0).WithSymbol("out"), asm.Return()}

// onFork runs in the process that forks, before its child does: a child of a
// member is a member, and so is that of this process while the map says so.
//
//	sched_process_fork(struct task_struct *parent, struct task_struct *child)
func (f *Forks) onFork(at forkOffsets, me forkSelf) asm.Instructions {
	return slices.Concat(
		asm.Instructions{
			asm.LoadMem(asm.R6, asm.R1, 8, asm.DWord), // child
			asm.FnGetCurrentPidTgid.Call(),
			asm.Mov.Reg(asm.R7, asm.R0),
			asm.RSh.Imm(asm.R7, 32), // the process that forks
		},
		forkStack(asm.R1, stackPID),
		asm.Instructions{
			asm.Mov.Imm(asm.R2, 4),
			asm.Mov.Reg(asm.R3, asm.R6),
			asm.Add.Imm(asm.R3, at.tgid),
			asm.FnProbeReadKernel.Call(),
			asm.JNE.Imm(asm.R0, 0, "out"),
			asm.LoadMem(asm.R8, asm.RFP, stackPID, asm.Word),
			asm.JEq.Reg(asm.R8, asm.R7, "out"), // a thread

			// A member?
			asm.StoreMem(asm.RFP, stackPID, asm.R7, asm.Word),
		},
		f.member(asm.FnMapLookupElem),
		asm.Instructions{
			asm.StoreMem(asm.RFP, stackPID, asm.R8, asm.Word),
			asm.JNE.Imm(asm.R0, 0, "insert"),
		},
		// This process, about to start the command?
		f.slot(slotArmed),
		asm.Instructions{
			asm.LoadMem(asm.R1, asm.R0, 0, asm.DWord),
			asm.JEq.Imm(asm.R1, 0, "forget"),
			asm.LoadImm(asm.R1, int64(me.dev), asm.DWord),
			asm.LoadImm(asm.R2, int64(me.ino), asm.DWord),
		},
		forkStack(asm.R3, stackNsInfo),
		asm.Instructions{
			asm.Mov.Imm(asm.R4, 8),
			asm.FnGetNsCurrentPidTgid.Call(),
			asm.JNE.Imm(asm.R0, 0, "forget"), // in another namespace
			asm.LoadMem(asm.R1, asm.RFP, stackNsInfo+4, asm.Word),
			asm.JEq.Imm(asm.R1, me.pid, "insert"),
			// An outsider's child: its number may have been a member's.
			asm.LoadMapPtr(asm.R1, f.members.FD()).WithSymbol("forget"),
		},
		forkStack(asm.R2, stackPID),
		asm.Instructions{
			asm.FnMapDeleteElem.Call(),
			asm.Ja.Label("out"),
			asm.Mov.Imm(asm.R1, 0).WithSymbol("insert"),
			asm.StoreMem(asm.RFP, stackValue, asm.R1, asm.DWord),
			asm.LoadMapPtr(asm.R1, f.members.FD()),
		},
		forkStack(asm.R2, stackPID),
		forkStack(asm.R3, stackValue),
		asm.Instructions{
			asm.Mov.Imm(asm.R4, int32(ebpf.UpdateAny)),
			asm.FnMapUpdateElem.Call(),
			asm.JEq.Imm(asm.R0, 0, "out"),
		},
		f.slot(slotLost),
		asm.Instructions{
			asm.Mov.Imm(asm.R1, 1),
			asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
		},
		forkOut,
	)
}

// onExit notes when the last thread of a member has ended.
//
//	sched_process_exit(struct task_struct *task, ...)
func (f *Forks) onExit(at forkOffsets) asm.Instructions {
	return slices.Concat(
		asm.Instructions{
			asm.LoadMem(asm.R6, asm.R1, 0, asm.DWord), // task
			asm.FnGetCurrentPidTgid.Call(),
			asm.RSh.Imm(asm.R0, 32),
			asm.StoreMem(asm.RFP, stackPID, asm.R0, asm.Word),
		},
		f.member(asm.FnMapLookupElem),
		asm.Instructions{
			asm.JEq.Imm(asm.R0, 0, "out"),
			asm.Mov.Reg(asm.R7, asm.R0),
		},
		forkStack(asm.R1, stackValue),
		asm.Instructions{
			asm.Mov.Imm(asm.R2, 8),
			asm.Mov.Reg(asm.R3, asm.R6),
			asm.Add.Imm(asm.R3, at.signal),
			asm.FnProbeReadKernel.Call(),
			asm.JNE.Imm(asm.R0, 0, "out"),
			asm.LoadMem(asm.R3, asm.RFP, stackValue, asm.DWord),
			asm.Add.Imm(asm.R3, at.live),
		},
		forkStack(asm.R1, stackWord),
		asm.Instructions{
			asm.Mov.Imm(asm.R2, 4),
			asm.FnProbeReadKernel.Call(),
			asm.JNE.Imm(asm.R0, 0, "out"),
			asm.LoadMem(asm.R1, asm.RFP, stackWord, asm.Word),
			asm.JNE.Imm(asm.R1, 0, "out"), // other threads go on
			asm.FnKtimeGetBootNs.Call(),
			asm.StoreMem(asm.R7, 0, asm.R0, asm.DWord),
		},
		forkOut,
	)
}

// Arm says whether the next child of this process is the command.
func (f *Forks) Arm(on bool) error {
	var v uint64
	if on {
		v = 1
	}
	if err := f.control.Put(uint32(slotArmed), v); err != nil {
		return fmt.Errorf("telling the fork tracker of the command: %w", err)
	}
	return nil
}

// Has reports whether a process, as the kernel numbers it, is a descendant or
// was one.
func (f *Forks) Has(pid uint32) bool {
	var ended int64
	return f.members.Lookup(pid, &ended) == nil
}

// Living lists the descendants that live, as the kernel numbers them.
func (f *Forks) Living() []uint32 {
	var pids []uint32
	f.each(func(pid uint32, ended int64) {
		if ended == 0 {
			pids = append(pids, pid)
		}
	})
	slices.Sort(pids)
	return pids
}

// Sweep forgets those that ended long before now (CLOCK_BOOTTIME, ns).
func (f *Forks) Sweep(now int64) {
	var old []uint32
	f.each(func(pid uint32, ended int64) {
		if ended != 0 && now-ended > linger {
			old = append(old, pid)
		}
	})
	for _, pid := range old {
		// Its number may have been given to another descendant just now. An
		// error is of one that is gone already.
		var ended int64
		if f.members.Lookup(pid, &ended) == nil && ended != 0 {
			_ = f.members.Delete(pid)
		}
	}
}

// each looks at all descendants. Some can be left out, or come twice, while
// others are added or removed.
func (f *Forks) each(fn func(pid uint32, ended int64)) {
	var pid uint32
	var ended int64
	// An iteration that is given up has been overtaken by changes.
	for i := f.members.Iterate(); i.Next(&pid, &ended); {
		fn(pid, ended)
	}
}

// Lost counts descendants that could not be followed.
func (f *Forks) Lost() uint64 {
	var n uint64
	if err := f.control.Lookup(uint32(slotLost), &n); err != nil {
		return 0
	}
	return n
}

// Close detaches the programs.
func (f *Forks) Close() error {
	var errs []error
	for _, l := range f.links {
		errs = append(errs, l.Close())
	}
	for _, m := range []*ebpf.Map{f.members, f.control} {
		if m != nil {
			errs = append(errs, m.Close())
		}
	}
	return errors.Join(errs...)
}
