package vm

import (
	"fmt"
	"io"
	"path"
	"strings"
)

// File types and modes of a cpio entry, as in stat(2).
const (
	modeDir     = 0o040000
	modeRegular = 0o100000
)

// cpioWriter writes a newc archive, the format of an initial RAM disk
// (Documentation/driver-api/early-userspace/buffer-format.rst in the kernel's
// source). Parent directories are made as needed; everything belongs to root,
// and times are 0, so that the same content gives the same bytes.
type cpioWriter struct {
	w     io.Writer
	inode uint32
	size  int64
	dirs  map[string]bool
	err   error
}

func newCpioWriter(w io.Writer) *cpioWriter {
	return &cpioWriter{w: w, dirs: map[string]bool{}}
}

// Dir adds a directory and its parents. Adding it again does nothing.
func (c *cpioWriter) Dir(name string) error {
	name = cleanName(name)
	if name == "" || c.dirs[name] {
		return c.err
	}
	if err := c.Dir(path.Dir(name)); err != nil {
		return err
	}
	c.dirs[name] = true
	return c.entry(name, modeDir|0o755, nil)
}

// File adds a regular file with the given permission bits, and its parents.
func (c *cpioWriter) File(name string, perm uint32, content []byte) error {
	name = cleanName(name)
	if name == "" {
		return fmt.Errorf("writing the initial RAM disk: a file without a name")
	}
	if err := c.Dir(path.Dir(name)); err != nil {
		return err
	}
	return c.entry(name, modeRegular|perm&0o7777, content)
}

// Close writes the trailer. It does not close the underlying writer.
func (c *cpioWriter) Close() error {
	c.inode = 0 // as cpio(1) writes it
	return c.entry("TRAILER!!!", 0, nil)
}

func cleanName(name string) string {
	return strings.TrimPrefix(path.Clean("/"+name), "/")
}

func (c *cpioWriter) entry(name string, mode uint32, content []byte) error {
	if int64(len(content)) > 0xffffffff {
		return fmt.Errorf("writing the initial RAM disk: %s is larger than 4 GiB", name)
	}
	links := 1
	if mode&modeDir != 0 {
		links = 2
	}
	c.inode++
	c.write(fmt.Appendf(nil, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		c.inode, mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(name)+1, 0))
	c.write(append([]byte(name), 0))
	c.pad()
	c.write(content)
	c.pad()
	return c.err
}

// pad fills up to the next multiple of 4 bytes.
func (c *cpioWriter) pad() {
	if n := int(c.size % 4); n != 0 {
		c.write(make([]byte, 4-n))
	}
}

func (c *cpioWriter) write(b []byte) {
	if c.err != nil {
		return
	}
	n, err := c.w.Write(b)
	c.size += int64(n)
	if err != nil {
		c.err = fmt.Errorf("writing the initial RAM disk: %w", err)
	}
}
