// Package peer is the other end of a TCP connection under full control: it
// builds and reads the packets itself, behind a TUN device. It can do what a
// kernel's own TCP never would: hold back the final ACK of a handshake, ignore
// a SYN-ACK, answer with RST whenever it likes.
//
// It speaks TCP as RFC 9293 writes it, but only what it is told to say. It
// never retransmits.
package peer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// Flags are TCP's control bits.
type Flags uint8

// The control bits of RFC 9293 that the peer uses.
const (
	FIN Flags = 1 << iota
	SYN
	RST
	PSH
	ACK
)

// String names the set bits in the order of tcpdump's writing, "SYN|ACK".
func (f Flags) String() string {
	var names []string
	for i, name := range []string{"FIN", "SYN", "RST", "PSH", "ACK"} {
		if f&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, "|")
}

// Timestamps is the option of RFC 7323.
type Timestamps struct {
	Value, Echo uint32
}

// Segment is a TCP segment with what matters of its IP header.
type Segment struct {
	Src, Dst netip.AddrPort // both IPv4 or both IPv6
	Seq, Ack uint32
	Flags    Flags
	Window   uint16

	MSS        uint16 // option; absent if 0
	Timestamps *Timestamps

	Payload []byte
}

// Len is how much of the sequence space the segment takes.
func (s Segment) Len() uint32 {
	n := uint32(len(s.Payload))
	if s.Flags&SYN != 0 {
		n++
	}
	if s.Flags&FIN != 0 {
		n++
	}
	return n
}

// Has says whether all these control bits are set.
func (s Segment) Has(f Flags) bool { return s.Flags&f == f }

// String describes the segment in one line.
func (s Segment) String() string {
	return fmt.Sprintf("%s > %s %s seq %d ack %d len %d", s.Src, s.Dst, s.Flags, s.Seq, s.Ack, len(s.Payload))
}

const (
	ipv4HeaderLen = 20
	ipv6HeaderLen = 40
	tcpHeaderLen  = 20
	protocolTCP   = 6

	optionEnd        = 0
	optionNOP        = 1
	optionMSS        = 2
	optionTimestamps = 8
)

// ErrNotTCP is returned for a packet that carries no TCP segment.
var ErrNotTCP = errors.New("not a TCP segment")

// Marshal builds the IP packet that carries the segment.
func (s Segment) Marshal() ([]byte, error) {
	src, dst := s.Src.Addr(), s.Dst.Addr()
	if !src.IsValid() || src.Is4() != dst.Is4() {
		return nil, fmt.Errorf("building a segment: %s and %s are not of one family", s.Src, s.Dst)
	}
	tcp := s.marshalTCP()
	if src.Is4() {
		ip := make([]byte, ipv4HeaderLen, ipv4HeaderLen+len(tcp))
		ip[0] = 4<<4 | ipv4HeaderLen/4
		binary.BigEndian.PutUint16(ip[2:], uint16(ipv4HeaderLen+len(tcp)))
		ip[6] = 0x40 // don't fragment
		ip[8] = 64   // time to live
		ip[9] = protocolTCP
		copy(ip[12:], src.AsSlice())
		copy(ip[16:], dst.AsSlice())
		binary.BigEndian.PutUint16(ip[10:], ^sum(ip, 0))
		return append(ip, tcp...), nil
	}
	ip := make([]byte, ipv6HeaderLen, ipv6HeaderLen+len(tcp))
	ip[0] = 6 << 4
	binary.BigEndian.PutUint16(ip[4:], uint16(len(tcp)))
	ip[6] = protocolTCP
	ip[7] = 64 // hop limit
	copy(ip[8:], src.AsSlice())
	copy(ip[24:], dst.AsSlice())
	return append(ip, tcp...), nil
}

func (s Segment) marshalTCP() []byte {
	var options []byte
	if s.MSS != 0 {
		options = append(options, optionMSS, 4)
		options = binary.BigEndian.AppendUint16(options, s.MSS)
	}
	if s.Timestamps != nil {
		options = append(options, optionNOP, optionNOP, optionTimestamps, 10)
		options = binary.BigEndian.AppendUint32(options, s.Timestamps.Value)
		options = binary.BigEndian.AppendUint32(options, s.Timestamps.Echo)
	}
	b := make([]byte, tcpHeaderLen, tcpHeaderLen+len(options)+len(s.Payload))
	binary.BigEndian.PutUint16(b[0:], s.Src.Port())
	binary.BigEndian.PutUint16(b[2:], s.Dst.Port())
	binary.BigEndian.PutUint32(b[4:], s.Seq)
	binary.BigEndian.PutUint32(b[8:], s.Ack)
	b[12] = byte((tcpHeaderLen+len(options))/4) << 4
	b[13] = byte(s.Flags)
	binary.BigEndian.PutUint16(b[14:], s.Window)
	b = append(append(b, options...), s.Payload...)
	binary.BigEndian.PutUint16(b[16:], ^sum(b, pseudoHeader(s.Src.Addr(), s.Dst.Addr(), len(b))))
	return b
}

// Parse reads an IP packet. The segment does not alias it. Packets of other
// protocols, fragments and packets with IPv6 extension headers give ErrNotTCP.
func Parse(packet []byte) (Segment, error) {
	if len(packet) == 0 {
		return Segment{}, ErrNotTCP
	}
	var src, dst netip.Addr
	var tcp []byte
	switch packet[0] >> 4 {
	case 4:
		if len(packet) < ipv4HeaderLen {
			return Segment{}, ErrNotTCP
		}
		header, total := int(packet[0]&0xf)*4, int(binary.BigEndian.Uint16(packet[2:]))
		fragment := binary.BigEndian.Uint16(packet[6:]) & 0x3fff
		if header < ipv4HeaderLen || total < header || total > len(packet) || packet[9] != protocolTCP || fragment != 0 {
			return Segment{}, ErrNotTCP
		}
		src, dst = netip.AddrFrom4([4]byte(packet[12:16])), netip.AddrFrom4([4]byte(packet[16:20]))
		tcp = packet[header:total]
	case 6:
		if len(packet) < ipv6HeaderLen {
			return Segment{}, ErrNotTCP
		}
		total := ipv6HeaderLen + int(binary.BigEndian.Uint16(packet[4:]))
		if total > len(packet) || packet[6] != protocolTCP {
			return Segment{}, ErrNotTCP
		}
		src, dst = netip.AddrFrom16([16]byte(packet[8:24])), netip.AddrFrom16([16]byte(packet[24:40]))
		tcp = packet[ipv6HeaderLen:total]
	default:
		return Segment{}, ErrNotTCP
	}
	return parseTCP(src, dst, tcp)
}

func parseTCP(src, dst netip.Addr, b []byte) (Segment, error) {
	if len(b) < tcpHeaderLen {
		return Segment{}, fmt.Errorf("reading a segment of %d bytes: %w", len(b), ErrNotTCP)
	}
	header := int(b[12]>>4) * 4
	if header < tcpHeaderLen || header > len(b) {
		return Segment{}, fmt.Errorf("reading a segment with a header of %d bytes: %w", header, ErrNotTCP)
	}
	if sum(b, pseudoHeader(src, dst, len(b))) != 0xffff {
		return Segment{}, errors.New("reading a segment: wrong checksum")
	}
	s := Segment{
		Src:     netip.AddrPortFrom(src, binary.BigEndian.Uint16(b[0:])),
		Dst:     netip.AddrPortFrom(dst, binary.BigEndian.Uint16(b[2:])),
		Seq:     binary.BigEndian.Uint32(b[4:]),
		Ack:     binary.BigEndian.Uint32(b[8:]),
		Flags:   Flags(b[13]) & (FIN | SYN | RST | PSH | ACK),
		Window:  binary.BigEndian.Uint16(b[14:]),
		Payload: append([]byte(nil), b[header:]...),
	}
	s.parseOptions(b[tcpHeaderLen:header])
	return s, nil
}

// parseOptions takes the known options and stops at a malformed one.
func (s *Segment) parseOptions(b []byte) {
	for len(b) > 0 && b[0] != optionEnd {
		if b[0] == optionNOP {
			b = b[1:]
			continue
		}
		if len(b) < 2 || b[1] < 2 || int(b[1]) > len(b) {
			return
		}
		kind, value := b[0], b[2:b[1]]
		b = b[b[1]:]
		switch {
		case kind == optionMSS && len(value) == 2:
			s.MSS = binary.BigEndian.Uint16(value)
		case kind == optionTimestamps && len(value) == 8:
			s.Timestamps = &Timestamps{
				Value: binary.BigEndian.Uint32(value),
				Echo:  binary.BigEndian.Uint32(value[4:]),
			}
		}
	}
}

// pseudoHeader is the part of the checksum that covers the addresses.
func pseudoHeader(src, dst netip.Addr, length int) uint32 {
	b := append(src.AsSlice(), dst.AsSlice()...)
	b = binary.BigEndian.AppendUint32(b, uint32(length))
	b = binary.BigEndian.AppendUint32(b, protocolTCP)
	return uint32(sum(b, 0))
}

// sum is the Internet checksum's ones' complement sum (RFC 1071).
func sum(b []byte, initial uint32) uint16 {
	total := initial
	for ; len(b) >= 2; b = b[2:] {
		total += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		total += uint32(b[0]) << 8
	}
	for total > 0xffff {
		total = total>>16 + total&0xffff
	}
	return uint16(total)
}
