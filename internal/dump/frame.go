package dump

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"math/bits"
	"slices"
	"unicode/utf8"

	"github.com/klauspost/compress/s2"
)

// signature opens a dump: it is no text, and a transfer that changes line
// ends breaks it.
var signature = [8]byte{0x89, 'T', 'C', 'P', 'T', '\r', '\n', 0x1a}

// Kind says what a frame holds.
type Kind uint8

const (
	FrameHeader   Kind = 1 // a Header, JSON
	FramePreamble Kind = 2 // records that repeat what earlier parts told
	FrameRecords  Kind = 3
	FrameEnd      Kind = 4 // an End, JSON
)

var frameMagic = [4]byte{0xd5, 'F', 'r', 0x96}

const (
	frameHeaderSize = 52
	// maxRaw bounds a frame's payload before compression, and with it what a
	// hostile dump can make a reader keep. It is kept as it is where compression
	// would not make it shorter.
	maxRaw = 4 << 20
	// maxBefore bounds how many events a recording is said to have.
	maxBefore = 1 << 56

	compressionNone   = 0
	compressionSnappy = 1
)

// Frame is a stretch of a recording.
type Frame struct {
	Kind   Kind
	First  int64  // time of its first record, CLOCK_BOOTTIME, ns
	Last   int64  // newest time in it and before
	Before uint64 // events of the recording before it, those of lost frames too
	Events uint32 // events in it
	// Number counts the frames of records that an encoder gave out, so that a
	// reader knows when one was never written, even one without an event.
	Number uint16
	Raw    []byte // payload
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// RunID is what the frames of a recording have in common: a checksum of its
// name.
func RunID(run string) uint32 { return crc32.Checksum([]byte(run), castagnoli) }

// Append appends the frame as it stands in a dump. run is the [RunID] of the
// dump's header, and seq counts the frames of a file from 0 without a gap.
func (f *Frame) Append(dst []byte, run, seq uint32) []byte {
	at := len(dst)
	dst = append(dst, make([]byte, frameHeaderSize)...)
	compression := byte(compressionSnappy)
	// Snappy takes a third of zstd's time, which is most of what recording costs,
	// for half as many bytes again.
	dst = slices.Grow(dst, s2.MaxEncodedLen(len(f.Raw)))
	room := dst[len(dst):cap(dst)]
	dst = dst[:len(dst)+len(s2.EncodeSnappy(room, f.Raw))]
	if len(dst)-at-frameHeaderSize >= len(f.Raw) {
		compression = compressionNone
		dst = append(dst[:at+frameHeaderSize], f.Raw...)
	}
	h, payload := dst[at:at+frameHeaderSize], dst[at+frameHeaderSize:]
	le := binary.LittleEndian
	copy(h, frameMagic[:])
	h[4], h[5] = byte(f.Kind), compression
	le.PutUint16(h[6:], f.Number)
	le.PutUint32(h[8:], seq)
	le.PutUint32(h[12:], run)
	le.PutUint32(h[16:], uint32(len(f.Raw)))
	le.PutUint32(h[20:], uint32(len(payload)))
	le.PutUint32(h[24:], f.Events)
	le.PutUint32(h[28:], crc32.Checksum(payload, castagnoli))
	le.PutUint64(h[32:], uint64(f.First))
	le.PutUint64(h[40:], f.Before)
	le.PutUint32(h[48:], crc32.Checksum(h[:48], castagnoli))
	return dst
}

// frameHeader is what stands before a payload.
type frameHeader struct {
	Frame       // without Raw and Last
	compression byte
	seq, run    uint32
	raw, stored uint32
	sum         uint32
}

// errNoFrame is what is found where a frame should begin, and does not.
var errNoFrame = errors.New("no frame begins there")

// parseFrameHeader reads the first frameHeaderSize bytes of b.
func parseFrameHeader(b []byte) (h frameHeader, err error) {
	le := binary.LittleEndian
	if len(b) < frameHeaderSize || [4]byte(b[:4]) != frameMagic || le.Uint32(b[48:]) != crc32.Checksum(b[:48], castagnoli) {
		return h, errNoFrame
	}
	h = frameHeader{
		Frame: Frame{Kind: Kind(b[4]), First: int64(le.Uint64(b[32:])), Events: le.Uint32(b[24:]), Before: le.Uint64(b[40:]), Number: le.Uint16(b[6:])},
		seq:   le.Uint32(b[8:]), run: le.Uint32(b[12:]), compression: b[5], raw: le.Uint32(b[16:]), stored: le.Uint32(b[20:]), sum: le.Uint32(b[28:]),
	}
	// What nobody writes. An event takes more than one byte.
	if h.raw > maxRaw || h.stored > h.raw || h.Before > maxBefore || h.Events > h.raw {
		return h, errNoFrame
	}
	switch h.Kind {
	case FrameHeader, FramePreamble, FrameEnd:
		if h.Events != 0 {
			return h, errNoFrame
		}
	}
	return h, nil
}

// decompressor unpacks frames for one goroutine.
type decompressor struct{ buf []byte }

// errSum is a payload that is not what was written.
var errSum = errors.New("its checksum is wrong")

// open returns a frame's payload, which is valid until the next call.
func (d *decompressor) open(h *frameHeader, stored []byte) ([]byte, error) {
	if crc32.Checksum(stored, castagnoli) != h.sum {
		return nil, errSum
	}
	switch h.compression {
	case compressionNone:
		if h.raw != h.stored {
			return nil, errors.New("its two lengths disagree")
		}
		return stored, nil
	case compressionSnappy:
		// One that would unpack to something else is not begun with.
		if n, err := s2.DecodedLen(stored); err != nil || n != int(h.raw) {
			return nil, errors.New("it is not as long as its header says")
		}
		if cap(d.buf) < int(h.raw) {
			d.buf = make([]byte, 1<<bits.Len32(h.raw-1))
		}
		raw, err := s2.Decode(d.buf[:h.raw], stored)
		if err != nil {
			return nil, fmt.Errorf("unpacking it: %w", err)
		}
		return raw, nil
	}
	return nil, fmt.Errorf("it is compressed in a way (%d) that this tcptrace does not know", h.compression)
}

// maxCommand bounds the command line in a header, in bytes.
const maxCommand = 64 << 10

// HeaderFrame returns the bytes with which a dump begins: the signature and
// both copies of the header. The next frame is number 2. Of a very long
// command line the beginning is kept.
func HeaderFrame(h Header) ([]byte, error) {
	h.Format, h.Layout = Format, layout
	h.Command = shorten(h.Command, maxCommand)
	raw, err := encodeJSON(h)
	if err == nil {
		err = checkJSON(raw)
	}
	if err != nil {
		return nil, fmt.Errorf("encoding the header: %w", err)
	}
	f, run := Frame{Kind: FrameHeader, First: h.StartedBoot, Raw: raw}, RunID(h.Run)
	return f.Append(f.Append(append([]byte(nil), signature[:]...), run, 0), run, 1), nil
}

// shorten returns the first texts of a list, of no more than most bytes, and
// says where it ends too early.
func shorten(list []string, most int) []string {
	for i, s := range list {
		if len(s) > most {
			return append(slices.Clone(list[:i]), cut(s, most))
		}
		most -= len(s)
	}
	return list
}

// cut returns no more than most bytes of a text, and says where it ends too
// early.
func cut(s string, most int) string {
	if len(s) <= most {
		return s
	}
	for most > 0 && !utf8.RuneStart(s[most]) {
		most--
	}
	return s[:most] + "…"
}

// EndFrame returns the last frame of a part. before is how many events of the
// recording came before it ([Encoder.Before]). Of an audit that is too long,
// the beginning is kept.
func EndFrame(end End, before uint64) (*Frame, error) {
	end.Text = shorten([]string{end.Text}, maxText)[0]
	if end.Summary != nil {
		s := *end.Summary
		s.Cost.BPFNanosPerEvent = finite(s.Cost.BPFNanosPerEvent)
		s.Cost.BPFCPUPercent, s.Cost.UserCPUPercent = finite(s.Cost.BPFCPUPercent), finite(s.Cost.UserCPUPercent)
		end.Summary = &s
	}
	for {
		raw, err := encodeJSON(end)
		if err == nil {
			err = checkJSON(raw)
		}
		if err == nil {
			return &Frame{Kind: FrameEnd, First: end.At, Last: end.At, Before: before, Raw: raw}, nil
		}
		if end.Summary == nil || !end.Summary.Audit.halve() {
			return nil, fmt.Errorf("encoding the end: %w", err)
		}
	}
}

// finite is for JSON, which has no other numbers.
func finite(f float64) float64 {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return 0
	}
	return f
}

// Assemble returns a dump in memory. end may be nil.
func Assemble(h Header, frames []*Frame, end *End) ([]byte, error) {
	out, err := HeaderFrame(h)
	if err != nil {
		return nil, err
	}
	run, seq, before := RunID(h.Run), uint32(2), uint64(0)
	for _, f := range frames {
		out = f.Append(out, run, seq)
		seq++
		before = f.Before + uint64(f.Events)
	}
	if end != nil {
		f, err := EndFrame(*end, before)
		if err != nil {
			return nil, err
		}
		out = f.Append(out, run, seq)
	}
	return out, nil
}
