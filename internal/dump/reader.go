package dump

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"time"

	"github.com/tcptrace/tcptrace/tracer/event"
)

// Errors that a [Reader] wraps.
var (
	ErrNotDump = errors.New("this is no dump of tcptrace")
	ErrNewer   = errors.New("a newer tcptrace wrote this dump")
)

// Damage is a stretch of a dump that could not be read.
type Damage struct {
	Offset int64 // of its first byte
	Bytes  int64 // how long it is; 0 where something is missing
	// Events is how many events are known to have been lost with it. Where the
	// header of a frame is damaged, too, only the feed's Lost tells.
	Events uint64
	What   string
}

func (d Damage) String() string {
	if d.Bytes == 0 {
		return fmt.Sprintf("at offset %d: %s", d.Offset, d.What)
	}
	return fmt.Sprintf("%d bytes from offset %d on cannot be read: %s", d.Bytes, d.Offset, d.What)
}

// Reader reads a dump. Whatever it is fed, it keeps no more than a few frames,
// of at most 4 MiB each. It belongs to one goroutine.
type Reader struct {
	src    io.Reader
	buf    []byte
	used   int   // of buf
	offset int64 // of the first byte that was not used, in the file
	eof    bool

	header    Header
	z         decompressor
	opened    bool   // header and run are known
	run       uint32 // of all frames of this dump
	seq       uint32 // the next frame's
	number    uint16 // of the next frame of records, where numbered
	numbered  bool
	told      uint64 // events of the recording that were handed over or told lost
	expect    uint64 // events of the recording up to the last frame of which anything is known
	noted     int64  // the time of that frame
	began     bool   // told is known
	continued bool
	place     Place // of the newest frame that was handed over
	again     bool  // frames may be some that were handed over before, though no event tells
	wasted    int64 // bytes of frames that were searched for others

	damaged []Damage
	dropped uint64 // damages beyond the bound
	hole    bool   // something could not be read since the last frame
	end     *End
	dec     *decoder
}

// maxDamages bounds what a reader remembers of a file that is full of holes.
const maxDamages = 64

// maxJunk is how much may stand before a dump whose first bytes are damaged.
const maxJunk = 64

// NewReader reads the beginning of a dump. The error wraps [ErrNotDump] or
// [ErrNewer], or is the source's.
func NewReader(src io.Reader) (*Reader, error) {
	r := &Reader{src: src}
	if err := r.open(); err != nil {
		return nil, err
	}
	r.dec = newDecoder(&r.header)
	r.dec.partial = !r.began
	r.z.buf = nil // there can be very many readers whose turn comes much later
	return r, nil
}

// open finds the header, of which there are two.
func (r *Reader) open() error {
	b, err := r.peek(len(signature) + maxJunk + frameHeaderSize)
	switch {
	case err != nil:
		return err
	case len(b) == 0:
		return fmt.Errorf("the file is empty: %w", ErrNotDump)
	case len(b) < len(signature) && bytes.HasPrefix(signature[:], b):
		return errNoHeader
	case bytes.HasPrefix(b, signature[:]):
		r.skip(len(signature))
	default:
		// Perhaps it is only the signature that is damaged.
		at := bytes.Index(b, frameMagic[:])
		if at >= 0 {
			_, err = parseFrameHeader(b[at:])
		}
		if at < 0 || err != nil {
			return fmt.Errorf("its first bytes are others: %w", ErrNotDump)
		}
		r.damage(Damage{Offset: 0, Bytes: int64(at), What: "the signature of a dump is not there, or not whole"})
		r.skip(at)
	}
	h, raw, err := r.frame()
	if err == io.EOF {
		return errNoHeader
	}
	if err != nil {
		return err
	}
	if h.Kind != FrameHeader {
		return fmt.Errorf("both copies of its header are damaged: %w", ErrNotDump)
	}
	// Of a later version, perhaps only this can be read.
	var format struct {
		Format int `json:"format"`
	}
	err = decodeJSON(raw, &format)
	if err == nil {
		err = checkFormat(format.Format)
	}
	if err == nil {
		err = decodeJSON(raw, &r.header)
	}
	if err == nil {
		err = r.header.check()
	}
	if errors.Is(err, ErrNewer) {
		return err
	}
	if err != nil {
		return fmt.Errorf("its header cannot be read: %w: %w", err, ErrNotDump)
	}
	r.header.bound()
	r.opened, r.run = true, h.run
	if r.header.Part == 0 && r.header.Window == nil {
		r.began = true // with event 0
	}
	return nil
}

var errNoHeader = fmt.Errorf("it ends before its header does: %w", ErrNotDump)

// Header is what the dump says of itself.
func (r *Reader) Header() *Header { return &r.header }

// maxAhead is how far ahead Began looks for a frame, in bytes.
const maxAhead = 1 << 20

// Began is when that begins which the dump holds, in nanoseconds of
// CLOCK_BOOTTIME and since 1970: for a later part of a recording not when
// tracing began, which its header tells, but the time of its first frame. It is
// to be asked before the first frame is read, and reads ahead.
func (r *Reader) Began() (boot, wall int64) {
	h := &r.header
	boot, offset := h.StartedBoot, h.Started-h.StartedBoot
	if h.Part == 0 {
		return h.StartedBoot, h.Started // a flight recorder's window has its own
	}
	for at := 0; at < maxAhead; {
		// What cannot be read now is told when it is read.
		b, err := r.peek(at + frameHeaderSize)
		if err != nil || len(b) < at+frameHeaderSize {
			break
		}
		f, err := r.parse(b[at:])
		if err != nil {
			at++ // damaged
			continue
		}
		size := frameHeaderSize + int(f.stored)
		if f.Kind == FrameHeader {
			at += size // the copy
			continue
		}
		boot = max(boot, f.First)
		if f.Kind != FramePreamble {
			break
		}
		// The wall clock may have been set since tracing began.
		if b, err = r.peek(at + size); err == nil && len(b) == at+size {
			if raw, err := r.z.open(&f, b[at+frameHeaderSize:]); err == nil {
				offset = clockOf(raw, offset)
			}
		}
		break
	}
	return boot, boot + offset
}

// clockOf is what a preamble's first record says of the clock, or else what is
// known.
func clockOf(preamble []byte, known int64) int64 {
	if len(preamble) == 0 || preamble[0] != tagClock {
		return known
	}
	v, n := binary.Uvarint(preamble[1:])
	if n <= 0 {
		return known
	}
	return unzigzag(v)
}

// End is the dump's last word, nil if it has none: it was cut off. It is known
// once Next returned io.EOF.
func (r *Reader) End() *End { return r.end }

// Damages are what could not be read so far, and how many more there were than
// are remembered.
func (r *Reader) Damages() (list []Damage, more uint64) { return r.damaged, r.dropped }

// Told is how many events of the recording were handed over or told lost.
func (r *Reader) Told() uint64 { return r.told }

// Place is a place in a recording.
type Place struct {
	told   uint64 // events of the recording before it
	number uint16 // of the frame before it
	first  int64  // time of that frame
	known  bool   // there is such a frame
}

// Place is how far the reader got, or where it was told to continue.
func (r *Reader) Place() Place {
	p := r.place
	p.told = r.told
	return p
}

// apart bounds how far out of order the times of frames can be: much less than
// it takes for their numbers to begin anew.
const apart = int64(time.Minute)

// had reports whether a frame was handed over before this place. That is for
// frames without events: of others, events tell.
func (p Place) had(h *frameHeader) bool {
	return p.known && int16(h.Number-p.number) <= 0 && h.First <= p.first+apart
}

// Whole reports whether the dump was read to its end and nothing is missing
// there, so that the part that follows can go on with a snapshot that this one
// began.
func (r *Reader) Whole() bool { return r.end != nil && !r.hole && !r.dec.partial }

// Next hands the next frame to a feed. It returns io.EOF at the end of the
// dump, and otherwise the source's error: damage is none, it is told by
// Damages and, where events are missing, by the feed's Lost.
func (r *Reader) Next(feed Feed) error { return r.next(feed, false) }

// Continue is Next for a part that comes after another one of the same
// recording, which got to a place. If it follows at once, its preambles repeat
// what was told there, and a snapshot can go on. What was told already is passed
// over.
func (r *Reader) Continue(feed Feed, from Place, follows bool) error {
	if !r.continued {
		r.continued, r.began, r.told = true, true, from.told
		r.place, r.again = from, !follows
		r.dec.partial = !follows
	}
	return r.next(feed, follows)
}

func (r *Reader) next(feed Feed, follows bool) error {
	r.dec.feed = feed
	for {
		h, raw, err := r.frame()
		if r.hole {
			r.dec.broken()
		}
		if err == io.EOF {
			r.upTo(feed, r.expect, r.noted)
			r.release()
		}
		if err != nil {
			return err
		}
		r.hole = false
		at := r.offset - int64(frameHeaderSize) - int64(h.stored)
		switch h.Kind {
		case FrameHeader:
			continue // the copy
		case FrameEnd:
			var end End
			if err := decodeJSON(raw, &end); err != nil {
				r.damage(Damage{Offset: at, Bytes: r.offset - at, What: "reading the end: " + err.Error()})
				continue
			}
			r.upTo(feed, h.Before, h.First)
			r.end = &end
			continue
		case FramePreamble:
			r.numbered, r.number = true, h.Number
			gap := r.upTo(feed, h.Before, h.First)
			if follows && !gap || r.continued && (h.Before < r.told || r.toldBefore(&h)) {
				continue // what it says may have changed since
			}
		case FrameRecords:
			if h.Before < r.told {
				if !r.continued || h.Before+uint64(h.Events) > r.told {
					r.damage(Damage{Offset: at, Bytes: r.offset - at, What: "a frame's events are some that were told before"})
				}
				r.dec.broken()
				continue
			}
			if h.Events == 0 && r.toldBefore(&h) {
				r.numbered, r.number = true, h.Number+1
				r.dec.broken()
				continue
			}
			r.again, r.place = false, Place{number: h.Number, first: h.First, known: true}
			r.upTo(feed, h.Before, h.First)
			if r.numbered && h.Number != r.number {
				r.dec.broken() // some were not written
			}
			r.numbered, r.number = true, h.Number+1
		default:
			continue // of a later version
		}
		events, err := r.dec.payload(&h.Frame, raw)
		if err != nil {
			lost := uint64(h.Events - events)
			r.damage(Damage{Offset: at, Bytes: r.offset - at, Events: lost, What: "a frame's records: " + err.Error()})
			r.dec.broken()
			r.tell(feed, lost, h.First)
		}
		r.told += uint64(h.Events)
		return nil
	}
}

// toldBefore reports whether a frame that comes after all events that were told
// was handed over, too.
func (r *Reader) toldBefore(h *frameHeader) bool {
	return r.again && h.Before == r.told && r.place.had(h)
}

// release lets go of what reading took. What the reader says of the dump stays.
func (r *Reader) release() {
	r.buf, r.used, r.z.buf = nil, 0, nil
	r.dec = &decoder{partial: r.dec.partial, newest: r.dec.newest}
}

// WhereDump is where events are said to be lost that are missing in a dump.
const WhereDump = "dump"

// upTo tells of the events that are missing before one of the recording, and
// reports whether there are any.
func (r *Reader) upTo(feed Feed, before uint64, at int64) bool {
	if !r.began || before <= r.told {
		return false
	}
	r.dec.broken()
	r.tell(feed, before-r.told, at)
	r.told = before
	return true
}

// tell tells of lost events, as noticed when all before them were told; at is
// for the beginning.
func (r *Reader) tell(feed Feed, n uint64, at int64) {
	if n == 0 {
		return
	}
	if r.dec.newest != 0 {
		at = r.dec.newest
	} else if at == 0 {
		at = r.header.StartedBoot
	}
	feed.Lost(at, event.Lost{Where: WhereDump, Count: n})
}

// peek returns up to n bytes without using them: fewer only at the end.
func (r *Reader) peek(n int) ([]byte, error) {
	for idle := 0; len(r.buf)-r.used < n && !r.eof; {
		if cap(r.buf)-r.used < n || cap(r.buf) == len(r.buf) {
			least := 256 << 10
			if !r.opened {
				least = 4 << 10 // its turn may come much later
			}
			to := r.buf[:0]
			if cap(to) < max(n, least) {
				to = make([]byte, 0, max(1<<bits.Len(uint(n-1)), least))
			}
			r.buf = to[:copy(to[:cap(to)], r.buf[r.used:])]
			r.used = 0
		}
		m, err := r.src.Read(r.buf[len(r.buf):cap(r.buf)])
		r.buf = r.buf[:len(r.buf)+m]
		switch {
		case err == io.EOF:
			r.eof = true
		case err != nil:
			return nil, fmt.Errorf("reading the dump: %w", err)
		case m > 0:
			idle = 0
		default:
			if idle++; idle == 100 {
				return nil, fmt.Errorf("reading the dump: %w", io.ErrNoProgress)
			}
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
	r.hole = true
	if n := len(r.damaged); n > 0 && r.dropped == 0 && r.damaged[n-1].Bytes > 0 && r.damaged[n-1].Offset+r.damaged[n-1].Bytes == d.Offset {
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
		h, err := r.parse(head)
		if err != nil {
			cut := err.Error()
			if len(head) < frameHeaderSize {
				cut = "the dump was cut off within a frame's header"
			}
			if err := r.seek(Damage{What: err.Error()}, cut); err != nil {
				return frameHeader{}, nil, err
			}
			continue
		}
		size := frameHeaderSize + int(h.stored)
		whole, err := r.peek(size)
		if err != nil {
			return frameHeader{}, nil, err
		}
		var raw []byte
		if len(whole) < size {
			err = errCut
		} else {
			raw, err = r.z.open(&h, whole[frameHeaderSize:])
		}
		late := r.opened && h.seq < r.seq || r.end != nil
		if r.opened && !late {
			r.note(&h)
		}
		d := Damage{Offset: r.offset, Bytes: int64(size), Events: uint64(h.Events)}
		switch {
		case err == errCut || err == errSum && r.wasted <= maxWasted+4*r.offset:
			// What is wrong can be its length: the next frame can begin before its
			// end.
			if err == errSum {
				r.wasted += int64(size)
			}
			d.What = "a frame is damaged: " + err.Error()
			cut := fmt.Sprintf("the dump was cut off: the last frame has %d of its %d bytes", len(whole), size)
			if err == errSum {
				cut = d.What
			}
			if err := r.seek(d, cut); err != nil {
				return frameHeader{}, nil, err
			}
		case err != nil:
			d.What = "a frame is damaged: " + err.Error()
			r.damage(d)
			r.skip(size)
		case late:
			d.What, d.Events = "a frame is one that was before, or comes after a later one", 0
			r.damage(d)
			r.skip(size)
		default:
			if n := h.seq - r.seq; r.opened && n > 0 && !r.hole {
				r.damage(Damage{Offset: r.offset, What: fmt.Sprintf("%d frames are missing", n)})
			}
			r.seq = h.seq + 1
			r.skip(size)
			return h, raw, nil
		}
	}
}

// maxWasted bounds the search within damaged frames, so that a file that is
// made of them takes no longer than another: bytes, and four times the file.
const maxWasted = 64 << 20

var (
	errCut   = errors.New("it is shorter than its header says")
	errOther = errors.New("a frame is of another recording")
)

// parse reads a frame's header, if it is one of this dump.
func (r *Reader) parse(head []byte) (frameHeader, error) {
	h, err := parseFrameHeader(head)
	if err == nil && r.opened && h.run != r.run {
		err = errOther
	}
	return h, err
}

// note keeps what a frame's header says of the recording.
func (r *Reader) note(h *frameHeader) {
	if h.Kind == FrameHeader {
		return
	}
	if !r.began {
		// Where a recording's first part is not there, what is missing was never
		// part of this.
		r.began, r.told = true, h.Before
	}
	r.expect, r.noted = max(r.expect, h.Before+uint64(h.Events)), h.First
}

// seek goes to where the next frame begins, after here. What lies between is
// damage, which is said to be something else where no frame follows.
func (r *Reader) seek(d Damage, cut string) error {
	d.Offset = r.offset
	r.skip(1)
	for {
		b, err := r.peek(64 << 10)
		if err != nil {
			return err
		}
		i := bytes.Index(b, frameMagic[:])
		if i < 0 {
			// The magic may begin with the last bytes.
			keep := min(len(b), len(frameMagic)-1)
			if len(b) < 64<<10 {
				keep = 0
			}
			r.skip(len(b) - keep)
			if keep == 0 {
				d.What = cut
				break
			}
			continue
		}
		r.skip(i)
		head, err := r.peek(frameHeaderSize)
		if err != nil {
			return err
		}
		if _, err := r.parse(head); err == nil {
			break
		}
		r.skip(1)
	}
	d.Bytes = r.offset - d.Offset
	r.damage(d)
	return nil
}
