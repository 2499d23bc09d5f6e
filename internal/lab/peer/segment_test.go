package peer

import (
	"bytes"
	"errors"
	"net/netip"
	"reflect"
	"testing"
)

var (
	host4 = netip.MustParseAddrPort("192.0.2.1:8080")
	far4  = netip.MustParseAddrPort("192.0.2.9:51234")
	host6 = netip.MustParseAddrPort("[2001:db8::1]:8080")
	far6  = netip.MustParseAddrPort("[2001:db8::9]:51234")
)

var segments = []Segment{
	{Src: far4, Dst: host4, Seq: 1, Flags: SYN, Window: 65535, MSS: 1460},
	{Src: far4, Dst: host4, Seq: 1 << 31, Ack: 0xffffffff, Flags: PSH | ACK, Payload: []byte("odd")},
	{Src: far6, Dst: host6, Seq: 7, Flags: SYN, MSS: 1440, Timestamps: &Timestamps{Value: 1, Echo: 2}},
	{Src: far6, Dst: host6, Seq: 8, Ack: 9, Flags: FIN | ACK, Timestamps: &Timestamps{Value: 3}},
	{Src: host4, Dst: far4, Flags: RST | ACK},
}

func TestRoundTrip(t *testing.T) {
	for _, want := range segments {
		packet, err := want.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		got, err := Parse(packet)
		if err != nil {
			t.Errorf("%s: %v", want, err)
			continue
		}
		if len(got.Payload) == 0 {
			got.Payload = nil
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%+v came back as %+v", want, got)
		}
	}
}

func TestChecksumDetectsChange(t *testing.T) {
	for _, s := range segments {
		packet, err := s.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		packet[len(packet)-1] ^= 0x10
		if _, err := Parse(packet); err == nil {
			t.Errorf("%s: a changed byte went unnoticed", s)
		}
	}
}

func TestMarshalMixedFamilies(t *testing.T) {
	if _, err := (Segment{Src: far4, Dst: host6}).Marshal(); err == nil {
		t.Error("a segment from IPv4 to IPv6 was built")
	}
}

func TestParseNotTCP(t *testing.T) {
	fragment, err := segments[1].Marshal()
	if err != nil {
		t.Fatal(err)
	}
	fragment[6] |= 0x20 // more fragments
	udp, err := segments[2].Marshal()
	if err != nil {
		t.Fatal(err)
	}
	udp[6] = 17
	for _, packet := range [][]byte{nil, {0x45}, {0x60}, {0xf0}, fragment, udp, fragment[:30]} {
		if _, err := Parse(packet); !errors.Is(err, ErrNotTCP) {
			t.Errorf("Parse(%x) = %v", packet, err)
		}
	}
}

func TestLen(t *testing.T) {
	if got := (Segment{Flags: SYN | FIN, Payload: []byte("abc")}).Len(); got != 5 {
		t.Errorf("SYN, three bytes and FIN take %d of the sequence space", got)
	}
}

// FuzzParse checks that whatever Parse accepts can be built again and means the
// same.
func FuzzParse(f *testing.F) {
	for _, s := range segments {
		packet, err := s.Marshal()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(packet)
	}
	f.Fuzz(func(t *testing.T, packet []byte) {
		s, err := Parse(packet)
		if err != nil {
			return
		}
		again, err := s.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		s2, err := Parse(again)
		if err != nil {
			t.Fatal(err)
		}
		if s.Flags != s2.Flags || s.Seq != s2.Seq || s.MSS != s2.MSS || !bytes.Equal(s.Payload, s2.Payload) {
			t.Errorf("%+v came back as %+v", s, s2)
		}
	})
}
