package dump

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/tcptrace/tcptrace/tracer/event"
)

// Errors that a [Reader] wraps.
var (
	ErrNotDump = errors.New("this is no dump of tcptrace")
	ErrNewer   = errors.New("a newer tcptrace wrote this dump")
)

// Damage is a stretch of a dump that could not be read.
type Damage struct {
	Offset int64  // of its first byte
	Bytes  int64  // how long it is
	Events uint64 // how many events were lost with it
	What   string
}

func (d Damage) String() string {
	return fmt.Sprintf("%d bytes from offset %d on cannot be read: %s", d.Bytes, d.Offset, d.What)
}

// Reader reads a dump. Whatever it is fed, it keeps no more than a few frames.
type Reader struct {
	src    io.Reader
	buf    []byte
	used   int   // of buf
	offset int64 // of the first byte that was not used, in the file
	eof    bool
	err    error // of src

	header  Header
	z       *decompressor
	seq     uint32 // the next frame's
	told    uint64 // events of the recording that were handed over or told lost
	expect  uint64 // events of the recording up to the last frame of which anything is known
	began   bool   // told is known
	damaged []Damage
	dropped uint64 // damages beyond the bound
	end     *End
	dec     *decoder
}

// maxDamages bounds what a reader remembers of a file that is full of holes.
const maxDamages = 64

// NewReader reads the beginning of a dump. The error wraps [ErrNotDump] or
// [ErrNewer], or is the source's.
func NewReader(src io.Reader) (*Reader, error) {
	z, err := newDecompressor()
	if err != nil {
		return nil, err
	}
	r := &Reader{src: src, z: z}
	if err := r.open(); err != nil {
		z.close()
		return nil, err
	}
	return r, nil
}

// open finds the header, of which there are two.
func (r *Reader) open() error {
	b, err := r.peek(len(signature))
	if err != nil {
		return err
	}
	if len(b) == 0 {
		return fmt.Errorf("the file is empty: %w", ErrNotDump)
	}
	if bytes.HasPrefix(b, signature[:]) {
		r.skip(len(signature))
	} else {
		// Perhaps it is only the signature that is damaged.
		next, err := r.peek(len(signature) + frameHeaderSize)
		if err != nil {
			return err
		}
		if len(next) < len(signature)+frameHeaderSize {
			return fmt.Errorf("its first bytes are others: %w", ErrNotDump)
		}
		if _, err := parseFrameHeader(next[len(signature):]); err != nil {
			return fmt.Errorf("its first bytes are others: %w", ErrNotDump)
		}
		r.damage(Damage{Offset: 0, Bytes: int64(len(signature)), What: "it is not the signature of a dump"})
		r.skip(len(signature))
	}
	for {
		h, raw, err := r.frame()
		if err == io.EOF {
			return fmt.Errorf("it ends before its header does: %w", ErrNotDump)
		}
		if err != nil {
			return err
		}
		if h.Kind != FrameHeader {
			return fmt.Errorf("both copies of its header are damaged: %w", ErrNotDump)
		}
		if err := json.Unmarshal(raw, &r.header); err != nil {
			return fmt.Errorf("reading the header: %w: %w", ErrNotDump, err)
		}
		return r.header.check()
	}
}

// Header is what the dump says of itself.
func (r *Reader) Header() *Header { return &r.header }

// End is the dump's last word, nil if it has none: it was cut off. It is known
// once Next returned io.EOF.
func (r *Reader) End() *End { return r.end }

// Damages are what could not be read so far, and how many more there were than
// are remembered.
func (r *Reader) Damages() (list []Damage, more uint64) { return r.damaged, r.dropped }

// Newest is the newest time in the frames read so far, CLOCK_BOOTTIME.
func (r *Reader) Newest() int64 {
	if r.dec == nil {
		return 0
	}
	return r.dec.newest
}

// Close releases the decompressor. It does not close the source.
func (r *Reader) Close() { r.z.close() }

// Next hands the next frame to a feed. It returns io.EOF at the end of the
// dump, and otherwise the source's error: damage is none, it is told by
// Damages and, where events are missing, by the feed's Lost.
func (r *Reader) Next(feed Feed) error { return r.next(feed, false) }

// Continue is Next for a part that comes after another one of the same
// recording, whose events up to there were told. If it follows at once, its
// preambles repeat what was told there.
func (r *Reader) Continue(feed Feed, told uint64, follows bool) error {
	if !r.began {
		r.began, r.told = true, told
	}
	return r.next(feed, follows)
}

// Told is how many events of the recording were handed over or told lost.
func (r *Reader) Told() uint64 { return r.told }

func (r *Reader) next(feed Feed, follows bool) error {
	if r.dec == nil {
		r.dec = newDecoder(&r.header, nil)
	}
	r.dec.feed = feed
	for {
		at := r.offset
		damages := len(r.damaged) + int(r.dropped)
		h, raw, err := r.frame()
		if damages != len(r.damaged)+int(r.dropped) {
			r.dec.broken()
		}
		if err == io.EOF && r.began && r.expect > r.told {
			r.tell(feed, r.expect-r.told)
			r.told = r.expect
		}
		if err != nil {
			return err
		}
		switch h.Kind {
		case FrameHeader:
			continue // the copy
		case FrameEnd:
			var end End
			if err := json.Unmarshal(raw, &end); err != nil {
				r.damage(Damage{Offset: at, Bytes: r.offset - at, What: "reading the end: " + err.Error()})
				continue
			}
			r.missing(feed, &h)
			r.end = &end
			continue
		case FramePreamble:
			if !r.began {
				r.began, r.told = true, h.Before
			}
			if follows {
				continue
			}
		case FrameRecords:
			r.missing(feed, &h)
		default:
			continue // of a later version
		}
		events, err := r.dec.payload(&h.Frame, raw)
		if err != nil {
			r.dec.broken()
			lost := uint64(h.Events - min(h.Events, events))
			r.damage(Damage{Offset: at, Bytes: r.offset - at, Events: lost, What: "its records: " + err.Error()})
			r.tell(feed, lost)
		}
		r.told += uint64(h.Events)
		return nil
	}
}

// missing tells of the events of the recording that are not there before a
// frame.
func (r *Reader) missing(feed Feed, h *frameHeader) {
	if !r.began {
		// Where a recording's first part is not there, what is missing was never
		// part of this.
		r.began, r.told = true, h.Before
	}
	if h.Before > r.told {
		r.dec.broken()
		r.tell(feed, h.Before-r.told)
		r.told = h.Before
	}
}

// WhereDump is where events are said to be lost that are missing in a dump.
const WhereDump = "dump"

func (r *Reader) tell(feed Feed, n uint64) {
	if n > 0 {
		feed.Lost(r.dec.newest, event.Lost{Where: WhereDump, Count: n})
	}
}

// peek returns up to n bytes without using them: fewer only at the end.
func (r *Reader) peek(n int) ([]byte, error) {
	for len(r.buf)-r.used < n && !r.eof {
		if cap(r.buf)-r.used < n || cap(r.buf) == len(r.buf) {
			to := r.buf[:0]
			if cap(to) < n {
				to = make([]byte, 0, max(n, 256<<10))
			}
			r.buf = to[:copy(to[:cap(to)], r.buf[r.used:])]
			r.used = 0
		}
		m, err := r.src.Read(r.buf[len(r.buf):cap(r.buf)])
		r.buf = r.buf[:len(r.buf)+m]
		if err == io.EOF {
			r.eof = true
		} else if err != nil {
			return nil, fmt.Errorf("reading the dump: %w", err)
		}
	}
	return r.buf[r.used:min(r.used+n, len(r.buf))], nil
}

func (r *Reader) skip(n int) {
	r.used += n
	r.offset += int64(n)
}

// damage remembers a stretch, as one with the stretch before it if that ends
// where it begins.
func (r *Reader) damage(d Damage) {
	if n := len(r.damaged); n > 0 && r.damaged[n-1].Offset+r.damaged[n-1].Bytes == d.Offset {
		r.damaged[n-1].Bytes += d.Bytes
		r.damaged[n-1].Events += d.Events
		return
	}
	if len(r.damaged) >= maxDamages {
		r.dropped++
		return
	}
	r.damaged = append(r.damaged, d)
}

// frame returns the next frame that can be read, with its payload, which is
// valid until the next call.
func (r *Reader) frame() (frameHeader, []byte, error) {
	for {
		head, err := r.peek(frameHeaderSize)
		if err != nil {
			return frameHeader{}, nil, err
		}
		if len(head) == 0 {
			return frameHeader{}, nil, io.EOF
		}
		if len(head) < frameHeaderSize {
			r.damage(Damage{Offset: r.offset, Bytes: int64(len(head)), What: "the dump was cut off within a frame's header"})
			r.skip(len(head))
			return frameHeader{}, nil, io.EOF
		}
		h, err := parseFrameHeader(head)
		if err == nil {
			r.expect = max(r.expect, h.Before+uint64(h.Events))
		} else {
			if err := r.seek("no frame begins there"); err != nil {
				return frameHeader{}, nil, err
			}
			continue
		}
		size := frameHeaderSize + int(h.stored)
		whole, err := r.peek(size)
		if err != nil {
			return frameHeader{}, nil, err
		}
		if len(whole) < size {
			r.damage(Damage{
				Offset: r.offset, Bytes: int64(len(whole)), Events: uint64(h.Events),
				What: fmt.Sprintf("the dump was cut off: the last frame has %d of its %d bytes", len(whole), size),
			})
			r.skip(len(whole))
			return frameHeader{}, nil, io.EOF
		}
		raw, err := r.z.open(&h, whole[frameHeaderSize:])
		if err != nil {
			r.damage(Damage{Offset: r.offset, Bytes: int64(size), Events: uint64(h.Events), What: "a frame is damaged: " + err.Error()})
			r.skip(size)
			continue
		}
		r.skip(size)
		return h, raw, nil
	}
}

// seek goes to where the next frame begins, after here.
func (r *Reader) seek(what string) error {
	start := r.offset
	r.skip(1)
	for {
		b, err := r.peek(64 << 10)
		if err != nil {
			return err
		}
		i := bytes.Index(b, frameMagic[:])
		if i < 0 {
			// The magic may begin with the last bytes.
			r.skip(max(len(b)-len(frameMagic)+1, min(len(b), 1)))
			if len(b) < len(frameMagic) {
				r.skip(len(r.buf) - r.used)
				break
			}
			continue
		}
		r.skip(i)
		head, err := r.peek(frameHeaderSize)
		if err != nil {
			return err
		}
		if _, err := parseFrameHeader(head); err == nil {
			break
		}
		r.skip(1)
	}
	r.damage(Damage{Offset: start, Bytes: r.offset - start, What: what})
	return nil
}
