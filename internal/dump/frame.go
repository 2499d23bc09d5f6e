package dump

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/klauspost/compress/zstd"
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
	frameHeaderSize = 48
	// maxRaw bounds a frame's payload before compression, and with it what a
	// hostile dump can make a reader keep.
	maxRaw = 4 << 20
	// maxStored is the same after compression, which can make it longer.
	maxStored = maxRaw + maxRaw/64 + 1024

	compressionNone = 0
	compressionZstd = 1
)

// Frame is a stretch of a recording.
type Frame struct {
	Kind   Kind
	First  int64  // time of its first record, CLOCK_BOOTTIME, ns
	Last   int64  // newest time in it
	Before uint64 // events of the recording before it, those of lost frames too
	Events uint32 // events in it
	Raw    []byte // payload
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// compressor is for one goroutine at a time with EncodeAll, which is fine with
// any number.
var compressor = must(zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false)))

// must is for options that are constants.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// Append appends the frame as it stands in a dump. seq counts the frames of a
// file from 0.
func (f *Frame) Append(dst []byte, seq uint32) []byte {
	at := len(dst)
	dst = append(dst, make([]byte, frameHeaderSize)...)
	compression := byte(compressionZstd)
	dst = compressor.EncodeAll(f.Raw, dst)
	if len(dst)-at-frameHeaderSize >= len(f.Raw) {
		compression = compressionNone
		dst = append(dst[:at+frameHeaderSize], f.Raw...)
	}
	h, payload := dst[at:at+frameHeaderSize], dst[at+frameHeaderSize:]
	le := binary.LittleEndian
	copy(h, frameMagic[:])
	h[4], h[5] = byte(f.Kind), compression
	le.PutUint16(h[6:], 0)
	le.PutUint32(h[8:], seq)
	le.PutUint32(h[12:], uint32(len(f.Raw)))
	le.PutUint32(h[16:], uint32(len(payload)))
	le.PutUint64(h[20:], uint64(f.First))
	le.PutUint32(h[28:], f.Events)
	le.PutUint64(h[32:], f.Before)
	le.PutUint32(h[40:], crc32.Checksum(payload, castagnoli))
	le.PutUint32(h[44:], crc32.Checksum(h[:44], castagnoli))
	return dst
}

// frameHeader is what stands before a payload.
type frameHeader struct {
	Frame       // without Raw and Last
	compression byte
	seq         uint32
	raw, stored uint32
	sum         uint32
}

// errNoFrame is what is found where a frame should begin, and does not.
var errNoFrame = errors.New("no frame begins there")

// parseFrameHeader reads the first frameHeaderSize bytes of b.
func parseFrameHeader(b []byte) (h frameHeader, err error) {
	le := binary.LittleEndian
	if len(b) < frameHeaderSize || [4]byte(b[:4]) != frameMagic || le.Uint32(b[44:]) != crc32.Checksum(b[:44], castagnoli) {
		return h, errNoFrame
	}
	h = frameHeader{
		Frame: Frame{Kind: Kind(b[4]), First: int64(le.Uint64(b[20:])), Events: le.Uint32(b[28:]), Before: le.Uint64(b[32:])},
		seq:   le.Uint32(b[8:]), compression: b[5], raw: le.Uint32(b[12:]), stored: le.Uint32(b[16:]), sum: le.Uint32(b[40:]),
	}
	if h.raw > maxRaw || h.stored > maxStored {
		return h, errNoFrame // nobody writes such a one
	}
	return h, nil
}

// decompressor unpacks frames for one goroutine.
type decompressor struct {
	z   *zstd.Decoder
	buf []byte
}

func newDecompressor() (*decompressor, error) {
	z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxRaw), zstd.WithDecoderLowmem(true), zstd.IgnoreChecksum(true))
	if err != nil {
		return nil, fmt.Errorf("starting the decompressor: %w", err)
	}
	return &decompressor{z: z}, nil
}

func (d *decompressor) close() { d.z.Close() }

// open returns a frame's payload, which is valid until the next call.
func (d *decompressor) open(h *frameHeader, stored []byte) ([]byte, error) {
	if crc32.Checksum(stored, castagnoli) != h.sum {
		return nil, errors.New("its checksum is wrong")
	}
	switch h.compression {
	case compressionNone:
		if h.raw != h.stored {
			return nil, errors.New("its two lengths disagree")
		}
		return stored, nil
	case compressionZstd:
		if cap(d.buf) < int(h.raw) {
			d.buf = make([]byte, 0, h.raw)
		}
		raw, err := d.z.DecodeAll(stored, d.buf[:0])
		if err != nil {
			return nil, fmt.Errorf("unpacking it: %w", err)
		}
		if len(raw) != int(h.raw) {
			return nil, errors.New("it is not as long as its header says")
		}
		d.buf = raw[:0]
		return raw, nil
	}
	return nil, fmt.Errorf("it is compressed in a way (%d) that this tcptrace does not know", h.compression)
}

// HeaderFrame returns the bytes with which a dump begins: the signature and
// both copies of the header. The next frame is number 2.
func HeaderFrame(h Header) ([]byte, error) {
	h.Format, h.Layout = Format, layout
	raw, err := encodeJSON(h)
	if err != nil {
		return nil, err
	}
	if len(raw) > maxRaw {
		return nil, fmt.Errorf("the header takes %d bytes, more than %d", len(raw), maxRaw)
	}
	f := Frame{Kind: FrameHeader, First: h.StartedBoot, Raw: raw}
	return f.Append(f.Append(append([]byte(nil), signature[:]...), 0), 1), nil
}

// EndFrame returns the last frame of a part. before is how many events of the
// recording came before it.
func EndFrame(end End, before uint64) (*Frame, error) {
	raw, err := encodeJSON(end)
	if err != nil {
		return nil, err
	}
	for len(raw) > maxRaw && end.Summary != nil && len(end.Summary.Audit.Lines) > 0 {
		lines := end.Summary.Audit.Lines
		s := *end.Summary
		s.Audit.Lines = lines[:len(lines)/2]
		end.Summary = &s
		if raw, err = encodeJSON(end); err != nil {
			return nil, err
		}
	}
	return &Frame{Kind: FrameEnd, First: end.At, Last: end.At, Before: before, Raw: raw}, nil
}

// Assemble returns a dump in memory. end may be nil.
func Assemble(h Header, frames []*Frame, end *End) ([]byte, error) {
	out, err := HeaderFrame(h)
	if err != nil {
		return nil, err
	}
	seq, before := uint32(2), uint64(0)
	for _, f := range frames {
		out = f.Append(out, seq)
		seq++
		before = f.Before + uint64(f.Events)
	}
	if end != nil {
		f, err := EndFrame(*end, before)
		if err != nil {
			return nil, err
		}
		out = f.Append(out, seq)
	}
	return out, nil
}
