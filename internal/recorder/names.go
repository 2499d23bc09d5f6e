package recorder

import (
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/tcptrace/tcptrace/internal/dump"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// nameless is a feed before which addresses in the names of namespaces are
// replaced: `ip netns add` takes any name, and whoever runs containers may
// have taken their addresses.
type nameless struct {
	dump.Feed
	p *dump.Pseudonyms
}

// Namespace is [dump.Feed].
func (n *nameless) Namespace(ns event.Namespace) {
	ns.Name = hide(n.p, ns.Name)
	n.Feed.Namespace(ns)
}

// Audit is [dump.Feed].
func (n *nameless) Audit(a dump.Audit) { n.Feed.Audit(hideNotes(n.p, a)) }

// hideNotes replaces addresses in the notes of an audit, which name
// namespaces.
func hideNotes(p *dump.Pseudonyms, a dump.Audit) dump.Audit {
	a.Notes = slices.Clone(a.Notes)
	for i, note := range a.Notes {
		a.Notes[i] = hide(p, note)
	}
	return a
}

var (
	// numbers are decimal ones in a row, as 10.0.0.1, 10-0-0-1 or 10_0_0_1 has
	// them.
	numbers = regexp.MustCompile(`[0-9]+(?:[._-][0-9]+){3,}`)
	// groups may be an IPv6 address.
	groups = regexp.MustCompile(`[0-9A-Fa-f]*(?::[0-9A-Fa-f]*){2,}`)
)

// hide replaces what may be an address in a text by its pseudonym.
func hide(p *dump.Pseudonyms, text string) string {
	text = numbers.ReplaceAllStringFunc(text, func(s string) string { return hideNumbers(p, s) })
	return groups.ReplaceAllStringFunc(text, func(s string) string {
		// One colon at either end may be the sentence's.
		for _, before := range []string{"", ":"} {
			for _, after := range []string{"", ":"} {
				inner := strings.TrimSuffix(strings.TrimPrefix(s, before), after)
				if a, err := netip.ParseAddr(inner); err == nil {
					return strings.Replace(s, inner, p.Addr(a).String(), 1)
				}
			}
		}
		return s
	})
}

// hideNumbers replaces each four numbers that may be an address. Of more than
// four the last ones are taken: what stands before them is rather part of the
// name.
func hideNumbers(p *dump.Pseudonyms, text string) string {
	words := strings.FieldsFunc(text, func(r rune) bool { return r < '0' || r > '9' })
	var separators []byte
	for i := range len(text) {
		if text[i] < '0' || text[i] > '9' {
			separators = append(separators, text[i])
		}
	}
	for last := len(words) - 1; last >= 3; last-- {
		first := last - 3
		if s := separators[first:last]; s[0] != s[1] || s[1] != s[2] {
			continue
		}
		var b [4]byte
		ok := true
		for i, word := range words[first : last+1] {
			n, err := strconv.ParseUint(word, 10, 8)
			ok = ok && err == nil
			b[i] = byte(n)
		}
		if !ok {
			continue
		}
		for i, n := range p.Addr(netip.AddrFrom4(b)).As4() {
			words[first+i] = strconv.Itoa(int(n))
		}
		last = first
	}
	var out strings.Builder
	for i, word := range words {
		if i > 0 {
			out.WriteByte(separators[i-1])
		}
		out.WriteString(word)
	}
	return out.String()
}
