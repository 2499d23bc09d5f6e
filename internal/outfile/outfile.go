// Package outfile writes files that a user asked for by name, and that may hold
// what is nobody else's business: addresses, process names, command lines.
//
// Such a file gets mode 0600, and appears under its name only when it is whole.
// A symbolic link at that name is never followed, nor is anything but a regular
// file replaced: in a directory that others can write to, as /tmp is, somebody
// may have put it there on purpose.
package outfile

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Mode is that of every file made here: read and written by its owner alone.
const Mode = 0o600

// Error is a refusal, with what to do about it.
type Error struct {
	Path string
	Err  error
	Hint string // "" if there is nothing to say beyond Err
}

func (e *Error) Error() string { return fmt.Sprintf("creating %s: %v", e.Path, e.Err) }
func (e *Error) Unwrap() error { return e.Err }

// there is why a name cannot be taken: [fs.ErrExist] with better words.
type there string

func (t there) Error() string        { return string(t) }
func (t there) Is(target error) bool { return target == fs.ErrExist }

// File is a file on its way to its name. It belongs to one goroutine. Either
// Commit or Abort must be called; to call Abort after Commit does nothing.
type File struct {
	f     *os.File
	dir   int // the directory, held open: its path may come to mean another
	temp  string
	base  string
	path  string
	force bool
	done  bool
}

// Create begins a file that will be found at path once it was committed. It
// fails where something is at path already, unless force is set and that is a
// regular file, which then is replaced as a whole on Commit. Refusals are of
// type [*Error]; they can be told by [fs.ErrExist] and [fs.ErrNotExist].
func Create(path string, force bool) (*File, error) {
	refuse := func(hint string, err error) (*File, error) { return nil, &Error{path, err, hint} }
	base := filepath.Base(path)
	if path == "" || os.IsPathSeparator(path[len(path)-1]) || base == "." || base == ".." {
		return refuse("name a file", errors.New("this is the name of a directory"))
	}
	dir, err := openDir(filepath.Dir(path))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return refuse("create the directory first: mkdir -p "+filepath.Dir(path), fmt.Errorf("its directory is not there: %w", err))
	case err != nil:
		return refuse("", fmt.Errorf("opening the directory: %w", err))
	}
	if hint, err := vacant(dir, base, force); err != nil {
		unix.Close(dir)
		return refuse(hint, err)
	}
	temp, fd, err := openTemp(dir)
	if err != nil {
		unix.Close(dir)
		return refuse(writableHint(err), err)
	}
	return &File{f: os.NewFile(uintptr(fd), path), dir: dir, temp: temp, base: base, path: path, force: force}, nil
}

// openDir opens a directory for what is done beneath it. One that can be written
// to need not be readable.
func openDir(path string) (int, error) {
	fd, err := retry(func() (int, error) {
		return unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err == unix.EACCES {
		return retry(func() (int, error) { return unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0) })
	}
	return fd, err
}

// vacant reports what keeps base from being written, and what to do about it.
func vacant(dir int, base string, force bool) (hint string, err error) {
	var st unix.Stat_t
	switch err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW); {
	case err == unix.ENOENT:
		return "", nil
	case err != nil:
		return "", err
	}
	const other = "choose another name"
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		if !force {
			return other + ", or give --force to replace it", there("it is there already")
		}
		return "", nil
	case unix.S_IFLNK:
		return "name the file that is meant, or remove the link", there("a symbolic link is there, and none is followed")
	case unix.S_IFDIR:
		return "name a file in it", there("it is a directory")
	}
	return other + "; to write to a pipe or a device, use the shell's >", there("it is not a regular file")
}

// openTemp creates a file that nobody can have foreseen.
func openTemp(dir int) (string, int, error) {
	for range 100 {
		var b [8]byte
		if _, err := rand.Read(b[:]); err != nil {
			return "", -1, err
		}
		name := ".tcptrace-" + hex.EncodeToString(b[:]) + ".tmp"
		fd, err := retry(func() (int, error) {
			return unix.Openat(dir, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, Mode)
		})
		if err == unix.EEXIST {
			continue
		}
		return name, fd, err
	}
	return "", -1, fs.ErrExist
}

func writableHint(err error) string {
	switch {
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return "choose a directory that you can write to"
	case errors.Is(err, unix.EROFS):
		return "the file system is mounted read-only: choose another one"
	}
	return ""
}

func retry(open func() (int, error)) (int, error) {
	for {
		fd, err := open()
		if err != unix.EINTR {
			return fd, err
		}
	}
}

// Name is the path that was given to Create.
func (f *File) Name() string { return f.path }

// Write writes to what will be the file.
func (f *File) Write(p []byte) (int, error) { return f.f.Write(p) }

// Fd is the file itself, for what needs more than Write: its size, or reading
// back. It must not be closed.
func (f *File) Fd() *os.File { return f.f }

// Commit puts the file in its place, on the disk too. On an error nothing is at
// its place that was not there before, and nothing is left behind.
func (f *File) Commit() error {
	if f.done {
		return fmt.Errorf("writing %s: %w", f.path, fs.ErrClosed)
	}
	// A disk that is full can show as late as this.
	err := f.f.Sync()
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTSUP) {
		err = nil // this file system has no such thing
	}
	if err == nil {
		err = f.place()
	}
	if err != nil {
		f.Abort()
		return err
	}
	f.done = true
	// What is left concerns only whether a crash of the machine can undo it: not
	// every file system lets a directory be written out.
	_ = unix.Fsync(f.dir)
	unix.Close(f.dir)
	if err := f.f.Close(); err != nil {
		return fmt.Errorf("closing %s: %w", f.path, err)
	}
	return nil
}

func (f *File) place() error {
	if f.force {
		// Whatever came there meanwhile, a rename does not follow it; and what
		// must not be replaced is looked for again.
		if hint, err := vacant(f.dir, f.base, true); err != nil {
			return &Error{f.path, err, hint}
		}
		if err := unix.Renameat(f.dir, f.temp, f.dir, f.base); err != nil {
			return &Error{f.path, err, ""}
		}
		return nil
	}
	err := unix.Renameat2(f.dir, f.temp, f.dir, f.base, unix.RENAME_NOREPLACE)
	if err == unix.EINVAL || err == unix.ENOSYS || err == unix.ENOTSUP {
		// Not every file system has this (NFS has not); links never replace.
		if err = unix.Linkat(f.dir, f.temp, f.dir, f.base, 0); err == nil {
			err = unix.Unlinkat(f.dir, f.temp, 0)
		}
	}
	switch {
	case err == unix.EEXIST:
		return &Error{f.path, there("somebody made it meanwhile"), "choose another name, or give --force to replace it"}
	case err != nil:
		return &Error{f.path, err, ""}
	}
	return nil
}

// Abort removes what was written. What is at the path is left alone.
func (f *File) Abort() {
	if f.done {
		return
	}
	f.done = true
	// Nothing can be done about an error, and nothing depends on it: the name
	// is one that nobody uses.
	_ = unix.Unlinkat(f.dir, f.temp, 0)
	unix.Close(f.dir)
	_ = f.f.Close()
}
