package vm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	"github.com/tcptrace/tcptrace/internal/vm/frame"
)

// TestPackage is a Go package with tests.
type TestPackage struct {
	ImportPath string
	// Dir is the package's directory on the host.
	Dir string
	// Short is the import path without the module's, such as "internal/probe".
	Short string
}

// Label names the package in file names.
func (p TestPackage) Label() string { return strings.ReplaceAll(p.Short, "/", "-") }

// GuestDir is the package's directory in a machine, where its test program and
// its testdata are.
func (p TestPackage) GuestDir() string { return path.Join("/vm/test", p.Label()) }

// GuestProgram is the path of the test program in a machine.
func (p TestPackage) GuestProgram() string { return path.Join(p.GuestDir(), "test") }

// ListTests returns the packages that the patterns of "go list" name and that
// have tests. A pattern that names none is an error, or a misspelt one would
// make a test run that tests nothing.
func ListTests(ctx context.Context, root string, patterns []string) ([]TestPackage, error) {
	var tests []TestPackage
	seen := map[string]bool{}
	for _, pattern := range patterns {
		var stdout, stderr bytes.Buffer
		cmd := exec.CommandContext(ctx, "go", "list", "-json=ImportPath,Dir,Module,TestGoFiles,XTestGoFiles", pattern)
		cmd.Dir, cmd.Env = root, GuestBuildEnv()
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		if err := cmd.Run(); err != nil {
			return nil, fmt.Errorf("listing the packages %s: %w: %s", pattern, err, bytes.TrimSpace(stderr.Bytes()))
		}
		found := 0
		for dec := json.NewDecoder(&stdout); ; {
			var p struct {
				ImportPath, Dir           string
				Module                    struct{ Path string }
				TestGoFiles, XTestGoFiles []string
			}
			if err := dec.Decode(&p); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				return nil, fmt.Errorf("listing the packages %s: %w", pattern, err)
			}
			if len(p.TestGoFiles)+len(p.XTestGoFiles) == 0 {
				continue
			}
			found++
			if !seen[p.ImportPath] {
				seen[p.ImportPath] = true
				short := strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, p.Module.Path), "/")
				if short == "" {
					short = path.Base(p.ImportPath)
				}
				tests = append(tests, TestPackage{p.ImportPath, p.Dir, short})
			}
		}
		if found == 0 {
			return nil, fmt.Errorf("listing the packages %s: none with tests", pattern)
		}
	}
	return tests, nil
}

// Build makes the package's test program in dir and returns the files that a
// machine needs to run it.
func (p TestPackage) Build(ctx context.Context, root, dir string) ([]File, error) {
	program := filepath.Join(dir, p.Label()+".test")
	cmd := exec.CommandContext(ctx, "go", "test", "-c", "-trimpath", "-ldflags=-s -w", "-o", program, p.ImportPath)
	cmd.Dir, cmd.Env = root, GuestBuildEnv()
	if text, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("building the tests of %s: %w\n%s", p.ImportPath, err, text)
	}
	files := []File{{Guest: p.GuestProgram(), Host: program, Perm: 0o755}}
	err := filepath.WalkDir(filepath.Join(p.Dir, "testdata"), func(host string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(p.Dir, host)
		if err != nil {
			return err
		}
		files = append(files, File{path.Join(p.GuestDir(), filepath.ToSlash(relative)), host, info.Mode().Perm()})
		return nil
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("collecting the test data of %s: %w", p.ImportPath, err)
	}
	return files, nil
}

// Command returns the command that runs the tests in a machine. Its output is
// for a TestLog.
func (p TestPackage) Command(args, env []string) frame.Command {
	return frame.Command{
		Path:  p.GuestProgram(),
		Args:  append([]string{"-test.v=test2json", "-test.paniconexit0"}, args...),
		Env:   env,
		Dir:   p.GuestDir(),
		Merge: true,
	}
}
