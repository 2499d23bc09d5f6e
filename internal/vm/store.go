package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Store keeps unpacked kernels in a directory. Several processes may use one
// directory at the same time.
type Store struct {
	// Dir is where kernels are kept; it is made when needed.
	Dir string
	// Log gets a line for each kernel that is fetched; nil means none.
	Log io.Writer
}

// OpenStore returns the store in the user's cache directory.
func OpenStore(log io.Writer) (*Store, error) {
	dir, err := CacheDir()
	if err != nil {
		return nil, err
	}
	return &Store{Dir: filepath.Join(dir, "kernels"), Log: log}, nil
}

// recordFile lies beside the unpacked packages and says what they are. It is
// there only when the kernel is complete.
const recordFile = "kernel.json"

// Get returns the kernel that spec names (SpecHelp), fetching it when it is not
// in the store. A kernel in the store is used without a look at the network; to
// have a newer one of the same name, Remove it first.
func (s *Store) Get(ctx context.Context, spec string) (Kernel, error) {
	src, err := parseSpec(spec)
	if err != nil {
		return Kernel{}, err
	}
	if src.image != "" {
		return locateImage(spec, src.image)
	}
	key, err := src.cacheKey(spec)
	if err != nil {
		return Kernel{}, err
	}
	unlock, err := s.lock(key)
	if err != nil {
		return Kernel{}, err
	}
	defer unlock()

	dir := filepath.Join(s.Dir, key)
	k, err := readRecord(dir)
	if errors.Is(err, os.ErrNotExist) {
		if err := s.fetch(ctx, spec, src, dir); err != nil {
			return Kernel{}, fmt.Errorf("fetching kernel %s: %w", spec, err)
		}
		k, err = readRecord(dir)
	}
	if err != nil {
		return Kernel{}, fmt.Errorf("reading kernel %s from the cache: %w", spec, err)
	}
	k.Name = spec
	return k, nil
}

// Remove takes a kernel out of the store. One that is not there is no error.
func (s *Store) Remove(spec string) error {
	src, err := parseSpec(spec)
	if err != nil {
		return err
	}
	if src.image != "" {
		return nil
	}
	key, err := src.cacheKey(spec)
	if err != nil {
		return err
	}
	unlock, err := s.lock(key)
	if err != nil {
		return err
	}
	defer unlock()
	if err := os.RemoveAll(filepath.Join(s.Dir, key)); err != nil {
		return fmt.Errorf("removing kernel %s: %w", spec, err)
	}
	return nil
}

// lock keeps other processes from the kernel while it is fetched.
func (s *Store) lock(key string) (unlock func(), err error) {
	if err := os.MkdirAll(s.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("making the kernel cache: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(s.Dir, key+".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("locking the kernel cache: %w", err)
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("locking the kernel cache: %w", err)
	}
	return func() { f.Close() }, nil
}

func readRecord(dir string) (Kernel, error) {
	text, err := os.ReadFile(filepath.Join(dir, recordFile))
	if err != nil {
		return Kernel{}, err
	}
	var k Kernel
	if err := json.Unmarshal(text, &k); err != nil {
		return Kernel{}, err
	}
	return k, k.locate(dir)
}

// fetch unpacks the kernel beside dir and moves it there when it is complete.
func (s *Store) fetch(ctx context.Context, spec string, src source, dir string) error {
	work, err := os.MkdirTemp(s.Dir, ".fetch-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)

	k := Kernel{Name: spec}
	debs := src.debs
	if len(debs) == 0 {
		s.logf("kernel %s: fetching %s from %s", spec, src.pkg, src.suite)
		debs, k.Packages, err = download(ctx, src, filepath.Join(work, "apt"))
		if err != nil {
			return err
		}
	} else {
		for _, deb := range debs {
			k.Packages = append(k.Packages, filepath.Base(deb))
		}
	}
	root := filepath.Join(work, "root")
	for _, deb := range debs {
		if err := unpack(ctx, deb, root); err != nil {
			return err
		}
	}
	if err := k.locate(root); err != nil {
		return err
	}
	text, err := json.MarshalIndent(k, "", "\t")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(root, recordFile), append(text, '\n'), 0o644); err != nil {
		return err
	}
	// What is left there can only be half of an earlier fetch.
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.Chmod(root, 0o755); err != nil {
		return err
	}
	if err := os.Rename(root, dir); err != nil {
		return err
	}
	s.logf("kernel %s: %s, from %s", spec, k.Release, strings.Join(k.Packages, ", "))
	return nil
}

func (s *Store) logf(format string, args ...any) {
	if s.Log != nil {
		fmt.Fprintf(s.Log, format+"\n", args...)
	}
}
