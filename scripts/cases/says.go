package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// said is one thing that tcptrace says in the end, without what is different
// every time.
type said struct {
	severity, code, subject string
	story                   string // a skeleton
}

func (s said) String() string {
	return fmt.Sprintf("%s %s %s: %s", s.severity, s.code, s.subject, s.story)
}

func parseSaid(line string) (said, error) {
	head, story, ok := strings.Cut(line, ": ")
	f := strings.Fields(head)
	if !ok || len(f) != 3 {
		return said{}, fmt.Errorf("not SEVERITY CODE SUBJECT: STORY: %q", line)
	}
	return said{f[0], f[1], f[2], story}, nil
}

// structure returns what the lines of JSON say in the end.
func structure(lines []byte) ([]said, error) {
	type verdict struct {
		Type, Code, Severity, Story string
		Subject                     struct{ Kind, Name string }
	}
	type key struct{ code, kind, name, story string }
	last := make(map[key]said)
	for line := range bytes.Lines(lines) {
		var v verdict
		if err := json.Unmarshal(line, &v); err != nil {
			return nil, fmt.Errorf("reading the output: %w", err)
		}
		if v.Type == "verdict" {
			last[key{v.Code, v.Subject.Kind, v.Subject.Name, firstWords(v.Story)}] = said{v.Severity, v.Code, v.Subject.Kind, skeleton(v.Story)}
		}
	}
	var out []said
	for _, s := range last {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	slices.SortFunc(out, func(a, b said) int { return cmp.Or(cmp.Compare(a.code, b.code), cmp.Compare(a.String(), b.String())) })
	return out, nil
}

// firstWords tells verdicts of one code about one subject apart, where they are
// about different things: a growing story keeps how it begins.
func firstWords(story string) string {
	f := strings.Fields(skeleton(story))
	return strings.Join(f[:min(2, len(f))], " ")
}

var (
	processes = regexp.MustCompile(`\[[0-9]+\]`)
	numbers   = regexp.MustCompile(`(\[[0-9a-f:]+\]:[0-9]+|[0-9][0-9.,:/]*[0-9]|[0-9])( ?(ns|µs|ms|s|min|h|d|bytes|byte|kB|MB|GB|%)\b)?`)
	often     = regexp.MustCompile(`\b(once|twice|# times)\b`)
	plural    = regexp.MustCompile(`\b(SYN|SYN-ACK|connection|socket|port|segment|byte|server|probe)s\b`)
)

// skeleton is a story without numbers, times, addresses and plurals.
func skeleton(story string) string {
	s := processes.ReplaceAllString(story, "[#]")
	s = numbers.ReplaceAllString(s, "#")
	s = often.ReplaceAllString(s, "# times")
	s = strings.ReplaceAll(s, "at least ", "")
	return plural.ReplaceAllString(s, "$1")
}

// compare reports how a run differs from a page: other codes or, of a code, no
// story that the page has.
func compare(page, run []said) error {
	var diff []string
	has := func(list []said, ok func(said) bool) bool { return slices.ContainsFunc(list, ok) }
	for _, s := range page {
		switch {
		case !has(run, func(r said) bool { return r.code == s.code }):
			diff = append(diff, "not said any more: "+s.String())
		case !has(run, func(r said) bool { return r.code == s.code && has(page, func(p said) bool { return p == r }) }):
			diff = append(diff, "said otherwise: "+s.String())
		}
	}
	for _, r := range run {
		if !has(page, func(s said) bool { return s.code == r.code }) {
			diff = append(diff, "not on the page: "+r.String())
		}
	}
	if len(diff) == 0 {
		return nil
	}
	for _, r := range run {
		diff = append(diff, "this run says: "+r.String())
	}
	return fmt.Errorf("the page is not what demo says; make cases, and read what it gives:\n  %s", strings.Join(diff, "\n  "))
}
