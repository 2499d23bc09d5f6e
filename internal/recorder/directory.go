package recorder

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/outfile"
)

// directory is where dumps are made. It is held open, since its path may come
// to mean another one. Names in it are looked at without following links.
type directory struct {
	fd   int
	path string // as the user wrote it
}

// openDirectory opens the directory of a file that is to be made there.
func openDirectory(path string) (*directory, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == unix.EACCES {
		// One that can be written to need not be readable.
		fd, err = unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	}
	switch {
	case err == unix.ENOENT:
		return nil, &outfile.Error{Path: path, Err: errors.New("the directory is not there"), Hint: "create it first: mkdir -p " + path}
	case err == unix.ENOTDIR:
		return nil, &outfile.Error{Path: path, Err: errors.New("this is no directory"), Hint: "name a file in a directory"}
	case err != nil:
		return nil, &outfile.Error{Path: path, Err: err}
	}
	if err := unix.Faccessat(fd, ".", unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
		unix.Close(fd)
		return nil, &outfile.Error{Path: path, Err: err, Hint: writableHint(err)}
	}
	return &directory{fd, path}, nil
}

func writableHint(err error) string {
	switch {
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return "choose a directory that you can write to"
	case errors.Is(err, unix.EROFS):
		return "the file system is mounted read-only: choose another one"
	case errors.Is(err, unix.ENAMETOOLONG):
		return "choose a shorter name"
	}
	return ""
}

func (d *directory) close() { unix.Close(d.fd) }

// full is a name in the directory as the user would write it.
func (d *directory) full(base string) string {
	if d.path == "." {
		return base
	}
	return filepath.Join(d.path, base)
}

// vacant reports what keeps a name from being used.
func (d *directory) vacant(base string, force bool) error {
	refuse := func(err error, hint string) error {
		return &outfile.Error{Path: d.full(base), Err: err, Hint: hint}
	}
	var st unix.Stat_t
	switch err := unix.Fstatat(d.fd, base, &st, unix.AT_SYMLINK_NOFOLLOW); {
	case err == unix.ENOENT:
		return nil
	case err != nil:
		return refuse(err, writableHint(err))
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		if !force {
			return refuse(fs.ErrExist, "choose another name, or give --force to replace it")
		}
		return nil
	case unix.S_IFLNK:
		return refuse(fmt.Errorf("a symbolic link is there, and none is followed: %w", fs.ErrExist), "name the file that is meant, or remove the link")
	case unix.S_IFDIR:
		return refuse(fmt.Errorf("it is a directory: %w", fs.ErrExist), "name a file in it")
	}
	return refuse(fmt.Errorf("it is not a regular file: %w", fs.ErrExist), "choose another name; -o - writes to a pipe")
}

// file is one that was made here.
type file struct {
	f        *os.File
	base     string
	dev, ino uint64
}

// create makes a file that was not there. With force it takes the place of a
// regular file, and of nothing else.
func (d *directory) create(base string, force bool) (*file, error) {
	if err := d.vacant(base, force); err != nil {
		return nil, err
	}
	f, err := d.open(base)
	if err == unix.EEXIST && force {
		f, err = d.replace(base)
	}
	if err == unix.EEXIST {
		err = fmt.Errorf("somebody made it meanwhile: %w", fs.ErrExist)
	}
	if err != nil {
		return nil, &outfile.Error{Path: d.full(base), Err: err, Hint: writableHint(err)}
	}
	// That a crash of the machine can undo it is no reason not to record.
	_ = unix.Fsync(d.fd)
	return f, nil
}

// replace makes a file that takes the place of another one, which goes only
// when there is something in its place.
func (d *directory) replace(base string) (*file, error) {
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		return nil, err
	}
	name := ".tcptrace-" + hex.EncodeToString(b[:])
	f, err := d.openAs(name, base)
	if err != nil {
		return nil, err
	}
	// Of whatever came there meanwhile, only the name goes.
	if err := unix.Renameat(d.fd, name, d.fd, base); err != nil {
		f.f.Close()
		_ = unix.Unlinkat(d.fd, name, 0)
		return nil, err
	}
	return f, nil
}

func (d *directory) open(base string) (*file, error) { return d.openAs(base, base) }

// openAs makes a file that is going to be called base.
func (d *directory) openAs(name, base string) (*file, error) {
	fd, err := unix.Openat(d.fd, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, outfile.Mode)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return &file{f: os.NewFile(uintptr(fd), d.full(base)), base: base, dev: uint64(st.Dev), ino: st.Ino}, nil
}

// remove removes a file that was made here, unless something else has its name
// by now.
func (d *directory) remove(f *file) error {
	var st unix.Stat_t
	switch err := unix.Fstatat(d.fd, f.base, &st, unix.AT_SYMLINK_NOFOLLOW); {
	case err == unix.ENOENT:
		return nil // somebody was faster
	case err != nil:
		return fmt.Errorf("removing %s: %w", d.full(f.base), err)
	}
	if uint64(st.Dev) != f.dev || st.Ino != f.ino || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return fmt.Errorf("removing %s: it is another file by now, which is left alone", d.full(f.base))
	}
	if err := unix.Unlinkat(d.fd, f.base, 0); err != nil && err != unix.ENOENT {
		return fmt.Errorf("removing %s: %w", d.full(f.base), err)
	}
	return nil
}

// anonymous makes a file without a name.
func (d *directory) anonymous() (*os.File, error) {
	fd, err := unix.Openat(d.fd, ".", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, outfile.Mode)
	if err == nil {
		return os.NewFile(uintptr(fd), d.full("(spool)")), nil
	}
	if err != unix.EOPNOTSUPP && err != unix.EISDIR && err != unix.EINVAL && err != unix.ENOENT {
		return nil, fmt.Errorf("creating a file in %s: %w", d.path, err)
	}
	// Not every file system has this; NFS has not.
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		return nil, err
	}
	f, err := d.open(".tcptrace-spool-" + hex.EncodeToString(b[:]))
	if err != nil {
		return nil, fmt.Errorf("creating a file in %s: %w", d.path, err)
	}
	if err := d.remove(f); err != nil {
		f.f.Close()
		return nil, err
	}
	return f.f, nil
}

// taken returns a name in the directory of the form stem.NUMBER.tcpt, "" if
// there is none or the directory cannot be listed.
func (d *directory) taken(stem, extension string) string {
	fd, err := unix.Openat(d.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	f := os.NewFile(uintptr(fd), d.path)
	defer f.Close()
	for {
		names, err := f.Readdirnames(1024)
		for _, name := range names {
			number, ok := strings.CutPrefix(name, stem+".")
			if !ok {
				continue
			}
			if number, ok = strings.CutSuffix(number, extension); ok && len(number) >= partDigits && strings.Trim(number, "0123456789") == "" {
				return name
			}
		}
		if err != nil {
			return ""
		}
	}
}

// free is how much can still be written to a file's file system, and its size,
// in bytes.
func free(fd int) (left, size uint64, err error) {
	var st unix.Statfs_t
	for {
		if err = unix.Fstatfs(fd, &st); err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return 0, 0, fmt.Errorf("asking for free space: %w", err)
	}
	unit := uint64(st.Frsize)
	if unit == 0 {
		unit = uint64(st.Bsize)
	}
	return st.Bavail * unit, st.Blocks * unit, nil
}
