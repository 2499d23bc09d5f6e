package vm

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/tcptrace/tcptrace/internal/vm/frame"
)

// archived is an entry of a newc archive.
type archived struct {
	mode    uint64
	content string
}

// readCpio reads an archive as the kernel does.
func readCpio(t *testing.T, b []byte) map[string]archived {
	t.Helper()
	entries := map[string]archived{}
	align := func(n int) int { return (n + 3) &^ 3 }
	for at := 0; ; {
		if len(b)-at < 110 || string(b[at:at+6]) != "070701" {
			t.Fatalf("no header at %d of %d", at, len(b))
		}
		var fields [13]uint64
		for i := range fields {
			v, err := strconv.ParseUint(string(b[at+6+8*i:at+14+8*i]), 16, 32)
			if err != nil {
				t.Fatal(err)
			}
			fields[i] = v
		}
		size, nameSize := int(fields[6]), int(fields[11])
		name := string(b[at+110 : at+110+nameSize-1])
		if b[at+110+nameSize-1] != 0 {
			t.Fatalf("%q: no zero after the name", name)
		}
		start := align(at + 110 + nameSize)
		if name == "TRAILER!!!" {
			if align(start+size) != len(b) {
				t.Fatalf("%d bytes after the trailer", len(b)-start)
			}
			return entries
		}
		if _, again := entries[name]; again {
			t.Errorf("%q is there twice", name)
		}
		if dir := filepath.Dir(name); dir != "." && entries[dir].mode&0o170000 != 0o040000 {
			t.Errorf("%q comes before its directory", name)
		}
		entries[name] = archived{fields[1], string(b[start : start+size])}
		at = align(start + size)
	}
}

func TestCpioHoldsWhatWasAdded(t *testing.T) {
	var b bytes.Buffer
	c := newCpioWriter(&b)
	for i := range 5 { // every length of padding
		if err := c.File(fmt.Sprintf("/a/b/%s", strings.Repeat("n", i+1)), 0o755, []byte(strings.Repeat("c", i))); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Dir("a/b"); err != nil {
		t.Fatal(err)
	}
	if err := c.Dir("../../x/./y/"); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	got := readCpio(t, b.Bytes())
	if len(got) != 2+5+2 {
		t.Errorf("%d entries: %v", len(got), got)
	}
	for i := range 5 {
		e := got["a/b/"+strings.Repeat("n", i+1)]
		if e.mode != 0o100755 || e.content != strings.Repeat("c", i) {
			t.Errorf("entry %d: mode %o, %q", i, e.mode, e.content)
		}
	}
	if got["x/y"].mode != 0o040755 {
		t.Errorf("x/y has mode %o", got["x/y"].mode)
	}
	if err := c.File("/", 0, nil); err == nil {
		t.Error("a file without a name was added")
	}
}

// fakeModule is an ELF file that has nothing but a .modinfo section.
func fakeModule(modinfo string) []byte {
	names := "\x00.modinfo\x00.shstrtab\x00"
	const header, section = 64, 64
	infoAt := uint64(header)
	namesAt := infoAt + uint64(len(modinfo))
	tableAt := namesAt + uint64(len(names))
	var b bytes.Buffer
	put := func(values ...any) {
		for _, v := range values {
			// A bytes.Buffer takes everything.
			_ = binary.Write(&b, binary.LittleEndian, v)
		}
	}
	put([16]byte{0x7f, 'E', 'L', 'F', 2, 1, 1}, uint16(1), uint16(62), uint32(1), uint64(0), uint64(0), tableAt,
		uint32(0), uint16(header), uint16(0), uint16(0), uint16(section), uint16(3), uint16(2))
	b.WriteString(modinfo + names)
	put([section]byte{})
	put(uint32(1), uint32(1), uint64(2), uint64(0), infoAt, uint64(len(modinfo)), uint32(0), uint32(0), uint64(1), uint64(0))
	put(uint32(10), uint32(3), uint64(0), uint64(0), namesAt, uint64(len(names)), uint32(0), uint32(0), uint64(1), uint64(0))
	return b.Bytes()
}

// moduleTreeOf writes modules, by file name, with what they depend on.
func moduleTreeOf(t *testing.T, builtin string, modules map[string]string) *moduleTree {
	t.Helper()
	dir := t.TempDir()
	write := func(name string, content []byte) {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("modules.builtin", []byte(builtin))
	write("modules.order", []byte("kernel/none.ko\n"))
	for name, depends := range modules {
		write("kernel/"+name, fakeModule("license=GPL\x00depends="+depends+"\x00name=x\x00"))
	}
	tree, err := readModuleTree(dir)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func namesOf(modules []module) []string {
	var names []string
	for _, m := range modules {
		names = append(names, m.name)
	}
	return names
}

func TestModulesComeAfterThoseThatTheyNeed(t *testing.T) {
	tree := moduleTreeOf(t, "kernel/lib/crc.ko\n", map[string]string{
		"net/nf_tables.ko": "nfnetlink,crc", "net/nfnetlink.ko": "", "net/nft-ct.ko": "nf_tables,nf_conntrack",
		"net/nf_conntrack.ko": "nfnetlink", "drivers/tun.ko": "",
	})
	load, missing, err := tree.resolve([]string{"nft_ct", "tun", "crc", "nf_tables", "nft_counter", "nowhere"})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := namesOf(load), []string{"nfnetlink", "nf_tables", "nf_conntrack", "nft_ct", "tun"}; !slices.Equal(got, want) {
		t.Errorf("loading %q, want %q", got, want)
	}
	// nft_counter has become a part of nf_tables.
	if want := []string{"nowhere"}; !slices.Equal(missing, want) {
		t.Errorf("missing %q, want %q", missing, want)
	}
}

func TestModulesThatCannotBeResolved(t *testing.T) {
	tree := moduleTreeOf(t, "", map[string]string{"a.ko": "b", "b.ko": "a", "c.ko": "gone"})
	if _, _, err := tree.resolve([]string{"a"}); err == nil {
		t.Error("modules that need each other were resolved")
	}
	if _, _, err := tree.resolve([]string{"c"}); err == nil {
		t.Error("a module was resolved without what it needs")
	}
	if _, err := moduleDepends([]byte("no ELF")); err == nil {
		t.Error("a file that is no module was read")
	}
}

func TestModuleName(t *testing.T) {
	for path, want := range map[string]string{
		"kernel/net/sch_netem.ko": "sch_netem", "a/nft-ct.ko.xz": "nft_ct", "tun.ko.zst": "tun", "tun.ko.gz": "tun",
		"modules.dep": "", "a.ko.sig": "", "vmlinuz": "",
	} {
		if got, ok := moduleName(path); got != want || ok != (want != "") {
			t.Errorf("%s: %q, %v, want %q", path, got, ok, want)
		}
	}
}

func TestInitrdHoldsInitPlanModulesAndFiles(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"init": "the init", "program": "the program"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var b bytes.Buffer
	plan := frame.Plan{Hostname: "h", Modules: []string{"left over"}, Commands: []frame.Command{{Path: "/vm/bin/p"}}}
	err := writeInitrd(&b, filepath.Join(dir, "init"), plan, []module{{"tun", []byte("code")}},
		[]File{{"/vm/bin/p", filepath.Join(dir, "program"), 0o755}})
	if err != nil {
		t.Fatal(err)
	}
	got := readCpio(t, b.Bytes())
	for name, want := range map[string]archived{
		"init": {0o100755, "the init"}, "vm/bin/p": {0o100755, "the program"}, "vm/modules/tun.ko": {0o100644, "code"},
	} {
		if got[name] != want {
			t.Errorf("%s: %o %q, want %o %q", name, got[name].mode, got[name].content, want.mode, want.content)
		}
	}
	for _, dir := range []string{"proc", "sys", "dev", "tmp", "run"} {
		if got[dir].mode != 0o040755 {
			t.Errorf("%s: mode %o, want a directory", dir, got[dir].mode)
		}
	}
	var packed frame.Plan
	if err := json.Unmarshal([]byte(got["vm/plan.json"].content), &packed); err != nil {
		t.Fatal(err)
	}
	if packed.Hostname != "h" || !slices.Equal(packed.Modules, []string{"tun.ko"}) || len(packed.Commands) != 1 {
		t.Errorf("plan %+v", packed)
	}
	if err := writeInitrd(&b, filepath.Join(dir, "nowhere"), plan, nil, nil); err == nil {
		t.Error("an archive was made without init")
	}
}
