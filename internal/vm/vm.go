// Package vm runs programs under other kernels than the running one: it fetches
// Debian's kernel packages, packs an initial RAM disk around given programs,
// boots it in QEMU, and hands back what each program printed and how it ended.
//
// Nothing of the host is visible in a machine but the files that a Job names,
// and a machine has no network beyond its own loopback and what the programs
// make themselves.
package vm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// hintedError is an error with advice for the person who sees it.
type hintedError struct {
	error
	hint string
}

func (e hintedError) Unwrap() error { return e.error }

func hinted(err error, format string, args ...any) error {
	return hintedError{err, fmt.Sprintf(format, args...)}
}

// Hint returns the advice that comes with err, or "".
func Hint(err error) string {
	var h hintedError
	if errors.As(err, &h) {
		return h.hint
	}
	return ""
}

// CacheDir returns where kernels and what is known about this machine are kept,
// outside every repository: $XDG_CACHE_HOME/tcptrace, else ~/.cache/tcptrace.
func CacheDir() (string, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", hinted(fmt.Errorf("finding the cache directory: %w", err), "set HOME or XDG_CACHE_HOME")
	}
	return filepath.Join(dir, "tcptrace"), nil
}
