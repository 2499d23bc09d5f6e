package main

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/tcptrace/tcptrace/internal/vm"
	"github.com/tcptrace/tcptrace/internal/vm/frame"
)

// stringList is a flag that may be given more than once.
type stringList []string

func (l *stringList) String() string     { return strings.Join(*l, ",") }
func (l *stringList) Set(s string) error { *l = append(*l, s); return nil }

func runCommand(ctx context.Context, args []string) error {
	f := newFlags("run", "[flags] -- BINARY [ARGUMENTS]")
	kernel := f.String("kernel", "6.1", "kernel to run under")
	timeout := f.Duration("timeout", 10*time.Minute, "longest time that the program may run")
	memory := f.Int("memory", 2048, "memory of the machine in MiB")
	modules := f.String("modules", strings.Join(vm.DefaultModules, ","), "kernel modules to load")
	accel := f.String("accel", "auto", "auto, tcg or kvm")
	console := f.Bool("console", false, "show the kernel's messages on stderr")
	var env, files stringList
	f.Var(&env, "env", "`NAME=VALUE` for the program; may be repeated")
	f.Var(&files, "file", "`HOST[:GUEST]`, a file for the machine, in the program's directory unless GUEST is given; may be repeated")
	if err := parse(f, args); err != nil {
		return err
	}
	if f.NArg() == 0 {
		return usageError{errors.New("no program given")}
	}
	program := f.Arg(0)
	if err := mustBeStatic(program); err != nil {
		return err
	}

	store, err := vm.OpenStore(os.Stderr)
	if err != nil {
		return err
	}
	k, err := store.Get(ctx, *kernel)
	if err != nil {
		return err
	}
	scratch, err := os.MkdirTemp("", "tcptrace-vm-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	init, err := vm.BuildInit(ctx, ".", scratch)
	if err != nil {
		return err
	}
	guest := path.Join(frame.ProgramDir, filepath.Base(program))
	job := vm.Job{
		Kernel: k, Init: init, MemoryMiB: *memory, Modules: splitList(*modules),
		Files: []vm.File{{Guest: guest, Host: program, Perm: 0o755}},
		Commands: []frame.Command{{
			Path: guest, Args: f.Args()[1:], Dir: frame.ProgramDir, Timeout: *timeout,
			Env: append([]string{"TCPTRACE_VM=" + k.Name}, env...),
		}},
		Observe: func(attempt int, f frame.Frame) {
			switch f.Kind {
			case frame.Ready:
				fmt.Fprintf(os.Stderr, "vm: kernel %s, attempt %d\n", f.Payload, attempt)
			case frame.Stdout:
				os.Stdout.Write(f.Payload)
			case frame.Stderr:
				os.Stderr.Write(f.Payload)
			}
		},
	}
	for _, spec := range files {
		file, err := parseFile(spec)
		if err != nil {
			return err
		}
		job.Files = append(job.Files, file)
	}
	if *console {
		job.Console = os.Stderr
	}
	if job.Accelerator, err = chooseAccelerator(ctx, *accel, k, init); err != nil {
		return err
	}
	began := time.Now()
	result, err := job.Run(ctx)
	for _, crash := range result.Crashes {
		fmt.Fprintf(os.Stderr, "vm: the machine crashed and was started again: %s\n", crash)
	}
	for _, warning := range result.Warnings {
		fmt.Fprintf(os.Stderr, "vm: the kernel warned: %s\n", printable(warning))
	}
	if err != nil {
		return err
	}
	status := result.Statuses[0]
	fmt.Fprintf(os.Stderr, "vm: %v, %.1f s of %.1f s in all\n", status,
		float64(status.Millis)/1000, time.Since(began).Seconds())
	switch {
	case status.OK():
		return nil
	case status.Code > 0:
		return exitStatus(status.Code)
	default:
		return errFailed
	}
}

func parseFile(spec string) (vm.File, error) {
	host, guest, ok := strings.Cut(spec, ":")
	if !ok {
		guest = path.Join(frame.ProgramDir, filepath.Base(host))
	}
	if !path.IsAbs(guest) {
		return vm.File{}, usageError{fmt.Errorf("the path in the machine is not absolute: %q", spec)}
	}
	info, err := os.Stat(host)
	if err != nil {
		return vm.File{}, fmt.Errorf("reading a file for the machine: %w", err)
	}
	return vm.File{Guest: guest, Host: host, Perm: info.Mode().Perm()}, nil
}

// mustBeStatic refuses a program that needs libraries: a machine has none, and
// the kernel's answer to it would be a bare "no such file or directory".
func mustBeStatic(program string) error {
	f, err := elf.Open(program)
	if err != nil {
		return fmt.Errorf("reading the program: %w", err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("reading the program: %s is linked dynamically; build it with CGO_ENABLED=0", program)
		}
	}
	if f.Machine != elf.EM_X86_64 {
		return fmt.Errorf("reading the program: %s is for %v; build it with GOARCH=amd64", program, f.Machine)
	}
	return nil
}

func chooseAccelerator(ctx context.Context, name string, k vm.Kernel, init string) (vm.Accelerator, error) {
	switch name {
	case "auto":
		accel, reason, err := vm.Accelerate(ctx, k, init)
		if err == nil {
			fmt.Fprintf(os.Stderr, "vm: using %s: %s\n", accel, reason)
		}
		return accel, err
	case "tcg":
		return vm.TCG, nil
	case "kvm":
		return vm.KVM, nil
	default:
		return "", usageError{fmt.Errorf("no accelerator is named %q", name)}
	}
}

func fetchCommand(ctx context.Context, args []string) error {
	f := newFlags("fetch", "[flags] [KERNEL...]")
	update := f.Bool("update", false, "fetch the newest one even when the cache has one")
	if err := parse(f, args); err != nil {
		return err
	}
	names := f.Args()
	if len(names) == 0 {
		names = vm.DefaultKernels
	}
	store, err := vm.OpenStore(os.Stderr)
	if err != nil {
		return err
	}
	for _, name := range names {
		if *update {
			if err := store.Remove(name); err != nil {
				return err
			}
		}
		k, err := store.Get(ctx, name)
		if err != nil {
			return err
		}
		fmt.Printf("%-8s %s\n", k.Name, k.Release)
	}
	return nil
}
