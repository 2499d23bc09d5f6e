package dump

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

func pseudonyms(t testing.TB, key string) *Pseudonyms {
	t.Helper()
	p, err := NewPseudonyms([]byte(key))
	require.NoError(t, err)
	return p
}

const testKey = "0123456789abcdef"

func TestAddressesThatAreNobodysStay(t *testing.T) {
	p := pseudonyms(t, testKey)
	for _, s := range []string{"127.0.0.1", "127.9.9.9", "::1", "0.0.0.0", "::", "224.0.0.1", "239.1.2.3", "ff02::1", "255.255.255.255", "::ffff:127.0.0.1", "::ffff:0.0.0.0"} {
		a := netip.MustParseAddr(s)
		require.Equal(t, a, p.Addr(a), s)
	}
	require.False(t, p.Addr(netip.Addr{}).IsValid())
}

func TestPseudonymsKeepFamilyAndMapping(t *testing.T) {
	p := pseudonyms(t, testKey)
	four := p.Addr(netip.MustParseAddr("192.0.2.7"))
	require.True(t, four.Is4())
	mapped := p.Addr(netip.MustParseAddr("::ffff:192.0.2.7"))
	require.True(t, mapped.Is4In6())
	require.Equal(t, four, mapped.Unmap(), "the same host by either way of writing it")
	six := p.Addr(netip.MustParseAddr("2001:db8::7"))
	require.True(t, six.Is6() && !six.Is4In6())
	zoned := p.Addr(netip.MustParseAddr("fe80::1%eth0"))
	require.Equal(t, "eth0", zoned.Zone())
	require.NotEqual(t, netip.MustParseAddr("fe80::1"), zoned.WithZone(""))
}

// Of a permutation of 2^32, a whole neighbourhood is looked at, and many that
// are spread.
func TestNoTwoAddressesBecomeOne(t *testing.T) {
	p := pseudonyms(t, testKey)
	rnd := rand.New(rand.NewPCG(1, 2))
	from := make(map[netip.Addr]netip.Addr)
	look := func(a netip.Addr) {
		out := p.Addr(a)
		was, ok := from[out]
		require.True(t, !ok || was == a, "%s and %s both become %s", a, was, out)
		from[out] = a
		if open(a) {
			require.Equal(t, a, out)
		} else {
			require.False(t, open(out), "%s becomes %s, which is taken", a, out)
		}
	}
	for i := range 1 << 17 {
		look(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}))
		var b [4]byte
		for j := range b {
			b[j] = byte(rnd.Uint32())
		}
		look(netip.AddrFrom4(b))
	}
	for i := range 1 << 16 {
		b := netip.MustParseAddr("2001:db8::").As16()
		b[14], b[15] = byte(i>>8), byte(i)
		look(netip.AddrFrom16(b))
	}
}

func TestPseudonymsDependOnTheKeyAlone(t *testing.T) {
	a, b, c := pseudonyms(t, testKey), pseudonyms(t, testKey), pseudonyms(t, testKey+"x")
	same := 0
	for i := range 1000 {
		addr := netip.AddrFrom4([4]byte{172, 16, byte(i >> 8), byte(i)})
		require.Equal(t, a.Addr(addr), b.Addr(addr))
		if a.Addr(addr) == c.Addr(addr) {
			same++
		}
		six := netip.AddrFrom16([16]byte{0x20, 1, 14: byte(i >> 8), 15: byte(i)})
		require.Equal(t, a.Addr(six), b.Addr(six))
		require.NotEqual(t, a.Addr(six), c.Addr(six))
	}
	require.Less(t, same, 3)
	_, err := NewPseudonyms([]byte("short"))
	require.ErrorContains(t, err, "too short")
}

func TestARedactedDumpHoldsNoAddress(t *testing.T) {
	var frames []*Frame
	e := NewEncoder(func(f *Frame) { frames = append(frames, f) })
	play(Redact(e, pseudonyms(t, testKey)))
	e.Flush()
	var raw []byte
	for _, f := range frames {
		raw = append(raw, f.Raw...)
	}
	require.NotEmpty(t, raw)
	for _, s := range []string{"10.0.0.1", "2001:db8::1"} {
		require.NotContains(t, string(raw), string(netip.MustParseAddr(s).AsSlice()), s)
		require.NotContains(t, string(raw), s)
	}
	// And all else is as it was.
	var plain []*Frame
	e = NewEncoder(func(f *Frame) { plain = append(plain, f) })
	play(e)
	e.Flush()
	require.Contains(t, string(plain[0].Raw), string(netip.MustParseAddr("10.0.0.1").AsSlice()))
	require.Equal(t, len(plain[0].Raw), len(raw))
}

func TestRenumber(t *testing.T) {
	f := Frame{Kind: FrameRecords, First: 5, Raw: bytes.Repeat([]byte("a"), 100)}
	b := f.Append(nil, 1, 7)
	require.NoError(t, Renumber(b, 2, 9))
	require.Equal(t, f.Append(nil, 2, 9), b)
	require.Error(t, Renumber(b[1:], 2, 9))
	require.Error(t, Renumber(nil, 2, 9))
}
