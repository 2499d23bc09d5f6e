// Package dumptest keeps recordings in memory, for the tests of what records
// and of what replays.
package dumptest

import (
	"bytes"
	"cmp"

	"github.com/tcptrace/tcptrace/internal/dump"
)

// Run is the name of a recording in memory, unless its header names one.
const Run = "memory"

// Memory is a recorder that keeps the parts of a recording in memory. It
// belongs to one goroutine.
type Memory struct {
	*dump.Encoder
	// PartAt says with which ticks, counted from 1, another part begins and a
	// look at all sockets is asked for. Nil: with none.
	PartAt func(tick int) bool

	header dump.Header
	parts  [][]*dump.Frame
	ticks  int
	end    *dump.End
}

// NewMemory returns a recorder to which nothing was told.
func NewMemory() *Memory {
	m := &Memory{}
	m.Encoder = dump.NewEncoder(func(f *dump.Frame) {
		if len(m.parts) == 0 {
			return // before the first preamble
		}
		if cap(f.Raw) > 2*len(f.Raw) {
			f.Raw = bytes.Clone(f.Raw)
		}
		i := len(m.parts) - 1
		m.parts[i] = append(m.parts[i], f)
	})
	return m
}

// Begin begins the first part.
func (m *Memory) Begin(h dump.Header) error {
	m.header = h
	m.header.Run = cmp.Or(h.Run, Run)
	m.Clock(h.Started - h.StartedBoot)
	m.parts = [][]*dump.Frame{{m.Preamble()}}
	return nil
}

// Rotate begins another part.
func (m *Memory) Rotate() {
	p := m.Preamble() // the frames before it belong to the part before
	m.parts = append(m.parts, []*dump.Frame{p})
}

// Tick closes a frame, and a part if it is time.
func (m *Memory) Tick(int64) (snapshot bool, err error) {
	m.Flush()
	m.ticks++
	if m.PartAt == nil || !m.PartAt(m.ticks) {
		return false, nil
	}
	m.Rotate()
	return true, nil
}

// End ends the recording.
func (m *Memory) End(e dump.End) error {
	m.Flush()
	m.end = &e
	return nil
}

// Parts is how many there are.
func (m *Memory) Parts() int { return len(m.parts) }

// Frames are those of a part but for the header's and the end's, and are not
// to be changed.
func (m *Memory) Frames(part int) []*dump.Frame { return m.parts[part] }

// Header is that of a part.
func (m *Memory) Header(part int) dump.Header {
	h := m.header
	h.Part = part
	return h
}

// Bytes returns a part as a file has it. Without End the last one is cut off.
func (m *Memory) Bytes(part int) ([]byte, error) {
	end := m.end
	if part < len(m.parts)-1 {
		end = &dump.End{Reason: dump.EndRotated}
	}
	return dump.Assemble(m.Header(part), m.parts[part], end)
}
