package render

import (
	"net/netip"
	"strings"
	"time"
)

// A loop of reconnections or a full queue ends thousands of connections a
// second in the same way, and their timelines would bury the verdict that
// names the cause. So with [TextOptions.Fold], of those that are alike the
// first are shown in full, some more as a line, and the others are counted:
// each connection is in exactly one of the three.
//
// Time is that of the connections, so that the same values give the same text.
const (
	// quiet is for how long no connection of a kind has to come until the next
	// is news again, and the shortest time to which an allowance applies.
	quiet = 10 * time.Second
	// maxKinds bounds what is remembered, and with it how much is shown of a
	// scan, in which each connection is of a kind of its own: those for which
	// there is no place are one kind together.
	maxKinds = 32
	// tells is how often a count is told in the while to which an allowance
	// applies: at first once a second.
	tells = 10
)

// An allowance is how many connections of a kind are shown in a while.
type allowance struct {
	full, listed int           // in full; in full or as a line
	longest      time.Duration // the while doubles up to this where more came than are shown in full
}

var (
	// Three timelines tell what is common to a failure and what differs. Where
	// it goes on for hours there is a new example now and then.
	badly = allowance{full: 3, listed: 10, longest: 10 * time.Minute}
	// Those that went well are only shown where somebody asked for them, with
	// --all: as a stream, so long as one can follow it at all.
	smoothly = allowance{full: 20, listed: 200, longest: quiet}
)

// kind is what connections have in common that are alike.
type kind struct {
	other      bool // any, of those for which there was no place: nothing else is set
	well       bool
	incomplete bool
	codes      string
	role       string
	service    netip.AddrPort // the listener, or what was connected to
	comm       string
	netns      uint32
}

func kindOf(c *Connection) kind {
	k := kind{
		well: c.Well, incomplete: c.Incomplete, codes: strings.Join(c.Verdicts, ","),
		role: c.Role, comm: c.Process.Comm, netns: c.Netns, service: c.Local,
	}
	switch {
	case c.Listener.IsValid():
		k.service = c.Listener
	case c.Role == "client", c.Role != "server" && c.Remote.IsValid() && c.Remote.Port() < c.Local.Port():
		k.service = c.Remote // where the role is not known, the lower port is the service's
	}
	return k
}

func (k *kind) allowance() allowance {
	if k.well {
		return smoothly
	}
	return badly
}

// alike is what is known of the connections of a kind.
type alike struct {
	kind
	last  Stamp         // when the last one came
	began Stamp         // since when seen counts
	while time.Duration // for how long it does
	seen  int
	count uint64 // of those that are counted only, and not told of yet
	since Stamp  // when the first of those came
}

// folding is the state of it all.
type folding struct {
	kinds  []*alike // at most maxKinds and the one for the others
	hinted bool
}

// The ways to show a connection.
const (
	inFull = iota
	asLine
	asCount
)

// fold decides how to show a connection, and counts it if that is all.
func (t *Text) fold(c *Connection) int {
	if !t.o.Fold {
		return inFull
	}
	t.counted(c.Time)
	a := t.alike(kindOf(c), c.Time)
	allowed := a.allowance()
	switch {
	case c.Time-a.last >= Stamp(quiet):
		t.count(a)
		a.began, a.while, a.seen = c.Time, quiet, 0
	case c.Time-a.began >= Stamp(a.while):
		t.count(a)
		if a.seen > allowed.full {
			a.while = min(2*a.while, allowed.longest)
		} else {
			a.while = quiet
		}
		a.began, a.seen = c.Time, 0
	}
	a.last = max(a.last, c.Time)
	a.seen++
	switch {
	case a.seen <= allowed.full:
		return inFull
	case a.seen <= allowed.listed:
		return asLine
	}
	if a.count == 0 {
		a.since = c.Time
	}
	a.count++
	return asCount
}

// alike finds what is known of a kind, or makes room for it.
func (t *Text) alike(k kind, now Stamp) *alike {
	var other, oldest *alike
	named := 0
	for _, a := range t.folds.kinds {
		if a.kind == k {
			return a
		}
		if a.other {
			other = a
			continue
		}
		named++
		if oldest == nil || a.last < oldest.last {
			oldest = a
		}
	}
	switch {
	case named < maxKinds:
	case now-oldest.last >= Stamp(quiet):
		t.count(oldest)
		*oldest = alike{kind: k}
		return oldest
	case other != nil:
		return other
	default:
		k = kind{other: true}
	}
	a := &alike{kind: k}
	t.folds.kinds = append(t.folds.kinds, a)
	return a
}

// counted tells the counts for which it is time.
func (t *Text) counted(now Stamp) {
	for _, a := range t.folds.kinds {
		if now-a.since >= Stamp(a.while/tells) {
			t.count(a)
		}
	}
}

// count tells how many connections of a kind were not shown since it was last
// told, with the time of the last of them.
func (t *Text) count(a *alike) {
	if a.count == 0 {
		return
	}
	text := Thousands(a.count) + " more connection"
	if a.count > 1 {
		text += "s"
	}
	a.count = 0
	if a.other {
		text += " of other kinds"
	} else {
		text += " like this: " + strings.Join(t.common(&a.kind), ", ")
	}
	if !t.folds.hinted {
		t.folds.hinted = true
		text += " (-o json has each one, --show verdicts none)"
	}
	t.head(a.last, "conn", dim, text)
}

// common names what connections of a kind have in common.
func (t *Text) common(k *kind) []string {
	var items []string
	switch {
	case k.codes != "":
		items = append(items, Safe(k.codes))
	case k.well:
		items = append(items, "went well")
	case !k.incomplete:
		items = append(items, "no verdict")
	}
	if k.incomplete {
		items = append(items, "incomplete")
	}
	who := k.role
	if k.role == "unknown" {
		who = "role unknown"
	}
	if k.comm != "" {
		who += " " + Safe(k.comm)
	}
	switch k.role {
	case "client":
		who += " to " + Addr(k.service)
	case "server":
		who += " at " + Addr(k.service)
	default:
		items = append(items, Addr(k.service))
	}
	items = append(items, who)
	if ns := t.netns(k.netns); ns != "" {
		items = append(items, ns)
	}
	return items
}
