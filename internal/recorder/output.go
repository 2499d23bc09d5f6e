package recorder

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/dump"
	"github.com/tcptrace/tcptrace/internal/outfile"
)

// SpaceError says that less was left on a file system than was to be left.
type SpaceError struct {
	Path      string
	Next      uint64 // bytes that were to be written
	Left, Min uint64 // bytes
}

func (e *SpaceError) Error() string {
	return fmt.Sprintf("writing %s: the next %s do not fit: %s are left on its file system, and %s are to be left", e.Path,
		humanize.IBytes(e.Next), humanize.IBytes(e.Left), humanize.IBytes(e.Min))
}

// Hint says what can be done about it.
func (e *SpaceError) Hint() string {
	return "make room, choose another file system, or lower --min-free"
}

// syncEvery is how often what was written is made to survive a crash of the
// machine.
const syncEvery = 5 * time.Second

// output is a dump that is being written.
type output struct {
	o       *Options
	f       *os.File
	made    *file // nil: not made here
	name    string
	regular bool
	size    int64
	run     uint32 // of its frames
	seq     uint32
	before  uint64 // events of the recording up to its last frame
	synced  time.Time
	dirty   bool
	scratch []byte
}

func newOutput(o *Options, f *os.File, made *file) *output {
	out := &output{o: o, f: f, made: made, name: f.Name(), synced: time.Now()}
	st, err := f.Stat()
	out.regular = err == nil && st.Mode().IsRegular()
	return out
}

// begin writes what a dump begins with. preamble may be nil.
func (out *output) begin(h dump.Header, preamble *dump.Frame) error {
	out.run = dump.RunID(h.Run)
	b, err := dump.HeaderFrame(h)
	if err != nil {
		return fmt.Errorf("writing %s: %w", out.name, err)
	}
	if err := out.write(b, true); err != nil {
		return err
	}
	out.seq = 2
	if preamble != nil {
		return out.frame(preamble)
	}
	return nil
}

func (out *output) frame(f *dump.Frame) error {
	out.scratch = f.Append(out.scratch[:0], out.run, out.seq)
	if err := out.write(out.scratch, true); err != nil {
		return err
	}
	out.seq++
	out.before = f.Before + uint64(f.Events)
	return nil
}

// write appends bytes, all or none of them: what comes after them must be able
// to begin a frame. checked keeps the floor of free space.
func (out *output) write(b []byte, checked bool) error {
	if checked && out.regular {
		if err := out.o.room(int(out.f.Fd()), out.name, len(b)); err != nil {
			return err
		}
	}
	if _, err := out.f.Write(b); err != nil {
		if out.made != nil {
			// If even this fails, a reader meets half a frame, and says so.
			_ = out.f.Truncate(out.size)
			_, _ = out.f.Seek(out.size, 0)
		}
		var path *fs.PathError
		if errors.As(err, &path) {
			err = path.Err
		}
		return fmt.Errorf("writing %s: %w", out.name, err)
	}
	out.size += int64(len(b))
	out.dirty = true
	return nil
}

// sync has what was written survive a crash of the machine, at most so often
// unless now is set.
func (out *output) sync(now bool) error {
	if !out.regular || !out.dirty || !now && time.Since(out.synced) < syncEvery {
		return nil
	}
	out.synced, out.dirty = time.Now(), false
	err := unix.Fdatasync(int(out.f.Fd()))
	if err == nil || err == unix.EINVAL || err == unix.ENOTSUP || err == unix.EROFS || err == unix.EINTR {
		return nil // not every file system has this
	}
	return fmt.Errorf("writing %s: %w", out.name, err)
}

// end writes the last word and closes the file. The floor of free space does
// not hold for it, so that a dump that ends for want of space says so.
func (out *output) end(e dump.End, before uint64) error {
	f, err := dump.EndFrame(e, before)
	if err == nil {
		out.scratch = f.Append(out.scratch[:0], out.run, out.seq)
		err = out.write(out.scratch, false)
	}
	if err == nil {
		err = out.sync(true)
	}
	if out.made == nil {
		return err // whoever opened it closes it
	}
	if cerr := out.f.Close(); err == nil && cerr != nil {
		err = fmt.Errorf("closing %s: %w", out.name, cerr)
	}
	return err
}

// fail ends a dump because of an error, which it returns. told is how many
// events of the recording are known of: a reader is told that those which are
// not in it are lost.
func (out *output) fail(err error, at int64, told uint64) error {
	told = max(told, out.before)
	e := dump.End{Reason: dump.EndError, Text: err.Error(), At: at}
	if out.o.Pseudonyms != nil {
		// Where it was written is nobody's business.
		e.Text = strings.ReplaceAll(e.Text, filepath.Dir(out.name)+"/", "")
	}
	if n := told - out.before; n > 0 {
		e.Text += fmt.Sprintf("; until then %s could not be written", count(n, "event"))
	}
	var space *SpaceError
	if errors.As(err, &space) {
		e.Reason = dump.EndSpace
	}
	// Whether there was room for this a reader sees.
	_ = out.end(e, told)
	return err
}

// room reports whether n bytes can be written to a file's file system.
func (o *Options) room(fd int, name string, n int) error {
	if o.MinFree == 0 {
		return nil
	}
	left, size, err := o.free(fd)
	if err != nil {
		return nil // then it shows as the disk is full
	}
	least := uint64(max(o.MinFree, 0))
	if o.MinFree < 0 {
		least = min(defaultMinFree, size/20)
	}
	if left < least+uint64(n) {
		return &SpaceError{Path: name, Next: uint64(n), Left: left, Min: least}
	}
	return nil
}

// discard removes a dump that has nothing in it.
func (out *output) discard(d *directory) {
	if out.made != nil {
		_ = d.remove(out.made)
		_ = out.f.Close()
	}
}

// Hint is what can be done about an error of a recording, "" nothing.
func Hint(err error) string {
	var space *SpaceError
	var refused *outfile.Error
	switch {
	case errors.As(err, &space):
		return space.Hint()
	case errors.As(err, &refused):
		return refused.Hint
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return "make room, or choose another file system; --min-free ends a recording before its disk is full"
	}
	return ""
}
