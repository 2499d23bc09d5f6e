package probe

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// symbol is where a function of the kernel is.
type symbol struct{ start, end uint64 }

const kallsyms = "/proc/kallsyms"

// eachSymbol calls fn for every function of the kernel, in no order, until fn
// returns false. Without the privilege to see addresses all are 0.
func eachSymbol(fn func(addr uint64, name string) bool) error {
	f, err := os.Open(kallsyms)
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		addr, rest, _ := strings.Cut(lines.Text(), " ")
		kind, name, _ := strings.Cut(rest, " ")
		if kind != "t" && kind != "T" {
			continue
		}
		a, err := strconv.ParseUint(addr, 16, 64)
		if err != nil || a == 0 {
			continue
		}
		name, _, _ = strings.Cut(name, "\t") // a module's name follows
		if !fn(a, name) {
			return nil
		}
	}
	return lines.Err()
}

// lookUpSymbol finds where a function begins, and where the next one does.
func lookUpSymbol(name string) (symbol, error) {
	var s symbol
	if err := eachSymbol(func(a uint64, n string) bool {
		if n == name {
			s.start = a
		}
		return s.start == 0
	}); err != nil {
		return symbol{}, fmt.Errorf("looking up %s: %w", name, err)
	}
	if s.start == 0 {
		return symbol{}, fmt.Errorf("looking up %s: not in %s", name, kallsyms)
	}
	s.end = ^uint64(0)
	if err := eachSymbol(func(a uint64, _ string) bool {
		if a > s.start && a < s.end {
			s.end = a
		}
		return true
	}); err != nil {
		return symbol{}, fmt.Errorf("looking up %s: %w", name, err)
	}
	return s, nil
}

// symbols names places in the kernel. Few are ever asked for, so each is
// looked up on its own, and remembered.
type symbols struct{ names map[uint64]string }

const maxSymbols = 1024

func (s *symbols) name(location uint64) string {
	name, ok := s.names[location]
	if ok || len(s.names) >= maxSymbols {
		return name
	}
	var best uint64
	_ = eachSymbol(func(a uint64, n string) bool { // unreadable: unknown
		if a <= location && a > best {
			best, name = a, n
		}
		return true
	})
	if s.names == nil {
		s.names = map[uint64]string{}
	}
	s.names[location] = name
	return name
}
