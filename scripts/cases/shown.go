package main

import (
	"fmt"
	"regexp"
	"strings"
	"time"
)

const left = "[...]\n" // in place of what a page leaves out

var (
	stamp   = regexp.MustCompile(`^([0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}) `)
	code    = regexp.MustCompile(`^  ([a-z]+(?:-[a-z]+)+)(?:  |\s*$)`)
	counted = regexp.MustCompile(`^ {3,}[0-9]+  [a-z]+ +([a-z]+(?:-[a-z]+)+)`)
	pid     = regexp.MustCompile(`\[([0-9]{2,7})\]|pid=([0-9]{2,7})\b`)
	inode   = regexp.MustCompile(`\b40265[0-9]{5}\b`)
	port    = regexp.MustCompile(`([0-9a-f.:\]]):([3-6][0-9]{4})\b`)
)

// shown is what a page has of a demo's output: from the first verdict to the
// last counter, of each code one verdict in full, with times, processes and
// ephemeral ports numbered anew in the order in which they turn up, so that two
// runs look as alike as they are. Columns stay where they are.
func shown(out string) string {
	var b strings.Builder
	began, skipping, tail := false, false, false
	codes := make(map[string]int)
	lines := strings.SplitAfter(out, "\n")
	for i, line := range lines {
		if stamp.MatchString(line) {
			began = true
			skipping = false
			if tail = strings.Contains(line, " summary "); !tail {
				// A verdict: is its code new? It stands beneath the story.
				for _, next := range lines[i+1:] {
					if m := code.FindStringSubmatch(next); m != nil {
						codes[m[1]]++
						skipping = codes[m[1]] > 1
						break
					}
					if stamp.MatchString(next) || strings.TrimSpace(next) == "" {
						break
					}
				}
				if skipping {
					b.WriteString(left)
				}
			} else {
				clear(codes)
			}
		}
		if !began {
			continue
		}
		if tail {
			if strings.HasPrefix(line, "  cost ") {
				break
			}
			if m := counted.FindStringSubmatch(line); m != nil {
				codes[m[1]]++
				if skipping = codes[m[1]] > 2; skipping && codes[m[1]] == 3 {
					b.WriteString("    " + left)
				}
			} else if strings.HasPrefix(line, "  ") && !strings.HasPrefix(line, "   ") {
				skipping = false // another part of the summary
			}
		}
		if !skipping {
			b.WriteString(line)
		}
	}
	return collapse(renumber(strings.TrimRight(b.String(), "\n") + "\n"))
}

// collapse makes one of several marks in a row.
func collapse(s string) string {
	for strings.Contains(s, left+left) || strings.Contains(s, left+"\n"+left) {
		s = strings.ReplaceAll(strings.ReplaceAll(s, left+left, left), left+"\n"+left, left)
	}
	return s
}

// renumber gives times, processes, namespaces and ephemeral ports other numbers
// of the same width.
func renumber(s string) string {
	var first time.Time
	pids, inodes, ports := make(map[string]string), make(map[string]string), make(map[string]string)
	again := func(m map[string]string, old string, base int) string {
		if m[old] == "" {
			m[old] = fmt.Sprint(base + len(m) + 1)
		}
		return m[old]
	}
	var b strings.Builder
	for line := range strings.Lines(s) {
		if m := stamp.FindStringSubmatch(line); m != nil {
			if at, err := time.Parse("15:04:05.000", m[1]); err == nil {
				if first.IsZero() {
					first = at
				}
				at = time.Date(2000, 1, 1, 3, 0, 0, 0, time.UTC).Add(at.Sub(first))
				line = at.Format("15:04:05.000") + line[len(m[1]):]
			}
		}
		line = pid.ReplaceAllStringFunc(line, func(x string) string {
			m := pid.FindStringSubmatch(x)
			old := m[1] + m[2]
			base := 1
			for range len(old) - 1 {
				base *= 10
			}
			return strings.Replace(x, old, again(pids, old, base), 1)
		})
		line = inode.ReplaceAllStringFunc(line, func(x string) string { return again(inodes, x, 4026532200) })
		line = port.ReplaceAllStringFunc(line, func(x string) string {
			m := port.FindStringSubmatch(x)
			if m[2] < "32768" || m[2] > "60999" {
				return x
			}
			return m[1] + ":" + again(ports, m[2], 40000)
		})
		b.WriteString(line)
	}
	return b.String()
}
