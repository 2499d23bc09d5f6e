// Command cases keeps the output on the pages of docs/cases true: it runs the
// demo that each block of a page names, and puts what tcptrace says in its
// place; with --check it only looks whether tcptrace still says the same.
//
// Needs root, as demo does. Everything happens in network namespaces that demo
// makes and throws away.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

func main() {
	check := pflag.Bool("check", false, "change nothing; fail where a demo gives other verdicts or stories than its page")
	program := pflag.String("tcptrace", "bin/tcptrace", "the program to run")
	dir := pflag.String("dir", "docs/cases", "where the pages are")
	pflag.Usage = func() {
		fmt.Fprintf(os.Stderr, "usage: cases [--check] [PAGE...]\n\nPAGE is a letter; without one, all pages.\n\n%s", pflag.CommandLine.FlagUsages())
	}
	pflag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *dir, *program, *check, pflag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, dir, program string, check bool, letters []string) error {
	pages, err := filepath.Glob(filepath.Join(dir, "[a-z].md"))
	if err != nil {
		return err
	}
	if len(letters) > 0 {
		pages = pages[:0]
		for _, l := range letters {
			pages = append(pages, filepath.Join(dir, strings.ToLower(l)+".md"))
		}
	}
	if len(pages) == 0 {
		return fmt.Errorf("no pages in %s", dir)
	}
	var failed []error
	for _, path := range pages {
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		p, err := parse(string(text))
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		for _, b := range p.blocks() {
			fmt.Fprintf(os.Stderr, "%s: demo %s\n", path, b.demo)
			if err := b.update(ctx, program, check); err != nil {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				failed = append(failed, fmt.Errorf("%s: demo %s: %w", path, b.demo, err))
			}
		}
		if check {
			continue
		}
		if now := p.String(); now != string(text) {
			if err := os.WriteFile(path, []byte(now), 0o644); err != nil {
				return err
			}
		}
	}
	return errors.Join(failed...)
}

// update runs the demo of b and takes its output over, or with check compares
// what it says with what the page has.
func (b *block) update(ctx context.Context, program string, check bool) error {
	lines, err := demo(ctx, program, "--output=json", b.demo)
	if err != nil {
		return err
	}
	said, err := structure(lines)
	if err != nil {
		return err
	}
	if check {
		return compare(b.said, said)
	}
	text, err := demo(ctx, program, b.demo)
	if err != nil {
		return err
	}
	b.said = said
	b.output = shown(string(text))
	return nil
}

// demo runs one and returns its stdout.
func demo(ctx context.Context, program string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, append([]string{"demo"}, args...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	cmd.Env = append(os.Environ(), "TZ=UTC")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%w\n%s", err, strings.TrimSpace(stderr.String()))
	}
	return out, nil
}
