package lab

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Case is one reproducible situation.
type Case struct {
	ID    string // as cases.md letters them, with variants: "A", "A-refusal", "A-healthy"
	Title string // a few words
	Story string // one or two sentences for people

	// NeedsTUN says that /dev/net/tun is needed.
	NeedsTUN bool

	// Silence says that the case turns on peers that say nothing for
	// Options.Silence: a tracer that is to notice needs its threshold below
	// that, and then tells of idle connections of other cases too.
	Silence bool

	// HostSetting names the sysctl of the whole machine that the case changes
	// while it runs; "" if it touches nothing outside its namespaces. Run such a
	// case where nothing else is of value: other programs' connections suffer.
	HostSetting string

	// Prepare, if not nil, brings about what existed before anybody looked:
	// call it before the tracer starts, and Run after.
	Prepare func(ctx context.Context, env *Env) error

	// Run brings about the case. It returns once everything that the Truth
	// tells has happened; what is left standing (connections in CLOSE_WAIT, a
	// full accept queue) stands until Env.Close.
	Run func(ctx context.Context, env *Env) (*Truth, error)
}

// Healthy says whether the case is a healthy twin, on which a tracer must be
// silent.
func (c Case) Healthy() bool { return strings.HasSuffix(c.ID, "-healthy") }

// Cases returns all cases in a stable order.
func Cases() []Case {
	return slices.Concat(
		immediateCloseCases,
		closeWaitCases,
		resetOnOverflowCases,
		silentOverflowCases,
		halfOpenCases,
		finalACKCases,
		portCases,
		bindConflictCases,
		connectFailureCases,
		ghostCases,
		timestampCases,
		finWaitCases,
		stallCases,
		resetCases,
		healthyCases,
	)
}

// Find returns the case with this ID, or if there is none, the first variant of
// the case with this letter. Letters may be upper or lower.
func Find(id string) (Case, error) {
	cases := Cases()
	for _, c := range cases {
		if strings.EqualFold(c.ID, id) {
			return c, nil
		}
	}
	for _, c := range cases {
		if letter, _, _ := strings.Cut(c.ID, "-"); strings.EqualFold(letter, id) {
			return c, nil
		}
	}
	return Case{}, fmt.Errorf("there is no case %q", id)
}

// Party is a process that took part.
type Party struct {
	PID  int
	Comm string
}

// Victim is one connection that came to harm, by the addresses that its two
// ends used. A scripted peer has no socket on this host at its end.
type Victim struct {
	Client netip.AddrPort
	Server netip.AddrPort
}

// Expectation is a verdict that a tracer that knows everything must give.
type Expectation struct {
	Code string // as in spec.md

	// The rest are told where the case knows them; zero values are untold.
	Listener netip.AddrPort // the listener, or the destination of a client's verdict
	Process  Party          // whom the verdict names
	Count    int            // how often, at the end

	// Facts are evidence that the verdict must give, by key; nil: as unknown.
	Facts map[string]any
}

// Truth is what happened, as known from the participants themselves and from
// the kernel's counters.
type Truth struct {
	Begin, End time.Time // of Run

	Listener netip.AddrPort // the listener in question; zero if there is none
	Server   Party          // zero if the server is a scripted peer
	Client   Party          // zero if the clients are scripted peers

	Victims []Victim
	Backlog int // listen()'s argument at Listener, where it matters
	Plateau int // connections that the server held each time it refused another

	// Expect lists the verdicts that must appear, Allow those that may as
	// well, because they are true too. Every other code is false here.
	Expect []Expectation
	Allow  []string

	// Counters holds how much each of the kernel's counters grew during Run,
	// by the inode of the network namespace. What Env.Close brings about is not
	// in it.
	Counters map[uint32]Counters

	// Known holds those increments that the participants can vouch for: an
	// accounting of the same events from the other side.
	Known Counters

	// AtLeast is the same for those that may have grown more: what the kernel
	// repeats by its own timers depends on how fast the machine is.
	AtLeast Counters
}

// Forbids says whether a verdict with this code would be false.
func (t *Truth) Forbids(code string) bool {
	if slices.Contains(t.Allow, code) {
		return false
	}
	return !slices.ContainsFunc(t.Expect, func(e Expectation) bool { return e.Code == code })
}

// Grew returns how much a counter grew in all the case's namespaces together.
func (t *Truth) Grew(counter string) uint64 {
	var sum uint64
	for _, c := range t.Counters {
		sum += c[counter]
	}
	return sum
}

// run wraps the part of a case that is measured.
func run(body func(ctx context.Context, env *Env, t *Truth) error) func(context.Context, *Env) (*Truth, error) {
	return func(ctx context.Context, env *Env) (*Truth, error) {
		before, err := env.counters()
		if err != nil {
			return nil, err
		}
		env.before = before
		t := &Truth{Begin: time.Now(), Known: make(Counters), AtLeast: make(Counters)}
		if err := body(ctx, env, t); err != nil {
			return nil, err
		}
		t.End = time.Now()
		after, err := env.counters()
		if err != nil {
			return nil, err
		}
		t.Counters = make(map[uint32]Counters, len(after))
		for inode, c := range after {
			t.Counters[inode] = c.Since(before[inode])
		}
		return t, nil
	}
}
