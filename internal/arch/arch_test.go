package arch

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/tcptrace/tcptrace"

// listed is what "go list -json" says of a package.
type listed struct {
	ImportPath, Dir string
	Standard        bool
	Imports         []string
	GoFiles         []string
	Error           *struct{ Err string }
}

// repository looks up packages with one call of "go list -deps".
func repository(t *testing.T, patterns ...string) func(string) (Package, error) {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.Command("go", append([]string{"list", "-e", "-deps", "-json=ImportPath,Dir,Standard,Imports,GoFiles,Error"}, patterns...)...)
	cmd.Stderr = &stderr
	// As on every other system, so that no file is passed over.
	cmd.Env = append(os.Environ(), "GOOS=linux", "CGO_ENABLED=0")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v: %s", err, stderr.String())
	}
	packages := map[string]Package{}
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var l listed
		if err := dec.Decode(&l); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if l.Error != nil {
			t.Fatalf("%s: %s", l.ImportPath, l.Error.Err)
		}
		p := Package{ImportPath: l.ImportPath, Standard: l.Standard, Imports: l.Imports, Files: map[string][]byte{}}
		if within(l.ImportPath, module) {
			for _, name := range l.GoFiles {
				text, err := os.ReadFile(filepath.Join(l.Dir, name))
				if err != nil {
					t.Fatal(err)
				}
				p.Files[name] = text
			}
		}
		packages[l.ImportPath] = p
	}
	return func(importPath string) (Package, error) {
		p, ok := packages[importPath]
		if !ok {
			return Package{}, fmt.Errorf("no package %s", importPath)
		}
		return p, nil
	}
}

func TestPurePackagesArePure(t *testing.T) {
	pure := []struct {
		path         string
		standardOnly bool
	}{
		{"tracer/event", true},
		{"internal/container", true},
		{"internal/timeline", false},
		{"internal/diagnose", false},
		{"internal/sockets", false},
	}
	var patterns []string
	for _, p := range pure {
		patterns = append(patterns, module+"/"+p.path)
	}
	r := Rules{Module: module, Lookup: repository(t, patterns...)}
	for _, p := range pure {
		t.Run(p.path, func(t *testing.T) {
			found, err := r.CheckPure(module+"/"+p.path, p.standardOnly)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range found {
				t.Error(f)
			}
		})
	}
}

// TestOnlyTheProbeLoadsPrograms keeps the kernel in one place: a second package
// that loads programs would know a second set of hooks.
func TestOnlyTheProbeLoadsPrograms(t *testing.T) {
	may := []string{"internal/probe", "internal/lab", "internal/kerneltest", "scripts/bench"}
	out, err := exec.Command("go", "list", "-e", "-f", `{{.ImportPath}} {{join .Imports " "}}`, module+"/...").Output()
	if err != nil {
		t.Fatal(err)
	}
	checked := 0
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		short := strings.TrimPrefix(fields[0], module+"/")
		checked++
		if slices.ContainsFunc(may, func(m string) bool { return within(short, m) }) {
			continue
		}
		for _, i := range fields[1:] {
			// Features and clocks of the running kernel are asked for in other
			// places too; programs and maps are not.
			if i == "github.com/cilium/ebpf/link" || i == "github.com/cilium/ebpf/ringbuf" {
				t.Errorf("%s imports %s", short, i)
			}
		}
	}
	if checked == 0 {
		t.Fatal("go list names no package")
	}
}

func TestCheckPureFindsWhatIsForbidden(t *testing.T) {
	file := func(text string) map[string][]byte { return map[string][]byte{"a.go": []byte("package a\n" + text)} }
	packages := map[string]Package{
		"m/clean":       {Imports: []string{"fmt", "time", "net/netip", "m/helper"}, Files: file(`import "time"; var d = time.Second; func f(t time.Time) { t.After(t) }`)},
		"m/helper":      {Imports: []string{"strings"}},
		"m/os":          {Imports: []string{"os"}},
		"m/exec":        {Imports: []string{"os/exec"}},
		"m/net":         {Imports: []string{"net"}},
		"m/sys":         {Imports: []string{"golang.org/x/sys/unix"}},
		"m/probe":       {Imports: []string{"m/internal/probe"}},
		"m/through":     {Imports: []string{"m/os"}},
		"m/clock":       {Imports: []string{"time"}, Files: file(`import "time"; var t = time.Now()`)},
		"m/renamed":     {Imports: []string{"time"}, Files: file(`import clock "time"; var s = clock.Since`)},
		"m/dot":         {Imports: []string{"time"}, Files: file(`import . "time"; var t = Now()`)},
		"m/foreign":     {Imports: []string{"example.org/x"}},
		"fmt":           {Standard: true},
		"strings":       {Standard: true},
		"time":          {Standard: true},
		"net/netip":     {Standard: true},
		"example.org/x": {},
	}
	r := Rules{Module: "m", Lookup: func(importPath string) (Package, error) {
		p, ok := packages[importPath]
		if !ok {
			return Package{}, fmt.Errorf("no package %s", importPath)
		}
		return p, nil
	}}
	for _, c := range []struct {
		path         string
		standardOnly bool
		want         []string
	}{
		{"m/clean", false, nil},
		{"m/clean", true, []string{"clean imports helper: a leaf imports nothing of the module"}},
		{"m/helper", true, nil},
		{"m/os", false, []string{"os imports os"}},
		{"m/exec", false, []string{"exec imports os/exec"}},
		{"m/net", false, []string{"net imports net"}},
		{"m/sys", false, []string{"sys imports golang.org/x/sys/unix"}},
		{"m/probe", false, []string{"probe imports internal/probe"}},
		{"m/through", false, []string{"through imports os imports os"}},
		{"m/clock", false, []string{"clock uses time.Now at a.go:2"}},
		{"m/renamed", false, []string{"renamed uses time.Since at a.go:2"}},
		{"m/dot", false, []string{"dot uses a dot import of time at a.go"}},
		{"m/foreign", false, nil},
		{"m/foreign", true, []string{"foreign imports example.org/x, which is not of the standard library"}},
	} {
		got, err := r.CheckPure(c.path, c.standardOnly)
		if err != nil {
			t.Errorf("%s: %v", c.path, err)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s (standard only: %v): found %q, want %q", c.path, c.standardOnly, got, c.want)
		}
	}
	if _, err := r.CheckPure("m/nowhere", false); err == nil {
		t.Error("a package that is not there is taken for a pure one")
	}
}
