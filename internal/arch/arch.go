// Package arch holds the rules about which package may know what, and its test
// holds the repository to them.
//
// A pure package works on values that it is given: replaying a dump gives the
// same output as the live run only because nothing in it asks the kernel, a
// file or the clock.
package arch

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path"
	"slices"
	"strconv"
	"strings"
)

// clockUses are what package time has that depends on when it is called.
var clockUses = []string{"Now", "Since", "Until", "After", "AfterFunc", "NewTimer", "NewTicker", "Tick", "Sleep"}

// forbidden are the import paths, with all that is below them, that a pure
// package may not have. Those that begin with "./" are the module's own.
var forbidden = []string{
	"os", "net", "syscall", "io/ioutil", "log", "math/rand", "crypto/rand", "plugin", "unsafe",
	"golang.org/x/sys", "github.com/cilium/ebpf", "github.com/vishvananda",
	"./internal/probe", "./internal/host", "./internal/lab", "./internal/pipeline", "./cmd",
}

// allowed are exceptions from forbidden.
var allowed = []string{"net/netip"}

// Package is what the rules look at.
type Package struct {
	ImportPath string
	// Standard is true of the standard library's packages.
	Standard bool
	Imports  []string
	// Files are the Go files that are built, without tests, by name.
	Files map[string][]byte
}

// Rules tells what a pure package must be.
type Rules struct {
	// Module is the module's path.
	Module string
	// Lookup returns a package by its import path.
	Lookup func(importPath string) (Package, error)
}

// CheckPure returns what makes the package impure, directly or through the
// module's own packages that it imports: one line for each thing found. With
// standardOnly, every import from outside the standard library is one.
func (r Rules) CheckPure(importPath string, standardOnly bool) ([]string, error) {
	var found []string
	seen := map[string]bool{}
	var visit func(importPath string, via []string) error
	visit = func(importPath string, via []string) error {
		if seen[importPath] {
			return nil
		}
		seen[importPath] = true
		p, err := r.Lookup(importPath)
		if err != nil {
			return err
		}
		via = append(slices.Clone(via), r.short(importPath))
		chain := strings.Join(via, " imports ")
		for _, i := range p.Imports {
			if rule := r.forbids(i); rule != "" {
				found = append(found, fmt.Sprintf("%s imports %s", chain, r.short(i)))
				continue
			}
			own := r.own(i)
			if standardOnly && !own {
				q, err := r.Lookup(i)
				if err != nil {
					return err
				}
				if !q.Standard {
					found = append(found, fmt.Sprintf("%s imports %s, which is not of the standard library", chain, i))
				}
			}
			if standardOnly && own {
				found = append(found, fmt.Sprintf("%s imports %s: a leaf imports nothing of the module", chain, r.short(i)))
			} else if own {
				if err := visit(i, via); err != nil {
					return err
				}
			}
		}
		uses, err := clockUsesOf(p.Files)
		if err != nil {
			return err
		}
		for _, u := range uses {
			found = append(found, fmt.Sprintf("%s uses %s", chain, u))
		}
		return nil
	}
	return found, visit(importPath, nil)
}

func (r Rules) own(importPath string) bool { return within(importPath, r.Module) }

func (r Rules) short(importPath string) string {
	return strings.TrimPrefix(importPath, r.Module+"/")
}

// forbids returns the rule that an import breaks, or "".
func (r Rules) forbids(importPath string) string {
	if slices.Contains(allowed, importPath) {
		return ""
	}
	for _, f := range forbidden {
		full := f
		if rest, ok := strings.CutPrefix(f, "./"); ok {
			full = path.Join(r.Module, rest)
		}
		if within(importPath, full) {
			return f
		}
	}
	return ""
}

func within(importPath, parent string) bool {
	return importPath == parent || strings.HasPrefix(importPath, parent+"/")
}

// clockUsesOf returns where the files use the clock, as "time.Now at FILE:LINE".
func clockUsesOf(files map[string][]byte) ([]string, error) {
	var found []string
	set := token.NewFileSet()
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		f, err := parser.ParseFile(set, name, files[name], parser.SkipObjectResolution)
		if err != nil {
			return nil, fmt.Errorf("parsing a file: %w", err)
		}
		local := timeName(f)
		if local == "" {
			continue
		}
		if local == "." {
			found = append(found, fmt.Sprintf("a dot import of time at %s", name))
			continue
		}
		ast.Inspect(f, func(n ast.Node) bool {
			s, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if x, ok := s.X.(*ast.Ident); ok && x.Name == local && slices.Contains(clockUses, s.Sel.Name) {
				at := set.Position(s.Pos())
				found = append(found, fmt.Sprintf("time.%s at %s:%d", s.Sel.Name, at.Filename, at.Line))
			}
			return true
		})
	}
	return found, nil
}

// timeName returns the name under which a file knows package time, or "".
func timeName(f *ast.File) string {
	for _, i := range f.Imports {
		if p, err := strconv.Unquote(i.Path.Value); err != nil || p != "time" {
			continue
		}
		if i.Name != nil {
			return i.Name.Name
		}
		return "time"
	}
	return ""
}
