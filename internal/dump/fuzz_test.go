package dump

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tcptrace/tcptrace/tracer/event"
)

// counted is a feed that counts events, and what was lost of the dump.
type counted struct {
	nothing
	lost uint64
}

func (c *counted) Lost(_ int64, l event.Lost) {
	if l.Where == WhereDump {
		c.lost += l.Count
	}
}

// fuzzedMost is how much a dump of no more than a few frames may have given
// out: a buffer for the file, the decompressor, 4 MiB of payload, definitions
// and JSON.
const fuzzedMost = 96 << 20

// readFuzzed reads what may be anything and checks what holds of all dumps.
func readFuzzed(t *testing.T, b []byte) (*Reader, *counted) {
	t.Helper()
	var r *Reader
	c := new(counted)
	within(t, fuzzedMost, func() {
		var err error
		r, err = NewReader(bytes.NewReader(b))
		if err != nil {
			require.True(t, errors.Is(err, ErrNotDump) || errors.Is(err, ErrNewer), "%v", err)
			r = nil
			return
		}
		for err == nil {
			err = r.Next(c)
		}
		require.ErrorIs(t, err, io.EOF)
	})
	if r == nil {
		return nil, nil
	}
	at := int64(0)
	list, more := r.Damages()
	for _, d := range list {
		require.GreaterOrEqual(t, d.Offset, at)
		require.GreaterOrEqual(t, d.Bytes, int64(0))
		at = d.Offset + d.Bytes
	}
	require.LessOrEqual(t, at, int64(len(b)))
	require.True(t, more == 0 || len(list) == maxDamages)
	require.LessOrEqual(t, uint64(c.events), r.Told())
	return r, c
}

// FuzzReader reads any bytes as a dump.
func FuzzReader(f *testing.F) {
	for _, flush := range []bool{false, true} {
		dump := written(f, play, flush)
		f.Add(dump)
		f.Add(dump[:len(dump)-7])
	}
	dump, _ := shortDump(f)
	f.Add(dump)
	f.Add(append(bytes.Clone(dump), dump...))
	f.Add(dump[3:])
	f.Fuzz(func(t *testing.T, b []byte) {
		r, c := readFuzzed(t, b)
		if r == nil {
			return
		}
		// Whoever gets past the checksums by chance wrote what these say.
		if r.Header().Part == 0 && r.Header().Window == nil {
			require.Equal(t, r.Told(), uint64(c.events)+c.lost)
		}
	})
}

// FuzzPayload gets past the checksums: it reads any bytes as what is in a
// frame, between two that are sound.
func FuzzPayload(f *testing.F) {
	var list []*Frame
	e := NewEncoder(func(f *Frame) { list = append(list, f) })
	play(e)
	randomRun(e, rand.New(rand.NewPCG(1, 1)), 200)
	short(e)
	for _, fr := range list {
		f.Add(fr.Raw, byte(FrameRecords), fr.Events, uint64(0), false)
		f.Add(fr.Raw, byte(FrameRecords), fr.Events+1, uint64(5), true)
		f.Add(fr.Raw, byte(FramePreamble), uint32(0), uint64(0), false)
	}
	head, err := encodeJSON(Header{Format: 1, Rules: map[string]string{"a": "b"}, Window: &Window{}, Layout: plus()})
	require.NoError(f, err)
	f.Add(head, byte(FrameHeader), uint32(0), uint64(0), false)
	end, err := EndFrame(End{Summary: &Summary{Audit: Audit{Lines: make([]AuditLine, 2)}}}, 0)
	require.NoError(f, err)
	f.Add(end.Raw, byte(FrameEnd), uint32(0), uint64(10), false)
	f.Fuzz(func(t *testing.T, raw []byte, kind byte, events uint32, before uint64, more bool) {
		if len(raw) > maxRaw {
			return
		}
		h := Header{Format: 1, Layout: layout}
		if more {
			h.Layout = plus()
		}
		hraw, err := encodeJSON(h)
		require.NoError(t, err)
		one := Frame{Kind: FrameRecords, Events: 1, Raw: []byte{tagSocket, 0, 0, 0, 0, 0, 0, tagShape, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0}}
		if more {
			one.Raw = append(one.Raw, 0, 0, 0)
		}
		one.Raw = append(one.Raw, tagEvent, 2, 0)
		dump := append([]byte(nil), signature[:]...)
		if Kind(kind) == FrameHeader {
			dump = (&Frame{Kind: FrameHeader, Raw: raw}).Append(dump, 5, 0)
		}
		dump = (&Frame{Kind: FrameHeader, Raw: hraw}).Append(dump, 5, 1)
		dump = one.Append(dump, 5, 2)
		dump = (&Frame{Kind: Kind(kind), Events: events, Before: before, Raw: raw}).Append(dump, 5, 3)
		one.Before = before + uint64(events)
		dump = one.Append(dump, 5, 4)
		r, c := readFuzzed(t, dump)
		if Kind(kind) != FrameHeader && Kind(kind) != FrameEnd {
			require.NotNil(t, r)
			require.Positive(t, c.events)
		}
	})
}

// source makes random numbers of bytes, and any when there are no more.
type source struct {
	b    []byte
	then *rand.PCG
}

func (s *source) Uint64() uint64 {
	if len(s.b) < 8 {
		return s.then.Uint64()
	}
	v := binary.LittleEndian.Uint64(s.b)
	s.b = s.b[8:]
	return v
}

// FuzzRoundTrip tells an encoder of anything, and gets it back.
func FuzzRoundTrip(f *testing.F) {
	for seed := range uint64(5) {
		r := rand.New(rand.NewPCG(seed, 3))
		b := make([]byte, 4000)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		through(t, func(f Feed) { randomRun(f, rand.New(&source{b, rand.NewPCG(1, 2)}), min(len(b)/100, 10_000)) })
	})
}
