package recorder

import (
	"fmt"
	"strings"

	"github.com/tcptrace/tcptrace/internal/dump"
)

// partDigits is how many digits a part's number has at least in its name.
const partDigits = 4

// firstRoom is what a file takes at least, with room to spare, in bytes.
const firstRoom = 64 << 10

// planted bounds how many names that are taken are passed over.
const planted = 1000

// files keeps a recording in a file, or in a row of them.
type files struct {
	r      *Recorder
	o      *Options
	dir    *directory // nil: Out
	base   string
	header dump.Header
	cur    *output
	made   []*file // those that are there, in their order
	number int     // of the newest name
	over   bool    // the last file is closed
}

// rotating reports whether there are parts.
func (o *Options) rotating() bool { return o.MaxSize > 0 || o.MaxAge > 0 }

func stem(base string) string {
	if s := strings.TrimSuffix(base, dump.Extension); s != "" {
		return s
	}
	return base
}

// vacant reports what keeps the recording from being made.
func (s *files) vacant() error {
	if s.dir == nil {
		return nil
	}
	if !s.o.rotating() {
		return s.dir.vacant(s.base, s.o.Force)
	}
	if s.o.Force {
		return nil
	}
	if name := s.dir.taken(stem(s.base), dump.Extension); name != "" {
		return s.dir.vacant(name, false)
	}
	return nil
}

func (s *files) begin(h dump.Header, preamble *dump.Frame) (err error) {
	s.header = h
	s.cur, err = s.create(preamble)
	return err
}

// create begins the next file.
func (s *files) create(preamble *dump.Frame) (*output, error) {
	var out *output
	if s.dir == nil {
		out = newOutput(s.o, s.o.Out, nil)
	} else {
		// Before anything is replaced.
		if err := s.o.room(s.dir.fd, s.dir.full(s.base), firstRoom); err != nil {
			return nil, err
		}
		f, err := s.name()
		if err != nil {
			return nil, err
		}
		out = newOutput(s.o, f.f, f)
	}
	if err := out.begin(s.header, preamble); err != nil {
		out.discard(s.dir)
		return nil, err
	}
	if out.made != nil {
		s.made = append(s.made, out.made)
	}
	s.r.opened(out.name)
	s.r.wrote(out.size)
	return out, nil
}

// name makes the next file. Names that are taken, perhaps on purpose in a
// directory where others can write, are passed over.
func (s *files) name() (f *file, err error) {
	if !s.o.rotating() {
		return s.dir.create(s.base, s.o.Force)
	}
	for range planted {
		s.number++
		f, err = s.dir.create(fmt.Sprintf("%s.%0*d%s", stem(s.base), partDigits, s.number, dump.Extension), s.o.Force)
		if !exists(err) {
			break
		}
	}
	return f, err
}

func (s *files) frame(f *dump.Frame) error {
	was := s.cur.size
	if err := s.cur.frame(f); err != nil {
		return s.cur.fail(err, f.Last, s.r.seen.Load())
	}
	s.r.wrote(s.cur.size - was)
	s.r.kept(f.Events)
	s.r.advanced(s.header.Part, s.cur.size, len(f.Raw))
	return nil
}

// next ends a part and begins another one.
func (s *files) next(preamble *dump.Frame, end dump.End, before uint64) error {
	for s.o.MaxFiles > 0 && len(s.made) >= s.o.MaxFiles {
		if err := s.dir.remove(s.made[0]); err != nil {
			s.r.tell("%v", err)
		}
		s.r.removed(s.dir.full(s.made[0].base))
		s.made = s.made[1:]
	}
	s.header.Part++
	out, err := s.create(preamble)
	if err != nil {
		return s.cur.fail(err, end.At, s.r.seen.Load())
	}
	was := s.cur.size
	if err := s.cur.end(end, before); err != nil {
		return out.fail(err, end.At, s.r.seen.Load())
	}
	s.r.wrote(s.cur.size - was)
	s.cur = out
	s.r.advanced(s.header.Part, s.cur.size, 0)
	return nil
}

func (s *files) sync() error {
	if err := s.cur.sync(false); err != nil {
		return s.cur.fail(err, 0, s.r.seen.Load())
	}
	return nil
}

func (s *files) end(e dump.End, before uint64) error {
	was := s.cur.size
	err := s.cur.end(e, before)
	s.r.wrote(s.cur.size - was)
	return err
}

func (s *files) close() {
	if s.dir != nil {
		s.dir.close()
	}
}
