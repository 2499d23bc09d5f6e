package dump

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// Renumber makes a frame that [Frame.Append] made one of another run, with
// another number, for frames that come into a file later than they were made.
func Renumber(frame []byte, run, seq uint32) error {
	if _, err := parseFrameHeader(frame); err != nil {
		return fmt.Errorf("numbering a frame: %w", err)
	}
	const sum = frameHeaderSize - 4
	le := binary.LittleEndian
	le.PutUint32(frame[8:], seq)
	le.PutUint32(frame[12:], run)
	le.PutUint32(frame[sum:], crc32.Checksum(frame[:sum], castagnoli))
	return nil
}
