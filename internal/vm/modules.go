package vm

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
)

// DefaultModules are the kernel modules that the tests may use: devices to make
// a network from, a queueing discipline that loses and delays, what a drop rule
// of nftables needs, and the socket tables that ss reads. A name that the kernel
// has built in is passed over.
var DefaultModules = []string{
	"tun", "veth", "dummy", "bridge", "sch_netem", "sch_ingress",
	"nf_tables", "nft_reject", "nft_reject_inet", "nft_limit", "nft_numgen", "nft_ct", "nft_counter",
	"inet_diag", "tcp_diag", "unix_diag",
}

// mergedInto names the module that has become home to another: a kernel with the
// one needs no other.
var mergedInto = map[string]string{"nft_counter": "nf_tables"}

// module is a kernel module, decompressed.
type module struct {
	name    string // with underscores, as in /proc/modules
	content []byte
}

// moduleTree is the modules of one kernel, lib/modules/RELEASE.
//
// A package's modules.dep is made when it is installed, so a package that is
// only unpacked has none; each module's own list of what it depends on says the
// same.
type moduleTree struct {
	files   map[string]string // name to file
	builtin map[string]bool
}

// readModuleTree looks through dir. A dir that is "" has no modules.
func readModuleTree(dir string) (*moduleTree, error) {
	t := &moduleTree{files: map[string]string{}, builtin: map[string]bool{}}
	if dir == "" {
		return t, nil
	}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name, ok := moduleName(p); ok && d.Type().IsRegular() {
			t.files[name] = p
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing kernel modules: %w", err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return nil, fmt.Errorf("listing the modules that are built in: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		if name, ok := moduleName(strings.TrimSpace(line)); ok {
			t.builtin[name] = true
		}
	}
	return t, nil
}

// moduleName turns the path of a module's file into its name.
func moduleName(p string) (string, bool) {
	base := filepath.Base(p)
	stem, ext, ok := strings.Cut(base, ".ko")
	if !ok || (ext != "" && ext != ".xz" && ext != ".zst" && ext != ".gz") {
		return "", false
	}
	return strings.ReplaceAll(stem, "-", "_"), true
}

// resolve returns the named modules and all that they depend on, each after
// those that it needs. missing names those that this kernel has neither as a
// file nor built in.
func (t *moduleTree) resolve(names []string) (load []module, missing []string, err error) {
	state := map[string]int{} // 1 being resolved, 2 done
	var visit func(name, neededBy string) error
	visit = func(name, neededBy string) error {
		name = strings.ReplaceAll(name, "-", "_")
		if t.builtin[name] || state[name] == 2 {
			return nil
		}
		if state[name] == 1 {
			return fmt.Errorf("resolving kernel modules: %s depends on itself", name)
		}
		state[name] = 1
		file, ok := t.files[name]
		if !ok {
			if neededBy != "" {
				return fmt.Errorf("resolving kernel modules: %s needs %s, which is not there", neededBy, name)
			}
			state[name] = 2
			if home := mergedInto[name]; home == "" || t.files[home] == "" && !t.builtin[home] {
				missing = append(missing, name)
			}
			return nil
		}
		content, err := readModule(file)
		if err != nil {
			return err
		}
		needs, err := moduleDepends(content)
		if err != nil {
			return fmt.Errorf("reading what %s depends on: %w", name, err)
		}
		for _, n := range needs {
			if err := visit(n, name); err != nil {
				return err
			}
		}
		load = append(load, module{name, content})
		state[name] = 2
		return nil
	}
	for _, name := range names {
		if err := visit(name, ""); err != nil {
			return nil, nil, err
		}
	}
	sort.Strings(missing)
	return load, missing, nil
}

// readModule returns a module's content, decompressed by the tool that its
// name's ending asks for.
func readModule(file string) ([]byte, error) {
	tools := map[string]string{".xz": "xz", ".zst": "zstd", ".gz": "gzip"}
	tool, compressed := tools[filepath.Ext(file)]
	if !compressed {
		content, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("reading a kernel module: %w", err)
		}
		return content, nil
	}
	var stderr bytes.Buffer
	cmd := exec.Command(tool, "-dc", file)
	cmd.Stderr = &stderr
	content, err := cmd.Output()
	if err != nil {
		return nil, hinted(fmt.Errorf("decompressing %s: %w %s", filepath.Base(file), err, bytes.TrimSpace(stderr.Bytes())),
			"scripts/setup test installs %s", tool)
	}
	return content, nil
}

// moduleDepends returns the names in the "depends=" line of a module.
func moduleDepends(content []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(content))
	if err != nil {
		return nil, err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("no .modinfo section")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	for _, line := range strings.Split(string(info), "\x00") {
		if list, ok := strings.CutPrefix(line, "depends="); ok && list != "" {
			return strings.Split(list, ","), nil
		}
	}
	return nil, nil
}
