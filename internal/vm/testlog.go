package vm

import (
	"regexp"
	"strings"
)

// TestCount counts tests and subtests by outcome.
type TestCount struct {
	Passed, Failed, Skipped int
}

// Add adds the counts of c2.
func (c *TestCount) Add(c2 TestCount) {
	c.Passed += c2.Passed
	c.Failed += c2.Failed
	c.Skipped += c2.Skipped
}

// TestLog follows the output of a Go test program that was started with
// -test.v=test2json. In that form the program marks its own lines with a
// SYN character (0x16), so that nothing that a test prints is taken for a
// result.
type TestLog struct {
	// Line gets each line of output as a person would see it, without the marks;
	// nil means none. progress is true of lines that only say which test runs.
	Line func(line string, progress bool)
	// Ended gets each test that ended, and what it printed; nil means none.
	Ended func(outcome, name string, output []string)

	count   TestCount
	partial string
	current string
	outputs map[string][]string
	verdict string
}

const mark = "\x16"

// Counts returns how many tests have ended so far.
func (l *TestLog) Counts() TestCount { return l.count }

// Verdict returns the program's own last word, "PASS" or "FAIL"; "" when it
// ended without one, as after a panic.
func (l *TestLog) Verdict() string { return l.verdict }

// Unfinished returns what was printed by the test that ran last and did not
// end, and by no test at all.
func (l *TestLog) Unfinished() (name string, output []string) {
	return l.current, l.outputs[l.current]
}

// Write takes the next piece of output. It never fails.
func (l *TestLog) Write(p []byte) (int, error) {
	l.partial += string(p)
	for {
		line, rest, ok := strings.Cut(l.partial, "\n")
		if !ok {
			return len(p), nil
		}
		l.partial = rest
		l.line(strings.TrimSuffix(line, "\r"))
	}
}

// Close takes a last line without a newline for a line. It never fails.
func (l *TestLog) Close() error {
	if l.partial != "" {
		l.line(l.partial)
		l.partial = ""
	}
	return nil
}

var (
	resultLine   = regexp.MustCompile(`^\s*--- (PASS|FAIL|SKIP|BENCH): (.+) \([0-9.]+s\)$`)
	progressLine = regexp.MustCompile(`^=== (RUN|PAUSE|CONT|NAME)\s*(.*)$`)
)

// line takes one line. Output without a newline may stand before the mark.
func (l *TestLog) line(line string) {
	before, marked, isMarked := strings.Cut(line, mark)
	if !isMarked {
		l.print(before)
		return
	}
	if before != "" {
		l.print(before)
	}
	if m := progressLine.FindStringSubmatch(marked); m != nil {
		l.current = strings.TrimSpace(m[2])
		if m[1] == "PAUSE" {
			l.current = ""
		}
		l.show(marked, true)
		return
	}
	l.show(marked, false)
	m := resultLine.FindStringSubmatch(marked)
	if m == nil {
		if marked == "PASS" || marked == "FAIL" {
			l.verdict = marked
		}
		return
	}
	switch m[1] {
	case "PASS":
		l.count.Passed++
	case "FAIL":
		l.count.Failed++
	case "SKIP":
		l.count.Skipped++
	}
	if l.Ended != nil {
		l.Ended(m[1], m[2], l.outputs[m[2]])
	}
	delete(l.outputs, m[2])
	l.current = ""
}

// print takes a line that a test printed.
func (l *TestLog) print(line string) {
	if l.outputs == nil {
		l.outputs = map[string][]string{}
	}
	l.outputs[l.current] = append(l.outputs[l.current], line)
	l.show(line, false)
}

func (l *TestLog) show(line string, progress bool) {
	if l.Line != nil {
		l.Line(line, progress)
	}
}
