package diagnose

import (
	"fmt"
	"net/netip"
	"slices"
)

// heavy finds what occurs most often in a stream of any length in bounded
// memory, by the space-saving algorithm (Metwally et al., 2005): with k
// counters over n observations, whatever occurs more than n/k times is among
// them, and no counter is more than n/k too high.
type heavy[K comparable] struct {
	n    uint64 // observations
	list []hitter[K]
}

type hitter[K comparable] struct {
	key   K
	count uint64
	over  uint64 // by how much count may be too high
}

// least is how often the key was surely observed.
func (h *hitter[K]) least() uint64 { return h.count - h.over }

// hitters is how many counters one heavy has.
const hitters = 64

func (h *heavy[K]) add(k K) {
	h.n++
	lowest := 0
	for i := range h.list {
		if h.list[i].key == k {
			h.list[i].count++
			return
		}
		if h.list[i].count < h.list[lowest].count {
			lowest = i
		}
	}
	if len(h.list) < hitters {
		h.list = append(h.list, hitter[K]{key: k, count: 1})
		return
	}
	low := h.list[lowest].count
	h.list[lowest] = hitter[K]{key: k, count: low + 1, over: low}
}

// top returns at most max keys that were surely observed at least twice and in
// one of a hundred observations, the most frequent first.
func (h *heavy[K]) top(max int) []hitter[K] {
	var out []hitter[K]
	for _, x := range h.list {
		if x.least() >= 2 && x.least()*100 >= h.n {
			out = append(out, x)
		}
	}
	slices.SortStableFunc(out, func(a, b hitter[K]) int {
		switch {
		case a.least() > b.least():
			return -1
		case a.least() < b.least():
			return 1
		}
		return 0
	})
	return out[:min(len(out), max)]
}

// share is which part of all observations the most frequent key surely has, 0
// to 1.
func (h *heavy[K]) share() float64 {
	if top := h.top(1); len(top) > 0 {
		return float64(top[0].least()) / float64(h.n)
	}
	return 0
}

// sources keeps account of where segments came from: by address, and by
// network, since a flood may take its addresses from one.
type sources struct {
	addresses addresses
	single    heavy[netip.Addr]
	network   heavy[netip.Prefix]
}

func (s *sources) add(a netip.Addr) {
	if !a.IsValid() {
		return
	}
	s.addresses.add(a)
	s.single.add(a)
	s.network.add(networkOf(a))
}

func (s *addresses) has(a netip.Addr) bool {
	_, ok := s.m[a]
	return ok
}

// networkOf is the smallest network that is routed as one: /24 of IPv4, /64 of
// IPv6.
func networkOf(a netip.Addr) netip.Prefix {
	bits := 24
	if a.Is6() {
		bits = 64
	}
	p, err := a.Prefix(bits)
	if err != nil { // only an address with a zone
		p, _ = a.WithZone("").Prefix(bits)
	}
	return p
}

// n is how many segments were seen with their source.
func (s *sources) n() uint64 { return s.single.n }

// fact lists the sources that stand out. all is how many segments there were,
// with or without a known source.
func (s *sources) fact(key string, all uint64) Fact {
	const most = 5
	list := []string{}
	if len(s.single.list) <= most { // all of them
		for _, h := range s.single.list {
			list = append(list, fmt.Sprintf("%s (%d)", h.key, h.count))
		}
		return s.noted(key, list, all)
	}
	for _, h := range s.single.top(most) {
		list = append(list, fmt.Sprintf("%s (%d)", h.key, h.least()))
	}
	for _, h := range s.network.top(most) {
		// A network of which one address says it all adds nothing.
		if slices.ContainsFunc(s.single.top(most), func(x hitter[netip.Addr]) bool {
			return h.key.Contains(x.key) && 10*x.least() >= 9*h.least()
		}) {
			continue
		}
		list = append(list, fmt.Sprintf("%s (%d)", h.key, h.least()))
	}
	return s.noted(key, list, all)
}

// noted says what list is drawn from.
func (s *sources) noted(key string, list []string, all uint64) Fact {
	f := Fact{Key: key, Value: list}
	switch {
	case s.n() == 0:
		f.Value, f.Note = nil, "they came too fast to look at each one's source"
	case len(list) == 0:
		f.Note = fmt.Sprintf("none stands out among %d", s.n())
	case s.n() < all:
		f.Note = fmt.Sprintf("of %d whose source was looked at", s.n())
	}
	return f
}
