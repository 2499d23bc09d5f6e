package vm

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path"

	"github.com/tcptrace/tcptrace/internal/vm/frame"
)

// File is a file of the host that a machine gets.
type File struct {
	// Guest is its absolute path in the machine.
	Guest string
	// Host is the path that its content is read from.
	Host string
	// Perm is its permission bits.
	Perm os.FileMode
}

// emptyDirs are the mount points and other directories that init expects.
var emptyDirs = []string{"dev", "proc", "sys", "tmp", "run", "root", "etc", "var", "usr/bin", "usr/sbin", "bin", "sbin", frame.ProgramDir}

// systemFiles are those that programs look up at a system's usual places.
var systemFiles = map[string]string{
	"etc/passwd":        "root:x:0:0:root:/root:/bin/false\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
	"etc/group":         "root:x:0:\nnogroup:x:65534:\n",
	"etc/hosts":         "127.0.0.1 localhost\n::1 localhost\n",
	"etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
	"etc/resolv.conf":   "",
}

// writeInitrd writes an initial RAM disk to w: init, the plan, modules, files.
//
// It is not compressed: the emulator copies it into the machine's memory at
// once, while unpacking in an emulated kernel takes longer than booting it.
func writeInitrd(w io.Writer, init string, plan frame.Plan, modules []module, files []File) error {
	buffered := bufio.NewWriterSize(w, 1<<20)
	c := newCpioWriter(buffered)
	for _, d := range emptyDirs {
		if err := c.Dir(d); err != nil {
			return err
		}
	}
	for _, name := range sortedKeys(systemFiles) {
		if err := c.File(name, 0o644, []byte(systemFiles[name])); err != nil {
			return err
		}
	}
	plan.Modules = nil
	for _, m := range modules {
		plan.Modules = append(plan.Modules, m.name+".ko")
		if err := c.File(path.Join(frame.ModuleDir, m.name+".ko"), 0o644, m.content); err != nil {
			return err
		}
	}
	text, err := json.Marshal(plan)
	if err != nil {
		return fmt.Errorf("encoding the plan: %w", err)
	}
	if err := c.File(frame.PlanPath, 0o644, text); err != nil {
		return err
	}
	for _, f := range append([]File{{"/init", init, 0o755}}, files...) {
		content, err := os.ReadFile(f.Host)
		if err != nil {
			return fmt.Errorf("packing the initial RAM disk: %w", err)
		}
		if err := c.File(f.Guest, uint32(f.Perm.Perm()), content); err != nil {
			return err
		}
	}
	if err := c.Close(); err != nil {
		return err
	}
	return buffered.Flush()
}
