package render

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// Safe makes a string harmless on a terminal: control characters (also those
// of C1), invalid UTF-8, and invisible and direction-changing characters come
// out as Go escapes. What is harmless already is returned as it is, so it does
// not matter if a string was made safe before.
func Safe(s string) string {
	for i, r := range s {
		if r == utf8.RuneError || !strconv.IsGraphic(r) {
			return s[:i] + escape(s[i:])
		}
	}
	return s
}

// Short is Safe of no more than the first most bytes, and says where it ends
// too early.
func Short(s string, most int) string {
	if len(s) > most {
		for most > 0 && !utf8.RuneStart(s[most]) {
			most--
		}
		s = s[:most] + "…"
	}
	return Safe(s)
}

func escape(s string) string {
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		if r == utf8.RuneError && n == 1 || !strconv.IsGraphic(r) {
			quoted := strconv.QuoteToASCII(s[:n])
			b.WriteString(quoted[1 : len(quoted)-1])
		} else {
			b.WriteString(s[:n])
		}
		s = s[n:]
	}
	return b.String()
}

// SafeJSON escapes what encoding/json leaves alone and a terminal may not
// (DEL, C1, bidirectional and invisible characters). It works on a whole
// object, since such characters only occur within its strings.
func SafeJSON(line []byte) []byte {
	plain := true
	for _, c := range line {
		if c >= 0x7f {
			plain = false
			break
		}
	}
	if plain {
		return line
	}
	out := make([]byte, 0, len(line)+16)
	for i := 0; i < len(line); {
		r, n := utf8.DecodeRune(line[i:])
		switch {
		case r == utf8.RuneError && n == 1: // encoding/json lets none through
			out = append(out, `\ufffd`...)
		case r < 0x7f || strconv.IsGraphic(r):
			out = append(out, line[i:i+n]...)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			out = fmt.Appendf(out, `\u%04x\u%04x`, high, low)
		default:
			out = fmt.Appendf(out, `\u%04x`, r)
		}
		i += n
	}
	return out
}

// columns is the width of an escaped string on a terminal: East Asian wide
// characters take two columns and combining marks none.
func columns(s string) int {
	n := 0
	for _, r := range s {
		n += runeColumns(r)
	}
	return n
}

func runeColumns(r rune) int {
	switch {
	case r < 0x300:
		return 1
	case r <= 0x36f, r >= 0x1ab0 && r <= 0x1aff, r >= 0x1dc0 && r <= 0x1dff, r >= 0x20d0 && r <= 0x20ff, r >= 0xfe00 && r <= 0xfe0f, r >= 0xfe20 && r <= 0xfe2f:
		return 0
	case r >= 0x1100 && r <= 0x115f, r >= 0x2e80 && r <= 0xa4cf, r >= 0xac00 && r <= 0xd7a3, r >= 0xf900 && r <= 0xfaff,
		r >= 0xfe30 && r <= 0xfe6f, r >= 0xff00 && r <= 0xff60, r >= 0xffe0 && r <= 0xffe6,
		r >= 0x1f300 && r <= 0x1faff, r >= 0x20000 && r <= 0x3fffd:
		return 2
	}
	return 1
}

// Wrap breaks a text into lines of at most width columns, at spaces where
// there are any. The text must be safe, see [Safe]. The list is never
// empty.
func Wrap(s string, width int) []string {
	width = max(width, 10)
	var lines []string
	line, used := "", 0
	flush := func() {
		lines = append(lines, line)
		line, used = "", 0
	}
	for word := range strings.FieldsSeq(s) {
		n := columns(word)
		if line != "" && used+1+n > width {
			flush()
		}
		if line != "" {
			line += " "
			used++
		}
		for used+n > width { // longer than a line: break it anywhere
			cut, begun := 0, used
			for i, r := range word {
				w := runeColumns(r)
				if used+w > width {
					cut = i
					break
				}
				used += w
				cut = i + utf8.RuneLen(r)
			}
			line += word[:cut]
			word = word[cut:]
			n -= used - begun // to count the rest again would take too long
			flush()
		}
		line += word
		used += n
	}
	if line != "" || len(lines) == 0 {
		flush()
	}
	return lines
}

// Pad fills a string up to a width.
func Pad(s string, width int) string {
	if n := width - columns(s); n > 0 {
		return s + strings.Repeat(" ", n)
	}
	return s
}

// padLeft right-aligns a string.
func padLeft(s string, width int) string {
	if n := width - columns(s); n > 0 {
		return strings.Repeat(" ", n) + s
	}
	return s
}
